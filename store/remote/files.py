"""The files of a lake as paths on this machine, wherever the lake is.

Everything else in the store works on folders. Of a lake in a folder all is in its place. Of a remote lake a folder of this
machine holds what was read: small files are brought when they are asked for (hashes checked where they are recorded), shards of
captures stay where they are and are read by byte range. What is written appears here and is sent from here, except shards, which
go straight to the lake; of a lake that can only be read, tables made here stay here, for the next command.
"""

import io
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from ..core.files import hash_file, remove, write_atomic
from ..core.schema import VARIABLES
from .folder import Folder
from .store import Store

SHARD = re.compile(r"captures/[^/]+/[^/]+\.zarr/([^/]+)/c/.+")
T = TypeVar("T")


def is_shard(name: str) -> bool:
    """Whether a file of a lake is a shard of activations, which stays where it is."""
    match = SHARD.fullmatch(name)
    return bool(match and match[1] in VARIABLES and VARIABLES[match[1]].activation)


class RemoteFile:
    """A file that stays where it is, for reading by ranges from several threads."""

    def __init__(self, store: Store, name: str, size: int | None = None):
        """`size` is the file's bytes where they are known; else the server is asked, once."""
        self._store, self._name, self._size = store, name, size
        self._lock, self._end = threading.Lock(), b""

    def __str__(self) -> str:
        return f"{self._store}/{self._name}"

    def exists(self) -> bool:
        """Whether the server has the file."""
        return self._store.entry(self._name) is not None

    @property
    def size(self) -> int:
        """Bytes of the file; FileNotFoundError when there is none."""
        if self._size is None:
            entry = self._store.entry(self._name)
            if entry is None:
                raise FileNotFoundError(str(self))
            self._size = entry.size or 0
        return self._size

    def read(self, start: int, stop: int) -> bytes:
        """The bytes from start to stop."""
        return self._store.read(self._name, start, stop)

    def end(self, count: int) -> bytes:
        """The last `count` bytes, asked for once: of a shard, its index."""
        with self._lock:
            if len(self._end) != min(count, self.size):
                self._end = self.read(max(self.size - count, 0), self.size)
            return self._end


class Files:
    """The files of a lake in a folder."""

    remote = False

    def __init__(self, root: Path):
        self.root = root
        self.store: Store = Folder(root)

    def __str__(self) -> str:
        return str(self.root)

    @property
    def address(self) -> str:
        """What opens this lake in another process: its folder, or its URL."""
        return str(self.root)

    def refresh(self) -> None:
        """See what has come to the lake since it was opened; in a folder everything shows by itself."""

    def bring(self, path: Path, pattern: str = "*") -> Path:
        """Make sure that the files at or below a path, with names of this pattern, are here; returns the path.

        Shards stay away.
        """
        return path

    def fetch(self, file: Path) -> Path:
        """Make sure that a file is here which is younger than the last listing; FileNotFoundError when there is none."""
        return file

    def sizes(self, folder: Path) -> dict[str, int]:
        """The files below a folder as the lake itself has them: name in the folder -> bytes."""
        base = folder.relative_to(self.root).as_posix()
        return {name[len(base) + 1 :]: entry.size or 0 for name, entry in self.store.find(base).items()}

    def hash(self, file: Path, size: int) -> str:
        """SHA-256 (hex) of a file of so many bytes as the lake itself has it."""
        return hash_file(file)

    def map(self, action: Callable[[str], T], names: Iterable[str]) -> Iterator[T]:
        """What `action` makes of each name, in order; side by side where it waits on a network."""
        return map(action, names)

    def blob(self, file: Path, size: int | None = None) -> Path | RemoteFile:
        """What to read a file from by ranges."""
        return file

    def publish(self, *paths: Path) -> None:
        """Offer what was made here to the lake: files, or folders with all they hold, in this order."""

    def remove(self, path: Path) -> None:
        """Take away a file or folder, here and in the lake."""
        remove(path)

    # --- captures under way ---------------------------------------------------------------------------------------

    @contextmanager
    def start(self, capture: Path) -> Iterator[None]:
        """Start on a capture under way; LakeError for a lake that can only be read."""
        yield

    def renew(self, capture: Path) -> None:
        """See what other machines recorded of a capture under way."""

    def bring_capture(self, capture: Path, manifest: dict[str, Any] | None) -> None:
        """Make sure that the small files of a capture are here, checked against its manifest if it is sealed."""

    def write(self, file: Path, data: bytes) -> None:
        """Write a small file whole; of a remote lake there first, so that nothing is on record here that the lake lacks."""
        write_atomic(file, data)

    def write_shard(
        self, file: Path, pieces: Iterable[bytes | memoryview], hear: Callable[[bytes | memoryview], None]
    ) -> None:
        """Write a shard, flushed; `hear` is given each piece on the way."""
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(file, "wb", buffering=0) as stream:
            for piece in pieces:
                stream.write(piece)
                hear(piece)
            os.fsync(stream.fileno())

    def move_in(self, made: Path, path: Path, last: str) -> bool:
        """Give a folder made under another name its own, unless one is there; False when another machine's was there.

        Of a remote lake its files are sent first, `last` at the end and only if the lake has none.
        """
        made.rename(path)
        return True

    def seal(self, capture: Path, manifest: bytes) -> bool:
        """Send what sealing has changed of a capture, the manifest last and only if the lake has none; False when another
        machine's is there (it is here then)."""
        return True


HERE = Files(Path("/"))


class RangeFile(io.RawIOBase):
    """A file of a store, open for reading; each read is one range."""

    def __init__(self, store: Store, name: str, size: int):
        super().__init__()
        self._store, self._name, self._size, self._at = store, name, size, 0

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place."""
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        """The place."""
        return self._at

    def readinto(self, buffer: Any) -> int:
        """The next bytes."""
        stop = max(self._at, min(self._at + len(buffer), self._size))
        data = self._store.read(self._name, self._at, stop) if stop > self._at else b""
        buffer[: len(data)] = data
        self._at = stop
        return len(data)
