"""Where the bytes of a lake are: one interface for a folder, a bucket, a web server and the hub.

Everything that can go wrong between here and there is dealt with in this package and nowhere else: tries again when a network
fails, limits on sizes before memory is taken, names and links that lead out of the lake.
"""

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

from ..core.errors import CorruptError, LakeError, redacted, scrubbed
from ..core.files import hash_file, replacing
from ..core.progress import say

HOPELESS = ("InvalidPathError", "InvalidURL", "NonHttpUrlClientError", "UnknownConfigurationKeyError")
T = TypeVar("T")
U = TypeVar("U")
INDEX = "files.json"  # what is in a lake, for servers that do not list folders
RANGE = 64 << 20  # bytes of a file in memory at a time
LARGEST_RECORD = 256 << 20  # bytes of a record of any lake
PART = 16 << 20  # bytes of a file that a transfer holds in memory at a time, twice
STREAMS = 16  # transfers at a time: what waits on a network needs no core
PAUSES = (0.5, 1, 2, 4, 8, 16)  # seconds between tries, half a minute in all: a server may be starting again
PATIENCE = 90  # seconds after which a server that does not answer is not asked again
QUIET = 3  # seconds of waiting that need no word
SILENCE = 60  # seconds without a byte that count as no answer
SLOWEST = 1000  # bytes a second below which, after that time, a server counts as silent, too
FINAL = (
    FileNotFoundError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
    NotImplementedError,
)


def is_remote(url: str | Path) -> bool:
    """True for a URL that is not a folder of this machine."""
    return "://" in str(url) and not str(url).startswith("file://")


@cache
def transfers() -> ThreadPoolExecutor:
    """The threads that wait on networks."""
    return ThreadPoolExecutor(STREAMS, thread_name_prefix="actlake-transfer")


os.register_at_fork(after_in_child=transfers.cache_clear)


def side_by_side(action: Callable[[U], object], items: Iterable[U]) -> None:
    """Do something with each item in threads; when one fails the rest is called off, and nothing runs on after the error."""
    under_way = [transfers().submit(action, item) for item in items]
    try:
        wait(under_way, return_when=FIRST_EXCEPTION)
    finally:
        for one in under_way:
            one.cancel()
        wait(under_way)
    for one in under_way:
        if not one.cancelled():
            one.result()


@dataclass(frozen=True)
class Entry:
    """A file as its server lists it: bytes, and a mark that changes with its content; None and '' where it does not say."""

    size: int | None
    tag: str = ""


class Store:
    """The files below a URL or folder, by POSIX names relative to it. `open_store` makes one of the right kind.

    Credentials, endpoints and proxies are those that the client of the scheme finds in its environment variables, profiles and
    tokens; none is kept. What fails for a reason of the network is tried again for half a minute. Raises LakeError for an
    address that nobody can open and for what stays out of reach. A kind of store has the methods that begin with one line.
    """

    writable = True
    ranges = True  # whether the server hands out parts of files, as far as is known
    local = False

    def __init__(self, url: str | Path):
        self.url = str(url).rstrip("/")
        self.scheme = self.url.partition("://")[0] if is_remote(url) else "file"
        self.endpoint = ""  # tells two servers with the same bucket apart
        self._warned = False

    def __str__(self) -> str:
        return redacted(self.url)

    # --- of each kind ----------------------------------------------------------------------------------------------

    def _files(self, folder: str) -> Iterable[tuple[str, Entry]]:
        """Every file below a folder; FileNotFoundError or nothing when there is no such folder."""
        raise NotImplementedError

    def _level(self, folder: str) -> tuple[Iterable[str], Iterable[tuple[str, Entry]]]:
        """Folders and files right below a folder."""
        raise NotImplementedError

    def _info(self, name: str) -> Entry:
        """How a file is listed; FileNotFoundError when it is not there."""
        raise NotImplementedError

    def _read(self, name: str, start: int, stop: int) -> bytes:
        """The bytes of a range; fewer when the file ends before."""
        raise NotImplementedError

    def _stream(self, name: str) -> Iterator[bytes]:
        """The bytes of a file, piece by piece."""
        raise NotImplementedError

    def _put(self, name: str, source: bytes | Path, new: bool) -> bool:
        """Store bytes or a local file whole or not at all; with `new`, False when there is one already."""
        raise NotImplementedError

    def _delete(self, name: str) -> None:
        """Take away a file, or all below a folder."""
        raise NotImplementedError

    @contextmanager
    def together(self, what: str) -> Iterator[None]:
        """Write what is put inside the block at once, where a kind of store can (`what` is its title); else one by one."""
        yield

    # --- what is there --------------------------------------------------------------------------------------------

    def check(self, name: str) -> str:
        """The name of a file or folder; CorruptError for one that leads out of the lake."""
        if name and not safe(name):
            raise CorruptError(
                f"{self}: {name!r}: expected the path of a file inside the lake; whoever made the lake can mend it"
            )
        return name

    def refresh(self) -> None:
        """Forget what was listed before."""

    def find(self, folder: str) -> dict[str, Entry]:
        """Every file below a folder, by its whole name; empty when there is no such folder."""
        self.check(folder)
        try:
            found = self._try(folder, lambda: list(self._files(folder)))
        except (FileNotFoundError, NotADirectoryError):
            return {}
        return {name: entry for name, entry in sorted(found, key=lambda pair: pair[0]) if name and safe(name)}

    def list(self, folder: str) -> "tuple[list[str], dict[str, Entry]]":
        """The folders and the files right below a folder, by their whole names."""
        self.check(folder)
        try:
            folders, files = self._try(folder, lambda: self._level(folder))
        except (FileNotFoundError, NotADirectoryError):
            return [], {}
        good = {name: entry for name, entry in files if name and name != folder and safe(name)}
        return sorted(name for name in folders if name and name != folder and safe(name)), good

    def empty(self) -> bool:
        """Whether there is no file at all; what is left of deleted ones, folders, does not count."""
        folders, files = self.list("")
        return not files and not any(self.find(folder) for folder in folders)

    def entry(self, name: str) -> Entry | None:
        """How a file is listed, or None when it is not there."""
        self.check(name)
        try:
            return self._try(name, lambda: self._info(name))
        except FileNotFoundError:
            return None

    # --- bytes ----------------------------------------------------------------------------------------------------

    def read(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        """The bytes of a file of at most LARGEST_RECORD bytes, or of a range of any; FileNotFoundError when it is not there."""
        self.check(name)
        if stop is None:
            return self._try(name, lambda: b"".join(self._limited(name, LARGEST_RECORD)))[start:]
        data = self._try(name, lambda: self._read(name, start, stop))
        if len(data) == stop - start:
            return data
        raise CorruptError(
            f"{self}/{name}: {len(data)} bytes at {start}, expected {stop - start}: the file is cut short; restore it with"
            " `actlake push`"
        )

    def _limited(self, name: str, most: int) -> Iterator[bytes]:
        """The bytes of a file, piece by piece, until they are too many, or come too slowly."""
        count, started = 0, time.monotonic()
        for piece in self._stream(name):
            count += len(piece)
            if count > most:
                raise CorruptError(f"{self}/{name}: expected at most {most} bytes, found more; restore it")
            if (waited := time.monotonic() - started) > SILENCE and count < SLOWEST * waited:
                raise TimeoutError(f"{count} bytes in {waited:.0f} s")
            yield piece

    def record(self, name: str) -> bytes | None:
        """The bytes of a record, None when there is none; CorruptError for a file that is too large to be one."""
        entry = self.entry(name)
        if entry and (entry.size or 0) > LARGEST_RECORD:
            raise CorruptError(
                f"{self}/{name}: {entry.size} bytes, expected a record of at most {LARGEST_RECORD}; restore it"
            )
        try:
            return self.read(name) if entry else None
        except FileNotFoundError:  # it has just gone
            return None

    def hash(self, name: str, size: int) -> str:
        """SHA-256 (hex) of a file of so many bytes, read in ranges."""
        digest = hashlib.sha256()
        for start in range(0, size, RANGE):
            digest.update(self.read(name, start, min(start + RANGE, size)))
        return digest.hexdigest()

    def get(self, name: str, file: Path, sha256: str | None = None, size: int | None = None) -> int:
        """Copy a file here, so that it appears whole, and return its bytes.

        CorruptError unless it has the hash, or when the server sends more than the `size` that it lists.
        """
        self.check(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as temporary:
            self._try(name, lambda: self._fetch(name, temporary, size))
            if sha256 and (found := hash_file(temporary)) != sha256:
                raise CorruptError(
                    f"{self}/{name}: its sha256 is {found}, the manifest says {sha256}; restore it from a good copy with"
                    " `actlake push`"
                )
            return temporary.stat().st_size

    def _fetch(self, name: str, file: Path, size: int | None) -> None:
        with open(file, "wb") as taken:
            if size is not None and size > RANGE and self.ranges:
                for start in range(0, size, RANGE):
                    taken.write(self._read(name, start, min(start + RANGE, size)))
                return
            for piece in self._limited(name, 1 << 60 if size is None else size):
                taken.write(piece)

    def put(self, name: str, source: bytes | Path, new: bool = False) -> bool:
        """Store bytes or a local file under a name, whole or not at all; with `new`, only where there is none yet.

        Returns False when there was one. Servers that can't tell overwrite, as they would without `new`.
        """
        self.check(name)
        if not self.writable:
            raise LakeError(f"{self}: {self.scheme}:// is read-only here; write to a folder or a bucket")
        return self._try(name, lambda: self._put(name, source, new))

    def delete(self, name: str) -> None:
        """Take a file or all below a folder away; one that is not there is no error."""
        self.check(name)

        def once() -> None:
            try:
                self._delete(name)
            except FileNotFoundError:
                return

        self._try(name, once)

    def _try(self, name: str, action: Callable[[], T]) -> T:
        """Do something over the network, again when it fails for a reason that may pass."""
        started = time.monotonic()
        for pause in (*PAUSES, 0):
            waited = time.monotonic() - started
            with self._explained(name, waited, last=not pause or waited > PATIENCE):
                return self._patiently(action)
            self._say_waiting()
            time.sleep(pause)
        raise AssertionError("the last try returns or raises")

    def _patiently(self, action: Callable[[], T]) -> T:
        """Do something that may wait for a server; a word of that after some seconds, once."""
        if self.local or self._warned:
            return action()
        timer = threading.Timer(QUIET, self._say_waiting)
        timer.daemon = True
        timer.start()
        try:
            return action()
        finally:
            timer.cancel()

    def _say_waiting(self) -> None:
        if not self._warned:
            self._warned = True
            say(f"{self}: no answer yet; trying for half a minute")

    @contextmanager
    def _explained(self, name: str, waited: float, last: bool) -> Iterator[None]:
        where = f"{self}/{name}" if name else str(self)
        try:
            yield
        except LakeError:
            raise
        except Exception as error:
            if self.local or isinstance(error, FINAL):
                raise
            if denied := self._denied(error):
                raise AccessError(f"{where}: {denied}") from error
            if isinstance(error, TypeError | AttributeError | KeyError):
                raise
            if last or type(error).__name__ in HOPELESS:
                raise LakeError(
                    f"{where}: out of reach ({_line(error)}), tried for {waited:.0f} s; check the address and the network"
                    " and run the command again: what was done is not lost"
                ) from error

    def _denied(self, error: Exception) -> str:
        """In words that the server does not let in; empty for any other error."""
        kind = type(error).__name__
        status = getattr(error, "status", 0) or getattr(getattr(error, "response", None), "status_code", 0)
        if "169.254.169.254" in str(error):  # where the clients of S3 look last
            return "no credentials found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile"
        if isinstance(error, PermissionError) or kind in ("PermissionDeniedError", "UnauthenticatedError"):
            keys = "check the credentials (for s3 AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile) and their rights"
            return f"access denied ({_line(error)}); {keys}"
        return f"access denied (HTTP {status})" if status in (401, 403) else ""


class AccessError(LakeError):
    """A server that does not let in."""


def _line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return scrubbed(text[0]) if text else type(error).__name__


def safe(name: str) -> bool:
    """Whether a server's name for a file stays inside a folder: no '..', no empty part, no absolute path."""
    parts = name.split("/")
    return not any(part in ("", ".", "..") or "\\" in part or "\0" in part for part in parts)
