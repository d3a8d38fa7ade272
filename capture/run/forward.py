"""One forward of a batch: hooks keep the sites, logits are computed for real tokens only and reduced in slices."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...analyze.lens.streaming_softmax import LOG2_E
from ...analyze.lens.topk import top_k
from ...store.core.schema import SITES
from ..model.hooks import ActivationSink, Batch, TokenSpan, buffer, gather, places, whole
from ..model.load import Model
from ..model.trace import accepted, first_tensor
from .batching import LOGIT_ROWS, stages
from .on_device_scalars import OnDeviceScalars

CACHED = 1 << 20  # elements of logits reduced at a time on a CPU: they stay in its cache through all passes


@torch.no_grad()
def read(
    model: Model, batch: Batch, sizes: dict[str, tuple[int, ...]], boundaries: Sequence[int], parts: Sequence[TokenSpan]
) -> ActivationSink:
    """Run one batch and send the variables of `sizes` to `parts`; `wait` for the sink before reading them."""
    sink, final = ActivationSink(batch, parts), []
    logits = [name for name in ("logits", "topk_id") if name in sizes]
    watch = (
        model.parts.blocks[-1].register_forward_hook(lambda _m, _a, value: final.append(first_tensor(value).clone()))
        if logits
        else None
    )
    stage = OnDeviceScalars(model, batch, sizes) if stages(sizes) else None
    target, kept = (stage.sink, stage.places) if stage else (sink, places(sizes, boundaries, model.parts.first))
    try:
        with gather(model, target, kept):
            # One position of logits: the rest is computed below, for real tokens only and in slices.
            given = {
                "attention_mask": batch.mask,
                "position_ids": batch.positions,
                "use_cache": False,
                "logits_to_keep": 1,
            }
            model.hf(**accepted(model.hf, {**batch.given, **given}))
    finally:
        if watch:
            watch.remove()
    if stage:
        for name, value in stage.values(boundaries).items():
            sink.flat(name, 0, value)
    if logits:
        hidden = final[0].reshape(-1, final[0].shape[-1]).index_select(0, batch.valid.to(final[0].device))
        _logits(model, hidden, sizes, sink)
    return sink


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
