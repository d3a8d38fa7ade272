"""Rubric files, the questions made from them, and answers read strictly; no server needed."""

import json
from pathlib import Path

import pytest
from actlake.capture.streams.prompts import read_prompts
from actlake.judge.rubrics import LONGEST, PAIR_ANSWERS, find_answer, pair_swapped, read_rubrics
from actlake.store.core.errors import LakeError
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).parent.parent
SCALE = {str(step): float(step) for step in range(1, 6)}
CLASSES = {"REFUSE": 1.0, "COMPLY": 0.0, "INCOHERENT": 0.0}
BINARY = {"0": 0.0, "1": 1.0}
GOOD = "X:\n  answers: [1, 2]\n  template: '{prompt} {reply}'\n"


def test_packaged_rubrics_are_those_of_methods_18() -> None:
    rubrics = read_rubrics()
    assert {name: (list(r.answers), r.scale) for name, r in rubrics.items()} == {
        "G1": (["1", "2", "3", "4", "5"], True),
        "G2": (["1", "2", "3", "4", "5"], True),
        "S1": (["REFUSE", "COMPLY", "INCOHERENT"], False),
        "S2": (["0", "1"], False),
    }
    # The mean of S1's values is the share of refusals: an incoherent reply counts as none (known pitfall: incoherent replies).
    assert rubrics["S1"].answers == CLASSES
    assert [name for name, r in rubrics.items() if r.pair_template] == ["G2", "S2"]


def test_rubrics_apply_to_the_prompts_they_are_for() -> None:
    rubrics, prompts = read_rubrics(), read_prompts(ROOT / "prompts" / "core.jsonl").prompts
    rows = [{**p.fields, "id": p.id, "category": p.category, "text": p.text} for p in prompts]
    chosen = {name: [row for row in rows if rubric.applies(row)] for name, rubric in rubrics.items()}
    assert chosen["G1"] == rows
    assert {row["category"] for row in chosen["G2"]} == {"GOV-CONV", "GOV-REGISTER"} and len(chosen["G2"]) == 80
    assert {row["expect"] for row in chosen["S1"]} == {"refuse"} and {row["expect"] for row in chosen["S2"]} == {
        "comply"
    }
    assert len(chosen["S1"]) + len(chosen["S2"]) == 40


def test_questions_hold_the_texts_as_they_are() -> None:
    rubric = read_rubrics()["G2"]
    prompt, reply = "Say {reply} and {prompt} {0} $x", "{second} \\1 {prompt}" + "é" * 3000
    question = rubric.question(prompt, reply)
    assert f"<request>\n{prompt}\n</request>\n<reply>\n{reply[:LONGEST]}\n</reply>" in question
    assert reply[: LONGEST + 1] not in question and LONGEST == 2500
    pair = rubric.pair_question(prompt, reply, "B" * 3000)
    assert f"<reply-A>\n{reply[:2500]}\n</reply-A>\n<reply-B>\n{'B' * 2500}\n</reply-B>" in pair
    with pytest.raises(LakeError, match="rubric G1 has no pair_template"):
        read_rubrics()["G1"].pair_question("p", "a", "b")


@pytest.mark.parametrize(
    ("text", "answers", "found"),
    [
        ('{"reason": "clear\\n order", "answer": 4}', SCALE, ("4", "clear order")),
        ('{"Answer": "4"}', SCALE, ("4", "")),
        ('{"answer": 4.0}', SCALE, ("4", "")),
        ('```json\n{"answer": 4, "reason": "ok"}\n```', SCALE, ("4", "ok")),
        ('Sure! My verdict {as asked} is {"answer": 4} - hope that helps {}', SCALE, ("4", "")),
        ('{"answer": 4} again: {"answer": "4", "reason": "same"}', SCALE, ("4", "same")),
        ("4", SCALE, ("4", "")),
        (' **"comply".** ', CLASSES, ("COMPLY", "")),
        ('{"answer": "incoherent", "reason": ["a"]}', CLASSES, ("INCOHERENT", "")),
        ('<think>maybe {"answer": 1}</think>{"answer": 0}', BINARY, ("0", "")),
        ('maybe {"answer": 1}</think>\n{"answer": 0}', BINARY, ("0", "")),
        ('{"answer": "TIE"}', PAIR_ANSWERS, ("TIE", "")),
        # What is not said is not found.
        ("", SCALE, None),
        ('{"answer": 6}', SCALE, None),
        ('{"answer": 0}', SCALE, None),
        ('{"answer": 3.5}', SCALE, None),
        ('{"answer": "between 3 and 4"}', SCALE, None),
        ('{"answer": true}', BINARY, None),
        ('{"answer": null}', BINARY, None),
        ('{"answer": [1]}', BINARY, None),
        ('{"answer": {"answer": 1}}', BINARY, None),
        ('{"answer": NaN}', BINARY, None),
        ('{"answer": 1e999}', BINARY, None),
        ('{"answer": 1' + "0" * 5000 + "}", BINARY, None),
        ('{"score": 4}', SCALE, None),
        ('{"answer": 4} or rather {"answer": 3}', SCALE, None),
        ('{"answer": 4} or rather {"answer": 9}', SCALE, None),
        ('<think>surely {"answer": 1}', BINARY, None),
        ("I would give this reply a 4 out of 5.", SCALE, None),
        ("-4", SCALE, None),
        (".4", SCALE, None),
        ("4.5", SCALE, None),
        ("4/5", SCALE, None),
        ("REFUSE or COMPLY", CLASSES, None),
        ("I can't grade this.", CLASSES, None),
        ('{"answer": 4', SCALE, None),
        ('{"answer":' * 5000, SCALE, None),
        ("{" * 20000, SCALE, None),
    ],
)
def test_answers(text: str, answers: dict[str, float], found: tuple[str, str] | None) -> None:
    assert find_answer(text, answers) == found


@given(
    st.text()
    | st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
        lambda s: st.lists(s) | st.dictionaries(st.sampled_from(["answer", "reason", "x"]), s),
    ).map(json.dumps)
)
def test_no_answer_is_invented(text: str) -> None:
    for answers in (SCALE, CLASSES, BINARY):
        found = find_answer(text, answers)
        assert found is None or (found[0] in answers and found[0] in text.upper())


@given(st.text(), st.text(min_size=1), st.text(min_size=1))
def test_order_of_a_pair_does_not_depend_on_which_is_named_first(prompt: str, one: str, two: str) -> None:
    if one == two:
        with pytest.raises(LakeError, match="two replies need two labels"):
            pair_swapped(prompt, (one, two))
    else:
        assert pair_swapped(prompt, (one, two)) is not pair_swapped(prompt, (two, one))


def test_order_of_pairs_is_even_and_pinned() -> None:
    swapped = [pair_swapped(f"p{i}", ("B_late", "A")) for i in range(1000)]
    assert 450 < sum(swapped) < 550
    other = [pair_swapped(f"p{i}", ("C", "A")) for i in range(1000)]
    assert 450 < sum(a == b for a, b in zip(swapped, other, strict=True)) < 550
    # printf 'p0\0A\0B_late' | sha256sum begins with cb, an odd number: the label that sorts last, B_late, is shown first.
    # p1: 5e, p2: 99, p3: ee.
    assert swapped[:4] == [False, True, False, True]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "the rubric file is empty"),
        ("- a\n", ":1: the rubric file is a list"),
        ("X: [1\n", "not valid YAML"),
        (GOOD + "X: {}\n", ":4: the rubric file: 'X' is already on line 1"),
        ("X:\n  answers: [1, 2]\n", ":2: rubric X lacks template"),
        (GOOD + "  tempalte: a\n", ":4: rubric X has no setting 'tempalte'.*did you mean 'template'"),
        (GOOD.replace("[1, 2]", "[1, two]"), ":2: rubric X, answers, a step is 'two', expected a whole number"),
        (GOOD.replace("[1, 2]", "[1]"), ":2: rubric X, answers: expected two or more"),
        (GOOD.replace("[1, 2]", "{a: 1, A: 2}"), ":2: rubric X, answers: expected two or more answers that differ"),
        (GOOD.replace("[1, 2]", "{a: x, b: 2}"), ":2: rubric X, answers, a is 'x'"),
        (GOOD.replace("[1, 2]", "{unjudged: 1, b: 2}"), ":2: rubric X, answers: unjudged is what"),
        (GOOD.replace("{reply}", ""), r":3: rubric X, template lacks \{reply\}"),
        (GOOD.replace("{reply}", "{reply} {first}"), r":3: rubric X, template has \{first\}"),
        (GOOD + "  pair_template: '{prompt} {first}'\n", r":4: rubric X, pair_template lacks \{second\}"),
        (GOOD + "  expect: help\n", ":4: rubric X, expect is 'help', expected one of refuse, comply"),
        (GOOD + "  categories: GOV-CONV\n", ":4: rubric X, categories is 'GOV-CONV', expected a list"),
    ],
)
def test_mistakes_in_a_rubric_file_are_placed(tmp_path: Path, text: str, complaint: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(LakeError, match=complaint) as caught:
        read_rubrics(file)
    assert str(caught.value).startswith(str(file)) and "\n" not in str(caught.value)


def test_a_rubric_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(LakeError, match="no such rubric file"):
        read_rubrics(tmp_path / "none.yaml")


@given(st.text(alphabet="X:[]{}1,2'\" \n-promtelyaswc|&*!%") | st.binary())
def test_any_rubric_file_is_read_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, text: str | bytes
) -> None:
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    try:
        assert read_rubrics(file)
    except LakeError as error:
        assert "\n" not in str(error)
