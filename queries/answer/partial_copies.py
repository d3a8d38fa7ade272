"""Why a copy of a part of a lake can't answer a row: what it lacks, and the command that brings it."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from ...store.core.schema import VARIANTS
from ...store.exchange.transfer import pulled_from
from ...store.format.paths import Layout
from ..engine.context import Context
from ..rows.registry import Query


def lacking(layout: Layout, kit: Context, query: Query, pairs: Sequence[str]) -> str:
    """What a lake that was pulled lacks for a row, in a line with the command; empty when it was not pulled, or lacks nothing.

    Models come first, then streams of those that are there: one command brings all rows that lack the same.
    """
    source = pulled_from(layout)
    if not source:
        return ""
    mine = pd.concat([kit.streams_of(pair) for pair in pairs])
    there = set(mine["variant"])
    if absent := [variant for variant in VARIANTS if variant not in there]:
        options = "".join(f" {pair}/{variant}" for pair in pairs for variant in absent)
        return _words(" and ".join(absent), source, options)
    if absent := [recipe for recipe in query.recipes if set(mine[mine["recipe"] == recipe]["variant"]) != there]:
        options = "".join(f" --stream {recipe}" for recipe in absent)
        return _words(f"stream {' and '.join(absent)}", source, options)
    return ""


def _words(what: str, source: str, options: str) -> str:
    return f"this copy lacks {what}; `actlake pull {source}{options}` brings it, if it is there"
