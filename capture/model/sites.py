"""What is inside a block's branches: the attention heads' outputs, which a matrix projects, and a router's logits."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from ...store.core.errors import LakeError
from .branches import experts_of, matrix_of
from .structure import Structure
from .trace import hidden_input

OUT = "leave the site out"


def site_lengths(config: Any, sites: Sequence[str], model: str) -> dict[str, int]:
    """The lengths of the axes `head`, `d_head` and `expert`, as far as some sites have them, from a model's config.

    LakeError for one without attention heads or experts that all blocks have as many of.
    """
    text, found = config.get_text_config(), dict[str, int]()
    if "z" in sites:
        heads = width = None
        with suppress(Exception):  # a config's own kind of error where blocks differ (Gemma 4)
            width = getattr(text, "v_head_dim", None) or getattr(text, "head_dim", None)
            heads = getattr(text, "num_attention_heads", None)
        if not isinstance(heads, int) or not heads:
            raise LakeError(f"{model}: site z: its config names no heads of one width that all blocks have; {OUT}")
        found |= {"head": heads, "d_head": int(width or text.hidden_size // heads)}
    if "router" in sites:
        if not (experts := experts_of(text)):
            raise LakeError(f"{model}: site router: it has no mixture of experts; {OUT}")
        found["expert"] = experts
    return found


def check_inside(model: str, parts: Structure, lengths: Mapping[str, int]) -> None:
    """LakeError where a block's modules are not those that `site_lengths` tells of."""
    for layer in range(parts.first, len(parts.blocks)) if "head" in lengths else ():
        width = projection_of(model, parts, layer)[0].shape[0]
        if width != lengths["head"] * lengths["d_head"]:
            raise LakeError(
                f"{model}: site z: the heads of block {layer} give {width} values, expected {lengths['head']} heads of"
                f" {lengths['d_head']}; {OUT}"
            )
    if "expert" in lengths and not any(mlp and mlp.inner for mlp in parts.added):
        raise LakeError(f"{model}: site router: no module with one row of weights an expert was found; {OUT}")


def projection_of(model: str, parts: Structure, layer: int) -> tuple[Tensor, Tensor | None]:
    """What turns the outputs of a block's heads [n, heads * d_head] into attention's output: weight [heads * d_head, d], bias.

    LakeError for a block that has no attention, or none whose output a single matrix gives.
    """
    branch = parts.attention(layer)
    kind = type(branch.whole[0]).__name__
    weight = None if branch.inner is None else matrix_of(branch.inner)
    if not re.search("att", kind, re.IGNORECASE) or branch.inner is None or weight is None:
        raise LakeError(f"{model}: site z: block {layer} has no attention heads that a matrix projects ({kind}); {OUT}")
    bias = getattr(branch.inner, "bias", None)
    return (weight if isinstance(getattr(branch.inner, "nx", None), int) else weight.T).detach(), bias


@contextmanager
def inside(parts: Structure, what: str, layer: int, keep: Callable[[Tensor], None]) -> Iterator[None]:
    """Call `keep` with what a block's heads give [.., heads * d_head], or with the router's logits [.., experts] in float32."""
    module = parts.attention(layer).inner if what == "heads" else parts.mlp(layer).inner
    if module is None:  # a block without experts among others
        yield
        return

    def before(_module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        value = hidden_input(args, kwargs)[1]
        keep(value if what == "heads" else _logits(module, value))

    handle = module.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _logits(router: nn.Module, value: Tensor) -> Tensor:
    weight, bias = matrix_of(router), getattr(router, "bias", None)
    assert weight is not None
    return torch.nn.functional.linear(value.float(), weight.float(), None if bias is None else bias.float())
