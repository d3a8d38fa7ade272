"""Rows in random order from blocks in store order, through a buffer of bounded size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ..core.arrays import Array, as_tensor

SKIP = 1024  # rows that `skip` draws at a time


class Shuffle:
    """Rows [n, ...] drawn at random from a buffer of `capacity` rows that blocks [m, ...] fill.

    Blocks that fit the buffer all together stay in it (`whole`) and are drawn again and again, each time in a new order.
    Of more, half of the full buffer is drawn before new rows take its place, and every row is drawn exactly once. The
    same blocks and seed give the same rows. Memory: the buffer, two blocks, and what `take` returns; `dtype` narrows the
    buffer (bfloat16 loses nothing of residuals that were widened from it). ValueError when the blocks hold no row.
    """

    def __init__(
        self, blocks: Iterable[Array], capacity: int, seed: int | Sequence[int] = 0, dtype: torch.dtype = torch.float32
    ) -> None:
        self._blocks: Iterator[Tensor] = (as_tensor(block) for block in blocks if len(block))
        self._next = next(self._blocks, None)  # the next rows, read ahead so that the end is known when it is reached
        if self._next is None:
            raise ValueError("shuffle: the blocks hold no rows")
        self._buffer = torch.empty(capacity, *self._next.shape[1:], dtype=dtype)
        self._free = np.arange(capacity)
        self._random = np.random.default_rng(seed)
        self._fill()
        self.whole = self._next is None
        self._order = self._draw()

    def filled(self, at: int) -> Tensor:
        """Column `at` of the rows that the buffer holds now, in the order they came in: of all rows if it is `whole`."""
        return self._buffer[torch.from_numpy(np.setdiff1d(np.arange(len(self._buffer)), self._free)), at]

    def take(self, count: int) -> Tensor:
        """The next `count` rows; fewer, and in the end none, when a stream of blocks comes to its end."""
        parts = []
        while count and (len(self._order) or self._refill()):
            slots, self._order = self._order[:count], self._order[count:]
            parts.append(self._buffer[torch.from_numpy(slots)])
            count -= len(slots)
        return torch.cat(parts) if parts else self._buffer[:0]

    def skip(self, count: int) -> None:
        """Leave out the next `count` rows, as if they had been taken."""
        while count and len(rows := self.take(min(count, SKIP))):
            count -= len(rows)

    def close(self) -> None:
        """Free the buffer: no more rows will be taken."""
        self._blocks, self._next, self._buffer = iter(()), None, self._buffer[:0]
        self._free, self._order, self.whole = np.empty(0, np.int64), np.empty(0, np.int64), False

    def _refill(self) -> bool:
        """Draw a new order when the last one is used up; False at the end of a stream."""
        if not self.whole:
            self._fill()
        self._order = self._draw()
        return bool(len(self._order))

    def _fill(self) -> None:
        """Fill free slots with rows until either runs out."""
        while self._next is not None and len(self._free):
            rows, rest = self._next[: len(self._free)], self._next[len(self._free) :]
            self._buffer[torch.from_numpy(self._free[: len(rows)])] = rows.to(self._buffer.dtype)
            self._free = self._free[len(rows) :]
            self._next = rest if len(rest) else next(self._blocks, None)

    def _draw(self) -> np.ndarray:
        """A random order of the filled slots, or of half of them if more is to come; a stream frees what it draws."""
        order = self._random.permutation(np.setdiff1d(np.arange(len(self._buffer)), self._free))
        if self._next is not None:
            order = order[: max(1, len(order) // 2)]
        if not self.whole:
            self._free = np.concatenate([self._free, order])
        return order
