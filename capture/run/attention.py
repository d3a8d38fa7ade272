"""Entropy of attention rows, taken while the model attends: no attention matrix is kept, nor another kernel used."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...store.core.errors import LakeError
from ..model.load import Model

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
