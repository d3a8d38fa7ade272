"""Tables of lists: Arrow files of Hugging Face datasets (SAELens caches among them) and Parquet, mapped or read in row groups."""

from bisect import bisect_right
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..store.core.errors import LakeError
from .found import (
    LOSSES,
    MASKS,
    STATES,
    TOKENS,
    Asked,
    Found,
    Place,
    TokenRow,
    files_below,
    ids_of,
    kept_slots,
    named,
    numbered,
    one_dtype,
    place_of,
    stacked,
    start_of,
)

FLOAT_NAMES = {pa.float16(): "float16", pa.float32(): "float32", pa.float64(): "float64"}
DAMAGE = (pa.ArrowException, OSError, ValueError, EOFError)


class _Rows:
    """The rows of Arrow or Parquet files as one list of batches, opened when they are asked for."""

    def __init__(self, files: list[Path]):
        self.files, self._parts = files, list[tuple[Path, int]]()
        starts = [0]
        for file in files:
            for number, count in enumerate(_lengths(file)):
                self._parts.append((file, number))
                starts.append(starts[-1] + count)
        self._starts, self.count = starts, starts[-1]
        self.schema: pa.Schema = _open(files[0]).schema if files[0].suffix == ".arrow" else pq.read_schema(files[0])

    def cell(self, row: int, column: str) -> tuple[Any, int]:
        """The column of the batch that a row is in, and where the row stands in it."""
        at = bisect_right(self._starts, row) - 1
        return _batch(*self._parts[at])[column], row - self._starts[at]


def _open(file: Path) -> Any:
    source = pa.memory_map(str(file))
    try:
        return pa.ipc.open_stream(source)  # as datasets writes it
    except pa.ArrowInvalid:
        return pa.ipc.open_file(source)


@lru_cache(maxsize=64)
def _mapped(file: Path) -> list[pa.RecordBatch]:
    opened = _open(file)
    return [*opened] if hasattr(opened, "__iter__") else [opened.get_batch(i) for i in range(opened.num_record_batches)]


def _lengths(file: Path) -> list[int]:
    try:
        if file.suffix == ".parquet":
            meta = pq.ParquetFile(file).metadata
            return [meta.row_group(i).num_rows for i in range(meta.num_row_groups)]
        return [len(batch) for batch in _mapped(file)]
    except DAMAGE as error:
        raise LakeError(f"{file}: can't be read ({str(error).splitlines()[0][:160]}): damaged, or cut short") from error


@lru_cache(maxsize=4)
def _group(file: Path, number: int) -> pa.RecordBatch:
    table = pq.ParquetFile(file).read_row_group(number).combine_chunks()
    return table.to_batches()[0]


def _batch(file: Path, number: int) -> pa.RecordBatch:
    return _group(file, number) if file.suffix == ".parquet" else _mapped(file)[number]


def _values(column: Any, row: int, where: str) -> np.ndarray:
    """One cell of nested lists as an array; LakeError for lists of unequal lengths, and for gaps."""
    found: Any = column.slice(row, 1)
    found = getattr(found, "storage", found)  # Array2D of datasets
    shape = list[int]()
    while pa.types.is_list(found.type) or pa.types.is_large_list(found.type) or pa.types.is_fixed_size_list(found.type):
        if found.null_count:
            raise LakeError(f"{where}: gaps (null) among its lists")
        lengths = pc.list_value_length(found).to_numpy(zero_copy_only=False)
        if len(lengths) and lengths.min() != lengths.max():
            raise LakeError(f"{where}: lists of unequal lengths, {lengths.min()} and {lengths.max()}")
        shape.append(int(lengths[0]) if len(lengths) else 0)
        found = found.flatten()
    if found.null_count:
        raise LakeError(f"{where}: gaps (null) among its numbers")
    return np.asarray(found.to_numpy(zero_copy_only=False)).reshape(shape)


def _inner(kind: pa.DataType) -> pa.DataType:
    kind = getattr(kind, "storage_type", kind)
    while hasattr(kind, "value_type"):
        kind = kind.value_type
    return kind


def read_rows(path: Path, asked: Asked) -> Found:
    """Rows of {token_ids, columns of lists of floats}: a column a layer by its name, or one `hidden_states` of all layers."""
    rows = _Rows(files_below(path, (".arrow", ".parquet")))
    names = dict.fromkeys(rows.schema.names)
    ids, loss, mask = (named(names, some) for some in (TOKENS, LOSSES, MASKS))
    label = named(names, ("prompt_id", "id"))
    kinds = {name: _inner(rows.schema.field(name).type) for name in names}
    columns = {place: name for name in names if (place := place_of(name)) and pa.types.is_floating(kinds[name])}
    whole = None if columns else named(names, STATES)
    if not columns and not whole:
        raise LakeError(f"{path}: no column bears a layer's name", found=", ".join(names)[:160])
    if not ids and asked.tokens is None:
        raise LakeError(
            f"{path}: has no column of token ids: --stream names the stream of the lake that it was made on"
        )
    used = [*columns.values()] if columns else [str(whole)]
    dtype = one_dtype([FLOAT_NAMES.get(kinds[name], str(kinds[name])) for name in used], path)
    sequences, slots, full = list[TokenRow](), list[slice](), list[int]()
    for row in range(rows.count):
        where = f"{path}: row {row}"
        if ids:
            tokens = ids_of(_values(*rows.cell(row, ids), where), where)
        else:
            if row >= len(asked.tokens or ()):
                raise LakeError(f"{where}: more sequences than the {len(asked.tokens or ())} of the stream")
            tokens = (asked.tokens or [])[row]
        kept = kept_slots(_values(*rows.cell(row, mask), where), where) if mask else slice(0, len(tokens))
        marks = _values(*rows.cell(row, loss), where)[kept] if loss else None
        column, at = rows.cell(row, label) if label else (None, 0)
        name = str(column[at].as_py()) if column is not None else f"{row:06d}"
        sequences.append(TokenRow(name, tokens[kept], start_of(marks, kept.stop - kept.start)))
        slots.append(kept)
        full.append(len(tokens))
    if not sequences:
        raise LakeError(f"{path}: has no rows")
    boundaries = list[int]()
    if whole:
        where = f"{path}: row 0, column {whole}"
        boundaries = numbered(len(stacked(_values(*rows.cell(0, whole), where), full[0], asked, where)), asked, where)
    places: list[Place] = sorted(columns) if columns else [("resid", one) for one in boundaries]

    def slab(index: int, place: Place) -> np.ndarray:
        name = columns.get(place, whole or "")
        where = f"{path}: row {index}, column {name}"
        values, kept = _values(*rows.cell(index, name), where), slots[index]
        if whole:
            layers = stacked(values, full[index], asked, where)
            numbered(len(layers), Asked(asked.layers, asked.width, boundaries), where)
            values = layers[boundaries.index(place[1])]
        if values.shape != (full[index], asked.width):
            raise LakeError(
                f"{where}: {list(values.shape)}", expected=f"{[full[index], asked.width]}: a vector a token"
            )
        return values[kept]

    return Found(sequences, places, dtype, slab, rows.files)
