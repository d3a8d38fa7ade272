"""The table `candidates`: which of the likeliest tokens of late layers others replace under a condition (METHODS 10)."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...analyze.text.word_class import COLLAPSED, GROUPS
from ..engine.blocks import Rows
from ..engine.context import Context, Scope
from ..tables.final_layer import LATE
from ..tables.words import vocab_table
from .condition import Condition
from .graft import LensCondition, condition_of

K = 20


class Candidates(LensCondition):
    """The rows of one condition and lens kind: layers floor(0.8 L) and up, against the host as it is."""

    def __init__(self, kit: Context, scope: Scope, condition: Condition, kind: str):
        self._vocab = vocab_table(kit, scope.pair)
        self._late = int(LATE * len(kit.capture(scope.models[0]).array("layer")[:]))
        more = {"k": K, "vocab": self._vocab.path.stem}
        super().__init__(kit, scope, "candidates", condition, kind, more, first=self._late)
        self.before = (*self.before, self._vocab)

    def columns(self, pt: Rows, it: Rows) -> dict[str, Any]:
        """All columns of a block, [n, late layers]."""
        from ...analyze.lens.topk import exchanged

        (mine, here), _ = self.sides(pt, it)
        after = self.translated(mine, here, self.replays.whole(self.condition, mine, here)[0])
        before, head, late = self.stored(mine, here), self.kit.head(self.host), self._late + 1
        found = exchanged(
            head, before[:, late:], after[:, late:], self._groups(head.vocab), k=K, device=self.kit.device
        )
        counts = {
            f"{way}_{group}": found[way][..., place]
            for way in ("entered", "left")
            for place, group in enumerate(GROUPS)
        }
        return {**counts, "jaccard": found["jaccard"]}

    def _groups(self, vocab: int) -> np.ndarray:
        """The place in GROUPS of every token id [V]."""

        def read() -> np.ndarray:
            return np.array([GROUPS.index(COLLAPSED[name]) for name in self._vocab.column("word_class")[:vocab]])

        return self.kit.once(("groups", self._vocab.path, vocab), read)


def candidates_table(kit: Context, scope: Scope, kind: str) -> Candidates:
    """The job that makes one condition's rows, `kind` its name. LakeError as for `graft` and `vocab`."""
    return Candidates(kit, scope, *condition_of(kit, scope, "candidates", kind))
