"""The Jacobian lens: the mean derivative of a model's last residual by the residual at each earlier boundary.

Of one prompt J_l is the mean over source tokens t of the sum over target tokens t' of d resid_L[t'] / d resid_l[t]; both are
the tokens from `skip` on but the last one, and by causality those before t add nothing. Prompts count alike. Exact, by
reverse mode: one forward of a batch, then a backward pass for each unit of the last residual, which gives that row of J at
all boundaries and for all prompts of the batch. Memory: the graph of the forward, GRAPH floats a token, block and unit,
and the sums. Source: METHODS 3.4; Gurnee et al. 2026, transformer-circuits.pub/2026/workspace.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import numpy as np
import torch
from torch import Tensor

from ...store.core.errors import LakeError
from ..checkpoint.causes import cause
from ..model.hooks import Batch, at_boundary
from ..model.load import Model
from ..model.trace import accepted

GRAPH = 20  # floats that a forward with its graph holds for each token, block and unit of the width; measured
IN_FLIGHT = {"cpu": (1024, 3 << 29)}  # tokens of a batch and bytes of its graph, at most
ACCELERATOR = (16_384, 32 << 30)
SAVE_SECONDS = 60.0
SAVE_SHARE = 20  # times as long as a save takes is computed before the next one


class JacobianSums:
    """What a fit has added up so far, by the fold that a prompt is in; a state carries it between processes.

    total [F, L, d, d] (the rows are those of the last residual) in the model's dtype, square [F, L] (squared Frobenius norms
    of the prompts' J), mean [F, L+1, d] (mean residuals of the prompts' source tokens) and count [F], float64. `place` is
    where the fit stands: the batch start..stop of its prompts, and the rows that are done of it.
    """

    def __init__(self, folds: int, layers: int, width: int, dtype: torch.dtype, device: torch.device | str):
        double = torch.float32 if torch.device(device).type == "mps" else torch.float64
        self.total = torch.zeros(folds, layers, width, width, dtype=dtype, device=device)
        self.square = torch.zeros(folds, layers, dtype=double, device=device)
        self.mean = torch.zeros(folds, layers + 1, width, dtype=double, device=device)
        self.count = np.zeros(folds, np.int64)
        self.place = (0, 0, 0)

    def state(self) -> dict[str, np.ndarray]:
        """Everything a later process needs to go on, as arrays by name."""
        sums = {name: getattr(self, name).cpu().numpy() for name in ("total", "square", "mean")}
        return {**sums, "count": self.count, "place": np.array(self.place, np.int64)}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Take over the `state` of a fit of the same model, prompts and folds."""
        for name in ("total", "square", "mean"):
            getattr(self, name).copy_(torch.from_numpy(state[name]))
        start, stop, row = state["place"].tolist()
        self.count, self.place = state["count"].copy(), (start, stop, row)

    def lenses(self, centred: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """weight [F, L, d, d] and bias [F, L, d] of each fold, float32, and the relative error [F, L] of its weight.

        A fold's lens is the mean over the prompts of all other folds; of a single fold over all. The bias is 0, or with
        `centred` what maps the mean residual to the mean last one. The error is that of a mean of so many prompts, in
        Frobenius norms: the spread of their J over the root of their number, relative to the mean; NaN for one prompt.
        """
        folds = len(self.count)
        weight = np.empty(tuple(self.total.shape), np.float32)
        bias, error = np.zeros(weight.shape[:3], np.float32), np.full(weight.shape[:2], np.nan)
        for fold in range(folds):
            others = [other for other in range(folds) if other != fold or folds == 1]
            n = int(self.count[others].sum())
            weight[fold] = (self.total[others].sum(0) / n).cpu().numpy()
            size = np.square(weight[fold], dtype=np.float64).sum((1, 2))
            if n > 1:
                variance = (self.square[others].sum(0).cpu().numpy() / n - size) * n / (n - 1)
                error[fold] = np.sqrt(variance.clip(0) / n / size)
            if centred:
                mean = (self.mean[others].sum(0) / n).cpu().numpy()
                bias[fold] = mean[-1] - np.einsum("led,ld->le", weight[fold], mean[:-1])
        return weight, bias, error


def in_flight(device: str, layers: int, width: int) -> int:
    """Tokens that a batch has at most, padding with them, so that its graph fits."""
    tokens, size = IN_FLIGHT.get(torch.device(device).type, ACCELERATOR)
    return max(1, min(tokens, size // (4 * GRAPH * layers * width)))


def fit(
    model: Model,
    sequences: Sequence[np.ndarray],
    fold: np.ndarray,
    skip: int,
    sums: JacobianSums,
    tokens: int,
    save: Callable[[], None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Add the prompts' J to `sums`, going on from where these stand; `sequences` (the shortest first) have a source each.

    `fold` is the fold of each prompt, `tokens` how many are computed together. `save` is called at most every SAVE_SECONDS,
    `progress` with the rows of prompts' J that are done. LakeError for a model whose backward pass can't be computed.
    """
    model.hf.requires_grad_(False)
    width, saved, spent = model.head.d_model, time.monotonic(), 0.0
    while sums.place[1] < len(sequences) or sums.place[2]:
        start, stop, row = sums.place
        if not row:
            start, stop = stop, _end(sequences, stop, tokens)
        rows = list(sequences[start:stop])
        states, valid = _forward(model, rows, skip)
        final, sources = states[-1], states[:-1]
        share = valid / valid.sum(1, keepdim=True)
        of = {
            k: torch.from_numpy(np.flatnonzero(fold[start:stop] == k)).to(final.device) for k in range(len(sums.count))
        }
        for at in range(row, width):
            for layer, gradient in enumerate(_row(model, final, sources, valid, at, at + 1 < width)):
                mine = torch.einsum("bt,btd->bd", share, gradient)
                for k, places in of.items():  # in the same order on every device
                    sums.total[k, layer, at] += mine[places].sum(0)
                    sums.square[k, layer] += mine[places].to(sums.square.dtype).square().sum()
            sums.place = (start, stop, at + 1)
            if at + 1 == width:
                for boundary, state in enumerate(states):
                    mean = torch.einsum("bt,btd->bd", share, state.detach()).to(sums.mean.dtype)
                    for k, places in of.items():
                        sums.mean[k, boundary] += mean[places].sum(0)
                np.add.at(sums.count, fold[start:stop], 1)
                sums.place = (stop, stop, 0)
            if progress:
                progress(len(rows))
            now = time.monotonic()
            if save and now - saved >= max(SAVE_SECONDS, SAVE_SHARE * spent):
                save()
                saved = time.monotonic()
                spent = saved - now


def _end(sequences: Sequence[np.ndarray], start: int, tokens: int) -> int:
    """Where a batch ends that begins with a prompt: as many as fit, padded to the longest; one at least."""
    stop = start + 1
    while stop < len(sequences) and (stop + 1 - start) * len(sequences[stop]) <= tokens:
        stop += 1
    return stop


def _forward(model: Model, rows: list[np.ndarray], skip: int) -> tuple[list[Tensor], Tensor]:
    """The residuals of a batch at every boundary, [B, T, d] with their graph, and which tokens count, [B, T] of 0 and 1."""
    batch, states = Batch(rows, 0, model.device), list[Tensor]()

    def enter(value: Tensor) -> Tensor:
        states.append(value.detach().clone().requires_grad_())
        return states[0].clone()

    def leave(value: Tensor) -> Tensor:  # a copy goes on: the next block may add to it in place
        states.append(value)
        return value.clone()

    with ExitStack() as stack:
        for boundary in range(model.n_layers + 1):
            stack.enter_context(at_boundary(model.parts.blocks, boundary, 0, leave if boundary else enter))
        stack.enter_context(torch.enable_grad())
        model.hf(**accepted(model.hf, {**batch.given, **batch.beside}))
    valid = torch.zeros(batch.ids.shape, dtype=states[-1].dtype, device=states[-1].device)
    for row, length in enumerate(batch.lengths):
        valid[row, skip : length - 1] = 1
    return states, valid


def _row(
    model: Model, final: Tensor, sources: list[Tensor], valid: Tensor, unit: int, again: bool
) -> tuple[Tensor, ...]:
    """The derivatives of one unit of the last residual, summed over tokens that count, by every source [B, T, d]."""
    seed = torch.zeros_like(final)
    seed[..., unit] = valid
    try:
        return tuple(torch.autograd.grad(final, sources, seed, retain_graph=again))
    except RuntimeError as error:
        raise LakeError(
            f"{model.name}: a backward pass through {type(model.hf).__name__} can't be computed: {cause(error)}; a Jacobian lens"
            " can't be fitted here"
        ) from error
