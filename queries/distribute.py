"""Jobs over the workers of a dask.distributed scheduler: the tables that one process makes, to the last bit.

A pass of the sweep keeps its blocks. They are dealt out in runs of TASK_BYTES, each one a task whose worker writes what the
blocks gave to each job into a part file; when all parts of a job are there, one more task joins them in their order. A job
that does not split is a task of its own. Few tasks are with the scheduler at a time, so that its graph stays small.
Workers make the jobs again from the lake's files, which all must see at the same path.
"""

import statistics
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..store.catalog import PACKAGED
from ..store.errors import LakeError
from ..store.files import hash_json
from ..store.layout import MARKER, Layout
from ..store.parts import drop_parts, part_file, parts_folder
from ..store.progress import Bar, bar
from ..store.version import __version__
from .build import Need
from .feed import Feed
from .kit import Kit
from .sweep import Job, cost_of, fail, feeds_of, label_of, missing_of, passes, prompt_blocks, ready, run, together
from .worker import Call, Done, join, parts, tidy, whole, work

if TYPE_CHECKING:
    from distributed import Client, Future

TASK_BYTES = 256 << 20  # of decoded values that a task reads
MOST_TASKS = 4096  # of a sweep; of larger ones each task reads more
AHEAD = 2  # tasks a worker at the scheduler
RETRIES = 2  # of a task that raised what is no LakeError; dying workers are counted by dask (allowed-failures)
CONNECT = 5.0  # seconds
PATIENCE = 60.0  # seconds without any worker
SLOW = 3.0  # times the median task, and at the end another worker tries too

Sources = dict[Path, tuple[Kit, Need]]  # what the job of each path is made of


@dataclass
class Task:
    """What one worker does at a time, for some jobs, when the tasks named in `after` are done."""

    name: str
    jobs: list[Job]
    share: Callable[..., int]
    given: tuple[Any, ...]
    after: set[str] = field(default_factory=set)
    tokens: int = 0


class Cluster:
    """The workers of a scheduler; `run` does jobs like sweep.run."""

    def __init__(self, client: "Client | str | Path"):
        """`client` is a dask.distributed Client, the address of a scheduler, or its scheduler file."""
        self.client = connect(str(client)) if isinstance(client, str | Path) else client

    def run(self, jobs: Sequence[Job], failed: dict[Path, LakeError] | None = None) -> list[Path]:
        """Do the jobs whose result is not there, those they need first before them; returns the new results.

        Errors are as for sweep.run. A LakeError too when the scheduler or its workers are lost for good; what was done until
        then is kept, and the next call goes on from there.
        """
        missing = missing_of(jobs)
        if not missing:
            return []
        sources = _sources(jobs)
        kit = next(iter(sources.values()))[0]
        check(self.client, kit.layout)
        call = _call(kit)
        try:
            for reading, others in passes(missing):
                one = _Pass(self.client, call, sources, failed)
                one.read([job for job in reading if not job.stays])
                one.whole([job for job in others if not job.stays])
                one.run()
                run([job for job in (*reading, *others) if job.stays and ready(job, failed)], failed)
        finally:
            with suppress(OSError, TimeoutError):
                self.client.run(tidy, call.key, on_error="ignore")
        return [path for path in missing if path not in (failed or {})]


class _Pass:
    """The tasks of one pass, and where they are."""

    def __init__(self, client: "Client", call: Call, sources: Sources, failed: dict[Path, LakeError] | None):
        self._client, self._call, self._sources, self._failed = client, call, sources, failed
        self._waiting: dict[str, Task] = {}
        self._running: dict[Future[Done], tuple[Task, float]] = {}
        self._seconds: list[float] = []  # of the tasks that computed parts
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
                self._add(Task(self._place(job), [job], join, (plan, [_span(some) for some in runs]), set(names)))
            for job in group:
                if not job.splits:
                    tokens = sum(capture.n_tokens for capture in job.captures)
                    self._add(Task(self._place(job), [job], whole, (blocks,), tokens=tokens))

    def _parts(self, jobs: list[Job], feeds: Sequence[Feed], runs: Sequence[list[range]], plan: str) -> set[str]:
        """Add the tasks that compute the parts which are not there from an earlier call; returns their names."""
        for job in jobs:
            parts_folder(job.path, plan).mkdir(parents=True, exist_ok=True)
        names = set()
        for some in runs:
            prompts = _span(some)
            left = [job for job in jobs if not part_file(job.path, plan, prompts).exists()]
            tokens = sum(int(feed.offset[prompts.stop] - feed.offset[prompts.start]) for feed in feeds)
            if left:
                name = f"{hash_json([self._place(job) for job in jobs])[:8]}-{plan}-{prompts.start}-{prompts.stop}"
                self._add(Task(name, left, parts, (plan, some), tokens=tokens))
                names.add(name)
        return names

    def whole(self, jobs: Sequence[Job]) -> None:
        """Add tasks for jobs that read no captures block by block."""
        for job in jobs:
            after = {self._place(first) for first in job.before} & self._waiting.keys()
            self._add(Task(self._place(job), [job], whole, ([],), after))

    def _place(self, job: Job) -> str:
        """Where in the lake a job's result will lie."""
        return job.path.relative_to(self._call.lake).as_posix()

    def _add(self, task: Task) -> None:
        self._waiting[task.name] = task

    def run(self) -> None:
        """See all tasks through."""
        tasks = list(self._waiting.values())
        jobs = {job.path: job for task in tasks for job in task.jobs}
        with bar(label_of(jobs.values()), sum(task.tokens for task in tasks)) as progress:
            try:
                while self._waiting or self._running:
                    self._submit()
                    for future in self._ended():
                        self._take(future, progress)
            finally:
                self._client.cancel(list(self._running))

    def _submit(self) -> None:
        """Hand the scheduler as many tasks as keep its workers busy."""
        room = AHEAD * max(1, len(self._client.nthreads())) - len(self._running)
        for task in list(self._waiting.values()):
            if room <= 0:
                return
            if task.after:
                continue
            del self._waiting[task.name]
            task.jobs = [job for job in task.jobs if job.path not in (self._failed or {}) and ready(job, self._failed)]
            if task.jobs:
                self._start(task)
                room -= 1
            else:
                self._over(task)

    def _start(self, task: Task, again: str = "", workers: list[str] | None = None) -> None:
        asked = [(self._sources[job.path][1], self._place(job)) for job in task.jobs]
        future = self._client.submit(
            work,
            self._call,
            task.share,
            asked,
            *task.given,
            key=f"actlake-{self._call.key}-{task.name}{again}",
            workers=workers,
            retries=RETRIES,
            pure=False,
        )
        self._running[future] = (task, time.monotonic())

    def _over(self, task: Task) -> None:
        for other in self._waiting.values():
            other.after.discard(task.name)

    def _ended(self) -> "list[Future[Done]]":
        """Tasks that came to an end within a while."""
        from distributed import wait

        if not self._running:
            return []
        try:
            return list(wait(list(self._running), timeout=1, return_when="FIRST_COMPLETED").done)
        except TimeoutError:
            self._watch()
            return []

    def _watch(self) -> None:
        """Stop when there are no workers; once no task waits, let another worker try what takes too long with one."""
        now = time.monotonic()
        if workers := self._client.nthreads():
            self._seen = now
        elif now - self._seen > PATIENCE:
            raise LakeError(
                f"scheduler {address_of(self._client)}: no worker left for {PATIENCE:.0f} s; start some, and run this again: what"
                " is done is kept"
            )
        if any(not task.after for task in self._waiting.values()) or not self._seconds:
            return
        trying = [task.name for task, _ in self._running.values()]
        busy = {worker for worker, keys in self._client.processing().items() if keys}
        idle = [worker for worker in workers if worker not in busy]
        for task, started in list(self._running.values()):
            late = now - started > SLOW * max(1.0, statistics.median(self._seconds))
            if idle and late and task.share is parts and trying.count(task.name) == 1:
                self._start(task, "-again", [idle.pop()])

    def _take(self, future: "Future[Done]", progress: Bar) -> None:
        """See what came of a task."""
        task, _ = self._running.pop(future)
        twins = [other for other, (same, _) in self._running.items() if same is task]
        if future.status == "error" and twins:
            return
        done = _result(future, self._client)
        if done.stop:
            raise done.stop
        for twin in twins:
            del self._running[twin]
            twin.cancel()
        if task.share is parts:
            self._seconds.append(done.seconds)
        progress.advance(task.tokens)
        self._over(task)
        for job in task.jobs:
            if error := done.failed.get(self._place(job)):
                drop_parts(job.path)
                fail(job, error, self._failed)
            elif task.share is join:
                drop_parts(job.path)


def runs_of(feeds: Sequence[Feed]) -> list[list[range]]:
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


def _call(kit: Kit) -> Call:
    catalog = kit.catalog.path
    known = None if catalog.resolve() == PACKAGED.resolve() else str(catalog.absolute())
    return Call(uuid.uuid4().hex[:8], str(kit.layout.root), known, kit.device, kit.generate)


# --- the scheduler ---------------------------------------------------------------------------------------------------


def connect(scheduler: str) -> "Client":
    """A client of the scheduler at an address, or of the one that wrote a scheduler file.

    LakeError when it does not answer within CONNECT seconds, or when the package distributed is missing.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise LakeError(
            f"scheduler {scheduler}: needs the package distributed: `pip install 'actlake[cluster]'`"
        ) from error
    options: dict[str, Any] = {"timeout": CONNECT, "set_as_default": False}
    try:
        if Path(scheduler).is_file():
            return Client(scheduler_file=scheduler, **options)
        return Client(scheduler, **options)
    except (OSError, ValueError, TimeoutError) as error:
        raise LakeError(
            f"scheduler {scheduler}: no answer ({error}); start one with `dask scheduler`, and give the address that it prints,"
            " tcp://HOST:8786, or its --scheduler-file"
        ) from error


def address_of(client: "Client") -> str:
    """The address of a client's scheduler."""
    return str(client.scheduler.address) if client.scheduler else "(closed)"


def _result(future: "Future[Done]", client: "Client") -> Done:
    """What a task returned; LakeError when nothing will come of it."""
    from distributed import CancelledError, KilledWorker

    again = "what is done is kept: run this again to go on from there"
    try:
        return future.result()
    except KilledWorker as error:
        raise LakeError(
            f"scheduler {address_of(client)}: workers died {error.allowed_failures + 1} times over one task, of memory perhaps"
            f" (dask worker --memory-limit); {again}"
        ) from error
    except CancelledError as error:
        raise LakeError(f"scheduler {address_of(client)}: it is gone, or has forgotten a task; {again}") from error


def check(client: "Client", layout: Layout) -> None:
    """LakeError unless there are workers, and all of them have this version of actlake and see this lake."""
    try:
        client.wait_for_workers(1, timeout=PATIENCE)
    except TimeoutError as error:
        raise LakeError(
            f"scheduler {address_of(client)}: it has no workers: `dask worker {address_of(client)} --nthreads 1 --nworkers N`"
        ) from error
    with _marked(layout) as name:
        found = client.run(_looker(), str(layout.root), name, on_error="return")
    for worker, said in found.items():
        version, lake, same = said if isinstance(said, tuple) else (f"none ({said})", False, False)
        if version != __version__:
            problem = f"its actlake is {version}, here it is {__version__}: install the same version there"
        elif not lake:
            problem = (
                f"it finds no lake at {layout.root} (no {MARKER}): put the lake where all workers see it at this path"
            )
        elif not same:
            problem = f"its {layout.root} is another lake than the one here: all workers must share one file system"
        else:
            continue
        raise LakeError(f"worker {worker}: {problem}")


@contextmanager
def _marked(layout: Layout) -> Iterator[str]:
    """A file in the lake by which others know that it is the same one."""
    file = layout.root / f".{uuid.uuid4().hex}.tmp"
    try:
        file.touch()
    except OSError as error:
        raise LakeError(
            f"lake {layout.root}: can't be written to ({error.strerror}), and tables are made there"
        ) from error
    try:
        yield file.name
    finally:
        file.unlink(missing_ok=True)


def _looker() -> Callable[[str, str], tuple[str, bool, bool]]:
    """A function to be sent as it stands, for workers that may lack this module."""
    marker = MARKER

    def look(root: str, mark: str) -> tuple[str, bool, bool]:
        import importlib
        import os.path

        version = importlib.import_module("actlake.store.version").__version__
        return version, os.path.exists(f"{root}/{marker}"), os.path.exists(f"{root}/{mark}")

    return look
