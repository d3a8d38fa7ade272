"""Jobs over the workers of a dask.distributed scheduler: the tables that one process makes, to the last bit.

A pass keeps its blocks. They are distributed in runs of TASK_BYTES, each one a task whose worker writes what the
blocks gave to each job into a part file; when all parts of a job are there, one more task joins them in their order. A job
that does not split is a task of its own.
Workers make the jobs again from the lake's files, which all must see at the same path or URL.
"""

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...store.core.catalog import PACKAGED
from ...store.core.errors import LakeError
from ...store.core.files import hash_json
from ...store.core.progress import Bar, bar
from ...store.format.paths import Layout
from ..engine.blocks import BlockReader, drop_parts, part_file, parts_folder
from ..engine.context import Context
from ..engine.job import Job
from ..engine.passes import cost_of, fail, feeds_of, label_of, missing_of, passes, prompt_blocks, ready, run, together
from ..makers import Need
from .scheduler import PATIENCE, address_of, check_workers, clear_errors
from .worker import Call, Done, join, parts, tidy, whole, work

if TYPE_CHECKING:
    from distributed import Client, Future

TASK_BYTES = 256 << 20  # of decoded values that a task reads
MOST_TASKS = 4096  # of a sweep; of larger ones each task reads more
RETRIES = 2  # of a task that raised what is no LakeError; dying workers are counted by dask (allowed-failures)
POLL = 0.1  # seconds between looks at what came to an end

Sources = dict[Path, tuple[Context, Need]]  # what the job of each path is made of


@dataclass
class _Task:
    """What one worker does at a time, for some jobs, when the tasks named in `after` are done."""

    name: str
    jobs: list[Job]
    share: Callable[..., int]
    given: tuple[Any, ...]
    after: set[str] = field(default_factory=set)
    tokens: int = 0


class Cluster:
    """The workers of a scheduler; `run` does jobs like sweep.run."""

    def __init__(self, client: "Client"):
        self._client = client

    def run(self, jobs: Sequence[Job], failed: dict[Path, LakeError] | None = None) -> list[Path]:
        """Do the jobs (of build.jobs_of) whose result is not there, and those they need; returns the new results.

        Errors are as for sweep.run. A LakeError too when the scheduler or its workers are lost for good; what was done until
        then is kept, and the next call continues from there.
        """
        missing = missing_of(jobs, failed)
        if not missing:
            return []
        sources = _sources(jobs)
        kit = next(iter(sources.values()))[0]
        with clear_errors(self._client):
            check_workers(self._client, kit.layout)
            call = _call(kit)
            try:
                for reading, others in passes(missing):
                    one = _Pass(self._client, call, kit.layout, sources, failed)
                    one.read([job for job in reading if not job.stays])
                    one.whole([job for job in others if not job.stays])
                    one.run()
                    kit.layout.files.refresh()  # in a remote lake the workers' files are remote, too
                    run([job for job in (*reading, *others) if job.stays and ready(job, failed)], failed)
            finally:
                if self._client.status == "running":
                    self._client.run(tidy, call.key, on_error="ignore")
                kit.layout.files.refresh()
        return [kit.layout.files.bring(path) for path in missing if path not in (failed or {})]


class _Pass:
    """The tasks of one pass, and where they are."""

    def __init__(
        self, client: "Client", call: Call, layout: Layout, sources: Sources, failed: dict[Path, LakeError] | None
    ):
        self._client, self._call, self._layout, self._sources, self._failed = client, call, layout, sources, failed
        self._waiting: dict[str, _Task] = {}
        self._running: dict[Future[Done], _Task] = {}
        self._seen = time.monotonic()  # when there were workers

    def read(self, jobs: Sequence[Job]) -> None:
        """Add tasks for jobs that read captures."""
        for group in together([job for job in jobs if ready(job, self._failed)], self._failed):
            feeds = feeds_of(group)
            runs = runs_of(feeds)
            blocks = [block for some in runs for block in some]
            plan = hash_json([[block.start, block.stop] for block in blocks])[:8]
            splitting = [job for job in group if job.splits]
            names = self._parts(splitting, feeds, runs, plan) if splitting else set()
            for job in splitting:
                self._add(_Task(self._place(job), [job], join, (plan, [_span(some) for some in runs]), set(names)))
            for job in group:
                if not job.splits:
                    tokens = sum(capture.n_tokens for capture in job.captures)
                    self._add(_Task(self._place(job), [job], whole, (blocks,), tokens=tokens))

    def _parts(self, jobs: list[Job], feeds: Sequence[BlockReader], runs: Sequence[list[range]], plan: str) -> set[str]:
        """Add the tasks that compute the parts which are not there from an earlier call; returns their names."""
        for job in jobs:
            parts_folder(job.path, plan).mkdir(parents=True, exist_ok=True)
        names = set()
        for some in runs:
            prompts = _span(some)
            # A remote lake's parts lie with the worker that made them first.
            left = [job for job in jobs if self._layout.files.remote or not part_file(job.path, plan, prompts).exists()]
            tokens = sum(int(feed.offset[prompts.stop] - feed.offset[prompts.start]) for feed in feeds)
            if left:
                name = f"{hash_json([self._place(job) for job in jobs])[:8]}-{plan}-{prompts.start}-{prompts.stop}"
                self._add(_Task(name, left, parts, (plan, some), tokens=tokens))
                names.add(name)
        return names

    def whole(self, jobs: Sequence[Job]) -> None:
        """Add tasks for jobs that read no captures block by block."""
        for job in jobs:
            after = {self._place(first) for first in job.before} & self._waiting.keys()
            self._add(_Task(self._place(job), [job], whole, ([],), after))

    def _place(self, job: Job) -> str:
        """Where in the lake a job's result will lie."""
        return job.path.relative_to(self._layout.root).as_posix()

    def _add(self, task: _Task) -> None:
        self._waiting[task.name] = task

    def run(self) -> None:
        """See all tasks through: those that wait for no other go to the scheduler at once, the rest as these end."""
        from distributed import as_completed

        tasks = list(self._waiting.values())
        jobs = {job.path: job for task in tasks for job in task.jobs}
        with bar(label_of(jobs.values()), sum(task.tokens for task in tasks)) as progress, self._client.as_current():
            self._ended = as_completed()
            try:
                self._submit()
                while self._running:
                    if self._ended.has_ready():
                        self._take(next(self._ended), progress)
                        self._submit()
                    else:
                        self._watch()
            finally:
                if self._client.status == "running":
                    self._client.cancel(list(self._running))
        for path in self._failed or ():
            drop_parts(path, self._layout.files)

    def _submit(self) -> None:
        """Hand the scheduler the tasks that wait for no other."""
        while ready_now := [task for task in self._waiting.values() if not task.after]:
            for task in ready_now:
                del self._waiting[task.name]
                task.jobs = [
                    job for job in task.jobs if job.path not in (self._failed or {}) and ready(job, self._failed)
                ]
                if task.jobs:
                    self._start(task)
                else:
                    self._over(task)

    def _start(self, task: _Task) -> None:
        asked = [(self._sources[job.path][1], self._place(job)) for job in task.jobs]
        key = f"actlake-{self._call.key}-{task.name}"
        future = self._client.submit(
            work, self._call, task.share, asked, *task.given, key=key, retries=RETRIES, pure=False
        )
        self._running[future] = task
        self._ended.add(future)

    def _over(self, task: _Task) -> None:
        for other in self._waiting.values():
            other.after.discard(task.name)

    def _watch(self) -> None:
        """Wait a moment; LakeError when the scheduler is gone, or has had no workers for a while."""
        time.sleep(POLL)
        if self._client.status != "running":
            next(iter(self._running)).result()  # raises what dask has to say of it
        if self._client.nthreads():
            self._seen = time.monotonic()
        elif time.monotonic() - self._seen > PATIENCE:
            raise LakeError(
                f"scheduler {address_of(self._client)}: no worker left for {PATIENCE:.0f} s; start some, and run this again: what"
                " is done is kept"
            )

    def _take(self, future: "Future[Done]", progress: Bar) -> None:
        """See what came of a task."""
        task, done = self._running.pop(future), future.result()
        if done.stop:
            raise done.stop
        progress.advance(task.tokens)
        self._over(task)
        for job in task.jobs:
            if error := done.failed.get(self._place(job)):
                if self._failed is None:
                    drop_parts(job.path, self._layout.files)
                fail(job, error, self._failed)
            elif task.share is join:
                drop_parts(job.path, self._layout.files)


def runs_of(feeds: Sequence[BlockReader]) -> list[list[range]]:
    """The blocks of a sweep in contiguous runs of about TASK_BYTES, one for each task."""
    blocks, cost = list(prompt_blocks(feeds)), np.append(0, np.cumsum(cost_of(feeds)))
    starts, stops = (cost[[getattr(block, end) for block in blocks]] for end in ("start", "stop"))
    total = max(1, int(cost[-1]))
    count = min(MOST_TASKS, -(-total // TASK_BYTES))
    number = np.minimum((starts + stops) // 2 * count // total, count - 1)  # by the middle of each block
    return [[blocks[place] for place in np.flatnonzero(number == run)] for run in np.unique(number)]


def _span(blocks: Sequence[range]) -> range:
    return range(blocks[0].start, blocks[-1].stop)


def _sources(jobs: Sequence[Job]) -> Sources:
    """Where each job comes from, and those they need before them."""
    found: Sources = {}
    for job in jobs:
        waiting = [job]
        while waiting:
            here = waiting.pop()
            if here.path not in found:
                found[here.path] = job.source
                waiting += here.before
    return found


def _call(kit: Context) -> Call:
    catalog = kit.catalog.path
    known = None if catalog.resolve() == PACKAGED.resolve() else str(catalog.absolute())
    return Call(uuid.uuid4().hex[:8], kit.layout.address, known, kit.requested_device, kit.generate)
