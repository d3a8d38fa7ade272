"""What a process does of a call that another one runs: it makes the jobs again from what can be sent, and does its share."""

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ...store.core.catalog import PACKAGED
from ...store.core.errors import LakeError
from ...store.core.files import give_back_memory
from ...store.format.paths import Layout
from ..engine.blocks import Block, Columns, part_file, part_writer, read_part
from ..engine.context import Context
from ..engine.job import Job
from ..engine.passes import RunningJobs, feeds_of, read
from ..makers import Need, jobs_of

JobRequest = tuple[Need, str]  # a job: what it comes from, and where in the lake its result will lie
Failed = dict[Path, LakeError]


@dataclass(frozen=True)
class Call:
    """What the jobs of one call are made with, wherever that is; `key` tells it from other calls."""

    key: str
    lake: str
    catalog: str | None
    device: str
    generate: bool


@dataclass
class Done:
    """What came of a task: tokens read, seconds, why jobs failed (by where their results would lie), or why it stopped."""

    tokens: int = 0
    seconds: float = 0.0
    failed: dict[str, LakeError] = field(default_factory=dict)
    stop: LakeError | None = None


class _Bench:
    """What a process keeps from task to task of a call: captures and heads, and the jobs that it computes parts of."""

    def __init__(self, call: Call):
        self.call, layout = call, Layout.open(call.lake)
        catalog = Path(call.catalog) if call.catalog else PACKAGED
        self.root, self.files, self.kit = (
            layout.root,
            layout.files,
            Context(layout, call.device, catalog, call.generate),
        )
        self._jobs: dict[str, Job] = {}
        self._held = ExitStack()

    def job(self, request: JobRequest) -> Job:
        """A job, made anew."""
        need, place = request
        waiting = jobs_of(self.kit, need)
        while waiting:
            job = waiting.pop()
            if job.path == self.root / place:
                return job
            waiting += job.before
        raise LakeError(
            f"table {need[0]} of {need[2].pair}: a worker comes to another file than {place}; has the lake changed meanwhile, or"
            " is the catalog another one there?"
        )

    def jobs(self, requests: Sequence[JobRequest], failed: Failed) -> list[Job]:
        """Jobs to compute parts of, kept with the models they run until other jobs are requested."""
        if not {place for _, place in requests} <= self._jobs.keys():
            self.close()
            for one in requests:
                try:
                    job = self._jobs[one[1]] = self.job(one)
                    self._held.enter_context(job.loaded())
                except LakeError as error:
                    failed[self.root / one[1]] = error
            self.feeds = feeds_of(self._jobs.values())
        return [self._jobs[place] for _, place in requests if place in self._jobs]

    def has(self, requests: Sequence[JobRequest]) -> bool:
        """Whether the results of all these jobs are there."""
        return all((self.root / place).exists() for _, place in requests)

    def close(self) -> None:
        """Drop the jobs."""
        self._jobs = {}
        self._held.close()


def parts(bench: _Bench, failed: Failed, requests: Sequence[JobRequest], plan: str, blocks: Sequence[range]) -> int:
    """Compute the part of each job that a run of blocks gives; returns the tokens read."""
    prompts, tokens = range(blocks[0].start, blocks[-1].stop), list[int]()
    running = RunningJobs([job for job in bench.jobs(requests, failed) if not job.path.exists()], failed)
    writers: dict[Job, Callable[[Columns], None]] = {}

    def open_part(job: Job) -> None:
        writers[job] = running.enter(job, part_writer(part_file(job.path, plan, prompts), bench.files))

    def step(job: Job, *rows: Block) -> None:
        if part := job.part(*rows):
            writers[job](part)

    for feed in bench.feeds:
        feed.seek(prompts.start)
    with running:
        running.each(open_part)
        read(running, bench.feeds, blocks, step, tokens.append)
    return sum(tokens)


def join(bench: _Bench, failed: Failed, requests: Sequence[JobRequest], plan: str, runs: Sequence[range]) -> int:
    """Make the result of a job of its parts."""

    def take(job: Job) -> None:
        for prompts in runs:
            for part in read_part(bench.files.fetch(part_file(job.path, plan, prompts))):
                job.join(part)

    with RunningJobs([bench.job(one) for one in requests], failed) as running:
        running.each(running.open)
        running.each(take)
        running.each(lambda job: job.finish())
    return 0


def whole(bench: _Bench, failed: Failed, requests: Sequence[JobRequest], blocks: Sequence[range]) -> int:
    """Do all of a job, which may read these blocks; returns the tokens read."""
    tokens = list[int]()
    with RunningJobs([bench.job(one) for one in requests], failed) as running:
        running.each(running.open)
        if blocks:
            read(running, feeds_of(running), blocks, lambda job, *rows: job.block(*rows), tokens.append)
        running.each(lambda job: job.finish())
    return sum(tokens)


_turn = threading.Lock()  # tasks of one process take turns: each has all its threads, and memory for a block
_bench: _Bench | None = None


def work(call: Call, share: Callable[..., int], requests: Sequence[JobRequest], *given: object) -> Done:
    """One task: `share` is parts, join or whole. What it is for may be there already, from another call."""
    global _bench
    from distributed import get_worker

    started, failed, done = time.perf_counter(), Failed(), Done()
    with _turn:
        torch.set_num_threads(get_worker().state.nthreads)
        try:
            if _bench is None or _bench.call != call:
                _leave()
                _bench = _Bench(call)
            if share is not parts:  # what other workers made just now counts
                _bench.files.refresh()
            done.tokens = 0 if _bench.has(requests) else share(_bench, failed, requests, *given)
            done.failed = {path.relative_to(_bench.root).as_posix(): error for path, error in failed.items()}
        except LakeError as error:
            done.stop = error
        except FileNotFoundError:
            if not (_bench and _bench.has(requests)):  # else the other call has cleared the parts away
                raise
    done.seconds = time.perf_counter() - started
    return done


def tidy(key: str) -> None:
    """Drop what was kept for a call, unless an abandoned task still uses it."""
    if _turn.acquire(blocking=False):
        try:
            if _bench and _bench.call.key == key:
                _leave()
        finally:
            _turn.release()


def _leave() -> None:
    global _bench
    if _bench:
        _bench.close()
        _bench = None
        give_back_memory()
