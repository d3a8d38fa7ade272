"""Configs and tokenizers of checkpoints: the class and dtype that run one, and one line of error when either can't be read."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import get_safetensors_metadata, try_to_load_from_cache
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoTokenizer,
)
from transformers.models.auto.auto_factory import _get_model_class
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

from ...store.core.catalog import ModelSpec
from ...store.core.errors import LakeError
from .causes import cause, cause_in, culprit, known_type, silent, walk
from .files import (
    INDEX,
    WHOLE,
    Tensor,
    check_folder,
    config_of,
    dtype_of_weights,
    header,
    index_of,
    tensors,
    weight_files,
)
from .gguf import DTYPE, check_gguf, read_once
from .templates import template_elsewhere

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
# Where a decoder's class is looked for, in this order: of a class that reads pictures or sound only the text part runs.
CLASSES = (AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM)
SIZES = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "vocab_size")
EVERYWHERE = ("xlnet", "flaubert")  # have a class named for generation, in which every token sees all others
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
)


def source(spec: ModelSpec) -> str:
    """The folder or hub id a model is loaded from; LakeError when a folder or GGUF file can't hold one."""
    if spec.gguf_file:
        check_gguf(spec)
        return str(spec.path or spec.hub)
    if spec.path is None:
        return str(spec.hub)
    check_folder(spec.name, spec.path)
    return str(spec.path)


def load_config(spec: ModelSpec) -> Any:
    """The Hugging Face config of a model, nothing else; LakeError that names the key when it can't be one."""
    where, raw = source(spec), {}
    if spec.path and not spec.gguf_file:
        raw = _raw_config(spec, spec.path)
    try:
        return _load(AutoConfig, spec, where)
    except Exception as error:  # any error of transformers here is about that file
        what = "the header of its GGUF file" if spec.gguf_file else "its config.json"
        reason = cause_in(error, raw) + culprit(raw, str(error), lambda left: _config_from(left))
        raise LakeError(f"model {spec.name}: can't read {what}: {reason}") from error


def load_tokenizer(spec: ModelSpec) -> Any:
    """The tokenizer of a model with its chat template, which may be in a file of its own; LakeError when it can't be read."""
    where = source(spec)
    try:
        tokenizer = _load(AutoTokenizer, spec, where)
    except Exception as error:
        load_config(spec)  # transformers reads it for the tokenizer's class: if it is at fault, the error names it
        if "custom code" in str(error):
            known = spec.path and (spec.path / "tokenizer.json").is_file()
            todo = (
                "take auto_map out of tokenizer_config.json to use its tokenizer.json"
                if known
                else "add a tokenizer.json"
            )
            raise LakeError(
                f"model {spec.name}: its tokenizer needs code of its own (auto_map), which actlake never runs; {todo}"
            ) from error
        reason = _without_tokenizer(spec.path, cause(error)) if spec.path and not spec.gguf_file else cause(error)
        raise LakeError(f"model {spec.name}: can't load its tokenizer: {reason}") from error
    tokenizer.model_max_length = (
        VERY_LARGE_INTEGER  # beyond it transformers warns; the context is checked where prompts are
    )
    if not tokenizer.chat_template and not spec.gguf_file:
        tokenizer.chat_template = template_elsewhere(spec, where)
    return tokenizer


def _load(auto: Any, spec: ModelSpec, where: str) -> Any:
    with silent():
        if spec.gguf_file:
            return read_once(auto, spec, where)
        return auto.from_pretrained(where, revision=spec.revision or "main", trust_remote_code=False)


def _config_from(raw: dict[str, Any]) -> Any:
    with silent():
        return CONFIG_MAPPING[raw["model_type"]].from_dict(raw)


def _raw_config(spec: ModelSpec, folder: Path) -> dict[str, Any]:
    """config.json as it stands; LakeError for what transformers would take without a word or explain without its key."""
    file = folder / "config.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LakeError(f"model {spec.name}: can't read {file}: no valid JSON ({error}); fetch it again") from error
    if not isinstance(found, dict):
        raise LakeError(f"model {spec.name}: {file}: expected an object, found {type(found).__name__}")
    if not isinstance(found.get("model_type", ""), str):
        raise LakeError(
            f"model {spec.name}: {file}: model_type is {found['model_type']!r}, expected the name of an architecture"
        )
    for key, value in walk(found):
        last, size = key.rpartition(".")[2], key.removeprefix("text_config.")
        if size in SIZES and isinstance(value, int) and not isinstance(value, bool) and value < 1:
            raise LakeError(f"model {spec.name}: {file}: {key} is {value}, expected a whole number from 1")
        if isinstance(value, float) and math.isnan(value):
            raise LakeError(f"model {spec.name}: {file}: {key} is NaN, expected a number")
        if last in ("dtype", "torch_dtype") and value is not None and not _is_dtype(value):
            raise LakeError(
                f"model {spec.name}: {file}: {key} is {value!r}, expected the bare name of a torch dtype ('bfloat16',"
                " 'float32' ...); correct it in a copy of the folder"
            )
    if found.get("auto_map") and not known_type(found.get("model_type")):
        raise LakeError(
            f"model {spec.name}: {file}: model_type {found.get('model_type')!r} needs code of its own (auto_map:"
            f" {', '.join(map(str, found['auto_map']))}), which actlake never runs; only architectures inside transformers"
            f" {transformers.__version__} can be captured"
        )
    return found


def _is_dtype(value: Any) -> bool:
    return isinstance(value, str) and isinstance(getattr(torch, value, None), torch.dtype)


def explained(spec: ModelSpec, what: str, error: BaseException) -> LakeError:
    """One line for what building or loading a module raised; a value that config.json holds is named with its key."""
    raw = config_of(spec.path) if spec.path and not spec.gguf_file else {}
    if isinstance(error, KeyError):
        return LakeError(f"model {spec.name}: can't {what}: its config.json: {cause_in(error, raw)}")
    unnamed = isinstance(error, AttributeError | TypeError | IndexError | ArithmeticError | AssertionError)
    key = culprit(raw, str(error), lambda left: _built(spec, left)) if unnamed else ""
    return LakeError(f"model {spec.name}: can't {what}: {cause(error)}{key}")


def _built(spec: ModelSpec, raw: dict[str, Any]) -> Any:
    """The module of a config, without memory."""
    config = _config_from(raw)
    kind = model_class(spec, config)
    with torch.device("meta"):
        return kind._from_config(config_for(kind, config))


def _without_tokenizer(folder: Path, error: str) -> str:
    """Why a folder has no tokenizer that can be read; `error` is what transformers says."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (folder / name).is_file() and not _is_object(folder / name):
            return f"{folder / name} is no JSON object; fetch it again"
    found = [name for name in TOKENIZER_FILES if (folder / name).is_file()]
    if not found and (folder / "tekken.json").is_file():
        return f"{folder} has only tekken.json, Mistral's own format; add the tokenizer.json of the model's repository on the hub"
    if not found:
        return f"{folder} has no tokenizer files ({', '.join(TOKENIZER_FILES[:3])} ...); add those of the model's repository"
    model = next((name for name in found if name.endswith(".model")), None)
    if model and "tokenizer.json" not in found:
        lacking = [name for name in ("sentencepiece", "google.protobuf") if not _installed(name)]
        if lacking:
            packages = " ".join(name.replace("google.", "") for name in lacking)
            return f"{folder / model} needs another package: pip install {packages} (or add a tokenizer.json)"
    if "tokenizer.json" not in found:
        return f"{folder} has no tokenizer.json, and no tokenizer can be made from what is there ({', '.join(found)}); add it"
    if error.startswith("Exception: "):  # of the package tokenizers about that file
        return (
            f"{folder / 'tokenizer.json'}: {error.removeprefix('Exception: ')}; fetch it again, or upgrade tokenizers"
        )
    return error


def _is_object(file: Path) -> bool:
    try:
        return isinstance(json.loads(file.read_text(encoding="utf-8")), dict)
    except (OSError, ValueError):
        return False


def _installed(name: str) -> bool:
    from importlib.util import find_spec

    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # the package above it is missing
        return False


def model_class(spec: ModelSpec, config: Any) -> Any:
    """The Hugging Face class of a decoder with its head; LakeError as in `auto_of`."""
    return _get_model_class(config, auto_of(spec, config)._model_mapping)


def auto_of(spec: ModelSpec, config: Any) -> Any:
    """The auto class that finds the class of a decoder with its head; LakeError for what is no decoder.

    Where there is no class for text alone the one for pictures or sound and text is taken: with tokens only, it is a decoder.
    """
    name, kind, text = type(config).__name__, config.model_type, config.get_text_config()
    if getattr(config, "is_encoder_decoder", False) or getattr(text, "is_encoder_decoder", False):
        raise LakeError(f"model {spec.name}: {name} is an encoder-decoder; actlake captures decoders only")
    decodes = getattr(config, "is_decoder", False) or getattr(config, "causal", False)
    if kind in EVERYWHERE or (kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not decodes):
        raise LakeError(
            f"model {spec.name}: {name} is an encoder (every token sees the later ones, is_decoder is not true); actlake captures"
            " decoders only"
        )
    for auto in CLASSES:
        if type(config) in auto._model_mapping:
            return auto
    parts = [other for other in vars(sys.modules[type(config).__module__]).values() if _is_part(config, other)]
    if parts:
        raise LakeError(
            f"model {spec.name}: {name} is the config of a part of a model, and transformers {transformers.__version__} finds the"
            f" part's class by that of the whole only ({parts[0].__name__}): name the folder of the whole model"
        )
    if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        what = "an encoder"
    elif kind in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES:
        what = "an encoder-decoder"
    else:
        what = f"no language model that transformers {transformers.__version__} has a class with a head for"
    raise LakeError(f"model {spec.name}: {name} is {what}; actlake captures decoders only")


def _is_part(config: Any, other: Any) -> bool:
    """Whether another class of configs has one of this type inside."""
    parts = getattr(other, "sub_configs", None) if isinstance(other, type) else None
    return isinstance(parts, dict) and type(config) in parts.values()


def config_for(kind: Any, config: Any) -> Any:
    """The part of a config that a class is built from: that of the text where the class is for text alone."""
    inner = config.sub_configs.get("text_config")
    if inner is None or getattr(kind, "config_class", None) is not inner:
        return config
    text = config.get_text_config()
    if getattr(config, "quantization_config", None) is not None:
        text.quantization_config = config.quantization_config
    return text


def dtype_of(spec: ModelSpec, config: Any) -> str:
    """The dtype that 'auto' means for a model: its config's, else that of its weights, as Hugging Face takes it.

    LakeError when it is none that a forward runs in.
    """
    if spec.gguf_file:
        return DTYPE
    own = config_for(model_class(spec, config), config)
    stored = own.dtype if getattr(own, "dtype", None) is not None else _dtype_of_weights(spec)
    name = str(stored).removeprefix("torch.")
    if name not in DTYPES:
        raise LakeError(
            f"model {spec.name}: its config.json has dtype {name}, in which no forward runs; expected"
            f" {', '.join(DTYPES)}: choose one with --dtype"
        )
    return name


def _dtype_of_weights(spec: ModelSpec) -> str:
    """The dtype of the first floating tensor of the first file, which Hugging Face takes where a config has none."""
    folder = folder_of(spec)
    if folder:
        if not (folder / WHOLE).is_file() and (folder / INDEX).is_file():
            metadata = index_of(spec.name, folder).get("metadata")
            if isinstance(metadata, dict) and isinstance(metadata.get("dtype"), str):
                return str(metadata["dtype"])
        return dtype_of_weights(header(spec.name, weight_files(spec.name, folder)[0]))
    try:
        files = get_safetensors_metadata(str(spec.hub), revision=spec.revision).files_metadata
        entries = files[min(files)].tensors
    except Exception as error:
        raise LakeError(
            f"model {spec.name}: its config has no dtype, and the headers of its weights can't be read: {cause(error)}"
        ) from error
    return dtype_of_weights({key: Tensor(entries[key].dtype, tuple(entries[key].shape)) for key in sorted(entries)})


def tensors_of(spec: ModelSpec) -> dict[str, Tensor]:
    """All tensors of a checkpoint by its headers; none for a GGUF file, and for a hub model that is not here whole yet."""
    folder = None if spec.gguf_file else folder_of(spec)
    if folder is None:
        return {}
    try:
        return tensors(spec.name, folder)
    except LakeError:
        if spec.path:
            raise
        return {}


def folder_of(spec: ModelSpec) -> Path | None:
    """The folder that holds a model's weights: its own, or that of a hub model in the hub's cache; None for none yet."""
    if spec.path:
        return spec.path
    for name in (WHOLE, INDEX):
        found = try_to_load_from_cache(str(spec.hub), name, revision=spec.revision)
        if isinstance(found, str):
            return Path(found).parent
    return None
