"""How blocks and MLPs move the residual stream: cosines and norms."""

from __future__ import annotations

import numpy as np

# The seed calls a cosine undefined below this product of norms (METHODS 4, L1).
TINY = 1e-8


def delta(
    resid: np.ndarray,
    mlp_out: np.ndarray | None,
    *,
    post_norm: tuple[np.ndarray, float] | None = None,
    parallel: bool = False,
) -> dict[str, np.ndarray]:
    """Direction and size of what each block and each MLP writes into the residual stream.

    resid: float [T, L+1, d]; mlp_out: float [T, L, d], the output of the module named mlp, or None. post_norm:
    (weights [L, d] as effective multipliers, eps) of an RMS norm between MLP and residual (Gemma 3, OLMo 2).
    parallel: the MLP reads the block's input (GPT-NeoX style). Returns float32 [T, L+1], column l+1 = block l:
    block_cos = cos(h_l - h_l-1, h_l-1), NaN for the input and for block 0, where the seed defines none; mlp_cos =
    cos(m_l, r_l), r_l the residual entering the MLP sub-block; mlp_norm = |m_l|; resid_norm = |h_l|, the one that is
    defined at boundary 0. NaN where both vectors' norms multiply to at most 1e-8, and for all MLP columns without
    mlp_out. Norms accumulate in float64. ValueError on shapes that do not fit. Source: METHODS 0, 1.2, 4 (L1), 8.
    """
    resid = np.asarray(resid, dtype=np.float32)
    if resid.ndim != 3 or resid.shape[1] < 1:
        raise ValueError(f"delta: resid has shape {resid.shape}, expected (tokens, boundaries, d_model)")
    tokens, boundaries, width = resid.shape
    columns = ("block_cos", "mlp_cos", "mlp_norm", "resid_norm")
    out = {name: np.full((tokens, boundaries), np.nan, np.float32) for name in columns}
    out["resid_norm"][:] = _norm(resid)
    before = resid[:, :-1]
    out["block_cos"][:, 2:] = cosine(resid[:, 2:] - before[:, 1:], before[:, 1:])
    if mlp_out is not None:
        mlp = np.asarray(mlp_out, dtype=np.float32)
        if mlp.shape != (tokens, boundaries - 1, width):
            raise ValueError(f"delta: mlp_out has shape {mlp.shape}, expected {(tokens, boundaries - 1, width)}")
        entering = before if parallel else resid[:, 1:] - added(mlp, post_norm)
        out["mlp_cos"][:, 1:] = cosine(mlp, entering)
        out["mlp_norm"][:, 1:] = _norm(mlp)
    return out


def added(mlp: np.ndarray, post_norm: tuple[np.ndarray, float] | None) -> np.ndarray:
    """What the MLP branch adds to the residual, float32 [T, L, d]: its output, RMS-normed where a family does so."""
    if post_norm is None:
        return mlp
    weight, eps = np.asarray(post_norm[0], dtype=np.float32), post_norm[1]
    if weight.shape != mlp.shape[1:]:
        raise ValueError(f"delta: post_norm weights have shape {weight.shape}, expected {mlp.shape[1:]}")
    square = _dot(mlp, mlp)[..., None] / mlp.shape[-1]
    return (mlp / np.sqrt(square + eps) * weight).astype(np.float32)


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine over the last axis, float64 [...]; NaN where the product of the norms is at most 1e-8."""
    scale = _norm(a) * _norm(b)
    return np.divide(_dot(a, b), scale, out=np.full(scale.shape, np.nan), where=scale > TINY)


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    # einsum widens as it goes, so float64 sums cost no float64 copy of the activations.
    return np.einsum("...d,...d->...", a, b, dtype=np.float64)


def _norm(a: np.ndarray) -> np.ndarray:
    return np.sqrt(_dot(a, a))
