"""Quantised checkpoints: the method that config.json names, what loading one needs, and what the record holds."""

from dataclasses import dataclass
from typing import Any

from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

from ...store.core.catalog import ModelSpec
from ...store.core.errors import LakeError
from .causes import cause

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
