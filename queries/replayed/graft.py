"""The table `graft`: on IT's answer, MLPs of a window of one model compute in the other (METHODS 8, 9, 13, 17).

A condition is named as in METHODS: B_early, B_mid, B_late and B_midlate are the PT, on its raw prompt, with the IT's MLPs;
D_early ... the IT, on its own prompt, with the PT's; B_late_random has the size and direction of the graft's change on the
MLP's input, and is random across it. `_tuned` behind the name is the tuned lens of the host's probes instead of the raw lens.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import numpy as np

from ...store.core.columns import (
    COSINE,
    JENSEN_SHANNON,
    LAYER,
    LENS,
    LENS_VALUES,
    NONNEGATIVE,
    PROMPT,
    STEP,
    Column,
    label_column,
)
from ...store.core.errors import LakeError
from ..engine.blocks import Block
from ..engine.context import Context, Scope, pair_columns
from ..engine.declare import table
from ..probes.choice import choose
from .condition import Condition, answer_resid
from .conditions import HOSTED, ConditionTable, by_condition_and_lens, check_scope, window_of

NAME = re.compile(r"([BD])_(early|mid|late|midlate)(_random)?(_tuned)?")
TUNED = "lens tuned"
HOST = {"B": "pt", "D": "it"}


class LensCondition(ConditionTable):
    """A table of one condition read through the host's lens of one kind, raw or tuned; `more` as in ConditionTable."""

    def __init__(
        self,
        kit: Context,
        scope: Scope,
        table: str,
        condition: Condition,
        kind: str,
        more: dict[str, Any],
        first: int = -1,
    ):
        self.lens = kind
        if kind == "tuned":
            chosen = choose(kit, scope.names(condition.host))
            more, self.before = {"probes": chosen.name, **more}, chosen.before
        super().__init__(kit, scope, table, condition, {"lens": kind}, more, first)

    def labels(self) -> dict[str, Any]:
        """The lens."""
        return {"lens": self.lens}

    def stored(self, rows: Block, at: np.ndarray) -> np.ndarray:
        """The stored residuals as the host's lens reads them [n, L+1, d]; shared by the conditions of a host."""
        key = ("answer", self.condition.host if self.lens == "tuned" else "")
        return rows.once(key, lambda: self.translated(rows, at, answer_resid(rows, at)))

    def translated(self, rows: Block, at: np.ndarray, resid: np.ndarray) -> np.ndarray:
        """Residuals of the chosen tokens [n, L+1, d] through the host's probes, if the lens is the tuned one."""
        if self.lens == "raw":
            return resid
        return choose(self.kit, self.host).translate(resid, rows.columns["prompt_id"][at], self.kit.device)


class _GraftTable(LensCondition):
    """The rows of one condition and lens kind, all layers: those below the window are the host's own."""

    def __init__(self, kit: Context, scope: Scope, condition: Condition, kind: str):
        super().__init__(kit, scope, "graft", condition, kind, {})

    def labels(self) -> dict[str, Any]:
        """Lens and window."""
        start, stop = self.condition.window
        return {**super().labels(), "window_start": start, "window_stop": stop}

    def columns(self, pt: Block, it: Block) -> dict[str, Any]:
        """All columns of a block, [n, L+1]."""
        from ...analyze.lens.logit_lens import lens

        (mine, here), others = self.sides(pt, it)
        whole, mlp_out = self.replays.whole(self.condition, mine, here)
        resid = self.translated(mine, here, whole)
        found = lens(self.kit.head(self.host), resid, mine.columns["target"][here], device=self.kit.device)
        found["rank_target"] = np.ma.masked_equal(found["rank_target"], 0)
        found["mlp_cos"] = self._mlp_cos(whole, mlp_out)
        return found | self._compared(pt, it, resid, self.stored(mine, here), self.stored(*others))

    def _mlp_cos(self, resid: np.ndarray, mlp_out: np.ndarray) -> np.ndarray:
        """Cosine of the MLP's output and what it reads [n, L+1]."""
        from ...analyze.residual.delta import delta

        arrays, attrs = self.kit.arrays(self.host)
        post = (arrays["post_norm_weight"], attrs["post_norm_eps"]) if "post_norm_weight" in arrays else None
        parallel = bool(attrs["parallel"])
        return delta(resid, mlp_out, post_norm=post, parallel=parallel, device=self.kit.device)["mlp_cos"]

    def _compared(
        self, pt: Block, it: Block, resid: np.ndarray, stored: np.ndarray, other: np.ndarray
    ) -> dict[str, np.ndarray]:
        """JS to both baselines (raw lens only), and KL to the other side's, read by the host's head like exp11 does.

        Up to the window's first boundary nothing has changed: there the host is its own baseline.
        """
        from ...analyze.lens.logit_lens import pair_lens

        (mine, _), _ = self.sides(pt, it)
        head, after = self.kit.head(self.host), self.condition.window[0] + 1
        real = self.kit.arrays(self.host)[0]["real_token"]
        own, changed, theirs = (part[:, after:] for part in (stored, resid, other))
        by_host = partial(pair_lens, head, head, mask=real, device=self.kit.device)
        before = mine.once(("cross", self.condition.host, self.lens), lambda: by_host(stored, other)["kl_pt_it"])
        cross = np.concatenate([before[:, :after], by_host(changed, theirs)["kl_pt_it"]], axis=1)
        found = {"cross_kl": cross, "cross_kl_host": before}
        if self.lens == "tuned":
            return found | dict.fromkeys(("js_host", "js_target"), np.full_like(cross, np.nan))
        host = np.concatenate([np.zeros_like(cross[:, :after]), by_host(changed, own)["js"]], axis=1)
        near, far = (self.kit.common_head(self.models, who) for who in (self.condition.host, self.condition.other))
        both = self.kit.common_real(self.models)
        target = pair_lens(near, far, changed, theirs, mask=both, device=self.kit.device)["js"]
        apart = pair_columns(self.kit, self.models, pt, it)["js"][:, :after]
        return found | {"js_host": host, "js_target": np.concatenate([apart, target], axis=1)}


@table(
    "graft",
    [
        *HOSTED,
        LENS,
        label_column("window_start", "first block whose MLP is exchanged", "int32", null="not known"),
        label_column("window_stop", "block after the last whose MLP is exchanged", "int32", null="not known"),
        *PROMPT,
        STEP,
        LAYER,
        *LENS_VALUES,
        Column("mlp_cos", "float32", "cosine of the MLP's output and the residual it reads", "1", COSINE, "layer -1"),
        Column("js_host", "float32", "Jensen-Shannon divergence to the host as it is", "nats", JENSEN_SHANNON, TUNED),
        Column("js_target", "float32", "Jensen-Shannon divergence to the other model", "nats", JENSEN_SHANNON, TUNED),
        Column(
            "cross_kl", "float32", "KL(edited host || other model), both read by the host's head", "nats", NONNEGATIVE
        ),
        Column(
            "cross_kl_host",
            "float32",
            "KL(host as it is || other model), both read by the host's head",
            "nats",
            NONNEGATIVE,
        ),
    ],
    "The lens of a model on IT's answer, with the other's MLPs in a window of blocks.",
    "condition x lens x (prompt, step) x layer",
    of="pair",
    version=1,
    kinds=("B_early", "B_mid", "B_late", "D_early", "D_mid", "D_late"),
    kind_columns=by_condition_and_lens,
    one_model=True,
    how="replay",
    lenses=3.0,
)
def graft_table(kit: Context, scope: Scope, kind: str) -> _GraftTable:
    """The job that makes one condition's rows, `kind` its name; scope holds both captures on IT's answer.

    LakeError for an unknown name, captures of different answers or without all residuals, a window outside the model, and
    where weights are missing.
    """
    return _GraftTable(kit, scope, *condition_of(kit, scope, "graft", kind))


def condition_of(kit: Context, scope: Scope, table: str, kind: str) -> tuple[Condition, str]:
    """The condition of this name, and the lens, raw or tuned; LakeError for an unknown name or captures of different answers."""
    match = NAME.fullmatch(kind)
    if not match:
        raise LakeError(
            f"{table}({kind}): expected B (IT's MLPs in the PT) or D (PT's in the IT), then _early, _mid, _late or _midlate, for"
            " a control _random, and for the tuned lens _tuned"
        )
    letter, window, random, tuned = match.groups()
    check_scope(kit, scope)
    condition = Condition(
        kind.removesuffix("_tuned"), HOST[letter], window_of(kit, scope, window), random=random is not None
    )
    return condition, "tuned" if tuned else "raw"
