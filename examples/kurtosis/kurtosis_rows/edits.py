"""The edit `clamp:layers=late,limit=3`."""

from collections.abc import Collection
from dataclasses import dataclass

import actlake
from actlake.capture.edit.edits import OutputEdit


@actlake.edit
@dataclass(frozen=True)
class Clamp(OutputEdit):
    """Values of an output beyond a limit are cut off."""

    blocks: Collection[int] = ()
    limit: float = 3.0

    def operator(self, layer, device):
        """What the output of a block's module becomes."""
        return lambda value: value.clamp(-self.limit, self.limit)
