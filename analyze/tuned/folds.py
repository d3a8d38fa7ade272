"""Which prompts are held out from a fit: decided by a prompt's id alone, so that all captures and models agree."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

HELD_OUT = 0.2  # METHODS 2: 80/20


def fold_of(prompt_ids: Iterable[str], folds: int) -> np.ndarray:
    """The fold that each prompt is held out from, int [P]: folds of equal size, by the first 64 bits of the id's SHA-256.

    With one fold, the fifth with the lowest hashes is held out from it; the others are -1, held out from none. A prompt is
    held out for all models alike, whatever else is in their prompt sets. ValueError on no folds.
    """
    if folds < 1:
        raise ValueError(f"folds: {folds}, expected at least 1")
    draws = (int.from_bytes(hashlib.sha256(str(name).encode()).digest()[:8], "big") / 2**64 for name in prompt_ids)
    return np.array([int(u * folds) if folds > 1 else -(u >= HELD_OUT) for u in draws], dtype=np.int64)
