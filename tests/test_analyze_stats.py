"""The bootstrap: equal to scipy where scipy can be asked directly, right in coverage, quiet in degenerate cases."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
import pytest
from actlake.analyze.stats import Interval, bootstrap_diff, bootstrap_mean
from scipy import stats


def ones(x: np.ndarray) -> np.ndarray:
    return np.ones_like(x)


def test_prompt_mean_is_scipys_own_bca() -> None:
    x = np.random.default_rng(0).exponential(size=80)
    got = bootstrap_mean(x[:, None], ones(x)[:, None], seed=5, n_resamples=999, level=0.9)
    want = stats.bootstrap((x,), np.mean, n_resamples=999, confidence_level=0.9, rng=np.random.default_rng(5))
    assert got.estimate == pytest.approx(x.mean())
    assert (got.low, got.high) == pytest.approx(tuple(want.confidence_interval))
    assert (got.n, got.method) == (80, "BCa")


def test_pooled_ratio_is_scipys_paired_bca() -> None:
    r = np.random.default_rng(1)
    count = r.integers(1, 30, 40).astype(float)
    total = count * r.normal(2.0, 1.0, 40)
    got = bootstrap_mean(total[:, None], count[:, None], seed=2)
    want = stats.bootstrap(
        (total, count),
        lambda t, c, axis: t.sum(axis) / c.sum(axis),
        paired=True,
        n_resamples=2000,
        rng=np.random.default_rng(2),
    )
    assert got.estimate == pytest.approx(total.sum() / count.sum())
    assert (got.low, got.high) == pytest.approx(tuple(want.confidence_interval))


def test_strata_weigh_alike_and_empty_ones_are_left_out() -> None:
    total = np.array([[2.0, 9.0, np.nan], [4.0, 0.0, np.nan]])
    count = np.array([[1, 3, 0], [1, 0, 0]])
    assert bootstrap_mean(total, count).estimate == pytest.approx((6 / 2 + 9 / 3) / 2)


def test_prompts_without_values_do_not_count() -> None:
    total, count = np.array([[1.0], [np.nan], [3.0], [2.0]]), np.array([[1], [0], [1], [1]])
    with_gap, without = bootstrap_mean(total, count), bootstrap_mean(total[[0, 2, 3]], count[[0, 2, 3]])
    assert with_gap == without and with_gap.n == 3


def test_batches_and_seeds_reproduce(monkeypatch: pytest.MonkeyPatch) -> None:
    r = np.random.default_rng(3)
    total, count = r.random((25, 7)), r.integers(0, 3, (25, 7))
    once = bootstrap_mean(total, count, seed=4)
    assert once == bootstrap_mean(total, count, seed=4) != bootstrap_mean(total, count, seed=5)
    monkeypatch.setattr("actlake.analyze.stats.BATCH_ELEMENTS", 25 * 13)
    again = bootstrap_mean(total, count, seed=4)
    assert (again.low, again.high) == pytest.approx((once.low, once.high))


def test_coverage_of_a_skewed_clustered_mean() -> None:
    r, hits, trials = np.random.default_rng(6), 0, 150
    for _ in range(trials):
        count = r.integers(1, 9, 50)
        level = r.exponential(1.0, 50)  # what a prompt's tokens share
        got = bootstrap_mean((level * count)[:, None], count[:, None], n_resamples=400, level=0.9)
        hits += got.low <= 1.0 <= got.high
    assert 0.80 <= hits / trials <= 0.96


def test_paired_difference_is_tighter_than_an_unpaired_one() -> None:
    r = np.random.default_rng(7)
    shared = r.normal(0, 3, 60)
    a, b = shared + r.normal(1.0, 0.2, 60), shared + r.normal(0.0, 0.2, 60)
    paired = bootstrap_diff(a[:, None], ones(a)[:, None], b[:, None], ones(b)[:, None])
    unpaired = bootstrap_diff(a[:, None], ones(a)[:, None], r.permutation(b)[:, None], ones(b)[:, None])
    assert paired.estimate == pytest.approx(a.mean() - b.mean())
    assert paired.low < 1.0 < paired.high
    assert (paired.high - paired.low) < 0.2 * (unpaired.high - unpaired.low)
    same = bootstrap_mean((a - b)[:, None], ones(a)[:, None])
    assert (paired.low, paired.high) == pytest.approx((same.low, same.high))


def test_difference_takes_other_strata_and_prompts_one_arm_lacks() -> None:
    r = np.random.default_rng(8)
    got = bootstrap_diff(r.random((20, 3)), np.ones((20, 3)), r.random((20, 5)), r.integers(0, 2, (20, 5)))
    assert got.n == 20 and got.low < got.estimate < got.high
    swapped = bootstrap_diff(np.ones((4, 1)), np.ones((4, 1)), np.zeros((4, 1)), np.ones((4, 1)))
    assert (swapped.estimate, swapped.low, swapped.high, swapped.method) == (1.0, 1.0, 1.0, "percentile")


@pytest.mark.parametrize(
    "total, count, want",
    [
        (np.zeros((0, 2)), np.zeros((0, 2)), (np.nan, np.nan, np.nan, 0, "none")),
        (np.ones((5, 2)), np.zeros((5, 2)), (np.nan, np.nan, np.nan, 0, "none")),
        (np.array([[3.0]]), np.array([[2.0]]), (1.5, np.nan, np.nan, 1, "none")),
        (np.full((6, 1), 2.0), np.ones((6, 1)), (2.0, 2.0, 2.0, 6, "percentile")),
        (np.array([[np.nan], [1.0]]), np.ones((2, 1)), (np.nan, np.nan, np.nan, 2, "none")),
    ],
)
def test_degenerate_cases_are_named_and_silent(total, count, want) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = bootstrap_mean(total, count)
    np.testing.assert_equal(dataclasses.astuple(got), dataclasses.astuple(Interval(*want)))


@pytest.mark.parametrize("prompts", [2, 3])
def test_few_prompts_give_finite_limits_around_the_data(prompts: int) -> None:
    x = np.arange(prompts, dtype=float)[:, None]
    got = bootstrap_mean(x, ones(x))
    assert 0 <= got.low <= got.estimate <= got.high <= prompts - 1


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match="must both be"):
        bootstrap_mean(np.ones(3), np.ones(3))
    with pytest.raises(ValueError, match="paired difference"):
        bootstrap_diff(np.ones((3, 1)), np.ones((3, 1)), np.ones((4, 1)), np.ones((4, 1)))
