"""Which rows a lake has the captures for, and what a copy of a part of one lacks for a row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from ...store.core.errors import LakeError
from ...store.core.schema import VARIANTS
from ...store.format.partial import pulled_from
from ...store.format.paths import Layout
from ..engine.context import Context
from ..rows.header import Query
from ..rows.index import reads
from ..rows.registry import queries
from .answer import Plan


def next_questions(layout: Layout, pairs: Sequence[str], catalog: Path | None) -> list[str]:
    """The questions that pairs just captured can answer: a line each, and SQL."""
    kit, lines = Context(layout, "cpu", catalog), []
    for pair in pairs:
        ready = [query.id for query in queries(catalog).values() if _is_ready(kit, query, pair)]
        if ready:
            lines.append(
                f"next: actlake run {' '.join(ready[:2])} --pair {pair}  (of these captures: {', '.join(ready)})"
            )
    return [*lines, 'next: actlake sql "SELECT variant, layer, avg(entropy) FROM lens GROUP BY ALL ORDER BY ALL"'][:4]


def _is_ready(kit: Context, query: Query, pair: str) -> bool:
    """Whether the lake has what a row reads, and enough of it; rows for which models write first are left out."""
    if not query.recipes or reads(query) == "generate":
        return False
    try:
        Plan.make(kit, query, [pair], None)
    except LakeError:
        return False
    return True


def lacking(layout: Layout, kit: Context, query: Query, pairs: Sequence[str]) -> str:
    """What a lake that was pulled lacks for a row, in a line with the command; empty when it was not pulled, or lacks nothing.

    Models come first, then streams of those that are there: one command brings all rows that lack the same.
    """
    source = pulled_from(layout.root)
    if not source:
        return ""
    mine = pd.concat([kit.streams_of(pair) for pair in pairs])
    there = set(mine["variant"])
    if absent := [variant for variant in VARIANTS if variant not in there]:
        options = "".join(f" {pair}/{variant}" for pair in pairs for variant in absent)
        return _words(" and ".join(absent), source, options, layout)
    if absent := [recipe for recipe in query.recipes if set(mine[mine["recipe"] == recipe]["variant"]) != there]:
        options = "".join(f" --stream {recipe}" for recipe in absent)
        return _words(f"stream {' and '.join(absent)}", source, options, layout)
    return ""


def _words(what: str, source: str, options: str, layout: Layout) -> str:
    return f"this copy lacks {what}; `actlake pull {source}{options} --lake {layout}` brings it, if it is there"
