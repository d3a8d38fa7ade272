"""From the lines of a query's SQL to a table of estimates with intervals: of one pair, or pooled over several."""

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ..analyze.stats import Quantity, Sample, intervals
from ..store.errors import LakeError
from .registry import Query

MEASURED = ("estimate", "low", "high", "n", "unit", "method")
TOTALS = ("prompt", "stratum", "total", "value")
RESAMPLES = 2000
Key = tuple[Any, ...]
Lines = dict[Key, dict[str, Any]]  # measure and dimensions -> what is known of the estimate


def table_of(frames: Sequence[pd.DataFrame], query: Query, resamples: int = RESAMPLES) -> pd.DataFrame:
    """One line per measure and dimension, and per contrast of the query: estimate, low, high, n, unit, method.

    `frames` holds the lines of one pair, or of several that are pooled: then an estimate is the mean of the pairs'
    estimates, and layers are left out unless all pairs are equally deep. Lines with a total or value are totals, whose
    intervals resample prompts (see `Query`); the others are final. LakeError when the SQL returned something else.
    """
    names = list(dict.fromkeys(name for frame in frames for name in frame.columns))
    dims = [name for name in names if name not in (*TOTALS, *MEASURED)]
    if "measure" not in dims or not {"estimate", "total", "value"} & set(names):
        raise LakeError(f"{query.id}: its SQL must return `measure` and `estimate`, `total` or `value`")
    totals, final, curves = [], [], True
    for frame in frames:
        whole = frame.reindex(columns=[*dims, *TOTALS, *MEASURED])
        summed = (whole["total"].notna() | whole["value"].notna()) & (query.bootstrap == "prompt")
        curves &= not whole.loc[summed, "prompt"].notna().any()
        totals.append(_samples(whole[summed], dims))
        final.append(_final(whole[~summed], dims, query))
    lines = _estimated(_shared(totals, dims), dims, query, resamples)
    if curves:
        lines = {key: line | {"unit": "curves"} for key, line in lines.items()}
    lines |= _given(_shared(final, dims), dims, query)
    table = pd.DataFrame([{**dict(zip(dims, key, strict=True)), **line} for key, line in lines.items()])
    kinds = {"estimate": float, "low": float, "high": float, "n": "Int64"} | (
        {"layer": "Int64"} if "layer" in dims else {}
    )
    order = ["measure", *(name for name in dims if name != "measure")]
    return table[[*dims, *MEASURED]].astype(kinds).sort_values(order, ignore_index=True, na_position="first")


def _shared(parts: list[dict[Key, Any]], dims: list[str]) -> dict[Key, tuple[Any, ...]]:
    """Key -> what each pair has under it, for keys that all pairs have; layers only where they mean the same."""
    keys = [key for key in parts[0] if all(key in part for part in parts)]
    if "layer" in dims:
        at = dims.index("layer")
        depths = {max((key[at] for key in part if key[at] is not None), default=None) for part in parts}
        keys = [key for key in keys if key[at] is None or len(depths) == 1]
    return {key: tuple(part[key] for part in parts) for key in keys}


def _groups(frame: pd.DataFrame, dims: list[str]) -> Iterator[tuple[Key, pd.DataFrame]]:
    for key, group in frame.groupby(dims, dropna=False, sort=True):
        yield tuple(None if pd.isna(part) else part for part in key), group


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


def _samples(frame: pd.DataFrame, dims: list[str]) -> dict[Key, Sample]:
    """The totals of one pair, per quantity; prompts are those of the whole frame, so that quantities pair up.

    Lines without a prompt are means over all prompts already: one unit of their own.
    """
    frame = frame.assign(prompt=frame["prompt"].astype(float).fillna(-1.0))
    prompts = np.sort(frame["prompt"].unique())
    return {key: _sample(group, prompts) for key, group in _groups(frame, dims)}


def _sample(group: pd.DataFrame, prompts: np.ndarray) -> Sample:
    """Counts (and totals) as float64 [prompts, strata or values]; prompts without tokens have zeros."""
    median = group["value"].notna().any()
    by = group["value"] if median else group["stratum"].fillna(0.0)
    strata, column = np.unique(by.to_numpy(dtype=float), return_inverse=True)
    row = np.searchsorted(prompts, group["prompt"].to_numpy())
    total, count = np.zeros((2, len(prompts), len(strata)))
    np.add.at(count, (row, column), group["n"].to_numpy(dtype=float))
    if median:
        return Sample.median(strata, count)
    # DuckDB's threads add in no fixed order; without its last digits a sum, and so an interval, is the same every time.
    np.add.at(total, (row, column), group["total"].to_numpy(dtype=float).round(9))
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


def _final(frame: pd.DataFrame, dims: list[str], query: Query) -> Lines:
    """Estimates as the SQL gives them; what it does not say of an interval is not known."""
    lines: Lines = {}
    for key, group in _groups(frame, dims):
        if len(group) > 1:
            raise LakeError(f"{query.id}: its SQL returns {dict(zip(dims, key, strict=True))} more than once")
        line = {name: None if pd.isna(value) else value for name, value in group[list(MEASURED)].iloc[0].items()}
        lines[key] = line | {"method": line["method"] or "none"}
    return lines


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
