"""From the lines of a query's SQL to a table of estimates with intervals: of one pair, or pooled over several."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa

from ...analyze.stats.bootstrap import Quantity, Sample, intervals, shares
from ...store.core.errors import LakeError
from ...store.tables.names import Chain
from ..engine.context import Scope
from ..rows.findings import compared
from ..rows.header import Query

MEASURED = ("estimate", "low", "high", "n", "unit", "method")
TOTALS = ("prompt", "stratum", "total", "value")
RESAMPLES = 2000
Key = tuple[Any, ...]
Lines = dict[Key, dict[str, Any]]  # measure and dimensions -> what is known of the estimate


@dataclass(frozen=True)
class _Found:
    """What a query's SQL returned for one pair: the lines of each quantity, keyed by `dims` (measure, layer ...)."""

    dims: list[str]
    lines: dict[Key, pa.StructArray]

    @property
    def rows(self) -> int:
        """How many lines there are."""
        return sum(map(len, self.lines.values()))


def read(connection: duckdb.DuckDBPyConnection, sql: str, query: Query, pairs: Sequence[str]) -> dict[str, _Found]:
    """Run a query and sort its lines by quantity, pair by pair; a pair without lines is not there.

    DuckDB groups: a profile over steps has a line per token and layer, which as a data frame would fill the memory.
    With several pairs the SQL tells them apart by a column `pair`. LakeError when it lacks a column it must have.
    """
    columns = connection.sql(sql).columns
    dims = [name for name in columns if name not in (*TOTALS, *MEASURED)]
    if "measure" not in dims or not {"estimate", "total", "value"} & set(columns):
        raise LakeError(f"{query.id}: its SQL must return `measure` and `estimate`, `total` or `value`")
    packed = ", ".join(f'"{name}" := "{name}"' for name in columns if name not in dims)
    keys = ", ".join(f'"{name}"' for name in dims)
    grouped = connection.sql(f"SELECT {keys}, list(struct_pack({packed})) AS lines FROM ({sql}) GROUP BY ALL")
    table = grouped.to_arrow_table()
    if len(pairs) == 1:
        return {pairs[0]: _Found(dims, _by_key(table, dims))} if table.num_rows else {}
    dims.remove("pair")
    return {pair: _Found(dims, lines) for pair in pairs if (lines := _by_key(_of_pair(table, pair), dims))}


def _of_pair(table: pa.Table, pair: str) -> pa.Table:
    return table.filter(pa.array([value == pair for value in table["pair"].to_pylist()], pa.bool_()))


def _by_key(table: pa.Table, dims: list[str]) -> dict[Key, pa.StructArray]:
    keys = zip(*(table[name].to_pylist() for name in dims), strict=True)
    found = zip(keys, (lines.values for lines in table["lines"]), strict=True)
    # DuckDB returns groups in any order. What is bootstrapped together is summed in this one: of few prompts, resamples that
    # equal the estimate but for a last digit would move a BCa limit.
    return dict(sorted(found, key=lambda pair: repr(pair[0])))


def check_any(
    found: Mapping[str, _Found],
    query: Query,
    scopes: Mapping[str, Sequence[Scope]],
    foreign: bool,
    without: Sequence[str],
) -> None:
    """LakeError for pairs of which nothing was found; of rows brought in, and of segments, for those without any number."""
    segments = sorted({name for some in scopes.values() for scope in some for name in scope.segments})
    # Counts of layers and prompts are there without any token: of segments what is summed over tokens counts.
    summed = ("total", "value", *(() if segments and query.bootstrap == "prompt" else ("estimate",)))

    def nothing(pair: str) -> bool:
        if pair not in found or not (foreign or segments):
            return pair not in found
        return not any(_numbers(lines, name, None).size for lines in found[pair].lines.values() for name in summed)

    if not (missing := ", ".join(pair for pair in scopes if nothing(pair))):
        return
    on = f" on stream {', '.join(query.recipes)}" if query.recipes else ""
    if foreign:
        raise LakeError(
            f"{query.id}: the rows brought in for pair {missing} give none of its numbers: they are means where it takes single"
            f" tokens or prompts, or of other tables ({'; '.join(without) or 'all are there'}); see"
            f" `actlake run {query.id} --about`"
        )
    if segments:
        raise LakeError(
            f"{query.id}: it reads no token of segment {', '.join(segments)} of pair {missing}{on}: name another segment, or see"
            f" which positions the row reads: `actlake run {query.id} --about`"
        )
    raise LakeError(
        f"{query.id}: nothing of pair {missing} qualifies{on}: no token passes this row's filters; continuations may be too"
        f" short. See `actlake run {query.id} --about`"
    )


def table_of(found: Sequence[_Found], query: Query, resamples: int = RESAMPLES) -> pd.DataFrame:
    """One line per measure and dimension, and per contrast of the query: estimate, low, high, n, unit, method.

    `found` holds the lines of one pair, or of several that are pooled: then an estimate is the mean of the pairs'
    estimates, and layers are left out unless all pairs are equally deep. Lines with a total or value are totals, whose
    intervals resample prompts (see `Query`); the others are final. LakeError when a final one is there twice.
    """
    dims, totals, final, curves = found[0].dims, [], [], True
    for part in found:
        summed = {key: lines for key, lines in part.lines.items() if query.bootstrap == "prompt" and _is_total(lines)}
        curves &= all((_numbers(lines, "prompt", -1.0) < 0).all() for lines in summed.values())
        totals.append(_samples(summed))
        final.append(_final({key: lines for key, lines in part.lines.items() if key not in summed}, dims, query))
    lines = _estimated(_shared(totals, dims), dims, query, resamples)
    if curves:
        lines = {key: line | {"unit": "curves"} for key, line in lines.items()}
    lines |= _given(_shared(final, dims), dims, query)
    table = pd.DataFrame([{**dict(zip(dims, key, strict=True)), **line} for key, line in lines.items()])
    kinds = dict.fromkeys(("estimate", "low", "high"), "float") | dict.fromkeys({"n", "layer"} & {"n", *dims}, "Int64")
    order = ["measure", *(name for name in dims if name != "measure")]
    return table[[*dims, *MEASURED]].astype(kinds).sort_values(order, ignore_index=True, na_position="first")


def table_of_chain(chain: Chain, found: Mapping[str, _Found], query: Query, resamples: int = RESAMPLES) -> pd.DataFrame:
    """The tables of a chain's pairs below each other, with columns `stage` and `compared`: with the base, or in one step.

    Per measure whose side of zero the row's sentence names, `MEASURE_share` is how much of the whole difference, from the base
    to the last model, is there at a stage (a share of 1); its interval resamples the same prompts at every stage.
    """
    tables = {pair: table_of([part], query, resamples) for pair, part in found.items()}
    parts = [
        tables[pair].assign(stage=stage, compared=compared)
        for compared, pairs in (("base", chain.from_base), ("step", chain.steps))
        for stage, pair in pairs.items()
    ]
    parts += [_shares(chain, found, tables, query, measure, resamples) for measure in compared(query.says)]
    table = pd.concat([part for part in parts if len(part)], ignore_index=True)
    return table[
        ["measure", "stage", "compared", *(name for name in parts[0] if name not in ("measure", "stage", "compared"))]
    ]


def _shares(
    chain: Chain,
    found: Mapping[str, _Found],
    tables: Mapping[str, pd.DataFrame],
    query: Query,
    measure: str,
    resamples: int,
) -> pd.DataFrame:
    """The lines of `MEASURE_share`; none where the measure is no difference or no sum over prompts."""
    if not query.contrast:
        return pd.DataFrame()
    column, *arms = query.contrast
    groups: dict[Key, pa.StructArray] = {}
    for stage, pair in chain.from_base.items():
        for arm in arms:
            named = {"measure": measure, column: arm}
            key = tuple(named.get(name) for name in found[pair].dims)
            if key not in found[pair].lines or not _is_total(lines := found[pair].lines[key]):
                return pd.DataFrame()
            groups[stage, arm] = lines
    samples = _samples(groups)
    plus, minus = arms
    wanted = [Quantity((samples[stage, plus],), (samples[stage, minus],)) for stage in chain.from_base]
    whole = tables[chain.from_base[chain.models[-1]]]
    whole = whole[(whole["measure"] == measure) & (whole[column] == " - ".join(arms))]
    clear = bool(((whole["low"] > 0) | (whole["high"] < 0)).any())
    lines = [dict(vars(line)) for line in shares(wanted, n_resamples=resamples)]
    if not clear:
        unknown = {"estimate": np.nan, "low": np.nan, "high": np.nan, "method": "undefined: may be a share of nothing"}
        lines = [line | unknown for line in lines]
    return pd.DataFrame(lines).assign(measure=f"{measure}_share", stage=list(chain.from_base), compared="base")


def _is_total(lines: pa.StructArray) -> bool:
    return any(_numbers(lines, name, None).size for name in ("total", "value"))


def _numbers(lines: pa.StructArray, name: str, gap: float | None) -> np.ndarray:
    """A column as float64; NULL is `gap`, or left out where that is None. Empty without such a column."""
    if lines.type.get_field_index(name) < 0:
        return np.empty(0) if gap is None else np.full(len(lines), gap)
    column = lines.field(name)
    column = column.drop_null() if gap is None else column
    numbers = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
    return numbers if gap is None else np.where(np.isnan(numbers), gap, numbers)


def _shared(parts: list[dict[Key, Any]], dims: list[str]) -> dict[Key, tuple[Any, ...]]:
    """Key -> what each pair has under it, for keys that all pairs have; layers only where they mean the same."""
    keys = [key for key in parts[0] if all(key in part for part in parts)]
    if "layer" in dims:
        at = dims.index("layer")
        depths = {max((key[at] for key in part if key[at] is not None), default=None) for part in parts}
        keys = [key for key in keys if key[at] is None or len(depths) == 1]
    return {key: tuple(part[key] for part in parts) for key in keys}


def _contrasts(keys: Collection[Key], dims: list[str], query: Query) -> Iterator[tuple[Key, Key, Key]]:
    """(key of the contrast, key it adds, key it takes away) wherever both are there."""
    if query.contrast and query.contrast[0] in dims:
        column, plus, minus = query.contrast
        at = dims.index(column)
        for key in keys:
            other = (*key[:at], minus, *key[at + 1 :])
            if key[at] == plus and other in keys:
                yield (*key[:at], f"{plus} - {minus}", *key[at + 1 :]), key, other


# --- totals ----------------------------------------------------------------------------------------------------------


def _samples(groups: Mapping[Key, pa.StructArray]) -> dict[Key, Sample]:
    """The totals of one pair, per quantity; prompts are those of all quantities, so that they pair up.

    Lines without a prompt (NULL, or -1 where SQL had to join them) are means over all prompts already: one unit of their own.
    """
    own = [np.unique(_numbers(lines, "prompt", -1.0)) for lines in groups.values()]
    prompts = np.unique(np.concatenate(own)) if own else np.empty(0)
    return {key: _sample(lines, prompts) for key, lines in groups.items()}


def _sample(lines: pa.StructArray, prompts: np.ndarray) -> Sample:
    """Counts (and totals) as float64 [prompts, strata or values]; prompts without tokens have zeros."""
    median = _numbers(lines, "value", None).size > 0
    by = _numbers(lines, "value" if median else "stratum", 0.0)
    strata, column = np.unique(by, return_inverse=True)
    at = np.searchsorted(prompts, _numbers(lines, "prompt", -1.0)) * len(strata) + column
    shape, size = (len(prompts), len(strata)), len(prompts) * len(strata)
    count = np.bincount(at, _numbers(lines, "n", 0.0), size).reshape(shape)
    if median:
        return Sample.median(strata, count)
    # DuckDB's threads add in no fixed order; without its last digits a sum, and so an interval, is the same every time.
    total = np.bincount(at, _numbers(lines, "total", np.nan).round(9), size).reshape(shape)
    return Sample.mean(total, count)


def _estimated(totals: dict[Key, tuple[Sample, ...]], dims: list[str], query: Query, resamples: int) -> Lines:
    """Intervals of all totals and their contrasts, prompts resampled together."""
    wanted = {key: Quantity(samples) for key, samples in totals.items()}
    wanted |= {key: Quantity(totals[plus], totals[minus]) for key, plus, minus in _contrasts(totals, dims, query)}
    at = dims.index("measure")
    wanted |= {
        (*key[:at], f"{key[at]}_token_weighted", *key[at + 1 :]): Quantity(q.plus, q.minus, tokens=True)
        for key, q in wanted.items()
        if len(q.plus) > 1 and key[at] in query.tokens
    }
    found = intervals(list(wanted.values()), n_resamples=resamples)
    return {key: dict(vars(line)) for key, line in zip(wanted, found, strict=True)}


# --- final estimates -------------------------------------------------------------------------------------------------


def _final(groups: Mapping[Key, pa.StructArray], dims: list[str], query: Query) -> Lines:
    """Estimates as the SQL gives them; what it does not say of an interval is not known."""
    found: Lines = {}
    for key, lines in groups.items():
        if len(lines) > 1:
            raise LakeError(f"{query.id}: its SQL returns {dict(zip(dims, key, strict=True))} more than once")
        given = {name: None if value != value else value for name, value in lines[0].as_py().items()}
        found[key] = dict.fromkeys(MEASURED) | {name: given.get(name) for name in MEASURED}
        found[key]["method"] = found[key]["method"] or "none"
    return found


def _given(final: dict[Key, tuple[dict[str, Any], ...]], dims: list[str], query: Query) -> Lines:
    """Final estimates, pooled if there are several pairs, and the contrasts that the SQL left to be taken."""
    lines = {key: parts[0] if len(parts) == 1 else _mean(parts) for key, parts in final.items()}
    for key, plus, minus in list(_contrasts(lines, dims, query)):
        lines.setdefault(key, _difference(lines[plus], lines[minus]))
    return lines


def _mean(parts: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    known = [part["estimate"] for part in parts if part["estimate"] is not None]
    mean = float(np.mean(known)) if len(known) == len(parts) else None
    return dict(zip(MEASURED, (mean, None, None, len(parts), "pairs", "none"), strict=True))


def _difference(plus: dict[str, Any], minus: dict[str, Any]) -> dict[str, Any]:
    """The difference of two final estimates, without an interval; n where both have the same."""
    known = plus["estimate"] is not None and minus["estimate"] is not None
    same = (plus["n"], plus["unit"]) == (minus["n"], minus["unit"])
    estimate = plus["estimate"] - minus["estimate"] if known else None
    n, unit = (plus["n"], plus["unit"]) if same else (None, None)
    return dict(zip(MEASURED, (estimate, None, None, n, unit, "none"), strict=True))
