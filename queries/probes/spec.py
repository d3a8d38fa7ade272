"""Which probes of the tuned lens: capture, recipe, folds; and the name of their set in a lake."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...analyze.tuned.recipes import Recipe, Ridge
from ...store.artifacts.probes import probes_path
from ..engine.context import Context, Names

if TYPE_CHECKING:
    pass


VERSION = 1  # raise when training the same recipe gives other probes


DEFAULT = Ridge()


@dataclass(frozen=True)
class ProbeSpec:
    """Probes to be had: of which capture, by what recipe, in how many folds.

    The probes of a fold are trained on all prompts but those of that fold (`fold_of`), which they are kept for; of a
    single fold a fifth of the prompts. `tokens`: to train each fold on, or as many as the recipe's steps take.
    """

    names: Names
    recipe: Recipe
    tokens: int | None = None
    seed: int = 0
    folds: int = 2

    def record(self, kit: Context) -> dict[str, Any]:
        """Everything that determines the probes."""
        return {
            "model": self.names[0],
            "stream": self.names[1],
            "capture_sha256": kit.capture(self.names).sha256,
            "model_sha256": kit.head_hash(self.names),
            "recipe": self.recipe.record(),
            "tokens": self.tokens,
            "seed": self.seed,
            "folds": self.folds,
            "version": VERSION,
        }

    def path(self, kit: Context) -> Path:
        """The group of the set."""
        return probes_path(kit.layout, self.record(kit))
