"""Who computes which table: every table with what makes it, turned into jobs of the sweep when its file is not there."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pandas as pd

from ..store.core.errors import LakeError
from ..store.core.progress import say
from ..store.core.schema import CONDITIONED, TABLES, VARIANTS
from ..store.format.paths import Layout
from ..store.tables.sql import find_tables
from .engine.context import Context, Names, Scope, name_columns
from .engine.estimate import work_of
from .engine.job import Job
from .engine.passes import Engine, missing_of, run

MOMENT = 2.0  # seconds of work that free SQL may begin without a word
Need = tuple[str, str, Scope]  # table, kind ('raw' of lens(raw)), captures


@dataclass(frozen=True)
class Maker:
    """What makes a table's job: a function or class of a module of this package, which is imported when the table is wanted.

    Some modules bring torch and transformers along, which take seconds to import; a question starts with those it needs.
    """

    module: str
    name: str
    kinds: bool = False  # whether it is told which kind

    def __call__(self, kit: Context, about: Names | Scope, kind: str) -> Job:
        """The job for one capture, or for a pair's."""
        make = getattr(import_module(f".{self.module}", __package__), self.name)
        job: Job = make(kit, about, kind) if self.kinds else make(kit, about)
        return job


PER_CAPTURE = {
    "tokens": Maker("tables.per_layer", "Tokens"),
    "lens": Maker("tables.tuned", "lens_table", kinds=True),
    "delta": Maker("tables.per_layer", "delta_table"),
    "endpoint": Maker("tables.final_layer", "endpoint_table"),
    "churn": Maker("tables.final_layer", "churn_table", kinds=True),
    "geometry": Maker("tables.per_prompt", "Geometry"),
    "attention": Maker("tables.per_prompt", "Attention"),
    "words": Maker("tables.words", "Words"),
    "lens_eval": Maker("tables.tuned", "Evaluation"),
}
PER_PAIR = {
    "pair_lens": Maker("tables.per_layer", "pair_lens_table"),
    "weights": Maker("tables.weights", "Weights"),
    "directions": Maker("tables.directions", "directions_table", kinds=True),
    "factorial": Maker("replayed.factorial", "Factorial"),
    "divergence": Maker("replayed.divergence", "Divergence"),
    "writeout": Maker("replayed.writeout", "writeout_table", kinds=True),
    "graft": Maker("replayed.graft", "graft_table", kinds=True),
    "mechanism": Maker("replayed.mechanism", "mechanism_table", kinds=True),
    "candidates": Maker("replayed.candidates", "candidates_table", kinds=True),
    "vocab": Maker("tables.words", "pair_vocab"),
    "patching": Maker("replayed.patching", "Patching", kinds=True),
    "scores": Maker("generation.scores", "Scores", kinds=True),
    "judged": Maker("generation.judging", "JudgedTable", kinds=True),
    "effects": Maker("generation.effects", "Effects", kinds=True),
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
ALONE = ("vocab",)  # of those of a pair, what a pair of one model has, too
WRITTEN = ("scores", "judged", "effects")  # made of texts that models write
BEHIND_JOIN = {"lens_text": {"lens", "vocab"}}  # views of several tables, for free SQL alone
BEHIND_VIEW = {"commit_layers": "lens", "commitment": "lens", "first_diff": "tokens", "behaviour": "scores"}


def jobs_of(kit: Context, need: Need) -> list[Job]:
    """What makes a table for the captures in scope, there already or not.

    Raises LakeError for a table that nobody computes or that these captures do not have what it takes for.
    """
    jobs = _made(kit, need)
    for job in jobs:
        job.source = (kit, need)
    return jobs


def _made(kit: Context, need: Need) -> list[Job]:
    table, kind, scope = need
    name = BEHIND_VIEW.get(table, table)
    if name in PER_PAIR:
        there = _is_foreign(kit, name, kind, {"pair": scope.pair, **_streams_of(scope)})
        if there or (name == "judged" and _judged_elsewhere(kit, scope, kind)):
            return []
        if name in WRITTEN:
            _check_written(kit, scope, kind)
        return [PER_PAIR[name](kit, scope, kind)]
    if name in PER_CAPTURE:
        return [
            PER_CAPTURE[name](kit, names, kind)
            for names in scope.models
            if not _is_foreign(kit, name, kind, name_columns(names))
        ]
    raise LakeError(f"unknown table {name!r}; this version computes {', '.join([*PER_CAPTURE, *PER_PAIR])}")


def _judged_elsewhere(kit: Context, scope: Scope, sweep: str) -> bool:
    """Whether the lake has a sweep's verdicts as a table and no judge is named here: they are read as they are."""
    if not find_tables(kit.layout, "judged", {"pair": scope.pair, "sweep": sweep, **_streams_of(scope)}):
        return False
    from ..judge.client import MODEL

    return not os.environ.get(MODEL, "").strip()


def _check_written(kit: Context, scope: Scope, sweep: str) -> None:
    """LakeError when a sweep's texts would all have to be generated and that is switched off: known before its job is made,
    which takes tokenizers."""
    if kit.generate or any(kit.layout.outputs(scope.pair, variant).is_dir() for variant in VARIANTS):
        return
    if not find_tables(kit.layout, "scores", {"pair": scope.pair, "sweep": sweep}):
        raise LakeError(
            f"scores({sweep}): the models of {scope.pair} have written nothing yet, and generating is switched off: `actlake run"
            f" {sweep} --pair {scope.pair}` makes its texts"
        )


def _streams_of(scope: Scope) -> dict[str, str]:
    if set(scope.streams) == set(VARIANTS):
        return {"stream": scope.streams["it"], "stream_pt": scope.streams["pt"]}
    return name_columns(scope.models[0]) if scope.streams else {}


def _is_foreign(kit: Context, table: str, kind: str, capture: dict[str, str]) -> bool:
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
    layout: Layout, needs: Iterable[Need], device: str = "auto", catalog: Path | None = None, engine: Engine = run
) -> list[Path]:
    """Compute what is missing of the tables named, all in as few passes over the captures as there can be.

    Shows a progress bar per pass and returns the new files. `engine` does the work (`Cluster.run`: on other machines).
    Raises LakeError as `jobs_of` does.
    """
    kit = Context(layout, device, catalog)
    return engine([job for need in needs for job in jobs_of(kit, need)], None)


def ensure_all(
    layout: Layout,
    names: set[str],
    device: str = "auto",
    catalog: Path | None = None,
    engine: Engine = run,
    compute: bool = True,
) -> None:
    """Compute what free SQL asks for: the named tables, for every sealed capture of the lake that has what they take.

    What that takes is said before it starts. Without `compute` only what is missing is said, in a line. `engine` as in
    `ensure`. LakeError when a table can't be had of any capture and none of its
    rows came from elsewhere, or when it has no rows and is not to be computed.
    """
    kit = Context(layout, device, catalog)
    jobs = jobs_of_all(kit, names)
    if compute:
        engine(say_work(kit, jobs), None)
    elif missing := [job for job in jobs if not job.path.exists()]:
        what = "; ".join(work_of(kit, jobs).parts())
        for name in dict.fromkeys(job.name for job in missing):
            if name in TABLES and not any(layout.table(name).glob("*.parquet")):
                raise LakeError(f"table {name} has no rows yet, and computing is switched off; to compute: {what}")
        say(f"not computed: {what}; the rows are those that are there")


def say_work(kit: Context, jobs: list[Job]) -> list[Job]:
    """Say what takes longer than a moment to compute, and how to leave it out; returns the jobs."""
    if missing_of(jobs) and (work := work_of(kit, jobs)).seconds >= MOMENT:
        say(f"computing {'; '.join(work.parts(kit.device))} (--no-compute, or compute=False, leaves it out)")
    return jobs


def jobs_of_all(kit: Context, names: set[str]) -> list[Job]:
    """What makes the named tables of every sealed capture that has what they take."""
    jobs: list[Job] = []
    names = names | set().union(*(tables for view, tables in BEHIND_JOIN.items() if view in names))
    for name in sorted({BEHIND_VIEW.get(name, name) for name in names} & TABLES.keys()):
        found, problem = [], None
        if name in PER_PAIR and name not in ALONE:
            _check_pairs(kit, name)
        for scope in _scopes(kit, name):
            for kind in KINDS.get(name, ("",)):
                try:
                    found += jobs_of(kit, (name, kind, scope))
                except LakeError as error:
                    problem = error
        if problem and not found and not kit.foreign(name):
            raise problem
        jobs += found
    return jobs


def _check_pairs(kit: Context, table: str) -> None:
    """LakeError for a table that compares two models, of a lake where no pair has captures of both (nor the table itself)."""
    there = kit.streams[["pair", "variant"]].drop_duplicates()
    if there.empty or (there["pair"].value_counts() > 1).any() or find_tables(kit.layout, table, {}):
        return
    have = ", ".join(f"{row.pair}/{row.variant}" for row in there.itertuples())
    raise LakeError(f"table {table} needs both models of a pair; none here has both (captured: {have})")


def _scopes(kit: Context, table: str) -> list[Scope]:
    """The captures that a table is made of, each or in pairs; no captures for `vocab`."""
    if table == "vocab":
        return [Scope(pair, {}) for pair in sorted(set(kit.streams["pair"]))]
    if table not in PER_PAIR:
        return _singles(kit.streams)
    alone = [s for s in _singles(kit.streams) if len(kit.variants(s.pair)) == 1] if table in ALONE else []
    return _pairs_of(kit.streams) + alone


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
