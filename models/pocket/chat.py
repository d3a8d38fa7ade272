"""Instruction pairs from WordNet and from small facts, with the scoring fields a prompt needs.

A task is a function of (Maker, rng) returning an Item, or None when the word does not suit.
"""

from __future__ import annotations

import random
import re
from typing import Any

import facts
import talk
from facts import DAYS, LETTERS, MONTHS, NAMES, THINGS
from items import RUDE, Item, Maker, ask, sentence
from render import quoted
from wordnet import article, cap, held_out, join, short_gloss


def define(m: Maker, rng: random.Random) -> Item:
    word, item = rng.choice(m.first[rng.choices("nvar", [6, 2, 2, 0.3])[0]])
    return Item("define", ask(word, item, rng), sentence(word, item), word)


def list_kinds(m: Maker, rng: random.Random, bullets: bool = True) -> Item:
    if rng.random() < 0.3:
        word = rng.choice(list(m.members))
        pool = [w for w in m.members[word] if not held_out(w)]
    else:
        word, item = rng.choice(m.listable)
        pool = m.kinds(item)
    number = min(rng.choice([3, 3, 4, 4, 5, 6]), len(pool))
    some = rng.sample(pool, number)
    count = facts.NUMBERS[number] if rng.random() < 0.7 else str(number)
    shape = rng.choice(
        [
            "List {c} kinds of {w}.",
            "List {c} kinds of {w}.",
            "List some kinds of {w}.",
            "List kinds of {w}.",
            "Name {c} kinds of {w} in a list.",
            "Make a list of {c} kinds of {w}.",
            "Give me a bullet list of {c} kinds of {w}.",
            "List {c} examples of {w}.",
            "Write a bullet list of kinds of {w}.",
        ]
    )
    user = shape.format(c=count, w=word)
    least = number if "{c}" in shape else 2
    if bullets:
        return Item(
            "list", user, "\n".join(f"- {w}" for w in some), word, criteria=[{"type": "bullet_list", "value": least}]
        )
    user = f"Make a numbered list of {count} kinds of {word}."
    return Item("numbered", user, "\n".join(f"{i}. {w}" for i, w in enumerate(some, 1)), word)


def example(m: Maker, rng: random.Random) -> Item | None:
    word, item = rng.choice(m.first[rng.choice("nvva")])
    fit = [e for e in item.examples if re.search(rf"\b{word}", e) and len(e) > 15 and not RUDE.search(e)]
    if not fit:
        return None
    user = rng.choice(
        [
            'Use the word "{}" in a sentence.',
            "Give an example sentence with the word {}.",
            "Write a sentence with {}.",
            "Show me how to use the word {}.",
        ]
    ).format(word)
    return Item(
        "example", user, quoted(rng.choice(fit)), word, criteria=[{"type": "contains_all_keywords", "value": [word]}]
    )


def compare(m: Maker, rng: random.Random) -> Item:
    name = rng.choice(list(m.members))
    one, two = rng.sample(m.members[name], 2)
    left, right = m.net.senses[one, "n"][0], m.net.senses[two, "n"][0]
    user = rng.choice(
        ["What is the difference between {a} and {b}?", "Compare {a} and {b}.", "How does {a} differ from {b}?"]
    ).format(a=m.name(one), b=m.name(two))
    answer = f"{sentence(one, left)[:-1]}, while {m.name(two)} is {short_gloss(right)}."
    return Item("compare", user, answer, one, [two])


def yes_no(m: Maker, rng: random.Random) -> Item:
    name = rng.choice(list(m.members))
    if rng.random() < 0.5:
        word = rng.choice(m.members[name])
        answer, gold = f"Yes. {cap(m.name(word))} is a kind of {name}.", "yes"
    else:
        word = m.not_in(name, rng)
        mine = rng.choice([k for k, v in m.members.items() if word in v])
        answer, gold = f"No. {cap(m.name(word))} is a kind of {mine}, not a kind of {name}.", "no"
    user = rng.choice(
        [
            "Is {n} a kind of {c}?",
            "Is {n} a kind of {c}? Answer yes or no.",
            "Is {n} a type of {c}?",
            "Yes or no: is {n} a kind of {c}?",
        ]
    ).format(n=m.name(word), c=name)
    return Item("yes_no", user, answer, word, gold=gold, choices=["yes", "no"])


def odd_one(m: Maker, rng: random.Random) -> Item:
    name = rng.choice(list(m.members))
    odd = m.not_in(name, rng)
    rest = rng.sample(m.members[name], 3)
    shown = [odd, *rest]
    rng.shuffle(shown)
    user = rng.choice(
        ["Which is the odd one out: {}?", "Which word does not belong: {}?", "Find the odd one out: {}."]
    ).format(join(shown, "or"))
    return Item("odd_one", user, f"{cap(odd)}. The others are kinds of {name}.", odd, rest, odd, shown)


def pick(m: Maker, rng: random.Random) -> Item:
    name = rng.choice(list(m.members))
    good = rng.choice(m.members[name])
    shown = [good]
    while len(shown) < 3:
        other = m.not_in(name, rng)
        if other not in shown:
            shown.append(other)
    rng.shuffle(shown)
    user = rng.choice(
        ["Which of these is a kind of {c}: {w}?", "Which is a kind of {c}: {w}?", "Choose the {c}: {w}."]
    ).format(c=name, w=join(shown, "or"))
    return Item("pick", user, f"{cap(good)}. {cap(m.name(good))} is a kind of {name}.", good, shown, good, shown)


def kind_of(m: Maker, rng: random.Random) -> Item | None:
    word, item = rng.choice(m.first["n"])
    up = m.net.names(item, "hypernym")
    if not up or up[0] == word:
        return None
    shape = rng.choice(["What kind of thing is {}?", "What is {} a kind of?", "{} is a kind of what?"])
    user = shape.format(m.name(word))
    return Item("kind_of", cap(user), f"{cap(m.name(word))} is a kind of {up[0]}.", word, gold=up[0])


def synonym(m: Maker, rng: random.Random) -> Item | None:
    word, item = rng.choice(m.first[rng.choice("nva")])
    same = [w for w in item.words if w != word]
    if not same:
        return None
    user = rng.choice(
        [
            "What is another word for {}?",
            "Give a synonym of {}.",
            "Tell me another word for {}.",
            "Which word means the same as {}?",
        ]
    ).format(word)
    return Item("synonym", user, f"Another word for {word} is {same[0]}.", word, gold=same[0])


def opposite(m: Maker, rng: random.Random) -> Item | None:
    word, item = rng.choice(m.first[rng.choice("aanvr")])
    found = [r for left, r in m.net.opposites(item) if left == word]
    left, right = rng.choice(facts.OPPOSITES)
    if rng.random() < 0.4:
        word, found = rng.choice([(left, [right]), (right, [left])])
    if not found:
        return None
    user = rng.choice(
        [
            "What is the opposite of {}?",
            "Give the opposite of {}.",
            "Tell me the opposite of {}.",
            "Which word is the opposite of {}?",
        ]
    ).format(word)
    return Item("opposite", user, f"The opposite of {word} is {found[0]}.", word, gold=found[0])


def arithmetic(m: Maker, rng: random.Random) -> Item:
    a, b = rng.randint(1, 20), rng.randint(1, 20)
    name, other, things = *rng.sample(NAMES, 2), rng.choice(THINGS)
    kind = rng.randrange(7)
    if kind in (1, 4):
        a, b = max(a, b) + 1, min(a, b)
    if kind < 2:
        total, sign, verb = (a + b, "+", "plus") if kind == 0 else (a - b, "-", "minus")
        user = rng.choice(
            [
                f"What is {a} {sign} {b}?",
                f"What is {a} {verb} {b}?",
                f"Calculate {a} {sign} {b}.",
                f"How much is {a} {verb} {b}?",
            ]
        )
        return Item("sum", user, f"{a} {sign} {b} = {total}.", f"{a}{sign}{b}", gold=str(total))
    if kind in (2, 3):
        user = f"{name} has {a} {things} and gets {b} more. How many {things} does {name} have?"
        answer = f"{a} + {b} = {a + b}. {name} has {a + b} {things}."
        return Item("story_sum", user, answer, f"{a}+{b}", gold=str(a + b))
    if kind == 4:
        user = f"{name} has {a} {things} and gives {b} to {other}. How many {things} does {name} have left?"
        answer = f"{a} - {b} = {a - b}. {name} has {a - b} {things} left."
        return Item("story_sum", user, answer, f"{a}-{b}", gold=str(a - b))
    if kind == 5:
        a, b = rng.sample(range(1, 100), 2)
        most = rng.random() < 0.5
        gold = max(a, b) if most else min(a, b)
        user = f"Which number is {'larger' if most else 'smaller'}, {a} or {b}?"
        return Item(
            "larger",
            user,
            f"{gold} is {'larger' if most else 'smaller'}.",
            f"{a}?{b}",
            gold=str(gold),
            choices=[str(a), str(b)],
        )
    start, step = rng.randint(1, 30), rng.choice([1, 2, 3, 5, 10])
    shown = [start + step * i for i in range(4)]
    return Item(
        "next_number",
        f"Which number comes next: {', '.join(map(str, shown))}?",
        f"The next number is {shown[3] + step}.",
        f"{start}..{step}",
        gold=str(shown[3] + step),
    )


def easy(m: Maker, rng: random.Random) -> Item:
    kind = rng.randrange(9)
    if kind == 0:
        ring, unit = rng.choice([(DAYS, "day"), (MONTHS, "month")])
        at, step = rng.randrange(len(ring)), rng.choice([1, -1])
        gold, side = ring[(at + step) % len(ring)], "after" if step == 1 else "before"
        user = f"Which {unit} comes {side} {ring[at]}?"
        return Item("next_day", user, f"{gold} comes {side} {ring[at]}.", user, gold=gold)
    if kind == 1:
        at = rng.randrange(1, 25)
        step, side = rng.choice([(1, "after"), (-1, "before")])
        user = f"Which letter comes {side} {LETTERS[at]}?"
        return Item(
            "letter",
            user,
            f"The letter {LETTERS[at + step]} comes {side} {LETTERS[at]}.",
            user,
            gold=LETTERS[at + step],
        )
    if kind == 2:
        thing, gold = rng.choice(facts.COLORS)
        user, answer = f"What color is the {thing}?", f"The color of the {thing} is {gold}."
    elif kind == 3:
        thing, gold = rng.choice(facts.LEGS)
        user, answer = f"How many legs does the {thing} have?", f"The {thing} has {gold} legs."
    elif kind == 4:
        thing, gold = rng.choice(facts.SOUNDS)
        user, answer = f"What sound does the {thing} make?", f"The {thing} {gold}."
    elif kind == 5:
        thing, gold = rng.choice(facts.YOUNG)
        user, answer = f"What is a young {thing} called?", f"A young {thing} is called {article(gold)} {gold}."
    elif kind == 6:
        thing, gold = rng.choice(facts.HOMES)
        user, answer = f"Where does the {thing} live?", f"The {thing} lives in the {gold}."
    elif kind == 7:
        thing, gold = rng.choice(facts.TOOLS)
        user, answer = f"What do we use the {thing} for?", f"We use the {thing} to {gold}."
    else:
        gold = rng.choice(m.first["n"])[0]
        user, answer = rng.choice([(f'Repeat the word "{gold}".', cap(gold) + "."), (f"Say {gold}.", cap(gold) + ".")])
        return Item("repeat", user, answer, gold, gold=gold)
    return Item("fact", user, answer, user, gold=gold)


def wrap(kind: str) -> Any:
    def make(m: Maker, rng: random.Random) -> Item:
        user, answer, key = getattr(talk, kind)(rng)
        return Item(kind, user, answer, key)

    return make


TASKS = [  # task, share
    (define, 17),
    (list_kinds, 13),
    (lambda m, r: list_kinds(m, r, False), 1.5),
    (example, 5),
    (compare, 4),
    (yes_no, 7),
    (odd_one, 4),
    (pick, 6),
    (kind_of, 4),
    (synonym, 3),
    (opposite, 3),
    (arithmetic, 9),
    (easy, 7),
    (wrap("small_talk"), 7),
    (wrap("register"), 6),
    (wrap("refusal"), 7),
    (wrap("harmless"), 7),
]
