"""Which tokens of one capture, or of two side by side, are rows of a training run, decided before any activation is read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from ..captures.reader import Capture
from ..core.columns import SEGMENTS
from ..core.errors import LakeError
from .wanted import Filter

Columns = Mapping[str, np.ndarray]


def in_validation(prompt_ids: Iterable[str], share: float, seed: int = 0) -> np.ndarray:
    """Whether prompts are held out, bool [P]: by the hash of `SEED:ID`, so that all models and captures agree.

    About `share` of them are.
    """
    digests = (hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8] for name in prompt_ids)
    return np.array([int.from_bytes(digest, "big") / 2**64 < share for digest in digests], dtype=bool)


def choose(
    captures: Sequence[Capture], columns: Sequence[Columns], main: int, wanted: Filter, tokens: np.ndarray | None
) -> np.ndarray:
    """The tokens of rows, int64 [rows, captures], in the order of capture `main`, whichever half of the prompts they are of.

    Segments and `tokens` (None: all) are of `main`; a row is left out when a special token, or position 0, is in any capture.
    LakeError when nothing is left.
    """
    rows = np.arange(captures[0].n_tokens)[:, None] if len(captures) == 1 else align(captures, columns, main)
    keep = np.ones(len(rows), bool)
    if tokens is not None:
        keep &= np.isin(rows[:, main], tokens)
    if wanted.segment:
        numbers = [SEGMENTS.index(name) for name in wanted.segment]
        keep &= np.isin(columns[main]["segment"][rows[:, main]], numbers)
    for at, each in enumerate(columns):
        if not wanted.special:
            keep &= ~each["is_special"][rows[:, at]]
        if not wanted.first:
            keep &= each["position"][rows[:, at]] > 0
    if not keep.any():
        raise LakeError(
            f"{captures[main].path}: no token is left of {len(rows):,}",
            repair="ask for more: where, segment, special=True, first=True",
        )
    return rows[keep]


def align(captures: Sequence[Capture], columns: Sequence[Columns], main: int) -> np.ndarray:
    """The tokens of two captures that belong together, int64 [rows, 2]: of one stream all, else those of one prompt id and step.

    LakeError when there are none.
    """
    if captures[0].manifest["content_sha256"] == captures[1].manifest["content_sha256"]:
        return np.arange(captures[0].n_tokens)[:, None].repeat(2, axis=1)
    numbers: dict[str, int] = {}
    keys, where = [], []
    for each in columns:
        at = np.flatnonzero(each["step"] >= 0)
        prompts, inverse = np.unique(each["prompt"][at], return_inverse=True)
        names = each["names"][prompts].tolist()
        prompt = np.array([numbers.setdefault(name, len(numbers)) for name in names], np.int64)[inverse]
        keys.append((prompt << 32) + each["step"][at])
        where.append(at)
    _, one, two = np.intersect1d(keys[0], keys[1], assume_unique=True, return_indices=True)
    if not len(one):
        raise LakeError(
            f"{captures[0].path} and {captures[1].path}: no prompt and step is in both streams: no rows belong side by side",
            repair="name streams of one prompt set with continuations",
        )
    rows = np.stack([where[0][one], where[1][two]], axis=1)
    return rows[np.argsort(rows[:, main], kind="stable")]


def split_of(rows: np.ndarray, prompt: np.ndarray, names: np.ndarray, wanted: Filter, split: str) -> np.ndarray:
    """The rows of one half of the prompts; `prompt` is by row, `names` are the ids of prompts. LakeError when there is none."""
    held = in_validation(names.tolist(), wanted.validation, wanted.split_seed)[prompt]
    found = rows[held == (split == "validation")]
    if not len(found):
        raise LakeError(
            f"split={split!r}: none of {len(np.unique(prompt)):,} prompts is in it",
            repair="another validation=SHARE or split_seed=NUMBER makes another split",
        )
    return found
