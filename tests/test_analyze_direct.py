"""Direct effects without a model, against Hugging Face's own norm and head and against replays where both are the same."""

import numpy as np
import pytest
import tiny
import torch
from actlake.analyze.lens.head import Head
from actlake.analyze.residual import operators
from actlake.analyze.residual.direct import logits_of, mlp_direct_effects
from actlake.analyze.residual.directions import random_units
from actlake.capture.edit.edits import Scale, Zero
from actlake.capture.edit.replay import load_late, open_start, replay_whole
from actlake.store.artifacts.models import read_head
from actlake.store.captures.reader import Capture
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

FAMILIES = list(tiny.FAMILIES)
WIDTH = tiny.SIZES["hidden_size"]


@pytest.mark.parametrize("family", FAMILIES)
def test_direct_effects_of_a_captured_family(tmp_path, pairs, family):
    pair = pairs(family)
    layout = tiny.capture(tmp_path / "lake", pair, tiny.BARE, variants=("it",))
    arrays, attrs = read_head(layout, family, "it")
    head = Head.from_arrays(arrays, attrs)
    post = (arrays["post_norm_weight"], attrs["post_norm_eps"]) if "post_norm_weight" in arrays else None
    start = open_start(layout, f"{family}-it", "bare", 2)
    stored = Capture(start.path)
    resid, mlp = stored.array("resid")[:], stored.array("mlp_out")[:]
    ids = np.random.default_rng(0).integers(0, head.vocab, (len(resid), 3))
    found = mlp_direct_effects(head, resid[:, -1], mlp, ids, post_norm=post)

    # Hugging Face's norms and unembedding on the sum of what its blocks wrote, less one branch.
    hf = AutoModelForCausalLM.from_pretrained(pair.it.path)
    blocks = hf.get_submodule(tiny.FAMILIES[family].blocks)
    parent = hf.get_submodule(tiny.FAMILIES[family].blocks.rpartition(".")[0])
    norm = next(getattr(parent, name) for name in ("norm", "ln_f", "final_layer_norm") if hasattr(parent, name))

    def read(x: torch.Tensor) -> np.ndarray:
        z = hf.get_output_embeddings()(norm(x)) * head.logit_scale
        z = torch.tanh(z / head.softcap) * head.softcap if head.softcap else z
        return z.gather(1, torch.from_numpy(ids)).numpy()

    with torch.no_grad():
        final = torch.from_numpy(resid[:, -1])
        for layer, block in enumerate(blocks):
            branch = torch.from_numpy(mlp[:, layer])
            if tiny.FAMILIES[family].post_norms:
                branch = getattr(block, tiny.FAMILIES[family].post_norms[1])(branch)
            assert np.abs(found[:, layer] - (read(final) - read(final - branch))).max() < 1e-4

    # The last block has nothing after it: taking its branch away and running it without its MLP are the same.
    late = load_late(layout, f"{family}-it", 2, tiny.catalog_of(pair))
    replayed = replay_whole(late, start, [Zero(blocks=(2,))], keep=(), logits="full").arrays["logits"]
    whole = logits_of(head, final, torch.from_numpy(ids)).numpy()
    assert np.abs(whole - found[:, 2] - np.take_along_axis(replayed, ids, 1)).max() < 1e-4
    assert np.abs(found[:, 2]).max() > 0.01

    # So is an edit of the final residual.
    unit = random_units((2,), WIDTH)
    offline = head.logits(operators.scale(final, torch.from_numpy(unit[2]).float(), 3.0)).numpy()
    replayed = replay_whole(late, start, [Scale(unit, 3.0, site="block")], keep=(), logits="full").arrays["logits"]
    assert np.abs(offline - replayed).max() < 1e-4


@given(seed=st.integers(0, 2**16), tokens=st.integers(1, 5), read=st.integers(1, 4))
def test_chosen_logits_are_those_of_the_head(seed, tokens, read):
    rng = torch.Generator().manual_seed(seed)
    head = Head(
        torch.randn(11, 8, generator=rng),
        torch.randn(8, generator=rng),
        bias=torch.randn(11, generator=rng),
        softcap=5.0,
    )
    x = torch.randn(tokens, 8, generator=rng)
    ids = torch.randint(0, 11, (tokens, read), generator=rng)
    assert torch.allclose(logits_of(head, x, ids), head.logits(x).gather(1, ids), atol=1e-5)


def test_long_inputs_run_in_parts(monkeypatch):
    rng = np.random.default_rng(0)
    head = tiny.head(8, 20)
    final, mlp, ids = rng.standard_normal((7, 8)), rng.standard_normal((7, 3, 8)), rng.integers(0, 20, (7, 2))
    whole = mlp_direct_effects(head, final, mlp, ids)
    monkeypatch.setattr("actlake.analyze.residual.direct.ROWS", 40)
    assert np.allclose(mlp_direct_effects(head, final, mlp, ids), whole, atol=1e-6)
    assert whole.shape == (7, 3, 2) and not mlp_direct_effects(head, final, 0 * mlp, ids).any()


@pytest.mark.parametrize(
    ("shapes", "says"),
    [
        (((4, 8), (4, 8), (4, 2)), "final .4, 8. and mlp_out .4, 8., expected"),
        (((4, 8), (5, 3, 8), (4, 2)), "expected .tokens, 8. and .tokens, layers, 8."),
        (((4, 8), (4, 3, 8), (4,)), "ids have shape .4,., expected .4, tokens to read."),
    ],
)
def test_shapes_that_do_not_fit(shapes, says):
    final, mlp, ids = (np.zeros(shape, np.float32) for shape in shapes)
    with pytest.raises(ValueError, match=says):
        mlp_direct_effects(tiny.head(8, 20), final, mlp, ids.astype(np.int64))
    with pytest.raises(ValueError, match="post_norm weights have shape"):
        post = (np.ones((2, 8), np.float32), 1e-6)
        mlp_direct_effects(
            tiny.head(8, 20), np.zeros((4, 8)), np.zeros((4, 3, 8)), np.zeros((4, 2), int), post_norm=post
        )


@given(seed=st.integers(0, 2**16), alpha=st.floats(-5, 5))
def test_random_changes_match_the_real_one_in_size(seed, alpha):
    rng = torch.Generator().manual_seed(seed)
    m, x, delta, random = (torch.randn(3, 12, generator=rng, dtype=torch.float64) for _ in range(4))
    d, u = (torch.nn.functional.normalize(vector, dim=0) for vector in (x[0], random[0]))
    change, true = operators.scale_matched(m, d, u, alpha) - m, operators.scale(m, d, alpha) - m
    assert torch.allclose(change.norm(dim=-1), true.norm(dim=-1)) and torch.allclose(change, (change @ u)[:, None] * u)
    like = operators.random_like(delta, x, u)
    towards = torch.nn.functional.normalize(x, dim=-1)
    assert torch.allclose((like * towards).sum(-1), (delta * towards).sum(-1))
    assert torch.allclose(like.norm(dim=-1), delta.norm(dim=-1))
    assert torch.allclose(operators.scale(m, d, 0.0) @ d, torch.zeros(3, dtype=torch.float64))
