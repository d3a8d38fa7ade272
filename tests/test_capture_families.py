"""Every stored number against Hugging Face's own forward, for each family, through a path that shares no code with ours."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import transformers
from actlake.analyze.residual.delta import added
from actlake.capture.model.load import load_model
from actlake.capture.model.structure import discover
from actlake.capture.run import reforward
from actlake.store.artifacts.models import read_head
from actlake.store.artifacts.streams import read_stream
from actlake.store.captures.reader import Capture, find_capture
from actlake.store.core.catalog import ModelSpec
from actlake.store.core.errors import LakeError
from actlake.store.format.paths import Layout
from transformers import AutoModelForCausalLM

FAMILIES = tiny.sampled("llama", "gemma3", "gpt_neox", "deepseek_v2")


@cache
def hugging_face(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa").eval()


@torch.no_grad()
def reference(hf: Any, family: str, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """Residuals [n, L+1, d], MLP outputs [n, L, d] and logits [n, V] of one sequence, run alone without mask or padding."""
    blocks = hf.get_submodule(tiny.FAMILIES[family].blocks)
    seen: dict[Any, torch.Tensor] = {}

    def keep(module: Any, _args: Any, out: Any) -> None:
        seen[module] = out[0] if isinstance(out, tuple) else out

    handles = [module.register_forward_hook(keep) for block in blocks for module in (block, block.mlp)]
    out = hf(input_ids=torch.tensor(tokens[None].astype(np.int64)), output_hidden_states=True, use_cache=False)
    for handle in handles:
        handle.remove()
    # hidden_states[l] enters block l; its last element has been normed, so the last boundary is the block's output.
    resid = [*out.hidden_states[: len(blocks)], seen[blocks[-1]]]
    mlp = [seen[block.mlp] for block in blocks]
    return {
        "resid": torch.stack([x[0] for x in resid], 1).float().numpy(),
        "mlp_out": torch.stack([x[0] for x in mlp], 1).float().numpy(),
        "logits": out.logits[0].float().numpy(),
    }


def references(
    layout: Layout, spec: ModelSpec, family: str, dtype: torch.dtype = torch.float32
) -> dict[str, np.ndarray]:
    """The reference of every prompt of the pt's raw capture, one after the other."""
    assert spec.path is not None
    hf = hugging_face(spec.path, dtype)
    stream = read_stream(layout, opened(layout, family).manifest["stream"])
    rows = [reference(hf, family, tokens) for tokens in stream.tokens]
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def opened(layout: Layout, family: str, stream: str = "raw") -> Capture:
    return Capture(find_capture(layout, f"{family}-pt", stream))


@pytest.fixture(scope="module")
def singles(tmp_path_factory, pairs):
    """Family -> a lake with the pt captured prompt by prompt on its raw stream."""
    root = tmp_path_factory.mktemp("single")
    return cache(lambda family: tiny.capture(root / family, pairs(family), tiny.RAW, variants=("pt",), batch=1))


@pytest.mark.parametrize("family", FAMILIES)
def test_unbatched_capture_is_bit_exact(singles, pairs, family):
    layout = singles(family)
    expected, stored = references(layout, pairs(family).pt, family), opened(layout, family)
    assert expected["resid"].shape == stored.array("resid").shape
    for name in ("resid", "mlp_out"):
        found = stored.array(name)[:]
        assert np.array_equal(found.view(np.uint32), expected[name].view(np.uint32)), np.abs(
            found - expected[name]
        ).max()


@pytest.mark.parametrize("family", FAMILIES)
def test_stored_logits_match_hugging_face(singles, pairs, family):
    layout = singles(family)
    logits, stored = references(layout, pairs(family).pt, family)["logits"].astype(np.float64), opened(layout, family)
    top, ids = stored.array("topk_logit")[:], stored.array("topk_id")[:]
    assert np.abs(np.take_along_axis(logits, ids.astype(np.int64), -1) - top).max() < 1e-4
    assert np.abs(-np.sort(-logits, axis=-1)[:, : ids.shape[1]] - top).max() < 1e-4
    assert all(len(set(row)) == len(row) for row in ids.tolist())
    shift = logits.max(-1, keepdims=True)
    expected = np.log(np.exp(logits - shift).sum(-1)) + shift[:, 0]
    assert np.abs(stored.array("logsumexp")[:] - expected).max() < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_stored_head_turns_the_last_boundary_into_logits(singles, pairs, family):
    layout = singles(family)
    expected = references(layout, pairs(family).pt, family)["logits"]
    arrays, attrs = read_head(layout, f"{family}-pt")
    x = opened(layout, family).array("resid")[:, -1].astype(np.float64)
    if attrs["norm"] == "layer":
        x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x * x).mean(-1, keepdims=True) + attrs["norm_eps"]) * arrays["norm_weight"] + arrays.get(
        "norm_bias", 0
    )
    logits = (x @ arrays["unembed"].astype(np.float64).T + arrays.get("unembed_bias", 0)) * attrs["logit_scale"]
    if attrs["softcap"]:
        logits = attrs["softcap"] * np.tanh(logits / attrs["softcap"])
    assert np.abs(logits - expected).max() < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_batched_equals_single(tmp_path, singles, pairs, family, monkeypatch):
    monkeypatch.setattr(reforward, "NOISE_PROMPTS", 99)
    single = opened(singles(family), family)
    batched = opened(tiny.capture(tmp_path / "lake", pairs(family), tiny.RAW, variants=("pt",), batch=4), family)
    assert single.manifest["content_sha256"] == batched.manifest["content_sha256"]  # generated the same tokens, too
    for name in ("resid", "mlp_out", "topk_logit", "logsumexp"):
        assert np.abs(single.array(name)[:] - batched.array(name)[:]).max() < 1e-5
    # What batching changes is measured at sealing, on some prompts, here (99) on all.
    assert batched.manifest["noise_floor"]["prompts"] == len(single.array("offset")[:]) - 1
    for name, floor in batched.manifest["noise_floor"]["max_abs"].items():
        assert floor == np.abs(single.array(name)[:] - batched.array(name)[:]).max()
    assert single.manifest["noise_floor"]["max_abs"] == {"resid": 0.0, "mlp_out": 0.0}


@pytest.mark.parametrize("family", FAMILIES)
def test_structure_is_found_from_the_data(pairs, family):
    model, entry = load_model(pairs(family).pt), tiny.FAMILIES[family]
    blocks = list(model.hf.get_submodule(entry.blocks))
    assert model.parts.blocks == blocks and model.parts.mlps == [block.mlp for block in blocks]
    assert model.parts.post_norms == (
        [getattr(block, entry.post_norms[1]) for block in blocks] if entry.post_norms else []
    )
    assert (model.parts.placement, model.head.norm) == (entry.placement, entry.norm)


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_add_what_the_stored_outputs_say(tmp_path, pairs, family):
    """METHODS 1.2: the residual grows by the attention's and the MLP's output, each through its post-norm if it has one."""
    profile = replace(tiny.FULL, sites=("resid", "attn_out", "mlp_out"), logits="none")
    layout = tiny.capture(tmp_path / "lake", pairs(family), tiny.BARE, variants=("pt",), profile=profile)
    stored = opened(layout, family, "bare")
    resid, attention, mlp = (stored.array(name)[:] for name in ("resid", "attn_out", "mlp_out"))
    blocks = hugging_face(pairs(family).pt.path).get_submodule(tiny.FAMILIES[family].blocks)
    norms = tiny.FAMILIES[family].post_norms
    for layer, block in enumerate(blocks):
        parts = [torch.from_numpy(attention[:, layer]), torch.from_numpy(mlp[:, layer])]
        if norms:
            assert np.abs(parts[1].numpy() + resid[:, layer] - resid[:, layer + 1]).max() > 0.1  # not the plain output
            parts = [getattr(block, norm)(part) for norm, part in zip(norms, parts, strict=True)]
            arrays, attrs = read_head(layout, f"{family}-pt")
            weight = (arrays["post_norm_weight"], attrs["post_norm_eps"])
            assert torch.allclose(added(torch.from_numpy(mlp[:, layer]), weight, layer), parts[1], atol=1e-5)
        assert np.abs(resid[:, layer] + sum(parts).detach().numpy() - resid[:, layer + 1]).max() < 1e-5


def test_block_that_adds_something_else_is_refused(pairs):
    hf = AutoModelForCausalLM.from_pretrained(pairs("llama").pt.path)
    hf.model.layers[1].register_forward_hook(lambda _m, args, out: out + args[0].sin())
    with pytest.raises(
        LakeError, match="block 1 adds something besides the outputs of its modules LlamaAttention, LlamaMLP"
    ):
        discover(hf)


@pytest.mark.parametrize(
    ("config", "between"),
    [
        ({"word_embed_proj_dim": 16, "ffn_dim": 64}, "its final norm (LayerNorm) and the unembedding the residual is changed otherwise (Linear)"),
        ({"word_embed_proj_dim": 16, "ffn_dim": 64, "do_layer_norm_before": False}, "block 0 ends in LayerNorm, which acts on the residual itself"),
    ],
)  # fmt: skip
def test_what_stands_between_the_final_norm_and_the_unembedding_is_named(config, between):
    sizes = {name: tiny.SIZES[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
    hf = AutoModelForCausalLM.from_config(transformers.OPTConfig(vocab_size=300, **sizes, **config)).eval()
    with pytest.raises(LakeError) as caught:
        discover(hf)
    assert between in str(caught.value)


def test_head_that_does_not_give_the_logits_is_refused(pairs):
    hf = AutoModelForCausalLM.from_pretrained(pairs("llama").pt.path)
    discover(hf)
    handle = hf.model.register_forward_hook(
        lambda _m, _a, out: type(out)(last_hidden_state=out.last_hidden_state * 1.01)
    )
    with pytest.raises(LakeError, match="final norm|is not the model's logits"):
        discover(hf)
    handle.remove()
    hf.lm_head.register_forward_hook(lambda _m, _a, out: out * 1.01)
    with pytest.raises(LakeError, match=r"head\(resid\[:, L\]\) is not the model's logits"):
        discover(hf)


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_is_widened_exactly(tmp_path, family):
    pair = tiny.make_pair(tmp_path / "pair", family, torch.bfloat16)
    layout = tiny.capture(tmp_path / "lake", pair, tiny.RAW, variants=("pt",), batch=1)
    stored, expected = opened(layout, family), references(layout, pair.pt, family, torch.bfloat16)
    for name in ("resid", "mlp_out"):
        found = stored.array(name)[:]
        assert found.dtype == np.float32 and np.array_equal(found.view(np.uint32), expected[name].view(np.uint32))
        assert not np.any(found.view(np.uint32) & 0xFFFF)
        assert np.unique(found).size > 1000
        assert dict(stored.array(name).array.attrs)["lossless_cast"] == "bfloat16"
    assert stored.manifest["source_dtype"] == "bfloat16"


def test_float32_is_not_called_widened(singles):
    attrs = dict(opened(singles("llama"), "llama").array("resid").array.attrs)
    assert attrs["source_dtype"] == "float32" and "lossless_cast" not in attrs


def test_narrower_dtype_can_be_asked_for(tmp_path, pairs):
    layout = tiny.capture(tmp_path / "lake", pairs("llama"), tiny.BARE, variants=("pt",), dtype="bfloat16")
    stored = opened(layout, "llama", "bare")
    assert stored.manifest["source_dtype"] == stored.manifest["provenance"]["dtype"] == "bfloat16"
    assert not np.any(stored.array("resid")[:].view(np.uint32) & 0xFFFF)
