"""What a model's token ids mean, kept beside its head: vocab.parquet, so that words are read without checkpoint or tokenizer."""

import io
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..core.errors import CorruptError, LakeError
from ..core.files import hash_file, write_atomic, write_json
from ..format.parquet import read_parquet
from ..format.paths import Layout
from ..format.records import SEAL, sealed
from ..remote.hashes import known_hash
from .models import read_model

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
    """Where a model's vocabulary lies."""
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
