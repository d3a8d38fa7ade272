"""Tables read through probes, tuned or Jacobian: rows of `lens`; and `lens_eval`, raw against tuned on held-out tokens."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd

from ...store.core.columns import (
    BOTH,
    LAYER,
    LENS,
    LENS_VALUES,
    MODEL,
    PLACE,
    SIDE,
    STEP,
    TOKEN,
    Column,
    by_lens,
    label_column,
)
from ...store.core.columns import PROMPT as PROMPTS
from ...store.core.errors import LakeError
from ...store.tables.files import drop_tables
from ..engine.blocks import Block, Columns
from ..engine.context import OTHER, Context, Names, Scope, all_boundaries, label, pair_columns, raw_lens
from ..engine.declare import table
from ..engine.job import LayerTable, TableJob
from ..probes.choice import choose, lens_of
from .per_layer import PAIR_VALUES, pair_table, raw_lens_table

PROMPT = ("prompt", "prompt_id", "category")


def probed_table(
    kit: Context, names: Names, table: str, kind: str, compute: Callable[[Block], dict[str, Any]], first: int = -1
) -> LayerTable:
    """A table of one capture through the probes of a kind of lens, as LayerTable has it; rows by other probes give way."""
    capture = kit.capture(names)
    all_boundaries(capture, f"{table}({kind})")
    chosen = choose(kit, names, kind)
    recipe = kit.recipe(table, names, head=True, lens=kind, probes=chosen.name)
    same = {name: recipe[name] for name in ("model", "stream", "lens")}

    def labels(rows: Block) -> dict[str, Any]:
        return {**same, **label(rows)}

    job = LayerTable(kit.layout, table, recipe, (capture,), ("resid",), compute, labels, first, same)
    job.before = chosen.before
    return job


def translated(kit: Context, names: Names, rows: Block, kind: str) -> np.ndarray:
    """The residuals of a block as a kind of lens reads them [n, L+1, d]; made once however many jobs want them."""
    if kind == "raw":
        return rows["resid"]

    def translate() -> np.ndarray:
        return choose(kit, names, kind).translate(rows["resid"], rows.columns["prompt_id"], kit.device)

    return rows.once(("translated", kind), translate)


def lens_columns(kit: Context, names: Names, rows: Block, kind: str) -> dict[str, np.ndarray]:
    """A kind of lens of a block, all columns [n, L+1]; computed once however many jobs want it."""
    if kind == "raw":
        return raw_lens(kit, names, rows)

    def compute() -> dict[str, np.ndarray]:
        from ...analyze.lens.logit_lens import lens

        return lens(kit.head(names), translated(kit, names, rows, kind), rows.columns["target"], device=kit.device)

    return rows.once(("lens", kind), compute)


@table(
    "lens",
    [*MODEL, LENS, *TOKEN, *PLACE, LAYER, *LENS_VALUES],
    "What each layer would say of the next token, read through the head.",
    "lens x token x layer",
    version=1,
    kind_columns=by_lens,
    lenses=1.0,
)
def lens_table(kit: Context, names: Names, kind: str) -> LayerTable:
    """The rows of the table `lens` of one kind. LakeError for a lens that nobody knows, and where one can't be had."""
    lens = lens_of("lens", kind)

    def compute(rows: Block) -> dict[str, Any]:
        found = lens_columns(kit, names, rows, lens)
        return {**found, "rank_target": np.ma.masked_equal(found["rank_target"], 0)}

    return raw_lens_table(kit, names) if lens == "raw" else probed_table(kit, names, "lens", lens, compute)


@table(
    "pair_lenses",
    [*BOTH, LENS, *PROMPTS, STEP, LAYER, *PAIR_VALUES],
    "As `pair_lens`, each model through its own tuned or Jacobian lens.",
    "lens x (prompt, step) x layer",
    of="pair",
    version=1,
    kinds=(),  # free SQL computes a lens that it names
    kind_columns=by_lens,
    lenses=0.6,
)
def pair_lenses_table(kit: Context, scope: Scope, kind: str) -> LayerTable:
    """The rows of `pair_lenses` of one kind; LakeError as for `pair_lens`, for the raw lens, and where one can't be had."""
    lens = lens_of("pair_lenses", kind)
    if lens == "raw":
        raise LakeError("pair_lenses(raw): the raw lens is in pair_lens")
    chosen = {variant: choose(kit, names, lens) for variant, names in scope.both.items()}

    def compute(pt: Block, it: Block) -> dict[str, np.ndarray]:
        return pair_columns(kit, scope.both, pt, it, lens, lambda names, rows: translated(kit, names, rows, lens))

    probes = {variant: found.name for variant, found in chosen.items()}
    job = pair_table(kit, scope, "pair_lenses", compute, {"lens": lens}, probes=probes)
    job.before = tuple(first for found in chosen.values() for first in found.before)
    return job


@table(
    "lens_eval",
    [
        *SIDE,
        label_column("probe_variant", "model whose probes read", fill="variant"),
        Column("probes", "text", "name of the set of probes", fill="'published'"),
        *PROMPTS,
        LAYER,
        Column("n", "int32", "positions of the prompt but its first", "tokens", fill="1"),
        Column("kl_raw", "float32", "mean KL(final || layer) of the raw lens", "nats"),
        Column("kl_tuned", "float32", "mean KL(final || layer) of the tuned lens", "nats"),
        Column("top1_raw", "float32", "share of positions where the raw lens has the final top token", "1"),
        Column("top1_tuned", "float32", "share of positions where the tuned lens has the final top token", "1"),
    ],
    "Raw and tuned lens on prompts that the probes were not trained on.",
    "probes x variant x prompt x layer",
    of="side",
    version=2,
    lenses=2.0,
)
class _Evaluation(TableJob):
    """The table `lens_eval`: raw and tuned lens of one capture on prompts that no probes in it were trained on, by the probes
    of its own model and of the pair's other one, where the lake has a capture of it on the same prompts."""

    reads, splits = ("resid",), True

    def __init__(self, kit: Context, scope: Scope, variant: str):
        self._kit, self._names = kit, (names := scope.names(variant))
        self.captures = (kit.capture(names),)
        all_boundaries(self.captures[0], "lens_eval")
        of = {variant: names} | _other(kit, scope, variant)
        self._chosen = {reader: choose(kit, of[reader]) for reader in sorted(of, reverse=True)}
        self._named = {**scope.columns, "variant": variant, "stream": names[1]}
        self._same = {"models": scope.models, "variant": variant, "streams": {variant: names[1]}}
        probes = {reader: chosen.name for reader, chosen in self._chosen.items()}
        head = {variant: kit.head_hash(names)}
        super().__init__(kit.layout, "lens_eval", kit.side("lens_eval", scope, variant, heads=head, probes=probes))
        self._held: list[pd.DataFrame] = []
        self.before = tuple(job for chosen in self._chosen.values() for job in chosen.before)

    def part(self, *rows: Block) -> Columns:
        """What is measured of a block."""
        (mine,) = rows
        ids = mine.columns["prompt_id"]
        unseen = np.all([chosen.unseen(ids) for chosen in self._chosen.values()], axis=0)
        kept = np.flatnonzero(unseen & (mine.columns["position"] > 0))
        if not len(kept):
            return {}
        prompt = {name: mine.columns[name][kept] for name in PROMPT}
        found = pd.concat(self._measure(self._names, mine["resid"][kept], prompt))
        return {str(name): column.to_numpy() for name, column in found.items()}

    def join(self, part: Columns) -> None:
        """Hold it."""
        self._held.append(pd.DataFrame(part))

    def finish(self) -> None:
        """Write all prompts, and delete what other probes gave on the same captures."""
        if self._held:
            found = {str(name): column.to_numpy() for name, column in pd.concat(self._held).items()}
            self.add({**self._named, **found})
        drop_tables(self._kit.layout, "lens_eval", self._same, keep=self.path)

    def _measure(self, names: Names, resid: np.ndarray, prompt: dict[str, np.ndarray]) -> Iterator[pd.DataFrame]:
        """Rows of one evaluated variant: means over each prompt's tokens, per set of probes and layer."""
        from ...analyze.lens.logit_lens import lens

        _, first, index, count = np.unique(prompt["prompt"], return_index=True, return_inverse=True, return_counts=True)
        layers, head = resid.shape[1], self._kit.head(names)
        place: dict[str, Any] = {name: np.tile(values[first], layers) for name, values in prompt.items()}
        place |= {"n": np.tile(count, layers), "layer": np.repeat(np.arange(-1, layers - 1), len(count))}

        def means(read: np.ndarray, kind: str) -> dict[str, np.ndarray]:
            found = lens(head, read, np.full(len(read), -1), device=self._kit.device, js_next=False)
            values = {"kl": found["kl_final_layer"], "top1": found["top1"] == found["top1"][:, -1:]}
            return {
                f"{name}_{kind}": np.stack([np.bincount(index, column) / count for column in value.T]).ravel()
                for name, value in values.items()
            }

        place |= means(resid, "raw")
        for variant, chosen in self._chosen.items():
            tuned = means(chosen.translate(resid, prompt["prompt_id"], self._kit.device), "tuned")
            yield pd.DataFrame({**place, **tuned, "probe_variant": variant, "probes": chosen.name})


def _other(kit: Context, scope: Scope, variant: str) -> dict[str, Names]:
    """A capture of the pair's other model on the same prompts, its native one first; it says which probes are its own."""
    mine, other = kit.streams_of(scope.pair), OTHER[variant]
    sets = mine.loc[(mine["variant"] == variant) & (mine["stream"] == scope.streams[variant]), "prompt_set"]
    others = mine[(mine["variant"] == other) & mine["prompt_set"].isin(sets)]
    found = sorted((row.recipe != "native", str(row.stream)) for row in others.itertuples())
    return {other: (scope.models[other], found[0][1])} if found else {}
