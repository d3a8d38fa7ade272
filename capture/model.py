"""Loading a checkpoint: the untouched Hugging Face module, its tokenizer, its parts, and what tells it from another."""

import struct
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from ..analyze.device import AUTO, pick
from ..analyze.head import Head
from ..store.catalog import ModelSpec
from ..store.errors import LakeError
from ..store.files import hash_files, hash_json
from ..store.layout import Layout
from ..store.models import read_model
from ..store.progress import ERRORS
from ..store.urls import scrubbed
from ..store.weights import read_weights, weights_folder
from .gguf import DTYPE, gguf_path, loading, read_once
from .stops import declared
from .structure import Structure, device_of_input, discover, norm_parameters
from .templates import template_elsewhere
from .tokens import real_token_mask, tokenizer_hash

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")


@dataclass(frozen=True)
class Model:
    """A loaded checkpoint: the untouched Hugging Face module, its tokenizer, its parts and its head in float32."""

    spec: ModelSpec
    hf: Any
    tokenizer: Any
    parts: Structure
    head: Head
    record: dict[str, Any]

    @property
    def name(self) -> str:
        """PAIR/VARIANT."""
        return self.spec.name

    @property
    def n_layers(self) -> int:
        """Number of blocks L."""
        return len(self.parts.blocks)

    @property
    def device(self) -> torch.device:
        """Device of the embedding, where token ids go."""
        return device_of_input(self.hf)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights and so of the activations."""
        return self.hf.dtype

    @property
    def max_positions(self) -> int | None:
        """Longest sequence the model was made for, in tokens."""
        return getattr(self.hf.config.get_text_config(), "max_position_embeddings", None)

    @property
    def head_device(self) -> torch.device:
        """Device of the unembedding, which a device map may put elsewhere than the embedding."""
        return next(self.parts.unembed.parameters()).device

    @cached_property
    def head_on_device(self) -> Head:
        """The head where the unembedding lies, float32."""
        return self.head.to(self.head_device)

    @cached_property
    def post_norm(self) -> tuple[np.ndarray, float] | None:
        """Weights [L, d] and eps of the norm between each MLP and the residual, or None (METHODS 1.2)."""
        arrays, attrs = head_arrays(self)
        return (arrays["post_norm_weight"], attrs["post_norm_eps"]) if self.parts.post_norms else None

    def logits(self, resid: torch.Tensor) -> torch.Tensor:
        """Logits of final residuals [n, d] through the model's own norm and unembedding, in its dtype."""
        out = self.parts.unembed(self.parts.norm(resid)) * self.head.logit_scale
        cap = self.head.softcap
        return torch.tanh(out / cap) * cap if cap else out


# What Hugging Face raises for files that are not what they should be.
UNREADABLE = (
    OSError,
    ValueError,
    KeyError,
    IndexError,
    RuntimeError,
    AssertionError,
    ImportError,
    SafetensorError,
    struct.error,
)


def source(spec: ModelSpec) -> str:
    """The folder or hub id a model is loaded from; LakeError when a folder can't hold one."""
    if spec.gguf_file:
        gguf_path(spec)
    folder = spec.path
    if folder is None:
        return str(spec.hub)
    if spec.gguf_file:
        return str(folder)
    if not (folder / "config.json").is_file():
        raise LakeError(f"model {spec.name}: {folder} has no config.json; it should be a Hugging Face model folder")
    if not list(folder.glob("*.safetensors")):
        raise LakeError(
            f"model {spec.name}: {folder} has no .safetensors file; actlake loads nothing else (save it with"
            " save_pretrained)"
        )
    return str(folder)


def stored_weights(layout: Layout, pair: str, variant: str) -> ModelSpec | None:
    """The model whose own files the lake holds (`capture --with-weights`), to be loaded like any other; else None."""
    if not read_weights(layout, pair, variant):
        return None
    record, folder = read_model(layout, pair, variant), weights_folder(layout, pair, variant)
    origin = record.get("quantized_from", {}).get("file")
    hub = None if record["files"] else record["id"]
    return ModelSpec(pair, variant, folder, hub, record["revision"] if hub else None, origin)


def load_config(spec: ModelSpec) -> Any:
    """The Hugging Face config of a model, nothing else."""
    return _load(AutoConfig, spec, "read its config")


def load_tokenizer(spec: ModelSpec) -> Any:
    """The tokenizer of a model with its chat template, which may lie in a file of its own; nothing else."""
    tokenizer = _load(AutoTokenizer, spec, "load its tokenizer")
    if not tokenizer.chat_template and not spec.gguf_file:
        tokenizer.chat_template = template_elsewhere(spec, source(spec))
    return tokenizer


def _load(auto: Any, spec: ModelSpec, what: str) -> Any:
    where = source(spec)
    try:
        if spec.gguf_file:
            return read_once(auto, spec, where)
        return auto.from_pretrained(where, revision=spec.revision or "main", trust_remote_code=False)
    except UNREADABLE as error:
        raise unreadable(spec, what, error) from error


def unreadable(spec: ModelSpec, what: str, error: BaseException) -> LakeError:
    """One line for what Hugging Face raises about a model's files."""
    first = scrubbed(next(iter(str(error).splitlines()), "")) or type(error).__name__
    return LakeError(f"model {spec.name}: can't {what}: {first}")


def load_model(
    spec: ModelSpec, device: str = "cpu", dtype: str = "auto", attention: str = "sdpa", device_map: Any = None
) -> Model:
    """Load a checkpoint from safetensors or a GGUF file, find its parts and check them with a small forward.

    `device_map` ('auto', or a dict as accelerate takes it) spreads blocks over several devices in place of `device`.
    Raises LakeError for an unloadable folder, an unknown dtype, or a model whose parts don't add up.
    """
    hf = load_hf(spec, AutoModelForCausalLM, device, dtype, attention, device_map)
    parts, head = discover(hf)
    tokenizer = load_tokenizer(spec)
    config = {
        key: value
        for key, value in hf.config.get_text_config().to_diff_dict().items()
        if not key.startswith("_") and key != "dtype"
    }
    record = {
        **identify(spec, dtype, tokenizer),
        "class": type(hf).__name__,
        "config": config,
        "n_layers": len(parts.blocks),
        "d_model": head.d_model,
        "vocab": head.vocab,
        "parameters": sum(p.numel() for p in hf.parameters()),
        "special_ids": sorted(tokenizer.all_special_ids),
    }
    return Model(spec, hf, tokenizer, parts, head, record)


def load_hf(
    spec: ModelSpec, auto: Any, device: str, dtype: str, attention: str, device_map: Any = None, **options: Any
) -> Any:
    """A Hugging Face module of the class `auto` with a checkpoint's weights; LakeError for whatever is wrong with them."""
    check_dtype(dtype)
    check_device_map(device_map, device)
    device = "cpu" if device_map else pick(device)
    where = source(spec)
    kind: dict[str, Any] = {"config": load_config(spec), "use_safetensors": True}
    stops = list(declared(spec, where, kind["config"])) or None  # all of a generation config that counts
    if spec.gguf_file:
        kind, dtype = {"config": kind["config"], **loading(spec)}, DTYPE if dtype == "auto" else dtype
    if not ERRORS.is_terminal:
        transformers.utils.logging.disable_progress_bar()
    verbosity = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()  # its report of gaps is a page long; ours is below
    try:
        loaded: Any = auto.from_pretrained(
            where,
            revision=spec.revision or "main",
            trust_remote_code=False,
            dtype=DTYPES.get(dtype, "auto"),
            # None: sdpa, or eager in a class that has no sdpa (soft caps, sinks); `attention_of` says which it was.
            attn_implementation=None if attention == "sdpa" else attention,
            device_map=device_map,
            generation_config=GenerationConfig(eos_token_id=stops),
            **{**kind, **options},
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, in one line
        )
        hf = (loaded[0] if device_map else loaded[0].to(device)).eval()
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise LakeError(
            f"model {spec.name}: its weights do not fit into the memory of {device}; --device-map auto spreads them over several"
            " devices, --dtype bfloat16 halves float32 ones"
        ) from error
    except UNREADABLE as error:
        raise unreadable(spec, f"load {where}", error) from error
    finally:
        transformers.utils.logging.set_verbosity(verbosity)
    # Hugging Face fills gaps with random numbers and a warning.
    gaps = sorted(loaded[1]["missing_keys"]) + sorted(key[0] for key in loaded[1]["mismatched_keys"])
    if gaps:
        raise LakeError(
            f"model {spec.name}: {where} lacks {len(gaps)} weights that its config asks for, or has them in"
            f" another shape (first: {gaps[0]}); the folder is incomplete or its config.json belongs to another model"
        )
    absent = [name for name, parameter in hf.named_parameters() if parameter.is_meta]
    if absent:
        raise LakeError(
            f"model {spec.name}: does not fit on the devices, {len(absent)} weights would be moved in and out (first:"
            f" {absent[0]}); use more or larger devices, or --device cpu"
        )
    return hf


def attention_of(hf: Any) -> str:
    """The attention kernel that a loaded module's decoder runs: 'sdpa', or 'eager' where its class has no other."""
    return str(hf.config.get_text_config()._attn_implementation)


def device_of(name: str) -> torch.device:
    """The torch device of this name, which need not be there; LakeError for a name that is none."""
    try:
        return torch.device(pick() if name == AUTO else name)
    except RuntimeError as error:
        raise LakeError(f"device {name!r}: expected cpu, cuda, cuda:1, mps ... or auto") from error


def check_device_map(device_map: Any, device: str) -> None:
    """Raise LakeError for a device that is none, and for a device map that can't be followed or contradicts it."""
    if device != AUTO and device_of(device).type != "cpu" and device_map:
        raise LakeError(f"--device {device} and --device-map exclude each other; leave one out")
    if isinstance(device_map, str) and device_map not in DEVICE_MAPS:
        raise LakeError(f"device map {device_map!r}: expected one of {', '.join(DEVICE_MAPS)}")
    if device_map and find_spec("accelerate") is None:
        raise LakeError("--device-map needs the package accelerate: pip install accelerate")


def check_dtype(dtype: str) -> None:
    """Raise LakeError for a dtype that is neither 'auto' nor known."""
    if dtype != "auto" and dtype not in DTYPES:
        raise LakeError(f"dtype {dtype!r}: expected auto, {', '.join(DTYPES)}")


def identify(spec: ModelSpec, dtype: str = "auto", tokenizer: Any = None) -> dict[str, Any]:
    """What tells one checkpoint from another, without loading its weights.

    Keys: id, revision, files (SHA-256 each, for a local folder or GGUF file), dtype, tokenizer_sha256,
    chat_template_sha256, quantized_from (a GGUF's name and SHA-256, there only), and sha256 over all that determines
    activations.
    """
    check_dtype(dtype)
    tokenizer = tokenizer or load_tokenizer(spec)
    config = load_config(spec)
    path = None if spec.hub else spec.path  # the lake's copy of a hub model is known by the hub's name for it
    names = [path / spec.gguf_file] if path and spec.gguf_file else path.iterdir() if path else []
    files = hash_files((file for file in names if file.is_file()), path) if path else {}
    stored = getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None) or torch.float32
    if spec.gguf_file:
        stored = DTYPES[DTYPE]
    record: dict[str, Any] = {
        "id": spec.hub or (Path(spec.gguf_file).stem if spec.gguf_file else path.name if path else ""),
        "revision": spec.revision or getattr(config, "_commit_hash", None),
        "files": files,
        "dtype": str(stored if dtype == "auto" else DTYPES[dtype]).removeprefix("torch."),
        "tokenizer_sha256": tokenizer_hash(tokenizer),
        "chat_template_sha256": hash_json(tokenizer.chat_template),
    }
    origin = [record["id"], record["revision"]]
    if spec.gguf_file:
        origin.append(spec.gguf_file)
        record["quantized_from"] = {"file": spec.gguf_file, "sha256": files.get(spec.gguf_file)}
    weights = {name: sha for name, sha in files.items() if name.endswith((".safetensors", ".gguf", "config.json"))}
    determines = [weights or origin, record["dtype"], record["tokenizer_sha256"]]
    return {**record, "sha256": hash_json(determines)}


def head_arrays(model: Model) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What the lake keeps of a model's head: float32 arrays (exact widening) and attributes for store.models."""
    head = model.head
    arrays = {
        "norm_weight": head.norm_weight,
        "unembed": head.unembed,
        "norm_bias": head.norm_bias,
        "unembed_bias": head.bias,
    }
    found = {name: value.numpy() for name, value in arrays.items() if value is not None}
    found["real_token"] = real_token_mask(model.tokenizer, head.vocab)
    attrs = {
        "norm": head.norm,
        "norm_eps": head.eps,
        "softcap": head.softcap,
        "logit_scale": head.logit_scale,
        "parallel": model.parts.parallel,
    }
    if model.parts.post_norms:
        x = torch.randn(4, head.d_model, generator=torch.Generator().manual_seed(0))
        norms = [norm_parameters(norm, x) for norm in model.parts.post_norms]
        found["post_norm_weight"] = torch.stack([norm["weight"] for norm in norms]).numpy()
        attrs["post_norm_eps"] = norms[0]["eps"]
    return found, attrs
