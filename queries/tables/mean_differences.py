"""Jobs that make what directions/ holds: record differences of MLP outputs, and regressions on paired residuals."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from ...analyze.residual import directions as kernels
from ...store.artifacts.directions import DirectionsWriter, directions_path, directions_writer
from ...store.captures.reader import Capture
from ...store.core.errors import LakeError
from ...store.core.schema import VARIANTS
from ..engine.blocks import Block, Columns
from ..engine.context import Context, Scope, all_boundaries
from ..engine.job import Job
from ..probes.choice import Chosen, choose
from .tuned import lens_columns

if TYPE_CHECKING:
    from ...analyze.residual.ridge import Moments

VERSION = 1  # raise when a kernel's numbers change
FEWEST_RECORDS = 10
HELD_OUT = 0.2  # share of prompts that the regression is scored on, not fitted to
GRADIENTS = 1024  # tokens whose KL gradients are averaged


class Group(Job):
    """A job whose result is one group of directions, written to while blocks come."""

    def __init__(self, kit: Context, scope: Scope, kind: str, captures: tuple[Capture, Capture], **recipe: Any):
        names = {variant: capture.path.stem for variant, capture in zip(VARIANTS, captures, strict=True)}
        hashes = {variant: capture.sha256 for variant, capture in zip(VARIANTS, captures, strict=True)}
        recipe |= {"streams": names, "captures": hashes, "version": VERSION}
        super().__init__(f"directions({kind})", directions_path(kit.layout, scope.models, kind, recipe))
        self.captures = captures
        self._open = lambda: directions_writer(kit.layout, scope.models, kind, recipe)
        self._opened = ExitStack()
        self.writer: DirectionsWriter

    def __enter__(self) -> Group:
        self.writer = self._opened.enter_context(self._open())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.__exit__(kind, error, trace)


class _Records(Group):
    """Mean MLP output of each record, IT minus PT, layer by layer, and the mean directions that follow.

    tokens: int [P], over how many generated tokens, as inputs, each prompt is averaged in both captures; 0 leaves the
    prompt out. Source: METHODS 5.1, 6 (0B).
    """

    splits = True

    def __init__(self, kit: Context, scope: Scope, kind: str, captures: tuple[Capture, Capture], tokens: np.ndarray):
        for capture in captures:
            if "mlp_out" not in capture:
                raise LakeError(
                    f"{capture.path}: directions need mlp_out, which this capture left out: capture with the profile full into"
                    " another lake"
                )
        same_shape(*captures)
        super().__init__(kit, scope, kind, captures, site="mlp_out", tokens=int(tokens.sum()), cap=int(tokens.max()))
        self.reads = ("mlp_out",)
        self._tokens, self._kept = tokens, np.flatnonzero(tokens)
        if len(self._kept) < FEWEST_RECORDS:
            raise LakeError(
                f"pair {scope.pair}: {len(self._kept)} prompts have answers of {kernels.SHORTEST} tokens or more from both;"
                f" directions need {FEWEST_RECORDS}: capture more prompts, or longer answers (--max-new-tokens)"
            )

    def __enter__(self) -> _Records:
        super().__enter__()
        self.writer.create("difference", (len(self._kept), *self.captures[0].array("mlp_out").shape[1:]))
        return self

    def part(self, *rows: Block) -> Columns:
        """The differences of a block's records, averaged; it holds whole prompts."""
        here = self._kept[(self._kept >= rows[0].prompts.start) & (self._kept < rows[0].prompts.stop)]
        if not len(here):
            return {}
        pt, it = (kernels.record_means(side["mlp_out"], self._record(side, here), len(here)) for side in rows)
        return {"difference": it - pt}

    def join(self, part: Columns) -> None:
        """Write them."""
        self.writer.append("difference", part["difference"])

    def _record(self, rows: Block, here: np.ndarray) -> np.ndarray:
        """Number of the record among `here` that each token counts for, else -1."""
        prompt = rows.columns["prompt"]
        at = kernels.generated(prompt, rows.columns["step"])
        return np.where((at >= 0) & (at < self._tokens[prompt]), np.searchsorted(here, prompt), -1)

    def finish(self) -> None:
        """Turn the record differences into directions, one layer at a time."""
        self.writer.flush()
        difference, tokens = self.writer["difference"], self._tokens[self._kept]
        mean, record, norm = [], [], []
        for layer in range(difference.shape[1]):
            here = np.asarray(difference[:, layer], np.float64)
            mean.append(kernels.direction(here, tokens))
            record.append(kernels.direction(here))
            norm.append(np.linalg.norm(tokens @ here / tokens.sum()))
        columns = {"tokens": tokens, "prompt": self._kept, "layer": np.arange(len(norm))}
        columns |= {"d_mean": np.stack(mean), "d_record": np.stack(record), "norm": np.stack(norm)}
        for name, values in columns.items():
            self.writer.put(name, values)


class Contrast(Group):
    """Paired differences of both models on one text, regressed on how much later IT converges.

    Per block 0 to L-2 (the last layer's KL to itself is zero): x = h_it - h_pt at the generated tokens, y = difference
    of KL(p_L || p_l), each model through its own lens of one kind, winsorised per prompt. Memory 16 * L * d^2 bytes.
    Source: METHODS 7 (P1, P2).
    """

    lenses = 1.2

    def __init__(self, kit: Context, scope: Scope, lens: str):
        models = list(scope.both.values())
        captures = (kit.capture(models[0]), kit.capture(models[1]))
        for capture in captures:
            all_boundaries(capture, "directions(contrast)")
        same_shape(*captures)
        if not same_text(*captures):
            raise LakeError(
                f"{captures[0].path} and {captures[1].path}: these captures read different continuations, or with different"
                " tokenizers; the regression needs one text"
            )
        answered = answered_by(captures[1])
        recipe: dict[str, Any] = {
            "lens": lens,
            "heads": {variant: kit.head_hash(names) for variant, names in scope.both.items()},
        }
        self._lens = lens
        self._chosen: Chosen | None = None
        if lens != "raw":
            chosen = [choose(kit, names, lens) for names in models]
            recipe["probes"] = [found.name for found in chosen]
            self._chosen = chosen[1]
            self.before = tuple(job for found in chosen for job in found.before)
        super().__init__(kit, scope, "contrast", captures, **recipe)
        self.reads = ("resid",)
        self._kit, self._models = kit, models
        prompts = np.flatnonzero(answered)
        if len(prompts) < FEWEST_RECORDS:
            raise LakeError(
                f"pair {scope.pair}: {len(prompts)} prompts have an answer; the regression needs {FEWEST_RECORDS}"
            )
        held = np.random.default_rng(42).permutation(prompts)[: round(HELD_OUT * len(prompts))]
        self.held_out, self.fitted = len(held), len(prompts) - len(held)
        self._held = np.isin(np.arange(len(answered)), held)
        self._every = -(-int(answered.sum()) // GRADIENTS)
        self._sums: tuple[Moments, Moments] | None = None
        self._norm: Any = 0.0
        self._gradient: Any = 0.0
        self._seen = 0

    def block(self, *rows: Block) -> None:
        """Add a block's generated tokens to the statistics of the fitted or of the held-out prompts."""
        from ...analyze.residual.ridge import Moments, kl_gradient, winsorised

        pt, it = rows
        at = [np.flatnonzero(kernels.generated(part.columns["prompt"], part.columns["step"]) >= 0) for part in rows]
        if not len(at[0]):
            return
        prompt = pt.columns["prompt"][at[0]]
        x = it["resid"][at[1], 1:-1] - pt["resid"][at[0], 1:-1]
        kl = [
            lens_columns(self._kit, names, part, self._lens)["kl_final_layer"][answered, 1:-1].astype(np.float64)
            for names, part, answered in zip(self._models, rows, at, strict=True)
        ]
        y, held = winsorised(kl[1] - kl[0], prompt), self._held[prompt]
        if self._sums is None:
            device = "cpu" if self._kit.device == "mps" else self._kit.device  # it has no float64
            self._sums = (Moments(x.mean(axis=0), device), Moments(x.mean(axis=0), device))
        for moments, kept in zip(self._sums, (~held, held), strict=True):
            moments.add(x[kept], y[kept])
        self._norm = self._norm + np.linalg.norm(x.astype(np.float64), axis=-1).sum(axis=0)
        some = at[1][-self._seen % self._every :: self._every]
        self._seen += len(x)
        if len(some):
            head, ids = self._kit.head(self._models[1]), it.columns["prompt_id"][some]
            for probes, places in self._chosen.readers(ids) if self._chosen else [(None, np.arange(len(some)))]:
                resid = it["resid"][some[places]]
                self._gradient += kl_gradient(head, resid, probes=probes, device=self._kit.device)

    def finish(self) -> None:
        """Fit, score, and keep the directions."""
        from ...analyze.residual.ridge import r2, ridge

        assert self._sums is not None
        fitted, held = self._sums
        fit = ridge(fitted)
        scores = {"r2_train": r2(fit, fitted), "r2_held_out": r2(fit, held)}
        fitted += held
        fit = ridge(fitted)
        scores |= {"r2_in_sample": r2(fit, fitted), "dh_norm": self._norm / self._seen}
        gradient = self._gradient[1:-1]
        size = np.linalg.norm(gradient, axis=-1, keepdims=True)
        towards = np.divide(gradient, size, out=np.full(gradient.shape, np.nan), where=size > 0)
        found = {"layer": np.arange(len(gradient)), "d_conv": fit.direction, "d_grad": towards, **scores}
        for name, values in found.items():
            self.writer.put(name, values)


def same_shape(pt: Capture, it: Capture) -> None:
    """LakeError unless both captures have as many layers and dimensions."""
    site = "mlp_out" if "mlp_out" in pt and "mlp_out" in it else "resid"
    sizes = [capture.array(site).shape[1:] for capture in (pt, it)]
    if sizes[0] != sizes[1]:
        raise LakeError(
            f"{it.path}: {site} is {sizes[1]} a token, PT's {sizes[0]}; directions compare models of one shape"
        )


def answered_by(capture: Capture) -> np.ndarray:
    """Number of generated tokens of each prompt, int64 [P]."""
    prompt, step = capture.array("prompt")[:], capture.array("step")[:]
    return np.bincount(prompt[kernels.generated(prompt, step) >= 0], minlength=len(capture.array("prompt_id")[:]))


def same_text(pt: Capture, it: Capture) -> bool:
    """Whether two captures read the same continuations, token by token."""
    tokens = []
    for capture in (pt, it):
        prompt, step = capture.array("prompt")[:], capture.array("step")[:]
        tokens.append(capture.array("token_id")[:][kernels.generated(prompt, step) >= 0])
    return np.array_equal(tokens[0], tokens[1]) and np.array_equal(answered_by(pt), answered_by(it))


# --- which captures --------------------------------------------------------------------------------------------------


def sibling(kit: Context, scope: Scope, recipe: str) -> Scope:
    """The captures of the same pair and prompts on another stream recipe; LakeError with the command that makes them."""
    streams = kit.streams_of(scope.pair)
    mine = streams[(streams["variant"] == "it") & (streams["stream"] == scope.streams["it"])].iloc[0]
    same = streams[["prompt_set", "max_new_tokens"]].eq(mine[["prompt_set", "max_new_tokens"]]).all(axis=1)
    there = streams[same & (streams["recipe"] == recipe)]
    if set(there["variant"]) != set(VARIANTS):
        raise LakeError(
            f"pair {scope.pair}: this also needs captures of pt and it on stream {recipe!r} for the same prompts",
            repair=f"run `actlake capture {scope.pair} --stream {recipe} --prompts {mine['prompts']}`",
        )
    return replace(scope, streams=dict(zip(there["variant"], there["stream"], strict=True)), recipe=recipe)


def records(kit: Context, own: Scope, kind: str) -> _Records:
    """The record differences of a pair: `own` texts, or those `it` or `pt` answered, which the other one is forced to read."""
    answered = [answered_by(kit.capture(own.names(variant))) for variant in VARIANTS]
    if len(answered[0]) != len(answered[1]):
        raise LakeError(
            f"pair {own.pair}: {len(answered[0])} prompts of PT against {len(answered[1])} of IT; capture both on the same"
        )
    shortest = np.minimum(*answered)
    counts = {
        "own": np.minimum(shortest, kernels.CAP) - 1,
        "forced_pt": np.minimum(answered[1], kernels.FORCED),
        "forced_it": np.minimum(answered[0], kernels.FORCED),
    }
    recipe = {"own": own.recipe or "native", "forced_pt": "teacher", "forced_it": "reverse"}[kind]
    scope = own if kind == "own" else sibling(kit, own, recipe)
    captures = [kit.capture(scope.names(variant)) for variant in VARIANTS]
    if kind == "own" and same_text(captures[0], captures[1]):
        raise LakeError(f"pair {own.pair}: both captures read one answer; the mean direction needs each model's own")
    tokens = np.where(shortest >= kernels.SHORTEST, counts[kind], 0)
    return _Records(kit, own, kind, (captures[0], captures[1]), tokens)
