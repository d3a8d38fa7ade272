"""Ridge, R2 and KL gradients against scikit-learn, NumPy's least squares and autograd in float64."""

import numpy as np
import pytest
import torch
from actlake.analyze.lens import tuned_lens
from actlake.analyze.lens.head import Head
from actlake.analyze.residual.ridge import Moments, kl_gradient, r2, ridge, winsorised
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge


def rows(n: int, layers: int, width: int, seed: int, noise: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """x far from zero in a few dimensions, as residuals are, and y that depends on it."""
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((n, layers, width)) + 1e3 * np.eye(width)[0]).astype(np.float32)
    y = np.einsum("nld,ld->nl", x - x.mean(0), rng.standard_normal((layers, width)))
    return x, y + noise * rng.standard_normal((n, layers)) - 7


def moments(x: np.ndarray, y: np.ndarray, offset: np.ndarray, step: int = 7) -> Moments:
    found = Moments(offset)
    for start in range(0, len(x), step):
        found.add(x[start : start + step], y[start : start + step])
    return found


@settings(max_examples=20)
@given(
    st.integers(0, 9999), st.integers(20, 60), st.integers(1, 3), st.integers(1, 8), st.sampled_from([0.1, 1.0, 50.0])
)
def test_ridge_and_r2_match_scikit_learn(seed: int, n: int, layers: int, width: int, strength: float) -> None:
    x, y = rows(n, layers, width, seed)
    held = n // 4
    train, test = (moments(a, b, x[:5].mean(0)) for a, b in ((x[held:], y[held:]), (x[:held], y[:held])))
    fit = ridge(train, strength)
    for layer in range(layers):
        reference = Ridge(alpha=strength).fit(x[held:, layer].astype(np.float64), y[held:, layer])
        np.testing.assert_allclose(fit.w[layer], reference.coef_, rtol=1e-6, atol=1e-8)
        for part, found in ((slice(held, None), r2(fit, train)), (slice(held), r2(fit, test))):
            want = reference.score(x[part, layer].astype(np.float64), y[part, layer])
            assert found[layer] == pytest.approx(want, rel=1e-6, abs=1e-8)
    train += test
    everything = ridge(train, strength)
    for layer in range(layers):
        whole = Ridge(alpha=strength).fit(x[:, layer].astype(np.float64), y[:, layer])
        np.testing.assert_allclose(everything.direction[layer], whole.coef_ / np.linalg.norm(whole.coef_), atol=1e-6)


def test_without_penalty_it_is_least_squares() -> None:
    x, y = rows(80, 1, 5, 1)
    fit = ridge(moments(x, y, np.zeros((1, 5))), 0.0)
    design = np.c_[x[:, 0].astype(np.float64), np.ones(80)]
    want = np.linalg.lstsq(design, y[:, 0], rcond=None)[0]
    np.testing.assert_allclose([*fit.w[0], fit.b[0]], want, rtol=1e-6)


def test_held_out_is_worse_than_in_sample_and_constants_are_undefined() -> None:
    x, y = rows(60, 2, 20, 2, noise=20)
    y[:, 1] = 0  # KL of the last layer to itself
    train, test = moments(x[:40], y[:40], x[0]), moments(x[40:], y[40:], x[0])
    fit = ridge(train)
    assert r2(fit, test)[0] < r2(fit, train)[0] < 1
    assert np.isnan(r2(fit, train)[1]) and np.isnan(fit.direction[1]).all()
    assert np.linalg.norm(fit.direction[0]) == pytest.approx(1)


def test_winsorised_per_prompt() -> None:
    rng = np.random.default_rng(0)
    prompt = np.repeat([0, 2, 3], [30, 4, 9])
    values = rng.standard_cauchy((43, 3))
    got = winsorised(values, prompt)
    for p in (0, 3):
        for layer in range(3):
            here = sorted(values[prompt == p, layer])
            at = [(len(here) - 1) * q for q in (0.05, 0.95)]
            low, high = (here[int(a)] + (a - int(a)) * (here[int(a) + 1] - here[int(a)]) for a in at)
            want = [min(max(v, low), high) for v in values[prompt == p, layer]]
            np.testing.assert_allclose(got[prompt == p, layer], want, rtol=1e-12)
    np.testing.assert_array_equal(got[prompt == 2], values[prompt == 2])  # four tokens are too few


def head(kind: str, seed: int = 0, vocab: int = 23, width: int = 6) -> Head:
    g = torch.Generator().manual_seed(seed)

    def draw(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=g)

    more = (
        {"bias": draw(vocab), "norm_bias": draw(width), "softcap": 3.0, "logit_scale": 0.5} if kind == "layer" else {}
    )
    return Head(unembed=draw(vocab, width), norm_weight=1 + 0.1 * draw(width), norm=kind, eps=1e-5, **more)


@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize("budget", [1, 400, 1 << 26])
@pytest.mark.parametrize("probed", [False, True])
def test_kl_gradient_matches_autograd(kind: str, budget: int, probed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuned_lens, "LOGIT_BYTES", budget)
    h = head(kind)
    resid = np.random.default_rng(1).standard_normal((5, 4, 6)).astype(np.float32)
    leaf = torch.tensor(resid, dtype=torch.float64, requires_grad=True)
    probes = tuned_lens.Probes(torch.randn(3, 6, 6), torch.randn(3, 6)) if probed else None
    x = leaf
    if probes:
        read = torch.einsum("nbd,bed->nbe", leaf[:, :-1], probes.weight.double()) + probes.bias.double()
        x = torch.cat([read, leaf[:, -1:]], dim=1)
    if kind == "layer":
        normed = torch.nn.functional.layer_norm(x, (6,), h.norm_weight.double(), h.norm_bias.double(), h.eps)
        z = (normed @ h.unembed.double().T + h.bias.double()) * h.logit_scale
        z = h.softcap * torch.tanh(z / h.softcap)
    else:
        z = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + h.eps) * h.norm_weight.double() @ h.unembed.double().T
    logp = z.log_softmax(-1)
    final = logp[:, -1:].detach()
    (final.exp() * (final - logp)).sum().backward()
    got = kl_gradient(h, resid, probes=probes)
    np.testing.assert_allclose(got, leaf.grad.sum(0).numpy(), rtol=1e-4, atol=1e-5)
    assert (got[-1] == 0).all()
