"""The sentence of an answer: a row's template filled with its numbers; it never contradicts one of them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import pandas as pd

from ...store.tables.names import Chain
from ..rows.findings import FIELD, compared, in_words, shown
from ..rows.header import Query
from ..rows.numbers import interval, number

OPTIONAL = re.compile(r"\[([^\[\]]*)\]")
ELSE = "||"  # in an optional part: the alternative
SENTENCE = re.compile(r"(?<=\.)\s+(?=[A-Z\[{])")
NO_INTERVAL = "[no interval]"
LISTED = 3  # measures that a row without a sentence of its own tells
BRACKETS = 2  # intervals in a sentence; the others stand in the table
DUST = 1e-6  # what sums of float32 leave of nothing


def say(template: str, table: pd.DataFrame, query: Query, listed: bool = False) -> str:
    """Fill a query's sentence with the estimates of its answer.

    {name} is that measure's estimate and interval; {name@arm} is the estimate of one arm of the contrast, whose difference is
    meant otherwise. {name?a|b|c} is a when the interval is above zero, b when it is below, c when it holds zero. Without an
    interval the sign of the estimate decides, and the number says so: c would deny it. [...] is left out where a measure in
    it is not known, [...||otherwise] is replaced by what follows the bars. With `listed` a sentence without any known measure
    is left out, and one that lacks some is replaced by a list of those there are. After BRACKETS intervals of a sentence
    estimates stand alone. A row without a sentence lists its first numbers.
    """
    scalars = table[table["layer"].isna()] if "layer" in table else table
    compared = {match[1] for match in FIELD.finditer(template) if match[3] is not None}
    known = _known(scalars, query)

    def line_of(match: re.Match[str]) -> Any:
        return known.get((match[1], match[2] or ""))

    intervals = 0  # in this sentence

    def fill(match: re.Match[str]) -> str:
        nonlocal intervals
        line = line_of(match)
        if line is None:
            return f"({called(query, match[1])} undefined)"
        if match[3] is None:
            if match[2]:
                return interval(line.estimate)
            shown = _number(line, match[1] in compared, _differs(line, query))
            if pd.isna(line.low):
                return shown
            intervals += 1
            return shown if intervals <= BRACKETS else shown.partition(" [")[0]
        low, high = (line.estimate - DUST, line.estimate + DUST) if pd.isna(line.low) else (line.low, line.high)
        return match[3] if low > 0 else match[4] if high < 0 else match[5]

    def named(text: str) -> str:
        return listing(dict.fromkeys(match[1] for match in FIELD.finditer(text) if line_of(match)))

    def listing(names: Iterable[str]) -> str:
        sides = f" ({shown(' - '.join(query.contrast[1:]))})" if query.contrast and not listed else ""
        return f"{'; '.join(f'{called(query, name)}{sides}: {{{name}}}' for name in names)}."

    def keep(match: re.Match[str]) -> str:
        wanted, _, otherwise = match[1].partition(ELSE)
        return wanted if all(map(line_of, FIELD.finditer(wanted))) else otherwise

    if not template and (names := [name for name, arm in known if not arm][:LISTED]):
        template = listing(names)
    kept = [
        text
        for text in SENTENCE.split(OPTIONAL.sub(keep, template))
        if not (listed and FIELD.search(text)) or any(map(line_of, FIELD.finditer(text)))
    ]
    if listed:
        kept = [text if all(map(line_of, FIELD.finditer(text))) else named(text) for text in kept]
        kept = kept or ["None of the numbers of this row's sentence is known."]
    filled = []
    for text in kept:
        intervals = 0
        filled.append(FIELD.sub(fill, text))
    return " ".join(" ".join(filled).split())


def say_of_chain(chain: Chain, query: Query, table: pd.DataFrame) -> str:
    """The finding along a chain: the whole difference of the first measure that the row's sentence is about, what share of it
    is there after each stage, and the largest step; each stage's own sentence where the row compares nothing."""
    base, last = chain.models[0], chain.models[-1]
    column, *arms = query.contrast or ("measure",)
    for measure in compared(query.says) if arms else ():
        mine = table[(table["measure"] == measure) & (table[column] == " - ".join(arms))]
        mine = mine[mine["layer"].isna()] if "layer" in mine else mine
        of_base, steps = (mine[mine["compared"] == kind].set_index("stage") for kind in ("base", "step"))
        if last not in of_base.index or pd.isna(of_base.loc[last, "estimate"]):
            continue
        change = _signed(of_base.loc[last])
        whole = (
            f"From {base} to {last} the change is {change} ({called(query, measure)}, {in_words(query, measure).unit})"
        )
        if len(chain.models) == 2:
            return f"{whole}."
        share = table[table["measure"] == f"{measure}_share"].set_index("stage")[["estimate", "low", "high"]] * 100
        if share.isna().all(axis=None):
            stages = ", ".join(f"{stage} {_signed(of_base.loc[stage])}" for stage in of_base.index[:-1])
            return f"{whole}; on the way, against {base}: {stages}."
        parts = ", ".join(
            f"{interval(*line)} % after {stage}"
            for stage, line in zip(share.index, share.to_numpy(), strict=True)
            if stage != last
        )
        largest = steps["estimate"].abs().idxmax()
        before = chain.models[chain.models.index(largest) - 1]
        return f"{whole}. Of that, {parts} is there. The largest step is {before} to {largest} ({_signed(steps.loc[largest])})."
    pairs = []
    for stage in chain.models[1:]:
        mine = table[(table["stage"] == stage) & (table["compared"] == "base")]
        pairs.append(f"{base} to {stage}: {say(query.says, mine, query)}")
    return " ".join(pairs)


def called(query: Query, name: str) -> str:
    """What a measure is called in the row's header."""
    return in_words(query, name).label


def _signed(line: pd.Series) -> str:
    """A difference with its interval and its sign."""
    return interval(line["estimate"], line["low"], line["high"], sign=True)


def _known(scalars: pd.DataFrame, query: Query) -> dict[tuple[str, str], Any]:
    """(measure, "" for the contrast or the only one, else its arm) -> line of the table."""
    lines: dict[tuple[str, str], Any] = {}
    for line in scalars.itertuples():
        if pd.isna(line.estimate):
            continue
        arm = getattr(line, query.contrast[0]) if query.contrast else None
        difference = query.contrast is not None and arm == f"{query.contrast[1]} - {query.contrast[2]}"
        lines[str(line.measure), "" if difference or pd.isna(arm) else str(arm)] = line
    return lines


def _differs(line: Any, query: Query) -> bool:
    """Whether a line is the contrast of the query, which is written with its sign."""
    return query.contrast is not None and " - " in str(getattr(line, query.contrast[0]))


def _number(line: Any, compared: bool, difference: bool) -> str:
    if (
        pd.isna(line.low)
        and line.estimate == round(line.estimate)
        and not (compared or difference or line.unit == "curves")
    ):
        return number(line.estimate, 0)  # a count, or a layer
    text = interval(line.estimate, line.low, line.high, sign=compared or difference)
    bare = pd.isna(line.low) and (
        compared or difference or line.unit == "curves" or (not pd.isna(line.n) and line.n == 1)
    )
    return f"{text} {NO_INTERVAL}" if bare else text
