"""Edits: changes to what a model computes, attached as hooks; the same objects serve replay and free generation.

Blocks have their numbers of the full model. Edits of one model are attached in the order given: a later one sees what an
earlier one left. Sites are `mlp` and `attn` (the module's output, before any norm that follows, METHODS 1.2) and `block`.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ...analyze.residual import operators
from ...analyze.residual.directions import matched_units
from ...store.core.errors import LakeError
from ...store.core.registry import Registry
from ..model.branches import as_one, each
from ..model.hooks import at_boundary, at_outputs, forward_as
from ..model.load import Model
from ..model.partial import Donor
from ..model.structure import Structure
from ..model.trace import first_tensor, hidden_input

Operator = Callable[[Tensor], Tensor]
# Site -> the modules of a block whose outputs it is.
SITES: dict[str, Callable[[Structure, int], Sequence[nn.Module]]] = {
    "mlp": lambda parts, layer: parts.mlp(layer).outs,
    "attn": lambda parts, layer: parts.attention(layer).outs,
    "block": lambda parts, layer: [parts.blocks[layer]],
}


E = TypeVar("E", bound="Edit")


class States(Protocol):
    """Hidden states of a stream's flat tokens: `states[start:stop]` is float [stop - start, d], for tokens of one prompt."""

    def __getitem__(self, tokens: slice, /) -> np.ndarray: ...


@dataclass(frozen=True)
class Slots:
    """Which tokens of the stream a batch holds: flat tokens start..stop of each sequence, `width` slots a sequence."""

    spans: Sequence[tuple[int, int]]
    width: int

    def padded(self, states: States) -> np.ndarray:
        """The states of these tokens, float32 [batch, width, d], zeros in the padding."""
        rows = [states[start:stop] for start, stop in self.spans]
        out = np.zeros((len(rows), self.width, rows[0].shape[-1]), np.float32)
        for row, values in zip(out, rows, strict=True):
            row[: len(values)] = values
        return out

    def mask(self, tokens: np.ndarray | None) -> Tensor:
        """True where a slot holds a real token, of those that `tokens` (bool, flat) marks if given; [batch, width]."""
        out = torch.zeros(len(self.spans), self.width, dtype=torch.bool)
        for row, (start, stop) in zip(out, self.spans, strict=True):
            row[: stop - start] = True if tokens is None else torch.from_numpy(np.asarray(tokens[start:stop], bool))
        return out


class Edit(ABC):
    """A change to a forward: a dataclass whose fields are its settings. `noop` says with which it changes nothing, bit for bit,
    for instance `alpha = 1`."""

    noop: ClassVar[str] = ""

    @abstractmethod
    def attach(self, model: Model, slots: Slots | None, stack: ExitStack) -> None:
        """Hook into the model until `stack` closes; `slots` are the tokens of a replayed batch, None in free generation."""


EDITS: Registry[type[Edit]] = Registry("edit")
WORD = "word"  # metadata of a field: its default where an edit is given in words


def edit(kind: type[E]) -> type[E]:
    """Declare an edit, so that it can be given in words: `actlake generate MODEL --edit clamp:layers=late,limit=3`.

    The word is the name of the dataclass, Clamp or RandomGraft (`random_graft`); its fields are the settings, of type float, int,
    bool or str, those without a default needed. `blocks`, `direction` and `donor` are filled from `layers=` and `direction=`.
    LakeError for a word that another edit has.
    """
    EDITS.declare(re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower(), kind, kind)
    return kind


@contextmanager
def edited(model: Model, edits: Sequence[Edit], slots: Slots | None = None) -> Iterator[None]:
    """Run the model with these edits inside the block; afterwards it is as it was."""
    with ExitStack() as stack:
        for edit in edits:
            edit.attach(model, slots, stack)
        yield


@dataclass(frozen=True, kw_only=True)
class OutputEdit(Edit):
    """An edit of the output of one module in each of some blocks, at all positions or at the flat `tokens` marked.

    Computed in float32 (float64 models: float64) and rounded once; the study rounds to bfloat16 at every step.
    """

    site: str = "mlp"
    tokens: np.ndarray | None = None

    @property
    @abstractmethod
    def blocks(self) -> Collection[int]:
        """Numbers of the edited blocks."""

    @abstractmethod
    def operator(self, layer: int, device: torch.device) -> Operator:
        """What turns the output of a block's module [batch, width, d] into the edited one."""

    def attach(self, model: Model, slots: Slots | None, stack: ExitStack) -> None:
        """Hook the outputs."""
        mask = None if self.tokens is None else _of(slots, "chosen tokens").mask(self.tokens)[..., None]
        for layer in _check_blocks(self, model, self.blocks):
            outs = _outs(model.parts, self.site, layer)
            device = next(model.parts.blocks[layer].parameters()).device
            change = partial(_change, self.operator(layer, device), None if mask is None else mask.to(device))
            stack.enter_context(at_outputs(outs, change))


def _change(operator: Operator, mask: Tensor | None, value: Tensor) -> Tensor:
    new = operator(value.to(torch.promote_types(value.dtype, torch.float32))).to(value.dtype)
    return new if mask is None else torch.where(mask.reshape(*value.shape[:-1], 1), new, value)


@dataclass(frozen=True)
class DirectionEdit(OutputEdit):
    """An output edit along one unit direction per block; blocks without a direction are left alone."""

    direction: Mapping[int, np.ndarray]

    @property
    def blocks(self) -> Collection[int]:
        """Numbers of the edited blocks."""
        return self.direction.keys()


@edit
@dataclass(frozen=True)
class Scale(DirectionEdit):
    """m' = m + (alpha - 1)(m.d)d: scale the component along d; 0 removes it. METHODS 5.2.

    With a random direction (residual.directions.random_units) this is the study's control A1_rand.
    """

    alpha: float
    noop: ClassVar[str] = "alpha = 1"

    def operator(self, layer: int, device: torch.device) -> Operator:
        """The scaling of one block."""
        d = _unit(self, self.direction, layer, device)
        return lambda m: operators.scale(m, d.to(m), self.alpha)


@edit
@dataclass(frozen=True)
class Inject(DirectionEdit):
    """m' = m + beta d; `relative`: m + beta |m| d, by each token's norm (A2). METHODS 5.2."""

    beta: float
    relative: bool = field(default=False, metadata={WORD: "true"})
    noop: ClassVar[str] = "beta = 0"

    def operator(self, layer: int, device: torch.device) -> Operator:
        """The injection of one block."""
        d = _unit(self, self.direction, layer, device)
        return lambda m: operators.inject(m, d.to(m), self.beta, self.relative)


@edit
@dataclass(frozen=True)
class Matched(DirectionEdit):
    """m' = m + (alpha - 1) s (m.u)u with s = |m.d| / max(|m.u|, 1e-8): as large a change as `Scale` makes, along a random u.

    Each token's change has the size of that along d; u is a unit vector of each block, drawn by `seed`. METHODS 5.2 (0C).
    """

    alpha: float
    seed: int = 42
    noop: ClassVar[str] = "alpha = 1"

    def operator(self, layer: int, device: torch.device) -> Operator:
        """The scaling of one block."""
        random = matched_units([layer], len(self.direction[layer]), self.seed)
        d, u = _unit(self, self.direction, layer, device), _unit(self, random, layer, device)
        return lambda m: operators.scale_matched(m, d.to(m), u.to(m), self.alpha)


@edit
@dataclass(frozen=True)
class Zero(OutputEdit):
    """Zero a module's output."""

    blocks: Collection[int] = ()
    noop: ClassVar[str] = "no blocks"

    def operator(self, layer: int, device: torch.device) -> Operator:
        """Zeros."""
        return torch.zeros_like


@edit
@dataclass(frozen=True)
class Skip(Edit):
    """Zero the MLP's and the attention's output of some blocks, which leaves the residual as it is. METHODS 5.2 (A5a)."""

    blocks: Collection[int] = ()
    noop: ClassVar[str] = "no blocks"

    def attach(self, model: Model, slots: Slots | None, stack: ExitStack) -> None:
        """Hook both outputs."""
        for site in ("mlp", "attn"):
            Zero(site=site, blocks=self.blocks).attach(model, slots, stack)


@edit
@dataclass(frozen=True)
class Graft(Edit):
    """An MLP transplant: the donor's MLPs replace the host's in some blocks (None: all that the donor has).

    They read the MLP input of the host (the recipient), whose norms and attention stay. With the PT as host this is the
    study's graft, with the IT as host its swap. All positions. METHODS 8, 9.
    """

    donor: Donor
    blocks: Collection[int] | None = None
    noop: ClassVar[str] = "the host's own MLPs as donor"

    def attach(self, model: Model, slots: Slots | None, stack: ExitStack) -> None:
        """Put the donor's modules in place."""
        for layer in _check_blocks(self, model, self.donor.mlps if self.blocks is None else self.blocks):
            for host, donor in zip(model.parts.mlp(layer).whole, each(self._donor(model, layer)), strict=True):
                stack.enter_context(forward_as(host, partial(self.forward, layer, host.forward, donor)))

    def forward(self, layer: int, host: Callable[..., Any], donor: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """What the MLP returns; `host` is its own forward."""
        return donor(*args, **kwargs)

    def _donor(self, model: Model, layer: int) -> nn.Module:
        """The donor's module; LakeError unless it fits."""
        donor = self.donor.mlps.get(layer)
        if donor is None:
            have = ", ".join(map(str, self.donor.mlps))
            raise LakeError(f"donor {self.donor.name}: no MLP of block {layer} is loaded, only of {have}")
        ours, theirs = (_shapes(module) for module in (as_one(model.parts.mlp(layer).whole), donor))
        if ours != theirs:
            name = next(name for name in [*ours, *theirs] if ours.get(name) != theirs.get(name))
            found, expected = theirs.get(name, "no such weight"), ours.get(name, "no such weight")
            raise LakeError(
                f"donor {self.donor.name}: the MLP of block {layer} doesn't fit into {model.name}: {name} is {found}, expected"
                f" {expected}; host and donor must have one architecture, dtype and device"
            )
        return donor


@edit
@dataclass(frozen=True)
class RandomGraft(Graft):
    """The host's MLP output plus a random vector shaped like the graft's change: METHODS 17 (exp19B, delta_rand).

    With delta = donor(x) - host(x) the added vector has delta's signed projection on the MLP input x and, orthogonal to
    x, delta's norm along a random direction. The random vector is one per block (torch.randn, seed + 7919 * block, as in
    5.2), made orthogonal to each token's x, so that batching changes nothing.
    """

    seed: int = 42

    def _donor(self, model: Model, layer: int) -> nn.Module:
        """The donor's module; LakeError unless it fits and is one, with an output to compare."""
        if len(whole := model.parts.mlp(layer).whole) > 1:
            kinds = ", ".join(type(module).__name__ for module in whole)
            raise LakeError(
                f"edit {type(self).__name__} of {model.name}: the MLP of block {layer} is {len(whole)} modules of it ({kinds});"
                " a random graft needs one"
            )
        return super()._donor(model, layer)

    def forward(self, layer: int, host: Callable[..., Any], donor: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """The host's output and the random vector."""
        x = hidden_input(args, kwargs)[1].clone()
        value = host(*args, **kwargs)
        m = first_tensor(value).clone()
        wide = torch.promote_types(m.dtype, torch.float32)
        delta = first_tensor(donor(*args, **kwargs)).to(wide) - m.to(wide)
        generator = torch.Generator().manual_seed(self.seed + 7919 * layer)
        random = torch.randn(m.shape[-1], generator=generator, dtype=torch.float32).to(m.device, wide)
        new = (m.to(wide) + operators.random_like(delta, x.to(wide).reshape(m.shape), random)).to(m.dtype)
        return (new, *value[1:]) if isinstance(value, tuple) else new


@dataclass(frozen=True)
class BoundaryPatch(Edit):
    """Replace the residual at a boundary by given states, at all positions or at the flat `tokens` marked.

    `states` holds those of the replayed stream's flat tokens, for instance the donor's stored boundary
    (edit.replay.borrowed). METHODS 17 (exp23).
    """

    boundary: int
    states: States
    tokens: np.ndarray | None = None
    noop: ClassVar[str] = "the host's own states"

    def attach(self, model: Model, slots: Slots | None, stack: ExitStack) -> None:
        """Hook the boundary."""
        slots, parts = _of(slots, "stored states"), model.parts
        if not parts.first <= self.boundary <= len(parts.blocks):
            raise LakeError(
                f"boundary patch of {model.name}: no boundary {self.boundary}; the blocks that run have boundaries {parts.first}"
                f" to {len(parts.blocks)}"
            )
        state, mask = torch.from_numpy(slots.padded(self.states)), slots.mask(self.tokens)[..., None]

        def change(resid: Tensor) -> Tensor:
            return torch.where(mask.to(resid.device), state.to(resid), resid)

        stack.enter_context(at_boundary(parts.blocks, self.boundary, parts.first, change))


def _check_blocks(of: Edit, model: Model, blocks: Collection[int]) -> Collection[int]:
    """The blocks of an edit; LakeError for one that the model does not have or that does not run."""
    first, count = model.parts.first, len(model.parts.blocks)
    if wrong := [layer for layer in blocks if not first <= layer < count]:
        raise LakeError(
            f"edit {type(of).__name__} of {model.name}: block {wrong[0]} is outside the blocks that run, {first} to {count - 1}"
        )
    return blocks


def _outs(parts: Structure, site: str, layer: int) -> Sequence[nn.Module]:
    """The modules whose outputs make up a site of a block; LakeError for an unknown site."""
    if site not in SITES:
        raise LakeError(f"edit: unknown site {site!r}; expected one of {', '.join(SITES)}")
    return SITES[site](parts, layer)


def _of(slots: Slots | None, what: str) -> Slots:
    if slots is None:
        raise LakeError(f"an edit with {what} needs a replay: free generation makes tokens that no stream has yet")
    return slots


def _unit(of: Edit, directions: Mapping[int, np.ndarray], layer: int, device: torch.device) -> Tensor:
    """A block's direction as float64 tensor; LakeError unless it has norm 1."""
    found = torch.as_tensor(np.asarray(directions[layer], np.float64))
    norm = float(found.norm())
    if found.ndim != 1 or not abs(norm - 1) < 1e-3:
        raise LakeError(
            f"edit {type(of).__name__}: the direction of block {layer} has shape {tuple(found.shape)} and norm {norm:.3g},"
            " expected one vector of norm 1"
        )
    return found.to(device, torch.float32 if device.type == "mps" else torch.float64)


def _shapes(module: nn.Module) -> dict[str, str]:
    return {name: f"{p.dtype} {tuple(p.shape)} on {p.device}" for name, p in module.named_parameters()}
