"""A checkpoint's folder, judged by file names and headers: what can't be loaded is refused by name before loading begins."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ...store.core.errors import LakeError

POINTER = b"version https://git-lfs.github.com/spec/"
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD = re.compile(r".+-(\d{5})-of-(\d{5})\.safetensors")
LARGEST_HEADER = 100_000_000  # bytes; safetensors itself takes no larger one
# Read beside the weights: a pointer in place of one of them stops the loading as well.
SMALL = (".json", ".model", ".txt", ".jinja")
PREFIXES = ("_orig_mod.", "module.", "base_model.model.", "_fsdp_wrapped_module.", "policy.")
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")
# How safetensors names the types that actlake runs; integers are no type of a module.
FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
# Factors that an adapter keeps beside the weights it changes (PEFT: LoRA, DoRA, IA3, saved modules).
ADAPTER = re.compile(
    r"(?:^|\.)(?:lora_[A-Za-z_]+|ia3_l|modules_to_save|base_layer|prompt_embeddings|oft_[a-z]+|hada_\w+)\b"
)


@dataclass(frozen=True)
class Tensor:
    """What a header says of one tensor: its dtype as safetensors names it (BF16, F8_E4M3 ...) and its shape."""

    dtype: str
    shape: tuple[int, ...]


def check_folder(name: str, folder: Path) -> None:
    """Raise LakeError, in one line with what to do, for a folder that can't hold a Hugging Face model."""
    problem = _without_config(folder) or _pointers(folder)
    if problem:
        raise LakeError(f"model {name}: {problem}")
    if (folder / "adapter_config.json").is_file():
        raise LakeError(
            f"model {name}: {folder} has an adapter_config.json beside the model: {_adapter(folder)}. actlake merges no adapters:"
            " merge it (peft: merge_and_unload, save_pretrained) and name that folder, or take adapter_config.json away to"
            " capture the model without it"
        )
    weight_files(name, folder)


def _without_config(folder: Path) -> str:
    """Why a folder's config.json can't be read, or ''."""
    config = folder / "config.json"
    if config.is_file():
        return ""
    if not folder.is_dir():
        return f"{folder} has no config.json: there is no such folder"
    if config.is_symlink():
        return f"{config} is a link to {config.readlink()}, which is not there; fetch the model's files again"
    if (folder / "adapter_config.json").is_file():
        return (
            f"{folder} holds no model, but {_adapter(folder)}; merge it into its base model (peft: merge_and_unload,"
            " save_pretrained) and name that folder"
        )
    ggufs = sorted(file.name for file in folder.glob("*.gguf"))
    if ggufs:
        return (
            f"{folder} has no config.json but {len(ggufs)} .gguf file{'s' * (len(ggufs) > 1)}: name one of them"
            f" ({', '.join(ggufs[:5])}{', ...' * (len(ggufs) > 5)})"
        )
    if (folder / "params.json").is_file():
        return (
            f"{folder} has no config.json but a params.json: it is in the original format of Llama or Mistral; name a folder in"
            " Hugging Face's format (config.json, model.safetensors, tokenizer.json)"
        )
    if (folder / "model_index.json").is_file():
        return f"{folder} has no config.json but a model_index.json: it is a diffusion pipeline, not a language model"
    return f"{folder} has no config.json; it should be a Hugging Face model folder"


def _adapter(folder: Path) -> str:
    """A PEFT adapter in words: its kind, rank and base model."""
    try:
        found = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        kind, rank, base = (found.get(key) for key in ("peft_type", "r", "base_model_name_or_path"))
        return f"a {kind or 'PEFT'} adapter" + f" of rank {rank}" * bool(rank) + f" of {base}" * bool(base)
    except (OSError, ValueError, AttributeError):
        return "a PEFT adapter"


def _pointers(folder: Path) -> str:
    """The small files that hold a Git LFS pointer in place of their content, in words, or ''."""
    small = [file for file in folder.iterdir() if file.name.endswith(SMALL) and not file.name.endswith(".index.json")]
    found = sorted(file.name for file in small if file.is_file() and _begin(file).startswith(POINTER))
    if "tokenizer.json" not in found and (folder / "tokenizer.json").is_file():  # then no other vocabulary is read
        found = [name for name in found if name.endswith((".jinja", "config.json", "template.json"))]
    return _pointer_words(folder, found) if found else ""


def _pointer_words(folder: Path, names: list[str]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return (
        f"{folder / names[0]}{more}: a Git LFS pointer, not the file itself; run `git lfs pull` in the repository,"
        " or fetch it with `hf download`"
    )


def _begin(file: Path) -> bytes:
    with file.open("rb") as opened:
        return opened.read(64)


@lru_cache(maxsize=64)
def _index(file: Path, _stamp: tuple[int, int]) -> dict[str, Any]:
    found = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(found, dict) or not isinstance(found.get("weight_map"), dict) or not found["weight_map"]:
        raise ValueError("no weight_map")
    return found


def index_of(name: str, folder: Path, file: str = INDEX) -> dict[str, Any]:
    """The index of a sharded checkpoint; LakeError when it is none."""
    path = folder / file
    if _begin(path).startswith(POINTER):
        raise LakeError(f"model {name}: {_pointer_words(folder, [path.name])}")
    try:
        return _index(path, stamp(path))
    except ValueError as error:
        raise LakeError(
            f"model {name}: {path} is no index of shards ({error}): expected JSON with a weight_map; fetch it again"
        ) from error


def weight_files(name: str, folder: Path) -> list[Path]:
    """The safetensors files that loading takes, in the order of the loader; LakeError when they are not all there."""
    explicit = config_of(folder).get("transformers_weights")
    index = explicit if isinstance(explicit, str) and explicit.endswith(".index.json") else INDEX
    whole = explicit if isinstance(explicit, str) and explicit.endswith(".safetensors") else WHOLE
    if (folder / whole).is_file():
        return [folder / whole]
    if explicit and not (folder / str(explicit)).is_file():
        raise LakeError(
            f"model {name}: {folder / 'config.json'}: transformers_weights is {explicit!r}, no file beside it"
        )
    if not (folder / index).is_file():
        raise LakeError(f"model {name}: {_without_weights(folder)}")
    shards = sorted(set(map(str, index_of(name, folder, index)["weight_map"].values())))
    lacking = [shard for shard in shards if not (folder / shard).is_file()]
    if lacking:
        raise LakeError(
            f"model {name}: {folder} lacks {len(lacking)} of the {len(shards)} files that {index} names (first:"
            f" {lacking[0]}); fetch them again"
        )
    return [folder / shard for shard in shards]


def _without_weights(folder: Path) -> str:
    """Why there is neither model.safetensors nor an index of shards, and what to do."""
    names = sorted(entry.name for entry in folder.iterdir() if not entry.is_dir())
    dangling = [name for name in names if (folder / name).is_symlink() and not (folder / name).exists()]
    if dangling := [name for name in dangling if name.endswith((".safetensors", INDEX))]:
        target = (folder / dangling[0]).readlink()
        return f"{folder / dangling[0]} is a link to {target}, which is not there; fetch the model's files again"
    found = [name for name in names if name.endswith(".safetensors")]
    there = f"{folder} has no {WHOLE}"
    shards = [name for name in found if SHARD.fullmatch(name)]
    if any(name.startswith("consolidated") for name in found):
        return (
            f"{there}, only {found[0]}: the original format of Mistral or Llama, with other names of tensors; take the files that"
            " the repository has in Hugging Face's format, or convert them"
        )
    if "adapter_model.safetensors" in found:
        return f"{there}, only adapter_model.safetensors, the weights of an adapter: merge it into its base model first"
    if shards:
        return f"{there}, and no {INDEX} beside its {len(shards)} shards ({shards[0]} ...); fetch the index as well"
    if found:
        return f"{there}, only {', '.join(found[:3])}: rename the file that holds the weights to {WHOLE}"
    pickled = [name for name in names if name.endswith(PICKLED)]
    if pickled:
        return (
            f"{folder} has no .safetensors file, only {pickled[0]}; actlake loads nothing else, since pickled weights can run"
            " code: load it with transformers and save_pretrained it"
        )
    return f"{folder} has no .safetensors file; actlake loads nothing else (save it with save_pretrained)"


def config_of(folder: Path) -> dict[str, Any]:
    """config.json as it stands; empty when it can't be read as an object (loading it says why)."""
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def tensors(name: str, folder: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint as its headers have them, file by file, sorted by name within a file.

    LakeError for a file that is no safetensors file, or that ends before its header says.
    """
    return {key: tensor for file in weight_files(name, folder) for key, tensor in header(name, file).items()}


def header(name: str, file: Path) -> dict[str, Tensor]:
    """The tensors of one safetensors file, sorted by name."""
    return _header(name, file, stamp(file))


@lru_cache(maxsize=256)
def _header(name: str, file: Path, _stamp: tuple[int, int]) -> dict[str, Tensor]:
    size, begin = file.stat().st_size, _begin(file)
    if begin.startswith(POINTER):
        raise LakeError(f"model {name}: {_pointer_words(file.parent, [file.name])}")
    length = int.from_bytes(begin[:8], "little")
    if size < 9 or not 0 < length <= LARGEST_HEADER or begin[8:9] != b"{":
        raise LakeError(
            f"model {name}: can't load {file}: no safetensors file, but {kind_of(begin, size)}; fetch it again"
        )
    if 8 + length > size:
        raise LakeError(
            f"model {name}: can't load {file}: it ends inside its header ({size:,} bytes, the header alone has"
            f" {length:,}): the download is incomplete, fetch it again"
        )
    with file.open("rb") as opened:
        opened.seek(8)
        try:
            found = json.loads(opened.read(length))
            entries = {key: value for key, value in found.items() if key != "__metadata__"}
            read = {key: Tensor(entries[key]["dtype"], tuple(entries[key]["shape"])) for key in sorted(entries)}
            end = max((int(entry["data_offsets"][1]) for entry in entries.values()), default=0)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise LakeError(
                f"model {name}: can't load {file}: its header can't be read ({error}); fetch it again"
            ) from error
    if 8 + length + end > size:
        raise LakeError(
            f"model {name}: can't load {file}: it ends too early ({size:,} bytes, its header speaks of"
            f" {8 + length + end:,}): the download is incomplete, fetch it again"
        )
    return read


def kind_of(begin: bytes, size: int) -> str:
    """What a file is that isn't what its name says, by its first bytes."""
    if not size:
        return "empty"
    if begin.lstrip()[:1] == b"<":
        return "a web page (the download was answered with HTML: is a login needed?)"
    if begin.startswith(b"PK"):
        return "a zip file, as torch.save writes it"
    if begin.startswith(b"GGUF"):
        return "a GGUF file"
    return f"something that begins with {begin[:16]!r}"


def stamp(file: Path) -> tuple[int, int]:
    """Size and time of change of a file: what tells whether it has been replaced."""
    found = file.stat()
    return found.st_size, found.st_mtime_ns


def dtype_of_weights(found: dict[str, Tensor]) -> str:
    """The dtype that Hugging Face takes from weights when a config names none: that of the first float tensor.

    'float32' for no float tensors at all.
    """
    return next((FLOATS[tensor.dtype] for tensor in found.values() if tensor.dtype in FLOATS), "float32")


def listed(names: list[str], most: int = 3) -> str:
    """The first names of a list and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def wrapped(names: Iterable[str]) -> str:
    """The prefix that a wrapper of training (DDP, torch.compile, PEFT, FSDP) put before all names of tensors, or ''."""
    held = list(names)
    return next((prefix for prefix in PREFIXES if held and all(name.startswith(prefix) for name in held)), "")


def counted(names: Sequence[str]) -> str:
    """'1 tensor', '12 tensors'."""
    return f"{len(names):,} tensor{'s' * (len(names) != 1)}"


def adapted(names: Iterable[str]) -> list[str]:
    """Names of tensors that belong to an adapter."""
    return [name for name in names if ADAPTER.search(name)]
