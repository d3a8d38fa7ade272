"""What an MLP's output does to the lens, at its own layer and for two tokens: its length along gradients."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..core.arrays import Array, as_tensor
from ..lens.head import Head
from ..lens.tuned_lens import Objective
from .delta import added, cosine

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


ROWS = 1 << 24  # elements of logits at a time (float32: 64 MB)


@torch.no_grad()
def choose(
    head: Head, resid: Array, tokens: Array, *, mask: Array | None = None, device: str = "cpu"
) -> tuple[np.ndarray, np.ndarray]:
    """Logits of two tokens each through a head, and its top token at the last boundary.

    resid: float [n, B, d]; tokens: int [n, 2]; mask: bool [V], the tokens that may be picked (METHODS 1.4), default all.
    Returns float32 [n, B, 2] and int32 [n], the lowest id among equals. ValueError on shapes that do not fit. Source:
    METHODS 14, 17.
    """
    resid, tokens = as_tensor(resid), as_tensor(tokens).to(torch.int64)
    if resid.ndim != 3 or resid.shape[2] != head.d_model or tuple(tokens.shape) != (len(resid), 2):
        raise ValueError(
            f"choose: resid {tuple(resid.shape)} and tokens {tuple(tokens.shape)}, expected (n, boundaries, {head.d_model})"
            " and (n, 2)"
        )
    count, boundaries, _ = resid.shape
    head, step = head.to(device), max(1, ROWS // max(head.vocab, boundaries * 2 * head.d_model))
    dropped = None if mask is None else ~as_tensor(mask).to(device)
    logits, top1 = np.empty((count, boundaries, 2), np.float32), np.empty(count, np.int32)
    for start in range(0, count, step):
        part = slice(start, start + step)
        h, both = resid[part].to(device, torch.float32), tokens[part].to(device)
        rows = both.repeat_interleave(boundaries, dim=0)
        logits[part] = head.logits_of(h.flatten(0, 1), rows).view(-1, boundaries, 2).cpu().numpy()
        whole = head.logits(h[:, -1])
        if dropped is not None:
            whole[:, dropped] = -torch.inf
        top1[part] = whole.cpu().numpy().argmax(-1)
    return logits, top1
