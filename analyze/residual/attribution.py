"""Direct logit attribution: what each block, and each attention head, adds to the difference of two tokens' logits."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..core.arrays import Array, as_tensor
from ..lens.head import Head
from .delta import added


def readout(head: Head, final: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """The linear map of a residual to logit(ids[:, 0]) - logit(ids[:, 1]), with the final norm's scale of `final` held fixed.

    final: float [T, d], what leaves the last block; ids: int64 [T, 2]. Returns weights [T, d] and constants [T], the norm's
    and the unembedding's biases: for x = final, x @ weights + constant is the difference of the logits before a soft cap.
    """
    first, second = (head.unembed[ids[:, place]].to(final) for place in (0, 1))
    apart = (first - second) * head.logit_scale
    weights = apart * head.norm_weight.to(final)
    centred = final
    if head.norm == "layer":
        centred = final - final.mean(-1, keepdim=True)
        weights = weights - weights.mean(-1, keepdim=True)
    weights = weights * torch.rsqrt(centred.square().mean(-1, keepdim=True) + head.eps)
    constant = torch.zeros(len(final)).to(final)
    if head.norm_bias is not None:
        constant = constant + (apart * head.norm_bias.to(final)).sum(-1)
    if head.bias is not None:
        bias = head.bias.to(final) * head.logit_scale
        constant = constant + bias[ids[:, 0]] - bias[ids[:, 1]]
    return weights, constant


@torch.no_grad()
def block_attribution(
    head: Head, resid: Array, mlp_out: Array, ids: Array, post_norm: tuple[np.ndarray, float | None] | None = None
) -> dict[str, np.ndarray]:
    """What embedding, attention and MLP of each block add to the difference of two tokens' logits.

    resid: float [T, L+1, d], mlp_out: float [T, L, d], ids: int [T, 2]; post_norm as in `delta`. Returns float32
    [T, 2 + 2L]: biases, embedding, then attention and MLP of each block; `effect`, which adds up to the difference before a
    soft cap, and `norm`, the length of what is added (NaN of the biases). What attention adds is the rest of its block.
    """
    resid, mlp = as_tensor(resid), as_tensor(mlp_out)
    layers = mlp.shape[1]
    weights, constant = readout(head, resid[:, -1].double(), as_tensor(ids).long())
    effects, norms = [constant], [torch.full_like(constant, torch.nan)]

    def add(part: Tensor) -> None:
        effects.append((part * weights).sum(-1))
        norms.append(torch.linalg.vector_norm(part, dim=-1))

    before = resid[:, 0].double()
    add(before)
    for layer in range(layers):
        here, own = resid[:, layer + 1].double(), added(mlp[:, layer].double(), post_norm, layer)
        add(here - before - own)
        add(own)
        before = here
    return {"effect": torch.stack(effects, 1).float().numpy(), "norm": torch.stack(norms, 1).float().numpy()}


@torch.no_grad()
def head_attribution(
    weights: Tensor,
    z: Array,
    projection: Tensor,
    bias: Tensor | None = None,
    post_norm: tuple[Tensor, float] | None = None,
) -> dict[str, np.ndarray]:
    """What each attention head of a block adds to the difference of two tokens' logits.

    weights: [T, d] of `readout`; z: float [T, heads, d_head]; projection [heads * d_head, d] and bias [d] make of it what
    attention gives; post_norm: weight [d] and eps of an RMS norm between that and the residual, whose scale is that of all heads
    together. Returns float32 [T, heads]: `effect`, and `norm`, the length of what the head adds.
    """
    z, matrix = as_tensor(z).to(weights), projection.to(weights)
    count, heads, width = z.shape
    size = torch.ones(count, 1).to(weights)
    if post_norm is not None:
        total = z.reshape(count, -1) @ matrix
        total = total if bias is None else total + bias.to(weights)
        size = torch.rsqrt(total.square().mean(-1, keepdim=True) + post_norm[1])
        matrix = matrix * post_norm[0].to(weights)
    per_head = matrix.reshape(heads, width, -1)
    effect = torch.einsum("td,hkd,thk->th", weights, per_head, z) * size
    norm = torch.einsum("thk,hkj,thj->th", z, per_head @ per_head.transpose(1, 2), z).clamp_min(0).sqrt() * size
    return {"effect": effect.float().numpy(), "norm": norm.float().numpy()}
