"""The largest logits, and how much the set of them changes from layer to layer."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..core.arrays import Array, as_tensor
from .head import Head

LOGITS = 1 << 24  # elements of logits in memory at a time (float32: 64 MB)


def top_k(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Values and ids of the k largest of each row [n, V], descending, as torch.topk, two to four times faster on a CPU.

    The vocabulary is split into groups: the k largest are in the k groups with the largest maxima. A maximum over groups
    is one pass at memory speed, and the slow selection sees about 2 sqrt(k V) candidates instead of V.
    """
    rows, vocab = logits.shape
    size = int((vocab / k) ** 0.5)
    if size < 2:
        value, index = logits.topk(k, dim=-1)
        return value, index
    columns = vocab // size  # distance between members of a group; the ids that are left over are always candidates
    best = logits[:, : size * columns].unflatten(1, (size, columns)).amax(1).topk(k, dim=-1).indices
    members = torch.arange(size, device=logits.device)[:, None] * columns
    rest = torch.arange(size * columns, vocab, device=logits.device).expand(rows, -1)
    candidates = torch.cat([(best[:, None, :] + members).flatten(1), rest], dim=1)
    value, place = logits.gather(1, candidates).topk(k, dim=-1)
    return value, candidates.gather(1, place)


@torch.no_grad()
def exchanged(
    head: Head, before: Array, after: Array, group: Array, *, k: int = 20, device: str = "cpu"
) -> dict[str, np.ndarray]:
    """How the set of the k most likely tokens differs between two residuals, by groups of tokens.

    before, after: float [T, B, d] at the same tokens and boundaries, as the lens reads them; group: int [V], from 0 to G - 1.
    Returns int32 [T, B, G] `entered` and `left`, how many of each group are in the set after and not before, and the
    reverse, and float32 [T, B] `jaccard` = |both| / |either|. A vocabulary smaller than k is taken whole. ValueError on
    shapes that do not fit. Source: METHODS 10.
    """
    before, after, group = (torch.as_tensor(array) for array in (before, after, group))
    if before.ndim != 3 or before.shape != after.shape or group.shape != (head.vocab,):
        raise ValueError(
            f"exchanged: before {tuple(before.shape)}, after {tuple(after.shape)} and group {tuple(group.shape)}, expected"
            f" twice (tokens, boundaries, {head.d_model}) and ({head.vocab},)"
        )
    head, k, group = head.to(device), min(k, head.vocab), group.long().to(device)
    shape, groups = before.shape[:2], int(group.max()) + 1
    rows = shape.numel()
    counts = {name: np.empty((rows, groups), np.int32) for name in ("entered", "left")}
    jaccard = np.empty(rows, np.float32)
    step = max(1, LOGITS // head.vocab)
    for start in range(0, rows, step):
        part = slice(start, start + step)
        old, new = (
            top_k(head.logits(resid.flatten(0, 1)[part].to(device, torch.float32)), k)[1] for resid in (before, after)
        )
        same = new[:, :, None] == old[:, None, :]
        for name, ids, kept in (("entered", new, same.any(2)), ("left", old, same.any(1))):
            found = torch.zeros(len(ids), groups, dtype=torch.int32, device=ids.device)
            counts[name][part] = found.scatter_add_(1, group[ids], (~kept).int()).cpu().numpy()
        both = same.sum((1, 2))
        jaccard[part] = (both / (2 * k - both)).cpu().numpy()
    return {name: count.reshape(*shape, groups) for name, count in counts.items()} | {"jaccard": jaccard.reshape(shape)}


@torch.no_grad()
def churn(head: Head, resid: Array, *, k: int = 5, device: str = "cpu") -> np.ndarray:
    """How much of the k most likely tokens changes from each boundary to the next: 1 - Jaccard, in [0, 1].

    resid: float [T, B, d] at B boundaries in a row, as the lens reads them (translated for a tuned one). Returns float32
    [T, B-1]. A vocabulary smaller than k is taken whole. ValueError on fewer than two boundaries. Source: METHODS 16.
    """
    resid = as_tensor(resid)
    if resid.ndim != 3 or resid.shape[1] < 2:
        raise ValueError(
            f"churn: resid has shape {tuple(resid.shape)}, expected (tokens, 2 boundaries or more, d_model)"
        )
    tokens, boundaries, _ = resid.shape
    head, k = head.to(device), min(k, head.vocab)
    found = np.empty((tokens, boundaries - 1), np.float32)
    step = max(1, LOGITS // (boundaries * head.vocab))
    for start in range(0, tokens, step):
        part = slice(start, start + step)
        logits = head.logits(resid[part].to(device, torch.float32).flatten(0, 1))
        ids = top_k(logits, k)[1].unflatten(0, (-1, boundaries))
        same = (ids[:, 1:, :, None] == ids[:, :-1, None, :]).any(-1).sum(-1)
        found[part] = (1 - same / (2 * k - same)).cpu().numpy()
    return found
