"""actlake: an activation lake for comparing pretrained and instruction-tuned language models.

>>> import actlake
>>> lake = actlake.open("lake")                       # doctest: +SKIP
>>> lake.run("L2", pair="pocket").table               # doctest: +SKIP
"""

from pathlib import Path

from .lake import Lake
from .store.errors import CorruptError, LakeError
from .store.version import __version__

__all__ = ["CorruptError", "Lake", "LakeError", "__version__", "open"]


def open(url: str | Path = "lake", create: bool = False) -> Lake:
    """Open the lake at a folder, making an empty one first if `create`; LakeError when there is none."""
    return Lake(url, create=create)
