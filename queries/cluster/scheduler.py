"""A dask.distributed scheduler: connecting to it, what its workers must have, and what they say in the end."""

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...store.core.errors import LakeError
from ...store.core.version import __version__
from ...store.format.paths import MARKER, Layout

if TYPE_CHECKING:
    from distributed import Client

CONNECT = 5.0  # seconds until a scheduler must have answered
PATIENCE = 60.0  # seconds that are waited for workers


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


@contextmanager
def clear_errors(client: "Client") -> Iterator[None]:
    """Turn the loss of a scheduler, or of worker after worker, inside the block into a LakeError."""
    from distributed import CancelledError, KilledWorker
    from distributed.comm import CommClosedError

    address, again = address_of(client), "what is done is kept: run this again to continue"
    try:
        yield
    except KilledWorker as error:
        raise LakeError(
            f"scheduler {address}: workers died {error.allowed_failures + 1} times over one task, of memory perhaps (dask worker"
            f" --memory-limit); {again}"
        ) from error
    except (CancelledError, CommClosedError) as error:
        raise LakeError(f"scheduler {address}: it is gone, or has forgotten a task; {again}") from error
    except Exception as error:
        if isinstance(error, LakeError) or client.status == "running":
            raise
        raise LakeError(f"scheduler {address}: it is gone; {again}") from error


def check_workers(client: "Client", layout: Layout) -> None:
    """LakeError unless there are workers, and all of them have this version of actlake and see this lake."""
    try:
        client.wait_for_workers(1, timeout=PATIENCE)
    except TimeoutError as error:
        if client.status != "running":
            raise
        raise LakeError(
            f"scheduler {address_of(client)}: it has no workers: `dask worker {address_of(client)} --nthreads 1 --nworkers N`"
        ) from error
    if layout.address != str(layout.root):
        return _check_reach(client, layout)
    with _marked(layout) as name:
        found = client.run(_looker(), str(layout.root), name, on_error="return")
    for worker, answer in found.items():
        version, lake, same = answer if isinstance(answer, tuple) else (f"none ({answer})", False, False)
        if version != __version__:
            problem = f"its actlake is {version}, here it is {__version__}: install the same version there"
        elif not lake:
            problem = f"it finds no lake at {layout} (no {MARKER}): put the lake where all workers see it at this path"
        elif not same:
            problem = f"its {layout} is another lake than the one here: all workers must share one file system"
        else:
            continue
        raise LakeError(f"worker {worker}: {problem}")


def _check_reach(client: "Client", layout: Layout) -> None:
    """LakeError unless all workers have this version of actlake and can open the lake at its URL."""

    def look(url: str) -> tuple[str, str]:
        import importlib

        version = importlib.import_module("actlake.store.core.version").__version__
        try:
            importlib.import_module("actlake.store.format.paths").Layout.open(url)
        except Exception as error:
            return version, str(error)
        return version, ""

    for worker, answer in client.run(look, layout.address, on_error="return").items():
        version, problem = answer if isinstance(answer, tuple) else (f"none ({answer})", "")
        if version != __version__:
            problem = f"its actlake is {version}, here it is {__version__}: install the same version there"
        if problem:
            raise LakeError(f"worker {worker}: {problem}")


@contextmanager
def _marked(layout: Layout) -> Iterator[str]:
    """A file in the lake by which others know that it is the same one."""
    file = layout.root / f".{uuid.uuid4().hex}.tmp"
    try:
        file.touch()
    except OSError as error:
        raise LakeError(f"lake {layout}: can't be written to ({error.strerror}), and tables are made there") from error
    try:
        yield file.name
    finally:
        file.unlink(missing_ok=True)


def _looker() -> Callable[[str, str], tuple[str, bool, bool]]:
    """A function sent by value, for workers that may lack this module."""
    marker = MARKER

    def look(root: str, mark: str) -> tuple[str, bool, bool]:
        import importlib
        import os.path

        version = importlib.import_module("actlake.store.core.version").__version__
        return version, os.path.exists(f"{root}/{marker}"), os.path.exists(f"{root}/{mark}")

    return look
