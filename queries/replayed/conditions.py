"""Conditions that a pair is replayed under, and their tables: MLPs of one model's window of blocks in the other, on IT's
answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from ...store.core.columns import CONDITION, LENSES, MODELS, STREAM, STREAM_PT, VARIANT
from ...store.core.errors import LakeError
from ...store.core.schema import VARIANTS
from ...store.tables.declared import TABLES
from ..engine.blocks import Block, following
from ..engine.context import Context, Names, Scope, aligned, all_boundaries
from ..engine.job import LayerTable
from ..probes.choice import choose
from .replays import SEED, Condition, Replays, answer_resid

HOST = replace(VARIANT, meaning="model that runs: pt or it", fill="if(condition[1] IN ('A', 'B'), 'pt', 'it')")
HOSTED = (*MODELS, HOST, STREAM, STREAM_PT, CONDITION)  # columns of every table of conditions


def split_lens(kind: str) -> tuple[str, str]:
    """A condition and the lens that it is read through: `B_late_tuned` is B_late and tuned, without a word the raw one."""
    name, _, lens = kind.rpartition("_")
    return (name, lens) if name and lens in LENSES[1:] else (kind, LENSES[0])


def by_condition(kind: str) -> dict[str, str]:
    """The columns that tell rows of a condition, as in `graft(B_late_tuned)`."""
    return {"condition": split_lens(kind)[0]}


def by_condition_and_lens(kind: str) -> dict[str, str]:
    """Likewise, of a table that is read through a lens."""
    return by_condition(kind) | {"lens": split_lens(kind)[1]}


class Replayed:
    """A condition replayed on a pair's captures, block by block, and read through the host's lens of one kind.

    `lens` is one of LENSES, or empty in a table that has no lens. LakeError without the probes of a lens.
    """

    replays: Replays

    def __init__(self, kit: Context, scope: Scope, condition: Condition, lens: str = ""):
        self.kit, self.scope, self.condition, self.lens = kit, scope, condition, lens
        self.models = scope.both
        self.host = self.models[condition.host]
        self._chosen = choose(kit, self.host, lens) if lens in LENSES[1:] else None

    def table(
        self,
        table: str,
        columns: Callable[[Block, Block], dict[str, Any]],
        first: int = -1,
        labels: dict[str, Any] | None = None,
        **more: Any,
    ) -> LayerTable:
        """The job of a table of (prompt, step) x layer: `columns` turns a block of PT and one of IT into [n, layers].

        `more` are the recipe's further entries, `labels` further columns, the same in every row, `first` is the layer of the
        first column. Rows of the condition with another window or other probes give way.
        """
        kit, scope, condition = self.kit, self.scope, self.condition
        captures = {variant: kit.capture(names) for variant, names in self.models.items()}
        for capture in captures.values():
            all_boundaries(capture, table)
        same = {"models": scope.models, "streams": scope.streams, "condition": condition.name}
        same |= {"lens": self.lens} if self.lens else {}
        recipe = same | {
            "captures": {variant: capture.sha256 for variant, capture in captures.items()},
            "heads": {variant: kit.head_hash(names) for variant, names in self.models.items()},
            "window": list(condition.window),
            "edit": "RandomGraft" if condition.random else "Graft",
            "version": TABLES[table].version,
            **more,
        }
        recipe |= {"seed": SEED} if condition.random else {}
        recipe |= {"probes": self._chosen.name} if self._chosen else {}
        reads = ("resid", *(["mlp_out"] if all("mlp_out" in capture for capture in captures.values()) else []))

        def compute(pt: Block, it: Block) -> dict[str, Any]:
            return columns(pt, it) if len(aligned(pt, it)[0]) else {}

        def label(pt: Block, it: Block) -> dict[str, Any]:
            return {
                **scope.columns,
                "variant": condition.host,
                "stream": self.models["it"][1],
                "stream_pt": self.models["pt"][1],
                "condition": condition.name,
                **({"lens": self.lens} if self.lens else {}),
                **(labels or {}),
                **{name: pt.columns[name][aligned(pt, it)[0]] for name in ("prompt", "prompt_id", "category", "step")},
            }

        job = LayerTable(
            kit.layout, table, recipe, tuple(captures.values()), reads, compute, label, first, same, self._held
        )
        job.reruns, job.runs = True, (scope.models[condition.host],)
        job.forwards = captures[condition.host].n_tokens
        job.before = self._chosen.before if self._chosen else ()
        if not job.path.exists():  # LakeError without the models' weights, which a table that is there does not need
            self.replays = kit.once(_replays, *self.models.items())
        return job

    @contextmanager
    def _held(self) -> Iterator[None]:
        """Models stay in memory while this is open."""
        self.replays.enter(self.condition)
        try:
            yield
        finally:
            self.replays.leave(self.condition)

    def sides(self, pt: Block, it: Block) -> tuple[tuple[Block, np.ndarray], tuple[Block, np.ndarray]]:
        """The block of the host and that of the other model, each with the places of the answer's tokens."""
        both = dict(zip(VARIANTS, zip((pt, it), aligned(pt, it), strict=True), strict=True))
        return both[self.condition.host], both[self.condition.other]

    def whole(self, rows: Block, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Residuals [n, L+1, d] and MLP outputs [n, L, d] of the chosen tokens of the host under the condition."""
        return self.replays.whole(self.condition, rows, at)

    def stored(self, rows: Block, at: np.ndarray) -> np.ndarray:
        """The stored residuals as the host's lens reads them [n, L+1, d]; shared by the conditions of a host."""
        key = ("answer", *((self.condition.host, self.lens) if self._chosen else ()))
        return rows.once(key, lambda: self.translated(rows, at, answer_resid(rows, at)))

    def translated(self, rows: Block, at: np.ndarray, resid: np.ndarray) -> np.ndarray:
        """Residuals of the chosen tokens [n, L+1, d] through the host's probes, if the lens has some."""
        if not self._chosen:
            return resid
        return self._chosen.translate(resid, rows.columns["prompt_id"][at], self.kit.device)


def _replays(kit: Context, *models: tuple[str, Names]) -> Replays:
    return Replays(kit, dict(models))


def check_scope(kit: Context, scope: Scope) -> None:
    """Raise LakeError unless the scope holds captures of both models that predict the same tokens step by step."""
    if set(scope.streams) != set(VARIANTS):
        raise LakeError(f"pair {scope.pair}: a graft needs captures of pt and it")
    kit.once(_check_answers, scope)


def _check_answers(kit: Context, scope: Scope) -> None:
    found = []
    for variant in VARIANTS:
        columns = kit.capture(scope.names(variant)).columns()
        answer = columns["step"] >= 0
        found.append([columns["prompt"][answer], columns["step"][answer], following(columns)[answer]])
    if not all(np.array_equal(a, b) for a, b in zip(*found, strict=True)):
        raise LakeError(
            f"pair {scope.pair}: {scope.streams['pt']} and {scope.streams['it']} are different answers; a graft is compared with"
            f" both models on IT's tokens: `actlake capture {scope.pair} --stream teacher`"
        )


def window_of(kit: Context, scope: Scope, name: str) -> tuple[int, int]:
    """The blocks of a window: the catalog's, or the rule of METHODS 1.6."""
    layers = kit.capture(scope.names("pt")).layers
    return kit.windows(scope.pair, layers)[name]
