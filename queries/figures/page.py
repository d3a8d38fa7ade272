"""One self-contained HTML page of what was found, and what it took.

The page needs no network and no other file: figures are part of it, and its policy header lets a browser load nothing, and
run nothing but its own search box, by its hash. Every name and text in it is escaped, since models and prompt files may
come from strangers.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase as fnmatch
from importlib import resources
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup, escape

from ...store.core.files import human_bytes
from ..rows.findings import Findings, Panel, hues, rank, reference, shown
from ..rows.header import description
from ..rows.numbers import count, counts, interval, seconds
from ..rows.registry import GROUPS, group_of
from . import figure
from .chosen import FIELD, described
from .kept import drawn
from .vector import DARK_RULES, inline, svg

MAIN = 8  # numbers that are shown at first where the row names none
CAPTURE_COLUMNS = ["model", "stream", "prompts", "tokens", "bytes"]


def notebook_figure(answer: Findings) -> str:
    """The figure of an answer as an image for a notebook: on white, whatever the notebook's theme."""
    alt = described(answer)
    data = base64.b64encode(svg(figure.draw(answer), dark=False).encode()).decode("ascii")
    width, style = 96 * figure.WIDTH, "max-width:100%;background:#fff"
    return f'<img width="{width:.0f}" style="{style}" alt="{escape(alt)}" src="data:image/svg+xml;base64,{data}">'


@dataclass(frozen=True)
class Step:
    """One thing that was done for the page: how long it took, what it wrote, whether it was there already."""

    name: str
    seconds: float
    bytes: int = 0
    reused: bool = False


def page(
    answers: Sequence[Findings],
    *,
    title: str,
    sentences: Sequence[str],
    steps: Sequence[Step],
    captures: pd.DataFrame,
    next_commands: Sequence[str],
    refused: Sequence[tuple[str, str]] = (),
) -> str:
    """The whole page as text.

    `sentences` open it. `refused` are rows that could not be answered, with the reason. `captures` needs the columns model,
    stream, prompts, tokens, bytes; others, such as paths, are not shown, nor are captures that its `sealed` column says are
    unfinished.
    """
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(count=count, size=human_bytes, seconds=seconds, shown=shown, code=_code)
    own = {name: (resources.files(__package__) / f"page.{name}").read_text(encoding="utf-8") for name in ("css", "js")}
    template = environment.from_string(
        resources.files(__package__).joinpath("page.html.j2").read_text(encoding="utf-8")
    )
    if "sealed" in captures:
        captures = captures[captures["sealed"].astype(bool)]
    rows = [_row(answer) for answer in answers]
    groups = [(name, [row for row in rows if row["group"] == name]) for name in (*GROUPS, "Others")]
    return template.render(
        title=title,
        style=Markup(own["css"] + DARK_RULES),
        script=Markup(own["js"]),
        allowed=base64.b64encode(hashlib.sha256(own["js"].encode()).digest()).decode("ascii"),
        sentences=sentences,
        groups=[group for group in groups if group[1]],
        refused=refused,
        steps=steps,
        captures=captures[CAPTURE_COLUMNS].to_dict("records"),
        totals=captures[["tokens", "bytes"]].sum(),
        next_commands=next_commands,
    )


def _row(answer: Findings) -> dict[str, Any]:
    lines, panels = answer.parts
    plot = answer.query.plot
    named = [*FIELD.findall(answer.query.says), *plot.get("forest", "").split(",")]
    main = [panel for panel in panels if any(fnmatch(panel.measure, name) for name in named)] or panels[:MAIN]
    rest = [panel for panel in panels if panel not in main]
    return {
        "answer": answer,
        "name": re.sub(r"\W+", "-", f"{answer.query.id}-{answer.pair}"),
        "group": group_of(answer.query),
        "description": description(answer.query),
        "figure": Markup(inline(drawn(answer, ".svg").decode(), f"Figure of {answer.query.id}. {described(answer)}")),
        "tables": [table for table in (_numbers(answer, main), _numbers(answer, rest)) if table["body"]],
        "beside": any(reference(answer, panel, hue) is not None for panel in panels for hue in panel.rows["hue"]),
        "published": [{**line, "text": _as_printed(line)} for line in answer.published.to_dict("records")],
        "lines": [_lines(panel, plot.get("hue", "variant")) for panel in lines],
        "streams": sorted(answer.streams.items(), key=lambda item: rank(item[0])),
        "x": plot.get("x", "layer"),
    }


# --- tables ----------------------------------------------------------------------------------------------------------


def _numbers(answer: Findings, panels: list[Panel]) -> dict[str, Any]:
    """Single numbers, a line per measure and a column per hue; each cell with its published figure, if there is one.

    What all lines have in common, their unit or what n counts, is said once.
    """
    columns = hues(panels)
    body = []
    for panel in panels:
        cells = []
        for hue in columns:
            found = _at(panel.rows, hue)
            line = reference(answer, panel, hue) if found is not None else None
            value, _, rest = _cell(found).partition(" [")
            published = "" if line is None else _as_printed(line)
            cells.append({"value": value, "interval": f"[{rest}" if rest else "", "published": published})
        body.append(
            {
                "name": panel.label,
                "code": panel.measure,
                "definition": panel.definition,
                "unit": panel.unit,
                "cells": cells,
                "n": counts(panel.rows),
            }
        )
    common = {key: body[0][key] if len({line[key] for line in body}) == 1 else "" for key in ("unit", "n") if body}
    return {"columns": _headings(columns, answer.query.plot.get("hue", "variant")), "body": body, "common": common}


def _lines(panel: Panel, column: str) -> dict[str, Any]:
    """One measure along the x axis, a column per hue, or per place on the other axis of a heat map."""
    across = panel.rows["y"] if panel.heat else panel.rows["hue"]
    columns = sorted(set(across)) if panel.heat else hues([panel])
    positions = list(dict.fromkeys(panel.rows["x"]))
    at: dict[tuple[Any, object], str] = {}
    for row, place in zip(panel.rows.itertuples(), across, strict=True):
        at.setdefault((row.x, place), interval(row.estimate, row.low, row.high))
    ordered = sorted(positions, key=_in_order(positions))
    body = [{"name": shown(x), "cells": [at.get((x, place), "") for place in columns]} for x in ordered]
    headings = [f"{place:g}" for place in columns] if panel.heat else _headings(columns, column)
    about = {"name": panel.label, "code": panel.measure, "definition": panel.definition, "unit": panel.unit}
    return {**about, "columns": headings, "body": body, "n": counts(panel.rows)}


def _in_order(values: list[Any]) -> Any:
    """Numbers by size, anything else as it came."""
    numeric = all(isinstance(value, (int, float)) for value in values)
    return (lambda value: value) if numeric else values.index


def _headings(columns: list[object], column: str) -> list[str]:
    return [shown(hue, column) or "estimate" for hue in columns]


def _at(rows: pd.DataFrame, hue: object) -> pd.Series | None:
    found = rows[[value == hue or (value is None and hue is None) for value in rows["hue"]]]
    return found.iloc[0] if len(found) else None


def _cell(row: pd.Series | None) -> str:
    return "" if row is None else interval(row["estimate"], row["low"], row["high"])


def _as_printed(line: Any) -> str:
    """A published figure with the digits it was published with."""
    parts = [
        f"{float(line[name]):,.10g}".replace("-", "−") for name in ("value", "low", "high") if not pd.isna(line[name])
    ]
    return parts[0] + (f" [{', '.join(parts[1:])}]" if len(parts) == 3 else "")


def _code(text: str) -> Markup:
    """Escaped text with its `names` in code marks."""
    parts = text.split("`")
    return Markup("").join(Markup("<code>{}</code>").format(p) if i % 2 else escape(p) for i, p in enumerate(parts))
