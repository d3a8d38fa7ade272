"""Rows of one's own: a skeleton to begin with, and what a row's file lacks, line by line."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import duckdb

from ...store.core.catalog import load_catalog
from ...store.core.errors import LakeError, SqlError
from ...store.core.schema import VARIANTS
from ...store.core.yaml_file import hint
from ...store.format.paths import Layout
from ...store.tables.declared import TABLES
from ...store.tables.sql import check_select, connect, sql_error
from ...store.tables.statements import SMALL_TABLES, VIEWS, tables_behind, tables_in
from ..engine.context import Scope
from ..rows.header import Query, read_header
from ..rows.measures import measure
from ..rows.registry import queries, text_of
from .narrowed import scoped
from .sentences import FIELD

FIELDS = re.compile(r"-- ?(\w+):")
PARTS = re.compile(r"(\w+)\s+AS\s+(?:MATERIALIZED\s+)?\(", re.IGNORECASE)  # of a WITH, by name
NAME = re.compile(r"[A-Za-z]\w*", re.ASCII)
SKELETON = Path(__file__).parent.parent / "rows" / "skeleton.txt"  # a row that is answered as it is; to be changed


def new_row(name: str, catalog: Path | None = None) -> tuple[Path, bool]:
    """Write a commented row that can be answered at once, to be changed: its file, and whether the catalog names its folder.

    NAME.sql goes into the first folder that the catalog names, else into the working folder; `my_rows/NAME` into another.
    LakeError for a name that is no word or that a row has, and for a file that is there: nothing is overwritten.
    """
    named, folders = Path(name.removesuffix(".sql")), list(load_catalog(catalog).rows.values())
    folder = named.parent if len(named.parts) > 1 else folders[0] if folders else Path()
    if not NAME.fullmatch(named.name):
        raise LakeError(f"row {named.name!r}", expected="a name of letters, digits and _ that begins with a letter")
    if taken := [known for known in queries(catalog) if known.lower() == named.name.lower()]:
        raise LakeError(f"row {taken[0]!r} is there already; give it another name")
    file = folder / f"{named.name}.sql"
    text = SKELETON.read_text(encoding="utf-8").replace("-- id: NAME", f"-- id: {named.name}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with file.open("x", encoding="utf-8") as target:
            target.write(text)
    except FileExistsError:
        raise LakeError(f"{file} is there already; nothing is overwritten: give the row another name") from None
    except OSError as error:
        raise LakeError(f"{file}: can't be written ({error})") from None
    return file, folder.resolve() in {known.resolve() for known in folders}


def check_row(file: Path) -> Query:
    """The row that a file holds. LakeError, which names file and line, for the first thing in it that can't be right."""
    query, problems = checked(file)
    if query is None:
        raise LakeError(problems[0])
    return query


def checked(file: Path) -> tuple[Query | None, list[str]]:
    """The row that a file holds, and what can't be right in it, `FILE:LINE: what is wrong` each: None where something is.

    LakeError for a file that can't be read.
    """
    text = text_of(file)
    query, problems = read_header(text, str(file))
    if query is None:
        return None, problems
    at = {match[1]: number for number, line in enumerate(text.splitlines(), 1) if (match := FIELDS.match(line))}
    known = [*TABLES, *VIEWS]
    found = [
        (at["needs"], f"needs table {want.table!r}, which nobody declares{hint(want.table, known)}")
        for want in query.needs
        if want.table not in known
    ] or list(_of_sql(query, at, len(text.rstrip().splitlines())))
    found += [(at["says"], f"says {what}") for what in _said(query)]
    return (None if found else query), [f"{file}:{line}: {what}" for line, what in sorted(found)]


def _of_sql(query: Query, at: dict[str, int], last: int) -> Iterator[tuple[int, str]]:
    """What is wrong with a row's SELECT, which ends on line `last` of the file: a line of the file, and a sentence.

    `at` is the line that each field of the header begins on.
    """
    first, there = last - len(query.sql.splitlines()) + 1, {want.table for want in query.needs}
    pairs = [name for want in query.needs for name in tables_behind(want.table) if TABLES[name].of != "capture"]
    if len(query.compares) > 1 and pairs:
        yield at["compares"], f"compares more than models, but table {pairs[0]} is about two of them"
    both = {variant: variant for variant in VARIANTS}
    scopes = [Scope("pair", both, both, recipe) for recipe in query.recipes] or [Scope("pair", both, {})]
    sql = scoped(query, scopes)
    try:
        check_select(sql)
        columns = _columns(sql)
    except LakeError as error:
        said = error.lines if isinstance(error, SqlError) else [str(error)]
        place = re.search(r"^LINE (\d+):", "\n".join(said), re.MULTILINE)
        yield (
            max(first, last + int(place[1]) - len(sql.splitlines())) if place else first,
            said[0] if said[0].startswith("SQL: ") else f"SQL: {said[0]}",
        )
        return
    for name in sorted(tables_in(query.sql) - SMALL_TABLES.keys() - {*PARTS.findall(query.sql)}):
        if not (name in there or (name in VIEWS and tables_behind(name) <= there)):
            yield (
                at["needs"],
                f"its SELECT reads {name}, which `needs` does not name: it would see rows of all captures",
            )
    if "measure" not in columns or not {"estimate", "total", "value"} & {*columns}:
        yield first, "its SELECT must return `measure` and `total`, `value` or `estimate`"
    if {"total", "value"} & {*columns} and (lacking := [name for name in ("prompt", "n") if name not in columns]):
        yield first, f"its SELECT returns totals without `{lacking[0]}`: intervals resample prompts, of n tokens each"
    if query.contrast and query.contrast[0] not in columns:
        yield at["contrast"], f"contrast is over {query.contrast[0]}, which its SELECT does not return"
    for key in ("x", "hue", "down"):
        if (name := query.plot.get(key, "layer")) not in (*columns, "layer", "variant"):
            yield at["plot"], f"plot has {key}={name}, which its SELECT does not return"


def _columns(sql: str) -> list[str]:
    """The columns that a statement returns, bound to the tables of an empty lake; LakeError where it can't be."""
    with tempfile.TemporaryDirectory() as folder:
        connection = connect(Layout.open(Path(folder) / "lake", create=True), sql)
        try:
            return [name for name, *_ in connection.execute(f"DESCRIBE {sql}").fetchall()]
        except duckdb.Error as error:
            raise sql_error(error) from error


def _said(query: Query) -> Iterator[str]:
    """Measures of a row's sentence that its header does not describe, where it describes any."""
    for name in dict.fromkeys(name for name, *_ in FIELD.findall(query.says)):
        if query.measures and not measure(query.measures, name):
            yield f"{{{name}}}, which is none of its measures: {', '.join(known for known, *_ in query.measures)}"
