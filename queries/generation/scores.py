"""The table `scores`: every metric of every text of a sweep, one line a prompt."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from typing import Any

import numpy as np
import pandas as pd

from ...analyze.text.scores import boundary_tokens, check_scorable, reclassified, right_letter, score
from ...capture.streams.prompts import Prompt
from ...store.artifacts.streams import stream_records
from ...store.core.errors import LakeError
from ...store.core.progress import ERRORS
from ...store.core.schema import VARIANTS
from ...store.core.specs import thinking_of
from ...store.format.parquet import read_parquet
from ...store.tables.declared import TABLES
from ...store.tables.files import drop_tables
from ...store.tables.streams import same_prompts
from ..engine.context import Context, Scope, check_both
from ..engine.job import Job, TableJob
from ..engine.passes import announce, run
from .models import hosts, prompts_of, steering
from .sweeps import Setting, settings
from .texts import Choices, Nats, TextRequest, Texts, fields_of

# What a sweep's texts are measured by beside what a program reads off them.
CHOSEN = {
    "A1": "raw",
    "A1_rand": "raw",
    "0I": "raw",
    "exp10_P4": "raw",
    "exp15": "native",
}  # template of the forced choice
READ = ("A1", "A2", "exp12", "exp15")  # nats of each text under both models
BOUNDARY = ("0E",)  # the share of marks with words near a class's boundary moved


class Scores(TableJob):
    """The scores of a sweep; its texts, choices and nats are made before."""

    def __init__(self, kit: Context, scope: Scope, sweep: str):
        host, steer, prompts = hosts(kit, scope.pair), steering(kit, scope), prompts_of(kit, scope)
        self.pair, self.sweep = scope.pair, sweep
        self.settings, self.prompts = settings(sweep, host.shape()), prompts.prompts
        budget, recipe = budget_of(kit, scope), recipe_in(kit, scope)
        as_read: dict[str, Any] = {"date": recipe.get("date"), "control_tokens": "control_tokens" in recipe}
        as_read["thinking"] = thinking_of(recipe.get("thinking"))

        def asked(setting: Setting) -> TextRequest:
            return TextRequest(
                scope.pair,
                setting.variant,
                setting.edits,
                setting.template,
                budget,
                prompts.prompts,
                prompts.name,
                **as_read,
            )

        wanted = [asked(setting) for setting in self.settings]
        self.texts = [Texts(kit, each, steer) for each in wanted]
        self._choices: list[Choices | None] = [None for _ in wanted]
        if sweep in CHOSEN and any("choices" in prompt.fields and not prompt.talk for prompt in prompts.prompts):
            self._choices = [Choices(kit, each, steer, CHOSEN[sweep]) for each in wanted]
        self._nats = {
            reader: [Nats(kit, texts, reader) for texts in self.texts] for reader in VARIANTS if sweep in READ
        }
        # All that one model does comes together, so that it is loaded once.
        jobs = sorted([*self.texts, *filter(None, self._choices)], key=lambda job: job.asked.variant)
        before: list[Job] = [*jobs, *(job for reader in self._nats.values() for job in reader)]
        streams = {"stream": scope.streams["it"], "stream_pt": scope.streams["pt"]}
        self.named: dict[str, str | None] = {**scope.columns, "variant": "both", **streams, "sweep": sweep}
        self.same = {"models": scope.models, **streams, "sweep": sweep}
        made = [job.path.stem + job.condition.key for job in (*jobs, *(j for r in self._nats.values() for j in r))]
        super().__init__(kit.layout, "scores", {**self.same, "from": made, "version": TABLES["scores"].version})
        self.before, self._layout = tuple(before), kit.layout
        absent = [job for job in before if not job.path.exists()]
        if absent and not (kit.generate or self.path.exists()):
            raise LakeError(
                f"scores({sweep}): {len(absent)} of {len(before)} conditions have no texts or readings yet, and generating is"
                f" switched off: `actlake run {sweep} --pair {scope.pair}` makes them"
            )

    def finish(self) -> None:
        """Score every text."""
        self._tell_unscorable()
        drop_tables(self._layout, "scores", self.same, keep=self.path)
        moved = self._boundary()
        for place, setting in enumerate(self.settings):
            lines = list(self._lines(place, moved))
            index, metric, value = (list(column) for column in zip(*lines, strict=True))
            chosen = [self.prompts[at] for at in index]
            self.add(
                {
                    **self.named,
                    "variant": setting.variant,
                    "arm": setting.arm,
                    "dose": np.full(len(index), math.nan if setting.dose is None else setting.dose),
                    "key": self.texts[place].condition.key,
                    "prompt": index,
                    "prompt_id": [prompt.id for prompt in chosen],
                    "category": [prompt.category for prompt in chosen],
                    "metric": metric,
                    "value": value,
                }
            )

    def _tell_unscorable(self) -> None:
        """Name prompts that lack what the score of their category reads; their other scores are kept."""
        lacking = [line for prompt in self.prompts if (line := check_scorable(fields_of(prompt)))]
        for line in lacking[:3]:
            ERRORS.print(line, highlight=False, soft_wrap=True)
        if len(lacking) > 3:
            ERRORS.print(f"and {len(lacking) - 3} prompts more", highlight=False)

    def _boundary(self) -> dict[str, tuple[list[str], str]]:
        """0E: name of a metric -> the words that are moved, and to which class."""
        if self.sweep not in BOUNDARY:
            return {}
        found = boundary_tokens(row["text"] for texts in self.texts for row in texts.rows())
        marks, words = found["structural_discourse"], found["function_content"]
        return {
            "str_to_structural": (marks, "STRUCTURAL"),
            "str_to_content": (marks, "CONTENT"),
            "str_function_to_content": (words, "CONTENT"),
            "str_content_to_function": (words, "FUNCTION"),
        }

    def _lines(self, place: int, moved: dict[str, tuple[list[str], str]]) -> Iterator[tuple[int, str, float]]:
        """(prompt, metric, value) of one setting."""
        for index, (prompt, row) in enumerate(zip(self.prompts, self.texts[place].rows(), strict=True)):
            found = score(row["text"], fields_of(prompt)) | {"tokens": row["tokens"], "ended": float(row["ended"])}
            found |= {name: reclassified(row["text"], words, to) for name, (words, to) in moved.items()}
            for metric, value in found.items():
                yield index, metric, float(value)
        for reader, jobs in self._nats.items():
            for index, row in enumerate(jobs[place].rows()):
                if row["tokens"]:
                    yield index, f"nll_{reader}", row["nats"] / row["tokens"]
        if choices := self._choices[place]:
            yield from self._chosen(choices)

    def _chosen(self, choices: Choices) -> Iterator[tuple[int, str, float]]:
        places = {prompt.id: index for index, prompt in enumerate(self.prompts)}
        known: dict[str, Prompt] = {prompt.id: prompt for prompt in self.prompts}
        for row in choices.rows():
            prompt = known[row["prompt_id"]]
            index = places[prompt.id]
            yield index, "choice_generated", float(row["generated"] == right_letter(fields_of(prompt)))
            yield index, "choice_logprob", float(row["likeliest"] == prompt.fields.get("answer"))


def budget_of(kit: Context, scope: Scope) -> int:
    """New tokens a text may have: as many as the continuations of the captures in scope."""
    return int(recipe_in(kit, scope)["max_new_tokens"])


def recipe_in(kit: Context, scope: Scope) -> dict[str, Any]:
    """The recipe of the stream that a question's prompts come from (IT's, or the only model's)."""
    record: dict[str, Any] = next(r for r in stream_records(kit.layout) if r["name"] == scope.main)
    return dict(record["recipe"])


def scope_of(kit: Context, pair: str, prompts: str | None = None) -> Scope:
    """The pair's captures on their own texts, whose prompts sweeps read."""
    check_both(kit, pair, "scores")
    return kit.scope(pair, same_prompts(kit.streams_of(pair), pair, "native", prompts), "native")


USUAL = ("str", "format", "answer", "alignment", "coherent", "words", "ended", "tokens")


def mean_scores(kit: Context, scope: Scope, sweep: str, patterns: Sequence[str] = ()) -> pd.DataFrame:
    """Mean of each metric under each condition of a sweep, over prompts that have it; texts and scores are made first.

    Columns: variant, arm, dose, then metrics: those that match a pattern, else the usual ones.
    """
    job = Scores(kit, scope, sweep)
    announce([job])
    run([job])
    lines = read_parquet(
        job.path, TABLES["scores"].schema, columns=["variant", "arm", "dose", "metric", "value"]
    ).to_pandas()
    there = list(dict.fromkeys(lines["metric"]))
    kept = [name for name in there if any(fnmatch(name, pattern) for pattern in patterns or USUAL)]
    if not kept:
        raise LakeError(f"no metric matches {', '.join(patterns)}; sweep {sweep} has {', '.join(there)}")
    lines = lines[lines["metric"].isin(kept)].astype({"variant": str, "arm": str, "metric": str})
    by = ["variant", "arm", "dose", "metric"]
    means = lines.groupby(by, sort=False, dropna=False)["value"].mean().unstack("metric", sort=False)
    return means[kept].reset_index()
