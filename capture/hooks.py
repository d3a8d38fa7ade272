"""Reading a model's insides during one forward: hooks that copy real tokens to where they are kept, layer by layer."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..store.schema import SITES, VARIABLES
from .model import Model
from .structure import first_tensor


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


@dataclass(frozen=True)
class Part:
    """Where some tokens of a batch go: tokens start..stop of sequence `row` into `buffers`, from position `low` on."""

    row: int
    start: int
    stop: int
    buffers: dict[str, Tensor]
    low: int


class Sink:
    """Copies the values of one batch to its parts; from a GPU on a stream of its own, while the model goes on.

    Blocks may lie on several devices. `wait` before reading the buffers.
    """

    def __init__(self, batch: Batch, parts: Sequence[Part], side: bool = True):
        self.parts = parts
        starts = np.concatenate([[0], np.cumsum(batch.lengths)])
        self._flat = [int(starts[part.row]) + part.start for part in parts]
        self._side = side
        self._events: dict[torch.device, Any] = {}

    def wait(self) -> None:
        """Return when all copies have arrived."""
        for event in self._events.values():
            event.synchronize()

    def padded(self, name: str, index: int, value: Tensor) -> None:
        """Keep layer `index` of a site from hidden states [batch, width, d]."""
        self._copy(
            [part.buffers[name][part.low : part.low + part.stop - part.start, index] for part in self.parts],
            [value[part.row, part.start : part.stop] for part in self.parts],
            value,
        )

    def flat(self, name: str, start: int, value: Tensor) -> None:
        """Keep a variable of the real tokens start, start + 1, ... of the batch: value [n, ...]."""
        targets, sources = [], []
        for part, first in zip(self.parts, self._flat, strict=True):
            low, high = max(first, start), min(first + part.stop - part.start, start + len(value))
            if low < high:
                targets.append(part.buffers[name][part.low + low - first : part.low + high - first])
                sources.append(value[low - start : high - start])
        self._copy(targets, sources, value)

    def _copy(self, targets: list[Tensor], sources: list[Tensor], value: Tensor) -> None:
        if not self._side or value.device.type != "cuda":
            for target, source in zip(targets, sources, strict=True):
                target.copy_(source)
            return
        stream = _side_stream(value.device)
        stream.wait_stream(torch.cuda.current_stream(value.device))
        with torch.cuda.stream(stream):
            for target, source in zip(targets, sources, strict=True):
                target.copy_(source, non_blocking=True)
            self._events[value.device] = stream.record_event()
        value.record_stream(stream)


_streams: dict[torch.device, Any] = {}


def _side_stream(device: torch.device) -> Any:
    if device not in _streams:
        _streams[device] = torch.cuda.Stream(device)
    return _streams[device]


@contextmanager
def gather(model: Model, sink: Sink, kept: dict[str, dict[int, int]]) -> Iterator[None]:
    """Send what the model computes inside the block to `sink`.

    `kept[site]` maps what is kept to its place in the buffers: boundary -> place for "resid" (boundary 0 = what enters
    block 0, l+1 = what leaves block l), block -> place for the other sites.
    """

    def on_input(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        sink.padded("resid", kept["resid"][0], args[0] if args else kwargs["hidden_states"])

    modules = {"resid": model.parts.blocks, "mlp_out": model.parts.mlps, "attn_out": model.parts.attns}
    handles = []
    try:
        for name, places in kept.items():
            for index, place in places.items():
                if name == "resid" and index == 0:
                    handles.append(model.parts.blocks[0].register_forward_pre_hook(on_input, with_kwargs=True))
                    continue
                module = modules[name][index - (name == "resid")]
                handles.append(
                    module.register_forward_hook(
                        lambda _m, _a, value, n=name, p=place: sink.padded(n, p, first_tensor(value))
                    )
                )
        yield
    finally:
        for handle in handles:
            handle.remove()


def places(sizes: dict[str, tuple[int, ...]], boundaries: Sequence[int]) -> dict[str, dict[int, int]]:
    """For `gather`: which boundaries and blocks the sites among `sizes` keep, and where."""
    found = {name: dict(enumerate(range(sizes[name][0]))) for name in sizes if name in SITES}
    if "resid" in found:
        found["resid"] = {boundary: place for place, boundary in enumerate(boundaries)}
    return found


def buffer(
    name: str, size: tuple[int, ...], tokens: int, dtype: torch.dtype, pin: bool = False, device: Any = "cpu"
) -> Tensor:
    """Memory for a variable of `tokens` tokens, [tokens, *size]; a site lies layer by layer, as the model fills it.

    Sites keep bfloat16 as it is (half the memory of the float32 on disk); everything else has its dtype on disk.
    """
    if name not in SITES:
        return torch.empty((tokens, *size), dtype=getattr(torch, VARIABLES[name].dtype), pin_memory=pin)
    kept = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
    return torch.empty((size[0], tokens, size[1]), dtype=kept, pin_memory=pin, device=device).transpose(0, 1)


def block_of(tensor: Tensor) -> np.ndarray:
    """A buffer as the store takes it: NumPy, with uint16 for the bits of bfloat16."""
    return tensor.view(torch.int16).numpy().view(np.uint16) if tensor.dtype == torch.bfloat16 else tensor.numpy()


def whole(batch: Batch, buffers: dict[str, Tensor]) -> list[Part]:
    """All real tokens of a batch, one after the other."""
    starts = np.concatenate([[0], np.cumsum(batch.lengths)])
    return [Part(row, 0, length, buffers, int(starts[row])) for row, length in enumerate(batch.lengths)]


def pad_id(tokenizer: Any) -> int:
    """A valid id to fill padding with; masked and to the right, so that it can reach no real token."""
    for candidate in (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id):
        if candidate is not None:
            return int(candidate)
    return 0
