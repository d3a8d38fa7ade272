"""What a value of a record may be, in a few kinds of rules, and what of a record does not fit them, in words."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..core.schema import VARIANTS
from .paths import NAME

COUNT = 2**53  # no number of tokens, bytes or weights is larger
SHA256 = re.compile("[0-9a-f]{64}")
# Of a file inside a folder: no '..', no absolute path, no drive or scheme, nothing that can't be printed.
PART = r"(?!\.{1,2}(?:/|$))[^/\\:\x00-\x1f\x7f\ud800-\udfff]{1,200}"
INSIDE = re.compile(rf"{PART}(?:/{PART}){{0,99}}")
ARRAY = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")


@dataclass(frozen=True)
class Rule:
    """One kind of value: what it is in words, and whether a value is one.

    As the key of an object, `quick` says of most objects that all their keys and values fit, in a fraction of the time.
    """

    expected: str
    fits: Callable[[Any], bool]
    quick: Callable[[dict[str, Any]], bool] = lambda _: False


def matching(pattern: re.Pattern[str], expected: str) -> Rule:
    """Text that a pattern fits as a whole."""
    return Rule(expected, lambda value: isinstance(value, str) and bool(pattern.fullmatch(value)))


def one_of(*values: object) -> Rule:
    """Exactly one of some values."""
    return Rule(
        " or ".join(map(repr, values)), lambda value: any(type(value) is type(v) and value == v for v in values)
    )


def whole(least: int, most: int) -> Rule:
    """A whole number within these limits."""
    return Rule(f"a whole number from {least} to {most}", lambda value: is_whole(value, least, most))


def is_whole(value: object, least: int = 0, most: int = COUNT) -> bool:
    """Whether a value is a whole number (true and false are none) from `least` to `most`."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def is_name(value: object) -> bool:
    """Whether a value can name a model, stream or table."""
    return isinstance(value, str) and len(value) <= 200 and bool(NAME.fullmatch(value)) and ".." not in value


TEXT = Rule("text", lambda value: isinstance(value, str))
TEXT_OR_NULL = Rule("text or null", lambda value: value is None or isinstance(value, str))
HASH = matching(SHA256, "a SHA-256 (64 hexadecimal digits)")
NAMED = Rule("a name (letters, digits, '_', '.' and '-')", is_name)
MODELS = dict.fromkeys(VARIANTS, NAMED)  # of a pair
FILE = matching(INSIDE, "the path of a file inside the folder")
VARIABLE = matching(ARRAY, "the name of an array")
WHOLE = Rule("a whole number", is_whole)
SOME = Rule("a whole number from 1", lambda value: is_whole(value, 1))
NUMBER = Rule(
    "a number",
    lambda value: isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value),
)
PLACES = Rule(
    "a list of whole numbers, or null for all",
    lambda value: value is None or (isinstance(value, list) and all(map(is_whole, value))),
)
NUMBER_OR_NULL = Rule("a number or null", lambda value: value is None or NUMBER.fits(value))
WHOLE_OR_NULL = Rule("a whole number or null", lambda value: value is None or is_whole(value))
FLAG = Rule("true or false", lambda value: isinstance(value, bool))
OBJECT = Rule("an object", lambda value: isinstance(value, dict))


def misfit(value: Any, rule: Any, at: str = "") -> str:
    """What does not fit a rule, in words; nothing when all does.

    [rule] is a list of one kind of value, (rule, rule) a list of just these, {Rule: rule} an object whose keys and values are of
    one kind each, {"name": rule, "other?": rule} one with these keys, of which the second may be missing.
    """
    if isinstance(rule, Rule):
        return "" if rule.fits(value) else _differs(at, rule.expected, value)
    if isinstance(rule, list):
        if not isinstance(value, list):
            return _differs(at, "a list", value)
        return next((wrong for i, one in enumerate(value) if (wrong := misfit(one, rule[0], f"{at}[{i}]"))), "")
    if isinstance(rule, tuple):
        if not isinstance(value, list) or len(value) != len(rule):
            return _differs(at, f"a list of {len(rule)}", value)
        return next((wrong for i, one in enumerate(value) if (wrong := misfit(one, rule[i], f"{at}[{i}]"))), "")
    if not isinstance(value, dict):
        return _differs(at, "an object", value)
    for key, inner in rule.items():
        if isinstance(key, Rule):
            for name, one in () if key.quick(value) else value.items():
                if wrong := misfit(name, key, f"a key of {at}") or misfit(one, inner, f"{at}.{short(name)}"):
                    return wrong
            continue
        name = key.removesuffix("?")
        where = f"{at}.{name}".lstrip(".")
        if name not in value:
            if key == name:  # also one that may be null has to be there
                return misfit(None, inner, where) or f"{where}: missing"
        elif wrong := misfit(value[name], inner, where):
            return wrong
    return ""


def _differs(at: str, expected: str, found: object) -> str:
    return f"{at or 'the record'}: expected {expected}, found {brief(found)}"


def brief(value: object) -> str:
    """A value of a stranger's record, short and printable."""
    if value is None:
        return "nothing"
    if isinstance(value, dict | list):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    return repr(value[:60]) if isinstance(value, str) else short(_digits(value))


def _digits(value: object) -> str:
    # Python refuses to print whole numbers of thousands of digits.
    return f"a number of {value.bit_length()} bits" if isinstance(value, int) and abs(value) >= 2**200 else str(value)


def short(text: str) -> str:
    """At most 60 letters of a text, what can't be printed as ?."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:60])
