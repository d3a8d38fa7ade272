"""Directions of a pair: small Zarr groups, named by what determines them, that plain xarray opens."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from ..core.errors import CorruptError
from ..core.schema import FORMAT_VERSION
from ..format.paths import Layout
from ..format.records import REPAIRS
from ..format.zarr_groups import CheckedArray, checked, compressors, open_group, quiet_zarr
from ..format.zarr_metadata import check_dims
from ..remote.files import HERE, Files
from .artifact import key_of, read, writing

CHUNK_BYTES = 32 << 20  # of an array that grows by records, in memory until a chunk is full
DIRECTION_DIMS = {
    "difference": ("record", "layer", "d_model"),
    "tokens": ("record",),
    "prompt": ("record",),
    "layer": ("layer",),
    "d_mean": ("layer", "d_model"),
    "d_record": ("layer", "d_model"),
    "norm": ("layer",),
    "d_conv": ("layer", "d_model"),
    "d_grad": ("layer", "d_model"),
    "r2_in_sample": ("layer",),
    "r2_train": ("layer",),
    "r2_held_out": ("layer",),
    "dh_norm": ("layer",),
}


def directions_path(layout: Layout, models: Mapping[str, str], kind: str, recipe: dict[str, Any]) -> Path:
    """The group of this kind and recipe."""
    return layout.directions(models) / f"{kind}-{key_of({'kind': kind, 'models': dict(models), **recipe})}.zarr"


class DirectionsWriter:
    """A group that is being written: whole arrays with `put`, or records one after the other with `append`."""

    def __init__(self, folder: Path, attrs: dict[str, Any]):
        with quiet_zarr():
            self._group = zarr.create_group(folder, zarr_format=3, overwrite=True, attributes=attrs)
        self._held: dict[str, list[np.ndarray]] = {}
        self._at: dict[str, int] = {}

    def put(self, name: str, values: np.ndarray) -> None:
        """Write an array of DIRECTION_DIMS; floats as float32, whole numbers as int32."""
        values = np.asarray(values)
        self.create(name, values.shape)[...] = values

    def create(self, name: str, shape: tuple[int, ...]) -> zarr.Array:
        """Allocate an array; one of three dimensions is chunked by records and layer."""
        whole = name in ("tokens", "prompt", "layer")
        rows = max(1, min(shape[0], CHUNK_BYTES // (4 * int(np.prod(shape[1:], dtype=np.int64) or 1))))
        with quiet_zarr():
            return self._group.create_array(
                name,
                shape=shape,
                dtype="int32" if whole else "float32",
                chunks=(rows, 1, *shape[2:]) if len(shape) == 3 else shape,
                compressors=compressors(),
                fill_value=-1 if whole else np.nan,
                dimension_names=DIRECTION_DIMS[name],
                config={"write_empty_chunks": True},
            )

    def append(self, name: str, values: np.ndarray) -> None:
        """Add records to an array made with `create`; they go to disk a chunk at a time."""
        self._held.setdefault(name, []).append(values)
        if sum(map(len, self._held[name])) >= self[name].chunks[0]:
            self._flush(name, whole=False)

    def _flush(self, name: str, whole: bool) -> None:
        values, rows, at = np.concatenate(self._held.pop(name)), self[name].chunks[0], self._at.get(name, 0)
        count = len(values) if whole else len(values) // rows * rows
        self[name][at : at + count] = values[:count]
        self._at[name] = at + count
        if count < len(values):
            self._held[name] = [values[count:].copy()]

    def flush(self) -> None:
        """Write the records that are still held; nothing can be appended after that."""
        for name in list(self._held):
            self._flush(name, whole=True)

    def __getitem__(self, name: str) -> zarr.Array:
        array = self._group[name]
        assert isinstance(array, zarr.Array)
        return array


@contextmanager
def directions_writer(
    layout: Layout, models: Mapping[str, str], kind: str, recipe: dict[str, Any]
) -> Iterator[DirectionsWriter]:
    """Write one group atomically: it appears at the end of the block, and whatever raises inside leaves nothing behind.

    The recipe (captures, models, positions, versions) goes into the group's attributes and its record.
    """
    whole = {"kind": kind, "models": dict(models), **recipe}
    with writing(layout, directions_path(layout, models, kind, recipe), whole, {}) as folder:
        writer = DirectionsWriter(folder, {"format_version": FORMAT_VERSION, "recipe": whole})
        yield writer
        writer.flush()
        with quiet_zarr():
            zarr.consolidate_metadata(str(folder))


def read_directions(path: Path, files: Files = HERE) -> tuple[Mapping[str, CheckedArray], dict[str, Any]]:
    """The arrays of a group, read by slicing, and its recipe; LakeError when it is not there, CorruptError on damage.

    The hash of every file is checked before its numbers are used.
    """
    found = read(files, path, "directions")
    if path.stem != (name := f"{found.record['recipe']['kind']}-{found.record['key']}"):
        raise CorruptError(f"{path}: damaged, its record is that of {name}", repair=REPAIRS["directions"])
    found.check()
    group, arrays = open_group(path, found.record["files"]["zarr.json"]["sha256"])
    check_dims(path, arrays, DIRECTION_DIMS)
    return {name: checked(path, group, name) for name in arrays}, found.record["recipe"]
