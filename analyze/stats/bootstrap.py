"""The statistics of the project: BCa intervals with the prompt as the unit that is resampled, ranks, agreement.

`scipy.stats.bootstrap` resamples and corrects; this module defines what is estimated. All estimates of a question are
one vector-valued statistic, so that they share one set of resamples.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from ...store.core.errors import LakeError

Statistic = Callable[..., np.ndarray]
# Elements of the largest array a batch of resamples may allocate (float64: 128 MB).
BATCH_ELEMENTS = 1 << 24
# Counts that sum to less count as zero: a ratio's SQL gives a tiny weight to prompts whose denominator is 0, to keep them.
NOTHING = 1e-6


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence limits, the n units behind it, and how the limits were found.

    method: "BCa"; "percentile" where BCa is undefined (no spread, or a jackknife without any); "none" (limits NaN) with
    fewer than two units, or where a tail's share of the resamples has no estimate, as of a ratio whose denominator few
    prompts hold; "undefined: ..." with an estimate of NaN. Limits that leave out the estimate, as BCa's may of few or
    lopsided units, are widened to it.
    """

    estimate: float
    low: float
    high: float
    n: int
    method: str
    unit: str = "prompts"

    def __post_init__(self) -> None:
        slack = 1e-12 * abs(self.estimate)
        if self.low > self.estimate + slack:
            object.__setattr__(self, "low", self.estimate)
        if self.high < self.estimate - slack:
            object.__setattr__(self, "high", self.estimate)


@dataclass(frozen=True)
class Sample:
    """What a mean or a median is made of: float64 [P, K] per prompt.

    Mean: `total` and `count` per stratum; the estimate is the mean over strata of sum_p total / sum_p count, and strata no
    prompt counts in are left out. So K = 1 is the token-pooled mean clustered by prompt; K = 1 with count 0 or 1 the
    prompt mean; K = steps the study's L1 profile, every step alike. Median: `values` [K], ascending, and how often each
    occurs; `total` is not used. ValueError on shapes that differ.
    """

    total: np.ndarray
    count: np.ndarray
    values: np.ndarray | None = None

    @classmethod
    def mean(cls, total: np.ndarray, count: np.ndarray) -> Sample:
        """A mean over strata of pooled means; a prompt without values may carry NaN as its sum."""
        total, count = np.asarray(total, dtype=np.float64), np.asarray(count, dtype=np.float64)
        if total.ndim != 2 or total.shape != count.shape:
            raise ValueError(f"bootstrap: total {total.shape} and count {count.shape} must both be (prompts, strata)")
        return cls(np.where(count > 0, total, 0.0), count)

    @classmethod
    def median(cls, values: np.ndarray, count: np.ndarray) -> Sample:
        """The median of what all prompts count, the mean of the two middle ones where they are even in number."""
        values, count = np.asarray(values, dtype=np.float64), np.asarray(count, dtype=np.float64)
        if count.ndim != 2 or count.shape[1:] != values.shape or (np.diff(values) <= 0).any():
            raise ValueError(f"bootstrap: values {values.shape} must ascend and fit count {count.shape}")
        return cls(np.zeros((len(count), 0)), count, values)

    def estimate(self, top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
        """The estimates [...] of summed totals and counts [..., K]; NaN where nothing counts."""
        if self.values is None:
            ratio = np.divide(top, bottom, out=np.full(bottom.shape, np.nan), where=bottom > NOTHING)
            return ratio[..., 0] if ratio.shape[-1] == 1 else np.nanmean(ratio, axis=-1)
        below = bottom.cumsum(-1)
        half = below[..., -1:] / 2
        middle = self.values[(below >= half).argmax(-1)] + self.values[(below > half).argmax(-1)]
        return np.where(half[..., 0] > 0, middle / 2, np.nan)


@dataclass(frozen=True)
class Quantity:
    """What is to be estimated: `plus`, or plus - minus, in one family (pair of models) or pooled over several.

    `plus` and `minus` have one Sample per family, of the same prompts. Pooled, every family counts alike; with `tokens`,
    totals and counts are summed over the families first, so that every token does. ValueError on prompts that differ.
    """

    plus: tuple[Sample, ...]
    minus: tuple[Sample, ...] = ()
    tokens: bool = False

    def __post_init__(self) -> None:
        for a, b in zip(self.plus, self.minus, strict=bool(self.minus)):
            if len(a.count) != len(b.count):
                raise ValueError(
                    f"bootstrap: {len(a.count)} prompts against {len(b.count)}; a paired difference needs the same"
                )

    def kept(self) -> tuple[np.ndarray, ...]:
        """Per family bool [P]: prompts that count anywhere."""
        arms = (self.plus, self.minus) if self.minus else (self.plus,)
        return tuple(np.any([s.count.any(axis=1) for s in family], axis=0) for family in zip(*arms, strict=True))


def intervals(
    quantities: Sequence[Quantity], *, level: float = 0.95, n_resamples: int = 2000, seed: int = 0
) -> list[Interval]:
    """Estimates with BCa intervals, in order; estimates over the same prompts share their resamples.

    Prompts are resampled within their family, the same ones for both arms of a difference; prompts that count nowhere are
    dropped. Source: METHODS 4, 13, 17; scipy.stats.bootstrap.
    """
    groups: dict[tuple[bytes, ...], list[int]] = {}
    for number, quantity in enumerate(quantities):
        groups.setdefault(tuple(mask.tobytes() for mask in quantity.kept()), []).append(number)
    found: dict[int, Interval] = {}
    for numbers in groups.values():
        group = [quantities[number] for number in numbers]
        found |= zip(numbers, _bootstrap(group, group[0].kept(), level, n_resamples, seed), strict=True)
    return [found[number] for number in range(len(quantities))]


def shares(
    quantities: Sequence[Quantity], *, level: float = 0.95, n_resamples: int = 2000, seed: int = 0
) -> list[Interval]:
    """Each quantity divided by the last of them, with BCa intervals; all share the same resamples of the same prompts.

    NaN where the last is 0. As `intervals` otherwise.
    """
    kept = tuple(np.any(masks, axis=0) for masks in zip(*(quantity.kept() for quantity in quantities), strict=True))
    return _bootstrap(quantities, kept, level, n_resamples, seed, lambda values: values / values[-1])


def rank_correlation(x: np.ndarray, y: np.ndarray, axis: int = -1) -> np.ndarray:
    """Spearman's correlation along an axis of x, y [..., n]; NaN where either does not vary."""
    a, b = (stats.rankdata(v, axis=axis) - (v.shape[axis] + 1) / 2 for v in (x, y))
    return (a * b).sum(axis) / np.sqrt((a * a).sum(axis) * (b * b).sum(axis))


def cohens_d(a: np.ndarray, b: np.ndarray) -> float:
    """Cohen's d of a [n] against b [m]: the difference of their means in units of the pooled standard deviation.

    Positive where a is larger; NaN with fewer than two values on either side, or without any spread. Source: METHODS 6
    (0D); Cohen 1988, 2.5.1.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.ndim != 1 or b.ndim != 1:
        raise ValueError(f"cohens_d: a {a.shape} and b {b.shape} must be one row of values each")
    if min(len(a), len(b)) < 2:
        return np.nan
    pooled = ((len(a) - 1) * a.var(ddof=1) + (len(b) - 1) * b.var(ddof=1)) / (len(a) + len(b) - 2)
    return float((a.mean() - b.mean()) / np.sqrt(pooled)) if pooled > 0 else np.nan


def kappa(a: Sequence[str | int], b: Sequence[str | int], *, quadratic: bool = False) -> float:
    """Cohen's kappa: how far two raters' labels of the same items [n] agree beyond chance, at most 1.

    `quadratic`: labels are numbers on one scale, and a disagreement counts as its squared distance. NaN where all labels
    are one and the same. LakeError without any item, ValueError on lengths that differ. Source: METHODS 18; Cohen 1968.
    """
    if len(a) != len(b):
        raise ValueError(f"kappa: {len(a)} labels against {len(b)}; both raters must label the same items")
    if not len(a):
        raise LakeError(
            "kappa: no items that both raters labelled, expected at least 1; check that their ids are the same"
        )
    labels, codes = np.unique([*a, *b], return_inverse=True)
    observed = np.zeros((len(labels), len(labels)))
    np.add.at(observed, (codes[: len(a)], codes[len(a) :]), 1 / len(a))
    chance = np.outer(observed.sum(1), observed.sum(0))
    apart = (labels[:, None] - labels) ** 2 if quadratic else 1 - np.eye(len(labels))
    return float(1 - (apart * observed).sum() / (apart * chance).sum()) if len(labels) > 1 else np.nan


def limits(
    data: tuple[np.ndarray, ...],
    statistic: Statistic,
    level: float,
    n_resamples: int,
    width: int,
    seed: int,
    paired: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Limits and methods [M] of a statistic that returns [M, ...]; `width` elements are in memory per resample."""
    found = stats.bootstrap(
        data,
        statistic,
        vectorized=True,
        paired=paired,
        n_resamples=n_resamples,
        batch=max(1, BATCH_ELEMENTS // width),
        confidence_level=level,
        method="BCa",
        rng=np.random.default_rng(seed),
    )
    low, high = (np.asarray(limit, dtype=np.float64) for limit in found.confidence_interval)
    tail = (1.0 - level) / 2.0
    plain = np.nanquantile(found.bootstrap_distribution, [tail, 1.0 - tail], axis=-1)
    good = np.isfinite(low) & np.isfinite(high)
    none = np.isnan(found.bootstrap_distribution).mean(axis=-1) > tail  # too few resamples are left to describe a tail
    low, high = (np.where(none, np.nan, np.where(good, a, b)) for a, b in ((low, plain[0]), (high, plain[1])))
    return low, high, np.where(none, "none", np.where(good, "BCa", "percentile"))


def multiplicity(index: np.ndarray, prompts: int) -> np.ndarray:
    """How often each prompt occurs in each resample: [..., m] indices to float64 [..., prompts] weights."""
    flat = index.reshape(-1, index.shape[-1]).astype(np.int64)
    offset = flat + prompts * np.arange(len(flat))[:, None]
    weight = np.bincount(offset.ravel(), minlength=len(flat) * prompts)
    return weight.reshape(*index.shape[:-1], prompts).astype(np.float64)


# --- inside ----------------------------------------------------------------------------------------------------------


def _bootstrap(
    group: Sequence[Quantity],
    kept: tuple[np.ndarray, ...],
    level: float,
    n_resamples: int,
    seed: int,
    change: Callable[[np.ndarray], np.ndarray] = lambda values: values,
) -> list[Interval]:
    """Intervals of quantities that count the same prompts `kept` (bool [P] per family), or of what `change` makes of them."""
    plain, width = _statistic(group, kept)

    def statistic(*index: np.ndarray, axis: int = -1) -> np.ndarray:
        return change(plain(*index, axis=axis))

    data = tuple(np.arange(int(mask.sum())) for mask in kept)
    prompts = sum(map(len, data))
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # scipy and nanmean warn of the degenerate cases that `method` reports
        estimate = statistic(*data) if all(map(len, data)) else np.full(len(group), np.nan)
        low, high = np.full((2, len(group)), np.nan)
        method = np.full(len(group), "none", dtype=object)
        if min(map(len, data)) >= 2:
            low, high, method = limits(data, statistic, level, n_resamples, width, seed)
    unknown = ~np.isfinite(estimate)
    low, high, method = (
        np.where(unknown, np.nan, low),
        np.where(unknown, np.nan, high),
        np.where(unknown, [_why_undefined(quantity, prompts) for quantity in group], method),
    )
    unit = "prompts" if len(data) == 1 else f"prompts of {len(data)} pairs"
    return [
        Interval(float(e), float(a), float(b), prompts, str(m), unit)
        for e, a, b, m in zip(estimate, low, high, method, strict=True)
    ]


def _why_undefined(quantity: Quantity, prompts: int) -> str:
    """The method of an estimate that is NaN."""
    if not prompts:
        return "none"
    finite = all(np.isfinite(sample.total).all() for sample in (*quantity.plus, *quantity.minus))
    return "undefined: divides by 0" if finite else "undefined: a value is NaN"


def _statistic(group: Sequence[Quantity], kept: tuple[np.ndarray, ...]) -> tuple[Statistic, int]:
    """The estimates [M, ...] of prompt indices (one [..., m] per family), and the elements they take per resample."""
    columns, tops, bottoms = [], [], []
    for family, mask in enumerate(kept):
        samples = {id(s): s for q in group for s in (q.plus[family], *(q.minus[family : family + 1]))}
        tops.append(_Columns({key: sample.total[mask] for key, sample in samples.items()}))
        bottoms.append(_Columns({key: sample.count[mask] for key, sample in samples.items()}))
        columns.append(max(int(mask.sum()), 2 * bottoms[-1].width))

    def statistic(*index: np.ndarray, axis: int = -1) -> np.ndarray:
        weights = [
            multiplicity(np.moveaxis(np.asarray(i), axis, -1), int(mask.sum()))
            for i, mask in zip(index, kept, strict=True)
        ]
        top = [columns.summed(weight) for columns, weight in zip(tops, weights, strict=True)]
        bottom = [columns.summed(weight) for columns, weight in zip(bottoms, weights, strict=True)]

        def arm(samples: tuple[Sample, ...], tokens: bool) -> np.ndarray:
            parts = [(top[f][id(s)], bottom[f][id(s)]) for f, s in enumerate(samples)]
            if tokens:
                return samples[0].estimate(*(np.sum(part, axis=0) for part in zip(*parts, strict=True)))
            return np.mean([s.estimate(*part) for s, part in zip(samples, parts, strict=True)], axis=0)

        return np.stack([arm(q.plus, q.tokens) - (arm(q.minus, q.tokens) if q.minus else 0.0) for q in group])

    return statistic, sum(columns)


class _Columns:
    """Matrices [P, K] of several samples side by side, so that one product sums them all."""

    def __init__(self, parts: dict[int, np.ndarray]):
        self._all = np.hstack(list(parts.values()))
        ends = np.cumsum([part.shape[1] for part in parts.values()]).tolist()
        self._slices = {key: slice(a, b) for key, a, b in zip(parts, [0, *ends], ends, strict=False)}
        self.width = self._all.shape[1]

    def summed(self, weight: np.ndarray) -> dict[int, np.ndarray]:
        """Key -> weighted sums over prompts [..., K]; weight [..., P]."""
        found = weight @ self._all
        return {key: found[..., part] for key, part in self._slices.items()}
