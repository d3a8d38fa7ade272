"""The table `writeout`: what MLPs write for either token where the two answers first differ, late ones exchanged too."""

from __future__ import annotations

import numpy as np
import pandas as pd

from ...store.core.columns import CONDITION, COSINE, EVENT, LAYER, PLACE, PROMPT, ZERO, Column
from ...store.core.errors import LakeError
from ...store.core.progress import bar
from ...store.core.schema import VARIANTS
from ..engine.context import WINDOWS, Context, Scope, all_boundaries
from ..engine.declare import table
from .conditions import HOSTED
from .divergence import HOSTS
from .first_divergence import LABELS, READ_TOGETHER, EventTable, tokens_of


class _Writeout(EventTable):
    """Each MLP of each model an event (METHODS 15, exp21: A and C), from stored arrays alone, through the model's own head."""

    runs_models = False

    def __init__(self, kit: Context, scope: Scope, conditions: str = "A C"):
        super().__init__(kit, scope, "writeout", WINDOWS, conditions=conditions)

    def measure(self, events: pd.DataFrame) -> None:
        """Read the stored residuals and MLP outputs of the events, some at a time."""
        for variant in VARIANTS:
            capture = self.kit.capture(self.names[variant])
            for start in range(0, len(events), READ_TOGETHER):
                some = events.iloc[start : start + READ_TOGETHER]
                tokens = tokens_of(some, variant).tolist()
                resid, mlp = (
                    np.concatenate([capture.array(site)[token : token + 1] for token in tokens])
                    for site in ("resid", "mlp_out")
                )
                self.add_layers(some, variant, HOSTS[variant][0], resid, mlp)

    def add_layers(
        self, events: pd.DataFrame, host: str, condition: str, resid: np.ndarray, mlp: np.ndarray, first: int = 0
    ) -> None:
        """Rows of some events for the blocks from `first` on: resid [n, blocks + 1, d], mlp [n, blocks, d]."""
        from ...analyze.residual.writeout import writeout

        arrays, attrs = self.kit.arrays(self.names[host])
        post = (arrays["post_norm_weight"][first:], attrs["post_norm_eps"]) if "post_norm_weight" in arrays else None
        found = writeout(
            self.kit.head(self.names[host]),
            resid,
            mlp,
            events[["it_token", "pt_token"]].to_numpy(),
            post_norm=post,
            parallel=bool(attrs["parallel"]),
            device=self.kit.device,
        )
        named = {**self.scope.columns, "variant": host, "stream": self.streams["it"], "stream_pt": self.streams["pt"]}
        labels = {name: events[name].to_numpy() for name in LABELS}
        for place, layer in enumerate(range(first, self.layers)):
            support, against, rest = (found[name][:, place] for name in ("support", "against", "rest"))
            self.add(
                {
                    **named,
                    **labels,
                    "event": self.event,
                    "condition": condition,
                    "layer": layer,
                    **{
                        name: np.full(len(events), start <= layer < stop)
                        for name, (start, stop) in self.windows.items()
                    },
                    "support_it": support[:, 0],
                    "support_pt": support[:, 1],
                    "against": against[:, 0] - against[:, 1],
                    "rest": rest[:, 0] - rest[:, 1],
                    "cos": found["cos"][:, place],
                }
            )

    def check(self) -> None:
        """All residuals and MLP outputs are there, of the same prompts."""
        for names in self.names.values():
            capture = self.kit.capture(names)
            all_boundaries(capture, "writeout")
            if "mlp_out" not in capture:
                raise LakeError(
                    f"{capture.path}: table writeout needs mlp_out, which this capture did not keep: `actlake capture {self.pair}"
                    " --stream raw --profile full` into another lake"
                )
        super().check()


class _GraftedWriteout(_Writeout):
    """The blocks of the late window when its MLPs are exchanged (METHODS 15: B_late, D_late), replayed from its start."""

    runs_models = True

    def __init__(self, kit: Context, scope: Scope):
        super().__init__(kit, scope, "B_late D_late")

    def measure(self, events: pd.DataFrame) -> None:
        """Load one late stack and the other model's late MLPs after the other."""
        from ...capture.edit.replay import load_late

        window = self.windows["late"]
        boundaries = range(window[0], self.layers + 1)
        total = int((events["position"] + 1).sum() + (events["position_pt"] + 1).sum())
        with bar(f"writeout {self.pair}", total) as progress:
            for host in VARIANTS:
                model = load_late(
                    self.kit.layout, self.model(host), window[0], self.kit.catalog, device=self.kit.device
                )
                pieces = self.grafted(
                    model, host, window, events, boundaries, ("resid", "mlp_out"), advance=progress.advance
                )
                for at, arrays in pieces:
                    condition = f"{HOSTS[host][1]}_late"
                    self.add_layers(events.iloc[at], host, condition, arrays["resid"], arrays["mlp_out"], window[0])
                del model, pieces  # before the other is loaded


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
def writeout_table(kit: Context, scope: Scope, kind: str) -> _Writeout:
    """The job of one kind: '' both models as they are, `late` with late MLPs exchanged. LakeError for another kind."""
    if kind not in ("", "late"):
        raise LakeError(f"writeout({kind}): expected writeout, or writeout(late) for late MLPs exchanged")
    return _GraftedWriteout(kit, scope) if kind else _Writeout(kit, scope)
