"""Data files of the explorer: a JSON value and arrays in one gzip stream, carried by a script that a page loads.

A page opened from a disk may load scripts but fetch nothing, so that a data file is a script of one call,
`explorer.put(NAME, TEXT)`. TEXT is base64 of gzip of: length of the header (uint32, little-endian), the header (JSON: value
and arrays, each name, kind and shape), padding to four bytes, the arrays. Nothing in a file is markup or code.
"""

from __future__ import annotations

import base64
import gzip
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

KINDS = {"u1": "|u1", "u2": "<u2", "u4": "<u4", "i2": "<i2", "i4": "<i4", "f4": "<f4"}
# Floats of 24 bits: a float32 without its lowest 8 bits, the first bytes of all values, then the second, then the third.
SHORT = "f3"
LEVEL = 6


def short_floats(values: np.ndarray) -> bytes:
    """Floats rounded to 16 significant bits (relative error below 2e-5), as the kind `f3`; NaN stays NaN."""
    bits = np.ascontiguousarray(values, "<f4").view("<u4").ravel().astype(np.uint64)
    odd = (bits >> np.uint64(8)) & np.uint64(1)
    rounded = np.where(np.isnan(values.ravel()), bits | np.uint64(1 << 22), bits + np.uint64(0x7F) + odd)
    planes = [(rounded >> np.uint64(shift)).astype(np.uint8) for shift in (24, 16, 8)]
    return b"".join(plane.tobytes() for plane in planes)


def kind_for(values: np.ndarray) -> str:
    """The narrowest kind of array that holds these whole numbers, none below 0; `f3` for floats."""
    if values.dtype.kind == "f":
        return SHORT
    largest = int(values.max()) if values.size else 0
    return "u1" if largest < 1 << 8 else "u2" if largest < 1 << 16 else "u4"


def packed(value: Any, arrays: Mapping[str, np.ndarray | tuple[np.ndarray, str]] | None = None) -> bytes:
    """A JSON value and arrays by name (with their kind, or the narrowest there is) as one gzip stream."""
    listed, parts = [], []
    for name, given in (arrays or {}).items():
        values, kind = given if isinstance(given, tuple) else (given, kind_for(given))
        data = short_floats(values) if kind == SHORT else np.ascontiguousarray(values).astype(KINDS[kind]).tobytes()
        listed.append([name, kind, list(values.shape)])
        parts.append(data + b"\0" * (-len(data) % 4))
    header = json.dumps({"value": plain(value), "arrays": listed}, ensure_ascii=False, separators=(",", ":")).encode(
        errors="replace"
    )
    head = len(header).to_bytes(4, "little") + header
    return gzip.compress(head + b"\0" * (-len(head) % 4) + b"".join(parts), LEVEL, mtime=0)


def script(name: str, data: bytes) -> bytes:
    """The script that carries packed data; `name` is one of the explorer's own."""
    return f'explorer.put("{name}","{base64.b64encode(data).decode()}")\n'.encode()


def unpacked(text: bytes) -> tuple[str, Any, dict[str, np.ndarray]]:
    """Name, value and arrays of a data file, as the page reads them (floats as float32)."""
    name, data = text.decode().removeprefix('explorer.put("').removesuffix('")\n').split('","')
    raw = gzip.decompress(base64.b64decode(data))
    size = int.from_bytes(raw[:4], "little")
    header = json.loads(raw[4 : 4 + size])
    at, arrays = 4 + size + -(4 + size) % 4, {}
    for key, kind, shape in header["arrays"]:
        count = math.prod(shape)
        if kind == SHORT:
            planes = np.frombuffer(raw, np.uint8, 3 * count, at).reshape(3, count).astype(np.uint32)
            found, used = ((planes[0] << 24) | (planes[1] << 16) | (planes[2] << 8)).view(np.float32), 3 * count
        else:
            found = np.frombuffer(raw, KINDS[kind], count, at)
            used = found.nbytes
        arrays[key] = found.reshape(shape)
        at += used + -used % 4
    return name, header["value"], arrays


def plain(value: Any) -> Any:
    """A value as JSON has it: NumPy's and pandas' scalars plain, what is no number (NaN, infinity) as null."""
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(each) for each in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int | bool):
        return value
    return None if pd.isna(value) else str(value)
