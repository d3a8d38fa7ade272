"""The table `graft`: on IT's answer, MLPs of a window of one model compute in the other (METHODS 8, 9, 13, 17).

A condition is named as in METHODS: B_early, B_mid, B_late and B_midlate are the PT, on its raw prompt, with the IT's MLPs;
D_early ... the IT, on its own prompt, with the PT's; B_late_random has the size and direction of the graft's change on the
MLP's input, and is random across it. `_tuned` or `_jacobian` behind the name is that lens of the host instead of the raw one.
"""

from __future__ import annotations

import math
import re
from functools import partial
from typing import Any

import numpy as np

from ...analyze.text.word_class import COLLAPSED, GROUPS
from ...store.core.columns import (
    COSINE,
    JENSEN_SHANNON,
    LAST,
    LAYER,
    LENS,
    LENS_VALUES,
    NO_TARGET,
    NONNEGATIVE,
    PROMPT,
    SHARE,
    STEP,
    ZERO,
    Column,
    label_column,
)
from ...store.core.errors import LakeError
from ..engine.blocks import Block
from ..engine.context import Context, Scope, pair_columns
from ..engine.declare import table
from ..engine.job import LayerTable
from ..tables.final_layer import LATE
from ..tables.words import Vocab, vocab_table
from .conditions import HOSTED, Replayed, by_condition, by_condition_and_lens, check_scope, split_lens, window_of
from .replays import Condition

NAME = re.compile(r"([BD])_(early|mid|late|midlate)(_random)?")
PROBED = "lens not raw"
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
    if job.lens != "raw":
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
        Column("js_host", "float32", "Jensen-Shannon divergence to the host as it is", "nats", JENSEN_SHANNON, PROBED),
        Column("js_target", "float32", "Jensen-Shannon divergence to the other model", "nats", JENSEN_SHANNON, PROBED),
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
    """The condition of this name, and its lens; LakeError for an unknown name or captures of different answers."""
    name, lens = split_lens(kind)
    match = NAME.fullmatch(name)
    if not match:
        raise LakeError(
            f"{table}({kind}): expected B (IT's MLPs in the PT) or D (PT's in the IT), then _early, _mid, _late or _midlate, for"
            " a control _random, and for another lens _tuned or _jacobian"
        )
    letter, window, random = match.groups()
    check_scope(kit, scope)
    condition = Condition(name, HOST[letter], window_of(kit, scope, window), random=random is not None)
    return Replayed(kit, scope, condition, lens)


K = 20


def _candidates(job: Replayed, vocab: Vocab, late: int, pt: Block, it: Block) -> dict[str, Any]:
    """All columns of a block, [n, layers from `late` on], against the host as it is."""
    from ...analyze.lens.topk import exchanged

    (mine, here), _ = job.sides(pt, it)
    after = job.translated(mine, here, job.whole(mine, here)[0])[:, late + 1 :]
    before, head = job.stored(mine, here)[:, late + 1 :], job.kit.head(job.host)
    groups = job.kit.once(_groups, vocab, head.vocab)
    found = exchanged(head, before, after, groups, k=K, device=job.kit.device)
    counts = {
        f"{way}_{group}": found[way][..., place] for way in ("entered", "left") for place, group in enumerate(GROUPS)
    }
    return {**counts, "jaccard": found["jaccard"]}


def _groups(kit: Context, vocab: Vocab, size: int) -> np.ndarray:
    """The place in GROUPS of every token id [size]."""
    return np.array([GROUPS.index(COLLAPSED[name]) for name in vocab.column("word_class")[:size]])


@table(
    "candidates",
    [
        *HOSTED,
        LENS,
        *PROMPT,
        STEP,
        LAYER,
        *(
            Column(f"{way}_{group}", "int32", f"tokens of the class {group} among the {K} likeliest {when}", "tokens")
            for way, when in (("entered", "under the condition alone"), ("left", "without the condition alone"))
            for group in GROUPS
        ),
        Column("jaccard", "float32", f"tokens among the {K} likeliest of both over those of either", "1", SHARE),
    ],
    "Which of the likeliest tokens of late layers others replace under a condition.",
    "condition x lens x (prompt, step) x late layer",
    of="pair",
    version=1,
    kinds=("B_late",),
    kind_columns=by_condition_and_lens,
    one_model=True,
    how="replay",
    lenses=1.0,
)
def candidates_table(kit: Context, scope: Scope, kind: str) -> LayerTable:
    """The job that makes one condition's rows, `kind` its name. LakeError as for `graft` and `vocab`."""
    replayed, vocab = condition_of(kit, scope, "candidates", kind), vocab_table(kit, scope)
    late = int(LATE * kit.capture(scope.captures[0]).layers)
    columns = partial(_candidates, replayed, vocab, late)
    job = replayed.table("candidates", columns, late, k=K, vocab=vocab.path.stem)
    job.before = (*job.before, vocab)
    return job


EVERY = (-math.inf, math.inf)
PIPELINES = {"A": "pt", "B_late": "pt", "C": "it", "D_late": "it"}


def _pushes(job: Replayed, late: int, pt: Block, it: Block) -> dict[str, Any]:
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
    job = replayed.table("mechanism", partial(_pushes, replayed, late), late)
    for capture in job.captures:
        if "mlp_out" not in capture:
            raise LakeError(
                f"{capture.path}: mechanism needs mlp_out, which this capture left out: capture with the profile full"
            )
    return job
