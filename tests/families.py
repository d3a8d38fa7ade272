"""Tiny random models of every causal-LM class that the installed transformers has, each against its own plain hooks.

`examine` builds one, captures it, and compares what is stored, replays and edits with forwards that share no code with ours.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tiny
import torch
import transformers
from actlake.capture.edit.edits import Scale, Zero
from actlake.capture.edit.replay import load_late, replay_whole
from actlake.capture.edit.start import open_start
from actlake.capture.model.load import load_model
from actlake.capture.streams.free import decoded
from actlake.store.artifacts.streams import read_stream
from actlake.store.captures.reader import Capture, find_capture
from actlake.store.core.catalog import PairSpec
from actlake.store.core.errors import LakeError
from actlake.store.format.paths import Layout
from torch import Tensor, nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

LIMIT = 7_000_000  # parameters of a tiny model
VOCAB = 300
NAMES = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)

# Small sizes, for the settings that a config has; multipliers differ from what would leave them out.
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "hidden_size": 32,
    "d_model": 32,
    "intermediate_size": 64,
    "ffn_dim": 64,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "ffn_hidden_size": 64,
    "num_hidden_layers": 3,
    "encoder_layers": 3,
    "decoder_layers": 3,
    "num_attention_heads": 4,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "num_key_value_heads": 2,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2,
    "head_dim": 8,
    "global_head_dim": 8,
    "swa_head_dim": 8,
    "v_head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.15,
    "tie_word_embeddings": False,
    "sliding_window": 5,
    "query_pre_attn_scalar": 8,
    "final_logit_softcapping": 3.0,
    # mixtures of experts
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "num_experts_per_token": 2,
    "moe_topk": 2,
    "moe_k": 2,
    "top_k_experts": 2,
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "moe_num_shared_experts": 1,
    "moe_intermediate_size": 16,
    "expert_intermediate_size": 16,
    "shared_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "moe_shared_expert_intermediate_size": 16,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    # latent attention
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "index_n_heads": 2,
    "index_head_dim": 8,
    "index_topk": 64,
    # state spaces and linear attention
    "state_size": 4,
    "conv_kernel": 4,
    "time_step_rank": 4,
    "mamba_d_state": 4,
    "mamba_d_conv": 4,
    "mamba_dt_rank": 4,
    "mamba_expand": 2,
    "mamba_num_heads": 8,
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_head_dim": 8,
    "mamba_d_ssm": 64,
    "mamba_n_groups": 1,
    "n_groups": 1,
    "mamba_chunk_size": 4,
    "chunk_size": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_heads": 4,
    "linear_head_dim": 8,
    "lru_width": 32,
    "attention_window_size": 8,
    "use_mamba_kernels": False,
    # multipliers
    "residual_multiplier": 0.22,
    "embedding_multiplier": 3.0,
    "attention_multiplier": 0.3,
    "logits_scaling": 4.0,
    "logit_scale": 0.25,
    "scale_emb": 3.0,
    "scale_depth": 1.4,
    "dim_model_base": 16,
    "lm_head_multiplier": 0.4,
    "attention_in_multiplier": 0.8,
    "attention_out_multiplier": 0.7,
    "ssm_in_multiplier": 0.9,
    "ssm_out_multiplier": 0.6,
    "key_multiplier": 0.7,
    "mlp_multipliers": [0.8, 0.6],
}

# What single classes need beside the recipe; None: leave that setting of the recipe out.
MLA = {"num_key_value_heads": 4, "head_dim": 4}
EXTRA: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        ("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa"), MLA
    ),
    **dict.fromkeys(("minicpm3", "sarvam_mla", "youtu"), MLA),
    **dict.fromkeys(("gptj", "codegen"), {"rotary_dim": 4}),
    **dict.fromkeys(("dots3_note", "dots3_note_text"), {"num_key_value_heads": 4}),
    **dict.fromkeys(
        (
            "bert",
            "bert-generation",
            "big_bird",
            "camembert",
            "data2vec-text",
            "electra",
            "ernie",
            "megatron-bert",
            "rembert",
        )
        + (
            "roberta",
            "roberta-prelayernorm",
            "roformer",
            "xlm-roberta",
            "xlm-roberta-xl",
            "xmod",
            "roc_bert",
            "reformer",
        ),
        {"is_decoder": True},
    ),
    "big_bird": {"is_decoder": True, "attention_type": "original_full"},
    "xmod": {"is_decoder": True, "default_language": "en_XX"},
    "gpt_neo": {"attention_types": [[["global"], 3]], "window_size": 5},
    "mamba2": {"num_heads": 8, "expand": 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"], "num_dense_layers": 1},
    "xlnet": {"d_head": 8},
    "zaya": {"num_experts_per_tok": 1},
    "gemma4_text": {"vocab_size_per_layer_input": VOCAB, "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0},
    "gemma3n_text": {
        "vocab_size_per_layer_input": VOCAB,
        "hidden_size_per_layer_input": 8,
        "num_kv_shared_layers": 0,
        "laurel_rank": 4,
        "activation_sparsity_pattern": None,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    },
    **dict.fromkeys(
        ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"),
        {"layer_types": ["linear_attention", "linear_attention", "full_attention"]},
    ),
    **dict.fromkeys(
        ("qwen3_5", "qwen3_5_moe"),
        {"text_config": {"layer_types": ["linear_attention", "linear_attention", "full_attention"]}},
    ),
    "hrm_text": {"num_hidden_layers": None},
    "longcat_flash": {
        "num_layers": 3,
        "expert_ffn_hidden_size": 16,
        "zero_expert_num": 1,
        "head_dim": 4,
        "num_key_value_heads": 4,
    },
    "cpmant": {
        "prompt_types": 4,
        "prompt_length": 4,
        "segment_types": 4,
        "position_bias_num_buckets": 8,
        "dim_head": 8,
    },
    "zamba2": {"layers_block_type": ["mamba", "mamba", "hybrid"], "num_hidden_layers": 3},
    "granitemoehybrid": {"layer_types": ["mamba", "attention", "mamba"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "falcon": {"new_decoder_architecture": False, "parallel_attn": True, "multi_query": True},
    "recurrent_gemma": {"block_types": ["recurrent", "recurrent", "attention"]},
}


def config_class(name: str) -> Any:
    """The config class of a model type."""
    return getattr(transformers, CONFIG_MAPPING_NAMES[name])


def settings(kind: Any, extra: dict[str, Any] | None = None) -> dict[str, Any]:
    """The recipe's settings that a config class knows, with its nested text config, and `extra` over them."""
    default, extra = kind(), extra or {}
    known = {**default.attribute_map, **default.to_dict()}
    found = {key: value for key, value in SIZES.items() if key in known}
    for name, inner in kind.sub_configs.items():
        if name not in extra:
            found[name] = settings(inner) if hasattr(inner, "model_type") else {}
    for key, value in extra.items():  # a nested config's exceptions stand over the recipe's settings, as here
        nested = key in kind.sub_configs and isinstance(value, dict)
        found[key] = settings(kind.sub_configs[key], value) if nested else value
    return {key: value for key, value in found.items() if value is not None}


def build(name: str, seed: int = 0) -> Any:
    """A random model of this type; every parameter is random, norms and biases too. ValueError when it is too large."""
    kind = config_class(name)
    config = kind(**settings(kind, EXTRA.get(name)))
    auto: Any = transformers.AutoModelForCausalLM
    with torch.device("meta"):
        size = sum(p.numel() for p in auto.from_config(config).parameters())
    if size > LIMIT:
        raise ValueError(f"{size} parameters")
    torch.manual_seed(seed)
    model = auto.from_config(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@dataclass(frozen=True)
class Verdict:
    """What came of one class: 'right', 'refused', 'wrong', 'traceback' or 'unbuilt', and why."""

    name: str
    kind: str
    reason: str = ""


def examine(name: str, folder: Path) -> Verdict:
    """Capture, replay and edit a tiny model of this type; every number against plain hooks on transformers' own module."""
    warnings.simplefilter("ignore")
    try:
        build(name).save_pretrained(folder / "m")
    except Exception as error:  # whatever transformers raises for sizes that don't fit together
        return Verdict(name, "unbuilt", f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')[:120]}")
    tiny.tokenizer().save_pretrained(folder / "m")
    spec = tiny.spec(folder / "m", "sweep-pt")
    try:
        model = load_model(spec)
    except LakeError as error:
        message = str(error)
        return Verdict(name, "refused" if "\n" not in message else "traceback", message)
    except Exception as error:
        return Verdict(name, "traceback", f"load: {type(error).__name__}: {error}")
    try:
        _examined(model, PairSpec("sweep", spec, replace(spec, name="sweep-it", template="chat"), {}), folder)
    except LakeError as error:
        message = str(error)
        return Verdict(name, "refused" if "\n" not in message else "traceback", message)
    except AssertionError as error:
        return Verdict(name, "wrong", str(error))
    except Exception as error:
        return Verdict(name, "traceback", f"{type(error).__name__}: {str(error)[:300]}")
    return Verdict(name, "right")


def _examined(model: Any, pair: PairSpec, folder: Path) -> None:
    layout = tiny.capture(folder / "lake", pair, tiny.BARE, variants=("pt",), batch=4)
    capture = Capture(find_capture(layout, "sweep-pt", "bare"))
    stream = read_stream(layout, capture.manifest["stream"])
    plain = Plain(pair.pt.path, model.hf.config._attn_implementation)  # type: ignore[union-attr, arg-type]
    stored = {site: capture.array(site)[:] for site in ("resid", "mlp_out")}
    for prompt, tokens in enumerate(stream.tokens):
        part = slice(int(stream.offset[prompt]), int(stream.offset[prompt + 1]))
        for site, expected in plain.sites(tokens).items():
            _same(stored[site][part], expected, f"{site} of prompt {prompt}")
    catalog = tiny.catalog_of(pair)
    _replays(layout, model, catalog, stored)
    _edits(model, plain, [tokens.tolist() for tokens in stream.tokens][:4])


def _replays(layout: Layout, model: Any, catalog: Any, stored: dict[str, np.ndarray]) -> None:
    for boundary in (1, model.n_layers - 1):
        for late in (model, load_late(layout, "sweep-pt", boundary, catalog)):
            found = replay_whole(late, open_start(layout, "sweep-pt", "bare", boundary), keep=("resid", "mlp_out"))
            for site in ("resid", "mlp_out"):
                _same(found.arrays[site], stored[site][:, boundary:], f"replay of {site} from {boundary}")


def _edits(model: Any, plain: "Plain", prompts: list[list[int]], steps: int = 4) -> None:
    direction = np.random.default_rng(0).standard_normal(model.head.d_model)
    direction /= np.linalg.norm(direction)
    edits = [Zero(blocks=(1,)), Scale(direction={model.n_layers - 1: direction}, alpha=-2.0)]
    d = torch.from_numpy(direction).float()
    changes: dict[int, Callable[[Tensor], Tensor]] = {
        1: torch.zeros_like,
        model.n_layers - 1: lambda m: m - 3.0 * (m @ d)[..., None] * d,
    }
    for indices, rows in decoded(model, prompts, steps, (), 4, edits):
        for index, row in zip(indices, rows, strict=True):
            told = list(prompts[index])
            for token in row:
                with plain.changed(changes):
                    logits = plain.logits(told)
                gap = float(logits.max() - logits[token])
                assert gap <= 1e-3, f"edited token {len(told)} of prompt {index} lacks {gap:.2g} to the largest logit"
                told.append(token)


def _same(found: np.ndarray, expected: np.ndarray, what: str) -> None:
    scale = np.abs(expected).max() + 1e-3
    error = np.abs(found - expected).max() / scale
    assert error < 2e-5, f"{what} is off by {error:.1e} of its largest value"


MLP_NAMES = (
    "mlp",
    "feed_forward",
    "ffn",
    "block_sparse_moe",
    "moe",
    "shared_mlp",
    "fc2",
    "mlp_block",
    "mlp_layer",
    "experts",
)


class Plain:
    """transformers' own module of a saved model, with hooks that know MLPs by the names classes give them."""

    def __init__(self, folder: Path, attention: str):
        auto: Any = transformers.AutoModelForCausalLM
        self.hf = auto.from_pretrained(folder, attn_implementation=attention, dtype=torch.float32).eval()
        count = self.hf.config.get_text_config(decoder=True).num_hidden_layers
        lists = [m for m in self.hf.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
        self.blocks = max(lists, key=lambda one: sum(p.numel() for p in one.parameters()))

    def _mlps(self, block: nn.Module) -> list[nn.Module]:
        found = [getattr(block, name) for name in MLP_NAMES if isinstance(getattr(block, name, None), nn.Module)]
        assert found, f"the test knows no MLP among {[name for name, _ in block.named_children()]}"
        return found

    @contextmanager
    def changed(self, changes: dict[int, Callable[[Tensor], Tensor]]) -> Iterator[None]:
        """With some blocks' MLP outputs put through a function (linear: it may act on each of several modules)."""
        handles = []
        for layer, change in changes.items():
            for module in self._mlps(self.blocks[layer]):
                handles.append(module.register_forward_hook(_hook(change, hand_back=True)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @torch.no_grad()
    def logits(self, tokens: Any) -> Tensor:
        """Logits of the last token of a sequence."""
        return self.hf(input_ids=torch.tensor([list(tokens)]), use_cache=False).logits[0, -1].float()

    def sites(self, tokens: np.ndarray) -> dict[str, np.ndarray]:
        """Residuals [n, L+1, d] and MLP outputs [n, L, d] of one sequence, run alone without mask or padding."""
        resid: list[Tensor] = []
        mlp = [torch.zeros(()) for _ in self.blocks]

        def before(_m: Any, args: Any, kwargs: Any) -> None:
            resid.append((args[0] if args else kwargs["hidden_states"]).clone())

        def after(_m: Any, _args: Any, out: Any) -> None:
            resid.append((out[0] if isinstance(out, tuple) else out).clone())

        def keep(layer: int) -> Callable[[Tensor], Tensor]:
            def add(value: Tensor) -> Tensor:
                mlp[layer] = mlp[layer] + value.reshape(-1, value.shape[-1])
                return value

            return add

        handles = [self.blocks[0].register_forward_pre_hook(before, with_kwargs=True)]
        for layer, block in enumerate(self.blocks):
            handles.append(block.register_forward_hook(after))
            handles += [m.register_forward_hook(_hook(keep(layer), hand_back=False)) for m in self._mlps(block)]
        self.logits(tokens)
        for handle in handles:
            handle.remove()
        return {"resid": torch.cat(resid).transpose(0, 1).numpy(), "mlp_out": torch.stack(mlp, 1).numpy()}


def _hook(change: Callable[[Tensor], Tensor], hand_back: bool) -> Callable[..., Any]:
    """A hook on a module's own output; where it returns that output plus its second argument (BLOOM, MPT), on the former."""

    def hook(module: nn.Module, args: tuple, out: Any) -> Any:
        value = out[0] if isinstance(out, tuple) else out
        inside = type(module).__name__ in ("BloomMLP", "MptMLP")
        new = change((value - args[1] if inside else value).clone())
        new = new + args[1] if inside else new
        return None if not hand_back else (new, *out[1:]) if isinstance(out, tuple) else new

    return hook
