"""Jobs that make directions: record differences and regressions from the captures, then tables of what these say."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import numpy as np

from ..analyze import directions as kernels
from ..analyze.contrast import Moments, kl_gradient, r2, ridge, winsorised
from ..store.captures import Capture, CheckedArray
from ..store.directions import DirectionsWriter, directions_file, directions_writer, read_directions
from ..store.errors import LakeError
from ..store.schema import VARIANTS
from ..store.tables import connect, stream_table
from .build import Kit, Names, Scope, all_boundaries, jobs_of, raw_lens
from .sweep import Job, Rows, TableJob

VERSION = 1  # raise when a kernel's numbers change
FEWEST_RECORDS = 10
RESAMPLES = 200  # of records, for the intervals of a cosine
SIZES = (10, 25, 50, 100, 150, 200, 300, 400, 500, 600, 1000, 1400)  # of subsets in 0A; METHODS has 100 and up
SPLIT = 600  # records in a calibration set, or half of all where there are fewer
HELD_OUT = 0.2  # share of prompts that the regression is scored on, not fitted to
GRADIENTS = 1024  # tokens whose KL gradients are averaged
Arrays = Mapping[str, CheckedArray]
Line = tuple[str, int | None, int | None, int, Any, int]  # name, layer, other, draw, value, n


# --- what is stored in directions/ -----------------------------------------------------------------------------------


class _Group(Job):
    """A job whose result is one group of directions, written to while blocks come."""

    def __init__(self, kit: Kit, pair: str, kind: str, captures: tuple[Capture, Capture], **recipe: Any):
        names = {variant: capture.path.stem for variant, capture in zip(VARIANTS, captures, strict=True)}
        hashes = {variant: capture.sha256 for variant, capture in zip(VARIANTS, captures, strict=True)}
        recipe |= {"streams": names, "captures": hashes, "version": VERSION}
        super().__init__(f"directions({kind})", directions_file(kit.layout, pair, kind, recipe))
        self.captures = captures
        self._open = lambda: directions_writer(kit.layout, pair, kind, recipe)
        self._opened = ExitStack()
        self.writer: DirectionsWriter

    def __enter__(self) -> _Group:
        self.writer = self._opened.enter_context(self._open())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.__exit__(kind, error, trace)


class Records(_Group):
    """Mean MLP output of each record, IT minus PT, layer by layer, and the mean directions that follow.

    tokens: int [P], over how many generated tokens, as inputs, each prompt is averaged in both captures; 0 leaves the
    prompt out. Source: METHODS 5.1, 6 (0B).
    """

    def __init__(self, kit: Kit, pair: str, kind: str, captures: tuple[Capture, Capture], tokens: np.ndarray):
        for capture in captures:
            if "mlp_out" not in capture.group:
                raise LakeError(
                    f"{capture.path}: directions need mlp_out, which this capture left out: capture with the profile full into"
                    " another lake"
                )
        same_shape(*captures)
        super().__init__(kit, pair, kind, captures, site="mlp_out", tokens=int(tokens.sum()), cap=int(tokens.max()))
        self.reads = ("mlp_out",)
        self._tokens, self._kept = tokens, np.flatnonzero(tokens)
        if len(self._kept) < FEWEST_RECORDS:
            raise LakeError(
                f"pair {pair}: {len(self._kept)} prompts have answers of {kernels.SHORTEST} tokens or more from both models;"
                f" directions need {FEWEST_RECORDS}: capture more prompts, or longer answers (--max-new-tokens)"
            )

    def __enter__(self) -> Records:
        super().__enter__()
        self.writer.create("difference", (len(self._kept), *self.captures[0].array("mlp_out").shape[1:]))
        return self

    def block(self, *rows: Rows) -> None:
        """Average the records of a block, which holds whole prompts."""
        here = self._kept[(self._kept >= rows[0].prompts.start) & (self._kept < rows[0].prompts.stop)]
        if len(here):
            pt, it = (kernels.record_means(part["mlp_out"], self._record(part, here), len(here)) for part in rows)
            self.writer.append("difference", it - pt)

    def _record(self, rows: Rows, here: np.ndarray) -> np.ndarray:
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


class Contrast(_Group):
    """Paired differences of both models on one text, regressed on how much later IT converges.

    Per block 0 to L-2 (the last layer's KL to itself is zero): x = h_it - h_pt at the generated tokens, y = difference
    of KL(p_L || p_l), each model through its own raw lens, winsorised per prompt. Memory 16 * L * d^2 bytes.
    Source: METHODS 7 (P1, P2).
    """

    def __init__(self, kit: Kit, scope: Scope):
        models = [(scope.pair, variant, scope.streams[variant]) for variant in VARIANTS]
        captures = (kit.capture(models[0]), kit.capture(models[1]))
        for capture in captures:
            all_boundaries(capture, "directions(contrast)")
        same_shape(*captures)
        told = same_text(*captures)
        heads = {names[1]: kit.head_hash(names) for names in models}
        super().__init__(kit, scope.pair, "contrast", captures, lens="raw", heads=heads)
        self.reads = ("resid",)
        self._kit, self._models = kit, models
        prompts = np.flatnonzero(told)
        if len(prompts) < FEWEST_RECORDS:
            raise LakeError(
                f"pair {scope.pair}: {len(prompts)} prompts have an answer; the regression needs {FEWEST_RECORDS}"
            )
        held = np.random.default_rng(42).permutation(prompts)[: round(HELD_OUT * len(prompts))]
        self.held_out, self.fitted = len(held), len(prompts) - len(held)
        self._held = np.isin(np.arange(len(told)), held)
        self._every = -(-int(told.sum()) // GRADIENTS)
        self._device = "cpu" if kit.device == "mps" else kit.device  # it has no float64
        self._sums: tuple[Moments, Moments] | None = None
        self._norm: Any = 0.0
        self._gradient: Any = 0.0
        self._seen = 0

    def block(self, *rows: Rows) -> None:
        """Add a block's generated tokens to the statistics of the fitted or of the held-out prompts."""
        pt, it = rows
        at = [np.flatnonzero(kernels.generated(part.columns["prompt"], part.columns["step"]) >= 0) for part in rows]
        if not len(at[0]):
            return
        prompt = pt.columns["prompt"][at[0]]
        x = it["resid"][at[1], 1:-1] - pt["resid"][at[0], 1:-1]
        kl = [
            raw_lens(self._kit, names, part)["kl_final_layer"][told, 1:-1].astype(np.float64)
            for names, part, told in zip(self._models, rows, at, strict=True)
        ]
        y, held = winsorised(kl[1] - kl[0], prompt), self._held[prompt]
        if self._sums is None:
            self._sums = (Moments(x.mean(axis=0), self._device), Moments(x.mean(axis=0), self._device))
        for moments, kept in zip(self._sums, (~held, held), strict=True):
            moments.add(x[kept], y[kept])
        self._norm = self._norm + np.linalg.norm(x.astype(np.float64), axis=-1).sum(axis=0)
        some = at[1][-self._seen % self._every :: self._every]
        self._seen += len(x)
        if len(some):
            head = self._kit.head(self._models[1])
            self._gradient = self._gradient + kl_gradient(head, it["resid"][some], device=self._kit.device)

    def finish(self) -> None:
        """Fit, score, and keep the directions."""
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
    site = "mlp_out" if "mlp_out" in pt.group and "mlp_out" in it.group else "resid"
    sizes = [capture.array(site).shape[1:] for capture in (pt, it)]
    if sizes[0] != sizes[1]:
        raise LakeError(
            f"{it.path}: {site} is {sizes[1]} a token, PT's {sizes[0]}; directions compare models of one shape"
        )


def told_by(capture: Capture) -> np.ndarray:
    """Number of generated tokens of each prompt, int64 [P]."""
    prompt, step = capture.array("prompt")[:], capture.array("step")[:]
    return np.bincount(prompt[kernels.generated(prompt, step) >= 0], minlength=len(capture.array("prompt_id")[:]))


def same_text(pt: Capture, it: Capture) -> np.ndarray:
    """Generated tokens per prompt of two captures that read the same continuation; LakeError when they did not."""
    tokens = []
    for capture in (pt, it):
        prompt, step = capture.array("prompt")[:], capture.array("step")[:]
        tokens.append(capture.array("token_id")[:][kernels.generated(prompt, step) >= 0])
    if not np.array_equal(tokens[0], tokens[1]) or not np.array_equal(told_by(pt), told_by(it)):
        raise LakeError(
            f"{pt.path} and {it.path}: these captures read different continuations, or with different tokenizers"
        )
    return told_by(it)


# --- which captures --------------------------------------------------------------------------------------------------


def _streams(kit: Kit, scope: Scope, recipe: str) -> tuple[dict[str, str], str]:
    """variant -> stream of the captures of the same pair and prompts on another recipe, and the prompt set's name."""
    streams = stream_table(kit.layout)
    streams = streams[streams["pair"] == scope.pair]
    mine = streams[(streams["variant"] == "it") & (streams["stream"] == scope.streams["it"])].iloc[0]
    same = streams[["prompt_set", "max_new_tokens"]].eq(mine[["prompt_set", "max_new_tokens"]]).all(axis=1)
    there = streams[same & (streams["recipe"] == recipe)]
    return dict(zip(there["variant"], there["stream"], strict=True)), str(mine["prompts"])


def sibling(kit: Kit, scope: Scope, recipe: str) -> Scope:
    """The captures of the same pair and prompts on another stream recipe; LakeError with the command that makes them."""
    there, prompts = _streams(kit, scope, recipe)
    if set(there) != set(VARIANTS):
        raise LakeError(
            f"pair {scope.pair}: this question also needs captures of pt and it on stream {recipe!r} for the same prompts; run"
            f" `actlake capture {scope.pair} --stream {recipe} --prompts {prompts}`"
        )
    return Scope(scope.pair, there, recipe)


def _records(kit: Kit, own: Scope, kind: str) -> Records:
    """The record differences of a pair: `own` texts, or those `it` or `pt` told, which the other one is forced to read."""
    told = [told_by(kit.capture((own.pair, variant, own.streams[variant]))) for variant in VARIANTS]
    if len(told[0]) != len(told[1]):
        raise LakeError(
            f"pair {own.pair}: {len(told[0])} prompts of PT against {len(told[1])} of IT; capture both on the same"
        )
    shortest = np.minimum(*told)
    counts = {
        "own": np.minimum(shortest, kernels.CAP) - 1,
        "forced_pt": np.minimum(told[1], kernels.FORCED),
        "forced_it": np.minimum(told[0], kernels.FORCED),
    }
    recipe = {"own": own.recipe or "native", "forced_pt": "teacher", "forced_it": "reverse"}[kind]
    scope = own if kind == "own" else sibling(kit, own, recipe)
    captures = [kit.capture((scope.pair, variant, scope.streams[variant])) for variant in VARIANTS]
    tokens = np.where(shortest >= kernels.SHORTEST, counts[kind], 0)
    return Records(kit, own.pair, kind, (captures[0], captures[1]), tokens)


# --- tables ----------------------------------------------------------------------------------------------------------


class DirectionsTable(TableJob):
    """Rows of the table `directions` of one kind, from the groups that `before` makes."""

    def __init__(
        self,
        kit: Kit,
        scope: Scope,
        kind: str,
        before: tuple[Job, ...],
        lines: Callable[[list[Arrays]], Iterable[Line]],
    ):
        self._named = {
            "pair": scope.pair,
            "variant": "both",
            "stream": scope.streams["it"],
            "stream_pt": scope.streams["pt"],
            "kind": kind,
        }
        made = [job.path for job in before]
        super().__init__(
            kit.layout, "directions", {**self._named, "from": [path.stem for path in made], "version": VERSION}
        )
        self.before = before
        self._groups = [job.path for job in before if isinstance(job, _Group)]
        self._lines = lines

    def finish(self) -> None:
        """Compute and write the rows."""
        lines = list(self._lines([read_directions(path)[0] for path in self._groups]))
        columns = dict(zip(("name", "layer", "other", "draw", "value", "n"), zip(*lines, strict=True), strict=True))
        values = np.asarray(columns.pop("value"), np.float64)
        self.add({**self._named, **{name: list(column) for name, column in columns.items()}, "value": values})


def directions_table(kit: Kit, scope: Scope, kind: str) -> Job:
    """The job that makes the rows of one kind; scope holds the pair's captures on their own texts (contrast: the teacher's)."""
    if kind not in KINDS:
        raise LakeError(f"directions({kind}): expected one of {', '.join(KINDS)}")
    if set(scope.streams) != set(VARIANTS):
        raise LakeError(f"pair {scope.pair}: directions compare pt and it; capture both")
    return KINDS[kind](kit, scope)


def _stability(kit: Kit, scope: Scope) -> Job:
    return DirectionsTable(kit, scope, "stability", (_records(kit, scope, "own"),), _stability_lines)


def _stability_lines(groups: list[Arrays]) -> Iterator[Line]:
    """0A: cosines of bootstrap resamples with each other and with all records, and of random subsets with all."""
    for layer, d in _layers(groups[0]):
        n = len(d)
        found = kernels.stability(d)
        yield from _draws("resample", layer, found["canonical"], n)
        yield "pairwise_mean", layer, None, 0, found["pairwise"].mean(), n
        yield "pairwise_min", layer, None, 0, found["pairwise"].min(), n
        for size in (size for size in SIZES if size <= n):
            yield from _draws("subset", layer, kernels.convergence(d, size), size)


def _spread(kit: Kit, scope: Scope) -> Job:
    return DirectionsTable(kit, scope, "spread", (_records(kit, scope, "own"),), _spread_lines)


def _spread_lines(groups: list[Arrays]) -> Iterator[Line]:
    """PCA of the record differences in each layer, and cosines between the directions of two layers (column other)."""
    mean, n = groups[0]["d_mean"][:].astype(np.float64), len(groups[0]["tokens"][:])
    for layer, d in _layers(groups[0]):
        found = kernels.components(d)
        for place, share in enumerate(found["share"], 1):
            yield "share", layer, place, 0, share, n
        yield "pc1_mean", layer, None, 0, float(found["pc1_mean"]), n
        yield "mean_share", layer, None, 0, float(found["mean_share"]), n
        for other in range(layer):
            yield "between", layer, other, 0, mean[layer] @ mean[other], n


def _matched(kit: Kit, scope: Scope) -> Job:
    before = [_records(kit, scope, "own"), _records(kit, scope, "forced_pt")]
    if set(_streams(kit, scope, "reverse")[0]) == set(VARIANTS):  # an extra that few lakes have
        before.append(_records(kit, scope, "forced_it"))
    return DirectionsTable(kit, scope, "matched", tuple(before), _matched_lines)


def _matched_lines(groups: list[Arrays]) -> Iterator[Line]:
    """0B: cosine of the direction on the same tokens with the canonical one, and its resamples."""
    tokens = groups[0]["tokens"][:].astype(np.float64)
    weight = np.concatenate([np.ones((1, len(tokens))), kernels.resamples(len(tokens), RESAMPLES)])
    for name, group in zip(("matched", "reverse"), groups[1:], strict=False):
        for layer, own in _layers(groups[0]):
            found = kernels.agreement(own, group["difference"][:, layer], weight * tokens, weight)
            yield from _draws(name, layer, found, len(tokens), first=0)


def _splits(kit: Kit, scope: Scope) -> Job:
    """0H: calibration sets by how unlikely PT finds IT's answer."""
    teacher = sibling(kit, scope, "teacher")
    before: list[Job] = [_records(kit, scope, "own")]
    before += jobs_of(kit, ("lens", "raw", Scope(scope.pair, {"pt": teacher.streams["pt"]}, "teacher")))

    def lines(groups: list[Arrays]) -> Iterator[Line]:
        prompts, n = groups[0]["prompt"][:], len(groups[0]["prompt"][:])
        contrast = _nats(kit, (scope.pair, "pt", teacher.streams["pt"]))[prompts]
        sets = kernels.splits(contrast, min(SPLIT, n // 2))
        weight = np.concatenate([np.ones((1, n)), kernels.resamples(n, RESAMPLES)])
        pairs = [(a, b) for a in sets for b in sets if list(sets).index(a) < list(sets).index(b)]
        for layer, d in _layers(groups[0]):
            for a, b in pairs:
                found = kernels.agreement(d, d, weight * sets[a], weight * sets[b])
                yield from _draws(f"{a}-{b}", layer, found, min(SPLIT, n // 2), first=0)

    return DirectionsTable(kit, scope, "splits", tuple(before), lines)


def _nats(kit: Kit, names: Names) -> np.ndarray:
    """Mean negative log-likelihood [P] of the continuation of each prompt under a captured model, nats a token."""
    pair, variant, stream = names
    found = connect(kit.layout).execute(
        "SELECT prompt, avg(-ln(greatest(p_target, 1e-38))) FROM lens WHERE pair = ? AND variant = ? AND stream = ?"
        " AND lens = 'raw' AND step >= 0 AND layer = (SELECT max(layer) FROM lens WHERE pair = ?) GROUP BY prompt",
        [pair, variant, stream, pair],
    )
    nats = np.full(len(kit.capture(names).array("prompt_id")[:]), np.nan)
    for prompt, value in found.fetchall():
        nats[prompt] = value
    return nats


def _contrast(kit: Kit, scope: Scope) -> Job:
    """exp10: how well d_conv predicts, and its cosines with d_mean and with the KL gradient."""
    contrast, own = Contrast(kit, scope), _records(kit, sibling(kit, scope, "native"), "own")

    def lines(groups: list[Arrays]) -> Iterator[Line]:
        found = {name: array[:] for name, array in groups[0].items()}
        mean = groups[1]["d_mean"][:-1].astype(np.float64)
        found["conv_mean"] = (found["d_conv"] * mean).sum(-1)
        found["conv_grad"] = (found["d_conv"] * found["d_grad"]).sum(-1)
        found["mean_grad"] = (mean * found["d_grad"]).sum(-1)
        for name in ("r2_in_sample", "r2_train", "r2_held_out", "conv_mean", "conv_grad", "mean_grad", "dh_norm"):
            n = {"r2_train": contrast.fitted, "r2_held_out": contrast.held_out}.get(
                name, contrast.fitted + contrast.held_out
            )
            for layer, value in zip(found["layer"].tolist(), found[name].tolist(), strict=True):
                yield name, layer, None, 0, value, n

    return DirectionsTable(kit, scope, "contrast", (contrast, own), lines)


def _layers(group: Arrays) -> Iterator[tuple[int, np.ndarray]]:
    """(layer, record differences [R, d]) of a group, one layer in memory at a time."""
    difference = group["difference"]
    return ((layer, difference[:, layer].astype(np.float64)) for layer in range(difference.shape[1]))


def _draws(name: str, layer: int, values: np.ndarray, n: int, first: int = 1) -> Iterator[Line]:
    return ((name, layer, None, draw, value, n) for draw, value in enumerate(values.tolist(), first))


KINDS: dict[str, Callable[[Kit, Scope], Job]] = {
    "stability": _stability,
    "spread": _spread,
    "matched": _matched,
    "splits": _splits,
    "contrast": _contrast,
}
