"""What a training run asks for: values checked one by one, each wrong one refused in a line."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from ..core.columns import SEGMENTS
from ..core.errors import LakeError
from ..core.schema import SITES
from ..core.yaml_file import hint
from ..format.shards import cores

SPLITS, NORMALIZE, DTYPES = ("train", "validation"), ("scale", "center"), ("float32", "bfloat16")
KINDS: dict[type, tuple[str, tuple[type, ...]]] = {
    bool: ("True or False", (bool, np.bool_)),
    int: ("a whole number", (int, np.integer)),
    float: ("a number", (int, float, np.integer, np.floating)),
    str: ("text", (str,)),
}


@dataclass(frozen=True)
class Filter:
    """Which tokens: of some segments, with special tokens and position 0 or not, of a half of the prompts.

    `max_norm` leaves out rows whose norm is more than so many times the median.
    """

    segment: tuple[str, ...] = ()
    special: bool = False
    first: bool = False
    max_norm: float | None = None
    split: str | None = None
    validation: float = 0.1
    split_seed: int = 0

    def __post_init__(self) -> None:
        check_kind(bool, special=self.special, first=self.first)
        check_kind(float, validation=self.validation)
        check_kind(int, split_seed=self.split_seed)
        if self.max_norm is not None:
            check_kind(float, max_norm=self.max_norm)
        for name in self.segment:
            _one_of("segment", name, SEGMENTS)
        if self.split is not None:
            _one_of("split", self.split, SPLITS)
        if not 0 < self.validation < 1:
            raise LakeError("validation: the share of prompts", expected="between 0 and 1", found=self.validation)
        if self.max_norm is not None and not (self.max_norm > 0 and math.isfinite(self.max_norm)):
            raise LakeError("max_norm: times the median norm", expected="above 0", found=self.max_norm)


@dataclass(frozen=True)
class Wanted:
    """What is read, and how it is put into batches. `lone` says which axes were asked for as one thing: site, layer."""

    sites: tuple[str, ...]
    layers: tuple[int, ...] | None
    lone: tuple[bool, bool]
    batch: int = 4096
    shuffle: bool = True
    seed: int = 0
    buffer: int = 1 << 17
    dtype: str = "float32"
    normalize: str | None = None
    drop_last: bool = False
    rank: int = 0
    world: int = 1
    threads: int | None = None

    def __post_init__(self) -> None:
        check_kind(bool, shuffle=self.shuffle, drop_last=self.drop_last)
        check_kind(int, batch=self.batch, seed=self.seed, buffer=self.buffer, rank=self.rank, world=self.world)
        if self.threads is not None:
            check_kind(int, threads=self.threads)
        for layer in self.layers or ():
            check_kind(int, layer=layer)
        if not self.sites or self.layers == ():
            raise LakeError("site and layer", expected="one at least", found="none")
        for site in self.sites:
            _one_of("site", site, SITES)
        for name, places in (("site", self.sites), ("layer", self.layers or ())):
            if len(set(places)) < len(places):
                raise LakeError(f"{name}: expected each once, found {', '.join(map(str, places))}")
        _one_of("dtype", self.dtype, DTYPES)
        if self.normalize is not None:
            _one_of("normalize", self.normalize, NORMALIZE)
        for name in ("batch", "buffer", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise LakeError(name, expected="1 at least", found=value)
        if self.seed < 0:
            raise LakeError("seed", expected="0 or more", found=self.seed)
        if self.world < 1 or not 0 <= self.rank < self.world:
            raise LakeError(f"rank {self.rank} of {self.world}: ranks count from 0 to world - 1")

    def workers(self, remote: bool) -> int:
        """Threads that read and decode."""
        return self.threads or (16 if remote else cores())


def check_kind(kind: type, **values: object) -> None:
    """LakeError for the first of some arguments, by name, that is not of a kind of KINDS, NumPy's scalars included."""
    expected, types = KINDS[kind]
    for name, value in values.items():
        if not isinstance(value, types) or (kind is not bool and isinstance(value, bool)):
            raise LakeError(name, expected=expected, found=repr(value))


def _one_of(what: str, found: str, known: Collection[str]) -> None:
    check_kind(str, **{what: found})
    if found not in known:
        raise LakeError(f"{what} {found!r}: expected {' or '.join(known)}{hint(found, known)}")
