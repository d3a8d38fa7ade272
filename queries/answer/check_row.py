"""What a row's file lacks: its header, the tables it needs and the columns its SQL names, without data."""

from __future__ import annotations

import tempfile
from pathlib import Path

import duckdb

from ...store.core.errors import LakeError
from ...store.core.schema import VARIANTS
from ...store.core.yaml_file import hint
from ...store.format.paths import Layout
from ...store.tables.declared import TABLES
from ...store.tables.sql import check_select, connect, sql_error
from ...store.tables.statements import VIEWS
from ..engine.context import Scope
from ..rows.registry import Query, parse
from .narrowed import scoped


def check_row(file: Path) -> Query:
    """The row that a file holds. LakeError, which names the file, for the first thing in it that can't be right."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise LakeError(f"{file}: can't be read as text ({error})") from None
    query, known = parse(text, str(file)), [*TABLES, *VIEWS]
    for want in query.needs:
        if want.table not in known:
            raise LakeError(f"{file}: needs table {want.table!r}, which nobody declares{hint(want.table, known)}")
    both = {variant: variant for variant in VARIANTS}
    scopes = [Scope("pair", both, both, recipe) for recipe in query.recipes] or [Scope("pair", both, {})]
    sql = scoped(query, scopes)
    try:
        check_select(sql)
    except LakeError as error:
        raise LakeError(f"{file}: {error}") from error
    with tempfile.TemporaryDirectory() as folder:
        connection = connect(Layout.open(Path(folder) / "lake", create=True), sql)
        try:
            connection.execute(f"EXPLAIN {sql}")
        except duckdb.Error as error:
            raise LakeError(f"{file}: {sql_error(error)}") from error
    return query
