"""Degenerate replies: loops and strings of symbols, which the rule `coherent` of METHODS 18 lets pass."""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections import Counter

PIECE = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
RULE = re.compile(r"(?m)^[\s|:+=*_~.\-─━═┼│]+$")  # lines of tables and rules: they repeat by nature
PERIODIC = re.compile(r"(.{1,60}?)\1{3,}", re.DOTALL)
SHORTEST = 24  # characters (without white space) below which nothing is called a loop
LOOPED = 0.5  # share of the characters in exact repetitions, four times and more
FEW_WORDS = 12  # words from which their variety is looked at
COMMONEST = 0.5  # share of the two commonest words of two letters and more
MANY_WORDS = 30
VARIETY = 0.55  # log(different words) / log(words): near 0.9 in prose, 0.7 in a song, below this in a loop
SEEN = 0.75  # share of four-word runs that were there before
DENSE = 6.0  # how often smaller deflate makes a reply of 150 characters and more: prose 2, tables and songs up to 5
LETTERS = 0.25  # share of letters, marks and digits below which a reply is symbols


def is_degenerate(text: str) -> bool:
    """Whether a reply is degenerate: a loop of characters, words or phrases, whatever joins them, or a string of symbols.

    True where any of these holds, of a reply of SHORTEST characters and more: LOOPED of its characters are in exact
    repetitions; its two commonest words make up COMMONEST of all; it has little VARIETY and most four-word runs were SEEN;
    it compresses to less than one part in DENSE; less than LETTERS of it are letters or digits. Lines of table rules
    aside. Thresholds: analyze's own, set between ordinary replies (lists, code, tables, refrains, other scripts) and
    published ones; the measures are those of Rae et al. 2021 (A1.1, repetition) and Radford et al. 2023 (4.5, compression).
    """
    kept = " ".join(RULE.sub(" ", text).split()) or " ".join(text.split())
    dense = kept.replace(" ", "")
    if len(dense) < SHORTEST:
        return False
    return _periodic(kept) > LOOPED or _monotonous(kept) or _compresses(kept) > DENSE or _lettered(dense) < LETTERS


def _periodic(text: str) -> float:
    """Share of a text in exact repetitions of up to 60 characters, four times and more, SHORTEST characters long."""
    found = (match.end() - match.start() for match in PERIODIC.finditer(text))
    return sum(length for length in found if length >= SHORTEST // 2) / len(text)


def _monotonous(text: str) -> bool:
    """Whether few words make up most of a text; numbers and single letters, as of tables and formulas, aside."""
    words = [piece for piece in PIECE.findall(text.lower()) if len(piece) > 1 and not piece.isdigit()]
    if len(words) < FEW_WORDS:
        return False
    counts = Counter(words)
    if sum(count for _, count in counts.most_common(2)) > COMMONEST * len(words):
        return True
    if len(words) < MANY_WORDS:
        return False
    runs = list(zip(words, words[1:], words[2:], words[3:], strict=False))
    seen = 1 - len(set(runs)) / len(runs)
    return seen > SEEN and len(counts) < len(words) ** VARIETY


def _compresses(text: str) -> float:
    """Characters over bytes of the deflated text; each character is one byte, so that scripts are alike. 0 if short."""
    if len(text) < 150:
        return 0.0
    order = {char: place for place, (char, _) in enumerate(Counter(text).most_common())}
    packed = zlib.compress(bytes(min(order[char], 255) for char in text), 9)
    return len(text) / len(packed)


def _lettered(dense: str) -> float:
    """Share of characters that are letters, marks (vowel signs of many scripts) or numbers."""
    return sum(unicodedata.category(char)[0] in "LMN" for char in dense) / len(dense)
