"""NumPy's npz files that a kill may have torn or a stranger made: never a pickle, and no array larger than its file."""

import zipfile
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from ..core.errors import CorruptError
from .parquet import first_line

REPAIR = "delete the file and run the same command again"
DAMAGE = (
    zipfile.BadZipFile,
    OSError,
    EOFError,
    KeyError,
    ValueError,
    TypeError,
    NotImplementedError,
    RuntimeError,
    MemoryError,
)


def read_npz(file: Path, repair: str = REPAIR) -> dict[str, np.ndarray]:
    """The arrays of an uncompressed npz file by name; CorruptError for one that is damaged, compressed or holds objects."""
    try:
        if not file.is_file():
            raise OSError("not a regular file")
        with zipfile.ZipFile(file) as stored:
            for member in stored.infolist():
                _check(stored, member)
        with np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except DAMAGE as error:
        raise CorruptError(f"{file}: can't be read ({first_line(error)})", repair=repair) from error


def _check(stored: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """ValueError unless a member is one array, as large as its header says, and not compressed."""
    if member.compress_type != zipfile.ZIP_STORED or not member.filename.endswith(".npy"):
        raise ValueError(f"{member.filename}: not an array as numpy.savez writes it")
    with stored.open(member) as stream:
        version = npy.read_magic(stream)
        if version != (1, 0):
            raise ValueError(f"{member.filename}: version {version}, expected (1, 0)")
        shape, _, dtype = npy.read_array_header_1_0(stream)
        expected = stream.tell() + int(np.prod([int(n) for n in shape], dtype=object)) * dtype.itemsize
    if dtype.hasobject or member.file_size != expected:
        raise ValueError(f"{member.filename}: {member.file_size} bytes, its header says {expected}")
