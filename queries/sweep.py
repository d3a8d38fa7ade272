"""The sweep: one pass over the captures of a pair that decodes every stored chunk once, however many questions want it.

A job is one thing to compute from a capture, or from two side by side. Blocks of whole prompts go to all jobs in turn;
what two of them need from a block (a lens, say) is computed once.
"""

import ctypes
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np

from ..store.captures import Capture, CheckedArray
from ..store.errors import LakeError
from ..store.layout import Layout
from ..store.progress import bar
from ..store.tables import ROW_GROUP_TOKENS, table_file, table_key, table_writer

BLOCK_BYTES = 32 << 20  # of decoded values in memory at a time, all captures together
T = TypeVar("T")


@dataclass(frozen=True)
class Rows:
    """What one capture holds for a run of whole prompts.

    `tokens` and `prompts` say where on the capture's axes; `columns` are its token columns there (prompt, prompt_id,
    category, position, step, token_id, target, each [n]), `values` the variables [n, ...] that some job reads.
    """

    capture: Capture
    tokens: slice
    prompts: range
    columns: dict[str, np.ndarray]
    values: dict[str, np.ndarray]
    _known: dict[Any, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> np.ndarray:
        return self.values[name]

    def __len__(self) -> int:
        return self.tokens.stop - self.tokens.start

    def once(self, key: Any, make: Callable[[], T]) -> T:
        """What `make` returns, made for the first job that asks under this key and shared with the others."""
        if key not in self._known:
            self._known[key] = make()
        return self._known[key]


class Job:
    """One result to compute: the captures it reads side by side, the variables it wants of them, and where it will lie.

    Entered before the first block and left after `finish`, or with the error that stopped the sweep: then nothing may
    stay behind. A job without `reads` gets no blocks. Jobs of `before` are done first: in an earlier pass, or for a job
    without `reads` in the same one.
    """

    captures: tuple[Capture, ...] = ()
    reads: tuple[str, ...] = ()
    before: tuple["Job", ...] = ()

    def __init__(self, name: str, path: Path):
        self.name, self.path = name, path

    def __enter__(self) -> "Job":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def block(self, *rows: Rows) -> None:
        """Take one block: a Rows of each capture, on the same prompts."""

    def finish(self) -> None:
        """Make the result from all blocks."""


class TableJob(Job):
    """A job whose result is one table file; `add` writes a row group to it."""

    def __init__(self, layout: Layout, table: str, recipe: dict[str, Any]):
        super().__init__(table, table_file(layout, table, table_key(table, recipe)))
        self._writer = table_writer(layout, table, recipe)
        self.add: Callable[[dict[str, Any]], None]

    def __enter__(self) -> "TableJob":
        self.add = self._writer.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.__exit__(kind, error, trace)


class LayerTable(TableJob):
    """A table of token x layer: `compute` turns a block into columns [n, layers], `label` into columns [n] and constants.

    The first column is layer `first`: -1, the input of block 0, where all boundaries have one. Row groups are one layer of
    ROW_GROUP_TOKENS tokens (the last fewer); that many are held in memory.
    """

    def __init__(
        self,
        layout: Layout,
        table: str,
        recipe: dict[str, Any],
        captures: tuple[Capture, ...],
        reads: tuple[str, ...],
        compute: Callable[..., dict[str, np.ndarray]],
        label: Callable[..., dict[str, Any]],
        first: int = -1,
    ):
        super().__init__(layout, table, recipe)
        self.captures, self.reads = captures, reads
        self._compute, self._label, self._first = compute, label, first
        self._constant: dict[str, Any] = {}
        self._held: dict[str, np.ndarray] = {}
        self._layers = self._tokens = 0

    def block(self, *rows: Rows) -> None:
        """Compute a block, and write row groups as they fill."""
        values = self._compute(*rows)
        columns = {**self._label(*rows), **values}
        count, self._layers = next(iter(values.values())).shape
        self._constant = {name: column for name, column in columns.items() if not isinstance(column, np.ndarray)}
        start = 0
        while start < count:
            stop = min(count, start + ROW_GROUP_TOKENS - self._tokens)
            for name in columns.keys() - self._constant.keys():
                self._hold(name, columns[name][start:stop])
            self._tokens += stop - start
            start = stop
            if self._tokens == ROW_GROUP_TOKENS:
                self._flush()

    def finish(self) -> None:
        """Write what is still held."""
        if self._tokens:
            self._flush()

    def _hold(self, name: str, part: np.ndarray) -> None:
        """Keep a column [n] or [n, layers], tokens last, in memory that is taken once: small pieces kept between the large
        ones that come and go would scatter over the heap, which then only grows."""
        if name not in self._held:
            empty = np.ma.empty if isinstance(part, np.ma.MaskedArray) else np.empty
            self._held[name] = empty((*part.shape[1:], ROW_GROUP_TOKENS), part.dtype)
        self._held[name][..., self._tokens : self._tokens + len(part)] = part.T

    def _flush(self) -> None:
        """Write a row group per layer."""
        columns = {name: column[..., : self._tokens] for name, column in self._held.items()}
        for place in range(self._layers):
            here = {name: column if column.ndim == 1 else column[place] for name, column in columns.items()}
            self.add({**self._constant, "layer": self._first + place, **here})
        self._tokens = 0


def run(jobs: Sequence[Job]) -> list[Path]:
    """Do the jobs whose result is not there, those they need first before them; returns the new results.

    Each job is put off to the last pass that still serves those who wait for it, so that passes are few and what jobs of
    one pass need from a block is computed once. Raises LakeError when captures that a job reads side by side are not of
    the same prompts.
    """
    missing = _missing(jobs, {})
    later = dict.fromkeys(missing, 0)  # passes that must come after the job
    for job in reversed(missing.values()):
        for first in job.before:
            if first.path in missing:
                later[first.path] = max(later[first.path], later[job.path] + bool(job.reads))
    for turn in range(max(later.values(), default=0), -1, -1):
        here = [job for path, job in missing.items() if later[path] == turn]
        for group in _together([job for job in here if job.reads]):
            _sweep(group)
        for job in here:
            if not job.reads:
                with job:
                    job.finish()
    return list(missing)


def _missing(jobs: Sequence[Job], found: dict[Path, Job]) -> dict[Path, Job]:
    """Path -> job of what is not there, each after all that it needs."""
    for job in jobs:
        if job.path not in found and not job.path.exists():
            _missing(job.before, found)
            found[job.path] = job
    return found


def _together(jobs: list[Job]) -> list[list[Job]]:
    """Jobs on captures of the same prompts, which one pass can serve."""
    groups: dict[tuple[str, ...], list[Job]] = {}
    for job in jobs:
        prompts = [tuple(capture.array("prompt_id")[:].tolist()) for capture in job.captures]
        if len(set(prompts)) > 1:
            paths = " and ".join(str(capture.path) for capture in job.captures)
            raise LakeError(f"{paths}: captures of different prompts can't be read side by side")
        groups.setdefault(prompts[0], []).append(job)
    return list(groups.values())


def _sweep(jobs: list[Job]) -> None:
    captures = {capture.path: capture for job in jobs for capture in job.captures}
    wanted: dict[Path, set[str]] = {path: set() for path in captures}
    for job in jobs:
        for capture in job.captures:
            wanted[capture.path] |= set(job.reads)
    feeds = [_Feed(captures[path], sorted(names)) for path, names in wanted.items()]
    label = f"{', '.join(dict.fromkeys(job.name for job in jobs))} {jobs[0].captures[0].path.parts[-3]}"
    with bar(label, sum(feed.capture.n_tokens for feed in feeds)) as progress, ExitStack() as opened:
        for job in jobs:
            opened.enter_context(job)
        for prompts in _prompt_blocks(feeds):
            rows = {feed.capture.path: feed.take(prompts) for feed in feeds}
            for job in jobs:
                job.block(*(rows[capture.path] for capture in job.captures))
            progress.advance(sum(len(found) for found in rows.values()))
            del rows  # and all that was made of them, before the next are read
            give_back_memory()
        for job in jobs:
            job.finish()


def give_back_memory() -> None:
    """Let glibc return freed memory to the system; elsewhere nothing.

    What outlives a block lies between what does not: without this the heap keeps all that was ever free, and grows.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim:
        trim(0)


def _prompt_blocks(feeds: Sequence["_Feed"]) -> Iterator[range]:
    """Runs of prompts that take about BLOCK_BYTES in all feeds together."""
    cost = np.sum([np.diff(feed.offset) * feed.bytes_per_token for feed in feeds], axis=0)
    start, used = 0, 0
    for prompt, size in enumerate(cost.tolist()):
        if used and used + size > BLOCK_BYTES:
            yield range(start, prompt)
            start, used = prompt, 0
        used += size
    yield range(start, len(cost))


class _Feed:
    """The variables of one capture, read forward in whole chunks so that each is decoded once."""

    def __init__(self, capture: Capture, names: Sequence[str]):
        self.capture, self.offset = capture, capture.array("offset")[:]
        columns = capture.columns()
        columns["target"] = following(columns)
        self._columns = columns
        self._readers = {name: _Reader(capture.array(name)) for name in names}
        self.bytes_per_token = sum(
            4 * int(np.prod(reader.array.shape[1:], dtype=np.int64)) for reader in self._readers.values()
        )

    def take(self, prompts: range) -> Rows:
        """The rows of the next prompts."""
        tokens = slice(int(self.offset[prompts.start]), int(self.offset[prompts.stop]))
        columns = {name: values[tokens] for name, values in self._columns.items()}
        values = {name: reader.take(tokens.stop) for name, reader in self._readers.items()}
        return Rows(self.capture, tokens, prompts, columns, values)


class _Reader:
    """One array from its first token on; the chunks that a block ends in are kept for the next, which gets a view of them."""

    def __init__(self, array: CheckedArray):
        self.array = array
        self._chunk = array.array.chunks[0]
        self._held, self._start = array[0:0], 0  # whole chunks, from this token on
        self._at = 0  # token that the next block begins with

    def take(self, stop: int) -> np.ndarray:
        """Values [n, ...] from where the last call stopped up to token `stop`."""
        block, read = self._held[self._at - self._start : stop - self._start], self._start + len(self._held)
        if stop > read:
            self._held = block = block.copy("K")  # lets go of the chunks before others come in
            end = min(-(-stop // self._chunk) * self._chunk, self.array.shape[0])
            self._held, self._start = self.array[read:end], read
            block = _join(block, self._held[: stop - read])
        self._at = stop
        return block


def _join(head: np.ndarray, tail: np.ndarray) -> np.ndarray:
    """Both one after the other on the token axis, layer by layer in memory as they come from the store."""
    if not len(head):
        return tail
    if head.ndim < 3:
        return np.concatenate([head, tail])
    return np.concatenate([head.swapaxes(0, 1), tail.swapaxes(0, 1)], axis=1).swapaxes(0, 1)


def following(columns: dict[str, np.ndarray]) -> np.ndarray:
    """The token that follows each position in its prompt, -1 at the end of a prompt; int64 [tokens]."""
    target = np.full(len(columns["token_id"]), -1, dtype=np.int64)
    same = columns["prompt"][1:] == columns["prompt"][:-1]
    target[:-1][same] = columns["token_id"][1:][same]
    return target
