"""Tiny random models of every causal-LM class that the installed transformers has, from one recipe and a table of exceptions."""

from typing import Any

import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

LIMIT = 3_000_000  # parameters of a tiny model
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
EXTRA: dict[str, dict[str, Any]] = {}


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
    found |= extra
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
