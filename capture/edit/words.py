"""Edits in words, `scale:layers=late,direction=d_mean,alpha=0.5`: parsed, made canonical, and turned into edits of a model.

The canonical text of a condition is part of its content key, so that equal edits give equal texts.
"""

from __future__ import annotations

import hashlib
import inspect
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from functools import cache
from typing import Any, get_type_hints

import numpy as np

from ...store.core.errors import LakeError
from ...store.core.registry import is_ours
from ...store.core.yaml_file import hint
from ..model.partial import Donor
from .edits import EDITS, SITES, WORD, Edit

FILLED = ("blocks", "direction", "donor")  # fields that are no settings in words
SEED = 42
SEEDED = ("random", "rotated")  # directions drawn from a seed
RUN = re.compile(r"(\d+)(?:-(\d+))?")


@dataclass(frozen=True)
class _Settings:
    """What an edit takes in words, from its fields: needed settings, and the others with their defaults, in their order."""

    types: Mapping[str, type]
    needs: tuple[str, ...]
    defaults: Mapping[str, str]

    @property
    def names(self) -> tuple[str, ...]:
        """All of them."""
        return (*self.needs, *self.defaults)


@cache
def settings_of(kind: type[Edit]) -> _Settings:
    """The settings of an edit. `layers` are its blocks; a direction that is drawn has a seed."""
    types, needs, defaults = get_type_hints(kind), ["layers"], dict[str, str]()
    for each in fields(kind):  # type: ignore[arg-type]
        if each.name in FILLED:
            needs += ["direction"] if each.name == "direction" else []
        elif each.default is MISSING:
            needs.append(each.name)
        else:
            defaults[each.name] = each.metadata.get(WORD, str(each.default).lower())
    if "direction" in needs:
        defaults.setdefault("seed", "")
    if not is_ours(kind):
        defaults["code"] = hashlib.sha256(inspect.getsource(kind).encode()).hexdigest()[:8]
    return _Settings({"seed": int} | types, tuple(needs), defaults)


@dataclass(frozen=True)
class EditSpec:
    """One edit in words: an operator, the blocks it changes (ascending), and its other settings."""

    kind: str
    layers: tuple[int, ...]
    settings: tuple[tuple[str, str], ...]

    @property
    def text(self) -> str:
        """The canonical text: blocks as runs, settings in a fixed order, numbers in their shortest form."""
        parts = [f"layers={runs(self.layers)}", *(f"{name}={value}" for name, value in self.settings)]
        return f"{self.kind}:{','.join(parts)}"

    @property
    def noop(self) -> bool:
        """Whether it changes nothing, whatever the model."""
        dose = re.fullmatch(r"(\w+) = ([-.\d]+)", EDITS[self.kind].noop)
        return not self.layers or bool(dose and float(self[dose[1]]) == float(dose[2]))

    @property
    def grafts(self) -> bool:
        """Whether it takes MLPs of the pair's other model."""
        return any(each.name == "donor" for each in fields(EDITS[self.kind]))  # type: ignore[arg-type]

    def __getitem__(self, name: str) -> str:
        return dict(self.settings).get(name, "")

    @property
    def direction(self) -> tuple[str, int] | None:
        """Name of its direction, and the random seed of one that is drawn."""
        name = self["direction"]
        return (name, int(self["seed"]) if name in SEEDED else SEED) if name else None


def runs(layers: Sequence[int]) -> str:
    """Blocks as text: 2-4+7; 'none' for no blocks."""
    found: list[list[int]] = []
    for layer in layers:
        if found and layer == found[-1][1] + 1:
            found[-1][1] = layer
        else:
            found.append([layer, layer])
    return "+".join(str(a) if a == b else f"{a}-{b}" for a, b in found) or "none"


def parse_edit(text: str, n_layers: int, windows: Mapping[str, tuple[int, int]]) -> EditSpec:
    """Read an edit such as `scale:layers=20-33,direction=d_mean,alpha=0.5`.

    layers: numbers and runs (both ends count) joined by +, a window's name, `all` or `none`. LakeError for an unknown
    operator or setting, a missing one, a block outside the model, a value that is not a number.
    """
    kind, _, rest = text.strip().partition(":")
    if kind not in EDITS:
        raise LakeError(
            f"edit {text!r}: unknown operator {kind!r}; expected one of {', '.join(EDITS)}{hint(kind, EDITS)}"
        )
    known = settings_of(EDITS[kind])
    given: dict[str, str] = {}
    for part in filter(None, rest.split(",")):
        name, equals, value = part.strip().partition("=")
        if not equals or not value.strip():
            raise LakeError(f"edit {text!r}: {part.strip()!r} is no setting; expected name=value, joined by commas")
        if name not in known.names:
            raise LakeError(f"edit {text!r}: {kind} has no setting {name!r}; it takes {', '.join(known.names)}")
        if name in given:
            raise LakeError(f"edit {text!r}: {name} is given twice")
        given[name] = value.strip()
    if missing := [name for name in known.needs if name not in given]:
        raise LakeError(f"edit {text!r}: {kind} needs {', '.join(missing)}")
    layers = parse_layers(given.pop("layers"), n_layers, windows, f"edit {text!r}")
    if known.defaults.get("seed") == "":  # only random directions have one
        if given["direction"] in SEEDED:
            given.setdefault("seed", str(SEED))
        elif "seed" in given:
            raise LakeError(f"edit {text!r}: a seed is for direction {' or '.join(SEEDED)} only")
    full = {name: value for name, value in {**known.defaults, **given}.items() if value}
    if full.get("code") != known.defaults.get("code"):
        raise LakeError(f"edit {text!r}: {kind} has changed since (its code is {known.defaults['code']} now)")
    written = (
        (name, _value(text, name, known.types.get(name, str), full[name])) for name in known.names if name in full
    )
    return EditSpec(kind, layers, tuple(written))


def _value(text: str, name: str, kind: type, value: str) -> str:
    """A setting in its canonical form."""
    if kind is float:
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise LakeError(f"edit {text!r}: {name} is {value!r}, expected a number")
        return repr(int(number)) if number == int(number) else repr(number)
    if kind is int:
        if not value.isdecimal():
            raise LakeError(f"edit {text!r}: {name} is {value!r}, expected a whole number from 0")
        return str(int(value))
    known = tuple(SITES) if name == "site" else ("true", "false") if kind is bool else ()
    if known and value not in known:
        raise LakeError(f"edit {text!r}: {name} is {value!r}, expected {' or '.join(known)}")
    return value


def parse_layers(
    text: str, n_layers: int, windows: Mapping[str, tuple[int, int]], where: str = "layers"
) -> tuple[int, ...]:
    """Blocks named by numbers, runs and windows joined by +, ascending; LakeError for one outside the model."""
    found: set[int] = set()
    for part in text.split("+"):
        match = RUN.fullmatch(part)
        if part in ("all", "none"):
            found |= set(range(n_layers if part == "all" else 0))
        elif part in windows:
            found |= set(range(*windows[part]))
        elif not match:
            names = ", ".join((*windows, "all", "none"))
            raise LakeError(f"{where}: layers {part!r}, expected a number, a run such as 2-5, or one of {names}")
        else:
            first, last = int(match[1]), int(match[2] or match[1])
            if first > last:
                raise LakeError(f"{where}: layers {part!r} run backwards")
            if last >= n_layers:
                raise LakeError(f"{where}: no block {last}; the model's blocks are 0 to {n_layers - 1}")
            found |= set(range(first, last + 1))
    return tuple(sorted(found))


def parse_edits(texts: Iterable[str], n_layers: int, windows: Mapping[str, tuple[int, int]]) -> tuple[EditSpec, ...]:
    """The edits of a condition, in order, without those that change nothing: equal conditions are equal tuples."""
    found = (parse_edit(text, n_layers, windows) for text in texts)
    return tuple(spec for spec in found if not spec.noop)


def condition_text(edits: Sequence[EditSpec]) -> str:
    """The canonical text of a condition: its edits joined by ' & ', or 'none'."""
    return " & ".join(edit.text for edit in edits) or "none"


def build(
    edits: Sequence[EditSpec],
    vectors: Callable[[tuple[str, int], Sequence[int]], Mapping[int, np.ndarray]],
    donor: Callable[[Sequence[int]], Donor],
) -> list[Edit]:
    """Edits that attach to a model. `vectors(direction, layers)` gives unit vectors of those layers that have one, `donor`
    the MLPs of the pair's other model. LakeError where no layer of an edit has a direction."""
    return [_build(spec, vectors, donor) for spec in edits]


def _build(
    spec: EditSpec,
    vectors: Callable[[tuple[str, int], Sequence[int]], Mapping[int, np.ndarray]],
    donor: Callable[[Sequence[int]], Donor],
) -> Edit:
    kind, types, given = EDITS[spec.kind], settings_of(EDITS[spec.kind]).types, dict[str, Any]()
    for name in (each.name for each in fields(kind)):  # type: ignore[arg-type]
        if name == "direction":
            assert spec.direction
            given[name] = dict(vectors(spec.direction, spec.layers))
            if not given[name]:
                raise LakeError(
                    f"edit {spec.text}: direction {spec['direction']} has no vector for any of these layers"
                )
        elif name in ("blocks", "donor"):
            given[name] = donor(spec.layers) if name == "donor" else spec.layers
        elif spec[name]:
            given[name] = spec[name] == "true" if types[name] is bool else types[name](spec[name])
    return kind(**given)
