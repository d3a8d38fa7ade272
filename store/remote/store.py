"""A lake on another machine: its files by name, over any file system that fsspec knows, tried again when a network fails."""

import hashlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

from fsspec import AbstractFileSystem
from fsspec.asyn import sync
from fsspec.callbacks import TqdmCallback
from fsspec.core import url_to_fs

from ..core.errors import CorruptError, LakeError
from ..core.files import hash_file, hash_json, parse_json, sync_file, temporary_of
from ..core.progress import say
from ..core.redact import scrubbed, shown
from ..core.schema import MARKER

T = TypeVar("T")
U = TypeVar("U")
INDEX = "files.json"  # what is in a lake, for servers that do not list folders
READ_ONLY = ("http", "https", "hf")
RANGE = 64 << 20  # bytes of a file in memory at a time
LARGEST_RECORD = 256 << 20  # bytes of a record of any lake
PART = 16 << 20  # bytes of a file that a transfer holds in memory at a time, twice
STREAMS = 16  # transfers at a time: what waits on a network needs no core
PAUSES = (0.5, 1, 2, 4, 8, 16)  # seconds between tries, half a minute in all: a server may be starting again
PATIENCE = 90  # seconds after which a server that does not answer is not asked again
QUIET = 3  # seconds of waiting that need no word
SILENCE = 60  # seconds without a byte that count as no answer
FINAL = (
    FileNotFoundError,
    PermissionError,
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


class Origin:
    """The files below a URL or local folder, by POSIX names relative to it.

    Credentials, endpoints and proxies are those that fsspec and the client of the scheme find (AWS_* and FSSPEC_* variables,
    profiles, tokens); none is kept. What fails for a reason of the network is tried again for half a minute. Raises LakeError
    for an address that nobody can open and for what stays out of reach.
    """

    def __init__(self, url: str | Path):
        self.url = str(url).rstrip("/")
        self.scheme = self.url.partition("://")[0] if is_remote(url) else "file"
        try:
            fs, base = url_to_fs(self.url, use_listings_cache=False, **_options(self.scheme))
        except ImportError as error:
            extra = {"s3": "s3", "s3a": "s3", "http": "http", "https": "http"}.get(self.scheme)
            hint = f"pip install 'actlake[{extra}]'" if extra else str(error).rstrip(".")
            raise LakeError(f"lake {self}: {self.scheme}:// needs another package: {hint}") from error
        except ValueError as error:
            raise LakeError(f"lake {self}: can't be opened ({scrubbed(str(error))})") from error
        self.fs: AbstractFileSystem = fs
        self.base = base.rstrip("/")
        if hasattr(fs, "retries"):  # they are counted here
            fs.retries = 1
        self.writable = self.scheme not in READ_ONLY
        self._index: dict[str, Entry] | None = None
        self.ranges = True  # whether the server hands out parts of files, as far as is known
        self._probed = self._said = False

    def __str__(self) -> str:
        return shown(self.url)

    @property
    def endpoint(self) -> str:
        """What tells two servers with the same bucket apart."""
        found = getattr(self.fs, "endpoint_url", None) or os.environ.get("AWS_ENDPOINT_URL_S3")
        return str(found or os.environ.get("AWS_ENDPOINT_URL", "")) if self.scheme.startswith("s3") else ""

    def path(self, name: str) -> str:
        """The file system's own path of a name; CorruptError for a name that leads out of the folder."""
        if name and not safe(name):
            raise CorruptError(
                f"{self}: {name!r}: expected the path of a file inside the lake; whoever made the lake can mend it"
            )
        return f"{self.base}/{name}" if name else self.base

    # --- what is there --------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Forget what was listed before."""
        self.fs.invalidate_cache()
        self._index = None
        if self.scheme in ("http", "https"):
            self._probe()
            try:
                data = self._try(INDEX, lambda: self.fs.cat_file(self.path(INDEX), start=0, end=LARGEST_RECORD + 1))
                if len(data) > LARGEST_RECORD:
                    raise CorruptError(f"{self}/{INDEX}: expected at most {LARGEST_RECORD} bytes, found more")
                self._index = read_index(parse_json(data), f"{self}/{INDEX}")
            except FileNotFoundError:
                self._index = None  # a server that lists folders as pages of links may do without
            except ValueError as error:
                raise LakeError(f"{self}/{INDEX}: not valid JSON ({error}); `actlake index` makes it again") from None

    def _probe(self) -> None:
        """Ask a web server once for the end of a file, and name it if it can't hand out parts of files."""
        if self._probed:
            return
        ends, starts = (self._try(MARKER, partial(self._part, span)) for span in ("bytes=-8", "bytes=0-7"))
        self._probed, self.ranges = True, starts is not False
        if starts is False:
            say(
                f"{self}: this server can't hand out parts of files, so that whatever is read of one costs the whole;"
                " nginx, caddy and S3 can, and `actlake serve LAKE` does"
            )
        elif ends is False:
            say(
                f"{self}: this server can't hand out the ends of files, which plain xr.open_zarr asks for; nginx, caddy and S3"
                " can, and `actlake serve LAKE` does"
            )

    def _part(self, span: str) -> bool | None:
        """Whether the server answers a Range header with that part of the lake's marker; None where it has no such file."""

        async def ask() -> tuple[int, int]:
            session = await self.fs.set_session()
            async with session.get(self.fs.encode_url(self.path(MARKER)), headers={"Range": span}) as answer:
                return answer.status, len(await answer.content.read(9))

        status, length = sync(self.fs.loop, ask)
        return None if status in (401, 403, 404) else status == 206 and length == 8

    def find(self, folder: str) -> dict[str, Entry]:
        """Every file below a folder, by its whole name; empty when there is no such folder."""
        if self._index is not None:
            return {
                name: entry for name, entry in self._index.items() if name.startswith(f"{folder}/" if folder else "")
            }
        try:
            found = self._try(folder, lambda: self.fs.find(self._folder(folder), detail=True))
        except (FileNotFoundError, NotADirectoryError):
            return {}
        entries = ((self._name(info), _entry(info)) for info in found.values() if info["type"] == "file")
        return {name: entry for name, entry in sorted(entries, key=lambda pair: pair[0]) if name and safe(name)}

    def list(self, folder: str) -> tuple[list[str], dict[str, Entry]]:
        """The folders and the files right below a folder, by their whole names."""
        if self._index is not None:
            below = self.find(folder)
            at = len(folder) + 1 if folder else 0
            folders = {name[: name.index("/", at)] for name in below if "/" in name[at:]}
            return sorted(folders), {name: entry for name, entry in below.items() if "/" not in name[at:]}
        try:
            found = self._try(folder, lambda: self.fs.ls(self._folder(folder), detail=True))
        except (FileNotFoundError, NotADirectoryError):
            return [], {}
        named = [(self._name(info), info) for info in found]
        good = [(name, info) for name, info in named if name and safe(name) and name != folder]
        files = {name: _entry(info) for name, info in good if info["type"] == "file"}
        return sorted(name for name, info in good if info["type"] != "file"), files

    def empty(self) -> bool:
        """Whether there is no file at all; what is left of deleted ones, folders, does not count."""
        folders, files = self.list("")
        return not files and not any(self.find(folder) for folder in folders)

    def _folder(self, folder: str) -> str:
        return self.path(folder) + ("/" if self.scheme in ("http", "https") else "")

    def _name(self, info: dict[str, Any]) -> str:
        path = str(info["name"]).rstrip("/")
        return path[len(self.base) + 1 :] if path.startswith(f"{self.base}/") else ""

    def entry(self, name: str) -> Entry | None:
        """How a file is listed, or None when it is not there."""
        if self._index is not None:
            return self._index.get(name)
        try:
            return _entry(self._try(name, lambda: self.fs.info(self.path(name))))
        except FileNotFoundError:
            return None

    # --- bytes ----------------------------------------------------------------------------------------------------

    def read(self, name: str, start: int | None = None, stop: int | None = None) -> bytes:
        """The bytes of a file, or of a range of it; FileNotFoundError when it is not there."""

        def once() -> bytes:
            # The hub's client would read some MB ahead of every range.
            plainly = {"cache_type": "none"} if self.scheme == "hf" and start is not None else {}
            data = self.fs.cat_file(self.path(name), start=start, end=stop, **plainly)
            if start is None or stop is None or len(data) == stop - start:
                return data
            if len(data) > stop - start:  # a server without ranges sends everything
                return data[start:stop]
            raise CorruptError(
                f"{self}/{name}: {len(data)} bytes at {start}, expected {stop - start}: the file is cut short; restore it with"
                " `actlake push`"
            )

        return self._try(name, once)

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

    def get(self, name: str, file: Path, sha256: str | None = None) -> int:
        """Copy a file here, so that it appears whole, and return its bytes; CorruptError unless it has the hash."""
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_of(file)
        try:
            self._try(name, lambda: self._fetch(name, temporary))
            if sha256 and (found := hash_file(temporary)) != sha256:
                raise CorruptError(
                    f"{self}/{name}: its sha256 is {found}, the manifest says {sha256}; restore it from a good copy with"
                    " `actlake push`"
                )
            sync_file(temporary)
            size = temporary.stat().st_size
            os.replace(temporary, file)
            return size
        finally:
            temporary.unlink(missing_ok=True)

    def _fetch(self, name: str, file: Path) -> None:
        # The hub's client would show a bar for every file.
        quietly = {"callback": TqdmCallback(tqdm_kwargs={"disable": True})} if self.scheme == "hf" else {}
        self.fs.get_file(self.path(name), str(file), **quietly)
        if not file.is_file():  # some file systems make a folder of what is none
            raise FileNotFoundError(f"{self}/{name}")

    def put(self, name: str, source: bytes | Path, new: bool = False) -> bool:
        """Store bytes or a local file under a name, whole or not at all; with `new`, only where there is none yet.

        Returns False when there was one. Servers that can't tell overwrite, as they would without `new`.
        """
        if not self.writable:
            raise LakeError(f"{self}: {self.scheme}:// is read-only here; write to a folder or a bucket")

        def once() -> bool:
            path = self.path(name)
            if self.scheme == "file":
                return self._put_local(Path(path), source, new)
            if isinstance(source, Path):
                self.fs.put_file(str(source), path, **({"chunksize": PART} if self.scheme.startswith("s3") else {}))
                return True
            if not new or not self.scheme.startswith("s3"):
                self.fs.pipe_file(path, source)
                return True
            try:
                self.fs.pipe_file(path, source, mode="create")
            except OSError as error:
                if isinstance(error, FileExistsError) or "condition" in str(error):
                    return False
                raise
            return True

        return self._try(name, once)

    @staticmethod
    def _put_local(path: Path, source: bytes | Path, new: bool) -> bool:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_of(path)
        try:
            if isinstance(source, Path):
                shutil.copyfile(source, temporary)
            else:
                temporary.write_bytes(source)
            sync_file(temporary)
            if new:
                try:
                    os.link(temporary, path)  # unlike a rename it never replaces
                except FileExistsError:
                    return False
            else:
                os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def drop(self, name: str) -> None:
        """Take a file or all below a folder away; one that is not there is no error."""

        def once() -> None:
            try:
                self.fs.rm(self.path(name), recursive=True)
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
        if self.scheme == "file" or self._said:
            return action()
        timer = threading.Timer(QUIET, self._say_waiting)
        timer.daemon = True
        timer.start()
        try:
            return action()
        finally:
            timer.cancel()

    def _say_waiting(self) -> None:
        if not self._said:
            self._said = True
            say(f"{self}: no answer yet; trying for half a minute")

    @contextmanager
    def _explained(self, name: str, waited: float, last: bool) -> Iterator[None]:
        where = f"{self}/{name}" if name else str(self)
        try:
            yield
        except PermissionError as error:
            if self.scheme == "file":
                raise
            raise AccessError(
                f"{where}: access denied ({_line(error)}); check the credentials (for s3 AWS_ACCESS_KEY_ID and"
                " AWS_SECRET_ACCESS_KEY, or a profile) and their rights"
            ) from error
        except (*FINAL, LakeError):
            raise
        except Exception as error:
            status = getattr(error, "status", 0) or getattr(getattr(error, "response", None), "status_code", 0)
            if status in (401, 403):
                raise AccessError(f"{where}: access denied (HTTP {status})") from error
            if type(error).__name__ == "NoCredentialsError":
                raise AccessError(
                    f"{where}: no credentials found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile"
                ) from error
            if self.scheme == "file" or isinstance(error, TypeError | AttributeError | KeyError):
                raise
            if last or type(error).__name__ in ("ParamValidationError", "InvalidURL", "NonHttpUrlClientError"):
                raise LakeError(
                    f"{where}: out of reach ({_line(error)}), tried for {waited:.0f} s; check the address and the network"
                    " and run the command again: what was done is not lost"
                ) from error


class AccessError(LakeError):
    """A server that does not let in."""


def _options(scheme: str) -> dict[str, Any]:
    """How clients are made: none waits for ever, and none remembers the variables of another lake's."""
    found: dict[str, Any] = {} if scheme in ("file", "memory") else {"skip_instance_cache": True}
    if scheme in ("s3", "s3a"):
        found["config_kwargs"] = {"connect_timeout": 10, "read_timeout": SILENCE, "retries": {"max_attempts": 1}}
        found |= {"default_block_size": PART, "max_concurrency": 2}  # for each of the transfers that are under way
    elif scheme in ("http", "https"):
        from aiohttp import ClientTimeout

        found["client_kwargs"] = {"timeout": ClientTimeout(total=None, sock_connect=10, sock_read=SILENCE)}
    return found


def _line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return scrubbed(text[0]) if text else type(error).__name__


def _entry(info: dict[str, Any]) -> Entry:
    tag = (
        info.get("ETag")
        or info.get("etag")
        or info.get("blob_id")
        or info.get("mtime")
        or info.get("LastModified")
        or ""
    )
    return Entry(info.get("size"), str(tag).strip('"'))


def safe(name: str) -> bool:
    """Whether a server's name for a file stays inside a folder: no '..', no empty part, no absolute path."""
    parts = name.split("/")
    return not any(part in ("", ".", "..") or "\\" in part or "\0" in part for part in parts)


def read_index(record: Any, where: str) -> dict[str, Entry]:
    """The files that an index names: {"files": {name: [bytes, mark]}}; LakeError if it is not a valid index."""
    files = record.get("files") if isinstance(record, dict) else None
    if not isinstance(files, dict):
        raise LakeError(f"{where}: not an index of files; `actlake index` makes one")
    found = {}
    for name, entry in files.items():
        if not (safe(name) and isinstance(entry, list) and len(entry) == 2 and type(entry[0]) is int and entry[0] >= 0):
            raise LakeError(f"{where}: {name!r} is no file of a lake; `actlake index` makes the index again")
        found[name] = Entry(entry[0], str(entry[1]))
    expected = record.get("files_sha256", sha256 := hash_json(files))  # older ones have none
    if expected != sha256:
        raise CorruptError(
            f"{where}: its list of files is damaged (found {sha256}, expected sha256 {str(expected)[:64]}); `actlake index`"
            " makes it again"
        )
    return found
