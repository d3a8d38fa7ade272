"""Zarr groups of a lake, read with checks: metadata by hash, arrays on all cores, and the codec of all arrays."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec

from ..core.errors import RESTORE, CorruptError, LakeError
from ..core.files import hash_file
from ..core.schema import VARIABLES
from ..remote.files import HERE, Files, RemoteFile
from .chunks import DAMAGE, Chunks, damaged
from .frames import decode_bits
from .parquet import first_line
from .partial import Held, pull_of
from .shards import Grid
from .zarr_metadata import Described, check_room, describe_group

SMALL = 1 << 20  # bytes of a chunk or shard that is hashed when it is first read


@contextmanager
def quiet_zarr() -> Iterator[None]:
    """Silence zarr's notes about the format 3 specification; they are not for users."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="zarr")
        yield


def compressors() -> list[Any]:
    """The codec of STORAGE 2b, then a checksum so that a flipped byte raises on reading."""
    blosc = BloscCodec(cname="zstd", clevel=1, shuffle="shuffle", typesize=4, blocksize=1 << 20)
    return [blosc, Crc32cCodec()]


class CheckedArray:
    """A Zarr array whose reads raise CorruptError with the shard's file name instead of returning wrong numbers.

    Slices of a sharded variable are decoded on all cores (format.shards); everything else goes through zarr. `whole` says
    that every shard must be there, as in a sealed capture; without it, what is not written reads as NaN.
    """

    def __init__(
        self, path: Path, array: zarr.Array, whole: bool, files: Mapping[str, Any] | None = None, lake: Files = HERE
    ):
        self.path, self.array, self.whole = path, array, whole
        self._files, self._lake, self._blobs = files or {}, lake, dict[int, Path | RemoteFile]()
        self.held: Held | None = None
        self.shape, self.dtype, self.ndim = array.shape, np.dtype(array.dtype), array.ndim
        self._grid, self._chunks = Grid.of(array), Chunks(self.shape, array.chunks, self.dtype, self._vouched)

    def only(self, held: Held | None) -> CheckedArray:
        """Mark the array as a copy that holds no more than this; reading the rest is a LakeError that says what to do."""
        self.held = held
        return self

    def __getitem__(self, key: Any) -> np.ndarray:
        found = as_box(key, self.shape)
        if found:
            return self._read(found[0])[found[1]]
        # Another kind of key: its rows, run by run, then the key within them.
        first, *rest = key if isinstance(key, tuple) else (key,)
        rows = None if first is Ellipsis or first is None else np.arange(self.shape[0])[first]
        if rows is None or not rows.size:
            return self._read(tuple(slice(0, size) for size in self.shape))[key]
        each, place = np.unique(rows, return_inverse=True)
        runs = np.split(each, np.flatnonzero(np.diff(each) > 1) + 1)
        others = [slice(0, size) for size in self.shape[1:]]
        block = np.concatenate([self._read((slice(int(run[0]), int(run[-1]) + 1), *others)) for run in runs])
        return block[(slice(None) if isinstance(first, slice) else place.reshape(rows.shape), *rest)]

    def _read(self, box: tuple[slice, ...]) -> np.ndarray:
        self._check_held(box)
        try:
            return self._grid.read(self._blob, box, self.whole) if self._grid else self._chunks.read(box)
        except MemoryError as error:
            shape = [axis.stop - axis.start for axis in box]
            raise LakeError(
                f"{self.path / self.array.basename}: {shape} values of {self.dtype} do not fit into memory; read fewer at a time"
            ) from error

    @property
    def chunk_rows(self) -> int:
        """Tokens of a chunk."""
        return int(self.array.chunks[0])

    @property
    def width(self) -> int:
        """Values of a token at one place of the second axis."""
        return int(np.prod(self.shape[2:]))

    @property
    def narrow(self) -> bool:
        """Whether its values are bfloat16 that was widened."""
        return self.array.attrs.get("lossless_cast") == "bfloat16"

    def read_chunk(self, number: int, place: int, out: np.ndarray) -> None:
        """Decode chunk `number` along the tokens at `place` of the second axis into `out` [chunk_rows, width], contiguous.

        `out` is float32, or uint16 for the bits of bfloat16 values that were widened. Rows behind the last token are the fill
        value. CorruptError with the file's name for a missing or damaged shard, LakeError where this copy lacks it.
        """
        grid = self._grid
        if grid is None or self.ndim < 3 or grid.chunk[1:] != (1, *self.shape[2:]):
            raise LakeError(f"{self.path / self.array.basename}: not laid out as docs/FORMAT.md has it, by layer")
        self.check_rows(range(number, number + 1), place)
        shard, inside = divmod(number, grid.counts[0])
        file, spot = self._blob(shard), (inside, place, *[0] * (self.ndim - 2))
        try:
            frame = grid.frames(file, None, [spot])[spot]
            if frame is None:
                raise ValueError("a chunk is absent")
            if out.dtype == np.float32:
                grid.codec.decode(frame, out=out)
            elif not decode_bits(frame, out):
                whole = np.empty(out.shape, np.float32)
                grid.codec.decode(frame, out=whole)
                bits = whole.view(np.uint16).reshape(*out.shape, 2)  # of each number the low half, then the high one
                if bits[..., 0].any():
                    raise ValueError("values are not widened bfloat16")
                out[...] = bits[..., 1]
        except DAMAGE as error:
            raise damaged(file, error) from error

    def check_rows(self, chunks: Iterable[int], place: int) -> None:
        """Raise LakeError when this copy lacks one of these chunks at a place of the second axis."""
        for number in chunks if self.held else ():
            first = number * self.chunk_rows
            self._check_held((slice(first, first + 1), slice(place, place + 1)))

    def _check_held(self, box: tuple[slice, ...]) -> None:
        if self.held is None or self._grid is None:
            return
        rows = range(box[0].start // self._grid.shard, -(-box[0].stop // self._grid.shard))
        places = range(box[1].start, box[1].stop) if len(box) > 1 else range(0)
        lost = [f"shard row {row}" for row in rows if self.held.rows is not None and row not in self.held.rows]
        if self.held.places is not None:
            lost += [f"{VARIABLES[self.array.basename].dims[1]} {at}" for at in places if at not in self.held.places]
        if lost:
            raise LakeError(
                f"{self.path}: this copy lacks {self.array.basename} at {lost[0]}"
                + (f" and {len(lost) - 1} more places" if len(lost) > 1 else "")
                + f"; {pull_of(self.path.parents[2])} brings the whole capture, with --boundary and --prompt some more of it"
            )

    def _blob(self, shard: int) -> Path | RemoteFile:
        """What to read a shard from, the same for all reads of it: of a remote one the index is fetched once."""
        if shard not in self._blobs:
            file = self._chunk_file((shard, *[0] * (self.ndim - 1)))
            recorded = self._files.get(file.relative_to(self.path).as_posix(), {})
            blob = self._lake.blob(file, recorded.get("bytes"))
            if isinstance(blob, Path):
                self._check_bytes(blob)
            self._blobs.setdefault(shard, blob)  # several threads may come at once
        return self._blobs[shard]

    def _vouched(self, spot: tuple[int, ...]) -> Path:
        self._check_bytes(file := self._chunk_file(spot))
        return file

    def _check_bytes(self, file: Path) -> None:
        """Raise CorruptError for a file that is good by itself and another one than was recorded, as one put in its place is.

        Large ones are known by their size: hashing them would take longer than reading a slice.
        """
        recorded = self._files.get(file.relative_to(self.path).as_posix())
        if not recorded or not file.is_file():  # a missing file is an error where it is read
            return
        size = file.stat().st_size
        if size != recorded["bytes"]:
            if self.held is None:  # else it may be a whole shard of a copy that is being made whole
                raise CorruptError(f"{file}: {size} bytes, the manifest says {recorded['bytes']}; {RESTORE}")
        elif size <= SMALL and (found := hash_file(file)) != recorded["sha256"]:
            words = f"stored bytes are damaged (found {found}, expected sha256 {recorded['sha256']})"
            raise CorruptError(f"{file}: {words}; {RESTORE}")

    def _chunk_file(self, spot: tuple[int, ...]) -> Path:
        return self.path.joinpath(self.array.basename, "c", *map(str, spot))


def as_box(key: Any, shape: tuple[int, ...]) -> tuple[tuple[slice, ...], tuple[Any, ...]] | None:
    """A basic key as (one slice of step 1 per axis, the key that drops its integer axes), or None for another kind of key.

    Raises IndexError for an integer beyond its axis.
    """
    keys = list(key) if isinstance(key, tuple) else [key]
    if not all(k is Ellipsis or isinstance(k, int | np.integer | slice) for k in keys):
        return None
    gap = next((i for i, k in enumerate(keys) if k is Ellipsis), len(keys))
    keys[gap : gap + 1] = [slice(None)] * (len(shape) - len(keys) + (gap < len(keys)))
    if len(keys) != len(shape) or Ellipsis in keys:
        return None
    box, single = [], []
    for k, size in zip(keys, shape, strict=True):
        start, stop, step = k.indices(size) if isinstance(k, slice) else (range(size)[k], range(size)[k] + 1, 1)
        if step != 1:
            return None
        box.append(slice(start, max(start, stop)))
        single.append(slice(None) if isinstance(k, slice) else 0)
    return tuple(box), tuple(single)


def open_group(
    path: Path, sha256: str | None, sizes: Mapping[str, int] | None = None
) -> tuple[zarr.Group, dict[str, Described]]:
    """A Zarr group for reading and what it holds, once its metadata has the recorded hash (None: not sealed, nothing recorded).

    The group's zarr.json holds the metadata of all arrays; a flipped byte in it could change every number read. Nothing but
    the layouts of docs/FORMAT.md is opened. `sizes` are the recorded bytes by file (None: the files are asked).
    """
    file = path / "zarr.json"
    if sha256 and (found := hash_file(file) if file.is_file() else "no file") != sha256:
        raise CorruptError(
            f"{file}: metadata is damaged or missing (found {found}, expected sha256 {sha256})", repair=RESTORE
        )
    arrays = describe_group(path)
    if sha256:
        check_room(path, arrays, sizes)
    try:
        with quiet_zarr():
            return zarr.open_group(path, mode="r"), arrays
    except (*DAMAGE, KeyError, AttributeError, IndexError) as error:
        raise CorruptError(f"{file}: can't be read ({first_line(error)})", repair=RESTORE) from error


def checked(
    path: Path,
    group: zarr.Group,
    name: str,
    whole: bool = True,
    files: Mapping[str, Any] | None = None,
    lake: Files = HERE,
) -> CheckedArray:
    """One array of a group behind the check; `files` are those of its manifest, if it has one."""
    array = group.get(name)
    if not isinstance(array, zarr.Array):
        raise LakeError(f"{path}: no variable {name!r}; it has {', '.join(sorted(group.array_keys()))}")
    return CheckedArray(path, array, whole, files, lake)
