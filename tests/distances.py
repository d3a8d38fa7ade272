"""Distances between distributions that are small enough to be written out: the reference for the fused kernels."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def entropy(logp: Tensor) -> Tensor:
    """Shannon entropy in nats of log-probabilities [..., V]; -inf (a masked token) counts as 0 log 0 = 0."""
    return -_expect(logp, logp).sum(-1)


def kl(logp: Tensor, logq: Tensor) -> Tensor:
    """KL(p || q) in nats, >= 0, of log-probabilities [..., V] (broadcast); infinite where q = 0 < p."""
    return (_expect(logp, logp) - _expect(logp, logq)).sum(-1).clamp_min(0.0)


def js(logp: Tensor, logq: Tensor) -> Tensor:
    """Jensen-Shannon divergence in nats, in [0, ln 2], of log-probabilities [..., V] (broadcast); METHODS 13."""
    middle = torch.logaddexp(logp, logq) - math.log(2.0)
    return (0.5 * (kl(logp, middle) + kl(logq, middle))).clamp(0.0, math.log(2.0))


def _expect(logp: Tensor, value: Tensor) -> Tensor:
    p = logp.exp()
    return torch.where(p == 0, 0.0, p * value)  # keeps NaN visible
