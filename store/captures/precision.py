"""Rounding what a capture keeps: each row to the values of int8 or fp8 times a power of two, and the error that this makes.

A row is one token of one layer, along the last axis. What comes out has at most seven significant bits, so that bfloat16
holds it: arrays and readers stay what they are, and the frames find fewer bits to code.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..core.schema import SITES
from ..format.shards import widen, workers

# Significant bits of a value, and powers of two from the end of a row's range down to the smallest step. fp8 is e4m3.
GRIDS = {"int8": (7, 7), "fp8": (4, 17)}
EXPONENT = 0x7F800000  # the bits of float32's exponent
NORMAL, SUBNORMAL = 2.0**-126, 2.0**-133  # the smallest powers of two that bfloat16 has with all its bits, and at all
AT_ONCE = 1 << 17  # values rounded at a time: their float64 stays in a core's cache
MANY_ZEROED = 0.1  # share of a layer's values that became 0: from here on it is said
Sums = dict[str, list[float]]


def rounded(values: np.ndarray, precision: str) -> np.ndarray:
    """float32 [..., d], each row to the nearest values of `precision` times a power of two; of two as near to the even one.

    int8: whole numbers to 127 times the step 2^(e-7), where 2^e is the first power of two above the row's largest value. fp8:
    e4m3 to 240, 2^e being its 256. What would round up to 2^e takes the largest value below. NaN and infinity stay, and have
    no part in the scale. The nearest values are bfloat16's, too.
    """
    bits, depth = GRIDS[precision]
    finite = np.isfinite(values)
    whole = values if finite.all() else np.where(finite, values, np.float32(0))
    power = (whole.view(np.uint32) & EXPONENT).view(np.float32)  # the power of two at or below each value
    top = np.maximum(power.max(-1, keepdims=True, initial=0), NORMAL).astype(np.float64)
    step = np.maximum(power * 2.0 ** (1 - bits), np.maximum(top * 2.0 ** (1 - depth), SUBNORMAL))
    shift = step * (1.5 * 2.0**52)  # while this is added, float64 has no digits below the step
    found = whole + shift
    found -= shift
    limit = top * (2 - 2.0 ** (1 - bits))
    out = np.clip(found, -limit, limit, out=found).astype(np.float32)
    if whole is values:
        return out
    return np.where(finite, out, np.where(np.isnan(values), np.float32(np.nan), values))


def round_row(
    blocks: Mapping[str, np.ndarray], precision: Mapping[str, str]
) -> tuple[dict[str, np.ndarray], dict[str, Sums]]:
    """A shard row with the variables of `precision` rounded, as bits of bfloat16 (in place where they were that), and by
    variable what sums up to the error of each layer."""
    found, errors = dict(blocks), {}
    for name, word in precision.items():
        block = blocks[name]
        out = block if block.dtype == np.uint16 else np.empty_like(block, np.uint16)
        layers = [(block[:, layer], out[:, layer], word) for layer in range(block.shape[1])]
        sums = list(workers().map(lambda each: _round_layer(*each), layers))
        found[name], errors[name] = out, {key: [one[key] for one in sums] for key in sums[0]}
    return found, errors


def _round_layer(block: np.ndarray, out: np.ndarray, precision: str) -> dict[str, float]:
    """Round one layer [n, ...] into bits of bfloat16; sums over its finite values."""
    found = {"squares": 0.0, "error_squares": 0.0, "max_abs": 0.0, "nonzero": 0, "zeroed": 0}
    rows = max(1, AT_ONCE // max(block[:1].size, 1))
    for start in range(0, len(block), rows):
        values = np.ascontiguousarray(widen(block[start : start + rows]), np.float32)
        near = rounded(values, precision)
        out[start : start + rows] = near.view(np.uint32) >> 16
        finite = np.isfinite(values)
        exact, near = (one[finite].astype(np.float64) for one in (values, near))
        error = np.abs(near - exact)
        found["squares"] += float(np.square(exact).sum())
        found["error_squares"] += float(np.square(error).sum())
        found["max_abs"] = max(found["max_abs"], float(error.max(initial=0.0)))
        found["nonzero"] += int(np.count_nonzero(exact))
        found["zeroed"] += int(np.count_nonzero(exact) - np.count_nonzero(near))
    return found


def merge_errors(rows: Sequence[Mapping[str, Sums]]) -> dict[str, Sums]:
    """The error of a capture from the sums of its shard rows in order: by variable and layer `relative` (root mean square of
    the error over that of the values), `max_abs`, and `zeroed` (the share of values other than 0 that became 0)."""
    merged = {}
    for name in rows[0]:
        sums = {key: np.array([row[name][key] for row in rows]) for key in rows[0][name]}
        total = {key: value.sum(0) for key, value in sums.items()}
        merged[name] = {
            "relative": np.sqrt(_share(total["error_squares"], total["squares"])).tolist(),
            "max_abs": sums["max_abs"].max(0).tolist(),
            "zeroed": _share(total["zeroed"], total["nonzero"]).tolist(),
        }
    return merged


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return part / np.where(whole > 0, whole, 1)


def fits_precision(manifest: Mapping[str, Any]) -> bool:
    """Whether a manifest has the error of every layer of the sites that it says are rounded, and of nothing else."""
    errors = manifest.get("rounding", {})
    return errors.keys() == manifest.get("precision", {}).keys() <= SITES.keys() and all(
        len(values) == len(manifest[_places(name)]) > 0 for name in errors for values in errors[name].values()
    )


def rounding_error(record: Mapping[str, Any], name: str) -> float:
    """The largest absolute rounding error of a variable of a capture; 0 where it is stored as it was computed."""
    return float(max(record.get("rounding", {}).get(name, {}).get("max_abs", []), default=0.0))


def precision_words(record: Mapping[str, Any]) -> str:
    """Which variables of a capture are rounded, and how: `resid int8, mlp_out fp8`; empty for none."""
    return ", ".join(f"{name} {word}" for name, word in record.get("precision", {}).items())


def rounding_note(manifest: Mapping[str, Any]) -> str | None:
    """What to say of a capture whose values were rounded, with the error of the worst layer; None for any other."""
    parts = []
    for name, word in manifest.get("precision", {}).items():
        error = manifest["rounding"][name]
        parts.append(f"{name} as {word} (relative error {_worst(manifest, name, error['relative'])} at most)")
        if max(error["zeroed"]) >= MANY_ZEROED:
            parts[-1] += (
                f", where {_worst(manifest, name, error['zeroed'])} of its values became 0 beside much larger ones"
                + ": fp8 keeps them" * (word == "int8")
            )
    if not parts:
        return None
    return f"capture {manifest['provenance']['model']}/{manifest['stream']} is rounded: {'; '.join(parts)}"


def _worst(manifest: Mapping[str, Any], name: str, values: Sequence[float]) -> str:
    """The largest of some values by layer, in percent, and its place."""
    place = int(np.argmax(values))
    return f"{100 * values[place]:.2g} % at {SITES[name].axes[0]} {manifest[_places(name)][place]}"


def _places(name: str) -> str:
    """The key of a manifest that numbers the layers of a site."""
    return "boundaries" if SITES[name].axes[0] == "boundary" else "layers"
