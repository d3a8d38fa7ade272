"""Shards of a Zarr v3 array, encoded and decoded on all cores: the same files that zarr reads, without its event loop.

A shard file is its encoded chunks one after the other, layer by layer, then the index that the Zarr specification
(codec `sharding_indexed`) asks for. zarr-python reads and writes it too, several times slower (benchmarks/store.py).
"""

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import pairwise, product
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numcodecs import Blosc
from zarr.codecs import ShardingCodec

from ..remote.files import RemoteFile
from ..remote.store import transfers
from .chunk_cache import identity, recent, recent_frames
from .chunks import CHECKSUM, DAMAGE, at_once, blosc_blocks, check_sum, checksum, damaged, frame_of
from .frames import SMALLEST, encode_frame

INFINITE = 0x7F80  # the bits of bfloat16 for infinity; NaNs are above
ABSENT = 2**64 - 1  # offset and size of a chunk that a shard does not hold
_scratch = threading.local()


@cache
def workers() -> ThreadPoolExecutor:
    """The threads that encode and decode chunks, one per core; Blosc, hashes and disk reads leave Python's lock alone."""
    return ThreadPoolExecutor(cores())


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


os.register_at_fork(after_in_child=workers.cache_clear)  # threads do not survive a fork


def pad(block: np.ndarray, rows: int, fill: float) -> np.ndarray:
    """`block` [n, ...] as a contiguous array of `rows` rows, the rest `fill`: itself, or in this thread's scratch memory.

    Floats come out as float32, and bits of bfloat16 (uint16) as such.
    """
    bits = block.dtype == np.uint16
    dtype = np.dtype(np.float32) if block.dtype.kind == "f" else block.dtype
    if len(block) == rows and block.dtype == dtype and block.flags.c_contiguous:
        return block
    out = _room(rows * prod(block.shape[1:]) * dtype.itemsize).view(dtype).reshape(rows, *block.shape[1:])
    out[: len(block)] = block
    out[len(block) :] = np.float32(fill).view(np.uint32) >> 16 if bits else fill
    return out


def widen(block: np.ndarray) -> np.ndarray:
    """A block with uint16 bits of bfloat16 turned into float32, any other as it is."""
    return (block.astype(np.uint32) << 16).view(np.float32) if block.dtype == np.uint16 else block


def _room(size: int) -> np.ndarray:
    """Bytes that this thread may use until it asks again; touching new memory costs as much as widening a chunk."""
    held = getattr(_scratch, "bytes", None)
    if held is None or len(held) < size:
        held = _scratch.bytes = np.empty(size, dtype=np.uint8)
    return held[:size]


def statistics(values: np.ndarray) -> tuple[float, float, int]:
    """Smallest and largest finite value (inf, -inf without any) and how many are not finite; of bits of bfloat16, too."""
    if values.dtype == np.uint16:
        # As integers, positive floats are in order behind the negative ones, and negative ones in reverse order.
        signed = values.view(np.int16)
        most, least = int(signed.max()), int(values.max())
        if 0 <= most < INFINITE and 0x8000 <= least < 0x8000 + INFINITE:
            low, high = widen(np.array([least, most], np.uint16)).tolist()
            return low, high, 0
        values = widen(values)
    low, high = float(values.min()), float(values.max())
    if np.isfinite(low) and np.isfinite(high):
        return low, high, 0
    finite = np.isfinite(values)
    return (
        float(values.min(where=finite, initial=np.inf)),
        float(values.max(where=finite, initial=-np.inf)),
        int(values.size - np.count_nonzero(finite)),
    )


@dataclass(frozen=True)
class Encoded:
    """One shard in memory: its bytes in pieces, and the smallest, largest and number of non-finite values."""

    pieces: list[bytes]
    low: float
    high: float
    nonfinite: int


@dataclass(frozen=True)
class Grid:
    """How one array is cut: shape, tokens a shard holds, the chunk (C, 1, d), dtype, fill value and Blosc settings; whether its
    values are rounded."""

    shape: tuple[int, ...]
    shard: int
    chunk: tuple[int, ...]
    dtype: np.dtype
    fill: float
    codec: Blosc
    rounded: bool = False

    @classmethod
    def of(cls, array: zarr.Array) -> "Grid | None":
        """The grid of an array that is sharded by docs/FORMAT.md, else None."""
        codecs: Any = getattr(array.metadata, "codecs", ())
        if len(codecs) != 1 or not isinstance(codecs[0], ShardingCodec):
            return None
        outer: Any = codecs[0].to_dict()["configuration"]
        names = [codec["name"] for codec in (*outer["codecs"], *outer["index_codecs"])]
        if names != ["bytes", "blosc", "crc32c", "bytes", "crc32c"] or outer["index_location"] != "end":
            return None
        blosc = outer["codecs"][1]["configuration"]
        shards: tuple[int, ...] = array.shards or ()
        if any(shard != size for shard, size in zip(shards[1:], array.shape[1:], strict=True)):
            return None
        shuffle = {"noshuffle": Blosc.NOSHUFFLE, "shuffle": Blosc.SHUFFLE, "bitshuffle": Blosc.BITSHUFFLE}
        return cls(
            tuple(array.shape),
            shards[0],
            tuple(outer["chunk_shape"]),
            np.dtype(array.dtype),
            np.asarray(array.fill_value).item(),
            Blosc(
                blosc["cname"],
                blosc["clevel"],
                shuffle[blosc["shuffle"]],
                blosc["blocksize"],
                typesize=blosc["typesize"],
            ),
            "precision" in array.attrs,
        )

    @property
    def counts(self) -> tuple[int, ...]:
        """Chunks of a whole shard along each axis."""
        return (
            self.shard // self.chunk[0],
            *(-(-n // c) for n, c in zip(self.shape[1:], self.chunk[1:], strict=True)),
        )

    def encode(self, block: np.ndarray) -> Encoded:
        """Encode the tokens of one shard [n, ...], n at most a shard's; see `pad` for uint16."""
        tokens, others = self.counts[0], self.counts[1:]
        index = np.full((tokens, *others, 2), ABSENT, dtype="<u8")
        # Layer by layer in the file: reading one layer of many tokens is one stretch of the disk.
        spots = [(i, *rest) for rest in product(*map(range, others)) for i in range(-(-len(block) // self.chunk[0]))]
        done = list(workers().map(lambda spot: self._encode(block, spot), spots))
        place = 0
        for spot, (piece, *_) in zip(spots, done, strict=True):
            index[spot] = place, len(piece)
            place += len(piece)
        table = index.tobytes()
        return Encoded(
            [piece for piece, *_ in done] + [table + checksum(table)],
            min(low for _, low, _, _ in done),
            max(high for _, _, high, _ in done),
            sum(count for *_, count in done),
        )

    def _encode(self, block: np.ndarray, spot: tuple[int, ...]) -> tuple[bytes, float, float, int]:
        where = tuple(slice(i * c, (i + 1) * c) for i, c in zip(spot, self.chunk, strict=True))
        part = block[where]
        # One layer of a layer-major block is contiguous once its axis of length 1 is out of the way.
        chunk = pad(part.reshape(len(part), -1), self.chunk[0], self.fill)
        planes = self.dtype == np.float32 and chunk.size * self.dtype.itemsize >= SMALLEST
        data = encode_frame(chunk, self.rounded) if planes else self.codec.encode(widen(chunk))
        return bytes(data) + checksum(data), *statistics(chunk[: len(part)])

    def read(self, file_of: Callable[[int], Path | RemoteFile], box: tuple[slice, ...], whole: bool) -> np.ndarray:
        """The values of a box (a slice of step 1 per axis, within the shape), chunks decoded in parallel.

        `whole` says that every shard must be there; without it, what is missing reads as the fill value. Raises
        CorruptError with the file's name for a missing, torn or damaged shard. Sites lie layer by layer in the result's
        memory, so that chunks are decoded in place.
        """
        shape = [axis.stop - axis.start for axis in box]
        layered = len(shape) >= 3
        out = np.empty([*shape[1:2], *shape[:1], *shape[2:]] if layered else shape, self.dtype)
        out = out.swapaxes(0, 1) if layered else out
        if not out.size:
            return out
        layers = [range(axis.start // c, -(-axis.stop // c)) for axis, c in zip(box[1:], self.chunk[1:], strict=True)]
        shards = range(box[0].start // self.shard, -(-box[0].stop // self.shard))
        jobs = [(shard, rest) for shard in shards for rest in product(*layers)]

        def job(item: tuple[int, tuple[int, ...]]) -> None:
            shard, rest = item
            file = file_of(shard)
            try:
                self._read(file, shard, rest, box, out, whole)
            except DAMAGE as error:
                raise damaged(file, error) from error

        if len(jobs) == 1:
            job(jobs[0])
        else:
            remote = isinstance(file_of(jobs[0][0]), RemoteFile)
            for _ in (transfers() if remote else workers()).map(job, jobs):
                pass
        return out

    def _read(
        self,
        file: Path | RemoteFile,
        shard: int,
        rest: tuple[int, ...],
        box: tuple[slice, ...],
        out: np.ndarray,
        whole: bool,
    ) -> None:
        """Decode all chunks of one shard at `rest` (its layer) that the box touches."""
        first = max(box[0].start - shard * self.shard, 0)
        last = min(box[0].stop - shard * self.shard, self.shard)
        spots = [(i, *rest) for i in range(first // self.chunk[0], -(-last // self.chunk[0]))]
        parts = {spot: self._part(spot, shard, box, out) for spot in spots}
        if not whole and not file.exists():
            for target, _ in parts.values():
                target[...] = self.fill
            return
        name = identity(file)
        missed = [spot for spot, part in parts.items() if not self._recall((name, spot), *part)]
        for spot, frame in self.frames(file, name, missed).items():
            target, inside = parts[spot]
            if frame is None:
                if whole:
                    raise ValueError("a chunk is absent")
                target[...] = self.fill
            elif target.shape == self.chunk and target.flags.c_contiguous:
                self.codec.decode(frame, out=target)
            else:
                first, data = self._stretch(frame, inside[0])
                self._copy(first, data, target, inside)
                if name:
                    recent().put((name, spot), first, data)
                    recent_frames().put((name, spot), 0, frame)

    def _part(
        self, spot: tuple[int, ...], shard: int, box: tuple[slice, ...], out: np.ndarray
    ) -> tuple[np.ndarray, tuple[slice, ...]]:
        """Where in `out` the part of a chunk inside the box goes, and which part that is."""
        corner = [i * c for i, c in zip(spot, self.chunk, strict=True)]
        corner[0] += shard * self.shard
        low = [max(axis.start, start) for axis, start in zip(box, corner, strict=True)]
        high = [min(axis.stop, start + c) for axis, start, c in zip(box, corner, self.chunk, strict=True)]
        target = out[tuple(slice(a - axis.start, b - axis.start) for a, b, axis in zip(low, high, box, strict=True))]
        return target, tuple(slice(a - start, b - start) for a, b, start in zip(low, high, corner, strict=True))

    def frames(
        self, file: Path | RemoteFile, name: Any, spots: list[tuple[int, ...]]
    ) -> dict[tuple[int, ...], np.ndarray | None]:
        """Checked Blosc frames of these chunks, those that are held or else from the file; None for an absent one."""
        size = self._bytes_of(slice(0, self.chunk[0]))[1]
        found: dict[tuple[int, ...], np.ndarray | None] = {
            spot: held[1] for spot in spots if name and (held := recent_frames().get((name, spot), 0, 0))
        }
        fresh = [spot for spot in spots if spot not in found]
        for spot, piece in zip(fresh, self._pieces(file, fresh) if fresh else [], strict=True):
            found[spot] = None if piece is None else frame_of(piece, size)
        return found

    def _pieces(self, file: Path | RemoteFile, spots: list[tuple[int, ...]]) -> list[np.ndarray | None]:
        """Encoded bytes of these chunks, in one read where they lie one after the other; None for an absent one."""
        size = prod(self.counts) * 16
        with _reader(file) as (read, end, room):
            table = end(size + CHECKSUM)
            if len(table) != size + CHECKSUM:
                raise ValueError(f"found {len(table)} bytes, expected an index of {size + CHECKSUM} at its end")
            check_sum(table, "its index")
            index = table[:size].view("<u8").reshape(*self.counts, 2)
            check_places(index, room - len(table))
            places = [(start, start + count) for start, count in (index[spot].tolist() for spot in spots)]
            there = [place for place in places if place[0] != ABSENT]
            together = all(a[1] == b[0] for a, b in pairwise(there))  # else written by zarr, in an order of its own
            if together and len(there) == len(places):
                data, first = read(places[0][0], places[-1][1]), places[0][0]
                return [data[start - first : stop - first] for start, stop in places]
            return [None if place[0] == ABSENT else read(*place) for place in places]

    def _bytes_of(self, rows: slice) -> tuple[int, int]:
        row = prod(self.chunk[1:]) * self.dtype.itemsize
        return rows.start * row, rows.stop * row

    def _stretch(self, frame: np.ndarray, rows: slice) -> tuple[int, np.ndarray]:
        """The Blosc blocks of a chunk that hold these tokens: the decoded byte that they begin with, and they, decoded."""
        frame, first, size = blosc_blocks(frame, *self._bytes_of(rows))
        found = np.empty(size, np.uint8)
        self.codec.decode(frame, out=found)
        return first, found

    def _copy(self, first: int, data: np.ndarray, target: np.ndarray, inside: tuple[slice, ...]) -> None:
        """Copy the part `inside` of a chunk from a stretch of it."""
        start, stop = self._bytes_of(inside[0])
        rows = data[start - first : stop - first].view(self.dtype).reshape(-1, *self.chunk[1:])
        target[...] = rows[(slice(None), *inside[1:])]

    def _recall(self, chunk: Any, target: np.ndarray, inside: tuple[slice, ...]) -> bool:
        """Copy the part `inside` of a chunk from what is held of it; False when it is not."""
        held = recent().get(chunk, *self._bytes_of(inside[0]))
        if held:
            self._copy(*held, target, inside)
        return held is not None


def check_places(index: np.ndarray, room: int) -> None:
    """Raise ValueError unless all chunks of an index [..., 2] lie in the first `room` bytes."""
    start, count = index[index[..., 0] != ABSENT].T
    beyond = (start > room) | (count > room - np.minimum(start, room))
    if beyond.any():
        at, size = int(start[beyond][0]), int(count[beyond][0])
        raise ValueError(f"its index has a chunk at {at} of {size} bytes, expected within {room}")


@contextmanager
def _reader(
    file: Path | RemoteFile,
) -> Iterator[tuple[Callable[[int, int], np.ndarray], Callable[[int], np.ndarray], int]]:
    """What reads the bytes from start to stop of a file, what reads so many at its end, and how many there are."""
    if isinstance(file, RemoteFile):
        yield (
            lambda start, stop: np.frombuffer(file.read(start, stop), dtype=np.uint8),
            lambda count: np.frombuffer(file.end(count), dtype=np.uint8),
            file.size,
        )
        return
    with open(file, "rb", buffering=0, opener=at_once) as stream:
        size = os.fstat(stream.fileno()).st_size

        def read(start: int, stop: int) -> np.ndarray:
            return np.frombuffer(os.pread(stream.fileno(), stop - start, start), dtype=np.uint8)

        yield read, lambda count: read(max(size - count, 0), size), size
