"""Scalars of a batch computed where its residuals are, so that most residuals never leave the device (profile lean)."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ...analyze.lens.logit_lens import lens
from ...analyze.residual.delta import delta
from ...store.core.schema import SITES, scalars
from ..model.hooks import ActivationSink, Batch, buffer, places, whole
from ..model.load import Model
from .batching import stages


class OnDeviceScalars:
    """All boundaries of one batch on the unembedding's device, and the lens and delta columns computed from them there."""

    def __init__(self, model: Model, batch: Batch, sizes: dict[str, tuple[int, ...]]):
        self._model, self._batch, self._sizes = model, batch, sizes
        layers, width = model.n_layers, model.head.d_model
        lengths = {"boundary": layers + 1, "layer": layers, "d_model": width}
        shapes = {
            name: site.shape(lengths)
            for name, site in SITES.items()
            if name == "resid" or name in sizes or (name == "mlp_out" and "delta" in stages(sizes))
        }
        self._held = {
            name: buffer(name, shape, batch.n_tokens, model.dtype, device=model.head_device)
            for name, shape in shapes.items()
        }
        self.places = places(shapes, range(layers + 1))
        self.sink = ActivationSink(batch, whole(batch, self._held), side=False)

    def values(self, boundaries: Sequence[int]) -> dict[str, Tensor]:
        """The variables of the batch's real tokens: scalars [n, L+1] and what is kept of the sites."""
        model, device = self._model, str(self._held["resid"].device)
        found: dict[str, Tensor] = {}
        if "lens" in stages(self._sizes):
            found |= _named("lens", lens(model.head_on_device, self._held["resid"], self._targets(), device=device))
        if "delta" in stages(self._sizes):
            columns = delta(
                self._held["resid"],
                self._held["mlp_out"],
                post_norm=model.post_norm,
                parallel=model.parts.parallel,
                device=device,
            )
            found |= _named("delta", columns)
        for name in SITES:
            if name in self._sizes:
                held = self._held[name]
                found[name] = held if SITES[name].branch else held[:, list(boundaries)]
        return found

    def _targets(self) -> Tensor:
        """The token that follows each real token in its sequence, -1 at the end."""
        ids = torch.cat([self._batch.ids, torch.full_like(self._batch.ids[:, :1], -1)], dim=1)[:, 1:]
        ends = torch.as_tensor(self._batch.lengths, device=ids.device)[:, None] - 1
        return ids.masked_fill(self._batch.positions >= ends, -1).reshape(-1)[self._batch.valid].cpu()


def _named(table: str, columns: dict[str, np.ndarray]) -> dict[str, Tensor]:
    return {variable: torch.from_numpy(columns[name]) for name, variable in scalars(table).items()}
