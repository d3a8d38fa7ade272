"""Conditions that a pair is replayed under, and their tables: MLPs of one model's window of blocks in the other, on IT's
answer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ...store.core.columns import CONDITION, MODELS, STREAM, STREAM_PT, VARIANT
from ...store.core.errors import LakeError
from ...store.core.schema import VARIANTS
from ...store.tables.declared import TABLES
from ...store.tables.files import drop_tables
from ..engine.blocks import Block, following
from ..engine.context import Context, Names, Scope, aligned, all_boundaries
from ..engine.job import LayerTable
from ..engine.task_parts import Columns
from .condition import SEED, Condition

if TYPE_CHECKING:
    from .replays import Replays


HOST = replace(VARIANT, meaning="model that runs: pt or it", fill="if(condition[1] IN ('A', 'B'), 'pt', 'it')")
HOSTED = (*MODELS, HOST, STREAM, STREAM_PT, CONDITION)  # columns of every table of conditions


def by_condition(kind: str) -> dict[str, str]:
    """The columns that tell rows of a condition, as in `graft(B_late_tuned)`."""
    return {"condition": kind.removesuffix("_tuned")}


def by_condition_and_lens(kind: str) -> dict[str, str]:
    """Likewise, of a table that is read through a lens."""
    return by_condition(kind) | {"lens": "tuned" if kind.endswith("_tuned") else "raw"}


class ConditionTable(LayerTable):
    """A table of (prompt, step) x layer under one condition; `columns` turns a block of PT and one of IT into [n, layers].

    `more` are the recipe's further entries; `same` those that, with pair, streams and condition, tell whose rows these are:
    existing rows with the same values are replaced. `first` is the layer of the first column.
    """

    reruns = True

    def __init__(
        self,
        kit: Context,
        scope: Scope,
        table: str,
        condition: Condition,
        same: dict[str, str],
        more: dict[str, Any],
        first: int = -1,
    ):
        self.kit, self.condition = kit, condition
        self.scope, self.models = scope, scope.both
        captures = {variant: kit.capture(names) for variant, names in self.models.items()}
        for capture in captures.values():
            all_boundaries(capture, table)
        self._same = {"models": scope.models, "streams": scope.streams, "condition": condition.name, **same}
        recipe = self._same | {
            "captures": {variant: capture.sha256 for variant, capture in captures.items()},
            "heads": {variant: kit.head_hash(names) for variant, names in self.models.items()},
            "window": list(condition.window),
            "edit": "RandomGraft" if condition.random else "Graft",
            "version": TABLES[table].version,
            **more,
        }
        recipe |= {"seed": SEED} if condition.random else {}
        reads = ["resid", *(["mlp_out"] if all("mlp_out" in capture for capture in captures.values()) else [])]
        super().__init__(
            kit.layout, table, recipe, tuple(captures.values()), tuple(reads), self.columns, self._labels, first
        )
        self.replays: Replays
        self.runs = (scope.models[condition.host],)
        self.forwards = captures[condition.host].n_tokens
        if not self.path.exists():
            self.replays = self._replays()

    def _replays(self) -> Replays:
        """What replays the models; LakeError without their weights, which a table that is there does not need."""
        return self.kit.once(_replays, *self.models.items())

    @property
    def host(self) -> Names:
        """The capture of the host."""
        return self.models[self.condition.host]

    def columns(self, pt: Block, it: Block) -> dict[str, Any]:
        """All columns of a block, [n, layers]."""
        raise NotImplementedError

    def labels(self) -> dict[str, Any]:
        """Further columns, the same in every row."""
        return {}

    def sides(self, pt: Block, it: Block) -> tuple[tuple[Block, np.ndarray], tuple[Block, np.ndarray]]:
        """The block of the host and that of the other model, each with the places of the answer's tokens."""
        both = dict(zip(VARIANTS, zip((pt, it), aligned(pt, it), strict=True), strict=True))
        return both[self.condition.host], both[self.condition.other]

    @contextmanager
    def loaded(self) -> Iterator[None]:
        """Models stay in memory while this is open."""
        self.replays.enter(self.condition)
        try:
            yield
        finally:
            self.replays.leave(self.condition)

    def part(self, *rows: Block) -> Columns:
        """All columns of a block, unless its prompts have no answer."""
        return super().part(*rows) if len(aligned(*rows)[0]) else {}

    def finish(self) -> None:
        """Write what is still held, and delete the rows of this condition with another window or other probes."""
        super().finish()
        drop_tables(self.kit.layout, self.name, self._same, keep=self.path)

    def _labels(self, pt: Block, it: Block) -> dict[str, Any]:
        return {
            **self.scope.columns,
            "variant": self.condition.host,
            "stream": self.models["it"][1],
            "stream_pt": self.models["pt"][1],
            "condition": self.condition.name,
            **self.labels(),
            **{name: pt.columns[name][aligned(pt, it)[0]] for name in ("prompt", "prompt_id", "category", "step")},
        }


def _replays(kit: Context, *models: tuple[str, Names]) -> Replays:
    from .replays import Replays

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
