"""Reading the rows of a filling: whole chunks, decoded by several threads straight into the buffer, as bits of bfloat16."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ..captures.reader import Capture
from ..core.errors import LakeError
from ..core.schema import SITES, VARIABLES
from ..format.zarr_groups import CheckedArray
from .order import Filled

Slots = slice | np.ndarray
Sides = list[list[np.ndarray]]  # the memory of each of two buffers, by part
_held = threading.local()


@dataclass(frozen=True)
class Part:
    """One site of one capture at one layer: capture number, the array, and its place on the array's second axis."""

    capture: int
    array: CheckedArray
    place: int
    site: str
    layer: int

    @property
    def dtype(self) -> np.dtype:
        """What its rows are held as: bits of bfloat16 where its values are that, else float32."""
        return np.dtype(np.uint16 if self.array.narrow else np.float32)


def parts_of(captures: Sequence[Capture], sites: Sequence[str], layers: Sequence[int] | None) -> list[Part]:
    """The parts of a row, by capture, site and layer in this order.

    Layer l is the output of block l, as in tables; of the residual stream it is boundary l + 1, and -1 the input of block 0.
    LakeError for what a capture lacks, and when widths differ.
    """
    known = {(number, site): _layers(capture, site) for number, capture in enumerate(captures) for site in sites}
    if layers is None:  # all that every site and capture has
        layers = [layer for layer in next(iter(known.values())) if all(layer in each for each in known.values())]
    found = []
    for (number, site), there in known.items():
        for layer in layers:
            if layer not in there:
                raise LakeError(
                    f"{captures[number].path}: {site} at layer {layer}", expected=_range(there), found=layer
                )
            found.append(Part(number, captures[number].array(site), there.index(layer), site, layer))
    widths = {part.array.width for part in found}
    if len(widths) > 1:
        raise LakeError(f"rows side by side need one width, found {' and '.join(map(str, sorted(widths)))}")
    if len({part.dtype for part in found}) > 1:
        raise LakeError("rows side by side need one dtype; one capture is of a bfloat16 model, the other is not")
    return found


def _layers(capture: Capture, site: str) -> list[int]:
    """The layers that a capture has of a site, in the order of its second axis."""
    if site not in capture:
        if site in capture.manifest["sizes"]:
            capture.array(site)  # a copy says what it lacks
        there = [name for name in SITES if name in capture]
        raise LakeError(f"{capture.path}: no site {site!r}; it has {', '.join(there) or 'none'}")
    axis = VARIABLES[site].dims[1]
    return [int(at) - (axis == "boundary") for at in capture.array(axis)[:]]


def _range(known: Sequence[int]) -> str:
    whole = len(known) > 2 and list(known) == list(range(known[0], known[-1] + 1))
    return f"{known[0]} to {known[-1]}" if whole else " or ".join(map(str, known))


def room_for(parts: Sequence[Part], rows: int) -> Sides:
    """Memory of two buffers of so many rows of every part."""
    return [[np.empty((rows, part.array.width), part.dtype) for part in parts] for _ in range(2)]


class Buffers:
    """Two buffers of rows, in memory of `room_for`: one is drawn from while the other is filled."""

    def __init__(self, parts: Sequence[Part], rows: np.ndarray, sides: Sides, pool: ThreadPoolExecutor):
        self._parts, self._rows, self._sides, self._pool = parts, rows, sides, pool
        self._under_way: list[Future[None]] = []

    def fill(self, side: int, filled: Filled, from_other: bool) -> None:
        """Begin to fill one side; rows that stay come from the other one, or else are read again."""
        kept = len(filled.kept)
        if from_other:
            for one, other in zip(self._sides[side], self._sides[1 - side], strict=True):
                self._submit(np.take, other, filled.kept, 0, one[:kept], "clip")
        else:
            order = np.argsort(filled.rows[:kept])
            self._read(side, filled.rows[:kept][order], order)
        at = kept
        for piece in filled.pieces:
            self._read(side, piece, slice(at, at + len(piece)))
            at += len(piece)

    def ready(self) -> None:
        """Wait until what was begun is done; what went wrong is raised here."""
        under_way, self._under_way = self._under_way, []
        for future in under_way:
            future.result()

    def stop(self) -> None:
        """Call off what has not begun."""
        for future in self._under_way:
            future.cancel()

    def held(self, side: int) -> list[np.ndarray]:
        """The rows of a side by place, [rows, d] a part."""
        return self._sides[side]

    def _read(self, side: int, rows: np.ndarray, slots: Slots) -> None:
        """Begin to read ascending rows into slots of a side, a chunk of an array at a time."""
        tokens = self._rows[rows]
        for part, held in zip(self._parts, self._sides[side], strict=True):
            mine = tokens[:, part.capture]
            for number, first, last in _chunks(mine, part.array.chunk_rows):
                inside = mine[first:last] - number * part.array.chunk_rows
                where = (
                    slice(slots.start + first, slots.start + last) if isinstance(slots, slice) else slots[first:last]
                )
                self._submit(_read_chunk, part, number, inside, held, where)

    def _submit(self, action: object, *given: object) -> None:
        self._under_way.append(self._pool.submit(action, *given))  # type: ignore[arg-type]


def _chunks(tokens: np.ndarray, size: int) -> Iterator[tuple[int, int, int]]:
    """Chunk by chunk of ascending tokens (of a pair's other model nearly so): its number, and from where to where they are."""
    numbers = tokens // size
    edges = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(tokens)] if len(tokens) else []
    for first, last in pairwise(edges):
        yield int(numbers[first]), first, last


def _read_chunk(part: Part, number: int, inside: np.ndarray, held: np.ndarray, slots: Slots) -> None:
    """Decode one chunk and put its tokens `inside` into slots of a buffer."""
    size = part.array.chunk_rows
    if isinstance(slots, slice) and len(inside) == size and (inside == np.arange(size)).all():
        part.array.read_chunk(number, part.place, held[slots])
        return
    whole = read_whole(part, number)
    if isinstance(slots, slice):
        whole.take(inside, axis=0, out=held[slots], mode="clip")
    else:
        held[slots] = whole[inside]


def read_whole(part: Part, number: int) -> np.ndarray:
    """A chunk [chunk_rows, d] in this thread's scratch memory, good until it reads another."""
    shape = (part.array.chunk_rows, part.array.width)
    scratch = getattr(_held, "chunk", None)
    if scratch is None or scratch.shape != shape or scratch.dtype != part.dtype:
        scratch = _held.chunk = np.empty(shape, part.dtype)
    part.array.read_chunk(number, part.place, scratch)
    return scratch
