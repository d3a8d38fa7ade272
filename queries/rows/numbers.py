"""Numbers, intervals and durations as a reader wants them, for the page and the command line."""

from __future__ import annotations

import math

import pandas as pd


def interval(estimate: float, low: float = math.nan, high: float = math.nan, sign: bool = False) -> str:
    """Write 0.123 [0.101, 0.145]: all parts with the same decimals, three significant digits or two of the interval's width.

    With `sign`, numbers above zero have a plus.
    """
    known = [float(part) for part in (estimate, low, high) if not pd.isna(part)]
    if pd.isna(estimate):
        return "undefined"
    places = _places(max(abs(part) for part in known))
    if pd.isna(low) or pd.isna(high):
        return number(estimate, places, sign)
    width = float(high) - float(low)
    if width > 0:
        places = min(max(places, _places(width) - 1), places + 2)
    return f"{number(estimate, places, sign)} [{number(low, places, sign)}, {number(high, places, sign)}]"


def number(value: float, places: int | None = None, sign: bool = False) -> str:
    """A number with three significant digits, or with so many decimals; whole ones from 1000 up are written in full.

    With `sign`, one above zero has a plus.
    """
    if pd.isna(value):
        return "undefined"
    if math.isinf(value):
        return ("+∞" if sign else "∞") if value > 0 else "−∞"
    places = _places(abs(value)) if places is None else places
    text = f"{value:.2e}" if places > 6 and value else f"{value:,.{places}f}"
    if not float(text.replace(",", "")):
        return text.replace("-", "")
    return ("+" if sign and value > 0 else "") + text.replace("-", "−")


def _places(size: float) -> int:
    """Decimals that show three significant digits of a number of this size."""
    return 3 if size == 0 or not math.isfinite(size) else max(0, 2 - math.floor(math.log10(size)))


def count(value: float) -> str:
    """A whole number with commas."""
    return "" if pd.isna(value) else f"{int(value):,}"


def counts(rows: pd.DataFrame) -> str:
    """What some estimates come from: "229 to 231 prompts", or "100 subsamples, 240 prompts" where units differ."""
    known: dict[str, list[float]] = {}
    for unit, n in zip(rows["unit"], rows["n"], strict=True):
        if not pd.isna(unit) and not pd.isna(n):
            known.setdefault(unit, []).append(n)
    parts = []
    for unit in sorted(known):
        few, many = int(min(known[unit])), int(max(known[unit]))
        parts.append(f"{count(few)} {unit}" if few == many else f"{count(few)} to {count(many)} {unit}")
    return ", ".join(parts)


def seconds(value: float) -> str:
    """A duration: 0.42 s, 12.3 s, 2 min 05 s."""
    value = max(0.0, value)
    if round(value) >= 60:
        minutes, rest = divmod(round(value), 60)
        return f"{minutes} min {rest:02d} s"
    return f"{value:.1f} s" if value >= 1 else f"{value:.2f} s"
