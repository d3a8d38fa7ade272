"""The direction of the PT-IT difference that predicts IT's later convergence: ridge on paired differences, KL gradients."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..core.arrays import Array, as_tensor
from ..lens.head import Head
from ..lens.tuned_lens import Objective, Probes

RIDGE = 1.0


def winsorised(values: np.ndarray, prompt: np.ndarray, tail: float = 5.0) -> np.ndarray:
    """Clip each prompt's values to their own `tail` and 100 - `tail` percentiles, column by column.

    values: [n, L]; prompt: int [n], ascending runs. Prompts of at most 4 tokens stay as they are. Returns float64
    [n, L]. Source: METHODS 7 (P1).
    """
    out = np.asarray(values, np.float64).copy()
    edges = np.flatnonzero(np.diff(prompt)) + 1
    for rows in np.split(np.arange(len(out)), edges):
        if len(rows) > 4:
            low, high = np.percentile(out[rows], [tail, 100.0 - tail], axis=0)
            out[rows] = np.clip(out[rows], low, high)
    return out


class Moments:
    """Sufficient statistics of a regression of y on x for each layer, streamed; memory 8 * L * d^2 bytes.

    x is kept relative to a fixed offset [L, d] (the first block's mean does), so that large common parts cost no digits;
    sums are float64, on `device`. Two sets add up when their offsets are the same.
    """

    def __init__(self, offset: Array, device: str = "cpu"):
        self.offset = as_tensor(offset).to(device, torch.float64)
        layers, width = self.offset.shape
        self.n = 0
        self.x, self.xy = (torch.zeros(layers, width, dtype=torch.float64, device=device) for _ in range(2))
        self.y, self.yy = (torch.zeros(layers, dtype=torch.float64, device=device) for _ in range(2))
        self.xx = torch.zeros(layers, width, width, dtype=torch.float64, device=device)

    def add(self, x: Array, y: Array) -> None:
        """Take n rows: x float [n, L, d], y float [n, L]."""
        self.n += len(x)
        y = as_tensor(y).to(self.y)
        self.y += y.sum(0)
        self.yy += y.square().sum(0)
        for layer in range(len(self.offset)):  # one layer at a time: what is widened stays small
            part = as_tensor(x[:, layer]).to(self.x) - self.offset[layer]
            self.x[layer] += part.sum(0)
            self.xy[layer] += y[:, layer] @ part
            self.xx[layer].addmm_(part.T, part)

    def __iadd__(self, other: Moments) -> Moments:
        """Take the rows of another set with the same offset."""
        self.n += other.n
        for name in ("x", "y", "xx", "xy", "yy"):
            getattr(self, name).add_(getattr(other, name))
        return self


@dataclass(frozen=True)
class _Fit:
    """A linear prediction of each layer: weights w [L, d] and constants b [L], of x relative to the moments' offset."""

    w: Tensor
    b: Tensor

    @property
    def direction(self) -> np.ndarray:
        """Unit vectors along w, float64 [L, d]; NaN where w is zero."""
        norm = torch.linalg.vector_norm(self.w, dim=-1, keepdim=True)
        return torch.where(norm > 0, self.w / norm, torch.nan).cpu().numpy()


def ridge(moments: Moments, strength: float = RIDGE) -> _Fit:
    """Centred ridge regression of each layer: w = (X'X + strength I)^-1 X'y on centred x and y. Source: METHODS 7 (P2)."""
    w = torch.empty_like(moments.x)
    for layer, (x, y) in enumerate(zip(moments.x, moments.y, strict=True)):
        inner = moments.xx[layer] - torch.outer(x, x) / moments.n
        inner.diagonal().add_(strength)
        w[layer] = torch.linalg.solve(inner, moments.xy[layer] - x * y / moments.n)
    return _Fit(w, (moments.y - (w * moments.x).sum(-1)) / moments.n)


def r2(fit: _Fit, moments: Moments) -> np.ndarray:
    """Share of the variance of y that a fit explains on the rows behind `moments`, float64 [L]; negative when worse than
    their mean, NaN where y does not vary. On the rows it was fitted to this is the in-sample R2."""
    w, b, n = fit.w, fit.b, moments.n
    quadratic = torch.einsum("ld,lde,le->l", w, moments.xx, w)
    error = (
        moments.yy + quadratic + n * b * b
        - 2 * (w * moments.xy).sum(-1) - 2 * b * moments.y + 2 * b * (w * moments.x).sum(-1)
    )  # fmt: skip
    total = moments.yy - moments.y.square() / n
    defined = total > 1e-12 * moments.yy
    return torch.where(defined, 1 - error / total, torch.nan).cpu().numpy()


def kl_gradient(head: Head, resid: Array, *, probes: Probes | None = None, device: str = "cpu") -> np.ndarray:
    """Sum over tokens of the gradient of KL(p_L || p_l) with respect to the residual h_l, the final p_L held fixed.

    resid: float32 [n, B, d], the last boundary is the final one; `probes` make it the tuned lens. Returns float64 [B, d],
    nats per unit of the residual; the last row is zero. The gradient in the logits is p_l - p_L in closed form; rows of
    logits are written out for a bounded number of tokens at a time. Source: METHODS 7 (P1).
    """
    objective, found = Objective(head, device), torch.zeros(*resid.shape[1:], dtype=torch.float64, device=device)
    probes = None if probes is None else probes.to(device)
    for start in range(0, len(resid), objective.rows):
        part = as_tensor(resid[start : start + objective.rows]).to(device, torch.float32)
        objective.against(part[:, -1])
        for boundary in range(part.shape[1] - 1):
            h = part[:, boundary].detach().requires_grad_()
            read = h if probes is None else torch.addmm(probes.bias[boundary], h, probes.weight[boundary].T)
            normed = objective.head.normed(read)
            _, change = objective.kl(normed.detach(), gradient=True)
            found[boundary] += torch.autograd.grad(normed, h, change)[0].double().sum(0)
    return found.cpu().numpy()
