"""The form of a reply, checked criterion by criterion: the 16 types that prompts/README.md lists.

Ours because the packages with such checks (if-verifiable, lm-eval's ifeval) bring `datasets`, `langdetect` and NLTK models
that are downloaded at run time, and their kinds of check take other values than a prompt set's criteria.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any

# A longer reply than that is beyond the usual budget of generation, so the study leaves the criterion unscored.
WORDS_WITHIN_BUDGET = 150

HEADING = re.compile(r"^ {0,3}#{1,6}[ \t]+\S", re.MULTILINE)
BULLET = re.compile(r"^(?![-*+ \t]+$)[ \t]*+[-*+•◦‣▪●][ \t]+\S", re.MULTILINE)  # `* * *` is a rule, no bullet
BOLD = re.compile(r"\*\*(?=[^\s*])[^*\n]*[^*\s]\*\*")
PLACEHOLDER = re.compile(r"\[(?=[^\[\]\n]*[^\[\]\s])[^\[\]\n]+\]")
# A mark ends a sentence only before white space or the end: 3.5 and example.org are no two sentences.
SENTENCE_END = re.compile(r"(?<![.!?…])[.!?…]++[\"'”’)\]*_]*+(?=\s|$)|[。！？]")
LIST_NUMBER = re.compile(r"^[ \t]*\d{1,2}[.)][ \t]+(?=\S)", re.MULTILINE)
FENCE = re.compile(r" {0,3}(`{3,}(?=[^`]*$)|~{3,})(.*)")
COMMAS = frozenset(",،、，､︐﹐﹑")
OPENING, CLOSING = '"“„', '"”“'
AROUND = " \t\n\"'”’)]*_`"  # may stand after a reply's last words


def headings(text: str) -> int:
    """How many lines are headings, 1 to 6 `#` and a text. Code blocks don't count, as in `visible`."""
    return len(HEADING.findall(visible(text)))


def bullets(text: str) -> int:
    """How many lines begin with a bullet, blank and a text. Code blocks don't count, as in `visible`."""
    return len(BULLET.findall(visible(text)))


def sentences(text: str) -> int:
    """How many sentences: pieces with a letter or digit between full stops, question and exclamation marks.

    The number before an item of a list is no sentence. Abbreviations with a full stop end one. Source: METHODS 18, except
    that the study also cuts at a dot within a number or a name.
    """
    pieces = SENTENCE_END.split(LIST_NUMBER.sub("", text))
    return sum(any(map(str.isalnum, piece)) for piece in pieces)


def words(text: str) -> int:
    """How many words: pieces between white space that have a letter or digit."""
    return sum(any(map(str.isalnum, piece)) for piece in text.split())


def visible(text: str) -> str:
    """The text without its fenced code; what a fence holds where one fence of no language, or Markdown, is the whole reply.

    A fence that is never closed reaches to the end, as in CommonMark.
    """
    outside, blocks = _fenced(text)
    if len(blocks) == 1 and not outside.strip() and blocks[0][0] in ("", "markdown", "md"):
        return blocks[0][1]
    return outside


def spaced(text: str) -> str:
    """The text with one blank for any white space, straight apostrophes, and accents joined to their letters (NFC)."""
    return " ".join(unicodedata.normalize("NFC", text.replace("’", "'")).split())


def unscored(criterion: Mapping[str, Any]) -> bool:
    """Whether a criterion asks for more words than a reply has room for. Source: METHODS 18."""
    return bool(criterion["type"] == "word_count_min" and criterion["value"] > WORDS_WITHIN_BUDGET)


def holds(text: str, criterion: Mapping[str, Any]) -> bool:
    """Whether a reply meets a criterion {"type", "value"} of the shapes in prompts/README.md. Source: METHODS 18."""
    return CRITERIA_CHECKS[criterion["type"]](text, criterion["value"])


# --- inside ----------------------------------------------------------------------------------------------------------


def _fenced(text: str) -> tuple[str, list[tuple[str, str]]]:
    """What is outside of code fences, and (language, content) of each."""
    outside: list[str] = []
    blocks: list[tuple[str, list[str]]] = []
    fence = ""
    for line in text.split("\n"):
        mark = FENCE.match(line)
        if fence and mark and mark[1].startswith(fence) and not mark[2].strip():
            fence = ""
        elif fence:
            blocks[-1][1].append(line)
        elif mark:
            fence = mark[1]
            blocks.append((mark[2].strip().lower(), []))
        else:
            outside.append(line)
    return "\n".join(outside), [(language, "\n".join(lines)) for language, lines in blocks]


def _plain(text: str) -> str:
    return spaced(text).casefold()


def _no_letter_of(text: str, *kinds: str) -> bool:
    return not any(unicodedata.category(letter) in kinds for letter in text)


def _is_json(text: str) -> bool:
    outside, blocks = _fenced(text)
    if len(blocks) == 1 and not outside.strip():
        text = blocks[0][1]
    try:
        found = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict | list)  # a number or a quoted sentence alone is no answer in JSON


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is Python's, not JSON's")


def _ends_with(text: str, end: str) -> bool:
    return any(_plain(reply).endswith(_plain(end)) for reply in (text, text.rstrip(AROUND)))


def _is_quoted(text: str) -> bool:
    text = text.strip()
    return len(text) > 1 and text[0] in OPENING and text[-1] in CLOSING


CRITERIA_CHECKS: Mapping[str, Callable[[str, Any], bool]] = {
    "all_lowercase": lambda text, _: _no_letter_of(text, "Lu", "Lt"),
    "all_uppercase": lambda text, _: _no_letter_of(text, "Ll", "Lt"),
    "bullet_list": lambda text, count: bullets(text) >= count,
    "contains_all_keywords": lambda text, keywords: all(_plain(word) in _plain(text) for word in keywords),
    "contains_phrase": lambda text, phrase: _plain(phrase) in _plain(text),
    "ends_with": _ends_with,
    "has_placeholders": lambda text, count: len(PLACEHOLDER.findall(text)) >= count,
    "highlighted_sections": lambda text, count: len(BOLD.findall(visible(text))) >= count,
    "json": lambda text, _: _is_json(text),
    "markdown_sections": lambda text, count: headings(text) >= count,
    "no_commas": lambda text, _: COMMAS.isdisjoint(text),
    "sentence_count_max": lambda text, count: sentences(text) <= count,
    "sentence_count_min": lambda text, count: sentences(text) >= count,
    "word_count_max": lambda text, count: words(text) <= count,
    "word_count_min": lambda text, count: words(text) >= count,
    "wrapped_in_quotes": lambda text, _: _is_quoted(text),
}
