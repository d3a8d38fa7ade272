"""Parquet files that bear a checksum of all their bytes, and reading those that may come from a stranger: the footer is
checked against the schema, and the checksum against the bytes, before any row is read.

Pages of a Parquet file have no checksum that DuckDB looks at: without one a bit turned over can be another number.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import google_crc32c
import pyarrow as pa
import pyarrow.parquet as pq

from ..core.errors import CorruptError
from ..core.files import BLOCK, hash_json, parse_json
from ..remote.hashes import remembered, while_same
from .rules import brief

MARK = "actlake-crc32c:"  # in the metadata of a file, before the CRC-32C (8 hex digits) of its bytes with zeros in that place
ZEROS = b"0" * 8
TAIL = 8  # bytes behind the footer: its length, and a magic number
FREE_ROWS = 1 << 20  # no file of so few is suspicious
ROWS_PER_BYTE = 1024  # the most that a file's size makes plausible: equal values take next to no room
BROKEN = (
    pa.ArrowException,
    OSError,
    ValueError,
    OverflowError,
    KeyError,
    IndexError,
    MemoryError,
)  # pyarrow's on hostile bytes
AGAIN = "delete the file and ask again, or restore it"


@contextmanager
def parquet_writer(file: Path, schema: pa.Schema, **options: Any) -> Iterator[pq.ParquetWriter]:
    """Write a Parquet file (zstd; `options` as pyarrow has them) that bears the checksum of its bytes."""
    with pq.ParquetWriter(file, schema, compression="zstd", **options) as writer:
        yield writer
        writer.add_key_value_metadata({"checksum": MARK + ZEROS.decode()})
    with open(file, "r+b") as stored:
        place = _place(stored)
        found = _checksum(stored, place)
        stored.seek(place)
        stored.write(found)


def _place(stored: BinaryIO) -> int:
    """Where the digits of a file's checksum are, 0 in a file without one."""
    size = stored.seek(0, 2)
    stored.seek(max(size - TAIL, 0))
    begin = max(size - TAIL - int.from_bytes(stored.read(4), "little"), 0)
    stored.seek(begin)
    found = stored.read(size - begin).rfind(MARK.encode())
    return begin + found + len(MARK) if found >= 0 else 0


def _checksum(stored: BinaryIO, place: int) -> bytes:
    """CRC-32C, as 8 hex digits, of a file that has zeros for its own checksum."""
    stored.seek(0)
    found, at = 0, 0
    while block := stored.read(BLOCK):
        if at < place + len(ZEROS) and place < at + len(block):  # the digits, or a part of them
            first, last = max(place - at, 0), min(place + len(ZEROS) - at, len(block))
            block = block[:first] + ZEROS[: last - first] + block[last:]
        found, at = google_crc32c.extend(found, block), at + len(block)
    return f"{found:08x}".encode()


def check_parquet(
    file: Path, schema: pa.Schema, repair: str = AGAIN, may_lack: frozenset[str] = frozenset()
) -> frozenset[str]:
    """The columns of a table that a file has; CorruptError, in one line with `repair`, unless it is Parquet with all of them
    but those of `may_lack`.

    Columns of its own beside them are ignored. Text may be stored plain or by a dictionary, numbers in any width. All
    bytes are compared with the checksum of a file that bears one.
    """
    if not file.is_file():
        raise CorruptError(f"{file}: missing or not a regular file", repair=repair)
    try:
        names = _footer(file, schema, may_lack)
        remembered(file, "checksum", _check_whole)
    except _Wrong as wrong:
        raise CorruptError(f"{file}: {wrong}", repair=repair) from None
    return names


class _Wrong(Exception):
    """What is wrong with a file, in words."""


def _check_whole(file: Path) -> str:
    if wrong := torn(file):
        raise _Wrong(wrong)
    return "good"


def torn(file: Path) -> str:
    """How a file's bytes differ from the checksum that it bears; empty when they don't."""
    try:
        with open(file, "rb") as stored:
            if not (place := _place(stored)):
                return ""
            found = _checksum(stored, place)
            stored.seek(place)
            expected = stored.read(len(ZEROS))
    except OSError as error:
        return f"can't be read ({error.strerror})"
    if found == expected:
        return ""
    text = expected.decode("ascii", "backslashreplace")
    return f"stored bytes are damaged (found crc32c {found.decode()}, expected {text})"


@while_same(1 << 14)
def _footer(file: Path, schema: pa.Schema, may_lack: frozenset[str]) -> frozenset[str]:
    """The columns of a schema in a file's footer; remembered until the file is another. _Wrong says what is wrong with it."""

    def look(file: Path) -> str:
        names, wrong = _look(file, schema, may_lack)
        if wrong:
            raise _Wrong(wrong)
        return json.dumps(sorted(names))

    return frozenset(json.loads(remembered(file, f"footer {_name_of(schema, may_lack)}", look)))


@cache
def _name_of(schema: pa.Schema, may_lack: frozenset[str]) -> str:
    return hash_json([str(schema), sorted(may_lack)])[:16]


def _look(file: Path, schema: pa.Schema, may_lack: frozenset[str]) -> tuple[frozenset[str], str]:
    size = file.stat().st_size
    try:
        footer = pq.read_metadata(file)
        there = footer.schema.to_arrow_schema()
        rows = sum(footer.row_group(place).num_rows for place in range(footer.num_row_groups))
    except BROKEN as error:
        return frozenset(), f"not a Parquet file that can be read ({first_line(error)})"
    names = frozenset(there.names) & frozenset(schema.names)
    for field in schema:
        places = there.get_all_field_indices(field.name)
        if not places and field.name in may_lack:
            continue
        if len(places) != 1:
            return names, f"column {field.name}: expected once, found {len(places)} times"
        if (kind := there.field(places[0]).type) != field.type and _family(kind) != _family(field.type):
            return names, f"column {field.name}: expected {_family(field.type)}, found {kind}"
    if rows != footer.num_rows or not 0 <= rows <= max(FREE_ROWS, ROWS_PER_BYTE * size):
        return names, f"{footer.num_rows} rows by its footer, {rows} by its row groups, in {size} bytes: not plausible"
    return names, ""


def _family(kind: pa.DataType) -> str:
    """The word for what a type holds, however wide and however stored."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return "text"
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return f"lists of {_family(kind.value_type)}"
    for name, fits in (("whole numbers", pa.types.is_integer), ("numbers", pa.types.is_floating)):
        if fits(kind):
            return name
    return "true or false" if pa.types.is_boolean(kind) else str(kind)


def read_parquet(
    file: Path,
    schema: pa.Schema,
    repair: str = AGAIN,
    columns: Sequence[str] | None = None,
    may_lack: frozenset[str] = frozenset(),
) -> pa.Table:
    """A table's columns (those named, else all of the schema) from a checked file, in the types of the schema.

    Those of `may_lack` are left out where the file has none. CorruptError for whatever can't be read as such.
    """
    there = check_parquet(file, schema, repair, may_lack)
    names = [name for name in (schema.names if columns is None else columns) if name in there]
    try:
        found = pq.read_table(file, columns=names, partitioning=None)
        found.validate(full=True)
        return found.cast(pa.schema([schema.field(name) for name in names]))
    except BROKEN as error:
        raise CorruptError(f"{file}: its rows can't be read ({first_line(error)})", repair=repair) from error


def check_rows(file: Path, schema: pa.Schema, repair: str = AGAIN) -> None:
    """Read a file's columns of a table a piece at a time; CorruptError when they can't be."""
    check_parquet(file, schema, repair)
    try:
        for batch in pq.ParquetFile(file).iter_batches(columns=schema.names):
            batch.validate(full=True)
    except BROKEN as error:
        raise CorruptError(f"{file}: its rows can't be read ({first_line(error)})", repair=repair) from error


def about(file: Path) -> dict[str, Any] | None:
    """What a table file says about itself: the JSON under `actlake` in its metadata, None when it has none.

    Nothing is read of a file that is the one of before.
    """
    found = json.loads(remembered(file, "about", lambda file: json.dumps(_about(file))))
    return None if found is None else dict(found)


def _about(file: Path) -> dict[str, Any] | None:
    try:
        text = (pq.read_schema(file).metadata or {}).get(b"actlake")
        found = None if text is None else parse_json(text)
    except BROKEN as error:
        raise CorruptError(f"{file}: its metadata can't be read ({first_line(error)})", repair=AGAIN) from error
    if found is not None and not isinstance(found, dict):
        raise CorruptError(f"{file}: metadata: expected an object, found {brief(found)}", repair=AGAIN)
    return found


def first_line(error: BaseException) -> str:
    """The first line of a foreign error, of at most 200 letters that can be printed."""
    line = (str(error).splitlines() or [type(error).__name__])[0][:200]
    return "".join(letter if letter.isprintable() else "?" for letter in line)
