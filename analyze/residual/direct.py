"""Direct effects: what one branch or edit does to the logits through the final residual alone, without a model.

The final residual is a sum of branches, so one can be taken out and the rest read by the head. Later blocks keep what
they wrote for the unedited residual: what an edit does through them takes a replay (capture.edit.replay). For the
last block, and for an edit of the final residual, both are the same.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..core.arrays import Array, as_tensor
from ..lens.head import Head
from .delta import added

ROWS = 1 << 22  # elements of gathered unembedding rows at a time (float32: 16 MB)


def logits_of(head: Head, resid: Tensor, ids: Tensor) -> Tensor:
    """Logits [T, K] of the tokens ids int64 [T, K] for residuals [T, d], float32; no other token is computed."""
    count = ids.shape[1]
    rows = head.normed(resid).repeat_interleave(count, dim=0)
    return head.score(rows, ids.reshape(-1)).reshape(-1, count)


def without_mlp(
    final: Tensor, mlp_out: Tensor, layer: int, post_norm: tuple[np.ndarray, float | None] | None
) -> Tensor:
    """The final residual [T, d] less what the MLP branch of a layer added to it: its output [T, d], normed where a family
    does so (METHODS 1.2)."""
    return final - added(mlp_out, post_norm, layer)


@torch.no_grad()
def mlp_direct_effects(
    head: Head,
    final: Array,
    mlp_out: Array,
    ids: Array,
    *,
    post_norm: tuple[np.ndarray, float | None] | None = None,
    device: str = "cpu",
) -> np.ndarray:
    """How much each layer's MLP raises the logits of chosen tokens directly: z(h_L) - z(h_L - b_l), b_l what it added.

    final: float [T, d], the residual at the last boundary; mlp_out: float [T, L, d] of all layers; ids: int [T, K], tokens
    to read, for instance an IT and a PT choice, whose difference is a margin. post_norm: (weights [L, d], eps) of head.zarr
    where an RMS norm stands between MLP and residual (Gemma 3, OLMo 2). Returns float32 [T, L, K]. ValueError on shapes
    that do not fit. Source: METHODS 1.2, 15, 20.
    """
    final, mlp_out, ids = (as_tensor(array) for array in (final, mlp_out, ids))
    tokens, layers = mlp_out.shape[:2] if mlp_out.ndim == 3 else (-1, -1)
    if tuple(final.shape) != (tokens, head.d_model) or mlp_out.shape[2] != head.d_model:
        raise ValueError(
            f"mlp_direct_effects: final {tuple(final.shape)} and mlp_out {tuple(mlp_out.shape)}, expected"
            f" (tokens, {head.d_model}) and (tokens, layers, {head.d_model})"
        )
    if ids.ndim != 2 or len(ids) != tokens:
        raise ValueError(f"mlp_direct_effects: ids have shape {tuple(ids.shape)}, expected ({tokens}, tokens to read)")
    if post_norm is not None and tuple(post_norm[0].shape) != (layers, head.d_model):
        raise ValueError(
            f"mlp_direct_effects: post_norm weights have shape {post_norm[0].shape}, expected {(layers, head.d_model)}"
        )
    head, out = head.to(device), np.empty((tokens, layers, ids.shape[1]), np.float32)
    step = max(1, ROWS // (max(1, ids.shape[1]) * head.d_model))
    for start in range(0, tokens, step):
        part = slice(start, start + step)
        h, read = final[part].to(device, torch.float32), ids[part].to(device, torch.int64)
        whole = logits_of(head, h, read)
        for layer in range(layers):
            m = mlp_out[part, layer].to(device, torch.float32)
            out[part, layer] = (whole - logits_of(head, without_mlp(h, m, layer, post_norm), read)).cpu().numpy()
    return out
