"""Arrays in files of other tools, mapped and not read: safetensors, npy, npz, torch files; sizes are checked before memory."""

import json
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from ..store.core.errors import LakeError
from .torch_files import as_numpy, flat, load_tensors

LARGEST_HEADER = 100_000_000  # bytes of a safetensors header, as its own reader has it
OPEN = 64  # files that are held open
# safetensors' word -> the dtype's name and that of NumPy's that holds its bits.
DTYPES = {
    "BF16": ("bfloat16", "<u2"),
    "F16": ("float16", "<f2"),
    "F32": ("float32", "<f4"),
    "F64": ("float64", "<f8"),
    **{f"I{bits}": (f"int{bits}", f"<i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"U{bits}": (f"uint{bits}", f"<u{bits // 8}") for bits in (8, 16, 32, 64)},
    "BOOL": ("bool", "|b1"),
}
FLOATS = ("bfloat16", "float16", "float32", "float64")
Arrays = dict[str, "Array"]


@dataclass(frozen=True)
class Array:
    """An array in a file: where it is, for messages, its dtype by name, and its values; bfloat16 as bits (uint16)."""

    where: str
    dtype: str
    data: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.data.shape


def read_arrays(file: Path) -> Arrays:
    """The arrays of a .safetensors, .npy, .npz or torch file by name; LakeError for one that is none, or is cut short."""
    try:
        stat = file.stat()
    except OSError as error:
        raise LakeError(f"{file}: no such file") from error
    return _read(file, (stat.st_size, stat.st_mtime_ns))


@lru_cache(maxsize=OPEN)
def _read(file: Path, stamp: tuple[int, int]) -> Arrays:
    suffix = "".join(file.suffixes[-2:]) if file.suffix == ".gz" else file.suffix
    if suffix not in READERS:
        raise LakeError(f"{file}: {suffix or 'no suffix'}", expected=f"one of {', '.join(READERS)}")
    try:
        found = READERS[suffix](file, stamp[0])
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise LakeError(f"{file}: can't be read ({first[:160]}): it is damaged, or no {suffix} file") from error
    return {name: Array(f"{file}: {name}", dtype, data) for name, (dtype, data) in found.items()}


def _mapped(file: Path, at: int, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    if not prod(shape):
        return np.empty(shape, dtype)
    return np.memmap(file, dtype, "r", at, shape)


def _safetensors(file: Path, size: int) -> dict[str, tuple[str, np.ndarray]]:
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if size < 9 or not 0 < length <= min(LARGEST_HEADER, size - 8):
            raise ValueError(f"a header of {length:,} bytes in a file of {size:,}")
        header = json.loads(opened.read(length))
    found, room = {}, size - 8 - length
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        (start, stop), shape = entry["data_offsets"], tuple(entry["shape"])
        dtype, held = DTYPES[entry["dtype"]]
        if not all(type(one) is int and one >= 0 for one in (start, stop, *shape)):
            raise ValueError(f"{name}: no sizes in its header")
        if stop > room or stop - start != prod(shape) * np.dtype(held).itemsize:
            raise ValueError(
                f"{name}: bytes {start:,} to {stop:,} of {room:,} for {list(shape)} of {dtype}: cut short or not whole"
            )
        found[name] = (dtype, _mapped(file, 8 + length + start, held, shape))
    return found


def _header(opened: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, order and dtype of an npy array at the place where a file stands; ValueError for objects."""
    version = npy.read_magic(opened)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"npy version {version}")
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = read(opened, max_header_size=10_000)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which would be a pickle: save arrays of numbers")
    if fortran and len(shape) > 1:
        raise ValueError("in Fortran order: save np.ascontiguousarray of it")
    return shape, fortran, dtype


def _npy(file: Path, size: int) -> dict[str, tuple[str, np.ndarray]]:
    with file.open("rb") as opened:
        shape, _, dtype = _header(opened)
        at = opened.tell()
    if size - at != prod(shape) * dtype.itemsize:
        raise ValueError(f"{size - at:,} bytes for {list(shape)} of {dtype}: cut short")
    return {file.stem: _of_numpy(_mapped(file, at, dtype.str, shape))}


def _npz(file: Path, size: int) -> dict[str, tuple[str, np.ndarray]]:
    found = {}
    with zipfile.ZipFile(file) as stored, file.open("rb") as opened:
        for member in stored.infolist():
            name = member.filename.removesuffix(".npy")
            if member.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{name} is compressed: save with np.savez, which can be read in parts")
            opened.seek(member.header_offset + 26)
            lengths = struct.unpack("<HH", opened.read(4))
            opened.seek(member.header_offset + 30 + sum(lengths))
            begin = opened.tell()
            shape, _, dtype = _header(opened)
            at = opened.tell()
            if begin + member.file_size - at != prod(shape) * dtype.itemsize or begin + member.file_size > size:
                raise ValueError(f"{name}: cut short")
            found[name] = _of_numpy(_mapped(file, at, dtype.str, shape))
    return found


def _of_numpy(data: np.ndarray) -> tuple[str, np.ndarray]:
    return data.dtype.name, data


def _torch(file: Path, size: int) -> dict[str, tuple[str, np.ndarray]]:
    return {name: as_numpy(tensor, f"{file}: {name}") for name, tensor in flat(load_tensors(file), file)}


READERS: dict[str, Callable[[Path, int], dict[str, tuple[str, np.ndarray]]]] = {
    ".safetensors": _safetensors,
    ".npy": _npy,
    ".npz": _npz,
    **dict.fromkeys((".pt", ".pth", ".ckpt", ".bin", ".ckpt.gz", ".pt.gz"), _torch),
}
