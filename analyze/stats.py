"""The one bootstrap of the project: BCa intervals with the prompt as the unit that is resampled."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats

# Elements of the largest array a batch of resamples may allocate (float64: 128 MB).
BATCH_ELEMENTS = 1 << 24


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence limits, n prompts behind it, and how the limits were found.

    method: "BCa"; "percentile" where BCa is undefined (no spread, or a jackknife without any); "none" (limits NaN)
    with fewer than two prompts.
    """

    estimate: float
    low: float
    high: float
    n: int
    method: str


def bootstrap_mean(
    total: np.ndarray, count: np.ndarray, *, level: float = 0.95, n_resamples: int = 2000, seed: int = 0
) -> Interval:
    """Interval of a mean over strata of pooled means, prompts resampled.

    total, count: [P, K], per prompt and stratum the sum of values and their number. The estimate is the mean over
    strata of sum_p total / sum_p count; strata no prompt counts in are left out. So K = 1 is the token-pooled mean
    clustered by prompt; K = 1 with count 0 or 1 the prompt mean; K = steps the seed's L1 profile, every step alike.
    Prompts that count nowhere are dropped. ValueError on shapes that differ. Source: METHODS 4; scipy.stats.bootstrap.
    """
    total, count = _table(total, count)
    kept = count.any(axis=1)
    return _interval([(total[kept], count[kept])], level, n_resamples, seed)


def bootstrap_diff(
    total_a: np.ndarray,
    count_a: np.ndarray,
    total_b: np.ndarray,
    count_b: np.ndarray,
    *,
    level: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Interval of mean a - mean b, each as in `bootstrap_mean`, paired: every resample takes the same prompts for both.

    All [P, K] with the same P (row p is the same prompt in both; K may differ). ValueError when P differs.
    """
    a, b = _table(total_a, count_a), _table(total_b, count_b)
    if len(a[0]) != len(b[0]):
        raise ValueError(f"bootstrap: {len(a[0])} prompts against {len(b[0])}; a paired difference needs the same")
    kept = a[1].any(axis=1) | b[1].any(axis=1)
    return _interval([(t[kept], c[kept]) for t, c in (a, b)], level, n_resamples, seed)


def _table(total: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    total, count = np.asarray(total, dtype=np.float64), np.asarray(count, dtype=np.float64)
    if total.ndim != 2 or total.shape != count.shape:
        raise ValueError(f"bootstrap: total {total.shape} and count {count.shape} must both be (prompts, strata)")
    # A prompt without values may carry NaN as its sum.
    return np.where(count > 0, total, 0.0), count


def _estimator(arms: list[tuple[np.ndarray, np.ndarray]]) -> Callable[..., np.ndarray]:
    """The statistic of prompt indices [..., m]: vectorised, and one or two arms on the same indices."""

    def pooled(index: np.ndarray, total: np.ndarray, count: np.ndarray) -> np.ndarray:
        weight = _multiplicity(index, len(total))
        top, bottom = weight @ total, weight @ count
        ratio = np.divide(top, bottom, out=np.full(top.shape, np.nan), where=bottom > 0)
        return np.nanmean(ratio, axis=-1)

    def statistic(index: np.ndarray, axis: int = -1) -> np.ndarray:
        index = np.moveaxis(np.asarray(index), axis, -1)
        values = [pooled(index, *arm) for arm in arms]
        return values[0] if len(values) == 1 else values[0] - values[1]

    return statistic


def _multiplicity(index: np.ndarray, prompts: int) -> np.ndarray:
    """How often each prompt occurs in each resample: [..., m] indices to [..., prompts] weights."""
    flat = index.reshape(-1, index.shape[-1]).astype(np.int64)
    offset = flat + prompts * np.arange(len(flat))[:, None]
    weight = np.bincount(offset.ravel(), minlength=len(flat) * prompts)
    return weight.reshape(*index.shape[:-1], prompts).astype(np.float64)


def _interval(arms: list[tuple[np.ndarray, np.ndarray]], level: float, n_resamples: int, seed: int) -> Interval:
    prompts = len(arms[0][0])
    statistic = _estimator(arms)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # scipy and nanmean announce the degenerate cases that `method` reports
        estimate = float(statistic(np.arange(prompts))) if prompts else np.nan
        if prompts < 2 or not np.isfinite(estimate):
            return Interval(estimate, np.nan, np.nan, prompts, "none")
        width = max(prompts, *(t.shape[1] for t, _ in arms))
        found = stats.bootstrap(
            (np.arange(prompts),),
            statistic,
            vectorized=True,
            n_resamples=n_resamples,
            batch=max(1, BATCH_ELEMENTS // width),
            confidence_level=level,
            method="BCa",
            rng=np.random.default_rng(seed),
        )
        low, high = map(float, found.confidence_interval)
        method = "BCa"
        if not (np.isfinite(low) and np.isfinite(high)):
            tail = (1.0 - level) / 2.0
            low, high = map(float, np.nanquantile(found.bootstrap_distribution, [tail, 1.0 - tail]))
            method = "percentile"
    return Interval(estimate, low, high, prompts, method)
