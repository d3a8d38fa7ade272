"""Answering a question: tables, SQL, then one estimate with an interval per line of the result."""

import re
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ..analyze.stats import Interval, bootstrap_diff, bootstrap_mean
from ..store.errors import LakeError
from ..store.layout import Layout
from ..store.tables import connect, same_prompts, sql_error, stream_table
from .build import BEHIND_VIEW, Scope, ensure
from .registry import Query, published

TOTALS = ("prompt", "stratum", "total", "n")
MEASURED = ("estimate", "low", "high", "n", "unit", "method")
RESAMPLES = 2000


@dataclass(frozen=True)
class Answer:
    """A question answered for one pair.

    `table` has one line per estimate: measure, dimensions, estimate, low, high (95 %, units of the measure), n, unit (what n
    counts: prompts, as a rule), method. `sql` is the statement behind it, as `actlake sql` accepts it. `published` holds
    the seed's figures for this model, `says` the finding in a sentence.
    """

    query: Query
    pair: str
    streams: dict[str, str]
    table: pd.DataFrame
    sql: str
    published: pd.DataFrame
    says: str
    computed: list[Path]
    rows: int
    seconds: float

    def figure(self) -> Figure:
        """The figure of this row, drawn as the query's header says."""
        from .plots import draw

        return draw(self)

    def save(self, folder: Path) -> list[Path]:
        """Write ID-PAIR.csv, .png and .sql into a folder and return their paths."""
        folder.mkdir(parents=True, exist_ok=True)
        stem = folder / f"{self.query.id}-{self.pair}"
        files = [stem.with_suffix(suffix) for suffix in (".csv", ".png", ".sql")]
        self.table.to_csv(files[0], index=False)
        self.figure().savefig(files[1], dpi=150)
        files[2].write_text(self.sql + "\n", encoding="utf-8")
        return files


def answer(
    layout: Layout, query: Query, pair: str, prompts: str | None = None, device: str = "cpu", resamples: int = RESAMPLES
) -> Answer:
    """Answer one query for one pair from the store; missing tables are computed first, no model is loaded.

    `prompts` picks among several captured prompt sets. Raises LakeError when the captures it needs are not there.
    """
    started = time.perf_counter()
    scopes = scopes_of(layout, query, pair, prompts)
    made = ensure(layout, [(name, kind, scope) for scope in scopes for name, kind in query.needs], device)
    sql = scoped(query, scopes)
    try:
        frame = connect(layout).sql(sql).df()
    except duckdb.Error as error:
        raise sql_error(error) from error
    if frame.empty:
        raise LakeError(
            f"{query.id}: nothing of pair {pair} qualifies{_on(query)} (answers too short?); see `actlake run {query.id} --about`"
        )
    table = estimates(frame, query) if query.bootstrap == "none" else intervals(frame, query, resamples)
    return Answer(
        query=query,
        pair=pair,
        streams=_streams(scopes),
        table=table,
        sql=sql,
        published=published(query.id, pair),
        says=say(query.says, table, query),
        computed=made,
        rows=len(frame),
        seconds=time.perf_counter() - started,
    )


def scopes_of(layout: Layout, query: Query, pair: str, prompts: str | None) -> list[Scope]:
    """The captures that a query reads: one scope per stream recipe; one without streams when it reads none."""
    if not query.recipes:
        return [Scope(pair, {})]
    streams = stream_table(layout)
    return [Scope(pair, same_prompts(streams, pair, recipe, prompts), recipe) for recipe in query.recipes]


def _streams(scopes: list[Scope]) -> dict[str, str]:
    """Who read what: variant -> stream name; with several recipes the recipe stands before the variant."""
    several = len(scopes) > 1
    return {
        f"{scope.recipe} {variant}" if several else variant: stream
        for scope in scopes
        for variant, stream in scope.streams.items()
    }


def _on(query: Query) -> str:
    return f" on stream {', '.join(query.recipes)}" if query.recipes else ""


def scoped(query: Query, scopes: list[Scope]) -> str:
    """The query's SQL with its tables narrowed to the captures in scope; runs as it stands in `actlake sql`."""
    names = list(dict.fromkeys(name for name, _ in query.needs))
    names += [view for view, table in BEHIND_VIEW.items() if table in names]
    narrowed = ",\n".join(f"{name} AS ({_narrowed(name, scopes)})" for name in names)
    body = re.sub(r"^WITH\s", "", query.sql, flags=re.IGNORECASE)
    return f"WITH {narrowed}" + (",\n" if body != query.sql else "\n") + body


def _narrowed(name: str, scopes: list[Scope]) -> str:
    """One table limited to the captures in scope; several recipes are told apart by a column of that name."""
    if len(scopes) == 1:
        return f"SELECT * FROM main.{name} WHERE {_where(name, scopes[0])}"
    return " UNION ALL ".join(
        f"SELECT {_text(scope.recipe)} AS recipe, * FROM main.{name} WHERE {_where(name, scope)}" for scope in scopes
    )


def _where(name: str, scope: Scope) -> str:
    pair = f"pair = {_text(scope.pair)}"
    if not scope.streams:
        return pair
    if name == "pair_lens":
        return f"{pair} AND stream = {_text(scope.streams['it'])} AND stream_pt = {_text(scope.streams['pt'])}"
    return f"{pair} AND stream IN ({', '.join(_text(stream) for stream in sorted(scope.streams.values()))})"


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


# --- estimates and intervals -----------------------------------------------------------------------------------------


def estimates(frame: pd.DataFrame, query: Query) -> pd.DataFrame:
    """The table of a query that returns estimates itself, plus its contrast where the SQL gives none: a difference
    without an interval. LakeError when the SQL returns no `measure` or `estimate`, or a quantity twice."""
    if missing := {"measure", "estimate"} - set(frame.columns):
        raise LakeError(
            f"{query.id}: its SQL returns no {' and no '.join(sorted(missing))}; with `bootstrap: none` it must"
        )
    dims = [name for name in frame.columns if name not in MEASURED]
    if frame.duplicated(dims).any():
        twice = frame[frame.duplicated(dims)].iloc[0][dims].to_dict()
        raise LakeError(f"{query.id}: its SQL returns {twice} more than once")
    empty = {"low": np.nan, "high": np.nan, "n": pd.NA, "unit": None, "method": "none"}
    table = frame.assign(**{name: value for name, value in empty.items() if name not in frame})[[*dims, *MEASURED]]
    table["n"] = table["n"].astype("Int64")
    if query.contrast and query.contrast[0] in dims:
        lines = {
            tuple(None if pd.isna(key) else key for key in row[: len(dims)]): row for row in table.to_numpy(object)
        }
        differences = [
            [*key, *_difference(lines[plus], lines[minus], len(dims))]
            for key, plus, minus in _contrasts(lines, dims, query.contrast)
            if key not in lines
        ]
        if differences:
            table = pd.concat([table, pd.DataFrame(differences, columns=table.columns).astype(table.dtypes)])
    return _ordered(table, dims)


def _difference(plus: np.ndarray, minus: np.ndarray, dims: int) -> list[Any]:
    """estimate, low, high, n, unit, method of a difference of two final estimates; n where both have the same."""
    a, b = (dict(zip(MEASURED, line[dims:], strict=True)) for line in (plus, minus))
    same = a["n"] is not pd.NA and b["n"] is not pd.NA and (a["n"], a["unit"]) == (b["n"], b["unit"])
    n, unit = (a["n"], a["unit"]) if same else (pd.NA, None)
    return [a["estimate"] - b["estimate"], np.nan, np.nan, n, unit, "none"]


def _ordered(table: pd.DataFrame, dims: list[str]) -> pd.DataFrame:
    if "layer" in table:
        table["layer"] = table["layer"].astype("Int64")
    return table.sort_values(["measure", *(d for d in dims if d != "measure")], ignore_index=True, na_position="first")


Totals = tuple[np.ndarray, np.ndarray]


def intervals(frame: pd.DataFrame, query: Query, resamples: int = RESAMPLES) -> pd.DataFrame:
    """One estimate and 95 % interval per measure and dimension, plus the query's contrast, prompts resampled together."""
    dims = [name for name in frame.columns if name not in TOTALS]
    prompts = np.sort(frame["prompt"].unique())
    totals = {key: _matrices(group, prompts) for key, group in _groups(frame, dims)}
    lines = [
        {**dict(zip(dims, key, strict=True)), **_line(bootstrap_mean(*value, n_resamples=resamples))}
        for key, value in totals.items()
    ]
    if query.contrast and query.contrast[0] in dims:
        lines += [
            {
                **dict(zip(dims, key, strict=True)),
                **_line(bootstrap_diff(*totals[plus], *totals[minus], n_resamples=resamples)),
            }
            for key, plus, minus in _contrasts(totals, dims, query.contrast)
        ]
    return _ordered(pd.DataFrame(lines), dims)


def _groups(frame: pd.DataFrame, dims: list[str]) -> Iterator[tuple[tuple, pd.DataFrame]]:
    for key, group in frame.groupby(dims, dropna=False, sort=True):
        yield tuple(None if pd.isna(part) else part for part in key), group


def _matrices(group: pd.DataFrame, prompts: np.ndarray) -> Totals:
    """(total, n) as float64 [prompts, strata]; prompts without tokens have zeros."""
    strata, column = np.unique(
        group["stratum"].to_numpy() if "stratum" in group else np.zeros(len(group)), return_inverse=True
    )
    row = np.searchsorted(prompts, group["prompt"].to_numpy())
    total, count = np.zeros((2, len(prompts), len(strata)))
    # DuckDB's threads add in no fixed order; without its last digits a sum, and so an interval, is the same every time.
    np.add.at(total, (row, column), group["total"].to_numpy(dtype=float).round(9))
    np.add.at(count, (row, column), group["n"].to_numpy(dtype=float))
    return total, count


def _line(found: Interval) -> dict[str, object]:
    values = (found.estimate, found.low, found.high, found.n, "prompts", found.method)
    return dict(zip(MEASURED, values, strict=True))


def _contrasts(
    keys: Collection[tuple], dims: list[str], contrast: tuple[str, str, str]
) -> Iterator[tuple[tuple, tuple, tuple]]:
    """(key of the contrast, key it adds, key it takes away) wherever both are there."""
    column, plus, minus = contrast
    at = dims.index(column)
    for key in keys:
        other = (*key[:at], minus, *key[at + 1 :])
        if key[at] == plus and other in keys:
            yield (*key[:at], f"{plus} - {minus}", *key[at + 1 :]), key, other


# --- the sentence ----------------------------------------------------------------------------------------------------

FIELD = re.compile(r"\{(\w+)(?:\?([^|}]*)\|([^|}]*)\|([^|}]*))?\}")


def say(template: str, table: pd.DataFrame, query: Query) -> str:
    """Fill a query's sentence: {name} is that measure's estimate and interval, {name?a|b|c} is a when the interval is
    above zero, b when below, c when it holds zero or there is none. With a contrast, its line is meant."""
    scalars = table[table["layer"].isna()] if "layer" in table else table
    if query.contrast:
        scalars = scalars[scalars[query.contrast[0]] == f"{query.contrast[1]} - {query.contrast[2]}"]
    lines = {row.measure: row for row in scalars.itertuples()}

    def fill(match: re.Match[str]) -> str:
        line = lines.get(match[1])
        if line is None:
            return f"({match[1]} undefined)"
        if match[2] is None:
            sign = "+" if query.contrast else ""
            limits = "" if pd.isna(line.low) else f" [{line.low:{sign}.3g}, {line.high:{sign}.3g}]"
            return f"{line.estimate:{sign}.3g}{limits}"
        return match[2] if line.low > 0 else match[3] if line.high < 0 else match[4]

    return FIELD.sub(fill, template)
