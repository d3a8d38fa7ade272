"""Rows answered one after the other: first what is there, then what tables take seconds, then minutes, then texts, probes last.

Each stage makes the tables of all its rows in as few passes over the captures as there can be. What a stage takes is said
before anything runs, with the option that leaves it out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...store.core.errors import LakeError
from ...store.core.progress import say
from ...store.core.schema import VARIANTS
from ...store.format.paths import Layout
from ...store.tables.names import Chain, _By
from ...store.tables.sql import connect
from ..engine.context import Context
from ..engine.estimate import Work, listed, work_of
from ..engine.job import Job, Stage
from ..engine.passes import Engine, missing_of, stage_of
from ..engine.passes import run as sweep
from ..rows.header import Query
from .answer import Answer, Plan, Refused, answered
from .estimates import RESAMPLES
from .narrowed import renamed, within, worded
from .ready import lacking

QUICK = 10.0  # seconds: rows whose tables take no longer are answered before all others


@dataclass(frozen=True)
class Forecast:
    """What one row takes: work that is missing (nothing: it is answered from what is there), or why it can't be answered."""

    query: Query
    work: Work
    refused: str = ""
    without: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """In a line."""
        if self.refused:
            return f"can't be answered: {self.refused}"
        verbs = {Stage.TABLES: "to compute", Stage.TEXTS: "to generate", Stage.PROBES: "to train"}
        parts = [f"{verbs[stage]}: {part}" for stage, part in self.work.parts().items()]
        return "; ".join([*(parts or ["answered from what is there"]), *self.without])


class Asking:
    """Some rows of a pair (or of several, pooled), planned when it is made and answered as it is read.

    `generate` and `probes` say whether models may write and probes may be trained; without, rows do without what is not
    there or are refused. `engine` computes tables. `refused` are the rows that can't be answered, known before anything
    runs; others may be added while it runs. `segments`: rows see tokens of these alone. `by`: one model with itself.
    `seconds` is what tables, texts and probes took so far.
    """

    def __init__(
        self,
        layout: Layout,
        queries: Sequence[Query],
        pair: str | Sequence[str],
        prompts: str | None = None,
        device: str = "auto",
        catalog: Path | None = None,
        generate: bool = True,
        probes: bool = True,
        engine: Engine = sweep,
        resamples: int = RESAMPLES,
        chain: Chain | None = None,
        segments: Sequence[str] = (),
        by: _By | None = None,
    ):
        self.layout, self._engine, self._resamples = layout, engine, resamples
        self.order = {query.id: place for place, query in enumerate(queries)}
        self.kit = Context(layout, device, catalog, generate, probes, segments=tuple(segments), by=by)
        pairs = chain.pairs if chain else [pair] if isinstance(pair, str) else list(dict.fromkeys(pair))
        self._plans, self.refused = list[Plan](), list[Refused]()
        self.seconds = 0.0
        for name in pairs:
            self.kit.variants(name)  # a LakeError for an unknown pair, once
        for query in {query.id: query for query in queries}.values():
            try:
                asked = within(worded(query, by) if by else query, segments)
                self._plans.append(Plan.make(self.kit, asked, pairs, prompts, chain))
            except LakeError as error:
                why = LakeError(lack) if not by and (lack := lacking(layout, self.kit, query, pairs)) else error
                self.refused.append(Refused(query, str(why), why))

    @property
    def asked(self) -> int:
        """Number of requested rows."""
        return len(self.order)

    def forecast(self) -> list[Forecast]:
        """What each row takes by itself, those that can't be answered last; nothing is run."""
        found = [Forecast(plan.query, work_of(self.kit, plan.jobs), "", tuple(plan.without)) for plan in self._plans]
        return found + [Forecast(no.query, Work(), no.reason) for no in self.refused]

    def work(self) -> Work:
        """What all rows take together."""
        return work_of(self.kit, self._jobs(self._plans))

    def announce(self, tell: Callable[[str], None] = say) -> None:
        """Say what takes longer than some seconds, and which option leaves it out."""
        jobs = self._jobs(self._plans)
        if not missing_of(jobs):
            return
        work = self.work().parts(self.kit.device)
        stages = {plan.query.id: plan.stage for plan in self._plans}
        if tables := work.get(Stage.TABLES):
            replace(tables, what=f"computing {tables.what}").announce(tell)
        if texts := work.get(Stage.TEXTS):
            rows = listed(name for name, stage in stages.items() if stage >= Stage.TEXTS and self._writes(name))
            out = f"after all that reads captures; --no-generate, or generate=False, leaves {rows} out"
            replace(texts, what=f"generating {texts.what}", leave_out=out).announce(tell, least=0)
        if probes := work.get(Stage.PROBES):
            waiting = [plan for plan in self._plans if stages[plan.query.id] == Stage.PROBES]
            optional = [plan.query.id for plan in waiting if plan.needless(Stage.PROBES)]
            needed = [plan.query.id for plan in waiting if plan.query.id not in optional]
            parts = [f"the tuned lens out of {listed(optional)}"] if optional else []
            parts += [f"{listed(needed)} out"] if needed else []
            out = f"last of all; --no-probes, probes=False, or Ctrl-C then, leaves {' and '.join(parts)}"
            what = f"{listed(plan.query.id for plan in waiting)}: training {probes.what}"
            replace(probes, what=what, leave_out=out).announce(tell)

    def _writes(self, row: str) -> bool:
        """Whether models have to write for a row."""
        jobs = next(plan.jobs for plan in self._plans if plan.query.id == row)
        return any(job.stage == Stage.TEXTS for job in missing_of(jobs).values())

    def __iter__(self) -> Iterator[Answer | Refused]:
        """Answers, and rows that turn out not to have one, as they are ready.

        LakeError only for what concerns all rows, such as damaged files. Ctrl-C while probes are trained leaves them out:
        rows that can do without are answered before it takes effect.
        """
        failed, made = dict[Path, LakeError](), list[Path]()
        stopped: KeyboardInterrupt | None = None
        for stage, plans, jobs in self._turns():
            started = time.perf_counter()
            try:
                made += self._engine(jobs, failed) if missing_of(jobs, failed) else []
            except KeyboardInterrupt as stop:
                if stage != Stage.PROBES:
                    raise
                stopped = stop
                say("stopped: rows that can do without the tuned lens are answered without it")
                rest = self._jobs([plan for plan in plans if plan.needless(stage)])
                rest = [
                    job for job in rest if stage_of(job) == Stage.TABLES
                ]  # known before failures hide what is missing
                for path in missing_of(jobs).keys() - missing_of(rest).keys():
                    failed.setdefault(path, LakeError("training was stopped"))
                made += self._engine(rest, failed) if missing_of(rest, failed) else []
            self.seconds += time.perf_counter() - started
            yield from self._answer(plans, made, failed)
        if stopped:
            raise stopped

    def answers(self) -> Iterator[Answer]:
        """The answers alone."""
        return (found for found in self if isinstance(found, Answer))

    def reasons(self, start: int = 0) -> list[tuple[str, str]]:
        """Rows that can't be answered, from the `start`th on, those with one reason together: ('0A, 0B', the reason)."""
        by: dict[str, list[str]] = {}
        for one in self.refused[start:]:
            by.setdefault(one.reason.removeprefix(f"{one.query.id}: "), []).append(one.query.id)
        return [(", ".join(rows), reason) for reason, rows in by.items()]

    def _answer(
        self, plans: Sequence[Plan], made: Sequence[Path], failed: dict[Path, LakeError]
    ) -> Iterator[Answer | Refused]:
        for plan in plans:
            started = time.perf_counter()
            found: Answer | Refused
            # One connection a row, with the files of that row: an answer does not depend on what else is asked.
            sql = f"SELECT 1 FROM ({plan.query.sql}), tokens" if self.kit.segments else plan.query.sql
            with connect(self.layout, sql, plan.pairs, plan.tables(self.layout)) as connection:
                try:
                    plan.do_without(failed)
                    found = answered(self.layout, connection, plan, made, self._resamples, started)
                    if by := self.kit.by:
                        table, query = renamed(found.table, found.query, by)
                        streams = dict(zip(by.labels, (found.streams[variant] for variant in VARIANTS), strict=True))
                        title, nothing = by.title, found.published.iloc[:0]
                        said = found.sentence.replace("IT − PT", " − ".join(reversed(by.labels)))
                        found = replace(found, table=table, query=query, pair=title, streams=streams, published=nothing)
                        found = replace(found, sentence=said)
                    if of := self.kit.segments:
                        remark = f"{found.sentence} (only tokens of segment {', '.join(of)})".strip()
                        found = replace(found, segments=of, sentence=remark)
                except LakeError as error:
                    self.refused.append(found := Refused(plan.query, str(error), error))
            yield found

    def _turns(self) -> Iterator[tuple[Stage, list[Plan], list[Job]]]:
        """Rows that are answered together, and the jobs to do before: what is there, quick tables, all other tables, also those
        of later rows but for replays (one with probes gives raw and tuned tables at once), then texts, then probes."""
        of = {place: plan.stage for place, plan in enumerate(self._plans)}
        first = [plan for place, plan in enumerate(self._plans) if of[place] == Stage.TABLES]
        asked = {job.path for job in self._jobs(first)}
        early = [
            job
            for job in self._jobs(self._plans)
            if stage_of(job) == Stage.TABLES and (job.path in asked or not job.reruns)
        ]
        short = work_of(self.kit, early).seconds <= QUICK
        there, quick, slow = list[Plan](), list[Plan](), list[Plan]()
        for plan in first:
            missing = bool(missing_of(plan.jobs))
            turn = there if not missing else quick if short or work_of(self.kit, plan.jobs).seconds <= QUICK else slow
            turn.append(plan)
        yield Stage.TABLES, there, []
        yield Stage.TABLES, quick, early if short else self._jobs(quick)
        yield Stage.TABLES, slow, early
        for stage in (Stage.TEXTS, Stage.PROBES):
            plans = [plan for place, plan in enumerate(self._plans) if of[place] == stage]
            yield stage, plans, self._jobs(plans)

    @staticmethod
    def _jobs(plans: Sequence[Plan]) -> list[Job]:
        return [job for plan in plans for job in plan.jobs]


def only_answer(asking: Asking) -> Answer:
    """The answer of an asking of one row; LakeError when the captures that it needs are not there."""
    if asking.refused:
        raise asking.refused[0].error
    asking.announce()
    (found,) = asking
    if isinstance(found, Refused):
        raise found.error
    return found
