"""published.csv: no figure stands there twice, and none contradicts another of the same quantity or what follows from it."""

import re
from itertools import combinations

import pandas as pd
import pytest
from actlake.queries.rows.registry import published as of
from actlake.queries.rows.registry import queries

ROWS = {row: of(row) for row in queries()}
FIGURES = pd.concat(frame.assign(row=row) for row, frame in ROWS.items())


def plain(quantity: str) -> str:
    """A name without the ways of writing it: str_alpha5_top, str_5_top and str@5@top are one quantity."""
    return re.sub(r"alpha|beta|[@_ ]", "", quantity.lower())


def test_no_quantity_is_there_twice() -> None:
    named = FIGURES.assign(plain=FIGURES["quantity"].map(plain))
    twice = named[named.duplicated(["row", "model", "plain"], keep=False)]
    assert twice.empty, twice[["row", "model", "quantity", "value"]].to_string()


def test_figures_that_two_rows_quote_of_one_run_are_equal() -> None:
    a1, effects = (dict(zip(ROWS[row]["quantity"], ROWS[row]["value"], strict=True)) for row in ("A1", "0D"))
    both = a1.keys() & effects.keys()
    assert len(both) > 30 and all(a1[name] == effects[name] for name in both)
    assert {f"{name.removesuffix('_spearman')}": a1[name] for name in a1 if name.endswith("_spearman")} == {
        name.removeprefix("rho_").replace("choice_mixed", "mmlu_mixed"): effects[name]
        for name in effects
        if name.startswith("rho_")
    }


@pytest.mark.parametrize(
    ("row", "whole", "plus", "minus"),
    [("exp23", f"interaction{s}", f"late_it{s}", f"late_pt{s}") for s in ("", "_holdout599", "_holdout598")]
    + [
        ("0C", "gap_str_5", "str@5@d_mean", "str@5@seed42"),
        ("0C", "gap_reasoning_5", "reasoning@5@d_mean", "reasoning@5@seed42"),
    ],
)
def test_differences_follow_from_what_they_are_of(row: str, whole: str, plus: str, minus: str) -> None:
    found = 0
    for _, frame in ROWS[row].groupby("model"):
        known = dict(zip(frame["quantity"], frame["value"], strict=True))
        if {whole, plus, minus} <= known.keys():
            assert known[whole] == pytest.approx(known[plus] - known[minus], abs=2.1e-3)
            found += 1
    assert found


def test_the_three_calibration_sets_have_their_own_figures() -> None:
    known = dict(zip(ROWS["0H"]["quantity"], ROWS["0H"]["value"], strict=True))
    assert [known[f"str_5_{name}"] for name in ("top", "random", "bottom")] == [0.530, 0.502, 0.508]
    assert [known[f"str_3_{name}"] for name in ("top", "random", "bottom")] == [0.275, 0.295, 0.267]
    assert [known[f"str_0_{name}"] for name in ("top", "random", "bottom")] == [0.054, 0.051, 0.052]


def test_published_effects_stand_beside_what_they_are_of() -> None:
    assert {"alone_late_pt", "alone_mid_pt", "alone_late_it", "alone_mid_it"} <= set(ROWS["exp23_KL"]["quantity"])
    assert not {"late_pt", "mid_pt"} & set(ROWS["exp23_KL"]["quantity"])
    minima = dict(zip(ROWS["0A"]["quantity"], ROWS["0A"]["value"], strict=True))
    assert minima["corrective_pairwise_layer_min"] == 0.988 and minima["corrective_pairwise_min"] == 0.9396
    p4 = ROWS["exp10_P4"].set_index(["model", "quantity"])["value"]
    assert p4["deepseek_v2_lite", "str@1@d_mean"] == 0.041 and p4["deepseek_v2_lite", "str_baseline"] == 0.029


def test_a_smallest_is_never_above_a_mean() -> None:
    for (_, _), frame in FIGURES.groupby(["row", "model"]):
        known = dict(zip(frame["quantity"], frame["value"], strict=True))
        for one, other in combinations(known, 2):
            if one.endswith("_min") and other == one.removesuffix("_min") + "_mean":
                assert known[one] <= known[other]
