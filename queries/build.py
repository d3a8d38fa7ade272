"""Who computes which table: every table with what makes it, turned into jobs of the sweep when its file is not there."""

from collections.abc import Callable, Iterable
from pathlib import Path

import pandas as pd

from ..store.errors import LakeError
from ..store.layout import Layout
from ..store.schema import CONDITIONED, TABLES, VARIANTS
from ..store.tables import stream_table
from .candidates import candidates_table
from .directions import directions_table
from .divergence import Divergence
from .effects import Effects
from .endpoint import churn_table, endpoint_table
from .factorial import Factorial
from .graft import graft_table
from .judging import JudgedTable, judged_elsewhere
from .kit import Kit, Names, Scope, name_columns
from .layers import Tokens, delta_table, pair_lens_table, raw_lens_table
from .mechanism import mechanism_table
from .patching import Patching
from .points import Attention, Geometry
from .scores import Scores
from .sweep import Engine, Job, run
from .tuned import Evaluation, tuned_lens
from .vocab import Words, vocab_table
from .weights import Weights
from .writeout import writeout_table

Need = tuple[str, str, Scope]  # table, kind ('raw' of lens(raw)), captures


def _lens(kit: Kit, names: Names, kind: str) -> Job:
    if kind not in ("", "raw", "tuned"):
        raise LakeError(f"lens({kind}): the lens is raw or tuned")
    return tuned_lens(kit, names) if kind == "tuned" else raw_lens_table(kit, names)


PER_CAPTURE: dict[str, Callable[[Kit, Names, str], Job]] = {
    "tokens": lambda kit, names, _: Tokens(kit, names),
    "lens": _lens,
    "delta": lambda kit, names, _: delta_table(kit, names),
    "endpoint": lambda kit, names, _: endpoint_table(kit, names),
    "churn": churn_table,
    "geometry": lambda kit, names, _: Geometry(kit, names),
    "attention": lambda kit, names, _: Attention(kit, names),
    "words": lambda kit, names, _: Words(kit, names),
}
PER_PAIR: dict[str, Callable[[Kit, Scope, str], Job]] = {
    "pair_lens": lambda kit, scope, _: pair_lens_table(kit, scope),
    "weights": lambda kit, scope, _: Weights(kit, scope.pair),
    "directions": directions_table,
    "lens_eval": lambda kit, scope, _: Evaluation(kit, scope),
    "factorial": lambda kit, scope, _: Factorial(kit, scope),
    "divergence": lambda kit, scope, _: Divergence(kit, scope),
    "writeout": writeout_table,
    "graft": graft_table,
    "mechanism": mechanism_table,
    "candidates": candidates_table,
    "vocab": lambda kit, scope, _: vocab_table(kit, scope.pair),
    "patching": Patching,
    "scores": Scores,
    "judged": JudgedTable,
    "effects": Effects,
}
# Kinds that free SQL gets of a table, without naming them.
KINDS = {
    "directions": ("stability", "spread", "matched", "reverse", "splits", "contrast", "contrast_tuned"),
    "graft": ("B_early", "B_mid", "B_late", "D_early", "D_mid", "D_late"),
    "mechanism": ("A", "B_late", "C", "D_late"),
    "writeout": ("", "late"),
    "candidates": ("B_late",),
    "scores": (),  # hours of generation are asked for by name
    "judged": (),
    "effects": (),
}
BEHIND_VIEW = {"commit_layers": "lens", "commitment": "lens", "first_diff": "tokens", "behaviour": "scores"}


def jobs_of(kit: Kit, need: Need) -> list[Job]:
    """What makes a table for the captures in scope, there already or not.

    Raises LakeError for a table that nobody computes or that these captures do not have what it takes for.
    """
    jobs = _made(kit, need)
    for job in jobs:
        job.source = (kit, need)
    return jobs


def _made(kit: Kit, need: Need) -> list[Job]:
    table, kind, scope = need
    name = BEHIND_VIEW.get(table, table)
    if name in PER_PAIR:
        there = _is_foreign(kit, name, kind, {"pair": scope.pair, **_streams_of(scope)})
        there = there or (name == "judged" and judged_elsewhere(kit, scope, kind))
        return [] if there else [PER_PAIR[name](kit, scope, kind)]
    if name in PER_CAPTURE:
        return [
            PER_CAPTURE[name](kit, names, kind)
            for names in scope.models
            if not _is_foreign(kit, name, kind, name_columns(names))
        ]
    raise LakeError(f"unknown table {name!r}; this version computes {', '.join([*PER_CAPTURE, *PER_PAIR])}")


def _streams_of(scope: Scope) -> dict[str, str]:
    return {"stream": scope.streams["it"], "stream_pt": scope.streams["pt"]} if scope.streams else {}


def _is_foreign(kit: Kit, table: str, kind: str, capture: dict[str, str]) -> bool:
    """Whether a table's rows of a capture came from elsewhere (`actlake table add`), so that nobody computes them.

    LakeError when they did not and there is no capture to compute them from either.
    """
    wanted = {name: value for name, value in capture.items() if name in TABLES[table].names}
    wanted |= {"lens": kind or "raw"} if "lens" in TABLES[table].names else {}
    wanted |= {"kind": kind} if kind and "kind" in TABLES[table].names else {}
    wanted |= {"sweep": kind} if "sweep" in TABLES[table].names else {}
    if table in CONDITIONED:
        wanted["condition"] = kind.removesuffix("_tuned")
        wanted |= {"lens": "tuned" if kind.endswith("_tuned") else "raw"} if "lens" in TABLES[table].names else {}
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


def ensure(
    layout: Layout, needs: Iterable[Need], device: str = "cpu", catalog: Path | None = None, engine: Engine = run
) -> list[Path]:
    """Compute what is missing of the tables named, all in as few passes over the captures as there can be.

    Shows a progress bar per pass and returns the new files. `engine` does the work (`Cluster.run`: on other machines).
    Raises LakeError as `jobs_of` does.
    """
    kit = Kit(layout, device, catalog)
    return engine([job for need in needs for job in jobs_of(kit, need)], None)


def ensure_all(
    layout: Layout, names: set[str], device: str = "cpu", catalog: Path | None = None, engine: Engine = run
) -> None:
    """Compute what free SQL asks for: the named tables, for every sealed capture of the lake that has what they take.

    `engine` as in `ensure`. LakeError when a table can't be had of any capture.
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
    engine(jobs, None)


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
