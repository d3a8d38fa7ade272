"""The table `mechanism`: where MLP outputs of the last layers push the lens, in both models and with late MLPs exchanged."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from ...store.core.columns import COSINE, LAST, LAYER, NO_TARGET, PROMPT, STEP, ZERO, Column
from ...store.core.errors import LakeError
from ..engine.blocks import Block
from ..engine.context import Context, Scope
from ..engine.declare import table
from ..engine.job import LayerTable
from ..tables.final_layer import LATE
from .condition import Condition
from .conditions import HOSTED, Replayed, by_condition, check_scope, window_of

EVERY = (-math.inf, math.inf)
PIPELINES = {"A": "pt", "B_late": "pt", "C": "it", "D_late": "it"}


def _columns(job: Replayed, late: int, pt: Block, it: Block) -> dict[str, Any]:
    """All columns of a block, [n, layers from `late` on], through the host's own raw lens (METHODS 9)."""
    from ...analyze.residual.mechanism import mlp_mechanism

    (mine, here), _ = job.sides(pt, it)
    resid, mlp_out = job.whole(mine, here)
    target, head = mine.columns["target"][here], job.kit.head(job.host)
    return dict(mlp_mechanism(head, resid[:, late + 1 :], mlp_out[:, late:], target, device=job.kit.device))


@table(
    "mechanism",
    [
        *HOSTED,
        *PROMPT,
        STEP,
        LAYER,
        *(
            Column(name, "float32", f"{what} of the MLP's output along the gradient {of}", unit, limits, null)
            for name, what, of, unit, limits, null in (
                ("support_teacher", "length", "of the target's logit", "1", EVERY, NO_TARGET),
                ("anti_top1", "minus the length", "of the top token's logit", "1", EVERY, ""),
                ("anti_kl", "length", "of KL(final || layer)", "1", EVERY, LAST),
                ("teacher_cos", "cosine", "of the target's logit", "1", COSINE, NO_TARGET),
                ("top1_cos", "cosine", "of the top token's logit", "1", COSINE, ZERO),
                ("kl_cos", "cosine", "of KL(final || layer)", "1", COSINE, LAST),
            )
        ),
        Column(
            "kl_rest", "float32", "length of the MLP's output across the gradient of KL(final || layer)", "1", null=LAST
        ),
    ],
    "Where MLP outputs push the lens, floor(0.8 L) and up, in both models and with late MLPs exchanged.",
    "condition x (prompt, step) x late layer",
    of="pair",
    version=1,
    kinds=tuple(PIPELINES),
    kind_columns=by_condition,
    one_model=True,
    how="replay",
)
def mechanism_table(kit: Context, scope: Scope, kind: str) -> LayerTable:
    """The job that makes one pipeline's rows: A (the PT), C (the IT), B_late or D_late. LakeError as for `graft`."""
    if kind not in PIPELINES:
        raise LakeError(f"mechanism({kind}): expected one of {', '.join(PIPELINES)}")
    check_scope(kit, scope)
    layers = kit.capture(scope.names("pt")).layers
    window = window_of(kit, scope, "late") if kind.endswith("late") else (layers, layers)
    replayed, late = Replayed(kit, scope, Condition(kind, PIPELINES[kind], window)), int(LATE * layers)
    job = replayed.table("mechanism", partial(_columns, replayed, late), late)
    for capture in job.captures:
        if "mlp_out" not in capture:
            raise LakeError(
                f"{capture.path}: mechanism needs mlp_out, which this capture left out: capture with the profile full"
            )
    return job
