"""The table `divergence`: what each model, alone and with the other's MLPs in a window, makes of the place where they part."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from ...store.core.columns import CHOICE, CONDITION, LAYER
from ...store.core.progress import bar
from ..engine.context import WINDOWS, Context, Scope
from ..engine.declare import table
from .first_divergence import EVENT_COLUMNS, EventTable, Pieces

HOSTS = {"pt": ("A", "B"), "it": ("C", "D")}  # a host on its own, and with grafts


@table(
    "divergence",
    [*EVENT_COLUMNS, CONDITION, LAYER, *CHOICE],
    "Either model with the other's MLPs in a window, where the two answers first differ.",
    "event x condition x layer",
    of="pair",
    version=2,
    how="replay",
)
class _Divergence(EventTable):
    """Each condition of METHODS 14 (exp20) an event: A and C from the store, B_WINDOW and D_WINDOW by replays with grafts.

    Layers are the edges of the windows, as far as they are stored (A, C) or run (B, D); all are read by the host's head.
    """

    def __init__(self, kit: Context, scope: Scope):
        super().__init__(kit, scope, "divergence", (*WINDOWS, "midlate", "earlymid"))
        self.grafts = self.windows | {f"last{n}": (max(0, self.layers - n), self.layers) for n in (3, 1)}

    def measure(self, events: pd.DataFrame) -> None:
        """Load one host after the other, and for each window the donor's MLPs."""
        from ...capture.edit.replay import load_late

        edges = sorted({self.layers, *(edge for name in WINDOWS for edge in self.windows[name])})
        total = len(self.grafts) * int((events["position"] + 1).sum() + (events["position_pt"] + 1).sum())
        with bar(f"divergence {self.pair}", total) as progress:
            for host, (alone, grafted) in HOSTS.items():
                there = self.kit.capture(self.names[host]).manifest["boundaries"]
                mine = [edge for edge in edges if edge in there]
                self._condition(host, alone, events, mine, self.stored(host, events, mine))
                model = load_late(self.kit.layout, self.model(host), edges[0], self.kit.catalog, device=self.kit.device)
                for name, window in self.grafts.items():
                    after = [edge for edge in edges if edge >= window[0]]
                    edited = self.grafted(model, host, window, events, after, advance=progress.advance)
                    pieces = ((at, arrays["resid"]) for at, arrays in edited)
                    self._condition(host, f"{grafted}_{name}", events, after, pieces)
                del model, pieces  # before the other is loaded

    def _condition(
        self, host: str, condition: str, events: pd.DataFrame, boundaries: Sequence[int], pieces: Pieces
    ) -> None:
        ((logits, top1),) = self.read(pieces, events, host)
        for place, boundary in enumerate(boundaries):
            chosen = top1 if boundary == self.layers else None
            self.write(events, logits[:, place], chosen, condition=condition, layer=boundary - 1)
