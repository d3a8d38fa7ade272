"""The bootstrap: equal to scipy where scipy can be asked directly, right in coverage, quiet in degenerate cases."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
import pytest
from actlake.analyze.stats.bootstrap import (
    Interval,
    Quantity,
    Sample,
    cohens_d,
    intervals,
    kappa,
    rank_correlation,
)
from actlake.store.core.errors import LakeError
from scipy import stats
from sklearn.metrics import cohen_kappa_score


def ones(x: np.ndarray) -> np.ndarray:
    return np.ones_like(x)


def bootstrap_mean(total: np.ndarray, count: np.ndarray, **options) -> Interval:
    """Interval of one mean."""
    return intervals([Quantity((Sample.mean(total, count),))], **options)[0]


def bootstrap_diff(total_a, count_a, total_b, count_b, **options) -> Interval:
    """Interval of a paired difference of two means."""
    return intervals([Quantity((Sample.mean(total_a, count_a),), (Sample.mean(total_b, count_b),))], **options)[0]


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
    monkeypatch.setattr("actlake.analyze.stats.bootstrap.BATCH_ELEMENTS", 25 * 13)
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
        (np.array([[np.nan], [1.0]]), np.ones((2, 1)), (np.nan, np.nan, np.nan, 2, "undefined: a value is NaN")),
        (np.ones((2, 1)), np.full((2, 1), 1e-12), (np.nan, np.nan, np.nan, 2, "undefined: divides by 0")),
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


# --- many quantities, medians, families -------------------------------------------------------------------------------


def test_quantities_that_share_resamples_are_those_asked_one_by_one() -> None:
    r = np.random.default_rng(9)
    pairs = [(r.random((30, k)), r.integers(0, 3, (30, k)).astype(float)) for k in (1, 4, 1, 7)]
    pairs[2] = (pairs[2][0], pairs[2][1] * (np.arange(30) % 2)[:, None])  # counts half of the prompts
    samples = [Sample.mean(*pair) for pair in pairs]
    asked = [Quantity((s,)) for s in samples] + [Quantity((samples[0],), (samples[2],))]
    found = intervals(asked, seed=3)
    singles = [bootstrap_mean(*pair, seed=3) for pair in pairs] + [bootstrap_diff(*pairs[0], *pairs[2], seed=3)]
    for got, want in zip(found, singles, strict=True):
        assert dataclasses.astuple(got)[4:] == dataclasses.astuple(want)[4:]
        assert dataclasses.astuple(got)[:4] == pytest.approx(dataclasses.astuple(want)[:4])
    assert found[2].n == sum(pairs[2][1][:, 0] > 0) < found[0].n


def test_median_is_numpys_over_all_tokens_resampled_by_prompt() -> None:
    r = np.random.default_rng(10)
    values = np.arange(12.0)
    count = r.integers(0, 4, (25, 12)).astype(float)
    tokens = [np.repeat(values, row.astype(int)) for row in count]
    got = intervals([Quantity((Sample.median(values, count),))], seed=1)[0]
    assert got.estimate == np.median(np.concatenate(tokens))
    picks = np.random.default_rng(1).integers(0, 25, (2000, 25))
    loops = [np.median(np.concatenate([tokens[i] for i in pick])) for pick in picks]
    assert (got.low, got.high) == pytest.approx(tuple(np.quantile(loops, [0.025, 0.975])), abs=0.51)
    assert got.low <= got.estimate <= got.high and got.n == 25
    even = intervals([Quantity((Sample.median(np.array([1.0, 4.0]), np.array([[2, 1], [0, 1]])),))])[0]
    assert even.estimate == np.median([1, 1, 4, 4])


def test_families_count_alike_and_tokens_do_when_asked() -> None:
    r = np.random.default_rng(11)
    count = [r.integers(1, 9, (n, 1)).astype(float) for n in (20, 35, 50)]
    total = [c * r.normal(m, 1, c.shape) for c, m in zip(count, (0.0, 1.0, 5.0), strict=True)]
    samples = tuple(Sample.mean(t, c) for t, c in zip(total, count, strict=True))
    family, token = intervals([Quantity(samples), Quantity(samples, tokens=True)])
    assert family.estimate == pytest.approx(np.mean([t.sum() / c.sum() for t, c in zip(total, count, strict=True)]))
    assert token.estimate == pytest.approx(sum(t.sum() for t in total) / sum(c.sum() for c in count))
    assert (family.n, family.unit, family.method) == (105, "prompts of 3 pairs", "BCa")
    # Prompts are resampled within their family: the variance is a ninth of the families' variances summed.
    single = [bootstrap_mean(t, c) for t, c in zip(total, count, strict=True)]
    half = np.sqrt(sum(((s.high - s.low) / 2) ** 2 for s in single)) / 3
    assert (family.high - family.low) / 2 == pytest.approx(half, rel=0.1)
    with pytest.raises(ValueError, match="paired difference"):
        Quantity((samples[0],), (samples[1],))


def test_rank_correlation_is_scipys() -> None:
    r = np.random.default_rng(12)
    x = r.integers(0, 6, (3, 40)).astype(float)
    y = x + r.normal(0, 2, (3, 40))
    want = [stats.spearmanr(a, b).statistic for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(rank_correlation(x, y), want)
    with np.errstate(invalid="ignore"):
        assert np.isnan(rank_correlation(np.ones(9), np.arange(9.0)))


@pytest.mark.parametrize(("n", "m"), [(2, 2), (5, 40), (30, 7)])
def test_cohens_d_is_the_t_statistic_without_the_sample_sizes(n: int, m: int) -> None:
    r = np.random.default_rng(n)
    a, b = r.normal(1.0, 2.0, n), r.normal(0.0, 1.0, m)
    t = stats.ttest_ind(a, b).statistic  # Student's, with the pooled variance
    assert cohens_d(a, b) == pytest.approx(t * np.sqrt(1 / n + 1 / m))
    assert cohens_d(b, a) == pytest.approx(-cohens_d(a, b))


def test_cohens_d_by_hand_and_where_it_is_undefined() -> None:
    assert cohens_d([2, 4, 6], [1, 2, 3]) == pytest.approx(2 / np.sqrt((2 * 4 + 2 * 1) / 4))
    assert np.isnan([cohens_d([1, 1], [2, 2]), cohens_d([1], [1, 2, 3]), cohens_d([], [])]).all()
    with pytest.raises(ValueError, match="one row"):
        cohens_d(np.ones((2, 2)), np.ones(3))


def test_kappa_by_hand_and_where_it_is_undefined() -> None:
    # Both say yes to 20 of 50 and no to 15; 10 and 5 are split: observed .7, by chance .5.
    a, b = ["yes"] * 25 + ["no"] * 25, ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    assert kappa(a, b) == pytest.approx((0.7 - 0.5) / (1 - 0.5))
    assert kappa(a, a) == 1.0 and kappa([1, 2], [2, 1]) == -1.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(kappa(["yes"] * 3, ["yes"] * 3))
    r = np.random.default_rng(13)
    a, b = r.integers(1, 6, 50), r.integers(1, 6, 50)
    b[:30] = a[:30]
    for weights in (None, "quadratic"):
        assert kappa(a, b, quadratic=bool(weights)) == pytest.approx(cohen_kappa_score(a, b, weights=weights))
    assert kappa([1, 5], [5, 1], quadratic=True) == -1.0 and np.isnan(kappa([2], [2], quadratic=True))
    with pytest.raises(LakeError, match="kappa: no items"):
        kappa([], [])
    with pytest.raises(ValueError, match="2 labels against 1"):
        kappa(["a", "b"], ["a"])


@pytest.mark.parametrize("shape", ["skewed", "few", "two"])
def test_no_estimate_lies_outside_its_interval(shape: str) -> None:
    rng = np.random.default_rng(3)
    count = {"skewed": 40, "few": 3, "two": 2}[shape]
    for _ in range(40):
        total = np.exp(3 * rng.normal(size=(count, 1)))
        found = bootstrap_mean(total, rng.integers(1, 4, (count, 1)).astype(float), n_resamples=200)
        assert found.low <= found.estimate + 1e-9 and found.high >= found.estimate - 1e-9
    moved = Interval(1.0, 1.5, 2.0, 9, "BCa")
    assert (moved.low, moved.high) == (1.0, 2.0)
    assert np.isnan(Interval(1.0, np.nan, np.nan, 1, "none").low)


@pytest.mark.parametrize("seed", range(5))
def test_kappa_is_scikit_learns(seed: int) -> None:
    from sklearn.metrics import cohen_kappa_score

    rng = np.random.default_rng(seed)
    a, b = (rng.integers(1, 3 + seed, 40).tolist() for _ in range(2))
    assert kappa(a, b) == pytest.approx(cohen_kappa_score(a, b), abs=1e-12)
    weighted = cohen_kappa_score(a, b, labels=list(range(8)), weights="quadratic")
    assert kappa(a, b, quadratic=True) == pytest.approx(weighted, abs=1e-12)
