"""Effect sizes and dose correlations against plain loops, scipy and what must hold whatever the numbers."""

import numpy as np
import pytest
from actlake.analyze.stats.effects import dose_correlation, effect_size
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import stats

DOSES = np.array([5.0, 3.0, 1.0, 0.5, -1.0, -3.0])


def d_of(a: np.ndarray, b: np.ndarray) -> float:
    """Cohen's d of equally many values."""
    return (np.mean(a) - np.mean(b)) / np.sqrt((np.var(a, ddof=1) + np.var(b, ddof=1)) / 2)


def test_d_is_the_formula_and_its_interval_draws_prompts_with_both_values() -> None:
    r = np.random.default_rng(0)
    b = r.normal(size=80)
    a = b + 0.5 + 0.05 * r.normal(size=80)
    found = effect_size(a, b)
    assert found.estimate == pytest.approx(d_of(a, b)) and (found.n, found.method) == (80, "BCa")
    draws = r.integers(80, size=(4000, 80))
    plain = np.quantile([d_of(a[index], b[index]) for index in draws], [0.025, 0.975])
    assert np.allclose([found.low, found.high], plain, atol=0.05)
    # Two samples apart, each drawn on its own, would be far less sure of a change that all prompts share.
    apart = np.quantile([d_of(a[i], b[j]) for i, j in zip(draws, draws[::-1], strict=True)], [0.025, 0.975])
    assert found.high - found.low < 0.6 * (apart[1] - apart[0])


def test_prompts_without_a_score_on_either_side_are_left_out() -> None:
    r = np.random.default_rng(1)
    a, b = r.normal(size=(2, 30))
    a[3], b[7] = np.nan, np.nan
    both = np.isfinite(a) & np.isfinite(b)
    found = effect_size(a, b)
    assert found == effect_size(a[both], b[both]) and found.n == 28
    assert found.estimate == pytest.approx(d_of(a[both], b[both]))


def test_what_has_no_effect_size() -> None:
    many, same = np.arange(12.0), np.array([1.0, 2.0, 3.0])
    found = effect_size(many, many)
    assert (found.estimate, found.low, found.high) == (0, 0, 0)
    few = effect_size(
        same, same
    )  # a ninth of the resamples draw one prompt three times and have no spread to divide by
    assert few.estimate == 0 and np.isnan([few.low, few.high]).all()
    for a, b in ((np.ones(4), np.zeros(4)), (np.ones(1), np.zeros(1)), (np.full(3, np.nan), same)):
        found = effect_size(a, b)
        assert np.isnan([found.estimate, found.low, found.high]).all() and found.method == "none"
    with pytest.raises(ValueError, match="same prompts"):
        effect_size(same, same[:2])


def test_rho_is_scipys_of_the_means_and_its_interval_draws_prompts() -> None:
    r = np.random.default_rng(2)
    values = r.normal(size=(50, 1)) + 0.1 * DOSES + 0.6 * r.normal(size=(50, len(DOSES)))
    values[r.random(values.shape) < 0.1] = np.nan
    found, p = dose_correlation(DOSES, values)
    whole = stats.spearmanr(DOSES, np.nanmean(values, axis=0))
    assert (found.estimate, p) == pytest.approx((whole.statistic, whole.pvalue)) and found.n == 50
    draws = [stats.spearmanr(DOSES, np.nanmean(values[r.integers(50, size=50)], axis=0)).statistic for _ in range(2000)]
    # Rank correlations of six doses lie on a grid, where BCa and percentile limits may be a step apart.
    assert np.quantile(draws, 0.005) <= found.low < found.high <= 1
    assert found.low <= np.quantile(draws, 0.1)


def test_a_flat_curve_has_no_trend() -> None:
    found, p = dose_correlation(DOSES, np.ones((9, len(DOSES))))
    assert np.isnan([found.estimate, found.low, p]).all() and found.n == 9
    # One prompt makes the whole trend: without it, as in a third of the resamples, there is none.
    one = np.ones((9, len(DOSES)))
    one[0] = DOSES
    found, _ = dose_correlation(DOSES, one)
    assert (found.estimate, found.low, found.high) == (1, 0, 1)
    assert np.isnan(dose_correlation(DOSES[:2], one[:, :2])[0].estimate)
    with pytest.raises(ValueError, match="do not fit"):
        dose_correlation(DOSES, one[:, :2])


@given(
    arrays.arrays(
        np.float64, st.tuples(st.integers(0, 6), st.integers(0, 5)), elements=st.sampled_from([0, 1, 2, np.nan])
    )
)
def test_any_scores_will_do(values: np.ndarray) -> None:
    doses = np.arange(values.shape[1], dtype=float)
    found, p = dose_correlation(doses, values)
    assert np.isnan(found.estimate) or (abs(found.estimate) <= 1 + 1e-9 and 0 <= p <= 1)
    for column in values.T:
        line = effect_size(column, values[:, 0])
        assert np.isnan(line.estimate) or not (line.low > line.high)
