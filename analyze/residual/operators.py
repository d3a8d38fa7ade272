"""What steering does to a vector: the operators of METHODS 5.2 and the random vectors that match them in size.

Tensors [..., d] in, the same shape out, computed in their dtype. Directions are unit vectors [d] of that dtype. An edit of
edit.edits applies them inside a forward; on a stored final residual they need no model.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import normalize

SMALL = 1e-8  # smallest divisor of a projection; METHODS 5.2


def scale(m: Tensor, d: Tensor, alpha: float) -> Tensor:
    """m + (alpha - 1)(m.d)d: the component along d times alpha; 1 changes nothing, 0 removes it."""
    return m + (alpha - 1) * _along(m, d) * d


def inject(m: Tensor, d: Tensor, beta: float, relative: bool = False) -> Tensor:
    """m + beta d, or m + beta |m| d with each vector's own norm if `relative` (A2); 0 changes nothing."""
    return m + beta * (m.norm(dim=-1, keepdim=True) if relative else 1) * d


def scale_matched(m: Tensor, d: Tensor, random: Tensor, alpha: float) -> Tensor:
    """As large a change as `scale` makes along d, but along a random unit vector u: m + (alpha - 1) s (m.u)u.

    s = |m.d| / max(|m.u|, 1e-8). Source: METHODS 5.2 (random matched, 0C).
    """
    along = _along(m, random)
    return m + (alpha - 1) * _along(m, d).abs() / along.abs().clamp_min(SMALL) * along * random


def random_like(delta: Tensor, x: Tensor, random: Tensor) -> Tensor:
    """A vector with delta's signed projection on x and, across x, delta's norm along a random vector [d].

    Source: METHODS 17 (exp19B, delta_rand).
    """
    towards = normalize(x, dim=-1)
    parallel = (delta * towards).sum(-1, keepdim=True) * towards
    across = normalize(random - _along(towards, random) * towards, dim=-1)
    return parallel + (delta - parallel).norm(dim=-1, keepdim=True) * across


def _along(m: Tensor, d: Tensor) -> Tensor:
    """Component along d, [..., 1]."""
    return (m @ d)[..., None]
