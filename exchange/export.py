"""Captures in the formats of other tools: safetensors, npy, Parquet, Arrow, netCDF; streamed, whole or not at all."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..store.artifacts.streams import Stream, read_stream
from ..store.captures.manifest import say_warnings
from ..store.captures.reader import Capture, open_capture
from ..store.core.errors import LakeError, check_limit
from ..store.core.files import explain_full_disk, free_bytes, human_bytes, temporary_of
from ..store.core.progress import Bar, Estimate, bar
from ..store.core.schema import SITES
from ..store.format.paths import Layout

SPEED = 200e6  # bytes of values that are read and written in a second
Rows = Iterator[tuple[int, dict[str, np.ndarray]]]  # prompt, site -> values [tokens, places, d]


@dataclass(frozen=True)
class Part:
    """What of a capture is exported: its stream, the first `prompts` of it, and the places of each site (boundary or layer)."""

    stored: Capture
    stream: Stream
    prompts: int
    places: dict[str, list[int]]

    @property
    def tokens(self) -> int:
        """Tokens of these prompts."""
        return int(self.stream.offset[self.prompts])

    @property
    def widened(self) -> bool:
        """Whether the values are bfloat16."""
        return bool(self.stored.manifest["source_dtype"] == "bfloat16")

    def size(self, itemsize: int = 4) -> int:
        """Bytes of the values."""
        width = self.stored.manifest["sizes"]
        return self.tokens * itemsize * sum(len(places) * prod(width[site][1:]) for site, places in self.places.items())

    def rows(self, progress: Bar) -> Rows:
        """The values prompt by prompt, float32."""
        at = {site: self._numbers(site) for site in self.places}
        for prompt in range(self.prompts):
            span = slice(int(self.stream.offset[prompt]), int(self.stream.offset[prompt + 1]))
            held = {
                site: np.stack([self.stored.array(site)[span, at[site].index(one)] for one in places], axis=1)
                for site, places in self.places.items()
            }
            progress.advance(span.stop - span.start)
            yield prompt, held

    def _numbers(self, site: str) -> list[int]:
        return list(self.stored.manifest["boundaries" if site == "resid" else "layers"])


def export(
    layout: Layout,
    path: Path,
    format: str,
    out: Path,
    sites: Sequence[str] = (),
    boundaries: Sequence[int] = (),
    limit: int | None = None,
    show: Callable[[Estimate], None] | None = None,
) -> Path:
    """Write a sealed capture, or a part of it, to a new file or folder in another format; returns where.

    `show` is called with the size before anything is written. Raises LakeError for what the capture does not hold, for a place
    that is taken, and for a disk without room.
    """
    if format not in FORMATS:
        raise LakeError(f"format {format!r}", expected=f"one of {', '.join(FORMATS)}")
    if out.exists():
        raise LakeError(f"{out}: is there already, and nothing is overwritten; name another place")
    check_limit(limit)
    part = _part(layout, path, sites, boundaries, limit)
    say_warnings(layout, [(path.parent.name, path.stem)])
    size = part.size(2 if format == "safetensors" and part.widened else 4)
    if show:
        show(
            Estimate(
                f"export {path.parent.name}/{path.stem} to {out}",
                size,
                part.size() / SPEED,
                counts={"tokens": part.tokens},
            )
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    if size > (free := free_bytes(out.parent)):
        raise LakeError(f"{out}: the export needs {human_bytes(size)}, {human_bytes(free)} are free")
    made = temporary_of(out)
    try:
        with explain_full_disk(f"exporting to {out}"), bar(f"export {path.parent.name}", part.tokens) as progress:
            FORMATS[format](part, made, progress)
            os.rename(made, out)
    finally:
        shutil.rmtree(made, ignore_errors=True) if made.is_dir() else made.unlink(missing_ok=True)
    return out


def _part(layout: Layout, path: Path, sites: Sequence[str], boundaries: Sequence[int], limit: int | None) -> Part:
    stored = Capture(path, lake=layout.files)
    stream, there = (
        read_stream(layout, stored.manifest["stream"]),
        [name for name in SITES if name in stored.manifest["sizes"]],
    )
    if wrong := [site for site in sites if site not in there]:
        raise LakeError(
            f"{path}: site {wrong[0]}", expected=f"one of {', '.join(there) or 'none: it holds no activations'}"
        )
    chosen, held = [site for site in there if site in sites or not sites], stored.manifest["boundaries"]
    if wrong_one := [one for one in boundaries if one not in held]:
        raise LakeError(f"{path}: boundary {wrong_one[0]}", expected=f"one of {', '.join(map(str, held))}")
    if not chosen:
        raise LakeError(f"{path}: holds no activations, only numbers of tables")
    places = {"resid": [one for one in held if one in boundaries or not boundaries]}
    prompts = len(stream.starts) if limit is None else min(limit, len(stream.starts))
    return Part(stored, stream, prompts, {site: places.get(site, list(stored.manifest["layers"])) for site in chosen})


def _safetensors(part: Part, out: Path, progress: Bar) -> None:
    """A file a prompt, as `actlake import vllm` reads them: token_ids, hidden_states [tokens, boundaries, d], other sites."""
    out.mkdir()
    digits = len(str(part.prompts))
    for prompt, held in part.rows(progress):
        arrays = {"token_ids": ("I32", np.asarray(part.stream.tokens[prompt], "<i4"))}
        for site, values in held.items():
            name = "hidden_states" if site == "resid" else site
            bits = (values.view(np.uint32) >> 16).astype("<u2") if part.widened else values.astype("<f4", copy=False)
            arrays[name] = ("BF16" if part.widened else "F32", bits)
        facts = {"prompt_id": part.stream.prompt_ids[prompt], "boundaries": json.dumps(part.places.get("resid", []))}
        _write_safetensors(out / f"{prompt:0{digits}d}.safetensors", arrays, facts)


def _write_safetensors(file: Path, arrays: dict[str, tuple[str, np.ndarray]], facts: dict[str, str]) -> None:
    header, at = {"__metadata__": facts}, 0
    entries = dict[str, object](header)
    for name, (dtype, values) in arrays.items():
        entries[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": [at, at + values.nbytes]}
        at += values.nbytes
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as opened:
        opened.write(len(text).to_bytes(8, "little") + text)
        for _, values in arrays.values():
            opened.write(np.ascontiguousarray(values).data)


def _npy(part: Part, out: Path, progress: Bar) -> None:
    """A folder a site with an array [tokens, d] a layer, beside tokens.npy and lengths.npy; each can be mapped."""
    out.mkdir()
    offset = part.stream.offset[: part.prompts + 1]
    np.save(out / "tokens.npy", np.concatenate(part.stream.tokens[: part.prompts]).astype(np.int32))
    np.save(out / "lengths.npy", np.diff(offset))
    (out / "prompt_ids.json").write_text(json.dumps(list(part.stream.prompt_ids[: part.prompts]), ensure_ascii=False))
    maps = dict[str, list[np.memmap]]()
    for site, places in part.places.items():
        (out / site).mkdir()
        shape = (part.tokens, *part.stored.manifest["sizes"][site][1:])
        maps[site] = [np.lib.format.open_memmap(out / site / f"{one}.npy", "w+", np.float32, shape) for one in places]
    for prompt, held in part.rows(progress):
        for site, values in held.items():
            for place, target in enumerate(maps[site]):
                target[offset[prompt] : offset[prompt + 1]] = values[:, place]
    for one in (target for targets in maps.values() for target in targets):
        one.flush()


def _schema(part: Part) -> pa.Schema:
    width = part.stored.manifest["sizes"]
    columns = [
        (f"{site}_{one}", pa.list_(pa.list_(pa.float32(), prod(width[site][1:]))))
        for site, places in part.places.items()
        for one in places
    ]
    return pa.schema([("prompt_id", pa.string()), ("token_ids", pa.list_(pa.int32())), *columns])


def _tables(part: Part, progress: Bar) -> Iterator[pa.RecordBatch]:
    """A batch a prompt: a column a layer, each cell the tokens' vectors as lists of fixed size."""
    schema = _schema(part)
    for prompt, held in part.rows(progress):
        edges = pa.array([0, len(part.stream.tokens[prompt])], pa.int32())
        tokens = pa.array([part.stream.tokens[prompt]], pa.list_(pa.int32()))
        columns: list[pa.Array] = [pa.array([part.stream.prompt_ids[prompt]]), tokens]
        for values in held.values():
            for place in range(values.shape[1]):
                flat = values[:, place].reshape(-1)
                rows = pa.FixedSizeListArray.from_arrays(pa.array(flat), prod(values.shape[2:]))
                columns.append(pa.ListArray.from_arrays(edges, rows))
        yield pa.RecordBatch.from_arrays(columns, schema=schema)


def _parquet(part: Part, out: Path, progress: Bar) -> None:
    with pq.ParquetWriter(out, _schema(part), compression="zstd") as writer:
        for batch in _tables(part, progress):
            writer.write_batch(batch)


def _arrow(part: Part, out: Path, progress: Bar) -> None:
    with pa.OSFile(str(out), "wb") as sink, pa.ipc.new_stream(sink, _schema(part)) as writer:
        for batch in _tables(part, progress):
            writer.write_batch(batch)


def _netcdf(part: Part, out: Path, progress: Bar) -> None:
    """netCDF 3, which scipy writes: below 2 GiB, coordinates and attributes included."""
    if part.size() >= 2**31:
        raise LakeError(
            f"{human_bytes(part.size())} for netCDF 3, which ends at 2 GiB", repair="export fewer --boundary or --limit"
        )
    found = open_capture(part.stored.path).isel(token=slice(0, part.tokens), prompt=slice(0, part.prompts))
    found = found.isel(prompt_edge=slice(0, part.prompts + 1)) if "prompt_edge" in found.dims else found
    kept = found[list(part.places)]
    if "resid" in part.places:
        kept = kept.sel(boundary=part.places["resid"])
    kept.to_netcdf(out, engine="scipy")
    progress.advance(part.tokens)


FORMATS: dict[str, Callable[[Part, Path, Bar], None]] = {
    "safetensors": _safetensors,
    "npy": _npy,
    "parquet": _parquet,
    "arrow": _arrow,
    "netcdf": _netcdf,
}
