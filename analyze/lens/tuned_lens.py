"""The tuned lens: an affine probe per boundary, trained so that it predicts the final distribution."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.arrays import LOG2_E, Array, as_tensor
from ..core.html import facts
from ..tuned.least_squares import least_squares
from ..tuned.recipes import Recipe
from ..tuned.shuffle_buffer import Shuffle
from .head import Head

# Rows of logits in flight: products get no faster above the first, the second bounds what two tables of them take.
ROWS = 512
LOGIT_BYTES = 256 << 20
# Smaller probabilities are raised to e^-60: negligible, and far from the denormal numbers that slow products down.
FLOOR = -60.0
SAVE_SECONDS = 60.0
FASTEST = 16.0  # how much faster than the last probe another may learn (recipes.Ridge)


@dataclass(frozen=True)
class Probes:
    """T_l(h) = weight[l] h + bias[l] for the boundaries 0 .. L-1; weight [L, d, d] and bias [L, d], float32.

    The last boundary has no probe: it is what the others are compared with. ValueError on shapes that do not fit.
    Source: METHODS 3.2.
    """

    weight: Tensor
    bias: Tensor

    def __post_init__(self) -> None:
        layers, width = self.bias.shape if self.bias.ndim == 2 else (0, 0)
        if tuple(self.weight.shape) != (layers, width, width):
            raise ValueError(f"probes: weight {tuple(self.weight.shape)} and bias {tuple(self.bias.shape)} do not fit")

    def __repr__(self) -> str:
        return f"Probes({len(self.bias)} boundaries, width {self.bias.shape[-1]:,})"

    def _repr_html_(self) -> str:
        layers, width = self.bias.shape
        return facts(
            "Probes of a tuned lens", {"boundaries": layers, "width": f"{width:,}", "device": str(self.bias.device)}
        )

    @classmethod
    def identity(cls, layers: int, width: int, device: str | torch.device = "cpu") -> Probes:
        """Probes that change nothing: the raw lens."""
        eye = torch.eye(width, device=device).repeat(layers, 1, 1)
        return cls(eye, torch.zeros(layers, width, device=device))

    def to(self, device: str | torch.device) -> Probes:
        """The same probes on another device."""
        return Probes(self.weight.to(device), self.bias.to(device))

    def __call__(self, resid: Tensor) -> Tensor:
        """Translate residuals [n, L+1, d], float32; the last boundary stays as it is. ValueError on another shape."""
        layers, width = self.bias.shape
        if resid.ndim != 3 or resid.shape[1:] != (layers + 1, width):
            raise ValueError(f"probes of {layers} boundaries of width {width} on residuals {tuple(resid.shape)}")
        out = torch.empty_like(resid, memory_format=torch.contiguous_format)
        for layer in range(layers):
            torch.addmm(self.bias[layer], resid[:, layer], self.weight[layer].T, out=out[:, layer])
        out[:, -1] = resid[:, -1]
        return out


class Objective:
    """KL(p_L || p_l) in nats of rows of residuals and its gradient, through a head, `rows` rows at a time.

    `against` sets the last layer's distribution p_L once for all layers of a batch. The gradient on the logits is
    p_l - p_L, written where the logits were: autograd never sees the vocabulary. Memory: two tables of rows x
    vocabulary in float32 (three with a soft cap), at most LOGIT_BYTES for the two.
    """

    def __init__(self, head: Head, device: str = "cpu") -> None:
        self.head, self.device = head.to(device), device
        self.rows = max(1, min(ROWS, LOGIT_BYTES // (8 * head.vocab)))
        self._final, self._table = (torch.empty(self.rows, head.vocab, device=device) for _ in range(2))
        self._slope = torch.empty_like(self._table) if head.softcap else None
        self._scratch = torch.empty(min(self.rows, 64), head.vocab, device=device)
        self._own = torch.empty(0, device=device)

    @torch.no_grad()
    def against(self, last: Tensor) -> None:
        """Set p_L from residuals of the last boundary [n, d], n at most `rows`."""
        z = self._logits(self.head.normed(last), self._final)
        e = _exp(z, self._table[: len(z)])
        mass = e.sum(-1, keepdim=True)
        self._own = self._dot(e, z) / mass[:, 0] - mass[:, 0].log()
        torch.div(e, mass, out=z)

    @torch.no_grad()
    def kl(self, normed: Tensor, gradient: bool = False) -> tuple[Tensor, Tensor]:
        """KL(p_L || p) [n] of normed residuals [n, d]; with `gradient` also its gradient on them [n, d], else empty."""
        final, z = self._final[: len(normed)], self._logits(normed, self._table)
        cross = self._dot(final, z)
        e = _exp(z, z)
        mass = e.sum(-1, keepdim=True)
        kl = self._own - cross + mass[:, 0].log()
        if not gradient:
            return kl, normed.new_empty(0)
        change = e.div_(mass).sub_(final)
        if self._slope is not None:
            change.mul_(self._slope[: len(z)])
        return kl, (change @ self.head.unembed).mul_(self.head.logit_scale)

    def _logits(self, normed: Tensor, table: Tensor) -> Tensor:
        """Logits of normed rows less each row's largest, so that sums over them lose no digits; written into `table`."""
        z = self.head.project(normed, 0, self.head.vocab, out=table[: len(normed)])
        if self._slope is not None and self.head.softcap:  # of cap * tanh(z / cap): 1 - tanh^2
            torch.div(z, self.head.softcap, out=self._slope[: len(z)]).square_().neg_().add_(1.0)
        return z.sub_(z.amax(-1, keepdim=True))

    def _dot(self, a: Tensor, b: Tensor) -> Tensor:
        """Row-wise products of two tables [n, V] -> [n]; a few rows at a time, ten times faster than vecdot on a CPU."""
        parts = zip(a.split(len(self._scratch)), b.split(len(self._scratch)), strict=True)
        return torch.cat([torch.mul(x, y, out=self._scratch[: len(x)]).sum(-1) for x, y in parts])


def _exp(z: Tensor, out: Tensor) -> Tensor:
    """exp(z) of z <= 0 into `out`; exp2 is vectorised on every processor."""
    return torch.clamp(z, min=FLOOR, out=out).mul_(LOG2_E).exp2_()


class Trainer:
    """Trains the probes of all boundaries side by side: `add` accumulates gradients, `step` updates, `check`
    evaluates and keeps the best state; `advance` does all of it from a feed.

    objective: that of the model's head, which several trainers may share. boundaries: L + 1. `steps` replaces the recipe's
    number of steps. Memory: 4 (SGD) or 5 (Adam) times the probes' 4 L d^2 bytes, whatever the number of rows.

    `state` and `restore` carry a run between processes: restored after a step, it continues bit for bit on the same
    machine. Source: METHODS 3.2; Belrose et al. 2023, arXiv:2303.08112.
    """

    def __init__(self, objective: Objective, boundaries: int, recipe: Recipe, steps: int | None = None) -> None:
        if boundaries < 2:
            raise ValueError(f"tuned lens: {boundaries} boundaries, expected at least 2")
        self.objective, self.recipe, self.steps = objective, recipe, steps or recipe.steps
        self.best = Probes.identity(boundaries - 1, objective.head.d_model, objective.device)
        self.weight = [w.clone().requires_grad_() for w in self.best.weight]
        self.bias = [b.clone().requires_grad_() for b in self.best.bias]
        self.best_kl = np.full(len(self.bias), np.inf)
        self.stale = np.zeros(len(self.bias), dtype=np.int64)  # checks since the best one
        self.done = self.seen = 0  # steps, and the rows that went into them
        self.curve: list[dict[str, Any]] = []
        self._parameters = [p for pair in zip(self.weight, self.bias, strict=True) for p in pair]
        self._optimizer = recipe.optimizer({"params": list(pair)} for pair in zip(self.weight, self.bias, strict=True))
        self.speed = np.ones(len(self.bias))  # of each probe, times the recipe's learning rate
        self._loss, self._rows = np.zeros(len(self.bias)), 0  # since the last check; in the step under way

    @property
    def active(self) -> list[int]:
        """Probes that are still being trained; none when the run is over."""
        return [] if self.done >= self.steps else np.flatnonzero(self.stale < self.recipe.patience).tolist()

    def add(self, resid: Array) -> None:
        """Add the gradients of rows [n, L+1, d] to the step under way."""
        for part in as_tensor(resid).split(self.objective.rows):
            h = part.to(self.objective.device, torch.float32)
            self.objective.against(h[:, -1])
            for layer in self.active:
                normed = self.objective.head.normed(torch.addmm(self.bias[layer], h[:, layer], self.weight[layer].T))
                kl, gradient = self.objective.kl(normed.detach(), gradient=True)
                normed.backward(gradient)
                self._loss[layer] += float(kl.sum())
            self._rows += len(part)

    def step(self) -> None:
        """One optimiser step of every active probe on the mean over the rows added since the last one."""
        for layer in self.active:
            pair = (self.weight[layer], self.bias[layer])
            for parameter in pair:
                parameter.grad = None if parameter.grad is None else parameter.grad.div_(self._rows)
            if self.recipe.clip is not None:
                torch.nn.utils.clip_grad_norm_(pair, self.recipe.clip)
        for group, speed in zip(self._optimizer.param_groups, self.speed.tolist(), strict=True):
            group["lr"] = self.recipe.rate(self.done, self.steps) * speed
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)  # without gradient the optimiser leaves a stopped probe alone
        self.done, self.seen, self._rows = self.done + 1, self.seen + self._rows, 0

    def check(self, held_out: Array) -> np.ndarray:
        """Mean KL [L] of each probe on rows [n, L+1, d] that it is not trained on; keeps what is best so far.

        The first check, before any step, is that of the raw lens. ValueError when it is not finite.
        """
        moved = self.stale < self.recipe.patience  # the others are what they were at the last check
        found = self.measure(held_out, np.flatnonzero(moved).tolist())
        if self.curve:
            found = np.where(moved, found, self.curve[-1]["held_out"])
        if not (self.curve or np.isfinite(found).all()):
            raise ValueError("tuned lens: the KL of the raw lens is not finite; the residuals hold NaN or infinity")
        rows = self.seen - (self.curve[-1]["tokens"] if self.curve else 0)
        trained = [
            float(loss) / rows if rows and layer in self.active else None for layer, loss in enumerate(self._loss)
        ]
        self.curve.append({"step": self.done, "tokens": self.seen, "train": trained, "held_out": found.tolist()})
        self._loss[:] = 0.0
        better = found < self.best_kl
        for layer in np.flatnonzero(better):
            self.best.weight[layer], self.best.bias[layer] = self.weight[layer].detach(), self.bias[layer].detach()
        gained = found < self.best_kl * (1 - self.recipe.least_gain)
        self.best_kl = np.where(better, found, self.best_kl)
        self.stale = np.where(gained, 0, self.stale + 1)
        return found

    def start(self, feed: Shuffle, held_out: Array) -> None:
        """Begin with the best of the recipe's `start_ridges`, fitted to what the feed holds, where it beats the raw lens.

        As the ridge falls, a probe that gets no better tries no smaller one.
        """
        for ridge in self.recipe.start_ridges:
            last = feed.filled(-1).to(self.objective.device, torch.float32)
            for layer in self.active:
                here = feed.filled(layer).to(self.objective.device, torch.float32)
                self._set(layer, *least_squares(here, last, ridge))
                self.speed[layer] = min(float(last.norm() / here.norm()), FASTEST) / here.shape[-1]
            self.check(held_out)
            self.curve[-1]["ridge"] = ridge
        for layer in range(len(self.bias)):
            self._set(layer, self.best.weight[layer], self.best.bias[layer])
        self.stale[:] = 0

    @torch.no_grad()
    def _set(self, layer: int, weight: Tensor, bias: Tensor) -> None:
        self.weight[layer].copy_(weight)
        self.bias[layer].copy_(bias)

    @torch.no_grad()
    def measure(self, resid: Array, layers: Sequence[int] | None = None) -> np.ndarray:
        """Mean KL(p_L || p_l) [L] in nats of the probes as they are now, on rows [n, L+1, d]; float64, 0 for other `layers`."""
        total, rows = np.zeros(len(self.bias)), as_tensor(resid)
        for part in rows.split(self.objective.rows):
            h = part.to(self.objective.device, torch.float32)
            self.objective.against(h[:, -1])
            for layer in range(len(self.bias)) if layers is None else layers:
                mapped = torch.addmm(self.bias[layer], h[:, layer], self.weight[layer].T)
                normed = self.objective.head.normed(mapped)
                total[layer] += float(self.objective.kl(normed)[0].sum())
        return total / max(len(rows), 1)

    def advance(self, feed: Shuffle, held_out: Array) -> int:
        """One step on the feed's next rows, and a check when one is due; returns how many rows, 0 when none were left."""
        missing = self.recipe.batch
        while missing and len(rows := feed.take(min(missing, self.objective.rows))):
            self.add(rows)
            missing -= len(rows)
        if missing < self.recipe.batch:
            self.step()
        else:
            self.steps = self.done
        due = self.done % self.recipe.check_every == 0 or self.done >= self.steps
        if due and self.curve[-1]["step"] < self.done:
            self.check(held_out)
        return self.recipe.batch - missing

    def state(self) -> dict[str, np.ndarray]:
        """Everything a later process needs to continue after the last step, as arrays by name."""
        arrays = {f"probe/{i}": p.detach() for i, p in enumerate(self._parameters)}
        arrays |= {"best/weight": self.best.weight, "best/bias": self.best.bias}
        for i, moments in self._optimizer.state_dict()["state"].items():
            arrays |= {f"optimizer/{i}/{name}": value for name, value in moments.items() if value is not None}
        found = {name: torch.as_tensor(value).cpu().numpy() for name, value in arrays.items()}
        numbers = {
            "done": self.done,
            "seen": self.seen,
            "loss": self._loss,
            "best_kl": self.best_kl,
            "stale": self.stale,
            "speed": self.speed,
        }
        return found | {name: np.asarray(value) for name, value in numbers.items()}

    def restore(self, state: Mapping[str, np.ndarray], curve: list[dict[str, Any]]) -> None:
        """Take over the `state` and `curve` of a run of the same recipe, head and boundaries."""
        with torch.no_grad():
            for i, parameter in enumerate(self._parameters):
                parameter.copy_(torch.from_numpy(state[f"probe/{i}"]))
            self.best.weight.copy_(torch.from_numpy(state["best/weight"]))
            self.best.bias.copy_(torch.from_numpy(state["best/bias"]))
        moments: dict[int, dict[str, Tensor]] = {}
        for name in state:
            if name.startswith("optimizer/"):
                _, index, what = name.split("/")
                moments.setdefault(int(index), {})[what] = torch.from_numpy(state[name])
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.done, self.seen = int(state["done"]), int(state["seen"])
        self._loss, self.best_kl, self.stale, self.speed = (
            state[name].copy() for name in ("loss", "best_kl", "stale", "speed")
        )
        self.curve = [dict(line) for line in curve]


def train(
    runs: Sequence[tuple[Trainer, Shuffle, Array]],
    *,
    save: Callable[[], None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Probes]:
    """Train several sets of probes in turn, a step each: (trainer, its rows, its held-out rows). Returns their best states.

    A run ends when its steps, its rows or every probe's patience are used up. Restored trainers continue from their last step:
    feeds must begin anew, and the rows already seen are left out. `save` is called when trainers have looked at the
    held-out rows and when SAVE_SECONDS have passed, `progress` with the rows of each step.
    """
    for trainer, feed, held_out in runs:
        feed.skip(trainer.seen)
        if not trainer.curve:
            trainer.check(held_out)
            trainer.start(feed, held_out)
    saved, looks = time.monotonic(), sum(len(trainer.curve) for trainer, *_ in runs)
    while active := [run for run in runs if run[0].active]:
        for trainer, feed, _ in runs:
            if not trainer.active:
                feed.close()  # rows that nobody takes need not wait
        for trainer, feed, held_out in active:
            rows = trainer.advance(feed, held_out)
            if progress:
                progress(rows)
        found = sum(len(trainer.curve) for trainer, *_ in runs)
        if save and (found > looks or time.monotonic() - saved >= SAVE_SECONDS):
            save()
            saved, looks = time.monotonic(), found
    return [trainer.best for trainer, *_ in runs]
