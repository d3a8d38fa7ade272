"""What files hold, and their hashes, remembered by what `stat` says of them: a file that nobody touched is read once.

`known_hash` and `remembered` keep what was found for other processes, too; a file that was changed within the last seconds is
left out there: a second change in the same tick of the clock would not show. `verify` reads every byte and asks nothing here.
"""

import os
import sqlite3
import threading
import time
from collections.abc import Callable
from functools import cache, lru_cache, wraps
from pathlib import Path
from typing import Any, TypeVar

from ..core.files import hash_file

T = TypeVar("T")
SETTLED = 2_000_000_000  # nanoseconds since the last change, so that the next one has another time


def user_cache() -> Path:
    """Where things are kept that can be made again: $ACTLAKE_CACHE, else actlake/ in the user's cache folder."""
    if here := os.environ.get("ACTLAKE_CACHE"):
        return Path(here).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "actlake"


def known_hash(file: Path) -> str:
    """SHA-256 (hex) of a file's bytes, read only if it is not the file of before (path, size, times, inode)."""
    return remembered(file, "sha256", hash_file)


def remembered(file: Path, what: str, find: Callable[[Path], str]) -> str:
    """What `find` says of a file's content, looked for only if it is not the file of before; `what` names it."""
    found = file.stat()
    mark = (f"{what}:{file.absolute()}", found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)
    store = _store(user_cache() / "hashes.sqlite", os.getpid())
    known = store.get(mark)
    if known is None:
        known = find(file)
        settled = time.time_ns() - max(found.st_mtime_ns, found.st_ctime_ns) > SETTLED
        if settled and file.stat().st_ctime_ns == found.st_ctime_ns:
            store.put(mark, known)
    return known


def mark_of(file: Path) -> tuple[int, ...]:
    """What changes when a file is replaced or written to; empty when there is none."""
    try:
        found = file.stat()
    except OSError:  # who reads the file says why it can't be
        return ()
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def while_same(most: int) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Decorator of a function of a file and more: this process asks it once, of `most` files, until the file is another."""

    def decorate(find: Callable[..., T]) -> Callable[..., T]:
        @lru_cache(maxsize=most)
        def kept(file: Path, _mark: tuple[int, ...], *more: Any) -> T:
            return find(file, *more)

        @wraps(find)
        def ask(file: Path, *more: Any) -> T:
            return kept(file, mark_of(file), *more)

        ask.cache_clear = kept.cache_clear  # type: ignore[attr-defined]
        return ask

    return decorate


Mark = tuple[str, int, int, int, int]


class _Store:
    """Hashes in memory, and in a file where one can be kept: without it each process hashes anew."""

    def __init__(self, file: Path):
        self._here: dict[Mark, str] = {}
        self._lock = threading.Lock()
        self._file: sqlite3.Connection | None = None
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._file = sqlite3.connect(file, timeout=1, isolation_level=None, check_same_thread=False)
            self._file.execute(
                "PRAGMA synchronous = OFF"
            )  # a loss costs time only, and waiting for the disk some of it
            self._file.execute(
                "CREATE TABLE IF NOT EXISTS hashes"
                " (path TEXT PRIMARY KEY, size INT, mtime INT, ctime INT, inode INT, found TEXT)"
            )
        except (OSError, sqlite3.Error):
            self._file = None

    def get(self, mark: Mark) -> str | None:
        with self._lock:
            if mark in self._here:
                return self._here[mark]
            where = "path = ? AND size = ? AND mtime = ? AND ctime = ? AND inode = ?"
            rows = self._ask(f"SELECT found FROM hashes WHERE {where}", mark)
            if rows:
                self._here[mark] = str(rows[0][0])
            return self._here.get(mark)

    def put(self, mark: Mark, found: str) -> None:
        with self._lock:
            self._here[mark] = found
            self._ask("INSERT OR REPLACE INTO hashes VALUES (?, ?, ?, ?, ?, ?)", (*mark, found))

    def _ask(self, sql: str, values: tuple[object, ...]) -> list[tuple[object, ...]]:
        if self._file is None:
            return []
        try:
            return self._file.execute(sql, values).fetchall()
        except sqlite3.Error:  # locked for long, full or damaged: nothing depends on it
            self._file = None
            return []


@cache
def _store(file: Path, _process: int) -> _Store:
    return _Store(file)  # one for each process: a connection does not outlive a fork
