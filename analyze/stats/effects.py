"""Effects of a dose: standardised differences against no dose, and rank correlation of the means with the dose.

The unit that is resampled is the prompt; doses are given, not drawn. Source: METHODS 6 (0D).
"""

from __future__ import annotations

import warnings

import numpy as np
from scipy import stats

from .bootstrap import Interval, cohens_d, limits, multiplicity, rank_correlation

LEVEL, RESAMPLES = 0.95, 2000


def effect_size(a: np.ndarray, b: np.ndarray, *, seed: int = 0) -> Interval:
    """Cohen's d of a against b, both [prompts], with a BCa interval over prompts, each drawn with both its values.

    A prompt that lacks either value (NaN) is left out. NaN without limits with fewer than two prompts or without any
    spread. ValueError on lengths that differ. Source: METHODS 6 (0D); scipy.stats.bootstrap.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"effect_size: a {a.shape} and b {b.shape} must be of the same prompts")
    both = np.isfinite(a) & np.isfinite(b)
    a, b, n = a[both], b[both], int(both.sum())
    d = cohens_d(a, b)
    if np.isnan(d):
        return Interval(np.nan, np.nan, np.nan, n, "none")
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # scipy warns of the degenerate cases that `method` reports
        low, high, method = limits((a, b), _paired_d, LEVEL, RESAMPLES, 2 * n, seed, paired=True)
    return Interval(d, float(low), float(high), n, str(method))


def dose_correlation(doses: np.ndarray, values: np.ndarray, *, seed: int = 0) -> tuple[Interval, float]:
    """Spearman's correlation of doses [D] with the means of values [prompts, D], and its two-sided p value.

    The interval is BCa over prompts, the same ones at every dose (a resample whose means are flat counts as 0); the p value
    takes the D means as the sample, as the study does. NaN in values: the prompt is not scored there. NaN without limits
    where the means do not vary or D < 3. ValueError on shapes that differ. Source: METHODS 6 (0D), 5.4; scipy.
    """
    doses, values = np.asarray(doses, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or doses.shape != values.shape[1:]:
        raise ValueError(f"dose_correlation: doses {doses.shape} do not fit values {values.shape} (prompts, doses)")
    there = np.isfinite(values)
    values, there = values[there.any(1)], there[there.any(1)]
    count, total = there.astype(np.float64), np.where(there, values, 0.0)

    def means(weight: np.ndarray) -> np.ndarray:
        # Sums of the same values in another order differ in their last digits, which must not break ties.
        return ((weight @ total) / (weight @ count)).round(9)

    def rho(index: np.ndarray, axis: int = -1) -> np.ndarray:
        found = means(multiplicity(np.moveaxis(np.asarray(index), axis, -1), len(values)))
        return np.nan_to_num(rank_correlation(np.broadcast_to(doses, found.shape), found))  # flat: no trend

    prompts = len(values)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        mean = means(np.ones(prompts))
        if len(doses) < 3 or prompts == 0 or not np.isfinite(mean).all() or np.ptp(mean) == 0 or np.ptp(doses) == 0:
            return Interval(np.nan, np.nan, np.nan, prompts, "none"), np.nan
        whole = stats.spearmanr(doses, mean)
        low, high, method = np.nan, np.nan, "none"
        if prompts > 1:
            found = limits((np.arange(prompts),), rho, LEVEL, RESAMPLES, prompts + len(doses), seed)
            low, high, method = float(found[0]), float(found[1]), str(found[2])
    return Interval(float(whole.statistic), low, high, prompts, method), float(whole.pvalue)


# --- inside ----------------------------------------------------------------------------------------------------------


def _paired_d(a: np.ndarray, b: np.ndarray, axis: int = -1) -> np.ndarray:
    """Cohen's d along an axis of a and b, as many values on either side."""
    pooled = (a.var(axis=axis, ddof=1) + b.var(axis=axis, ddof=1)) / 2
    return (a.mean(axis=axis) - b.mean(axis=axis)) / np.sqrt(pooled)
