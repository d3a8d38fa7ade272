"""Tensors of a checkpoint without a place in its module, those that are missed, and quantised weights."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

from ...store.core.catalog import ModelSpec
from ...store.core.errors import LakeError
from .causes import cause
from .configs import tensors_of
from .files import FLOATS, Tensor, adapted, counted, listed

# transformers unpacks these to plain weights on request: then hooks, cuts and replays meet the usual modules, and
# every device computes the same.
UNPACKED = ("fp8", "mxfp8", "mxfp4", "compressed-tensors", "metal")
# Keys under which methods say how many bits a weight takes.
BITS = ("bits", "w_bit", "num_bits", "weight_bits", "w_bits", "nbits", "wbits")
KNOWN_BITS = {"fp8": 8, "mxfp8": 8, "fbgemm_fp8": 8, "mxfp4": 4, "nvfp4": 4, "eetq": 8}


@dataclass(frozen=True)
class Quantised:
    """How a checkpoint is quantised: `method` as its config names it, bits a weight (None: unknown), and whether its weights
    are unpacked to plain ones while they load."""

    method: str
    bits: int | None
    dequantised: bool

    @property
    def words(self) -> str:
        """The method and its bits."""
        return self.method + (f", {self.bits} bits" if self.bits else "")

    @property
    def record(self) -> dict[str, Any]:
        """What model.json keeps."""
        return {"method": self.method, "bits": self.bits, "dequantized": self.dequantised}

    def unloadable(self, spec: ModelSpec, error: BaseException) -> LakeError:
        """One line for a quantised checkpoint that can't be loaded here, with the missing package or device that it names."""
        return LakeError(
            f"model {spec.name}: it is quantised ({self.words}) and can't be loaded here: {cause(error)}; install what is"
            " missing, or capture the model it was made from"
        )


def quantised_of(spec: ModelSpec, config: Any) -> Quantised | None:
    """How the checkpoint of a config is quantised, None when it is not; LakeError for a method that transformers lacks.

    GGUF files are not covered here: they are `quantized_from` in the record.
    """
    found = getattr(config, "quantization_config", None)
    if found is None or spec.gguf_file:
        return None
    known = found if isinstance(found, dict) else found.to_dict()
    method = known.get("quant_method")
    if known.get("load_in_4bit") or known.get("load_in_8bit"):
        method = "bitsandbytes_4bit" if known.get("load_in_4bit") else "bitsandbytes_8bit"
    if not isinstance(method, str) or method.removesuffix("_4bit").removesuffix("_8bit") not in _methods():
        raise LakeError(
            f"model {spec.name}: its config.json has quantization_config.quant_method {method!r}, expected one of"
            f" {', '.join(sorted(_methods()))}; capture the model it was made from"
        )
    method = str(method)
    bits = 4 if method.endswith("_4bit") else 8 if method.endswith("_8bit") else KNOWN_BITS.get(method) or _bits(known)
    return Quantised(method.removesuffix("_4bit").removesuffix("_8bit"), bits, method in UNPACKED)


def unpack(config: Any, found: Quantised | None) -> None:
    """Ask transformers, through the config, to unpack a quantised checkpoint's weights where it can."""
    stored = getattr(config, "quantization_config", None)
    if found and found.dequantised and stored is not None:
        config.quantization_config = {**(stored if isinstance(stored, dict) else stored.to_dict()), "dequantize": True}


def _methods() -> set[str]:
    return {method.removesuffix("_4bit").removesuffix("_8bit") for method in AUTO_QUANTIZER_MAPPING} - {"gguf"}


def _bits(found: Any) -> int | None:
    """The first number of bits in a quantisation config, those of weights before others; None without one."""
    if isinstance(found, dict):
        for key in BITS:
            if isinstance(found.get(key), int):
                return int(found[key])
        for key in sorted(found, key=lambda key: "weight" not in str(key)):
            if "activation" not in str(key) and (bits := _bits(found[key])) is not None:
                return bits
    return None


# Buffers of older versions and caches of quantisation: constants, which no forward of today reads from a file.
LEFTOVER = re.compile(
    r"(?:^|\.)(?:inv_freq|original_inv_freq|position_ids|token_type_ids|cos_cached|sin_cached|cos|sin|masked_bias|causal_mask"
    r"|embed_positions\.(?:weights|_float_tensor)|_float_tensor|_extra_state|num_batches_tracked|version"
    r"|[kvq]_scale|kv_scale|prob_output_scale|output_scale|[kvq]_proj\.[kvq]_scale|[kvq]_proj\.output_scale)$"
)
MASK = re.compile(r"(?:^|\.)(?:attn|attention|self_attn|self_attention)\.(?:bias|attention\.bias)$")
# Parts beside the decoder of text that are not run, with their names for messages.
BESIDE = (
    (re.compile(r"(?:^|\.)(?:mtp|mtp_layers?|mtp_block|nextn|medusa_heads?|eagle\w*|draft_model)\."), "of draft heads"),
    (re.compile(r"(?:^|\.)v_head\."), "of a value head"),
)
SENSES = re.compile(
    r"(?:^|\.)(?:visual|vision\w*|vit|image\w*|audio\w*|speech\w*|video\w*|multi_modal\w*|mm_\w+|connector|aligner|embed_vision"
    r"|embed_audio|perceiver\w*|resampler|talker|token2wav|code2wav)\."
)
# A multi-token-prediction layer of DeepSeek and its kin, which follows the last block and has a block's name.
DRAFT_LAYER = re.compile(r"\.(?:eh_proj|enorm|hnorm|shared_head|embed_tokens|final_layernorm|input_proj)\b")
BLOCK = re.compile(r"(?:^|\.)(?:layers|h|blocks|block)\.(\d+)\.")
SCALES = re.compile(
    r"\.(?:weight_scale(?:_inv|_2)?|input_scale|qweight|qzeros|g_idx|weight_packed|weight_shape|SCB"
    r"|weight\.(?:absmax|quant_map|nested_\w+|quant_state\.\S+))$"
)
PACKED = ("F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "F6_E2M3", "F6_E3M2")


def check_before(spec: ModelSpec, quantised: Quantised | None) -> None:
    """Raise LakeError for what headers alone tell: factors of an adapter, packed weights without a description."""
    found = tensors_of(spec)
    if stray := adapted(found):
        raise LakeError(
            f"model {spec.name}: the files hold {counted(stray)} of an adapter beside the model's ({listed(stray)}), which"
            " nothing would apply: merge it (peft: merge_and_unload, save_pretrained) and name that folder"
        )
    if (
        found
        and quantised
        and quantised.dequantised
        and not any(_is_packed(name, tensor) for name, tensor in found.items())
    ):
        raise LakeError(
            f"model {spec.name}: config.json says it is quantised ({quantised.words}), its files hold no packed tensor: take"
            " quantization_config out of config.json, or take the files that belong to it"
        )
    packed = [
        name
        for name, tensor in found.items()
        if tensor.dtype in PACKED or (name.endswith("weight") and tensor.dtype not in FLOATS)
    ]
    if packed and not quantised:
        raise LakeError(
            f"model {spec.name}: {counted(packed)} of the files of type {found[packed[0]].dtype} ({listed(packed)}) but"
            " config.json has no quantization_config that says with which scales they are unpacked: take the config.json that"
            " belongs to them, or the model in bfloat16"
        )


def _is_packed(name: str, tensor: Tensor) -> bool:
    """Whether a tensor belongs to a quantisation, by its name or dtype."""
    return tensor.dtype in (*PACKED, "U8", "I8") or bool(SCALES.search(name)) or name.endswith(("_blocks", "_scales"))


def without_scales(spec: ModelSpec, quantised: Quantised | None) -> str:
    """A message on a checkpoint with tensors of a quantisation that its config does not name; '' for any other."""
    scales = [] if quantised else [name for name in tensors_of(spec) if SCALES.search(name)]
    return (
        f"the files hold {counted(scales)} of a quantisation ({listed(scales)}) and config.json has no quantization_config:"
        " take the config.json that belongs to them"
        if scales
        else ""
    )


def check_extras(spec: ModelSpec, hf: Any, unexpected: Iterable[str], quantised: Quantised | None) -> tuple[str, ...]:
    """Notes on weights of the files that the module does not run; LakeError for those that it should.

    `unexpected` are the tensors that Hugging Face read and found no place for.
    """
    found = tensors_of(spec)
    taken, base = set(hf.state_dict()), f"{hf.base_model_prefix}."
    taken |= {name.removeprefix(base) for name in taken}  # files of the model without its head leave the prefix out
    patterns = [re.compile(pattern) for pattern in getattr(hf, "_keys_to_ignore_on_load_unexpected", None) or ()]
    ignored = [name for name in found if any(pattern.search(name) for pattern in patterns)]
    blocks = int(hf.config.get_text_config().num_hidden_layers)
    drafts = {
        match[1] for name in [*unexpected, *ignored] if DRAFT_LAYER.search(name) and (match := BLOCK.search(name))
    }
    kinds: dict[str, list[str]] = {}
    left = []
    for name in sorted({*unexpected, *ignored}):
        if name in taken or _is_leftover(name, found.get(name)) or _is_tied(name, hf):
            continue
        if quantised and SCALES.search(name):
            continue
        kind = _beside(name, hf, blocks, drafts)
        if kind:
            kinds.setdefault(kind, []).append(name)
        elif name in ignored and name not in unexpected and not MASK.search(name):
            kinds.setdefault("that its class leaves out", []).append(name)
        else:
            left.append(name)
    if left and (reason := without_scales(spec, quantised)):
        raise LakeError(f"model {spec.name}: {reason}")
    if left:
        raise LakeError(
            f"model {spec.name}: the files hold {counted(left)} that {type(hf).__name__} does not take ({listed(left)})"
            f"{_guess(left, blocks)}; captured, they would silently be missing: correct config.json, or take them out"
        )
    return tuple(f"{counted(names)} {kind} in the files, not run ({listed(names, 2)})" for kind, names in kinds.items())


def _is_leftover(name: str, tensor: Tensor | None) -> bool:
    """Whether a tensor is a constant of an older version: a rotary table, a causal mask [.., T, T], a scale of a cache."""
    if LEFTOVER.search(name):
        return True
    square = tensor is not None and len(tensor.shape) >= 2 and tensor.shape[-1] == tensor.shape[-2]
    return bool(MASK.search(name)) and (tensor is None or square)


def _is_tied(name: str, hf: Any) -> bool:
    """Whether a tensor is a second copy of one that is tied in the module."""
    return any(
        name == tied or name.endswith(f".{tied}") or tied.endswith(f".{name}") for tied in hf.all_tied_weights_keys
    )


def _beside(name: str, hf: Any, blocks: int, drafts: set[str]) -> str:
    """What part beside the decoder of text a tensor belongs to, '' for none."""
    for pattern, what in BESIDE:
        if pattern.search(name):
            return what
    match = BLOCK.search(name)
    extra = getattr(hf.config.get_text_config(), "num_nextn_predict_layers", None) or 0
    if match and int(match[1]) >= blocks and (match[1] in drafts or int(match[1]) < blocks + int(extra)):
        return "of layers that predict further tokens (MTP)"
    return "of the part for pictures or sound" if SENSES.search(name) else ""


def _guess(names: list[str], blocks: int) -> str:
    """What the first of some tensors without a place are, as far as their names tell."""
    found = [int(match[1]) for name in names if (match := BLOCK.search(name))]
    if found and max(found) >= blocks:
        return f": they reach to block {max(found)}, its config says num_hidden_layers {blocks}"
    if any(name.endswith("bias") for name in names):
        return ": biases that its config does not ask for"
    return ""
