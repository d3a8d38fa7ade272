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
def factorial_table(kit: Context, scope: Scope) -> EventTable:
    """Four cells an event, each through both heads (METHODS 17, exp23)."""
    return EventTable(kit, scope, "factorial", ("late",), _measure)


def _measure(job: EventTable, events: pd.DataFrame) -> None:
    """Read the stored cells, then load one late stack after the other.

    Cells of one model are its own stored final residual. In the others the late blocks of one model go on from the other's
    stored state at the late window's start, at all positions of the shared prefix.
    """
    from ...capture.edit.replay import load_late

    onset, last, kit = job.windows["late"][0], [job.layers], job.kit
    cells = {
        (variant, variant): job.read(job.stored(variant, events, last), events, "it", "pt") for variant in VARIANTS
    }
    total = int((events["position"] + 1).sum() + (events["position_pt"] + 1).sum())
    with bar(f"factorial {job.pair}", total) as progress:
        for late, upstream in (VARIANTS, VARIANTS[::-1]):
            model = load_late(kit.layout, job.model(late), onset, kit.catalog, device=kit.device)
            again = job.again(model, job.start(upstream, onset), events, last, advance=progress.advance)
            pieces = ((at, arrays["resid"]) for at, arrays in again)
            cells[upstream, late] = job.read(pieces, events, "it", "pt")
            del model, again, pieces  # before the other is loaded
    for (upstream, late), (by_it, by_pt) in cells.items():
        for readout, (logits, top1) in zip(READOUTS, (by_it, by_pt, by_it if late == "it" else by_pt), strict=True):
            job.write(events, logits[:, 0], top1, upstream=upstream, late=late, readout=readout)
