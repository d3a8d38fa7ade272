"""Files that torch.save wrote, read as tensors alone: the one place of the package that opens them."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..store.core.errors import LakeError
from ..store.core.files import human_bytes

if TYPE_CHECKING:
    from torch import Tensor

UNPACKED = 4 << 30  # bytes that a gzip file may become


def load_tensors(file: Path) -> Any:
    """What is in a file of torch.save, from which no code is run, mapped and not read where it can be; LakeError for others."""
    import torch

    if not file.is_file():
        raise LakeError(f"{file}: no such file")
    try:
        if file.suffix == ".gz":
            return torch.load(io.BytesIO(_unpacked(file)), map_location="cpu", weights_only=True)
        with file.open("rb") as opened:
            mapped = opened.read(2) == b"PK"  # files of torch before 1.6 can't be
        return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except LakeError:
        raise
    except Exception as error:  # whatever a damaged or hostile file makes the reader raise
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise LakeError(
            f"{file}: can't be read as tensors alone", found=first[:160], expected="a file that torch.save wrote"
        ) from error


def _unpacked(file: Path) -> bytes:
    with gzip.open(file) as opened:
        data = opened.read(UNPACKED + 1)
    if len(data) > UNPACKED:
        raise LakeError(f"{file}: unpacks to more than {human_bytes(UNPACKED)}: unpack it, then import the folder")
    return data


def flat(found: Any, file: Path, name: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """The tensors of nested dictionaries, lists and tuples, by names joined with dots; numbers and texts are left out."""
    import torch

    if depth > 8:
        raise LakeError(f"{file}: dictionaries nested more than 8 deep")
    if isinstance(found, torch.Tensor):
        yield name or "tensor", found
    elif isinstance(found, dict | list | tuple):
        for key, value in found.items() if isinstance(found, dict) else enumerate(found):
            yield from flat(value, file, f"{name}.{key}" if name else str(key), depth + 1)


def as_numpy(tensor: Tensor, where: str) -> tuple[str, np.ndarray]:
    """A dense tensor's dtype and values, bfloat16 as bits (uint16)."""
    import torch

    if tensor.layout is not torch.strided or tensor.dtype.is_complex or tensor.is_quantized:
        raise LakeError(f"{where}: {tensor.layout} of {tensor.dtype}", expected="a dense tensor of numbers")
    name = str(tensor.dtype).removeprefix("torch.")
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        return name, tensor.view(torch.int16).numpy().view(np.uint16)
    return name, tensor.numpy()
