"""The table `mechanism`: where MLP outputs of the last layers push the lens, in both models and with late MLPs exchanged."""

from __future__ import annotations

import math
from typing import Any

from ...store.core.columns import COSINE, LAST, LAYER, NO_TARGET, PROMPT, STEP, ZERO, Column
from ...store.core.errors import LakeError
from ..engine.blocks import Block
from ..engine.context import Context, Scope
from ..engine.declare import table
from ..tables.final_layer import LATE
from .condition import Condition
from .conditions import HOSTED, ConditionTable, by_condition, check_scope, window_of

EVERY = (-math.inf, math.inf)
PIPELINES = {"A": "pt", "B_late": "pt", "C": "it", "D_late": "it"}


class _MechanismTable(ConditionTable):
    """The rows of one pipeline: layers floor(0.8 L) and up, through the host's own raw lens (METHODS 9)."""

    def __init__(self, kit: Context, scope: Scope, condition: Condition, layers: int):
        self._late = int(LATE * layers)
        super().__init__(kit, scope, "mechanism", condition, {}, {}, first=self._late)
        for capture in self.captures:
            if "mlp_out" not in capture:
                raise LakeError(
                    f"{capture.path}: mechanism needs mlp_out, which this capture left out: capture with the profile full"
                )

    def columns(self, pt: Block, it: Block) -> dict[str, Any]:
        """All columns of a block, [n, late layers]."""
        from ...analyze.residual.mechanism import mlp_mechanism

        (mine, here), _ = self.sides(pt, it)
        resid, mlp_out = self.replays.whole(self.condition, mine, here)
        after, target = resid[:, self._late + 1 :], mine.columns["target"][here]
        return dict(
            mlp_mechanism(self.kit.head(self.host), after, mlp_out[:, self._late :], target, device=self.kit.device)
        )


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
def mechanism_table(kit: Context, scope: Scope, kind: str) -> _MechanismTable:
    """The job that makes one pipeline's rows: A (the PT), C (the IT), B_late or D_late. LakeError as for `graft`."""
    if kind not in PIPELINES:
        raise LakeError(f"mechanism({kind}): expected one of {', '.join(PIPELINES)}")
    check_scope(kit, scope)
    layers = kit.capture(scope.names("pt")).layers
    window = window_of(kit, scope, "late") if kind.endswith("late") else (layers, layers)
    return _MechanismTable(kit, scope, Condition(kind, PIPELINES[kind], window), layers)
