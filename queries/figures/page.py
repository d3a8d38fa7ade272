"""One self-contained HTML page of what was found, and what it took.

The page needs no network, no script and no other file: figures are embedded, and its policy header lets a browser load
nothing else. Every name and text in it is escaped, since models and prompt files may come from strangers.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup, escape

from ...store.core.files import human_bytes
from ..rows.findings import Findings, Panel, hues, rank, reference, shown, split
from ..rows.numbers import count, counts, interval, seconds
from ..rows.registry import description
from .kept import drawn

CAPTURE_COLUMNS = ["model", "stream", "prompts", "tokens", "bytes"]


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
    template = environment.from_string(
        resources.files(__package__).joinpath("page.html.j2").read_text(encoding="utf-8")
    )
    if "sealed" in captures:
        captures = captures[captures["sealed"].astype(bool)]
    return template.render(
        title=title,
        sentences=sentences,
        rows=[_row(answer) for answer in answers],
        refused=refused,
        steps=steps,
        captures=captures[CAPTURE_COLUMNS].to_dict("records"),
        totals=captures[["tokens", "bytes"]].sum(),
        next_commands=next_commands,
    )


def _row(answer: Findings) -> dict[str, Any]:
    lines, panels = split(answer)
    numbers = _numbers(answer, panels)
    return {
        "answer": answer,
        "description": description(answer.query),
        "figure": base64.b64encode(drawn(answer)).decode("ascii"),
        "numbers": numbers,
        "beside": any(cell["published"] for line in numbers["body"] for cell in line["cells"]),
        "published": [{**line, "text": _as_printed(line)} for line in answer.published.to_dict("records")],
        "lines": [_lines(panel) for panel in lines],
        "streams": sorted(answer.streams.items(), key=lambda item: rank(item[0])),
        "x": answer.query.plot.get("x", "layer"),
    }


# --- tables ----------------------------------------------------------------------------------------------------------


def _numbers(answer: Findings, panels: list[Panel]) -> dict[str, Any]:
    """Single numbers, a line per measure and a column per hue; each cell with its published figure, if there is one."""
    columns = hues(panels)
    body = []
    for panel in panels:
        cells = []
        for hue in columns:
            found = _at(panel.rows, hue)
            line = reference(answer, panel, hue) if found is not None else None
            cells.append({"value": _cell(found), "published": "" if line is None else _as_printed(line)})
        body.append({"name": panel.label, "cells": cells, "n": counts(panel.rows)})
    return {"columns": _headings(columns), "body": body}


def _lines(panel: Panel) -> dict[str, Any]:
    """One measure along the x axis, a column per hue."""
    columns = hues([panel])
    positions = list(dict.fromkeys(panel.rows["x"]))
    at: dict[tuple[Any, object], str] = {}
    for row in panel.rows.itertuples():
        at.setdefault((row.x, row.hue), interval(row.estimate, row.low, row.high))
    ordered = sorted(positions, key=_in_order(positions))
    body = [{"name": str(x), "cells": [at.get((x, hue), "") for hue in columns]} for x in ordered]
    return {"name": panel.label, "columns": _headings(columns), "body": body, "n": counts(panel.rows)}


def _in_order(values: list[Any]) -> Any:
    """Numbers by size, anything else as it came."""
    numeric = all(isinstance(value, (int, float)) for value in values)
    return (lambda value: value) if numeric else values.index


def _headings(columns: list[object]) -> list[str]:
    return [shown(hue) or "estimate" for hue in columns]


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
