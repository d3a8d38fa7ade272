"""One forward of a batch: hooks keep the sites and the entropies of attention, logits are reduced in slices."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...analyze.core.arrays import LOG2_E
from ...analyze.lens.logit_lens import lens
from ...analyze.lens.topk import top_k
from ...analyze.residual.delta import delta
from ...store.core.errors import LakeError
from ...store.core.schema import SITES, scalars
from ..model.hooks import ActivationSink, Batch, TokenSpan, buffer, gather, places, whole
from ..model.load import Model
from ..model.trace import accepted, first_tensor
from .batching import LOGIT_ROWS, stages

CACHED = 1 << 20  # elements of logits reduced at a time on a CPU: they stay in its cache through all passes


@torch.no_grad()
def read(
    model: Model, batch: Batch, sizes: dict[str, tuple[int, ...]], boundaries: Sequence[int], parts: Sequence[TokenSpan]
) -> ActivationSink:
    """Run one batch and send the variables of `sizes` to `parts`; `wait` for the sink before reading them."""
    sink = ActivationSink(batch, parts)
    logits = bool({"logits", "topk_id"} & set(sizes))
    stage = _OnDeviceScalars(model, batch, sizes) if stages(sizes) else None
    target, kept = (stage.sink, stage.places) if stage else (sink, places(sizes, boundaries, model.parts.first))
    send = model.played.send if model.played else partial(_run, model)
    final = send(batch, target, kept, logits)
    if stage:
        for name, value in stage.values(boundaries).items():
            sink.flat(name, 0, value)
    if final is not None:
        hidden = final.reshape(-1, final.shape[-1]).index_select(0, batch.valid.to(final.device))
        _logits(model, hidden, sizes, sink)
    return sink


def _run(
    model: Model, batch: Batch, sink: ActivationSink, kept: dict[str, dict[int, int]], logits: bool
) -> Tensor | None:
    """One forward: the sites of `kept` go to the sink; for logits, what leaves the last block is returned."""
    final: list[Tensor] = []
    watch = (
        model.parts.blocks[-1].register_forward_hook(lambda _m, _a, value: final.append(first_tensor(value).clone()))
        if logits
        else None
    )
    try:
        with gather(model, sink, kept):
            model.hf(**accepted(model.hf, {**batch.given, **batch.beside}))
    finally:
        if watch:
            watch.remove()
    return final[0] if logits else None


def forward(model: Model, batch: Batch, sizes: dict[str, tuple[int, ...]], boundaries: Sequence[int]) -> dict[str, Any]:
    """Run one batch and return the variables of `sizes` for its wanted tokens, [n, ...], sites as float32."""
    buffers = {name: buffer(name, size, batch.n_tokens, model.dtype) for name, size in sizes.items()}
    read(model, batch, sizes, boundaries, whole(batch, buffers)).wait()
    return {name: tensor.float().numpy() if name in SITES else tensor.numpy() for name, tensor in buffers.items()}


def _logits(model: Model, hidden: Tensor, sizes: dict[str, tuple[int, ...]], sink: ActivationSink) -> None:
    rows = max(1, LOGIT_ROWS // model.head.vocab)
    few = max(16, CACHED // model.head.vocab) if hidden.device.type == "cpu" else rows
    for start in range(0, len(hidden), rows):
        logits = model.logits(hidden[start : start + rows])
        if "logits" in sizes:
            sink.flat("logits", start, logits.float())
            continue
        found = [_summary(part.to(torch.float32, copy=True), sizes["topk_id"][0]) for part in logits.split(few)]
        for name in found[0]:
            sink.flat(name, start, torch.cat([part[name] for part in found]))


def _summary(logits: Tensor, k: int) -> dict[str, Tensor]:
    """The k largest of each row, descending, and its log-sum-exp; `logits` (float32) is used up."""
    value, index = top_k(logits, k)
    peak = value[:, :1]
    # exp2 is vectorised everywhere, exp not; below e^-80 it would run into denormals, which are slow.
    mass = logits.sub_(peak).clamp_(min=-80.0).mul_(LOG2_E).exp2_().sum(-1)
    return {"topk_id": index.int(), "topk_logit": value, "logsumexp": mass.log_().add_(peak[:, 0])}


class _OnDeviceScalars:
    """All boundaries of one batch on the unembedding's device, and the lens and delta columns computed from them there."""

    def __init__(self, model: Model, batch: Batch, sizes: dict[str, tuple[int, ...]]):
        self._model, self._batch, self._sizes = model, batch, sizes
        layers, width = model.n_layers, model.head.d_model
        lengths = {"boundary": layers + 1, "layer": layers, "d_model": width}
        shapes = {
            name: sizes[name] if name in sizes and site.branch else site.shape(lengths)
            for name, site in SITES.items()
            if name == "resid" or name in sizes or (name == "mlp_out" and "delta" in stages(sizes))
        }
        self._held = {
            name: buffer(name, shape, batch.n_tokens, model.dtype, device=model.head_device)
            for name, shape in shapes.items()
        }
        self.places = places(shapes, range(layers + 1))
        self.sink = ActivationSink(batch, whole(batch, self._held), side=False)

    def values(self, boundaries: Sequence[int]) -> dict[str, Tensor]:
        """The variables of the batch's real tokens: scalars [n, L+1] and what is kept of the sites."""
        model, device = self._model, str(self._held["resid"].device)
        found: dict[str, Tensor] = {}
        if "lens" in stages(self._sizes):
            found |= _named("lens", lens(model.head_on_device, self._held["resid"], self._targets(), device=device))
        if "delta" in stages(self._sizes):
            columns = delta(
                self._held["resid"],
                self._held["mlp_out"],
                post_norm=model.post_norm,
                parallel=model.parts.parallel,
                device=device,
            )
            found |= _named("delta", columns)
        for name in SITES:
            if name in self._sizes:
                held = self._held[name]
                found[name] = held if SITES[name].branch else held[:, list(boundaries)]
        return found

    def _targets(self) -> Tensor:
        """The token that follows each real token in its sequence, -1 at the end."""
        ids = torch.cat([self._batch.ids, torch.full_like(self._batch.ids[:, :1], -1)], dim=1)[:, 1:]
        ends = torch.as_tensor(self._batch.lengths, device=ids.device)[:, None] - 1
        return ids.masked_fill(self._batch.positions >= ends, -1).reshape(-1)[self._batch.valid].cpu()


def _named(table: str, columns: dict[str, np.ndarray]) -> dict[str, Tensor]:
    return {variable: torch.from_numpy(columns[name]) for name, variable in scalars(table).items()}


KERNEL = "sdpa"


@contextmanager
def watch(model: Model, ends: np.ndarray, names: Sequence[str]) -> Iterator[dict[str, np.ndarray]]:
    """Collect the per-prompt variables of one batch, [batch, layer, head], float32; nothing when none is named."""
    found: dict[str, np.ndarray] = {}
    if "attn_entropy" not in names:
        yield found
        return
    if model.played:
        yield found
        found["attn_entropy"] = model.played.entropies()
        return
    with row_entropies(model, ends) as layers:
        yield found
    found["attn_entropy"] = torch.stack([layers[i].cpu() for i in range(len(layers))], dim=1).numpy()


@contextmanager
def row_entropies(model: Model, ends: np.ndarray) -> Iterator[dict[int, Tensor]]:
    """Collect block -> entropy [batch, heads] in nats of the attention row of token `ends[i]` of each sequence.

    The kernel that every Hugging Face decoder calls with its queries and keys is wrapped: it computes as before, and the
    one row is softmaxed once more beside it. Source: METHODS 4, row L9.
    """
    from transformers.modeling_utils import (
        ALL_ATTENTION_FUNCTIONS,
    )  # takes two seconds, and few captures want entropies

    mixers = enumerate(model.parts.mixed)
    wholes = [(layer, whole) for layer, branches in mixers for branch in branches for whole in branch.whole]
    layer_of = {module: layer for layer, whole in wholes for module in whole.modules()}
    kernel, found = ALL_ATTENTION_FUNCTIONS[KERNEL], {}

    def attend(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        if module in layer_of:
            found[layer_of[module]] = entropy_of_rows(query, key, mask, ends, kwargs.get("scaling"))
        return kernel(module, query, key, value, mask, *args, **kwargs)

    ALL_ATTENTION_FUNCTIONS[KERNEL] = attend
    try:
        yield found
    finally:
        del ALL_ATTENTION_FUNCTIONS[KERNEL]  # the library's own shows again
    if len(found) != (expected := sum(map(bool, model.parts.mixed))):
        raise LakeError(
            f"{model.name}: {len(found)} of {expected} attention modules call the common kernel; attn_entropy"
            " can't be captured for this architecture: leave the site out"
        )


def entropy_of_rows(query: Tensor, key: Tensor, mask: Tensor | None, ends: np.ndarray, scale: float | None) -> Tensor:
    """Entropy [batch, heads] in nats of softmax(q k / sqrt(d)) for one row of each sequence.

    query [batch, heads, T, d], key [batch, key heads, T, d], mask bool (True: attend) or additive [batch, 1, T, T], None
    for plain causal attention; float32.
    """
    at = torch.as_tensor(ends, device=query.device)
    batch = torch.arange(len(at), device=query.device)
    q = query[batch, :, at].float()
    k = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1).float()
    scores = torch.einsum("bhd,bhtd->bht", q, k) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if mask is None:
        scores.masked_fill_((torch.arange(key.shape[2], device=query.device) > at[:, None])[:, None], -torch.inf)
    else:
        row = mask.expand(len(at), *mask.shape[1:])[batch, :, at][..., : key.shape[2]]
        scores = scores.masked_fill(~row, -torch.inf) if row.dtype == torch.bool else scores + row.float()
    return torch.special.entr(scores.softmax(-1)).sum(-1)
