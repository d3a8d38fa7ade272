"""The order of an epoch: blocks of rows in random order, mixed in a buffer of bounded size. Numbers alone, nothing is read.

Rows come in blocks that are read together (a chunk of a capture). The buffer is filled with blocks; three quarters of its rows,
drawn at random, are put into batches; more blocks take their place. (The rest is copied once more: half of the buffer would mix a
fifth better and read a sixth slower.) The order is a function of the rows, `seed` and the epoch, so that
any process can work out any batch of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np


@dataclass(frozen=True)
class Filled:
    """The buffer once it is full: `rows` by place in it. The first are the rows at the places `kept` of the buffer before;
    then come `pieces`, runs of rows of one block each. Rows at `drawn` are put into batches, in this order."""

    rows: np.ndarray
    kept: np.ndarray
    pieces: list[np.ndarray]
    drawn: np.ndarray


def blocks_of(rows: np.ndarray, size: int) -> np.ndarray:
    """Where blocks begin and end among ascending tokens, int64 [blocks + 1]: tokens of one stretch of `size` are one."""
    return np.concatenate([[0], np.flatnonzero(np.diff(rows // size)) + 1, [len(rows)]])


def pieces(edges: np.ndarray, order: np.ndarray, start: int, stop: int) -> Iterator[np.ndarray]:
    """Runs of row numbers, the blocks in this order, of which only the rows from `start` to `stop` count."""
    ends = np.cumsum(edges[order + 1] - edges[order])
    first, last = (int(np.searchsorted(ends, *at)) for at in ((start, "right"), (stop, "left")))
    for at in range(first, min(last + 1, len(order))):
        begin = edges[order[at]] - (0 if at == 0 else ends[at - 1])
        low, high = max(start, 0 if at == 0 else ends[at - 1]), min(stop, ends[at])
        if low < high:
            yield np.arange(low + begin, high + begin)


def fillings(
    blocks: Iterator[np.ndarray], capacity: int, batch: int, random: np.random.Generator | None
) -> Iterator[Filled]:
    """The buffer, filling by filling, until all rows are drawn; in their own order without `random`.

    Batches do not go across fillings: all but the last draw a multiple of `batch` rows. `capacity` has to be four batches and
    four blocks at least.
    """
    following, left, kept = next(blocks, None), np.empty(0, np.int64), np.empty(0, np.int64)
    while following is not None or len(left):
        fresh, room = list[np.ndarray](), capacity - len(left)
        while following is not None and len(following) <= room:
            fresh.append(following)
            room -= len(following)
            following = next(blocks, None)
        rows = np.concatenate([left, *fresh])
        count = len(rows) if following is None else max(len(rows) * 3 // 4 // batch, 1) * batch
        places = np.arange(len(rows)) if random is None else random.permutation(len(rows))
        yield Filled(rows, kept, fresh, places[:count])
        kept = np.sort(places[count:])
        left = rows[kept]


def epoch_of(
    edges: np.ndarray, capacity: int, batch: int, seed: int | None, epoch: int, rank: int, world: int
) -> Iterator[Filled]:
    """The fillings of one epoch for a rank: of all rows in the blocks' random order it has its `world`-th part, one after the
    other. Without `seed` rows keep their order."""
    count, blocks = int(edges[-1]), len(edges) - 1
    order = np.arange(blocks) if seed is None else np.random.default_rng([seed, epoch]).permutation(blocks)
    random = None if seed is None else np.random.default_rng([seed, epoch, rank + 1])
    mine = pieces(edges, order, *bounds(count, rank, world))
    return fillings(chain(mine), capacity, batch, random)


def bounds(count: int, rank: int, world: int) -> tuple[int, int]:
    """From where to where a rank has `count` rows."""
    return count * rank // world, count * (rank + 1) // world
