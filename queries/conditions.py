"""Conditions that a pair is replayed under: MLPs of one model's window of blocks in the other, on IT's answer.

Each block of a sweep is replayed from the window's first boundary, which the sweep has read anyway, by blocks that stay in
memory: of each host those from its lowest window on, and the other model's MLPs in these windows. Batches are made of a
block's prompts, so that a replay equals a whole forward to rounding, not to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..capture.edits import Graft, RandomGraft
from ..capture.model import Model
from ..capture.replay import Start, find_weights, load_late, load_mlps, open_start, replay_whole
from ..capture.suffix import Donor
from ..store.errors import LakeError
from ..store.parts import Columns
from ..store.schema import VARIANTS
from ..store.tables import drop_tables
from .feed import Rows, following
from .kit import OTHER, VERSION, Kit, Names, Scope, T, aligned, all_boundaries
from .sweep import LayerTable

SEED = 42  # of the random controls; METHODS 5.2


@dataclass(frozen=True)
class Condition:
    """A host whose MLPs of blocks window[0]..window[1]-1 are replaced by those of the pair's other model.

    An empty window at the end of the stack is the host as it is.
    """

    name: str
    host: str
    window: tuple[int, int]
    random: bool = False

    @property
    def other(self) -> str:
        """The variant that the MLPs are from, and that the host is compared with."""
        return OTHER[self.host]

    def edit(self, donor: Donor) -> Graft:
        """What replays the condition."""
        blocks = range(*self.window)
        return RandomGraft(donor, blocks, SEED) if self.random else Graft(donor, blocks)


class Replays:
    """Replays of a pair's captures, block by block of a sweep; models are loaded when the first block comes.

    What the last condition gave is kept, for the next job may ask for it too.
    """

    def __init__(self, kit: Kit, models: dict[str, Names]):
        self._kit, self._wanted = kit, list[Condition]()
        self._starts = {variant: _open(kit, names) for variant, names in models.items()}
        self._names = {variant: "/".join(names[:2]) for variant, names in models.items()}
        self._loaded: dict[Any, Any] = {}  # (what, variant) -> a host or donor, or the error that loading it ended with
        self._last: tuple[Any, dict[str, np.ndarray]] = (None, {})

    def enter(self, condition: Condition) -> None:
        """A job will ask for this condition."""
        self._wanted.append(condition)

    def leave(self, condition: Condition) -> None:
        """A job is done with it; after the last one the models are let go."""
        self._wanted.remove(condition)
        if not self._wanted:
            self._loaded, self._last = {}, (None, {})

    def whole(self, condition: Condition, rows: Rows, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Residuals [n, L+1, d] and MLP outputs [n, L, d] of the chosen tokens (ascending places in a block) under a
        condition: below the window those stored, or NaN where the capture has no mlp_out."""
        first, resid = condition.window[0], answer_resid(rows, at)
        below = rows["mlp_out"][at][:, :first] if "mlp_out" in rows.values else np.full_like(resid[:, :first], np.nan)
        if first == resid.shape[1] - 1:
            return resid, below
        edited = self._run(condition, rows, at)
        return np.concatenate([resid[:, : first + 1], edited["resid"]], 1), np.concatenate(
            [below, edited["mlp_out"]], 1
        )

    def _run(self, condition: Condition, rows: Rows, at: np.ndarray) -> dict[str, np.ndarray]:
        """resid and mlp_out [n, L - window[0], d] of the chosen tokens: outputs of the blocks from the window on."""
        key = (condition, rows.tokens.start)
        if self._last[0] != key:
            self._last = (None, {})
            model = self._host(condition.host)
            first, chosen = condition.window[0], np.zeros(len(rows), bool)
            chosen[at] = True
            later = range(first + 1, model.n_layers + 1)
            start = _here(self._starts[condition.host], rows, first)
            edits = [condition.edit(self._donor(condition.host))]
            found = replay_whole(model, start, edits, logits="none", boundaries=later, tokens=chosen)
            self._last = key, found.arrays
        return self._last[1]

    def _host(self, variant: str) -> Model:
        """A host's blocks from the lowest of its windows on."""
        return self._once(("host", variant), lambda: self._load_host(variant))

    def _load_host(self, variant: str) -> Model:
        layout, catalog, provenance = self._kit.layout, self._kit.catalog, self._starts[variant].provenance
        options = {"dtype": provenance["dtype"], "attention": provenance["attn_implementation"]}
        first = min(self._blocks(variant))
        return load_late(layout, self._names[variant], first, catalog, device=self._kit.device, **options)

    def _donor(self, host: str) -> Donor:
        """The other model's MLPs for all windows of a host: out of its own late blocks where it is a host too."""
        return self._once(("donor", host), lambda: self._load_donor(OTHER[host], host))

    def _load_donor(self, other: str, host: str) -> Donor:
        blocks = self._blocks(host)
        if set(self._blocks(other)) >= set(blocks):
            model = self._host(other)
            return Donor(model.name, {layer: model.parts.mlps[layer] for layer in blocks})
        layout, catalog, dtype = self._kit.layout, self._kit.catalog, self._starts[host].provenance["dtype"]
        window = (min(blocks), max(blocks) + 1)
        return load_mlps(layout, self._names[other], window, catalog, device=self._kit.device, dtype=dtype)

    def _once(self, key: tuple[str, str], load: Callable[[], T]) -> T:
        """What `load` returns or raises the first time: a model that can't be had is not tried for every condition."""
        if key not in self._loaded:
            try:
                self._loaded[key] = load()
            except LakeError as error:
                self._loaded[key] = error
        if isinstance(self._loaded[key], LakeError):
            raise self._loaded[key]
        return self._loaded[key]

    def _blocks(self, host: str) -> range:
        """From the first to the last block that is exchanged in a host; none when no condition is wanted of it."""
        windows = [condition.window for condition in self._wanted if condition.host == host]
        windows = [(start, stop) for start, stop in windows if start < stop]
        return range(min((start for start, _ in windows), default=0), max((stop for _, stop in windows), default=0))


def _open(kit: Kit, names: Names) -> Start:
    """A capture as replays start from it; LakeError when it is not whole, or when there are no weights to run."""
    model = "/".join(names[:2])
    all_boundaries(kit.capture(names), "graft")
    find_weights(kit.layout, model, kit.catalog)
    return open_start(kit.layout, model, names[2], 0)


def _here(start: Start, rows: Rows, boundary: int) -> Start:
    """The start of a block's prompts, with the residual that the sweep has read."""
    offset = start.offset[rows.prompts.start : rows.prompts.stop + 1] - rows.tokens.start
    return replace(
        start,
        boundary=boundary,
        states=rows["resid"][:, boundary],
        token_id=rows.columns["token_id"],
        offset=offset,
        lengths=np.diff(offset),
    )


def answer_resid(rows: Rows, at: np.ndarray) -> np.ndarray:
    """The stored residuals of the chosen tokens [n, L+1, d]; picked once for all conditions."""
    return rows.once("answer", lambda: rows["resid"][at])


class ConditionTable(LayerTable):
    """A table of (prompt, step) x layer under one condition; `columns` turns a block of PT and one of IT into [n, layers].

    `more` are the recipe's further entries; `same` those that, with pair, streams and condition, tell whose rows these are:
    rows that agree in them give way to the new ones. `first` is the layer of the first column.
    """

    def __init__(
        self,
        kit: Kit,
        scope: Scope,
        table: str,
        condition: Condition,
        same: dict[str, str],
        more: dict[str, Any],
        first: int = -1,
    ):
        self.kit, self.condition = kit, condition
        self.models = {variant: (scope.pair, variant, scope.streams[variant]) for variant in VARIANTS}
        captures = {variant: kit.capture(names) for variant, names in self.models.items()}
        self.replays = kit.once(("replays", *self.models.values()), lambda: Replays(kit, self.models))
        self._same = {"pair": scope.pair, "streams": scope.streams, "condition": condition.name, **same}
        recipe = self._same | {
            "captures": {variant: capture.sha256 for variant, capture in captures.items()},
            "models": {variant: kit.head_hash(names) for variant, names in self.models.items()},
            "window": list(condition.window),
            "edit": type(condition.edit(Donor("", {}))).__name__,
            "version": VERSION[table],
            **more,
        }
        recipe |= {"seed": SEED} if condition.random else {}
        reads = ["resid", *(["mlp_out"] if all("mlp_out" in capture.group for capture in captures.values()) else [])]
        super().__init__(
            kit.layout, table, recipe, tuple(captures.values()), tuple(reads), self.columns, self._labels, first
        )

    @property
    def host(self) -> Names:
        """The capture of the host."""
        return self.models[self.condition.host]

    def columns(self, pt: Rows, it: Rows) -> dict[str, Any]:
        """All columns of a block, [n, layers]."""
        raise NotImplementedError

    def labels(self) -> dict[str, Any]:
        """Further columns, the same in every row."""
        return {}

    def sides(self, pt: Rows, it: Rows) -> tuple[tuple[Rows, np.ndarray], tuple[Rows, np.ndarray]]:
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

    def part(self, *rows: Rows) -> Columns:
        """All columns of a block, unless its prompts have no answer."""
        return super().part(*rows) if len(aligned(*rows)[0]) else {}

    def finish(self) -> None:
        """Write what is still held, and delete the rows of this condition with another window or other probes."""
        super().finish()
        drop_tables(self.kit.layout, self.name, self._same, keep=self.path)

    def _labels(self, pt: Rows, it: Rows) -> dict[str, Any]:
        return {
            "pair": self.host[0],
            "variant": self.condition.host,
            "stream": self.models["it"][2],
            "stream_pt": self.models["pt"][2],
            "condition": self.condition.name,
            **self.labels(),
            **{name: pt.columns[name][aligned(pt, it)[0]] for name in ("prompt", "prompt_id", "category", "step")},
        }


def check_scope(kit: Kit, scope: Scope) -> None:
    """Raise LakeError unless the scope holds captures of both models that predict the same tokens step by step."""
    if set(scope.streams) != set(VARIANTS):
        raise LakeError(f"pair {scope.pair}: a graft needs captures of pt and it")
    kit.once(("one answer", scope.pair, *sorted(scope.streams.items())), lambda: _check_answers(kit, scope))


def _check_answers(kit: Kit, scope: Scope) -> None:
    found = []
    for variant in VARIANTS:
        columns = kit.capture((scope.pair, variant, scope.streams[variant])).columns()
        answer = columns["step"] >= 0
        found.append([columns["prompt"][answer], columns["step"][answer], following(columns)[answer]])
    if not all(np.array_equal(a, b) for a, b in zip(*found, strict=True)):
        raise LakeError(
            f"pair {scope.pair}: {scope.streams['pt']} and {scope.streams['it']} are different answers; a graft is compared with"
            f" both models on IT's tokens: `actlake capture {scope.pair} --stream teacher`"
        )


def window_of(kit: Kit, scope: Scope, name: str) -> tuple[int, int]:
    """The blocks of a window: the catalog's, or the rule of METHODS 1.6."""
    layers = len(kit.capture((scope.pair, "pt", scope.streams["pt"])).array("layer")[:])
    return kit.windows(scope.pair, layers)[name]
