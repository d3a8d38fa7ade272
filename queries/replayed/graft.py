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
from ..engine.job import LayerTable
from .condition import Condition
from .conditions import HOSTED, Replayed, by_condition_and_lens, check_scope, window_of

NAME = re.compile(r"([BD])_(early|mid|late|midlate)(_random)?(_tuned)?")
TUNED = "lens tuned"
HOST = {"B": "pt", "D": "it"}


def _columns(job: Replayed, pt: Block, it: Block) -> dict[str, Any]:
    """All columns of a block, [n, L+1]: below the window those of the host itself."""
    from ...analyze.lens.logit_lens import lens

    (mine, here), others = job.sides(pt, it)
    whole, mlp_out = job.whole(mine, here)
    resid = job.translated(mine, here, whole)
    found = lens(job.kit.head(job.host), resid, mine.columns["target"][here], device=job.kit.device)
    found["rank_target"] = np.ma.masked_equal(found["rank_target"], 0)
    found["mlp_cos"] = _mlp_cos(job, whole, mlp_out)
    return found | _compared(job, pt, it, resid, job.stored(mine, here), job.stored(*others))


def _mlp_cos(job: Replayed, resid: np.ndarray, mlp_out: np.ndarray) -> np.ndarray:
    """Cosine of the MLP's output and what it reads [n, L+1]."""
    from ...analyze.residual.delta import delta

    post, parallel = job.kit.mlp_branch(job.host)
    return delta(resid, mlp_out, post_norm=post, parallel=parallel, device=job.kit.device)["mlp_cos"]


def _compared(
    job: Replayed, pt: Block, it: Block, resid: np.ndarray, stored: np.ndarray, other: np.ndarray
) -> dict[str, np.ndarray]:
    """JS to both baselines (raw lens only), and KL to the other side's, read by the host's head like exp11 does.

    Up to the window's first boundary nothing has changed: there the host is its own baseline.
    """
    from ...analyze.lens.logit_lens import pair_lens

    (mine, _), _ = job.sides(pt, it)
    kit, condition = job.kit, job.condition
    head, after = kit.head(job.host), condition.window[0] + 1
    real = kit.arrays(job.host)[0]["real_token"]
    own, changed, theirs = (part[:, after:] for part in (stored, resid, other))
    by_host = partial(pair_lens, head, head, mask=real, device=kit.device)
    before = mine.once(("cross", condition.host, job.lens), lambda: by_host(stored, other)["kl_pt_it"])
    cross = np.concatenate([before[:, :after], by_host(changed, theirs)["kl_pt_it"]], axis=1)
    found = {"cross_kl": cross, "cross_kl_host": before}
    if job.lens == "tuned":
        return found | dict.fromkeys(("js_host", "js_target"), np.full_like(cross, np.nan))
    host = np.concatenate([np.zeros_like(cross[:, :after]), by_host(changed, own)["js"]], axis=1)
    near, far = (kit.common_head(job.models, who) for who in (condition.host, condition.other))
    both = kit.common_real(job.models)
    target = pair_lens(near, far, changed, theirs, mask=both, device=kit.device)["js"]
    apart = pair_columns(kit, job.models, pt, it)["js"][:, :after]
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
def graft_table(kit: Context, scope: Scope, kind: str) -> LayerTable:
    """The job that makes one condition's rows, `kind` its name; scope holds both captures on IT's answer.

    LakeError for an unknown name, captures of different answers or without all residuals, a window outside the model, and
    where weights are missing.
    """
    job = condition_of(kit, scope, "graft", kind)
    start, stop = job.condition.window
    return job.table("graft", partial(_columns, job), labels={"window_start": start, "window_stop": stop})


def condition_of(kit: Context, scope: Scope, table: str, kind: str) -> Replayed:
    """The condition of this name, and its lens, raw or tuned; LakeError for an unknown name or captures of different answers."""
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
    return Replayed(kit, scope, condition, "tuned" if tuned else "raw")
