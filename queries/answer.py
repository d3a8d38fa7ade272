"""Answering a question: tables, SQL, then one estimate with an interval per line of the result."""

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

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

NOT_DIMENSIONS = ("prompt", "stratum", "total", "n")
RESAMPLES = 2000


@dataclass(frozen=True)
class Answer:
    """A question answered for one pair.

    `table` has one line per estimate: measure, dimensions, estimate, low, high (95 %, units of the measure), n (prompts),
    method. `sql` is the statement that made the totals, as `actlake sql` accepts it. `published` holds the seed's figures
    for this model, `says` the finding in a sentence.
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
    scope = Scope(pair, same_prompts(stream_table(layout), pair, query.stream, prompts))
    made = ensure(layout, [(name, kind, scope) for name, kind in query.needs], device)
    sql = scoped(query, scope)
    try:
        frame = connect(layout).sql(sql).df()
    except duckdb.Error as error:
        raise sql_error(error) from error
    if frame.empty:
        raise LakeError(
            f"{query.id}: no token of pair {pair} on stream {query.stream} qualifies (answers too short?); see `actlake run"
            f" {query.id} --about`"
        )
    table = intervals(frame, query, resamples)
    return Answer(
        query=query,
        pair=pair,
        streams=scope.streams,
        table=table,
        sql=sql,
        published=published(query.id, pair),
        says=say(query.says, table, query),
        computed=made,
        rows=len(frame),
        seconds=time.perf_counter() - started,
    )


def scoped(query: Query, scope: Scope) -> str:
    """The query's SQL with its tables narrowed to the captures in scope; runs as it stands in `actlake sql`."""
    streams = ", ".join("'" + stream.replace("'", "''") + "'" for stream in sorted(scope.streams.values()))
    names = [name for name, _ in query.needs]
    names += [view for view, table in BEHIND_VIEW.items() if table in names]
    where = f"pair = '{scope.pair}' AND stream IN ({streams})"
    narrowed = ",\n".join(f"{name} AS (SELECT * FROM main.{name} WHERE {_where(name, where, scope)})" for name in names)
    body = re.sub(r"^WITH\s", "", query.sql, flags=re.IGNORECASE)
    return f"WITH {narrowed}" + (",\n" if body != query.sql else "\n") + body


def _where(name: str, where: str, scope: Scope) -> str:
    if name != "pair_lens":
        return where
    return f"pair = '{scope.pair}' AND stream = '{scope.streams['it']}' AND stream_pt = '{scope.streams['pt']}'"


# --- intervals -------------------------------------------------------------------------------------------------------

Totals = tuple[np.ndarray, np.ndarray]


def intervals(frame: pd.DataFrame, query: Query, resamples: int = RESAMPLES) -> pd.DataFrame:
    """One estimate and 95 % interval per measure and dimension, plus the query's contrast, prompts resampled together."""
    dims = [name for name in frame.columns if name not in NOT_DIMENSIONS]
    prompts = np.sort(frame["prompt"].unique())
    totals = {key: _matrices(group, prompts) for key, group in _groups(frame, dims)}
    lines = [
        {**dict(zip(dims, key, strict=True)), **_line(bootstrap_mean(*value, n_resamples=resamples))}
        for key, value in totals.items()
    ]
    if query.contrast and query.contrast[0] in dims:
        lines += list(_contrasts(totals, dims, query.contrast, resamples))
    table = pd.DataFrame(lines)
    if "layer" in table:
        table["layer"] = table["layer"].astype("Int64")
    return table.sort_values(["measure", *(d for d in dims if d != "measure")], ignore_index=True, na_position="first")


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
    return {"estimate": found.estimate, "low": found.low, "high": found.high, "n": found.n, "method": found.method}


def _contrasts(
    totals: dict[tuple, Totals], dims: list[str], contrast: tuple[str, str, str], resamples: int
) -> Iterator[dict[str, object]]:
    column, plus, minus = contrast
    at = dims.index(column)
    for key, value in totals.items():
        other = (*key[:at], minus, *key[at + 1 :])
        if key[at] == plus and other in totals:
            found = bootstrap_diff(*value, *totals[other], n_resamples=resamples)
            yield {**dict(zip(dims, key, strict=True)), column: f"{plus} - {minus}", **_line(found)}


# --- the sentence ----------------------------------------------------------------------------------------------------

FIELD = re.compile(r"\{(\w+)(?:\?([^|}]*)\|([^|}]*)\|([^|}]*))?\}")


def say(template: str, table: pd.DataFrame, query: Query) -> str:
    """Fill a query's sentence: {name} is that measure's estimate and interval, {name?a|b|c} is a when the interval is
    above zero, b when below, c when it holds zero. With a contrast, its line is meant."""
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
            return f"{line.estimate:{sign}.3g} [{line.low:{sign}.3g}, {line.high:{sign}.3g}]"
        return match[2] if line.low > 0 else match[3] if line.high < 0 else match[4]

    return FIELD.sub(fill, template)
