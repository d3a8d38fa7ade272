"""What a capture of another tool comes to: sequences of tokens, and rows of values for each of its sites and layers."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..store.core.errors import LakeError
from .arrays import FLOATS, Array

Place = tuple[str, int]  # (site, boundary or layer)
TOKENS = ("token_ids", "input_ids", "tokens", "prompt_token_ids", "ids")
MASKS = ("attention_mask", "mask")
LOSSES = ("loss_mask", "assistant_masks")
STATES = ("hidden_states", "resid", "aux_hidden_state", "aux_hidden_states", "activations")
NUMBER = r"(?P<n>\d+)"
# How tools name a layer's values: pattern -> site, and what is added to the number. The last boundary before block n is n.
NAMES: tuple[tuple[re.Pattern[str], str, int], ...] = tuple(
    (re.compile(pattern), site, more)
    for pattern, site, more in (
        (rf"blocks\.{NUMBER}\.hook_(?:resid_pre|in)", "resid", 0),
        (rf"blocks\.{NUMBER}\.hook_(?:resid_post|out)", "resid", 1),
        (rf"blocks\.{NUMBER}\.(?:hook_mlp_out|mlp\.hook_out)", "mlp_out", 0),
        (rf"blocks\.{NUMBER}\.(?:hook_attn_out|attn\.hook_out)", "attn_out", 0),
        (rf"(?:resid|boundary)[_.]?{NUMBER}", "resid", 0),
        (rf"mlp_out[_.]?{NUMBER}", "mlp_out", 0),
        (rf"attn_out[_.]?{NUMBER}", "attn_out", 0),
        (rf"(?:.*\.)?(?:layers|h|blocks)\.{NUMBER}\.mlp(?:[._]out(?:put)?)?(?:\.0)?", "mlp_out", 0),
        (rf"(?:.*\.)?(?:layers|h|blocks)\.{NUMBER}\.(?:self_attn|attention|attn)(?:[._]out(?:put)?)?(?:\.0)?", "attn_out", 0),
        (rf"(?:.*\.)?(?:layers|h|blocks|layer)[._]{NUMBER}[._]in(?:put)?(?:\.0)?", "resid", 0),
        (rf"(?:.*\.)?(?:layers|h|blocks|layer)[._]{NUMBER}(?:[._]out(?:put)?)?(?:\.0)?", "resid", 1),
    )
)  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """What is known beforehand: the model's blocks and width, boundaries in the order of the file's layers (none: as names or
    counts say), and the sequences of a stream for files without tokens."""

    layers: int
    width: int
    boundaries: Sequence[int] = ()
    tokens: Sequence[np.ndarray] | None = None


@dataclass(frozen=True)
class TokenRow:
    """One sequence of another tool's capture: its name, token ids, and how many of these are the prompt's."""

    name: str
    tokens: np.ndarray
    start: int


@dataclass(frozen=True)
class Found:
    """A capture of another tool: `slab(sequence, place)` is what it holds of one, [tokens, d], mapped where it can be.

    `facts` are what the tool recorded of itself, `files` all that was read.
    """

    sequences: Sequence[TokenRow]
    places: Sequence[Place]
    dtype: str
    slab: Callable[[int, Place], np.ndarray]
    files: Sequence[Path]
    facts: dict[str, Any] = field(default_factory=dict)

    def indices(self, site: str) -> list[int]:
        """The boundaries or layers of a site, ascending."""
        return sorted(index for name, index in self.places if name == site)

    def rows(self, sequence: int, start: int, stop: int) -> dict[str, np.ndarray]:
        """Site -> values [stop - start, places, d] of one sequence; bits (uint16) of bfloat16."""
        sites = dict.fromkeys(site for site, _ in self.places)
        return {
            site: np.stack([self.slab(sequence, (site, index))[start:stop] for index in self.indices(site)], axis=1)
            for site in sites
        }


def place_of(name: str) -> Place | None:
    """The site and the boundary or layer that a tensor's name says; None for a name that says none."""
    for pattern, site, more in NAMES:
        if match := pattern.fullmatch(name):
            return site, int(match["n"]) + more
    return None


def named(found: dict[str, Any], names: Sequence[str]) -> str | None:
    """The first of some names that is there, at the top or as the last part of a name."""
    return next((key for name in names for key in found if re.split(r"[./]", key)[-1] == name), None)


def ids_of(array: np.ndarray, where: str) -> np.ndarray:
    """Token ids as int32; LakeError for what holds none."""
    if array.dtype.kind not in "iu" or not array.size:
        raise LakeError(f"{where}: {array.size:,} values of {array.dtype}", expected="token ids, whole numbers")
    if array.min() < 0 or array.max() >= 2**31:
        raise LakeError(f"{where}: ids from {array.min()} to {array.max()}", expected="token ids from 0")
    return np.ascontiguousarray(array, dtype=np.int32)


def numbered(count: int, asked: Asked, where: str) -> list[int]:
    """The boundaries of `count` layers of states that bear no names; LakeError where they can't be inferred."""
    if asked.boundaries:
        if len(asked.boundaries) != count:
            raise LakeError(
                f"{where}: {count} layers of states", expected=f"{len(asked.boundaries)}, as --boundaries says"
            )
        return [*asked.boundaries]
    if count == asked.layers + 1:
        return list(range(count))
    raise LakeError(
        f"{where}: {count} layers of states, and nothing says which of the model's {asked.layers + 1} boundaries",
        repair="name them with --boundaries: 0 enters block 0, l+1 leaves block l (1,2,3 for what leaves the first three blocks)",
    )


def stacked(states: np.ndarray, tokens: int, asked: Asked, where: str) -> np.ndarray:
    """States of one sequence as [layers, tokens, d], from [tokens, layers, d], [layers, tokens, d], [tokens, layers * d] ..."""
    if states.ndim > 2 and states.shape[0] == 1 and tokens != 1:
        states = states[0]
    if states.ndim == 2 and states.shape[1] % asked.width == 0:
        states = states.reshape(len(states), -1, asked.width)
    if states.ndim == 3 and states.shape[2] == asked.width:
        if states.shape[0] == tokens:
            return np.moveaxis(states, 1, 0)
        if states.shape[1] == tokens:
            return states
    raise LakeError(
        f"{where}: {list(states.shape)}", expected=f"{tokens:,} tokens of width {asked.width}, one vector a layer"
    )


def one_dtype(dtypes: Sequence[str], where: object) -> str:
    """The one dtype of all values; LakeError for several, and for what is no floating one."""
    kinds = sorted(set(dtypes))
    if len(kinds) != 1:
        raise LakeError(f"{where}: states of several dtypes", expected="one", found=", ".join(kinds) or "no states")
    if kinds[0] not in FLOATS:
        raise LakeError(f"{where}: states of {kinds[0]}", expected=f"one of {', '.join(FLOATS)}")
    return kinds[0]


def natural(path: Path) -> list[Any]:
    """The key that sorts names with numbers as people do: 2 before 10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", path.as_posix())]


def files_below(path: Path, suffixes: Sequence[str]) -> list[Path]:
    """A file, or all below a folder that end in one of `suffixes`, in natural order; LakeError where there are none."""
    if not path.exists():
        raise LakeError(f"{path}: no such file or folder")
    found = [path] if path.is_file() else [file for file in path.rglob("*") if file.name.endswith(tuple(suffixes))]
    if not found:
        raise LakeError(f"{path}: holds no file that ends in {', '.join(suffixes)}")
    return sorted(found, key=natural)


def start_of(mask: np.ndarray | None, tokens: int) -> int:
    """How many tokens are the prompt's, from a mask of those that count for a loss: up to the first; all without one."""
    if mask is None or not (marked := np.flatnonzero(np.asarray(mask).reshape(-1)[:tokens])).size:
        return tokens
    return max(1, int(marked[0]))


def kept_slots(mask: np.ndarray, where: str) -> slice:
    """The run of ones of an attention mask; LakeError for a mask with gaps."""
    marked = np.flatnonzero(mask)
    if not marked.size or marked[-1] - marked[0] + 1 != marked.size:
        raise LakeError(f"{where}: an attention mask with {marked.size} ones that do not stand together")
    return slice(int(marked[0]), int(marked[-1]) + 1)


def state_arrays(found: dict[str, Array]) -> dict[str, Array]:
    """The arrays that hold states without a layer's name: one, or a list of one a layer."""
    name = named(found, STATES)
    if name:
        return {name: found[name]}
    listed = {
        key: value
        for key, value in found.items()
        if key.rpartition(".")[0] in STATES and key.rpartition(".")[2].isdecimal()
    }
    return dict(sorted(listed.items(), key=lambda item: int(item[0].rpartition(".")[2])))
