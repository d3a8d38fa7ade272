"""A file of a store for readers that seek, such as that of Parquet footers."""

import io
from typing import Any

from .store import Store


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
