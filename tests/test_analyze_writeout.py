"""What an MLP writes where it stands, against Hugging Face's own forward, norms and unembedding."""

import numpy as np
import pytest
import tiny
import torch
from actlake.analyze.lens.head import Head
from actlake.analyze.residual.mechanism import writeout
from actlake.store.artifacts.models import read_head
from actlake.store.captures.reader import Capture, find_capture
from transformers import AutoModelForCausalLM


@pytest.mark.parametrize("family", ["llama", "gemma3", "olmo2", "gpt_neox"])
def test_support_of_a_captured_family(tmp_path, pairs, family):
    pair = pairs(family)
    layout = tiny.capture(tmp_path / "lake", pair, tiny.BARE, variants=("it",))
    arrays, attrs = read_head(layout, f"{family}-it")
    head = Head.from_arrays(arrays, attrs)
    post = (arrays["post_norm_weight"], attrs["post_norm_eps"]) if "post_norm_weight" in arrays else None
    stored = Capture(find_capture(layout, f"{family}-it", "bare"))
    resid, mlp = stored.array("resid")[:], stored.array("mlp_out")[:]
    ids = np.random.default_rng(0).integers(0, head.vocab, (len(resid), 2))
    found = writeout(head, resid, mlp, ids, post_norm=post, parallel=bool(attrs["parallel"]))

    hf = AutoModelForCausalLM.from_pretrained(pair.it.path).double()
    blocks = hf.get_submodule(tiny.FAMILIES[family].blocks)
    parent = hf.get_submodule(tiny.FAMILIES[family].blocks.rpartition(".")[0])
    norm = next(getattr(parent, name) for name in ("norm", "ln_f", "final_layer_norm") if hasattr(parent, name))

    def read(x: torch.Tensor) -> np.ndarray:
        z = hf.get_output_embeddings()(norm(x)) * head.logit_scale
        z = torch.tanh(z / head.softcap) * head.softcap if head.softcap else z
        return z.gather(1, torch.from_numpy(ids)).numpy()

    with torch.no_grad():
        for layer, block in enumerate(blocks):
            u = torch.from_numpy(mlp[:, layer]).double()
            if tiny.FAMILIES[family].post_norms:
                u = getattr(block, tiny.FAMILIES[family].post_norms[1])(u)
            r = torch.from_numpy(resid[:, layer if attrs["parallel"] else layer + 1]).double()
            r = r if attrs["parallel"] else r - u
            dot = (u * r).sum(-1, keepdim=True)
            back = torch.where(dot < 0, dot / (r * r).sum(-1, keepdim=True), 0.0) * r
            for name, part in (("support", u), ("against", back), ("rest", u - back)):
                assert np.abs(found[name][:, layer] - (read(r + part) - read(r))).max() < 2e-4, name
            cos = torch.nn.functional.cosine_similarity(u, r, dim=-1).numpy()
            assert np.abs(found["cos"][:, layer] - cos).max() < 1e-5
            assert (found["against"][cos >= 0, layer] == 0).all()


def test_a_branch_against_the_residual_and_bad_shapes():
    head = Head(torch.eye(3), torch.ones(3), eps=0.0)
    resid = np.array([[[1.0, 0, 0], [0.5, 0.5, 0]]], np.float32)  # r = (1, 0, 0) before, u = (-0.5, 0.5, 0) added
    u = np.array([[[-0.5, 0.5, 0]]], np.float32)
    found = writeout(head, resid, u, np.array([[0, 1]]))
    root = np.sqrt(3.0)
    # The norm takes lengths away: r/2 reads as r does, so the component against r changes nothing by itself.
    np.testing.assert_allclose(found["against"][0, 0], [0, 0], atol=1e-6)
    np.testing.assert_allclose(found["support"][0, 0], [root * (np.sqrt(0.5) - 1), root * np.sqrt(0.5)], rtol=1e-6)
    np.testing.assert_allclose(
        found["rest"][0, 0], [root * (1 / np.sqrt(1.25) - 1), root * 0.5 / np.sqrt(1.25)], rtol=1e-6
    )
    np.testing.assert_allclose(found["cos"], [[-np.sqrt(0.5)]], rtol=1e-6)
    with pytest.raises(ValueError, match="resid .* and mlp_out"):
        writeout(head, resid, u[:, :, :2], np.array([[0, 1]]))
    with pytest.raises(ValueError, match="ids have shape"):
        writeout(head, resid, u, np.array([0, 1]))
