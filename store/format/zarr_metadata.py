"""Zarr metadata of a stranger's group: only what docs/FORMAT.md writes is handed to zarr, and only in plausible sizes."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from ..core.errors import RESTORE, CorruptError
from ..core.files import human_bytes, parse_json, read_json
from .records import LARGEST
from .rules import COUNT, FLAG, NUMBER, OBJECT, SOME, TEXT, VARIABLE, Rule, is_whole, misfit, one_of, whole

BYTES = {"float32": 4, "int32": 4, "int64": 8, "bool": 1, "string": 0}
FREE = 64 << 20  # decoded bytes of an array that need no reason
RATIO = 1 << 15  # the codec makes equal values 18,000 times smaller (1 MiB blocks of zstd level 1) and nothing more
CHUNK = 2**31 - 1  # decoded bytes of a chunk, Blosc's own limit
AXES = 6

_BYTES = {"name": one_of("bytes"), "configuration?": {"endian?": one_of("little")}}
_CRC = {"name": one_of("crc32c")}
_BLOSC = {
    "name": one_of("blosc"),
    "configuration": {
        "cname": one_of("zstd"),
        "clevel": whole(0, 9),
        "shuffle": one_of("noshuffle", "shuffle", "bitshuffle"),
        "typesize": whole(1, 255),
        "blocksize": whole(0, 2**30),
    },
}
_PLAIN = (_BYTES, _BLOSC, _CRC)
_SHARDED = (
    {
        "name": one_of("sharding_indexed"),
        "configuration": {
            "chunk_shape": [SOME],
            "codecs": _PLAIN,
            "index_codecs": (_BYTES, _CRC),
            "index_location": one_of("end"),
        },
    },
)
_TEXTS = ({"name": one_of("vlen-utf8")}, _CRC)


def _integer(bits: int) -> Rule:
    most = 2 ** (bits - 1)
    return Rule(f"a whole number of {bits} bits", lambda value: type(value) is int and -most <= value < most)


_FILLS = {
    "float32": Rule(
        "a number of 32 bits, NaN or Infinity",
        lambda value: (
            (NUMBER.fits(value) and abs(value) < 2.0**128)
            or (isinstance(value, str) and bool(re.fullmatch("NaN|-?Infinity|0x[0-9a-fA-F]{8}", value)))
        ),
    ),
    "int32": _integer(32),
    "int64": _integer(64),
    "bool": FLAG,
    "string": Rule("a short text", lambda value: isinstance(value, str) and len(value) <= 20),
}
_ARRAY = {
    "zarr_format": one_of(3),
    "node_type": one_of("array"),
    "shape": [whole(0, COUNT)],
    "data_type": one_of(*BYTES),
    "chunk_grid": {"name": one_of("regular"), "configuration": {"chunk_shape": [SOME]}},
    "chunk_key_encoding": {"name": one_of("default"), "configuration?": {"separator?": one_of("/")}},
    "attributes?": OBJECT,
    "dimension_names": [TEXT],
    "storage_transformers?": one_of([]),
}
_GROUP = {
    "zarr_format": one_of(3),
    "node_type": one_of("group"),
    "attributes?": OBJECT,
    "consolidated_metadata?": Rule("an object or null", lambda value: value is None or isinstance(value, dict)),
}
_CONSOLIDATED = {"kind": one_of("inline"), "metadata": {VARIABLE: OBJECT}}


@dataclass(frozen=True)
class Described:
    """What metadata say of an array: shape, names of its axes, dtype, and rows a shard holds, None when it has none."""

    shape: tuple[int, ...]
    dims: tuple[str, ...]
    dtype: str
    shard: int | None

    @property
    def bytes(self) -> int:
        """Decoded size; of texts, whose length nothing says, 0."""
        return prod(self.shape) * BYTES[self.dtype]


def describe_group(path: Path) -> dict[str, Described]:
    """Check the metadata of a Zarr group before zarr sees it; array name -> what it is.

    Only the codecs, types and layouts of docs/FORMAT.md pass. CorruptError names the file and what does not fit.
    """
    file = path / "zarr.json"
    group = _read(file, _GROUP)
    if found := group.get("consolidated_metadata"):
        if wrong := misfit(found, _CONSOLIDATED, "consolidated_metadata"):
            raise _refused(file, wrong)
        arrays = {name: (file, record) for name, record in found["metadata"].items()}
    else:  # not sealed yet: each array by itself
        each = sorted(path.glob("[!.]*/zarr.json"))
        arrays = {one.parent.name: (one, read_json(one, LARGEST, RESTORE)) for one in each}
    return {name: _described(where, name, record) for name, (where, record) in arrays.items()}


def check_array(data: bytes, where: str) -> None:
    """Check the metadata of one array as `describe_group` does."""
    try:
        _described(where, "array", parse_json(data))
    except ValueError as error:
        raise _refused(where, f"not valid JSON ({error})") from None


def _read(file: Path, rule: dict[str, Any]) -> dict[str, Any]:
    record = read_json(file, LARGEST, RESTORE)
    if wrong := misfit(record, rule):
        raise _refused(file, wrong)
    return dict(record)


def _refused(file: object, wrong: str) -> CorruptError:
    return CorruptError(f"{file}: {wrong}; {RESTORE}")


def _described(file: object, name: str, record: Any) -> Described:
    if wrong := (
        misfit(name, VARIABLE, "an array")
        or misfit(record, _ARRAY, name)
        or misfit(record.get("fill_value"), _FILLS[record["data_type"]], f"{name}.fill_value")
        or _codecs(record, name)
    ):
        raise _refused(file, wrong)
    shape, cut = record["shape"], record["chunk_grid"]["configuration"]["chunk_shape"]
    sharded = record["codecs"][0]["name"] == "sharding_indexed"
    inner = record["codecs"][0]["configuration"]["chunk_shape"] if sharded else cut
    size, dims = BYTES[record["data_type"]], record["dimension_names"]
    if not 0 < len(shape) <= AXES or not len(shape) == len(cut) == len(inner) == len(dims):
        wrong = f"{len(shape)} axes, {len(cut)} of a chunk, {len(dims)} names: expected as many of each, 1 to {AXES}"
    elif prod(shape) * size > COUNT or prod(inner) * max(size, 4) > CHUNK:
        wrong = f"shape {shape} in chunks {inner}: expected at most 2^53 bytes in chunks of at most {CHUNK} bytes"
    elif any(whole % part for whole, part in zip(cut, inner, strict=True)) or (sharded and cut[1:] != shape[1:]):
        wrong = (
            f"shards {cut} of chunks {inner} in shape {shape}: expected whole chunks, and shards as wide as the array"
        )
    else:
        return Described(tuple(shape), tuple(dims), record["data_type"], cut[0] if sharded else None)
    raise _refused(file, f"{name}: {wrong}")


def _codecs(record: dict[str, Any], name: str) -> str:
    """What of an array's codecs is not of the format."""
    found, at = record.get("codecs"), f"{name}.codecs"
    if record["data_type"] == "string":
        return misfit(found, _TEXTS, at)
    return misfit(found, _SHARDED if isinstance(found, list) and len(found) == 1 else _PLAIN, at)


def check_room(path: Path, arrays: Mapping[str, Described], sizes: Mapping[str, int] | None = None) -> None:
    """Raise CorruptError for an array that claims more bytes than its files can hold, before any are allocated.

    `sizes` are recorded bytes by file; without them the files are asked.
    """
    for name, array in arrays.items():
        if array.bytes <= FREE:
            continue
        stored = sum(_under(path, name) if sizes is None else _recorded(sizes, name))
        if array.bytes > RATIO * stored:
            raise _refused(
                path / "zarr.json",
                f"{name}: shape {list(array.shape)} is {human_bytes(array.bytes)}, found {human_bytes(stored)} stored: expected"
                f" {human_bytes(array.bytes / RATIO)} at least",
            )


def _under(path: Path, name: str) -> Iterable[int]:
    return (file.stat().st_size for file in (path / name).rglob("*") if file.is_file())


def _recorded(sizes: Mapping[str, int], name: str) -> Iterable[int]:
    return (size for file, size in sizes.items() if file.startswith(f"{name}/c"))


def check_dims(
    path: Path,
    arrays: Mapping[str, Described],
    dims: Mapping[str, tuple[str, ...]],
    known: Mapping[str, int] | None = None,
) -> None:
    """Raise CorruptError unless arrays have the axes in `dims`, and every axis one length: the `known` one, if there is any."""
    lengths = {name: (length, "the record") for name, length in (known or {}).items()}
    for name, array in arrays.items():
        if name not in dims:
            continue
        if array.dims != dims[name]:
            raise _refused(
                path / "zarr.json", f"{name}: axes {', '.join(array.dims)}, expected {', '.join(dims[name])}"
            )
        for axis, length in zip(array.dims, array.shape, strict=True):
            expected, where = lengths.setdefault(axis, (length, name))
            if length != expected:
                raise _refused(path / "zarr.json", f"{name}: {axis} {length}, expected {expected}, as {where} has it")


def lengths_of(record: Mapping[str, Any], axes: Mapping[str, str]) -> dict[str, int]:
    """Axis -> length, of those that a record states: `axes` says under which key."""
    return {axis: record[key] for axis, key in axes.items() if is_whole(record.get(key), 1)}
