"""The closed SQL connection that reads the tables and nothing else, and what a statement names."""

import atexit
import math
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from concurrent.futures import Future, wait
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import pandas as pd

from ..artifacts.texts import output_files
from ..captures.manifest import say_warnings
from ..captures.reader import list_captures
from ..core.catalog import load_catalog
from ..core.columns import LENSES, Column, schema_of
from ..core.errors import CorruptError, LakeError, SqlError
from ..core.schema import OUTPUT_COLUMNS, OUTPUTS
from ..format.parquet import AGAIN, check_parquet, check_rows, first_line
from ..format.paths import Layout
from .declared import TABLES
from .files import captures_of, foreign_files, live_files
from .names import Pairs, pair_table, stored_models, stored_pairs
from .statements import (
    HISTORIED,
    HISTORY,
    SMALL_TABLES,
    TEXTS,
    VIEWS,
    described,
    known_tables,
    names_alone,
    tables_behind,
    tables_in,
    tables_read,
    tree_of,
)
from .streams import PAIRED, history, pair_streams, sql_text, stream_table

T = TypeVar("T")
# What DuckDB raises for a wrong statement, whatever the files hold.
MISTAKES = (
    duckdb.ParserException,
    duckdb.BinderException,
    duckdb.CatalogException,
    duckdb.PermissionException,
    duckdb.ConversionException,
)
CONNECTION = {"python_enable_replacements": "false", "memory_limit": "50%"}  # the rest of the process needs memory, too
NO_STREAMS = pd.DataFrame(columns=PAIRED, dtype=object)
CAPTURES = [column.name for column in SMALL_TABLES["captures"][1]]
SQL_SECONDS = 3600.0  # that a query may take unless more is asked for


def connect(
    layout: Layout,
    sql: str | None = None,
    pairs: Pairs | None = None,
    files: Mapping[str, Sequence[Path]] | None = None,
    only: Set[str] | None = None,
) -> duckdb.DuckDBPyConnection:
    """An in-memory DuckDB connection that sees the lake's tables as views and nothing else.

    `sql` is what it will be asked: of a remote lake only the tables in it are brought here, all without it; the columns that
    it may name, or all where it names no table, have their comments. `pairs` are
    those that rows are assigned to (left out: all that the lake and the usual catalog have). With `files` there are just the
    tables that `sql` reads, of each just these files and those from elsewhere (left out: all that count). With `only`, rows of
    other models than these need not be there (`restriction.only_models`).

    Views: one per table of the schema (empty when nothing is computed yet), with columns pair and variant; `pairs`,
    `captures`, `streams` and the SQL views. A model in no pair has rows with neither, one in two pairs has its rows twice.
    No other file, no network, no Python variables, and the configuration is locked. Raises CorruptError for a table file
    that is no Parquet file or lacks columns of its table.
    """
    read, named = tables_read(sql), set(known_tables()) if sql is None else tables_in(sql)
    behind = named | {name for view in named & VIEWS.keys() for name in tables_in(VIEWS[view])}
    pairs = stored_pairs(load_catalog(), stored_models(layout)) if pairs is None else pairs
    found = {name: _files_read(layout, name, files, only) if name in read else [] for name in TABLES}
    if files is None and sql:
        say_warnings(layout, captures_of(file for files in found.values() for file in files))
    found[TEXTS] = output_files(layout, True, only) if TEXTS in named else []
    connection = duckdb.connect(":memory:", config={**CONNECTION, "temp_directory": str(_scratch())})
    small = {"pairs": pair_table(pairs)}
    small["streams"] = streams = NO_STREAMS
    if behind & {"streams", *HISTORIED}:
        mine = pairs if only is None else {pair: of for pair, of in pairs.items() if only & set(of.values())}
        alone = files is None and "streams" in behind
        small["streams"] = streams = _all_streams(layout, mine, only) if alone else pair_streams(layout, mine)
    captures = list_captures(layout, only) if "captures" in named else pd.DataFrame(dtype=object)
    small["captures"] = captures.reindex(columns=CAPTURES, fill_value="")
    for name, frame in small.items():
        connection.register(f"_{name}", frame)
        connection.execute(f"CREATE TABLE {name} AS SELECT * FROM _{name}")
        connection.unregister(f"_{name}")
    columns_of = {name: table.columns for name, table in TABLES.items()} | {TEXTS: OUTPUT_COLUMNS}
    needed = {*read, *behind, *(files or ())} if files is not None or (sql and names_alone(sql)) else {*columns_of}
    for name in [name for name in columns_of if name in needed]:
        columns = columns_of[name]
        try:
            rows = _paired(_scan(found[name], columns), columns)
            if name in HISTORIED:
                rows = f"SELECT *, {history(layout, streams)} AS {HISTORY.name} FROM ({rows})"
            connection.execute(f'CREATE VIEW "{name}" AS {rows}')
        except duckdb.Error as error:  # what pyarrow takes for a Parquet file and DuckDB does not
            folder = layout.root / "texts" if name == TEXTS else layout.table(name)
            raise CorruptError(f"{folder}: a file can't be read ({first_line(error)})", repair=AGAIN) from error
    for name, view in VIEWS.items():
        if tables_behind(name) <= needed:
            connection.execute(f"CREATE VIEW {name} AS {view}")
    if files is None and sql:
        _comment(connection, named)
    connection.execute(f"SET allowed_paths = [{', '.join(_quoted(file) for some in found.values() for file in some)}]")
    # Its widget would stay in a notebook's output; where ipywidgets is missing there is none, and setting it is an error.
    with suppress(duckdb.InvalidInputException):
        connection.execute("SET enable_progress_bar = false")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    return connection


def _all_streams(layout: Layout, pairs: Pairs, only: Set[str] | None = None) -> pd.DataFrame:
    """The table `streams`: those of pairs, and of models that are in none (of `only`)."""
    mine = pair_streams(layout, pairs)
    alone = stored_models(layout) - {model for models in pairs.values() for model in models.values()}
    alone = alone if only is None else alone & only
    rest = stream_table(layout, alone).assign(pair=None, variant=None)[PAIRED] if alone else mine
    return mine if rest is mine or rest.empty else rest if mine.empty else pd.concat([mine, rest], ignore_index=True)


def _files_read(
    layout: Layout, name: str, files: Mapping[str, Sequence[Path]] | None, only: Set[str] | None
) -> list[Path]:
    """The files of a table that a connection reads."""
    if files is None:
        layout.files.bring(layout.table(name))
        return live_files(layout, name, only)
    return sorted({*(file for file in files.get(name, ()) if file.exists()), *foreign_files(layout, name)})


def _paired(rows: str, columns: Sequence[Column]) -> str:
    """Rows with the pair, and of one model's rows the variant, that their models are."""
    if any(column.name == "model" for column in columns):
        return f"SELECT p.pair, p.variant, t.* FROM ({rows}) AS t LEFT JOIN pairs AS p ON p.model = t.model"
    return (
        f"SELECT p.pair, t.* FROM ({rows}) AS t LEFT JOIN (SELECT pair, any_value(model) FILTER (variant = 'pt') AS model_pt,"
        " any_value(model) FILTER (variant = 'it') AS model_it FROM pairs GROUP BY pair) AS p"
        " ON p.model_pt IS NOT DISTINCT FROM t.model_pt AND p.model_it IS NOT DISTINCT FROM t.model_it"
    )


@cache
def _scratch() -> Path:
    """Where DuckDB puts what does not fit into memory: SQL may read that folder, so it is this process's alone."""
    folder = tempfile.TemporaryDirectory(prefix="actlake-sql-")
    atexit.register(folder.cleanup)
    return Path(folder.name)


def interruptible(connection: duckdb.DuckDBPyConnection, action: Callable[[], T], seconds: float = math.inf) -> T:
    """What `action` returns of a connection; Ctrl-C stops it, which DuckDB itself sees only when a query is over.

    LakeError when it takes more than so many seconds.
    """
    done: Future[T] = Future()

    def work() -> None:
        try:
            done.set_result(action())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        started = time.monotonic()
        while not done.done():
            wait([done], timeout=0.2)
            if not done.done() and time.monotonic() - started > seconds:
                connection.interrupt()
                wait([done], timeout=5)
                raise LakeError(
                    f"SQL: stopped after {seconds:g} s",
                    repair="give it longer: timeout=SECONDS, --timeout (0: no limit)",
                )
    except KeyboardInterrupt:
        connection.interrupt()
        wait([done], timeout=5)
        raise
    return done.result()


def _scan(files: Sequence[Path], columns: Sequence[Column]) -> str:
    """SQL of the rows of some files; a column of values that one lacks, made before the column was there, is NULL."""
    schema, may_lack = schema_of(columns), frozenset(column.name for column in columns if not column.key)
    there = [check_parquet(file, schema, may_lack=may_lack) for file in files]
    known = frozenset().union(*there)
    names = ", ".join(
        f'"{column.name}"' if column.name in known else f'NULL::{column.sql_type} AS "{column.name}"'
        for column in columns
    )
    if not files:
        return f"SELECT {names} WHERE false"
    union = ", union_by_name = true" if any(names != known for names in there) else ""
    return f"SELECT {names} FROM read_parquet([{', '.join(map(_quoted, files))}]{union})"


def _comment(connection: duckdb.DuckDBPyConnection, names: set[str]) -> None:
    """Give the columns of these tables and views their meaning and unit; of all, where a statement asks for no rows of any."""
    there = connection.execute("SELECT table_name, column_name FROM duckdb_columns() WHERE NOT internal").fetchall()
    there = [(table, column) for table, column in there if table in names or not names]
    known, found = described(), []
    for name in dict.fromkeys(table for table, _ in there):
        kind = "TABLE" if name in SMALL_TABLES else "VIEW"
        found.append(f'COMMENT ON {kind} "{name}" IS {sql_text(known[name][0])}')
    for table, column in there:
        found.append(f'COMMENT ON COLUMN "{table}"."{column}" IS {sql_text(known[table][1][column].comment)}')
    connection.execute("; ".join(found))


def _quoted(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"


def check_select(sql: str) -> None:
    """Raise LakeError unless `sql` is one statement that only reads."""
    try:
        statements = duckdb.extract_statements(sql)
    except duckdb.Error as error:
        raise sql_error(error) from error
    if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
        kinds = ", ".join(statement.type.name for statement in statements) or "nothing"
        raise LakeError(f"SQL: one SELECT statement expected, found {kinds}; the lake's tables are read-only")


def sql_error(error: duckdb.Error, layout: Layout | None = None) -> LakeError:
    """DuckDB's message as one clear line for the user; of a `layout`, the table file that is damaged, if one is."""
    if layout and not isinstance(error, MISTAKES):
        files = [
            (file, TABLES[name].schema) for name in TABLES for file in sorted(layout.table(name).glob("*.parquet"))
        ]
        for file, schema in [*files, *((file, OUTPUTS) for file in output_files(layout, False))]:
            try:
                check_rows(file, schema)
            except CorruptError as damage:
                return damage
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, duckdb.PermissionException):
        return LakeError(f"SQL: only the lake's own tables ({', '.join(known_tables())}) can be read ({lines[0]})")
    whole = str(error).rstrip().splitlines()
    at = next((number for number, line in enumerate(whole) if line.startswith("LINE ")), len(whole))
    message = " ".join(line.strip() for line in whole[:at] if line.strip())[:500]
    # The place in the statement keeps lines of its own: a caret stands below it.
    return SqlError("SQL: " + " ".join(lines[:3])[:500], [message, *whole[at:]])


COLUMNS = ("model", "model_pt", "model_it")


def only_models(sql: str, pairs: Pairs) -> frozenset[str] | None:
    """Some models, one of which every row of a statement is of; None where the statement does not say.

    It does when it is one SELECT from one table, with no other inside, whose WHERE names a pair or models: `pair = 'X'`,
    `model IN ('X-pt', 'X-it')`, alone or with more after AND.
    """
    parsed = tree_of(sql)
    statements = [] if parsed.get("error") else parsed["statements"]
    if len(statements) != 1 or sum(each in ("SELECT_NODE", "SET_OPERATION_NODE") for each in _types(statements)) != 1:
        return None
    node = statements[0]["node"]
    source = node.get("from_table") or {}
    if source.get("type") != "BASE_TABLE" or not _is_table(str(source.get("table_name")).lower()) or node.get("sample"):
        return None
    found = []
    for column, values in _wanted(node.get("where_clause")):
        if column == "pair":
            values = [model for pair in values for model in pairs.get(pair, {}).values()]
        found.append(frozenset(values))
    return min(found, key=len, default=None)  # any one of them holds for every row


def lenses_named(sql: str) -> frozenset[str]:
    """The kinds of lens that a statement names by a text, such as lens = 'jacobian'."""
    return frozenset(LENSES) & {text for node in _nodes(tree_of(sql)) if (text := _text(node))}


def _is_table(name: str) -> bool:
    """Whether each row is of the models that it names: those of a view may come from other models' rows, too."""
    return name in TABLES or name in ("outputs", "captures", "streams")


def _types(node: Any) -> Iterator[str]:
    """The types of all parts of a statement."""
    return (part["type"] for part in _nodes(node) if isinstance(part.get("type"), str))


def _nodes(node: Any) -> Iterator[dict[str, Any]]:
    """All parts of a statement."""
    if isinstance(node, dict):
        yield node
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from _nodes(child)


def _wanted(condition: Any) -> Iterator[tuple[str, list[str]]]:
    """(column, texts) of what a condition asks for in any case: the column is one of these."""
    if not isinstance(condition, dict):
        return
    kind = condition.get("type")
    if kind == "CONJUNCTION_AND":
        for child in condition["children"]:
            yield from _wanted(child)
        return
    parts = [condition.get("left"), condition.get("right")] if kind == "COMPARE_EQUAL" else []
    parts = condition.get("children", []) if kind == "COMPARE_IN" else parts
    columns = [part for part in parts if isinstance(part, dict) and part.get("type") == "COLUMN_REF"]
    texts = [_text(part) for part in parts if part not in columns]
    name = columns[0]["column_names"][-1].lower() if len(columns) == 1 else ""
    if name in ("pair", *COLUMNS) and texts and None not in texts and (kind != "COMPARE_IN" or parts[0] is columns[0]):
        yield name, [text for text in texts if text is not None]


def _text(part: Any) -> str | None:
    """A constant text, None for anything else."""
    if not isinstance(part, dict) or part.get("type") != "VALUE_CONSTANT":
        return None
    literal, value = part.get("literal") or {}, part.get("value") or {}  # of DuckDB from 2.0 on, and before
    found = literal.get("text") if literal.get("kind") == "STRING" else None
    return value.get("value") if value.get("type", {}).get("id") == "VARCHAR" else found
