"""What the package computes is what tests/golden.json holds; and the comparison sees small changes.

A change of numbers that is meant: `python tests/golden.py --write`.
"""

import copy
from collections.abc import Sequence
from typing import Any

import golden
import numpy as np
import pandas as pd
import pytest


@pytest.mark.parametrize(
    "pairs",
    [
        pytest.param((golden.QUICK,), id=golden.QUICK),
        pytest.param([pair for pair in golden.PAIRS if pair != golden.QUICK], id="others", marks=pytest.mark.sweep),
    ],
)
def test_the_golden_lake_is_what_it_was(pairs: Sequence[str]) -> None:
    """And an answer does not depend on what else is asked."""
    recorded, computed = golden.recorded(), golden.compute(pairs)
    said = golden.report({**recorded, "entries": golden.of_pairs(recorded["entries"], pairs)}, computed)
    assert not said, "\n" + said
    assert computed["depends on others"] == []


def test_every_entry_is_of_one_pair() -> None:
    entries = golden.recorded()["entries"]
    parts = [golden.of_pairs(entries, [pair]) for pair in golden.PAIRS]
    assert sum(map(len, parts)) == len(entries) and min(map(len, parts)) > 500
    assert golden.of_pairs(entries, golden.PAIRS) == entries


def test_golden_json_has_all_rows_pairs_and_kinds() -> None:
    from actlake.queries.rows.registry import queries

    names = golden.recorded()["entries"].keys()
    assert {name.split("/")[1] for name in names if name.startswith("answers/")} == queries().keys()
    models = {f"{pair}-{variant}" for pair in golden.PAIRS for variant in ("pt", "it")}
    assert {name.split("/")[1] for name in names if name.startswith("captures/")} == models
    tables = {name.split("/")[1] for name in names if name.startswith("tables/")}
    assert {"lens", "delta", "outputs", "scores", "graft", "weights", "geometry", "commitment"} <= tables
    assert {name.split("/")[0] for name in names} == {"answers", "captures", "models", "directions", "tables"}
    for array in ("token_id", "resid", "mlp_out", "attn_entropy", "topk_logit"):
        assert f"captures/gemma3-it/teacher-golden/{array}" in names


VALUES = np.random.default_rng(1).standard_normal(500).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "old", "new", "exactly", "tolerantly"),
    [
        ("the last bit of one float", VALUES, np.nextafter(VALUES, 9, where=np.arange(500) == 7, out=VALUES.copy()), True, False),
        ("a part in a thousand", VALUES, VALUES * np.float32(1.001), True, True),
        ("a permutation", VALUES, VALUES[::-1].copy(), True, True),
        ("a gap", VALUES, np.where(np.arange(500) == 3, np.nan, VALUES).astype(np.float32), True, True),
        ("another type", VALUES, VALUES.astype(np.float64), True, True),
        ("another length", VALUES, VALUES[:-1], True, True),
        ("a whole number", np.arange(500), np.arange(500) + (np.arange(500) == 499), True, True),
        ("a token", np.array(["a", "b"]), np.array(["a", "c"]), True, True),
        ("a scalar", np.array([0.25]), np.array([0.2501]), True, True),
        ("a scalar that is not known", np.array([0.0]), np.array([np.nan]), True, True),
        ("nothing", VALUES, VALUES.copy(), False, False),
        ("minus zero", np.zeros(9), -np.zeros(9), False, False),
        ("the order that SQL adds in", np.full(9, 0.1 + 0.2), np.full(9, 0.3), False, False),
    ],
)  # fmt: skip
def test_a_change_is_seen(name: str, old: Any, new: Any, exactly: bool, tolerantly: bool) -> None:
    recorded, computed = {"x/y": golden.digest(old)}, {"x/y": golden.digest(new)}
    assert bool(golden.differences(recorded, computed, True)) == exactly
    found = golden.differences(recorded, computed, False)
    assert bool(found) == tolerantly
    assert all(line.startswith("x/y: ") for line in found)


def test_choices_between_near_equals_may_differ_elsewhere() -> None:
    ids = np.random.default_rng(2).integers(0, 4000, 20_000)
    other = ids.copy()
    other[5] += 1
    for decided in (True, False):
        recorded, computed = ({"x": golden.digest(values, decided)} for values in (ids, other))
        assert golden.differences(recorded, computed, True)
        assert bool(golden.differences(recorded, computed, False)) == (not decided)


def test_differences_that_cancel_are_compared_with_what_cancels() -> None:
    """A difference of layers of a thousandth: its rounding is seen where it is of 1e-4 of a hundredth of a layer."""
    old, near, far = (np.array([value]) for value in (6.5e-4, 6.5e-4 + 1.5e-7, 6.5e-4 + 2e-6))
    for new, least, seen in ((near, 0.0, True), (near, golden.LEAST, False), (far, golden.LEAST, True)):
        recorded, computed = ({"x": golden.digest(each, least=least)} for each in (old, new))
        assert bool(golden.differences(recorded, computed, False)) == seen
        assert golden.differences(recorded, computed, True)
    recorded, computed = ({"x": golden.digest(VALUES * by, tolerance=1e-3)} for by in (1, 1 + 5e-4))
    assert not golden.differences(recorded, computed, False) and golden.differences(recorded, computed, True)
    found = golden.recorded()["entries"]
    parts = [(name, part) for name, one in found.items() for part in one.values() if isinstance(part, dict)]
    assert {name for name, part in parts if "tolerance" in part} == golden.LIMITS.keys()
    told = {name for name, part in parts if "least" in part}
    assert told and all("/exp10_P3/pocket/" in name and "dcommit" in name for name in told)
    assert not any("decided" in part for name, part in parts if name.startswith("answers/"))


def test_the_report_names_what_differs_by_how_much_and_what_to_do() -> None:
    old = golden.recorded()
    assert golden.report(old, old) == ""
    new = copy.deepcopy(old)
    name = next(
        name
        for name, one in old["entries"].items()
        if "values" in one.get("estimate", {}) and one["estimate"]["values"][0]
    )
    value = new["entries"][name]["estimate"]["values"][0]
    new["entries"][name]["estimate"]["values"][0] = value * 1.01
    del new["entries"]["captures/pocket-it/native-golden/resid"]
    said = golden.report(old, new)
    assert f"{name}: estimate {value * 1.01:.6g}" in said and f"was {value:.6g}" in said
    assert "captures/pocket-it/native-golden/resid: missing now" in said
    assert said.startswith("2 of ") and "golden.py --write" in said and "bit by bit" in said
    elsewhere = {**new, "fingerprint": {**old["fingerprint"], "arithmetic": "other"}}
    assert "within 0.0001" in golden.report(old, elsewhere)
    assert "1 of" in golden.report(old, {**old, "entries": {**old["entries"], "tables/more": golden.digest(VALUES)}})


def test_rows_of_a_table_may_come_in_any_order() -> None:
    table = pd.DataFrame({"prompt": [0, 0, 1], "arm": ["b", "a", None], "value": [0.5, np.nan, 0.25]})
    mixed = golden._columns(golden._in_order(table.sample(frac=1, random_state=3)))
    assert mixed == golden._columns(golden._in_order(table))
    assert mixed != golden._columns(golden._in_order(table.assign(value=[0.5, 0.1, 0.25])))


def test_the_file_has_an_entry_a_line() -> None:
    text = golden.FILE.read_text(encoding="utf-8")
    assert golden.dump(golden.recorded()) == text
    assert len(text.splitlines()) == len(golden.recorded()["entries"]) + 3
