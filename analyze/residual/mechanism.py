"""What an MLP's output does to the lens at its own layer: its length along gradients of chosen logits and of the KL."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..core.arrays import Array, as_tensor
from ..lens.head import Head
from ..lens.tuned_lens import Objective
from .delta import cosine

COLUMNS = ("support_teacher", "anti_top1", "anti_kl", "teacher_cos", "top1_cos", "kl_cos", "kl_rest")


def mlp_mechanism(
    head: Head, resid: Array, mlp_out: Array, target: Array, *, device: str = "cpu"
) -> dict[str, np.ndarray]:
    """Project MLP outputs u on unit gradients, in h, of the lens at the residual h after their block.

    resid, mlp_out: float32 [T, K, d] of the last K layers, the last of all among them; target: int64 [T], the token that
    follows, -1 for none. Gradients: g_T of the target's logit, g_top1 of the layer's own top token's, g_KL of KL(p_L || p_l)
    with p_L fixed; only norm and unembedding are differentiated. Returns float32 [T, K], in units of the residual:
    support_teacher = u.g_T, anti_top1 = -u.g_top1, anti_kl = u.g_KL (the sign as it is), kl_rest = |u - (u.g_KL)g_KL|; and
    the cosines teacher_cos, top1_cos, kl_cos of u and each gradient. NaN where there is no target or the gradient is zero,
    as that of the KL is at the last layer. ValueError on shapes that do not fit. Source: METHODS 9.
    """
    resid, mlp_out, target = (as_tensor(array) for array in (resid, mlp_out, target))
    if resid.ndim != 3 or resid.shape[-1] != head.d_model or mlp_out.shape != resid.shape:
        raise ValueError(
            f"mlp_mechanism: resid {tuple(resid.shape)} and mlp_out {tuple(mlp_out.shape)}, expected twice"
            f" (tokens, layers, {head.d_model})"
        )
    if target.shape != resid.shape[:1]:
        raise ValueError(f"mlp_mechanism: target has shape {tuple(target.shape)}, expected ({len(resid)},)")
    objective = Objective(head, device)
    out = {name: np.full(resid.shape[:2], np.nan, np.float32) for name in COLUMNS}
    for start in range(0, len(resid), objective.rows):
        part = slice(start, start + objective.rows)
        h, u = (array[part].to(device, torch.float32) for array in (resid, mlp_out))
        objective.against(h[:, -1])
        for layer in range(h.shape[1]):
            last = layer == h.shape[1] - 1
            for name, column in _columns(objective, h[:, layer], u[:, layer], target[part].to(device), last).items():
                out[name][part, layer] = column.cpu().numpy()
    return out


def _columns(objective: Objective, h: Tensor, u: Tensor, target: Tensor, last: bool) -> dict[str, Tensor]:
    """The columns of one layer, each [n]."""
    head, h = objective.head, h.detach().requires_grad_()
    normed = head.normed(h)
    with torch.no_grad():
        top1 = head.project(normed, 0, head.vocab).argmax(-1)
    _, change = objective.kl(normed.detach(), gradient=True)
    ids = target.clamp_min(0)
    # A soft cap or scale stretches a logit's gradient without turning it.
    teacher, top, kl = (
        torch.autograd.grad(normed, h, rows, retain_graph=True)[0]
        for rows in (head.unembed[ids].float(), head.unembed[top1].float(), change)
    )
    teacher = torch.where((target >= 0)[:, None], teacher, 0.0)
    kl = torch.zeros_like(kl) if last else kl  # rounding would give it a direction
    along = _along(u, kl)
    return {
        "support_teacher": _along(u, teacher),
        "anti_top1": -_along(u, top),
        "anti_kl": along,
        "teacher_cos": cosine(u, _unit(teacher)),
        "top1_cos": cosine(u, _unit(top)),
        "kl_cos": cosine(u, _unit(kl)),
        "kl_rest": (u - along[:, None] * _unit(kl)).norm(dim=-1),
    }


def _along(u: Tensor, gradient: Tensor) -> Tensor:
    """Length of u along a gradient [n]; NaN where that is zero."""
    there = (gradient != 0).any(-1)
    return torch.where(there, torch.linalg.vecdot(u, _unit(gradient)), torch.nan)


def _unit(gradient: Tensor) -> Tensor:
    """Unit vectors; a gradient however small has a direction, unless it is zero."""
    return normalize(gradient / gradient.abs().amax(-1, keepdim=True).clamp_min(1e-30), dim=-1)
