"""The figure of an answer: lines over the layers with interval bands, their contrast below, single numbers in a strip.

PT and IT have the same two colours everywhere (Okabe and Ito's palette, safe for colour-blind readers) and markers of
different shape. Figures are plain matplotlib objects: no window, no global state.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator

from ..store.errors import LakeError
from .panels import Panel, hues, is_contrast, reference, shown, split

if TYPE_CHECKING:
    from .answer import Answer

COLOURS = {"pt": "#0072B2", "it": "#D55E00"}
MARKERS = {"pt": "o", "it": "s"}
OTHERS = ("#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#6A3D9A", "#8C6D1F")
INK, GREY, SHADE = "#222222", "#5A5A5A", "#EFECE2"
WIDTH, DPI = 8.0, 150  # inches and dots per inch: 1200 pixels
MOST_LINES, MOST_NUMBERS = 12, 9
REGION = "final 20 % of layers"


@dataclass(frozen=True)
class Canvas:
    """What every part of one figure shares."""

    answer: Answer
    colours: dict[object, str]
    layers: int  # 0 when the x axis is not the layer
    lines: list[Panel]
    numbers: list[Panel]


def draw(answer: Answer) -> Figure:
    """Draw an answer as its query's header says; rows without x make the strip at the bottom.

    At most 12 panels and 9 single numbers are drawn; the caption says how many are left to the table.
    """
    canvas = _canvas(answer)
    header, legend = _header(canvas)
    caption = _caption(canvas)
    tops = [0.16 + 0.2 * len(header) + (0.26 if legend else 0.04), 0.1 + 0.155 * len(caption)]
    heights = [_lines_height(canvas), _numbers_height(canvas)]
    height = sum(tops) + sum(heights)
    figure = Figure(figsize=(WIDTH, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    engine = figure.get_layout_engine()
    assert engine is not None
    engine.set(rect=(0.008, tops[1] / height, 0.984, sum(heights) / height), w_pad=0.06, h_pad=0.04)  # type: ignore[call-arg]
    figure.text(0.015, 1 - 0.12 / height, "\n".join(header), va="top", size=11, weight="bold", color=INK)
    figure.text(0.015, 0.07 / height, "\n".join(caption), va="bottom", size=7.5, color=GREY, linespacing=1.35)
    if legend:
        where = (0.008, 1 - (0.14 + 0.2 * len(header)) / height)
        figure.legend(handles=legend, loc="upper left", bbox_to_anchor=where, ncols=6, frameon=False, fontsize=8,
                      borderpad=0.2, columnspacing=1.6, handlelength=1.8)  # fmt: skip
    blocks = figure.add_gridspec(2, 1, height_ratios=[max(part, 1e-3) for part in heights])
    _draw_lines(figure, blocks[0], canvas)
    _draw_numbers(figure, blocks[1], canvas)
    for text in figure.findobj(Text):
        text.set_parse_math(False)  # type: ignore[attr-defined]
    return figure


def save(figure: Figure, path: Path | str) -> Path:
    """Write a figure as PNG (150 dots per inch) or SVG, by the ending of its name; the same figure gives the same bytes."""
    path = Path(path)
    if path.suffix.lower() not in (".png", ".svg"):
        raise LakeError(f"{path}: a figure is written as .png or .svg")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI, metadata={"Date": None} if path.suffix.lower() == ".svg" else {"Software": None})
    return path


# --- what goes where -------------------------------------------------------------------------------------------------


def _canvas(answer: Answer) -> Canvas:
    lines, numbers = split(answer)
    lines = [panel for panel in lines if panel.rows["estimate"].notna().any()]
    numbers = [panel for panel in numbers if panel.rows["estimate"].notna().any()]
    colours: dict[object, str] = {}
    for hue in hues(lines + numbers):
        free = [colour for colour in OTHERS if colour not in colours.values()] or list(OTHERS)
        colours[hue] = COLOURS.get(str(hue)) or (INK if is_contrast(hue) else free[0])
    layers = 0
    if answer.query.plot.get("x", "layer") == "layer" and lines:
        layers = 1 + max(int(panel.rows["x"].max()) for panel in lines)
    return Canvas(answer, colours, layers, lines[:MOST_LINES], numbers[:MOST_NUMBERS])
