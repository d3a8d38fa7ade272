"""Durable small files, hashes and canonical JSON: what every other module of the store builds on."""

import ctypes
import errno
import hashlib
import json
import math
import os
import platform
import re
import shutil
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from .errors import LakeError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

BLOCK = 1 << 20
DEEPEST = 64  # lists and objects in one another in JSON
LARGEST = 256 << 20  # bytes of a JSON file; a manifest of a million shards takes less


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys and no spaces, so that equal content has equal bytes and equal hashes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def hash_json(value: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def hash_file(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes, read in blocks of 1 MiB."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def hash_files(paths: Iterable[Path], relative_to: Path) -> dict[str, str]:
    """Relative POSIX path -> SHA-256 for each file, sorted by path."""
    return {path.relative_to(relative_to).as_posix(): hash_file(path) for path in sorted(paths)}


def sync_file(path: Path) -> None:
    """Ask the operating system to put a file's bytes on the disk before anything records them as done."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def temporary_of(path: Path) -> Path:
    """The name beside `path` of what becomes it once it is whole: no other process uses it, on whatever machine.

    What dead processes left in the folder under such names is deleted when this process comes there first.
    """
    _clear_once(path.parent)
    return path.with_name(f".{path.name}.{_machine()}-{os.getpid()}.tmp")


def _machine() -> str:
    """This machine and, on Linux, its space of process numbers: containers may share a name and not the numbers."""
    space = Path("/proc/self/ns/pid")
    return f"{platform.node()}-{space.stat().st_ino if space.exists() else 0}"


@cache
def _clear_once(folder: Path) -> None:
    clear_dead(folder)


def clear_dead(folder: Path) -> None:
    """Delete the temporary files and folders that processes of this machine which live no more left in `folder`.

    Those of other machines stay: from here nobody can tell whether their writers are alive.
    """
    if fcntl is None or not folder.is_dir():  # Windows can't be asked for a process without harm
        return
    ending = re.compile(rf"\..*\.{re.escape(_machine())}-(\d{{1,9}})\.tmp")
    for path in folder.iterdir():
        if (found := ending.fullmatch(path.name)) and not _lives(int(found[1])):
            with suppress(OSError):  # somebody else's, in a folder of many
                remove(path)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


def remove(path: Path) -> None:
    """Delete a file or a folder with all that is in it, as far as it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def replacing(path: Path, first: bool = False) -> Iterator[Path]:
    """A file to write, beside `path`, that takes its place at the end of the block, flushed; what raises leaves nothing behind.

    A reader sees the old content or the new, never a part. With `first` a file that is there by then stays.
    """
    temporary = temporary_of(path)
    try:
        yield temporary
        sync_file(temporary)
        if first:
            _place(temporary, path)
        else:
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part (temporary file, fsync, rename)."""
    with replacing(path) as temporary, _create(temporary) as file:
        file.write(data)


def _create(path: Path) -> BinaryIO:
    """Open a new file, its folder made if need be; another process may delete an empty folder at any moment."""
    for _ in range(100):
        with suppress(FileExistsError, FileNotFoundError):  # also raised where the folder goes while it is made
            path.parent.mkdir(parents=True, exist_ok=True)
            return open(path, "wb")
    path.parent.mkdir(parents=True, exist_ok=True)
    return open(path, "wb")


def _place(temporary: Path, path: Path) -> None:
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links
        if not path.exists():
            os.replace(temporary, path)


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically."""
    write_atomic(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """Indented JSON, as the lake's records are written."""
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return text.encode() + b"\n"


def read_json(path: Path, largest: int = LARGEST, repair: str = "") -> Any:
    """Read a JSON file of at most `largest` bytes; one that is missing, broken or larger is a LakeError that names it.

    `repair` ends its words: what to do. Numbers that are not finite and halves of characters, which no other program could
    read back, count as broken.
    """
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            raise LakeError(f"{path}: not a regular file", repair=repair)
        if found.st_size > largest:
            raise LakeError(
                f"{path}: {found.st_size} bytes, expected {largest} at most: not a file of actlake's", repair=repair
            )
        return parse_json(path.read_bytes())
    except FileNotFoundError:
        raise LakeError(f"{path}: no such file", repair=repair) from None
    except ValueError as error:
        raise LakeError(f"{path}: not valid JSON ({error})", repair=repair) from None
    except OSError as error:
        raise LakeError(f"{path}: can't be read ({error.strerror})") from error


def parse_json(data: bytes) -> Any:
    """The value of strict JSON in UTF-8; ValueError for anything else, however deep or large."""
    try:
        value = json.loads(data.decode("utf-8"), parse_constant=_refuse, parse_float=_finite)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if too_deep(value):
        raise ValueError("nested too deeply")
    if b"\\ud" in data or b"\\uD" in data:  # an escaped half of a character, unless its other half follows
        json.dumps(value, ensure_ascii=False).encode()
    return value


def too_deep(value: Any) -> bool:
    """Whether lists and objects lie more than DEEPEST deep in one another: writing or hashing them would end in an error."""
    level = [value]
    for _ in range(DEEPEST):
        inside = (inner for outer in level for inner in (outer.values() if isinstance(outer, dict) else outer))
        level = [inner for inner in inside if isinstance(inner, dict | list)] if isinstance(value, dict | list) else []
        if not level:
            return False
    return True


def _refuse(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse(text[:20])


@contextmanager
def try_lock(path: Path, wait: bool = False) -> Iterator[bool]:
    """Hold a lock on a file, made if need be; yields False when another process holds it (or waits for it, if `wait`).

    The lock ends with the process, however that ends. File systems without locks yield True: what is written under a lock
    is the same bytes whoever writes it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab") as file:
        held = True
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                held = False
            except OSError as error:
                if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                    raise
        yield held


def bytes_below(folder: Path) -> int:
    """Bytes of all files below a folder, while other processes may write and delete there."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                total += os.stat(os.path.join(place, name)).st_size
    return total


def free_bytes(path: Path) -> int:
    """Free bytes on the file system that holds `path` (or its nearest existing parent)."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def full_disk(error: OSError) -> bool:
    """True when the error says that the disk or the quota is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def explain_full_disk(what: str) -> Iterator[None]:
    """Turn a full disk inside the block into a LakeError that says what is safe."""
    try:
        yield
    except OSError as error:
        if not full_disk(error):
            raise
        raise LakeError(
            f"disk full while {what}: what was finished is safe; free some space and run the same command again to go on"
            " from there"
        ) from error


def human_bytes(count: float) -> str:
    """1536 -> '1.5 KB' (powers of 1000, as disks are sold)."""
    power = 0
    while abs(count) >= 1000 and power < 5:
        count, power = count / 1000, power + 1
    return f"{count:.0f} B" if power == 0 else f"{count:.1f} {' KMGTP'[power]}B"


def give_back_memory() -> None:
    """Let glibc return freed memory to the system; elsewhere nothing.

    What outlives a block of work is in memory between what does not:
    without this the heap keeps all that was ever free, and grows.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim:
        trim(0)
