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
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ...analyze.residual import operators
from ...analyze.residual.directions import matched_units
from ...store.core.errors import LakeError
from ...store.core.registry import Registry
from ..model.branches import as_one, each
from ..model.hooks import at_outputs, forward_as
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


class Edit(ABC):
    """A change to a forward: a dataclass whose fields are its settings. `noop` says with which it changes nothing, bit for bit,
    for instance `alpha = 1`."""

    noop: ClassVar[str] = ""

    @abstractmethod
    def attach(self, model: Model, stack: ExitStack) -> None:
        """Hook into the model until `stack` closes."""


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
def edited(model: Model, edits: Sequence[Edit]) -> Iterator[None]:
    """Run the model with these edits inside the block; afterwards it is as it was."""
    with ExitStack() as stack:
        for edit in edits:
            edit.attach(model, stack)
        yield


@dataclass(frozen=True, kw_only=True)
class OutputEdit(Edit):
    """An edit of the output of one module in each of some blocks, at all positions.

    Computed in float32 (float64 models: float64) and rounded once; the study rounds to bfloat16 at every step.
    """

    site: str = "mlp"

    @property
    @abstractmethod
    def blocks(self) -> Collection[int]:
        """Numbers of the edited blocks."""

    @abstractmethod
    def operator(self, layer: int, device: torch.device) -> Operator:
        """What turns the output of a block's module [batch, width, d] into the edited one."""

    def attach(self, model: Model, stack: ExitStack) -> None:
        """Hook the outputs."""
        for layer in _check_blocks(self, model, self.blocks):
            outs = _outs(model.parts, self.site, layer)
            device = next(model.parts.blocks[layer].parameters()).device
            stack.enter_context(at_outputs(outs, partial(_change, self.operator(layer, device))))


def _change(operator: Operator, value: Tensor) -> Tensor:
    return operator(value.to(torch.promote_types(value.dtype, torch.float32))).to(value.dtype)


@dataclass(frozen=True)
class _Along:
    """What an output edit along one unit direction per block has; blocks without a direction are left alone."""

    direction: Mapping[int, np.ndarray]

    @property
    def blocks(self) -> Collection[int]:
        """Numbers of the edited blocks."""
        return self.direction.keys()


@edit
@dataclass(frozen=True)
class Scale(_Along, OutputEdit):
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
class Inject(_Along, OutputEdit):
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
class Matched(_Along, OutputEdit):
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

    def attach(self, model: Model, stack: ExitStack) -> None:
        """Hook both outputs."""
        for site in ("mlp", "attn"):
            Zero(site=site, blocks=self.blocks).attach(model, stack)


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

    def attach(self, model: Model, stack: ExitStack) -> None:
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
