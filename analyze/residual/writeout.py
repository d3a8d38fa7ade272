"""What an MLP adds to the logits of chosen tokens at its own layer: the residual before and after it, read by the head."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..core.arrays import Array, as_tensor
from ..lens.head import Head
from .delta import added, cosine


@torch.no_grad()
def writeout(
    head: Head,
    resid: Array,
    mlp_out: Array,
    ids: Array,
    *,
    post_norm: tuple[np.ndarray, float | None] | None = None,
    parallel: bool = False,
    device: str = "cpu",
) -> dict[str, np.ndarray]:
    """How much each layer's MLP raises the logits of chosen tokens at its own layer, and the part of it against the residual.

    resid: float [T, L+1, d]; mlp_out: float [T, L, d]; ids: int [T, K]; post_norm and parallel as in `delta`. With r the
    residual entering the MLP sub-block, u the branch it adds and z the head's logits: `support` = z(r + u) - z(r) [T, L, K];
    `against`, the same of u's component along -r (0 where u.r >= 0); `rest`, of u without that component; `cos` = cos(u, r)
    [T, L], NaN for zero vectors. Float32, logits. The study takes u before a norm that follows it (Gemma 3, OLMo 2),
    which is then not what the residual gets. ValueError on shapes that do not fit. Source: METHODS 1.2, 15.
    """
    resid, mlp_out, ids = (as_tensor(array) for array in (resid, mlp_out, ids))
    if resid.ndim != 3 or tuple(mlp_out.shape) != (resid.shape[0], resid.shape[1] - 1, head.d_model):
        raise ValueError(
            f"writeout: resid {tuple(resid.shape)} and mlp_out {tuple(mlp_out.shape)}, expected (tokens, layers + 1,"
            f" {head.d_model}) and (tokens, layers, {head.d_model})"
        )
    if ids.ndim != 2 or len(ids) != len(resid):
        raise ValueError(f"writeout: ids have shape {tuple(ids.shape)}, expected ({len(resid)}, tokens to read)")
    head, ids = head.to(device), ids.to(device, torch.int64)
    tokens, layers = mlp_out.shape[:2]
    out = {name: np.empty((tokens, layers, ids.shape[1]), np.float32) for name in ("support", "against", "rest")}
    out["cos"] = np.empty((tokens, layers), np.float32)
    for layer in range(layers):
        u = added(mlp_out[:, layer].to(device, torch.float32), post_norm, layer)
        r = resid[:, layer if parallel else layer + 1].to(device, torch.float32)
        r = r if parallel else r - u
        back = _against(u, r)
        before = head.logits_of(r, ids)
        for name, part in (("support", u), ("against", back), ("rest", u - back)):
            out[name][:, layer] = (head.logits_of(r + part, ids) - before).cpu().numpy()
        out["cos"][:, layer] = cosine(u.double(), r.double()).float().cpu().numpy()
    return out


def _against(u: Tensor, r: Tensor) -> Tensor:
    """The component of u [T, d] along -r; 0 where u points along r, or r is 0."""
    share = torch.linalg.vecdot(u, r) / r.square().sum(-1)
    return torch.where(share < 0, share, 0)[:, None] * r
