"""Finding the parts of a Hugging Face decoder by what they do in a small forward, not by what they are called."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ..analyze.head import Head
from ..store.errors import LakeError

# What counts as equal in the checks, relative to the largest value: a few roundings of the model's dtype.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
PROBE_TOKENS = 8


def first_tensor(value: Any) -> torch.Tensor:
    """A module's hidden states, whether it returns them alone or first in a tuple."""
    return value[0] if isinstance(value, tuple) else value


@dataclass(frozen=True)
class Structure:
    """The parts of a decoder, and how far the checks at load were off (relative to the largest value).

    `post_norms` normalise the MLP output before it is added (Gemma, OLMo 2), else empty. `placement` says where norms stand
    around the MLP, see `_placement`. Blocks before `first` are empty shells that stand in for their own parts, so that a
    block has its number of the full model (capture.suffix); a whole model begins at 0.
    """

    blocks: list[nn.Module]
    mlps: list[nn.Module]
    attns: list[nn.Module]
    post_norms: list[nn.Module]
    norm: nn.Module
    unembed: nn.Module
    placement: str
    errors: dict[str, float]
    first: int = 0

    @property
    def parallel(self) -> bool:
        """True when the MLP starts from the block's input instead of the residual after attention."""
        return self.placement == "parallel"


def _is_norm(module: nn.Module) -> bool:
    parameters = list(module.parameters())
    return bool(parameters) and all(p.dim() == 1 for p in parameters) and not list(module.children())


def _only(found: list[nn.Module], what: str, hf: Any) -> nn.Module:
    if len(found) != 1:
        kinds = ", ".join(type(m).__name__ for m in found) or "none"
        raise LakeError(
            f"{type(hf).__name__}: looked for one {what}, found {kinds}; this architecture is not supported"
        )
    return found[0]


class _Trace:
    """Inputs and outputs of every module that ran in one small forward of `given`, on the CPU."""

    def __init__(self, hf: Any, given: dict[str, torch.Tensor]):
        self.inputs: dict[nn.Module, torch.Tensor] = {}
        self.outputs: dict[nn.Module, torch.Tensor] = {}
        handles = [module.register_forward_hook(self._keep, with_kwargs=True) for module in hf.modules()]
        try:
            with torch.no_grad():
                self.logits = hf(**given, use_cache=False).logits[0].float().cpu()
        finally:
            for handle in handles:
                handle.remove()

    def _keep(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        given = first_tensor(args[0] if args else kwargs.get("hidden_states", kwargs.get("input")))
        result = first_tensor(output)
        if isinstance(given, torch.Tensor) and isinstance(result, torch.Tensor):
            self.inputs[module], self.outputs[module] = given.cpu(), result.cpu()

    def branch(self, block: nn.Module, module: nn.Module) -> tuple[torch.Tensor, nn.Module | None]:
        """What `module` adds to the residual, and the norm of `block` that its output passes first, if any."""
        out = self.outputs[module]
        for norm in block.children():
            if _is_norm(norm) and norm in self.inputs and torch.equal(self.inputs[norm], out):
                return self.outputs[norm], norm
        return out, None


def stacks(module: nn.Module, layers: int) -> list[nn.ModuleList]:
    """The lists of `layers` modules inside a module, those with most weights first."""
    found = [m for m in module.modules() if isinstance(m, nn.ModuleList) and len(m) == layers]
    return sorted(found, key=lambda stack: -sum(p.numel() for p in stack.parameters()))


def _find_blocks(hf: Any, trace: _Trace) -> list[nn.Module]:
    """The largest stack of as many modules as the config has layers, all of which ran (a vision tower's did not)."""
    layers = hf.config.get_text_config().num_hidden_layers
    ran = [stack for stack in stacks(hf, layers) if all(block in trace.outputs for block in stack)]
    if not ran:
        lists = [m for m in hf.modules() if isinstance(m, nn.ModuleList)]
        sizes = ", ".join(map(str, sorted({len(stack) for stack in lists}))) or "no"
        raise LakeError(
            f"{type(hf).__name__}: no stack of blocks found: looked for a ModuleList of {layers} modules"
            f" (num_hidden_layers of its config) that all take and return hidden states; its ModuleLists have {sizes} modules."
            " Is this a decoder-only language model?"
        )
    return list(ran[0])


def device_of_input(hf: Any) -> torch.device:
    """Where a model's input goes: the device of the embedding, of the first weight where there is none."""
    return next(hf.get_input_embeddings().parameters(), next(hf.parameters())).device


def random_tokens(hf: Any) -> dict[str, torch.Tensor]:
    """The input of a small forward: a few token ids, always the same."""
    generator = torch.Generator().manual_seed(0)
    limit = hf.get_input_embeddings().num_embeddings
    return {"input_ids": torch.randint(0, limit, (1, PROBE_TOKENS), generator=generator).to(device_of_input(hf))}


def discover(hf: Any, given: dict[str, torch.Tensor] | None = None, first: int = 0) -> tuple[Structure, Head]:
    """Find blocks, MLPs, norms and head of a decoder from the data that flows in a small forward, and check them.

    Checks: each block adds exactly its attention and MLP branches, and head(resid[:, L]) equals the model's logits. The
    forward is one of `given` (else random tokens); blocks before `first` are shells and left out.
    """
    trace = _Trace(hf, given or random_tokens(hf))
    blocks = _find_blocks(hf, trace)
    for index, block in enumerate(blocks[first:], first):
        if not torch.isfinite(trace.inputs[block]).all() or not torch.isfinite(trace.outputs[block]).all():
            raise LakeError(
                f"{type(hf).__name__}: NaN or infinity around block {index} in a short forward of random tokens; are the"
                " weights damaged, or is the dtype too narrow?"
            )
    parts = [_block(trace, block, index, hf) for index, block in enumerate(blocks[first:], first)]
    placements = sorted({part.placement for part in parts})
    if len(placements) > 1:
        raise LakeError(
            f"{type(hf).__name__}: blocks differ in where norms stand around the MLP ({', '.join(placements)}); not supported"
        )
    unembed = hf.get_output_embeddings()
    last = trace.outputs[blocks[-1]]
    norms = [
        m
        for m in trace.outputs
        if _is_norm(m) and torch.equal(trace.inputs[m], last) and torch.equal(trace.outputs[m], trace.inputs[unembed])
    ]
    norm = _only(norms, "final norm between the last block and the unembedding", hf)
    head = _head(hf, norm, unembed, last[0], trace.logits)
    errors = {
        "blocks": max(part.error for part in parts),
        "head": _check(head.logits(last[0]), trace.logits, hf, "head(resid[:, L]) is not the model's logits"),
    }
    shells = blocks[:first]
    mlps, attns = shells + [part.mlp for part in parts], shells + [part.attention for part in parts]
    post_norms = [part.post_norm for part in parts if part.post_norm is not None]
    return Structure(blocks, mlps, attns, post_norms, norm, unembed, placements[0], errors, first), head


@dataclass(frozen=True)
class _Block:
    """The parts of one block, and how far its input plus its branches is from its output."""

    attention: nn.Module
    mlp: nn.Module
    post_norm: nn.Module | None
    placement: str
    error: float


def _block(trace: _Trace, block: nn.Module, index: int, hf: Any) -> _Block:
    attention, mlp = branches(block, index, hf)
    added, norm = trace.branch(block, mlp)
    total = trace.inputs[block] + trace.branch(block, attention)[0] + added
    error = _check(
        total, trace.outputs[block], hf, f"block {index} adds something besides its attention and MLP outputs"
    )
    return _Block(attention, mlp, norm, _placement(trace, block, mlp, norm), error)


def branches(block: nn.Module, index: int, hf: Any) -> tuple[nn.Module, nn.Module]:
    """The attention and the MLP module of a block: its two children with weight matrices, told apart by name."""
    heavy = [(name, m) for name, m in block.named_children() if any(p.dim() > 1 for p in m.parameters())]
    attentive = [("attn" in name or "attention" in name, m) for name, m in heavy]
    place = f"with weight matrices in block {index} (it has {', '.join(name for name, _ in heavy) or 'none'})"
    attention = _only([m for yes, m in attentive if yes], f"attention module (named *attn* or *attention*) {place}", hf)
    return attention, _only([m for yes, m in attentive if not yes], f"MLP (any other module) {place}", hf)


def _placement(trace: _Trace, block: nn.Module, mlp: nn.Module, post_norm: nn.Module | None) -> str:
    """Where norms stand around the MLP (METHODS 1.2): before it (pre), after it (post), both (sandwich), none.

    A parallel MLP reads the block's input, normed or not, instead of the residual after attention.
    """
    start, given = trace.inputs[block], trace.inputs[mlp]
    before = [
        m for m in block.children() if _is_norm(m) and m in trace.outputs and torch.equal(trace.outputs[m], given)
    ]
    if torch.equal(given, start) or any(torch.equal(trace.inputs[norm], start) for norm in before):
        return "parallel"
    return {(True, False): "pre", (False, True): "post", (True, True): "sandwich", (False, False): "none"}[
        bool(before), post_norm is not None
    ]


def _check(found: torch.Tensor, expected: torch.Tensor, hf: Any, problem: str) -> float:
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


def norm_parameters(norm: nn.Module, x: torch.Tensor) -> dict[str, Any]:
    """Kind ('rms' or 'layer'), effective weight, bias and eps of a norm, found by comparing with its own output on `x`."""
    exact = copy.deepcopy(norm).float().cpu()
    x = x.detach().float().cpu().reshape(-1, x.shape[-1])
    weight = getattr(exact, "weight", None)
    bias = getattr(exact, "bias", None)
    eps = next(
        (
            float(getattr(norm, key))
            for key in ("variance_epsilon", "eps", "epsilon")
            if getattr(norm, key, None) is not None
        ),
        1e-6,
    )
    with torch.no_grad():
        expected = type(exact).forward(exact, x)  # past accelerate, which would move x to where the norm was
        weight = torch.ones(x.shape[-1]) if weight is None else weight.detach()
        centred = x - x.mean(-1, keepdim=True)
        candidates: dict[tuple[str, bool], Callable[[], torch.Tensor]] = {
            ("rms", False): lambda: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight,
            ("rms", True): lambda: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * (1 + weight),
            ("layer", False): lambda: (
                centred * torch.rsqrt(centred.pow(2).mean(-1, keepdim=True) + eps) * weight
                + (0 if bias is None else bias)
            ),
        }
        errors = {key: (make() - expected).abs().max().item() for key, make in candidates.items()}
    kind, plus_one = min(errors, key=lambda key: errors[key])
    if errors[kind, plus_one] > 1e-3 * expected.abs().max().item():
        raise LakeError(
            f"{type(norm).__name__}: neither an RMS norm nor a layer norm; this architecture is not supported"
        )
    return {
        "norm": kind,
        "weight": weight + 1 if plus_one else weight,
        "bias": bias if kind == "layer" else None,
        "eps": eps,
    }


def _head(hf: Any, norm: nn.Module, unembed: Any, x: torch.Tensor, logits: torch.Tensor) -> Head:
    """The head in float32; of the soft cap that the config has and none, the one that gives these logits from `x`."""
    text = hf.config.get_text_config()
    found = norm_parameters(norm, x)
    divisor = getattr(text, "logits_scaling", None)
    capped = Head(
        unembed=unembed.weight.detach().float().cpu(),
        norm_weight=found["weight"],
        norm=found["norm"],
        eps=found["eps"],
        norm_bias=None if found["bias"] is None else found["bias"].detach(),
        bias=None if unembed.bias is None else unembed.bias.detach().float().cpu(),
        softcap=getattr(text, "final_logit_softcapping", None),
        logit_scale=1.0 / divisor if divisor else float(getattr(text, "logit_scale", None) or 1.0),
    )
    # Gemma 3's multimodal class has the setting and leaves it alone.
    heads = [capped] if capped.softcap is None else [capped, replace(capped, softcap=None)]
    return min(heads, key=lambda head: (head.logits(x) - logits).abs().max().item())
