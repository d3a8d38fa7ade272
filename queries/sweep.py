"""The sweep: one pass over the captures of a pair that decodes every stored chunk once, however many questions want it.

A job is one thing to compute from a capture, or from two side by side. Blocks of whole prompts go to all jobs in turn;
what two of them need from a block (a lens, say) is computed once.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from ..store.captures import Capture
from ..store.errors import LakeError
from ..store.files import give_back_memory
from ..store.layout import Layout
from ..store.progress import ERRORS, bar
from ..store.tables import table_file, table_key, table_writer
from .feed import Feed, Rows

BLOCK_BYTES = 32 << 20  # of decoded values in memory at a time, all captures together
HELD_TOKENS = 1 << 14  # of a table of token x layer in memory at a time


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
            stop = min(count, start + HELD_TOKENS - self._tokens)
            for name in columns.keys() - self._constant.keys():
                self._hold(name, columns[name][start:stop])
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

    Each job is put off to the last pass that still serves those who wait for it, so that passes are few and what jobs of
    one pass need from a block is computed once. A job that raises a LakeError goes into `failed` by its path, with those
    that need it, and the others go on; without `failed` it stops them all. A damaged capture does so anyway. Captures that a
    job reads side by side must be of the same prompts.
    """
    missing = _missing(jobs, {})
    later = dict.fromkeys(missing, 0)  # passes that must come after the job
    for job in reversed(missing.values()):
        for first in job.before:
            if first.path in missing:
                later[first.path] = max(later[first.path], later[job.path] + bool(job.reads))
    for turn in range(max(later.values(), default=0), -1, -1):
        here = [job for path, job in missing.items() if later[path] == turn]
        for group in _together([job for job in here if job.reads and _ready(job, failed)], failed):
            _sweep(_Going(group, failed))
        for job in here:
            if not job.reads and _ready(job, failed):
                with _Going([job], failed) as going:
                    going.each(going.open)
                    going.each(lambda job: job.finish())
    return [path for path in missing if path not in (failed or {})]


def _ready(job: Job, failed: dict[Path, LakeError] | None) -> bool:
    """Whether nothing failed that a job needs; else it fails for the same reason."""
    errors = [failed[first.path] for first in job.before if first.path in failed] if failed else []
    for error in errors:
        _fail(job, error, failed)
    return not errors


def _fail(job: Job, error: LakeError, failed: dict[Path, LakeError] | None) -> None:
    if failed is None:
        raise error
    failed[job.path] = error


class _Going:
    """Jobs under way together: one that fails is left and taken out, and the others go on."""

    def __init__(self, jobs: Sequence[Job], failed: dict[Path, LakeError] | None):
        self._stacks = {job: ExitStack() for job in jobs}
        self._failed = failed

    def __iter__(self) -> Iterator[Job]:
        return iter(list(self._stacks))

    def __len__(self) -> int:
        return len(self._stacks)

    def __enter__(self) -> "_Going":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        every = ExitStack()
        for stack in self._stacks.values():
            every.push(stack)
        every.__exit__(kind, error, trace)

    def open(self, job: Job) -> None:
        """Enter a job."""
        self._stacks[job].enter_context(job)

    def each(self, step: Callable[[Job], None]) -> None:
        """Let every job do a step."""
        for job in self:
            try:
                with self._stacks[job] as stack:
                    step(job)
                    self._stacks[job] = stack.pop_all()
            except LakeError as error:
                del self._stacks[job]
                _fail(job, error, self._failed)


def _missing(jobs: Sequence[Job], found: dict[Path, Job]) -> dict[Path, Job]:
    """Path -> job of what is not there, each after all that it needs."""
    for job in jobs:
        if job.path not in found and not job.path.exists():
            _missing(job.before, found)
            found[job.path] = job
    return found


def _together(jobs: list[Job], failed: dict[Path, LakeError] | None) -> list[list[Job]]:
    """Jobs on captures of the same prompts, which one pass can serve; one whose own captures differ in that fails."""
    groups: dict[tuple[str, ...], list[Job]] = {}
    for job in jobs:
        prompts = [tuple(capture.array("prompt_id")[:].tolist()) for capture in job.captures]
        if len(set(prompts)) > 1:
            paths = " and ".join(str(capture.path) for capture in job.captures)
            _fail(job, LakeError(f"{paths}: captures of different prompts can't be read side by side"), failed)
            continue
        groups.setdefault(prompts[0], []).append(job)
    return list(groups.values())


def _sweep(jobs: "_Going") -> None:
    captures = {capture.path: capture for job in jobs for capture in job.captures}
    wanted: dict[Path, set[str]] = {path: set() for path in captures}
    for job in jobs:
        for capture in job.captures:
            wanted[capture.path] |= set(job.reads)
    feeds = [Feed(captures[path], sorted(names)) for path, names in wanted.items()]
    label = f"{', '.join(dict.fromkeys(job.name for job in jobs))} {next(iter(captures)).parts[-3]}"
    with bar(label, sum(feed.capture.n_tokens for feed in feeds)) as progress, jobs:
        jobs.each(jobs.open)
        for prompts in _prompt_blocks(feeds):
            if not len(jobs):
                break
            rows = {feed.capture.path: feed.take(prompts) for feed in feeds}
            jobs.each(partial(_block, rows))
            progress.advance(sum(len(found) for found in rows.values()))
            del rows  # and all that was made of them, before the next are read
            give_back_memory()
        jobs.each(lambda job: job.finish())


def _block(rows: dict[Path, Rows], job: Job) -> None:
    job.block(*(rows[capture.path] for capture in job.captures))


def _prompt_blocks(feeds: Sequence[Feed]) -> Iterator[range]:
    """Runs of prompts that take about BLOCK_BYTES in all feeds together."""
    cost = np.sum([np.diff(feed.offset) * feed.bytes_per_token for feed in feeds], axis=0)
    start, used = 0, 0
    for prompt, size in enumerate(cost.tolist()):
        if used and used + size > BLOCK_BYTES:
            yield range(start, prompt)
            start, used = prompt, 0
        used += size
    yield range(start, len(cost))
