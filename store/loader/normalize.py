"""Norms and scales of rows, computed in one pass over a site and layer and kept in the lake."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from typing import Any

import numpy as np

from ..artifacts.statistics import NORMS, SCALE, kept_statistics
from ..captures.reader import Capture
from ..core.errors import LakeError
from ..core.progress import Estimate, bar
from ..format.paths import Layout
from ..format.shards import widen
from .reading import Part, read_whole

VERSION = 1
SPEED = 800e6  # decoded bytes a second, for what is said before


def norms_of(layout: Layout, capture: Capture, part: Part, threads: int) -> np.ndarray:
    """The norm of every token's row, float32 [tokens]."""

    def compute() -> dict[str, np.ndarray]:
        found = _pass(part, np.arange(capture.n_tokens), threads, lambda rows: np.sqrt(_squares(rows)))
        return {"norm": np.concatenate(found).astype(np.float32)}

    return kept_statistics(layout, _recipe(NORMS, capture, part), compute)["norm"]


def scale_of(layout: Layout, capture: Capture, part: Part, tokens: np.ndarray, threads: int) -> tuple[np.ndarray, ...]:
    """Of the rows of these tokens the mean, float32 [d], and two factors, float32 [2]: the first makes the mean squared norm d,
    the second that of the rows less their mean."""
    recipe = _recipe(SCALE, capture, part)
    recipe["tokens_sha256"] = sha256(np.sort(tokens).astype("<i8").tobytes()).hexdigest()

    def compute() -> dict[str, np.ndarray]:
        found = _pass(part, np.sort(tokens), threads, lambda rows: (rows.sum(0, np.float64), _squares(rows).sum()))
        mean = sum(total for total, _ in found) / len(tokens)
        square = sum(total for _, total in found) / len(tokens)
        width = len(mean)
        spread = max(square - float(mean @ mean), 0.0)
        factors = [np.sqrt(width / each) if each > 0 else 1.0 for each in (square, spread)]
        return {"mean": mean.astype(np.float32), "scale": np.array(factors, np.float32)}

    found = kept_statistics(layout, recipe, compute)
    if not np.isfinite(found["mean"]).all():
        raise LakeError(
            f"{capture.path}: {part.site} at layer {part.layer} has values that are not finite, so no mean to normalise by",
            repair="max_norm=NUMBER leaves such rows out",
        )
    return found["mean"], found["scale"]


def _squares(rows: np.ndarray) -> np.ndarray:
    return np.einsum("nd,nd->n", rows, rows, dtype=np.float64)


def _recipe(kind: str, capture: Capture, part: Part) -> dict[str, Any]:
    return {
        "kind": kind,
        "model": capture.path.parent.name,
        "stream": capture.path.stem,
        "capture_sha256": capture.sha256,
        "site": part.site,
        "layer": part.layer,
        "version": VERSION,
    }


def _pass(part: Part, tokens: np.ndarray, threads: int, action: Any) -> list[Any]:
    """What `action` makes of the rows of ascending tokens, float32, chunk by chunk, in order."""
    size = part.array.chunk_rows
    chunks = np.unique(tokens // size)
    part.array.check_rows(chunks.tolist(), part.place)
    edges = np.searchsorted(tokens, [*(chunks * size), tokens[-1] + 1])
    raw = len(tokens) * part.array.width * 4
    Estimate(f"statistics of {part.site} at layer {part.layer}", raw, raw / SPEED).announce()

    def one(at: int) -> Any:
        inside = tokens[edges[at] : edges[at + 1]] - chunks[at] * size
        return action(widen(read_whole(part, int(chunks[at]))[inside]))

    with ThreadPoolExecutor(threads) as pool, bar(f"statistics {part.site}", len(tokens)) as progress:
        found = []
        for at, made in enumerate(pool.map(one, range(len(chunks)))):
            found.append(made)
            progress.advance(int(edges[at + 1] - edges[at]))
    return found
