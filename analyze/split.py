"""Which prompts are held out: decided by a prompt's id alone, so that it is the same in every capture and model."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

HELD_OUT = 0.2  # METHODS 2: 80/20


def held_out(prompt_ids: Iterable[str], fraction: float = HELD_OUT) -> np.ndarray:
    """Whether each prompt is held out, bool [P]: the first 64 bits of its id's SHA-256 lie in the lowest `fraction`.

    A prompt that one model is trained on is then never held out for another, whatever else is in the set.
    """
    draws = [int.from_bytes(hashlib.sha256(str(name).encode()).digest()[:8], "big") for name in prompt_ids]
    return np.array([draw < fraction * 2**64 for draw in draws], dtype=bool)
