"""Stores that fsspec reads: the hub (hf://), whose files obstore can't list, and whatever else has a file system there."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs

from ..core.errors import LakeError, scrubbed
from ..core.files import BLOCK
from .store import Entry, Store


class Other(Store):
    """Files of a file system of fsspec's."""

    def __init__(self, url: str):
        super().__init__(url)
        apart = (
            {} if self.scheme == "memory" else {"skip_instance_cache": True}
        )  # no client remembers another lake's variables
        try:
            fs, base = url_to_fs(self.url, use_listings_cache=False, **apart)
        except ImportError as error:
            repair = "pip install 'actlake[hub]'" if self.scheme == "hf" else ""
            problem = f"lake {self}: {self.scheme}:// needs another package: {str(error).rstrip('.')}"
            raise LakeError(problem, repair=repair) from error
        except (ValueError, OSError, KeyError) as error:
            raise LakeError(f"lake {self}: can't be opened ({scrubbed(str(error))})") from error
        self.fs: AbstractFileSystem = fs
        self._base = base.rstrip("/")

    def refresh(self) -> None:
        """Forget what was listed before."""
        self.fs.invalidate_cache()

    def _path(self, name: str) -> str:
        return f"{self._base}/{name}" if name else self._base

    def _name(self, info: dict[str, Any]) -> str:
        path = str(info["name"]).rstrip("/")
        return path[len(self._base) + 1 :] if path.startswith(f"{self._base}/") else ""

    def _files(self, folder: str) -> Iterable[tuple[str, Entry]]:
        found = self.fs.find(self._path(folder), detail=True).values()
        return [(self._name(info), _entry(info)) for info in found if info["type"] == "file"]

    def _level(self, folder: str) -> tuple[Iterable[str], Iterable[tuple[str, Entry]]]:
        found = self.fs.ls(self._path(folder), detail=True)
        files = [(self._name(info), _entry(info)) for info in found if info["type"] == "file"]
        return [self._name(info) for info in found if info["type"] != "file"], files

    def _info(self, name: str) -> Entry:
        return _entry(self.fs.info(self._path(name)))

    def _read(self, name: str, start: int, stop: int) -> bytes:
        # The hub's client would read some MB ahead of every range.
        plainly = {"cache_type": "none"} if self.scheme == "hf" else {}
        return self.fs.cat_file(self._path(name), start=start, end=stop, **plainly)[: stop - start]

    def _stream(self, name: str) -> Iterator[bytes]:
        plainly = {"block_size": 0} if self.scheme == "hf" else {}  # one request, nothing ahead of it
        with self.fs.open(self._path(name), "rb", **plainly) as file:
            while block := file.read(BLOCK):
                yield block

    def _put(self, name: str, source: bytes | Path, new: bool) -> bool:
        if new and self.fs.exists(self._path(name)):
            return False
        if isinstance(source, Path):
            self.fs.put_file(str(source), self._path(name))
        else:
            self.fs.pipe_file(self._path(name), source)
        return True

    def _delete(self, name: str) -> None:
        self.fs.rm(self._path(name), recursive=True)


def _entry(info: dict[str, Any]) -> Entry:
    keys = ("ETag", "etag", "blob_id", "mtime", "LastModified", "created")
    return Entry(info.get("size"), next((str(info[key]).strip('"') for key in keys if info.get(key)), ""))
