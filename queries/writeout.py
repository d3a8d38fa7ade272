"""The table `writeout`: what PT's and IT's own MLPs write for either token where the two answers part."""

from __future__ import annotations

import numpy as np
import pandas as pd

from ..analyze.writeout import writeout
from ..store.errors import LakeError
from ..store.schema import VARIANTS
from .divergence import WINDOWS
from .events import LABELS, READ_TOGETHER, EventTable, tokens_of
from .kit import Kit, Scope, all_boundaries


class Writeout(EventTable):
    """Each MLP of each model an event (METHODS 15, exp21: A and C), from stored arrays alone, through the model's own head."""

    runs_models = False

    def __init__(self, kit: Kit, scope: Scope):
        super().__init__(kit, scope, "writeout", WINDOWS)

    def measure(self, events: pd.DataFrame) -> None:
        """Read the stored residuals and MLP outputs of the events, some at a time."""
        for variant in VARIANTS:
            for start in range(0, len(events), READ_TOGETHER):
                self._write(variant, events.iloc[start : start + READ_TOGETHER])

    def _write(self, variant: str, events: pd.DataFrame) -> None:
        names = self.names[variant]
        capture, (arrays, attrs) = self.kit.capture(names), self.kit.arrays(names)
        post = (arrays["post_norm_weight"], attrs["post_norm_eps"]) if "post_norm_weight" in arrays else None
        tokens = tokens_of(events, variant).tolist()
        resid, mlp = (
            np.concatenate([capture.array(site)[token : token + 1] for token in tokens])
            for site in ("resid", "mlp_out")
        )
        found = writeout(
            self.kit.head(names),
            resid,
            mlp,
            events[["it_token", "pt_token"]].to_numpy(),
            post_norm=post,
            parallel=bool(attrs["parallel"]),
            device=self.kit.device,
        )
        named = {"pair": self.pair, "variant": variant, "stream": self.streams["it"], "stream_pt": self.streams["pt"]}
        labels = {name: events[name].to_numpy() for name in LABELS}
        for layer in range(self.layers):
            support, against, rest = (found[name][:, layer] for name in ("support", "against", "rest"))
            self.add(
                {
                    **named,
                    **labels,
                    "event": self.event,
                    "layer": layer,
                    **{
                        name: np.full(len(events), start <= layer < stop)
                        for name, (start, stop) in self.windows.items()
                    },
                    "support_it": support[:, 0],
                    "support_pt": support[:, 1],
                    "against": against[:, 0] - against[:, 1],
                    "rest": rest[:, 0] - rest[:, 1],
                    "cos": found["cos"][:, layer],
                }
            )

    def check(self) -> None:
        """All residuals and MLP outputs are there, of the same prompts."""
        for names in self.names.values():
            capture = self.kit.capture(names)
            all_boundaries(capture, "writeout")
            if "mlp_out" not in capture.group:
                raise LakeError(
                    f"{capture.path}: table writeout needs mlp_out, which this capture did not keep: `actlake capture {self.pair}"
                    " --stream raw --profile full` into another lake"
                )
        super().check()
