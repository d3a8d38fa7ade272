"""Reading captures: lazy xarray for people, checked NumPy blocks for kernels, and the list of what is there."""

import asyncio
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from types import EllipsisType
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import xarray as xr
import zarr

from .errors import CorruptError, LakeError
from .files import bytes_below, hash_file, hash_json
from .layout import Layout, split_model
from .manifest import MANIFEST, read_manifest
from .schema import VARIABLES
from .shards import Grid
from .streams import stream_records
from .writer import quiet_zarr

DASK_BLOCK = 1 << 27  # bytes of one layer's tokens in a dask block: large enough to keep graphs small
DAMAGE = (ValueError, RuntimeError, OSError, EOFError, TypeError)  # what codecs raise on bytes they can't decode
COLUMNS = ["pair", "variant", "stream", "prompts", "tokens", "bytes", "sealed", "path"]


class CheckedArray:
    """A Zarr array whose reads raise CorruptError with the shard's file name instead of returning wrong numbers.

    Slices of a sharded variable are decoded on all cores (store.shards); everything else goes through zarr. `whole` says
    that every shard must be there, as in a sealed capture; without it, what is not written reads as NaN.
    """

    def __init__(self, path: Path, array: zarr.Array, whole: bool):
        self.path, self.array, self.whole = path, array, whole
        self.shape, self.dtype, self.ndim = array.shape, np.dtype(array.dtype), array.ndim
        self._rows = (array.shards or array.chunks)[0]
        self._grid = Grid.of(array)

    def __getitem__(self, key: Any) -> np.ndarray:
        found = as_box(key, self.shape) if self._grid else None
        if self._grid and found:
            box, single = found
            return self._grid.read(self._file, box, self.whole)[single]
        if self.whole:
            self._check_files(key)
        try:
            with _quiet_loop():
                return np.asarray(self.array[key])
        except DAMAGE as error:
            raise self._explain(key, error) from error

    def _file(self, shard: int) -> Path:
        return self.path.joinpath(self.array.basename, "c", str(shard), *["0"] * (self.ndim - 1))

    def _shards(self, key: Any) -> Sequence[int]:
        """Indices of the shards that `key` touches (along the first axis, the only one that is split)."""
        first = key[0] if isinstance(key, tuple) else key
        if isinstance(first, slice | EllipsisType):
            rows = range(self.shape[0])[first if isinstance(first, slice) else slice(None)]
            return range(min(rows) // self._rows, max(rows) // self._rows + 1) if rows else ()
        return np.unique(np.arange(self.shape[0])[first] // self._rows).tolist()

    def _check_files(self, key: Any) -> None:
        """Zarr takes a missing or empty file for one that was never written, and would return its fill value."""
        for shard in self._shards(key):
            file = self._file(shard)
            if not file.is_file() or not file.stat().st_size:
                raise CorruptError(f"{file}: missing or empty; restore the file or capture again")

    def _explain(self, key: Any, error: Exception) -> Exception:
        """Find the shard that can't be read among those that `key` touches; other mistakes pass through."""
        for shard in self._shards(key):
            try:
                with _quiet_loop():
                    self.array[shard * self._rows : (shard + 1) * self._rows]
            except DAMAGE as cause:
                file = self._file(shard)
                return CorruptError(
                    f"{file}: stored bytes are damaged ({str(cause).splitlines()[0]}); restore the file or capture again"
                )
        return error


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


@contextmanager
def _quiet_loop() -> Iterator[None]:
    """Keep asyncio's reports of sibling chunk reads, cancelled after one failed, away from users."""
    logger = logging.getLogger(asyncio.__name__)
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)


def open_capture(path: Path, allow_unsealed: bool = False, by: str = "layer") -> xr.Dataset:
    """Open one capture as a lazy, dask-backed xarray.Dataset with dims token, boundary, layer, d_model, ...

    Same values as `xr.open_zarr(path)`; here coordinates are in memory, and a damaged chunk raises CorruptError with the
    file's name. A dask block holds one layer of many tokens, or with `by="token"` all layers of one shard's tokens.
    Raises LakeError for a missing or unsealed capture.
    """
    if by not in ("layer", "token"):
        raise LakeError(f"by={by!r}: expected layer (one layer of many tokens a block) or token (all layers of some)")
    capture = Capture(path, allow_unsealed)
    data: dict[str, Any] = {}
    coordinates: dict[str, Any] = {}
    for name, variable in VARIABLES.items():
        if name not in capture.group:
            continue
        array = capture.array(name)
        attributes = dict(array.array.attrs)
        if variable.per_prompt:
            data[name] = (variable.dims, array[...], attributes)
            continue
        if not variable.activation:
            coordinates[name] = (variable.dims, array[...], attributes)
            continue
        chunks = (_dask_rows(array), *((1,) if array.ndim == 3 else ()), -1)[: array.ndim]
        if by == "token":
            chunks = (_shard_rows(capture), -1, -1)[: array.ndim]
        lazy = da.from_array(array, chunks=chunks, name=f"{name}-{by}-{path.stem}-{_token(path)}", asarray=False)
        data[name] = (variable.dims, lazy, attributes)
    attributes = {key: value for key, value in capture.group.attrs.items() if key != "coordinates"}
    return xr.Dataset(data, coordinates, attributes)


def _token(path: Path) -> str:
    manifest = read_manifest(path)
    return manifest["capture_sha256"][:16] if manifest else str(path.stat().st_mtime_ns)


def _shard_rows(capture: "Capture") -> int:
    """Tokens of a shard, the same for all activations."""
    arrays = (
        capture.group[name] for name, variable in VARIABLES.items() if variable.activation and name in capture.group
    )
    return next((array.shards or array.chunks)[0] for array in arrays if isinstance(array, zarr.Array))


def _dask_rows(array: CheckedArray) -> int:
    """Rows of a dask block: whole shards, about DASK_BLOCK bytes of one layer."""
    shard = (array.array.shards or array.array.chunks)[0]
    row = 4 * array.shape[-1]
    return min(array.shape[0], max(shard, DASK_BLOCK // row // shard * shard)) or 1


def open_group(path: Path, sha256: str | None) -> zarr.Group:
    """A Zarr group for reading, once its metadata has the recorded hash (None: not sealed, nothing recorded).

    The group's zarr.json holds the metadata of all arrays; a flipped byte in it could change every number read.
    """
    file = path / "zarr.json"
    if sha256 and not (file.is_file() and hash_file(file) == sha256):
        raise CorruptError(f"{file}: metadata is damaged or missing; restore the file or capture again")
    try:
        with quiet_zarr():
            return zarr.open_group(path, mode="r")
    except (*DAMAGE, KeyError) as error:
        raise CorruptError(f"{file}: can't be read ({str(error).splitlines()[0]}); capture again") from error


def checked(path: Path, group: zarr.Group, name: str, whole: bool = True) -> CheckedArray:
    """One array of a group behind the check."""
    array = group.get(name)
    if not isinstance(array, zarr.Array):
        raise LakeError(f"{path}: no variable {name!r}; it has {', '.join(sorted(group.array_keys()))}")
    return CheckedArray(path, array, whole)


class Capture:
    """One sealed capture: its manifest, its coordinates in memory and its arrays behind the check."""

    def __init__(self, path: Path, allow_unsealed: bool = False):
        self.path, self.manifest = path, check_sealed(path, allow_unsealed)
        self.group = open_group(path, self.manifest["files"]["zarr.json"]["sha256"] if self.manifest else None)

    def array(self, name: str) -> CheckedArray:
        """An array by its name in DESIGN 3, read by slicing."""
        return checked(self.path, self.group, name, whole=bool(self.manifest))

    def columns(self) -> dict[str, np.ndarray]:
        """The token coordinates plus prompt_id and category per token, as arrays of equal length."""
        names = ("token_id", "prompt", "position", "step", "is_special")
        columns = {name: self.array(name)[:] for name in names}
        for name in ("prompt_id", "category"):
            columns[name] = self.array(name)[:].astype(object)[columns["prompt"]]
        return columns

    @property
    def n_tokens(self) -> int:
        """Length of the token axis."""
        return int(self.array("token_id").shape[0])

    @property
    def sha256(self) -> str:
        """The capture's content hash; empty while it is not sealed."""
        return str(self.manifest.get("capture_sha256", ""))


def check_sealed(path: Path, allow_unsealed: bool = False) -> dict[str, Any]:
    """The manifest of the capture at `path`; LakeError unless it is sealed or that is allowed (then it is empty)."""
    if not path.is_dir():
        raise LakeError(f"{path}: no such capture; `actlake ls` shows what the lake has")
    manifest = read_manifest(path)
    if manifest is None and not allow_unsealed:
        raise LakeError(
            f"{path}: this capture is not sealed (it was interrupted or is still running): run the same `actlake capture`"
            " command again to finish it"
        )
    if manifest and hash_json(manifest.get("files")) != manifest.get("capture_sha256"):
        raise CorruptError(f"{path / MANIFEST}: its list of files is damaged; restore the file or capture again")
    return manifest or {}


def list_captures(layout: Layout) -> pd.DataFrame:
    """Every capture of the lake: pair, variant, stream, prompts, tokens, bytes on disk, sealed, path."""
    rows = []
    for path in sorted((layout.root / "captures").glob("*/*/*.zarr")):
        row: dict[str, Any] = {"pair": path.parts[-3], "variant": path.parts[-2], "stream": path.stem}
        sealed = (path / MANIFEST).exists()
        if sealed:
            found = (path / MANIFEST).stat()
            row |= _sizes(path, found.st_ino, found.st_mtime_ns, found.st_size)
        else:
            row |= {"prompts": 0, "tokens": 0, "bytes": bytes_below(path)}
        rows.append({**row, "sealed": sealed, "path": str(path)})
    return pd.DataFrame(rows, columns=COLUMNS)


@lru_cache(maxsize=4096)
def _sizes(path: Path, *_file: int) -> dict[str, int]:
    """Prompts, tokens and bytes of a sealed capture; a manifest of a megabyte is read again only when its file is another."""
    manifest = read_manifest(path) or {}
    return {"prompts": manifest["n_prompts"], "tokens": manifest["n_tokens"], "bytes": manifest["bytes"]}


def capture_names(layout: Layout, pair: str, variant: str) -> dict[str, str]:
    """Stream name -> stream name of the capture that holds it, for one model; aliases of equal content included."""
    there = {path.stem for path in layout.capture(pair, variant, "x").parent.glob("*.zarr")}
    names = {name: name for name in there}
    for record in stream_records(layout):
        if record["same_as"] in there:
            names[record["name"]] = record["same_as"]
    return names


def split_capture(name: str) -> tuple[str, str]:
    """'PAIR/VARIANT/STREAM' -> ('PAIR/VARIANT', 'STREAM'); the stream may be shortened, or left out of a model with one."""
    pair, _, rest = name.partition("/")
    variant, _, stream = rest.partition("/")
    return f"{pair}/{variant}", stream


def find_capture(layout: Layout, model: str, stream: str) -> Path:
    """The capture of 'PAIR/VARIANT' whose stream name starts with `stream`; LakeError if none or several do."""
    pair, variant = split_model(model)
    names = capture_names(layout, pair, variant)
    exact = {names[stream]} if stream in names else {names[name] for name in names if name.startswith(stream)}
    if len(exact) != 1:
        have = ", ".join(sorted(names)) or "none"
        problem = "no capture" if not exact else "several captures"
        raise LakeError(
            f"{problem} of {model} on a stream that starts with {stream!r}; captured streams: {have}."
            + ("" if exact else f" `actlake capture {pair} --stream {stream.split('-')[0]}` makes it")
        )
    return layout.capture(pair, variant, exact.pop())
