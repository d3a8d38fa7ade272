"""Tiny GGUF files: a random llama written tensor by tensor, its linear weights in blocks of 8 bits."""

import json
from pathlib import Path

import numpy as np
import tiny
import torch
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, TokenType
from gguf.quants import dequantize, quantize
from safetensors.torch import load_file, save_file

Q8 = GGMLQuantizationType.Q8_0
NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def make_gguf(folder: Path, seed: int = 0) -> tuple[Path, Path]:
    """A model folder `dense` and the file `tiny.gguf` with the same weights: those that 8 bits can say."""
    dense = tiny.make_model(folder / "dense", seed=seed)
    config = json.loads((dense / "config.json").read_text())
    weights = load_file(dense / "model.safetensors")
    writer = GGUFWriter(folder / "tiny.gguf", "llama")
    _metadata(writer, config)
    for name, weight in weights.items():
        array = weight.numpy()
        if array.ndim == 2:
            blocks = quantize(array, Q8)
            weights[name] = torch.from_numpy(dequantize(blocks, Q8).copy())
            writer.add_tensor(_name(name), quantize(_permuted(name, weights[name].numpy(), config), Q8), raw_dtype=Q8)
        else:
            writer.add_tensor(_name(name), array)
    save_file(weights, dense / "model.safetensors", metadata={"format": "pt"})
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return dense, folder / "tiny.gguf"


def _name(name: str) -> str:
    if name in NAMES:
        return NAMES[name]
    _, _, layer, part = name.removesuffix(".weight").split(".", 3)
    return f"blk.{layer}.{NAMES[part]}.weight"


def _permuted(name: str, array: np.ndarray, config: dict) -> np.ndarray:
    """llama.cpp turns pairs of positions where Hugging Face turns halves: rows of q and k trade places."""
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    part = name.split(".")[-2]
    if part not in heads:
        return array
    return array.reshape(heads[part], 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)


def _metadata(writer: GGUFWriter, config: dict) -> None:
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(LlamaFileType.MOSTLY_Q8_0)
    text = json.loads(tiny.tokenizer().backend_tokenizer.to_str())["model"]
    tokens = sorted(text["vocab"], key=text["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL if token in tiny.SPECIAL else TokenType.NORMAL for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in text["merges"]])
    writer.add_bos_token_id(tiny.BOS)
    writer.add_eos_token_id(tiny.EOS)
    writer.add_pad_token_id(tiny.PAD)
    writer.add_add_bos_token(True)
    writer.add_chat_template(tiny.CHAT)
