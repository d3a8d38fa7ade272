"""How well a judge agrees with people: a gold set of verdicts, and Cohen's kappa against it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..analyze.stats.bootstrap import kappa
from ..capture.streams.prompts import read_rows
from ..store.core.errors import LakeError
from .judge import UNJUDGED, JudgeItem, Verdict
from .rubrics import Rubric, find_rubric

COLUMNS = ("id", "rubric", "reply", "value")
TARGET = 0.70  # METHODS 18


@dataclass(frozen=True)
class _Gold:
    """What a person answered about one reply: `answer` is one of the rubric's, `where` its file and line."""

    id: str
    rubric: str
    reply: str
    answer: str
    where: str


@dataclass(frozen=True)
class _Agreement:
    """A judge's agreement with the gold set by one rubric, over the `n` replies that it judged.

    `unjudged` is the share of replies without a verdict.

    `kappa` is Cohen's, with quadratic weights on a scale; None where nothing was judged or it is not defined (both give
    one and the same answer throughout).
    """

    rubric: str
    n: int
    unjudged: float
    kappa: float | None
    weighted: bool

    def __str__(self) -> str:
        kappa = "not defined" if self.kappa is None else f"{self.kappa:.2f} (target {TARGET:.2f})"
        kind = "quadratic kappa" if self.weighted else "kappa"
        return f"{self.rubric}: {kind} {kappa} over {self.n} replies, {self.unjudged:.0%} unjudged"


def read_gold(path: str | Path, rubrics: Mapping[str, Rubric]) -> list[_Gold]:
    """The rows of a gold file (.csv or .jsonl with id, rubric, reply, value), `id` being that of the prompt.

    Whatever is wrong raises a LakeError that names file and line.
    """
    path = Path(path)
    rows = [_checked(record, f"{path}:{line}", rubrics) for line, record in read_rows(path, "gold file", COLUMNS)]
    if not rows:
        raise LakeError(f"{path}: the gold file is empty; expected rows with {', '.join(COLUMNS)}")
    return rows


def gold_items(gold: Sequence[_Gold], prompts: Mapping[str, Mapping[str, Any]]) -> list[JudgeItem]:
    """What to judge for comparing with a gold set; `prompts` are its prompts' fields by id."""
    for row in gold:
        if row.id not in prompts:
            raise LakeError(
                f"{row.where}: no prompt {row.id!r} in the prompt set; name the set that the gold file is about"
            )
    return [JudgeItem(row.rubric, prompts[row.id], row.reply) for row in gold]


def agreement(verdicts: Sequence[Verdict], gold: Sequence[_Gold], rubrics: Mapping[str, Rubric]) -> list[_Agreement]:
    """The agreement for each rubric of the gold set; `verdicts` are those on `gold_items`, in their order."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for verdict, row in zip(verdicts, gold, strict=True):
        groups.setdefault(row.rubric, []).append((verdict.label, row.answer))
    return [_agreement(find_rubric(rubrics, name), pairs) for name, pairs in groups.items()]


def _agreement(rubric: Rubric, pairs: list[tuple[str, str]]) -> _Agreement:
    judged = [(label, answer) for label, answer in pairs if label != UNJUDGED]
    columns = [
        [int(rubric.answers[name]) if rubric.scale else name for name in column] for column in zip(*judged, strict=True)
    ]
    agreed = kappa(*columns, quadratic=rubric.scale) if judged else math.nan
    return _Agreement(
        rubric.name,
        len(judged),
        1 - len(judged) / len(pairs),
        None if math.isnan(agreed) else agreed,
        rubric.scale,
    )


def _checked(record: Mapping[str, Any], where: str, rubrics: Mapping[str, Rubric]) -> _Gold:
    for column in COLUMNS:
        if record.get(column) is None and column != "reply":  # an empty cell is an empty reply
            raise LakeError(f"{where}: no {column}; every row needs {', '.join(COLUMNS)}")
    texts = {column: record.get(column) for column in ("id", "rubric", "reply")}
    texts["reply"] = "" if texts["reply"] is None else texts["reply"]
    for column, text in texts.items():
        if not isinstance(text, str):
            raise LakeError(f"{where}: {column} is {text!r}, expected text")
    try:
        rubric = find_rubric(rubrics, str(texts["rubric"]))
    except LakeError as error:
        raise LakeError(f"{where}: {error}") from None
    known = {name.upper(): name for name in rubric.answers}
    answer = known.get(str(record["value"]).strip().upper()) if not isinstance(record["value"], bool) else None
    if answer is None:
        expected = ", ".join(rubric.answers)
        raise LakeError(f"{where}: value is {record['value']!r}, expected one of {expected} for {rubric.name}")
    return _Gold(str(texts["id"]), rubric.name, str(texts["reply"]), answer, where)
