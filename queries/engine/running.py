"""Run jobs: a failed job and those that depend on it are skipped, the others continue."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from ...store.core.errors import LakeError

if TYPE_CHECKING:
    from .job import Job

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
                with self._stacks[job] as stack:
                    step(job)
                    self._stacks[job] = stack.pop_all()
            except LakeError as error:
                del self._stacks[job]
                fail(job, error, self._failed)
