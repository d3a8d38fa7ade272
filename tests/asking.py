"""Rows answered from a lake, without a Lake: for tests that choose the engine, resamples, or what is refused."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from actlake.queries.answer.answer import Answer, Refused
from actlake.queries.answer.asking import RESAMPLES, Asking, only_answer
from actlake.queries.engine.passes import run as sweep
from actlake.queries.rows.header import Query
from actlake.store.format.paths import Layout


def answer(
    layout: Layout, query: Query, pair: str | Sequence[str], prompts: str | None = None, device: str = "auto",
    resamples: int = RESAMPLES, catalog: Path | None = None, engine: Any = sweep, generate: bool = True, probes: bool = True,
) -> Answer:  # fmt: skip
    """Answer one query from a lake, as `lake.run` does."""
    return only_answer(Asking(layout, [query], pair, prompts, device, catalog, generate, probes, engine, resamples))


def answer_all(
    layout: Layout, queries: Sequence[Query], pair: str | Sequence[str], prompts: str | None = None, device: str = "auto",
    catalog: Path | None = None, generate: bool = True, engine: Any = sweep, probes: bool = True,
) -> tuple[list[Answer], list[Refused], float]:  # fmt: skip
    """Answers in the order of the request, what could not be answered, and the seconds that the tables took."""
    asking = Asking(layout, queries, pair, prompts, device, catalog, generate, probes, engine)
    asking.announce()
    found = {one.query.id: one for one in asking if isinstance(one, Answer)}
    return [found[query.id] for query in queries if query.id in found], asking.refused, asking.seconds
