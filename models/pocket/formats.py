"""Instruction pairs that ask for a form as well as a content, with the criteria that check it."""

from __future__ import annotations

import random
from typing import Any

from facts import NAMES, PLACES
from items import Item, Maker, ask, sentence
from wordnet import cap, named, short_gloss

ENDINGS = ["That is all.", "I hope this helps.", "Thank you.", "Now you know.", "The end.", "Good luck."]
PHRASES = ["as you know", "of course", "in short", "by the way", "as they say", "in fact"]


def shaped(m: Maker, rng: random.Random) -> Item | None:
    """A definition, or a short letter, in the form that the prompt asks for."""
    word, item = rng.choice(m.first["n"])
    base, question = sentence(word, item), ask(word, item, rng)
    up = (m.net.names(item, "hypernym") or ["thing"])[0]
    name = named(item, word)
    kind = rng.choice(KINDS)
    value: Any = True
    if kind == "all_lowercase":
        tail, answer = (
            rng.choice(["Use only lowercase letters.", "Answer in all lowercase.", "Do not use capital letters."]),
            base.lower(),
        )
    elif kind == "all_uppercase":
        if len(base) > 70:
            base = f"{cap(name)} is a kind of {up}."
        tail, answer = rng.choice(["Use only capital letters.", "Answer in all uppercase."]), base.upper()
    elif kind == "no_commas":
        tail = rng.choice(["Do not use commas.", "Use no commas.", "Answer without commas."])
        answer = base.replace(",", "")
    elif kind == "wrapped_in_quotes":
        tail = rng.choice(["Put your answer in quotes.", "Wrap your whole answer in double quotes."])
        answer = f'"{base}"'
    elif kind == "word_count_max":
        value = rng.choice([8, 10, 12, 15])
        answer = base if len(base.split()) <= value else f"{cap(name)} is a kind of {up}."
        if len(answer.split()) > value:
            return None
        tail = rng.choice(["Use at most {} words.", "Answer in at most {} words."]).format(value)
    elif kind == "sentence_count_max":
        value, answer = 1, base
        tail = rng.choice(["Answer in one sentence.", "Use only one sentence."])
    elif kind == "sentence_count_min":
        value, answer = 2, f"{base} It is a kind of {up}."
        tail = rng.choice(["Write at least two sentences.", "Use two sentences."])
    elif kind == "word_count_min":
        value, answer = rng.choice([6, 8, 10]), f"{base} {cap(name)} is a kind of {up}."
        if len(answer.split()) < value:
            return None
        tail = rng.choice(["Use at least {} words.", "Write {} words or more."]).format(value)
    elif kind == "ends_with":
        value = rng.choice(ENDINGS)
        tail, answer = rng.choice(['End with "{}"', 'Finish your answer with "{}"']).format(value), f"{base} {value}"
    elif kind == "contains_phrase":
        value = rng.choice(PHRASES)
        tail = rng.choice(['Include the phrase "{}".', 'Use the phrase "{}".']).format(value)
        answer = f"{cap(name)}, {value}, is {short_gloss(item)}."
    elif kind == "contains_all_keywords":
        value = [word, up]
        question = rng.choice(["Write a sentence about {n}.", "Write one sentence on {n}."]).format(n=name)
        tail, answer = f'Use the words "{word}" and "{up}".', f"{cap(name)} is a kind of {up}."
    elif kind == "highlighted_sections":
        value = 1
        tail = rng.choice(["Highlight the word with two asterisks.", "Put the word in **bold**."])
        answer = base.replace(
            cap(word) if base.startswith(cap(word)) else word,
            f"**{cap(word) if base.startswith(cap(word)) else word}**",
            1,
        )
    elif kind == "markdown_sections":
        value = 2
        tail = rng.choice(['Use two sections with "##" headings.', "Answer in two markdown sections."])
        answer = f"## Meaning\n{base}\n\n## Kind\n{cap(name)} is a kind of {up}."
    elif kind == "json":
        question = rng.choice(["Describe {n}.", "Tell me about {n}."]).format(n=name)
        tail = rng.choice(["Answer in JSON.", "Reply with a JSON object."])
        answer = f'{{"word": "{word}", "kind": "{up}"}}'
    else:
        value, person, place = 2, rng.choice(NAMES), rng.choice(PLACES)
        question = f"Write a short letter that invites {person} to the {place}."
        tail = rng.choice(["Use placeholders in square brackets.", "Put placeholders like [day] in square brackets."])
        answer = f"Dear {person}, please come to the {place} on [day] at [time]. Yours, [name]"
        word = f"{person} {place}"
    user = f"{question} {tail}" if rng.random() < 0.85 or not tail.endswith(".") else f"{tail} {question}"
    return Item("format", user, answer, word, criteria=[{"type": kind, "value": value}])


KINDS = [
    "all_lowercase",
    "all_lowercase",
    "all_uppercase",
    "no_commas",
    "no_commas",
    "wrapped_in_quotes",
    "wrapped_in_quotes",
    "word_count_max",
    "word_count_min",
    "sentence_count_max",
    "sentence_count_min",
    "ends_with",
    "contains_phrase",
    "contains_all_keywords",
    "highlighted_sections",
    "markdown_sections",
    "json",
    "has_placeholders",
]
