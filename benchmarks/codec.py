"""The store's codec by itself: what writing and reading are held against."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numcodecs
import numpy as np
from actlake.store.format.frames import SMALLEST, encode_frame
from numcodecs import Blosc

CODEC = Blosc(cname="zstd", clevel=1, shuffle=Blosc.SHUFFLE, blocksize=1 << 20, typesize=4)


def as_captured(chunk: np.ndarray) -> np.ndarray:
    """A stored chunk as the model gave it: the bits of bfloat16 (uint16) where nothing is lost by that."""
    words = chunk.view(np.uint32) if chunk.dtype == np.float32 else None
    return chunk if words is None or (words & 0xFFFF).any() else (words >> 16).astype(np.uint16)


def encode(chunk: np.ndarray) -> bytes:
    """A chunk of `as_captured` as the store encodes it: floats plane by plane, the rest by the stock codec."""
    planes = chunk.dtype in (np.uint16, np.float32) and chunk.size * 4 >= SMALLEST
    return encode_frame(chunk) if planes else bytes(CODEC.encode(widened(chunk)))


def widened(chunk: np.ndarray) -> np.ndarray:
    """A chunk of `as_captured` as Zarr's readers get it."""
    return (chunk.astype(np.uint32) << 16).view(np.float32) if chunk.dtype == np.uint16 else chunk


@contextmanager
def single_threaded_blosc() -> Iterator[None]:
    """Keep Blosc itself to the calling thread, as in zarr's worker threads."""
    before = numcodecs.blosc.use_threads
    numcodecs.blosc.use_threads = False
    try:
        yield
    finally:
        numcodecs.blosc.use_threads = before


def threaded(work: Callable[[Any], object], items: Sequence[Any], threads: int) -> Callable[[], None]:
    """A task that applies `work` to all items on this many threads and forgets the results."""

    def task() -> None:
        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(work, items):
                pass

    return task
