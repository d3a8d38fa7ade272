"""Which files below a folder are opened while something runs: on Linux by whatever code, elsewhere by Python's own."""

import ctypes
import os
import struct
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

IN_OPEN, IN_ISDIR, IN_OVERFLOW = 0x20, 0x40000000, 0x4000
EVENT = struct.Struct("iIII")
_watching: list[tuple[str, Counter[str]]] = []  # of the audit hook, which stays for good once it is there
_hooked: list[bool] = []


@contextmanager
def opened(root: Path) -> Iterator[Counter[str]]:
    """Names of files below `root` that are opened in the block, and how often."""
    with (_by_inotify if sys.platform == "linux" else _by_audit)(root) as found:
        yield found


@contextmanager
def _by_inotify(root: Path) -> Iterator[Counter[str]]:
    libc = ctypes.CDLL(None, use_errno=True)
    notes = libc.inotify_init1(os.O_NONBLOCK)
    assert notes >= 0, os.strerror(ctypes.get_errno())
    found, folders = Counter[str](), dict[int, Path]()
    try:
        for folder, _, _ in os.walk(root):
            number = libc.inotify_add_watch(notes, os.fsencode(folder), IN_OPEN)
            assert number >= 0, os.strerror(ctypes.get_errno())
            folders[number] = Path(folder).relative_to(root)
        while _events(notes):  # the walk's own
            pass
        yield found
        while events := _events(notes):
            for number, mask, name in events:
                assert not mask & IN_OVERFLOW, "too many files were opened to count them"
                if not mask & IN_ISDIR:
                    found[(folders[number] / name).as_posix()] += 1
    finally:
        os.close(notes)


def _events(notes: int) -> list[tuple[int, int, str]]:
    try:
        data = os.read(notes, 1 << 16)
    except BlockingIOError:
        return []
    found, at = [], 0
    while at < len(data):
        number, mask, _, length = EVENT.unpack_from(data, at)
        at += EVENT.size + length
        found.append((number, mask, os.fsdecode(data[at - length : at].rstrip(b"\0"))))
    return found


@contextmanager
def _by_audit(root: Path) -> Iterator[Counter[str]]:
    if not _hooked:
        sys.addaudithook(_hook)
        _hooked.append(True)
    entry = (os.path.abspath(root) + os.sep, Counter[str]())
    _watching.append(entry)
    try:
        yield entry[1]
    finally:
        _watching.remove(entry)


def _hook(event: str, values: tuple[Any, ...]) -> None:
    if event == "open" and _watching and isinstance(values[0], str | bytes | os.PathLike):
        path = os.path.abspath(os.fsdecode(values[0]))
        for root, found in _watching:
            if path.startswith(root):
                found[Path(path[len(root) :]).as_posix()] += 1
