"""Directions, their resamples and splits against plain loops, and differences whose direction is known."""

import math

import numpy as np
import pytest
from actlake.analyze.residual.directions import (
    agreement,
    components,
    convergence,
    direction,
    generated,
    record_means,
    resamples,
    splits,
    stability,
    subsets,
)
from hypothesis import given
from hypothesis import strategies as st
from sklearn.decomposition import PCA


def differences(records: int, width: int, seed: int = 0, spread: float = 1.0) -> np.ndarray:
    """Records that differ along the first axis by 2, and at random elsewhere."""
    rng = np.random.default_rng(seed)
    return (spread * rng.standard_normal((records, width)) + 2 * np.eye(width)[0]).astype(np.float32)


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 5)), min_size=1, max_size=6))
def test_generated_counts_from_the_first_token_after_the_prompt(lengths: list[tuple[int, int]]) -> None:
    prompt, step, want = [], [], []
    for p, (start, reply) in enumerate(lengths):
        size = start + reply
        prompt += [p] * size
        step += [q - start + 1 if start - 1 <= q < size - 1 else -1 for q in range(size)]
        want += [q - start if q >= start else -1 for q in range(size)]
    assert generated(np.array(prompt), np.array(step)).tolist() == want


@given(st.integers(0, 9999), st.integers(1, 4), st.integers(1, 5))
def test_record_means_match_loops(seed: int, layers: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    record = np.repeat([-1, 0, -1, 2, 3], rng.integers(1, 6, 5))
    values = (1e3 * rng.standard_normal((len(record), layers, width))).astype(np.float32)
    found = record_means(values, record, 5)
    assert found.shape == (5, layers, width) and found.dtype == np.float32
    for r in range(5):
        rows = [values[i].astype(np.float64) for i in range(len(record)) if record[i] == r]
        want = sum(rows) / len(rows) if rows else np.full((layers, width), np.nan)
        np.testing.assert_allclose(found[r], want, rtol=1e-6, atol=1e-4)
    assert np.isnan(record_means(values, np.full(len(record), -1), 2)).all()


def test_token_counts_as_weights_pool_tokens() -> None:
    rng = np.random.default_rng(0)
    counts = [3, 9, 1]
    it, pt = ([rng.standard_normal((n, 6)) for n in counts] for _ in range(2))
    pooled = np.concatenate(it).sum(0) / sum(counts) - np.concatenate(pt).sum(0) / sum(counts)
    means = np.stack([a.mean(0) - b.mean(0) for a, b in zip(it, pt, strict=True)])
    np.testing.assert_allclose(direction(means, np.array(counts)), pooled / np.linalg.norm(pooled), rtol=1e-12)
    equal = means.mean(0)
    np.testing.assert_allclose(direction(means), equal / np.linalg.norm(equal), rtol=1e-12)
    assert np.isnan(direction(means - equal)).all()  # no mean difference, no direction


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / math.sqrt(float(a @ a)) / math.sqrt(float(b @ b)))


def test_stability_matches_loops() -> None:
    d = differences(40, 8).astype(np.float64)
    found = stability(d, draws=6)
    rng = np.random.default_rng(42)
    means = [np.mean([d[i] for i in rng.choice(40, 40)], axis=0) for _ in range(6)]
    np.testing.assert_allclose(found["canonical"], [cosine(m, d.mean(0)) for m in means], rtol=1e-12)
    pairs = [cosine(means[i], means[j]) for i in range(6) for j in range(i + 1, 6)]
    np.testing.assert_allclose(np.sort(found["pairwise"]), np.sort(pairs), rtol=1e-12)
    assert resamples(40, 6).sum(axis=1).tolist() == [40] * 6


def test_more_records_agree_better() -> None:
    d = differences(400, 32, spread=3.0)
    means = [convergence(d, size).mean() for size in (10, 50, 200)]
    assert means[0] < means[1] < means[2] < 1
    np.testing.assert_allclose(convergence(d, 400), 1.0)
    assert (subsets(400, 50, 20).sum(axis=1) == 50).all() and len({tuple(w) for w in subsets(400, 50, 20)}) == 20


def test_agreement_is_the_cosine_of_both_means() -> None:
    a, b = differences(30, 5, 1), differences(30, 5, 2)
    weight = resamples(30, 4)
    got = agreement(a, b, weight, weight)
    for k in range(4):
        rows = np.repeat(np.arange(30), weight[k])
        assert got[k] == pytest.approx(cosine(a[rows].astype(float).mean(0), b[rows].astype(float).mean(0)), rel=1e-9)
    assert agreement(a, -a, np.ones(30), np.ones(30)) == pytest.approx(-1)


def test_splits_by_contrast() -> None:
    found = splits(np.array([0.1, 5.0, -2.0, 0.1, 3.0]), 2)
    assert found["top"].tolist() == [0, 1, 0, 0, 1] and found["bottom"].tolist() == [0, 0, 1, 1, 0]
    assert found["random"].sum() == 2 and found["all"].sum() == 5


@pytest.mark.parametrize(("records", "width"), [(50, 7), (9, 30)])
def test_components_match_scikit_learn(records: int, width: int) -> None:
    d = differences(records, width, 3).astype(np.float64)
    got, pca = components(d, 10), PCA().fit(d)
    ratios = pca.explained_variance_ratio_[:10]
    np.testing.assert_allclose(got["share"][: len(ratios)], ratios, atol=1e-9)
    assert (got["share"][len(ratios) :] == 0).all()
    assert got["pc1_mean"] == pytest.approx(abs(cosine(pca.components_[0], d.mean(0))), abs=1e-6)
    assert got["mean_share"] == pytest.approx(records * (d.mean(0) ** 2).sum() / (d**2).sum())


def test_equal_differences_have_no_components() -> None:
    got = components(np.tile(np.arange(4.0), (6, 1)))
    assert np.isnan(got["share"]).all() and np.isnan(got["pc1_mean"]) and np.isnan(got["mean_share"])
