"""What a figure shows, before any axes: which panels, which looks, and the words above and below them."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase as fnmatch
from typing import TYPE_CHECKING

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ..numbers import counts
from . import marks
from .marks import INK, SHADE
from .panels import Panel, hues, marked, rank, reference, shown, split

if TYPE_CHECKING:
    from ..rows.findings import Findings

MOST_LINES, MOST_NUMBERS = 12, 12


@dataclass(frozen=True)
class Canvas:
    """What the parts of one figure share. `layers` is 0 where the x axis is not the layer, `names` are its ticks if it
    holds words."""

    answer: Findings
    looks: marks.Styles
    layers: int
    names: list[str]
    lines: list[Panel]
    numbers: list[Panel]  # keyed by a hue
    plain: list[Panel]  # single numbers without a hue
    left_out: int


def read(answer: Findings) -> Canvas:
    """Sort an answer's table into what a figure shows."""
    hidden = answer.query.plot.get("hide", "").split(",")
    lines, numbers = (
        [p for p in part if p.rows["estimate"].notna().any() and not any(fnmatch(p.measure, name) for name in hidden)]
        for part in split(answer)
    )
    values = list(dict.fromkeys(x for panel in lines for x in panel.rows["x"]))
    layers = 1 + int(max(values)) if lines and answer.query.plot.get("x", "layer") == "layer" else 0
    names = [] if all(isinstance(value, (int, float)) for value in values) else values
    if names:
        lines = [replace(p, rows=p.rows.assign(x=p.rows["x"].map(names.index))) for p in lines]
    kept = numbers[:MOST_NUMBERS]
    return Canvas(
        answer=answer,
        looks=marks.styles(hues(lines + numbers)),
        layers=layers,
        names=[shown(name) for name in names],
        lines=lines[:MOST_LINES],
        numbers=[panel for panel in kept if panel.rows["hue"].notna().any()],
        plain=[panel for panel in kept if not panel.rows["hue"].notna().any()],
        left_out=max(0, len(lines) - MOST_LINES) + max(0, len(numbers) - MOST_NUMBERS),
    )


def unit(canvas: Canvas, panel: Panel) -> str:
    """The unit of a single number: what the header says of its measure (or a pattern that fits), else of all numbers."""
    plot = canvas.answer.query.plot
    return next((plot[name] for name in plot if fnmatch(panel.measure, name)), plot.get("numbers", ""))


def title(canvas: Canvas) -> list[str]:
    """Row, title and pair, in lines that fit."""
    query = canvas.answer.query
    return textwrap.wrap(f"{query.id} · {query.title} · {canvas.answer.pair}", 84)


def caption(canvas: Canvas) -> list[str]:
    """What n counts, kind of interval and streams, in lines that fit."""
    table = canvas.answer.table
    methods = [str(name) for name in table.loc[table["low"].notna(), "method"].value_counts().index if name != "none"]
    words = [
        f"n = {counted}" if (counted := counts(table)) else "",
        f"{' or '.join(name if '%' in name else f'95 % {name}' for name in methods)} intervals"
        if methods
        else "no intervals",
        f"{canvas.left_out} more in the table" if canvas.left_out else "",
    ]
    streams = [f"{shown(name)} {canvas.answer.streams[name]}" for name in sorted(canvas.answer.streams, key=rank)]
    lines = [" · ".join(word for word in words if word), f"streams: {', '.join(streams)}" if streams else ""]
    return [part for line in lines for part in textwrap.wrap(line, 128)]


def legend(canvas: Canvas) -> list[Artist]:
    """A handle for every hue that has a name, and for what else needs a word."""
    found: list[Artist] = [
        Line2D([], [], color=look.colour, marker=look.marker, markersize=4.5, linewidth=1.8, label=shown(hue))
        for hue, look in canvas.looks.items()
        if hue is not None
    ]
    if canvas.layers > 1:
        found.append(Patch(facecolor=SHADE, edgecolor="#CFC9B4", linewidth=0.6, label="final 20 % of layers"))
    numbers = (beside(canvas, panel, panel.rows) for panel in canvas.numbers + canvas.plain)
    if any(line is not None for lines in numbers for line in lines) or any(
        marked(canvas.answer, panel) for panel in canvas.lines
    ):
        found.append(Line2D([], [], color=INK, marker="D", ms=4.5, ls="", mfc="white", label="published"))
    return found


def beside(canvas: Canvas, panel: Panel, rows: pd.DataFrame) -> list[pd.Series | None]:
    """The published figure of each row of a panel of single numbers, or None."""
    return [reference(canvas.answer, panel, hue) for hue in rows["hue"]]
