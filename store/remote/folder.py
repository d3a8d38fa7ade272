"""A store in a folder of this machine."""

import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..core.files import BLOCK, remove, sync_file, temporary_of
from .store import Entry, Store


class Folder(Store):
    """The files below a folder; writes are temporary files that are flushed and then given their name."""

    local = True

    def __init__(self, url: str | Path):
        super().__init__(str(url).removeprefix("file://"))

    def path(self, name: str) -> Path:
        """Where a file is."""
        return Path(self.url, self.check(name))

    def _files(self, folder: str) -> Iterable[tuple[str, Entry]]:
        for place, _, names in os.walk(self.path(folder)):
            for name in names:
                file = Path(place, name)
                if file.is_file():  # a dangling link, a pipe and what has just gone are none
                    yield file.relative_to(self.url).as_posix(), _entry(file)

    def _level(self, folder: str) -> tuple[Iterable[str], Iterable[tuple[str, Entry]]]:
        found = sorted(self.path(folder).iterdir())
        named = {path.relative_to(self.url).as_posix(): path for path in found}
        folders = [name for name, path in named.items() if path.is_dir()]
        return folders, [(name, _entry(path)) for name, path in named.items() if path.is_file()]

    def _info(self, name: str) -> Entry:
        return _entry(self.path(name))

    def _read(self, name: str, start: int, stop: int) -> bytes:
        with open(self.path(name), "rb") as file:
            file.seek(start)
            return file.read(stop - start)

    def _stream(self, name: str) -> Iterator[bytes]:
        with open(self.path(name), "rb") as file:
            while block := file.read(BLOCK):
                yield block

    def _put(self, name: str, source: bytes | Path, new: bool) -> bool:
        path = self.path(name)
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

    def _delete(self, name: str) -> None:
        remove(self.path(name))


def _entry(file: Path) -> Entry:
    found = file.stat()
    return Entry(found.st_size, f"{found.st_mtime_ns}")
