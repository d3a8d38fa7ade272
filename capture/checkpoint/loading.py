"""Reading a checkpoint's weights into its Hugging Face module: all tensors of the config, and no others."""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from importlib.util import find_spec
from math import prod
from typing import Any, TypeVar

import torch
from transformers import GenerationConfig

from ...analyze.core.device import AUTO, pick
from ...store.core.catalog import ModelSpec
from ...store.core.errors import LakeError
from .causes import cause, silent
from .configs import DTYPES, auto_of, config_for, dtype_of, explained, load_config, model_class, source, tensors_of
from .extras import Quantised, check_before, check_extras, quantised_of, unpack, without_scales
from .files import wrapped
from .gguf import forget, loading, reading
from .stops import declared

T = TypeVar("T")
WRAPPED_TEXT = ("model.language_model.", "language_model.")  # where classes for pictures or sound keep their text part
DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")


def load_hf(
    spec: ModelSpec,
    device: str,
    dtype: str,
    attention: str,
    device_map: Any = None,
    kind: Any = None,
    whole: Any = None,
) -> tuple[Any, tuple[str, ...]]:
    """A Hugging Face module with a checkpoint's weights, and notes on tensors of the files that it does not run.

    `kind` is the module's class, unless it is to be the checkpoint's own; of a cut one (model.partial) it is not checked what
    the files hold beside, but for `whole`, the module without memory that it is a part of. LakeError for whatever is wrong
    with the files.
    """
    check_dtype(dtype)
    check_device_map(device_map, device)
    device = "cpu" if device_map else pick(device)
    where, given = source(spec), load_config(spec)
    config = config_for(kind or model_class(spec, given), given)
    found = quantised_of(spec, config)
    dtype = dtype_of(spec, given) if dtype == "auto" else dtype
    check_before(spec, found)
    if (kind is None or whole is not None) and not found and not spec.gguf_file:
        _check_size(spec, given)
    special = loading(spec) if spec.gguf_file else {"use_safetensors": True}
    for part in (given, config):  # one and the same, but for a class of text alone in a wrapper's checkpoint
        unpack(part, found)
        part.return_dict = True  # false would make every forward return a bare tuple
    # A module whose weights stay packed can't be moved any more.
    placed = device_map or ({"": device} if found and not found.dequantised else None)
    stops = list(declared(spec, where, given)) or None  # all of a generation config that counts
    try:
        with (
            silent(),
            reading() if spec.gguf_file else nullcontext(),
        ):  # its report of gaps is a page long; ours is below
            hf, info = (kind or auto_of(spec, given)).from_pretrained(
                where,
                config=config if kind else given,
                revision=spec.revision or "main",
                trust_remote_code=False,
                dtype=DTYPES[dtype],
                # None: sdpa, or eager in a class that has no sdpa (soft caps, sinks); `attention_of` says which it was.
                attn_implementation=None if attention == "sdpa" else attention,
                device_map=placed,
                generation_config=GenerationConfig(eos_token_id=stops),
                **special,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported below, in one line
            )
        hf = (hf if placed else hf.to(device)).eval()
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise LakeError(
            f"model {spec.name}: its weights do not fit into the memory of {device}; --device-map auto spreads them over several"
            " devices, --dtype bfloat16 halves float32 ones"
        ) from error
    except Exception as error:  # any error of transformers here is about the checkpoint's files
        if found and not isinstance(error, LakeError):
            raise found.unloadable(spec, error) from error
        raise explained(spec, f"load {where}", error) from error
    forget()
    head = hf.get_output_embeddings() if kind is None else None
    if getattr(hf, "_hf_peft_config_loaded", False):
        raise LakeError(
            f"model {spec.name}: {where} names an adapter, which peft has put into the model; actlake merges no adapters:"
            " merge it (merge_and_unload, save_pretrained) and name that folder"
        )
    if found and head is not None and not head.weight.is_floating_point():
        raise LakeError(
            f"model {spec.name}: it is quantised ({found.words}) with its output head, which a lens reads unpacked; capture the"
            " model it was made from"
        )
    _check_whole(spec, where, hf, info, found)
    if str(hf.dtype) != f"torch.{dtype}":
        raise LakeError(
            f"model {spec.name}: loaded as {str(hf.dtype).removeprefix('torch.')} although {dtype} was asked for: its class or"
            " its quantisation allows no other; choose that one with --dtype"
        )
    judged = hf if kind is None else whole
    return hf, () if judged is None else check_extras(spec, judged, info["unexpected_keys"], found)


def _check_size(spec: ModelSpec, config: Any) -> None:
    """Raise LakeError for a config of a model twice as large as its files, before memory is taken for the gaps."""
    held = sum(prod(tensor.shape) for tensor in tensors_of(spec).values())
    if not held:  # a model of the hub whose files are not here yet
        return
    try:
        with torch.device("meta"), silent():
            module = model_class(spec, config)(copy.deepcopy(config))
    except LakeError:
        raise
    except Exception:  # noqa: BLE001 (what is wrong with the config is said where it is loaded)
        return
    asked = sum(parameter.numel() for parameter in module.parameters())
    if asked > 2 * held:
        raise LakeError(
            f"model {spec.name}: its config.json asks for {asked:,} weights, the files hold {held:,}: the folder is incomplete or"
            " its config.json belongs to another model"
        )


def _check_whole(spec: ModelSpec, where: str, hf: Any, info: dict[str, Any], found: Quantised | None) -> None:
    """Raise LakeError for weights that the files lack: Hugging Face fills gaps with random numbers and a warning."""
    gaps = sorted(info["missing_keys"]) + sorted(key[0] for key in info["mismatched_keys"])
    if gaps and (reason := without_scales(spec, found)):
        raise LakeError(f"model {spec.name}: {reason}")
    if gaps and (prefix := wrapped(tensors_of(spec))):
        raise LakeError(
            f"model {spec.name}: the names of its tensors begin with '{prefix}', as a wrapper of training leaves them: save them"
            " without it (save_pretrained of the model inside)"
        )
    elsewhere = [] if hasattr(hf.config, "text_config") else [n for n in tensors_of(spec) if n.startswith(WRAPPED_TEXT)]
    if gaps and elsewhere:
        raise LakeError(
            f"model {spec.name}: its tensors are named as in a class for pictures or sound and text ({elsewhere[0]}), config.json"
            f" is that of the text part alone ({hf.config.model_type}): take the one that belongs to the files"
        )
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


def probed(spec: ModelSpec, hf: Any, probe: Callable[[], T]) -> T:
    """The result of `probe`, a small forward of a loaded module; LakeError for whatever its own code raises."""
    try:
        with silent():
            return probe()
    except LakeError as error:
        raise LakeError(f"model {spec.name}: {error}") from error
    except Exception as error:
        raise LakeError(
            f"model {spec.name}: {type(hf).__name__} can't run on tokens alone: {cause(error)}; this architecture, or what its"
            " config.json asks of it, is not supported"
        ) from error


def attention_of(hf: Any) -> str:
    """The attention kernel that a loaded module's decoder runs: 'sdpa', or 'eager' where its class has no other."""
    return str(hf.config.get_text_config()._attn_implementation)


def device_of(name: str) -> torch.device:
    """The torch device of this name, which this machine need not have; LakeError if it is not a device name."""
    try:
        return torch.device(pick() if name == AUTO else name)
    except RuntimeError as error:
        raise LakeError(f"device {name!r}: expected cpu, cuda, cuda:1, mps ... or auto") from error


def check_device_map(device_map: Any, device: str) -> None:
    """Raise LakeError for an unknown device, and for a device map that can't be followed or contradicts it."""
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
