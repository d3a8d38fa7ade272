"""How blocks and MLPs move the residual stream: cosines and norms."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..core.arrays import Array, as_tensor

# The study calls a cosine undefined below this product of norms (METHODS 4, L1).
TINY = 1e-8
COLUMNS = ("block_cos", "mlp_cos", "mlp_norm", "resid_norm")


@torch.no_grad()
def delta(
    resid: Array,
    mlp_out: Array | None,
    *,
    post_norm: tuple[np.ndarray, float | None] | None = None,
    parallel: bool = False,
    device: str = "cpu",
) -> dict[str, np.ndarray]:
    """Direction and size of what each block and each MLP writes into the residual stream.

    resid: float [T, L+1, d]; mlp_out: float [T, L, d], the output of the module named mlp, or None; arrays, or tensors
    that may already be on `device`. post_norm: (weights [L, d] as effective multipliers, eps) of an RMS norm between
    MLP and residual (Gemma 3, OLMo 2); with eps None the output is multiplied only (Granite). parallel: the MLP reads the
    block's input (GPT-NeoX style). Returns float32
    [T, L+1], column l+1 = block l: block_cos = cos(h_l - h_l-1, h_l-1), NaN for the input and for block 0, where the
    study defines none; mlp_cos = cos(m_l, r_l), r_l the residual entering the MLP sub-block; mlp_norm = |m_l|;
    resid_norm = |h_l|, the one that is defined at boundary 0. NaN where both vectors' norms multiply to at most 1e-8,
    and for all MLP columns without mlp_out. Computed in float64 (float32 on mps). ValueError on shapes that do not fit.
    Source: METHODS 0, 1.2, 4 (L1), 8.
    """
    resid = as_tensor(resid)
    if resid.ndim != 3 or resid.shape[1] < 1:
        raise ValueError(f"delta: resid has shape {tuple(resid.shape)}, expected (tokens, boundaries, d_model)")
    tokens, boundaries, width = resid.shape
    mlp = None if mlp_out is None else as_tensor(mlp_out)
    if mlp is not None and tuple(mlp.shape) != (tokens, boundaries - 1, width):
        raise ValueError(f"delta: mlp_out has shape {tuple(mlp.shape)}, expected {(tokens, boundaries - 1, width)}")
    if post_norm is not None and tuple(post_norm[0].shape) != (boundaries - 1, width):
        raise ValueError(
            f"delta: post_norm weights have shape {post_norm[0].shape}, expected {(boundaries - 1, width)}"
        )
    wide = torch.float32 if torch.device(device).type == "mps" else torch.float64
    out = {name: torch.full((boundaries, tokens), torch.nan, device=device) for name in COLUMNS}
    before = None
    for boundary in range(boundaries):  # one layer at a time: what is widened stays small
        here = resid[:, boundary].to(device, wide)
        out["resid_norm"][boundary] = _norm(here)
        if before is not None and boundary > 1:
            out["block_cos"][boundary] = cosine(here - before, before)
        if before is not None and mlp is not None:
            m = mlp[:, boundary - 1].to(device, wide)
            entering = before if parallel else here - added(m, post_norm, boundary - 1)
            out["mlp_cos"][boundary] = cosine(m, entering)
            out["mlp_norm"][boundary] = _norm(m)
        before = here
    return {name: column.cpu().numpy().T for name, column in out.items()}


def added(mlp: Tensor, post_norm: tuple[np.ndarray, float | None] | None, layer: int) -> Tensor:
    """What the MLP branch of a layer adds to the residual [T, d]: its output, RMS-normed or multiplied where a family does."""
    if post_norm is None:
        return mlp
    weight = as_tensor(post_norm[0][layer]).to(mlp)
    if post_norm[1] is None:  # multiplied only (Granite)
        return mlp * weight
    return mlp * torch.rsqrt(mlp.square().mean(-1, keepdim=True) + post_norm[1]) * weight


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine over the last axis [...]; NaN where the product of the norms is at most 1e-8."""
    scale = _norm(a) * _norm(b)
    return torch.where(scale > TINY, torch.linalg.vecdot(a, b) / scale, torch.nan)


def _norm(a: Tensor) -> Tensor:
    return torch.linalg.vector_norm(a, dim=-1)
