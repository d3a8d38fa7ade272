"""Arrays that are not sharded: a file a chunk, checked before and while it is decoded. Blosc frames are checked here for all.

zarr-python would take a missing file for one full of fill values, and would allocate whatever a frame's header asks for.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from math import prod
from pathlib import Path

import google_crc32c
import numpy as np
from numcodecs import Blosc

from ..core.errors import RESTORE, CorruptError

CHECKSUM = 4  # bytes of a CRC-32C
HEADER, STORED = 16, 0x2  # of a Blosc frame: bytes, and the flag that says its bytes were not compressed
ZSTD = 4  # the code of zstd in the upper three bits of its flags
OVERHEAD = 1 << 16  # bytes that a frame may be larger than what it holds
TEXTS = 256 << 20  # bytes of all texts of an array
DAMAGE = (OSError, ValueError, RuntimeError, EOFError, TypeError)  # what codecs and files raise


def checksum(data: bytes | np.ndarray) -> bytes:
    """CRC-32C of bytes or an uint8 array, as Zarr stores it."""
    return int(google_crc32c.value(data)).to_bytes(CHECKSUM, "little")


def check_sum(piece: np.ndarray, what: str) -> None:
    """Raise ValueError unless bytes match the checksum at their end; it names `what` they are."""
    found, expected = checksum(piece[:-CHECKSUM]), piece[-CHECKSUM:].tobytes()
    if len(piece) <= CHECKSUM or found != expected:
        raise ValueError(f"{what}: found crc32c {found[::-1].hex()}, expected {expected[::-1].hex()}")


def frame_of(piece: np.ndarray, size: int) -> np.ndarray:
    """The Blosc frame (uint8) of a chunk that decodes to `size` bytes; ValueError when it is damaged or says otherwise.

    A frame that passes can be decoded into `size` bytes without reading or writing beside its own. The checksum finds
    accidents; whoever makes a frame on purpose also makes its checksum.
    """
    check_sum(piece, "a chunk")
    frame = piece[:-CHECKSUM]
    if len(frame) < HEADER:
        raise ValueError(f"a chunk of {len(frame)} bytes is no Blosc frame")
    says, block, stored = frame[4:16].view("<u4").tolist()
    if says != size or stored != len(frame):
        raise ValueError(
            f"a chunk says it decodes to {says} bytes and has {stored}, expected {size} bytes from {len(frame)}"
        )
    count = -(-size // block) if block else 0
    if frame[2] & STORED:
        good = len(frame) == HEADER + size
    else:
        first = HEADER + 4 * count  # blocks begin behind the list of their places
        places = frame[HEADER:first].view("<i4") if count and first <= len(frame) else np.empty(0, "<i4")
        good = (
            len(places) == count > 0 and first <= places.min() and places.max() < len(frame) and frame[2] >> 5 == ZSTD
        )
    if not good:
        raise ValueError("a chunk's Blosc frame points beyond itself or is not zstd")
    return frame


def damaged(file: object, error: Exception) -> CorruptError:
    """What to raise for a file that can't be decoded, as `error` has it."""
    words = str(error).splitlines() or [type(error).__name__]
    what = "missing" if isinstance(error, FileNotFoundError) else f"stored bytes are damaged ({words[0]})"
    return CorruptError(f"{file}: {what}; {RESTORE}")


def at_once(file: str, flags: int) -> int:
    """Opener that never waits, as opening a pipe would that a stranger's archive put in a file's place."""
    return os.open(file, flags | getattr(os, "O_NONBLOCK", 0))


@dataclass(frozen=True)
class Chunks:
    """How an array is cut that has a file a chunk: shape, chunk, dtype; `file_of` says where a chunk is."""

    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    dtype: np.dtype
    file_of: Callable[[tuple[int, ...]], Path]

    def read(self, box: tuple[slice, ...]) -> np.ndarray:
        """The values of a box (a slice of step 1 per axis, within the shape).

        Raises CorruptError with the file's name for a chunk that is missing or damaged, whatever it is damaged by.
        """
        shape = tuple(axis.stop - axis.start for axis in box)
        out = np.empty(shape, self.dtype)
        if out.size:
            spots = product(
                *(range(axis.start // c, -(-axis.stop // c)) for axis, c in zip(box, self.chunk, strict=True))
            )
            for spot in spots:
                self._put(spot, box, out)
        return out

    def _put(self, spot: tuple[int, ...], box: tuple[slice, ...], out: np.ndarray) -> None:
        """Decode one chunk and copy the part of it inside the box."""
        file = self.file_of(spot)
        try:
            chunk = self._decode(file)
        except DAMAGE as error:
            raise damaged(file, error) from error
        corner = [i * c for i, c in zip(spot, self.chunk, strict=True)]
        low = [max(axis.start, at) for axis, at in zip(box, corner, strict=True)]
        high = [min(axis.stop, at + c) for axis, at, c in zip(box, corner, self.chunk, strict=True)]
        inside = tuple(slice(a - at, b - at) for a, b, at in zip(low, high, corner, strict=True))
        out[tuple(slice(a - axis.start, b - axis.start) for a, b, axis in zip(low, high, box, strict=True))] = chunk[
            inside
        ]

    def _decode(self, file: Path) -> np.ndarray:
        count, texts = prod(self.chunk), self.dtype.kind == "T"
        most = TEXTS if texts else count * self.dtype.itemsize + OVERHEAD
        found = file.stat()
        if not file.is_file() or not CHECKSUM < found.st_size <= most:
            raise ValueError(f"found {found.st_size} bytes, expected {CHECKSUM + 1} to {most}")
        piece = np.fromfile(file, np.uint8)
        if texts:
            check_sum(piece, "a chunk")
            return np.array(texts_of(piece[:-CHECKSUM].tobytes(), count), self.dtype).reshape(self.chunk)
        size = count * self.dtype.itemsize
        chunk = np.empty(size, np.uint8)
        Blosc().decode(frame_of(piece, size), out=chunk)
        return chunk.view(self.dtype).reshape(self.chunk)


def texts_of(data: bytes, count: int) -> list[str]:
    """The texts that Zarr's codec vlen-utf8 put into bytes; ValueError when they are not `count` ones."""
    found, at = int.from_bytes(data[:4], "little"), 4
    if found != count or len(data) < 4 + 4 * count:
        raise ValueError(f"found {found} texts, expected {count}")
    texts = []
    for _ in range(count):
        stop = at + 4 + int.from_bytes(data[at : at + 4], "little")
        if at + 4 > len(data) or stop > len(data):
            raise ValueError("a text ends behind the last byte")
        texts.append(data[at + 4 : stop].decode("utf-8"))
        at = stop
    if at != len(data):
        raise ValueError(f"{len(data) - at} bytes behind the last text")
    return texts


def blosc_blocks(frame: np.ndarray, start: int, stop: int) -> tuple[np.ndarray, int, int]:
    """The blocks of a Blosc frame (uint8) that hold its decoded bytes start..stop, as a frame of their own.

    Returns (frame, decoded byte at which it begins, its decoded size). Blosc codes blocks independently, so that a few
    tokens of a long chunk need not wait for the rest. Source: c-blosc's README_CHUNK_FORMAT.
    """
    size, block, _ = frame[4:16].view("<u4").tolist()
    count = -(-size // block)
    # A last block that is shorter can't be a frame by itself: Blosc wants one whole block at least.
    first, last = min(start // block, max(size // block - 1, 0)), -(-stop // block)
    if frame[2] & STORED or (first, last) == (0, count):
        return frame, 0, size
    begins = frame[HEADER : HEADER + 4 * count].view("<i4").tolist()
    ends = dict(zip(sorted(begins), [*sorted(begins)[1:], len(frame)], strict=True))  # threads may have shuffled them
    parts = [frame[at : ends[at]] for at in begins[first:last]]
    decoded = min(last * block, size) - first * block
    places = HEADER + 4 * len(parts) + np.cumsum([0, *map(len, parts)])
    head = frame[:HEADER].copy()
    head[4:16].view("<u4")[:] = decoded, block, places[-1]
    return np.concatenate([head, places[:-1].astype("<i4").view(np.uint8), *parts]), first * block, decoded
