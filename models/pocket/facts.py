"""Small everyday facts and simple stories, written for this project."""

from __future__ import annotations

import random


def words(text: str) -> list[str]:
    return text.split()


def pairs(text: str, between: str = " ") -> list[tuple[str, str]]:
    """Pairs written as "left/right", one after another."""
    return [(left, right) for left, _, right in (part.partition("/") for part in text.split(between))]


NUMBERS = words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty"
)
DAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = words("January February March April May June July August September October November December")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
OPPOSITES = pairs(
    "hot/cold big/small tall/short old/young fast/slow wet/dry up/down left/right open/closed full/empty "
    "day/night light/dark happy/sad hard/soft rich/poor strong/weak early/late near/far high/low long/short "
    "clean/dirty loud/quiet sweet/bitter thick/thin wide/narrow heavy/light good/bad right/wrong true/false "
    "black/white in/out on/off above/below before/after first/last win/lose buy/sell come/go give/take push/pull "
    "start/stop asleep/awake alive/dead brave/afraid sharp/dull deep/shallow rough/smooth cheap/expensive "
    "easy/difficult"
)
COLORS = pairs(
    "sky/blue grass/green snow/white coal/black banana/yellow lemon/yellow tomato/red blood/red strawberry/red "
    "carrot/orange milk/white leaf/green sea/blue raven/black swan/white pumpkin/orange cherry/red frog/green "
    "sun/yellow chocolate/brown elephant/gray mouse/gray salt/white violet/purple"
)
LEGS = pairs(
    "dog/four cat/four horse/four cow/four sheep/four pig/four goat/four lion/four bird/two chicken/two duck/two "
    "man/two woman/two ant/six bee/six fly/six beetle/six spider/eight snake/zero fish/zero worm/zero wolf/four "
    "bear/four mouse/four table/four goose/two"
)
SOUNDS = pairs(
    "dog/barks cat/meows cow/moos sheep/bleats horse/neighs lion/roars duck/quacks bee/buzzes wolf/howls "
    "pig/grunts snake/hisses bird/sings frog/croaks owl/hoots mouse/squeaks hen/clucks"
)
YOUNG = pairs(
    "dog/puppy cat/kitten cow/calf horse/foal sheep/lamb duck/duckling hen/chick pig/piglet goat/kid bear/cub "
    "lion/cub goose/gosling deer/fawn frog/tadpole swan/cygnet"
)
HOMES = pairs(
    "bird/nest bee/hive fish/water bear/den ant/anthill spider/web lion/den rabbit/burrow horse/stable dog/kennel "
    "king/palace farmer/farm monk/monastery sailor/ship prisoner/prison student/school"
)
TOOLS = pairs(
    "knife/cut|pen/write|broom/sweep|needle/sew|shovel/dig|hammer/drive nails|saw/cut wood|oven/bake|"
    "spoon/stir|clock/tell the time|key/open a lock|umbrella/keep off the rain|telescope/look at the stars|"
    "bed/sleep|cup/drink|lamp/give light|brush/paint|rope/tie things|map/find the way|"
    "thermometer/measure the temperature|boat/cross the water",
    "|",
)
NAMES = words(
    "Anna Ben Clara David Emma Frank Grace Henry Ivy Jack Kate Leo Mary Nora Oliver Paul Rose Sam Tom Lucy Peter "
    "Helen George Alice"
)
THINGS = words(
    "apples pears books coins pens cups stones eggs plums shells cards balls nuts stamps flowers candles keys "
    "hats oranges buttons"
)
PLACES = words("market river garden school library park village forest kitchen station beach farm church shop harbor")
WEATHER = words("sunny rainy windy cold warm cloudy snowy foggy")
OBJECTS = words(
    "letter basket book loaf map lamp coat ring key picture chair kite boat drum clock bottle ball knife hat box"
)
ANIMALS = words("dog cat horse bird rabbit duck goat mouse sheep fox")
MOODS = words("happy sad tired hungry proud surprised angry calm")


def words_for(number: int) -> str:
    """A number below one hundred in words."""
    if number <= 20:
        return NUMBERS[number]
    tens = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"][number // 10 - 2]
    return tens if number % 10 == 0 else f"{tens}-{NUMBERS[number % 10]}"


def statement(rng: random.Random) -> str:
    """One simple true sentence."""
    kind = rng.randrange(14)
    if kind < 3:
        a, b = rng.randint(0, 20), rng.randint(0, 20)
        if rng.random() < 0.4:
            a, b = max(a, b), min(a, b)
            return rng.choice(
                [f"{a} - {b} = {a - b}.", f"{a} minus {b} is {a - b}.", f"If you take {b} from {a}, {a - b} are left."]
            )
        return rng.choice(
            [
                f"{a} + {b} = {a + b}.",
                f"{a} plus {b} is {a + b}.",
                f"{words_for(a).capitalize()} and {words_for(b)} make {words_for(a + b)}.",
            ]
        )
    if kind == 3:
        a, b = rng.randint(0, 10), rng.randint(0, 10)
        return f"{a} times {b} is {a * b}."
    if kind == 4:
        ring = rng.choice([DAYS, MONTHS])
        at = rng.randrange(len(ring))
        left, right = ring[at], ring[(at + 1) % len(ring)]
        return rng.choice([f"{right} comes after {left}.", f"{left} comes before {right}."])
    if kind == 5:
        at = rng.randrange(25)
        return f"The letter {LETTERS[at + 1]} comes after the letter {LETTERS[at]}."
    if kind == 6:
        start, step = rng.randint(0, 20), rng.choice([1, 1, 2, 3, 5, 10])
        return "We count " + ", ".join(str(start + step * i) for i in range(5)) + "."
    if kind == 7:
        left, right = rng.choice(OPPOSITES)
        return rng.choice([f"The opposite of {left} is {right}.", f"The opposite of {right} is {left}."])
    if kind == 8:
        thing, color = rng.choice(COLORS)
        return f"The color of the {thing} is {color}."
    if kind == 9:
        who, number = rng.choice(LEGS)
        return f"The {who} has {'no' if number == 'zero' else number} legs."
    if kind == 10:
        who, sound = rng.choice(SOUNDS)
        return f"The {who} {sound}."
    if kind == 12:
        a, b = rng.randint(0, 20), rng.randint(0, 20)
        (who, legs), (thing, color) = rng.choice(LEGS), rng.choice(COLORS)
        name, things = rng.choice(NAMES), rng.choice(THINGS)
        return rng.choice(
            [
                f"What is {a} plus {b}? It is {a + b}.",
                f"How much is {a + b} minus {b}? It is {a}.",
                f"What color is the {thing}? It is {color}.",
                f"How many legs does the {who} have? It has {legs}.",
                f"{name} has {a} {things} and gets {b} more, so {name} has {a + b} {things}.",
            ]
        )
    if kind == 11:
        who, name = rng.choice(YOUNG)
        return f"A young {who} is called a {name}."
    if rng.random() < 0.5:
        who, home = rng.choice(HOMES)
        return f"The {who} lives in the {home}."
    tool, use = rng.choice(TOOLS)
    return f"We use the {tool} to {use}."


def story(rng: random.Random) -> str:
    """A few plain sentences about two people, an object and a place."""
    one, two = rng.sample(NAMES, 2)
    place, other = rng.sample(PLACES, 2)
    thing, gift = rng.sample(OBJECTS, 2)
    animal, things = rng.choice(ANIMALS), rng.choice(THINGS)
    a, b = rng.randint(2, 9), rng.randint(1, 9)
    parts = [
        rng.choice(
            [
                f"It was a {rng.choice(WEATHER)} day, and {one} went to the {place}.",
                f"One morning {one} walked to the {place}.",
                f"{one} and {two} lived near the {place}.",
            ]
        )
    ]
    middle = [
        f"There {one} met {two}, who had lost a {thing}.",
        f"{one} found a {thing} by the road.",
        f"{one} had {a} {things}, and {two} gave {one} {b} more, so {one} had {a + b} {things}.",
        f"A {animal} sat in front of the {other}.",
        f'{two} asked, "Where is my {thing}?"',
        f'{two} said, "Thank you for the {gift}."',
        f"They looked for the {thing} in the {other}.",
        f"The {animal} was {rng.choice(MOODS)} and followed {one} home.",
        f"{one} gave {two} a {gift}.",
        f'"Will you come with me to the {other}?" asked {one}.',
        f"{two} was {rng.choice(MOODS)} that day.",
        f"They bought a {gift} and put it in a box.",
        f"Then it began to rain, and they ran to the {other}.",
    ]
    parts += rng.sample(middle, rng.randint(3, 5))
    parts.append(
        rng.choice(
            [
                f"In the evening they went home and were {rng.choice(MOODS)}.",
                f"At last {one} slept.",
                f"{two} never forgot that day at the {place}.",
                f"So {one} and {two} became good friends.",
            ]
        )
    )
    return " ".join(parts)
