"""Rows of the experiment index as the explorer shows them: those whose tables the lake has, answered without computing any."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import duckdb
import numpy as np
import pandas as pd

from ..queries.answer.answer import Answer
from ..queries.answer.asking import Asking, Forecast
from ..queries.engine.estimate import Work
from ..queries.figures.chosen import chosen
from ..queries.figures.looks import DARK, Look, looks
from ..queries.rows.findings import Panel, hues, is_contrast, marked, reference, shown
from ..queries.rows.header import description, pitfall_link
from ..queries.rows.measures import axis
from ..queries.rows.numbers import interval
from ..queries.rows.registry import group_of, queries
from ..store.core.errors import LakeError, needs
from .packing import packed
from .source import ExplorerSource

MOST = 10  # prompts that contribute most, of a measure


class Answers:
    """The rows of each pair of the lake that can be answered from what is there."""

    def __init__(self, source: ExplorerSource):
        self._source = source

    @cached_property
    def forecasts(self) -> list[tuple[str, Forecast]]:
        """Every row of every pair: what is missing for it, or why it can't be answered."""
        found, rows = [], list(queries(self._source.catalog))
        for pair in self._source.kit.pairs:
            try:
                some = self._planned(rows, pair)
            except (
                LakeError
            ):  # of one row, such as one that takes a package which is not installed: it alone is left out
                some = [one for row in rows for one in self._planned_alone(row, pair)]
            by = {one.query.id: one for one in some}
            found += [(pair, by[row]) for row in rows if row in by]
        return found

    @needs()
    def _planned(self, rows: list[str], pair: str) -> list[Forecast]:
        return self._asking(rows, pair).forecast()

    def _planned_alone(self, row: str, pair: str) -> list[Forecast]:
        try:
            return self._planned([row], pair)
        except LakeError as error:
            return [Forecast(queries(self._source.catalog)[row], Work(), str(error))]

    @cached_property
    def ready(self) -> list[tuple[str, str]]:
        """(pair, row) of those that nothing is missing for."""
        return [(pair, one.query.id) for pair, one in self.forecasts if not one.refused and not one.work.parts()]

    def _asking(self, rows: list[str], pair: str) -> Asking:
        known = queries(self._source.catalog)
        kit = self._source.kit
        return Asking(
            self._source.layout, [known[row] for row in rows], pair, self._source.only, kit.requested_device,
            self._source.catalog, generate=False, probes=False,
        )  # fmt: skip

    def index(self) -> bytes:
        """All rows with their group, and where they are answered, the number of the answer's file."""
        at = {key: number for number, key in enumerate(self.ready)}
        rows = [
            {
                "pair": pair,
                "row": one.query.id,
                "title": one.query.title,
                "group": group_of(one.query),
                "file": at.get((pair, one.query.id)),
                "why": self._source.without_path(one.refused or one.words),
            }
            for pair, one in self.forecasts
        ]
        return packed({"rows": rows})

    def one(self, number: int) -> bytes:
        """One answer: sentence, measures with their intervals, published figures, SQL, prompts that contribute most."""
        pair, row = self.ready[number]
        found = [each for each in self._asking([row], pair) if isinstance(each, Answer)]
        if not found:
            return packed({"pair": pair, "row": row, "error": "this row turned out to have no answer here"})
        answer = found[0]
        lines, numbers = answer.parts
        first = [one.panel.measure for one in chosen(answer).panels]  # what the row's figure shows comes first
        lines.sort(key=lambda panel: first.index(panel.measure) if panel.measure in first else len(first))
        each = looks(hues(lines + numbers), answer.query.plot.get("hue", "variant"))
        value = {
            "pair": pair,
            "row": row,
            "title": answer.query.title,
            "sentence": self._source.without_path(answer.sentence),
            "x": axis(answer.query.plot.get("x", "layer")),
            "curves": [_curve(answer, panel, each) for panel in lines],
            "numbers": [_number(answer, panel, each) for panel in numbers],
            "main": sorted({str(name) for name in answer.main["measure"]}),
            "published": answer.published.drop(columns="row").to_dict("records"),
            "description": [
                [name, paragraphs, [[item, _link(item) if name == "pitfalls" else ""] for item in items]]
                for name, paragraphs, items in description(answer.query)
            ],
            "sql": answer.sql,
            "streams": answer.streams,
            "method": sorted({str(name) for name in answer.table["method"].dropna()} - {"none"}),
            "most": self._contributing(answer),
        }
        return packed(value)

    def _contributing(self, answer: Answer) -> list[dict[str, Any]]:
        """For each main measure the prompts with the largest values, or differences between the two sides."""
        if answer.query.bootstrap != "prompt":
            return []
        try:
            rows = self._source.rows(answer.sql)
        except duckdb.Error:
            return []
        if not {"prompt", "total"} <= set(rows.columns) or rows["total"].dropna().empty:
            return []
        contrast = answer.query.contrast
        found = []
        for measure in dict.fromkeys(answer.main["measure"]):
            part = rows[(rows["measure"] == measure) & rows["prompt"].notna() & rows["total"].notna()]
            if "layer" in part:
                part = part[part["layer"].isna()] if part["layer"].isna().any() else part
            if part.empty:
                continue
            n = part["n"] if "n" in part else pd.Series(1.0, part.index)
            both = contrast is not None and contrast[0] in part
            keys = ["prompt", contrast[0]] if both and contrast else ["prompt"]
            sums = (
                pd.DataFrame({**{key: part[key] for key in keys}, "total": part["total"], "n": n}).groupby(keys).sum()
            )
            values = sums["total"] / sums["n"]
            if both and contrast:
                wide = values.unstack()
                if not {contrast[1], contrast[2]} <= set(wide.columns):
                    continue
                values = wide[contrast[1]] - wide[contrast[2]]
            values = values.replace([np.inf, -np.inf], np.nan).dropna()
            top = values.reindex(values.abs().sort_values(ascending=False, kind="stable").index).head(MOST)
            ids = self._ids(answer)
            prompts = [[ids[int(at)], float(value)] for at, value in top.items() if 0 <= int(at) < len(ids)]
            if prompts:
                label = f"{contrast[1]} - {contrast[2]}" if both and contrast else ""
                found.append({"measure": measure, "of": shown(label) if label else "", "prompts": prompts})
        return found

    def _ids(self, answer: Answer) -> list[str]:
        """Prompt ids of the set that an answer is about, by index."""
        stream = next(iter(answer.streams.values()), None)
        return list(self._source.stream(stream).prompt_ids) if stream else []


def _curve(answer: Answer, panel: Panel, each: dict[object, Look]) -> dict[str, Any]:
    """A measure along an axis: a series per hue; of a heat map its values by place."""
    if panel.heat:
        grid = panel.rows.pivot_table(index="y", columns="x", values="estimate", aggfunc="first").sort_index()
        places = {"x": grid.columns.tolist(), "y": grid.index.tolist(), "values": grid.to_numpy(float).tolist()}
        return {**_about(panel), "series": [], "points": [], "heat": places}
    series = []
    for hue in dict.fromkeys(panel.rows["hue"]):
        rows = panel.rows[[value == hue or (value is None and hue is None) for value in panel.rows["hue"]]]
        columns = {name: rows[name].tolist() for name in ("x", "estimate", "low", "high")}
        counted = sorted({(int(n), str(of)) for n, of in zip(rows["n"], rows["unit"], strict=True) if not pd.isna(n)})
        series.append({**_looked(each, hue), **columns, "n": counted})
    points = [[x, line["value"]] for x, line in marked(answer, panel)]
    return {**_about(panel), "series": series, "points": points}


def _number(answer: Answer, panel: Panel, each: dict[object, Look]) -> dict[str, Any]:
    """A single number: a line per hue with its interval and what was published."""
    lines = []
    for row in panel.rows.itertuples():
        published = reference(answer, panel, row.hue)
        lines.append(
            {
                **_looked(each, row.hue),
                "text": interval(row.estimate, row.low, row.high),
                "n": row.n,
                "of": row.unit,
                "published": None if published is None else [published[name] for name in ("value", "low", "high")],
            }
        )
    return {**_about(panel), "lines": lines}


def _looked(each: dict[object, Look], hue: object) -> dict[str, Any]:
    look = each[hue]
    role, colours = hue if hue in ("pt", "it") else "", [look.colour, DARK.get(look.colour, look.colour)]
    return {"name": look.label, "role": role, "contrast": is_contrast(hue), "colours": colours, "dashed": look.dashed}


def _about(panel: Panel) -> dict[str, str]:
    return {"label": panel.label, "measure": panel.measure, "about": panel.definition, "unit": panel.unit}


def _link(item: str) -> str:
    return pitfall_link(item.partition(": ")[0])
