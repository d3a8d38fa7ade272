"""Marks that all figures share: the forest of single numbers, ticks, grids, published figures."""

from __future__ import annotations

import os
import textwrap
from dataclasses import replace
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ..rows.findings import Findings, Panel, is_contrast, reference, shown
from .looks import GREY, GRID, INK, Look

LABEL: dict[str, Any] = {"size": 8.5, "color": INK}
ZERO: dict[str, Any] = {"color": GREY, "linewidth": 0.9, "linestyle": (0, (4, 3)), "zorder": 1}


def lines_of(panel: Panel) -> float:
    """How many lines a number takes: one, or a little more for every further hue, or for a long name."""
    return max(1.0, 0.62 * len(panel.rows), 0.85 * len(textwrap.wrap(panel.label, 46)))


def shared(group: list[tuple[Panel, dict[object, Look]]]) -> tuple[list[tuple[Panel, dict[object, Look]]], str]:
    """The numbers without what all their names end in, and that."""
    ends = [panel.label.split(", ")[::-1] for panel, _ in group]
    same = len(os.path.commonprefix(ends)) if len(group) > 1 else 0
    if not same or any(len(parts) == same for parts in ends):
        return group, ""
    kept = [
        (replace(panel, label=", ".join(parts[same:][::-1])), each)
        for (panel, each), parts in zip(group, ends, strict=True)
    ]
    return kept, ", ".join(["", *ends[0][:same][::-1]])


def draw_forest(axes: Axes, group: list[tuple[Panel, dict[object, Look]]], answer: Findings) -> None:
    """A line per number: dot and interval in the colour of its hue, a diamond where a published figure stands beside it."""
    clean(axes, grid="x")
    if any(is_contrast(hue) for panel, _ in group for hue in panel.rows["hue"]) or any(
        panel.rows["estimate"].min() < 0 for panel, _ in group
    ):
        axes.axvline(0, **ZERO)
    at, places = 0.0, []
    for panel, each in group:
        tall, rows = lines_of(panel), list(panel.rows.itertuples())
        places.append(at + tall / 2)
        for index, row in enumerate(rows):
            y = at + tall / 2 + 0.5 * (index - (len(rows) - 1) / 2)
            look, line = each[row.hue], reference(answer, panel, row.hue)
            axes.hlines(y, row.low, row.high, color=look.colour, linewidth=2.2, zorder=2)
            axes.plot([row.estimate], [y], marker=look.marker, ms=5, color=look.colour, linestyle="", zorder=3)
            if line is not None:
                axes.hlines(y + 0.22, line["low"], line["high"], color=INK, linewidth=0.9, zorder=4)
                diamond(axes, line["value"], y + 0.22)
        at += tall
    # Which are differences is said on the axis where all are.
    every = {row.hue for panel, _ in group for row in panel.rows.itertuples()}
    marks = {hue: f" ({shown(hue)})" for hue in every if is_contrast(hue) and len(every) > 1}
    names = [f"{panel.label}{marks.get(panel.rows['hue'].iloc[0], '')}" for panel, _ in group]
    labels = ["\n".join(textwrap.wrap(name, 46)) for name in names]
    axes.set_yticks(places, labels)
    axes.set_ylim(at + 0.1, -0.1)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.margins(x=0.08)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10], min_n_ticks=2))
    axes.xaxis.set_major_formatter(FuncFormatter(tick))


def diamond(axes: Axes, x: float, y: float) -> None:
    """The mark of a published figure."""
    axes.plot([x], [y], "D", ms=4.2, color=INK, mfc="white", mew=1.0, zorder=5)


def tick(value: float, _: Any = None) -> str:
    """A tick's number: no zeros behind, a true minus sign."""
    return f"{value:.10g}".replace("-", "−") if abs(value) >= 1e-4 or value == 0 else f"{value:.0e}".replace("-", "−")


def clean(axes: Axes, grid: str) -> None:
    """Light grid along one axis, no box."""
    axes.tick_params(labelsize=8, length=2.5, color=GREY, labelcolor=INK)
    if grid:
        axes.grid(axis=grid, color=GRID, linewidth=0.6)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom") and bool(grid))
        spine.set_color(GREY)
