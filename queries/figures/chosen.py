"""What a figure shows of an answer: at most three panels and a few numbers, as the row's header names them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase as fnmatch

import pandas as pd

from ...store.tables.names import Chain
from ..rows.findings import Findings, Panel, by_stage, compared, hues, marked, reference, shown
from ..rows.measures import axis
from ..rows.numbers import interval
from .looks import Look, looks

PANELS, NUMBERS = 3, 6  # most of either
FIELD = re.compile(r"\{(\w+)")  # a measure in the template of the sentence


@dataclass(frozen=True)
class Drawn:
    """A panel as it is drawn: its kind (line, dots, bars, heat), its x axis, and the look of each hue."""

    panel: Panel
    kind: str
    x: str
    looks: dict[object, Look]


@dataclass(frozen=True)
class Chosen:
    """A figure's panels, its numbers by unit (each with the look of its hues), and how many more there are."""

    panels: list[Drawn]
    numbers: dict[str, list[tuple[Panel, dict[object, Look]]]]
    layers: int  # of the models; 0 where x is something else
    left_out: int


def chosen(answer: Findings) -> Chosen:
    """What the header's `plot:` names of an answer.

    `panels=` are measures along x: MEASURE, MEASURE/VALUE for one value of a further dimension, A+B for two in one panel.
    `forest=` are single numbers. Names may be patterns, `hide=` leaves some out, `bars=` and `heat=` (with down=COLUMN) are
    drawn as such. Without these the first that there are, of numbers those that the sentence names.
    """
    plot = answer.query.plot
    hidden = plot.get("hide", "").split(",")
    lines, numbers = (
        [p for p in part if p.rows["estimate"].notna().any() and not any(fnmatch(p.measure, x) for x in hidden)]
        for part in answer.parts
    )
    # What the row compares first has an axis of stages; the others keep theirs.
    first = [panel for panel in numbers if _compared(panel, answer)][:1]
    along = [_along(panel, answer.chain) for panel in first if answer.chain]
    drawn = list(_panels(lines, plot)) if "panels" in plot else []
    drawn = [one for at, one in enumerate(drawn) if not any(one[0] is before for before, _ in drawn[:at])]
    drawn = [*((panel, None) for panel in along), *(drawn or [(panel, None) for panel in lines])]
    numbers = [panel for panel in numbers if panel.measure not in {drawn.measure for drawn in along}]
    wanted = plot["forest"].split(",") if "forest" in plot else FIELD.findall(answer.query.says)
    named = [p for want in dict.fromkeys(wanted) for p in numbers if fnmatch(p.measure, want)]
    named = named if named or "forest" in plot or drawn else numbers
    x = plot.get("x", "layer")
    places = [value for panel in lines for value in panel.rows["x"]]
    layers = 1 + int(max(places)) if places and x == "layer" else 0
    column, kept = plot.get("hue", "variant"), drawn[:PANELS]
    # Levels before contrasts, and one look for a hue in every panel.
    present = hues([panel for panel, names in kept if names is None] + named)
    if answer.chain:
        present = [None] * (None in present) + [stage for stage in answer.chain.models if stage in present]
    every = looks(present, column)
    stages = "training_step" if answer.chain and answer.chain.training else "stage"
    panels = [
        Drawn(
            panel,
            _kind(panel, plot),
            stages if panel in along else plot.get(f"at_{panel.measure}", x),
            looks(names, "metric", names) if names else every,
        )
        for panel, names in kept
    ]
    groups: dict[str, list[tuple[Panel, dict[object, Look]]]] = {}
    for panel in (_told(panel, answer) for panel in named[:NUMBERS]):
        if len(panel.rows):
            groups.setdefault(panel.unit, []).append((panel, every))
    alone = [unit for unit, found in groups.items() if sum(len(panel.rows) for panel, _ in found) < 2]
    if panels or len(groups) > len(alone):  # a number by itself needs no axis: it stands in the table
        for unit in alone:
            del groups[unit]
    shown_numbers = sum(map(len, groups.values()))
    return Chosen(panels, groups, layers, len(lines) + len(numbers) - shown_numbers - sum(_parts(p) for p in panels))


def _compared(panel: Panel, answer: Findings) -> bool:
    """Whether a number is what the row's sentence compares, and a chain has stages enough for an axis of them."""
    enough = answer.chain is not None and len(answer.chain.models) > 2
    return enough and panel.measure in compared(answer.query.says)


def _along(panel: Panel, chain: Chain) -> Panel:
    """A number of every stage as a curve along the chain, by training step where the catalog says them."""
    at = dict(zip(chain.models, chain.training or chain.models, strict=True))
    rows = panel.rows.sort_values("hue", key=lambda stages: stages.map(chain.models.index))
    return replace(panel, rows=rows.assign(x=rows["hue"].map(at), hue=None))


def _parts(drawn: Drawn) -> int:
    return len(drawn.looks) if drawn.panel.measure == "" else 1


def _panels(lines: list[Panel], plot: dict[str, str]) -> Iterator[tuple[Panel, dict[object, str] | None]]:
    """The panels that `panels=` names; of merged ones the names of their measures too."""
    for entry in plot["panels"].split(","):
        wanted, _, value = entry.partition("/")
        found = [
            panel
            for name in wanted.split("+")
            for panel in lines
            if fnmatch(panel.measure, name) and (not value or not panel.further or value in panel.further)
        ]
        if "+" not in wanted or len({panel.unit for panel in found}) != 1 or len(found) < 2:
            yield from ((panel, None) for panel in found)
            continue
        common = os.path.commonprefix([f"{panel.label}, " for panel in found]).rpartition(", ")[0]
        names: dict[object, str] = {p.measure: p.label.removeprefix(common).removeprefix(", ") for p in found}
        rows = pd.concat([panel.rows.assign(hue=panel.measure) for panel in found])
        yield replace(found[0], label=common or found[0].unit, measure="", rows=rows), names


def _kind(panel: Panel, plot: dict[str, str]) -> str:
    if panel.heat:
        return "heat"
    bars = any(fnmatch(panel.measure, name) for name in plot.get("bars", "").split(","))
    return "bars" if bars and panel.measure else plot.get("kind", "line")


def _told(panel: Panel, answer: Findings) -> Panel:
    """Of a number the contrast, where the row compares two; else its levels."""
    rows = panel.contrasts if answer.query.contrast and len(panel.contrasts) else panel.levels
    return replace(panel, rows=rows[rows["estimate"].notna()])


def legend_of(answer: Findings, found: Chosen) -> tuple[list[Look], bool]:
    """The looks that need a name, each once, and whether published figures are marked."""
    panels = [(one.panel, one.looks) for one in found.panels if one.kind != "heat"]
    panels += [pair for group in found.numbers.values() for pair in group]
    named = {
        look: None
        for panel, each in panels
        for hue, look in each.items()
        if hue is not None and any(value == hue for value in panel.rows["hue"])
    }
    beside = any(
        reference(answer, panel, hue) is not None
        for group in found.numbers.values()
        for panel, _ in group
        for hue in panel.rows["hue"]
    )
    return list(named), beside or any(marked(answer, one.panel) for one in found.panels)


def described(answer: Findings) -> str:
    """What is seen in the figure of an answer, in words: for readers who don't see it."""
    found, parts = chosen(answer := by_stage(answer)), []
    for one in found.panels:
        panel, series = one.panel, []
        if one.kind == "heat":
            low, high = panel.rows["estimate"].min(), panel.rows["estimate"].max()
            parts.append(f"Heat map of {panel.label} by {axis(one.x)}: from {interval(low)} to {interval(high)}.")
            continue
        for hue, look in one.looks.items():
            rows = panel.rows[[value == hue or (value is None and hue is None) for value in panel.rows["hue"]]]
            rows = rows[rows["estimate"].notna()]
            if len(rows):
                ends = [f"{interval(r.estimate)} at {shown(r.x)}" for r in (rows.iloc[0], rows.iloc[-1])]
                series.append(
                    " ".join([look.label, *([f"from {ends[0]} to {ends[1]}"] if len(rows) > 1 else ends[:1])]).strip()
                )
        parts.append(f"{panel.label} ({panel.unit}) by {axis(one.x)}: {'; '.join(series[:4])}.")
    for unit, group in found.numbers.items():
        said = [
            f"{panel.label}{f' ({shown(row.hue)})' if row.hue is not None else ''} {interval(row.estimate, row.low, row.high)}"
            for panel, _ in group
            for row in panel.rows.itertuples()
        ]
        parts.append(f"In {unit}: {'; '.join(said[:NUMBERS])}.")
    return " ".join(parts)
