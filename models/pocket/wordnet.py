"""WordNet 3.0 as Python objects."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path

POINTERS = {
    "@": "hypernym",
    "@i": "instance_of",
    "~": "hyponym",
    "~i": "instance",
    "!": "antonym",
    "#m": "member_of",
    "#s": "made_into",
    "#p": "part_of",
    "%m": "member",
    "%s": "substance",
    "%p": "part",
    "*": "entails",
    ">": "causes",
    "&": "similar",
    "=": "attribute",
}
FILES = {"n": "noun", "v": "verb", "a": "adj", "r": "adv"}
# lexicographer files whose nouns are counted one by one: animals, artefacts, body parts,
# natural objects, persons, plants
COUNTED = {5, 6, 8, 17, 18, 20}
# top nouns of the mixed file 3 that are counted too
TOPS = {
    "animal",
    "artifact",
    "attribute",
    "cell",
    "entity",
    "group",
    "living thing",
    "object",
    "organism",
    "person",
    "plant",
    "process",
    "relation",
    "shape",
    "state",
    "thing",
    "whole",
    "event",
    "act",
    "location",
    "unit",
}


@dataclass
class Synset:
    key: str
    pos: str
    lexfile: int
    words: list[str]
    gloss: str = ""
    examples: list[str] = field(default_factory=list)
    links: dict[str, list[str]] = field(default_factory=dict)
    antonyms: list[tuple[int, str, int]] = field(default_factory=list)
    count: int = 0


def held_out(word: str) -> bool:
    """One word in eight is kept away from the instruction data."""
    return hashlib.sha256(f"pocket:{word.lower()}".encode()).digest()[0] % 8 == 0


def article(word: str) -> str:
    low = word.lower()
    if re.match(r"(uni|use|usu|eu|ur[aeiou]|one\b|once|ut[aei])", low):
        return "a"
    if re.match(r"(hour|heir|honest|honou?r)", low):
        return "an"
    return "an" if low[:1] in "aeiou" else "a"


def cap(text: str) -> str:
    return text[:1].upper() + text[1:]


def join(words: list[str], last: str = "and") -> str:
    if len(words) < 2:
        return "".join(words)
    return ", ".join(words[:-1]) + f" {last} " + words[-1]


class WordNet:
    """All synsets, and the senses of every word with the commonest first."""

    def __init__(self, folder: Path) -> None:
        self.synsets: dict[str, Synset] = {}
        self.senses: dict[tuple[str, str], list[Synset]] = {}
        for pos, name in FILES.items():
            for line in (folder / f"data.{name}").read_text(encoding="latin-1").splitlines():
                if not line.startswith("  "):
                    self._add(line, pos)
        for pos, name in FILES.items():
            for line in (folder / f"index.{name}").read_text(encoding="latin-1").splitlines():
                if line.startswith("  "):
                    continue
                parts = line.split()
                number = int(parts[2])
                word = parts[0].replace("_", " ")
                self.senses[word, pos] = [self.synsets[pos + o] for o in parts[-number:]]
        types = {"1": "n", "2": "v", "3": "a", "4": "r", "5": "a"}
        self.counts: dict[tuple[str, str], int] = {}
        for line in (folder / "cntlist.rev").read_text(encoding="latin-1").splitlines():
            sense, number_text, count = line.split()
            word, rest = sense.split("%")
            known = self.senses.get((word.replace("_", " "), types[rest[0]]), [])
            place = int(number_text) - 1
            if place < len(known):
                known[place].count += int(count)
            pair = (word.replace("_", " "), types[rest[0]])
            self.counts[pair] = self.counts.get(pair, 0) + int(count)

    def _add(self, line: str, pos: str) -> None:
        head, _, gloss = line.partition(" | ")
        parts = head.split()
        size = int(parts[3], 16)
        words = [re.sub(r"\([a-z]+\)$", "", w).replace("_", " ") for w in parts[4 : 4 + 2 * size : 2]]
        item = Synset(pos + parts[0], pos, int(parts[1]), words)
        at = 5 + 2 * size
        for _ in range(int(parts[4 + 2 * size])):
            symbol, offset, target_pos, ends = parts[at : at + 4]
            at += 4
            target = target_pos.replace("s", "a") + offset
            if symbol == "!":
                item.antonyms.append((int(ends[:2], 16), target, int(ends[2:], 16)))
            elif symbol in POINTERS:
                item.links.setdefault(POINTERS[symbol], []).append(target)
        item.examples = [e.strip() for e in re.findall(r'"([^"]{8,160})"', gloss)]
        text = re.split(r';\s*"', gloss.strip())[0].strip().strip('"')
        item.gloss = re.sub(r"^\([^)]{1,40}\)\s*", "", text).rstrip("; ").strip()
        self.synsets[item.key] = item

    def linked(self, item: Synset, kind: str) -> list[Synset]:
        return [self.synsets[k] for k in item.links.get(kind, [])]

    def names(self, item: Synset, kind: str) -> list[str]:
        return [other.words[0] for other in self.linked(item, kind)]

    def ancestors(self, item: Synset) -> list[Synset]:
        """The chain of first hypernyms, nearest first."""
        chain: list[Synset] = []
        while True:
            up = self.linked(item, "hypernym") or self.linked(item, "instance_of")
            if not up or up[0] in chain:
                return chain
            item = up[0]
            chain.append(item)

    def opposites(self, item: Synset) -> list[tuple[str, str]]:
        pairs = []
        for source, key, target in item.antonyms:
            other = self.synsets[key]
            if source and target:
                pairs.append((item.words[source - 1], other.words[target - 1]))
        return pairs


def named(item: Synset, word: str | None = None) -> str:
    """The word with an article where its kind is counted."""
    word = word or item.words[0]
    counted = item.lexfile in COUNTED or (item.lexfile == 3 and word in TOPS)
    if item.pos == "n" and counted and not word[:1].isupper():
        return f"{article(word)} {word}"
    return word


def short_gloss(item: Synset) -> str:
    """The first clause of a gloss, without brackets."""
    text = re.sub(r"\s*\([^)]*\)", "", item.gloss).split(";")[0]
    return re.sub(r"\s+", " ", text).strip(" ,")
