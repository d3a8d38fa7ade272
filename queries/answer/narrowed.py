"""A query's SQL, its tables narrowed to the captures that are asked about."""

import re
from collections.abc import Sequence

from ...store.tables.statements import VIEWS, described, tables_behind
from ...store.tables.streams import sql_text
from ..engine.context import Scope
from ..rows.registry import Query


def scoped(query: Query, scopes: Sequence[Scope]) -> str:
    """The query's SQL with its tables narrowed to the captures in scope; `actlake sql` accepts it."""
    names = list(dict.fromkeys(wanted.table for wanted in query.needs))
    names += [view for view in VIEWS if view not in names and tables_behind(view) <= set(names)]
    narrowed = ",\n".join(f"{name} AS ({_narrowed(name, scopes, _lenses(query, name))})" for name in names)
    body = re.sub(r"^WITH\s", "", query.sql, flags=re.IGNORECASE)
    return f"WITH {narrowed}" + (",\n" if body != query.sql else "\n") + body


def pooled(query: Query, scopes: dict[str, list[Scope]]) -> str:
    """One statement for one pair, or for several with a column `pair`."""
    parts = {pair: scoped(query, found) for pair, found in scopes.items()}
    if len(parts) == 1:
        return next(iter(parts.values()))
    return "\nUNION ALL BY NAME\n".join(
        f"SELECT {sql_text(pair)} AS pair, * FROM (\n{sql}\n)" for pair, sql in parts.items()
    )


def _lenses(query: Query, name: str) -> str:
    """Which lenses' rows of a table a query reads: others may be in the lake, too."""
    tables = tables_behind(name) & {"lens", "churn"}
    if not tables:
        return ""
    kinds = sorted({want.kind or "raw" for want in query.needs if tables_behind(want.table) & tables})
    return f" AND lens IN ({', '.join(map(sql_text, kinds))})"


def _narrowed(name: str, scopes: Sequence[Scope], lenses: str) -> str:
    """One table limited to the captures in scope; several recipes get a column `recipe`."""
    if len(scopes) == 1:
        return f"SELECT * FROM main.{name} WHERE {_where(name, scopes[0])}{lenses}"
    return " UNION ALL ".join(
        f"SELECT {sql_text(scope.recipe)} AS recipe, * FROM main.{name} WHERE {_where(name, scope)}{lenses}"
        for scope in scopes
    )


def _where(name: str, scope: Scope) -> str:
    pair, columns = f"pair = {sql_text(scope.pair)}", described()[name][1]
    if not scope.streams or "stream" not in columns:
        return pair
    if "stream_pt" in columns:  # a pair's rows
        read = {"stream": scope.streams.get("it", ""), "stream_pt": scope.streams.get("pt", "")}
        return " AND ".join([pair, *(f"{column} = {sql_text(stream)}" for column, stream in read.items())])
    # A model may have read the other's text, too: of a pair with one template under the very name of the other's stream.
    each = ", ".join(f"({sql_text(variant)}, {sql_text(stream)})" for variant, stream in sorted(scope.streams.items()))
    return f"{pair} AND (variant, stream) IN ({each})"
