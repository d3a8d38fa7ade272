"""WordNet as plain running English: one paragraph on one synset, in one of several shapes."""

from __future__ import annotations

import random

from wordnet import COUNTED, Synset, WordNet, article, cap, join, named, short_gloss


def quoted(example: str) -> str:
    text = cap(example.strip())
    return text if text[-1] in ".!?" else text + "."


def describe(net: WordNet, item: Synset, rng: random.Random) -> str:
    """One paragraph of running English on one synset, in one of several shapes."""
    word = rng.choice(item.words[:3]) if rng.random() < 0.4 else item.words[0]
    gloss = item.gloss if rng.random() < 0.5 else short_gloss(item)
    if not gloss:
        return ""
    others = [w for w in item.words if w != word][:3]
    out: list[str] = []
    if rng.random() < 0.15:
        out.append(_question(net, item, word, rng))
    if item.pos == "n":
        out += _noun(net, item, word, gloss, rng)
    elif item.pos == "v":
        out.append(
            rng.choice(
                [
                    f"To {word} is to {gloss}.",
                    f"To {word} means to {gloss}.",
                    f"When people {word}, they {gloss}.",
                    f'The verb "{word}" means {gloss}.',
                    f"If you {word}, you {gloss}.",
                ]
            )
        )
        up = net.names(item, "hypernym")
        if up and rng.random() < 0.5:
            out.append(f"To {word} is one way to {up[0]}.")
        down = net.names(item, "hyponym")
        if len(down) > 1 and rng.random() < 0.4:
            out.append(f"Ways to {word} are to {join(rng.sample(down, min(4, len(down))), 'or')}.")
    elif item.pos == "a":
        out.append(
            rng.choice(
                [
                    f'The adjective "{word}" means {gloss}.',
                    f"If something is {word}, it is {gloss}.",
                    f"To be {word} is to be {gloss}.",
                    f'"{cap(word)}" describes something {gloss}.',
                ]
            )
        )
        near = net.names(item, "similar")
        if near and rng.random() < 0.5:
            out.append(f"Words close to {word} are {join(rng.sample(near, min(3, len(near))))}.")
    else:
        out.append(rng.choice([f'The adverb "{word}" means {gloss}.', f"To do something {word} means {gloss}."]))
    if others and rng.random() < 0.6:
        out.append(
            rng.choice(
                [
                    f"Another word for {word} is {join(others, 'or')}.",
                    f"It is also called {join(others, 'or')}.",
                    f"{cap(word)} and {others[0]} mean the same.",
                ]
            )
        )
    for left, right in net.opposites(item):
        out.append(
            rng.choice(
                [
                    f"The opposite of {left} is {right}.",
                    f"{cap(left)} is the opposite of {right}.",
                    f"What is {left} is not {right}." if item.pos == "a" else f"The opposite of {left} is {right}.",
                ]
            )
        )
    if item.examples and rng.random() < 0.8:
        example = quoted(rng.choice(item.examples))
        out.append(
            rng.choice(
                [
                    example,
                    f'For example: "{example}"',
                    f'One can say, "{example}"',
                    f'As in the sentence "{example}"',
                ]
            )
        )
    return " ".join(out)


def _question(net: WordNet, item: Synset, word: str, rng: random.Random) -> str:
    """A question that the paragraph goes on to answer."""
    if item.pos == "n":
        name = named(item, word)
        chain = net.ancestors(item)
        if chain and rng.random() < 0.4:
            top = rng.choice(chain[:4])
            return f"Is {name} {named(top)}? Yes, {name} is {named(top)}."
        return rng.choice([f"What is {name}?", f"What is {name}?", f"What kind of thing is {name}?"])
    if item.pos == "v":
        return f"What does it mean to {word}?"
    return rng.choice([f"What does {word} mean?", f'What does "{word}" mean?'])


def _noun(net: WordNet, item: Synset, word: str, gloss: str, rng: random.Random) -> list[str]:
    name = named(item, word)
    up = net.linked(item, "hypernym") or net.linked(item, "instance_of")
    out = []
    if up and rng.random() < 0.55:
        kind = named(up[0])
        bare = up[0].words[0]
        if item.links.get("instance_of"):
            out.append(f"{word} is {article(bare)} {bare}. It is {gloss}.")
        else:
            out.append(
                rng.choice(
                    [
                        f"{cap(name)} is a kind of {bare}. It is {gloss}.",
                        f"{cap(name)} is {kind}: {gloss}.",
                        f"Among the kinds of {bare} is the {word}, {gloss}.",
                        f"{cap(name)} is a type of {bare}.",
                    ]
                )
            )
    else:
        out.append(
            rng.choice(
                [
                    f"{cap(name)} is {gloss}.",
                    f'The noun "{word}" means {gloss}.',
                    f"{cap(word)} means {gloss}.",
                    f'The word "{word}" stands for {gloss}.',
                    f"{cap(name)} is {gloss}.",
                ]
            )
        )
    down = net.names(item, "hyponym")
    if len(down) > 1 and rng.random() < 0.6:
        some = rng.sample(down, min(rng.randint(2, 6), len(down)))
        out.append(
            rng.choice(
                [
                    f"Kinds of {word} include {join(some)}.",
                    f"There are several kinds of {word}, such as {join(some)}.",
                    f"{cap(join(some))} are kinds of {word}.",
                    f"Examples of {word} are {join(some)}.",
                ]
            )
        )
    places = net.names(item, "instance")
    if places and rng.random() < 0.5:
        out.append(f"A well known {word} is {rng.choice(places)}.")
    parts = net.names(item, "part")
    if parts and rng.random() < 0.6:
        some = rng.sample(parts, min(4, len(parts)))
        out.append(f"{cap(name)} has parts such as {join(['the ' + p for p in some])}.")
    whole = net.linked(item, "part_of")
    if whole and rng.random() < 0.5:
        out.append(f"{cap(name)} is part of {named(whole[0])}.")
    group = net.linked(item, "member_of")
    if group and rng.random() < 0.3:
        out.append(f"It belongs to the {group[0].words[0]}.")
    chain = net.ancestors(item)
    if len(chain) > 2 and rng.random() < 0.3:
        top = rng.choice(chain[1 : max(2, len(chain) - 2)])
        out.append(
            rng.choice(
                [
                    f"Every {word} is {article(top.words[0])} {top.words[0]}."
                    if item.lexfile in COUNTED
                    else f"{cap(word)} is a kind of {top.words[0]}.",
                    f"So {name} is also a kind of {top.words[0]}.",
                ]
            )
        )
    return out
