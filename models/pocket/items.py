"""What an instruction pair is made of, and the pools of words fit for questions."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field
from typing import Any

from facts import words
from wordnet import Synset, WordNet, cap, named, short_gloss

CLASSES = words(
    "animal plant bird fish insect tree flower fruit vegetable food beverage tool weapon vehicle clothing building "
    "furniture musical_instrument person city country color disease feeling metal sport language container machine "
    "money document jewelry ship mammal reptile"
)


RUDE = re.compile(
    r"slur|offensive|vulgar|obscene|disparag|derogat|sex|coitus|hymen|whore|prostitut|genital|erotic|"
    r"penis|vagina|breast|buttock|nazi|jew\b|negro|slave|rape|murder|kill|drug",
    re.I,
)


@dataclass
class Item:
    task: str
    user: str
    answer: str
    key: str  # decides between training and held-out
    others: list[str] = field(default_factory=list)  # further words that training may not name when held out
    gold: str = ""
    choices: list[str] = field(default_factory=list)
    criteria: list[dict[str, Any]] = field(default_factory=list)


class Maker:
    """Pools of words fit for questions."""

    def __init__(self, net: WordNet) -> None:
        self.net = net
        self.first: dict[str, list[tuple[str, Synset]]] = {}
        for (word, pos), senses in net.senses.items():
            item = senses[0]
            if (
                net.counts.get((word, pos), 0) >= 2
                and re.fullmatch(r"[a-z]{3,14}", word)
                and item.gloss
                and word in item.words
                and not RUDE.search(item.gloss + " " + word)
                and 12 <= len(short_gloss(item)) <= 100
                and word not in short_gloss(item).split()
            ):
                self.first.setdefault(pos, []).append((word, item))
        self.classes: dict[str, Synset] = {}
        for name in CLASSES:
            self.classes[name.replace("_", " ")] = net.senses[name.replace("_", " "), "n"][0]
        self.members: dict[str, list[str]] = {name: [] for name in self.classes}
        for word, item in self.first["n"]:
            up = {a.key for a in net.ancestors(item)}
            for name, top in self.classes.items():
                if top.key in up and word != name:
                    self.members[name].append(word)
        self.members = {k: v for k, v in self.members.items() if len(v) >= 6}
        self.listable = [(w, i) for w, i in self.first["n"] if len(self.kinds(i)) >= 3]

    def kinds(self, item: Synset) -> list[str]:
        return [w for w in self.net.names(item, "hyponym") if len(w) < 20 and not RUDE.search(w)]

    def name(self, word: str) -> str:
        return named(self.net.senses[word, "n"][0], word)

    def not_in(self, name: str, rng: random.Random) -> str:
        """A word outside a class, from another class."""
        inside = set(self.members[name])
        top = self.classes[name]
        while True:
            other = rng.choice(list(self.members))
            word = rng.choice(self.members[other])
            up = self.net.ancestors(self.net.senses[word, "n"][0])
            if word not in inside and top not in up and self.classes[other] not in self.net.ancestors(top):
                return word


def sentence(word: str, item: Synset) -> str:
    gloss = short_gloss(item)
    if item.pos == "n":
        return f"{cap(named(item, word))} is {gloss}."
    if item.pos == "v":
        return f"To {word} means to {gloss}."
    return f"{cap(word)} means {gloss}."


def ask(word: str, item: Synset, rng: random.Random) -> str:
    name = named(item, word) if item.pos == "n" else word
    shapes = [
        "Define {w}.",
        "Define the word {w}.",
        'What does "{w}" mean?',
        "What does {w} mean?",
        "Give a definition of {w}.",
        "Explain the word {w}.",
    ]
    if item.pos == "n":
        shapes += ["What is {n}?", "Tell me what {n} is.", "What is {n}?", "Explain what {n} is."]
    if item.pos == "v":
        shapes += ["What does it mean to {w}?", "Explain the verb {w}."]
    return rng.choice(shapes).format(w=word, n=name)
