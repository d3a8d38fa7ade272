"""Delta cosines and norms against explicit loops and a case worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from actlake.analyze.residual.delta import delta
from hypothesis import given, settings
from hypothesis import strategies as st


def loops(resid, mlp, weight=None, eps=0.0, parallel=False) -> dict[str, np.ndarray]:
    tokens, boundaries, width = resid.shape
    out = {n: np.full((tokens, boundaries), np.nan) for n in ("block_cos", "mlp_cos", "mlp_norm", "resid_norm")}

    def cos(a, b):
        size = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(x * x for x in b))
        return sum(x * y for x, y in zip(a, b, strict=True)) / size if size > 1e-8 else math.nan

    for t in range(tokens):
        for k in range(boundaries):
            here = [float(x) for x in resid[t, k]]
            out["resid_norm"][t, k] = math.sqrt(sum(x * x for x in here))
            if k == 0:
                continue
            before = [float(x) for x in resid[t, k - 1]]
            m = [float(x) for x in mlp[t, k - 1]]
            if k >= 2:
                out["block_cos"][t, k] = cos([x - y for x, y in zip(here, before, strict=True)], before)
            branch = m
            if weight is not None:
                rms = math.sqrt(sum(x * x for x in m) / width + eps)
                branch = [x / rms * float(w) for x, w in zip(m, weight[k - 1], strict=True)]
            entering = before if parallel else [x - y for x, y in zip(here, branch, strict=True)]
            out["mlp_cos"][t, k] = cos(m, entering)
            out["mlp_norm"][t, k] = math.sqrt(sum(x * x for x in m))
    return out


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 9999), st.integers(1, 4), st.integers(1, 5), st.integers(2, 9), st.booleans(), st.booleans())
def test_delta_matches_loops(seed, tokens, layers, width, normed, parallel) -> None:
    r = np.random.default_rng(seed)
    resid = r.standard_normal((tokens, layers + 1, width)).astype(np.float32)
    mlp = r.standard_normal((tokens, layers, width)).astype(np.float32)
    weight = r.random((layers, width)).astype(np.float32) if normed else None
    got = delta(resid, mlp, post_norm=(weight, 1e-6) if normed else None, parallel=parallel)
    for name, value in loops(resid, mlp, weight, 1e-6, parallel).items():
        assert got[name].shape == resid.shape[:2] and got[name].dtype == np.float32
        np.testing.assert_allclose(got[name], value, rtol=1e-4, atol=1e-4, err_msg=name)


def test_delta_by_hand() -> None:
    resid = np.array([[[1, 0], [3, 4], [3, 0], [3, 0]]], np.float32)
    mlp = np.array([[[0, 4], [0, -4], [0, 0]]], np.float32)
    got = delta(resid, mlp)
    # Block 1 writes (0, -4) onto (3, 4): cos = -16 / (4 * 5). Block 2 writes nothing.
    np.testing.assert_allclose(got["block_cos"], [[np.nan, np.nan, -0.8, np.nan]], atol=1e-7)
    # r_0 = (3, 4) - (0, 4) = (3, 0); r_1 = (3, 0) - (0, -4) = (3, 4).
    np.testing.assert_allclose(got["mlp_cos"], [[np.nan, 0, -0.8, np.nan]], atol=1e-7)
    np.testing.assert_allclose(got["mlp_norm"], [[np.nan, 4, 4, 0]])
    np.testing.assert_allclose(got["resid_norm"], [[1, 5, 3, 3]])
    parallel = delta(resid, mlp, parallel=True)  # the MLP of block 1 reads (3, 4), that of block 0 reads (1, 0)
    np.testing.assert_allclose(parallel["mlp_cos"], [[np.nan, 0, -0.8, np.nan]], atol=1e-7)


def test_post_norm_changes_what_entered_but_not_the_mlp_output() -> None:
    # RMS of (0, 2) is sqrt 2, so the branch is (0, sqrt 2) * weight (1, sqrt 2) = (0, 2); r = (2, 2) - (0, 2).
    resid = np.array([[[0, 0], [2, 2]]], np.float32)
    got = delta(resid, np.array([[[0, 2]]], np.float32), post_norm=(np.array([[1, 2**0.5]]), 0.0))
    np.testing.assert_allclose(got["mlp_cos"][0, 1], 0, atol=1e-6)
    np.testing.assert_allclose(got["mlp_norm"][0, 1], 2)


def test_large_norms_do_not_overflow() -> None:
    resid = np.full((1, 3, 4096), 3e5, np.float32)
    resid[:, 2] *= 2
    got = delta(resid, None)
    assert got["block_cos"][0, 2] == pytest.approx(1.0)
    assert got["resid_norm"][0, 0] == pytest.approx(3e5 * 64)
    assert np.isnan(got["mlp_cos"]).all() and np.isnan(got["mlp_norm"]).all()


def test_empty_and_wrong_shapes() -> None:
    assert delta(np.zeros((0, 3, 4), np.float32), np.zeros((0, 2, 4), np.float32))["block_cos"].shape == (0, 3)
    assert np.isnan(delta(np.zeros((2, 1, 4), np.float32), None)["block_cos"]).all()
    for arguments, words in (
        ((np.zeros((2, 3)), None), "expected (tokens, boundaries, d_model)"),
        ((np.zeros((2, 3, 4)), np.zeros((2, 3, 4))), "expected (2, 2, 4)"),
    ):
        with pytest.raises(ValueError) as caught:
            delta(*arguments)
        assert words in str(caught.value)
    with pytest.raises(ValueError, match="post_norm weights"):
        delta(np.zeros((2, 3, 4)), np.zeros((2, 2, 4)), post_norm=(np.ones(4), 1e-6))
