"""The sweep: one pass over the captures of a pair that decodes every stored chunk once, however many questions want it.

A job is one thing to compute from a capture, or from two side by side. Blocks of whole prompts go to all jobs in turn;
what two of them need from a block (a lens, say) is computed once.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from enum import IntEnum
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from ..store.captures import Capture
from ..store.errors import LakeError
from ..store.files import give_back_memory
from ..store.layout import Layout
from ..store.parts import Columns
from ..store.progress import ERRORS, Advance, bar
from ..store.tables import table_file, table_key, table_writer
from .feed import Feed, Rows
from .going import Going, fail, ready

BLOCK_BYTES = 32 << 20  # of decoded values in memory at a time, all captures together
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
    blocks with `join`: parts may be computed elsewhere. Any other job has a `block` of its own.
    """

    captures: tuple[Capture, ...] = ()
    reads: tuple[str, ...] = ()
    before: tuple["Job", ...] = ()
    splits = False
    stays = False  # it needs the environment of the process that asks, so that no other one can do it
    reruns = False  # it runs blocks of a model; one run serves all jobs of a pass that want the same
    stage = Stage.TABLES
    runs: tuple[tuple[str, str], ...] = ()  # pair and variant of the models that it runs, or trains probes of
    forwards = 0  # tokens that these read, or that probes are trained on, about
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

    def block(self, *rows: Rows) -> None:
        """Take one block: a Rows of each capture, on the same prompts."""
        if part := self.part(*rows):
            self.join(part)

    def part(self, *rows: Rows) -> Columns:
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
    HELD_TOKENS tokens (the last fewer); that many are held in memory.
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
    ):
        super().__init__(layout, table, recipe)
        self.captures, self.reads = captures, reads
        self._compute, self._label, self._first = compute, label, first
        self._constant: dict[str, Any] = {}
        self._held: dict[str, np.ndarray] = {}
        self._layers = self._tokens = 0

    def part(self, *rows: Rows) -> Columns:
        """All columns of a block."""
        values = self._compute(*rows)
        return {**self._label(*rows), **values}

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
        """Write what is still held."""
        if self._tokens:
            self._flush()

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
            self.add({**self._constant, "layer": self._first + place, **here})
        self._tokens = 0


def announce(jobs: Sequence[Job]) -> None:
    """Say what will be generated for some jobs, before it starts; nothing when all texts are there."""
    before = {job.path: job for top in jobs if not top.path.exists() for job in top.before if not job.path.exists()}
    missing = [found for job in before.values() if (found := job.generates())]
    if told := sum(count for count, _ in missing):
        tokens = sum(count * budget for count, budget in missing)
        what = f"generating {told:,} texts under {len(missing)} conditions, at most {tokens:,} tokens"
        ERRORS.print(what, highlight=False)


def run(jobs: Sequence[Job], failed: dict[Path, LakeError] | None = None) -> list[Path]:
    """Do the jobs whose result is not there, those they need first before them; returns the new results.

    A job that raises a LakeError goes into `failed` by its path, with those that need it, and the others go on; without
    `failed` it stops them all. A damaged capture does so anyway. Captures that a job reads side by side must be of the same
    prompts.
    """
    missing = missing_of(jobs, failed)
    for reading, others in passes(missing):
        for group in together([job for job in reading if ready(job, failed)], failed):
            _sweep(Going(group, failed))
        for job in others:
            if ready(job, failed):
                alone(job, failed)
    return [path for path in missing if path not in (failed or {})]


Engine = Callable[
    [Sequence[Job], dict[Path, LakeError] | None], list[Path]
]  # what does jobs: `run`, or one of its like


def passes(missing: dict[Path, Job]) -> Iterator[tuple[list[Job], list[Job]]]:
    """The jobs of each pass: those that read, and the others, which come after them.

    Each job is put off to the last pass that still serves those who wait for it, so that passes are few and what jobs of
    one pass need from a block is computed once.
    """
    later = dict.fromkeys(missing, 0)  # passes that must come after the job
    for job in reversed(missing.values()):
        for first in job.before:
            if first.path in missing:
                later[first.path] = max(later[first.path], later[job.path] + bool(job.reads))
    for turn in range(max(later.values(), default=0), -1, -1):
        here = [job for path, job in missing.items() if later[path] == turn]
        yield [job for job in here if job.reads], [job for job in here if not job.reads]


def alone(job: Job, failed: dict[Path, LakeError] | None) -> None:
    """Do a job that gets no blocks."""
    with Going([job], failed) as going:
        going.each(going.open)
        going.each(lambda job: job.finish())


def missing_of(jobs: Sequence[Job], failed: dict[Path, LakeError] | None = None) -> dict[Path, Job]:
    """Path -> job of what is not there and has not failed before, each after all that it needs."""
    return {path: job for path, job in _missing(jobs, {}).items() if path not in (failed or {})}


def stage_of(job: Job) -> Stage:
    """The last stage that something belongs to which is missing of a job and of those it needs."""
    return max((each.stage for each in missing_of([job]).values()), default=Stage.TABLES)


def _missing(jobs: Sequence[Job], found: dict[Path, Job]) -> dict[Path, Job]:
    for job in jobs:
        if job.path not in found and not job.path.exists():
            _missing(job.before, found)
            found[job.path] = job
    return found


def together(jobs: list[Job], failed: dict[Path, LakeError] | None) -> list[list[Job]]:
    """Jobs on captures of the same prompts, which one pass can serve; one whose own captures differ in that fails."""
    groups: dict[tuple[str, ...], list[Job]] = {}
    for job in jobs:
        prompts = [tuple(capture.array("prompt_id")[:].tolist()) for capture in job.captures]
        if len(set(prompts)) > 1:
            paths = " and ".join(str(capture.path) for capture in job.captures)
            fail(job, LakeError(f"{paths}: captures of different prompts can't be read side by side"), failed)
            continue
        groups.setdefault(prompts[0], []).append(job)
    return list(groups.values())


def feeds_of(jobs: Iterable[Job]) -> list[Feed]:
    """What jobs read between them: each capture once, with all that any of them wants of it."""
    captures: dict[Path, Capture] = {}
    wanted: dict[Path, set[str]] = {}
    for job in jobs:
        for capture in job.captures:
            captures[capture.path] = capture
            wanted.setdefault(capture.path, set()).update(job.reads)
    return [Feed(captures[path], sorted(names)) for path, names in wanted.items()]


def label_of(jobs: Iterable[Job]) -> str:
    """What a progress bar calls jobs: their names, each once, and whose captures they read."""
    every = list(jobs)
    pairs = dict.fromkeys(capture.path.parts[-3] for job in every for capture in job.captures)
    return " ".join([", ".join(dict.fromkeys(job.name for job in every)), *pairs])


def _sweep(jobs: Going) -> None:
    feeds = feeds_of(jobs)
    with bar(label_of(jobs), sum(feed.capture.n_tokens for feed in feeds)) as progress, jobs:
        jobs.each(jobs.open)
        read(jobs, feeds, prompt_blocks(feeds), lambda job, *rows: job.block(*rows), progress.advance)
        jobs.each(lambda job: job.finish())


def read(
    jobs: Going, feeds: Sequence[Feed], blocks: Iterable[range], step: Callable[..., None], advance: Advance
) -> None:
    """Let jobs under way take a step with each block: `step` gets the job and its rows."""
    for prompts in blocks:
        if not len(jobs):
            break
        rows = {feed.capture.path: feed.take(prompts) for feed in feeds}
        jobs.each(partial(_step, step, rows))
        advance(sum(len(found) for found in rows.values()))
        del rows  # and all that was made of them, before the next are read
        give_back_memory()


def _step(step: Callable[..., None], rows: dict[Path, Rows], job: Job) -> None:
    step(job, *(rows[capture.path] for capture in job.captures))


def cost_of(feeds: Sequence[Feed]) -> np.ndarray:
    """Decoded bytes of each prompt in all feeds together, int64 [prompts]."""
    return np.sum([np.diff(feed.offset) * feed.bytes_per_token for feed in feeds], axis=0)


def prompt_blocks(feeds: Sequence[Feed]) -> Iterator[range]:
    """Runs of prompts that take about BLOCK_BYTES in all feeds together."""
    cost = cost_of(feeds)
    start, used = 0, 0
    for prompt, size in enumerate(cost.tolist()):
        if used and used + size > BLOCK_BYTES:
            yield range(start, prompt)
            start, used = prompt, 0
        used += size
    yield range(start, len(cost))
