"""Replays of a pair's captures under conditions, block by block of a sweep.

Each block is replayed from the window's first boundary, which the sweep has read anyway, by blocks that stay in memory: of
each host those from its lowest window on, and the other model's MLPs in these windows. Batches are made of a block's
prompts, so that a replay equals a whole forward to rounding, not to the bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ...store.core.errors import LakeError
from ..engine.blocks import Block
from ..engine.context import OTHER, Context, Names, T

if TYPE_CHECKING:
    from ...capture.edit.edits import Graft
    from ...capture.edit.start import ReplayStart
    from ...capture.model.load import Model
    from ...capture.model.partial import Donor

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
        from ...capture.edit.edits import Graft, RandomGraft

        blocks = range(*self.window)
        return RandomGraft(donor, blocks, SEED) if self.random else Graft(donor, blocks)


def answer_resid(rows: Block, at: np.ndarray) -> np.ndarray:
    """The stored residuals of the chosen tokens [n, L+1, d]; picked once for all conditions."""
    return rows.once("answer", lambda: rows["resid"][at])


class Replays:
    """Replays of a pair's captures, block by block of a sweep; models are loaded when the first block comes.

    What the last condition gave is kept, for the next job may ask for it too.
    """

    def __init__(self, kit: Context, models: dict[str, Names]):
        self._kit, self._wanted = kit, list[Condition]()
        self._starts = {variant: _open(kit, names) for variant, names in models.items()}
        self._names = {variant: names[0] for variant, names in models.items()}
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

    def whole(self, condition: Condition, rows: Block, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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

    def _run(self, condition: Condition, rows: Block, at: np.ndarray) -> dict[str, np.ndarray]:
        """resid and mlp_out [n, L - window[0], d] of the chosen tokens: outputs of the blocks from the window on."""
        from ...capture.edit.replay import replay_whole

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
        from ...capture.edit.replay import load_late
        from ...capture.edit.start import loaded_as

        layout, catalog, start = self._kit.layout, self._kit.catalog, self._starts[variant]
        options = loaded_as(start.provenance, start.path)
        first = min(self._blocks(variant))
        return load_late(layout, self._names[variant], first, catalog, device=self._kit.device, **options)

    def _donor(self, host: str) -> Donor:
        """The other model's MLPs for all windows of a host: out of its own late blocks where it is a host too."""
        return self._once(("donor", host), lambda: self._load_donor(OTHER[host], host))

    def _load_donor(self, other: str, host: str) -> Donor:
        from ...capture.edit.replay import load_mlps
        from ...capture.model.branches import as_one
        from ...capture.model.partial import Donor

        blocks = self._blocks(host)
        if set(self._blocks(other)) >= set(blocks):
            model = self._host(other)
            return Donor(model.name, {layer: as_one(model.parts.mlp(layer).whole) for layer in blocks})
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


def _open(kit: Context, names: Names) -> ReplayStart:
    """A capture as replays start from it; LakeError when there are no weights to run."""
    from ...capture.edit.replay import find_weights
    from ...capture.edit.start import open_start

    find_weights(kit.layout, names[0], kit.catalog)
    return open_start(kit.layout, *names, 0)


def _here(start: ReplayStart, rows: Block, boundary: int) -> ReplayStart:
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
