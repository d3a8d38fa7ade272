"""Part of a model: its late blocks and head, or the MLPs of a window. Of the checkpoint only their tensors are read."""

from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from ...store.core.catalog import ModelSpec
from ...store.core.errors import LakeError
from ..checkpoint.configs import load_config, load_tokenizer, model_class
from ..checkpoint.loading import load_hf, probed
from .branches import as_one, split
from .hooks import at_boundary, forward_as
from .load import Model, load_model
from .structure import Structure, discover, layers_of, stacks
from .trace import first_tensor, random_states


@dataclass(frozen=True)
class Donor:
    """The MLP modules of some blocks of a model: block number -> module. `name` is the model's.

    Where the MLP of a block is several modules, a ModuleList holds them.
    """

    name: str
    mlps: dict[int, nn.Module]


def load_suffix(
    spec: ModelSpec, first: int, device: str = "cpu", dtype: str = "auto", attention: str = "sdpa"
) -> Model:
    """Blocks first..L-1 and the head of a checkpoint as a Model, checked like a whole one with a small forward.

    Blocks before `first` are empty shells, so that blocks, boundaries and the config's lists per layer keep their numbers.
    Of safetensors only the tensors of what is left are read; a GGUF file is unpacked whole before it is cut. The forward
    takes `inputs_embeds` of any values: `entering` puts the residual where block `first` begins. The model's record is empty.
    A class that can't be cut so is loaded whole, and begins at 0. LakeError for a block that the model doesn't have, and as in
    `load_model`.
    """
    check_layers(spec.name, load_config(spec), (first,))
    try:
        return _load_cut(spec, first, device, dtype, attention)
    except LakeError:
        return replace(load_model(spec, device, dtype, attention), record={})


def _load_cut(spec: ModelSpec, first: int, device: str, dtype: str, attention: str) -> Model:
    kind = cut_class(spec, lambda whole: _keep_late(whole, first))
    hf, _ = load_hf(spec, device, dtype, attention, kind=kind)
    width = hf.config.get_text_config().hidden_size
    state = random_states(width).to(device, hf.dtype)
    with at_boundary(list(stack_of(hf)), first, first, lambda _: state.clone()):
        parts, head = probed(spec, hf, lambda: discover(hf, {"inputs_embeds": state.clone()}, first))
    return Model(spec, hf, load_tokenizer(spec), parts, head, {})


def load_donor(spec: ModelSpec, layers: Sequence[int], device: str = "cpu", dtype: str = "auto") -> Donor:
    """The MLP modules of some blocks of a checkpoint, without the rest of it; LakeError as in `load_suffix`."""
    check_layers(spec.name, load_config(spec), layers)
    kind = cut_class(spec, lambda whole: _keep_mlps(whole, layers))
    hf, _ = load_hf(spec, device, dtype, "eager", kind=kind)
    blocks = stack_of(hf)
    return Donor(spec.name, {layer: as_one(tuple(blocks[layer].children())) for layer in layers})


@contextmanager
def starting(model: Model, boundary: int) -> Iterator[Model]:
    """The model begun at a later boundary than its first: the blocks between are shells while this lasts.

    So one loaded model serves all windows. LakeError for a boundary that the model can't begin at.
    """
    parts = model.parts
    if not parts.first <= boundary < len(parts.blocks):
        raise LakeError(
            f"model {model.name}: can't begin at boundary {boundary}; what is loaded begins at {parts.first} to"
            f" {len(parts.blocks) - 1}"
        )
    with ExitStack() as stack:
        for block in parts.blocks[parts.first : boundary]:
            stack.enter_context(forward_as(block, partial(_pass, returns=parts.returns)))
        yield replace(model, parts=replace(parts, first=boundary))


def entering(parts: Structure, state: Tensor) -> AbstractContextManager[None]:
    """Make `state` [batch, width, d] the input of the first block, whatever the model computed before it."""
    return at_boundary(parts.blocks, parts.first, parts.first, lambda _: state.clone())


def check_layers(name: str, config: Any, layers: Sequence[int]) -> None:
    """Raise LakeError for a block that a model of this config does not have, or for no blocks at all."""
    count = layers_of(config)
    if not layers:
        raise LakeError(f"model {name}: no blocks named; it has blocks 0 to {count - 1}")
    if wrong := [layer for layer in layers if not 0 <= layer < count]:
        raise LakeError(f"model {name}: no block {wrong[0]}; it has blocks 0 to {count - 1}")


def cut_class(spec: ModelSpec, cut: Callable[[Any], None]) -> Any:
    """The model's Hugging Face class, cut as soon as it is built: loading then reads no tensor of the removed parts.

    Hugging Face builds modules without memory before it reads weights, and renames, merges and ties what it reads.
    """
    kind: Any = model_class(spec, load_config(spec))

    def build(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        kind.__init__(self, config, *args, **kwargs)
        cut(self)

    return type(kind.__name__, (kind,), {"__init__": build, "__module__": kind.__module__})


def decoder_of(hf: Any) -> nn.Module:
    """The part of a model that holds the blocks: its class's decoder, else its base (without a vision tower)."""
    base = getattr(hf, hf.base_model_prefix, None)
    for found in (hf.get_decoder(), base):
        if isinstance(found, nn.Module) and stacks(found, layers_of(hf.config)):
            return found
    raise LakeError(f"{type(hf).__name__}: no stack of blocks found in its decoder; this architecture can't be cut")


def stack_of(hf: Any) -> nn.ModuleList:
    """The blocks of a model that can't run yet: the largest stack of its decoder."""
    return stacks(decoder_of(hf), layers_of(hf.config))[0]


def _keep_late(hf: Any, first: int) -> None:
    """Leave the blocks from `first` on, the head, and what of the decoder stands around the blocks."""
    blocks, decoder, unembed = stack_of(hf), decoder_of(hf), hf.get_output_embeddings()
    for block in blocks[:first]:
        empty(block)
    if not hf.all_tied_weights_keys:  # else the unembedding is the embedding
        hf.set_input_embeddings(nn.Identity())
    keep_only(hf, {decoder, unembed})


def _keep_mlps(hf: Any, layers: Sequence[int]) -> None:
    """Leave the MLPs of some blocks and nothing else."""
    blocks = stack_of(hf)
    mlps = {mlp for layer in layers for mlp in split(blocks[layer], layer, hf)[1]}
    hf.all_tied_weights_keys = {}
    keep_only(hf, mlps, also=set(blocks))


def keep_only(module: nn.Module, kept: set[nn.Module], also: Container[nn.Module] = ()) -> None:
    """Take away all children below `module` but those `kept`, what holds them, and modules of `also` without their own."""
    for name, child in list(module.named_children()):
        if child in kept:
            continue
        if child in also or any(inner in kept for inner in child.modules()):
            keep_only(child, kept, also)
        else:
            del module._modules[name]


def empty(block: nn.Module) -> None:
    """Make a shell of a block: no weights, and its input comes out again. Its buffers are small, and classes set them."""
    block._modules.clear()
    block._parameters.clear()
    block.forward = _pass


def _pass(hidden_states: Any = None, *_args: Any, returns: int = 1, **_kwargs: Any) -> tuple[Tensor | None, ...]:
    """A shell's forward. A tuple, since models that take a block's output from one would take a tensor apart; `entering`
    puts a tensor in its place before the first block that is left."""
    return (first_tensor(hidden_states), *[None] * (returns - 1))
