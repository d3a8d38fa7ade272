"""The sweep: one pass over the captures of a pair that decodes every stored chunk once, however many questions want it.

A job is one thing to compute from a capture, or from two side by side. Blocks of whole prompts go to all jobs in turn;
what two of them need from a block (a lens, say) is computed once.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import numpy as np

from ...store.captures.reader import Capture
from ...store.core.errors import LakeError, needs
from ...store.core.files import give_back_memory
from ...store.core.progress import ERRORS, Advance, bar
from .blocks import Block, BlockReader
from .job import Job, Stage

T = TypeVar("T")


def ready(job: "Job", failed: dict[Path, LakeError] | None) -> bool:
    """Whether nothing failed that a job needs; else it fails for the same reason."""
    errors = [failed[first.path] for first in job.before if first.path in failed] if failed else []
    for error in errors:
        fail(job, error, failed)
    return not errors


def fail(job: "Job", error: LakeError, failed: dict[Path, LakeError] | None) -> None:
    """Record why a job failed; without a record, raise it."""
    if failed is None:
        raise error
    failed[job.path] = error


class RunningJobs:
    """Jobs under way together: one that fails is left and taken out, and the others go on."""

    def __init__(self, jobs: "Iterable[Job]", failed: dict[Path, LakeError] | None):
        self._stacks = {job: ExitStack() for job in jobs}
        self._failed = failed

    def __iter__(self) -> "Iterator[Job]":
        return iter(list(self._stacks))

    def __len__(self) -> int:
        return len(self._stacks)

    def __enter__(self) -> "RunningJobs":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        every = ExitStack()
        for stack in self._stacks.values():
            every.push(stack)
        every.__exit__(kind, error, trace)

    def open(self, job: "Job") -> None:
        """Enter a job, and hold what it computes with."""
        self.enter(job, job)
        self.enter(job, job.loaded())

    def enter(self, job: "Job", context: AbstractContextManager[T]) -> T:
        """Enter what is to be left together with a job."""
        return self._stacks[job].enter_context(context)

    def each(self, step: "Callable[[Job], None]") -> None:
        """Let every job do a step."""
        for job in self:
            try:
                with needs(), self._stacks[job] as stack:
                    step(job)
                    self._stacks[job] = stack.pop_all()
            except LakeError as error:
                del self._stacks[job]
                fail(job, error, self._failed)


BLOCK_BYTES = 32 << 20  # of decoded values in memory at a time, all captures together


def announce(jobs: Sequence[Job]) -> None:
    """Say what will be generated for some jobs, before it starts; nothing when all texts are there."""
    before = {job.path: job for top in jobs if not top.path.exists() for job in top.before if not job.path.exists()}
    missing = [found for job in before.values() if (found := job.generates())]
    if texts := sum(count for count, _ in missing):
        tokens = sum(count * budget for count, budget in missing)
        what = f"generating {texts:,} texts under {len(missing)} conditions, at most {tokens:,} tokens"
        ERRORS.print(what, highlight=False)


def run(jobs: Sequence[Job], failed: dict[Path, LakeError] | None = None) -> list[Path]:
    """Do the jobs whose result is not there, those they need first before them; returns the new results.

    A job that raises a LakeError goes into `failed` by its path, with those that need it, and the others continue; without
    `failed` it stops them all. A damaged capture does so anyway. Captures that a job reads side by side must be of the same
    prompts.
    """
    missing = missing_of(jobs, failed)
    for reading, others in passes(missing):
        for group in together([job for job in reading if ready(job, failed)], failed):
            _sweep(RunningJobs(group, failed))
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
    with RunningJobs([job], failed) as running:
        running.each(running.open)
        running.each(lambda job: job.finish())


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


def feeds_of(jobs: Iterable[Job]) -> list[BlockReader]:
    """What jobs read between them: each capture once, with all that any of them wants of it."""
    captures: dict[Path, Capture] = {}
    wanted: dict[Path, set[str]] = {}
    for job in jobs:
        for capture in job.captures:
            captures[capture.path] = capture
            wanted.setdefault(capture.path, set()).update(job.reads)
    return [BlockReader(captures[path], sorted(names)) for path, names in wanted.items()]


def label_of(jobs: Iterable[Job]) -> str:
    """What a progress bar calls jobs: their names, each once, and whose captures they read."""
    every = list(jobs)
    pairs = dict.fromkeys(capture.path.parts[-2] for job in every for capture in job.captures)
    return " ".join([", ".join(dict.fromkeys(job.name for job in every)), *pairs])


def _sweep(jobs: RunningJobs) -> None:
    feeds = feeds_of(jobs)
    with bar(label_of(jobs), sum(feed.capture.n_tokens for feed in feeds)) as progress, jobs:
        jobs.each(jobs.open)
        read(jobs, feeds, prompt_blocks(feeds), lambda job, *rows: job.block(*rows), progress.advance)
        jobs.each(lambda job: job.finish())


def read(
    jobs: RunningJobs,
    feeds: Sequence[BlockReader],
    blocks: Iterable[range],
    step: Callable[..., None],
    advance: Advance,
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


def _step(step: Callable[..., None], rows: dict[Path, Block], job: Job) -> None:
    step(job, *(rows[capture.path] for capture in job.captures))


def cost_of(feeds: Sequence[BlockReader]) -> np.ndarray:
    """Decoded bytes of each prompt in all feeds together, int64 [prompts]."""
    return np.sum([np.diff(feed.offset) * feed.bytes_per_token for feed in feeds], axis=0)


def prompt_blocks(feeds: Sequence[BlockReader]) -> Iterator[range]:
    """Runs of prompts that take about BLOCK_BYTES in all feeds together."""
    cost = cost_of(feeds)
    start, used = 0, 0
    for prompt, size in enumerate(cost.tolist()):
        if used and used + size > BLOCK_BYTES:
            yield range(start, prompt)
            start, used = prompt, 0
        used += size
    yield range(start, len(cost))
