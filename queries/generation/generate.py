"""Free generation by command: one condition or whole sweeps over a prompt set, what is known taken from the lake."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ...analyze.core.html import section, table
from ...capture.edit.words import condition_text, parse_edits
from ...capture.run.ranks import ALONE, Rank
from ...capture.streams.capture_pair import find_prompts
from ...capture.streams.prompts import PromptSet
from ...store.artifacts.streams import stored_prompts
from ...store.core.errors import LakeError
from ...store.core.schema import VARIANTS
from ...store.core.specs import check_date, thinking_of
from ...store.tables.streams import same_prompts
from ..engine.context import Context, Scope, check_both
from ..engine.passes import run
from .models import SteeringVectors, hosts, prompts_of, steering
from .scores import budget_of, recipe_in
from .sweeps import Setting, settings
from .texts import BATCH, TextRequest, Texts


@dataclass(frozen=True)
class _Written:
    """One condition as generated: its key, what it is, how many texts were asked for, generated now, and their tokens."""

    key: str
    variant: str
    condition: str
    arm: str
    dose: float | None
    texts: int
    generated: int
    tokens: int
    rows: list[dict[str, Any]]


@dataclass(frozen=True)
class Generation:
    """What to generate: edits in words (done in order), conditions of the catalog, sweeps of rows; the template for the edits;
    a prompt set, its first `limit` prompts (None: those that the pair's captures read), new tokens, date, batch."""

    edits: tuple[str, ...] = ()
    conditions: tuple[str, ...] = ()
    sweeps: tuple[str, ...] = ()
    template: str = "native"
    prompts: str | None = None
    limit: int | None = None
    max_new_tokens: int | None = None
    date: str | None = None
    control_tokens: bool = False
    thinking: str | None = None
    batch: int = BATCH


@dataclass(frozen=True)
class Generated:
    """What generating did: texts asked for, missing before, new tokens at most; `conditions` that were written, each once."""

    asked: int
    missing: int
    tokens: int
    line: str
    conditions: list[_Written]

    @property
    def texts(self) -> pd.DataFrame:
        """Every text of the conditions: key, variant, condition, prompt_id, text, tokens, ended ..."""
        rows = [
            {"key": one.key, "variant": one.variant, "condition": one.condition, **row}
            for one in self.conditions
            for row in one.rows
        ]
        return pd.DataFrame(rows)

    def _repr_html_(self) -> str:
        return section(self.line, table(self.texts))


def generate(
    kit: Context,
    pair: str,
    roles: Sequence[str],
    wanted: Generation,
    rank: Rank = ALONE,
    dry_run: bool = False,
    show: Callable[[str], None] | None = None,
) -> Generated:
    """Generate what is missing of conditions of a pair's models (`roles`; none: the last one for edits, IT if it is there).

    With `dry_run` nothing is. `show` is called with what there is to do, before it is done. LakeError as `plan` raises it.
    """
    there, catalog = kit.variants(pair), kit.catalog
    settings_of: list[Setting | str] = list(wanted.sweeps)
    for name in wanted.conditions:
        spec = catalog.condition(name)
        settings_of.append(setting_of(kit, pair, spec.variant, spec.edits, spec.template))
    if wanted.edits or not settings_of:
        texts = [text for text in wanted.edits if text != "none"]
        settings_of += [setting_of(kit, pair, who, texts, wanted.template) for who in roles or there[-1:]]
    named, which = _prompts_and_streams(kit, pair, wanted.prompts or "")
    chosen = find_prompts(catalog, kit.layout, named, wanted.limit) if named else None
    if wanted.date:
        check_date(wanted.date)
    if wanted.limit is not None and chosen is None:
        raise LakeError("--limit: needs --prompts SET; without one the prompts are those that the captures read")
    budget = wanted.max_new_tokens or (64 if chosen else None)
    thinking_of(wanted.thinking)
    read = (wanted.date, wanted.control_tokens, wanted.thinking)
    found = plan(kit, pair, settings_of, chosen, which, budget, wanted.batch, *read)
    if show:
        show(found.line())
    done = [] if dry_run else write(found, rank)
    return Generated(found.asked, found.missing, found.tokens, found.line(), done)


@dataclass(frozen=True)
class _Plan:
    """What generating takes: conditions asked for, distinct ones, texts asked for and missing, new tokens at most."""

    jobs: list[tuple[Setting, Texts]]
    distinct: list[Texts]
    asked: int
    missing: int
    tokens: int

    def line(self) -> str:
        """For people, before work starts."""
        return (
            f"{len(self.jobs)} conditions, {len(self.distinct)} distinct: {self.asked:,} texts, {self.missing:,} to generate, at"
            f" most {self.tokens:,} tokens"
        )


def plan(
    kit: Context,
    pair: str,
    wanted: Sequence[Setting | str],
    prompts: PromptSet | None = None,
    which: str | None = None,
    max_new_tokens: int | None = None,
    batch: int = BATCH,
    date: str | None = None,
    control_tokens: bool = False,
    thinking: str | None = None,
) -> _Plan:
    """Settings, or sweeps by name, over a prompt set (else that of the pair's native captures, picked by `which`).

    `date`, `thinking` and `control_tokens` None or False where prompts are those of captures: as these were made.

    LakeError for a sweep, edit or direction that is unknown, and where captures are needed that are not there.
    """
    scope = _scope(kit, pair, which, prompts is None or which is not None)
    steer: SteeringVectors = steering(kit, scope)
    every: list[Setting] = []
    for each in wanted:
        if isinstance(each, str):
            check_both(kit, pair, f"sweep {each}")
        every += settings(each, hosts(kit, pair).shape()) if isinstance(each, str) else [each]
    for setting in every:
        steer.before(setting.edits)  # a wrong direction is reported first
    chosen = prompts or prompts_of(kit, scope)
    budget = max_new_tokens or budget_of(kit, scope)
    read = {} if prompts else recipe_in(kit, scope)
    jobs = [
        (
            setting,
            Texts(
                kit,
                TextRequest(
                    pair,
                    setting.variant,
                    setting.edits,
                    setting.template,
                    budget,
                    chosen.prompts,
                    chosen.name,
                    batch,
                    date or read.get("date"),
                    control_tokens or "control_tokens" in read,
                    thinking_of(thinking or read.get("thinking")),
                ),
                steer,
            ),
        )
        for setting in every
    ]
    distinct = {job.path: job for _, job in jobs}
    missing = sum(len(job.missing()) for job in distinct.values())
    return _Plan(jobs, list(distinct.values()), len(jobs) * len(chosen.prompts), missing, missing * budget)


def setting_of(kit: Context, pair: str, variant: str, edits: Sequence[str], template: str) -> Setting:
    """One condition from edits in words."""
    if variant not in VARIANTS:
        raise LakeError(f"variant {variant!r}: expected pt or it")
    shape = hosts(kit, pair).shape()
    return Setting("", None, variant, parse_edits(edits, shape.n_layers, shape.windows), template)


def write(found: _Plan, rank: Rank = ALONE) -> list[_Written]:
    """Generate what is missing; one line per distinct condition, in the order asked for.

    Ranks each begin with other conditions and take over what they find done, so that several share the work.
    """
    new = {job.path: len(job.missing()) for job in found.distinct}
    jobs = sorted(found.distinct, key=lambda job: job.asked.variant)  # one model after the other
    first = rank.rows(len(jobs)).start
    run(jobs[first:] + jobs[:first])
    done, seen = [], set()
    for setting, job in found.jobs:
        if job.path not in seen:
            seen.add(job.path)
            rows = job.rows()
            text = condition_text(setting.edits)
            tokens = sum(row["tokens"] for row in rows)
            done.append(
                _Written(
                    job.condition.key,
                    setting.variant,
                    text,
                    setting.arm,
                    setting.dose,
                    len(rows),
                    new[job.path],
                    tokens,
                    rows,
                )
            )
    return done


def _prompts_and_streams(kit: Context, pair: str, names: str) -> tuple[str, str | None]:
    """What `prompts` names, with commas between: a prompt set, and streams of the pair's captures, which say where directions
    come from, and without a set which prompts are meant."""
    streams = kit.streams_of(pair)
    own = streams.loc[(streams["pair"] == pair) & (streams["recipe"] == "native"), "name"]

    def is_stream(name: str) -> bool:
        known = name in kit.catalog.prompts or stored_prompts(kit.layout, name)
        return bool(name) and not known and bool(own.str.startswith(name).any())

    parts = names.split(",")
    which = [part for part in parts if is_stream(part)]
    return ",".join(part for part in parts if part not in which), ",".join(which) or None


def _scope(kit: Context, pair: str, which: str | None, needed: bool) -> Scope:
    """The pair's captures on their own texts, which directions and prompts come from; none where none is needed."""
    try:
        return kit.scope(pair, same_prompts(kit.streams_of(pair), pair, "native", which, kit.variants(pair)), "native")
    except LakeError:
        if needed:
            raise
        return kit.scope(pair, {})
