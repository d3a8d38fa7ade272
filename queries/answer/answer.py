"""Answering questions: their tables (all in one pass), their SQL, then an estimate with an interval per line."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb
import pandas as pd

from ...store.artifacts.models import equal_pairs
from ...store.captures.manifest import capture_warnings
from ...store.core.errors import LakeError
from ...store.core.schema import VARIANTS
from ...store.format.paths import Layout
from ...store.tables.files import FOREIGN, find_tables
from ...store.tables.names import Chain, Pairs
from ...store.tables.sql import sql_error
from ...store.tables.streams import PUBLISHED, same_prompts
from ..engine.context import Context, Scope, check_both
from ..engine.job import Job, Stage
from ..engine.passes import stage_of
from ..makers import jobs_of
from ..probes.choice import has_jacobian
from ..rows.findings import FIELD, Findings, in_words
from ..rows.header import Query, Wanted
from ..rows.numbers import interval
from ..rows.registry import published
from .beside import Beside, beside, said_beside
from .estimates import check_any, read, table_of, table_of_chain
from .lock import write_lock
from .narrowed import pooled, read_through, scope_by
from .sentences import LISTED, called, say, say_of_chain

if TYPE_CHECKING:
    from ..figures.figure import Picture


MAIN = 24  # lines of a table that are shown at first


@dataclass(frozen=True, repr=False)
class Answer(Findings):
    """A question answered for one pair, pooled over several, or along a chain: what was found, drawn and saved."""

    def __repr__(self) -> str:
        return f"Answer: {self.query.id}, {self.query.title}, {self.pair}. {self.sentence} {len(self.table)} estimates"

    def _repr_html_(self) -> str:
        """The sentence, the figure, the main numbers, and all of them folded."""
        from ...analyze.core.html import section, table
        from ..figures.page import notebook_figure

        picture = notebook_figure(self)
        every = (
            f"<details><summary>all {len(self.table)} estimates</summary>{table(self.table, len(self.table))}</details>"
        )
        heading, main = f"{self.query.id} · {self.query.title} · {self.pair}", self.main.copy()
        named = [in_words(self.query, name) for name in main["measure"]]
        main.insert(1, "what it is", [f"{each.label} ({each.unit})" for each in named])
        return section(heading, f"<p>{escape(self.sentence)}</p>", picture, table(main), every)

    @property
    def main(self) -> pd.DataFrame:
        """The lines of `table` that the sentence is about, or the first that hold for no single layer; MAIN at most."""
        single = self.table[self.table["layer"].isna()] if "layer" in self.table else self.table
        named = {name for name, *_ in FIELD.findall(self.query.says)}
        chosen = single[single["measure"].isin(named)]
        chosen = chosen if len(chosen) else single if len(single) else self.table
        return chosen.head(MAIN)

    def figure(self) -> Picture:
        """The figure of this row, drawn as the query's header says: a matplotlib Figure that a notebook shows."""
        from ..figures.figure import draw

        return draw(self)

    def lock(self, file: str | Path) -> None:
        """Write all that the answer used, by hash, and the answer itself into a file, for `lake.reproduce`.

        LakeError when the file can't be written.
        """
        write_lock(self.layout, [self], Path(file))

    def save(self, folder: str | Path) -> list[Path]:
        """Write ID-PAIR.csv, .png, .svg and .sql (ID-PAIR-SEGMENT...) into a folder and return their paths.

        A figure that shows what one of before did is not drawn again, in whatever folder that was.
        """
        from ..figures.kept import drawn

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        name = "-".join([self.query.id, self.pair, *self.segments])
        files = [folder / f"{name}{suffix}" for suffix in (".csv", ".png", ".svg", ".sql")]
        self.table.to_csv(files[0], index=False)
        for file in files[1:3]:
            file.write_bytes(drawn(self, file.suffix))
        files[3].write_text(self.sql + "\n", encoding="utf-8")
        return files


@dataclass(frozen=True)
class Refused:
    """A question that the store can't answer, and why: what is missing and the command that makes it."""

    query: Query
    reason: str
    error: LakeError = field(default_factory=lambda: LakeError("not answered"), repr=False, compare=False)


# --- what a query reads ----------------------------------------------------------------------------------------------


@dataclass
class Plan:
    """A query, its captures pair by pair (one scope per stream recipe), and the jobs that make its tables."""

    query: Query
    scopes: dict[str, list[Scope]]
    made_by: dict[Wanted, list[Job]] = field(default_factory=dict)
    without: list[str] = field(default_factory=list)  # optional tables that can't be had, and why
    missing: set[Wanted] = field(default_factory=set)  # these, and those not asked for
    beside: Beside = field(default_factory=Beside)  # the same row where both models read the same text
    foreign: bool = False  # only imported rows: they are answered, whatever other tables the row reads
    chain: Chain | None = None  # whose pairs these are; without one, several pairs are pooled

    @classmethod
    def make(
        cls, kit: Context, query: Query, pairs: Sequence[str], prompts: str | None, chain: Chain | None = None
    ) -> Plan:
        """LakeError when captures are not there, or a table that is not optional can't be had, or no table at all.

        Where tables of other streams are imported, but those of this row are on the stream `published`, these are read.
        """
        try:
            return cls._of(kit, query, pairs, prompts, chain)
        except LakeError:
            streams = pd.concat([kit.streams_of(pair) for pair in pairs])
            if prompts or not (streams["recipe"] == PUBLISHED).any() or not (streams["prompt_set"] == FOREIGN).all():
                raise
            with suppress(LakeError):  # the first reason is the one to tell
                return cls._of(kit, query, pairs, PUBLISHED, chain)
            raise

    @classmethod
    def _of(cls, kit: Context, query: Query, pairs: Sequence[str], prompts: str | None, chain: Chain | None) -> Plan:
        if len(pairs) > 1:
            for pair in pairs:
                check_both(kit, pair, "pooling")
        plan = cls(query, {pair: scopes_of(kit, query, pair, prompts) for pair in pairs}, chain=chain)
        plan.foreign = all(kit.is_foreign(scope) for scopes in plan.scopes.values() for scope in scopes)
        every, refused = [scope for scopes in plan.scopes.values() for scope in scopes], dict[Wanted, LakeError]()
        for want in query.needs:
            if want.there and not has_jacobian(kit, read_through(every, want)):
                plan.missing.add(want)
                continue
            try:
                plan.made_by[want] = [
                    job for scope in every for job in jobs_of(kit, (want.table, want.kind, _part(scope, want)))
                ]
            except LakeError as error:
                refused[want] = error
        plan._leave_out(refused)
        plan.beside = Beside() if plan.foreign or kit.by else beside(kit, query, plan.scopes, prompts)
        if chain:  # the number on the same text is one of a pair, or pooled
            plan.beside = Beside(plan.beside.own)
        return plan

    @property
    def jobs(self) -> list[Job]:
        """What makes the tables."""
        return [*(job for jobs in self.made_by.values() for job in jobs), *self.beside.jobs]

    @property
    def pairs(self) -> Pairs:
        """The pairs asked about, with their models."""
        return {pair: dict(scopes[0].models) for pair, scopes in self.scopes.items()}

    def tables(self, layout: Layout) -> dict[str, list[Path]]:
        """The files of each table that hold the rows asked about, there or not, but for those from elsewhere."""
        found: dict[str, list[Path]] = {}
        for job in self.jobs:
            found.setdefault(job.name, []).append(job.path)
        for want in self.query.needs if not self.foreign else ():
            if want.table == "judged" and not self.made_by.get(want):  # read as it is where no judge is named
                for models in self.pairs.values():
                    found.setdefault("judged", []).extend(
                        find_tables(layout, "judged", {"models": models, "sweep": want.kind})
                    )
        return found

    @property
    def stage(self) -> Stage:
        """The last stage that something belongs to which is missing."""
        return max(map(stage_of, self.jobs), default=Stage.TABLES)

    def needless(self, stage: Stage) -> bool:
        """Whether the row can do without all that is missing of a stage."""
        late = [want for want, jobs in self.made_by.items() if any(stage_of(job) == stage for job in jobs)]
        return all(want.optional for want in late) and len(late) < len(self.made_by)

    @property
    def files(self) -> set[Path]:
        """Where the tables lie, and what they are made from, there or not."""
        found, jobs = set[Path](), self.jobs
        while jobs:
            found |= {job.path for job in jobs}
            jobs = [first for job in jobs for first in job.before if first.path not in found]
        return found

    def do_without(self, failed: dict[Path, LakeError]) -> None:
        """Leave out the tables whose jobs failed; LakeError as in `make`, and what to run once its cause is gone."""
        missing = {
            want: LakeError(
                f"{failed[job.path]}; then run `actlake run {self.query.id} --pair {' --pair '.join(self.scopes)}`"
            )
            for want, jobs in self.made_by.items()
            for job in jobs
            if job.path in failed
        }
        self._leave_out(missing)

    def _leave_out(self, missing: dict[Wanted, LakeError]) -> None:
        """Note which tables are missing; LakeError for a table that the row needs, and when none is left."""
        for want, error in missing.items():
            if not (want.optional or self.foreign) or not self.made_by.keys() - missing.keys():
                raise error
            self.without.append(f"without {_named(want)}: {error}")
        self.missing |= missing.keys()
        if self.foreign and len(missing) > 1:
            self.without[:] = [f"without {', '.join(map(_named, missing))}, of which no rows were brought in"]

    @property
    def streams(self) -> dict[str, str]:
        """Who read what: variant -> stream name; with several pairs or recipes these stand before the variant."""
        return {
            " ".join([*[pair] * (len(self.scopes) > 1), *[scope.recipe] * (len(scopes) > 1), variant]): stream
            for pair, scopes in self.scopes.items()
            for scope in scopes
            for variant, stream in scope.streams.items()
        }


def scopes_of(kit: Context, query: Query, pair: str, prompts: str | None) -> list[Scope]:
    """The captures that a query reads: one scope per stream recipe; one without streams when it reads none.

    LakeError for an unknown pair, for captures that are not there, and for a pair of one model where the row compares two.
    """
    if kit.by:
        return [scope_by(kit, query, kit.by, prompts)]
    there = kit.variants(pair) or VARIANTS
    if query.models > 1:
        check_both(kit, pair, query.id)
    if not query.recipes:
        return [kit.scope(pair, {})]
    streams = kit.streams_of(pair)
    return [kit.scope(pair, same_prompts(streams, pair, recipe, prompts, there), recipe) for recipe in query.recipes]


def _named(want: Wanted) -> str:
    return f"{want.table}({want.kind})" if want.kind else want.table


def _part(scope: Scope, want: Wanted) -> Scope:
    """The captures whose rows of a table are read."""
    return scope.one(want.variant) if want.variant else scope


# --- the answer ------------------------------------------------------------------------------------------------------


def answered(
    layout: Layout,
    connection: duckdb.DuckDBPyConnection,
    plan: Plan,
    made: Sequence[Path],
    resamples: int,
    started: float,
) -> Answer:
    query, pairs = plan.query, list(plan.scopes)
    sql = pooled(query, plan.scopes, plan.missing)
    try:
        found = read(connection, sql, query, pairs)
    except duckdb.Error as error:
        raise sql_error(error, layout) from error
    check_any(found, query, plan.scopes, plan.foreign, plan.without)
    paths = plan.files
    table = (
        table_of_chain(plan.chain, found, query, resamples)
        if plan.chain
        else table_of(list(found.values()), query, resamples)
    )
    aside = {pair: [scope] for pair, scope in plan.beside.scopes.items()}
    shared = pooled(query, aside, plan.missing) if aside else ""
    more = said_beside(connection, query, plan.beside, shared, resamples)
    captures = sorted({names for scopes in plan.scopes.values() for scope in scopes for names in scope.captures})
    notes = [*plan.without, *capture_warnings(layout, captures), *equal_pairs(layout, plan.pairs)]
    return Answer(
        query=query,
        pair=plan.chain.name if plan.chain else "+".join(pairs),
        models=plan.pairs,
        streams=plan.streams,
        table=table,
        sql=sql,
        published=published(query.id, *pairs),
        sentence=" ".join([_sentence(plan, table), *[more] * bool(more), *(f"({note})" for note in notes)]).strip(),
        computed=[path for path in made if path in paths],
        rows=sum(part.rows for part in found.values()),
        seconds=time.perf_counter() - started,
        captures=captures,
        read=sorted(path for path in paths if path.exists()),
        layout=layout,
        chain=plan.chain,
    )


def _sentence(plan: Plan, table: pd.DataFrame) -> str:
    """The finding in a sentence; of a pair of one model its numbers alone."""
    if plan.chain:
        return say_of_chain(plan.chain, plan.query, table)
    only = {variant for scopes in plan.scopes.values() for scope in scopes for variant in scope.streams}
    if len(only) != 1:
        return say(plan.query.says, table, plan.query, plan.foreign)
    lines = table[table["estimate"].notna()]
    lines = lines[lines["layer"].isna()] if "layer" in lines else lines
    rows = {row.measure: row for row in lines.itertuples()}
    named = [name for name in dict.fromkeys(name for name, *_ in FIELD.findall(plan.query.says)) if name in rows]
    parts = [
        f"{called(plan.query, name)}: {interval(rows[name].estimate, rows[name].low, rows[name].high)}"
        for name in named or list(rows)[:LISTED]
    ]
    alone = f"{next(iter(plan.scopes))} has {only.pop()} only, which is compared with no other model"
    return f"{alone}. {'; '.join(parts)}." if parts else f"{alone}."
