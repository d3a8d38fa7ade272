"""Writing a capture: allocate everything first, then commit one shard row after the other.

Shard row s is the shards of every variable that hold tokens s*S to (s+1)*S. It is written whole, flushed to disk,
and only then recorded in `.progress/`; killing the process at any moment loses at most the rows not recorded.
"""

import errno
import hashlib
import io
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec

from ..artifacts.streams import Stream
from ..core.errors import CorruptError, LakeError
from ..core.files import full_disk, json_bytes, temporary_of, try_lock, write_json
from ..core.schema import (
    FORMAT_VERSION,
    MANIFEST,
    PROGRESS,
    TEMPLATE,
    TOKEN_COORDS,
    VARIABLES,
    chunk_tokens,
    shard_tokens,
)
from ..format.npz import REPAIR as NPZ_REPAIR
from ..format.npz import read_npz
from ..format.records import read_record
from ..format.shards import Encoded, Grid
from ..format.zarr_groups import compressors, quiet_zarr
from ..remote.files import HERE, Files

WRITERS = 3  # files of a row that are written side by side
DEPTH = 2  # shard rows that are encoded or written at the same time
PromptValues = dict[str, dict[int, np.ndarray]]  # variable -> prompt -> values


@dataclass(frozen=True)
class Template:
    """Everything that fixes a capture's arrays before the first forward.

    `sizes` maps variable name -> shape after the token axis, for instance {"resid": (7, 192)}; `boundaries` and
    `layers` are the coordinate values. `source_dtype` is the model's dtype; `provenance` goes into the manifest as it
    is. `per_prompt` names variables of one value a prompt, whose shape is known at sealing.
    """

    stream: Stream
    sizes: dict[str, tuple[int, ...]]
    boundaries: tuple[int, ...]
    layers: tuple[int, ...]
    source_dtype: str
    provenance: dict[str, Any]
    shard: int | None = None
    per_prompt: tuple[str, ...] = ()

    @property
    def bytes_per_token(self) -> dict[str, int]:
        """Raw bytes a token takes in each activation variable (every one is 4 bytes wide)."""
        return {name: 4 * int(np.prod(size, dtype=np.int64)) for name, size in self.sizes.items()}

    @property
    def shard_tokens(self) -> int:
        """Tokens in a shard, the same for all variables so that a shard row is one range of tokens."""
        return self.shard or shard_tokens(max(self.bytes_per_token.values(), default=0))

    @property
    def n_shards(self) -> int:
        """Number of shard rows."""
        return -(-self.stream.n_tokens // self.shard_tokens)

    def record(self) -> dict[str, Any]:
        """JSON record of the template; two templates with equal records make the same store."""
        return {
            "format_version": FORMAT_VERSION,
            "stream": self.stream.name,
            "content_sha256": self.stream.content_sha256,
            "n_prompts": len(self.stream.prompt_ids),
            "n_tokens": self.stream.n_tokens,
            "sizes": {name: list(size) for name, size in sorted(self.sizes.items())},
            "boundaries": list(self.boundaries),
            "layers": list(self.layers),
            "source_dtype": self.source_dtype,
            "shard_tokens": self.shard_tokens,
            "provenance": self.provenance,
            **({"per_prompt": list(self.per_prompt)} if self.per_prompt else {}),
        }


def _create_activation(group: zarr.Group, template: Template, name: str, size: tuple[int, ...]) -> None:
    variable = VARIABLES[name]
    # Layered variables are chunked one layer at a time; the rest keep their whole row together.
    inner = (1, *size[1:]) if len(size) > 1 else size
    chunk = chunk_tokens(template.shard_tokens, 4 * int(np.prod(inner, dtype=np.int64)))
    floating = variable.dtype.startswith("float")
    attributes: dict[str, Any] = {"long_name": variable.long_name}
    if floating:
        attributes["units"] = variable.unit
    if floating and not variable.derived:
        attributes["source_dtype"] = template.source_dtype
        if template.source_dtype == "bfloat16":
            attributes["lossless_cast"] = "bfloat16"
    group.create_array(
        name,
        shape=(template.stream.n_tokens, *size),
        dtype=variable.dtype,
        chunks=(chunk, *inner),
        shards=(template.shard_tokens, *size),
        compressors=compressors(),
        fill_value=np.nan if floating else -1,  # nothing unwritten may pass for a value
        dimension_names=variable.dims,
        attributes=attributes,
        config={"write_empty_chunks": True},
    )


def _create_coordinate(
    group: zarr.Group, name: str, values: np.ndarray, attributes: dict[str, Any] | None = None
) -> None:
    variable = VARIABLES[name]
    fill: dict[str, Any] = {"fill_value": np.nan} if variable.per_prompt else {}
    array = group.create_array(
        name,
        shape=values.shape,
        dtype=variable.dtype,
        chunks=values.shape,
        compressors=[Crc32cCodec()] if variable.dtype == "string" else compressors(),
        dimension_names=variable.dims,
        attributes={"long_name": variable.long_name, **(attributes or {})},
        config={"write_empty_chunks": True},
        **fill,
    )
    array[...] = values


def create_capture(path: Path, template: Template, world: int = 1, lake: Files = HERE) -> None:
    """Allocate all arrays and coordinates of a capture, or check that the ones there belong to the same template.

    Several ranks may do so at once: each allocates in a folder of its own, and the first to rename it wins. One that is
    sealed already is left as it is. Raises LakeError when the capture at `path` has another configuration, or was started
    by another number of ranks.
    """
    with lake.start(path):
        # Without the marker nothing can have been recorded: it is left over from an interrupted run.
        wreck = path.exists()
        if _same_capture(path, template, world):
            return
        if not wreck:
            return _create(path, template, world, lake)
        with try_lock(wreck_lock(path), wait=True):  # whoever comes second finds no wreck, but the first one's capture
            if not _same_capture(path, template, world):
                shutil.rmtree(path, ignore_errors=True)
                _create(path, template, world, lake)


def wreck_lock(path: Path) -> Path:
    """The file beside a capture that is locked while a wreck in its place is replaced; it goes when the capture is sealed."""
    return path.with_name(f".{path.name}.lock")


def _create(path: Path, template: Template, world: int, lake: Files) -> None:
    """Allocate a capture where none is, unless another process does so first."""
    temporary = temporary_of(path)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        _allocate(temporary, template)
        write_json(temporary / PROGRESS / TEMPLATE, {**template.record(), "world": world})
        if not lake.move_in(temporary, path, f"{PROGRESS}/{TEMPLATE}"):
            lake.renew(path)  # another machine's rank was first
            _same_capture(path, template, world)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        _same_capture(path, template, world)  # another rank was first
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _same_capture(path: Path, template: Template, world: int) -> bool:
    """True when a capture of this template is there, sealed (by another rank meanwhile) or not; LakeError for another one."""
    marker, record = path / PROGRESS / TEMPLATE, template.record()
    try:
        found = read_record(marker, "template")
    except LakeError:
        if not (path / MANIFEST).exists():
            if marker.exists():
                raise
            return False
        manifest = read_record(path / MANIFEST, "manifest")
        if keys := [key for key in record if manifest.get(key) != record[key]]:
            raise LakeError(
                f"{path}: this capture is sealed with another configuration ({', '.join(keys)} differ) and never changes; use"
                " another lake"
            ) from None
        return True
    started = found.pop("world", 1)
    if found != record:
        keys = [key for key in record if found.get(key) != record[key]]
        raise LakeError(
            f"{path}: an unfinished capture with another configuration is there ({', '.join(keys)} differ): finish it"
            " with the command that started it, or delete the folder"
        )
    if started != world:
        raise LakeError(
            f"{path}: this capture was started by {started} ranks, now there are {world}: finish it with --world {started}"
            " (its ranks may run one after the other), or delete the folder"
        )
    return True


def _allocate(path: Path, template: Template) -> None:
    stream = template.stream
    with quiet_zarr():
        group = zarr.create_group(
            path,
            zarr_format=3,
            attributes={
                "format": "actlake",
                "format_version": FORMAT_VERSION,
                "stream": stream.name,
                "coordinates": " ".join([*TOKEN_COORDS, "prompt_id", "category", "offset"]),
                **template.provenance,
            },
        )
        for name, size in template.sizes.items():
            _create_activation(group, template, name, size)
        for name in TOKEN_COORDS:
            _create_coordinate(group, name, stream.columns[name])
        _create_coordinate(group, "prompt_id", np.asarray(stream.prompt_ids, dtype=object))
        _create_coordinate(group, "category", np.asarray(stream.categories, dtype=object))
        _create_coordinate(group, "offset", stream.offset)
        _create_coordinate(group, "boundary", np.asarray(template.boundaries, dtype=np.int32))
        _create_coordinate(group, "layer", np.asarray(template.layers, dtype=np.int32))
        if any(VARIABLES[name].dims[-1] == "lens_layer" for name in template.sizes):
            _create_coordinate(group, "lens_layer", np.arange(-1, len(template.layers), dtype=np.int32))


def shard_record(path: Path, shard: int) -> Path:
    """File whose existence says that a shard row is complete and on disk."""
    return path / PROGRESS / f"shard-{shard:06d}.json"


def prompt_file(path: Path, shard: int) -> Path:
    """Per-prompt values that came with a shard row: `.progress/prompts-NNNNNN.npz`, replaced by arrays at sealing."""
    return path / PROGRESS / f"prompts-{shard:06d}.npz"


def write_prompts(path: Path, shard: int, values: PromptValues, lake: Files = HERE) -> None:
    """Keep the per-prompt values (variable -> prompt -> array) of the prompts whose last prompt token a row holds."""
    arrays: dict[str, Any] = {
        f"{name}/{part}": np.asarray(value)
        for name, found in values.items()
        for part, value in (("prompt", sorted(found)), ("values", [found[prompt] for prompt in sorted(found)]))
    }
    data = io.BytesIO()
    np.savez(data, **arrays)
    lake.write(prompt_file(path, shard), data.getvalue())


def gather_prompts(path: Path, names: Sequence[str], n_prompts: int) -> None:
    """Make one array [prompt, ...] of each per-prompt variable from what came with the shard rows; NaN where none did."""
    files = [read_npz(file) for file in sorted((path / PROGRESS).glob("prompts-*.npz"))]
    for name in names:
        rows = [_rows_of(f, name, n_prompts, path) for f in files]
        rows = [row for row in rows if len(row[0])]
        if not rows or len({values.shape[1:] for _, values in rows}) != 1:
            raise CorruptError(f"{path / PROGRESS}: found no values of {name}, or of several shapes; {NPZ_REPAIR}")
        whole = np.full((n_prompts, *rows[0][1].shape[1:]), np.nan, dtype=np.float32)
        for prompts, values in rows:
            whole[prompts] = values
        shutil.rmtree(path / name, ignore_errors=True)  # a kill may have left a part
        with quiet_zarr():
            group = zarr.open_group(path, mode="r+", use_consolidated=False)
            _create_coordinate(group, name, whole, {"units": VARIABLES[name].unit})


def _rows_of(file: Mapping[str, np.ndarray], name: str, n_prompts: int, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Prompts and values [prompts, ...] of a variable in one file of prompts."""
    empty = np.empty(0)
    prompts, values = (file.get(f"{name}/{part}", empty) for part in ("prompt", "values"))
    fits = prompts.ndim == 1 and len(prompts) == len(values) and values.dtype.kind == "f"
    if len(prompts) and not (fits and prompts.dtype.kind == "i" and 0 <= prompts.min() <= prompts.max() < n_prompts):
        raise CorruptError(f"{path / PROGRESS}: {name}: expected a value for prompts below {n_prompts}; {NPZ_REPAIR}")
    return prompts, values


def missing_shards(path: Path, n_shards: int) -> list[int]:
    """Shard rows not recorded yet, ascending."""
    return [shard for shard in range(n_shards) if not shard_record(path, shard).exists()]


def shard_file(path: Path, name: str, shard: int) -> Path:
    """File of one shard: `c/SHARD/0/0...` under the array's folder, since a shard holds all of the other dimensions."""
    return path.joinpath(name, "c", str(shard), *["0"] * (len(VARIABLES[name].dims) - 1))


def grid_of(group: zarr.Group, name: str) -> Grid:
    """How a variable that this module allocated is cut into shards and chunks."""
    array = group[name]
    assert isinstance(array, zarr.Array)
    grid = Grid.of(array)
    assert grid is not None
    return grid


def encode_row(grids: dict[str, Grid], blocks: dict[str, np.ndarray]) -> dict[str, Encoded]:
    """Encode one shard row on all cores: variable -> its shard in memory."""
    return {name: grids[name].encode(block) for name, block in blocks.items()}


def write_row(path: Path, shard: int, row: dict[str, Encoded], lake: Files = HERE) -> dict[str, Any]:
    """Write an encoded shard row to disk, flush it, and return the SHA-256 and bytes of its files."""

    def write(name: str) -> tuple[str, dict[str, Any]]:
        file = shard_file(path, name, shard)
        digest, sizes = hashlib.sha256(), list[int]()

        def hear(piece: bytes | memoryview) -> None:
            digest.update(piece)
            sizes.append(len(piece))

        lake.write_shard(file, row[name].pieces, hear)
        return file.relative_to(path).as_posix(), {"sha256": digest.hexdigest(), "bytes": sum(sizes)}

    with ThreadPoolExecutor(WRITERS) as pool:  # one file waits for the disk while another is hashed
        return dict(pool.map(write, row))


def _statistics(shard: Encoded) -> dict[str, float | int | None]:
    """What the manifest says of a variable: smallest and largest finite value, None without any, and how many are not."""
    empty = shard.low > shard.high
    return {
        "min": None if empty else shard.low,
        "max": None if empty else shard.high,
        "nonfinite": shard.nonfinite,
    }


class ShardWriter:
    """Encodes shard rows on all cores and writes them, two at a time, while the model computes the next ones.

    `put` blocks when `depth` rows are under way, so memory stays bounded. With `wait` it also returns only when its row
    is encoded: a model that computes on the same cores would only get in the way. `check(shard, blocks)` is asked about
    rows with NaN or infinity and refuses by raising; `on_write(bytes)` hears of every row on disk; `recycle(shard)` says
    that a row's arrays are free again. Any error (full disk, ...) is raised again by the next `put` or by leaving the
    `with` block; rows recorded before it stay.
    """

    def __init__(
        self,
        path: Path,
        template: Template,
        depth: int = DEPTH,
        check: Callable[[int, dict[str, np.ndarray]], None] | None = None,
        on_write: Callable[[int], None] | None = None,
        recycle: Callable[[int], None] | None = None,
        wait: bool = False,
        lake: Files = HERE,
    ):
        self._path, self._template, self._wait, self._lake = path, template, wait, lake
        self._check, self._on_write, self._recycle = check, on_write, recycle
        group = zarr.open_group(path, mode="r", use_consolidated=False)
        self._grids = {name: grid_of(group, name) for name in template.sizes}
        self._room = threading.Semaphore(depth)
        self._rows = ThreadPoolExecutor(depth, thread_name_prefix="actlake-writer")
        self._under_way: list[Future] = []

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._rows.shutdown(wait=True)
        if kind is None:
            self._raise()

    def put(self, shard: int, blocks: dict[str, np.ndarray], prompts: PromptValues | None = None) -> None:
        """Hand over one shard row (float32, int32, or uint16 for bfloat16 bits; the writer's until `recycle`).

        `prompts` are per-prompt values of the prompts whose last prompt token lies in it.
        """
        self._raise()
        self._room.acquire()
        encoded = threading.Event()
        self._under_way.append(self._rows.submit(self._write, shard, blocks, prompts, encoded))
        if self._wait:
            encoded.wait()

    def _write(
        self, shard: int, blocks: dict[str, np.ndarray], prompts: PromptValues | None, encoded: threading.Event
    ) -> None:
        try:
            row = encode_row(self._grids, blocks)
            if self._check and any(row[name].nonfinite for name in row if not VARIABLES[name].gaps):
                self._check(shard, blocks)
            if self._recycle:
                self._recycle(shard)
            del blocks
            encoded.set()
            files = write_row(self._path, shard, row, self._lake)
            if prompts:
                write_prompts(self._path, shard, prompts, self._lake)
            statistics = {name: _statistics(variable) for name, variable in row.items()}
            done = {"shard": shard, "files": files, "statistics": statistics}
            self._lake.write(shard_record(self._path, shard), json_bytes(done))
            if self._on_write:
                self._on_write(sum(entry["bytes"] for entry in files.values()))
        finally:
            encoded.set()
            self._room.release()

    def _raise(self) -> None:
        failed = next((error for row in self._under_way if row.done() and (error := row.exception())), None)
        self._under_way = [row for row in self._under_way if not row.done() or row.exception()]
        if failed is None:
            return
        if isinstance(failed, OSError) and full_disk(failed):
            self._rows.shutdown(wait=True)  # count when the other row has come to its end
            done = self._template.n_shards - len(missing_shards(self._path, self._template.n_shards))
            raise LakeError(
                f"disk full while writing {self._path}: {done} of {self._template.n_shards} shards are safe; free some"
                " space and run the same command again to go on from there"
            ) from failed
        raise failed
