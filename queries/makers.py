"""Who computes which table: every table with what makes it, turned into jobs of the sweep when its file is not there."""

from collections.abc import Iterable, Iterator, Set
from pathlib import Path
from typing import Any

from ..store.artifacts.probes import JACOBIAN
from ..store.captures.manifest import read_manifest
from ..store.core.errors import CorruptError, LakeError, needs
from ..store.core.progress import say
from ..store.core.schema import VARIANTS
from ..store.core.yaml_file import hint
from ..store.format.paths import Layout
from ..store.tables.declared import TABLES, Table
from ..store.tables.files import find_tables
from ..store.tables.statements import tables_behind
from ..store.tables.streams import stream_table
from .engine.context import Context, Scope, name_columns
from .engine.estimate import work_of
from .engine.job import Job
from .engine.passes import Engine, missing_of, run

MOMENT = 2.0  # seconds of work that free SQL may begin without a word
Need = tuple[str, str, Scope]  # table, kind ('raw' of lens(raw)), captures


def jobs_of(kit: Context, need: Need) -> list[Job]:
    """What makes a table for the captures in scope, there already or not.

    Raises LakeError for a table that nobody computes or that these captures do not have what it takes for.
    """
    if need[0] in kit.making:
        raise LakeError(f"tables need each other: {' -> '.join([*kit.making, need[0]])}")
    kit.making.append(need[0])
    try:
        with needs():  # a row that lacks a package is refused by itself, as of any other reason
            jobs = list(_made(kit, need))
    finally:
        kit.making.pop()
    for job in jobs:
        job.source = (kit, need)
    return jobs


def _made(kit: Context, need: Need) -> Iterator[Job]:
    name, kind, scope = need
    behind = tables_behind(name)
    if not behind:
        raise LakeError(f"unknown table {name!r}; this version computes {', '.join(TABLES)}{hint(name, TABLES)}")
    for table in (TABLES[each] for each in sorted(behind)):
        for about, part, columns in _files_of(table, scope, kind):
            if not _is_foreign(kit, table, kind, columns) and (job := table.make(kit, about, part)):
                yield job


def _files_of(table: Table, scope: Scope, kind: str) -> Iterator[tuple[Any, str, dict[str, str]]]:
    """What each file of a table is made of (capture or pair, kind or variant), and the columns that tell its rows."""
    pair = {f"model_{variant}": model for variant, model in scope.models.items()}
    if table.of == "pair":
        yield scope, kind, pair | _streams_of(scope)
    for variant in sorted(scope.streams) if table.of == "side" else ():
        yield scope, variant, pair | {"variant": variant, "stream": scope.streams[variant]}
    for names in scope.captures if table.of == "capture" else ():
        yield names, kind, name_columns(names)


def _streams_of(scope: Scope) -> dict[str, str]:
    if set(scope.streams) == set(VARIANTS):
        return {"stream": scope.streams["it"], "stream_pt": scope.streams["pt"]}
    return {"stream": scope.main} if scope.streams else {}


def _is_foreign(kit: Context, table: Table, kind: str, capture: dict[str, str]) -> bool:
    """Whether a table's rows of a capture came from elsewhere (`actlake table add`), so that nobody computes them.

    LakeError when they did not and there is no capture to compute them from either.
    """
    wanted = {name: value for name, value in capture.items() if name in table.names} | table.kind_columns(kind)
    if any(wanted.items() <= found.items() for found in kit.foreign(table.name)):
        return True
    model = capture.get("model") or capture.get(f"model_{capture.get('variant', 'it')}") or capture["model_pt"]
    if "stream" not in capture or kit.layout.capture(model, capture["stream"]).exists():
        return False
    names = " ".join(f"--{key.replace('_', '-')} {value}" for key, value in wanted.items() if key != "kind")
    raise LakeError(
        f"table {table.name} has no rows of {', '.join(wanted.values())}, and there is no capture to compute them from",
        repair=f"bring them in: `actlake table add {table.name} FILE {names}`",
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
    only: Set[str] | None = None,
    lenses: Set[str] = frozenset(),
) -> None:
    """Compute what free SQL asks for: the named tables, for every sealed capture (of `only` some models) that has what they
    take. Of `lenses` that it names those that no question trains by itself (Jacobian ones) are read, too.

    What that takes is said before it starts. Without `compute` only what is missing is said, in a line. `engine` as in
    `ensure`. LakeError when a table can't be had of any capture and none of its
    rows came from elsewhere, or when it has no rows and is not to be computed.
    """
    kit = Context(layout, device, catalog, only=only)
    jobs = jobs_of_all(kit, names) + (
        jobs_of_lens(kit, names, JACOBIAN, lenses == {JACOBIAN}) if JACOBIAN in lenses else []
    )
    if compute:
        engine(say_work(kit, jobs), None)
    elif missing := [job for job in jobs if not job.path.exists()]:
        what = str(work_of(kit, jobs))
        for name in dict.fromkeys(job.name for job in missing):
            if name in TABLES and not any(layout.table(name).glob("*.parquet")):
                raise LakeError(f"table {name} has no rows yet, and computing is switched off; to compute: {what}")
        say(f"not computed: {what}; the rows are those that are there")


def say_work(kit: Context, jobs: list[Job]) -> list[Job]:
    """Say what takes longer than a moment to compute, and how to leave it out; returns the jobs."""
    if missing_of(jobs) and (work := work_of(kit, jobs)).seconds >= MOMENT:
        say(
            f"computing {'; '.join(map(str, work.parts(kit.device).values()))} (--no-compute, or compute=False, leaves it out)"
        )
    return jobs


def jobs_of_all(kit: Context, names: set[str]) -> list[Job]:
    """What makes the named tables of every sealed capture that has what they take."""
    jobs: list[Job] = []
    for table in (TABLES[name] for name in sorted(set().union(*(tables_behind(name) for name in names)))):
        found, problem = [], None
        if table.of == "pair" and not table.alone:
            _check_pairs(kit, table.name)
        for scope in _scopes(kit, table):
            for (
                variant,
                stream,
            ) in scope.streams.items():  # one that can't be read is not one that lacks what a table takes
                read_manifest(kit.layout.capture(scope.models[variant], stream))
            for kind in table.kinds:
                try:
                    found += jobs_of(kit, (table.name, kind, scope))
                except CorruptError:  # without its rows the answer would be another one
                    raise
                except LakeError as error:
                    problem = error
        if problem and not found and not kit.foreign(table.name):
            raise problem
        jobs += found
    return jobs


def jobs_of_lens(kit: Context, names: set[str], lens: str, alone: bool) -> list[Job]:
    """What makes the rows of one kind of lens in the named tables, of every sealed capture whose model has such a lens.

    LakeError when none has and `alone` says that no other lens is asked about, nor any table that is read through none.
    """
    found, problem = list[Job](), None
    alone = alone and all("lens" in TABLES[name].names for each in names for name in tables_behind(each))
    for table in (TABLES[name] for name in sorted(set().union(*map(tables_behind, names)))):
        kinds = [lens, *(f"{kind}_{lens}" for kind in table.kinds if kind)]
        for kind in (kind for kind in kinds if table.kind_columns(kind).get("lens") == lens):
            for scope in _scopes(kit, table):
                try:
                    found += jobs_of(kit, (table.name, kind, scope))
                except CorruptError:
                    raise
                except LakeError as error:
                    problem = None if kit.foreign(table.name) else error
    if problem and alone and not found:
        raise problem
    return found


def _check_pairs(kit: Context, table: str) -> None:
    """LakeError for a table that compares two models, of a lake where no pair has captures of both (nor the table itself)."""
    there = kit.streams[["pair", "variant"]].drop_duplicates()
    if there.empty or (there["pair"].value_counts() > 1).any() or find_tables(kit.layout, table, {}):
        return
    have = ", ".join(f"{row.pair}/{row.variant}" for row in there.itertuples())
    raise LakeError(f"table {table} needs both models of a pair; none here has both (captured: {have})")


def _scopes(kit: Context, table: Table) -> list[Scope]:
    """What a table is made of: captures one by one or in pairs, or pairs by name."""
    if table.alone:
        return [kit.scope(pair, {}) for pair in sorted(set(kit.streams["pair"]))]
    if table.of == "capture":
        rows = stream_table(kit.layout, kit.only)[["model", "stream"]].drop_duplicates()
        return [Scope("", {"it": row.model}, {"it": row.stream}) for row in rows.itertuples()]
    if table.of == "side":
        rows = kit.streams[["pair", "variant", "stream"]].drop_duplicates()
        return [kit.scope(row.pair, {row.variant: row.stream}) for row in rows.itertuples()]
    return _pairs_of(kit)


def _pairs_of(kit: Context) -> list[Scope]:
    scopes, streams = [], kit.streams
    for (pair, *_), group in streams.groupby(["pair", "recipe", "prompt_set", "max_new_tokens"]):
        if set(group["variant"]) == set(VARIANTS) and len(group) == len(VARIANTS):
            streams_of = dict(zip(group["variant"], group["stream"], strict=True))
            scopes.append(kit.scope(str(pair), streams_of, str(group["recipe"].iloc[0])))
    return scopes
