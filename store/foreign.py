"""Tables from elsewhere: published arrays, checked and brought into the lake, so that the same SQL runs on them."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from .errors import LakeError
from .files import hash_file
from .layout import Layout, check_name
from .schema import TABLES, VARIANTS
from .tables import FOREIGN, ROW_GROUP_TOKENS, VIEWS, foreign_files, stream_table, table_file, table_key, write_table

# What tells rows apart; all other columns hold values. A row without a prompt or token stands for all of them.
KEYS = (
    *("pair", "variant", "stream", "stream_pt", "lens", "prompt", "prompt_id", "category", "token", "position", "step"),
    *("layer", "grouping", "group", "metric", "draw", "head", "kind", "name", "other"),
)
OPTIONAL = ("prompt", "prompt_id", "category", "token", "position", "step", "draw", "other")
COSINE, SHARE = (-1.0, 1.0), (0.0, 1.0)
RANGES = {
    "js": (0.0, 0.6932),
    "js_next": (0.0, 0.6932),
    **dict.fromkeys(("kl_layer_final", "kl_final_layer", "kl_pt_it", "kl_it_pt", "margin"), (0.0, float("inf"))),
    **dict.fromkeys(("block_cos", "mlp_cos", "cos_final"), COSINE),
    **dict.fromkeys(("p_target", "confidence", "churn"), SHARE),
}
SLACK = 1e-3  # published figures are rounded
PANDAS_INDEX = "__index_level_"  # a column that pandas writes without being asked
CAPTURE = ("pair", "variant", "stream", "stream_pt", "lens", "kind")  # what a question narrows a table by


@dataclass(frozen=True)
class Added:
    """A foreign table in the lake: where, how many rows, of which captures, and whether it was there already."""

    path: Path
    rows: int
    captures: list[dict[str, str]]
    reused: bool


def add_table(layout: Layout, name: str, file: Path, **given: str | None) -> Added:
    """Check a Parquet or CSV file with columns of the table `name`, and copy it into the lake.

    `given` fills columns that the file lacks (pair, variant, stream, stream_pt, lens). Other columns that it lacks are NULL:
    without prompts and tokens a row is a mean over them. LakeError, and nothing is written, for columns the table does not
    have, missing ones, values out of range, rows that are there twice, or a capture that the lake has rows of already.
    """
    if name not in TABLES:
        what = f"{name} is a view over lens" if name in VIEWS else f"no table {name!r}"
        raise LakeError(f"{what}; tables are {', '.join(TABLES)}")
    options = {key: value for key, value in given.items() if value}
    table = _complete(_read(file), name, file, options)
    _check(table, name, file)
    captures = _captures(table, name)
    recipe = {FOREIGN: {"file": file.name, "sha256": hash_file(file), "given": options, "captures": captures}}
    path = table_file(layout, name, table_key(name, recipe))
    if path.exists():
        return Added(path, table.num_rows, captures, True)
    _refuse_overlap(layout, name, captures)
    return Added(write_table(layout, name, recipe, _groups(table)), table.num_rows, captures, False)


def foreign_captures(layout: Layout, name: str) -> list[dict[str, str]]:
    """The captures that foreign files of a table stand for: pair, and where the table has them variant, stream, lens ..."""
    found = []
    for path in foreign_files(layout, name):
        record = json.loads(pq.read_schema(path).metadata[b"actlake"])
        found += record[FOREIGN]["captures"]
    return found


# --- reading and checking --------------------------------------------------------------------------------------------


def _read(file: Path) -> pa.Table:
    try:
        if file.suffix == ".parquet":
            table = pq.read_table(file)
            return table.drop([column for column in table.column_names if column.startswith(PANDAS_INDEX)])
        if file.suffix == ".csv":
            return pyarrow.csv.read_csv(file)
    except FileNotFoundError:
        raise LakeError(f"{file}: no such file") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise LakeError(f"{file}: can't be read as {file.suffix[1:]} ({str(error).splitlines()[0]})") from error
    raise LakeError(f"{file}: a table is a .parquet or .csv file")


def _complete(table: pa.Table, name: str, file: Path, options: dict[str, str]) -> pa.Table:
    """All columns of the schema in its types: those of the file, of the options, and NULL."""
    schema = TABLES[name]
    if unknown := [column for column in table.column_names if column not in schema.names]:
        raise LakeError(f"{file}: table {name} has no column {unknown[0]!r}; it has {', '.join(schema.names)}")
    if unfit := [key for key in options if key not in schema.names or key in table.column_names]:
        where = "the file has it" if unfit[0] in table.column_names else f"table {name} has none"
        raise LakeError(f"{file}: --{unfit[0].replace('_', '-')} does not apply: {where}")
    columns = {column: table[column].combine_chunks() for column in table.column_names}
    columns |= {key: pa.repeat(pa.scalar(value), table.num_rows) for key, value in options.items()}
    if "lens" in schema.names:
        columns.setdefault("lens", pa.repeat(pa.scalar("raw"), table.num_rows))
    if "variant" in schema.names and "stream_pt" in schema.names:
        columns.setdefault("variant", pa.repeat(pa.scalar("both"), table.num_rows))
    if "prompt" in schema.names and "prompt" not in columns and "prompt_id" in columns:
        columns["prompt"] = pa.array(pd.factorize(columns["prompt_id"].to_pandas())[0])
    made = []
    for field in schema:
        kind = pa.string() if pa.types.is_dictionary(field.type) else field.type
        try:
            made.append(columns[field.name].cast(kind) if field.name in columns else pa.nulls(table.num_rows, kind))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise LakeError(f"{file}: column {field.name}: {str(error).splitlines()[0]}; expected {kind}") from error
    return pa.table(made, names=schema.names)


def _check(table: pa.Table, name: str, file: Path) -> None:
    if not table.num_rows:
        raise LakeError(f"{file}: no rows")
    for column in table.column_names:
        if column in KEYS and column not in OPTIONAL and table[column].null_count:
            hint = f"give it with --{column.replace('_', '-')}" if column in CAPTURE[:5] else "every row needs it"
            raise LakeError(f"{file}: column {column} of table {name} is missing or has gaps: {hint}")
    values = [column for column in table.column_names if column not in KEYS]
    if all(table[column].null_count == table.num_rows for column in values):
        raise LakeError(f"{file}: no values; table {name} has {', '.join(values)}")
    for column in values:
        if pa.types.is_floating(table[column].type):
            _check_range(table[column], column, file)
    if "variant" in table.column_names:
        allowed = VARIANTS if "stream_pt" not in table.column_names else ("both",)
        if wrong := sorted(set(pc.unique(table["variant"]).to_pylist()) - set(allowed)):
            raise LakeError(f"{file}: variant {wrong[0]!r}; expected {' or '.join(allowed)}")
    for column in ("pair", "stream", "stream_pt"):
        for value in pc.unique(table[column]).to_pylist() if column in table.column_names else ():
            check_name(value, f"{file}: {column}")
    keys = table.select([column for column in table.column_names if column in KEYS]).to_pandas()
    if (twice := keys.duplicated()).any():
        row = keys[twice].iloc[0].dropna().to_dict()
        raise LakeError(f"{file}: two rows for {', '.join(f'{key} {value}' for key, value in row.items())}")


def _check_range(values: pa.ChunkedArray, column: str, file: Path) -> None:
    known = values.to_pandas().dropna()
    low, high = RANGES.get(column, (-float("inf"), float("inf")))
    wrong = known[~((known >= low - SLACK) & (known <= high + SLACK)) | (known.abs() == float("inf"))]
    if len(wrong):
        raise LakeError(
            f"{file}: column {column}, row {wrong.index[0] + 1}: {wrong.iloc[0]:g}, expected {low:g} to {high:g}"
        )


def _captures(table: pa.Table, name: str) -> list[dict[str, str]]:
    columns = [column for column in CAPTURE if column in TABLES[name].names]
    return table.select(columns).to_pandas().drop_duplicates().sort_values(columns).to_dict("records")


def _refuse_overlap(layout: Layout, name: str, captures: list[dict[str, str]]) -> None:
    """Rows of one capture from two sources would count twice."""
    own = stream_table(layout).query("prompt_set != @FOREIGN", local_dict={"FOREIGN": FOREIGN})
    taken = {(row.pair, row.stream) for row in own.itertuples()}
    there = foreign_captures(layout, name)
    for capture in captures:
        if capture in there or (capture["pair"], capture.get("stream")) in taken:
            words = ", ".join(f"{key} {value}" for key, value in capture.items())
            raise LakeError(
                f"table {name}: the lake has rows of {words} already; choose another --stream, native-NAME say"
            )


def _groups(table: pa.Table) -> Iterator[dict[str, Any]]:
    """Row groups of one layer, as other tables have them."""
    layered = "layer" in table.column_names
    layers = sorted(pc.unique(table["layer"]).to_pylist()) if layered else [None]
    for layer in layers:
        part = table.filter(pc.equal(table["layer"], layer)) if layered else table
        for start in range(0, part.num_rows, ROW_GROUP_TOKENS):
            piece = part.slice(start, ROW_GROUP_TOKENS).combine_chunks()
            yield {column: piece[column].combine_chunks() for column in piece.column_names}
