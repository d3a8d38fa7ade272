"""The table `directions`: what the groups that `records` makes say about stability, spread, matched tokens and splits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from ...analyze.residual import directions as kernels
from ...store.artifacts.directions import read_directions
from ...store.core.columns import BOTH, LAYER, Column, label_column
from ...store.core.errors import LakeError
from ...store.core.schema import VARIANTS
from ...store.format.zarr_groups import CheckedArray
from ...store.tables.files import drop_tables
from ...store.tables.sql import connect
from ..engine.context import Context, Names, Scope
from ..engine.declare import table
from ..engine.job import Job, TableJob
from .mean_differences import VERSION, Contrast, Group, records, sibling
from .per_layer import raw_lens_table

RESAMPLES = 200  # of records, for the intervals of a cosine
SIZES = (10, 25, 50, 100, 150, 200, 300, 400, 500, 600, 1000, 1400)  # of subsets in 0A; METHODS has 100 and up
SPLIT = 600  # records in a calibration set, or half of all where there are fewer
Arrays = Mapping[str, CheckedArray]
Line = tuple[str, int | None, int | None, int, Any, int]  # name, layer, other, draw, value, n


class _DirectionsTable(TableJob):
    """Rows of the table `directions` of one kind, from the groups that `before` makes."""

    def __init__(
        self,
        kit: Context,
        scope: Scope,
        kind: str,
        before: tuple[Job, ...],
        lines: Callable[[list[Arrays]], Iterable[Line]],
    ):
        self._named = {
            **scope.columns,
            "variant": "both",
            "stream": scope.streams["it"],
            "stream_pt": scope.streams["pt"],
            "kind": kind,
        }
        self._same = {"models": scope.models, **{name: self._named[name] for name in ("stream", "stream_pt", "kind")}}
        made = [job.path for job in before]
        super().__init__(
            kit.layout, "directions", {**self._same, "from": [path.stem for path in made], "version": VERSION}
        )
        self.before, self._layout = before, kit.layout
        self._groups = [job.path for job in before if isinstance(job, Group)]
        self._lines = lines

    def finish(self) -> None:
        """Compute and write the rows."""
        lines = list(self._lines([read_directions(path, self._layout.files)[0] for path in self._groups]))
        columns = dict(zip(("name", "layer", "other", "draw", "value", "n"), zip(*lines, strict=True), strict=True))
        values = np.asarray(columns.pop("value"), np.float64)
        drop_tables(self._layout, "directions", self._same, keep=self.path)
        self.add({**self._named, **{name: list(column) for name, column in columns.items()}, "value": values})


@table(
    "directions",
    [
        *BOTH,
        label_column(
            "kind",
            "question: stability, spread, matched, reverse, splits, contrast, contrast_tuned or contrast_jacobian",
            fill="CASE WHEN name IN ('matched', 'reverse') THEN name"
            " WHEN regexp_matches(name, '^(top|random|all)[-_]') THEN 'splits'"
            " WHEN name IN ('resample', 'subset', 'pairwise_mean', 'pairwise_min') THEN 'stability'"
            " WHEN name IN ('share', 'pc1_mean', 'mean_share', 'between') THEN 'spread' END",
        ),
        label_column("name", "what is measured (METHODS 6, 7)"),
        LAYER,
        label_column("other", "second layer, or place of a component", "int32", null="of one layer"),
        label_column("draw", "0: of all records; from 1 up: of a resample or subset", "int32", fill="0"),
        Column("value", "float32", "cosine, share or R2", "1", null="undefined"),
        Column("n", "int32", "records", "records"),
    ],
    "How stable directions from PT to IT are, and how they agree.",
    "kind x name x layer x draw",
    of="pair",
    version=1,
    kinds=("stability", "spread", "matched", "reverse", "splits", "contrast", "contrast_tuned"),
    kind_columns=lambda kind: {"kind": kind} if kind else {},
)
def directions_table(kit: Context, scope: Scope, kind: str) -> Job:
    """The job that makes the rows of one kind; scope holds the pair's captures on their own texts (contrast: the teacher's)."""
    if kind not in KINDS:
        raise LakeError(f"directions({kind}): expected one of {', '.join(KINDS)}")
    if set(scope.streams) != set(VARIANTS):
        raise LakeError(f"pair {scope.pair}: directions compare pt and it; capture both")
    return KINDS[kind](kit, scope)


def _stability(kit: Context, scope: Scope) -> Job:
    return _DirectionsTable(kit, scope, "stability", (records(kit, scope, "own"),), _stability_lines)


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


def _spread(kit: Context, scope: Scope) -> Job:
    return _DirectionsTable(kit, scope, "spread", (records(kit, scope, "own"),), _spread_lines)


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


def _matched(kit: Context, scope: Scope) -> Job:
    return _forced(kit, scope, "matched", "forced_pt")


def _reverse(kit: Context, scope: Scope) -> Job:
    return _forced(kit, scope, "reverse", "forced_it")


def _forced(kit: Context, scope: Scope, name: str, kind: str) -> Job:
    """0B: cosine of the direction on the same tokens with the canonical one, and its resamples."""

    def lines(groups: list[Arrays]) -> Iterator[Line]:
        own, forced = groups
        tokens = own["tokens"][:].astype(np.float64)
        weight = np.concatenate([np.ones((1, len(tokens))), kernels.resamples(len(tokens), RESAMPLES)])
        for layer, d in _layers(own):
            found = kernels.agreement(d, forced["difference"][:, layer], weight * tokens, weight)
            yield from _draws(name, layer, found, len(tokens), first=0)

    return _DirectionsTable(kit, scope, name, (records(kit, scope, "own"), records(kit, scope, kind)), lines)


def _splits(kit: Context, scope: Scope) -> Job:
    """0H: calibration sets by how unlikely PT finds IT's answer."""
    teacher = sibling(kit, scope, "teacher")
    before = (records(kit, scope, "own"), raw_lens_table(kit, teacher.names("pt")))

    def lines(groups: list[Arrays]) -> Iterator[Line]:
        prompts, n = groups[0]["prompt"][:], len(groups[0]["prompt"][:])
        sets = calibration(kit, teacher.names("pt"), prompts)
        weight = np.concatenate([np.ones((1, n)), kernels.resamples(n, RESAMPLES)])
        pairs = [(a, b) for a in sets for b in sets if list(sets).index(a) < list(sets).index(b)]
        for layer, d in _layers(groups[0]):
            for a, b in pairs:
                found = kernels.agreement(d, d, weight * sets[a], weight * sets[b])
                yield from _draws(f"{a}-{b}", layer, found, min(SPLIT, n // 2), first=0)

    return _DirectionsTable(kit, scope, "splits", before, lines)


def calibration(kit: Context, teacher: Names, prompts: np.ndarray) -> dict[str, np.ndarray]:
    """0H's sets as weights of records [R]: by how unlikely the PT, on stream `teacher`, finds IT's answer to their prompts."""
    return kernels.splits(_nats(kit, teacher)[prompts], min(SPLIT, len(prompts) // 2))


def _nats(kit: Context, names: Names) -> np.ndarray:
    """Mean negative log-likelihood [P] of the continuation of each prompt under a captured model, nats a token."""
    table = {"lens": [raw_lens_table(kit, names).path]}
    found = connect(kit.layout, "lens", {}, table).execute(
        "SELECT prompt, avg(-ln(greatest(p_target, 1e-38))) FROM lens WHERE model = ? AND stream = ?"
        " AND lens = 'raw' AND step >= 0 AND layer = (SELECT max(layer) FROM lens WHERE model = ?) GROUP BY prompt",
        [*names, names[0]],
    )
    nats = np.full(len(kit.capture(names).array("prompt_id")[:]), np.nan)
    for prompt, value in found.fetchall():
        nats[prompt] = value
    return nats


def _contrast(kit: Context, scope: Scope, lens: str) -> Job:
    """exp10: how well d_conv predicts, and its cosines with d_mean and with the KL gradient."""
    contrast, own = Contrast(kit, scope, lens), records(kit, sibling(kit, scope, "native"), "own")

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

    kind = "contrast" if lens == "raw" else f"contrast_{lens}"
    return _DirectionsTable(kit, scope, kind, (contrast, own), lines)


def _layers(group: Arrays) -> Iterator[tuple[int, np.ndarray]]:
    """(layer, record differences [R, d]) of a group, one layer in memory at a time."""
    difference = group["difference"]
    return ((layer, difference[:, layer].astype(np.float64)) for layer in range(difference.shape[1]))


def _draws(name: str, layer: int, values: np.ndarray, n: int, first: int = 1) -> Iterator[Line]:
    return ((name, layer, None, draw, value, n) for draw, value in enumerate(values.tolist(), first))


KINDS: dict[str, Callable[[Context, Scope], Job]] = {
    "stability": _stability,
    "spread": _spread,
    "matched": _matched,
    "reverse": _reverse,
    "splits": _splits,
    "contrast": lambda kit, scope: _contrast(kit, scope, "raw"),
    "contrast_tuned": lambda kit, scope: _contrast(kit, scope, "tuned"),
    "contrast_jacobian": lambda kit, scope: _contrast(kit, scope, "jacobian"),
}
