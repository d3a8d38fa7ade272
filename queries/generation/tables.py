"""The tables made of texts that models write. What makes them brings transformers along and is imported when it is wanted."""

from __future__ import annotations

import os
from dataclasses import replace

from ...store.core.columns import BOTH, MODELS, PROMPT, VARIANT, Column, label_column
from ...store.core.errors import LakeError
from ...store.tables.files import find_tables
from ..engine.context import Context, Scope
from ..engine.declare import table
from ..engine.job import Job

ARM = (
    label_column("sweep", "sweep of conditions, as in queries/generation/sweeps.py"),
    label_column("arm", "condition of the sweep, but for the dose"),
    label_column("dose", "strength of the edit", "float32", null="the arm has none"),
)
METRIC = label_column("metric", "what is measured (prompts/README.md)")
SCORES = (
    *MODELS,
    replace(VARIANT, meaning="model that wrote: pt or it; both where replies of the two are compared", fill="'both'"),
    *BOTH[3:],
    *ARM,
    label_column("key", "hash of all that determines the texts", null="not known"),
    *PROMPT,
    METRIC,
)


def by_sweep(kind: str) -> dict[str, str]:
    """The columns that tell rows of a sweep, as in `scores(A1)`."""
    return {"sweep": kind}


@table(
    "scores",
    [*SCORES, Column("value", "float32", "value of the metric; nll_* nats a token", "1")],
    "Every metric of every text of a sweep.",
    "sweep x condition x prompt x metric",
    of="pair",
    version=2,
    kinds=(),  # hours of generation are asked for by name
    kind_columns=by_sweep,
    one_model=True,
    how="generate",
)
def scores_table(kit: Context, scope: Scope, sweep: str) -> Job:
    """The scores of a sweep; LakeError where its texts are missing and generating is switched off."""
    _check_written(kit, scope, sweep)
    from .scores import Scores

    return Scores(kit, scope, sweep)


@table(
    "judged",
    [*SCORES, Column("value", "float32", "share of the class", "1")],
    "What an LLM judge said of a sweep's texts.",
    "sweep x condition x prompt x metric",
    of="pair",
    version=1,
    kinds=(),
    kind_columns=by_sweep,
    one_model=True,
    how="generate",
)
def judged_table(kit: Context, scope: Scope, sweep: str) -> Job | None:
    """The verdicts on a sweep. None where the lake has some and no judge is named here: they are read as they are."""
    from ...judge.judge import MODEL

    streams = {"stream": scope.streams["it"], "stream_pt": scope.streams["pt"]}
    if not os.environ.get(MODEL, "").strip() and find_tables(
        kit.layout, "judged", {"models": scope.models, "sweep": sweep, **streams}
    ):
        return None
    _check_written(kit, scope, sweep)
    from .judging import JudgedTable

    return JudgedTable(kit, scope, sweep)


@table(
    "effects",
    [
        *BOTH,
        ARM[0],
        METRIC,
        *ARM[1:],
        label_column("name", "cohens_d, spearman or spearman_p"),
        Column(
            "value",
            "float32",
            "effect size, rank correlation of doses and means, or its p value",
            "1",
            null="undefined",
        ),
        Column("low", "float32", "lower end of the 95 % interval, prompts resampled", "1", null="no interval"),
        Column("high", "float32", "upper end of the 95 % interval, prompts resampled", "1", null="no interval"),
        Column("n", "int32", "prompts; of spearman_p doses", "prompts"),
    ],
    "How strongly each metric of a sweep moves with the dose.",
    "sweep x metric x arm x dose x name",
    of="pair",
    version=1,
    kinds=(),
    kind_columns=by_sweep,
    how="generate",
)
def effects_table(kit: Context, scope: Scope, sweep: str) -> Job:
    """The effect sizes of a sweep; LakeError as for `scores`."""
    _check_written(kit, scope, sweep)
    from .effects import Effects

    return Effects(kit, scope, sweep)


def _check_written(kit: Context, scope: Scope, sweep: str) -> None:
    """LakeError when a sweep's texts would all have to be generated and that is switched off: known before its job is made,
    which takes tokenizers."""
    if kit.generate or any(kit.layout.texts(model).is_dir() for model in scope.models.values()):
        return
    if not find_tables(kit.layout, "scores", {"models": scope.models, "sweep": sweep}):
        raise LakeError(
            f"scores({sweep}): the models of {scope.pair} have written nothing yet, and generating is switched off: `actlake run"
            f" {sweep} --pair {scope.pair}` makes its texts"
        )
