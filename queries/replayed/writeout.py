"""The table `writeout`: what MLPs write for either token where the two answers first differ, late ones exchanged too."""

from __future__ import annotations

import numpy as np
import pandas as pd

from ...store.core.columns import CONDITION, COSINE, EVENT, LAYER, PLACE, PROMPT, ZERO, Column
from ...store.core.errors import LakeError
from ...store.core.progress import bar
from ...store.core.schema import VARIANTS
from ..engine.context import WINDOWS, Context, Scope
from ..engine.declare import table
from .conditions import HOSTED
from .factorial import HOSTS
from .first_divergence import READ_TOGETHER, EventTable, tokens_of


def _measure(job: EventTable, events: pd.DataFrame) -> None:
    """Each MLP of each model an event (METHODS 15, exp21: A and C), from stored arrays alone, some events at a time."""
    for variant in VARIANTS:
        capture = job.kit.capture(job.names[variant])
        for start in range(0, len(events), READ_TOGETHER):
            some = events.iloc[start : start + READ_TOGETHER]
            tokens = tokens_of(some, variant).tolist()
            resid, mlp = (
                np.concatenate([capture.array(site)[token : token + 1] for token in tokens])
                for site in ("resid", "mlp_out")
            )
            _add_layers(job, some, variant, HOSTS[variant][0], resid, mlp)


def _measure_late(job: EventTable, events: pd.DataFrame) -> None:
    """The blocks of the late window when its MLPs are exchanged (METHODS 15: B_late, D_late), replayed from its start."""
    from ...capture.edit.replay import load_late

    window, kit = job.windows["late"], job.kit
    boundaries = range(window[0], job.layers + 1)
    total = int((events["position"] + 1).sum() + (events["position_pt"] + 1).sum())
    with bar(f"writeout {job.pair}", total) as progress:
        for host in VARIANTS:
            model = load_late(kit.layout, job.model(host), window[0], kit.catalog, device=kit.device)
            keep = ("resid", "mlp_out")
            pieces = job.grafted(model, host, window, events, boundaries, keep, advance=progress.advance)
            for at, arrays in pieces:
                condition = f"{HOSTS[host][1]}_late"
                _add_layers(job, events.iloc[at], host, condition, arrays["resid"], arrays["mlp_out"], window[0])
            del model, pieces  # before the other is loaded


def _add_layers(
    job: EventTable, events: pd.DataFrame, host: str, condition: str, resid: np.ndarray, mlp: np.ndarray, first: int = 0
) -> None:
    """Rows of some events for the blocks from `first` on, through the model's own head: resid [n, blocks + 1, d], mlp [n,
    blocks, d]."""
    from ...analyze.residual.mechanism import writeout

    kit, tokens = job.kit, events[["it_token", "pt_token"]].to_numpy()
    post, parallel = kit.mlp_branch(job.names[host])
    post = post and (post[0][first:], post[1])
    head = kit.head(job.names[host])
    found = writeout(head, resid, mlp, tokens, post_norm=post, parallel=parallel, device=kit.device)
    for place, layer in enumerate(range(first, job.layers)):
        support, against, rest = (found[name][:, place] for name in ("support", "against", "rest"))
        windows = {name: np.full(len(events), start <= layer < stop) for name, (start, stop) in job.windows.items()}
        job.add(
            {
                **job.labels(events, host),
                "condition": condition,
                "layer": layer,
                **windows,
                "support_it": support[:, 0],
                "support_pt": support[:, 1],
                "against": against[:, 0] - against[:, 1],
                "rest": rest[:, 0] - rest[:, 1],
                "cos": found["cos"][:, place],
            }
        )


@table(
    "writeout",
    [
        *HOSTED[:-1],
        *PROMPT,
        *PLACE,
        *EVENT,
        CONDITION,
        LAYER,
        *(Column(name, "bool", f"whether the layer is in the {name} window") for name in WINDOWS),
        *(
            Column(f"support_{who}", "float32", f"what the MLP adds to the logit of {who}_token", "logits")
            for who in ("it", "pt")
        ),
        Column("against", "float32", "margin of the MLP output's part along minus the residual it reads", "logits"),
        Column("rest", "float32", "margin of the MLP output without that part", "logits"),
        Column("cos", "float32", "cosine of the MLP's output and the residual it reads", "1", COSINE, ZERO),
    ],
    "What each MLP writes for the two tokens where the answers first differ.",
    "event x condition x layer",
    of="pair",
    version=2,
    kinds=("", "late"),
    one_model=True,
    how={"late": "replay"},
)
def writeout_table(kit: Context, scope: Scope, kind: str) -> EventTable:
    """The job of one kind: '' both models as they are, `late` with late MLPs exchanged. LakeError for another kind."""
    if kind not in ("", "late"):
        raise LakeError(f"writeout({kind}): expected writeout, or writeout(late) for late MLPs exchanged")
    if kind:
        return EventTable(
            kit, scope, "writeout", WINDOWS, _measure_late, sites=("mlp_out",), conditions="B_late D_late"
        )
    return EventTable(
        kit, scope, "writeout", WINDOWS, _measure, runs_models=False, sites=("mlp_out",), conditions="A C"
    )
