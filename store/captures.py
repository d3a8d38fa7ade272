"""Reading captures: lazy xarray for people, checked NumPy blocks for kernels, and the list of what is there."""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import xarray as xr
import zarr

from .errors import CorruptError, LakeError
from .layout import Layout, split_model
from .manifest import read_manifest
from .schema import VARIABLES
from .streams import stream_records
from .writer import quiet_zarr, shard_file

DASK_BLOCK = 1 << 26  # bytes of one layer's tokens in a dask block: large enough to keep graphs small
COLUMNS = ["pair", "variant", "stream", "prompts", "tokens", "bytes", "sealed", "path"]


class CheckedArray:
    """A Zarr array whose reads raise CorruptError with the shard's file name instead of returning wrong numbers."""

    def __init__(self, path: Path, array: zarr.Array):
        self.path, self.array = path, array
        self.shape, self.dtype, self.ndim = array.shape, np.dtype(array.dtype), array.ndim

    def __getitem__(self, key: Any) -> np.ndarray:
        try:
            with _quiet_loop():
                return np.asarray(self.array[key])
        except (ValueError, RuntimeError, OSError, EOFError, TypeError) as error:
            raise self._explain(key, error) from error

    def _explain(self, key: Any, error: Exception) -> Exception:
        """Find the shard that can't be read among those that `key` touches; other mistakes pass through."""
        first = key[0] if isinstance(key, tuple) else key
        rows = np.atleast_1d(np.arange(self.shape[0])[first]) if not isinstance(first, type(...)) else np.arange(self.shape[0])
        size = (self.array.shards or self.array.chunks)[0]
        for shard in np.unique(rows // size):
            try:
                with _quiet_loop():
                    self.array[shard * size : (shard + 1) * size]
            except (ValueError, RuntimeError, OSError, EOFError, TypeError) as cause:
                file = shard_file(self.path, self.array, int(shard))
                return CorruptError(
                    f"{file}: stored bytes are damaged ({str(cause).splitlines()[0]}); restore the file or capture again"
                )
        return error


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


def open_capture(path: Path, allow_unsealed: bool = False) -> xr.Dataset:
    """Open one capture as a lazy, dask-backed xarray.Dataset with dims token, boundary, layer, d_model, ...

    Same values as `xr.open_zarr(path)`; here a damaged chunk raises CorruptError with the file's name.
    Raises LakeError for a missing or unsealed capture.
    """
    check_sealed(path, allow_unsealed)
    with quiet_zarr():
        dataset = xr.open_zarr(path, chunks=None, consolidated=None if read_manifest(path) else False)
        group = zarr.open_group(path, mode="r")
    for name in list(dataset.variables):
        variable = VARIABLES.get(str(name))
        if variable is None or not variable.activation:
            continue
        array = checked(path, group, str(name))
        chunks = (_dask_rows(array), *((1,) if array.ndim == 3 else ()), -1)[: array.ndim]
        lazy = da.from_array(array, chunks=chunks, name=f"{name}-{path.stem}-{_token(path)}", asarray=False)
        dataset[name] = (variable.dims, lazy, dataset[name].attrs)
    return dataset


def _token(path: Path) -> str:
    manifest = read_manifest(path)
    return manifest["capture_sha256"][:16] if manifest else str(path.stat().st_mtime_ns)


def _dask_rows(array: CheckedArray) -> int:
    """Rows of a dask block: whole shards, about DASK_BLOCK bytes of one layer."""
    shard = (array.array.shards or array.array.chunks)[0]
    row = 4 * array.shape[-1]
    return min(array.shape[0], max(shard, DASK_BLOCK // row // shard * shard)) or 1


def checked(path: Path, group: zarr.Group, name: str) -> CheckedArray:
    """One array of a capture behind the check."""
    array = group.get(name)
    if not isinstance(array, zarr.Array):
        raise LakeError(f"{path}: no variable {name!r}; it has {', '.join(sorted(group.array_keys()))}")
    return CheckedArray(path, array)


class Capture:
    """One sealed capture: its manifest, its coordinates in memory and its arrays behind the check."""

    def __init__(self, path: Path, allow_unsealed: bool = False):
        check_sealed(path, allow_unsealed)
        self.path = path
        self.manifest = read_manifest(path) or {}
        with quiet_zarr():
            self.group = zarr.open_group(path, mode="r")

    def array(self, name: str) -> CheckedArray:
        """An array by its name in DESIGN 3, read by slicing."""
        return checked(self.path, self.group, name)

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


def check_sealed(path: Path, allow_unsealed: bool = False) -> None:
    """Raise LakeError unless there is a sealed capture at `path`."""
    if not path.is_dir():
        raise LakeError(f"{path}: no such capture; `actlake ls` shows what the lake has")
    if read_manifest(path) is None and not allow_unsealed:
        raise LakeError(
            f"{path}: this capture is not sealed (it was interrupted or is still running): run the same `actlake capture`"
            " command again to finish it"
        )


def list_captures(layout: Layout) -> pd.DataFrame:
    """Every capture of the lake: pair, variant, stream, prompts, tokens, bytes on disk, sealed, path."""
    rows = []
    for path in sorted((layout.root / "captures").glob("*/*/*.zarr")):
        manifest = read_manifest(path)
        row: dict[str, Any] = {"pair": path.parts[-3], "variant": path.parts[-2], "stream": path.stem}
        if manifest:
            row |= {"prompts": manifest["n_prompts"], "tokens": manifest["n_tokens"], "bytes": manifest["bytes"]}
        else:
            row |= {"prompts": 0, "tokens": 0, "bytes": sum(f.stat().st_size for f in path.rglob("*") if f.is_file())}
        rows.append({**row, "sealed": manifest is not None, "path": str(path)})
    return pd.DataFrame(rows, columns=COLUMNS)


def capture_names(layout: Layout, pair: str, variant: str) -> dict[str, str]:
    """Stream name -> stream name of the capture that holds it, for one model; aliases of equal content included."""
    there = {path.stem for path in layout.capture(pair, variant, "x").parent.glob("*.zarr")}
    names = {name: name for name in there}
    for record in stream_records(layout):
        if record["same_as"] in there:
            names[record["name"]] = record["same_as"]
    return names


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


