"""Imported tables: published arrays, checked and brought into the lake, so that the same SQL runs on them."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import duckdb

from ..core.columns import PAIR, VARIANT, Column
from ..core.errors import LakeError
from ..core.files import hash_file
from ..core.schema import VARIANTS
from ..format.paths import Layout, check_name
from .declared import TABLES, Table
from .files import FOREIGN, ROW_GROUP_TOKENS, table_file, table_key, write_table
from .names import Pairs, foreign_captures, models_of
from .statements import VIEWS, tables_behind
from .streams import stream_table

SLACK = 1e-3  # published figures are rounded
PANDAS_INDEX = "__index_level_"  # a column that pandas writes without being asked
# What a question narrows a table by.
MODELS = ("model", "model_pt", "model_it")
GIVEN = (*MODELS, "variant", "stream", "stream_pt", "lens")  # by options, where the file lacks them
CAPTURE = (*GIVEN, "kind", "condition", "sweep")


@dataclass(frozen=True)
class Added:
    """A foreign table in the lake: where, how many rows, of which captures, and whether it was there already."""

    path: Path
    rows: int
    captures: list[dict[str, str]]
    reused: bool


def add_table(layout: Layout, name: str, file: Path, pairs: Pairs | None = None, **given: str | None) -> Added:
    """Check a Parquet or CSV file with columns of the table `name`, and copy it into the lake.

    `given` fills columns that the file lacks (model, pair, variant, stream, stream_pt, lens). Rows of a pair and a variant
    are those of the model that `pairs` has there, else of one named PAIR-VARIANT. What is not given is filled as FILLED
    says (the stream `published` answers rows of every stream), or NULL: without prompts and tokens a row is a mean over them.
    LakeError, and nothing is written, for columns the table does not have, missing ones, values out of range, rows that are
    there twice, or a capture that the lake has rows of already.
    """
    if name not in TABLES:
        what = (
            f"{name} is a view over {', '.join(sorted(tables_behind(name)))}" if name in VIEWS else f"no table {name!r}"
        )
        raise LakeError(f"{what}; tables are {', '.join(TABLES)}")
    options = {key: value for key, value in given.items() if value}
    rows = _Rows(name, file, options, pairs or {})
    rows.check()
    captures = rows.captures()
    recipe = {FOREIGN: {"file": file.name, "sha256": hash_file(file), "given": options, "captures": captures}}
    path = table_file(layout, name, table_key(name, recipe))
    if path.exists():
        return Added(path, rows.count, captures, True)
    _refuse_overlap(layout, name, captures)
    return Added(write_table(layout, name, recipe, rows.groups()), rows.count, captures, False)


# --- reading and checking --------------------------------------------------------------------------------------------


class _Rows:
    """The rows of a file as a table of DuckDB's with all columns of the schema: the file's, the given ones, and NULL."""

    def __init__(self, name: str, file: Path, options: dict[str, str], pairs: Pairs):
        self._table, self._name, self._file, self._pairs = TABLES[name], name, file, pairs
        self._sql = duckdb.connect(":memory:")
        there = self._read()
        self._columns = _as_given(self._table, {*there, *options})
        names = self._names = [column.name for column in self._columns]
        if unknown := [column for column in there if column not in names]:
            pair = (
                " of models by name (for variants, give --pair in place of it)"
                if unknown[0] in ("pair", "variant")
                else ""
            )
            self._refuse(f"table {name}{pair} has no column {unknown[0]!r}; it has {', '.join(names)}")
        if unfit := [key for key in options if key not in names or key in there]:
            where = "the file has it" if unfit[0] in there else f"table {name} has none"
            self._refuse(f"--{unfit[0].replace('_', '-')} does not apply: {where}")
        columns = [f'{self._column(field, there, options)} AS "{field.name}"' for field in self._columns]
        try:
            numbered = "(SELECT *, row_number() OVER () AS file_row FROM source)"
            self._sql.execute(f"CREATE TABLE given AS SELECT {', '.join(columns)}, file_row FROM {numbered}")
        except duckdb.Error as error:
            self._refuse(f"{str(error).splitlines()[0]}; table {name} is {', '.join(map(_described, self._columns))}")
        self.filled = {column: sql for column, sql in self._fillings().items() if column not in (*there, *options)}
        for column, sql in self._fillings().items():
            if column in self.filled or column == "draw":  # a draw that is not known is the value of all points
                self._sql.execute(f'UPDATE given SET "{column}" = {sql} WHERE "{column}" IS NULL')
        self.count = self._one("SELECT count(*) FROM given")[0]

    @property
    def _paired(self) -> bool:
        """Whether a row is about both models alike."""
        return "stream_pt" in self._table.names and not self._table.one_model

    def _read(self) -> list[str]:
        """Names of the file's columns; the file becomes the view `source`."""
        reader = {".parquet": "read_parquet", ".csv": "read_csv"}.get(self._file.suffix)
        if reader is None:
            self._refuse("a table is a .parquet or .csv file")
        if not self._file.exists():
            self._refuse("no such file")
        try:
            name = str(self._file).replace("'", "''")
            self._sql.execute(f"CREATE VIEW source AS SELECT * FROM {reader}('{name}')")
            there = [row[0] for row in self._sql.execute("DESCRIBE source").fetchall()]
        except duckdb.Error as error:
            self._refuse(f"can't be read as {self._file.suffix[1:]} ({str(error).splitlines()[0]})")
        return [column for column in there if not column.startswith(PANDAS_INDEX)]

    def _column(self, field: Column, there: list[str], options: dict[str, str]) -> str:
        """The SQL of one column; NaN becomes NULL."""
        kind = field.sql_type
        defaults = {"variant": "both"} if self._paired else {}
        if field.name in there:
            value = f'CAST("{field.name}" AS {kind})'
            return f"CASE WHEN NOT isnan({value}) THEN {value} END" if kind == "FLOAT" else value
        if text := (defaults | options).get(field.name):
            return "'" + text.replace("'", "''") + "'"
        if field.name == "prompt" and "prompt_id" in there:
            return "CAST(dense_rank() OVER (ORDER BY prompt_id) - 1 AS INTEGER)"
        return f"CAST(NULL AS {kind})"

    def _fillings(self) -> dict[str, str]:
        """Column of this table -> the SQL that fills it where the file lacks it."""
        first = sorted(self._table.columns, key=lambda column: not column.name.startswith("stream"))
        return {column.name: column.fill for column in first if column.fill}

    def check(self) -> None:
        """LakeError for the first thing that does not fit."""
        if not self.count:
            self._refuse("no rows")
        counts = ", ".join(f'count("{column}")' for column in self._names)
        known = dict(zip(self._names, self._one(f"SELECT {counts} FROM given"), strict=True))
        needed = [column.name for column in self._columns if column.key and not column.null]
        if lacking := [name for name in needed if known[name] < self.count]:
            self._refuse_keys(lacking, known)
        values = self._table.values
        if not any(known[field.name] for field in values):
            self._refuse(f"no values; table {self._name} has {', '.join(field.name for field in values)}")
        for field in values:
            if field.type == "float32":
                self._check_range(field)
        self._check_names()
        self._check_twice()
        if "pair" in self._names:
            self._name_models()

    def _name_models(self) -> None:
        """Turn pair and variant into the names of models."""
        self._sql.execute("CREATE TABLE named (pair VARCHAR, variant VARCHAR, model VARCHAR)")
        for pair in self._distinct("pair"):
            for variant in VARIANTS:
                model = self._pairs.get(pair, {}).get(variant, f"{pair}-{variant}")
                self._sql.execute("INSERT INTO named VALUES (?, ?, ?)", [pair, variant, model])
        one = "model" in self._table.names
        for column, variant in [("model", "given.variant")] if one else [(f"model_{v}", f"'{v}'") for v in VARIANTS]:
            self._sql.execute(f"ALTER TABLE given ADD COLUMN {column} VARCHAR")
            self._sql.execute(
                f"UPDATE given SET {column} = named.model FROM named"
                f" WHERE named.pair = given.pair AND named.variant = {variant}"
            )

    def _refuse_keys(self, lacking: list[str], known: dict[str, int]) -> NoReturn:
        """Say which columns that tell rows apart are missing, how to give them, and what is filled in for others."""
        column = lacking[0]
        state = f"has gaps ({self.count - known[column]} of {self.count} rows)" if known[column] else "is missing"
        values = {"variant": " (pt or it)", "lens": " (raw, tuned or jacobian)"}.get(column, "")
        hint = (
            f"give it with --{column.replace('_', '-')}{values}" if column in (*GIVEN, "pair") else "every row needs it"
        )
        more = f"; so {'is' if len(lacking) == 2 else 'are'} {', '.join(lacking[1:])}" if lacking[1:] else ""
        if column == "pair":
            more += f" (or name {'--model' if 'model' in self._table.names else '--model-pt and --model-it'} instead)"
        filled = ", ".join(f"{name} with {sql}" for name, sql in self.filled.items() if name not in lacking)
        words = f"column {column} of table {self._name} {state}: {hint}{more}"
        self._refuse(f"{words} (filled in as the file lacks it: {filled})" if filled else words)

    def _check_range(self, known: Column) -> None:
        column, (low, high) = known.name, known.range
        bad = f"{column} < {low - SLACK:.9f}" if math.isfinite(low) else "false"
        bad += f" OR {column} > {high + SLACK:.9f}" if math.isfinite(high) else ""
        wrong = self._sql.execute(
            f"SELECT file_row, {column} FROM given WHERE {bad} OR isinf({column}) ORDER BY file_row LIMIT 1"
        ).fetchone()
        if wrong:
            self._refuse(f"column {column}, row {wrong[0]}: {wrong[1]:g}, expected {low:g} to {high:g}")

    def _check_names(self) -> None:
        both = any(column.name == "variant" and column.fill == "'both'" for column in self._table.columns)
        allowed = ("both",) if self._paired else (*VARIANTS, "both") if both else VARIANTS
        for column in ("pair", *MODELS, "variant", "stream", "stream_pt"):
            for value in self._distinct(column) if column in self._names else ():
                if column == "variant" and value not in allowed:
                    self._refuse(f"variant {value!r}; expected {' or '.join(allowed)}")
                check_name(value, f"{self._file}: {column}")

    def _check_twice(self) -> None:
        columns = [column.name for column in self._columns if column.key]
        names = ", ".join(f'"{column}"' for column in columns)
        row = self._sql.execute(
            f"SELECT {names} FROM given GROUP BY ALL HAVING count(*) > 1 ORDER BY ALL LIMIT 1"
        ).fetchone()
        if row:
            named = zip(columns, row, strict=True)
            self._refuse(f"two rows for {', '.join(f'{key} {value}' for key, value in named if value is not None)}")

    def captures(self) -> list[dict[str, str]]:
        """The combinations of what questions narrow the table by."""
        columns = [column for column in CAPTURE if column in self._table.names]
        rows = self._sql.execute(f"SELECT DISTINCT {', '.join(columns)} FROM given ORDER BY ALL").fetchall()
        return [dict(zip(columns, row, strict=True)) for row in rows]

    def groups(self) -> Iterator[dict[str, Any]]:
        """Row groups of one layer, as other tables have them."""
        layered = "layer" in self._table.names
        for layer in self._distinct("layer") if layered else [None]:
            where = f"WHERE layer = {layer}" if layered else ""
            columns = ", ".join(f'"{name}"' for name in self._table.names)
            rows = self._sql.sql(f"SELECT {columns} FROM given {where}").to_arrow_table()
            for batch in rows.to_batches(max_chunksize=ROW_GROUP_TOKENS):
                yield dict(zip(batch.schema.names, batch.columns, strict=True))

    def _distinct(self, column: str) -> list[Any]:
        return [row[0] for row in self._sql.execute(f"SELECT DISTINCT {column} FROM given ORDER BY 1").fetchall()]

    def _one(self, sql: str) -> tuple[Any, ...]:
        row = self._sql.execute(sql).fetchone()
        assert row is not None
        return row

    def _refuse(self, words: str) -> NoReturn:
        raise LakeError(f"{self._file}: {words}")


def _as_given(table: Table, names: set[str]) -> list[Column]:
    """The columns of a table as a file has them: models by their names, or as variants of a pair."""
    if names & set(MODELS):
        return list(table.columns)
    variant = [VARIANT] if "variant" not in table.names and "model" in table.names else []
    return [PAIR, *variant, *(column for column in table.columns if column.name not in MODELS)]


def _described(column: Column) -> str:
    return f"{column.name} {column.sql_type}"


def _refuse_overlap(layout: Layout, name: str, captures: list[dict[str, str]]) -> None:
    """Rows of one capture from two sources would count twice."""
    own = stream_table(layout).query("prompt_set != @FOREIGN", local_dict={"FOREIGN": FOREIGN})
    taken = {(row.model, row.stream) for row in own.itertuples()}
    there = foreign_captures(layout, name)
    for capture in captures:
        if capture in there or any((model, capture.get("stream")) in taken for model in models_of(capture)):
            words = ", ".join(f"{key} {value}" for key, value in capture.items())
            raise LakeError(
                f"table {name}: the lake has rows of {words} already; choose another --stream, native-NAME say"
            )
