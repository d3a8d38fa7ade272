"""Names that SQL can use: tables, views and their columns, and which of them a statement reads."""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import duckdb

from ..core.columns import Column
from ..core.schema import OUTPUT_COLUMNS
from .declared import TABLES

VIEWS = {path.stem: path.read_text() for path in sorted((Path(__file__).parent / "views").glob("*.sql"))}
VIEW_COLUMN = re.compile(r"column (\w+)(?: \(([^)]*)\))?: (.*)")  # in the header of a view
HISTORY = Column(
    "history", "string", "shared: both models read one answer; own: each read its own. Never average over both"
)
HISTORIED = ("pair_lens", "pair_lenses")  # tables that have it
PAIR = Column("pair", "string", "name of the pair", null="the model is in none")
PAIR_VARIANT = Column("variant", "string", "model of the pair: pt or it", null="the model is in no pair")
PAIR_MODEL = Column("model", "string", "name of the model")
# Small tables made of records, by name: what they are, and their columns.
SMALL_TABLES = {
    "captures": (
        "Every capture of the lake.",
        (
            PAIR_MODEL,
            Column("stream", "string", "stream that the model read"),
            Column("prompts", "int64", "prompts of the stream", "prompts"),
            Column("tokens", "int64", "tokens of the stream", "tokens"),
            Column("bytes", "int64", "size on disk", "bytes"),
            Column("sealed", "bool", "whether the capture is complete"),
            Column("path", "string", "folder of the capture"),
            Column("lacks", "string", "what this copy of a part does not hold; empty where it holds all"),
            Column(
                "warning", "string", "noisy where values depend on the batch far more than rounding does, else empty"
            ),
        ),
    ),
    "pairs": ("The models of every pair.", (PAIR, PAIR_VARIANT, PAIR_MODEL)),
    "streams": (
        "Every stream that a model read, by each name it can be asked by.",
        (
            PAIR,
            PAIR_VARIANT,
            PAIR_MODEL,
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
CLOSED: dict[str, str | bool | int | float | list[str]] = {
    "enable_external_access": "false"
}  # of a connection that only parses
TEXTS = "outputs"  # free-running texts, which lie in a folder of their own


def known_tables() -> list[str]:
    """Names that SQL can use."""
    return [*TABLES, TEXTS, *VIEWS, *SMALL_TABLES]


def tables_read(sql: str | None) -> set[str]:
    """The tables that a statement reads, by itself or behind views; all without one."""
    if sql is None:
        return set(TABLES)
    named, behind = set[str](), tables_in(sql)
    while behind - named:
        named |= behind
        behind = {name for view in named & VIEWS.keys() for name in tables_in(VIEWS[view])}
    return named & TABLES.keys()


def tables_behind(name: str) -> frozenset[str]:
    """The tables that a table or view is made of; none for an unknown name."""
    if name not in VIEWS:
        return frozenset({name} & TABLES.keys())
    return frozenset().union(*(tables_behind(each) for each in tables_in(VIEWS[name])))


def described() -> dict[str, tuple[str, dict[str, Column]]]:
    """What every table and view is, and what its columns are, by name.

    A view says so in its header; a column that it does not name there is that of a table behind it.
    """
    every = {name: (table.about, table.columns) for name, table in TABLES.items()} | SMALL_TABLES
    every |= {name: (every[name][0], (*every[name][1], HISTORY)) for name in HISTORIED}
    every[TEXTS] = ("What models wrote under edits, a text a row.", OUTPUT_COLUMNS)
    found = {
        name: (words, {column.name: column for column in (PAIR, PAIR_VARIANT, *columns)})
        for name, (words, columns) in every.items()
    }
    for name, view in VIEWS.items():
        header = [line.removeprefix("--").strip() for line in view.splitlines() if line.startswith("--")]
        behind = [column for table in sorted(tables_behind(name)) for column in TABLES[table].columns]
        known = {column.name: column for column in (PAIR, PAIR_VARIANT, *behind)}
        own = [Column(m[1], "string", m[3], m[2] or "") for line in header if (m := VIEW_COLUMN.fullmatch(line))]
        found[name] = (header[0], known | {column.name: column for column in own})
    return found


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


@cache
def _parser() -> duckdb.DuckDBPyConnection:
    """A connection that parses, of which each call takes a cursor: opening one takes as long as a small query."""
    return duckdb.connect(":memory:", config=CLOSED)


@lru_cache(maxsize=256)
def _parsed(sql: str) -> frozenset[str] | None:
    """The tables of one statement that reads, None where DuckDB can't name them; opens no file."""
    with suppress(duckdb.Error), _parser().cursor() as parser:
        return frozenset(parser.get_table_names(sql))
    # Of some joins it names no tables but can still parse them.
    parsed = tree_of(sql)
    return None if parsed.get("error") else frozenset(_base_tables(parsed))


def tree_of(sql: str) -> dict[str, Any]:
    """A statement as DuckDB's parser has it, `error` for one that it can't parse; opens no file."""
    with _parser().cursor() as parser:
        tree = parser.execute("SELECT json_serialize_sql(?::VARCHAR)", [sql]).fetchone()
    return json.loads(tree[0]) if tree else {"error": True}


def names_alone(sql: str) -> bool:
    """Whether a statement reads tables of the lake and nothing else, not the database's own lists of what there is."""
    found = _parsed(sql) or frozenset()
    return bool(found) and {name.lower() for name in found} <= {name.lower() for name in known_tables()}


def _base_tables(node: Any) -> Iterator[str]:
    """Names of the tables in a serialised statement."""
    if isinstance(node, dict):
        if node.get("type") == "BASE_TABLE":
            yield node["table_name"]
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from _base_tables(child)
