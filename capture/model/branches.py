"""What a block adds to the residual: its branches, found by name and by solving for them in a small forward."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from ...store.core.errors import LakeError
from .trace import Trace, flat

MIXERS = re.compile(r"att|mixer|mamba|conv|ssm|temporal|recurrent|rwkv|lstm|mlstm|gdn|kda", re.IGNORECASE)
ROUNDINGS = 16  # largest error of an element of a sum, in roundings
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")  # in configs
FINDS = 12  # modules inside a branch that are tried as the one whose output is added


@dataclass(frozen=True)
class Branch:
    """A part of a block that adds to the residual: scale * norm(sum of the outputs of `outs`), or without the norm.

    `whole` are the block's own modules that make it up, `outs` those whose outputs are added: the same, or modules inside
    them where a module returns its output with the residual added (BLOOM, MPT), or the last of several (OPT). `inner` is of a
    token mixer the module that projects its heads' outputs, of a mixture of experts the router; None where there is none.
    """

    whole: tuple[nn.Module, ...]
    outs: tuple[nn.Module, ...]
    norm: nn.Module | None = None
    scale: float = 1.0
    inner: nn.Module | None = None


def as_one(modules: tuple[nn.Module, ...]) -> nn.Module:
    """The modules of an MLP in one: itself, or a list that only holds them."""
    return modules[0] if len(modules) == 1 else nn.ModuleList(modules)


def each(module: nn.Module) -> tuple[nn.Module, ...]:
    """The modules that `as_one` made one of."""
    return tuple(module) if isinstance(module, nn.ModuleList) else (module,)


def is_norm(module: nn.Module) -> bool:
    """True for a module that may be a norm: its parameters are vectors, or it has none and is called one."""
    parameters = list(module.parameters())
    vectors = all(p.dim() == 1 for p in parameters) and (parameters or "norm" in type(module).__name__.lower())
    return bool(vectors) and not list(module.children())


def split(block: nn.Module, index: int, hf: Any) -> tuple[list[nn.Module], list[nn.Module]]:
    """A block's token mixers (attention, state space, convolution) and its MLPs: children with weight matrices, by name.

    LakeError unless there is one of each at least.
    """
    heavy = [(name, m) for name, m in block.named_children() if any(p.dim() > 1 for p in m.parameters())]
    mixers = [m for name, m in heavy if MIXERS.search(name)]
    mlps = [m for name, m in heavy if not MIXERS.search(name)]
    have = ", ".join(f"{name}: {type(m).__name__}" for name, m in heavy) or "none"
    for found, lacks in ((mixers, "no attention or other token mixer"), (mlps, "no MLP")):
        if not found:
            raise LakeError(
                f"{type(hf).__name__}: block {index} has {lacks} (its modules with weight matrices: {have}); actlake captures"
                " blocks of one token mixer and one MLP"
            )
    return mixers, mlps


def find_branches(trace: Trace, block: nn.Module, index: int, hf: Any) -> tuple[list[Branch], Branch]:
    """The token mixers' branches and the MLP's branch of a block that ran, such that its input plus them is its output.

    Branches are the modules themselves, else modules inside them, with the scale that fits the data; each element of the sum
    must come out within a few roundings. LakeError that says what else the block does.
    """
    mixers, mlps = ([m for m in part if m in trace.outputs] for part in split(block, index, hf))
    if not mixers or not mlps:
        split_of = "token mixers" if not mixers else "MLPs"
        raise LakeError(f"{type(hf).__name__}: none of the {split_of} of block {index} takes and returns hidden states")
    start, end = flat(trace.inputs[block]), flat(trace.outputs[block])
    width = end.shape[-1]
    left: list[list[tuple[nn.Module, ...]]] = [[(m,) for m in _inside(trace, m, width)] for m in mixers]
    right = _unions(trace, mlps, width)
    numbers = _numbers(hf, block)
    choices: list[list[tuple[nn.Module, ...]]] = [*left, right]
    for outs in sorted(product(*(range(len(options)) for options in choices)), key=sum):
        chosen = [options[place] for options, place in zip(choices, outs, strict=True)]
        terms = [_added(trace, block, modules) for modules in chosen]
        scales, error = _fit(end, start, [term for term, _ in terms], numbers)
        if error <= 1:
            wholes: list[tuple[nn.Module, ...]] = [*((m,) for m in mixers), tuple(mlps)]
            inner = [*(_projection(trace, modules) for modules in chosen[:-1]), _router(trace, mlps, hf)]
            found = [
                Branch(whole, modules, norm, scale, within)
                for whole, modules, (_, norm), scale, within in zip(wholes, chosen, terms, scales, inner, strict=True)
            ]
            return found[:-1], found[-1]
    raise LakeError(
        f"{type(hf).__name__}: {_reason(trace, block, index, mixers, mlps)}; this architecture is not supported"
    )


def _projection(trace: Trace, outs: Sequence[nn.Module]) -> nn.Module | None:
    """The module with weights whose output is a token mixer's."""
    if len(outs) != 1:
        return None
    inside = [m for m in outs[0].modules() if trace.runs[m] == 1 and matrix_of(m) is not None]
    return next((m for m in inside if _same(trace.outputs[m], trace.outputs[outs[0]])), None)


def _router(trace: Trace, mlps: Sequence[nn.Module], hf: Any) -> nn.Module | None:
    """The module of a mixture of experts whose weights are one row an expert."""
    experts = experts_of(hf.config.get_text_config())
    for module in (m for mlp in mlps for m in mlp.modules() if experts > 1 and m in trace.inputs):
        if (weight := matrix_of(module)) is not None and weight.shape == (experts, trace.inputs[module].shape[-1]):
            return module
    return None


def experts_of(text: Any) -> int:
    """How many experts a config says that the router of a block chooses among; 0 without any."""
    return next((int(count) for name in EXPERTS if isinstance(count := getattr(text, name, None), int) and count), 0)


def matrix_of(module: nn.Module) -> Tensor | None:
    """A module's own weight matrix, as it keeps it."""
    return next((p for p in module.parameters(recurse=False) if p.dim() == 2), None)


def total_of(trace: Trace, outs: Sequence[nn.Module]) -> Tensor:
    """The sum of what these modules returned, [tokens, d]."""
    return torch.stack([flat(trace.outputs[m]) for m in outs]).sum(0)


def added_of(trace: Trace, branch: Branch) -> Tensor:
    """What a branch adds to the residual, [tokens, d] in the model's dtype."""
    total = total_of(trace, branch.outs) if branch.norm is None else flat(trace.outputs[branch.norm])
    return total if branch.scale == 1 else total * branch.scale


def rounding_error(found: Tensor, expected: Tensor, parts: Sequence[Tensor]) -> float:
    """The largest difference of an element, in units of the rounding error of a sum of `parts` in their dtype."""
    size = torch.stack([part.double().abs() for part in parts]).sum(0)
    allowed = ROUNDINGS * torch.finfo(expected.dtype).eps / 2 * size + torch.finfo(expected.dtype).tiny
    return ((found.double() - expected.double()).abs() / allowed).max().item()


def _inside(trace: Trace, module: nn.Module, width: int) -> list[nn.Module]:
    """A module and those inside it that returned hidden states of all tokens in one run, the outer ones first."""
    tokens = trace.logits.shape[0] * trace.logits.shape[1]
    found, level = [], [module]
    while level:
        found += [m for m in level if trace.runs[m] == 1 and flat(trace.outputs[m]).shape == (tokens, width)]
        level = [child for m in level for child in m.children()]
    return found[:FINDS]


def _unions(trace: Trace, mlps: list[nn.Module], width: int) -> list[tuple[nn.Module, ...]]:
    """Modules whose outputs may add up to the MLP branch: all together, the last of a chain alone, one inside it."""
    inside = [_inside(trace, m, width) for m in mlps]
    last = max((m for m in mlps), key=trace.order.index)
    found = [tuple(mlps)] if all(found and found[0] is m for found, m in zip(inside, mlps, strict=True)) else []
    return found + [(m,) for m in inside[mlps.index(last)] if (m,) not in found]


def _added(trace: Trace, block: nn.Module, outs: Sequence[nn.Module]) -> tuple[Tensor, nn.Module | None]:
    """What modules of a block add, before any scale, and the norm that their output passes first, if any."""
    total = total_of(trace, outs)
    for norm in block.modules():
        if is_norm(norm) and norm in trace.outputs and _same(trace.inputs[norm], total):
            if _same(trace.outputs[norm], total) or flat(trace.outputs[norm]).shape != total.shape:
                continue
            return flat(trace.outputs[norm]), norm
    return total, None


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(flat(a), flat(b))


def _numbers(hf: Any, block: nn.Module) -> list[float]:
    """Numbers of the config and the block's own that may be a multiplier, and those that classes make of them."""
    config = hf.config.get_text_config()
    values = [*config.to_dict().values(), *vars(block).values()]
    plain = [
        float(v) for v in values if isinstance(v, int | float) and not isinstance(v, bool) and v and math.isfinite(v)
    ]
    root = math.sqrt(config.num_hidden_layers)
    return [*plain, *(v / root for v in plain)]


def _fit(end: Tensor, start: Tensor, terms: list[Tensor], numbers: list[float]) -> tuple[list[float], float]:
    """The scales of the terms with which start + terms is end, and the error in roundings: 1 each where that fits.

    A solution is taken for the nearest number of the config that fits as well, since a multiplier is one.
    """
    ones = [1.0] * len(terms)
    error = _off(end, start, terms, ones)
    matrix = torch.stack([term.double().reshape(-1) for term in terms], 1)
    solved = torch.linalg.lstsq(matrix, (end.double() - start.double()).reshape(-1)).solution.tolist()
    # In a narrow dtype a small branch is below the rounding of the sum: then 1 fits as well as any scale.
    if error <= 1 and _rms(end, start, terms, ones) <= 2 * _rms(end, start, terms, solved):
        return ones, error
    near = [min([1.0, *numbers], key=partial(_apart, scale)) for scale in solved]
    snapped = [n if abs(n - s) <= 1e-2 * abs(s) else s for n, s in zip(near, solved, strict=True)]
    return min(((scales, _off(end, start, terms, scales)) for scales in (snapped, solved)), key=lambda one: one[1] > 1)


def _apart(a: float, b: float) -> float:
    return abs(a - b)


def _sum(start: Tensor, terms: list[Tensor], scales: list[float]) -> Tensor:
    return start.double() + sum(scale * term.double() for scale, term in zip(scales, terms, strict=True))


def _off(end: Tensor, start: Tensor, terms: list[Tensor], scales: list[float]) -> float:
    parts = [start, *(scale * term for scale, term in zip(scales, terms, strict=True))]
    return rounding_error(_sum(start, terms, scales), end, parts)


def _rms(end: Tensor, start: Tensor, terms: list[Tensor], scales: list[float]) -> float:
    return (_sum(start, terms, scales) - end.double()).square().mean().sqrt().item()


def _others(trace: Trace, block: nn.Module, known: Sequence[nn.Module]) -> Iterator[str]:
    """Children of a block that ran and are none of its branches or norms."""
    for name, child in block.named_children():
        if (
            child in trace.outputs
            and child not in known
            and not is_norm(child)
            and next(child.parameters(), None) is not None
        ):
            yield f"{name}: {type(child).__name__}"
    for name, _ in block.named_parameters(recurse=False):
        yield f"a weight of its own, {name}"


def _reason(trace: Trace, block: nn.Module, index: int, mixers: list[nn.Module], mlps: list[nn.Module]) -> str:
    """What a block does besides adding its branches to its input, as far as the data shows."""
    start, end = flat(trace.inputs[block]), flat(trace.outputs[block])
    norms = [m for m in block.modules() if is_norm(m) and m in trace.outputs]
    for norm in norms:
        if _same(trace.outputs[norm], end):
            return (
                f"block {index} ends in {type(norm).__name__}, which acts on the residual itself: its output isn't its input plus"
                " what attention and MLP add"
            )
    terms = [flat(trace.outputs[m]) for m in (*mixers, *mlps) if flat(trace.outputs[m]).shape == end.shape]
    for norm in norms:
        base = flat(trace.outputs[norm])
        if base.shape == end.shape and _solves(end, [base, *terms]):
            return (
                f"block {index} goes on with a normed residual ({type(norm).__name__} of it) in place of the residual"
            )
    if _solves(end, [start, *terms]):
        return f"block {index} multiplies the residual itself"
    names = "modules " + ", ".join(type(m).__name__ for m in (*mixers, *mlps))
    others = list(_others(trace, block, [*mixers, *mlps]))
    return f"block {index} adds something besides the outputs of its {names}" + (
        f" (it also has {', '.join(others)})" if others else ""
    )


def _solves(end: Tensor, terms: list[Tensor]) -> bool:
    matrix = torch.stack([term.double().reshape(-1) for term in terms], 1)
    scales = torch.linalg.lstsq(matrix, end.double().reshape(-1)).solution.tolist()
    total = sum(scale * term.double() for scale, term in zip(scales, terms, strict=True))
    return rounding_error(total, end, [scale * term for scale, term in zip(scales, terms, strict=True)]) <= 1
