"""The rows that a lake has the captures for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...store.core.errors import LakeError
from ...store.format.paths import Layout
from ..engine.context import Context
from ..rows.index import reads
from ..rows.registry import Query, queries
from .answer import scopes_of


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
    """Whether the lake has the captures that a row reads; rows for which models write first are left out."""
    if not query.recipes or reads(query) == "generate":
        return False
    try:
        scopes_of(kit, query, pair, None)
    except LakeError:
        return False
    return True
