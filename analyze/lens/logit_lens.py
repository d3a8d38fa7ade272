"""Logit lenses: what each layer would predict, against the final layer and against another model."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..core.arrays import Array, as_tensor
from .head import Head
from .streaming_softmax import Block, Progress, StreamingSoftmax
from .tuned_lens import Probes

FLOATS = ("kl_layer_final", "kl_final_layer", "js_next", "entropy", "p_target", "cos_final")
INTEGERS = ("top1", "rank_target")


def lens(
    head: Head,
    resid: Array,
    target: Array,
    *,
    probes: Probes | None = None,
    mask: Array | None = None,
    device: str = "cpu",
    js_next: bool = True,
    block: Block | None = None,
    progress: Progress | None = None,
) -> dict[str, np.ndarray]:
    """Compare every boundary's lens distribution p_l with the last boundary's, p_L.

    resid: float32 [T, B, d], B = L + 1 boundaries, the last is the final one. target: int64 [T], the token that
    follows, -1 for none. mask: bool [V], the tokens that count (METHODS 1.4), default all. Returns float32 [T, B],
    in nats: kl_layer_final = KL(p_l || p_L), kl_final_layer = KL(p_L || p_l), js_next = JS(p_l, p_l+1) (NaN at the
    last boundary, and everywhere if `js_next` is off), entropy, p_target (NaN without target), cos_final = cosine of
    h_l and h_L before the norm (NaN for a zero vector); int32 [T, B]: top1 (the lowest id among equals),
    rank_target = 1 + the number of strictly larger logits (0 without target). A row that holds NaN gives NaN.

    `probes` make it the tuned lens: they translate the residuals of all boundaries but the last, so that p_L stays the
    model's own distribution; h_l in cos_final is then the translated one. Without, it is the raw lens.

    `block` bounds the memory. `progress` is called with the number of tokens done so far. ValueError on shapes that do
    not fit. Source: METHODS 3.1, 3.2 and 4 (L2).
    """
    resid, target = _residuals(resid, head, "resid"), as_tensor(target)
    tokens, boundaries, _ = resid.shape
    if target.shape != (tokens,) or (tokens and not -1 <= int(target.min()) <= int(target.max()) < head.vocab):
        raise ValueError(f"lens: target must hold {tokens} ids from -1 to {head.vocab - 1}")
    chains = StreamingSoftmax([head], boundaries, mask=mask, device=device, js=js_next, block=block)
    probes = None if probes is None else probes.to(chains.device)
    out = {name: np.full((tokens, boundaries), np.nan, np.float32) for name in FLOATS}
    out |= {name: np.zeros((tokens, boundaries), np.int32) for name in INTEGERS}
    for part in chains.blocks(tokens, progress):
        h = resid[part].to(chains.device, torch.float32)
        h = h if probes is None else probes(h)
        result = chains.run([h], target[part].to(chains.device)) | {"cos_final": _cosine(h, h[:, -1:])}
        for name in out.keys() & result.keys():
            column = result[name].cpu().numpy()
            out[name][part, : column.shape[1]] = column
    return out


def pair_lens(
    head_pt: Head,
    head_it: Head,
    resid_pt: Array,
    resid_it: Array,
    *,
    mask: Array | None = None,
    device: str = "cpu",
    block: Block | None = None,
    progress: Progress | None = None,
) -> dict[str, np.ndarray]:
    """Compare the lens distributions of two models at the same token and boundary.

    resid_pt [T, B, d_pt] and resid_it [T, B, d_it]: float32, aligned row by row. mask: bool [V], tokens real to both;
    the others get probability 0 in both. Returns [T, B]: float32 js, kl_pt_it = KL(P_pt || P_it) and kl_it_pt, in
    nats, and bool top1_agree. Other arguments as in `lens`. ValueError on rows or vocabularies that do not match.
    Source: METHODS 13.
    """
    resid_pt, resid_it = _residuals(resid_pt, head_pt, "resid_pt"), _residuals(resid_it, head_it, "resid_it")
    shape = tuple(resid_pt.shape[:2])
    if tuple(resid_it.shape[:2]) != shape:
        raise ValueError(f"pair_lens: PT has {shape} rows and IT {tuple(resid_it.shape[:2])}; they must align")
    chains = StreamingSoftmax([head_pt, head_it], 2, mask=mask, device=device, js=True, block=block)
    rows = [resid.flatten(0, 1) for resid in (resid_pt, resid_it)]
    names = {"js": "js_next", "kl_pt_it": "kl_layer_final", "kl_it_pt": "kl_final_layer"}
    out = {name: np.empty(len(rows[0]), np.float32) for name in names}
    agree = np.empty(len(rows[0]), bool)
    for part in chains.blocks(len(rows[0]), progress, per_token=shape[1]):
        result = chains.run([r[part, None].to(chains.device, torch.float32) for r in rows])
        for name, source in names.items():
            out[name][part] = result[source][:, 0].cpu().numpy()
        agree[part] = (result["top1"][:, 0] == result["top1"][:, 1]).cpu().numpy()
    return {name: column.reshape(shape) for name, column in (out | {"top1_agree": agree}).items()}


def _residuals(resid: Array, head: Head, name: str) -> Tensor:
    resid = as_tensor(resid)
    if resid.ndim != 3 or resid.shape[1] < 1 or resid.shape[2] != head.d_model:
        raise ValueError(f"lens: {name} has shape {tuple(resid.shape)}, expected (tokens, boundaries, {head.d_model})")
    return resid


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))
