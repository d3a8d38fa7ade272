"""What models wrote under edits, as the explorer shows it: by prompt, all conditions; by condition, all prompts."""

from __future__ import annotations

import re
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from .packing import packed
from .source import ExplorerSource

DOSE = re.compile(r"\b(alpha|beta)=(-?[\d.]+)")  # of an edit in words: what a sweep varies
NO_EDIT = "none"
COLUMNS = ("text", "tokens", "ended")


class WrittenTexts:
    """All texts of the lake with their scores and verdicts, read once."""

    def __init__(self, source: ExplorerSource):
        self._source = source

    @cached_property
    def texts(self) -> pd.DataFrame:
        """A line per condition and prompt: condition, set, prompt (numbers of both), text, tokens, ended."""
        found = self._source.rows(
            "SELECT key, model, condition, template, prompts, prompt_id, category, text, tokens, ended FROM outputs ORDER BY ALL"
        )
        return found.drop_duplicates(["key", "prompts", "prompt_id"], ignore_index=True)

    @cached_property
    def conditions(self) -> list[dict[str, Any]]:
        """Every condition: key, model, condition, template, arm (the condition without its dose), dose, and where sweeps say
        so their names for it."""
        named = self._source.rows(
            "SELECT DISTINCT key, pair, sweep, arm, dose FROM scores WHERE key IS NOT NULL ORDER BY ALL"
        )
        by: dict[str, list[list[Any]]] = {}
        for row in named.itertuples():
            by.setdefault(row.key, []).append([row.pair, row.sweep, row.arm, None if pd.isna(row.dose) else row.dose])
        found = []
        columns = ["key", "model", "condition", "template"]
        for row in self.texts[columns].drop_duplicates("key").itertuples():
            doses = DOSE.findall(row.condition)
            one = len(doses) == 1
            found.append(
                {
                    **{name: getattr(row, name) for name in columns},
                    "edited": row.condition != NO_EDIT,
                    "arm": DOSE.sub(r"\1=…", row.condition) if one else row.condition,
                    "dose": float(doses[0][1]) if one else None,
                    "sweeps": by.get(row.key, []),
                }
            )
        return sorted(
            found, key=lambda row: (row["model"], row["edited"], row["template"], row["arm"], row["dose"] or 0.0)
        )

    @cached_property
    def sets(self) -> list[dict[str, Any]]:
        """The prompt sets that texts answer: name, ids, categories; the first prompts where the explorer is limited."""
        found = []
        for name, rows in self.texts.groupby("prompts", sort=True):
            if self._source.only in (None, name):
                prompts = rows.drop_duplicates("prompt_id").head(self._source.limit or len(rows))
                ids, categories = prompts["prompt_id"].tolist(), prompts["category"].tolist()
                found.append({"name": name, "ids": ids, "categories": categories})
        return found

    @cached_property
    def scores(self) -> dict[tuple[str, str], pd.Series]:
        """(key, prompt id) -> metric -> value; verdicts of a judge as judge: METRIC."""
        rows = self._source.rows(
            "SELECT key, prompt_id, metric, any_value(value) AS value FROM scores WHERE key IS NOT NULL GROUP BY ALL UNION ALL"
            " SELECT key, prompt_id, 'judge: ' || metric, any_value(value) FROM judged WHERE key IS NOT NULL GROUP BY ALL"
        )
        return {pair: group.set_index("metric")["value"] for pair, group in rows.groupby(["key", "prompt_id"])}

    @cached_property
    def metrics(self) -> list[str]:
        """The names of all scores."""
        return sorted({metric for found in self.scores.values() for metric in found.index})

    def index(self) -> bytes:
        """What there is: conditions, sets, metrics."""
        return packed({"conditions": self.conditions, "sets": self.sets, "metrics": self.metrics})

    def of_prompt(self, place: int, at: int) -> bytes:
        """The texts of one prompt of a set under every condition."""
        name, prompt = self.sets[place]["name"], self.sets[place]["ids"][at]
        rows = self._by_prompt[name, prompt]
        numbers = {one["key"]: number for number, one in enumerate(self.conditions)}
        return self._packed(rows, "condition", [numbers[key] for key in rows["key"]])

    def of_condition(self, place: int, number: int) -> bytes:
        """The texts of one condition on the prompts of a set."""
        one, key = self.sets[place], self.conditions[number]["key"]
        at = {name: number for number, name in enumerate(one["ids"])}
        rows = self._by_condition.get((one["name"], key), self.texts.iloc[:0])
        rows = rows[rows["prompt_id"].isin(at)]
        return self._packed(rows, "prompt", [at[name] for name in rows["prompt_id"]])

    def _packed(self, rows: pd.DataFrame, what: str, numbers: list[int]) -> bytes:
        """Texts with the number of what differs between them, and their scores [texts, metrics]."""
        scores = np.full((len(rows), len(self.metrics)), np.nan, np.float32)
        for line, (key, prompt) in enumerate(zip(rows["key"], rows["prompt_id"], strict=True)):
            known = self.scores.get((key, prompt))
            if known is not None:
                scores[line] = known.reindex(self.metrics).to_numpy(np.float32, na_value=np.nan)
        value = {name: rows[name].tolist() for name in COLUMNS}
        return packed(value, {what: np.array(numbers, np.int64), "scores": scores})

    @cached_property
    def _by_prompt(self) -> dict[Any, pd.DataFrame]:
        return dict(iter(self.texts.groupby(["prompts", "prompt_id"])))

    @cached_property
    def _by_condition(self) -> dict[Any, pd.DataFrame]:
        return dict(iter(self.texts.groupby(["prompts", "key"])))
