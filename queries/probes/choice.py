"""Probes of the tuned and of the Jacobian lens: which set a question uses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ...analyze.tuned.folds import fold_of
from ...store.artifacts.probes import JACOBIAN, TUNED, list_probes, read_probes
from ...store.core.columns import LENSES
from ...store.core.errors import LakeError, needs
from ...store.remote.files import HERE, Files
from ...store.tables.streams import stream_table
from ..engine.context import Context, Names
from ..engine.job import Job
from .spec import DEFAULT, ProbeSpec

if TYPE_CHECKING:
    from ...analyze.lens.tuned_lens import Probes


@dataclass(frozen=True)
class Chosen:
    """The set that a question about one capture uses: its path, and what has to be trained before, if anything."""

    path: Path
    before: tuple[Job, ...]
    lake: Files

    @property
    def name(self) -> str:
        """Stands for the set's content in the keys of tables."""
        return self.path.stem

    @cached_property
    def folds(self) -> list[Probes]:
        """The probes of each fold, once they are trained; CorruptError when they are damaged."""
        return load_probes(self.path, self.lake)

    def unseen(self, prompt_ids: np.ndarray) -> np.ndarray:
        """Which prompts some fold was not trained on, bool [P]; of a single fold the fifth that was held out."""
        return fold_of(prompt_ids, len(self.folds)) >= 0

    def readers(self, prompt_ids: np.ndarray) -> Iterator[tuple[Probes, np.ndarray]]:
        """Probes, and the places in `prompt_ids` (one a token) that they read: those they were not trained on.

        A single fold reads everything.
        """
        return reading(self.folds, prompt_ids)

    def translate(self, resid: np.ndarray, prompt_ids: np.ndarray, device: str) -> np.ndarray:
        """Residuals [n, L+1, d] as the lens reads them, each prompt through its own fold's probes; float32."""
        import torch

        out = np.empty_like(resid, order="C")
        for probes, places in self.readers(prompt_ids):
            here = torch.from_numpy(resid[places]).to(device)
            out[places] = probes.to(device)(here).cpu().numpy()
        return out


def reading(folds: list[Probes], prompt_ids: np.ndarray) -> Iterator[tuple[Probes, np.ndarray]]:
    """The probes of each fold, and the places in `prompt_ids` (one a token) that they read; see `Chosen.readers`."""
    names, inverse = np.unique(prompt_ids.astype(str), return_inverse=True)
    fold = np.maximum(fold_of(names, len(folds)), 0)[inverse]
    for number, probes in enumerate(folds):
        if len(places := np.flatnonzero(fold == number)):
            yield probes, places


def load_probes(path: Path, lake: Files = HERE) -> list[Probes]:
    """The probes of each fold under `path`, hashed first; CorruptError when they are damaged."""
    import torch

    from ...analyze.lens.tuned_lens import Probes

    weight, bias, _ = read_probes(path, lake)
    return [Probes(torch.from_numpy(w), torch.from_numpy(b)) for w, b in zip(weight, bias, strict=True)]


def lens_of(table: str, kind: str) -> str:
    """The kind of lens that a table is read through, the raw one unless said; LakeError for one that nobody knows."""
    if kind not in ("", *LENSES):
        raise LakeError(f"{table}({kind}): the lens is {', '.join(LENSES[:-1])} or {LENSES[-1]}")
    return kind or LENSES[0]


def choose(kit: Context, names: Names, kind: str = TUNED) -> Chosen:
    """The probes for a capture's model: of those that were asked for expressly the one trained on most tokens, else the
    default recipe's, trained on the model's native stream of the same prompts if it was captured. Of Jacobian lenses (`kind`),
    which no question fits by itself, the one of most prompts.

    Sets of another checkpoint don't count. LakeError when nothing is there and nothing can be trained.
    """
    return kit.once(_fitted if kind == JACOBIAN else _choose, names)


def has_jacobian(kit: Context, captures: Iterable[Names]) -> bool:
    """Whether the lake has a Jacobian lens of one of these models."""
    return any(kit.once(_jacobians, names[0]) for names in captures)


def _jacobians(kit: Context, model: str) -> list[tuple[int, Path]]:
    """The Jacobian lenses of a model with their prompts; those of another checkpoint of its name don't count."""
    sets = list_probes(kit.layout, model, JACOBIAN)
    head = kit.head_hash((model, "")) if sets else ""
    return [(max(record["prompts"]), path) for path, record in sets if record["model_sha256"] == head]


def _fitted(kit: Context, names: Names) -> Chosen:
    if not (sets := kit.once(_jacobians, names[0])):
        raise LakeError(
            f"no Jacobian lens of {names[0]} is here", repair=f"`actlake fit-lens {names[0]} --kind jacobian` fits one"
        )
    return Chosen(max(sets)[1], (), kit.layout.files)


@needs()
def _choose(kit: Context, names: Names) -> Chosen:
    model = kit.head_hash(names)
    spec = ProbeSpec(_native(kit, names), DEFAULT)
    usual = spec.path(kit)
    sets = list_probes(kit.layout, names[0])
    mine = [(max(record["trained_tokens"]), path) for path, record in sets if record["model_sha256"] == model]
    chosen = [entry for entry in mine if entry[1] != usual]
    if chosen:
        return Chosen(max(chosen)[1], (), kit.layout.files)
    if usual.exists():
        return Chosen(usual, (), kit.layout.files)
    if not kit.probes:
        raise LakeError(
            f"probes of {names[0]} are not there, and training is switched off",
            repair=f"`actlake fit-lens {names[0]}` makes them",
        )
    from .training import Training

    return Chosen(usual, (Training(kit, spec),), kit.layout.files)


def _streams(kit: Context, model: str) -> pd.DataFrame:
    return stream_table(kit.layout, [model])


def _native(kit: Context, names: Names) -> Names:
    """The capture on the stream `native` of the same model and prompts; the one at hand when there is none."""
    model, stream = names
    mine = kit.once(_streams, model)
    same = mine[mine["prompt_set"].isin(mine.loc[mine["stream"] == stream, "prompt_set"])]
    native = sorted(set(same.loc[same["recipe"] == "native", "stream"]))
    return names if not native or stream in native else (model, native[0])
