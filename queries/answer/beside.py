"""Rows that compare models on their own texts: that the sentence says so, and gives the number on the same text beside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import duckdb

from ...store.core.errors import LakeError
from ...store.tables.streams import same_prompts
from ..engine.context import Context, Scope
from ..engine.job import Job
from ..makers import jobs_of
from ..rows.findings import compared, in_words
from ..rows.header import Query, Wanted
from .estimates import read, table_of
from .sentences import called, say

OWN_ANSWERS = {"lens", "delta", "endpoint", "churn", "lens_eval"}  # tables of every token of an answer
OWN_PROMPTS = {"geometry", "attention"}  # of the last prompt token
QUICK = {
    ("lens", "raw"),
    ("delta", ""),
    ("endpoint", ""),
}  # made for the number beside; others only used where they are
SHARED = "teacher"  # the recipe in which both read IT's answers


@dataclass
class Beside:
    """The same row on the same text: its captures pair by pair, and the jobs that make its tables."""

    own: str = ""  # what the sentence says of the texts that the row itself compares; empty where they are the same
    scopes: dict[str, Scope] = field(default_factory=dict)  # empty where there are no captures, or no tables, of it
    jobs: list[Job] = field(default_factory=list)


def beside(kit: Context, query: Query, scopes: dict[str, list[Scope]], prompts: str | None) -> Beside:
    """What to say of a row whose models read their own texts, and how to answer it on the same text."""
    tables = {want.table for want in query.needs}
    alike = [scope for found in scopes.values() for scope in found if len(set(scope.streams.values())) < 2]
    if query.recipes != ("native",) or alike or not tables & (OWN_ANSWERS | OWN_PROMPTS):
        return Beside()
    if not tables & OWN_ANSWERS:
        return Beside("PT and IT each read the prompt in their own form here.")
    found = Beside("PT and IT read their own texts here, each its own answer to its own form of the prompt.")
    if not compared(query.says):
        return found
    try:
        found.scopes = {pair: _shared(kit, pair, prompts) for pair in scopes}
        found.jobs = [job for want in query.needs for scope in found.scopes.values() for job in _jobs(kit, want, scope)]
    except LakeError:  # a capture or a table of that is not there: the row itself needs none
        found.scopes, found.jobs = {}, []
    return found


def said_beside(connection: duckdb.DuckDBPyConnection, query: Query, there: Beside, sql: str, resamples: int) -> str:
    """What follows a row's sentence; `sql` is the row's on the same text."""
    if not there.scopes or not all(job.path.exists() for job in there.jobs):
        return there.own
    first = compared(query.says)[0]
    pairs = list(there.scopes)
    found = read(connection, f"SELECT * FROM ({sql}) WHERE measure = '{first}'", query, pairs)
    if found.keys() != set(pairs):
        return there.own
    # The choice of nothing among nothing marks it as a difference, written with its sign.
    number = say(f"[{{{first}? | | }}{{{first}}}]", table_of(list(found.values()), query, resamples), query)
    named = f"{called(query, first)}, {in_words(query, first).unit}"
    return (
        f"{there.own} On the same text, IT's answers read by both, it is {number} ({named})." if number else there.own
    )


def _shared(kit: Context, pair: str, prompts: str | None) -> Scope:
    return kit.scope(pair, same_prompts(kit.streams_of(pair), pair, SHARED, prompts), SHARED)


def _jobs(kit: Context, want: Wanted, scope: Scope) -> Sequence[Job]:
    """The jobs of a table; those that take long only where there is nothing left to do, or else LakeError."""
    if want.optional and (want.table, want.kind) not in QUICK:
        return []
    jobs = jobs_of(kit, (want.table, want.kind, scope))
    if (want.table, want.kind) not in QUICK and not all(job.path.exists() for job in jobs):
        raise LakeError(f"{want.table} takes long on {SHARED}")
    return jobs
