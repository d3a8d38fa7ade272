"""First divergences: where the two raw answers of a pair part, and tables of what its models make of that place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ...store.core.columns import BOTH, EVENT, PLACE, PROMPT
from ...store.core.errors import LakeError
from ...store.core.progress import Advance
from ...store.core.schema import VARIANTS
from ...store.tables.declared import TABLES
from ...store.tables.files import drop_tables
from ...store.tables.sql import connect
from ..engine.context import OTHER, Context, Scope, all_boundaries
from ..engine.job import TableJob
from ..tables.per_layer import Tokens
from ..tables.per_prompt import last_prompt_tokens

if TYPE_CHECKING:
    from ...capture.edit.edits import Edit
    from ...capture.edit.start import ReplayStart
    from ...capture.model.load import Model

EVENT_COLUMNS = (*BOTH, *PROMPT, *PLACE, *EVENT)
READ_TOGETHER = 256  # events whose stored residuals are in memory at a time
LABELS = ("prompt", "prompt_id", "category", "position", "step", "it_token", "pt_token")
Pieces = Iterator[tuple[np.ndarray, np.ndarray]]  # places of some events [n], their residuals [n, boundaries, d]


class EventTable(TableJob):
    """A table about the first divergences of a pair, made of stored residuals and of replays of the shared prefixes.

    `measure` writes the rows of the events: lines of the view `first_diff`, at least one, prompts ascending. `windows` names the
    windows (METHODS 1.6) whose starts replays begin at; `more` are further entries of the recipe that, with pair and streams,
    tell whose rows these are, `sites` what captures must have of every layer beside all residuals. LakeError when captures lack
    these boundaries or the last one, when the two models read
    different prompts, or when their weights can't be found; a table that is there already needs none of it.
    """

    event = "first_diff"

    def __init__(
        self,
        kit: Context,
        scope: Scope,
        table: str,
        windows: Sequence[str],
        measure: Callable[[EventTable, pd.DataFrame], None],
        runs_models: bool = True,
        sites: Sequence[str] = (),
        **more: str,
    ):
        if set(scope.streams) != set(VARIANTS):
            raise LakeError(f"pair {scope.pair}: table {table} compares pt and it; capture both")
        self._measure, self.runs_models, self._sites = measure, runs_models, sites
        self.kit, self.scope, self.pair, self.streams, self.names = kit, scope, scope.pair, scope.streams, scope.both
        captures = {variant: kit.capture(names) for variant, names in self.names.items()}
        self.layers = captures["it"].layers
        every = kit.windows(scope.pair, self.layers)
        self.windows = {name: every[name] for name in windows}
        self._same = {"models": scope.models, "streams": scope.streams, **more}
        recipe = self._same | {
            "captures": {variant: capture.sha256 for variant, capture in captures.items()},
            "heads": {variant: kit.head_hash(names) for variant, names in self.names.items()},
            "event": self.event,
            "windows": self.windows,
            "version": TABLES[table].version,
        }
        super().__init__(kit.layout, table, recipe)
        self.before = tuple(Tokens(kit, names) for names in scope.captures)
        if self.runs_models:
            self.runs = tuple(scope.models.values())
            self.forwards = sum(capture.n_tokens for capture in captures.values())
        if not self.path.exists():
            self._check()

    def finish(self) -> None:
        """Find the events whose two tokens are real to both models, and write what there is to say of them.

        Rows made with other windows give way.
        """
        found = connect(
            self.kit.layout,
            "first_diff",
            {self.pair: self.scope.models},
            {"tokens": [job.path for job in self.before]},
        ).execute(
            "SELECT * FROM first_diff WHERE pair = ? AND stream = ? AND stream_pt = ? ORDER BY prompt",
            [self.pair, self.streams["it"], self.streams["pt"]],
        )
        events = found.df()
        common = np.flatnonzero(self.kit.common_real(self.names))  # a token that one of them lacks has no logit there
        events = events[events["it_token"].isin(common) & events["pt_token"].isin(common)].reset_index(drop=True)
        drop_tables(self.kit.layout, self.name, self._same, keep=self.path)
        if len(events):
            self._measure(self, events)

    def model(self, variant: str) -> str:
        """The name of a variant's model."""
        return self.names[variant][0]

    def start(self, variant: str, boundary: int) -> ReplayStart:
        """The stored residual of a variant at a boundary."""
        from ...capture.edit.start import open_start

        return open_start(self.kit.layout, *self.names[variant], boundary)

    def stored(self, variant: str, events: pd.DataFrame, boundaries: Sequence[int]) -> Pieces:
        """Residuals of the events as the capture of a variant has them."""
        capture = self.kit.capture(self.names[variant])
        resid, places = capture.array("resid"), [capture.manifest["boundaries"].index(b) for b in boundaries]
        tokens = tokens_of(events, variant).tolist()
        for first in range(0, len(tokens), READ_TOGETHER):
            some = tokens[first : first + READ_TOGETHER]
            read = [np.concatenate([resid[token : token + 1, place] for token in some]) for place in places]
            yield np.arange(first, first + len(some)), np.stack(read, axis=1)

    def grafted(
        self,
        model: Model,
        host: str,
        window: tuple[int, int],
        events: pd.DataFrame,
        boundaries: Sequence[int],
        keep: Sequence[str] = ("resid",),
        advance: Advance = lambda _tokens: None,
    ) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        """`again` with the other model's MLPs in a window of the host's; they are in memory while this is read."""
        from ...capture.edit.edits import Graft
        from ...capture.edit.replay import load_mlps

        donor = load_mlps(self.kit.layout, self.model(OTHER[host]), window, self.kit.catalog, device=self.kit.device)
        there = self.kit.capture(self.names[host]).manifest["boundaries"]
        start = self.start(host, max(boundary for boundary in there if boundary <= window[0]))
        yield from self.again(model, start, events, boundaries, [Graft(donor)], keep, advance)

    def again(
        self,
        model: Model,
        start: ReplayStart,
        events: pd.DataFrame,
        boundaries: Sequence[int],
        edits: Sequence[Edit] = (),
        keep: Sequence[str] = ("resid",),
        advance: Advance = lambda _tokens: None,
    ) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        """Places of some events and what a replay of the shared prefixes gives there, as in `replay`."""
        from ...capture.edit.replay import replay

        variant = next(v for v, (model, _) in self.names.items() if model == start.path.parent.name)
        lengths, tokens = np.ones_like(start.lengths), tokens_of(events, variant)
        lengths[events["prompt"]] = tokens - start.offset[events["prompt"]] + 1
        start, wanted = replace(start, lengths=lengths), np.isin(np.arange(len(start.token_id)), tokens)
        for piece in replay(model, start, edits, keep=keep, logits="none", boundaries=boundaries, tokens=wanted):
            yield np.searchsorted(tokens, piece.tokens), piece.arrays
            advance(int(lengths[piece.prompts].sum()))

    def read(self, pieces: Pieces, events: pd.DataFrame, *heads: str) -> list[tuple[np.ndarray, np.ndarray]]:
        """What the heads of some variants make of residuals: logits [events, boundaries, 2] and top tokens [events] each.

        Only tokens that are real for both models count.
        """
        from ...analyze.residual.mechanism import choose

        mask = self.kit.common_real(self.names)
        tokens = events[["it_token", "pt_token"]].to_numpy()
        found: list[list[tuple[np.ndarray, ...]]] = [[] for _ in heads]
        for at, resid in pieces:
            for head, parts in zip(heads, found, strict=True):
                read = choose(
                    self.kit.common_head(self.names, head), resid, tokens[at], mask=mask, device=self.kit.device
                )
                parts.append((at, *read))
        joined = [[np.concatenate(part) for part in zip(*parts, strict=True)] for parts in found]
        return [(logits[order], top1[order]) for at, logits, top1 in joined for order in [np.argsort(at)]]

    def labels(self, events: pd.DataFrame, variant: str) -> dict[str, object]:
        """Whose rows these are, and which events."""
        streams = {"stream": self.streams["it"], "stream_pt": self.streams["pt"]}
        where = {name: events[name].to_numpy() for name in LABELS}
        return {**self.scope.columns, "variant": variant, **streams, **where, "event": self.event}

    def write(self, events: pd.DataFrame, logits: np.ndarray, top1: np.ndarray | None, **more: str | int) -> None:
        """One row an event: logits [events, 2] of IT's and PT's token, the top token if it is known, what else is said."""
        self.add(
            {
                **self.labels(events, "both"),
                **more,
                "margin": logits[:, 0] - logits[:, 1],
                "it_logit": logits[:, 0],
                "pt_logit": logits[:, 1],
                "top1": np.ma.masked_all(len(events), np.int32) if top1 is None else top1,
            }
        )

    def _check(self) -> None:
        """What can be known before anything runs."""
        from ...capture.checkpoint.configs import load_config
        from ...capture.edit.replay import find_weights
        from ...capture.edit.start import borrowed

        prompts = {}
        for names in self.names.values() if self._sites else ():
            capture = self.kit.capture(names)
            all_boundaries(capture, self.name)
            if lacking := [site for site in self._sites if site not in capture]:
                raise LakeError(
                    f"{capture.path}: table {self.name} needs {lacking[0]}, which this capture did not keep: `actlake capture"
                    f" {self.pair} --stream raw --profile full` into another lake"
                )
        for variant in VARIANTS:
            if self.runs_models:
                load_config(find_weights(self.kit.layout, self.model(variant), self.kit.catalog))
            starts = [self.start(variant, at) for at in (*(at for at, _ in self.windows.values()), self.layers)]
            capture, start = self.kit.capture(self.names[variant]), starts[0]
            ends = last_prompt_tokens(capture.array("prompt")[:], capture.array("step")[:])
            prompts[variant] = replace(start, lengths=ends + 1 - start.offset[:-1])
        for one, other in (("pt", "it"), ("it", "pt")):
            borrowed(prompts[one], prompts[other])  # refuses other tokens


def tokens_of(events: pd.DataFrame, variant: str) -> np.ndarray:
    """Place of each event on the token axis of a variant's stream, int64 [events]."""
    return events["token" if variant == "it" else "token_pt"].to_numpy(np.int64)
