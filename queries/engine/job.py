"""What a pass runs: a job makes one file of the lake from blocks of captures."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from enum import IntEnum
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from ...store.captures.reader import Capture
from ...store.format.paths import Layout
from ...store.tables.declared import TABLES
from ...store.tables.files import drop_tables, table_file, table_key, table_writer
from .blocks import Block, Columns

HELD_TOKENS = 1 << 14  # of a table of token x layer in memory at a time


class Stage(IntEnum):
    """When a job's turn comes: tables first, then texts that models write, probes last."""

    TABLES = 0
    TEXTS = 1
    PROBES = 2


class Job:
    """One result to compute: the captures it reads side by side, the variables it wants of them, and where it will lie.

    Entered before the first block and left after `finish`, or with the error that stopped the sweep: then nothing may
    stay behind. A job without `reads` gets no blocks. Jobs of `before` are done first: in an earlier pass, or for a job
    without `reads` in the same one.

    A job that `splits` says with `part` what a block gives, whatever came before it, and takes that in the order of the
    blocks with `join`: parts may be computed by other processes. Any other job has a `block` of its own.
    """

    captures: tuple[Capture, ...] = ()
    reads: tuple[str, ...] = ()
    before: tuple["Job", ...] = ()
    splits = False
    stays = False  # it needs this process's environment, so that no other process can run it
    reruns = False  # it runs blocks of a model; one run serves all jobs of a pass that want the same
    stage = Stage.TABLES
    runs: tuple[str, ...] = ()  # the models that it runs, or trains probes of
    lenses = 0.0  # what it costs, in passes of a lens over all tokens; 0: it reads no logits
    forwards = 0  # tokens that these read, or that probes are trained on, about
    checked = 0  # tokens that probes are looked at with, over all looks
    source: Any = None  # the kit and the need that build.jobs_of made it of, from which it can be made again elsewhere

    def __init__(self, name: str, path: Path):
        self.name, self.path = name, path

    def __enter__(self) -> "Job":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def loaded(self) -> AbstractContextManager[Any]:
        """Holds what blocks are computed with, if that is more than the job itself."""
        return nullcontext()

    def block(self, *rows: Block) -> None:
        """Take one block: a Rows of each capture, on the same prompts."""
        if part := self.part(*rows):
            self.join(part)

    def part(self, *rows: Block) -> Columns:
        """What one block gives: arrays of equal length, and constants, which are the same for all blocks; or nothing."""
        return {}

    def join(self, part: Columns) -> None:
        """Take what a block gave."""

    def finish(self) -> None:
        """Make the result from all blocks."""

    def generates(self) -> tuple[int, int] | None:
        """Texts that a model would write, and new tokens each at most; None for a job that generates none."""
        return None


class TableJob(Job):
    """A job whose result is one table file; `add` writes a row group to it."""

    def __init__(self, layout: Layout, table: str, recipe: dict[str, Any]):
        super().__init__(table, table_file(layout, table, table_key(table, recipe)))
        self.lenses = TABLES[table].lenses
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
    """A table of token x layer: `compute` turns a block into columns [n, layers], or nothing, `label` into columns [n] and
    constants.

    The first column is layer `first`: -1, the input of block 0, where all boundaries have one. Row groups are one layer of
    HELD_TOKENS tokens (the last fewer); that many are held in memory. Files whose recipe has the entries of `same` give way.
    `place` gives the columns that tell one of several rows a layer, in place of `first` and on.
    `holds` opens what blocks are computed with.
    """

    splits = True

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
        same: dict[str, Any] | None = None,
        holds: Callable[[], AbstractContextManager[Any]] = nullcontext,
        place: Callable[[int], dict[str, Any]] | None = None,
    ):
        super().__init__(layout, table, recipe)
        self.captures, self.reads, self.loaded = captures, reads, holds  # type: ignore[method-assign]
        self._layout, self._same = layout, same
        self._compute, self._label = compute, label
        self._place = place or (lambda at: {"layer": first + at})
        self._constant: dict[str, Any] = {}
        self._held: dict[str, np.ndarray] = {}
        self._layers = self._tokens = 0

    def part(self, *rows: Block) -> Columns:
        """All columns of a block."""
        values = self._compute(*rows)
        return {**self._label(*rows), **values} if values else {}

    def join(self, part: Columns) -> None:
        """Hold a block's columns, and write row groups as they fill."""
        arrays = {name: column for name, column in part.items() if isinstance(column, np.ndarray)}
        self._constant = {name: column for name, column in part.items() if name not in arrays}
        count, self._layers = next(column.shape for column in arrays.values() if column.ndim == 2)
        start = 0
        while start < count:
            stop = min(count, start + HELD_TOKENS - self._tokens)
            for name, column in arrays.items():
                self._hold(name, column[start:stop])
            self._tokens += stop - start
            start = stop
            if self._tokens == HELD_TOKENS:
                self._flush()

    def finish(self) -> None:
        """Write what is still held, and delete the files that give way."""
        if self._tokens:
            self._flush()
        if self._same:
            drop_tables(self._layout, self.name, self._same, keep=self.path)

    def _hold(self, name: str, part: np.ndarray) -> None:
        """Keep a column [n] or [n, layers], tokens last, in memory that is taken once: small pieces kept between the large
        ones that come and go would scatter over the heap, which then only grows."""
        if name not in self._held:
            empty = np.ma.empty if isinstance(part, np.ma.MaskedArray) else np.empty
            self._held[name] = empty((*part.shape[1:], HELD_TOKENS), part.dtype)
        self._held[name][..., self._tokens : self._tokens + len(part)] = part.T

    def _flush(self) -> None:
        """Write a row group per layer."""
        columns = {name: column[..., : self._tokens] for name, column in self._held.items()}
        for place in range(self._layers):
            here = {name: column if column.ndim == 1 else column[place] for name, column in columns.items()}
            self.add({**self._constant, **self._place(place), **here})
        self._tokens = 0
