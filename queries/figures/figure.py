"""The figure of an answer: up to three panels side by side, and a forest of the numbers that matter below them.

Figures are plain matplotlib objects, 1200 pixels wide when saved: no window, no global state, no layout engine. Above the axes
stand the title and the legend, below them what the intervals are and which streams were read. One thing has one colour
everywhere (`looks`); contrasts are ink and have a line at zero.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ..rows.findings import Findings, Panel, by_stage, caption, heading, is_contrast, marked, shown
from ..rows.measures import axis
from .chosen import Chosen, Drawn, chosen, legend_of
from .looks import DIVERGING, GREY, GRID, INK, RAMP, SHADE, Look
from .marks import LABEL, ZERO, clean, diamond, draw_forest, lines_of, shared, tick

WIDTH, DPI = 8.0, 150
LEFT, RIGHT, GAP = 0.62, 0.22, 0.66  # inches beside and between panels
LEVELS, CONTRAST, UNDER = 1.75, 0.85, 0.52  # heights: levels, a difference below them, the x axis' words
NAMES = 3.1  # width of the names of single numbers
STEPS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30)


class Picture(Figure):
    """A matplotlib Figure that notebooks show by themselves, without pyplot or a backend."""

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=DPI, facecolor="white")
        width, height = self.get_size_inches()
        return buffer.getvalue(), {"width": round(96 * width), "height": round(96 * height)}


def draw(answer: Findings) -> Picture:
    """Draw what `chosen` takes from an answer: its panels in a row, its numbers below, one unit an axis."""
    found = chosen(answer := by_stage(answer))
    named, published = legend_of(answer, found)
    head, foot, handles = heading(answer), caption(answer, found.left_out), _handles(named, found, published)
    across = _across([len(str(handle.get_label())) + 9 for handle in handles])
    legend = 0.07 + 0.2 * -(-len(handles) // across) if handles else 0.0
    wide = (WIDTH - LEFT - RIGHT) / max(1, len(found.panels)) - GAP * (len(found.panels) - 1) / max(
        1, len(found.panels)
    )
    titles = [textwrap.wrap(one.panel.label, max(20, int(13 * wide))) for one in found.panels]
    title = 0.06 + 0.15 * max(map(len, titles), default=0)
    stacked = any(len(one.panel.levels) and len(one.panel.contrasts) and one.kind != "heat" for one in found.panels)
    tall = LEVELS + 0.35 * (len(found.panels) == 1) + (CONTRAST if stacked else 0.0)
    panels = title + tall + UNDER if found.panels else 0.0
    forests = [0.34 + 0.21 * sum(lines_of(panel) for panel, _ in group) + 0.26 for group in found.numbers.values()]
    above, below = 0.2 + 0.2 * len(head) + legend, 0.16 + 0.16 * len(foot)
    height = above + (panels + sum(forests) or 0.4) + below
    figure = Picture(figsize=(WIDTH, height), facecolor="none")
    figure.text(0.12 / WIDTH, 1 - 0.12 / height, "\n".join(head), va="top", size=11, weight="bold", color=INK)
    figure.text(0.12 / WIDTH, 0.08 / height, "\n".join(foot), va="bottom", size=7.5, color=GREY, linespacing=1.4)
    if handles:
        corner = (0.06 / WIDTH, 1 - (0.16 + 0.2 * len(head)) / height)
        figure.legend(
            handles=handles,
            ncols=across,
            frameon=False,
            fontsize=8,
            loc="upper left",
            bbox_to_anchor=corner,
            labelcolor=INK,
        )
    if not found.panels and not forests:
        figure.text(0.12 / WIDTH, (below + 0.1) / height, "No estimate to draw.", size=9, color=INK)

    def place(left: float, bottom: float, width: float, tall: float) -> Axes:
        return figure.add_axes((left / WIDTH, bottom / height, width / WIDTH, tall / height), facecolor="none")

    top = height - above - title
    for index, (one, lines) in enumerate(zip(found.panels, titles, strict=True)):
        left = LEFT + index * (wide + GAP)
        if one.kind == "heat":
            bar = place(left + wide - 0.3, top - tall, 0.1, tall)
            first = axes = place(left, top - tall, wide - 0.42, tall)
            _draw_heat(axes, bar, one)
        else:
            parts = [part for part in (one.panel.levels, one.panel.contrasts) if len(part)]
            low = CONTRAST - 0.12 if len(parts) == 2 else 0.0
            first = axes = place(left, top - tall + (CONTRAST if low else 0), wide, tall - (CONTRAST if low else 0))
            _draw_panel(axes, parts[0], one, found, answer, bottom=not low)
            if low:
                axes = place(left, top - tall, wide, low)
                _draw_panel(axes, parts[1], one, found, answer, bottom=True)
                said = "\n".join(textwrap.wrap(shown(parts[1]["hue"].iloc[0], answer.query.plot.get("hue", "")), 13))
                axes.set_ylabel(said, size=8 if len(said) < 10 else 6.5, color=INK)
                axes.sharex(first)
        for each in {first, axes}:
            each.yaxis.set_label_coords(-0.42 / wide, 0.5)
        first.set_title("\n".join(lines), loc="left", size=9, color=INK, y=1.0, pad=4)
        _x_axis(axes, one, found, wide)
    bottom = below
    for tall, (unit, group) in reversed(list(zip(forests, found.numbers.items(), strict=True))):
        axes = place(NAMES, bottom + 0.36, WIDTH - NAMES - RIGHT - 0.1, tall - 0.46)
        group, ends = shared(group)
        draw_forest(axes, group, answer)
        of = {row.hue for panel, _ in group for row in panel.rows.itertuples()}
        what = f" ({shown(of.pop())})" if len(of) == 1 and is_contrast(next(iter(of))) else ""
        axes.set_xlabel(f"{unit}{ends}{what}", labelpad=1, **LABEL)
        bottom += tall
    for text in figure.findobj(Text):  # a name may hold a $, which must not become mathematics
        text.set_parse_math(False)
    return figure


def _handles(named: Sequence[Look], found: Chosen, published: bool) -> list[Any]:
    """A handle for every hue that has a name, and for what else needs a word."""
    handles: list[Any] = [
        Line2D(
            [],
            [],
            color=look.colour,
            marker=look.marker,
            ms=4.5,
            lw=1.8,
            ls="--" if look.dashed else "-",
            label=look.label,
        )
        for look in named
    ]
    if found.layers > 1 and any(one.x == "layer" and one.kind != "heat" for one in found.panels):
        handles.append(Patch(facecolor=SHADE, edgecolor=GRID, linewidth=0.6, label="final 20 % of layers"))
    if published:
        handles.append(Line2D([], [], color=INK, marker="D", ms=4.5, ls="", mfc="white", label="published"))
    return handles


def _across(widths: Sequence[int]) -> int:
    """How many columns of a legend fit."""
    return max(1, len(widths) if sum(widths) <= 118 else 118 // max(widths))


# --- panels ----------------------------------------------------------------------------------------------------------


def _draw_panel(axes: Axes, rows: pd.DataFrame, one: Drawn, found: Chosen, answer: Findings, bottom: bool) -> None:
    """Levels or differences along x, with their intervals."""
    names = _names(one)
    if names:
        rows = rows.assign(x=rows["x"].map(names.index))
    clean(axes, grid="y")
    if any(is_contrast(hue) for hue in rows["hue"]) or (rows["low"] < 0).any() or (rows["estimate"] < 0).any():
        axes.axhline(0, **ZERO)
    present = [hue for hue in one.looks if any(value == hue for value in rows["hue"])]
    joined = one.kind == "line" and rows["x"].nunique() > 1
    for index, hue in enumerate(present):
        part = rows[[value == hue for value in rows["hue"]]]
        part, look = part[part["estimate"].notna()], one.looks[hue]
        if one.kind == "bars" and not is_contrast(hue):
            _bars(axes, part, look)
        elif joined or one.kind == "bars":
            _curve(axes, part, look)
        else:
            aside = min(0.1, 0.6 / len(present)) * (index - (len(present) - 1) / 2)
            x = part["x"].astype(float) + aside
            axes.plot(x, part["estimate"], color=look.colour, marker=look.marker, ls="", ms=5, zorder=3)
            axes.vlines(x, part["low"], part["high"], color=look.colour, linewidth=2, zorder=2)
    for x, line in (
        marked(answer, one.panel) if not (bottom and len(one.panel.levels) and len(one.panel.contrasts)) else ()
    ):
        diamond(axes, x, line["value"])
    if found.layers > 1 and one.x == "layer":  # from floor(0.8 L) on
        axes.axvspan(4 * found.layers // 5 - 0.5, found.layers - 0.5, color=SHADE, zorder=0, linewidth=0)
    axes.margins(y=0.08)
    axes.yaxis.set_major_locator(
        MaxNLocator(4 if len(one.panel.contrasts) != len(rows) else 3, steps=[1, 2, 2.5, 5, 10])
    )
    axes.yaxis.set_major_formatter(FuncFormatter(tick))
    if len(one.panel.levels) == len(rows) or not len(one.panel.levels):
        axes.set_ylabel(one.panel.unit, **LABEL)
    axes.tick_params(labelbottom=bottom)


def _curve(axes: Axes, part: pd.DataFrame, look: Look) -> None:
    """A line with the band of its intervals."""
    x = part["x"].astype(float)
    every = max(1, len(part) // 10)
    line = "--" if look.dashed else "-"
    axes.plot(
        x, part["estimate"], color=look.colour, lw=1.6, ls=line, marker=look.marker, ms=3.6, markevery=every, zorder=3
    )
    axes.fill_between(x, part["low"], part["high"], color=look.colour, alpha=0.18, linewidth=0, zorder=2)


def _bars(axes: Axes, part: pd.DataFrame, look: Look) -> None:
    """A distribution over whole numbers, with intervals in the middle of its steps."""
    x = part["x"].astype(float)
    edges = np.append(x - 0.5, x.iloc[-1:] + 0.5)
    axes.stairs(part["estimate"], edges, fill=True, color=look.colour, alpha=0.16, zorder=2)
    axes.stairs(part["estimate"], edges, color=look.colour, lw=1.5, zorder=3)
    axes.vlines(x, part["low"], part["high"], color=look.colour, linewidth=1.2, zorder=3)


def _draw_heat(axes: Axes, bar: Axes, one: Drawn) -> None:
    """An estimate for each place on two axes, and the key of its colours."""
    rows = one.panel.rows
    grid = rows.pivot_table(index="y", columns="x", values="estimate", aggfunc="first").sort_index()
    grid = grid[sorted(grid.columns)]
    values = grid.to_numpy(float)
    most = float(np.nanmax(np.abs(values))) or 1.0
    signed = bool((values < 0).any())
    colours = LinearSegmentedColormap.from_list("heat", DIVERGING if signed else RAMP)
    low = -most if signed else 0.0
    image = axes.imshow(values, aspect="auto", origin="lower", cmap=colours, interpolation="none", vmin=low, vmax=most)
    if values.shape[1] * 0.34 < axes.get_position().width * WIDTH:  # room to read them
        for (down, across), value in np.ndenumerate(values):
            if np.isnan(value):
                continue
            dark = abs(value) > 0.6 * most
            axes.text(
                across,
                down,
                tick(float(f"{value:.2g}")),
                ha="center",
                va="center",
                size=6,
                color="white" if dark else "#15171a",
            )
    for which, found in ((axes.xaxis, grid.columns), (axes.yaxis, grid.index)):
        every = max(1, -(-len(found) // 8))
        which.set_ticks(range(0, len(found), every), [f"{value:g}" for value in list(found)[::every]])
    clean(axes, grid="")
    axes.set_ylabel("layer" if one.panel.measure == "between" else "token of the answer", **LABEL)
    key = bar.figure.colorbar(image, cax=bar)
    key.outline.set_visible(False)
    key.ax.yaxis.set_major_locator(MaxNLocator(4))
    key.ax.yaxis.set_major_formatter(FuncFormatter(tick))
    key.ax.tick_params(labelsize=7, length=2, color=GREY, labelcolor=INK)


def _names(one: Drawn) -> list[Any]:
    """The places on an x axis that holds words."""
    values = list(dict.fromkeys(one.panel.rows["x"]))
    return [] if all(isinstance(value, (int, float)) for value in values) else values


def _x_axis(axes: Axes, one: Drawn, found: Chosen, wide: float) -> None:
    """Ticks and name of an x axis: layers with the share of the depth under them, words, or numbers."""
    name = axis(one.x)
    if one.kind == "heat":
        pass
    elif one.x == "layer" and found.layers:
        first = min(0, int(one.panel.rows["x"].min()))
        axes.set_xlim(first - 0.5, found.layers - 0.5)
        ticks = layer_ticks(first, found.layers - 1, max(4, int(wide * 2.4)))
        axes.set_xticks(ticks, [f"{tick}\n{100 * (tick + 1) / found.layers:.0f} %" for tick in ticks])
        name = "layer, with its share of the depth" if wide > 2.4 else "layer (share of depth)"
    elif names := _names(one):
        axes.set_xlim(-0.5, len(names) - 0.5)
        room = max(6, int(14 * wide / len(names)))
        axes.set_xticks(range(len(names)), ["\n".join(textwrap.wrap(axis(str(each)), room)) for each in names])
    elif one.x == "training_step":  # checkpoints are saved at powers of two
        axes.set_xscale("symlog" if one.panel.rows["x"].min() <= 0 else "log")
        axes.xaxis.set_major_formatter(FuncFormatter(tick))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(max(4, int(wide * 2)), steps=[1, 2, 5, 10], integer=_whole(one.panel)))
        axes.xaxis.set_major_formatter(FuncFormatter(tick))
    axes.set_xlabel("\n".join(textwrap.wrap(name, max(20, int(13 * wide)))), labelpad=2, **LABEL)


def _whole(panel: Panel) -> bool:
    return all(float(value).is_integer() for value in panel.rows["x"])


def layer_ticks(first: int, last: int, most: int) -> list[int]:
    """Evenly spaced layers, at most `most` or so, that end with the last one; it replaces a neighbour it would touch."""
    step = next((step for step in STEPS if (last - first) / step < most), 50)
    return [*(tick for tick in range(first, last) if tick % step == 0 and last - tick >= 0.75 * step), last]
