"""Lake: everything that can be done with a lake, under one name."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb
import pandas as pd

from .page.look import listed
from .page.make import Make
from .page.share import Share
from .page.train import Train
from .store.core.errors import LakeError, needs
from .store.tables.names import by_named, chain_named, pairs_in, stored_models, stored_pairs
from .store.tables.result import exact_frame
from .store.tables.sql import SQL_SECONDS, check_select, connect, interruptible, lenses_named, only_models, sql_error
from .store.tables.statements import tables_in

if TYPE_CHECKING:
    from .queries.answer.answer import Answer
    from .queries.answer.asking import Asking
    from .queries.answer.listings import Rows
    from .queries.answer.reproduce import Compared
    from .queries.answer.results import Results


class Lake(Make, Share, Train):
    """Models, streams, captures and tables in a folder or at a URL, and the questions that can be asked of them."""

    @property
    def rows(self) -> Rows:
        """Every row of the experiment index: row, title, how, streams, tables; `lake.rows.L2(pair="pocket")` answers one."""
        from .queries.answer.listings import rows

        return rows(self.run, self._catalog)

    @needs()
    def sql(self, text: str, compute: bool = True) -> duckdb.DuckDBPyRelation:
        """Answer one SELECT over the lake's tables; missing tables are computed first, for every sealed capture, or for those
        of the pair or models that its WHERE names (`pair = 'X'`).

        What that takes is said before it starts; with `compute=False` only what is there is read, and what is missing said.
        Returns a DuckDB relation (`.df()` for pandas). The connection reads the lake's tables only. Raises LakeError for SQL
        that is wrong, writes, or reaches for anything else.
        """
        connection = self._connection(text, compute)
        try:
            return connection.sql(text)
        except duckdb.Error as error:
            raise sql_error(error, self.layout) from error

    @needs()
    def sql_frame(self, text: str, limit: int = 0, compute: bool = True, timeout: float | None = None) -> pd.DataFrame:
        """What `sql` answers as a pandas DataFrame of `limit` rows at most (0: all), no digit lost; Ctrl-C stops the query.

        A column with NULL has one of pandas' types that know pd.NA beside NaN. LakeError when the query itself takes more than
        `timeout` seconds (an hour unless said, 0: no limit).
        """
        connection = self._connection(text, compute)

        def read() -> pd.DataFrame:
            found = connection.sql(text)
            return exact_frame(found.limit(limit) if limit else found)

        try:
            return interruptible(connection, read, (SQL_SECONDS if timeout is None else timeout) or math.inf)
        except duckdb.Error as error:
            raise sql_error(error, self.layout) from error

    def _connection(self, text: str, compute: bool) -> duckdb.DuckDBPyConnection:
        """What answers a SELECT, its tables computed."""
        check_select(text)
        names, models = tables_in(text), stored_models(self.layout)
        pairs = stored_pairs(self.catalog, models) | pairs_in(text, models)
        only = only_models(text, pairs)
        if names - {"captures", "pairs", "streams"}:
            from .queries.makers import ensure_all

            lenses = lenses_named(text)
            ensure_all(self.layout, names, self.device, self._catalog, self._engine(), compute, only, lenses)
        try:
            return connect(self.layout, text, pairs, only=only)
        except duckdb.Error as error:
            raise sql_error(error, self.layout) from error

    @needs()
    def run(
        self,
        row: str,
        pair: str | Sequence[str] | None = None,
        prompts: str | None = None,
        generate: bool = True,
        probes: bool = True,
        chain: str | None = None,
        segment: str | Sequence[str] = (),
        by: str | None = None,
    ) -> Answer:
        """Answer a row of the experiment index from the store, computing missing tables first.

        `pair` may be left out in a lake of one pair; BASE..TUNED is one of any two models, and several pairs are pooled (the mean
        of their means). `chain` answers for the models of a chain instead: each against the first and against the one before,
        with the share of the whole difference that is there at each stage. `prompts` picks among several captured prompt sets.
        `generate` and `probes` say whether models may write, and a tuned lens may be trained, for what is not there: without, the
        row does without it or is refused. With `segment` (assistant, thinking, user, system, tool, template; one or some) the row
        sees these tokens alone. `by` compares one model (`pair` is MODEL or PAIR/ROLE) with itself: "prompts=A..B" on two prompt
        sets, "streams=A..B" on two streams, "layers=A..B" at two layers; rows whose header says so. Returns an Answer: `.table`
        (estimates with 95 % intervals), `.sentence`, `.figure()`, `.sql`, `.published`. Raises LakeError for an unknown row or
        captures that are not there.
        """
        from .queries.answer.asking import only_answer

        return only_answer(self.ask(row, pair, prompts, generate, probes, chain, segment, by))

    @needs()
    def run_all(
        self,
        rows: str | Sequence[str] = (),
        pair: str | Sequence[str] | None = None,
        prompts: str | None = None,
        generate: bool = True,
        probes: bool = True,
        out: str | Path | None = None,
        show: Callable[[Answer], None] | None = None,
        chain: str | None = None,
        segment: str | Sequence[str] = (),
        by: str | None = None,
    ) -> Results:
        """Answer many rows (every row of the index when none is named) in as few passes over the captures as possible.

        Other arguments as in `run`. `out` is a folder for the files of each answer and index.html, a page of all; `show` is
        called with each answer as soon as it is ready. Rows that can't be answered are in `.refused` with their reason. Returns
        Results: `.answers`, `.refused`, `.seconds`, `.page(file)`. LakeError only for what concerns all rows.
        """
        from .queries.answer.results import answer_rows

        asking = self.ask(rows, pair, prompts, generate, probes, chain, segment, by)
        return answer_rows(asking, Path(out) if out else None, show)

    @needs()
    def ask(
        self,
        rows: str | Sequence[str] = (),
        pair: str | Sequence[str] | None = None,
        prompts: str | None = None,
        generate: bool = True,
        probes: bool = True,
        chain: str | None = None,
        segment: str | Sequence[str] = (),
        by: str | None = None,
    ) -> Asking:
        """Plan rows (every row when none is named); arguments as in `run`. Nothing runs until answers are read.

        `.refused` are rows that can't be answered, `.forecast()` says what each would take, `.work()` what all take together, and
        iteration gives each answer as soon as it is ready. LakeError for an unknown row or pair.
        """
        from .queries.answer.asking import Asking
        from .queries.rows.registry import find, queries

        wanted = [find(name, self._catalog) for name in listed(rows)] or list(queries(self._catalog).values())
        for option, named in (("chain", chain), ("by", by), ("prompts", prompts)):
            if named == "":  # of a script whose variable is not set
                raise LakeError(option, expected="a name", found="an empty one")
        if chain and pair:
            raise LakeError("name a pair or a chain, not both")
        along = chain_named(chain, self.catalog) if chain else None
        engine, itself = self._engine(), None
        if by:
            if chain or len(models := listed(pair or ())) != 1:
                raise LakeError("--by compares one model with itself: name it with --pair, MODEL or PAIR/ROLE")
            itself = by_named(by, models[0], self.catalog, stored_models(self.layout))
        pairs = along.pairs if along else itself.pair if itself else pair or self.only_pair()
        return Asking(
            self.layout, wanted, pairs, prompts, self.device, self._catalog, generate, probes, engine, chain=along,
            segments=listed(segment), by=itself,
        )  # fmt: skip

    @needs()
    def reproduce(self, file: str | Path, generate: bool = True, tolerance: float = 0.0) -> list[Compared]:
        """Answer the rows of a lock file again: is every capture and table the same, and does the same come out?

        Tables that are missing are made again. Numbers may be `tolerance` apart. One comparison a row: `.same`, `.inputs` that
        differ, `.answer` (how it differs), `.recomputed`. LakeError for a file that is no lock file and captures that are gone.
        """
        from .queries.answer.lock import read_lock
        from .queries.answer.reproduce import reproduce

        return reproduce(self.layout, read_lock(Path(file)), self.device, self._catalog, generate, tolerance)
