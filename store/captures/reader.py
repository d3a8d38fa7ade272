"""Reading captures: lazy xarray for people, checked NumPy blocks for kernels, and the list of what is there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import zarr

from ..artifacts.models import has_model, read_model
from ..artifacts.streams import reads, stream_records
from ..core.errors import RESTORE, CorruptError, LakeError
from ..core.files import bytes_below
from ..core.schema import (
    LATER,
    MANIFEST,
    PARTIAL,
    PROGRESS,
    TEMPLATE,
    TOKEN_COORDS,
    UNKNOWN,
    VARIABLES,
    VARIANTS,
)
from ..format.partial import pull_of, read_partial
from ..format.paths import Layout, check_name
from ..format.records import SEAL, read_record
from ..format.zarr_groups import CheckedArray, checked, open_group
from ..format.zarr_metadata import Described, check_dims
from ..remote.files import HERE, Files
from ..remote.hashes import mark_of, while_same
from .manifest import check_list, noise_warning, read_manifest
from .precision import precision_words

if TYPE_CHECKING:
    import xarray as xr

DASK_BLOCK = 1 << 27  # bytes of one layer's tokens in a dask block: large enough to keep graphs small
COLUMNS = ["model", "stream", "prompts", "tokens", "bytes", "sealed", "path"]


def open_capture(path: Path, allow_unsealed: bool = False, by: str = "layer", lake: Files = HERE) -> xr.Dataset:
    """Open one capture as a lazy, dask-backed xarray.Dataset with dims token, boundary, layer, d_model, ...

    Same values as `xr.open_zarr(path)`; here coordinates are in memory, and a damaged chunk raises CorruptError with the
    file's name. A dask block holds one layer of many tokens, or with `by="token"` all layers of one shard's tokens.
    Raises LakeError for a missing or unsealed capture.
    """
    if by not in ("layer", "token"):
        raise LakeError(f"by={by!r}: expected layer (one layer of many tokens a block) or token (all layers of some)")
    import dask.array as da  # most of a second, with xarray, that only people who look at a capture need
    import xarray as xr

    capture = Capture(path, allow_unsealed, lake)
    # Of a copy of a part, and of a remote lake, a slice is not to cost more than the shard rows that it is in.
    apart = capture.partial is not None or lake.remote
    data: dict[str, Any] = {}
    coordinates: dict[str, Any] = {}
    for name, variable in VARIABLES.items():
        if name not in capture:
            continue
        array = capture.array(name)
        attributes = dict(array.array.attrs)
        if variable.per_prompt:
            data[name] = (variable.dims, array[...], attributes)
            continue
        if not variable.activation:
            coordinates[name] = (variable.dims, array[...], attributes)
            continue
        rows = _shard_rows(capture) if apart else _dask_rows(array)
        chunks = (rows, *((1,) if variable.layered else ()), *(-1,) * array.ndim)[: array.ndim]
        if by == "token":
            chunks = (_shard_rows(capture), *(-1,) * (array.ndim - 1))
        lazy = da.from_array(array, chunks=chunks, name=f"{name}-{by}-{path.stem}-{_token(path)}", asarray=False)
        data[name] = (variable.dims, lazy, attributes)
    # Earlier captures have nulls among them, which netCDF can't hold.
    attributes = {
        key: value for key, value in capture.group.attrs.items() if key != "coordinates" and value is not None
    }
    return xr.Dataset(data, coordinates, attributes)


def prompts_of(found: xr.Dataset, prompt_ids: Sequence[str]) -> xr.Dataset:
    """The tokens of some prompts of a capture, by id; LakeError for one that it does not hold."""
    known = {str(name): place for place, name in enumerate(found["prompt_id"].values.tolist())}
    if lost := [name for name in prompt_ids if name not in known]:
        near = ", ".join(get_close_matches(lost[0], known, 3)) or ", ".join(list(known)[:3])
        raise LakeError(f"no prompt {lost[0]!r} among the {len(known)} of this capture; did you mean {near}?")
    kept = np.flatnonzero(np.isin(found["prompt"].values, [known[name] for name in prompt_ids]))
    runs = kept[0] + len(kept) == kept[-1] + 1 if len(kept) else False
    return found.isel(token=slice(int(kept[0]), int(kept[-1]) + 1) if runs else kept)


def _token(path: Path) -> str:
    manifest = read_manifest(path)
    return manifest["capture_sha256"][:16] if manifest else str(path.stat().st_mtime_ns)


def _shard_rows(capture: Capture) -> int:
    """Tokens of a shard, the same for all activations."""
    arrays = (capture.group[name] for name, variable in VARIABLES.items() if variable.activation and name in capture)
    return next((array.shards or array.chunks)[0] for array in arrays if isinstance(array, zarr.Array))


def _dask_rows(array: CheckedArray) -> int:
    """Rows of a dask block: whole shards, about DASK_BLOCK bytes of one layer."""
    shard = (array.array.shards or array.array.chunks)[0]
    row = 4 * array.shape[-1]
    return min(array.shape[0], max(shard, DASK_BLOCK // row // shard * shard)) or 1


class Capture:
    """One sealed capture: its manifest, its coordinates in memory and its arrays behind the check."""

    def __init__(self, path: Path, allow_unsealed: bool = False, lake: Files = HERE):
        self.path, self.lake, self.manifest = path, lake, check_sealed(path, allow_unsealed)
        lake.bring_capture(path, self.manifest)
        self.partial = read_partial(path, self.manifest) if self.manifest else None
        self._record = self.manifest or _template(path)

    @cached_property
    def group(self) -> zarr.Group:
        """The Zarr group, opened and compared with the record when it is first used."""
        files = self.manifest.get("files", {})
        sizes = {name: entry["bytes"] for name, entry in files.items()}
        group, arrays = open_group(self.path, files["zarr.json"]["sha256"] if files else None, sizes)
        _check_variables(self.path, arrays, self._record)
        return group

    @property
    def layers(self) -> int:
        """Blocks of the model that it was made with."""
        return len(self._record["layers"])

    @property
    def precision(self) -> dict[str, str]:
        """Variable -> int8 or fp8, to which its values were rounded."""
        return dict(self._record.get("precision", {}))

    def size(self, name: str) -> tuple[int, ...]:
        """Shape of what a site keeps of a token, as recorded: no array is opened."""
        return tuple(self._record["sizes"][name])

    def array(self, name: str) -> CheckedArray:
        """An array by its name in DESIGN 3, read by slicing."""
        if self.partial and name not in self and name in self.group:
            raise LakeError(f"{self.path}: this copy lacks {name}", repair=f"{pull_of(self.path.parents[2])} brings it")
        files = {**self.manifest.get("files", {}), **(self.partial.files if self.partial else {})}
        array = checked(self.path, self.group, name, bool(self.manifest), files, self.lake)
        return array.only(self.partial.holds.get(name) if self.partial else None)

    def __contains__(self, name: str) -> bool:
        """Whether the capture has an array, and this copy at least a part of it."""
        variable = VARIABLES.get(name)
        if variable is None or not variable.activation:
            return name in self.group
        return name in self._record["sizes"] and not (self.partial and name not in self.partial.holds)

    def columns(self) -> dict[str, np.ndarray]:
        """The token coordinates plus prompt_id and category per token, as arrays of equal length."""
        columns = {name: self.array(name)[:] for name in TOKEN_COORDS if name in self}
        columns = {name: np.full(self.n_tokens, UNKNOWN[name], np.int32) for name in LATER - columns.keys()} | columns
        prompt, count = columns["prompt"], self.array("prompt_id").shape[0]
        if len(prompt) and not 0 <= prompt.min() <= prompt.max() < count:
            raise CorruptError(
                f"{self.path / 'prompt'}: found prompts {prompt.min()} to {prompt.max()}, expected 0 to {count - 1}",
                repair=RESTORE,
            )
        for name in ("prompt_id", "category"):
            columns[name] = self.array(name)[:].astype(object)[columns["prompt"]]
        return columns

    def offset(self) -> np.ndarray:
        """Prompt p owns tokens offset[p]:offset[p+1]; int64 [prompts + 1], ascending from 0 to the number of tokens."""
        found = self.array("offset")[:]
        if not len(found) or found[0] != 0 or found[-1] != self.n_tokens or np.any(np.diff(found) < 0):
            raise CorruptError(
                f"{self.path / 'offset'}: found other places than ascending ones from 0 to {self.n_tokens}",
                repair=RESTORE,
            )
        return found

    @property
    def n_tokens(self) -> int:
        """Length of the token axis."""
        return int(self._record["n_tokens"])

    @property
    def sha256(self) -> str:
        """The hash of the capture's record, which stands for all of it; empty while it is not sealed."""
        return str(self.manifest.get(SEAL, ""))


def _template(path: Path) -> dict[str, Any]:
    try:
        return read_record(path / PROGRESS / TEMPLATE, "template")
    except LakeError:
        if manifest := read_manifest(path):  # another rank has just sealed it
            return manifest
        raise


def _check_variables(path: Path, arrays: Mapping[str, Described], record: Mapping[str, Any]) -> None:
    """Raise CorruptError unless the variables have the axes, lengths and types that the manifest or template says."""
    layers = len(record["layers"])
    lengths = {
        "token": record["n_tokens"],
        "prompt": record["n_prompts"],
        "prompt_edge": record["n_prompts"] + 1,
        "boundary": len(record["boundaries"]),
        "layer": layers,
        "lens_layer": layers + 1,
    }
    check_dims(path, arrays, {name: variable.dims for name, variable in VARIABLES.items()}, lengths)
    for name, variable in VARIABLES.items():
        size = record["sizes"].get(name)
        there, wanted = arrays.get(name), variable.coordinate or size is not None
        if there is None and not wanted:
            continue
        rows, shape = record["shard_tokens"] if variable.activation else None, list(there.shape[1:]) if there else []
        found = _in_words(there.dtype, shape, there.shard) if there else "nothing"
        expected = _in_words(variable.dtype, shape if size is None else size, rows)
        if found != expected:
            raise CorruptError(f"{path / 'zarr.json'}: {name}: found {found}, expected {expected}", repair=RESTORE)


def _in_words(dtype: str, size: Sequence[int], shard: int | None) -> str:
    """An array in words; `size` is its shape without the first axis."""
    return f"{dtype} of {list(size)} a row, {f'in shards of {shard} rows' if shard else 'not sharded'}"


def check_sealed(path: Path, allow_unsealed: bool = False) -> dict[str, Any]:
    """The manifest of the capture at `path`; LakeError unless it is sealed or that is allowed (then it is empty)."""
    if not path.is_dir():
        raise LakeError(f"{path}: no such capture", repair="`actlake ls` shows what the lake has")
    manifest = read_manifest(path)
    if manifest is None and not allow_unsealed:
        raise LakeError(
            f"{path}: this capture is not sealed (it was interrupted or is still running)",
            repair="run the same `actlake capture` command again to finish it",
        )
    if manifest:
        check_list(manifest, path / MANIFEST)
    return manifest or {}


def list_captures(layout: Layout, models: Iterable[str] | None = None) -> pd.DataFrame:
    """Every capture of the lake, or of some models: model, stream, prompts, tokens, bytes on disk, sealed, path; where there
    are copies of a part, what they lack, and where values depend on the batch far more than rounding does, or were rounded, a
    warning."""
    rows, there = [], layout.root / "captures"
    for path in sorted(
        path for model in (["*"] if models is None else models) for path in there.glob(f"{model}/*.zarr")
    ):
        row: dict[str, Any] = {"model": path.parts[-2], "stream": path.stem}
        for what, name in row.items():
            check_name(name, f"{path}: {what}")
        if sealed := (path / MANIFEST).exists():
            row |= _sizes(path / MANIFEST, mark_of(path / PARTIAL))
        else:
            row |= {"prompts": 0, "tokens": 0, "bytes": bytes_below(path), "lacks": "", "warning": ""}
        rows.append({**row, "sealed": sealed, "path": str(path)})
    # A copy that lacks something is the exception, and so is the column; likewise a warning.
    exceptions = [name for name in ("lacks", "warning") if any(row[name] for row in rows)]
    return pd.DataFrame(rows, columns=[*COLUMNS, *exceptions]).astype({"sealed": bool})  # of an empty lake, too


def captured_streams(layout: Layout, models: Iterable[str] | None = None) -> dict[str, set[str]]:
    """Model -> the streams that it has sealed captures on, of all models or of some; no manifest is read."""
    found: dict[str, set[str]] = {}
    for model in ["*"] if models is None else models:
        for file in layout.root.glob(f"captures/{model}/*.zarr/{MANIFEST}"):
            found.setdefault(file.parts[-3], set()).add(file.parent.stem)
    return found


@while_same(1 << 14)
def _sizes(file: Path, _partial: tuple[int, ...]) -> dict[str, Any]:
    """Prompts, tokens, bytes, what a copy lacks and a warning of a capture with this manifest, which may be of megabytes."""
    path = file.parent
    manifest = read_manifest(path) or {}
    partial = read_partial(path, manifest) if manifest else None
    sizes = {"prompts": manifest["n_prompts"], "tokens": manifest["n_tokens"], "bytes": manifest["bytes"]}
    said = ["noisy"] if manifest and noise_warning(manifest) else []
    said += [f"rounded ({words})"] if (words := precision_words(manifest)) else []
    warning = f"{', '.join(said)}: `actlake show` says more" if said else ""
    return {**sizes, "lacks": partial.lacks(manifest) if partial else "", "warning": warning}


def capture_names(layout: Layout, model: str) -> dict[str, str]:
    """Stream name -> stream name of the capture that holds it, for one model; aliases of equal content included."""
    there = {path.stem for path in layout.capture(model, "x").parent.glob("*.zarr")}
    mine = str(read_model(layout, model)["sha256"]) if has_model(layout, model) else ""
    names = {
        record["name"]: record["same_as"]
        for record in stream_records(layout, there)
        if record["same_as"] in there and (reads(record, mine) or not mine)
    }
    return names | {name: name for name in there - set(names.values())}


def split_capture(name: str) -> tuple[str, str]:
    """'MODEL/STREAM' or 'PAIR/ROLE/STREAM' -> the model's name and the stream's, which may be shortened, or left out of a model
    with one capture."""
    model, _, stream = name.partition("/")
    role, _, rest = stream.partition("/")
    return (f"{model}/{role}", rest) if role in VARIANTS else (model, stream)


def find_capture(layout: Layout, model: str, stream: str) -> Path:
    """The capture of a model whose stream name starts with `stream`; LakeError if none or several do."""
    names = capture_names(layout, model)
    whole = stream in {*names, *names.values()}
    exact = {names.get(stream, stream)} if whole else {names[name] for name in names if name.startswith(stream)}
    if not names and not stream:
        raise LakeError(f"no capture of {model}; `actlake capture {model}` makes one")
    if len(exact) != 1:
        have = ", ".join(sorted(names)) or "none"
        problem = "no capture" if not exact else "several captures"
        raise LakeError(
            f"{problem} of {model} on a stream that starts with {stream!r}; captured streams: {have}",
            repair="" if exact else f"`actlake capture {model} --stream {stream.split('-')[0]}` makes it",
        )
    return layout.capture(model, exact.pop())
