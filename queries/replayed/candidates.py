"""The table `candidates`: which of the likeliest tokens of late layers others replace under a condition (METHODS 10)."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from ...analyze.text.word_class import COLLAPSED, GROUPS
from ...store.core.columns import LAYER, LENS, PROMPT, SHARE, STEP, Column
from ..engine.blocks import Block
from ..engine.context import Context, Scope
from ..engine.declare import table
from ..engine.job import LayerTable
from ..tables.final_layer import LATE
from ..tables.words import Vocab, vocab_table
from .conditions import HOSTED, Replayed, by_condition_and_lens
from .graft import condition_of

K = 20


def _columns(job: Replayed, vocab: Vocab, late: int, pt: Block, it: Block) -> dict[str, Any]:
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
    columns = partial(_columns, replayed, vocab, late)
    job = replayed.table("candidates", columns, late, k=K, vocab=vocab.path.stem)
    job.before = (*job.before, vocab)
    return job
