"""Directions from PT to IT in one layer: mean differences of MLP outputs, how stable they are and how they are spread.

A *record* is a prompt with its continuation. Both models give a record the same number of tokens, so that every
direction here is a weighted mean of the records' differences, normalised; only the weights differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

CAP = 200  # the longest continuation that counts, in tokens; METHODS 5.1
FORCED = 80  # the same where one model reads the other's tokens; METHODS 6 (0B)
SHORTEST = 5  # records with fewer generated tokens are left out
PARTS = ("conv", "full", "random", "mean", "rest")  # of a difference between the models, that patching adds
FLAT = 1e-4  # norm of a mean difference below which there is no direction


def generated(prompt: np.ndarray, step: np.ndarray) -> np.ndarray:
    """Index of each token among the generated tokens of its prompt, as an input; -1 in the prompt itself.

    prompt, step: int [n], whole prompts. The last prompt token has step 0 (METHODS 0), the first generated one index
    0; a prompt without continuation has none. Returns int64 [n].
    """
    at = np.arange(len(prompt))
    last = np.full(int(prompt.max(initial=-1)) + 1, len(prompt))
    last[prompt[step == 0]] = at[step == 0]
    return np.maximum(at - last[prompt] - 1, -1)


def record_means(values: np.ndarray, record: np.ndarray, count: int) -> np.ndarray:
    """Mean over the tokens of each record, [count, L, d], float64 sums kept as float32.

    values: float32 [n, L, d]; record: int [n], the record each token counts for, in ascending runs, -1 for none.
    Records without tokens are NaN.
    """
    kept = np.flatnonzero(record >= 0)
    out = np.full((count, *values.shape[1:]), np.nan, np.float32)
    if len(kept):
        rows, starts, tokens = np.unique(record[kept], return_index=True, return_counts=True)
        for layer in range(values.shape[1]):
            sums = np.add.reduceat(values[kept, layer].astype(np.float64), starts, axis=0)
            out[rows, layer] = sums / tokens[:, None]
    return out


def direction(difference: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
    """Unit vectors along weighted means of record differences.

    difference: [R, d], IT minus PT of one layer; weight: [..., R], None for equal ones. Weights that are the records' token
    counts give the study's token-pooled direction. Returns float64 [..., d], NaN where the mean is shorter than FLAT.
    Source: METHODS 5.1.
    """
    difference = np.asarray(difference, np.float64)
    weight = np.ones(len(difference)) if weight is None else np.asarray(weight, np.float64)
    mean = weight @ difference / weight.sum(axis=-1, keepdims=True)
    norm = np.linalg.norm(mean, axis=-1, keepdims=True)
    return np.divide(mean, norm, out=np.full(mean.shape, np.nan), where=norm >= FLAT)


def resamples(records: int, draws: int, seed: int = 42) -> np.ndarray:
    """Weights [draws, R] of bootstrap resamples: how often each record was drawn, with replacement."""
    rng = np.random.default_rng(seed)
    return np.stack([np.bincount(rng.choice(records, records), minlength=records) for _ in range(draws)])


def subsets(records: int, size: int, draws: int, seed: int = 42) -> np.ndarray:
    """Weights [draws, R], 0 or 1, of random subsets of `size` records without replacement."""
    rng = np.random.default_rng(seed)
    weight = np.zeros((draws, records))
    for row in weight:
        row[rng.choice(records, size, replace=False)] = 1
    return weight


def stability(difference: np.ndarray, draws: int = 50, seed: int = 42) -> dict[str, np.ndarray]:
    """Agreement of the directions of bootstrap resamples of the records of one layer [R, d].

    Returns `canonical`: cosine of each with the direction of all records, [draws]; `pairwise`: cosine of each pair,
    [draws * (draws - 1) / 2]. Records weigh equally. Source: METHODS 6 (0A).
    """
    found = direction(difference, resamples(len(difference), draws, seed))
    return {"canonical": found @ direction(difference), "pairwise": (found @ found.T)[np.triu_indices(draws, 1)]}


def convergence(difference: np.ndarray, size: int, draws: int = 20, seed: int = 42) -> np.ndarray:
    """Cosine [draws] of the direction of `size` random records with that of all, one layer [R, d]; METHODS 6 (0A)."""
    return direction(difference, subsets(len(difference), size, draws, seed)) @ direction(difference)


def agreement(a: np.ndarray, b: np.ndarray, weight_a: np.ndarray, weight_b: np.ndarray) -> np.ndarray:
    """Cosine [...] of two directions, each from its differences [R, d] and weights [..., R]; NaN where one is missing."""
    return np.sum(direction(a, weight_a) * direction(b, weight_b), axis=-1)


def splits(contrast: np.ndarray, size: int, seed: int = 42) -> dict[str, np.ndarray]:
    """Calibration sets of `size` records as weights [R]: the largest contrasts, the smallest, random ones, and all.

    contrast: [R], a score per record, ties in the order given. `top` and `bottom` are disjoint while 2 * size <= R;
    `random` overlaps both. Source: METHODS 6 (0H).
    """
    order = np.argsort(-np.asarray(contrast, np.float64), kind="stable")
    weight = {name: np.zeros(len(order)) for name in ("top", "bottom")}
    weight["top"][order[:size]] = 1
    weight["bottom"][order[len(order) - size :]] = 1
    return {**weight, "random": subsets(len(order), size, 1, seed)[0], "all": np.ones(len(order))}


def components(difference: np.ndarray, count: int = 10) -> dict[str, np.ndarray]:
    """PCA of the record differences of one layer [R, d].

    Returns `share`: part of the variance around the mean that each of the first components explains, [count] (zero
    beyond the rank); `pc1_mean`: |cosine| of the first component with the mean direction; `mean_share`: part of the mean
    square that the mean itself makes up, 1 when all records differ alike. NaN where all differences are equal.
    Source: METHODS 20 (1A).
    """
    difference = np.asarray(difference, np.float64)
    mean = difference.mean(axis=0)
    centred = difference - mean
    total, square = np.square(centred).sum(), np.square(difference).sum()
    # The smaller of the two products has the same eigenvalues.
    tall = len(centred) >= centred.shape[1]
    values, vectors = np.linalg.eigh(centred.T @ centred if tall else centred @ centred.T)
    if total <= np.finfo(np.float64).eps * square or not total:
        return {"share": np.full(count, np.nan), "pc1_mean": np.array(np.nan), "mean_share": np.array(np.nan)}
    first = vectors[:, -1] if tall else centred.T @ vectors[:, -1]
    share = np.zeros(count)
    share[: min(count, len(values))] = np.maximum(values[::-1][:count], 0) / total
    return {
        "share": share,
        "pc1_mean": np.abs(first @ direction(difference)) / np.linalg.norm(first),
        "mean_share": len(difference) * np.square(mean).sum() / square,
    }


def parts(difference: np.ndarray, conv: np.ndarray, mean: np.ndarray, random: np.ndarray) -> dict[str, np.ndarray]:
    """What activation patching adds to the PT's residual: each of PARTS of the differences IT - PT of one layer.

    difference: [n, d]; the directions are unit vectors [d]. Returns float64 [n, d] each: `conv`, the component along the
    direction of later convergence; `full`, all of it; `random`, as long as `conv`, along the random direction; `mean`, the
    component along the mean direction; `rest`, what is left without `conv`. Source: METHODS 7 (P3).
    """
    full = np.asarray(difference, np.float64)
    length = (full @ conv)[:, None]
    along = length * conv
    return {
        "conv": along,
        "full": full,
        "random": length * random,
        "mean": (full @ mean)[:, None] * mean,
        "rest": full - along,
    }


def random_units(layers: Iterable[int], width: int, seed: int = 42) -> dict[int, np.ndarray]:
    """A fixed random unit vector per layer, float64 [width], drawn one after the other: the control A1_rand of METHODS 5.2."""
    rng = np.random.default_rng(seed)
    return {layer: _unit(rng.standard_normal(width)) for layer in layers}


def matched_units(layers: Iterable[int], width: int, seed: int = 42) -> dict[int, np.ndarray]:
    """A random unit vector per layer, each from a seed of its own, for changes matched in size (METHODS 5.2, 0C)."""
    return {layer: _unit(_normal(seed + 7919 * layer, width)) for layer in layers}


def rotated_units(direction: Mapping[int, np.ndarray], seed: int = 42) -> dict[int, np.ndarray]:
    """Per layer a random unit vector orthogonal to the direction given, [d]: the rotated control of METHODS 5.2."""
    found = {}
    for layer, given in direction.items():
        d, random = np.asarray(given, np.float64), _normal(seed + 1031 * layer + 999_983, len(given))
        found[layer] = _unit(random - (random @ d) / (d @ d) * d)
    return found


def _normal(seed: int, width: int) -> np.ndarray:
    import torch  # for its random numbers; the rest of the module does without

    drawn: np.ndarray = torch.randn(width, generator=torch.Generator().manual_seed(seed)).double().numpy()
    return drawn


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)
