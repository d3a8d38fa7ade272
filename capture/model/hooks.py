"""Reading a model's insides during one forward: hooks that copy real tokens to where they are kept, layer by layer."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...store.core.schema import SITES, VARIABLES
from .load import Model
from .sites import inside
from .trace import first_tensor, hidden_input


class Batch:
    """Right-padded sequences, and the flat slots of the tokens whose values are wanted: all real ones, or those of `chosen`.

    `chosen` has one bool array per sequence. With `state` [batch, width, d] the model starts from hidden states in place of
    token ids (edit.start).
    """

    def __init__(
        self,
        sequences: Sequence[np.ndarray],
        pad: int,
        device: torch.device,
        chosen: Sequence[np.ndarray] | None = None,
        state: Tensor | None = None,
    ):
        width = max(len(row) for row in sequences)
        ids = torch.full((len(sequences), width), pad, dtype=torch.long)
        mask = torch.zeros_like(ids)
        wanted = np.zeros(ids.shape, dtype=bool)
        for row, sequence in enumerate(sequences):
            ids[row, : len(sequence)] = torch.from_numpy(np.asarray(sequence, dtype=np.int64))
            mask[row, : len(sequence)] = 1
            wanted[row, : len(sequence)] = True if chosen is None else chosen[row]
        self.ids, self.mask = ids.to(device), mask.to(device)
        self.positions = torch.arange(width, device=device).expand_as(self.ids)
        self.slots, self.wanted = np.flatnonzero(wanted), wanted
        self.valid = torch.from_numpy(self.slots).to(device)
        self.lengths = [len(row) for row in sequences]
        self.given = {"input_ids": self.ids} if state is None else {"inputs_embeds": state.to(device, copy=True)}

    @property
    def beside(self) -> dict[str, Any]:
        """What a forward gets beside the tokens: of logits one position, since they are computed for real tokens only."""
        return {"attention_mask": self.mask, "position_ids": self.positions, "use_cache": False, "logits_to_keep": 1}

    @property
    def n_tokens(self) -> int:
        """Wanted tokens in the batch."""
        return len(self.slots)


@dataclass(frozen=True)
class TokenSpan:
    """Where some tokens of a batch go: tokens start..stop of sequence `row` into `buffers`, from position `low` on."""

    row: int
    start: int
    stop: int
    buffers: dict[str, Tensor]
    low: int


class ActivationSink:
    """Copies the values of one batch to its parts; from a GPU on a stream of its own, while the model runs.

    Blocks may be on several devices. `wait` before reading the buffers.
    """

    def __init__(self, batch: Batch, parts: Sequence[TokenSpan], side: bool = True):
        self.parts = parts
        self._shape, width = batch.ids.shape, batch.ids.shape[1]
        self._flat = np.searchsorted(batch.slots, [part.row * width + part.start for part in parts]).tolist()
        self._side = side
        self._events: dict[torch.device, Any] = {}

    def wait(self) -> None:
        """Return when all copies have arrived."""
        for event in self._events.values():
            event.synchronize()

    def padded(self, name: str, index: int, value: Tensor) -> None:
        """Keep layer `index` of a site from values [batch, width, *rest], or the same in one row of tokens."""
        rest = [part.buffers[name].shape[2:] for part in self.parts[:1]]
        value = value.reshape(*self._shape, *(rest or [value.shape[-1:]])[0])
        self._copy(
            [part.buffers[name][part.low : part.low + part.stop - part.start, index] for part in self.parts],
            [value[part.row, part.start : part.stop] for part in self.parts],
            value,
        )

    def flat(self, name: str, start: int, value: Tensor) -> None:
        """Keep a variable of the wanted tokens start, start + 1, ... of the batch: value [n, ...]."""
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
        # The block may add in place to what it gave while the copy is still under way.
        sources = [source.clone() for source in sources]
        stream = _side_stream(value.device)
        stream.wait_stream(torch.cuda.current_stream(value.device))
        with torch.cuda.stream(stream):
            for target, source in zip(targets, sources, strict=True):
                target.copy_(source, non_blocking=True)
            self._events[value.device] = stream.record_event()
        for source in sources:
            source.record_stream(stream)


_streams: dict[torch.device, Any] = {}


def _side_stream(device: torch.device) -> Any:
    if device not in _streams:
        _streams[device] = torch.cuda.Stream(device)
    return _streams[device]


@contextmanager
def at_boundary(
    blocks: Sequence[nn.Module], boundary: int, first: int, change: Callable[[Tensor], Tensor | None]
) -> Iterator[None]:
    """Call `change` with the hidden states that pass a boundary; what it returns, unless None, takes their place.

    Boundary l is the output of block l-1; `first`, where the model begins, is the input of that block.
    """

    def on_input(_module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        name, value = hidden_input(args, kwargs)
        new = change(value)
        if new is None:
            return None
        return ((new, *args[1:]), kwargs) if name is None else (args, {**kwargs, name: new})

    if boundary == first:
        handle = blocks[boundary].register_forward_pre_hook(on_input, with_kwargs=True)
    else:
        handle = blocks[boundary - 1].register_forward_hook(on_output(change))
    try:
        yield
    finally:
        handle.remove()


def on_output(change: Callable[[Tensor], Tensor | None]) -> Callable[..., Any]:
    """A forward hook that calls `change` with a module's hidden states and puts what it returns, unless None, in their
    place."""

    def hook(_module: nn.Module, _args: tuple, value: Any) -> Any:
        new = change(first_tensor(value))
        return new if new is None or not isinstance(value, tuple) else (new, *value[1:])

    return hook


@contextmanager
def at_outputs(modules: Sequence[nn.Module], change: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Call `change` with what these modules return, summed; what it returns, unless None, becomes their sum.

    With several the one that runs last makes up the difference.
    """
    held: list[Tensor] = []

    def on_one(value: Tensor) -> Tensor | None:
        if len(held) < len(modules) - 1:
            held.append(value.clone())  # the model may change it in place
            return None
        others = [other.reshape(value.shape) for other in held]
        held.clear()
        new = change(sum(others, value))
        return new if new is None or not others else new - sum(others[1:], others[0])

    handles = [module.register_forward_hook(on_output(on_one)) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def forward_as(module: nn.Module, function: Callable[..., Any]) -> Iterator[None]:
    """Make a module compute `function` in place of its own forward; its hooks go on."""
    own, before = "forward" in vars(module), module.forward
    module.forward = function
    try:
        yield
    finally:
        if own:  # accelerate's, or that of a module which stands in for another already
            module.forward = before
        else:
            del module.forward


@contextmanager
def gather(model: Model, sink: Any, kept: dict[str, dict[int, int]]) -> Iterator[None]:
    """Send what the model computes inside the block to the `padded` of an ActivationSink, or of what stands in for one.

    `kept[site]` maps what is kept to its place in the buffers: boundary -> place for "resid" (boundary 0 = what enters
    block 0, l+1 = what leaves block l), block -> place for the other sites.
    """

    with ExitStack() as stack:
        for name, places in kept.items():
            for index, place in places.items():
                keep = partial(sink.padded, name, place)
                if what := SITES[name].inside:
                    stack.enter_context(inside(model.parts, what, index, keep))
                elif branch := SITES[name].branch:
                    stack.enter_context(at_outputs(getattr(model.parts, branch)(index).outs, keep))
                else:
                    stack.enter_context(at_boundary(model.parts.blocks, index, model.parts.first, keep))
        yield


def places(sizes: dict[str, tuple[int, ...]], boundaries: Sequence[int], first: int = 0) -> dict[str, dict[int, int]]:
    """For `gather`: which boundaries and blocks (`first` and on) the sites among `sizes` keep, and where."""
    found = {name: {first + place: place for place in range(sizes[name][0])} for name in sizes if name in SITES}
    at = {boundary: place for place, boundary in enumerate(boundaries)}
    return {name: kept if SITES[name].branch else at for name, kept in found.items()}


def buffer(
    name: str, size: tuple[int, ...], tokens: int, dtype: torch.dtype, pin: bool = False, device: Any = "cpu"
) -> Tensor:
    """Memory for a variable of `tokens` tokens, [tokens, *size]; a site is stored layer by layer, as the model fills it.

    Sites keep bfloat16 as it is (half the memory of the float32 on disk); everything else has its dtype on disk. What no block
    fills is NaN.
    """
    if name not in SITES:
        return torch.empty((tokens, *size), dtype=getattr(torch, VARIABLES[name].dtype), pin_memory=pin)
    kept = torch.bfloat16 if dtype == torch.bfloat16 and not VARIABLES[name].derived else torch.float32
    found = torch.empty((size[0], tokens, *size[1:]), dtype=kept, pin_memory=pin, device=device)
    return (found.fill_(torch.nan) if SITES[name].gaps else found).transpose(0, 1)


def block_of(tensor: Tensor) -> np.ndarray:
    """A buffer as the store takes it: NumPy, with uint16 for the bits of bfloat16."""
    return tensor.view(torch.int16).numpy().view(np.uint16) if tensor.dtype == torch.bfloat16 else tensor.numpy()


def whole(batch: Batch, buffers: dict[str, Tensor]) -> list[TokenSpan]:
    """All wanted tokens of a batch, one after the other: a part for each run of them."""
    parts, low = [], 0
    for row, wanted in enumerate(batch.wanted):
        edges = np.flatnonzero(np.diff(wanted, prepend=False, append=False)).tolist()
        for start, stop in zip(edges[::2], edges[1::2], strict=True):
            parts.append(TokenSpan(row, start, stop, buffers, low))
            low += stop - start
    return parts


def pad_id(model: Model) -> int:
    """An id with an embedding to fill padding with; masked and beside the text, so that it can reach no real token."""
    tokenizer, rows = model.tokenizer, model.hf.get_input_embeddings().weight.shape[0]
    candidates = (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id)
    return next((int(one) for one in candidates if one is not None and 0 <= one < rows), 0)
