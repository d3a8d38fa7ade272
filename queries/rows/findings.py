"""What a row found, and its table taken apart for reading: what a figure draws and a page sets side by side.

A panel is one measure, or one measure at one value of every further dimension. Its rows are keyed by `x` (the layer,
as a rule; missing for a single number) and `hue` (the variant, as a rule; a contrast is named "it - pt").
"""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase as fnmatch
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

from ...store.format.paths import Layout
from ...store.tables.names import Chain
from .header import Query
from .measures import Measure, measure, thing, words
from .numbers import counts

MEASURED = ["estimate", "low", "high", "n", "unit", "method"]
WINDOWS = {"early": 1, "mid": 2, "late": 3}  # in the order of the blocks
WINDOW = re.compile(rf"(?<![a-z])({'|'.join(WINDOWS)})(?![a-z])")
FIELD = re.compile(r"\{(\w+)(?:@(\w+))?(?:\?([^|}]*)\|([^|}]*)\|([^|}]*))?\}")  # of a sentence's template


@dataclass(frozen=True, repr=False)
class Findings:
    """A question answered for one pair, or pooled over several.

    `table` has one line per estimate: measure, dimensions, estimate, low, high (95 %, units of the measure), n, unit (what n
    counts: prompts, as a rule), method. `sql` is the statement behind it, as `actlake sql` accepts it. `published` holds
    the study's figures for this model, `sentence` the finding; `computed` are the files made for it. `captures` are
    those it is about (model, stream), `read` the files of its tables and of what they are made from, `layout` the
    lake.
    """

    query: Query
    pair: str
    models: dict[str, dict[str, str]]  # of each pair, by variant
    streams: dict[str, str]
    table: pd.DataFrame
    sql: str
    published: pd.DataFrame
    sentence: str
    computed: list[Path]
    rows: int
    seconds: float
    captures: list[tuple[str, str]]
    read: list[Path]
    layout: Layout
    chain: Chain | None = None  # the chain whose pairs it compares; None for one pair, or several pooled
    segments: tuple[str, ...] = ()  # those that its tokens are of; empty: all

    @cached_property
    def parts(self) -> tuple[list[Panel], list[Panel]]:
        """The table taken apart once for all who show it: panels with an x axis, and panels of single numbers."""
        return split(self)


@dataclass(frozen=True)
class Panel:
    """The rows of one measure: columns x, hue, y (of a heat map), estimate, low, high, n, unit, method.

    `label`, `unit` and `definition` are words; `further` are the values of further dimensions that tell it from other panels.
    """

    label: str
    measure: str
    rows: pd.DataFrame
    unit: str = ""
    definition: str = ""
    further: tuple[str, ...] = ()

    @property
    def plain(self) -> bool:
        """Whether no further dimension applies."""
        return not self.further

    @property
    def heat(self) -> bool:
        """Whether it has two axes, and an estimate for each place on them."""
        return bool(self.rows["y"].notna().any())

    @property
    def levels(self) -> pd.DataFrame:
        """The rows that are not contrasts."""
        return self.rows[~self.rows["hue"].map(is_contrast).astype(bool)]

    @property
    def contrasts(self) -> pd.DataFrame:
        """The rows that are a difference between two hues."""
        return self.rows[self.rows["hue"].map(is_contrast).astype(bool)]


def compared(template: str) -> list[str]:
    """The measures whose side of zero a sentence's template names, in its order."""
    return list(dict.fromkeys(match[1] for match in FIELD.finditer(template) if match[3] is not None))


def by_stage(answer: Findings) -> Findings:
    """What a figure shows of a chain: the differences from its base, a hue a stage; other answers as they are."""
    if not answer.chain:
        return answer
    table, hue = answer.table[answer.table["compared"] == "base"].drop(columns="compared"), "stage"
    if answer.query.contrast and (column := answer.query.contrast[0]) in table:
        table = table[table[column].isna() | table[column].map(is_contrast).astype(bool)].drop(columns=column)
    query = replace(answer.query, plot={**answer.query.plot, "hue": hue})
    return replace(answer, query=query, table=table.reset_index(drop=True))


def split(answer: Findings) -> tuple[list[Panel], list[Panel]]:
    """Panels with an x axis, and panels of single numbers; one measure may be in both.

    Rows without an estimate stay: the page shows them as undefined, the figure leaves a gap.
    """
    table, plot = answer.table, answer.query.plot
    x, hue, down = plot.get("x", "layer"), plot.get("hue", "variant"), plot.get("down", "")
    known = {"measure", x, hue, *MEASURED}
    dims = [name for name in table.columns if name not in known and table[name].nunique(dropna=True) > 1]
    rows = pd.DataFrame(
        {
            "x": table[x].astype(object) if x in table else None,
            "hue": table[hue].astype(object).where(table[hue].notna(), None) if hue in table else None,
            "y": pd.to_numeric(table[down], errors="coerce") if down in dims else np.nan,
            **{name: table[name] for name in MEASURED},
        },
        index=table.index,
    )
    for name in ("estimate", "low", "high"):
        rows[name] = pd.to_numeric(rows[name], errors="coerce").astype(float)
    # A heat map has a panel for each hue.
    keys = table.assign(**{down: rows["hue"].where(rows["y"].notna())}) if down in dims else table
    grouped = keys.groupby(["measure", *dims], sort=False, dropna=False)
    group, alone = grouped.ngroup().to_numpy(), rows["x"].isna().to_numpy()
    places = [(rank(of), _position(at)) for of, at in zip(rows["hue"], rows["x"], strict=True)]
    order = sorted(range(len(rows)), key=lambda at: (group[at], alone[at], places[at]))
    heads = keys.iloc[np.unique(group, return_index=True)[1]][["measure", *dims]].itertuples(index=False, name=None)
    kinds = 2 * group[order] + alone[order]
    lines: list[Panel] = []
    numbers: list[Panel] = []
    for number, (name, *values) in enumerate(heads):
        named = in_words(answer.query, str(name))
        said = [
            shown(value, hue) if dim == down else _said(dim, value)
            for dim, value in zip(dims, values, strict=True)
            if not pd.isna(value)
        ]
        further = tuple(str(value) for value in values if not pd.isna(value))
        for single, target in enumerate((lines, numbers)):
            first, last = np.searchsorted(kinds, [2 * number + single, 2 * number + single + 1])
            if first < last:
                label = ", ".join([named.label, *said])
                part = rows.iloc[order[first:last]]
                target.append(Panel(label, str(name), part, named.unit, named.definition, further))
    return lines, numbers


def in_words(query: Query, name: str) -> Measure:
    """A measure as the row's header has it; by its own name, with the unit of the header's `plot:`, where it says nothing."""
    plot = query.plot
    unit = next((plot[key] for key in plot if fnmatch(name, key)), plot.get("numbers", plot.get("y", "")))
    return measure(query.measures, name) or Measure(name, unit, "")


def _said(dim: str, value: object) -> str:
    """The value of a further dimension in words."""
    known = words().get(dim, {}).get(str(value))
    return known if isinstance(known, str) else f"{dim} {shown(value)}" if dim else shown(value)


def is_contrast(hue: object) -> bool:
    """Whether a hue names a difference, such as "it - pt"."""
    return isinstance(hue, str) and " - " in hue


def shown(value: object, column: str = "") -> str:
    """A dimension's value as readers know it: PT and IT in capitals, words for names, a true minus sign."""
    if value is None or pd.isna(value):
        return ""
    if whole := thing(column, value):
        return whole[0]
    parts = [thing(column, part) for part in str(value).split(" - ")]
    return " − ".join(part[0] if part else text for part, text in zip(parts, str(value).split(" - "), strict=True))


def hues(found: list[Panel]) -> list[object]:
    """The hues of some panels in reading order: PT, IT, others by name, contrasts, then rows without one."""
    return sorted({value for panel in found for value in panel.rows["hue"]}, key=rank)


@lru_cache(maxsize=10_000)
def rank(hue: object) -> tuple[bool, bool, int, str]:
    """Sort key of a hue: PT, IT, others by name (windows by depth), contrasts, none."""
    name = WINDOW.sub(lambda window: str(WINDOWS[window[0]]), str(hue))
    name = re.sub(r"\d+", lambda digits: digits[0].zfill(9), name)  # 25 before 100
    return hue is None, is_contrast(hue), {"pt": 0, "it": 1}.get(str(hue), 2), name


def _position(x: object) -> float:
    return float(x) if isinstance(x, (int, float)) and x == x else float(WINDOWS.get(str(x), 0))


def reference(answer: Findings, panel: Panel, hue: object) -> pd.Series | None:
    """The published figure for one single number, or None; for points of a curve see `marked`.

    A quantity of published.csv belongs to the measure of the same name: to its contrast where it has one. With a variant
    or another hue in its name (`commit_top1_raw_pt_mean` for the measure `commit_top1_raw_mean`) it belongs to that one.
    """
    if not panel.plain or answer.published.empty:
        return None
    contrasted = not panel.contrasts.empty
    for _, line in answer.published.iterrows():
        quantity = f"_{line['quantity']}_"
        named = f"_{hue}_" in quantity and quantity.replace(f"_{hue}_", "_", 1) == f"_{panel.measure}_"
        same = line["quantity"] == panel.measure and is_contrast(hue) == contrasted and hue not in ("pt", "it")
        if named or same:
            return line
    return None


def marked(answer: Findings, panel: Panel) -> list[tuple[float, pd.Series]]:
    """Published points of a curve: (x, line of published.csv).

    Quantities are named MEASURE@X, or MEASURE@X@HUE where they are one hue's: `str@5@d_conv`.
    """
    if not panel.plain or answer.published.empty:
        return []
    known = {str(line["quantity"]): line for _, line in answer.published.iterrows()}
    found = {
        name: float(x)
        for x, hue in zip(panel.rows["x"], panel.rows["hue"], strict=True)
        if isinstance(x, (int, float))
        for name in (f"{panel.measure}@{x:g}", f"{panel.measure}@{x:g}@{hue}")
        if name in known
    }
    return [(x, known[name]) for name, x in found.items()]


def heading(answer: Findings) -> list[str]:
    """Row, title and pair, in lines that fit above a figure."""
    return textwrap.wrap(f"{answer.query.id} · {answer.query.title} · {answer.pair}", 84)


def caption(answer: Findings, left_out: int) -> list[str]:
    """What n counts, kind of interval and streams, in lines that fit below a figure that leaves out so many panels."""
    table, streams = answer.table, answer.streams
    methods = [str(name) for name in table.loc[table["low"].notna(), "method"].value_counts().index if name != "none"]
    kinds = " or ".join(name if "%" in name else f"95 % {name}" for name in methods)
    words = [
        f"n = {counted}" if (counted := counts(table)) else "",
        f"{kinds or 'no'} intervals",
        f"{left_out} more in the table" if left_out else "",
    ]
    if answer.chain:  # each model once, though it is in several pairs
        roles = {f"{pair} {role}": model for pair, roles in answer.models.items() for role, model in roles.items()}
        streams = {roles.get(name, name): stream for name, stream in streams.items()}
    read = ", ".join(f"{shown(name)} {streams[name]}" for name in sorted(streams, key=rank))
    lines = [" · ".join(word for word in words if word), f"streams: {read}" if read else ""]
    return [part for line in lines for part in textwrap.wrap(line, 128)]
