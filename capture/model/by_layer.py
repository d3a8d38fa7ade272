"""A model of which one block at a time is in memory: what stands around the blocks, and each block when its turn comes."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from ...store.core.catalog import ModelSpec
from ...store.core.errors import LakeError
from ..checkpoint.causes import cause, silent
from ..checkpoint.configs import DTYPES, config_for, explained, load_config, load_tokenizer, model_class
from ..checkpoint.extras import quantised_of
from ..checkpoint.loading import load_hf, probed
from .heads import find_top
from .hooks import at_boundary
from .load import Model, record_of
from .partial import cut_class, decoder_of, empty, keep_only, stack_of
from .structure import Structure
from .trace import Trace, accepted, first_tensor, random_states, random_tokens

LARGE = 1 << 20  # elements of a buffer from which on the check without weights takes no memory for it
aten = torch.ops.aten
# Products of weights and their shapes: the check without weights needs no numbers.
PRODUCTS: dict[Any, Any] = {
    aten.mm.default: lambda a, b, **_: a.new_zeros(a.shape[0], b.shape[1]),
    aten.addmm.default: lambda _, a, b, **__: a.new_zeros(a.shape[0], b.shape[1]),
    aten.bmm.default: lambda a, b, **_: a.new_zeros(*a.shape[:2], b.shape[2]),
    aten._grouped_mm.default: lambda a, b, *_, **__: a.new_zeros(a.shape[0], b.shape[2]),
}


@dataclass(frozen=True)
class _Blocks:
    """The blocks of a checkpoint, read one at a time.

    `shells` stand in for them in the model that is loaded: their input comes out again, in the form in which the class's blocks
    return theirs. `weights` and `largest` are bytes of all weights and of the largest block.
    """

    spec: ModelSpec
    device: str
    dtype: str
    attention: str
    stack: nn.ModuleList
    shells: tuple[nn.Module, ...]
    weights: int
    largest: int

    @contextmanager
    def loaded(self, index: int) -> Iterator[nn.Module]:
        """Put a block with its weights into the model while this lasts; of the files only its tensors are read."""
        kind = cut_class(self.spec, lambda whole: _keep_block(whole, index))
        block = stack_of(load_hf(self.spec, self.device, self.dtype, self.attention, kind=kind)[0])[index]
        self.stack[index] = block
        try:
            yield block
        finally:
            self.stack[index] = self.shells[index]


def load_frame(spec: ModelSpec, device: str, dtype: str, identity: dict[str, Any], attention: str = "sdpa") -> Model:
    """A checkpoint as a Model without the weights of its blocks, which its `blocks` read one at a time.

    That nothing but the residual passes from block to block is checked with the class's own code, on weights that take no
    memory; blocks, branches and head are checked as in `load_model`, each block when it is there. `identity` is that of
    `identify`. LakeError for a checkpoint or class that can't be run so, in one line.
    """
    config = load_config(spec)
    found = None if spec.gguf_file else quantised_of(spec, config_for(model_class(spec, config), config))
    if spec.gguf_file or (found and not found.dequantised):
        what = "a GGUF file is unpacked whole" if spec.gguf_file else "its weights stay packed"
        raise LakeError(f"model {spec.name}: --by-layer reads plain safetensors block by block, {what}: leave it out")
    whole = without_memory(spec, identity["dtype"])
    try:
        hf, notes = load_hf(spec, device, dtype, attention, kind=cut_class(spec, _keep_frame), whole=whole)
    except LakeError as error:
        about = f"model {spec.name}: "
        raise LakeError(f"{about}in parts, as --by-layer needs it: {str(error).removeprefix(about)}") from error
    returns = probed(spec, hf, lambda: _flow(hf, stack_of(whole)))
    stack, sizes = stack_of(hf), [weight_bytes(block) for block in stack_of(whole)]
    for block, count in zip(stack, returns, strict=True):
        block.forward = partial(_pass_on, returns=count)
    blocks = _Blocks(spec, device, dtype, attention, stack, tuple(stack), weight_bytes(whole), max(sizes))
    trace = probed(spec, hf, lambda: seen_from(hf, stack, random_states(hf.config.get_text_config().hidden_size)))
    top = probed(spec, hf, lambda: find_top(hf, trace, stack[-1]))
    nothing: list[Any] = [None] * len(stack)
    parts = Structure(list(stack), nothing, [()] * len(stack), top.norm, top.unembed, "", {}, 0, top.scale)
    weight: Any = top.unembed.weight
    tokenizer, head = load_tokenizer(spec), replace(top.head, unembed=weight.detach())  # no second copy yet
    record = record_of(identity, hf, tokenizer, len(stack), head, whole.num_parameters())
    return Model(spec, hf, tokenizer, parts, head, record, notes, blocks)


def seen_from(hf: Any, stack: nn.ModuleList, state: Tensor) -> Trace:
    """What follows the last block in a small forward, of the residual `state` that leaves it, [2, PROBE_TOKENS, d]."""
    last, given = len(stack) - 1, state.to(next(hf.parameters()).device, hf.dtype)
    with at_boundary(list(stack), last, last, lambda _: given.clone()):
        return Trace(hf, random_tokens(hf))


def without_memory(spec: ModelSpec, dtype: str) -> Any:
    """A checkpoint's Hugging Face module on torch's meta device, in a dtype; LakeError for a config that it can't be built
    from."""
    config = load_config(spec)
    kind: Any = model_class(spec, config)
    try:
        with torch.device("meta"), silent():
            return kind._from_config(config_for(kind, config), dtype=DTYPES[dtype])
    except Exception as error:  # whatever a class raises about its config is a message about that
        raise explained(spec, "build it from its config", error) from error


def weight_bytes(module: nn.Module) -> int:
    """Bytes of a module's weights, tied ones once."""
    return sum(p.numel() * p.element_size() for p in module.parameters())


def _keep_frame(hf: Any) -> None:
    """Leave the embedding, the head, and what of the decoder stands around the blocks."""
    for block in stack_of(hf):
        empty(block)
    keep_only(hf, {decoder_of(hf), hf.get_output_embeddings()})


def _keep_block(hf: Any, index: int) -> None:
    """Leave one block."""
    blocks = stack_of(hf)
    hf.all_tied_weights_keys = {}
    keep_only(hf, {blocks[index]}, also=set(blocks))


def _pass_on(hidden_states: Any = None, *_args: Any, returns: int, **_kwargs: Any) -> Any:
    """A shell's forward: its input, alone where `returns` is 0, else first in a tuple of that length."""
    value = first_tensor(hidden_states)
    return (value, *[None] * (returns - 1)) if returns else value


class _Flow(TorchDispatchMode):
    """Notes in which block each tensor is made. `crossing` is (maker, reader) of the first that another block reads.

    Products of matrices are zeros of their shape.
    """

    def __init__(self) -> None:
        super().__init__()
        self.inside: int | None = None
        self.crossing: tuple[int, int] | None = None
        self.made = WeakTensorKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        read = {self.made[value] for value in tree_leaves((args, kwargs)) if _known(value, self.made)}
        others = read - {self.inside}
        if self.inside is not None and others and not self.crossing:
            self.crossing = (max(others), self.inside)
        out = PRODUCTS[func](*args, **kwargs) if func in PRODUCTS else func(*args, **kwargs)
        maker = max(read, default=None) if self.inside is None else self.inside
        for value in tree_leaves(out) if maker is not None else ():
            if isinstance(value, Tensor):
                self.made[value] = maker
        return out


def _known(value: Any, made: WeakTensorKeyDictionary) -> bool:
    return isinstance(value, Tensor) and value in made


def _flow(hf: Any, hollow: nn.ModuleList) -> list[int]:
    """How many values each block returns (0: its hidden states alone), from a small forward of a frame with `hollow` blocks.

    LakeError unless each runs once, in turn, reads just what the one before it left, and no other tensor that one made.
    """
    stack, name = stack_of(hf), type(hf).__name__
    shells, flow = tuple(stack), _Flow()
    last: list[Tensor] = []
    returns: list[int] = []

    def enter(index: int, value: Tensor) -> Tensor:
        if index != len(returns) or (last and value is not last[0]):
            raise LakeError(
                f"{name}: --by-layer needs each block to read what the one before it left, once; block {index} does not: leave it"
                " out"
            )
        new = value.clone()
        flow.made.pop(new, None)  # the residual may pass
        flow.inside = index
        return new

    def leave(_module: nn.Module, _args: Any, output: Any) -> None:
        flow.inside = None
        last[:] = [first_tensor(output)]
        returns.append(len(output) if isinstance(output, tuple) else 0)

    device = next(hf.parameters()).device
    with ExitStack() as hooks, torch.no_grad():
        for index, block in enumerate(hollow):
            _fill(block, device)
            stack[index] = block
            hooks.enter_context(at_boundary(list(stack), index, index, partial(enter, index)))
            hooks.callback(block.register_forward_hook(leave).remove)
        try:
            with flow:
                hf(**accepted(hf, {**random_tokens(hf), "use_cache": False}))
        except LakeError:
            raise
        except Exception as error:
            raise LakeError(
                f"{name}: --by-layer can't check it without weights: {cause(error)}; leave it out"
            ) from error
        finally:
            for index, shell in enumerate(shells):
                stack[index] = shell
    if len(returns) != len(stack):
        raise LakeError(f"{name}: {len(returns)} of {len(stack)} blocks run; --by-layer needs all: leave it out")
    if flow.crossing:
        raise LakeError(
            f"{name}: block {flow.crossing[1]} uses what block {flow.crossing[0]} computed besides the residual; --by-layer keeps"
            " only that: leave it out"
        )
    return returns


def _fill(block: nn.Module, device: torch.device) -> None:
    """Give a module on the meta device tensors of zeros that take no memory; a small buffer gets its own."""
    for module in block.modules():
        for name, value in module._parameters.items():
            if value is not None:
                zeros = torch.zeros((), dtype=value.dtype, device=device).expand(value.shape)
                module._parameters[name] = nn.Parameter(zeros, requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                zeros = torch.zeros((), dtype=buffer.dtype, device=device).expand(buffer.shape)
                module._buffers[name] = zeros.clone() if buffer.numel() < LARGE else zeros
