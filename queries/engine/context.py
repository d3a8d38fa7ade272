"""What the makers of tables share: the lake of a question, its captures and heads, and what several want of a block.

Here and in the makers kernels are imported where they compute: torch takes seconds to load, and a table that is there
needs only its path.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Set
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pandas as pd

from ...analyze.core.device import AUTO, pick
from ...store.artifacts.models import read_head, read_model
from ...store.captures.reader import Capture
from ...store.core.catalog import Catalog, load_catalog
from ...store.core.errors import LakeError
from ...store.core.schema import VARIANTS
from ...store.core.specs import default_windows
from ...store.format.paths import Layout
from ...store.tables.declared import TABLES
from ...store.tables.files import FOREIGN
from ...store.tables.names import Pairs, _By, foreign_captures, pair_named, stored_models, stored_pairs
from ...store.tables.streams import pair_streams
from .blocks import Block

if TYPE_CHECKING:
    from ...analyze.lens.head import Head

Names = tuple[str, str]  # model, stream
WINDOWS = ("early", "mid", "late")
OTHER = {"pt": "it", "it": "pt"}
T = TypeVar("T")


@dataclass(frozen=True)
class Scope:
    """What a question is about: for one pair and stream recipe, variant -> model and variant -> stream name.

    A question that reads no captures has neither recipe nor streams. With `segments` it is about their tokens alone. `shift`
    is added to the numbers of the it's prompts where these are others than the pt's.
    """

    pair: str
    models: dict[str, str]
    streams: dict[str, str]
    recipe: str = ""
    segments: tuple[str, ...] = ()
    shift: int = 0

    @property
    def main(self) -> str:
        """The stream whose prompts are those of the question: IT's, or that of the only model."""
        return self.streams["it"] if "it" in self.streams else next(iter(self.streams.values()))

    @property
    def captures(self) -> list[Names]:
        """(model, stream) of each capture."""
        return [self.names(variant) for variant in sorted(self.streams)]

    def names(self, variant: str) -> Names:
        """(model, stream) of the pt's or the it's capture."""
        return self.models[variant], self.streams[variant]

    @property
    def both(self) -> dict[str, Names]:
        """Variant -> (model, stream), pt before it."""
        return {variant: self.names(variant) for variant in VARIANTS}

    @property
    def columns(self) -> dict[str, str | None]:
        """The columns that name the models in tables of a pair; None for one that the pair lacks."""
        return {f"model_{variant}": self.models.get(variant) for variant in VARIANTS}

    def __hash__(self) -> int:
        return hash((self.pair, *sorted(self.models.items()), *sorted(self.streams.items()), self.recipe))

    def one(self, variant: str) -> Scope:
        """The capture of one of the models alone."""
        return replace(self, streams={variant: self.streams[variant]})


class Context:
    """What the builders of one call share: the lake, the device, and captures and heads, each opened once.

    Without `generate` no texts are generated for it, and without `probes` none are trained: tables of those that are not
    there are refused. With `only` it knows the pairs and captures of these models alone. Its scopes are about `segments`. With
    `by` its pair is one model twice.
    """

    def __init__(
        self,
        layout: Layout,
        device: str = AUTO,
        catalog: Path | None = None,
        generate: bool = True,
        probes: bool = True,
        only: Set[str] | None = None,
        segments: tuple[str, ...] = (),
        by: _By | None = None,
    ):
        self.only, self.segments, self.by = only, segments, by
        self.layout, self.requested_device, self._catalog = layout, device, catalog
        self.generate, self.probes = generate, probes
        self._made: dict[Any, Any] = {}
        self.making: list[str] = []  # tables whose jobs are being made, each for the one before
        self.capture = cache(lambda names: Capture(layout.capture(*names), lake=layout.files))
        self.foreign = cache(lambda table: foreign_captures(layout, table))
        same = {} if by is None else {by.pair: dict.fromkeys(VARIANTS, by.model)}
        self.models = cache(lambda pair: same.get(pair) or pair_named(pair, self.catalog, self.stored))
        self._arrays = cache(lambda model: read_head(layout, model))
        self._streams = cache(lambda pair: pair_streams(layout, {pair: self.models(pair)}))

    @cached_property
    def device(self) -> str:
        """The device that computes."""
        return pick(self.requested_device)

    @cached_property
    def catalog(self) -> Catalog:
        """The catalog, for questions about checkpoints themselves."""
        return load_catalog(self._catalog)

    @cached_property
    def streams(self) -> pd.DataFrame:
        """What the lake has captured of all its pairs, as `pair_streams` tells it."""
        return pair_streams(self.layout, self.pairs)

    def streams_of(self, pair: str) -> pd.DataFrame:
        """What the lake has captured of a pair; other pairs' files are not read."""
        return self._streams(pair)

    @cached_property
    def stored(self) -> set[str]:
        """The models that the lake has."""
        return stored_models(self.layout)

    @cached_property
    def pairs(self) -> Pairs:
        """The pairs of which the lake has a model: pair -> variant -> model."""
        found = stored_pairs(self.catalog, self.stored)
        return {pair: of for pair, of in found.items() if self.only is None or self.only & set(of.values())}

    def variants(self, pair: str) -> tuple[str, ...]:
        """The variants that a pair has."""
        return tuple(self.models(pair))

    def scope(self, pair: str, streams: dict[str, str], recipe: str = "") -> Scope:
        """A pair's captures on these streams, variant -> stream."""
        return Scope(pair, self.models(pair), streams, recipe, self.segments)

    def is_foreign(self, scope: Scope) -> bool:
        """Whether these captures are known from imported tables alone."""
        mine = self.streams_of(scope.pair)
        mine = mine[mine["stream"].isin(scope.streams.values())]
        return bool(len(mine)) and bool((mine["prompt_set"] == FOREIGN).all())

    def once(self, make: Callable[..., T], *about: Hashable) -> T:
        """What `make(context, *about)` returns, computed once and shared between jobs."""
        if (make, *about) not in self._made:
            self._made[make, *about] = make(self, *about)
        return self._made[make, *about]

    def windows(self, pair: str, n_layers: int) -> dict[str, tuple[int, int]]:
        """Early, mid and late blocks of a pair, the catalog's or else METHODS 1.6's, and `earlymid` and `midlate`, the runs of
        blocks from the first to the last of two of them; LakeError for one outside the model."""
        known = self.catalog.pairs.get(pair)
        found = default_windows(n_layers) | (known.windows if known else {})
        for name, (start, stop) in found.items():
            if not 0 <= start < stop <= n_layers:
                raise LakeError(
                    f"pair {pair}: window {name} [{start}, {stop}) of {self.catalog.where} is outside the model, whose blocks are"
                    f" 0 to {n_layers - 1}"
                )
        (early, _), (mid, mid_stop), (_, late_stop) = (found[name] for name in WINDOWS)
        return found | {"earlymid": (early, mid_stop), "midlate": (mid, late_stop)}

    def head(self, names: Names) -> Head:
        """A model's head."""
        return self.once(_head, names[0])

    def arrays(self, names: Names) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """What the lake keeps of a model: arrays and attributes of head.zarr."""
        return self._arrays(names[0])

    def common_real(self, models: Mapping[str, Names]) -> np.ndarray:
        """Tokens that are real to both models of a pair (METHODS 1.4): bool [V], V the smaller of the two vocabularies."""
        return self.once(_common_real, *(models[variant] for variant in VARIANTS))

    def common_head(self, models: Mapping[str, Names], variant: str) -> Head:
        """A model's head with the ids of `common_real` alone, so that it compares with that of the pair's other model."""
        return self.head(models[variant]).first(len(self.common_real(models)))

    def recipe(self, table: str, names: Names, head: bool = False, **more: Any) -> dict[str, Any]:
        """What determines a table of one capture, for its key and its metadata."""
        found = {**name_columns(names), "capture": self.capture(names).sha256, "version": TABLES[table].version, **more}
        return {**found, "head": self.head_hash(names)} if head else found

    def side(self, table: str, scope: Scope, variant: str, **more: Any) -> dict[str, Any]:
        """What determines a table of one capture of a pair that takes the pair's other model into account."""
        streams, captures = {variant: scope.streams[variant]}, {variant: self.capture(scope.names(variant)).sha256}
        named = {"models": scope.models, "variant": variant, "streams": streams}
        return {**named, "captures": captures, "version": TABLES[table].version, **more}

    def mlp_branch(self, names: Names) -> tuple[tuple[np.ndarray, float] | None, bool]:
        """The norm after an MLP's output (weights [L, d], eps), or None, and whether MLP and attention read one input."""
        arrays, attrs = self.arrays(names)
        post = (arrays["post_norm_weight"], attrs["post_norm_eps"]) if "post_norm_weight" in arrays else None
        return post, bool(attrs["parallel"])

    def head_hash(self, names: Names) -> str:
        """The hash of the head of the model behind a capture."""
        return str(read_model(self.layout, names[0])["head_sha256"])


def _head(kit: Context, model: str) -> Head:
    from ...analyze.lens.head import Head

    return Head.from_arrays(*kit.arrays((model, "")))


def _common_real(kit: Context, *names: Names) -> np.ndarray:
    real = [kit.arrays(each)[0]["real_token"] for each in names]
    size = min(map(len, real))
    return real[0][:size] & real[1][:size]


def check_both(kit: Context, pair: str, what: str) -> None:
    """LakeError when a pair has one model only and `what` takes two."""
    if len(there := kit.variants(pair)) == 1:
        raise LakeError(f"{pair} has {there[0]} only; {what} compares two models")


def name_columns(names: Names) -> dict[str, str]:
    """The columns that tell a capture: model, stream."""
    return dict(zip(("model", "stream"), names, strict=True))


def all_boundaries(capture: Capture, table: str) -> None:
    """LakeError unless the capture holds the residuals at every boundary."""
    if "resid" not in capture or capture.size("resid")[0] <= capture.layers:
        raise LakeError(
            f"{capture.path}: table {table} needs the residual at every boundary, this capture kept fewer (a lean profile, or"
            " other sites): capture with the profile full into another lake"
        )


def label(rows: Block) -> dict[str, Any]:
    """The columns of a block that every table of its capture carries."""
    kept = {name: rows.columns[name] for name in ("prompt", "prompt_id", "category", "position", "step")}
    return {**kept, "token": np.arange(rows.tokens.start, rows.tokens.stop)}


def raw_lens(kit: Context, names: Names, rows: Block) -> dict[str, np.ndarray]:
    """The raw lens of a block, all columns [n, L+1]; computed once however many jobs want it."""
    from ...analyze.lens.logit_lens import lens

    return rows.once("lens", lambda: lens(kit.head(names), rows["resid"], rows.columns["target"], device=kit.device))


def aligned(pt: Block, it: Block) -> tuple[np.ndarray, np.ndarray]:
    """Places in two blocks of the same (prompt, step), step >= 0."""

    def align() -> tuple[np.ndarray, np.ndarray]:
        frames = [
            pd.DataFrame({name: rows.columns[name] for name in ("prompt", "step")}).query("step >= 0").reset_index()
            for rows in (pt, it)
        ]
        both = frames[0].merge(frames[1], on=["prompt", "step"], suffixes=("_pt", "_it")).sort_values("index_pt")
        return both["index_pt"].to_numpy(), both["index_it"].to_numpy()

    return pt.once(("aligned", it.capture.path), align)


def pair_columns(
    kit: Context,
    models: dict[str, Names],
    pt: Block,
    it: Block,
    kind: str = "raw",
    read: Callable[[Names, Block], np.ndarray] = lambda _, rows: rows["resid"],
) -> dict[str, np.ndarray]:
    """The columns of `pair_lens` [n, L+1] of a block, of the lens `kind` which residuals are `read` through; computed once
    however many jobs want them."""

    def compute() -> dict[str, np.ndarray]:
        from ...analyze.lens.logit_lens import pair_lens

        at_pt, at_it = aligned(pt, it)
        return pair_lens(
            kit.common_head(models, "pt"),
            kit.common_head(models, "it"),
            read(models["pt"], pt)[at_pt],
            read(models["it"], it)[at_it],
            mask=kit.common_real(models),
            device=kit.device,
        )

    return pt.once(("pair_lens", kind, it.capture.path), compute)
