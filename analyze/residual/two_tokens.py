"""Two candidate tokens read by a head: their logits at each boundary, and what it would pick at the last one."""

from __future__ import annotations

import numpy as np
import torch

from ..core.arrays import Array, as_tensor
from ..lens.head import Head

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
