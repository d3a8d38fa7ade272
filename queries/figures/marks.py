"""Marks on one pair of axes: lines with bands, dots with intervals, a layer axis. `plots` decides where they go.

PT and IT have the same two colours everywhere (Okabe and Ito's palette, safe for colour-blind readers) and markers of
different shape; contrasts are dark and have a line at zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from .panels import is_contrast

INK, GREY, GRID, SHADE = "#222222", "#5A5A5A", "#DDDDDD", "#EFECE2"
STEPS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30)


class Style(NamedTuple):
    """How a hue looks."""

    colour: str
    marker: str


FIXED = {"pt": Style("#0072B2", "o"), "it": Style("#D55E00", "s")}
OTHERS = ("#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#6A3D9A", "#8C6D1F")
Styles = dict[object, Style]


def styles(hues: Iterable[object]) -> Styles:
    """A look for every hue; PT, IT and contrasts always get theirs, others differ in colour, then in marker too.

    None, the last of several, is what has no name in the legend: it looks like none of those that have.
    """
    found: Styles = {}
    others = 0
    for hue in hues:
        fixed = Style(INK, "o") if is_contrast(hue) or (hue is None and found) else FIXED.get(str(hue))
        turn, which = divmod(others, len(OTHERS))
        found[hue] = fixed or Style(OTHERS[which], "o^vDPX"[turn % 6])
        others += fixed is None
    return found


def lines(axes: Axes, rows: pd.DataFrame, looks: Styles, *, joined: bool) -> None:
    """One line per hue with its interval band; points that nothing joins stand side by side with error bars instead.

    The x values have to be numbers.
    """
    clean(axes, grid="y")
    if any(is_contrast(hue) for hue in rows["hue"]):
        axes.axhline(0, color=GREY, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    joined = joined and rows["x"].nunique() > 1
    present = [hue for hue in looks if any(value == hue for value in rows["hue"])]
    for index, hue in enumerate(present):
        colour, marker = looks[hue]
        found = rows[[value == hue for value in rows["hue"]]]
        aside = 0.0 if joined else min(0.1, 0.6 / len(present)) * (index - (len(present) - 1) / 2)
        x = found["x"].astype(float) + aside
        every = max(1, len(found) // 12) if joined else 1
        line: dict[str, Any] = {"linestyle": "-", "ms": 3.6} if joined else {"linestyle": "none", "ms": 5}
        axes.plot(x, found["estimate"], color=colour, lw=1.7, marker=marker, markevery=every, zorder=3, **line)
        if joined:
            axes.fill_between(x, found["low"], found["high"], color=colour, alpha=0.2, linewidth=0, zorder=2)
        else:
            axes.vlines(x, found["low"], found["high"], color=colour, linewidth=2, zorder=2)
    axes.margins(y=0.08)
    axes.ticklabel_format(axis="y", useOffset=False)
    if all(float(value).is_integer() for value in rows["x"]):  # no ticks between counts
        axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True))


def dots(
    axes: Axes,
    rows: pd.DataFrame,
    labels: Sequence[str],
    looks: Styles,
    published: Sequence[pd.Series | None],
) -> None:
    """A row per number: dot and interval, and a diamond where a published figure stands beside it."""
    clean(axes, grid="x")
    if any(is_contrast(hue) for hue in rows["hue"]):
        axes.axvline(0, color=GREY, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    for height, (row, line) in enumerate(zip(rows.itertuples(), published, strict=True)):
        colour, marker = looks[row.hue]
        axes.hlines(height, row.low, row.high, color=colour, linewidth=2.2, zorder=2)
        axes.plot([row.estimate], [height], marker=marker, ms=5, color=colour, linestyle="", zorder=3)
        if line is not None:
            axes.hlines(height + 0.22, line["low"], line["high"], color=INK, linewidth=0.9, zorder=4)
            diamond(axes, line["value"], height + 0.22)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.margins(x=0.08)
    axes.ticklabel_format(axis="x", useOffset=False)
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10], min_n_ticks=2))


def diamond(axes: Axes, x: float, y: float) -> None:
    """The mark of a published figure."""
    axes.plot([x], [y], "D", ms=4.2, color=INK, mfc="white", mew=1.0, zorder=5)


def layer_axis(axes: Axes, first: int, layers: int, most: int) -> None:
    """Layer numbers with the share of the network's depth under them, from a first layer to the last."""
    axes.set_xlim(first - 0.5, layers - 0.5)
    ticks = layer_ticks(first, layers - 1, most)
    axes.set_xticks(ticks, [f"{tick}\n{100 * (tick + 1) / layers:.0f} %" for tick in ticks])


def name_axis(axes: Axes, names: Sequence[str]) -> None:
    """Names in place of the positions 0, 1, 2, ..."""
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_xticks(range(len(names)), names)


def layer_ticks(first: int, last: int, most: int) -> list[int]:
    """Evenly spaced layers, at most `most` or so, that end with the last one; it replaces a neighbour it would touch."""
    step = next((step for step in STEPS if (last - first) / step < most), 50)
    return [*(tick for tick in range(first, last) if tick % step == 0 and last - tick >= 0.75 * step), last]


def shade_final(axes: Axes, layers: int) -> None:
    """Tint the final 20 % of the layers: floor(0.8 L) and up."""
    axes.axvspan(4 * layers // 5 - 0.5, layers - 0.5, color=SHADE, zorder=0, linewidth=0)


def clean(axes: Axes, grid: str) -> None:
    """Light grid along one axis, no box."""
    axes.tick_params(labelsize=8, length=2.5, color=GREY, labelcolor=INK)
    axes.grid(axis=grid, color=GRID, linewidth=0.6)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(GREY)
