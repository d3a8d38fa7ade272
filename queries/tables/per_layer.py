"""Tables of every token and layer that a capture, or a pair of them, gives at once: tokens, raw lens, delta, pair lens."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from ...store.artifacts.streams import read_stream
from ...store.captures.reader import Capture
from ...store.core.columns import (
    BOTH,
    DELTA_VALUES,
    IS_CONTINUATION,
    IS_SPECIAL,
    JENSEN_SHANNON,
    LAYER,
    MODEL,
    NONNEGATIVE,
    PLACE,
    PROMPT,
    SEGMENT,
    SEGMENTS,
    STEP,
    TOKEN,
    TOKEN_ID,
    TOKEN_TEXT,
    TURN,
    Column,
)
from ...store.core.schema import scalars
from ...store.tables.declared import TABLES
from ..engine.blocks import Block
from ..engine.context import (
    Context,
    Names,
    Scope,
    aligned,
    all_boundaries,
    label,
    name_columns,
    pair_columns,
    raw_lens,
)
from ..engine.declare import table
from ..engine.job import LayerTable, TableJob


@table(
    "tokens",
    [*MODEL, *TOKEN, *PLACE, TOKEN_ID, TOKEN_TEXT, IS_SPECIAL, IS_CONTINUATION, SEGMENT, TURN],
    "What each capture read, token by token.",
    "token",
    version=2,
)
class Tokens(TableJob):
    """The table `tokens`: what the stream and the coordinates say."""

    def __init__(self, kit: Context, names: Names):
        super().__init__(kit.layout, "tokens", kit.recipe("tokens", names))
        self._kit, self._names = kit, names

    def finish(self) -> None:
        """Copy the stream's columns."""
        columns = self._kit.capture(self._names).columns()
        stream = read_stream(self._kit.layout, self._names[1])
        where = {**name_columns(self._names), "token": np.arange(stream.n_tokens)}
        words = {"token_text": stream.texts, "segment": np.asarray(SEGMENTS, object)[stream.columns["segment"]]}
        self.add({**where, **columns, **stream.columns, **words})


def _kept(capture: Capture, table: str) -> dict[str, str]:
    """Column -> variable of a table that was computed during the capture; empty when it was not."""
    names = scalars(table)
    return names if all(name in capture for name in names.values()) else {}


def raw_lens_table(kit: Context, names: Names) -> LayerTable:
    """The rows of `lens` with lens = 'raw', from residuals or what the capture computed; LakeError without either."""
    capture = kit.capture(names)
    kept = _kept(capture, "lens")
    if not kept:
        all_boundaries(capture, "lens")

    def compute(rows: Block) -> dict[str, Any]:
        found = {name: rows[variable] for name, variable in kept.items()} if kept else raw_lens(kit, names, rows)
        return {**found, "rank_target": np.ma.masked_equal(found["rank_target"], 0)}

    recipe = kit.recipe("lens", names, head=True, lens="raw")
    reads = tuple(kept.values()) or ("resid",)
    named = {**name_columns(names), "lens": "raw"}
    return LayerTable(kit.layout, "lens", recipe, (capture,), reads, compute, lambda rows: {**named, **label(rows)})


@table(
    "delta",
    [*MODEL, *TOKEN, *PLACE, LAYER, *DELTA_VALUES],
    "What each block and its MLP add to the residual.",
    version=2,
)
def delta_table(kit: Context, names: Names) -> LayerTable:
    """The table `delta`, from residuals or from what the capture computed; LakeError without either."""
    capture = kit.capture(names)
    kept = _kept(capture, "delta")
    if not kept:
        all_boundaries(capture, "delta")
    sites = tuple(site for site in ("resid", "mlp_out") if site in capture)

    def compute(rows: Block) -> dict[str, np.ndarray]:
        if kept:
            return {name: rows[variable] for name, variable in kept.items()}
        from ...analyze.residual.delta import delta

        post, parallel = kit.mlp_branch(names)
        mlp = rows.values.get("mlp_out")
        return delta(rows["resid"], mlp, post_norm=post, parallel=parallel, device=kit.device)

    recipe, reads = kit.recipe("delta", names, head=True), tuple(kept.values()) or sites
    named = name_columns(names)
    return LayerTable(kit.layout, "delta", recipe, (capture,), reads, compute, lambda rows: {**named, **label(rows)})


PAIR_VALUES = (
    Column("js", "float32", "Jensen-Shannon divergence of the two models' lenses", "nats", JENSEN_SHANNON),
    Column("kl_pt_it", "float32", "KL(PT || IT) of the lenses", "nats", NONNEGATIVE),
    Column("kl_it_pt", "float32", "KL(IT || PT) of the lenses", "nats", NONNEGATIVE),
    Column("top1_agree", "bool", "whether both have the same likeliest token"),
)


@table(
    "pair_lens",
    [*BOTH, *PROMPT, STEP, LAYER, *PAIR_VALUES],
    "The raw lenses of a pair's two models at the same layer and step, over the tokens that are real for both.",
    "(prompt, step) x layer",
    of="pair",
    version=1,
    lenses=0.6,
)
def pair_lens_table(kit: Context, scope: Scope) -> LayerTable:
    """The table `pair_lens`: both models at the same layer and (prompt, step); LakeError without all residuals of both."""
    return pair_table(kit, scope, "pair_lens", partial(pair_columns, kit, scope.both))


def pair_table(
    kit: Context,
    scope: Scope,
    table: str,
    compute: Callable[[Block, Block], dict[str, np.ndarray]],
    columns: dict[str, Any] | None = None,
    **more: Any,
) -> LayerTable:
    """A table of both models at the same layer and (prompt, step), `columns` the same in every row.

    `more` are the recipe's further entries; rows with other ones of `columns` stay, with other ones of these give way.
    """
    captures = {variant: kit.capture(names) for variant, names in scope.both.items()}
    for capture in captures.values():
        all_boundaries(capture, table)

    def named(pt: Block, it: Block) -> dict[str, Any]:
        where = {**scope.columns, "variant": "both", "stream": scope.streams["it"], "stream_pt": scope.streams["pt"]}
        return {
            **where,
            **(columns or {}),
            **{name: values[aligned(pt, it)[0]] for name, values in label(pt).items()},
        }

    same = {"streams": scope.streams, "models": scope.models, **(columns or {})}
    recipe = same | {
        "captures": {variant: capture.sha256 for variant, capture in captures.items()},
        "heads": {variant: kit.head_hash(names) for variant, names in scope.both.items()},
        "version": TABLES[table].version,
        **more,
    }
    return LayerTable(
        kit.layout, table, recipe, tuple(captures.values()), ("resid",), compute, named, same=same if more else None
    )
