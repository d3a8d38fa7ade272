"""Names in words: every measure that a row's SQL gives has a label, a unit and a definition in the row's header."""

import json
import re
from pathlib import Path

import pytest
from actlake.queries.rows.measures import PLACE, axis, colours, measure, parse_measures, thing, words
from actlake.queries.rows.registry import GROUPS, group_of, queries
from actlake.store.core.errors import LakeError

# What rows gave on pocket and on made scores: row -> measures, values of its hue.
FOUND = json.loads((Path(__file__).parent / "measures.json").read_text(encoding="utf-8"))


def test_every_row_was_recorded():
    assert set(FOUND) == set(queries())


@pytest.mark.parametrize("row", sorted(FOUND))
def test_no_measure_lacks_its_words(row: str):
    declared = queries()[row].measures
    missing = [name for name in FOUND[row]["measures"] if measure(declared, name) is None]
    assert not missing
    for name in FOUND[row]["measures"]:
        found = measure(declared, name)
        assert found and found.label and found.unit and found.definition
        assert "_" not in found.label.replace("d_mean", "").replace("d_conv", ""), found
        assert not re.search(r"[<>]", "".join(found)), found


@pytest.mark.parametrize("row", sorted(FOUND))
def test_no_hue_is_a_code(row: str):
    column = queries()[row].plot.get("hue", "variant")
    for value in FOUND[row]["hues"]:
        parts = str(value).split(" - ")
        assert thing(column, value) or all(
            thing(column, part) or part[0].isdigit() or part == "all" for part in parts
        ), value


@pytest.mark.parametrize("row", sorted(FOUND))
def test_what_a_figure_names_is_there(row: str):
    """Each panel and number that a header names; those of a judge or of tables that a lake may lack aside."""
    plot = queries()[row].plot
    for key in ("panels", "forest"):
        wanted = [name.partition("/")[0] for part in plot.get(key, "").split(",") for name in part.split("+") if part]
        assert len(wanted) <= (6 if key == "forest" else 8)
        assert not [name for name in wanted if name not in FOUND[row]["measures"] and "tuned" not in name]


def test_units_are_of_one_kind_in_a_panel():
    for query in queries().values():
        for entry in query.plot.get("panels", "").split(","):
            units = {
                found.unit for name in entry.split("+") if (found := measure(query.measures, name.partition("/")[0]))
            }
            assert len(units) <= 1, (query.id, entry)


def test_places_in_names_are_words_or_numbers():
    declared = parse_measures("- <metric>_change_<n> | change at <n>: <metric> | <metric> | it: <metric>", "x.sql")
    found = measure(declared, "format_change_minus5")
    assert found and found.label == "change at −5: format compliance" and found.unit == "share of replies"
    assert measure(declared, "form_change_5") is None and measure(declared, "format_change_") is None
    pooled = measure(declared, "format_change_5_token_weighted")
    assert pooled and pooled.label.endswith("every token alike")
    for line in ("- a | b | c", "a | b | c | d", "- a | b |  | d", "- <nothing>_a | b | c | d"):
        with pytest.raises(LakeError, match=r"x\.sql: "):
            parse_measures(line, "x.sql")


def test_words_are_complete():
    known = words()
    assert all(len(entry) == 4 and entry[3] in colours() for entry in known["metric"].values())
    assert all(entry[1] in colours() for entry in known["things"].values())
    places = {
        p.rstrip("0123456789") for q in queries().values() for name, *_ in q.measures for p in PLACE.findall(name)
    }
    assert places - {"n"} <= known.keys()
    assert axis("layer") == "layer" and axis("some_column") == "some column"


def test_every_row_has_a_group():
    assert {group_of(query) for query in queries().values()} == set(GROUPS)
