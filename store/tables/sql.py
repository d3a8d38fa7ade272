"""Tables: Parquet files named by what determines their content, and the closed SQL connection that reads them."""

import atexit
import json
import math
import re
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import Future, wait
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ..artifacts.texts import output_files
from ..captures.reader import COLUMNS, list_captures
from ..core.catalog import load_catalog
from ..core.columns import Column, schema_of
from ..core.errors import CorruptError, LakeError, SqlError
from ..core.files import canonical_json, free_bytes, full_disk, human_bytes, place, sync_file, temporary_of
from ..core.schema import OUTPUT_COLUMNS, OUTPUTS
from ..format.parquet import AGAIN, about, check_parquet, check_rows, first_line, parquet_writer
from ..format.paths import Layout
from .declared import TABLES
from .live import foreign_files, live_files, table_key
from .names import Pairs, pair_table, stored_models, stored_pairs
from .streams import PAIRED, history, pair_streams, sql_text, stream_table

T = TypeVar("T")
VIEWS = {path.stem: path.read_text() for path in sorted((Path(__file__).parent / "views").glob("*.sql"))}
ROW_GROUP_TOKENS = 1 << 17  # one row group = one layer of about this many tokens: a layer filter skips the rest
VIEW_COLUMN = re.compile(r"column (\w+)(?: \(([^)]*)\))?: (.*)")  # in the header of a view
HISTORY = Column(
    "history", "string", "shared: both models read one answer; own: each read its own. Never average over both"
)
_PAIR = Column("pair", "string", "name of the pair", null="the model is in none")
_VARIANT = Column("variant", "string", "model of the pair: pt or it", null="the model is in no pair")
_MODEL = Column("model", "string", "name of the model")
# Small tables made of records, by name: what they are, and their columns.
SMALL_TABLES = {
    "captures": (
        "Every capture of the lake.",
        (
            _MODEL,
            Column("stream", "string", "stream that the model read"),
            Column("prompts", "int64", "prompts of the stream", "prompts"),
            Column("tokens", "int64", "tokens of the stream", "tokens"),
            Column("bytes", "int64", "size on disk", "bytes"),
            Column("sealed", "bool", "whether the capture is complete"),
            Column("path", "string", "folder of the capture"),
        ),
    ),
    "pairs": ("The models of every pair.", (_PAIR, _VARIANT, _MODEL)),
    "streams": (
        "Every stream that a model read, by each name it can be asked by.",
        (
            _PAIR,
            _VARIANT,
            _MODEL,
            Column("recipe", "string", "what the stream is: raw, native, teacher, reverse ..., as in the catalog"),
            Column("prompts", "string", "name of the prompt set"),
            Column("stream", "string", "name of the stream in tables"),
            Column("name", "string", "name it can be asked by: the stream's, or that of one with equal content"),
            Column(
                "prompt_set", "string", "SHA-256 of the prompt set; foreign where only imported tables know the stream"
            ),
            Column("max_new_tokens", "int64", "longest continuation", "tokens"),
            Column("n_prompts", "int64", "prompts of the stream", "prompts"),
        ),
    ),
}
# What DuckDB raises for a wrong statement, whatever the files hold.
MISTAKES = (
    duckdb.ParserException,
    duckdb.BinderException,
    duckdb.CatalogException,
    duckdb.PermissionException,
    duckdb.ConversionException,
)
CONNECTION = {"python_enable_replacements": "false", "memory_limit": "50%"}  # the rest of the process needs memory, too
TEXTS = "outputs"  # free-running texts, which lie in a folder of their own
NO_CAPTURES, NO_STREAMS = (pd.DataFrame(columns=columns, dtype=object) for columns in (COLUMNS, PAIRED))
SQL_SECONDS = 3600.0  # that a query may take unless more is asked for


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
    temporary = temporary_of(path)
    merged = temporary_of(path.with_suffix(".merged"))
    try:
        with _writer(temporary, schema) as writer:
            yield lambda group: writer.write_table(_to_arrow(group, schema), row_group_size=1 << 30)
        if parts := _of_one_layer(temporary, schema):
            with _writer(merged, schema) as writer, pq.ParquetFile(temporary) as source:
                for groups in parts:
                    table = source.read_row_groups(groups).unify_dictionaries()
                    writer.write_table(table.cast(schema), row_group_size=1 << 30)
            merged.replace(temporary)
        sync_file(temporary)
        place(temporary, path)
        layout.files.publish(path)
    except OSError as error:
        if full_disk(error):
            raise LakeError(
                f"disk full while writing table {name} ({human_bytes(free_bytes(path.parent))} free); nothing was kept"
            ) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)
        merged.unlink(missing_ok=True)


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
        told = group.column(place).statistics
        if told is None or not told.has_min_max or told.null_count or told.min != told.max:
            return []
        if told.min in rows and rows[told.min] + group.num_rows > ROW_GROUP_TOKENS:
            done, open_parts, rows = [*done, *open_parts.values()], {}, Counter()
        open_parts.setdefault(told.min, []).append(number)
        rows[told.min] += group.num_rows
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


def connect(
    layout: Layout,
    sql: str | None = None,
    pairs: Pairs | None = None,
    files: Mapping[str, Sequence[Path]] | None = None,
    only: Set[str] | None = None,
) -> duckdb.DuckDBPyConnection:
    """An in-memory DuckDB connection that sees the lake's tables as views and nothing else.

    `sql` is what it will be asked: of a remote lake only the tables in it are brought here, all without it. `pairs` are
    those that rows are told apart by (left out: all that the lake and the usual catalog have), `files` the only ones that are
    read of a table, beside those from elsewhere (left out: all that count). With `only`, rows of other models than these need
    not be there (`restriction.only_models`).

    Views: one per table of the schema (empty when nothing is computed yet), with columns pair and variant; `pairs`,
    `captures`, `streams` and the SQL views. A model in no pair has rows with neither, one in two pairs has its rows twice.
    No other file, no network, no Python variables, and the configuration is locked. Raises CorruptError for a table file
    that is no Parquet file or lacks columns of its table.
    """
    read, named = tables_read(sql), set(known_tables()) if sql is None else tables_in(sql)
    behind = named | {name for view in named & VIEWS.keys() for name in tables_in(VIEWS[view])}
    pairs = stored_pairs(load_catalog(), stored_models(layout)) if pairs is None else pairs
    found = {name: _files_read(layout, name, files, only) if name in read else [] for name in TABLES}
    texts = output_files(layout, True) if TEXTS in named else []
    found[TEXTS] = [file for file in texts if only is None or file.parts[-3] in only]
    connection = duckdb.connect(":memory:", config={**CONNECTION, "temp_directory": str(_scratch())})
    small = {"pairs": pair_table(pairs)}
    small["streams"] = streams = NO_STREAMS
    if behind & {"streams", "pair_lens"}:
        mine = pairs if only is None else {pair: of for pair, of in pairs.items() if only & set(of.values())}
        alone = files is None and "streams" in behind
        small["streams"] = streams = _all_streams(layout, mine, only) if alone else pair_streams(layout, mine)
    small["captures"] = list_captures(layout, only) if "captures" in named else NO_CAPTURES
    for name, frame in small.items():
        connection.register(f"_{name}", frame)
        connection.execute(f"CREATE TABLE {name} AS SELECT * FROM _{name}")
        connection.unregister(f"_{name}")
    for name, columns in {**{name: table.columns for name, table in TABLES.items()}, TEXTS: OUTPUT_COLUMNS}.items():
        try:
            rows = _paired(_scan(found[name], columns), columns)
            if name == "pair_lens":
                rows = f"SELECT *, {history(layout, streams)} AS {HISTORY.name} FROM ({rows})"
            connection.execute(f'CREATE VIEW "{name}" AS {rows}')
        except duckdb.Error as error:  # what pyarrow takes for a Parquet file and DuckDB does not
            folder = layout.root / "texts" if name == TEXTS else layout.table(name)
            raise CorruptError(f"{folder}: a file can't be read ({first_line(error)}); {AGAIN}") from error
    for name, view in VIEWS.items():
        connection.execute(f"CREATE VIEW {name} AS {view}")
    _comment(connection, tables_in(sql or ""))
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
                    f"SQL: stopped after {seconds:g} s; a longer limit: `actlake sql --timeout SECONDS` (0: none)"
                )
    except KeyboardInterrupt:
        connection.interrupt()
        wait([done], timeout=5)
        raise
    return done.result()


def _files(layout: Layout, texts: bool) -> dict[str, list[Path]]:
    here = {name: sorted(layout.table(name).glob("*.parquet")) for name in TABLES}
    return here | {TEXTS: output_files(layout, texts)}


def tables_read(sql: str | None) -> set[str]:
    """The tables that a statement reads, by itself or behind views; all without one."""
    if sql is None:
        return set(TABLES)
    named, behind = set[str](), tables_in(sql)
    while behind - named:
        named |= behind
        behind = {name for view in named & VIEWS.keys() for name in tables_in(VIEWS[view])}
    return named & TABLES.keys()


@cache
def tables_behind(name: str) -> frozenset[str]:
    """The tables that a table or view is made of; none for an unknown name."""
    if name not in VIEWS:
        return frozenset({name} & TABLES.keys())
    return frozenset().union(*(tables_behind(each) for each in tables_in(VIEWS[name])))


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


def described() -> dict[str, tuple[str, dict[str, Column]]]:
    """What every table and view is, and what its columns are, by name.

    A view says so in its header; a column that it does not name there is that of a table behind it.
    """
    every = {name: (table.about, table.columns) for name, table in TABLES.items()} | SMALL_TABLES
    every["pair_lens"] = (every["pair_lens"][0], (*every["pair_lens"][1], HISTORY))
    every[TEXTS] = ("What models wrote under edits, a text a row.", OUTPUT_COLUMNS)
    found = {
        name: (words, {column.name: column for column in (_PAIR, _VARIANT, *columns)})
        for name, (words, columns) in every.items()
    }
    for name, view in VIEWS.items():
        header = [line.removeprefix("--").strip() for line in view.splitlines() if line.startswith("--")]
        behind = [column for table in sorted(tables_behind(name)) for column in TABLES[table].columns]
        known = {column.name: column for column in (_PAIR, _VARIANT, *behind)}
        own = [Column(m[1], "string", m[3], m[2] or "") for line in header if (m := VIEW_COLUMN.fullmatch(line))]
        found[name] = (header[0], known | {column.name: column for column in own})
    return found


def _quoted(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"


def tables_in(sql: str) -> set[str]:
    """Names of the lake's tables and views that a statement reads, as DuckDB's parser finds them.

    Columns, aliases and texts of the same name don't count. Of several statements, or one that can't be parsed, every name
    that occurs in the text.
    """
    known = known_tables()
    found = _parsed(sql)
    if found is None:
        return {name for name in known if re.search(rf"\b{name}\b", sql, re.IGNORECASE)}
    lowered = {name.lower() for name in found}
    return {name for name in known if name.lower() in lowered}


@lru_cache(maxsize=256)
def _parsed(sql: str) -> frozenset[str] | None:
    """The tables of one statement that reads, None where DuckDB can't name them; opens no file."""
    with duckdb.connect(":memory:", config={"enable_external_access": "false"}) as parser:
        with suppress(duckdb.Error):
            return frozenset(parser.get_table_names(sql))
        # Of some joins it names no tables but can still parse them.
        tree = parser.execute("SELECT json_serialize_sql(?::VARCHAR)", [sql]).fetchone()
    parsed = json.loads(tree[0]) if tree else {"error": True}
    return None if parsed.get("error") else frozenset(_base_tables(parsed))


def _base_tables(node: Any) -> Iterator[str]:
    """Names of the tables in a serialised statement."""
    if isinstance(node, dict):
        if node.get("type") == "BASE_TABLE":
            yield node["table_name"]
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from _base_tables(child)


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
        for name, files in _files(layout, texts=False).items():
            for file in files:
                try:
                    check_rows(file, OUTPUTS if name == TEXTS else TABLES[name].schema)
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


def known_tables() -> list[str]:
    """Names that SQL can use."""
    return [*TABLES, TEXTS, *VIEWS, *SMALL_TABLES]
