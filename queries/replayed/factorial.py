"""Tables of the place where a pair's answers part: `divergence`, MLPs exchanged in windows, and `factorial`, blocks crossed."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from ...store.core.columns import CHOICE, CONDITION, LAYER, label_column
from ...store.core.progress import bar
from ...store.core.schema import VARIANTS
from ..engine.context import WINDOWS, Context, Scope
from ..engine.declare import table
from .first_divergence import EVENT_COLUMNS, EventTable, Pieces

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
    return EventTable(kit, scope, "factorial", ("late",), _factorial)


def _factorial(job: EventTable, events: pd.DataFrame) -> None:
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
def divergence_table(kit: Context, scope: Scope) -> EventTable:
    """Each condition of METHODS 14 (exp20) an event: A and C from the store, B_WINDOW and D_WINDOW by replays with grafts."""
    return EventTable(kit, scope, "divergence", (*WINDOWS, "midlate", "earlymid"), _measure)


def _measure(job: EventTable, events: pd.DataFrame) -> None:
    """Load one host after the other, and for each window the donor's MLPs.

    Layers are the edges of the windows, as far as they are stored (A, C) or run (B, D); all are read by the host's head.
    """
    from ...capture.edit.replay import load_late

    kit, grafts = job.kit, job.windows | {f"last{n}": (max(0, job.layers - n), job.layers) for n in (3, 1)}
    edges = sorted({job.layers, *(edge for name in WINDOWS for edge in job.windows[name])})
    total = len(grafts) * int((events["position"] + 1).sum() + (events["position_pt"] + 1).sum())
    with bar(f"divergence {job.pair}", total) as progress:
        for host, (alone, grafted) in HOSTS.items():
            there = kit.capture(job.names[host]).manifest["boundaries"]
            mine = [edge for edge in edges if edge in there]
            _write(job, host, alone, events, mine, job.stored(host, events, mine))
            model = load_late(kit.layout, job.model(host), edges[0], kit.catalog, device=kit.device)
            for name, window in grafts.items():
                after = [edge for edge in edges if edge >= window[0]]
                edited = job.grafted(model, host, window, events, after, advance=progress.advance)
                pieces = ((at, arrays["resid"]) for at, arrays in edited)
                _write(job, host, f"{grafted}_{name}", events, after, pieces)
            del model, edited, pieces  # before the other is loaded


def _write(
    job: EventTable, host: str, condition: str, events: pd.DataFrame, boundaries: Sequence[int], pieces: Pieces
) -> None:
    ((logits, top1),) = job.read(pieces, events, host)
    for place, boundary in enumerate(boundaries):
        chosen = top1 if boundary == job.layers else None
        job.write(events, logits[:, place], chosen, condition=condition, layer=boundary - 1)
