"""How tuned-lens probes are trained: the published recipe (SGD with Nesterov momentum), the study's with Adam, and our own."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

    Parameters = dict[str, list[Tensor]]


@dataclass(frozen=True)
class Recipe:
    """What all recipes have: tokens a step, steps, and how often training is evaluated and when it ends.

    batch: tokens a step, over which the loss is averaged. clip: largest norm of one probe's gradient (weight and bias
    together), or None. check_every: steps between evaluations of the held-out KL. patience: evaluations without a new best
    after which a probe stops; `least_gain` is the share of it by which a new best has to be lower to count there, `look` the
    held-out tokens of an evaluation. `start_ridges`: see `Ridge`. Each probe keeps its best state. ValueError on numbers that
    make no sense.
    """

    name: ClassVar[str] = ""
    look: ClassVar[int] = 2048  # as many as the study reported on
    least_gain: ClassVar[float] = 0.0
    start_ridges: ClassVar[tuple[float, ...]] = ()
    batch: int = 1
    steps: int = 1
    clip: float | None = None
    check_every: int = 50
    patience: int = 3

    def __post_init__(self) -> None:
        for field in ("batch", "steps", "check_every", "patience"):
            if getattr(self, field) < 1:
                raise ValueError(f"recipe {self.name}: {field} is {getattr(self, field)}, expected at least 1")

    def optimizer(self, parameters: Iterable[Parameters]) -> Optimizer:
        """The optimiser of groups of parameters, its learning rate still to be set for every step."""
        raise NotImplementedError

    def rate(self, step: int, steps: int) -> float:
        """Learning rate of step 0 .. steps - 1."""
        raise NotImplementedError

    def tokens(self, there: int, width: int) -> int:
        """How many tokens a fold is trained on that has `there` different ones, of a model of this width."""
        return self.steps * self.batch

    def record(self) -> dict[str, Any]:
        """The recipe as JSON."""
        return {"name": self.name, **asdict(self)}


@dataclass(frozen=True)
class Sgd(Recipe):
    """The published recipe: Nesterov momentum 0.9, learning rate scale * (1 - 0.9) that falls linearly, clip 1.

    scale: 0.25 for Gemma, 0.5 for Qwen and DeepSeek, else 1 (`family_scale`). The study ran all 250 steps and kept the
    best state, so patience never ends a run. Source: METHODS 3.2.
    """

    name: ClassVar[str] = "sgd"
    batch: int = 262_144
    steps: int = 250
    clip: float | None = 1.0
    patience: int = 1_000
    scale: float = 1.0
    momentum: float = 0.9

    def optimizer(self, parameters: Iterable[Parameters]) -> Optimizer:
        from torch.optim import SGD

        return SGD(parameters, lr=0.0, momentum=self.momentum, nesterov=True)

    def rate(self, step: int, steps: int) -> float:
        return self.scale * (1.0 - self.momentum) * (1.0 - step / steps)


@dataclass(frozen=True)
class Adam(Recipe):
    """Adam with decoupled weight decay, 5 % of warm-up, then a cosine to zero, and early stopping.

    Batch, learning rate, decay and schedule of the study's other recipe, whose quality figures are the ones it committed;
    that one took 5,000 steps, which small captures have no tokens for. Source: METHODS 3.2
    (known pitfall: Adam lens figures).
    """

    name: ClassVar[str] = "adam"
    batch: int = 64
    steps: int = 500
    check_every: int = 100
    peak: float = 1e-3
    decay: float = 1e-3
    warmup: float = 0.05

    def optimizer(self, parameters: Iterable[Parameters]) -> Optimizer:
        from torch.optim import AdamW

        return AdamW(parameters, lr=0.0, weight_decay=self.decay)

    def rate(self, step: int, steps: int) -> float:
        rise = self.warmup * steps
        if step < rise:
            return self.peak * (step + 1) / (rise + 1)
        return self.peak * 0.5 * (1.0 + math.cos(math.pi * (step - rise) / (steps - rise)))


@dataclass(frozen=True)
class Ridge(Adam):
    """Least squares, then few steps of Adam: a tenth of the logits of Adam alone. What is trained by default.

    A probe starts as the ridge solution for the last residuals (`least_squares`) with that of `start_ridges` of which the
    held-out KL is lowest, or as the identity where that is lower still. Its learning rate is `peak` / width, times the size of
    the last residuals over that of its own, at most 16. There are 10 steps for each token a unit of the width, 24 to `steps`: few
    tokens bear few steps. No weight decays. Source: METHODS 3.2.
    """

    name: ClassVar[str] = "ridge"
    look: ClassVar[int] = 192
    least_gain: ClassVar[float] = 0.005
    start_ridges: ClassVar[tuple[float, ...]] = (0.3, 0.1, 0.03)
    steps: int = 500
    check_every: int = 8
    patience: int = 1
    peak: float = 0.12
    decay: float = 0.0

    def tokens(self, there: int, width: int) -> int:
        return self.batch * min(max(round(10 * there / width), 24), self.steps)

    def record(self) -> dict[str, Any]:
        more = {"look": self.look, "least_gain": self.least_gain, "start_ridges": list(self.start_ridges)}
        return {**super().record(), **more}


RECIPES: dict[str, type[Recipe]] = {kind.name: kind for kind in (Sgd, Adam, Ridge)}


def family_scale(family: str) -> float:
    """The published `Sgd.scale` of a model family, found in a class name such as Gemma3ForCausalLM (METHODS 3.2)."""
    known = {"gemma": 0.25, "qwen": 0.5, "deepseek": 0.5}
    return next((scale for word, scale in known.items() if word in family.lower()), 1.0)
