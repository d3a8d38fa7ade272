"""Shape of a cloud of residuals, one point a prompt: intrinsic dimension, effective rank, shares of the leading directions."""

from __future__ import annotations

import numpy as np

METRICS = ("twonn", "mle", "lpca", "participation_ratio", "effective_rank", "pc1", "pc5", "pc10")
NEIGHBOURS = 20  # of the MLE estimator, scikit-dimension's default
DISCARDED = 0.1  # share of the ratios that TwoNN leaves out, likewise
LEADING = 0.05  # share of the largest eigenvalue from which on lPCA counts one, likewise
MOST_POINTS = 2000  # the study's limit; the cost grows with the cube
FEWEST_POINTS = 30  # so that a subsample of 80 % still has more points than NEIGHBOURS
# Squared distance, as a share of the mean squared norm, below which two points are one: float32 rounding, not geometry.
SAME = 1e-12


def geometry(points: np.ndarray, *, draws: int = 100, share: float = 0.8, seed: int = 42) -> dict[str, np.ndarray]:
    """Dimension and rank metrics of clouds of points, each with its values on random subsamples.

    points: float [P, B, d], P prompts at B boundaries; of more than MOST_POINTS prompts the first are taken. Returns metric
    -> float64 [1 + draws, B]: row 0 is the estimate from all points, the others from subsamples of round(share * P)
    points without replacement, the same ones at every boundary and for every call with this P. Metrics: `twonn`, `mle` and
    `lpca` intrinsic dimension (scikit-dimension's defaults: 10 % of ratios discarded, 20 neighbours, eigenvalues over
    5 % of the largest); with l the eigenvalues of the covariance, `participation_ratio` = (sum l)^2 / sum l^2,
    `effective_rank` = exp of the entropy of l / sum l, `pc1`, `pc5`, `pc10` = share of the leading 1, 5, 10. Of points that
    coincide the dimensions see one. NaN where a metric is undefined: all points equal, or at most NEIGHBOURS
    different ones for a dimension. ValueError for fewer than FEWEST_POINTS prompts or points that are not finite.
    Source: METHODS 4 (L8); Facco et al. 2017, Levina and Bickel 2005, Fukunaga and Olsen 1971, Roy and Vetterli 2007.
    """
    points = np.asarray(points)[:MOST_POINTS]
    if points.ndim != 3 or len(points) < FEWEST_POINTS:
        raise ValueError(
            f"geometry: points have shape {points.shape}, expected ({FEWEST_POINTS} prompts or more, boundaries, d)"
        )
    if not np.isfinite(points).all():
        raise ValueError("geometry: some points are not finite")
    count, boundaries, _ = points.shape
    rng = np.random.default_rng(seed)
    size = round(share * count)
    samples = [np.arange(count), *(np.sort(rng.choice(count, size, replace=False)) for _ in range(draws))]
    found = {name: np.full((len(samples), boundaries), np.nan) for name in METRICS}
    for boundary in range(boundaries):
        x = points[:, boundary].astype(np.float64)
        rounding = SAME * np.square(x).sum(axis=1).mean()
        gram = _gram(x)
        for row, sample in enumerate(samples):
            for name, value in _metrics(gram[np.ix_(sample, sample)], rounding).items():
                found[name][row, boundary] = value
    return found


def _gram(x: np.ndarray) -> np.ndarray:
    """Inner products [P, P], float64, of points seen from the first one: everything here follows from them.

    Seen so, equal points are exactly zero, and a large common offset costs no digits.
    """
    x = x - x[0]
    return x @ x.T


def _metrics(gram: np.ndarray, rounding: float) -> dict[str, float]:
    """The metrics of the points with these inner products; those that are undefined are left out."""
    spectrum = _spectrum(gram)
    if spectrum.sum() <= rounding:
        return {}
    weight = spectrum / spectrum.sum()
    found = {
        "participation_ratio": 1.0 / np.square(weight).sum(),
        "effective_rank": float(np.exp(-(weight * np.log(weight)).sum())),
        **{f"pc{k}": weight[:k].sum() for k in (1, 5, 10)},
    }
    found["lpca"] = float((spectrum > LEADING * spectrum[0]).sum())
    near = _nearest(gram, rounding)
    if near is not None:
        found["twonn"] = two_nn(near[:, 0], near[:, 1])
        found["mle"] = levina_bickel(near)
    return found


def two_nn(first: np.ndarray, second: np.ndarray) -> float:
    """Intrinsic dimension from the distances [points] to the two nearest neighbours, Facco et al. 2017.

    The slope, through the origin, of -log(1 - F) over log(second / first), F the empirical distribution of the ratios, without
    the largest tenth of them.
    """
    ratio = np.sort(second / first)[: int(len(first) * (1 - DISCARDED))]
    x, y = np.log(ratio), -np.log1p(-np.arange(1, len(ratio) + 1) / len(first))
    return float(x @ y / (x @ x))


def levina_bickel(near: np.ndarray) -> float:
    """Intrinsic dimension from the distances [points, k] to the k nearest neighbours, ascending; Levina and Bickel 2005.

    The inverse of the mean over points of their inverse estimates (MacKay and Ghahramani), each (k - 1) / sum log(r_k / r_j).
    """
    inverse = np.log(near[:, -1:] / near).sum(axis=1) / (near.shape[1] - 1)
    return float(1 / inverse.mean())


def _spectrum(gram: np.ndarray) -> np.ndarray:
    """Eigenvalues of the covariance of points with these inner products, descending, without those that are rounding."""
    mean = gram.mean(axis=0)
    centred = gram - mean - mean[:, None] + mean.mean()
    values = np.linalg.eigvalsh(centred)[::-1] / (len(gram) - 1)
    return values[values > np.finfo(np.float64).eps * np.trace(gram)]


def _nearest(gram: np.ndarray, rounding: float) -> np.ndarray | None:
    """Distances [points, NEIGHBOURS] to the nearest other points, ascending; None with too few different points."""
    norm = np.diag(gram)
    squared = norm + norm[:, None] - 2.0 * gram
    close = squared <= rounding
    if close.sum() > len(gram):  # more than each point with itself
        kept = ~np.tril(close, -1).any(axis=1)
        squared = squared[np.ix_(kept, kept)]
    if len(squared) <= NEIGHBOURS:
        return None
    np.fill_diagonal(squared, np.inf)
    return np.sqrt(np.sort(np.partition(squared, NEIGHBOURS - 1, axis=1)[:, :NEIGHBOURS], axis=1))
