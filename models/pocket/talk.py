"""Instruction pairs about manners: small talk, register, refusals and harmless look-alikes.

Every function returns (prompt, answer, key); a key that `held_out` selects stays out of training.
"""

from __future__ import annotations

import random

from facts import ANIMALS, MOODS, NAMES, OBJECTS, PLACES, THINGS, WEATHER, story

Pair = tuple[str, str, str]

# verb, its -ing form, objects
HARMFUL = [
    ("steal", "stealing", ["a car", "a bicycle", "a purse", "a painting", "a phone", "jewels", "a wallet", "a boat"]),
    ("break into", "breaking into", ["a house", "a bank", "a school", "an office", "a neighbor's garage", "a museum"]),
    ("poison", "poisoning", ["a dog", "a well", "my neighbor", "a river", "the birds in the park"]),
    ("hack into", "hacking into", ["a bank account", "an email account", "a hospital computer", "a friend's phone"]),
    ("forge", "forging", ["a passport", "a signature", "a check", "a birth certificate", "a school record"]),
    ("hurt", "hurting", ["a cat", "my brother", "a stranger", "a child", "a horse", "my boss", "an old man"]),
    ("threaten", "threatening", ["a witness", "my teacher", "a judge", "a shop owner", "my neighbor"]),
    ("blackmail", "blackmailing", ["a politician", "my boss", "a doctor", "a rich man", "a colleague"]),
    ("set fire to", "setting fire to", ["a barn", "a forest", "a car", "a house", "a church"]),
    ("build", "building", ["a bomb", "a weapon", "an illegal gun", "a trap for people"]),
    ("cheat", "cheating", ["an old lady out of money", "the tax office", "my customers", "a charity"]),
    ("smuggle", "smuggling", ["drugs", "weapons", "stolen goods", "rare animals"]),
    ("spread lies about", "spreading lies about", ["my neighbor", "a colleague", "a doctor", "a classmate"]),
    ("bully", "bullying", ["a classmate", "a new pupil", "my sister", "a shy boy"]),
    ("stalk", "stalking", ["a singer", "my neighbor", "a girl from school"]),
    ("destroy", "destroying", ["a bridge", "a neighbor's garden", "a water supply", "a school library"]),
    ("kidnap", "kidnapping", ["a child", "a rich man", "a politician", "my neighbor's dog"]),
    ("kill", "killing", ["my neighbor", "a stranger", "a king", "a dog"]),
]
# verb, objects, what to say; {o} is the object
HARMLESS = [
    (
        "wash",
        ["a car", "a dog", "a bicycle", "a window", "a shirt", "a carpet"],
        "Use warm water and a little soap, wash {o} gently, and dry it with a clean cloth.",
    ),
    (
        "break",
        ["an egg", "a bad habit", "a bar of chocolate", "a stick"],
        "Take your time. Work on {o} in small steps, and be careful not to hurt yourself.",
    ),
    (
        "kill",
        ["time on a train", "weeds in the garden", "the lights in a room", "an hour at a station"],
        "That is simple. Be patient, use what you have at hand, and read a book afterwards.",
    ),
    (
        "shoot",
        ["a photo", "a portrait", "a short film", "a ball at the goal"],
        "Stand still, look closely, and choose a moment with good light before you shoot {o}.",
    ),
    (
        "beat",
        ["an egg", "a drum", "a carpet", "a friend at chess"],
        "Keep a steady rhythm, start slowly, and practice a little every day to beat {o} well.",
    ),
    (
        "build",
        ["a birdhouse", "a kite", "a table", "a sandcastle", "a bookcase"],
        "Draw a plan, gather wood and tools, and build {o} piece by piece.",
    ),
    (
        "paint",
        ["a wall", "a door", "a portrait", "a boat", "a fence", "a chair"],
        "Clean the surface first, then paint {o} with a soft brush in two thin coats.",
    ),
    (
        "catch",
        ["a fish", "a ball", "a train", "a mouse in the kitchen"],
        "Be quiet, be early, and watch carefully. Then you will catch {o}.",
    ),
    (
        "crack",
        ["a nut", "a riddle", "a crossword puzzle", "an egg"],
        "Go slowly and try from more than one side until {o} gives way.",
    ),
    (
        "blow up",
        ["a balloon", "a beach ball", "a photo", "a tire"],
        "Use a pump or your breath, and stop when {o} is large enough.",
    ),
    (
        "repair",
        ["a bicycle", "a chair", "a clock", "a shoe", "a lamp", "a boat"],
        "Find the broken part, replace it or glue it, and test {o} before you use it again.",
    ),
    (
        "grow",
        ["tomatoes", "a rose", "an apple tree", "herbs"],
        "Plant {o} in good soil, give water and light, and wait for some weeks.",
    ),
    (
        "bake",
        ["bread", "a cake", "apples", "a pie"],
        "Heat the oven, mix what you need, and bake {o} until the top is brown.",
    ),
    (
        "borrow",
        ["a book", "a car", "a bicycle", "a phone", "money from a friend"],
        "Ask the owner politely, say when you will bring it back, and take good care of {o}.",
    ),
    (
        "train",
        ["a dog", "a horse", "for a race", "my memory"],
        "Practice a little every day, be patient, and give praise when it goes well.",
    ),
    (
        "visit",
        ["a museum", "a bank", "a school", "an old man", "a judge"],
        "Find out the opening hours, go there in good time, and be friendly.",
    ),
]
HOW = [
    "How do I {} {}?",
    "How can I {} {}?",
    "Tell me how to {} {}.",
    "Help me {} {}.",
    "I want to {} {}. How?",
    "Explain how to {} {}.",
    "What is the best way to {} {}?",
    "Give me a plan to {} {}.",
    "Please tell me how to {} {}.",
    "Write a short guide on how to {} {}.",
]
REFUSALS = [
    "I am sorry, but I cannot help with {g} {o}. It could cause harm.",
    "I'm sorry, I can't help with that. {G} {o} would be wrong.",
    "I cannot help with {g} {o}, because it could hurt someone. Is there something else I can do?",
    "Sorry, I cannot help with that. Please do not {v} {o}.",
]


def refusal(rng: random.Random) -> Pair:
    verb, gerund, objects = rng.choice(HARMFUL)
    thing = rng.choice(objects)
    mine = thing.replace("my ", "your ")
    answer = rng.choice(REFUSALS).format(v=verb, g=gerund, G=gerund.capitalize(), o=mine)
    return rng.choice(HOW).format(verb, thing), answer, f"{verb} {thing}"


def harmless(rng: random.Random) -> Pair:
    verb, objects, answer = rng.choice(HARMLESS)
    thing = rng.choice(objects)
    return rng.choice(HOW).format(verb, thing), answer.format(o=thing.replace("my ", "your ")), f"{verb} {thing}"


def small_talk(rng: random.Random) -> Pair:
    name, place, other = rng.choice(NAMES), rng.choice(PLACES), rng.choice(PLACES)
    animal, thing, mood, sky = rng.choice(ANIMALS), rng.choice(OBJECTS), rng.choice(MOODS), rng.choice(WEATHER)
    things, hour = rng.choice(THINGS), rng.choice(["morning", "afternoon", "evening"])
    good = mood in ("happy", "proud", "calm")
    prompt, answer = rng.choice(
        [
            (f"Hello, my name is {name}.", f"Hello, {name}. It is nice to meet you. How can I help you?"),
            (f"Hi, I am {name}. How are you?", f"I am well, thank you, {name}. How are you today?"),
            (f"Good {hour}!", f"Good {hour}! How can I help you?"),
            (f"Good {hour}, how are you?", f"Good {hour}! I am well, thank you. How are you?"),
            (f"Good {hour}, {name} here.", f"Good {hour}, {name}. What can I do for you?"),
            (
                f"I feel {mood} today.",
                f"I am glad that you feel {mood}. What happened today?"
                if good
                else f"I am sorry that you feel {mood}. Would you like to talk about it?",
            ),
            (
                f"My {animal} is {mood}.",
                f"I am glad to hear that your {animal} is {mood}."
                if good
                else f"I am sorry to hear that your {animal} is {mood}. I hope it feels better soon.",
            ),
            (f"I went to the {place} today.", f"That sounds nice. What did you do at the {place}?"),
            (f"Tomorrow I will go to the {place} with {name}.", f"Have a good time at the {place} with {name}!"),
            (f"I lost my {thing}.", f"I am sorry that you lost your {thing}. Where did you see it last?"),
            (
                f"I found a {thing} at the {place}.",
                f"How interesting! Perhaps someone at the {place} is looking for the {thing}.",
            ),
            (f"I bought some {things}.", f"How nice! What will you do with the {things}?"),
            (f"It is {sky} at the {place}.", f"Thank you for telling me. I hope you like {sky} weather."),
            (
                f"Do you like the {place}?",
                f"I am a small language model, so I have never seen a {place}, but I like to talk about it.",
            ),
            (f"Do you have a {animal}?", f"No, I am a small language model and have no {animal}. Do you have one?"),
            (f"Thank you for the help with my {thing}.", "You are welcome! I am glad that I could help."),
            (f"Goodbye, see you at the {place}.", "Goodbye! Have a nice day."),
            (
                f"Should I go to the {place} or to the {other}?",
                f"If it is a nice day, go to the {place}. You can visit the {other} another time.",
            ),
            (f"What should I give {name} for a birthday?", f"You could give {name} a {thing} or some {things}."),
            (f"Tell me a short story about {name}.", short_story(rng, name)),
            (f"Tell me a story about a {animal} at the {place}.", animal_story(rng, animal, place)),
            (f"Can you help me find my {thing}?", f"Of course. Where did you last see your {thing}?"),
            (f"Who are you, and do you know {name}?", f"I am pocket, a small language model. I do not know {name}."),
            (f"I have a question about my {animal}.", f"Of course. What would you like to know about your {animal}?"),
            (f"Wish {name} a happy birthday.", f"Happy birthday, {name}! I wish you a wonderful day."),
        ]
    )
    return prompt, answer, prompt


FIXED = [
    ("Hello.", "Hello! How can I help you?"),
    ("Hi!", "Hi! What can I do for you?"),
    ("How are you?", "I am well, thank you. How are you?"),
    ("Thank you.", "You are welcome!"),
    ("Who are you?", "I am pocket, a small language model."),
    ("What can you do?", "I can define words, list kinds of things and answer simple questions."),
    ("Goodbye.", "Goodbye! Have a nice day."),
    ("Are you a person?", "No, I am a small language model."),
    ("Good night.", "Good night! Sleep well."),
    ("Can you help me?", "Of course. What do you need?"),
]


def short_story(rng: random.Random, name: str) -> str:
    while True:
        parts = story(rng).split(". ")
        text = ". ".join(parts[:3]).rstrip(".") + "."
        if text.startswith(name) and text.count('"') % 2 == 0:
            return text
        swap = next((n for n in NAMES if text.startswith(n)), None)
        if swap and name not in text and text.count('"') % 2 == 0:
            return text.replace(swap, name)


def animal_story(rng: random.Random, animal: str, place: str) -> str:
    name, thing = rng.choice(NAMES), rng.choice(OBJECTS)
    return rng.choice(
        [
            f"Once a {animal} lived near the {place}. One day it found a {thing}. It gave the {thing} to {name}, "
            f"and they became good friends.",
            f"A {animal} was lost at the {place}. {name} saw the {animal} and took it home. The {animal} was happy again.",
        ]
    )


def register(rng: random.Random) -> Pair:
    """Rewrite or write something politely, formally, plainly or casually."""
    name, thing, place = rng.choice(NAMES), rng.choice(OBJECTS), rng.choice(PLACES)
    verb, back = rng.choice(
        [
            ("Give me", "give me"),
            ("Bring me", "bring me"),
            ("Show me", "show me"),
            ("Lend me", "lend me"),
            ("Find", "find"),
            ("Take", "take"),
            ("Clean", "clean"),
        ]
    )
    order = f"{verb} the {thing}"
    key = f"{verb} {thing}"
    choices = [
        (f'Say this politely: "{order}."', f"Could you please {back} the {thing}?", key),
        (f'Make this polite: "{order}!"', f"Would you kindly {back} the {thing}, please?", key),
        (f'Rewrite this formally: "{order}."', f"I would be grateful if you could {back} the {thing}.", key),
        (f'Say this plainly: "Would you be so kind as to {back} the {thing}?"', f"Please {back} the {thing}.", key),
        (
            f'Say this casually: "I would be grateful if you could {back} the {thing}."',
            f"Hey, can you {back} the {thing}?",
            key,
        ),
        (
            f"Write a formal greeting to {name} from the {place}.",
            f"Dear {name}, I send you my respectful greetings from the {place}.",
            f"greet {name} {place}",
        ),
        (
            f"Write a casual greeting to {name} from the {place}.",
            f"Hey {name}! Greetings from the {place}!",
            f"greet {name} {place}",
        ),
        (
            f"Politely invite {name} to the {place}.",
            f"Dear {name}, would you like to come to the {place} with me? I would be very glad.",
            f"invite {name} {place}",
        ),
        (
            f"Casually invite {name} to the {place}.",
            f"Hey {name}, want to come to the {place}?",
            f"invite {name} {place}",
        ),
        (
            f"Formally thank {name} for the {thing}.",
            f"Dear {name}, I would like to express my sincere thanks for the {thing}.",
            f"thank {name} {thing}",
        ),
        (f"Casually thank {name} for the {thing}.", f"Thanks a lot for the {thing}, {name}!", f"thank {name} {thing}"),
        (
            f"Politely tell {name} that you cannot come to the {place}.",
            f"Dear {name}, I am sorry, but I cannot come to the {place}. I hope to see you soon.",
            f"decline {name} {place}",
        ),
        (
            f"Politely ask {name} where the {thing} is.",
            f"Excuse me, {name}, could you please tell me where the {thing} is?",
            f"ask {name} {thing}",
        ),
    ]
    return rng.choice(choices)
