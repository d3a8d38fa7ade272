"""Sweeps: the conditions under which a row of the index lets models write freely. METHODS 5.3, 6, 7 (P4), 11, 12."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from ...capture.edit.words import EditSpec, parse_edits, runs
from ...store.core.errors import LakeError

ALPHAS = (5, 3, 2, 1.5, 1, 0.75, 0.5, 0.25, 0, -0.5, -1, -2, -3, -5)
BETAS = (-5, -3, -2, -1, -0.75, -0.5, -0.25, 0, 0.25, 0.5, 1, 1.5, 2, 3, 5)
CONTROLS = ("random", "rotated", "content")
SEEDS = (42, 137, 271, 503, 719)
SPLITS = ("top", "bottom", "random")


@dataclass(frozen=True)
class Setting:
    """One condition of a sweep: which model writes, under which template, with which edits; `arm` and `dose` place it in
    the row's figure. Settings that change nothing have no edits, so that all baselines are one condition."""

    arm: str
    dose: float | None
    variant: str
    edits: tuple[EditSpec, ...]
    template: str = "native"


@dataclass(frozen=True)
class Shape:
    """What a sweep depends on: the number of blocks and the pair's windows."""

    n_layers: int
    windows: Mapping[str, tuple[int, int]]

    @property
    def onset(self) -> int:
        """Where the late (the study: corrective) blocks begin."""
        return self.windows["late"][0]

    def setting(self, arm: str, dose: float | None, variant: str, *edits: str, template: str = "native") -> Setting:
        """A setting from edits in words."""
        return Setting(arm, dose, variant, parse_edits(edits, self.n_layers, self.windows), template)


def _scale(layers: str, direction: str = "d_mean", kind: str = "scale", **more: object) -> Callable[[float], str]:
    settings = "".join(f",{name}={value}" for name, value in more.items())
    return lambda alpha: f"{kind}:layers={layers},direction={direction},alpha={alpha}{settings}"


def _alphas(
    shape: Shape, arm: str, edit: Callable[[float], str], alphas: Iterable[float] = ALPHAS, template: str = "native"
) -> list[Setting]:
    return [shape.setting(arm, alpha, "it", edit(alpha), template=template) for alpha in alphas]


def _a1(shape: Shape) -> list[Setting]:
    """The component along d_mean of the late blocks' MLP outputs scaled; a random vector added once, as control."""
    random = [
        shape.setting("inject_random", beta, "it", f"inject:layers=late,direction=random,beta={beta}")
        for beta in (0, 1)
    ]
    return _alphas(shape, "d_mean", _scale("late")) + random


def _a1_rand(shape: Shape) -> list[Setting]:
    return _alphas(shape, "d_mean", _scale("late")) + _alphas(shape, "random", _scale("late", "random"))


def _a1_notmpl(shape: Shape) -> list[Setting]:
    native = _alphas(shape, "chat", _scale("late"))
    return native + _alphas(shape, "raw", _scale("late"), template="raw")


def _a2(shape: Shape) -> list[Setting]:
    """The direction added to the PT's MLP outputs, by each output's norm; three control directions."""
    doses = [("d_mean", BETAS), *((control, (0, 1, 3)) for control in CONTROLS)]
    return [
        shape.setting(arm, beta, "pt", f"inject:layers=late,direction={arm},beta={beta}")
        for arm, betas in doses
        for beta in betas
    ]


def _a5a(shape: Shape) -> list[Setting]:
    """Blocks from s on do nothing, s from the last block down to the onset; dose: how many are skipped."""
    last = shape.n_layers - 1
    skips = [(last + 1 - first, f"skip:layers={first}-{last}") for first in range(last, shape.onset - 1, -1)]
    return [
        shape.setting("skip", 0, "it"),
        *(shape.setting("skip", count, "it", edit) for count, edit in skips),
    ]


def _0c(shape: Shape) -> list[Setting]:
    found = _alphas(shape, "d_mean", _scale("late"))
    for seed in SEEDS:
        alphas = ALPHAS if seed == SEEDS[0] else (2, 1, 0.5, 0, -1)
        found += _alphas(shape, f"seed{seed}", _scale("late", kind="matched", seed=seed), alphas)
    return found


def _0f(shape: Shape) -> list[Setting]:
    """Ranges around the late blocks, shifted as in the study's model of 34 blocks (18-33, 20-33, 20-31, 22-33), and single
    blocks removed (arm `single`, dose: the block)."""
    shift, onset, last = max(1, round(shape.n_layers / 17)), shape.onset, shape.n_layers - 1
    ranges = [(onset - shift, last), (onset, last), (onset, last - shift), (onset + shift, last)]
    found = []
    for first, stop in ranges:
        if 0 <= first <= stop:
            layers = runs(range(first, stop + 1))
            found += _alphas(shape, layers, _scale(layers))
    single = [shape.setting("single", layer, "it", _scale(str(layer))(0)) for layer in range(onset, last + 1)]
    return [*found, *single]


def _0h(shape: Shape) -> list[Setting]:
    return [setting for split in SPLITS for setting in _alphas(shape, split, _scale("late", f"d_mean_{split}"))]


def _0i(shape: Shape) -> list[Setting]:
    """Four formulas; the additive one with beta = alpha - 1, where the study left beta at 0."""
    alphas = (0, 0.5, 1, 1.5, 2)
    added = [
        shape.setting("mlp_inject", alpha, "it", f"inject:layers=late,direction=d_mean,beta={alpha - 1}")
        for alpha in alphas
    ]
    scaled = [
        setting
        for arm, site in (("mlp_scale", "mlp"), ("residual_scale", "block"), ("attn_scale", "attn"))
        for setting in _alphas(shape, arm, _scale("late", site=site), alphas)
    ]
    return [*scaled, *added]


def _p4(shape: Shape) -> list[Setting]:
    return [setting for arm in ("d_mean", "d_conv") for setting in _alphas(shape, arm, _scale("late", arm))]


def _exp12(shape: Shape) -> list[Setting]:
    return [
        shape.setting("A", None, "pt"),
        shape.setting("B", None, "pt", "graft:layers=late"),
        shape.setting("C", None, "it"),
    ]


def _exp15(shape: Shape) -> list[Setting]:
    found = []
    for baseline, grafted, variant in (("A", "B", "pt"), ("C", "D", "it")):
        found.append(shape.setting(baseline, None, variant))
        found += [
            shape.setting(f"{grafted}_{window}", None, variant, f"graft:layers={window}")
            for window in ("early", "mid", "late")
        ]
    return found


SWEEPS: Mapping[str, Callable[[Shape], list[Setting]]] = {
    "A1": _a1,
    "A1_rand": _a1_rand,
    "A1_notmpl": _a1_notmpl,
    "A2": _a2,
    "A5a": _a5a,
    "0C": _0c,
    "0E": _a1,
    "0F": _0f,
    "0H": _0h,
    "0I": _0i,
    "exp10_P4": _p4,
    "exp12": _exp12,
    "exp15": _exp15,
}


def settings(sweep: str, shape: Shape) -> list[Setting]:
    """The settings of a sweep for a model of this shape; LakeError for an unknown one."""
    made = SWEEPS.get(sweep)
    if made is None:
        raise LakeError(f"unknown sweep {sweep!r}; expected one of {', '.join(SWEEPS)}")
    return made(shape)
