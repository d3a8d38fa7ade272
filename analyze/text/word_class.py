"""Classes of tokens: marks, discourse markers, function words and content, on their own or in a running text."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Sequence

from ...store.core.errors import LakeError

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


STRUCTURED = ("PUNCTUATION", "STRUCTURAL", "DISCOURSE")
LEXICAL = ("FUNCTION", "CONTENT")

# Marks, endings and parts that keep a word out of a class; see `boundary_tokens`.
_EDGES = re.compile(r"\A[\W_]+|[\W_]+\Z")
_BETWEEN = re.compile(r"[^\w'’]+")
_MARKED = re.compile(r"\A(?:#+|\*+|`+|-+|>+|[+•])[^\W_]|[^\W_](?:\*+|`+|-+)\Z")
_OF_PHRASES = frozenset(word for phrase in PHRASES for word in phrase.split()) - FUNCTION
_ADJECTIVES = frozenset(word.removesuffix("ly") for word in DISCOURSE if word.endswith("ly"))
_FROM_FUNCTION = re.compile(rf"(?:{'|'.join(sorted(FUNCTION))})(?:self|selves|ever|one|body|thing|where)")


def word_classes(text: str) -> list[str]:
    """The class of each word of a text in its context; words are separated by white space. Source: METHODS 18."""
    return in_context([f"{word} " for word in text.split()])


def shares(text: str) -> dict[str, float]:
    """Class -> its share of a text's words, in the order of word_class.CLASSES; all 0 for a blank text."""
    names = word_classes(text)
    return {name: _share(names, (name,)) for name in CLASSES}


def structure(text: str) -> float:
    """STR: the share of PUNCTUATION, STRUCTURAL and DISCOURSE among a text's words, 0 for a blank text.

    Words keep their marks, so "well," is a word and only a mark on its own is PUNCTUATION. Source: METHODS 18 (STR).
    """
    return _share(word_classes(text), STRUCTURED)


def boundary_tokens(texts: Iterable[str], limit: int = 500) -> dict[str, list[str]]:
    """The words of texts that could as well be of another class, the most frequent first, at most `limit` a boundary.

    Words are separated by white space, and are in lower case. Its classes are its own, those of its parts between marks
    ("in-depth" is FUNCTION and CONTENT, "1." STRUCTURAL and CONTENT), and those it just misses: STRUCTURAL, if marks of
    structure are stuck to it ("**note**", "-item"); DISCOURSE, if it is a content word of a discourse phrase ("example") or
    a discourse adverb without its -ly ("final"); FUNCTION, if it is made of a function word and self, selves, ever, one,
    body, thing or where ("anyone"). It is at the boundary

    - "structural_discourse" with STRUCTURAL or DISCOURSE on one side and FUNCTION or CONTENT on the other,
    - "function_content" with both FUNCTION and CONTENT.

    Source: METHODS 6 (0E), which does not say how boundary words are found; these rules are ours. LakeError on a limit
    below 1.
    """
    if limit < 1:
        raise LakeError(f"boundary tokens: a limit of {limit} leaves none; give 1 or more")
    counts = Counter(word for text in texts for word in text.lower().split())
    sides = {word: _sides(word) for word in sorted(counts, key=lambda word: (-counts[word], word))}
    structural = [w for w, side in sides.items() if side & {"STRUCTURAL", "DISCOURSE"} and side.intersection(LEXICAL)]
    ambiguous = [w for w, side in sides.items() if side.issuperset(LEXICAL)]
    return {"structural_discourse": structural[:limit], "function_content": ambiguous[:limit]}


def reclassified(text: str, words: Collection[str], to: str) -> float:
    """STR of a text if all of `words` were of the class `to`.

    words: as `boundary_tokens` gives them, whatever their case. Between FUNCTION and CONTENT nothing changes, since STR
    counts neither. LakeError where `to` is none of word_class.CLASSES. Source: METHODS 6 (0E).
    """
    if to not in CLASSES:
        raise LakeError(f"class {to!r} is unknown; the classes of words are {', '.join(CLASSES)}")
    moved = {word.lower() for word in words}
    # Lower case before the cut, as in boundary_tokens; it makes and removes no white space.
    pairs = zip(text.lower().split(), word_classes(text), strict=True)
    return _share([to if word in moved else name for word, name in pairs], STRUCTURED)


def _sides(word: str) -> set[str]:
    bare = _EDGES.sub("", word)
    found = {alone(word)} | {alone(part) for part in _BETWEEN.split(bare) if part}
    if _MARKED.search(word):
        found.add("STRUCTURAL")
    if bare in _OF_PHRASES or bare in _ADJECTIVES:
        found.add("DISCOURSE")
    if _FROM_FUNCTION.fullmatch(bare):
        found.add("FUNCTION")
    return found


def _share(names: Sequence[str], among: Collection[str]) -> float:
    return sum(name in among for name in names) / len(names) if names else 0.0
