"""Reading a model's insides during one forward: hooks that gather the valid tokens of a batch, layer by layer."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from ..store.schema import SITES
from .model import Model
from .structure import first_tensor

LOGIT_ROWS = 1 << 24  # elements of logits computed at a time
CACHED = 1 << 20  # elements of logits reduced at a time on a CPU: they stay in its cache through all passes


class Batch:
    """Right-padded token ids of some sequences and the flat indices of their real tokens."""

    def __init__(self, sequences: Sequence[np.ndarray], pad: int, device: torch.device):
        width = max(len(row) for row in sequences)
        ids = torch.full((len(sequences), width), pad, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, sequence in enumerate(sequences):
            ids[row, : len(sequence)] = torch.from_numpy(np.asarray(sequence, dtype=np.int64))
            mask[row, : len(sequence)] = 1
        self.ids, self.mask = ids.to(device), mask.to(device)
        self.positions = torch.arange(width, device=device).expand_as(self.ids)
        self.valid = torch.nonzero(mask.reshape(-1)).squeeze(1).to(device)
        self.lengths = [len(row) for row in sequences]

    @property
    def n_tokens(self) -> int:
        """Real tokens in the batch."""
        return len(self.valid)


@contextmanager
def gather(model: Model, batch: Batch, out: dict[str, torch.Tensor]) -> Iterator[None]:
    """Fill `out` while the model runs inside the block.

    `out["resid"]` is float32 [n, L+1, d] (boundary 0 = what enters block 0, l+1 = what leaves block l) and
    `out["mlp_out"]` float32 [n, L, d], n the real tokens of the batch in order; bfloat16 is widened exactly.
    """

    def keep(name: str, index: int, value: torch.Tensor) -> None:
        out[name][:, index].copy_(value.reshape(-1, value.shape[-1]).index_select(0, batch.valid))

    def on_input(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        keep("resid", 0, args[0] if args else kwargs["hidden_states"])

    handles = []
    try:
        if "resid" in out:
            handles.append(model.parts.blocks[0].register_forward_pre_hook(on_input, with_kwargs=True))
        for name, modules, shift in (("resid", model.parts.blocks, 1), ("mlp_out", model.parts.mlps, 0)):
            for index, module in enumerate(modules if name in out else []):
                handles.append(
                    module.register_forward_hook(
                        lambda _m, _a, value, n=name, i=index + shift: keep(n, i, first_tensor(value))
                    )
                )
        yield
    finally:
        for handle in handles:
            handle.remove()


def make_room(sizes: dict[str, tuple[int, ...]], tokens: int) -> dict[str, torch.Tensor]:
    """Buffers [tokens, layers, d] for the sites of a batch, layer by layer in memory as the model fills them."""
    wanted = {name: size for name, size in sizes.items() if name in SITES}
    return {name: torch.empty((layers, tokens, d)).transpose(0, 1) for name, (layers, d) in wanted.items()}


@torch.no_grad()
def forward(
    model: Model, batch: Batch, sizes: dict[str, tuple[int, ...]], room: dict[str, torch.Tensor] | None = None
) -> dict[str, np.ndarray]:
    """Run one batch and return the variables of `sizes` for its real tokens: float32 (int32 for ids) [n, ...].

    `room` (from `make_room`) is written into and returned in part, so that a loop touches no new memory: use the arrays
    before the next call.
    """
    room = room or make_room(sizes, batch.n_tokens)
    out = {name: tensor[: batch.n_tokens] for name, tensor in room.items()}
    final: list[torch.Tensor] = []
    last = model.parts.blocks[-1].register_forward_hook(lambda _m, _a, value: final.append(first_tensor(value)))
    try:
        with gather(model, batch, out):
            # One position of logits: the rest is computed below, for real tokens only and in slices.
            model.hf(
                input_ids=batch.ids,
                attention_mask=batch.mask,
                position_ids=batch.positions,
                use_cache=False,
                logits_to_keep=1,
            )
    finally:
        last.remove()
    arrays = {name: tensor.numpy() for name, tensor in out.items()}
    if any(name in sizes for name in ("logits", "topk_id")):
        hidden = final[0].reshape(-1, final[0].shape[-1]).index_select(0, batch.valid)
        arrays |= _logits(model, hidden, sizes)
    return arrays


def _logits(model: Model, hidden: torch.Tensor, sizes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    rows = max(1, LOGIT_ROWS // model.head.vocab)
    few = max(16, CACHED // model.head.vocab) if hidden.device.type == "cpu" else rows
    parts: list[dict[str, torch.Tensor]] = []
    for start in range(0, len(hidden), rows):
        logits = model.logits(hidden[start : start + rows])
        if "logits" in sizes:
            parts.append({"logits": logits.float().cpu()})
        else:
            parts += [_summary(part.float(), sizes["topk_id"][0]) for part in logits.split(few)]
    return {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}


def _summary(logits: torch.Tensor, k: int) -> dict[str, torch.Tensor]:
    """The k largest of each row, descending, and its log-sum-exp."""
    value, index = top_k(logits, k)
    return {"topk_id": index.int().cpu(), "topk_logit": value.cpu(), "logsumexp": torch.logsumexp(logits, dim=-1).cpu()}


def top_k(logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Values and ids of the k largest of each row [n, V], descending, as torch.topk, two to four times faster on a CPU.

    The vocabulary is dealt into groups: the k largest lie in the k groups with the largest maxima. A maximum over groups
    is one pass at memory speed, and the slow selection sees about 2 sqrt(k V) candidates instead of V.
    """
    rows, vocab = logits.shape
    size = int((vocab / k) ** 0.5)
    if size < 2:
        value, index = logits.topk(k, dim=-1)
        return value, index
    columns = vocab // size  # members of a group lie this far apart; ids that do not divide are candidates anyway
    best = logits[:, : size * columns].unflatten(1, (size, columns)).amax(1).topk(k, dim=-1).indices
    members = torch.arange(size, device=logits.device)[:, None] * columns
    rest = torch.arange(size * columns, vocab, device=logits.device).expand(rows, -1)
    candidates = torch.cat([(best[:, None, :] + members).flatten(1), rest], dim=1)
    value, place = logits.gather(1, candidates).topk(k, dim=-1)
    return value, candidates.gather(1, place)


def pad_id(tokenizer: Any) -> int:
    """A valid id to fill padding with; masked and to the right, so that it can reach no real token."""
    for candidate in (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id):
        if candidate is not None:
            return int(candidate)
    return 0
