"""A query's SQL, its tables narrowed to the captures and to the segments of tokens that are asked about."""

import re
from collections.abc import Container, Mapping, Sequence, Set
from dataclasses import replace

import pandas as pd

from ...store.core.columns import SEGMENTS
from ...store.core.errors import LakeError
from ...store.core.schema import VARIANTS
from ...store.core.yaml_file import hint
from ...store.tables.declared import TABLES
from ...store.tables.names import _By
from ...store.tables.statements import VIEWS, described, tables_behind
from ...store.tables.streams import same_prompts, sql_text
from ..engine.context import Context, Names, Scope
from ..replayed.graft import HOST
from ..rows.header import Query, Wanted

SHIFT = 1 << 20  # more than a prompt set has prompts
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


def scope_by(kit: Context, query: Query, by: _By, prompts: str | None) -> Scope:
    """One model's captures on two prompt sets, or two streams, as those of a pair's two models; of two layers one twice.

    LakeError for a row that compares nothing of the kind, and for a set or stream that the model was not captured on.
    """
    if by.what not in query.compares or len(query.recipes) != 1:
        raise LakeError(
            f"{query.id}: it compares {' and '.join(query.compares)}, not {by.what} of one model: leave --by out, or ask a row"
            f" whose header has `compares: {by.what}`"
        )
    streams, found = kit.streams_of(by.pair), dict[str, str]()
    for variant, name in zip(VARIANTS, by.names, strict=True):
        recipe = name if by.what == "streams" else query.recipes[0]
        chosen = name if by.what == "prompts" else prompts
        mine = streams[streams["variant"] == variant]
        if by.what == "layers":
            found[variant] = same_prompts(mine.assign(pair=by.model), by.model, recipe, chosen, (variant,))[variant]
            if int(name) >= (layers := kit.capture((by.model, found[variant])).layers):
                raise LakeError(f"{by.model}: layer {name}", expected=f"0 to {layers - 1}")
            continue
        known = mine.loc[mine["recipe"] == recipe, "prompts"] if by.what == "prompts" else mine["recipe"]
        if name not in set(known):
            there = ", ".join(sorted(set(known))) or "none"
            what = "prompt set" if by.what == "prompts" else "stream"
            raise LakeError(f"{by.model}: no capture on {what} {name!r}{hint(name, set(known))}; there: {there}")
        found[variant] = same_prompts(mine.assign(pair=by.model), by.model, recipe, chosen, (variant,))[variant]
    shift = SHIFT if by.what == "prompts" else 0
    return replace(kit.scope(by.pair, found, query.recipes[0]), shift=shift)


def worded(query: Query, by: _By) -> Query:
    """A row whose words name what is compared in place of PT and IT; of two layers its curves there alone."""
    words = {"PT": f"“{by.labels[0]}”", "IT": f"“{by.labels[1]}”"}

    def said(text: str) -> str:
        return re.sub(r"\b(PT|IT)\b", lambda match: words[match[1]], text)

    if by.what == "layers":
        one, two = by.names
        sql = (
            f"SELECT * EXCLUDE (variant, layer), CASE layer WHEN {one} THEN 'pt' ELSE 'it' END AS variant FROM (\n{query.sql}\n)"
            f" WHERE variant = 'it' AND layer IN ({one}, {two})"
        )
        return replace(query, says="", sql=sql, plot={})
    return replace(
        query, says=said(query.says), measures=tuple((name, *map(said, rest)) for name, *rest in query.measures)
    )


def renamed(table: pd.DataFrame, query: Query, by: _By) -> tuple[pd.DataFrame, Query]:
    """An answer's table with what is compared in place of pt and it, and the row with the contrast of these."""
    names = dict(zip(VARIANTS, by.labels, strict=True))
    names |= {f"{one} - {other}": f"{names[one]} - {names[other]}" for one in VARIANTS for other in VARIANTS}
    if "variant" in table:
        table = table.assign(variant=table["variant"].map(lambda name: names.get(name, name)))
    column, *arms = query.contrast or ("", "", "")
    plus, minus = (names.get(arm, arm) for arm in arms)
    contrast = (column, plus, minus) if query.contrast else None
    return table, replace(query, contrast=contrast)


def _place(columns: Container[str]) -> tuple[str, ...]:
    """The columns of PLACES that a table has, empty where it has not all of any."""
    return next((place for place in PLACES if all(name in columns for name in place)), ())


def scoped(query: Query, scopes: Sequence[Scope], missing: Set[Wanted] = frozenset()) -> str:
    """The query's SQL with its tables narrowed to the captures in scope; `actlake sql` accepts it.

    A table of which all is `missing` is one without rows in it, so that nobody tries to make it; of others what is missing stays
    out, should the lake have it one day.
    """
    gone = {table for want in missing for table in tables_behind(want.table)}
    gone -= {table for want in {*query.needs} - missing for table in tables_behind(want.table)}
    names = list(dict.fromkeys(wanted.table for wanted in query.needs))
    names += [view for view in VIEWS if view not in names and tables_behind(view) <= set(names)]
    parts = {
        name: _without_rows(name, len(scopes) > 1)
        if tables_behind(name) & gone
        else _narrowed(name, scopes, _lenses(query, name) + _but(name, missing))
        for name in names
    }
    narrowed = ",\n".join(f"{name} AS ({part})" for name, part in parts.items())
    body = WITH.sub(r"\1", query.sql)
    return f"WITH {narrowed}" + (",\n" if body != query.sql else "\n") + body


def pooled(query: Query, scopes: Mapping[str, Sequence[Scope]], missing: Set[Wanted] = frozenset()) -> str:
    """One statement for one pair, or for several with a column `pair`; `missing` as in `scoped`."""
    parts = {pair: scoped(query, found, missing) for pair, found in scopes.items()}
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


def _but(name: str, missing: Set[Wanted]) -> str:
    """A condition that leaves out the kinds of a table that are missing."""
    columns, found = described()[name][1], list[str]()
    for want in sorted(missing):
        for table in tables_behind(want.table) & tables_behind(name):
            known = TABLES[table].kind_columns(want.kind) | ({"variant": want.variant} if want.variant else {})
            if known and known.keys() <= columns.keys():
                same = " AND ".join(f"{key} IS NOT DISTINCT FROM {sql_text(value)}" for key, value in known.items())
                found.append(f" AND NOT ({same})")
    return "".join(dict.fromkeys(found))


def read_through(scopes: Sequence[Scope], want: Wanted) -> list[Names]:
    """The captures whose models' lenses a table is read through: of a condition its host's, of one variant that one's."""
    variant = HOST.get(want.kind.partition("_")[0], want.variant)
    return [names for scope in scopes for names in ([scope.names(variant)] if variant else scope.captures)]


def _without_rows(name: str, recipe: bool) -> str:
    """A table's columns and no row; `recipe` as in `_narrowed`."""
    columns = [f'NULL::{column.sql_type} AS "{column.name}"' for column in described()[name][1].values()]
    return f"SELECT {', '.join(['NULL::VARCHAR AS recipe'] * recipe + columns)} WHERE false"


def _narrowed(name: str, scopes: Sequence[Scope], lenses: str) -> str:
    """One table limited to the captures in scope; several recipes get a column `recipe`."""
    if len(scopes) == 1:
        shift, columns = scopes[0].shift, described()[name][1]
        every = "*"
        if (
            shift and {"prompt", "variant"} <= columns.keys()
        ):  # other prompts are no partners when prompts are resampled
            every = f"* REPLACE (prompt + if(variant = 'it', {shift}, 0) AS prompt)"
        return f"SELECT {every} FROM main.{name} WHERE {_where(name, scopes[0])}{lenses}"
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
