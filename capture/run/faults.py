"""Whether a capture that came from elsewhere is right: prompts run again here, and what is wrong is named.

Stored values S and the model's own R are compared token by token, |S - R| / |R|, so that a boundary with large values hides
none with small ones. What differs is held against what usual mistakes would make of the same forward.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ...store.artifacts.streams import Stream
from ...store.captures.reader import Capture
from ...store.core.progress import bar
from ...store.core.schema import SITES
from ..model.hooks import Batch, pad_id
from ..model.load import Model
from .forward import forward

# The share of its norm by which a token's vector may differ, by dtype: engines add in other orders, and through all layers.
NEAR = {"float64": 1e-3, "float32": 1e-3, "float16": 0.03, "bfloat16": 0.06}
FAR = 8  # times as much for the worst token
LARGEST_HALF = 65504.0
PADS = 16  # numbers of padding tokens that are tried
SEARCHED = 2048  # prompts among which a prompt's rows are looked for
Matrix = np.ndarray


@dataclass
class Compared:
    """How far stored values are from the model's own (median and worst share of a token's norm), and what is wrong by name."""

    prompts: int
    median: float
    worst: float
    faults: list[str]


@dataclass
class _Case:
    """One prompt: its index, tokens, stored values [n, kept, d] and the model's own [n, all, d], by site."""

    prompt: int
    tokens: np.ndarray
    stored: dict[str, Matrix]
    own: dict[str, Matrix]


def compare(model: Model, stored: Capture, stream: Stream, count: int) -> Compared:
    """Run `count` prompts of a capture alone and compare; where they differ, look for the mistake that explains it."""
    prompts = np.unique(np.linspace(0, len(stream.starts) - 1, min(count, len(stream.starts))).astype(int)).tolist()
    kept = [name for name in stored.manifest["sizes"] if name in SITES and not SITES[name].inside]
    cases = []
    with bar(f"reforward {model.name}", len(prompts), "prompts") as progress:
        for prompt in prompts:
            span = slice(int(stream.offset[prompt]), int(stream.offset[prompt + 1]))
            values = {name: stored.array(name)[span] for name in kept}
            cases.append(_Case(prompt, stream.tokens[prompt], values, _own(model, stream.tokens[prompt], kept)))
            progress.advance(1)
    near = max(NEAR[stored.manifest["source_dtype"]], NEAR[model.record["dtype"]])
    boundaries = stored.manifest["boundaries"]
    errors = _errors(cases, boundaries, lambda values: values)
    found = Compared(len(cases), max(map(_median, errors)), max(float(one.max()) for one in errors), [])
    if not _right(errors, near):
        found.faults = list(_faults(model, stored, stream, cases, boundaries, near)) or [
            "no usual mistake explains it: another checkpoint or tokenizer, edited weights, or values that were changed"
        ]
    return found


def _own(model: Model, tokens: np.ndarray, kept: Iterable[str], pads: int = 0) -> dict[str, Matrix]:
    """What the model computes of a prompt, every boundary; behind `pads` padding tokens that are read as if they were text."""
    sizes: dict[str, tuple[int, ...]] = {
        name: (model.n_layers + (name == "resid"), model.head.d_model) for name in kept
    }
    if pads:
        tokens = np.concatenate([np.full(pads, pad_id(model), tokens.dtype), tokens])
    found = forward(model, Batch([tokens], pad_id(model), model.device), sizes, range(model.n_layers + 1))
    return {name: value[pads:] for name, value in found.items()}


def _at(case: _Case, site: str, boundaries: Sequence[int]) -> Matrix:
    return case.own[site][:, list(boundaries)] if site == "resid" else case.own[site]


def _apart(stored: Matrix, own: Matrix) -> Matrix:
    """|S - R| / |R| over the last axis; infinite where S is not finite."""
    with np.errstate(invalid="ignore", over="ignore"):
        found = np.linalg.norm(stored - own, axis=-1) / np.maximum(np.linalg.norm(own, axis=-1), 1e-30)
    return np.where(np.isfinite(found), found, np.inf)


def _errors(cases: list[_Case], boundaries: Sequence[int], change: Callable[[Matrix], Matrix]) -> list[Matrix]:
    """How far changed values of every prompt and site are from the model's."""
    return [_apart(change(values), _at(one, site, boundaries)) for one in cases for site, values in one.stored.items()]


def _median(errors: Matrix) -> float:
    """The median over tokens of the layer that is worst."""
    return float(np.median(errors, axis=0).max())


def _right(errors: Sequence[Matrix], near: float) -> bool:
    return all(_median(one) <= near and one.max() <= FAR * near for one in errors)


def _faults(
    model: Model, stored: Capture, stream: Stream, cases: list[_Case], boundaries: Sequence[int], near: float
) -> Iterator[str]:
    """The mistakes that explain what differs, each in words; the first kind that explains all ends the search."""
    if halves := _overflow(stored, cases, boundaries):
        yield halves
        return
    searches: tuple[Callable[[], list[str]], ...] = (
        lambda: _bits(cases, boundaries, near),
        lambda: _layers(model, cases, boundaries, near),
        lambda: _rows(stored, stream, cases, boundaries, near),
        lambda: _padding(model, stream, cases, boundaries, near),
    )
    for search in searches:
        if found := search():
            yield from found
            return


def _overflow(stored: Capture, cases: list[_Case], boundaries: Sequence[int]) -> str:
    """float16 where the model's values are larger than it holds."""
    lost, most = 0, 0.0
    for case in cases:
        for site, values in case.stored.items():
            own = np.abs(_at(case, site, boundaries))
            beyond = own > LARGEST_HALF
            lost += int((beyond & (~np.isfinite(values) | (np.abs(values) >= LARGEST_HALF))).sum())
            most = max(most, float(own.max()))
    if not lost:
        return ""
    return (
        f"wrong dtype: {lost:,} values overflowed float16, which ends at 65,504; the model has up to {most:,.0f}: capture in"
        " bfloat16 or float32"
    )


def _bits(cases: list[_Case], boundaries: Sequence[int], near: float) -> list[str]:
    """Bits of one 16-bit dtype read as the other, and all values times one factor."""

    def half_of(values: Matrix) -> Matrix:
        return (values.astype(np.float16).view(np.uint16).astype(np.uint32) << 16).view(np.float32)

    def brain_of(values: Matrix) -> Matrix:
        return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.float16).astype(np.float32)

    readings = {
        "wrong dtype: bits of bfloat16 were read as float16": half_of,
        "wrong dtype: bits of float16 were read as bfloat16": brain_of,
    }
    for words, again in readings.items():
        with np.errstate(all="ignore"):
            errors = _errors(cases, boundaries, again)
        if _right(errors, near):
            return [words]
    case = cases[0]
    site, values = next(iter(case.stored.items()))
    own = _at(case, site, boundaries)
    factor = float((values * own).sum() / max(float((own * own).sum()), 1e-30))
    if factor and _right(_errors(cases, boundaries, lambda one: one / factor), near):
        return [f"all values are {factor:.4g} times the model's"]
    return []


def _layers(model: Model, cases: list[_Case], boundaries: Sequence[int], near: float) -> list[str]:
    """Boundaries that hold another's values (off by one), and a last one that went through the final norm."""
    if any("resid" not in case.stored for case in cases):
        return []
    match = list[int | None]()
    for place in range(len(boundaries)):
        medians = np.max(
            [np.median(_apart(case.stored["resid"][:, place, None], case.own["resid"]), axis=0) for case in cases],
            axis=0,
        )
        best = int(medians.argmin())
        match.append(best if medians[best] <= near else None)
    last = model.n_layers
    normed = [place for place, one in enumerate(match) if one is None and _is_normed(model, cases, place, near)]
    rest = {place: one for place, one in enumerate(match) if place not in normed}
    if any(one is None for one in rest.values()):
        return []
    found = [
        f"boundary {boundaries[place]} went through the final norm (normed last layer): store what leaves the last block"
        + ("" if boundaries[place] == last else f", boundary {last}")
        for place in normed
    ]
    shifts = {one - boundaries[place] for place, one in rest.items() if one is not None}
    if shifts - {0}:
        moved = [f"{boundaries[place]} holds {one}" for place, one in rest.items() if one != boundaries[place]]
        kind = "layers are off by one" if shifts <= {1} or shifts <= {-1} else "layers are not those they are stored as"
        found.append(
            f"{kind}: boundary {', '.join(moved[:4])}{' ...' if len(moved) > 4 else ''}; import them with --boundaries"
        )
    return found


def _is_normed(model: Model, cases: list[_Case], place: int, near: float) -> bool:
    errors = []
    with torch.no_grad():
        for case in cases:
            final = torch.from_numpy(np.ascontiguousarray(case.own["resid"][:, -1])).to(model.head_device, model.dtype)
            errors.append(_apart(case.stored["resid"][:, place], model.parts.norm(final).float().cpu().numpy()))
    return all(np.median(one) <= near for one in errors)


def _rows(stored: Capture, stream: Stream, cases: list[_Case], boundaries: Sequence[int], near: float) -> list[str]:
    """Rows of a prompt in another order, and rows of another prompt."""
    found = list[str]()
    for case in cases:
        site = next(iter(case.stored))
        place = case.stored[site].shape[1] // 2
        own = _at(case, site, boundaries)[:, place]
        here = case.stored[site][:, place]
        if np.median(_apart(here, own)) <= near and _apart(here, own).max() <= FAR * near:
            continue
        name = stream.prompt_ids[case.prompt]
        apart = _apart(here[:, None], own[None])  # [stored row, the model's row]
        best = np.where(apart.min(1) <= near, apart.argmin(1), -1)
        moved = np.flatnonzero((best >= 0) & (best != np.arange(len(best))))
        shifts = np.unique((np.arange(len(best)) - best)[moved])
        if len(moved) and len(shifts) == 1 and (best[max(shifts[0], 0) :] >= 0).all() and abs(shifts[0]) < len(best):
            side, late = ("left padding", "late") if shifts[0] > 0 else ("first tokens are missing", "early")
            found.append(f"{side}: rows of prompt {name!r} stand {abs(shifts[0])} positions too {late}")
        elif len(moved) and (best >= 0).all():
            found.append(f"swapped rows: {len(moved)} rows of prompt {name!r} stand in the place of others of it")
        elif other := _elsewhere(stored, stream, case.prompt, site, place, own, near):
            found.append(f"swapped rows: the values of prompt {name!r} are stored as those of {other!r}")
        else:
            return []
    return found


def _elsewhere(
    stored: Capture, stream: Stream, prompt: int, site: str, place: int, own: Matrix, near: float
) -> str | None:
    """The prompt under whose name the values of this one are stored, looked for among its neighbours."""
    order = sorted(range(len(stream.starts)), key=lambda other: abs(other - prompt))[1:SEARCHED]
    for other in order:
        span = slice(int(stream.offset[other]), int(stream.offset[other + 1]))
        rows = min(len(own), span.stop - span.start, 8)
        values = stored.array(site)[span.start : span.start + rows, place]
        errors = _apart(values, own[:rows])
        if rows > 1 and np.median(errors) <= near and np.median(errors[1:]) <= near:
            return str(stream.prompt_ids[other])
    return None


def _padding(model: Model, stream: Stream, cases: list[_Case], boundaries: Sequence[int], near: float) -> list[str]:
    """Padding tokens on the left that the model read: as many as make a prompt as long as another one."""
    lengths, found = np.diff(stream.offset), list[str]()
    for case in cases:
        if _right([_apart(values, _at(case, site, boundaries)) for site, values in case.stored.items()], near):
            continue
        longer = sorted({int(one) - len(case.tokens) for one in lengths if one > len(case.tokens)}, reverse=True)
        for pads in [*longer[:PADS], *range(1, PADS)]:
            own = _own(model, case.tokens, case.stored, pads)
            errors = [
                _apart(values, own[site][:, list(boundaries)] if site == "resid" else own[site])
                for site, values in case.stored.items()
            ]
            if _right(errors, near):
                name = stream.prompt_ids[case.prompt]
                found.append(
                    f"left padding: prompt {name!r} was read behind {pads} padding tokens that were not masked"
                )
                break
        else:
            return []
    return found
