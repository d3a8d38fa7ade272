"""The table `factorial`: upstream blocks of one model, late blocks of either, read at the first differing token."""

from __future__ import annotations

import pandas as pd

from ...store.core.columns import CHOICE, label_column
from ...store.core.progress import bar
from ...store.core.schema import VARIANTS
from ..engine.context import Context, Scope
from ..engine.declare import table
from .first_divergence import EVENT_COLUMNS, EventTable

READOUTS = ("common_it", "common_pt", "native")


@table(
    "factorial",
    [
        *EVENT_COLUMNS,
        label_column("upstream", "model whose blocks up to the late window run: pt or it"),
        label_column("late", "model whose late blocks run: pt or it"),
        label_column("readout", "head: common_it, common_pt, or native, that of `late`", fill="'common_it'"),
        *CHOICE,
    ],
    "Upstream and late blocks of a pair crossed, where its two answers first differ.",
    "event x upstream x late x readout",
    of="pair",
    version=1,
    how="replay",
)
class _Factorial(EventTable):
    """Four cells an event, each through both heads (METHODS 17, exp23).

    Cells of one model are its own stored final residual. In the others the late blocks of one model go on from the other's
    stored state at the late window's start, at all positions of the shared prefix.
    """

    def __init__(self, kit: Context, scope: Scope):
        super().__init__(kit, scope, "factorial", ("late",))

    def measure(self, events: pd.DataFrame) -> None:
        """Read the stored cells, then load one late stack after the other."""
        from ...capture.edit.replay import load_late

        onset, last = self.windows["late"][0], [self.layers]
        cells = {
            (variant, variant): self.read(self.stored(variant, events, last), events, "it", "pt")
            for variant in VARIANTS
        }
        total = int((events["position"] + 1).sum() + (events["position_pt"] + 1).sum())
        with bar(f"factorial {self.pair}", total) as progress:
            for late, upstream in (VARIANTS, VARIANTS[::-1]):
                model = load_late(self.kit.layout, self.model(late), onset, self.kit.catalog, device=self.kit.device)
                pieces = self.replayed(model, self.start(upstream, onset), events, last, advance=progress.advance)
                cells[upstream, late] = self.read(pieces, events, "it", "pt")
                del model, pieces  # before the other is loaded
        for (upstream, late), (by_it, by_pt) in cells.items():
            for readout, (logits, top1) in zip(READOUTS, (by_it, by_pt, by_it if late == "it" else by_pt), strict=True):
                self.write(events, logits[:, 0], top1, upstream=upstream, late=late, readout=readout)
