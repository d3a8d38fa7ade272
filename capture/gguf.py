"""GGUF files: quantised checkpoints, dequantised while they load, so that hooks meet the usual modules."""

from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import transformers

from ..store.catalog import ModelSpec
from ..store.errors import LakeError

PACKAGES = ("gguf", "accelerate")
# A GGUF has no float type of its own: blocks are unpacked to float32. bfloat16, the type that the model was made in, rounds
# them by 2^-9, far less than quantising did, and takes a third of the disk.
DTYPE = "bfloat16"


def gguf_path(spec: ModelSpec) -> Path | None:
    """The local GGUF file of a model, None for one of the hub; LakeError when it or a package to read it is missing."""
    lacking = [name for name in PACKAGES if find_spec(name) is None]
    if lacking:
        raise LakeError(
            f"model {spec.name}: a GGUF file needs the package {' and '.join(lacking)}: pip install 'actlake[gguf]'"
        )
    if spec.path is None or spec.gguf_file is None:
        return None
    file = spec.path / spec.gguf_file
    if not file.is_file():
        raise LakeError(f"model {spec.name}: {file}: no such file")
    return file


def loading(spec: ModelSpec) -> dict[str, Any]:
    """What from_pretrained needs beside the usual to load a GGUF file as dense modules."""
    found: dict[str, Any] = {"gguf_file": spec.gguf_file}
    if hasattr(transformers, "GgufConfig"):  # before 5.23 there was nothing but dequantising
        found["quantization_config"] = transformers.GgufConfig(dequantize=True)
    return found


def read_once(auto: Any, spec: ModelSpec, where: str) -> Any:
    """The config or tokenizer (`auto` is its Auto class) of a GGUF file; reading one takes seconds, so it is kept."""
    file = gguf_path(spec)
    stamp = (file.stat().st_size, file.stat().st_mtime_ns) if file else (spec.revision, None)
    return _read(auto.from_pretrained, where, spec.gguf_file, spec.revision, stamp)


@lru_cache(maxsize=8)
def _read(read: Callable[..., Any], where: str, file: str, revision: str | None, stamp: tuple) -> Any:
    return read(where, gguf_file=file, revision=revision or "main")
