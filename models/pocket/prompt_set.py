"""The held-out prompt set of the pocket pair, from the same makers but other words and slots."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import chat
import formats
from items import Item, Maker
from wordnet import held_out

Make = Callable[[Maker, random.Random], Item | None]
# category, short name for ids, how many, makers taken in turn
PLAN: list[tuple[str, str, int, list[Make]]] = [
    ("CONTENT-FACT", "fact", 36, [chat.pick, chat.kind_of, chat.pick, chat.opposite, chat.pick, chat.synonym]),
    ("CONTENT-REASON", "reason", 36, [chat.yes_no, chat.arithmetic, chat.odd_one, chat.arithmetic]),
    ("GOV-FORMAT", "format", 54, [chat.list_kinds, formats.shaped, formats.shaped]),
    ("GOV-CONV", "conv", 36, [chat.wrap("small_talk")]),
    ("SAFETY", "safety", 36, [chat.wrap("refusal"), chat.wrap("harmless")]),
    ("GOV-REGISTER", "register", 32, [chat.wrap("register")]),
    ("BASELINE-EASY", "easy", 32, [chat.easy, chat.arithmetic, chat.easy]),
]
EASY_SUMS, REASON_SUMS = {"sum"}, {"story_sum", "larger", "next_number"}


def fits(category: str, item: Item, maker: Maker) -> bool:
    """Whether an item suits its category and turns on a common word."""
    if category == "BASELINE-EASY" and item.task in EASY_SUMS | REASON_SUMS:
        return item.task in EASY_SUMS and len(item.gold) == 1
    if category == "CONTENT-REASON" and item.task in EASY_SUMS | REASON_SUMS:
        return item.task in REASON_SUMS
    counts = [maker.net.counts.get((item.key, pos), 0) for pos in "nvar"]
    if item.task in ("pick", "kind_of", "synonym", "opposite", "yes_no", "odd_one", "list", "format"):
        return max(counts) >= 3 or " " in item.key
    return True


def build(maker: Maker, trained: set[str], seed: int) -> list[dict[str, Any]]:
    """Prompts of every category in turn; none of them, and none of their words, was trained on."""
    rng = random.Random(seed)
    columns: list[list[dict[str, Any]]] = []
    seen: set[str] = set()
    keys: dict[str, int] = {}
    for category, short, number, makers in PLAN:
        rows: list[dict[str, Any]] = []
        styles: dict[str, int] = {}
        while len(rows) < number:
            item = makers[len(rows) % len(makers)](maker, rng)
            if item is None or not held_out(item.key) or item.user in seen or not fits(category, item, maker):
                continue
            style = item.criteria[0]["type"] if item.task == "format" else ""
            limit = {"CONTENT-FACT": 1, "GOV-FORMAT": 1, "SAFETY": 3}.get(category, 2)
            if keys.get(item.key, 0) >= limit or (style and styles.get(style, 0) >= 3):
                continue
            keys[item.key] = keys.get(item.key, 0) + 1
            styles[style] = styles.get(style, 0) + 1
            seen.add(item.user)
            row: dict[str, Any] = {"id": f"pocket-{short}-{len(rows) + 1:03}", "category": category, "text": item.user}
            if category.startswith(("CONTENT", "BASELINE")):
                row["answer"] = item.gold
                if item.choices:
                    row["choices"] = item.choices
            elif category == "GOV-FORMAT":
                row["criteria"] = item.criteria
            elif category == "SAFETY":
                row["expect"] = "refuse" if item.task == "refusal" else "comply"
            rows.append(row)
        columns.append(rows)
    out = [rows[i] for i in range(max(map(len, columns))) for rows in columns if i < len(rows)]
    assert not {row["text"] for row in out} & trained, "a prompt is among the training pairs"
    return out
