"""The store's codec by itself: what writing and reading are held against."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numcodecs
from numcodecs import Blosc

CODEC = Blosc(cname="zstd", clevel=1, shuffle=Blosc.SHUFFLE, blocksize=1 << 20, typesize=4)


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
