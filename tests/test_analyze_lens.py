"""The fused lens against a float64 softmax that is written out in full."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from actlake.analyze.lens.head import Head
from actlake.analyze.lens.logit_lens import Block, lens, pair_lens
from distances import entropy, js, kl
from hypothesis import given, settings
from hypothesis import strategies as st

LN2 = math.log(2.0)
HEADS = {
    "plain": {},
    "bias": {"bias": True},
    "softcap": {"softcap": 5.0},
    "scale": {"logit_scale": 0.3},
    "layer": {"norm": "layer", "norm_bias": True},
    "all": {"norm": "layer", "norm_bias": True, "bias": True, "softcap": 8.0, "logit_scale": 1.7, "eps": 0.1},
}


def make_head(seed: int, vocab: int = 77, width: int = 12, spread: float = 3.0, **options) -> Head:
    r = torch.Generator().manual_seed(seed)
    for name, size in (("bias", vocab), ("norm_bias", width)):
        if options.get(name):
            options[name] = torch.randn(size, generator=r)
    unembed = torch.randn(vocab, width, generator=r) * spread / width**0.5
    return Head(unembed, 1 + 0.2 * torch.randn(width, generator=r), **options)


def make_resid(seed: int, tokens: int, boundaries: int, width: int = 12) -> np.ndarray:
    r = np.random.default_rng(seed)
    return np.cumsum(r.standard_normal((tokens, boundaries, width)), axis=1).astype(np.float32)


def reference_logits(head: Head, resid: np.ndarray | torch.Tensor) -> torch.Tensor:
    """METHODS 3.1 in float64, written independently of Head's own methods."""
    x = torch.as_tensor(resid).double()
    if head.norm == "layer":
        x = x - x.mean(-1, keepdim=True)
    x = x / (x.pow(2).mean(-1, keepdim=True) + head.eps).sqrt() * head.norm_weight.double()
    if head.norm_bias is not None:
        x = x + head.norm_bias.double()
    z = x @ head.unembed.double().T
    if head.bias is not None:
        z = z + head.bias.double()
    z = z * head.logit_scale
    return z if head.softcap is None else head.softcap * torch.tanh(z / head.softcap)


def reference(head: Head, resid: np.ndarray, target: np.ndarray, mask: np.ndarray | None = None) -> dict:
    z = reference_logits(head, resid)
    if mask is not None:
        z = z.masked_fill(~torch.from_numpy(mask), -math.inf)
    logp, x = z.log_softmax(-1), torch.from_numpy(resid).double()
    at = z.gather(-1, torch.from_numpy(target).clamp_min(0)[:, None, None].expand(*z.shape[:2], 1))
    known = torch.from_numpy(target >= 0)[:, None]
    out = {
        "kl_layer_final": kl(logp, logp[:, -1:]),
        "kl_final_layer": kl(logp[:, -1:], logp),
        "js_next": torch.cat([js(logp[:, :-1], logp[:, 1:]), torch.full_like(z[:, :1, 0], math.nan)], 1),
        "entropy": entropy(logp),
        "top1": z.argmax(-1),
        "p_target": torch.where(known, (at - z.logsumexp(-1, keepdim=True)).exp()[..., 0], math.nan),
        "rank_target": torch.where(known, 1 + (z > at).sum(-1), 0),
        "cos_final": torch.cosine_similarity(x, x[:, -1:], dim=-1),
    }
    return {name: value.numpy() for name, value in out.items()}


def assert_same(got: dict, want: dict, atol: float = 2e-5) -> None:
    assert got.keys() == want.keys()
    for name, value in want.items():
        if value.dtype.kind in "ib":
            np.testing.assert_array_equal(got[name], value, err_msg=name)
        else:
            np.testing.assert_allclose(got[name], value, rtol=0, atol=atol, err_msg=name)


@pytest.mark.parametrize("options", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("tile", [1, 10, 77, 512])
def test_every_column_matches_float64(options: dict, tile: int) -> None:
    head, resid = make_head(1, **options), make_resid(2, 23, 5)
    target = np.random.default_rng(3).integers(-1, head.vocab, 23)
    got = lens(head, resid, target, block=Block(rows=37, tile=tile, buffer=1 << 20))
    assert_same(got, reference(head, resid, target))
    assert {k: v.dtype for k, v in got.items()} == {
        k: np.dtype(np.int32 if k in ("top1", "rank_target") else np.float32) for k in got
    }


@pytest.mark.parametrize("vocab, width, spread", [(5003, 64, 3.0), (20011, 96, 6.0)])
def test_default_block_holds_the_issue_tolerance_on_larger_vocabularies(vocab, width, spread) -> None:
    head, resid = make_head(4, vocab, width, spread), make_resid(5, 40, 4, width)
    target = np.random.default_rng(6).integers(0, vocab, 40)
    assert_same(lens(head, resid, target), reference(head, resid, target), atol=1e-4)


def test_wide_logits_lose_no_more_than_their_own_rounding() -> None:
    # With logits to +-66 the float32 product itself is off by 3e-5; what comes after must not add to it.
    head, resid = make_head(4, 20011, 96, 12.0), make_resid(5, 40, 4, 96)
    logp = head.logits(torch.from_numpy(resid)).double().log_softmax(-1)
    got = lens(head, resid, np.zeros(40, int))
    np.testing.assert_allclose(got["kl_final_layer"], kl(logp[:, -1:], logp), atol=1e-5)
    np.testing.assert_allclose(got["kl_layer_final"], kl(logp, logp[:, -1:]), atol=1e-5)
    np.testing.assert_allclose(got["js_next"][:, :-1], js(logp[:, :-1], logp[:, 1:]), atol=1e-5)


def test_offset_and_extreme_logits_stay_accurate() -> None:
    # Nearly one-hot rows: almost every exponential underflows, and KL runs to thousands of nats.
    head, resid = make_head(7, spread=400.0), make_resid(8, 15, 4)
    target = np.arange(15)
    got, want = lens(head, resid, target), reference(head, resid, target)
    for name, value in want.items():
        np.testing.assert_allclose(got[name], value, rtol=2e-5, atol=1e-3, err_msg=name)
    shifted = dataclasses.replace(make_head(7), bias=torch.full((77,), 300.0))
    assert_same(lens(shifted, resid, target), reference(make_head(7), resid, target), atol=3e-4)


@pytest.mark.parametrize("tokens, boundaries, vocab", [(0, 3, 7), (1, 1, 7), (1, 4, 1), (5, 1, 513), (3, 2, 512)])
def test_small_and_odd_shapes(tokens: int, boundaries: int, vocab: int) -> None:
    head, resid = make_head(9, vocab), make_resid(10, tokens, boundaries)
    target = np.zeros(tokens, np.int64)
    assert_same(lens(head, resid, target), reference(head, resid, target))


def test_two_token_vocabulary_by_hand() -> None:
    # Residual (a, b) with no norm to speak of: eps dominates, so logits are the residual itself.
    head = Head(torch.eye(2), torch.full((2,), 1e6), eps=1e12)
    resid = np.array([[[math.log(3.0), 0.0], [0.0, 0.0]]], np.float32)  # p = (3/4, 1/4), then (1/2, 1/2)
    got = lens(head, resid, np.array([1]))
    assert got["kl_layer_final"][0, 0] == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), abs=1e-6)
    assert got["kl_final_layer"][0, 0] == pytest.approx(0.5 * math.log(2 / 3) + 0.5 * math.log(2), abs=1e-6)
    middle = (0.625, 0.375)
    mixed = -sum(m * math.log(m) for m in middle)
    own = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert got["js_next"][0, 0] == pytest.approx(mixed - (own + LN2) / 2, abs=1e-6)
    assert np.isnan(got["js_next"][0, 1])
    np.testing.assert_allclose(got["p_target"], [[0.25, 0.5]], atol=1e-6)
    np.testing.assert_array_equal(got["rank_target"], [[2, 1]])
    np.testing.assert_array_equal(got["top1"], [[0, 0]])


def test_ties_take_the_lowest_id_and_do_not_lower_the_rank() -> None:
    unembed = torch.zeros(1100, 4)
    unembed[[3, 600, 1099]] = torch.tensor([1.0, 0.0, 0.0, 0.0])  # one winner per tile, equal to the bit
    head, resid = Head(unembed, torch.ones(4)), np.ones((3, 2, 4), np.float32)
    got = lens(head, resid, np.array([1099, 600, 5]))
    np.testing.assert_array_equal(got["top1"], 3)
    np.testing.assert_array_equal(got["rank_target"], [[1, 1], [1, 1], [4, 4]])


def test_js_can_be_left_out_without_touching_the_rest() -> None:
    head, resid, target = make_head(11), make_resid(12, 9, 4), np.arange(9)
    full, fast = lens(head, resid, target), lens(head, resid, target, js_next=False)
    assert np.isnan(fast["js_next"]).all()
    assert_same({k: v for k, v in fast.items() if k != "js_next"}, {k: v for k, v in full.items() if k != "js_next"})


def test_masked_tokens_do_not_matter() -> None:
    mask = np.random.default_rng(13).random(77) < 0.5
    mask[:20] = False  # whole tiles without a single kept token, the first among them
    head, resid = make_head(14), make_resid(15, 11, 3)
    target = np.flatnonzero(mask)[:11]
    block = Block(rows=16, tile=9, buffer=1 << 20)
    got = lens(head, resid, target, mask=mask, block=block)
    assert_same(got, reference(head, resid, target, mask))
    wild = dataclasses.replace(head, unembed=torch.where(torch.from_numpy(mask)[:, None], head.unembed, 1e3))
    assert_same(lens(wild, resid, target, mask=mask, block=block), got, atol=0.0)


def test_nan_rows_stay_visible_and_alone() -> None:
    resid = make_resid(16, 4, 3)
    resid[2, 0, 5] = np.nan
    head, target = make_head(17), np.zeros(4, int)
    got, clean = lens(head, resid, target), lens(head, make_resid(16, 4, 3), target)
    for name in ("kl_layer_final", "entropy", "p_target", "cos_final", "js_next"):
        assert np.isnan(got[name][2, 0])
        np.testing.assert_allclose(np.delete(got[name], 2, 0), np.delete(clean[name], 2, 0), atol=1e-6)


def test_progress_counts_tokens() -> None:
    seen: list[int] = []
    block = Block(rows=12, tile=32, buffer=1 << 20)
    lens(make_head(18), make_resid(19, 10, 3), np.zeros(10, int), block=block, progress=seen.append)
    assert seen == [4, 8, 10]
    seen.clear()
    resid = make_resid(19, 10, 3)
    pair_lens(make_head(18), make_head(20), resid, resid, block=block, progress=seen.append)
    assert seen[-1] == 10 and seen == sorted(seen)


def test_memory_bound_shrinks_the_block() -> None:
    assert Block(rows=1024, tile=512, buffer=256 << 20).chains(35, 262144, js=True) == 7
    assert Block(rows=1024, tile=512, buffer=256 << 20).chains(35, 262144, js=False) == 29
    assert Block(rows=8, tile=512, buffer=1).chains(35, 1000, js=True) == 1


def test_bad_shapes_get_one_clear_line() -> None:
    head, resid = make_head(23), make_resid(24, 4, 3)
    for call, words in (
        (lambda: lens(head, resid[..., :5], np.zeros(4, int)), "expected (tokens, boundaries, 12)"),
        (lambda: lens(head, resid, np.zeros(3, int)), "4 ids from -1 to 76"),
        (lambda: lens(head, resid, np.full(4, 77)), "4 ids from -1 to 76"),
        (lambda: lens(head, resid, np.zeros(4, int), mask=np.ones(5, bool)), "mask must be boolean"),
        (lambda: pair_lens(head, head, resid, resid[:3]), "must align"),
        (lambda: pair_lens(head, make_head(1, 78), resid, resid), "do not compare"),
    ):
        with pytest.raises(ValueError) as caught:
            call()
        assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("masked", [False, True])
def test_pair_lens_matches_float64(masked: bool) -> None:
    pt, it = make_head(30, width=12, bias=True), make_head(31, width=20, softcap=4.0, norm="layer")
    a, b = make_resid(32, 13, 4, 12), make_resid(33, 13, 4, 20)
    mask = np.random.default_rng(34).random(77) < 0.6 if masked else None
    keep = torch.ones(77, dtype=torch.bool) if mask is None else torch.from_numpy(mask)
    p, q = (reference_logits(h, x).masked_fill(~keep, -math.inf).log_softmax(-1) for h, x in ((pt, a), (it, b)))
    want = {"js": js(p, q), "kl_pt_it": kl(p, q), "kl_it_pt": kl(q, p), "top1_agree": p.argmax(-1) == q.argmax(-1)}
    got = pair_lens(pt, it, a, b, mask=mask, block=Block(rows=20, tile=16, buffer=1 << 20))
    assert_same(got, {k: v.numpy() for k, v in want.items()})
    swapped = pair_lens(it, pt, b, a, mask=mask)
    np.testing.assert_allclose(swapped["js"], got["js"], atol=1e-6)
    np.testing.assert_allclose(swapped["kl_pt_it"], got["kl_it_pt"], atol=1e-5)
    np.testing.assert_array_equal(swapped["top1_agree"], got["top1_agree"])


def test_pair_lens_of_a_model_with_itself_is_zero() -> None:
    head, resid = make_head(35), make_resid(36, 6, 3)
    got = pair_lens(head, head, resid, resid)
    for name in ("js", "kl_pt_it", "kl_it_pt"):
        np.testing.assert_allclose(got[name], 0.0, atol=2e-6)
    assert got["top1_agree"].all() and got["js"].shape == (6, 3)
    assert pair_lens(head, head, resid[:0], resid[:0])["js"].shape == (0, 3)


cases = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 10_000),
        "tokens": st.integers(1, 9),
        "boundaries": st.integers(1, 5),
        "vocab": st.integers(1, 60),
        "spread": st.sampled_from([0.0, 0.5, 5.0, 60.0]),
        "tile": st.integers(1, 64),
        "rows": st.integers(1, 40),
    }
)


@settings(max_examples=60, deadline=None)
@given(cases)
def test_properties_of_any_lens(case: dict) -> None:
    head = make_head(case["seed"], case["vocab"], spread=case["spread"])
    resid = make_resid(case["seed"], case["tokens"], case["boundaries"])
    target = np.random.default_rng(case["seed"]).integers(-1, case["vocab"], case["tokens"])
    got = lens(head, resid, target, block=Block(case["rows"], case["tile"], 1 << 16))
    assert (got["kl_layer_final"] >= 0).all() and (got["kl_final_layer"] >= 0).all()
    inner = got["js_next"][:, :-1]
    assert ((inner >= 0) & (inner <= np.float32(LN2))).all() and np.isnan(got["js_next"][:, -1]).all()
    assert (got["entropy"] >= 0).all() and (got["entropy"] <= math.log(case["vocab"]) + 1e-5).all()
    np.testing.assert_array_equal(got["kl_layer_final"][:, -1], 0)
    np.testing.assert_allclose(got["cos_final"][:, -1], 1, atol=1e-6)
    known = target >= 0
    np.testing.assert_array_equal(np.isnan(got["p_target"]), np.broadcast_to(~known[:, None], got["top1"].shape))
    rank = got["rank_target"]
    assert ((rank[known] >= 1) & (rank[known] <= case["vocab"])).all() and (rank[~known] == 0).all()
    assert (rank[got["top1"] == target[:, None]] == 1).all()
    # How the work is cut must not show.
    whole = lens(head, resid, target)
    for name in ("kl_layer_final", "kl_final_layer", "js_next", "entropy", "p_target"):
        np.testing.assert_allclose(got[name], whole[name], atol=1e-4, rtol=1e-5, err_msg=name)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(2, 6))
def test_identical_boundaries_do_not_diverge(seed: int, tokens: int, boundaries: int) -> None:
    resid = np.repeat(make_resid(seed, tokens, 1), boundaries, axis=1)
    got = lens(make_head(seed), resid, np.full(tokens, -1))
    for name in ("kl_layer_final", "kl_final_layer"):
        np.testing.assert_allclose(got[name], 0, atol=2e-6)
    np.testing.assert_allclose(got["js_next"][:, :-1], 0, atol=2e-6)
    np.testing.assert_allclose(got["cos_final"], 1, atol=1e-6)
    assert (got["top1"] == got["top1"][:, :1]).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 40), st.sampled_from([0.1, 3.0, 100.0]))
def test_divergences_of_small_cases(seed: int, vocab: int, spread: float) -> None:
    z = torch.randn(2, 5, vocab, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * spread
    p, q = z.log_softmax(-1)
    assert (kl(p, q) >= 0).all() and (js(p, q) >= 0).all() and (js(p, q) <= LN2).all()
    torch.testing.assert_close(js(p, q), js(q, p))
    torch.testing.assert_close(kl(p, p), torch.zeros(5, dtype=torch.float64))
    torch.testing.assert_close(js(p, p), torch.zeros(5, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(kl(p, q), torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(-1))


def test_divergences_with_masked_tokens_and_disjoint_supports() -> None:
    inf = math.inf
    p, q = torch.tensor([0.0, -inf, -inf]), torch.tensor([-inf, 0.0, -inf])
    assert float(js(p, q)) == pytest.approx(LN2)
    assert float(kl(p, q)) == inf and float(kl(p, p)) == 0 and float(entropy(p)) == 0
    assert float(entropy(torch.log(torch.tensor([0.5, 0.5, 0.0])))) == pytest.approx(LN2)
    assert torch.isnan(entropy(torch.tensor([math.nan, 0.0])))


def test_head_from_arrays_and_methods() -> None:
    r = np.random.default_rng(40)
    arrays = {
        "unembed": r.standard_normal((9, 4)).astype(np.float64),
        "norm_weight": r.standard_normal(4).astype(np.float32),
        "unembed_bias": r.standard_normal(9).astype(np.float32),
    }
    arrays["norm_weight"].flags.writeable = False
    head = Head.from_arrays(arrays, {"norm": "rms", "norm_eps": 1e-5, "softcap": None, "logit_scale": 2.0})
    assert (head.vocab, head.d_model, head.eps, head.norm_bias) == (9, 4, 1e-5, None)
    assert head.unembed.dtype == torch.float32
    resid = r.standard_normal((2, 3, 4)).astype(np.float32)
    logits = head.logits(torch.from_numpy(resid))
    np.testing.assert_allclose(logits, reference_logits(head, resid), atol=1e-5)
    token = torch.tensor([4, 8])
    score = head.score(head.normed(torch.from_numpy(resid)), token)
    np.testing.assert_allclose(score, logits[range(2), :, token], atol=1e-5)
    moved = head.to("cpu", torch.bfloat16)
    assert moved.unembed.dtype == torch.bfloat16 and moved.norm_weight.dtype == torch.float32
    assert moved.logits(torch.from_numpy(resid)).dtype == torch.float32


@pytest.mark.parametrize(
    "change, words",
    [
        ({"norm_weight": torch.ones(5)}, "norm_weight has shape (5,), expected (4,)"),
        ({"bias": torch.ones(4)}, "bias has shape (4,), expected (9,)"),
        ({"norm_bias": torch.ones(1, 4)}, "norm_bias has shape (1, 4)"),
        ({"unembed": torch.ones(9)}, "unembed has shape (9,)"),
        ({"norm": "batch"}, "expected 'rms' or 'layer'"),
        ({"softcap": 0.0}, "softcap is 0.0"),
    ],
)
def test_head_refuses_what_does_not_fit(change: dict, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        dataclasses.replace(Head(torch.ones(9, 4), torch.ones(4)), **change)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="unembed, norm_eps missing"):
        Head.from_arrays({"norm_weight": np.ones(4)}, {})
