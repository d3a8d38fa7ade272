"""Whether a reply gives the right answer: as a word, a number, or the letter of a choice."""

from __future__ import annotations

import re
import string
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

from ...store.core.errors import LakeError
from .criteria import spaced

_SIGN = r"(?:(?<![\w)\]])[-−])?"  # in 10-13 the mark is no sign
_WHOLE = r"(?<!\d[.,])(?<![^\w)\]][-−])(?<!\A[-−])"  # no decimals nor a sign before it
_GROUPS = r"[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])"
NUMBER = re.compile(rf"{_SIGN}(?:(?:{_GROUPS}|[0-9]+)(?:\.[0-9]+)?|(?<!\w)\.[0-9]+)")
THOUSANDS = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")
# The letter alone or with the mark of a list at the beginning, or after "the answer is".
LETTER = re.compile(
    r"\A\W*([A-Za-z])(?:\W*\Z|[*_]*[).:\]]|[*_]*\s*\n)"
    r"|\b(?i:answer|option|choice)\b(?:\s+is)?\W*([A-Z])\b(?!['’]|\s+[a-z])"
)


def number(text: str) -> Decimal | None:
    """The number that a text is: a sign, commas between thousands and decimals are understood; None for anything else."""
    return _value(text.strip()) if NUMBER.fullmatch(text.strip()) else None


def numbers(text: str) -> list[Decimal]:
    """The numbers of a text in order. "1,200", "-3.5" and the 7 of "7." or "7kg" are one each; "1/2" and "20:20" two."""
    return [_value(match[0]) for match in NUMBER.finditer(text)]


def contains(text: str, gold: str) -> bool:
    """Whether a text has `gold` as a whole word or phrase, no matter the case. Source: METHODS 18 (reasoning_em).

    A number has to be the whole number: 13 is in none of 13.5, 1,013 and -13, while 1200 is in 1,200. An answer of one capital
    letter has to be capital, since "a" is in any English text.
    """
    if number(gold) is not None:
        gold, text = _ungrouped(gold), _ungrouped(text)
    return next(_places(text, gold), None) is not None


def letter_of(text: str, letters: str) -> str | None:
    """The letter that a reply picks by "B", "(b)", "B) ..." or "the answer is B", in capitals; None where it picks none."""
    for match in LETTER.finditer(text):
        letter = (match[1] or match[2]).upper()
        if letter in letters:
            return letter
    return None


def picks_right(text: str, answer: str, choices: Sequence[str]) -> bool:
    """Whether a reply has the right choice as a word, or picks its letter. Source: METHODS 18 (reasoning_em)."""
    return contains(text, answer) or _letter_is_right(text, answer, choices)


def first_is_right(text: str, answer: str, choices: Sequence[str]) -> bool:
    """Whether the choice that a reply names first is the right one; its letter decides where it names none.

    Stricter than `picks_right`, which a reply that repeats all choices passes too.
    """
    named = [(place, -len(choice), choice) for choice in choices for place in _places(text, choice)]
    return min(named)[2] == answer if named else _letter_is_right(text, answer, choices)


def forced_choice(text: str, letters: str = "ABCD") -> str | None:
    """The first character of a text that is one of `letters`, anywhere and no matter the case; None without any.

    Meant for the three tokens or so after `lettered`: in a longer text it finds the a of "the answer". Returns the letter
    as `letters` has it. Source: METHODS 18 (mmlu_forced_choice).
    """
    known = {letter.upper(): letter for letter in letters}
    return next((known[c] for c in map(str.upper, text) if c in known), None)


def lettered(prompt: Mapping[str, Any]) -> str:
    """The text of a multiple choice for `forced_choice`: the question, a line "A) ..." for each choice, then "Answer:".

    LakeError for a prompt without choices, or with more than there are letters. Source: METHODS 18, 2 (format C).
    """
    choices = _choices(prompt)
    lines = (f"{letter}) {choice}" for letter, choice in zip(string.ascii_uppercase, choices, strict=False))
    return "\n".join([prompt["text"], *lines, "Answer:"])


def right_letter(prompt: Mapping[str, Any]) -> str:
    """The letter of the right choice in `lettered`. LakeError as there, and for a prompt without an answer."""
    choices = _choices(prompt)
    if prompt.get("answer") not in choices:
        raise LakeError(
            f"prompt {prompt.get('id')!r}: no `answer` among its choices; a letter can be right only with one"
        )
    return string.ascii_uppercase[choices.index(prompt["answer"])]


# --- inside ----------------------------------------------------------------------------------------------------------


def _value(digits: str) -> Decimal:
    return Decimal(digits.replace(",", "").replace("−", "-"))


def _ungrouped(text: str) -> str:
    return THOUSANDS.sub("", text)


def _places(text: str, gold: str) -> Iterator[int]:
    """Where `gold` begins as a whole word in a text, white space and (but for one capital letter) case set aside."""
    before = _WHOLE if gold[0].isdigit() else ""
    after = r"(?![.,]\d)" if gold[-1].isdigit() else ""
    pattern = rf"(?<!\w){before}{re.escape(spaced(gold))}(?!\w){after}"
    flags = 0 if len(gold) == 1 and gold.isupper() else re.IGNORECASE
    return (match.start() for match in re.finditer(pattern, spaced(text), flags))


def _letter_is_right(text: str, answer: str, choices: Sequence[str]) -> bool:
    letters = string.ascii_uppercase[: len(choices)]
    if answer not in choices[: len(letters)] or {choice.upper() for choice in choices} & set(letters):
        return False  # where A is a choice itself, a reply of A says so
    return letter_of(text, letters) == letters[choices.index(answer)]


def _choices(prompt: Mapping[str, Any]) -> Sequence[str]:
    choices: Sequence[str] = prompt.get("choices") or ()
    if not 2 <= len(choices) <= len(string.ascii_uppercase):
        raise LakeError(
            f"prompt {prompt.get('id')!r}: {len(choices) or 'no'} choices, expected 2 to {len(string.ascii_uppercase)};"
            " only a multiple choice has letters"
        )
    return choices
