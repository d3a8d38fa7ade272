"""Edits as `lake.generate` takes them: `Scale(layers="late", direction="d_mean", alpha=0)` is the text
`scale:layers=late,direction=d_mean,alpha=0`.

layers: a window (early, mid, late), `all`, a block, a range or a list of blocks. direction: d_mean, d_conv, content, random,
rotated, d_mean_top, d_mean_bottom, d_mean_random, from the lake's captures. site: mlp, attn or block. What an edit may
take is checked where a model is known: `lake.generate` raises LakeError for an unknown direction or a block too many.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields

__all__ = ["Scale", "Inject", "Matched", "Zero", "Skip", "Graft", "RandomGraft"]
Layers = str | int | Iterable[int]


@dataclass(frozen=True)
class _Edit:
    """One edit; `str(edit)` is its text."""

    layers: Layers

    def __str__(self) -> str:
        named = {each.name: getattr(self, each.name) for each in fields(self)}
        words = ",".join(f"{name}={_word(value)}" for name, value in named.items() if value is not None)
        name = "".join(
            "_" * bool(at) + letter.lower() if letter.isupper() else letter
            for at, letter in enumerate(type(self).__name__)
        )
        return f"{name}:{words}"


@dataclass(frozen=True)
class Scale(_Edit):
    """Multiply the component of outputs along a direction by alpha; 0 removes it, 1 changes nothing."""

    direction: str
    alpha: float
    site: str = "mlp"
    seed: int | None = None


@dataclass(frozen=True)
class Inject(_Edit):
    """Add beta times each output's norm along a direction (beta itself unless `relative`)."""

    direction: str
    beta: float
    site: str = "mlp"
    relative: bool = True
    seed: int | None = None


@dataclass(frozen=True)
class Matched(_Edit):
    """Make as large a change as `Scale` does along the direction, along a random one."""

    direction: str
    alpha: float
    site: str = "mlp"
    seed: int | None = None


@dataclass(frozen=True)
class Zero(_Edit):
    """Silence a site of blocks."""

    site: str = "mlp"


@dataclass(frozen=True)
class Skip(_Edit):
    """Leave whole blocks out."""


@dataclass(frozen=True)
class Graft(_Edit):
    """Put the other model's MLPs into blocks."""


@dataclass(frozen=True)
class RandomGraft(_Edit):
    """Change the MLPs of blocks by as much as `Graft` does, at random."""

    seed: int | None = None


def _word(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str) or not isinstance(value, Iterable):
        return str(value)
    return "+".join(map(str, value))
