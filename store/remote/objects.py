"""Stores that obstore reads: buckets (s3, gs, az) and web servers."""

import configparser
import os
import re
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, NotSupportedError
from obstore.store import HTTPStore, S3Store, from_url

from ..core.errors import CorruptError, LakeError, scrubbed
from ..core.files import hash_json, parse_json
from ..core.progress import say
from ..core.schema import MARKER
from . import store
from .store import INDEX, LARGEST_RECORD, PART, Entry, Store, safe

BUCKETS = ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss")
LINK = re.compile(rb"""<a\s[^>]*?href\s*=\s*["']([^"'?#]+)["']""", re.IGNORECASE)
LARGEST_PAGE = 16 << 20  # bytes of a web server's list of a folder
REQUEST = "15m"  # for one request, which moves store.RANGE bytes at most


def _client() -> dict[str, Any]:
    # Tries are counted by Store; a server that is silent is given up, one that is slow is not.
    options = {"allow_http": True, "connect_timeout": "10s", "read_timeout": f"{store.SILENCE}s", "timeout": REQUEST}
    return {"client_options": options, "retry_config": {"max_retries": 0}}


class Bucket(Store):
    """Files in a bucket."""

    def __init__(self, url: str):
        super().__init__(url)
        try:
            self._store = self._open()
        except (BaseError, ValueError) as error:
            raise LakeError(f"lake {self}: can't be opened ({scrubbed(str(error).splitlines()[0])})") from error

    def _open(self) -> Any:
        if not self.scheme.startswith("s3"):
            return from_url(self.url, **_client())
        config = _profile()
        if self._endpoint():
            config["endpoint"] = self.endpoint = self._endpoint()
        return S3Store.from_url(self.url, config=config, **_client())

    @staticmethod
    def _endpoint() -> str:
        return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""

    def _files(self, folder: str) -> Iterable[tuple[str, Entry]]:
        for some in obstore.list(self._store, f"{folder}/" if folder else None):
            yield from ((info["path"], _entry(info)) for info in some)

    def _level(self, folder: str) -> tuple[Iterable[str], Iterable[tuple[str, Entry]]]:
        found = obstore.list_with_delimiter(self._store, folder or None)
        return found["common_prefixes"], [(info["path"], _entry(info)) for info in found["objects"]]

    def _info(self, name: str) -> Entry:
        return _entry(obstore.head(self._store, name))

    def _read(self, name: str, start: int, stop: int) -> bytes:
        return obstore.get_range(self._store, name, start=start, end=stop).to_bytes() if stop > start else b""

    def _stream(self, name: str) -> Iterator[bytes]:
        for piece in obstore.get(self._store, name).stream(min_chunk_size=1):
            yield bytes(piece)

    def _put(self, name: str, source: bytes | Path, new: bool) -> bool:
        if new:
            data = source.read_bytes() if isinstance(source, Path) else source
            try:
                obstore.put(self._store, name, data, mode="create", use_multipart=False)
            except AlreadyExistsError:
                return False
            return True
        obstore.put(self._store, name, source, chunk_size=PART, max_concurrency=2)
        return True

    def _delete(self, name: str) -> None:
        below = [found for found, _ in self._files(name)]
        for one in below or [name]:
            obstore.delete(self._store, one)


class Web(Bucket):
    """Files behind a web server: those that files.json names, else those that its pages of links lead to."""

    writable = False

    def __init__(self, url: str):
        super().__init__(url)
        self._index: dict[str, Entry] | None = None
        self._probed = False

    def _open(self) -> Any:
        return HTTPStore(self.url, **_client())

    def refresh(self) -> None:
        """Read files.json anew, and ask once whether the server hands out parts of files."""
        self._probe()
        self._index = None
        try:
            data = self.read(INDEX)
            self._index = read_index(parse_json(data), f"{self}/{INDEX}")
        except FileNotFoundError:
            return  # a server that lists folders as pages of links may do without
        except ValueError as error:
            raise LakeError(
                f"{self}/{INDEX}: not valid JSON ({error})", repair="`actlake index` makes it again"
            ) from None

    def _probe(self) -> None:
        if self._probed:
            return
        first, last = (self._try(MARKER, partial(self._part, span)) for span in ((0, 8), {"suffix": 8}))
        self._probed, self.ranges = True, first is not False
        if False in (first, last):
            what = "the ends of files, which plain xr.open_zarr asks for"
            if first is False:
                what = "parts of files, so that whatever is read of one costs the whole"
            say(f"{self}: this server can't hand out {what}; nginx, caddy and S3 can, and `actlake serve LAKE` does")

    def _part(self, span: Any) -> bool | None:
        """Whether the server answers with that part of the lake's marker; None where it has no such file."""
        try:
            found = obstore.get(self._store, MARKER, options={"range": span})
        except (NotSupportedError, FileNotFoundError) as error:
            return None if isinstance(error, FileNotFoundError) else False
        return found.range[1] - found.range[0] == 8

    def find(self, folder: str) -> dict[str, Entry]:
        """Every file below a folder, by its whole name."""
        if self._index is None:
            return super().find(folder)
        return {name: entry for name, entry in self._index.items() if name.startswith(f"{folder}/" if folder else "")}

    def list(self, folder: str) -> "tuple[list[str], dict[str, Entry]]":
        """The folders and the files right below a folder, by their whole names."""
        if self._index is None:
            return super().list(folder)
        below, at = self.find(folder), len(folder) + 1 if folder else 0
        folders = {name[: name.index("/", at)] for name in below if "/" in name[at:]}
        return sorted(folders), {name: entry for name, entry in below.items() if "/" not in name[at:]}

    def entry(self, name: str) -> Entry | None:
        """How a file is listed, or None when it is not there."""
        return super().entry(name) if self._index is None else self._index.get(name)

    def _files(self, folder: str) -> Iterable[tuple[str, Entry]]:
        folders, files = self._level(folder)
        yield from files
        for inner in folders:
            yield from self._files(inner)

    def _level(self, folder: str) -> tuple[Iterable[str], Iterable[tuple[str, Entry]]]:
        try:
            page = b"".join(self._limited(folder, LARGEST_PAGE)) if folder else self._root()
        except FileNotFoundError:
            return [], []
        names = {unquote(link.decode("utf-8", "replace")) for link in LINK.findall(page)}
        inside = sorted(
            name.removeprefix("./") for name in names if ":" not in name and not name.startswith(("/", ".."))
        )
        whole = [f"{folder}/{name}" if folder else name for name in inside if safe(name.rstrip("/"))]
        files = [(name, Entry(None)) for name in whole if not name.endswith("/")]
        return [name.rstrip("/") for name in whole if name.endswith("/")], files

    def _root(self) -> bytes:
        return b"".join(self._limited("", LARGEST_PAGE))

    def _read(self, name: str, start: int, stop: int) -> bytes:
        if self.ranges:
            return super()._read(name, start, stop)
        whole = b"".join(self._limited(name, (self.entry(name) or Entry(None)).size or LARGEST_RECORD))
        return whole[start:stop]


def _entry(info: Any) -> Entry:
    return Entry(info["size"], str(info["e_tag"] or info["last_modified"]).strip('"'))


AWS_FILES = (("AWS_SHARED_CREDENTIALS_FILE", "credentials", "{}"), ("AWS_CONFIG_FILE", "config", "profile {}"))
AWS_KEYS = {
    "aws_access_key_id": "access_key_id",
    "aws_secret_access_key": "secret_access_key",
    "aws_session_token": "token",
    "region": "region",
    "endpoint_url": "endpoint",
}


def _profile() -> Any:
    """What the profile of AWS_PROFILE, or the default one, says where the environment has no keys: obstore reads no profiles."""
    found: dict[str, str] = {}
    for variable, file, section in AWS_FILES if not os.environ.get("AWS_ACCESS_KEY_ID") else ():
        path, parser = Path(os.environ.get(variable) or f"~/.aws/{file}").expanduser(), configparser.RawConfigParser()
        try:
            parser.read(path)
        except (configparser.Error, UnicodeDecodeError) as error:
            raise LakeError(f"{path}: can't be read as profiles ({str(error).splitlines()[0]})") from error
        name = os.environ.get("AWS_PROFILE", "default")
        for one in (section.format(name), name):
            if one in parser:
                found = {ours: parser[one][key] for key, ours in AWS_KEYS.items() if key in parser[one]} | found
    return found


def read_index(record: Any, where: str) -> dict[str, Entry]:
    """The files that an index names: {"files": {name: [bytes, mark]}}; LakeError if it is not a valid index."""
    files = record.get("files") if isinstance(record, dict) else None
    if not isinstance(files, dict):
        raise LakeError(f"{where}: not an index of files", repair="`actlake index` makes one")
    found = {}
    for name, entry in files.items():
        if not (safe(name) and isinstance(entry, list) and len(entry) == 2 and type(entry[0]) is int and entry[0] >= 0):
            raise LakeError(f"{where}: {name!r} is no file of a lake", repair="`actlake index` makes the index again")
        found[name] = Entry(entry[0], str(entry[1]))
    expected = record.get("files_sha256", sha256 := hash_json(files))  # older ones have none
    if expected != sha256:
        raise CorruptError(
            f"{where}: its list of files is damaged (found {sha256}, expected sha256 {str(expected)[:64]}); `actlake index`"
            " makes it again"
        )
    return found
