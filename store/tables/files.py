"""Table files: Parquet, named by what determines their content, written atomically."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..core.errors import LakeError
from ..core.files import canonical_json, free_bytes, full_disk, human_bytes, replacing
from ..format.parquet import about, parquet_writer
from ..format.paths import Layout
from .declared import TABLES
from .live import table_key

ROW_GROUP_TOKENS = 1 << 17  # one row group = one layer of about this many tokens: a layer filter skips the rest


def table_file(layout: Layout, name: str, key: str) -> Path:
    """Where the table file of this key lies."""
    return layout.files.bring(layout.table(name) / f"{key}.parquet")


@contextmanager
def table_writer(layout: Layout, name: str, recipe: dict[str, Any]) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Write one table file atomically: what the block hands over becomes a row group each, the file appears at its end.

    Of processes that write the same one at once the first wins; the others keep its file.

    A row group is a mapping column -> array in the schema of the table; scalars are repeated. Those of one layer are merged
    up to ROW_GROUP_TOKENS rows, so that a writer need not hold that many. The recipe goes into the Parquet key-value
    metadata. A full disk is a LakeError; whatever raises inside the block leaves nothing behind.
    """
    schema = TABLES[name].schema.with_metadata({b"actlake": canonical_json({"table": name, **recipe})})
    path = table_file(layout, name, table_key(name, recipe))
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with replacing(path, first=True) as temporary:
            with _writer(temporary, schema) as writer:
                yield lambda group: writer.write_table(_to_arrow(group, schema), row_group_size=1 << 30)
            if parts := _of_one_layer(temporary, schema):
                with (
                    replacing(temporary) as merged,
                    _writer(merged, schema) as writer,
                    pq.ParquetFile(temporary) as source,
                ):
                    for groups in parts:
                        table = source.read_row_groups(groups).unify_dictionaries()
                        writer.write_table(table.cast(schema), row_group_size=1 << 30)
        layout.files.publish(path)
    except OSError as error:
        if full_disk(error):
            raise LakeError(
                f"disk full while writing table {name} ({human_bytes(free_bytes(path.parent))} free); nothing was kept"
            ) from error
        raise


def _writer(file: Path, schema: pa.Schema) -> AbstractContextManager[pq.ParquetWriter]:
    # A dictionary of floats that hardly repeat costs a third more bytes and slows every scan.
    repeated = [field.name for field in schema if pa.types.is_dictionary(field.type) or field.name == "layer"]
    return parquet_writer(file, schema, use_dictionary=repeated)


def _of_one_layer(file: Path, schema: pa.Schema) -> list[list[int]]:
    """Row groups to make one of, ROW_GROUP_TOKENS rows at most, in their order; none where that would change nothing."""
    if "layer" not in schema.names:
        return []
    found, place = pq.read_metadata(file), schema.names.index("layer")
    done, open_parts, rows = list[list[int]](), dict[int, list[int]](), Counter[int]()
    for number in range(found.num_row_groups):
        group = found.row_group(number)
        statistics = group.column(place).statistics
        if (
            statistics is None
            or not statistics.has_min_max
            or statistics.null_count
            or statistics.min != statistics.max
        ):
            return []
        if statistics.min in rows and rows[statistics.min] + group.num_rows > ROW_GROUP_TOKENS:
            done, open_parts, rows = [*done, *open_parts.values()], {}, Counter()
        open_parts.setdefault(statistics.min, []).append(number)
        rows[statistics.min] += group.num_rows
    parts = [*done, *open_parts.values()]
    return parts if len(parts) < found.num_row_groups else []


def write_table(layout: Layout, name: str, recipe: dict[str, Any], groups: Iterable[dict[str, Any]]) -> Path:
    """Write one table file from the row groups of `groups`; an existing one is kept (same key, same content)."""
    path = table_file(layout, name, table_key(name, recipe))
    if not path.exists():
        with table_writer(layout, name, recipe) as add:
            for group in groups:
                add(group)
    return path


def find_tables(layout: Layout, name: str, recipe: dict[str, Any]) -> list[Path]:
    """A table's files whose recipe has these values."""
    found = []
    for file in sorted(layout.files.bring(layout.table(name)).glob("*.parquet")):
        has = about(file) or {}
        if all(has.get(key) == value for key, value in recipe.items()):
            found.append(file)
    return found


def drop_tables(layout: Layout, name: str, recipe: dict[str, Any], keep: Path) -> None:
    """Delete a table's files whose recipe has these values, but for `keep`: what they hold was made anew there."""
    for file in find_tables(layout, name, recipe):
        if file != keep:
            layout.files.remove(file)


def _to_arrow(group: dict[str, Any], schema: pa.Schema) -> pa.Table:
    rows = max(len(value) for value in group.values() if not isinstance(value, str | int | None))
    arrays = []
    for column in schema:
        value = group[column.name]
        if isinstance(value, str | int | None):
            value = pa.repeat(pa.scalar(value), rows) if value is not None else pa.nulls(rows)
        # NaN marks "not defined here" in kernels; SQL's word for that is NULL.
        array = pa.array(value, from_pandas=True) if not isinstance(value, pa.Array) else value
        arrays.append(
            array.cast(column.type)
            if not pa.types.is_dictionary(column.type)
            else array.cast(pa.string()).dictionary_encode()
        )
    return pa.Table.from_arrays(arrays, schema=schema)
