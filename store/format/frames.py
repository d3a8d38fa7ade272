"""Blosc frames of float32 chunks, made plane by plane from the bits that a model gave; every Blosc reader decodes them.

A Blosc 1 frame may keep each byte plane of a block as a stream of its own (c-blosc's README_CHUNK_FORMAT). Floats gain
from entropy coding in the plane of sign and exponent alone, so that only this one is searched for it; the planes that
widening bfloat16 fills with zeros are never made. STORAGE 2d and benchmarks/codec.py have the figures.
"""

import struct
import sys
import threading
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numcodecs.zstd import decompress

if sys.version_info >= (3, 14):
    from compression.zstd import CompressionParameter, Strategy, ZstdCompressor
else:
    from backports.zstd import CompressionParameter, Strategy, ZstdCompressor

TYPESIZE = 4
VERSIONS = (2, 1)  # of Blosc's format, and of zstd within it
FLAGS = 0x01 | 4 << 5  # bytes are shuffled; zstd; blocks are split into planes
SMALLEST = 1 << 14  # bytes of a chunk below which planes are too short for streams of their own
REPEATED = 16  # a chunk repeats when one row of so many has been there before


def _options(window: int, hashed: int, skip: int) -> dict[int, int]:
    """Of zstd's fastest strategy; `skip` makes it leave out more of what holds no matches, and Huffman coding."""
    return {
        CompressionParameter.strategy: Strategy.fast,
        CompressionParameter.window_log: window,
        CompressionParameter.hash_log: hashed,
        CompressionParameter.chain_log: 6,
        CompressionParameter.search_log: 1,
        CompressionParameter.min_match: 7,
        CompressionParameter.target_length: skip,
    }


@dataclass(frozen=True)
class _Way:
    """How chunks of one kind are coded: bytes of a block, and zstd's options for the highest plane and for the others."""

    name: str
    block: int
    high: dict[int, int]
    low: dict[int, int]


_FAST = _options(20, 15, 5)  # finds whole rows that were there before, else gives up at the speed of memory
# A table of 64 entries finds next to nothing: what remains is Huffman coding. Short blocks, so that few tokens are read fast.
_DISTINCT = _Way("distinct", 1 << 18, _options(18, 6, 0), _FAST)
# Prompts that begin alike have equal rows. Long blocks, so that the first of them is in the same one.
_REPEATING = _Way("repeating", 1 << 22, _options(20, 14, 0), _FAST)
_held = threading.local()


def encode_frame(rows: np.ndarray, rounded: bool = False) -> bytes:
    """The Blosc frame of a contiguous chunk [n, d] of float32, or of uint16 bits of bfloat16, as float32.

    Equal chunks give equal bytes. Values that were `rounded` to few bits gain from entropy coding in every plane. ValueError
    for other dtypes, and for chunks under SMALLEST bytes of float32.
    """
    width = {"u2": 2, "f4": 4}.get(rows.dtype.str[1:], 0)
    size = rows.size * TYPESIZE
    if not width or size < SMALLEST:
        raise ValueError(
            f"a frame of planes: {rows.dtype} and {size} bytes, expected uint16 or float32, {SMALLEST} at least"
        )
    way = _REPEATING if repeats(rows) else _DISTINCT
    flat = np.ascontiguousarray(rows).reshape(-1)
    count = _blocks(size, way.block)
    words = flat.size // count
    zeros = [_zeros(words)] * (TYPESIZE - width)
    pieces, starts, place = list[Any](), list[int](), 16 + 4 * count
    for block in range(count):
        starts.append(place)
        planes = _planes(flat[block * words : (block + 1) * words])
        coded = [_stream(planes[k], way, high=rounded or k == width - 1) for k in range(width)]
        for piece in (part for stream in (*zeros, *coded) for part in stream):
            pieces.append(piece)
            place += len(piece)
    head = struct.pack("<BBBBIII", *VERSIONS, FLAGS, TYPESIZE, size, size // count, place)
    return b"".join([head, struct.pack(f"<{count}i", *starts), *pieces])


def repeats(rows: np.ndarray) -> bool:
    """Whether at least one row in sixteen of [n, d] begins like an earlier one, by its first eight bytes."""
    key = 8 // rows.dtype.itemsize
    if rows.shape[1] < key:
        return False
    begins = np.ascontiguousarray(rows[:, :key]).view(np.uint64)
    return (len(rows) - len(np.unique(begins))) * REPEATED >= len(rows)


def _blocks(size: int, target: int) -> int:
    """Blocks of equal length, whole words each, that are as near to `target` bytes as the chunk's size allows."""
    words = size // TYPESIZE
    return next(count for count in range(max(size // target, 1), 0, -1) if words % count == 0)


def _planes(words: np.ndarray) -> np.ndarray:
    """Byte planes [itemsize, n] of words, the lowest byte first, in this thread's scratch memory."""
    width, size = words.dtype.itemsize, words.size
    room = getattr(_held, "planes", None)
    if room is None or len(room) < width * size:
        room = _held.planes = np.empty(width * size, np.uint8)
    out = room[: width * size].reshape(width, size)
    for low in range(0, width, 2):  # by halves of 16 bits: numpy's casts are vectorized, its strided copies are not
        half = words if width == 2 else (words.view(np.uint32) >> 8 * low).astype(np.uint16)
        np.copyto(out[low], half, casting="unsafe")
        np.copyto(out[low + 1], half >> 8, casting="unsafe")
    return out


def _stream(plane: np.ndarray, way: _Way, high: bool) -> tuple[bytes, Any]:
    """A plane with its length before it: coded, or as it is where coding does not make it shorter."""
    compressors = _held.__dict__.setdefault("compressors", {})
    if (way.name, high) not in compressors:
        compressors[way.name, high] = ZstdCompressor(options=way.high if high else way.low)
    coded = compressors[way.name, high].compress(plane, ZstdCompressor.FLUSH_FRAME)
    data = coded if len(coded) < plane.size else plane.tobytes()
    return struct.pack("<i", len(data)), data


def decode_bits(frame: np.ndarray, out: np.ndarray) -> bool:
    """Decode the two upper planes of a checked frame (uint8) of float32 into `out`, contiguous uint16: bits of bfloat16.

    False for a frame that is not made of planes, or whose two lower ones are not the zeros of `encode_frame`; ValueError for a
    damaged one.
    """
    flags, typesize = frame[2:4].tolist()
    size, block, _ = frame[4:16].view("<u4").tolist()
    if flags != FLAGS or typesize != TYPESIZE or size % block or block % TYPESIZE or size != 2 * out.nbytes:
        return False
    words, flat, data = block // TYPESIZE, out.reshape(-1), memoryview(frame.data)
    zeros = _zeros(words)[1]
    for number, at in enumerate(frame[16 : 16 + 4 * (size // block)].view("<i4").tolist()):
        planes = []
        for plane in range(TYPESIZE):
            length, start = int.from_bytes(data[at : at + 4], "little"), at + 4
            at = start + length
            if length > words or at > len(frame):
                raise ValueError("a plane of a chunk ends behind the last byte")
            if plane < TYPESIZE - 2:
                if data[start:at] != zeros:
                    return False
            else:
                stored = length == words
                planes.append(frame[start:at] if stored else _plane(data[start:at], words, plane % 2))
        part = flat[number * words : (number + 1) * words]
        np.copyto(part, planes[1])
        np.left_shift(part, 8, out=part)
        np.bitwise_or(part, planes[0], out=part)
    return True


def _plane(coded: memoryview, words: int, which: int) -> np.ndarray:
    """A plane decoded into one of this thread's two scratch memories."""
    held = _held.__dict__.setdefault("decoded", {})
    if len(held.get(which, ())) != words:
        held[which] = np.empty(words, np.uint8)
    decompress(coded, held[which])
    return held[which]


@cache
def _zeros(size: int) -> tuple[bytes, bytes]:
    """The stream of a plane of zeros."""
    data = ZstdCompressor(level=1).compress(bytes(size), ZstdCompressor.FLUSH_FRAME)
    return struct.pack("<i", len(data)), data
