"""The head of a decoder (final norm, unembedding, scale, soft cap), read from its modules and compared with its logits."""

import copy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...analyze.lens.head import Head
from ...store.core.errors import LakeError
from .branches import is_norm
from .trace import Trace, flat

# What counts as equal in the checks, relative to the largest value: a few roundings of the model's dtype.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
EPS_NAMES = ("variance_epsilon", "eps", "epsilon", "norm_eps", "layer_norm_epsilon", "layer_norm_eps")
COMMON_EPS = (1e-6, 1e-5, 1e-8, 1e-12, torch.finfo(torch.float32).eps)  # for norms that don't name theirs
SMALL = 1e-3  # of inputs at which eps shows


@dataclass(frozen=True)
class _Top:
    """What follows the last block: logits = cap(unembed(norm(resid) * scale) * logit_scale).

    `head` computes the same in float32; its own logit_scale is both scales in one.
    """

    norm: nn.Module
    unembed: nn.Module
    scale: float
    logit_scale: float
    head: Head


def find_top(hf: Any, trace: Trace, last: nn.Module) -> _Top:
    """The final norm, the unembedding and the head of a decoder from its forward; LakeError naming what is between them."""
    unembed: Any = hf.get_output_embeddings()
    if not hasattr(unembed, "weight") or unembed not in trace.inputs:
        raise LakeError(
            f"{type(hf).__name__}: has no unembedding that turns hidden states into logits (get_output_embeddings:"
            f" {type(unembed).__name__}); this architecture is not supported"
        )
    weight, bias = unembed.weight.detach().float().cpu(), getattr(unembed, "bias", None)
    end, read = flat(trace.outputs[last]), flat(trace.inputs[unembed])
    norm = _final_norm(hf, trace, last, end, read, unembed)
    scale = _scale(flat(trace.outputs[norm]), read, _config_numbers(hf))
    found = norm_parameters(norm, end)
    plain = Head(
        unembed=weight,
        norm_weight=found["weight"],
        norm=found["norm"],
        eps=found["eps"],
        norm_bias=None if found["bias"] is None else found["bias"].detach(),
        bias=None if bias is None else bias.detach().float().cpu() / scale,
    )
    out = flat(trace.outputs[unembed])
    if trace.logits.shape[-1] != out.shape[-1]:
        raise LakeError(
            f"{type(hf).__name__}: its unembedding gives {out.shape[-1]} numbers a token, its logits are"
            f" {trace.logits.shape[-1]}; this architecture is not supported"
        )
    cap, logit_scale = _after(hf, out.float(), flat(trace.logits))
    head = Head(**{**vars(plain), "softcap": cap, "logit_scale": logit_scale * scale})
    return _Top(norm, unembed, scale, logit_scale, head)


def _final_norm(hf: Any, trace: Trace, last: nn.Module, end: Tensor, read: Tensor, unembed: nn.Module) -> nn.Module:
    """The norm that reads what leaves the last block and whose output, times one number, the unembedding reads."""

    def fits(module: nn.Module) -> bool:
        given, out = trace.inputs[module], flat(trace.outputs[module])
        return (
            is_norm(module)
            and out.shape == read.shape
            and torch.equal(flat(given), end)
            and _scale(out, read, _config_numbers(hf)) is not None
        )

    found = [module for module in trace.outputs if fits(module)]
    if len(found) == 1:
        return found[0]
    after = trace.order[trace.order.index(last) + 1 :]
    between = ", ".join(
        dict.fromkeys(type(m).__name__ for m in after if m is not unembed and m is not hf and not _holds(m, last))
    )
    normed = [
        m
        for m in after
        if is_norm(m) and flat(trace.inputs[m]).shape == end.shape and torch.equal(flat(trace.inputs[m]), end)
    ]
    if normed and not found:
        inner = after[after.index(normed[0]) + 1 :]
        then = ", ".join(type(m).__name__ for m in inner if m is not unembed and not list(m.children()))
        raise LakeError(
            f"{type(hf).__name__}: between its final norm ({type(normed[0]).__name__}) and the unembedding the residual is"
            f" changed otherwise ({then or 'in code of its own'}); a lens reads residuals through one norm and one matrix: this"
            " architecture is not supported"
        )
    raise LakeError(
        f"{type(hf).__name__}: looked for one final norm between the last block and the unembedding, found {len(found) or 'none'}"
        f" (modules there: {between or 'none'}); this architecture is not supported"
    )


def _holds(module: nn.Module, inner: nn.Module) -> bool:
    return any(m is inner for m in module.modules())


def _config_numbers(hf: Any) -> list[float]:
    """Numbers of the config that a scale may be, their inverses, and ratios of the width to them."""
    values = hf.config.get_text_config().to_dict().values()
    plain = [float(v) for v in values if isinstance(v, int | float) and not isinstance(v, bool) and v]
    width = getattr(hf.config.get_text_config(), "hidden_size", 1)
    return [1.0, *plain, *(1.0 / v for v in plain), *(v / width for v in plain)]


def _scale(given: Tensor, found: Tensor, numbers: list[float]) -> Any:
    """The number of the config that turns one tensor into the other; None when none does."""
    if given.shape != found.shape:
        return None
    if torch.equal(given, found):
        return 1.0
    a, b = given.double(), found.double()
    solved = ((a * b).sum() / (a * a).sum()).item()
    near = min(numbers, key=lambda number: abs(number - solved))
    allowed = 8 * torch.finfo(found.dtype).eps
    fits = (near * a - b).abs() <= allowed * b.abs() + allowed * 1e-3 * b.abs().max()
    return near if fits.all() else None


def _apart(a: float, b: float) -> float:
    return abs(a - b)


def _after(hf: Any, out: Tensor, logits: Tensor) -> tuple[float | None, float]:
    """Soft cap and scale between the unembedding's output and the logits: the pair that fits them best."""
    config = hf.config.get_text_config().to_dict()
    caps = [
        float(v)
        for key, v in config.items()
        if "cap" in key and isinstance(v, int | float) and not isinstance(v, bool) and v
    ]
    numbers = _config_numbers(hf)
    found: list[tuple[float, float | None, float]] = []
    for cap in (None, *dict.fromkeys(caps)):
        inner = logits if cap is None else torch.atanh((logits / cap).clamp(-1 + 1e-7, 1 - 1e-7)) * cap
        keep = torch.ones_like(logits, dtype=torch.bool) if cap is None else logits.abs() < 0.9 * cap
        solved = ((out * inner)[keep].sum() / (out * out)[keep].sum().clamp_min(1e-30)).item()
        for scale in dict.fromkeys((1.0, min(numbers, key=partial(_apart, solved)))):
            made = out * scale if cap is None else torch.tanh(out * scale / cap) * cap
            found.append(((made - logits).abs().max().item(), cap, scale))
    best = min(found, key=lambda one: one[0])
    near = next(one for one in found if one[0] <= 2 * best[0])  # the plainest of those that fit as well
    return near[1], near[2]


def norm_parameters(norm: nn.Module, x: Tensor) -> dict[str, Any]:
    """Kind ('rms' or 'layer'), effective weight, bias and eps of a norm, found by comparing with its own output on `x`.

    A norm without weights has ones; one with 1 + w gets 1 + w. Small inputs, where eps shows, must come out as well.
    """
    exact = copy.deepcopy(norm).float().cpu()
    x = x.detach().float().cpu().reshape(-1, x.shape[-1])
    weight, bias = getattr(exact, "weight", None), getattr(exact, "bias", None)
    weight = torch.ones(x.shape[-1]) if weight is None else weight.detach()
    shift = 0 if bias is None else bias.detach()
    named = [float(getattr(norm, key)) for key in EPS_NAMES if isinstance(getattr(norm, key, None), int | float)]

    def made(kind: str, plus_one: bool, eps: float, given: Tensor) -> Tensor:
        centred = given - given.mean(-1, keepdim=True) if kind == "layer" else given
        scale = torch.rsqrt(centred.pow(2).mean(-1, keepdim=True) + eps)
        return centred * scale * (weight + plus_one) + shift

    unit = x / x.pow(2).mean(-1, keepdim=True).sqrt().clamp_min(1e-30)

    def own(given: Tensor) -> Tensor:
        return type(exact).forward(exact, given)  # past accelerate, which would move it to where the norm was

    with torch.no_grad():
        pairs = [(given, own(given)) for given in (x, SMALL * unit)]
        errors = {
            (kind, plus_one, eps): max(
                (made(kind, plus_one, eps, given) - out).abs().max().item() / (out.abs().max().item() or 1.0)
                for given, out in pairs
            )
            for eps in dict.fromkeys([*named, *COMMON_EPS])
            for kind, plus_one in (("rms", False), ("rms", True), ("layer", False), ("layer", True))
        }
    best = next(key for key in errors if errors[key] <= max(1e-5, 2 * min(errors.values())))
    if errors[best] > 1e-3:
        raise LakeError(
            f"{type(norm).__name__}: neither an RMS norm nor a layer norm (off by {errors[best]:.0e} of its largest value);"
            " this architecture is not supported"
        )
    kind, plus_one, eps = best
    return {
        "norm": kind,
        "weight": weight + 1 if plus_one else weight,
        "bias": None if bias is None else bias.detach(),
        "eps": eps,
    }
