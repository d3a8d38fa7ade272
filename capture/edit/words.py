"""Edits in words, `scale:layers=late,direction=d_mean,alpha=0.5`: parsed, made canonical, and turned into edits of a model.

The canonical text of a condition is part of its content key, so that equal edits give equal texts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...analyze.residual.directions import matched_units
from ...store.core.errors import LakeError
from ..model.partial import Donor
from .edits import Edit, Graft, Inject, MatchedScale, RandomGraft, Scale, Zero

SITES = ("mlp", "attn", "block")
SEED = 42
SEEDED = ("random", "rotated")  # directions drawn from a seed
RUN = re.compile(r"(\d+)(?:-(\d+))?")


@dataclass(frozen=True)
class Operator:
    """What an edit takes: settings it must have, those it may have with their defaults, and the dose that changes nothing."""

    needs: tuple[str, ...]
    defaults: Mapping[str, str]
    dose: str = ""
    noop: float = math.nan


OPERATORS: Mapping[str, Operator] = {
    "scale": Operator(("layers", "direction", "alpha"), {"site": "mlp", "seed": ""}, "alpha", 1),
    "inject": Operator(("layers", "direction", "beta"), {"site": "mlp", "relative": "true", "seed": ""}, "beta", 0),
    "matched": Operator(("layers", "direction", "alpha"), {"site": "mlp", "seed": str(SEED)}, "alpha", 1),
    "zero": Operator(("layers",), {"site": "mlp"}),
    "skip": Operator(("layers",), {}),
    "graft": Operator(("layers",), {}),
    "random_graft": Operator(("layers",), {"seed": str(SEED)}),
}


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
        operator = OPERATORS[self.kind]
        return not self.layers or (bool(operator.dose) and float(self[operator.dose]) == operator.noop)

    def __getitem__(self, name: str) -> str:
        return dict(self.settings).get(name, "")

    @property
    def direction(self) -> tuple[str, int] | None:
        """Name of its direction, and the seed of a random one."""
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
    operator = OPERATORS.get(kind)
    if operator is None:
        raise LakeError(f"edit {text!r}: unknown operator {kind!r}; expected one of {', '.join(OPERATORS)}")
    given: dict[str, str] = {}
    for part in filter(None, rest.split(",")):
        name, equals, value = part.strip().partition("=")
        if not equals or not value.strip():
            raise LakeError(f"edit {text!r}: {part.strip()!r} is no setting; expected name=value, joined by commas")
        if name not in (*operator.needs, *operator.defaults):
            raise LakeError(
                f"edit {text!r}: {kind} has no setting {name!r}; it takes {', '.join((*operator.needs, *operator.defaults))}"
            )
        if name in given:
            raise LakeError(f"edit {text!r}: {name} is given twice")
        given[name] = value.strip()
    if missing := [name for name in operator.needs if name not in given]:
        raise LakeError(f"edit {text!r}: {kind} needs {', '.join(missing)}")
    layers = parse_layers(given.pop("layers"), n_layers, windows, f"edit {text!r}")
    if "seed" in operator.defaults and not operator.defaults["seed"]:  # only random directions have one
        if given["direction"] in SEEDED:
            given.setdefault("seed", str(SEED))
        elif "seed" in given:
            raise LakeError(f"edit {text!r}: a seed goes with direction {' or '.join(SEEDED)} only")
    full = {name: value for name, value in {**operator.defaults, **given}.items() if value}
    order = [*operator.needs, *operator.defaults]
    return EditSpec(kind, layers, tuple((name, _value(text, name, full[name])) for name in order if full.get(name)))


def _value(text: str, name: str, value: str) -> str:
    """A setting in its canonical form."""
    if name in ("alpha", "beta"):
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise LakeError(f"edit {text!r}: {name} is {value!r}, expected a number")
        return repr(int(number)) if number == int(number) else repr(number)
    if name == "seed":
        if not value.isdecimal():
            raise LakeError(f"edit {text!r}: seed is {value!r}, expected a whole number from 0")
        return str(int(value))
    known = {"site": SITES, "relative": ("true", "false")}.get(name)
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
    return [made for spec in edits for made in _build(spec, vectors, donor)]


def _build(
    spec: EditSpec,
    vectors: Callable[[tuple[str, int], Sequence[int]], Mapping[int, np.ndarray]],
    donor: Callable[[Sequence[int]], Donor],
) -> list[Edit]:
    if spec.kind == "skip":
        return [Zero(site=site, blocks=spec.layers) for site in ("mlp", "attn")]
    if spec.kind == "zero":
        return [Zero(site=spec["site"], blocks=spec.layers)]
    if spec.kind == "graft":
        return [Graft(donor(spec.layers), spec.layers)]
    if spec.kind == "random_graft":
        return [RandomGraft(donor(spec.layers), spec.layers, int(spec["seed"]))]
    assert spec.direction
    found = dict(vectors(spec.direction, spec.layers))
    if not found:
        raise LakeError(f"edit {spec.text}: direction {spec['direction']} has no vector for any of these layers")
    site = spec["site"]
    if spec.kind == "scale":
        return [Scale(direction=found, alpha=float(spec["alpha"]), site=site)]
    if spec.kind == "inject":
        relative = spec["relative"] == "true"
        return [Inject(direction=found, beta=float(spec["beta"]), relative=relative, site=site)]
    width = len(next(iter(found.values())))
    random = matched_units(found, width, int(spec["seed"]))
    return [MatchedScale(direction=found, random=random, alpha=float(spec["alpha"]), site=site)]
