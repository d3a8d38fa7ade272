"""The figure of an answer: lines over the layers with interval bands, their contrast below, single numbers in a strip.

Figures are plain matplotlib objects, 1200 pixels wide when saved: no window, no global state. Above the axes stand the
title and the legend, below them what the intervals are and which streams were read. PT and IT have the same two colours
everywhere (Okabe and Ito's palette, safe for colour-blind readers) and markers of different shape; contrasts are dark and
have a line at zero.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase as fnmatch
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator

from ..rows import findings
from ..rows.findings import Findings, Panel, caption, heading, hues, is_contrast, marked, reference, shown, split, unit

WIDTH, DPI = 8.0, 150
MOST = 12  # panels of lines, and of single numbers
INK, GREY, GRID, SHADE, EDGE = "#222222", "#5A5A5A", "#DDDDDD", "#EFECE2", "#CFC9B4"
STEPS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30)
Part = tuple[Axes, pd.DataFrame]
LABEL: dict[str, Any] = {"size": 8.5, "color": INK}
ZERO: dict[str, Any] = {"color": GREY, "linewidth": 0.9, "linestyle": (0, (4, 3)), "zorder": 1}


class _Style(NamedTuple):
    """How a hue looks."""

    colour: str
    marker: str


FIXED = {"pt": _Style("#0072B2", "o"), "it": _Style("#D55E00", "s")}
OTHERS = ("#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#6A3D9A", "#8C6D1F")


def styles(hues: Iterable[object]) -> dict[object, _Style]:
    """A style for every hue; PT, IT and contrasts always get theirs, others differ in colour, then in marker too.

    None, the last of several, is what has no name in the legend: it looks like none of those that have.
    """
    found: dict[object, _Style] = {}
    others = 0
    for hue in hues:
        fixed = _Style(INK, "o") if is_contrast(hue) or (hue is None and found) else FIXED.get(str(hue))
        turn, which = divmod(others, len(OTHERS))
        found[hue] = fixed or _Style(OTHERS[which], "o^vDPX"[turn % 6])
        others += fixed is None
    return found


class Picture(Figure):
    """A matplotlib Figure that notebooks show by themselves, without pyplot or a backend."""

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=DPI)
        width, height = self.get_size_inches()
        return buffer.getvalue(), {"width": round(96 * width), "height": round(96 * height)}


def draw(answer: Findings) -> Picture:
    """Draw an answer as its query's header says; rows without x make the strip at the bottom.

    The header's `plot:` line holds a kind (`line`, or `dots` for points that are not joined), x, hue, y (label of the
    lines' y axis), `numbers` (unit of the single numbers), MEASURE=UNIT for a number in another unit, and hide=MEASURE,...
    for what only the table shows; both may be patterns (commit_*). At most 12 panels and 12 single numbers are drawn; the
    caption says how many are left.
    """
    spec = _FigureSpec.read(answer := findings.by_stage(answer))
    parts = [part for part in (spec.lines, spec.numbers, spec.plain) if part.panels]
    heights = [part.height for part in parts] or [0.3]
    handles, head, foot = spec.legend(), heading(answer), caption(answer, spec.left_out)
    widths = [len(str(handle.get_label())) + 9 for handle in handles] or [1]
    across = len(widths) if sum(widths) <= 118 else max(1, 118 // max(widths))
    above = 0.2 + 0.2 * len(head) + (0.07 + 0.2 * -(-len(handles) // across) if handles else 0)
    height = above + sum(heights) + (below := 0.16 + 0.16 * len(foot))
    inside = (0.008, below / height, 0.984, sum(heights) / height)
    figure = Picture(figsize=(WIDTH, height), facecolor="white")
    figure.set_layout_engine("constrained", rect=inside, w_pad=0.06, h_pad=0.06)
    figure.text(0.015, 1 - 0.12 / height, "\n".join(head), va="top", size=11, weight="bold", color=INK)
    figure.text(0.015, 0.08 / height, "\n".join(foot), va="bottom", size=7.5, color=GREY, linespacing=1.4)
    if handles:
        corner = (0.008, 1 - (0.16 + 0.2 * len(head)) / height)
        figure.legend(handles=handles, ncols=across, frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=corner)
    if not parts:
        figure.text(0.015, (below + 0.1) / height, "No estimate to draw.", size=9, color=INK)
    blocks = figure.add_gridspec(len(heights), 1, height_ratios=heights)
    for index, part in enumerate(parts):
        part.draw(spec, figure, blocks[index])
    for text in figure.findobj(Text):  # a name may hold a $, which must not become mathematics
        text.set_parse_math(False)
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        if not axis.get_label_text():
            axis.set_label_coords(0.5, 0.5)  # spares the search for a place beside all tick labels
    return figure


# --- what a figure shows ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _FigureSpec:
    """What the parts of one figure share: its panels, their styles, and the words around them."""

    answer: Findings
    styles: dict[object, _Style]
    lines: _Lines
    numbers: _Numbers  # keyed by a hue
    plain: _Plain  # single numbers without a hue
    left_out: int

    @classmethod
    def read(cls, answer: Findings) -> _FigureSpec:
        """Sort an answer's table into what a figure shows."""
        hidden = answer.query.plot.get("hide", "").split(",")
        lines, numbers = (
            [p for p in part if p.rows["estimate"].notna().any() and not any(fnmatch(p.measure, x) for x in hidden)]
            for part in split(answer)
        )
        looks, left_out = styles(hues(lines + numbers)), max(0, len(lines) - MOST) + max(0, len(numbers) - MOST)
        values = list(dict.fromkeys(x for panel in lines for x in panel.rows["x"]))
        layers = 1 + int(max(values)) if lines and answer.query.plot.get("x", "layer") == "layer" else 0
        names = [] if all(isinstance(value, (int, float)) for value in values) else values
        if names:
            lines = [replace(p, rows=p.rows.assign(x=p.rows["x"].map(names.index))) for p in lines]
        keyed, plain = ([p for p in numbers[:MOST] if p.rows["hue"].notna().any() == one] for one in (True, False))
        drawn = _Lines(lines[:MOST], layers, [shown(name) for name in names])
        return cls(answer, looks, drawn, _Numbers(keyed), _Plain(plain), left_out)

    def legend(self) -> list[Artist]:
        """A handle for every hue that has a name, and for what else needs a word."""
        found: list[Artist] = [
            Line2D([], [], color=look.colour, marker=look.marker, markersize=4.5, linewidth=1.8, label=shown(hue))
            for hue, look in self.styles.items()
            if hue is not None
        ]
        if self.lines.layers > 1:
            found.append(Patch(facecolor=SHADE, edgecolor=EDGE, linewidth=0.6, label="final 20 % of layers"))
        answer, numbers = self.answer, self.numbers.panels + self.plain.panels
        beside = any(reference(answer, panel, hue) is not None for panel in numbers for hue in panel.rows["hue"])
        if beside or any(marked(answer, panel) for panel in self.lines.panels):
            found.append(Line2D([], [], color=INK, marker="D", ms=4.5, ls="", mfc="white", label="published"))
        return found


# --- parts of a figure, from the top down ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Grid:
    """Panels in rows and columns."""

    panels: list[Panel]

    @property
    def columns(self) -> int:
        return {1: 1, 2: 2, 4: 2}.get(len(self.panels), 3)

    @property
    def stacked(self) -> bool:  # contrasts get axes of their own under the levels
        return any(len(panel.levels) and len(panel.contrasts) for panel in self.panels)

    @property
    def rows(self) -> int:
        return -(-len(self.panels) // self.columns)

    def axes(self, figure: Figure, place: SubplotSpec, ratios: list[float], share: bool) -> Iterator[list[Part]]:
        """The axes of each panel with the rows that belong there: levels above contrasts, or everything in one."""
        each = len(ratios)
        grid = place.subgridspec(self.rows * each, self.columns, height_ratios=ratios * self.rows)
        for index, panel in enumerate(self.panels):
            row, column = divmod(index, self.columns)
            top = figure.add_subplot(grid[row * each, column])
            self.name(top, panel.label)
            if each == 2 and len(panel.levels) and len(panel.contrasts):
                low = figure.add_subplot(grid[row * each + 1, column], sharex=top if share else None)
                yield [(top, panel.levels), (low, panel.contrasts)]
            else:
                yield [(top, panel.rows)]

    def name(self, axes: Axes, text: str) -> None:
        """Write a panel's title, smaller where it would not fit into its column; a y spares a search for one."""
        most = {1: 90, 2: 44}.get(self.columns, 28)
        axes.set_title(text, loc="left", size=min(9, 9 * most / max(len(text), 1)), color=INK, y=1.0)


@dataclass(frozen=True)
class _Lines(_Grid):
    """Measures along the x axis. `layers` is 0 where that is not the layer, `names` are its ticks if it holds words."""

    layers: int
    names: list[str]

    @property
    def ratios(self) -> list[float]:
        one = self.columns == 1
        return ([2.6, 1.3] if one else [1.9, 1.1]) if self.stacked else [3.0 if one else 2.1]

    @property
    def height(self) -> float:
        return self.rows * (sum(self.ratios) + 0.5) + 0.25

    def draw(self, spec: _FigureSpec, figure: Figure, place: SubplotSpec) -> None:
        plot = spec.answer.query.plot
        for index, parts in enumerate(self.axes(figure, place, self.ratios, share=True)):
            panel, top, lowest = self.panels[index], parts[0][0], parts[-1][0]
            for axes, rows in parts:
                _draw_lines(axes, rows, spec.styles, joined=plot.get("kind", "line") == "line")
                for x, line in marked(spec.answer, panel) if axes is top else ():
                    _diamond(axes, x, line["value"])
                if self.layers > 1:  # from floor(0.8 L) on
                    axes.axvspan(4 * self.layers // 5 - 0.5, self.layers - 0.5, color=SHADE, zorder=0, linewidth=0)
                axes.tick_params(labelbottom=axes is lowest)
            if index % self.columns == 0:
                top.set_ylabel(plot.get("y", "estimate"), **LABEL)
                if len(parts) == 2:
                    lowest.set_ylabel(shown(parts[1][1]["hue"].iloc[0]), **LABEL)
            if self.layers:  # numbers with the share of the depth under them
                first = min(0, int(panel.rows["x"].min()))
                lowest.set_xlim(first - 0.5, self.layers - 0.5)
                ticks = layer_ticks(first, self.layers - 1, {1: 18, 2: 9}.get(self.columns, 6))
                lowest.set_xticks(ticks, [f"{tick}\n{100 * (tick + 1) / self.layers:.0f} %" for tick in ticks])
            elif self.names:
                lowest.set_xlim(-0.5, len(self.names) - 0.5)
                lowest.set_xticks(range(len(self.names)), self.names)
            if index + self.columns >= len(self.panels):
                name = "layer, with its share of the depth" if self.layers else plot.get("x", "layer")
                lowest.set_xlabel(name, **LABEL)


@dataclass(frozen=True)
class _Numbers(_Grid):
    """Single numbers, a line a hue."""

    @property
    def ratios(self) -> list[float]:
        most = max(len(panel.levels if self.stacked else panel.rows) for panel in self.panels)
        return [0.24 * max(most, 1), 0.3][: 1 + self.stacked]

    @property
    def height(self) -> float:
        return self.rows * (sum(self.ratios) + 0.3 + 0.35 * len(self.ratios))

    def draw(self, spec: _FigureSpec, figure: Figure, place: SubplotSpec) -> None:
        for panel, parts in zip(self.panels, self.axes(figure, place, self.ratios, share=False), strict=True):
            if named := unit(spec.answer, panel):
                self.name(parts[0][0], f"{panel.label} ({named})")
            for axes, rows in parts:
                _draw_dots(axes, rows, rows["hue"].map(shown), spec, [panel] * len(rows))


@dataclass(frozen=True)
class _Plain(_Grid):
    """All numbers without a hue share one axis: they are regions or readings of one quantity."""

    @property
    def height(self) -> float:
        return 0.45 + 0.22 * len(self.panels)

    def draw(self, spec: _FigureSpec, figure: Figure, place: SubplotSpec) -> None:
        axes, each = figure.add_subplot(place), [panel for panel in self.panels for _ in range(len(panel.rows))]
        _draw_dots(axes, pd.concat([p.rows for p in self.panels]), [panel.label for panel in each], spec, each)
        axes.set_xlabel(" or ".join(dict.fromkeys(unit(spec.answer, panel) for panel in self.panels)), **LABEL)


# --- marks on one pair of axes ---------------------------------------------------------------------------------------


def _draw_lines(axes: Axes, rows: pd.DataFrame, looks: dict[object, _Style], *, joined: bool) -> None:
    """One line per hue with its interval band; points that nothing joins stand side by side with error bars instead.

    The x values have to be numbers.
    """
    _clean(axes, grid="y")
    if any(is_contrast(hue) for hue in rows["hue"]):
        axes.axhline(0, **ZERO)
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


def _draw_dots(axes: Axes, rows: pd.DataFrame, labels: Sequence[str], spec: _FigureSpec, panels: list[Panel]) -> None:
    """A row per number: dot and interval, and a diamond where a published figure stands beside it."""
    _clean(axes, grid="x")
    if any(is_contrast(hue) for hue in rows["hue"]):
        axes.axvline(0, **ZERO)
    for height, (row, panel) in enumerate(zip(rows.itertuples(), panels, strict=True)):
        (colour, marker), line = spec.styles[row.hue], reference(spec.answer, panel, row.hue)
        axes.hlines(height, row.low, row.high, color=colour, linewidth=2.2, zorder=2)
        axes.plot([row.estimate], [height], marker=marker, ms=5, color=colour, linestyle="", zorder=3)
        if line is not None:
            axes.hlines(height + 0.22, line["low"], line["high"], color=INK, linewidth=0.9, zorder=4)
            _diamond(axes, line["value"], height + 0.22)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.margins(x=0.08)
    axes.ticklabel_format(axis="x", useOffset=False)
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10], min_n_ticks=2))


def _diamond(axes: Axes, x: float, y: float) -> None:
    """The mark of a published figure."""
    axes.plot([x], [y], "D", ms=4.2, color=INK, mfc="white", mew=1.0, zorder=5)


def layer_ticks(first: int, last: int, most: int) -> list[int]:
    """Evenly spaced layers, at most `most` or so, that end with the last one; it replaces a neighbour it would touch."""
    step = next((step for step in STEPS if (last - first) / step < most), 50)
    return [*(tick for tick in range(first, last) if tick % step == 0 and last - tick >= 0.75 * step), last]


def _clean(axes: Axes, grid: str) -> None:
    """Light grid along one axis, no box."""
    axes.tick_params(labelsize=8, length=2.5, color=GREY, labelcolor=INK)
    axes.grid(axis=grid, color=GRID, linewidth=0.6)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(GREY)
