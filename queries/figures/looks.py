"""How things look in figures: one colour and marker for one thing, wherever it is drawn; words.yaml names them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ..rows.findings import is_contrast, shown
from ..rows.measures import colours, thing

PALETTE = colours()
INK, GREY, GRID, SHADE = PALETTE["ink"][0], "#5d626b", "#dcdfe4", "#efece2"
# What the lines around a figure become on a dark page, beside the palette's colours.
DARK = dict(PALETTE.values()) | {
    GREY: "#a0a7b3",
    GRID: "#343942",
    SHADE: "#26272b",
    "#ffffff": "#14161a",
}
OTHERS = ("green", "pink", "violet", "olive", "sky", "brown", "red", "lime", "grey")
MARKERS = "os^vDPX"
# From PT's colour over nothing to IT's; from nothing to much; ordered things such as numbers of records.
DIVERGING = ("#00609a", "#68a5cd", "#f7f7f4", "#e99660", "#b14200")
RAMP = ("#fafaf7", "#dee9f2", "#a8c9e2", "#639dcb", "#266ba8", "#0d3a6b")
ORDERED = ("#a8c9e2", "#0d3a6b")


class Look(NamedTuple):
    """How a hue looks, and what it is called."""

    label: str
    colour: str
    marker: str
    dashed: bool


def looks(
    hues: Iterable[object], column: str = "variant", names: dict[object, str] | None = None
) -> dict[object, Look]:
    """A look for every hue of a column: words.yaml's; ink for contrasts and for what has no name; a ramp for numbers, and for
    others the colours that are left, in the order of the hues. `names` take the place of the hues' own."""
    every = list(dict.fromkeys(hues))
    known = {hue: thing(column, hue) for hue in every}
    taken = {each[1] for each in known.values() if each}
    free = [name for name in OTHERS if name not in taken] or list(OTHERS)
    numbers = [hue for hue in every if _starts_with_number(hue)]
    found: dict[object, Look] = {}
    others = 0
    for hue in every:
        label = (names or {}).get(hue) or shown(hue, column)
        if each := known[hue]:
            found[hue] = Look(label, PALETTE[each[1]][0], *each[2:])
        elif hue is None or is_contrast(hue):
            found[hue] = Look(label, INK, "o", False)
        elif len(numbers) > 2 and (hue in numbers or hue == "all"):
            share = numbers.index(hue) / len(numbers) if hue in numbers else 1.0
            found[hue] = Look(label, mixed(ORDERED, share), MARKERS[others % 7], False)
            others += 1
        else:
            found[hue] = Look(label, PALETTE[free[others % len(free)]][0], MARKERS[others % 7], others >= len(free))
            others += 1
    return found


def _starts_with_number(hue: object) -> bool:
    return str(hue)[:1].isdigit()


def mixed(stops: Sequence[str], share: float) -> str:
    """The colour at a share of the way along some colours."""
    at = min(int(share * (len(stops) - 1)), len(stops) - 2)
    part = share * (len(stops) - 1) - at
    pairs = zip(*(bytes.fromhex(stop[1:]) for stop in stops[at : at + 2]), strict=True)
    return "#" + "".join(f"{round(low + (high - low) * part):02x}" for low, high in pairs)
