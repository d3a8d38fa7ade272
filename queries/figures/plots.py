"""The figure of an answer: lines over the layers with interval bands, their contrast below, single numbers in a strip.

Figures are plain matplotlib objects, 1200 pixels wide when saved: no window, no global state. Above the axes stand the
title and the legend, below them what the intervals are and which streams were read.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from matplotlib.text import Text

from ...store.core.errors import LakeError
from ...store.core.files import hash_file, hash_json
from . import marks
from .canvas import Canvas, beside, caption, legend, read, title, unit
from .marks import GREY, INK
from .panels import Panel, marked, shown

if TYPE_CHECKING:
    from ..rows.findings import Findings

WIDTH, DPI = 8.0, 150
# Modules that decide what a figure looks like.
DRAWING = ("figures/plots", "figures/canvas", "figures/panels", "figures/marks", "numbers")
HEADER = 4096  # bytes of an SVG that hold its metadata
Part = tuple[Axes, pd.DataFrame]


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
    canvas = read(answer)
    parts = [
        (_lines_height(canvas), _draw_lines, canvas.lines),
        (_numbers_height(canvas), _draw_numbers, canvas.numbers),
        (0.45 + 0.22 * len(canvas.plain), _draw_plain, canvas.plain),
    ]
    parts = [part for part in parts if part[2]]
    heights = [part[0] for part in parts] or [0.3]
    handles, head, foot = legend(canvas), title(canvas), caption(canvas)
    across = _across([str(handle.get_label()) for handle in handles])
    above = 0.2 + 0.2 * len(head) + (0.07 + 0.2 * -(-len(handles) // across) if handles else 0)
    below = 0.16 + 0.16 * len(foot)
    height = above + sum(heights) + below
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
    for index, (_, draw_part, _) in enumerate(parts):
        draw_part(figure, blocks[index], canvas)
    for text in figure.findobj(Text):  # a name may hold a $, which must not become mathematics
        text.set_parse_math(False)
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        if not axis.get_label_text():
            # Spares the search for a place beside all tick labels, several times a figure.
            axis.set_label_coords(0.5, 0.5)
    return figure


def save(figure: Figure, *paths: Path, key: str = "") -> None:
    """Write a figure as PNG (150 dots per inch) or SVG, by the endings of the names; it carries no date.

    SVG has its text as text, and `key` in its metadata (see `drawn`).
    """
    for path in paths:
        if path.suffix.lower() not in (".png", ".svg"):
            raise LakeError(f"{path}: a figure is written as .png or .svg")
    if engine := figure.get_layout_engine():  # once for all files: it takes as long as drawing does
        engine.execute(figure)
        figure.set_layout_engine("none")
    for path in paths:
        svg = path.suffix.lower() == ".svg"
        with rc_context({"svg.fonttype": "none", "svg.hashsalt": "actlake"}):
            figure.savefig(path, dpi=DPI, metadata={"Date": None, "Identifier": key} if svg else {"Software": None})


def figure_key(answer: Findings) -> str:
    """Hash of all that a figure shows and of the code that draws it."""
    code = [hash_file(Path(__file__).parents[1] / f"{name}.py") for name in DRAWING]
    query = answer.query
    shown = [query.id, query.title, query.plot, query.contrast, answer.pair, answer.streams]
    # DuckDB's threads add in no fixed order: the last digits of a sum differ from run to run and show in no figure.
    numbers = answer.table.to_csv(float_format="%.7g")
    return hash_json([*shown, numbers, answer.published.to_csv(), code])


def drawn(png: Path, svg: Path, key: str) -> bool:
    """Whether both files are there and show what `figure_key` stands for."""
    if not (png.exists() and svg.exists()):
        return False
    with open(svg, "rb") as file:
        return key.encode() in file.read(HEADER)


# --- places ----------------------------------------------------------------------------------------------------------


def _across(labels: list[str]) -> int:
    """How many legend entries fit side by side."""
    widths = [len(label) + 9 for label in labels] or [1]
    return len(widths) if sum(widths) <= 118 else max(1, 118 // max(widths))


def _columns(count: int) -> int:
    return {1: 1, 2: 2, 4: 2}.get(count, 3)


def _stacked(panels: list[Panel]) -> bool:
    """Whether contrasts get axes of their own under the levels."""
    return any(len(panel.levels) and len(panel.contrasts) for panel in panels)


def _line_ratios(canvas: Canvas) -> list[float]:
    one = _columns(len(canvas.lines)) == 1
    return ([2.6, 1.3] if one else [1.9, 1.1]) if _stacked(canvas.lines) else [3.0 if one else 2.1]


def _number_ratios(canvas: Canvas) -> list[float]:
    most = max((len(panel.levels) for panel in canvas.numbers), default=0)
    both = _stacked(canvas.numbers)
    return [0.24 * max(most, 1), 0.3] if both else [0.24 * max(len(panel.rows) for panel in canvas.numbers)]


def _lines_height(canvas: Canvas) -> float:
    rows = -(-len(canvas.lines) // _columns(len(canvas.lines)))
    return rows * (sum(_line_ratios(canvas)) + 0.5) + 0.25


def _numbers_height(canvas: Canvas) -> float:
    if not canvas.numbers:
        return 0.0
    ratios = _number_ratios(canvas)
    return -(-len(canvas.numbers) // _columns(len(canvas.numbers))) * (sum(ratios) + 0.3 + 0.35 * len(ratios))


def _axes(
    figure: Figure, spec: SubplotSpec, panels: list[Panel], ratios: list[float], share: bool
) -> Iterator[list[Part]]:
    """The axes of each panel with the rows that belong there: levels above contrasts, or everything in one."""
    columns = _columns(len(panels))
    count = -(-len(panels) // columns)
    grid = spec.subgridspec(count * len(ratios), columns, height_ratios=ratios * count)
    for index, panel in enumerate(panels):
        row, column = divmod(index, columns)
        top = figure.add_subplot(grid[row * len(ratios), column])
        _title(top, panel.label, columns)
        if len(ratios) == 2 and len(panel.levels) and len(panel.contrasts):
            low = figure.add_subplot(grid[row * len(ratios) + 1, column], sharex=top if share else None)
            yield [(top, panel.levels), (low, panel.contrasts)]
        else:
            yield [(top, panel.rows)]


def _title(axes: Axes, text: str, columns: int) -> None:
    """Write a panel's title, smaller where it would not fit into one of so many columns."""
    most = {1: 90, 2: 44}.get(columns, 28)
    axes.set_title(
        text, loc="left", size=min(9, 9 * most / max(len(text), 1)), color=INK, y=1.0
    )  # a y spares a search for one


def _draw_lines(figure: Figure, spec: SubplotSpec, canvas: Canvas) -> None:
    plot, columns = canvas.answer.query.plot, _columns(len(canvas.lines))
    joined = plot.get("kind", "line") == "line"
    for index, parts in enumerate(_axes(figure, spec, canvas.lines, _line_ratios(canvas), share=True)):
        for axes, rows in parts:
            marks.lines(axes, rows, canvas.looks, joined=joined)
            for x, line in marked(canvas.answer, canvas.lines[index]) if axes is parts[0][0] else ():
                marks.diamond(axes, x, line["value"])
            if canvas.layers > 1:
                marks.shade_final(axes, canvas.layers)
            axes.tick_params(labelbottom=axes is parts[-1][0])
        if index % columns == 0:
            parts[0][0].set_ylabel(plot.get("y", "estimate"), size=8.5, color=INK)
            if len(parts) == 2:
                parts[1][0].set_ylabel(shown(parts[1][1]["hue"].iloc[0]), size=8.5, color=INK)
        lowest = parts[-1][0]
        if canvas.layers:
            first = min(0, int(canvas.lines[index].rows["x"].min()))
            marks.layer_axis(lowest, first, canvas.layers, {1: 18, 2: 9}.get(columns, 6))
        elif canvas.names:
            marks.name_axis(lowest, canvas.names)
        if index + columns >= len(canvas.lines):
            name = plot.get("x", "layer")
            lowest.set_xlabel("layer, with its share of the depth" if canvas.layers else name, size=8.5, color=INK)


def _draw_numbers(figure: Figure, spec: SubplotSpec, canvas: Canvas) -> None:
    cells = _axes(figure, spec, canvas.numbers, _number_ratios(canvas), share=False)
    for panel, parts in zip(canvas.numbers, cells, strict=True):
        if named := unit(canvas, panel):
            _title(parts[0][0], f"{panel.label} ({named})", _columns(len(canvas.numbers)))
        for axes, rows in parts:
            labels = [shown(hue) for hue in rows["hue"]]
            marks.dots(axes, rows, labels, canvas.looks, beside(canvas, panel, rows))


def _draw_plain(figure: Figure, spec: SubplotSpec, canvas: Canvas) -> None:
    """All numbers without a hue share one axis: they are regions or readings of one quantity."""
    rows = pd.concat([panel.rows for panel in canvas.plain])
    labels = [panel.label for panel in canvas.plain for _ in range(len(panel.rows))]
    published = [line for panel in canvas.plain for line in beside(canvas, panel, panel.rows)]
    axes = figure.add_subplot(spec)
    marks.dots(axes, rows, labels, canvas.looks, published)
    axes.set_xlabel(" or ".join(dict.fromkeys(unit(canvas, panel) for panel in canvas.plain)), size=8.5, color=INK)
