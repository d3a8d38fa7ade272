"""Logit lenses: what each layer would predict, against the final layer and against another model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..core.arrays import LOG2_E, Array, as_tensor
from .head import Head
from .tuned_lens import Probes

Progress = Callable[[int], None]

# exp() of less than about -87 is denormal, 50 to 150 times slower on x86; e^-80 is as good as zero.
FLOOR = -80.0
# The logit of a masked token: far below FLOOR, yet finite, so that 0 * logit stays 0.
DROPPED = -1e4
# The sums kept per tile and row.
PEAK, MASS, OWN, TO_LAST, OF_LAST, ABOVE = range(6)


@dataclass(frozen=True)
class Block:
    """Block sizes: rows of logits, tokens per vocabulary tile, bytes of the JS buffer.

    A call needs, beyond its inputs, heads and results, at most buffer + 12 * rows * tile bytes for logits and about
    100 * rows * V / tile for their sums; or what a single chain needs, if that is more (4 * K * V bytes with JS).
    """

    rows: int
    tile: int
    buffer: int

    def chains(self, length: int, vocab: int, js: bool) -> int:
        """How many chains of this length make a block."""
        rows = min(self.rows, self.buffer // (4 * vocab)) if js else self.rows
        return max(1, rows // length)

    def work(self, length: int, vocab: int, count: int, js: bool = True) -> int:
        """Bytes of logits and sums for `count` chains, beyond inputs, heads and results."""
        rows, tile = length * min(self.chains(length, vocab, js), count), min(self.tile, vocab)
        return rows * (4 * (vocab if js else tile) + 8 * tile + 100 * -(-vocab // tile))


CPU = Block(rows=1024, tile=512, buffer=256 << 20)
ACCELERATOR = Block(rows=4096, tile=8192, buffer=4 << 30)


def usual_block(device: str) -> Block:
    """The block for a type of device (cpu, cuda, mps ...)."""
    return CPU if device == "cpu" else ACCELERATOR


class _StreamingSoftmax:
    """Heads on their device, the tiling and the work memory for blocks of chains of `length` members.

    One head reads all members, or each member has its own. mask: bool [V], tokens that count. ValueError when the
    vocabularies differ or the mask does not fit.
    """

    def __init__(
        self,
        heads: Sequence[Head],
        length: int,
        *,
        mask: Array | None,
        device: str,
        js: bool,
        block: Block | None,
    ) -> None:
        self.device = torch.device(device)
        self.heads = [h.to(device) for h in heads]
        self.vocab, self.length = heads[0].vocab, length
        if any(h.vocab != self.vocab for h in heads):
            raise ValueError(f"lens: vocabularies of {[h.vocab for h in heads]} logits do not compare")
        plan = block or usual_block(self.device.type)
        self.js = js and self.length > 1
        self.chains = plan.chains(self.length, self.vocab, self.js)
        self.tile = min(plan.tile, self.vocab)
        self.edges = [(a, min(a + self.tile, self.vocab)) for a in range(0, self.vocab, self.tile)]
        self.dropped = self._dropped(mask)
        self.work: list[Tensor] = []

    def _dropped(self, mask: Array | None) -> list[Tensor]:
        if mask is None:
            return []
        keep = as_tensor(mask)
        if keep.dtype != torch.bool or keep.shape != (self.vocab,) or not keep.any():
            raise ValueError(f"lens: mask must be boolean, one per token ({self.vocab}), and keep at least one")
        return [(~keep[a:b]).nonzero().flatten().to(self.device) for a, b in self.edges]

    def blocks(self, count: int, progress: Progress | None, per_token: int = 1) -> Iterator[slice]:
        """Slices of `count` chains to run; after each, `progress` gets the number of whole tokens done."""
        step = min(self.chains, count)
        tile = self.length * step * self.tile
        kept = self.length * step * self.vocab if self.js else tile
        self.work = [torch.empty(size, device=self.device) for size in (tile, kept, tile if self.js else 0)]
        for start in range(0, count, max(step, 1)):
            stop = min(start + step, count)
            yield slice(start, stop)
            if progress is not None:
                progress(stop // per_token)

    @torch.no_grad()
    def run(self, resid: Sequence[Tensor], target: Tensor | None = None) -> dict[str, Tensor]:
        """Columns [n, K] of one block (js_next [n, K-1]); resid: per head [n, members, d], target: int64 [n] or None.

        p_target and rank_target come only with a target that has a token at all, and are read by the first head.
        """
        normed = [head.normed(r) for head, r in zip(self.heads, resid, strict=True)]
        if target is not None and not (target >= 0).any():
            target = None
        score = None if target is None else self.heads[0].score(normed[0], target.clamp_min(0))
        sums, top1 = self._sweep(normed, target, score)
        result = merge(sums) | {"top1": top1}
        if target is not None and score is not None:
            known = (target >= 0).unsqueeze(1)
            result["p_target"] = torch.where(known, (score - result["lse"]).exp(), math.nan)
            result["rank_target"] = torch.where(known, 1 + sums[:, ABOVE].sum(0), 0)
        if self.js:
            result["js_next"] = self._js(sums[:, PEAK], result["lse"], result["entropy"])
        return result

    def _sweep(self, normed: Sequence[Tensor], target: Tensor | None, score: Tensor | None) -> tuple[Tensor, Tensor]:
        """First sweep: sums [tiles, 6, n, K], and each row's argmax [n, K]."""
        n = len(normed[0])
        sums = torch.zeros(len(self.edges), 6, n, self.length, device=self.device)
        best = torch.full((n * self.length,), -math.inf, device=self.device)
        top1 = torch.zeros(n * self.length, dtype=torch.int64, device=self.device)
        owners = self._owners(target)
        for i, (a, b) in enumerate(self.edges):
            z, e = self._tile(0, i, n), self._tile(1, i, n)
            self._project(normed, a, b, z)
            if self.dropped and len(self.dropped[i]):
                z.index_fill_(-1, self.dropped[i], DROPPED)
            if score is not None:
                if i in owners:
                    # The same value in the tile as in the comparison: rounding must not rank a token above itself.
                    rows, column = owners[i]
                    z[rows, :, column] = score[rows]
                torch.sum(torch.gt(z, score.unsqueeze(-1), out=e), -1, out=sums[i, ABOVE])
            peak = torch.amax(z, -1, out=sums[i, PEAK]).view(-1)
            better = (peak > best).nonzero().squeeze(1)
            top1[better] = z.view(-1, b - a)[better].argmax(-1) + a
            torch.maximum(best, peak, out=best)
            reduce(z, e, sums[i])
        return sums, top1.view(n, self.length)

    def _owners(self, target: Tensor | None) -> dict[int, tuple[list[int], list[int]]]:
        """Tile -> (rows whose target is in it, the target's column there)."""
        found: dict[int, tuple[list[int], list[int]]] = {}
        for row, token in enumerate([] if target is None else target.tolist()):
            if token >= 0:
                rows, columns = found.setdefault(token // self.tile, ([], []))
                rows.append(row)
                columns.append(token % self.tile)
        return found

    def _project(self, normed: Sequence[Tensor], a: int, b: int, z: Tensor) -> None:
        """Logits of the tokens a..b into z [n, K, b - a]."""
        if len(normed) == 1:
            self.heads[0].project(normed[0].flatten(0, 1), a, b, out=z.flatten(0, 1))
        else:
            for k, (head, h) in enumerate(zip(self.heads, normed, strict=True)):
                head.project(h.squeeze(1), a, b, out=z[:, k])

    def _tile(self, which: int, i: int, n: int) -> Tensor:
        """Work memory [n, K, v] of tile i: 0 logits, 1 exponentials (a place for each tile if JS needs them), 2 scratch."""
        a, b = self.edges[i]
        rows = n * self.length
        start = rows * a if which == 1 and self.js else 0
        return self.work[which][start : start + rows * (b - a)].view(n, self.length, b - a)

    def _js(self, peak: Tensor, lse: Tensor, entropy: Tensor) -> Tensor:
        """Second sweep: JS of neighbours p, q in the chain = H((p + q) / 2) - (H(p) + H(q)) / 2, [n, K-1]."""
        n = len(lse)
        weight = (peak - lse - math.log(2.0)).exp().float().unsqueeze(-1)
        total = torch.zeros(n, self.length - 1, dtype=torch.float64, device=self.device)
        for i in range(len(self.edges)):
            half, e, scratch = (self._tile(which, i, n) for which in range(3))
            torch.mul(e, weight[i], out=half)
            middle = torch.add(half[:, 1:], half[:, :-1], out=scratch[:, 1:]).clamp_min_(1e-30)  # no log 0
            total -= torch.log(middle, out=half[:, 1:]).mul_(middle).sum(-1)
        return (total - (entropy[:, 1:] + entropy[:, :-1]) / 2).clamp(0.0, math.log(2.0))


def reduce(z: Tensor, e: Tensor, sums: Tensor) -> None:
    """Reduce a tile of logits z [n, K, v], given its peaks, to sums [6, n, K]; leaves exp(z - peak) in e.

    One small matrix product per chain holds every sum over e_j * z_k; it needs no scratch and beats three separate
    multiply-and-sum passes also where most of it goes unused (K = 32).
    """
    z.sub_(sums[PEAK].unsqueeze(-1))
    # exp2 is vectorised on every processor; exp goes through a library that is slow on some.
    torch.clamp(z, min=FLOOR, out=e).mul_(LOG2_E).exp2_()
    torch.sum(e, -1, out=sums[MASS])
    cross = torch.bmm(e, z.transpose(1, 2))
    sums[OWN] = cross.diagonal(dim1=1, dim2=2)
    sums[TO_LAST] = cross[:, :, -1]
    sums[OF_LAST] = cross[:, -1]


def merge(sums: Tensor) -> dict[str, Tensor]:
    """Sums of all tiles [tiles, 6, n, K] to float64 columns [n, K]: lse, entropy, and KL to and from the chain's last.

    The three means are E_p[z_p], E_p[z_last] and E_last[z_p], so that KL(p || q) = E_p[z_p - z_q] - lse_p + lse_q.
    """
    peak, mass, own, to_last, of_last, _ = sums.double().unbind(1)
    top = peak.amax(0)
    scale = (peak - top).exp()
    total = (scale * mass).sum(0)
    lse = top + total.log()
    own = (scale * (own + mass * peak)).sum(0) / total
    to_last = (scale * (to_last + mass * peak[..., -1:])).sum(0) / total
    of_last = (scale[..., -1:] * (of_last + mass[..., -1:] * peak)).sum(0) / total[:, -1:]
    entropy = lse - own
    return {
        "lse": lse,
        "entropy": entropy.clamp_min(0.0),
        "kl_layer_final": (lse[:, -1:] - to_last - entropy).clamp_min(0.0),
        "kl_final_layer": (lse - of_last - entropy[:, -1:]).clamp_min(0.0),
    }


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
    chains = _StreamingSoftmax([head], boundaries, mask=mask, device=device, js=js_next, block=block)
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
    chains = _StreamingSoftmax([head_pt, head_it], 2, mask=mask, device=device, js=True, block=block)
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
