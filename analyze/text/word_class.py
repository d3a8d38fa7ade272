"""Classes of tokens: marks, discourse markers, function words and content, on their own or in a running text."""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Sequence

CLASSES = ("PUNCTUATION", "STRUCTURAL", "DISCOURSE", "FUNCTION", "CONTENT", "OTHER")
COLLAPSED = {
    "PUNCTUATION": "format",
    "STRUCTURAL": "format",
    "DISCOURSE": "format",
    "CONTENT": "content",
    "FUNCTION": "function_other",
    "OTHER": "function_other",
}
GROUPS = ("format", "content", "function_other")

# Connectives that order or relate sentences: contrast, result, addition, sequence, summary.
_CONNECTIVES = (
    "accordingly additionally besides consequently conversely finally firstly furthermore hence however instead likewise"
    " meanwhile moreover nevertheless nonetheless overall secondly similarly therefore thirdly thus"
)
PHRASES = (
    *("as a result", "first of all", "for example", "for instance", "in addition", "in conclusion", "in contrast"),
    *("in fact", "in other words", "in summary", "on the one hand", "on the other hand", "that is to say", "to sum up"),
)
# The commonest members of English's closed classes: determiners, pronouns, auxiliaries, prepositions, conjunctions.
_CLOSED = (
    "a an the this that these those my your his its our their each every both all some any no"
    " i you he she it we they me him her us them who whom whose which what there"
    " am is are was were be been being have has had do does did will would shall should can could may might must"
    " of in to for on at by with from about into through over under between among after before during without within"
    " against toward upon across"
    " and or but nor so if because although though while when where since unless until than as whether not"
)
DISCOURSE, FUNCTION = frozenset(_CONNECTIVES.split()), frozenset(_CLOSED.split())

STRUCTURE = re.compile(r"#+|\*+|`+|-{2,}|={2,}|>+|[-+•]|\d+\.")
# U+FFFD stands for a part of a character that tokens share: part of a word, as a rule.
LETTER = r"(?:[^\W_]|�)"
_PHRASE = "|".join(r"\s+".join(phrase.split()) for phrase in PHRASES)
WORD = re.compile(rf"(?P<phrase>(?:{_PHRASE})(?!{LETTER}))|{LETTER}+(?:['’]{LETTER}+)*", re.IGNORECASE)
CLITIC, APOSTROPHE = re.compile(r"n?['’]\w+$"), re.compile(r"['’]")


def in_context(texts: Sequence[str]) -> list[str]:
    """The class of each token of a running text, whose texts one after the other are that text; one of CLASSES.

    The first rule that fits a token decides: blank is PUNCTUATION; headings, bullets, rules, fences, quotes and numbers
    with a dot are STRUCTURAL; nothing but punctuation marks is PUNCTUATION; else the class of the first word or phrase
    that the token has a part of: DISCOURSE, FUNCTION, CONTENT for anything else with a letter or digit; OTHER without one.
    The lists (22 words and 14 phrases of discourse, 105 function words) are as long as the study's but our own, so that
    shares can be compared with its figures, not expected to be equal. Source: METHODS 18 (word/token classifier).
    """
    words = (match for match in WORD.finditer("".join(texts)) if any(map(str.isalnum, match[0])))
    spans = [(*match.span(), _word_class(match)) for match in words]
    found, start, at = [], 0, 0
    for text in texts:
        stop = start + len(text)
        while at < len(spans) and spans[at][1] <= start:
            at += 1
        inside = at < len(spans) and spans[at][0] < stop
        found.append(_mark(text.strip()) or (spans[at][2] if inside else "OTHER"))
        start = stop
    return found


def alone(text: str) -> str:
    """The class of a token by its own text; one of CLASSES. Source: METHODS 18."""
    return in_context([text])[0]


def _mark(text: str) -> str:
    """The class of a token that is no word, '' for others."""
    if STRUCTURE.fullmatch(text):
        return "STRUCTURAL"
    return "PUNCTUATION" if all(map(_is_punctuation, text)) else ""


def _is_punctuation(character: str) -> bool:
    return character in string.punctuation or character.isspace() or unicodedata.category(character).startswith("P")


def _word_class(match: re.Match[str]) -> str:
    if match["phrase"]:
        return "DISCOURSE"
    word = match[0].lower()
    if word in DISCOURSE:
        return "DISCOURSE"
    if {word, CLITIC.sub("", word), APOSTROPHE.split(word)[0]} & FUNCTION:  # don't, it's; can't
        return "FUNCTION"
    return "CONTENT"
