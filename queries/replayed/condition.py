"""A condition that a model is replayed under: MLPs of one model's window of blocks in the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..engine.blocks import Block
from ..engine.context import OTHER

if TYPE_CHECKING:
    from ...capture.edit.edits import Graft
    from ...capture.model.partial import Donor


SEED = 42  # of the random controls; METHODS 5.2


@dataclass(frozen=True)
class Condition:
    """A host whose MLPs of blocks window[0]..window[1]-1 are replaced by those of the pair's other model.

    An empty window at the end of the stack is the host as it is.
    """

    name: str
    host: str
    window: tuple[int, int]
    random: bool = False

    @property
    def other(self) -> str:
        """The variant that the MLPs are from, and that the host is compared with."""
        return OTHER[self.host]

    def edit(self, donor: Donor) -> Graft:
        """What replays the condition."""
        from ...capture.edit.edits import Graft, RandomGraft

        blocks = range(*self.window)
        return RandomGraft(donor, blocks, SEED) if self.random else Graft(donor, blocks)


def answer_resid(rows: Block, at: np.ndarray) -> np.ndarray:
    """The stored residuals of the chosen tokens [n, L+1, d]; picked once for all conditions."""
    return rows.once("answer", lambda: rows["resid"][at])
