"""The table `graft`: on IT's answer, MLPs of a window of one model compute in the other (METHODS 8, 9, 13, 17).

A condition is named as in METHODS: B_early, B_mid, B_late are the PT, on its raw prompt, with the IT's MLPs; D_early ... the
IT, on its own prompt, with the PT's; B_late_random has the size and direction of the graft's change on the MLP's input,
and is random across it. `_tuned` behind the name is the tuned lens of the host's probes instead of the raw lens.

Each block of a sweep is replayed from the window's first boundary, which the sweep has read anyway, by blocks that stay in
memory: of each host those from its lowest window on, and the other model's MLPs in these windows. Batches are made
of a block's prompts, so that a replay equals a whole forward to rounding, not to the bit.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType
from typing import Any

import numpy as np

from ..analyze.delta import delta
from ..analyze.lens import lens, pair_lens
from ..capture.edits import Graft, RandomGraft
from ..capture.model import Model
from ..capture.replay import Start, find_weights, load_late, load_mlps, open_start, replay_whole
from ..capture.suffix import Donor
from ..store.catalog import default_windows
from ..store.errors import LakeError
from ..store.schema import VARIANTS
from ..store.tables import drop_tables
from .build import VERSION, Kit, Names, Scope, aligned, all_boundaries, pair_columns
from .probes import choose
from .sweep import LayerTable, Rows, following

NAME = re.compile(r"([BD])_(early|mid|late)(_random)?(_tuned)?")
HOST = {"B": "pt", "D": "it"}
OTHER = {"pt": "it", "it": "pt"}
SEED = 42  # of the random controls; METHODS 5.2


@dataclass(frozen=True)
class Condition:
    """A host whose MLPs of blocks window[0]..window[1]-1 are replaced by those of the pair's other model."""

    name: str
    host: str
    window: tuple[int, int]
    random: bool = False

    @property
    def other(self) -> str:
        """The variant that the MLPs are from, and that the host is compared with."""
        return OTHER[self.host]

    def edit(self, donor: Donor) -> Graft:
        """What replays the condition."""
        blocks = range(*self.window)
        return RandomGraft(donor, blocks, SEED) if self.random else Graft(donor, blocks)


class Replays:
    """Replays of a pair's captures, block by block of a sweep; models are loaded when the first block comes.

    What the last condition gave is kept, for the next job may ask for it too.
    """

    def __init__(self, kit: Kit, models: dict[str, Names]):
        self._kit, self._wanted = kit, list[Condition]()
        self._starts = {variant: _open(kit, names) for variant, names in models.items()}
        self._names = {variant: "/".join(names[:2]) for variant, names in models.items()}
        self._hosts: dict[str, Model] = {}
        self._donors: dict[str, Donor] = {}
        self._last: tuple[Any, dict[str, np.ndarray]] = (None, {})

    def enter(self, condition: Condition) -> None:
        """A job will ask for this condition."""
        self._wanted.append(condition)

    def leave(self, condition: Condition) -> None:
        """A job is done with it; after the last one the models are let go."""
        self._wanted.remove(condition)
        if not self._wanted:
            self._hosts, self._donors, self._last = {}, {}, (None, {})

    def run(self, condition: Condition, rows: Rows, at: np.ndarray) -> dict[str, np.ndarray]:
        """The chosen tokens (ascending places in a block) under a condition: resid and mlp_out [n, L - window[0], d], the
        outputs of the blocks from the window on."""
        key = (condition, rows.tokens.start)
        if self._last[0] != key:
            self._last = (None, {})
            model = self._host(condition.host)
            first, chosen = condition.window[0], np.zeros(len(rows), bool)
            chosen[at] = True
            later = range(first + 1, model.n_layers + 1)
            start = _here(self._starts[condition.host], rows, first)
            edits = [condition.edit(self._donor(condition.host))]
            found = replay_whole(model, start, edits, logits="none", boundaries=later, tokens=chosen)
            self._last = key, found.arrays
        return self._last[1]

    def _host(self, variant: str) -> Model:
        """A host's blocks from the lowest of its windows on."""
        if variant not in self._hosts:
            layout, catalog, provenance = self._kit.layout, self._kit.catalog, self._starts[variant].provenance
            options = {"dtype": provenance["dtype"], "attention": provenance["attn_implementation"]}
            first = min(self._blocks(variant))
            self._hosts[variant] = load_late(
                layout, self._names[variant], first, catalog, device=self._kit.device, **options
            )
        return self._hosts[variant]

    def _donor(self, host: str) -> Donor:
        """The other model's MLPs for all windows of a host: out of its own late blocks where it is a host too."""
        other, blocks = OTHER[host], self._blocks(host)
        if host not in self._donors and set(self._blocks(other)) >= set(blocks):
            model = self._host(other)
            self._donors[host] = Donor(model.name, {layer: model.parts.mlps[layer] for layer in blocks})
        elif host not in self._donors:
            layout, catalog, dtype = self._kit.layout, self._kit.catalog, self._starts[host].provenance["dtype"]
            window = (min(blocks), max(blocks) + 1)
            options = {"device": self._kit.device, "dtype": dtype}
            self._donors[host] = load_mlps(layout, self._names[other], window, catalog, **options)
        return self._donors[host]

    def _blocks(self, host: str) -> range:
        """From the first to the last block that is exchanged in a host; none when no condition is wanted of it."""
        windows = [condition.window for condition in self._wanted if condition.host == host]
        return range(min((start for start, _ in windows), default=0), max((stop for _, stop in windows), default=0))


def _open(kit: Kit, names: Names) -> Start:
    """A capture as replays start from it; LakeError when it is not whole, or when there are no weights to run."""
    model = "/".join(names[:2])
    all_boundaries(kit.capture(names), "graft")
    find_weights(kit.layout, model, kit.catalog)
    return open_start(kit.layout, model, names[2], 0)


def _here(start: Start, rows: Rows, boundary: int) -> Start:
    """The start of a block's prompts, with the residual that the sweep has read."""
    offset = start.offset[rows.prompts.start : rows.prompts.stop + 1] - rows.tokens.start
    return replace(
        start,
        boundary=boundary,
        states=rows["resid"][:, boundary],
        token_id=rows.columns["token_id"],
        offset=offset,
        lengths=np.diff(offset),
    )


class GraftTable(LayerTable):
    """The rows of one condition and lens kind, all layers: those below the window are the host's own."""

    def __init__(self, kit: Kit, scope: Scope, condition: Condition, kind: str):
        self._kit, self._scope, self._condition, self._kind = kit, scope, condition, kind
        self._models = {variant: (scope.pair, variant, scope.streams[variant]) for variant in VARIANTS}
        captures = {variant: kit.capture(names) for variant, names in self._models.items()}
        self._replays = kit.once(("replays", scope.pair, *self._models.values()), lambda: Replays(kit, self._models))
        self._same = {"pair": scope.pair, "streams": scope.streams, "condition": condition.name, "lens": kind}
        recipe = self._same | {
            "captures": {variant: capture.sha256 for variant, capture in captures.items()},
            "models": {variant: kit.head_hash(names) for variant, names in self._models.items()},
            "window": list(condition.window),
            "edit": type(condition.edit(Donor("", {}))).__name__,
            "version": VERSION["graft"],
        }
        recipe |= {"seed": SEED} if condition.random else {}
        if kind == "tuned":
            chosen = choose(kit, self._host)
            recipe["probes"], self.before = chosen.name, chosen.before
        reads = ["resid", *(["mlp_out"] if all("mlp_out" in capture.group for capture in captures.values()) else [])]
        super().__init__(
            kit.layout, "graft", recipe, tuple(captures.values()), tuple(reads), self._columns, self._labels
        )

    @property
    def _host(self) -> Names:
        return self._models[self._condition.host]

    def __enter__(self) -> GraftTable:
        super().__enter__()
        self._replays.enter(self._condition)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._replays.leave(self._condition)
        super().__exit__(kind, error, trace)

    def block(self, *rows: Rows) -> None:
        """Compute a block, unless its prompts have no answer."""
        if len(aligned(*rows)[0]):
            super().block(*rows)

    def finish(self) -> None:
        """Write what is still held, and delete the rows of this condition with another window or other probes."""
        super().finish()
        drop_tables(self._kit.layout, "graft", self._same, keep=self.path)

    def _labels(self, pt: Rows, it: Rows) -> dict[str, Any]:
        start, stop = self._condition.window
        return {
            "pair": self._scope.pair,
            "variant": self._condition.host,
            "stream": self._scope.streams["it"],
            "stream_pt": self._scope.streams["pt"],
            "condition": self._condition.name,
            "lens": self._kind,
            "window_start": start,
            "window_stop": stop,
            **{name: pt.columns[name][aligned(pt, it)[0]] for name in ("prompt", "prompt_id", "category", "step")},
        }

    def _columns(self, pt: Rows, it: Rows) -> dict[str, Any]:
        """All columns of a block, [n, L+1]."""
        sides, at = {"pt": pt, "it": it}, dict(zip(VARIANTS, aligned(pt, it), strict=True))
        mine, others = (sides[variant] for variant in (self._condition.host, self._condition.other))
        here, there = at[self._condition.host], at[self._condition.other]
        edited, after = self._replays.run(self._condition, mine, here), self._condition.window[0] + 1
        whole = np.concatenate([_answer(mine, here)[:, :after], edited["resid"]], axis=1)
        resid = self._translated(mine, here, whole)
        found = lens(self._kit.head(self._host), resid, mine.columns["target"][here], device=self._kit.device)
        found["rank_target"] = np.ma.masked_equal(found["rank_target"], 0)
        found["mlp_cos"] = self._mlp_cos(mine, here, whole, edited["mlp_out"])
        return found | self._compared(pt, it, resid, self._stored(mine, here), self._stored(others, there), after)

    def _stored(self, rows: Rows, at: np.ndarray) -> np.ndarray:
        """The stored residuals as the host's lens reads them [n, L+1, d]; shared by the conditions of a host."""
        key = ("answer", self._condition.host if self._kind == "tuned" else "")
        return rows.once(key, lambda: self._translated(rows, at, _answer(rows, at)))

    def _translated(self, rows: Rows, at: np.ndarray, resid: np.ndarray) -> np.ndarray:
        """Residuals of the chosen tokens [n, L+1, d] through the host's probes, if the lens is the tuned one."""
        if self._kind == "raw":
            return resid
        return choose(self._kit, self._host).translate(resid, rows.columns["prompt_id"][at], self._kit.device)

    def _mlp_cos(self, rows: Rows, at: np.ndarray, resid: np.ndarray, mlp_out: np.ndarray) -> np.ndarray:
        """Cosine of the MLP's output and what it reads [n, L+1]; NaN below the window if the captures kept no mlp_out."""
        arrays, attrs = self._kit.arrays(self._host)
        post = (arrays["post_norm_weight"], attrs["post_norm_eps"]) if "post_norm_weight" in arrays else None
        below = np.full((len(at), self._condition.window[0], resid.shape[-1]), np.nan, np.float32)
        if "mlp_out" in rows.values:
            below = rows["mlp_out"][at][:, : self._condition.window[0]]
        mlp, parallel = np.concatenate([below, mlp_out], axis=1), bool(attrs["parallel"])
        return delta(resid, mlp, post_norm=post, parallel=parallel, device=self._kit.device)["mlp_cos"]

    def _compared(
        self, pt: Rows, it: Rows, resid: np.ndarray, stored: np.ndarray, other: np.ndarray, after: int
    ) -> dict[str, np.ndarray]:
        """JS to both baselines (raw lens only), and KL to the other side's, read by the host's head like exp11 does.

        Up to boundary `after` - 1 nothing has changed: there the host is its own baseline.
        """
        head, mine = self._kit.head(self._host), {"pt": pt, "it": it}[self._condition.host]
        real = {variant: self._kit.arrays(names)[0]["real_token"] for variant, names in self._models.items()}
        own, changed, theirs = (part[:, after:] for part in (stored, resid, other))
        by_host = partial(pair_lens, head, head, mask=real[self._condition.host], device=self._kit.device)
        before = mine.once(("cross", self._condition.host, self._kind), lambda: by_host(stored, other)["kl_pt_it"])
        cross = np.concatenate([before[:, :after], by_host(changed, theirs)["kl_pt_it"]], axis=1)
        found = {"cross_kl": cross, "cross_kl_host": before}
        if self._kind == "tuned":
            return found | dict.fromkeys(("js_host", "js_target"), np.full_like(cross, np.nan))
        host = np.concatenate([np.zeros_like(cross[:, :after]), by_host(changed, own)["js"]], axis=1)
        far, both = self._kit.head(self._models[self._condition.other]), real["pt"] & real["it"]
        target = pair_lens(head, far, changed, theirs, mask=both, device=self._kit.device)["js"]
        apart = pair_columns(self._kit, self._models, pt, it)["js"][:, :after]
        return found | {"js_host": host, "js_target": np.concatenate([apart, target], axis=1)}


def _answer(rows: Rows, at: np.ndarray) -> np.ndarray:
    """The stored residuals of the chosen tokens [n, L+1, d]; picked once for all conditions."""
    return rows.once("answer", lambda: rows["resid"][at])


def graft_table(kit: Kit, scope: Scope, kind: str) -> GraftTable:
    """The job that makes one condition's rows, `kind` its name; scope holds both captures on IT's answer.

    LakeError for an unknown name, captures of different answers or without all residuals, a window outside the model, and
    where weights are missing.
    """
    match = NAME.fullmatch(kind)
    if not match:
        raise LakeError(
            f"graft({kind}): expected B (IT's MLPs in the PT) or D (PT's in the IT), then _early, _mid or _late, for a control"
            " _random, and for the tuned lens _tuned"
        )
    letter, window, random, tuned = match.groups()
    if set(scope.streams) != set(VARIANTS):
        raise LakeError(f"pair {scope.pair}: a graft needs captures of pt and it")
    kit.once(("one answer", scope.pair, *sorted(scope.streams.items())), lambda: _check_answers(kit, scope))
    condition = Condition(
        kind.removesuffix("_tuned"), HOST[letter], _window(kit, scope, window), random=random is not None
    )
    return GraftTable(kit, scope, condition, "tuned" if tuned else "raw")


def _check_answers(kit: Kit, scope: Scope) -> None:
    """Raise LakeError unless both captures predict the same tokens step by step."""
    found = []
    for variant in VARIANTS:
        columns = kit.capture((scope.pair, variant, scope.streams[variant])).columns()
        answer = columns["step"] >= 0
        found.append([columns["prompt"][answer], columns["step"][answer], following(columns)[answer]])
    if not all(np.array_equal(a, b) for a, b in zip(*found, strict=True)):
        raise LakeError(
            f"pair {scope.pair}: {scope.streams['pt']} and {scope.streams['it']} are different answers; a graft is compared with"
            f" both models on IT's tokens: `actlake capture {scope.pair} --stream teacher`"
        )


def _window(kit: Kit, scope: Scope, name: str) -> tuple[int, int]:
    """The blocks of a window: the catalog's, or the rule of METHODS 1.6."""
    layers = len(kit.capture((scope.pair, "pt", scope.streams["pt"])).array("layer")[:])
    known = kit.catalog.pairs.get(scope.pair)
    start, stop = (default_windows(layers) | (known.windows if known else {}))[name]
    if not 0 <= start < stop <= layers:
        raise LakeError(
            f"{kit.catalog.path}: window {name} [{start}, {stop}] of pair {scope.pair} lies outside its {layers} blocks"
        )
    return start, stop
