"""The table `candidates`: which of the likeliest tokens of late layers others replace under a condition (METHODS 10)."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...analyze.text.word_class import COLLAPSED, GROUPS
from ...store.core.columns import LAYER, LENS, PROMPT, SHARE, STEP, Column
from ..engine.blocks import Block
from ..engine.context import Context, Scope
from ..engine.declare import table
from ..tables.final_layer import LATE
from ..tables.words import Vocab, vocab_table
from .condition import Condition
from .conditions import HOSTED, by_condition_and_lens
from .graft import LensCondition, condition_of

K = 20


class _Candidates(LensCondition):
    """The rows of one condition and lens kind: layers floor(0.8 L) and up, against the host as it is."""

    def __init__(self, kit: Context, scope: Scope, condition: Condition, kind: str):
        self._vocab = vocab_table(kit, scope)
        self._late = int(LATE * kit.capture(scope.captures[0]).layers)
        more = {"k": K, "vocab": self._vocab.path.stem}
        super().__init__(kit, scope, "candidates", condition, kind, more, first=self._late)
        self.before = (*self.before, self._vocab)

    def columns(self, pt: Block, it: Block) -> dict[str, Any]:
        """All columns of a block, [n, late layers]."""
        from ...analyze.lens.topk import exchanged

        (mine, here), _ = self.sides(pt, it)
        after = self.translated(mine, here, self.replays.whole(self.condition, mine, here)[0])
        before, head, late = self.stored(mine, here), self.kit.head(self.host), self._late + 1
        groups = self.kit.once(_groups, self._vocab, head.vocab)
        found = exchanged(head, before[:, late:], after[:, late:], groups, k=K, device=self.kit.device)
        counts = {
            f"{way}_{group}": found[way][..., place]
            for way in ("entered", "left")
            for place, group in enumerate(GROUPS)
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
def candidates_table(kit: Context, scope: Scope, kind: str) -> _Candidates:
    """The job that makes one condition's rows, `kind` its name. LakeError as for `graft` and `vocab`."""
    return _Candidates(kit, scope, *condition_of(kit, scope, "candidates", kind))
