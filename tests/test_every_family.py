"""Every causal-LM class of the installed transformers is captured, replayed and edited exactly, or refused in one line.

`tests/families.py` builds them and compares; benchmarks/families.py prints the whole table.
"""

import families
import numpy as np
import pytest
import tiny
import torch
from actlake.analyze.residual.delta import added, delta
from actlake.capture.model.load import head_arrays, load_model
from actlake.capture.model.structure import discover
from actlake.store.artifacts.models import read_head
from actlake.store.captures.reader import Capture, find_capture
from actlake.store.core.errors import LakeError
from transformers import AutoModelForCausalLM, MllamaConfig, MllamaForConditionalGeneration

EACH = 16  # how many classes one stands for in the normal suite
# One of each kind that is unlike a Llama.
KINDS = {
    "falcon": "right",  # adds attention to its MLP's output in place
    "granite": "right",  # scaled branches
    "minicpm3": "right",  # scaled branches, scale before the unembedding
    "granitemoehybrid": "right",  # state space, and two MLP modules
    "falcon_h1": "right",  # two token mixers
    "bloom": "right",  # residual added inside modules, eager
    "opt": "right",  # MLP of two modules
    "olmo": "right",  # norms without weights
    "nemotron": "right",  # norms with 1 + w and a bias
    "gemma2": "right",  # eager
    "gpt_oss": "right",  # eager, experts
    "moshi": "right",  # transformers' cache gives other tokens
    "mbart": "right",  # positions that left padding shifts
    "mamba": "MambaForCausalLM: block 0 has no MLP",
    "nemotron_h": "block 0 has no MLP",
    "openai-gpt": "block 0 ends in LayerNorm, which acts on the residual itself",
    "minimax": "goes on with a normed residual",
    "gemma3n_text": "keeps its residual otherwise",
    "doge": "a weight of its own, input_residual",
    "mllama": "MllamaTextConfig is the config of a part of a model",  # its text class by itself; see below for the whole
}


@pytest.mark.parametrize("name", KINDS)
def test_kind(tmp_path, name):
    verdict = families.examine(name, tmp_path)
    if KINDS[name] == "right":
        assert verdict.kind == "right", verdict.reason
    else:
        assert verdict.kind == "refused" and KINDS[name] in verdict.reason, verdict


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.sweep if number % EACH else ())
        for number, name in enumerate(families.NAMES)
    ],
)
def test_class_is_right_or_refused_in_one_line(tmp_path, name):
    verdict = families.examine(name, tmp_path)
    assert verdict.kind in ("right", "refused", "unbuilt"), verdict


def test_blocks_that_text_alone_does_not_run_are_named(tmp_path):
    """Llama 3.2 Vision: some blocks attend to pictures, and are skipped where there are none."""
    sizes = {"hidden_size": 32, "intermediate_size": 64}
    text = {"vocab_size": 300, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, **sizes}
    text |= {"cross_attention_layers": [1, 3], "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    vision = {"num_hidden_layers": 2, "num_global_layers": 1, "attention_heads": 2, "image_size": 28, **sizes}
    vision |= {"vision_output_dim": 64, "intermediate_layers_indices": [0], "max_num_tiles": 1}
    config = MllamaConfig(text_config=text, vision_config=vision | {"supported_aspect_ratios": [[1, 1]]})
    MllamaForConditionalGeneration(config).save_pretrained(tmp_path / "m")
    tiny.tokenizer().save_pretrained(tmp_path / "m")
    says = r"MllamaForCausalLM: block 1, 3 \(MllamaCrossAttentionDecoderLayer\) of 4 does not run where there is text alone"
    with pytest.raises(LakeError, match=says):
        load_model(tiny.spec(tmp_path / "m", "m-pt"))


@pytest.fixture
def granite(tmp_path):
    multipliers = {"residual_multiplier": 0.22, "embedding_multiplier": 12.0, "logits_scaling": 8.0}
    tiny.make_model(tmp_path / "m", "granite", **multipliers)
    return tiny.spec(tmp_path / "m", "granite-pt")


def test_scaled_mlp_outputs_reach_the_analysis_as_the_block_adds_them(tmp_path, granite):
    layout = tiny.capture(tmp_path / "lake", tiny.PairSpec("granite", granite, None, {}), tiny.BARE, variants=("pt",))
    arrays, attrs = read_head(layout, "granite-pt")
    assert attrs["post_norm_eps"] is None and np.allclose(arrays["post_norm_weight"], 0.22)
    capture = Capture(find_capture(layout, "granite-pt", "bare"))
    resid, mlp = capture.array("resid")[:], capture.array("mlp_out")[:]
    entered: list[torch.Tensor] = []
    hf = AutoModelForCausalLM.from_pretrained(granite.path)
    for layer in hf.model.layers:
        layer.post_attention_layernorm.register_forward_pre_hook(lambda _m, args: entered.append(args[0][0].clone()))
    n = int(capture.offset()[1])
    with torch.no_grad():
        hf(input_ids=torch.tensor(capture.array("token_id")[:n][None].astype(np.int64)))
    post = (arrays["post_norm_weight"], attrs["post_norm_eps"])
    cosines = delta(resid[:n], mlp[:n], post_norm=post)["mlp_cos"]
    for layer, r in enumerate(entered):
        u = torch.from_numpy(mlp[:n, layer])
        assert torch.allclose(r + added(u, post, layer), torch.from_numpy(resid[:n, layer + 1]), atol=1e-5)
        assert np.allclose(cosines[:, layer + 1], torch.cosine_similarity(u, r, dim=-1).numpy(), atol=1e-5)


def test_bfloat16_finds_the_multiplier_of_the_config(tmp_path):
    tiny.make_model(
        tmp_path / "m", "granite", dtype=torch.bfloat16, residual_multiplier=0.22, embedding_multiplier=12.0
    )
    model = load_model(tiny.spec(tmp_path / "m", "granite-pt"))
    assert [mlp.scale for mlp in model.parts.added if mlp] == [0.22] * 3
    assert head_arrays(model)[1]["post_norm_eps"] is None


def test_model_that_sees_later_tokens_is_refused(pairs):
    hf = AutoModelForCausalLM.from_pretrained(pairs("llama").pt.path, attn_implementation="eager")
    kernel = hf.model.layers[1].self_attn

    def sees_all(_module, args, kwargs):
        return args, {**kwargs, "attention_mask": None}

    kernel.register_forward_pre_hook(sees_all, with_kwargs=True)
    with pytest.raises(LakeError, match="block 1 attends to later tokens"):
        discover(hf)
