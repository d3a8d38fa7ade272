"""Fitting lenses of either kind for some models, as it is asked for."""

from __future__ import annotations

from collections.abc import Iterable
from math import inf
from pathlib import Path
from typing import Any

from ...store.artifacts.probes import JACOBIAN, TUNED
from ...store.captures.reader import find_capture
from ...store.core.errors import LakeError
from ..engine.context import Context

# What belongs to one kind alone, and what it is unless given.
OWN: dict[str, dict[str, Any]] = {
    TUNED: {"recipe": "ridge", "tokens": None, "scale": None},
    JACOBIAN: {"count": None, "skip": 16, "length": 128, "centred": False},
}


def fit_lens(
    kit: Context,
    models: Iterable[str],
    kind: str,
    stream: str,
    *,
    batch: int | None,
    seed: int,
    folds: int,
    **given: Any,
) -> dict[Path, dict[str, Any]]:
    """Lenses of one kind for some models; `given` are options of OWN. Path -> record.

    LakeError for an unknown kind, an option of the other kind, and a number that is too small.
    """
    if kind not in OWN:
        raise LakeError("lens kind", expected=" or ".join(OWN), found=kind)
    for name, usual in next(own for other, own in OWN.items() if other != kind).items():
        if given.pop(name) != usual:
            raise LakeError(
                f"{name} is no setting of the {kind} lens; it has {', '.join(OWN[kind])}, batch, seed and folds"
            )
    least = {"batch": 1, "folds": 1, "seed": 0, "tokens": 1, "count": 2}
    for name, value in {**given, "batch": batch, "folds": folds, "seed": seed}.items():
        if name in least and value is not None and value < least[name]:
            raise LakeError(name, expected=f"{least[name]} or more", found=value)
    if (scale := given.get("scale")) is not None and not 0 < scale < inf:
        raise LakeError("scale: times the published learning rate", expected="above 0", found=scale)
    found = {}
    for model in models:
        if kind == JACOBIAN:
            from .jacobian import fit_jacobian

            names = (model, find_capture(kit.layout, model, stream).stem)
            path, record = fit_jacobian(kit, names, batch=batch, seed=seed, folds=folds, **given)
        else:
            from .training import recipe_of, train_probes

            recipe = recipe_of(kit.layout, given["recipe"], model, batch, given["scale"])
            path, record = train_probes(
                kit.layout, model, stream, recipe, tokens=given["tokens"], seed=seed, folds=folds, device=kit.device
            )
        found[path] = record
    return found
