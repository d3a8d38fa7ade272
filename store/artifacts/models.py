"""What the lake keeps of a model: model.json, head.zarr and vocab.parquet, enough to read a lens without checkpoint."""

import hashlib
import io
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr

from ..core.errors import CorruptError, LakeError
from ..core.files import clear_dead, hash_file, hash_json, write_atomic, write_json
from ..core.schema import FORMAT_VERSION, VARIANTS
from ..format.parquet import read_parquet
from ..format.paths import Layout
from ..format.records import REPAIRS, SEAL, check_record, read_record, sealed
from ..format.zarr_groups import checked, compressors, open_group, quiet_zarr
from ..format.zarr_metadata import Described, check_dims, lengths_of
from ..remote.hashes import known_hash
from .artifact import making, problems

ROWS = 4096  # rows of the unembedding per chunk
SAMPLE = 256  # rows of it that tell a checkpoint from another

HEAD_DIMS = {
    "norm_weight": ("d_model",),
    "norm_bias": ("d_model",),
    "unembed": ("vocab", "d_model"),
    "unembed_bias": ("vocab",),
    "post_norm_weight": ("layer", "d_model"),
    "real_token": ("vocab",),
}


def write_model(
    layout: Layout,
    model: str,
    record: dict[str, Any],
    arrays: dict[str, np.ndarray],
    attrs: dict[str, Any],
) -> None:
    """Store a model's record and head once; LakeError when the lake already holds another checkpoint under this name.

    `arrays` are float32 (bool for real_token) with the names and dims of HEAD_DIMS; `attrs` say norm, norm_eps, softcap,
    logit_scale, parallel and post_norm_eps.
    """
    if check_same_model(layout, model, record):
        return

    def about(files: dict[str, Any]) -> dict[str, Any]:
        return {**record, "model": model, "head_files": files, "head_sha256": hash_head(arrays, attrs)}

    folder = layout.model(model)
    there = partial(check_same_model, layout, model, record)
    with making(layout, folder / "head.zarr", folder / "model.json", about, there) as made:
        write_group(made, arrays, HEAD_DIMS, attrs, lambda shape: (min(ROWS, shape[0]), *shape[1:]))


def clear_unfinished(layout: Layout, model: str) -> None:
    """Delete what killed processes left of a model's head."""
    clear_dead(layout.model(model))


def write_group(
    path: Path,
    arrays: Mapping[str, np.ndarray],
    dims: Mapping[str, tuple[str, ...]],
    attrs: dict[str, Any],
    chunks: Callable[[tuple[int, ...]], tuple[int, ...]],
) -> None:
    """Write a small Zarr group, each array with its `dims`, in chunks made of its shape."""
    with quiet_zarr():
        group = zarr.create_group(
            path, zarr_format=3, overwrite=True, attributes={"format_version": FORMAT_VERSION, **attrs}
        )
        for name, values in arrays.items():
            array = group.create_array(
                name,
                shape=values.shape,
                dtype=values.dtype,
                chunks=chunks(values.shape),
                compressors=compressors(),
                fill_value=np.nan if values.dtype.kind == "f" else False if values.dtype.kind == "b" else -1,
                dimension_names=dims[name],
                config={"write_empty_chunks": True},
            )
            array[...] = values
        zarr.consolidate_metadata(str(path))


def hash_head(arrays: Mapping[str, np.ndarray], attrs: Mapping[str, Any]) -> str:
    """What a head is, whatever bytes its writer made of it: the hash of its attributes and of each array's values."""
    described = {key: value for key, value in attrs.items() if key != "format_version"}
    found = {
        name: [
            str(values.dtype),
            list(values.shape),
            hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest(),
        ]
        for name, values in arrays.items()
    }
    return hash_json({"attributes": described, "arrays": found})


def has_model(layout: Layout, model: str) -> bool:
    """True when the lake holds a model of this name."""
    return (layout.model(model) / "model.json").exists()


def weights_of(record: dict[str, Any]) -> tuple[str, ...]:
    """What tells a model's weights from others, from its record or identity: hashes of their files, or the hub's name for
    them; empty where neither is known."""
    files = sorted(sha for name, sha in record["files"].items() if name.endswith((".safetensors", ".gguf")))
    named = (str(record["id"]), str(record["revision"])) if record["revision"] else ()
    return tuple(files) or named


def equal_weights(pt: dict[str, Any], it: dict[str, Any], pair: str) -> str:
    """A remark on a pair whose two models have the same weights; empty for any other."""
    if not weights_of(pt) or weights_of(pt) != weights_of(it):
        return ""
    return f"pt and it of {pair} have equal weights: what differs comes from their texts, templates or configs, not from training"


def equal_pairs(layout: Layout, pairs: Mapping[str, Mapping[str, str]]) -> list[str]:
    """The remarks on pairs (name -> models by variant) whose two models have the same weights."""
    found = []
    for pair, models in pairs.items():
        records = [read_model(layout, model) for model in {*models.values()} if has_model(layout, model)]
        if len(records) == len(VARIANTS) and (remark := equal_weights(records[0], records[1], pair)):
            found.append(remark)
    return found


def check_same_model(layout: Layout, model: str, record: dict[str, Any]) -> bool:
    """True when the lake holds this checkpoint, False when it has none of the name; LakeError when it holds another."""
    marker = layout.model(model) / "model.json"
    if not has_model(layout, model):
        return False
    found = read_model(layout, model)
    if found["sha256"] != record["sha256"]:
        old, new = (f"{one['id']}, {one['dtype']}, {one['sha256'][:12]}" for one in (found, record))
        raise LakeError(
            f"{marker}: the lake holds {model} from other files or in another dtype ({old}; now {new}): give the"
            " new checkpoint another name, or use another lake"
        )
    return True


def read_model(layout: Layout, model: str) -> dict[str, Any]:
    """model.json of one model; LakeError when the lake has none."""
    return read_record(layout.model(model) / "model.json", "model")


def read_head(layout: Layout, model: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and attributes of head.zarr; a damaged chunk is a CorruptError that names the file."""
    path = layout.files.bring(layout.model(model) / "head.zarr")
    if not path.is_dir():
        raise LakeError(f"{path}: missing; capture {model} again to restore it")
    group, arrays = _open_head(layout, model)
    attrs = dict(group.attrs)
    check_record(attrs, "head", path / "zarr.json")
    return {name: checked(path, group, name)[...] for name in arrays}, attrs


def _open_head(layout: Layout, model: str) -> tuple[zarr.Group, dict[str, Described]]:
    path, record = layout.files.bring(layout.model(model) / "head.zarr"), read_model(layout, model)
    if problem := next(problems(path, record["head_files"], "head", known_hash), None):
        raise CorruptError(problem)
    group, arrays = open_group(path, record["head_files"]["zarr.json"]["sha256"])
    check_dims(
        path, arrays, HEAD_DIMS, lengths_of(record, {"vocab": "vocab", "d_model": "d_model", "layer": "n_layers"})
    )
    if missing := {"norm_weight", "unembed", "real_token"} - arrays.keys():
        found, lacking = (", ".join(sorted(names)) or "none" for names in (arrays, missing))
        raise CorruptError(
            f"{path / 'zarr.json'}: arrays: found {found}, expected also {lacking}", repair=REPAIRS["head"]
        )
    return group, arrays


def check_head(layout: Layout, model: str, norm_weight: Any, unembed: Any) -> None:
    """Raise LakeError unless a head's norm and the first rows of its unembedding are, bit for bit, those in the lake.

    A cheap way to tell a checkpoint from another without hashing its files.
    """
    path = layout.files.bring(layout.model(model) / "head.zarr")
    group, _ = _open_head(layout, model)
    norm, rows = checked(path, group, "norm_weight")[:], checked(path, group, "unembed")[:SAMPLE]
    if not (np.array_equal(norm, np.asarray(norm_weight)) and np.array_equal(rows, np.asarray(unembed[:SAMPLE]))):
        raise LakeError(
            f"model {model}: its weights are not those that the lake's captures were made from (norm or unembedding"
            " differ); name the same checkpoint, or give the other one another name"
        )


FILE = "vocab.parquet"
REPAIR = "restore the file, or delete it and run `actlake capture` of this model again"
LARGEST = 1 << 12  # bytes that an id may take, and as many KiB more for a file: no tokenizer comes near
SCHEMA = pa.schema(
    [
        pa.field("id", pa.int32(), nullable=False),
        pa.field("text", pa.string(), nullable=False),  # what the id adds to a running text
        pa.field("bytes", pa.binary(), nullable=False),  # the same as bytes, also of ids that are a part of a letter
        pa.field("special", pa.bool_(), nullable=False),  # control tokens and chat markers: no text
        pa.field("real", pa.bool_(), nullable=False),  # names a usable token (METHODS 1.4)
    ]
)


def vocab_file(layout: Layout, model: str) -> Path:
    """Path of a model's vocabulary."""
    return layout.model(model) / FILE


def has_vocab(layout: Layout, model: str) -> bool:
    """Whether the lake keeps the vocabulary of a model; lakes of older versions don't."""
    return "vocab_sha256" in read_model(layout, model)


def keep_vocab(layout: Layout, model: str, columns: dict[str, Any]) -> None:
    """Keep the vocabulary (columns of SCHEMA) of a model of the lake that has none yet; its record then bears the hash."""
    if has_vocab(layout, model):
        return
    sink = io.BytesIO()
    pq.write_table(pa.table(columns, schema=SCHEMA), sink, compression="zstd")
    path, marker = vocab_file(layout, model), layout.model(model) / "model.json"
    with layout.locked():
        record = read_model(layout, model)
        if "vocab_sha256" in record:  # another process was faster
            return
        write_atomic(path, sink.getvalue())
        write_json(marker, with_vocab(record, hash_file(path)))
    layout.files.publish(path, marker)


def with_vocab(record: dict[str, Any], sha256: str) -> dict[str, Any]:
    """A model's record with the hash of its vocabulary."""
    return sealed({**{name: value for name, value in record.items() if name != SEAL}, "vocab_sha256": sha256})


def read_vocab(layout: Layout, model: str) -> pa.Table | None:
    """The vocabulary of a model, by id; None when the lake keeps none. CorruptError for one that is damaged or no vocabulary."""
    record = read_model(layout, model)
    if "vocab_sha256" not in record:
        return None
    path = layout.files.bring(vocab_file(layout, model))
    if problem := damage(path, record):
        raise CorruptError(f"{path}: {problem}", repair=REPAIR)
    found = read_parquet(path, SCHEMA, REPAIR)
    ids = found["id"].to_numpy()
    if any(column.null_count for column in found.columns) or not np.array_equal(ids, np.arange(len(ids))):
        raise CorruptError(f"{path}: expected ids from 0 on without gaps", repair=REPAIR)
    return found


def decode(layout: Layout, model: str, ids: Iterable[int]) -> str:
    """The text of token ids; LakeError for an id that the model lacks, and where the lake keeps no vocabulary of it."""
    table = read_vocab(layout, model)
    if table is None:
        raise LakeError(f"the lake keeps no vocabulary of {model}", repair=f"a new `actlake capture {model}` keeps it")
    wanted = [int(index) for index in ids]
    if wrong := [index for index in wanted if not 0 <= index < len(table)]:
        raise LakeError(f"{model} has no token {wrong[0]}; its ids are 0 to {len(table) - 1}")
    return b"".join(table["bytes"].take(pa.array(wanted, pa.int64())).to_pylist()).decode(errors="replace")


def damage(path: Path, record: dict[str, Any], hashed: Callable[[Path], str] = known_hash) -> str:
    """How a vocabulary differs from what its model's record says, or why it is not plausible; '' when it is good."""
    if not path.is_file():
        return "missing"
    if (sha256 := hashed(path)) != record["vocab_sha256"]:
        return f"bytes differ from the recorded hash (found {sha256}, expected {record['vocab_sha256']})"
    try:
        footer = pq.read_metadata(path)
        size = sum(footer.row_group(place).total_byte_size for place in range(footer.num_row_groups))
    except (OSError, ValueError) as error:
        return f"not a Parquet file ({str(error).splitlines()[0][:100]})"
    if footer.num_rows != record.get("vocab", footer.num_rows):
        return f"{footer.num_rows} ids, the model has {record['vocab']}"
    if size > LARGEST * (footer.num_rows + 1024):
        return f"{size} bytes for {footer.num_rows} ids: not plausible"
    return ""
