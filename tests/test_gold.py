"""Gold files and Cohen's kappa, against values worked out by hand."""

import json
from pathlib import Path

import pytest
from actlake.judge.agreement import agreement, gold_items, read_gold
from actlake.judge.judge import UNJUDGED, JudgeItem, Verdict
from actlake.judge.rubrics import read_rubrics
from actlake.store.core.errors import LakeError

RUBRICS = read_rubrics()
HEADER = "id,rubric,reply,value\n"


def gold_file(folder: Path, *rows: tuple[str, str]) -> Path:
    """A JSONL gold file of (rubric, answer)."""
    file = folder / "gold.jsonl"
    file.write_text("".join(json.dumps({"id": "p", "rubric": r, "reply": "", "value": v}) + "\n" for r, v in rows))
    return file


def verdicts(*labels: str) -> list[Verdict]:
    return [Verdict(None, label, "") for label in labels]


def test_kappa_of_classes_by_hand(tmp_path: Path) -> None:
    # 50 replies: both 1 in 20, both 0 in 15, judge 1 and gold 0 in 10, judge 0 and gold 1 in 5. They agree on 0.7; by chance
    # on 0.6 * 0.5 + 0.4 * 0.5 = 0.5; kappa = (0.7 - 0.5) / (1 - 0.5) = 0.4.
    pairs = [("1", "1")] * 20 + [("0", "0")] * 15 + [("1", "0")] * 10 + [("0", "1")] * 5
    gold = read_gold(gold_file(tmp_path, *(("S2", answer) for _, answer in pairs)), RUBRICS)
    (found,) = agreement(verdicts(*(label for label, _ in pairs)), gold, RUBRICS)
    assert found.kappa == pytest.approx(0.4, abs=1e-12) and not found.weighted
    assert (found.n, found.unjudged) == (50, 0.0)
    assert str(found) == "S2: kappa 0.40 (target 0.70) over 50 replies, 0% unjudged"


def test_kappa_of_a_scale_by_hand(tmp_path: Path) -> None:
    # Judge and gold: (1,1) (1,2) (5,5) (5,3). Squared distances 0, 1, 0, 4: mean 5/4. By chance judge is 1 or 5 (half
    # each), gold 1, 2, 5 or 3 (a quarter each): mean (0 + 1 + 16 + 4 + 16 + 9 + 0 + 4) / 8 = 50/8. kappa = 1 - 10/50 = 0.8. Step 4
    # is never given and still lies between 3 and 5.
    gold = read_gold(gold_file(tmp_path, *(("G1", answer) for answer in "1253")), RUBRICS)
    (found,) = agreement(verdicts("1", "1", "5", "5"), gold, RUBRICS)
    assert found.kappa == pytest.approx(0.8, abs=1e-12) and found.weighted


def test_unjudged_replies_are_counted_and_left_out(tmp_path: Path) -> None:
    gold = read_gold(
        gold_file(tmp_path, *[("S1", "REFUSE"), ("G1", "3"), ("S1", "comply"), ("S1", "INCOHERENT"), ("S2", "1")]),
        RUBRICS,
    )
    found = {a.rubric: a for a in agreement(verdicts("REFUSE", "3", "COMPLY", UNJUDGED, UNJUDGED), gold, RUBRICS)}
    assert (found["S1"].n, found["S1"].kappa) == (2, 1.0) and found["S1"].unjudged == pytest.approx(1 / 3)
    # One answer throughout: chance agrees fully, and kappa is 0/0.
    assert (found["G1"].n, found["G1"].kappa) == (1, None) and "kappa not defined over 1 replies" in str(found["G1"])
    assert (found["S2"].n, found["S2"].kappa, found["S2"].unjudged) == (0, None, 1.0)


def test_csv_and_jsonl_say_the_same(tmp_path: Path) -> None:
    (tmp_path / "gold.csv").write_text(HEADER + 'a,G1,"one,\ntwo",4\nb,S1,,refuse\n')
    (tmp_path / "gold.jsonl").write_text(
        '{"id": "a", "rubric": "G1", "reply": "one,\\ntwo", "value": 4}\n\n{"id": "b", "rubric": "S1", "reply": "", "value": "REFUSE"}\n'
    )
    tables = [read_gold(tmp_path / f"gold.{kind}", RUBRICS) for kind in ("csv", "jsonl")]
    assert [(r.id, r.rubric, r.reply, r.answer) for r in tables[0]] == [
        ("a", "G1", "one,\ntwo", "4"),
        ("b", "S1", "", "REFUSE"),
    ]
    assert [replaced.__dict__ | {"where": ""} for replaced in tables[0]] == [
        r.__dict__ | {"where": ""} for r in tables[1]
    ]
    prompts = {"a": {"id": "a", "text": "x"}, "b": {"id": "b", "text": "y"}}
    assert gold_items(tables[0], prompts) == [
        JudgeItem("G1", prompts["a"], "one,\ntwo"),
        JudgeItem("S1", prompts["b"], ""),
    ]
    with pytest.raises(LakeError, match=r"gold.csv:4: no prompt 'b' in the prompt set"):
        gold_items(tables[0], {"a": prompts["a"]})


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("gold.txt", "", "unknown type '.txt'; a gold file ends in .jsonl or .csv"),
        ("gold.csv", "", "the gold file is empty"),
        ("gold.csv", "id,reply\n", ":1: no column rubric, value"),
        ("gold.csv", HEADER + "a,G1,x\n", ":2: 3 cells, but 4 columns"),
        ("gold.csv", HEADER + "a,G1,x,\n", ":2: no value; every row needs"),
        ("gold.csv", HEADER + "a,G1,x,6\n", ":2: value is '6', expected one of 1, 2, 3, 4, 5 for G1"),
        ("gold.csv", HEADER + "a,G3,x,5\n", ":2: unknown rubric 'G3': known are G1, G2, S1, S2"),
        ("gold.jsonl", '{"id": 1, "rubric": "G1", "reply": "", "value": 1}', ":1: id is 1, expected text"),
        ("gold.jsonl", '{"id": "a", "rubric": "S2", "reply": "", "value": true}', ":1: value is True, expected one of 0, 1"),
        ("gold.jsonl", "[]", ':1: expected a JSON object such as {"id": ..., "rubric": ..., "reply": ..., "value": ...}'),
    ],
)  # fmt: skip
def test_mistakes_in_a_gold_file_are_placed(tmp_path: Path, name: str, text: str, complaint: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(LakeError) as caught:
        read_gold(tmp_path / name, RUBRICS)
    assert complaint in str(caught.value) and str(caught.value).startswith(str(tmp_path / name))
