"""Affine maps of least squares, from which the probes of a tuned lens can start."""

from __future__ import annotations

import torch
from torch import Tensor


def least_squares(source: Tensor, target: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """The map x -> W x + c that brings `source` [n, d] nearest to `target` [n, d]: W [d, d] and c [d], float32.

    Least is the mean of |W x + c - y|^2 / |y|^2 over the rows plus `ridge` v times the sum of (W - 1)_ij^2, v the mean
    variance of a column of `source` under the same weights: W shrinks towards the identity. The weights |y|^-2 count
    directions, as a final norm does, not lengths.
    """
    weight = 1 / target.square().sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    weight = weight / weight.sum()
    middle, goal = (weight * source).sum(0), (weight * target).sum(0)
    x = source - middle
    weighted = (weight * x).T
    moments, change = weighted @ x, weighted @ (target - goal - x)
    moments.diagonal().add_(ridge * moments.diagonal().mean())
    map_ = torch.linalg.solve(moments, change).T + torch.eye(len(middle), device=source.device)
    return map_, goal - map_ @ middle
