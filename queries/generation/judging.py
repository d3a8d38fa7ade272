"""The table `judged`: what an LLM judge said of a sweep's replies, from the verdicts that the lake has; nothing is asked here.

`judge_sweep` is what asks (`actlake score`).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...judge.agreement import agreement, gold_items, read_gold
from ...judge.judge import UNJUDGED, Cost, Judge, JudgeItem, Verdict, escalate, summary
from ...judge.rubrics import Rubric, read_rubrics
from ...store.core.errors import LakeError
from ...store.core.files import hash_json
from ...store.core.progress import bar
from ...store.tables.declared import TABLES
from ...store.tables.files import drop_tables
from ..engine.context import Context, Scope
from ..engine.job import TableJob
from .models import prompts_of
from .scores import Scores
from .texts import fields_of

RUBRICS = "ACTLAKE_JUDGE_RUBRICS"  # a file of rubrics in place of the packaged ones, for rows too
REFEREE = "ACTLAKE_JUDGE_REFEREE"  # a model whose verdicts stand where it has given one, for rows too
# Arms whose replies are compared blind, the first against the second. METHODS 12.
PAIRS: Mapping[str, Sequence[tuple[str, str]]] = {"exp15": (("B_late", "A"), ("C", "D_late"), ("C", "A"))}


@dataclass(frozen=True)
class _Judged:
    """One question to the judge: its item, and the line of the table that the verdict makes."""

    item: JudgeItem
    variant: str
    arm: str
    dose: float
    key: str
    prompt: int

    def row(self, verdict: Verdict) -> list[Any]:
        """All that tells this verdict from others in the table, for the table's key."""
        dose = None if math.isnan(self.dose) else self.dose
        return [self.item.rubric, self.item.other is not None, self.arm, dose, self.key, self.prompt, verdict.label]

    def lines(self, verdict: Verdict, rubric: Rubric) -> list[tuple[str, float]]:
        """(metric, value): the grade, or for named classes a share each, since a mean of codes hides them (METHODS 21)."""
        name = self.item.rubric.lower()
        if self.item.other is not None:
            return [(f"pair_{name}", float(verdict.value or 0))]
        if all(label.isdecimal() for label in rubric.answers):
            return [(name, float(verdict.value or 0))]
        return [(f"{name}_{label.lower()}", float(verdict.label == label)) for label in rubric.answers]


def rubrics_of(path: Path | None = None) -> dict[str, Rubric]:
    """The rubrics of a file, else of the file that ACTLAKE_JUDGE_RUBRICS names, else those that come with actlake."""
    return read_rubrics(path or os.environ.get(RUBRICS) or None)


def questions(scores: Scores, rubrics: Mapping[str, Rubric]) -> list[_Judged]:
    """Everything that can be asked about a sweep's replies; LakeError while there are no replies."""
    texts = [job.rows() if job.path.exists() else None for job in scores.texts]
    if any(rows is None for rows in texts):
        raise LakeError(
            f"judged({scores.sweep}): its replies are not there yet",
            repair=f"`actlake generate {scores.pair} --sweep {scores.sweep}` makes them",
        )
    found: list[_Judged] = []
    said: dict[str, list[dict[str, Any]]] = {}
    for setting, job, rows in zip(scores.settings, scores.texts, texts, strict=True):
        assert rows is not None
        said[setting.arm] = rows
        dose = math.nan if setting.dose is None else setting.dose
        for index, (prompt, row) in enumerate(zip(scores.prompts, rows, strict=True)):
            fields = fields_of(prompt)
            found += [
                _Judged(
                    JudgeItem(name, fields, row["text"]), setting.variant, setting.arm, dose, job.condition.key, index
                )
                for name, rubric in rubrics.items()
                if rubric.applies(fields)
            ]
    for one, other in PAIRS.get(scores.sweep, ()):
        for index, prompt in enumerate(scores.prompts):
            fields = fields_of(prompt)
            for name in ("G2", "S2"):
                if name in rubrics and rubrics[name].applies(fields):
                    item = JudgeItem(name, fields, said[one][index]["text"], said[other][index]["text"], (one, other))
                    found.append(_Judged(item, "both", f"{one} vs {other}", math.nan, "", index))
    return found


class JudgedTable(TableJob):
    """The verdicts on a sweep's replies, as lines of the table `judged`."""

    stays = True  # which judge is meant, variables of the environment say

    def __init__(self, kit: Context, scope: Scope, sweep: str):
        judge = Judge(kit.layout, rubrics_of())  # a LakeError where none is named
        scores = Scores(kit, scope, sweep)
        self._asked = questions(scores, judge.rubrics)
        items = [each.item for each in self._asked]
        verdicts = judge.cached(items)
        if referee := os.environ.get(REFEREE, "").strip():
            above = Judge(kit.layout, judge.rubrics, model=referee).cached(items)
            verdicts = [better or verdict for better, verdict in zip(above, verdicts, strict=True)]
        self._verdicts = [verdict for verdict in verdicts if verdict is not None]
        if not self._verdicts:
            raise LakeError(
                f"judged({sweep}): the judge {judge.model} has not been asked yet about {len(self._asked):,} replies",
                repair=f"`actlake score {scope.pair} --sweep {sweep} --judge`",
            )
        self._asked = [each for each, verdict in zip(self._asked, verdicts, strict=True) if verdict is not None]
        self._named, self._same, self._rubrics = scores.named, scores.same, judge.rubrics
        made = {
            "judge": judge.model,
            "referee": referee,
            "texts": [job.path.stem + job.condition.key for job in scores.texts],
        }
        given = hash_json([each.row(verdict) for each, verdict in self._both()])
        super().__init__(
            kit.layout, "judged", {**self._same, **made, "verdicts": given, "version": TABLES["judged"].version}
        )
        self._layout = kit.layout

    def _both(self) -> list[tuple[_Judged, Verdict]]:
        return list(zip(self._asked, self._verdicts, strict=True))

    def finish(self) -> None:
        """Write the lines."""
        drop_tables(self._layout, "judged", self._same, keep=self.path)
        lines = [
            (each, *line)
            for each, verdict in self._both()
            for line in each.lines(verdict, self._rubrics[each.item.rubric])
        ]
        asked = [each for each, _, _ in lines]
        self.add(
            {
                **self._named,
                "variant": [each.variant for each in asked],
                "arm": [each.arm for each in asked],
                "dose": np.asarray([each.dose for each in asked]),
                "key": [each.key for each in asked],
                "prompt": [each.prompt for each in asked],
                "prompt_id": [each.item.prompt["id"] for each in asked],
                "category": [each.item.prompt["category"] for each in asked],
                "metric": [metric for _, metric, _ in lines],
                "value": [value for _, _, value in lines],
            }
        )


def check_judge(
    kit: Context,
    scope: Scope,
    sweep: str,
    rubrics: Path | None = None,
    second: str | None = None,
    referee: str | None = None,
    **options: Any,
) -> None:
    """Raise LakeError where a judge could not be asked about a sweep whose texts are to be written first."""
    judge = _judge_of(kit, rubrics, second, referee, **options)
    if not all(job.path.exists() for job in Scores(kit, scope, sweep).texts):
        judge.check()


def _judge_of(kit: Context, rubrics: Path | None, second: str | None, referee: str | None, **options: Any) -> Judge:
    if bool(second) != bool(referee):
        raise LakeError("a second judge and a referee belong together: give both or none")
    return Judge(kit.layout, rubrics_of(rubrics), **options)


def judge_sweep(
    kit: Context,
    scope: Scope,
    sweep: str,
    rubrics: Path | None = None,
    agree: Callable[[Cost], bool] = lambda cost: True,
    second: str | None = None,
    referee: str | None = None,
    **options: Any,
) -> list[str]:
    """Ask a judge about every reply of a sweep that it has not judged yet; lines for people, one per rubric.

    With a `second` judge and a `referee` (models at the same address) the referee decides where the two differ (METHODS 12).
    `agree` is asked with the estimate before anything is sent. Options are those of `Judge`. LakeError as in `Judge`.
    """
    judge = _judge_of(kit, rubrics, second, referee, **options)
    asked = [each.item for each in questions(Scores(kit, scope, sweep), judge.rubrics)]
    others = [Judge(kit.layout, judge.rubrics, **{**options, "model": model}) for model in (second, referee) if model]
    if not agree(sum((other.estimate(asked) for other in others[:1]), judge.estimate(asked))):
        return []
    with bar(f"judge {sweep}", len(asked) * (2 if others else 1), "verdicts") as progress:
        if not others:
            return _summary(asked, judge.judge(asked, progress.advance))
        final, rulings = escalate(asked, judge, others[0], others[1], progress.advance)
    decided = sum(ruling is not None for ruling in rulings)
    return [*_summary(asked, final), f"the two judges differed on {decided:,}, which the referee decided"]


def _summary(asked: Sequence[JudgeItem], verdicts: Sequence[Verdict]) -> list[str]:
    unjudged = sum(verdict.label == UNJUDGED for verdict in verdicts)
    return [*summary(asked, verdicts), f"{len(asked) - unjudged:,} of {len(asked):,} judged"]


def agreement_with(kit: Context, scope: Scope, gold: Path, rubrics: Path | None = None, **options: Any) -> list[str]:
    """How well a judge agrees with people about the replies of a gold file: Cohen's kappa, a line per rubric."""
    judge = Judge(kit.layout, rubrics_of(rubrics), **options)
    rows = read_gold(gold, judge.rubrics)
    items = gold_items(rows, {prompt.id: fields_of(prompt) for prompt in prompts_of(kit, scope).prompts})
    with bar("judge gold", len(items), "replies") as progress:
        verdicts = judge.judge(items, progress.advance)
    return [str(found) for found in agreement(verdicts, rows, judge.rubrics)]
