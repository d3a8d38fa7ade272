"""Tiny random models, prompts and lakes for tests: seconds to build, every code path of the real ones."""

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from actlake.analyze.lens.head import Head
from actlake.capture.streams.capture_pair import Options, capture_pair
from actlake.capture.streams.prompts import Prompt, PromptSet, canonical_bytes
from actlake.store.core.catalog import Catalog, ModelSpec, PairSpec, ProfileSpec, StreamSpec, load_catalog
from actlake.store.core.files import temporary_of, write_json
from actlake.store.format.paths import Layout
from actlake.store.format.records import sealed
from actlake.testing import RECORD, made_stream, made_values, write_values
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

SPECIAL = ["<|pad|>", "<|bos|>", "<|eos|>", "<|user|>", "<|assistant|>"]
PAD, BOS, EOS, USER, ASSISTANT = range(5)
CHAT = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
CORPUS = ["the cat sat on the mat and the dog ran over the log while the rain fell on the plain"] * 5
TEXTS = (
    ("p0", "FACT", "the cat"),
    ("p1", "FACT", "the dog ran over the log and the cat sat on the mat"),
    ("p2", "FORMAT", "x"),
    ("p3", "FORMAT", "list: naïve café, 雨\n- 12 + 7 = 19"),
    ("p-ü", "FACT", "the rain fell on the plain while the dog sat"),
    ("p5", "SAFETY", "the mat and the log"),
)

FULL = ProfileSpec("full", ("resid", "mlp_out"), "auto", "auto", 16)
RAW = StreamSpec("raw", "raw", "own", 6)
NATIVE = StreamSpec("native", "native", "own", 6)
TEACHER = StreamSpec("teacher", "native", "it", 6)
MADE = {"model": "made-pt", "model_sha256": "m", "dtype": "float32", "batch": 4}  # provenance of no model
BARE = StreamSpec("bare", "raw", "none", 6)


@dataclass(frozen=True)
class Family:
    """An architecture: its config class, what it needs beside the common sizes, and what its blocks are like.

    `blocks` is where they lie, `post_norms` the norms that attention and MLP outputs pass before they are added (METHODS
    1.2), `placement` where norms stand around the MLP. With a `text_config` in `extra` the sizes go there.
    """

    config: str
    extra: dict[str, Any] = field(default_factory=dict)
    blocks: str = "model.layers"
    post_norms: tuple[str, str] | None = None
    placement: str = "pre"
    norm: str = "rms"


SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.15,
    "tie_word_embeddings": False,
}
ONE_KV = {"num_key_value_heads": 4}
POST = ("post_attention_layernorm", "post_feedforward_layernorm")
GEMMA3 = {"head_dim": 8, "sliding_window": 5, "query_pre_attn_scalar": 8, "final_logit_softcapping": 3.0}
# As many blocks as the text part has, and larger ones: only the data tells which of the two stacks is the decoder.
VISION = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 28,
}
FAMILIES = {
    "llama": Family("LlamaConfig"),
    "llama_tied": Family("LlamaConfig", {"tie_word_embeddings": True}),
    "qwen2": Family("Qwen2Config"),
    "qwen3": Family("Qwen3Config", {"head_dim": 8}),
    "olmo2": Family("Olmo2Config", post_norms=POST, placement="post"),
    "mistral": Family("MistralConfig", {"sliding_window": 5}),
    "gemma3": Family("Gemma3TextConfig", GEMMA3, post_norms=POST, placement="sandwich"),
    "gemma3_wrapper": Family(
        "Gemma3Config",
        {"text_config": GEMMA3, "vision_config": VISION, "mm_tokens_per_image": 4},
        "model.language_model.layers",
        POST,
        "sandwich",
    ),
    "deepseek_v2": Family(
        "DeepseekV2Config",
        {
            **ONE_KV,
            "kv_lora_rank": 8,
            "q_lora_rank": None,
            "qk_nope_head_dim": 8,
            "qk_rope_head_dim": 4,
            "v_head_dim": 8,
            "n_routed_experts": 4,
            "n_shared_experts": 1,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "first_k_dense_replace": 1,
            "n_group": 1,
            "topk_group": 1,
        },
    ),
    "phi3": Family("Phi3Config"),
    "gpt2": Family("GPT2Config", blocks="transformer.h", norm="layer"),
    "gpt_neox": Family("GPTNeoXConfig", blocks="gpt_neox.layers", placement="parallel", norm="layer"),
    "cohere": Family("CohereConfig", placement="parallel", norm="layer"),
    "granite": Family("GraniteConfig", {"logits_scaling": 4.0}),
    "starcoder2": Family("Starcoder2Config", norm="layer"),
}


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of 300 tokens that adds BOS once, with a chat template that writes its own BOS."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=300, special_tokens=SPECIAL, initial_alphabet=alphabet)
    )
    raw.post_processor = processors.TemplateProcessing(single="<|bos|> $A", special_tokens=[("<|bos|>", BOS)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token=SPECIAL[PAD],
        bos_token=SPECIAL[BOS],
        eos_token=SPECIAL[EOS],
        additional_special_tokens=SPECIAL[USER:],
    )
    fast.chat_template = CHAT
    return fast


def sampled(*families: str) -> list[Any]:
    """Parameters of a test that holds for every family: those named run always, the others with -m sweep."""
    assert {*families} <= FAMILIES.keys()
    return [pytest.param(name, marks=() if name in families else pytest.mark.sweep) for name in FAMILIES]


def make_model(
    folder: Path, family: str = "llama", seed: int = 0, dtype: torch.dtype = torch.float32, **sizes: Any
) -> Path:
    """Save a random model of a family with its tokenizer; every parameter is random, norms and biases too."""
    entry, text = FAMILIES[family], tokenizer()
    ids = {"vocab_size": len(text), "bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}
    text_config = {**SIZES, **ids, **entry.extra.get("text_config", entry.extra), **sizes}
    nested = {**entry.extra, "text_config": text_config} if "text_config" in entry.extra else text_config
    config = getattr(transformers, entry.config)(**nested)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.to(dtype).save_pretrained(folder)
    text.save_pretrained(folder)
    return folder


def spec(folder: Path, name: str) -> ModelSpec:
    """The catalog's entry of a model folder: a name that ends in -pt is a base model's."""
    return ModelSpec(name, folder, None, None, None, "raw" if name.endswith("-pt") else "chat")


def catalog_of(*pairs: PairSpec) -> Catalog:
    """The packaged catalog with these pairs, and their models, in place of its own."""
    models = {pair.model(variant).name: pair.model(variant) for pair in pairs for variant in pair.variants}
    return replace(load_catalog(), pairs={pair.name: pair for pair in pairs}, models=models, chains={})


def scope(pair: str, streams: dict[str, str], recipe: str = "") -> Any:
    """A question's scope about a pair PAIR of models PAIR-pt and PAIR-it."""
    from actlake.queries.engine.context import Scope

    return Scope(pair, {variant: f"{pair}-{variant}" for variant in ("pt", "it")}, streams, recipe)


def make_pair(folder: Path, family: str = "llama", dtype: torch.dtype = torch.float32, **sizes: Any) -> PairSpec:
    """A pair of random models that differ in everything but their shape."""
    found = {v: make_model(folder / v, family, seed, dtype, **sizes) for seed, v in enumerate(("pt", "it"))}
    return PairSpec(family, spec(found["pt"], f"{family}-pt"), spec(found["it"], f"{family}-it"), {})


def add_token(folder: Path, token: str = "<|tool|>") -> Path:
    """Give a saved model one more special token and one more row in its embedding and head."""
    text = AutoTokenizer.from_pretrained(folder)
    text.add_special_tokens({"additional_special_tokens": [token]}, replace_extra_special_tokens=False)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(len(text), mean_resizing=False)
    with torch.no_grad():
        for rows in (model.get_input_embeddings().weight, model.get_output_embeddings().weight):
            rows[-1] = 0.5 * torch.randn(rows.shape[1], generator=torch.Generator().manual_seed(5))
    model.save_pretrained(folder)
    text.save_pretrained(folder)
    return folder


def prompt_set(texts: Any = TEXTS, name: str = "tiny") -> PromptSet:
    """A prompt set of (id, category, text) rows."""
    prompts = tuple(Prompt(*row) for row in texts)
    return PromptSet(name, prompts, hashlib.sha256(canonical_bytes(prompts)).hexdigest())


def capture(lake: Path, pair: PairSpec, *streams: StreamSpec, **options: Any) -> Layout:
    """Capture a pair into a lake (made when it is not there) with batches of 4 unless told otherwise."""
    layout = Layout.open(lake, create=True)
    run = {name: options.pop(name) for name in ("profile", "variants", "prompts") if name in options}
    capture_pair(
        layout,
        pair,
        streams or (NATIVE,),
        run.get("prompts", prompt_set()),
        run.get("profile", FULL),
        run.get("variants", ("pt", "it")),
        Options(**{"batch": 4, **options}),
    )
    return layout


def forget_vocab(layout: Layout, *models: str) -> None:
    """Make a lake one of a version that kept no vocabulary."""
    for model in models:
        marker = layout.model(model) / "model.json"
        record = json.loads(marker.read_text())
        write_json(marker, sealed({key: record[key] for key in record if key != "vocab_sha256"}))
        (marker.parent / "vocab.parquet").unlink()


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes; empty for a folder that is not there."""
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def write_tree(folder: Path, files: dict[str, bytes]) -> None:
    """The files that `tree` gave of a folder."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def dead_name(path: Path) -> Path:
    """The temporary name that a process which has ended would have used for `path`."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return path.with_name(temporary_of(path).name.replace(f"-{os.getpid()}.tmp", f"-{process.pid}.tmp"))


def edit_json(path: Path, **changes: Any) -> None:
    """Change some keys of a JSON file in place; a record of a lake gets its own hash again."""
    record = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps(sealed(record) if "record_sha256" in record else record))


def flip(path: Path, at: int) -> None:
    """Invert one byte of a file."""
    data = bytearray(path.read_bytes())
    data[at] ^= 0xFF
    path.write_bytes(bytes(data))


def head(width: int, vocab: int) -> Head:
    """A random head."""
    generator = torch.Generator().manual_seed(0)
    return Head(torch.randn(vocab, width, generator=generator), torch.ones(width))


# Made-up streams, values and captures, under the names that the tests know them by.
synthetic_stream, blocks_of, write_capture, MODEL = made_stream, made_values, write_values, RECORD
