"""Who computes which table: a few lines a table, turned into jobs of the sweep when its file is not there."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from ..analyze.delta import delta
from ..analyze.head import Head
from ..analyze.lens import lens, pair_lens
from ..store.captures import Capture
from ..store.catalog import Catalog, default_windows, load_catalog
from ..store.errors import LakeError
from ..store.foreign import foreign_captures
from ..store.layout import Layout
from ..store.models import read_head, read_model
from ..store.schema import CONDITIONED, TABLES, VARIANTS, scalars
from ..store.streams import read_stream
from ..store.tables import stream_table
from .sweep import Job, LayerTable, Rows, TableJob, run

# Raise when a kernel's numbers change.
VERSION = {
    "tokens": 1,
    "lens": 1,
    "delta": 2,
    "endpoint": 1,
    "churn": 1,
    "geometry": 1,
    "attention": 1,
    "pair_lens": 1,
    "weights": 1,
    "lens_eval": 1,
    "factorial": 1,
    "divergence": 1,
    "writeout": 1,
    "graft": 1,
    "mechanism": 1,
}
Names = tuple[str, str, str]  # pair, variant, stream
T = TypeVar("T")


@dataclass(frozen=True)
class Scope:
    """The captures a question is about: for one pair and stream recipe, variant -> stream name.

    A question that reads no captures has neither recipe nor streams.
    """

    pair: str
    streams: dict[str, str]
    recipe: str = ""

    @property
    def models(self) -> list[Names]:
        """(pair, variant, stream) of each capture."""
        return [(self.pair, variant, stream) for variant, stream in sorted(self.streams.items())]


Need = tuple[str, str, Scope]  # table, kind ('raw' of lens(raw)), captures


class Kit:
    """What the builders of one call share: the lake, the device, and captures and heads, each opened once."""

    def __init__(self, layout: Layout, device: str = "cpu", catalog: Path | None = None):
        self.layout, self.device, self._catalog = layout, device, catalog
        self._known: dict[Any, Any] = {}
        self.capture = cache(lambda names: Capture(layout.capture(*names)))
        self.foreign = cache(lambda table: foreign_captures(layout, table))
        self._arrays = cache(lambda pair, variant: read_head(layout, pair, variant))
        self._head = cache(lambda pair, variant: Head.from_arrays(*self._arrays(pair, variant)))

    @cached_property
    def catalog(self) -> Catalog:
        """The catalog, for questions about checkpoints themselves."""
        return load_catalog(self._catalog)

    def once(self, key: Any, make: Callable[[], T]) -> T:
        """What `make` returns, made for the first builder that asks under this key and shared with the others."""
        if key not in self._known:
            self._known[key] = make()
        return self._known[key]

    def windows(self, pair: str, n_layers: int) -> dict[str, tuple[int, int]]:
        """Early, mid and late blocks of a pair: the catalog's, else METHODS 1.6's; LakeError for one outside the model."""
        known = self.catalog.pairs.get(pair)
        found = default_windows(n_layers) | (known.windows if known else {})
        for name, (start, stop) in found.items():
            if not 0 <= start < stop <= n_layers:
                raise LakeError(
                    f"pair {pair}: window {name} [{start}, {stop}) of {self.catalog.path} is outside the model, whose blocks are"
                    f" 0 to {n_layers - 1}"
                )
        return found

    def head(self, names: Names) -> Head:
        """A model's head."""
        return self._head(*names[:2])

    def arrays(self, names: Names) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """What the lake keeps of a model: arrays and attributes of head.zarr."""
        return self._arrays(*names[:2])

    def recipe(self, table: str, names: Names, head: bool = False, **more: Any) -> dict[str, Any]:
        """What determines a table of one capture, for its key and its metadata."""
        found = {**_named(names), "capture": self.capture(names).sha256, "version": VERSION[table], **more}
        return {**found, "head": self.head_hash(names)} if head else found

    def head_hash(self, names: Names) -> str:
        """The hash of the model behind a capture."""
        return str(read_model(self.layout, *names[:2])["sha256"])


def _named(names: Names) -> dict[str, Any]:
    return dict(zip(("pair", "variant", "stream"), names, strict=True))


def label(rows: Rows) -> dict[str, Any]:
    """The columns of a block that every table of its capture carries."""
    kept = {name: rows.columns[name] for name in ("prompt", "prompt_id", "category", "position", "step")}
    return {**kept, "token": np.arange(rows.tokens.start, rows.tokens.stop)}


# --- one capture -----------------------------------------------------------------------------------------------------


class _Tokens(TableJob):
    """The table `tokens`: what the stream and the coordinates say."""

    def __init__(self, kit: Kit, names: Names):
        super().__init__(kit.layout, "tokens", kit.recipe("tokens", names))
        self._kit, self._names = kit, names

    def finish(self) -> None:
        """Copy the stream's columns."""
        columns = self._kit.capture(self._names).columns()
        stream = read_stream(self._kit.layout, self._names[2])
        where = {**_named(self._names), "token": np.arange(stream.n_tokens)}
        self.add({**where, **columns, **stream.columns, "token_text": stream.texts})


def _tokens(kit: Kit, names: Names, _kind: str) -> Job:
    return _Tokens(kit, names)


def _kept(capture: Capture, table: str) -> dict[str, str]:
    """Column -> variable of a table that was computed during the capture; empty when it was not."""
    names = scalars(table)
    return names if set(names.values()) <= set(capture.group) else {}


def all_boundaries(capture: Capture, table: str) -> None:
    """LakeError unless the capture holds the residuals at every boundary."""
    if "resid" not in capture.group or capture.array("resid").shape[1] <= len(capture.array("layer")[:]):
        raise LakeError(
            f"{capture.path}: table {table} needs the residual at every boundary, this capture kept fewer (a lean profile, or"
            " other sites): capture with the profile full into another lake"
        )


def raw_lens(kit: Kit, names: Names, rows: Rows) -> dict[str, np.ndarray]:
    """The raw lens of a block, all columns [n, L+1]; computed once however many jobs want it."""
    return rows.once("lens", lambda: lens(kit.head(names), rows["resid"], rows.columns["target"], device=kit.device))


def _lens(kit: Kit, names: Names, kind: str) -> Job:
    if kind == "tuned":
        from .tuned import tuned_lens

        return tuned_lens(kit, names)
    if kind not in ("", "raw"):
        raise LakeError(f"lens({kind}): the lens is raw or tuned")
    capture = kit.capture(names)
    kept = _kept(capture, "lens")
    if not kept:
        all_boundaries(capture, "lens")

    def compute(rows: Rows) -> dict[str, Any]:
        found = {name: rows[variable] for name, variable in kept.items()} if kept else raw_lens(kit, names, rows)
        return {**found, "rank_target": np.ma.masked_equal(found["rank_target"], 0)}

    recipe = kit.recipe("lens", names, head=True, lens="raw")
    reads = tuple(kept.values()) or ("resid",)
    named = {**_named(names), "lens": "raw"}
    return LayerTable(kit.layout, "lens", recipe, (capture,), reads, compute, lambda rows: {**named, **label(rows)})


def _delta(kit: Kit, names: Names, _kind: str) -> Job:
    capture = kit.capture(names)
    kept = _kept(capture, "delta")
    if not kept:
        all_boundaries(capture, "delta")
    sites = tuple(site for site in ("resid", "mlp_out") if site in capture.group)

    def compute(rows: Rows) -> dict[str, np.ndarray]:
        if kept:
            return {name: rows[variable] for name, variable in kept.items()}
        arrays, attrs = kit.arrays(names)
        post = (arrays["post_norm_weight"], attrs["post_norm_eps"]) if "post_norm_weight" in arrays else None
        parallel = bool(attrs["parallel"])
        mlp = rows.values.get("mlp_out")
        return delta(rows["resid"], mlp, post_norm=post, parallel=parallel, device=kit.device)

    recipe, reads = kit.recipe("delta", names, head=True), tuple(kept.values()) or sites
    named = _named(names)
    return LayerTable(kit.layout, "delta", recipe, (capture,), reads, compute, lambda rows: {**named, **label(rows)})


# Jobs that live in modules of their own, which import from this one.


def _endpoint(kit: Kit, names: Names, _kind: str) -> Job:
    from .endpoint import endpoint_table

    return endpoint_table(kit, names)


def _churn(kit: Kit, names: Names, kind: str) -> Job:
    from .endpoint import churn_table

    return churn_table(kit, names, kind)


# --- a pair ----------------------------------------------------------------------------------------------------------


def aligned(pt: Rows, it: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Places in two blocks of the same (prompt, step), step >= 0."""

    def align() -> tuple[np.ndarray, np.ndarray]:
        frames = [
            pd.DataFrame({name: rows.columns[name] for name in ("prompt", "step")}).query("step >= 0").reset_index()
            for rows in (pt, it)
        ]
        both = frames[0].merge(frames[1], on=["prompt", "step"], suffixes=("_pt", "_it")).sort_values("index_pt")
        return both["index_pt"].to_numpy(), both["index_it"].to_numpy()

    return pt.once(("aligned", it.capture.path), align)


def pair_columns(kit: Kit, models: dict[str, Names], pt: Rows, it: Rows) -> dict[str, np.ndarray]:
    """The columns of `pair_lens` [n, L+1] of a block; computed once however many jobs want them."""

    def compute() -> dict[str, np.ndarray]:
        at_pt, at_it = aligned(pt, it)
        return pair_lens(
            kit.head(models["pt"]),
            kit.head(models["it"]),
            pt["resid"][at_pt],
            it["resid"][at_it],
            mask=kit.arrays(models["pt"])[0]["real_token"] & kit.arrays(models["it"])[0]["real_token"],
            device=kit.device,
        )

    return pt.once(("pair_lens", it.capture.path), compute)


def _pair_lens(kit: Kit, scope: Scope, _kind: str) -> Job:
    models = {variant: (scope.pair, variant, scope.streams[variant]) for variant in VARIANTS}
    captures = {variant: kit.capture(names) for variant, names in models.items()}
    for capture in captures.values():
        all_boundaries(capture, "pair_lens")

    def compute(pt: Rows, it: Rows) -> dict[str, np.ndarray]:
        return pair_columns(kit, models, pt, it)

    def named(pt: Rows, it: Rows) -> dict[str, Any]:
        where = {"pair": scope.pair, "variant": "both", "stream": scope.streams["it"], "stream_pt": scope.streams["pt"]}
        return {**where, **{name: values[aligned(pt, it)[0]] for name, values in label(pt).items()}}

    recipe = {
        "captures": {variant: capture.sha256 for variant, capture in captures.items()},
        "heads": {variant: kit.head_hash(names) for variant, names in models.items()},
        "streams": scope.streams,
        "pair": scope.pair,
        "version": VERSION["pair_lens"],
    }
    return LayerTable(kit.layout, "pair_lens", recipe, tuple(captures.values()), ("resid",), compute, named)


# Jobs that live in modules of their own, which import from this one.


def _geometry(kit: Kit, names: Names, _kind: str) -> Job:
    from .points import Geometry

    return Geometry(kit, names)


def _attention(kit: Kit, names: Names, _kind: str) -> Job:
    from .points import Attention

    return Attention(kit, names)


def _weights(kit: Kit, scope: Scope, _kind: str) -> Job:
    from .weights import Weights

    return Weights(kit, scope.pair)


def _directions(kit: Kit, scope: Scope, kind: str) -> Job:
    from .directions import directions_table

    return directions_table(kit, scope, kind)


def _lens_eval(kit: Kit, scope: Scope, _kind: str) -> Job:
    from .tuned import Evaluation

    return Evaluation(kit, scope)


def _factorial(kit: Kit, scope: Scope, _kind: str) -> Job:
    from .factorial import Factorial

    return Factorial(kit, scope)


def _divergence(kit: Kit, scope: Scope, _kind: str) -> Job:
    from .divergence import Divergence

    return Divergence(kit, scope)


def _writeout(kit: Kit, scope: Scope, _kind: str) -> Job:
    from .writeout import Writeout

    return Writeout(kit, scope)


def _graft(kit: Kit, scope: Scope, kind: str) -> Job:
    from .graft import graft_table

    return graft_table(kit, scope, kind)


def _mechanism(kit: Kit, scope: Scope, kind: str) -> Job:
    from .mechanism import mechanism_table

    return mechanism_table(kit, scope, kind)


# --- what is missing -------------------------------------------------------------------------------------------------

PER_CAPTURE: dict[str, Callable[[Kit, Names, str], Job]] = {
    "tokens": _tokens,
    "lens": _lens,
    "delta": _delta,
    "endpoint": _endpoint,
    "churn": _churn,
    "geometry": _geometry,
    "attention": _attention,
}
PER_PAIR: dict[str, Callable[[Kit, Scope, str], Job]] = {
    "pair_lens": _pair_lens,
    "weights": _weights,
    "directions": _directions,
    "lens_eval": _lens_eval,
    "factorial": _factorial,
    "divergence": _divergence,
    "writeout": _writeout,
    "graft": _graft,
    "mechanism": _mechanism,
}
# Kinds that free SQL gets of a table, without naming them.
KINDS = {
    "directions": ("stability", "spread", "matched", "reverse", "splits", "contrast", "contrast_tuned"),
    "graft": ("B_early", "B_mid", "B_late", "D_early", "D_mid", "D_late"),
    "mechanism": ("A", "B_late", "C", "D_late"),
}
BEHIND_VIEW = {"commit_layers": "lens", "commitment": "lens", "first_diff": "tokens"}


def jobs_of(kit: Kit, need: Need) -> list[Job]:
    """What makes a table for the captures in scope, there already or not.

    Raises LakeError for a table that nobody computes or that these captures do not have what it takes for.
    """
    table, kind, scope = need
    name = BEHIND_VIEW.get(table, table)
    if name in PER_PAIR:
        foreign = _is_foreign(kit, name, kind, {"pair": scope.pair, **_streams_of(scope)})
        return [] if foreign else [PER_PAIR[name](kit, scope, kind)]
    if name in PER_CAPTURE:
        return [
            PER_CAPTURE[name](kit, names, kind)
            for names in scope.models
            if not _is_foreign(kit, name, kind, _named(names))
        ]
    raise LakeError(f"unknown table {name!r}; this version computes {', '.join([*PER_CAPTURE, *PER_PAIR])}")


def _streams_of(scope: Scope) -> dict[str, str]:
    return {"stream": scope.streams["it"], "stream_pt": scope.streams["pt"]} if scope.streams else {}


def _is_foreign(kit: Kit, table: str, kind: str, capture: dict[str, str]) -> bool:
    """Whether a table's rows of a capture came from elsewhere (`actlake table add`), so that nobody computes them.

    LakeError when they did not and there is no capture to compute them from either.
    """
    wanted = {**capture, **({"lens": kind or "raw"} if "lens" in TABLES[table].names else {})}
    wanted |= {"kind": kind} if kind and "kind" in TABLES[table].names else {}
    if table in CONDITIONED:
        wanted["condition"] = kind.removesuffix("_tuned")
        wanted |= {"lens": "tuned" if kind.endswith("_tuned") else "raw"} if table == "graft" else {}
    if any(wanted.items() <= found.items() for found in kit.foreign(table)):
        return True
    variant = capture.get("variant", "it")
    if "stream" not in capture or kit.layout.capture(capture["pair"], variant, capture["stream"]).exists():
        return False
    names = " ".join(f"--{key.replace('_', '-')} {value}" for key, value in wanted.items() if key != "kind")
    raise LakeError(
        f"table {table} has no rows of {', '.join(wanted.values())}, and there is no capture to compute them from:"
        f" `actlake table add {table} FILE {names}`"
    )


def ensure(layout: Layout, needs: Iterable[Need], device: str = "cpu", catalog: Path | None = None) -> list[Path]:
    """Compute what is missing of the tables named, all in as few passes over the captures as there can be.

    Shows a progress bar per pass and returns the new files. Raises LakeError as `jobs_of` does.
    """
    kit = Kit(layout, device, catalog)
    return run([job for need in needs for job in jobs_of(kit, need)])


def ensure_all(layout: Layout, names: set[str], device: str = "cpu", catalog: Path | None = None) -> None:
    """Compute what free SQL asks for: the named tables, for every sealed capture of the lake that has what they take.

    LakeError when a table can't be had of any capture.
    """
    kit, jobs, streams = Kit(layout, device, catalog), [], stream_table(layout)
    for name in sorted({BEHIND_VIEW.get(name, name) for name in names} & TABLES.keys()):
        found, problem = [], None
        for scope in _pairs_of(streams) if name in PER_PAIR else _singles(streams):
            for kind in KINDS.get(name, ("",)):
                try:
                    found += jobs_of(kit, (name, kind, scope))
                except LakeError as error:
                    problem = error
        if problem and not found:
            raise problem
        jobs += found
    run(jobs)


def _singles(streams: pd.DataFrame) -> list[Scope]:
    rows = streams[["pair", "variant", "stream"]].drop_duplicates()
    return [Scope(row.pair, {row.variant: row.stream}) for row in rows.itertuples()]


def _pairs_of(streams: pd.DataFrame) -> list[Scope]:
    scopes = []
    for (pair, *_), group in streams.groupby(["pair", "recipe", "prompt_set", "max_new_tokens"]):
        if set(group["variant"]) == set(VARIANTS) and len(group) == len(VARIANTS):
            streams_of = dict(zip(group["variant"], group["stream"], strict=True))
            scopes.append(Scope(str(pair), streams_of, str(group["recipe"].iloc[0])))
    return scopes
