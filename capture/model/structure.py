"""Finding the parts of a Hugging Face decoder by what they do in a small forward, not by what they are called."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...analyze.lens.head import Head
from ...store.core.errors import LakeError
from ...store.core.yaml_file import listed
from .branches import Branch, added_of, find_branches, is_norm, rounding_error
from .heads import TOLERANCE, find_top, norm_parameters
from .trace import SHARED, Trace, flat, random_tokens

Seen = tuple[tuple[Branch, ...], Branch, float, str]  # what `look` finds of a block


@dataclass(frozen=True)
class Structure:
    """The parts of a decoder, and the errors of the checks at load (relative to the largest value).

    `added` is the MLP's branch of each block, `mixed` the branches of its token mixers. `placement` says where norms stand
    around the MLP, see `_placement`. `head_scale` multiplies the normed residual before the unembedding; a block returns
    `returns` values. Blocks before `first` are empty shells that stand in for their own parts and have no branches (None), so
    that a block has its number of the full model (model.partial); a whole model begins at 0.
    """

    blocks: list[nn.Module]
    added: list[Branch | None]
    mixed: list[tuple[Branch, ...]]
    norm: nn.Module
    unembed: nn.Module
    placement: str
    errors: dict[str, float]
    first: int = 0
    head_scale: float = 1.0
    returns: int = 1

    @property
    def parallel(self) -> bool:
        """True when the MLP starts from the block's input instead of the residual after attention."""
        return self.placement == "parallel"

    @property
    def mlps(self) -> list[nn.Module]:
        """The MLP module of each block, the first of several."""
        return [block if mlp is None else mlp.whole[0] for block, mlp in zip(self.blocks, self.added, strict=True)]

    @property
    def attns(self) -> list[nn.Module]:
        """The token mixer of each block (attention, state space, convolution), the first of several."""
        return [mixers[0].whole[0] if mixers else block for block, mixers in zip(self.blocks, self.mixed, strict=True)]

    @property
    def post_norms(self) -> list[nn.Module]:
        """The norms that MLP outputs pass before they are added (Gemma, OLMo 2), else empty."""
        return [mlp.norm for mlp in self.added if mlp is not None and mlp.norm is not None]

    def multipliers(self) -> tuple[Tensor, float | None] | None:
        """What turns MLP outputs into what is added: weights [L, d] of the norms, times scales, and the norms' eps.

        The eps is None where outputs are multiplied only (Granite); None where they are added as they are.
        """
        branches = [mlp for mlp in self.added if mlp is not None]
        width = next(self.unembed.parameters()).shape[1]
        if not self.post_norms:
            scales = torch.tensor([mlp.scale for mlp in branches], dtype=torch.float32)
            return None if (scales == 1).all() else (scales[:, None].repeat(1, width), None)
        x = torch.randn(4, width, generator=torch.Generator().manual_seed(0))
        found = [norm_parameters(norm, x) for norm in self.post_norms]
        for norm, one in zip(self.post_norms, found, strict=True):
            if one["norm"] != "rms" or one["bias"] is not None or one["eps"] != found[0]["eps"]:
                raise LakeError(
                    f"{type(norm).__name__} between an MLP and the residual: expected an RMS norm without bias, with one eps"
                    " for all blocks; this architecture is not supported"
                )
        weights = [one["weight"] * mlp.scale for one, mlp in zip(found, branches, strict=True)]
        return torch.stack(weights), found[0]["eps"]

    def mlp(self, layer: int) -> Branch:
        """The MLP branch of a block that is there."""
        found = self.added[layer]
        if found is None:
            raise LakeError(f"block {layer} is not loaded; blocks {self.first} to {len(self.blocks) - 1} are")
        return found

    def attention(self, layer: int) -> Branch:
        """The attention branch of a block; LakeError where two token mixers run side by side."""
        found = self.mixed[layer]
        if len(found) != 1:
            kinds = " and ".join(type(m).__name__ for branch in found for m in branch.whole)
            raise LakeError(
                f"block {layer} has {len(found)} token mixers ({kinds}); attn_out, z and edits of attention need one per block:"
                " leave them out"
            )
        return found[0]


def stacks(module: nn.Module, layers: int) -> list[nn.ModuleList]:
    """The lists of `layers` modules inside a module, those with most weights first."""
    found = [m for m in module.modules() if isinstance(m, nn.ModuleList) and len(m) == layers]
    return sorted(found, key=lambda stack: -sum(p.numel() for p in stack.parameters()))


def layers_of(config: Any) -> int:
    """Number of blocks of the decoder that a config describes."""
    text = config.get_text_config(decoder=True)
    return int(getattr(text, "decoder_layers", None) or text.num_hidden_layers)


def _find_blocks(hf: Any, trace: Trace) -> list[nn.Module]:
    """The largest stack of as many modules as the config has layers, all of which ran (a vision tower's did not)."""
    layers = layers_of(hf.config)
    there = stacks(hf, layers)
    ran = [stack for stack in there if all(block in trace.outputs for block in stack)]
    if not ran:
        for stack in there:
            if 0 < len(idle := [at for at, block in enumerate(stack) if block not in trace.outputs]) < layers:
                kind = type(stack[idle[0]]).__name__
                raise LakeError(
                    f"{type(hf).__name__}: block {listed(map(str, idle))} ({kind}) of {layers} does not run where there is text"
                    " alone (it reads pictures, say); every block has to run: this architecture is not supported"
                )
        lists = [m for m in hf.modules() if isinstance(m, nn.ModuleList)]
        sizes = ", ".join(map(str, sorted({len(stack) for stack in lists}))) or "no"
        raise LakeError(
            f"{type(hf).__name__}: no stack of blocks found: looked for a ModuleList of {layers} modules"
            f" (num_hidden_layers of its config) that all take and return hidden states; its ModuleLists have {sizes} modules."
            " Is this a decoder-only language model?"
        )
    return list(ran[0])


def discover(hf: Any, given: dict[str, Tensor] | None = None, first: int = 0) -> tuple[Structure, Head]:
    """Find blocks, MLPs, norms and head of a decoder from the data that flows in a small forward, and check them.

    Checks: each block reads what the one before it left and adds exactly its attention and MLP branches, no token sees later
    ones, and head(resid[:, L]) equals the model's logits. The forward is one of `given` (two sequences that differ after
    SHARED tokens; else random tokens); blocks before `first` are shells and left out. LakeError that names what is different.
    """
    trace = Trace(hf, given or random_tokens(hf))
    blocks = _find_blocks(hf, trace)
    check_flow(trace, blocks, range(first, len(blocks)), hf, causal=first == 0)
    found = [look(trace, block, index, hf) for index, block in enumerate(blocks[first:], first)]
    return assemble(trace, blocks, first, found, hf)


def look(trace: Trace, block: nn.Module, index: int, hf: Any) -> Seen:
    """One block as a small forward showed it: its branches, the relative error of its sum, where norms stand around its MLP.

    LakeError that says what the block does besides adding its branches to its input.
    """
    mixers, mlp = find_branches(trace, block, index, hf)
    error, placement = _check_block(trace, block, mixers, mlp, hf)
    return tuple(mixers), mlp, error, placement


def assemble(
    trace: Trace, blocks: list[nn.Module], first: int, found: Sequence[Seen], hf: Any
) -> tuple[Structure, Head]:
    """A decoder of the blocks `found`, numbered from `first`, and the head that reads what `trace` has of the last one.

    LakeError where the blocks' norms stand in different places, and for a head that does not give the trace's logits.
    """
    mixed, added, errors, where = zip(*found, strict=True)
    placements, normed = sorted(set(where)), {mlp.norm is not None for mlp in added}
    if len(placements) > 1 and ("parallel" in placements or len(normed) > 1):
        raise LakeError(
            f"{type(hf).__name__}: blocks differ in where norms stand around the MLP ({', '.join(placements)}); not supported"
        )
    top = find_top(hf, trace, blocks[-1])
    last = flat(trace.outputs[blocks[-1]])
    head_error = _check(top.head.logits(last), flat(trace.logits), hf, "head(resid[:, L]) is not the model's logits")
    structure = Structure(
        blocks=blocks,
        added=[None] * first + list(added),
        mixed=[()] * first + list(mixed),
        norm=top.norm,
        unembed=top.unembed,
        placement=placements[0],
        errors={"blocks": max(errors), "head": head_error},
        first=first,
        head_scale=top.scale,
        returns=trace.returns[blocks[-1]],
    )
    structure.multipliers()
    return structure, top.head


def check_flow(trace: Trace, blocks: Sequence[nn.Module], numbers: Sequence[int], hf: Any, causal: bool) -> None:
    """Raise LakeError unless finite hidden states go once through these blocks in turn, and, if `causal`, to no earlier
    token."""
    name = type(hf).__name__
    for index in numbers:
        block = blocks[index]
        given, out = trace.inputs[block], trace.outputs[block]
        if trace.runs[block] != 1:
            raise LakeError(
                f"{name}: block {index} runs {trace.runs[block]} times in one forward; looped models are not supported"
            )
        if out.dim() != 3 or out.shape[:2] != trace.logits.shape[:2] or given.shape != out.shape:
            raise LakeError(
                f"{name}: block {index} takes {_shape(given)} and returns {_shape(out)}; expected hidden states [batch, token,"
                " d]: this architecture keeps its residual otherwise (several streams, say) and is not supported"
            )
        if not torch.isfinite(given).all() or not torch.isfinite(out).all():
            raise LakeError(
                f"{name}: NaN or infinity around block {index} in a short forward of random tokens; are the"
                " weights damaged, or is the dtype too narrow?"
            )
        if index > numbers[0] and not torch.equal(given, trace.outputs[blocks[index - 1]]):
            raise LakeError(
                f"{name}: block {index} does not read what block {index - 1} left: something between the blocks changes the"
                " residual; this architecture is not supported"
            )
        limit = TOLERANCE[hf.dtype] * out[:, :SHARED].float().abs().max().item()
        apart = (out[0, :SHARED].float() - out[1, :SHARED].float()).abs().max().item()
        if causal and apart > limit:
            raise LakeError(
                f"{name}: block {index} attends to later tokens (changing the last ones moves earlier states by {apart:.1e}):"
                " not a causal decoder; does its config need is_decoder=true?"
            )


def _shape(value: Tensor) -> str:
    return str(list(value.shape))


def _check_block(trace: Trace, block: nn.Module, mixers: list[Branch], mlp: Branch, hf: Any) -> tuple[float, str]:
    """How far a block's input plus its branches is from its output, relative; and where norms stand around its MLP."""
    total = flat(trace.inputs[block]) + sum(added_of(trace, mixer) for mixer in mixers) + added_of(trace, mlp)
    error = _check(total, flat(trace.outputs[block]), hf, "a block's input and branches don't add up to its output")
    return error, _placement(trace, block, mixers, mlp, hf)


def _placement(trace: Trace, block: nn.Module, mixers: list[Branch], mlp: Branch, hf: Any) -> str:
    """Where norms stand around the MLP (METHODS 1.2): before it (pre), after it (post), both (sandwich), none.

    A parallel MLP reads the block's input, normed or not, instead of the residual after attention. LakeError when it reads
    neither of the two.
    """
    start, given = flat(trace.inputs[block]), flat(trace.inputs[mlp.whole[0]])
    norms = [m for m in block.modules() if is_norm(m) and m in trace.outputs]
    before = [m for m in norms if torch.equal(flat(trace.outputs[m]), given)]
    reads = [given, *(flat(trace.inputs[m]) for m in before)]
    if any(torch.equal(read, start) for read in reads):
        return "parallel"
    adds = [added_of(trace, mixer) for mixer in mixers]
    middle = start.double() + sum(add.double() for add in adds)
    if not any(read.shape == middle.shape and rounding_error(middle, read, [start, *adds]) <= 1 for read in reads):
        raise LakeError(
            f"{type(hf).__name__}: its MLP reads neither the block's input nor the residual after attention, normed or not; this"
            " architecture is not supported"
        )
    return {(True, False): "pre", (False, True): "post", (True, True): "sandwich", (False, False): "none"}[
        bool(before), mlp.norm is not None
    ]


def _check(found: Tensor, expected: Tensor, hf: Any, problem: str) -> float:
    """The largest error relative to the largest value; LakeError when it is more than a few roundings."""
    scale = expected.float().abs().max().item() or 1.0
    error = (found.float() - expected.float()).abs().max().item() / scale
    limit = TOLERANCE[hf.dtype]
    if not error <= limit:
        raise LakeError(
            f"{type(hf).__name__}: {problem} (relative error {error:.1e}, allowed {limit:.0e}); this architecture is not"
            " supported"
        )
    return error
