"""Captures of one tiny model (tests/imports/model), each written by the tool's own code: `python make.py FORMAT`, in its environment.

transformerlens: transformer-lens 4.3.0; nnsight: nnsight 0.8.1; datasets: datasets 5.1.0; saelens: sae-lens 6.51.1 with
transformer-lens 2.
"""

import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).parent
IDS = torch.tensor([[1, 9, 12, 30, 44], [1, 200, 7, 8, 9]])


def load():
    model = AutoModelForCausalLM.from_pretrained(HERE / "model", dtype=torch.bfloat16)
    return model.eval(), AutoTokenizer.from_pretrained(HERE / "model")


def transformerlens():
    from safetensors.torch import save_file
    from transformer_lens.model_bridge import TransformerBridge

    model, tokenizer = load()
    bridge = TransformerBridge.boot_transformers(
        str(HERE / "model"), hf_model=model, tokenizer=tokenizer, device="cpu", dtype=torch.bfloat16
    )
    names = ("hook_resid_pre", "hook_resid_post", "hook_mlp_out", "hook_attn_out")
    _, cache = bridge.run_with_cache(IDS, names_filter=lambda name: name.endswith(names))
    save_file(
        {"tokens": IDS, **{name: value.clone() for name, value in cache.items()}}, HERE / "transformerlens.safetensors"
    )


def nnsight():
    from nnsight import LanguageModel

    model, tokenizer = load()
    traced = LanguageModel(model, tokenizer=tokenizer)
    with traced.trace(IDS):
        first = traced.model.layers[0].output.save()
        second = traced.model.layers[1].output.save()
    saved = {"input_ids": IDS, "model.layers.0.output": first.detach(), "model.layers.1.output": second.detach()}
    torch.save(saved, HERE / "nnsight.pt")


def datasets():
    from datasets import Dataset

    model, _ = load()
    with torch.no_grad():
        states = model(IDS, output_hidden_states=True).hidden_states[:-1]  # the last one is normed
    rows = [
        {"input_ids": ids.tolist(), "hidden_states": torch.stack([s[i] for s in states], 1).float().tolist()}
        for i, ids in enumerate(IDS)
    ]
    Dataset.from_list(rows).save_to_disk(HERE / "datasets")


def saelens():
    from datasets import Dataset
    from sae_lens import CacheActivationsRunner, CacheActivationsRunnerConfig
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformers import PreTrainedTokenizerFast

    model = AutoModelForCausalLM.from_pretrained(HERE / "model", torch_dtype=torch.bfloat16).eval()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(HERE / "model" / "tokenizer.json"),
        bos_token="<|bos|>",
        pad_token="<|pad|>",
        eos_token="<|eos|>",
    )
    work = Path(tempfile.mkdtemp())
    tokenizer.save_pretrained(work / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(work / "tokenizer")
    config = HookedTransformerConfig(
        n_layers=2, d_model=8, n_ctx=128, d_head=4, n_heads=2, n_key_value_heads=1, d_mlp=16, d_vocab=300, act_fn="silu",
        eps=1e-6, normalization_type="RMS", positional_embedding_type="rotary", rotary_dim=4, rotary_adjacent_pairs=False,
        final_rms=True, gated_mlp=True, dtype=torch.float32, original_architecture="LlamaForCausalLM", device="cpu",
        default_prepend_bos=False,
    )  # fmt: skip
    from transformer_lens.pretrained.weight_conversions import convert_llama_weights

    hooked = HookedTransformer(config, tokenizer=tokenizer)
    hooked.load_and_process_state_dict(
        convert_llama_weights(model.float(), config), fold_ln=False, center_writing_weights=False, center_unembed=False,
        fold_value_biases=False,
    )  # fmt: skip
    (work / "tokens").mkdir()
    Dataset.from_dict({"tokens": IDS.repeat(2, 1).tolist()}).to_parquet(str(work / "tokens" / "data.parquet"))
    cfg = CacheActivationsRunnerConfig(
        dataset_path=str(work / "tokens"), model_name="tiny", model_batch_size=2, hook_name="blocks.1.hook_resid_post",
        d_in=8, training_tokens=20, context_size=5, buffer_size_gb=1e-6, new_cached_activations_path=str(HERE / "saelens"),
        shuffle=False, prepend_bos=False, device="cpu", dtype="float32", autocast_lm=False, streaming=False,
    )  # fmt: skip
    import sae_lens.cache_activations_runner as module

    module.load_model = lambda **_: hooked
    CacheActivationsRunner(cfg, Dataset.from_dict({"tokens": IDS.repeat(2, 1).tolist()})).run()


if __name__ == "__main__":
    globals()[sys.argv[1]]()
