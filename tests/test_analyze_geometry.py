"""Geometry against scikit-dimension on the points themselves, plain formulas, and clouds whose shape is known."""

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
import skdim
from actlake.analyze.residual.geometry import METRICS, geometry, levina_bickel, two_nn
from hypothesis import given, settings
from hypothesis import strategies as st


def cloud(count: int, dimension: int, width: int, seed: int = 0, noise: float = 0.0) -> np.ndarray:
    """Points of a flat piece of a space, turned into `width` dimensions and moved far from the origin."""
    rng = np.random.default_rng(seed)
    flat = rng.uniform(-1, 1, (count, dimension)) @ np.linalg.qr(rng.standard_normal((width, dimension)))[0].T
    return (flat + noise * rng.standard_normal((count, width)) + 3).astype(np.float32)


def stacked(*clouds: np.ndarray) -> np.ndarray:
    return np.stack(clouds, axis=1)


def at(found: dict[str, np.ndarray], boundary: int = 0, row: int = 0) -> dict[str, float]:
    return {name: values[row, boundary] for name, values in found.items()}


def by_svd(x: np.ndarray) -> dict[str, float]:
    """Rank metrics from the singular values of the centred points, as METHODS writes them."""
    s = np.linalg.svd(x.astype(np.float64) - x.astype(np.float64).mean(0), compute_uv=False)
    lam = s[s > 1e-7 * s[0]] ** 2 / (len(x) - 1)
    p = lam / lam.sum()
    entropy = -sum(q * math.log(q) for q in p)
    shares = {f"pc{k}": lam[:k].sum() / lam.sum() for k in (1, 5, 10)}
    return {"participation_ratio": lam.sum() ** 2 / (lam**2).sum(), "effective_rank": math.exp(entropy), **shares}


def by_loops(x: np.ndarray, neighbours: int = 20) -> dict[str, float]:
    """TwoNN (a line through the origin, 10 % discarded) and the maximum likelihood estimate, one point at a time."""
    x = x.astype(np.float64)
    near = [sorted(math.dist(a, b) for j, b in enumerate(x) if j != i)[:neighbours] for i, a in enumerate(x)]
    ratios = sorted(r[1] / r[0] for r in near)
    n, kept = len(ratios), int(len(ratios) * 0.9)
    u = [math.log(m) for m in ratios[:kept]]
    v = [-math.log(1 - i / n) for i in range(1, kept + 1)]
    inverse = [sum(math.log(r[-1] / d) for d in r[:-1]) / (neighbours - 1) for r in near]
    return {
        "twonn": sum(a * b for a, b in zip(u, v, strict=True)) / sum(a * a for a in u),
        "mle": 1 / (sum(inverse) / n),
    }


@settings(max_examples=15)
@given(st.integers(0, 9999), st.integers(30, 60), st.integers(1, 8), st.integers(9, 40))
def test_estimates_match_the_library_and_plain_formulas(seed: int, count: int, dimension: int, width: int) -> None:
    x = cloud(count, dimension, width, seed, noise=0.01)
    found = at(geometry(stacked(x), draws=0))
    for name, value in {**by_svd(x), **by_loops(x)}.items():
        assert found[name] == pytest.approx(value, rel=1e-6), name
    double = x.astype(np.float64)
    assert found["lpca"] == skdim.id.lPCA().fit(double).dimension_
    assert found["twonn"] == pytest.approx(skdim.id.TwoNN().fit(double).dimension_, rel=1e-5)
    assert found["mle"] == pytest.approx(skdim.id.MLE().fit(double).dimension_, rel=1e-5)


def test_known_shapes() -> None:
    flat = at(geometry(stacked(cloud(500, 3, 50)), draws=0))
    assert 2.5 < flat["twonn"] < 3.5 and 2.4 < flat["mle"] < 3.3 and flat["lpca"] == 3
    assert (
        2.8 < flat["participation_ratio"] <= 3 and 2.8 < flat["effective_rank"] <= 3 and flat["pc5"] == pytest.approx(1)
    )
    line = at(geometry(stacked(cloud(40, 1, 5)), draws=0))
    assert line == pytest.approx({**line, **dict.fromkeys(("pc1", "participation_ratio", "effective_rank", "lpca"), 1)})
    assert 0.6 < line["twonn"] < 1.5


def test_draws_are_the_same_subsamples_everywhere() -> None:
    x, y = cloud(50, 4, 12, 1, 0.1), cloud(50, 2, 12, 2, 0.1)
    both, alone = geometry(stacked(x, y), draws=5), geometry(stacked(y), draws=5)
    rng = np.random.default_rng(42)
    for row in range(1, 6):
        sample = np.sort(rng.choice(50, 40, replace=False))
        for name, value in by_svd(x[sample]).items():
            assert both[name][row, 0] == pytest.approx(value, rel=1e-6)
        assert both["twonn"][row, 0] == pytest.approx(by_loops(x[sample])["twonn"], rel=1e-6)
    for name in METRICS:
        np.testing.assert_array_equal(both[name][:, 1], alone[name][:, 0])
        assert both[name].shape == (6, 2)


def test_equal_points_are_undefined_and_copies_count_once() -> None:
    same = np.broadcast_to(np.linspace(-5, 1e4, 12, dtype=np.float32), (40, 12))
    x = cloud(60, 3, 12, 3, 0.01)
    twice = np.concatenate([x, x[:20]])
    found = geometry(stacked(twice, np.broadcast_to(same[0], (80, 12))), draws=3)
    for name in METRICS:
        assert np.isnan(found[name][:, 1]).all(), name
        assert np.isfinite(found[name][:, 0]).all(), name
    single = at(geometry(stacked(x), draws=0))
    for name in ("twonn", "mle"):
        assert at(found)[name] == pytest.approx(single[name], rel=1e-9)
    nearly = same + np.random.default_rng(0).uniform(-1e-4, 1e-4, same.shape).astype(
        np.float32
    )  # below float32's steps
    assert all(np.isnan(values).all() for values in geometry(stacked(nearly), draws=1).values())
    few = at(geometry(stacked(np.tile(x[:10], (4, 1))), draws=0))
    assert np.isnan(few["twonn"]) and np.isnan(few["mle"]) and few["participation_ratio"] > 1


def test_too_few_points_and_nan() -> None:
    with pytest.raises(ValueError, match="30 prompts or more"):
        geometry(stacked(cloud(29, 3, 6)))
    bad = cloud(40, 3, 6)
    bad[3, 2] = np.inf
    with pytest.raises(ValueError, match="not finite"):
        geometry(stacked(bad))


def test_jackknife_intervals_of_L8_cover() -> None:
    """On clouds of known make: near 95 % of the intervals hold the mean estimate (few clouds here: benchmarks/jackknife.py)."""
    spec = importlib.util.spec_from_file_location(
        "jackknife", Path(__file__).parent.parent / "benchmarks" / "jackknife.py"
    )
    assert spec and spec.loader
    jackknife = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(jackknife)
    for kind in ("flat", "decaying"):
        found = jackknife.coverage(kind, 60, 24, draws=40)
        assert min(holds for holds, *_ in found.values()) >= 0.8
        assert np.mean([holds for holds, *_ in found.values()]) > 0.9
    # The plain percentiles of subsamples miss what all points give.
    assert min(plain for *_, plain in found.values()) < 0.6


@pytest.mark.parametrize("seed", range(4))
def test_estimators_of_dimension_are_scikit_dimensions(seed: int) -> None:
    rng = np.random.default_rng(seed)
    near = np.sort(rng.gamma(seed + 1.0, size=(60 + seed, 20)), axis=1)
    assert two_nn(near[:, 0], near[:, 1]) == pytest.approx(
        skdim.id.TwoNN(dist=True).fit(near[:, :2]).dimension_, rel=1e-12
    )
    mle = skdim.id.MLE().fit(near, precomputed_knn_arrays=(near, None), n_neighbors=20).dimension_
    assert levina_bickel(near) == pytest.approx(mle, rel=1e-12)
