"""Loading a checkpoint: the untouched Hugging Face module, its tokenizer, its parts, and its identity."""

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...analyze.lens.head import Head
from ...store.artifacts.models import read_model
from ...store.artifacts.weights import check_weights, read_weights, weights_folder
from ...store.core.catalog import ModelSpec
from ...store.core.files import hash_files, hash_json
from ...store.format.paths import Layout
from ..checkpoint.configs import config_for, dtype_of, load_config, load_tokenizer, model_class
from ..checkpoint.extras import quantised_of
from ..checkpoint.loading import check_dtype, load_hf, probed
from ..checkpoint.tokens import control_ids, real_token_mask, tokenizer_hash
from .structure import Structure, discover
from .trace import device_of_input


@dataclass(frozen=True)
class Model:
    """A loaded checkpoint: the untouched Hugging Face module, its tokenizer, its parts and its head in float32.

    `notes` say which tensors of its files are not run. Of a model that goes layer by layer (by_layer.load_frame) `blocks` reads
    the blocks, and `played` has what they computed.
    """

    spec: ModelSpec
    hf: Any
    tokenizer: Any
    parts: Structure
    head: Head
    record: dict[str, Any]
    notes: tuple[str, ...] = ()
    blocks: Any = None
    played: Any = None

    @property
    def name(self) -> str:
        """The model's name in the catalog."""
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
        """Longest sequence the model was made for, in tokens; None where its config has no limit."""
        return context_of(self.hf.config)

    @property
    def head_device(self) -> torch.device:
        """Device of the unembedding, which a device map may put elsewhere than the embedding."""
        return next(self.parts.unembed.parameters()).device

    @cached_property
    def head_on_device(self) -> Head:
        """The head on the unembedding's device, float32."""
        return self.head.to(self.head_device)

    @cached_property
    def post_norm(self) -> tuple[np.ndarray, float | None] | None:
        """Weights [L, d] and eps of the norm between each MLP and the residual, or None (METHODS 1.2).

        The eps is None where a block multiplies its MLP's output only.
        """
        found = self.parts.multipliers()
        return None if found is None else (found[0].numpy(), found[1])

    def logits(self, resid: torch.Tensor) -> torch.Tensor:
        """Logits of final residuals [n, d] through the model's own norm and unembedding, in its dtype."""
        normed, scale = self.parts.norm(resid), self.parts.head_scale
        out = self.parts.unembed(normed if scale == 1 else normed * scale)
        if (
            factor := self.head.logit_scale / scale
        ) != 1:  # a product by one takes as long as a third of the unembedding
            out = out * factor
        cap = self.head.softcap
        return torch.tanh(out / cap) * cap if cap else out


def context_of(config: Any) -> int | None:
    """The longest sequence that a config allows, in tokens; None for no limit (some say -1)."""
    found = getattr(config.get_text_config(), "max_position_embeddings", None)
    return found if found and found > 0 else None


def stored_weights(layout: Layout, model: str) -> ModelSpec | None:
    """The model whose own files the lake holds (`capture --with-weights`), to be loaded like any other; else None.

    CorruptError when they are not what was captured.
    """
    if not read_weights(layout, model):
        return None
    check_weights(layout, model)
    record, folder = read_model(layout, model), weights_folder(layout, model)
    origin = record.get("quantized_from", {}).get("file")
    hub = None if record["files"] else record["id"]
    return ModelSpec(model, folder, hub, record["revision"] if hub else None, origin, record["template"])


def load_model(
    spec: ModelSpec, device: str = "cpu", dtype: str = "auto", attention: str = "sdpa", device_map: Any = None
) -> Model:
    """Load a checkpoint from safetensors or a GGUF file, find its parts and check them with a small forward.

    `device_map` ('auto', or a dict as accelerate takes it) spreads blocks over several devices in place of `device`.
    Raises LakeError for an unloadable folder, an unknown dtype, or a model whose blocks are not input plus branches.
    """
    tokenizer = load_tokenizer(spec)  # before the weights, which take longer
    hf, notes = load_hf(spec, device, dtype, attention, device_map)
    parts, head = probed(spec, hf, lambda: discover(hf))
    record = record_of(identify(spec, dtype, tokenizer), hf, tokenizer, len(parts.blocks), head, hf.num_parameters())
    return Model(spec, hf, tokenizer, parts, head, record, notes)


def record_of(
    identity: dict[str, Any], hf: Any, tokenizer: Any, n_layers: int, head: Head, parameters: int
) -> dict[str, Any]:
    """What the lake keeps of a model beside its head: its identity, its class and its sizes."""
    config = {
        key: _finite(value)
        for key, value in hf.config.get_text_config().to_diff_dict().items()
        if not key.startswith("_") and key != "dtype"
    }
    return {
        **identity,
        "class": type(hf).__name__,
        "config": config,
        "n_layers": n_layers,
        "d_model": head.d_model,
        "vocab": head.vocab,
        "parameters": parameters,
        "special_ids": sorted(control_ids(tokenizer)),
    }


def _finite(value: Any) -> Any:
    """A config's value as JSON takes it: infinities (time limits of state spaces) as text."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def identify(spec: ModelSpec, dtype: str = "auto", tokenizer: Any = None) -> dict[str, Any]:
    """The identity of a checkpoint, without loading its weights.

    Keys: id, revision, files (SHA-256 each, for a local folder or GGUF file), dtype, tokenizer_sha256,
    chat_template_sha256, template (of
    native streams), quantized_from (a GGUF's name and SHA-256, there only), quantized (how another checkpoint is: method,
    bits, dequantized), and sha256 over all that determines activations. The dtype is the one that the module will have.
    """
    check_dtype(dtype)
    tokenizer = tokenizer or load_tokenizer(spec)
    config = load_config(spec)
    path = None if spec.hub else spec.path  # the lake's copy of a hub model is known by the hub's name for it
    names = [path / spec.gguf_file] if path and spec.gguf_file else path.iterdir() if path else []
    files = hash_files((file for file in names if file.is_file()), path) if path else {}
    record: dict[str, Any] = {
        "id": spec.hub or (Path(spec.gguf_file).stem if spec.gguf_file else path.name if path else ""),
        "revision": spec.revision or getattr(config, "_commit_hash", None),
        "files": files,
        "dtype": dtype_of(spec, config) if dtype == "auto" else dtype,
        "tokenizer_sha256": tokenizer_hash(tokenizer),
        "chat_template_sha256": hash_json(tokenizer.chat_template),
        "template": spec.template,
    }
    origin = [record["id"], record["revision"]]
    if spec.gguf_file:
        origin.append(spec.gguf_file)
        record["quantized_from"] = {"file": spec.gguf_file, "sha256": files.get(spec.gguf_file)}
    elif quantised := quantised_of(spec, config_for(model_class(spec, config), config)):
        record["quantized"] = quantised.record
    weights = {name: sha for name, sha in files.items() if name.endswith((".safetensors", ".gguf", "config.json"))}
    determines = [weights or origin, record["dtype"], record["tokenizer_sha256"]]
    return {**record, "sha256": hash_json(determines)}


def head_arrays(model: Model) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What the lake keeps of a model's head: float32 arrays (exact widening) and attributes for artifacts.models."""
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
    if model.post_norm is not None:
        found["post_norm_weight"], attrs["post_norm_eps"] = model.post_norm
    return found, attrs
