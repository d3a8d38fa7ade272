"""What the names in answers are called and how they look: measures from the rows' headers, the rest from words.yaml."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ...store.core.errors import LakeError

FILE = Path(__file__).parent / "words.yaml"
PLACE = re.compile(r"<(\w+)>")  # in a measure's name: a word of that section of words.yaml; <n>: a number
NUMBER = r"-?[\d.]+|minus[\d.]+"
POOLED = "_token_weighted"  # ends the names of measures that weigh all tokens of several pairs alike


class Measure(NamedTuple):
    """A measure in words: what it is called, its unit, and what it is."""

    label: str
    unit: str
    definition: str


@cache
def words() -> dict[str, dict[str, Any]]:
    """The sections of words.yaml."""
    found: dict[str, dict[str, Any]] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return {section: {str(key): value for key, value in entries.items()} for section, entries in found.items()}


def colours() -> dict[str, tuple[str, str]]:
    """Every colour by name: on white, on dark."""
    return {name: (light, dark) for name, (light, dark) in words()["colours"].items()}


def parse_measures(text: str, where: str) -> tuple[tuple[str, ...], ...]:
    """The items `- NAME | LABEL | UNIT | DEFINITION` of a header's field `measures`; LakeError for anything else."""
    found = []
    for line in text.strip().splitlines():
        parts = tuple(part.strip() for part in line.removeprefix("- ").split("|"))
        if not line.startswith("- ") or len(parts) != 4 or not all(parts):
            raise LakeError(f"{where}: measures has {line!r}, expected `- NAME | LABEL | UNIT | DEFINITION`")
        if unknown := {_section(name) for name in PLACE.findall(parts[0])} - words().keys() - {"n"}:
            raise LakeError(f"{where}: measure {parts[0]!r} names <{unknown.pop()}>, which words.yaml does not have")
        found.append(parts)
    return tuple(found)


def measure(declared: tuple[tuple[str, ...], ...], name: str) -> Measure | None:
    """A measure in the words of a row's header, the first entry that fits; None where none does."""
    plain = name.removesuffix(POOLED)
    for pattern, *texts in declared:
        if match := _pattern(pattern).fullmatch(plain):
            label, unit, definition = (_filled(text, match, place) for place, text in enumerate(texts))
            return Measure(f"{label}, every token alike" if plain != name else label, unit, definition)
    return None


@cache
def _pattern(text: str) -> re.Pattern[str]:
    """What a name with <places> matches."""
    found, at = "", 0
    for place in PLACE.finditer(text):
        known = NUMBER
        if (section := _section(place[1])) != "n":
            known = "|".join(re.escape(key) for key in sorted(words()[section], key=len, reverse=True))
        found += f"{re.escape(text[at : place.start()])}(?P<{place[1]}>{known})"
        at = place.end()
    return re.compile(found + re.escape(text[at:]))


def _section(place: str) -> str:
    return place.rstrip("0123456789")


def _filled(text: str, match: re.Match[str], part: int) -> str:
    def word(place: re.Match[str]) -> str:
        value = match[place[1]]
        if (section := _section(place[1])) == "n":
            return value.replace("minus", "−").replace("-", "−")
        known = words()[section][value]
        return str(known[part] if isinstance(known, list) else known)

    return PLACE.sub(word, text)


def thing(column: str, value: object) -> tuple[str, str, str, bool] | None:
    """What a value of a column is called and looks like: label, colour, marker, dashed; None where words.yaml does not say."""
    name, known = str(value), words()
    if column == "metric" and name in known["metric"]:
        label, _, _, colour = known["metric"][name]
        return label, colour, "o", False
    found = known["things"].get(f"{column}:{name}") or known["things"].get(name)
    return (*found, *("o", False)[len(found) - 2 :]) if found else None


def axis(name: str) -> str:
    """What an axis, or a place on one, is called."""
    known = words()
    return str(known["axes"].get(name) or known["window"].get(name) or name.replace("_", " "))
