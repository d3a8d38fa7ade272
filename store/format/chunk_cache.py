"""The last chunks of which a part was asked for, and their last decoded stretches.

A loop over prompts, of which a chunk holds ten or a hundred, reads and checks each chunk once and decodes each block once.
"""

import os
import threading
import time
from collections import OrderedDict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ..remote.files import RemoteFile

RECENT = 256 << 20  # bytes that are kept, about two prompts' stretches of all boundaries of an 8B model
TICK = 100_000_000  # ns that no clock of a file system takes for a tick


class _Recent:
    """Stretches of bytes of chunks; beyond `limit` bytes the least recently used are dropped."""

    def __init__(self, limit: int):
        self._limit, self._size, self._lock = limit, 0, threading.Lock()
        self._held = OrderedDict[Any, tuple[int, np.ndarray]]()

    def get(self, chunk: Any, start: int, stop: int) -> tuple[int, np.ndarray] | None:
        """A stretch of a chunk with its bytes start..stop in it: the byte that it begins with, and the bytes (uint8)."""
        with self._lock:
            if chunk not in self._held:
                return None
            self._held.move_to_end(chunk)
            first, data = self._held[chunk]
        return (first, data) if first <= start and stop <= first + len(data) else None

    def put(self, chunk: Any, first: int, data: np.ndarray) -> None:
        """Hold a stretch of a chunk instead of another one of it."""
        with self._lock:
            _, old = self._held.pop(chunk, (0, b""))
            self._held[chunk] = first, data
            self._size += len(data) - len(old)
            while self._size > self._limit:
                self._size -= len(self._held.popitem(last=False)[1][1])


@cache
def recent() -> _Recent:
    """The decoded stretches that this process holds."""
    return _Recent(RECENT)


@cache
def recent_frames() -> _Recent:
    """The encoded chunks that this process holds, whole and checked."""
    return _Recent(RECENT)


for held in (recent, recent_frames):  # a lock does not survive a fork
    os.register_at_fork(after_in_child=held.cache_clear)


def identity(file: Path | RemoteFile) -> Any:
    """What tells a file from another one that takes its place; None while that is unknown, right after it was written.

    Clocks of file systems tick every few ms. A remote file is known by the object that reads it, opened once a capture.
    """
    if isinstance(file, RemoteFile):
        return file
    found = file.stat()
    just_now = abs(time.time_ns() - found.st_mtime_ns) < TICK
    return None if just_now else (str(file), found.st_ino, found.st_size, found.st_mtime_ns)
