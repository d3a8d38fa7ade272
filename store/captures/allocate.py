"""A capture's arrays, allocated in one step before the first forward."""

import errno
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec

from ..artifacts.streams import Stream
from ..core.errors import LakeError
from ..core.files import temporary_of, try_lock, write_json
from ..core.schema import (
    FLAGS,
    FORMAT_VERSION,
    MANIFEST,
    PROGRESS,
    TEMPLATE,
    TOKEN_COORDS,
    VARIABLES,
    chunk_tokens,
    shard_tokens,
)
from ..format.records import read_record
from ..format.zarr_groups import compressors, quiet_zarr
from ..remote.files import HERE, Files


@dataclass(frozen=True)
class Template:
    """Everything that fixes a capture's arrays before the first forward.

    `sizes` maps variable name -> shape after the token axis, for instance {"resid": (7, 192)}; `boundaries` and
    `layers` are the coordinate values. `source_dtype` is the model's dtype; `provenance` goes into the manifest as it
    is. `per_prompt` names variables of one value a prompt, whose shape is known at sealing, `precision` to what variables are
    rounded.
    """

    stream: Stream
    sizes: dict[str, tuple[int, ...]]
    boundaries: tuple[int, ...]
    layers: tuple[int, ...]
    source_dtype: str
    provenance: dict[str, Any]
    shard: int | None = None
    per_prompt: tuple[str, ...] = ()
    precision: dict[str, str] = field(default_factory=dict)

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
            **({"precision": dict(sorted(self.precision.items()))} if self.precision else {}),
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
        if name in template.precision:
            attributes["precision"] = template.precision[name]
        if template.source_dtype == "bfloat16" or name in template.precision:
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


def create_coordinate(
    group: zarr.Group, name: str, values: np.ndarray, attributes: dict[str, Any] | None = None
) -> None:
    """Write a coordinate, or another array of known values, in one chunk."""
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
        if keys := [key for key in {**record, "precision": {}} if manifest.get(key) != record.get(key)]:
            raise LakeError(
                f"{path}: this capture is sealed with another configuration ({', '.join(keys)} differ) and never changes; use"
                " another lake"
            ) from None
        return True
    started = found.pop("world", 1)
    if found != record:
        keys = [key for key in {**record, **found} if found.get(key) != record.get(key)]
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
                # No null: netCDF, which xarray's users copy to, has none.
                **{key: value for key, value in template.provenance.items() if value is not None},
            },
        )
        for name, size in template.sizes.items():
            _create_activation(group, template, name, size)
        for name in TOKEN_COORDS:
            create_coordinate(group, name, stream.columns[name], FLAGS.get(name))
        create_coordinate(group, "prompt_id", np.asarray(stream.prompt_ids, dtype=object))
        create_coordinate(group, "category", np.asarray(stream.categories, dtype=object))
        create_coordinate(group, "offset", stream.offset)
        create_coordinate(group, "boundary", np.asarray(template.boundaries, dtype=np.int32))
        create_coordinate(group, "layer", np.asarray(template.layers, dtype=np.int32))
        if any(VARIABLES[name].dims[-1] == "lens_layer" for name in template.sizes):
            create_coordinate(group, "lens_layer", np.arange(-1, len(template.layers), dtype=np.int32))
