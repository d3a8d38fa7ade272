"""GGUF files: quantised checkpoints, dequantised while they load, so that hooks meet the usual modules."""

import re
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

import transformers

from ...store.core.catalog import ModelSpec
from ...store.core.errors import LakeError
from ...store.core.progress import ERRORS
from .files import POINTER, kind_of, stamp

PACKAGES = ("gguf", "accelerate")
# A GGUF has no float type of its own: blocks are unpacked to float32. bfloat16, the type that the model was made in, rounds
# them by 2^-9, far less than quantising did, and takes a third of the disk.
DTYPE = "bfloat16"
PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
# Types of a header's values: struct format and bytes; 8 is text, 9 a list.
VALUES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
TEXT, LIST = 8, 9


@dataclass(frozen=True)
class _Header:
    """What begins a GGUF file: its single values and texts by key (lists are left out), and the number of its tensors."""

    values: dict[str, Any]
    tensors: int

    @property
    def parts(self) -> int:
        """How many files hold the model; 1 for a whole one."""
        return int(self.values.get("split.count") or 1)


def read_header(file: Path) -> _Header:
    """The header of a GGUF file, read in a fraction of a second whatever its size; LakeError when it is not a GGUF file.

    Source: the GGUF specification, versions 2 and 3.
    """
    return _read_header(file, stamp(file))


@lru_cache(maxsize=16)
def _read_header(file: Path, _stamp: tuple[int, int]) -> _Header:
    with file.open("rb") as opened:
        begin = opened.read(64)
        if begin.startswith(POINTER):
            raise LakeError(
                f"{file}: a Git LFS pointer, not the file itself; run `git lfs pull`, or `hf download` the file"
            )
        if not begin.startswith(b"GGUF"):
            raise LakeError(f"{file}: no GGUF file, but {kind_of(begin, file.stat().st_size)}; fetch it again")
        opened.seek(4)
        try:
            version = _value(opened, "I")
            if version not in (2, 3):
                raise LakeError(f"{file}: GGUF version {version}; versions 2 and 3 (little-endian) can be read")
            tensors, count = _value(opened, "Q"), _value(opened, "Q")
            found = {}
            for _ in range(count):
                key, kind = _text(opened), _value(opened, "I")
                if (value := _any(opened, kind)) is not None:
                    found[key] = value
            ends = [_tensor_begin(opened) for _ in range(tensors)]
            if max([opened.tell(), *ends]) > file.stat().st_size:
                raise struct.error("ends early")
        except (struct.error, KeyError, UnicodeDecodeError, OverflowError, MemoryError) as error:
            raise LakeError(
                f"{file}: its header ends too early or can't be read ({file.stat().st_size:,} bytes in all): the download is"
                " incomplete, fetch it again"
            ) from error
    return _Header(found, tensors)


def read_texts(file: Path, key: str) -> list[str]:
    """A list of texts from the header of a GGUF file, such as its tokens; empty where it has none of that name."""
    with file.open("rb") as opened:
        opened.seek(16)
        for _ in range(_value(opened, "Q")):
            name, kind = _text(opened), _value(opened, "I")
            if name == key and kind == LIST and _value(opened, "I") == TEXT:
                return [_text(opened) for _ in range(_value(opened, "Q"))]
            _any(opened, kind)
    return []


def _value(opened: BinaryIO, kind: str) -> Any:
    size = struct.calcsize(f"<{kind}")
    return struct.unpack(f"<{kind}", opened.read(size))[0]


def _text(opened: BinaryIO) -> str:
    length = _value(opened, "Q")
    found = opened.read(min(length, 1 << 30))
    if len(found) < length:
        raise struct.error("text ends early")
    return found.decode("utf-8", errors="replace")


def _any(opened: BinaryIO, kind: int) -> Any:
    """One value; None for a list, which is passed over."""
    if kind == TEXT:
        return _text(opened)
    if kind != LIST:
        return _value(opened, VALUES[kind])
    inner, length = _value(opened, "I"), _value(opened, "Q")
    if inner in VALUES:
        opened.seek(length * struct.calcsize(f"<{VALUES[inner]}"), 1)
        return None
    for _ in range(length):
        if inner == TEXT:
            size = _value(opened, "Q")
            opened.seek(size, 1)
        else:
            _any(opened, inner)
    return None


def _tensor_begin(opened: BinaryIO) -> int:
    """Byte of the data part at which a tensor begins, which the file must reach; its name, shape and type are passed over."""
    _text(opened)
    opened.seek(8 * _value(opened, "I") + 4, 1)
    return int(_value(opened, "Q"))


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
        link = f" (a link to {file.readlink()}, which is not there)" if file.is_symlink() else ""
        raise LakeError(f"model {spec.name}: {file}: no such file{link}")
    return file


def check_gguf(spec: ModelSpec) -> None:
    """Raise LakeError for a file that is not GGUF, is cut off or is one part of several, before anything is built from it."""
    named = PART.fullmatch(Path(spec.gguf_file or "").name)
    file = gguf_path(spec)
    try:
        found = read_header(file) if file else None
    except LakeError as error:
        raise LakeError(f"model {spec.name}: can't load {error}") from error
    parts = found.parts if found else int(named[3]) if named else 1
    if parts < 2:
        return
    number = int(found.values.get("split.no", 0)) + 1 if found else int(named[2]) if named else 1
    stem = named[1] if named else Path(spec.gguf_file or "").stem
    names = [f"{stem}-{part:05d}-of-{parts:05d}.gguf" for part in range(1, parts + 1)]
    lacking = [name for name in names if spec.path and not (spec.path / name).is_file()]
    missing = f"; missing here: {', '.join(lacking[:3])}" if named and lacking else ""
    raise LakeError(
        f"model {spec.name}: {spec.gguf_file} is part {number} of {parts}, and transformers reads whole files only{missing}: join"
        f" the parts with `llama-gguf-split --merge {names[0]} {stem}.gguf` and name {stem}.gguf"
    )


def loading(spec: ModelSpec) -> dict[str, Any]:
    """What from_pretrained needs beside the usual to load a GGUF file as dense modules."""
    found: dict[str, Any] = {"gguf_file": spec.gguf_file}
    if hasattr(transformers, "GgufConfig"):  # before 5.23 there was nothing but dequantising
        found["quantization_config"] = transformers.GgufConfig(dequantize=True)
    return found


@contextmanager
def reading() -> Iterator[None]:
    """While this lasts a GGUF file's header, which takes seconds, is parsed once and no bar goes into a log.

    transformers parses it for the config, for the tokenizer and for the weights, and draws a bar of its own.
    """
    gguf: Any = import_module("gguf")
    inside: Any = import_module("transformers.modeling_gguf_pytorch_utils")
    kept, bar = gguf.GGUFReader, getattr(inside, "tqdm", None)
    gguf.GGUFReader = lambda path, *more: _reader(kept, str(path), stamp(Path(path)), *more)
    if bar and not ERRORS.is_terminal:
        inside.tqdm = partial(bar, disable=True)
    try:
        yield
    finally:
        gguf.GGUFReader = kept
        if bar:
            inside.tqdm = bar


@lru_cache(maxsize=1)
def _reader(make: Callable[..., Any], path: str, _stamp: tuple[int, int], *more: Any) -> Any:
    return make(path, *more)


def forget() -> None:
    """Free the header that `reading` keeps: it takes hundreds of megabytes with a large vocabulary."""
    _reader.cache_clear()


def read_once(auto: Any, spec: ModelSpec, where: str) -> Any:
    """The config or tokenizer (`auto` is its Auto class) of a GGUF file; reading one takes seconds, so it is kept."""
    file = gguf_path(spec)
    known = stamp(file) if file else (spec.revision, None)
    return _read(auto.from_pretrained, where, spec.gguf_file, spec.revision, known)


@lru_cache(maxsize=8)
def _read(read: Callable[..., Any], where: str, file: str, revision: str | None, known: tuple) -> Any:
    with reading():
        return read(where, gguf_file=file, revision=revision or "main")
