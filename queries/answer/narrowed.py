"""A query's SQL, its tables narrowed to the captures and to the segments of tokens that are asked about."""

import re
from collections.abc import Container, Sequence
from dataclasses import replace

from ...store.core.columns import SEGMENTS
from ...store.core.errors import LakeError
from ...store.tables.statements import VIEWS, described, tables_behind
from ...store.tables.streams import sql_text
from ..engine.context import Names, Scope
from ..replayed.graft import HOST
from ..rows.header import Query, Wanted

WITH = re.compile(r"^((?:\s*--[^\n]*\n)*\s*)WITH\s", re.IGNORECASE)  # begins a SELECT, comments before it stay
PLACES = (("stream", "token"), ("stream", "prompt", "step"))  # columns by which a table's rows are tokens of a stream


def within(query: Query, segments: Sequence[str]) -> Query:
    """A row asked about tokens of some segments alone, whose numbers the table `tokens` knows.

    LakeError for an unknown segment, and for a row that reads a table whose rows are no tokens.
    """
    if unknown := [name for name in segments if name not in SEGMENTS]:
        raise LakeError(f"segment {unknown[0]!r}: expected one of {', '.join(SEGMENTS[1:])}")
    if not segments:
        return query
    whole = [want.table for want in query.needs if not _place(described()[want.table][1])]
    if whole:
        raise LakeError(
            f"{query.id}: reads {', '.join(dict.fromkeys(whole))}, whose lines are no tokens: it can't be asked about segments;"
            " leave --segment out"
        )
    return replace(query, needs=tuple(dict.fromkeys((*query.needs, Wanted("tokens", "", False)))))


def _place(columns: Container[str]) -> tuple[str, ...]:
    """The columns of PLACES that a table has, empty where it has not all of any."""
    return next((place for place in PLACES if all(name in columns for name in place)), ())


def scoped(query: Query, scopes: Sequence[Scope]) -> str:
    """The query's SQL with its tables narrowed to the captures in scope; `actlake sql` accepts it."""
    names = list(dict.fromkeys(wanted.table for wanted in query.needs))
    names += [view for view in VIEWS if view not in names and tables_behind(view) <= set(names)]
    narrowed = ",\n".join(f"{name} AS ({_narrowed(name, scopes, _lenses(query, name))})" for name in names)
    body = WITH.sub(r"\1", query.sql)
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


def read_through(scopes: Sequence[Scope], want: Wanted) -> list[Names]:
    """The captures whose models' lenses a table is read through: of a condition its host's, of one variant that one's."""
    variant = HOST.get(want.kind.partition("_")[0], want.variant)
    return [names for scope in scopes for names in ([scope.names(variant)] if variant else scope.captures)]


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
    place, named = ", ".join(_place(columns)), ", ".join(map(sql_text, scope.segments))
    inside = [f"({place}) IN (SELECT {place} FROM main.tokens WHERE segment IN ({named}))"] if named else []
    if "stream_pt" in columns:  # a pair's rows
        read = {"stream": scope.streams.get("it", ""), "stream_pt": scope.streams.get("pt", "")}
        return " AND ".join([pair, *(f"{column} = {sql_text(stream)}" for column, stream in read.items()), *inside])
    # A model may have read the other's text, too: of a pair with one template under the very name of the other's stream.
    each = ", ".join(f"({sql_text(variant)}, {sql_text(stream)})" for variant, stream in sorted(scope.streams.items()))
    return " AND ".join([pair, f"(variant, stream) IN ({each})", *inside])
