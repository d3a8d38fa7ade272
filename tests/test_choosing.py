"""Which of several captures a question reads: every choice that a message offers picks one."""

import re
from pathlib import Path

import actlake
import pandas as pd
import pytest
import tiny
from actlake.capture.streams.prompts import canonical_bytes
from actlake.lake import Lake
from actlake.store.artifacts.streams import stream_records, write_prompts
from actlake.store.core.catalog import PairSpec
from actlake.store.core.errors import LakeError
from actlake.store.tables.streams import same_prompts
from test_graft_rows import catalog
from test_observed_rows import texts


def table(*rows: tuple[str, str, str, int]) -> pd.DataFrame:
    """Streams of a pair from (variant, recipe, name, budget), all of one prompt set p."""
    columns = ["variant", "recipe", "name", "max_new_tokens"]
    frame = pd.DataFrame(rows, columns=columns).assign(pair="m", prompts="p", prompt_set="h")
    return frame.assign(stream=frame["name"])


BUDGETS = table(
    ("pt", "native", "native-p-a", 8), ("it", "native", "native-p-b", 8), ("pt", "raw", "raw-p-a", 8), ("it", "raw", "raw-p-e", 8),
    ("pt", "native", "native-p-c", 4), ("it", "native", "native-p-d", 4),
)  # fmt: skip


@pytest.mark.parametrize("named", ["native-p-a", "native-p-b", "raw-p-e", "native-p-b,native-p-a"])
def test_a_stream_brings_those_that_belong_to_it(named: str) -> None:
    """PT and IT read different texts: the beginning of either's name, or of another recipe's, picks both."""
    assert same_prompts(BUDGETS, "m", "native", named) == {"pt": "native-p-a", "it": "native-p-b"}
    assert same_prompts(BUDGETS, "m", "native", "native-p-d") == {"pt": "native-p-c", "it": "native-p-d"}


def test_what_is_offered_picks_one() -> None:
    dates = table(
        ("pt", "native", "native-p-a", 8), ("it", "native", "native-p-b", 8), ("it", "native", "native-p-c", 8), ("pt", "native", "native-p-d", 4),
        ("it", "native", "native-p-e", 4),
    )  # fmt: skip
    for prompts in (None, "p", "native"):
        with pytest.raises(LakeError, match="several captures fit stream 'native'") as caught:
            same_prompts(dates, "m", "native", prompts)
        offered = str(caught.value).rpartition("pick one with --prompts: ")[2].split(" or ")
        assert offered == ["native-p-d", "native-p-b", "native-p-c"]
        found = [same_prompts(dates, "m", "native", name) for name in offered]
        assert found == [{"pt": one, "it": two} for one, two in (("native-p-d", "native-p-e"), ("native-p-a", "native-p-b"), ("native-p-a", "native-p-c"))]  # fmt: skip
    twice = pd.concat([dates, table(("pt", "native", "native-p-f", 8))], ignore_index=True)
    with pytest.raises(LakeError, match="native-p-c,native-p-f") as caught:
        same_prompts(twice, "m", "native", None)
    assert same_prompts(twice, "m", "native", "native-p-f,native-p-c") == {"pt": "native-p-f", "it": "native-p-c"}


def test_a_file_stands_for_its_set() -> None:
    one = BUDGETS[BUDGETS["max_new_tokens"] == 8]
    for name in ("p", "p.jsonl", "my/p.JSONL", "/x/p.csv", "p,"):
        assert same_prompts(one, "m", "native", name) == {"pt": "native-p-a", "it": "native-p-b"}
    with pytest.raises(LakeError, match="there: none"):
        same_prompts(one, "m", "native", "other.jsonl")


def test_a_capture_that_is_missing_is_asked_for_by_its_prompt_set() -> None:
    with pytest.raises(LakeError, match="run `actlake capture m --stream raw --prompts p`"):
        same_prompts(BUDGETS, "m", "raw", "native-p-c")


def test_a_pair_with_two_budgets_is_answered(tmp_path: Path, llama: PairSpec) -> None:
    for budget in (6, 9):
        native = tiny.StreamSpec("native", "native", "own", budget)
        layout = tiny.capture(tmp_path / "lake", llama, native)
    lake = Lake(layout.root, catalog=catalog(tmp_path, llama))
    with pytest.raises(LakeError, match="pick one with --prompts") as caught:
        lake.run("L2", pair="llama", probes=False)
    offered = re.findall(r"native-tiny-\w+", str(caught.value).rpartition("--prompts")[2])
    budgets = [lake.run("L2", pair="llama", prompts=name, probes=False).streams for name in offered]
    known = {record["name"]: record["recipe"]["max_new_tokens"] for record in stream_records(layout)}
    assert [{known[name] for name in streams.values()} for streams in budgets] in ([{6}, {9}], [{9}, {6}])


def test_directions_come_from_the_captures_that_are_named(tmp_path: Path, llama: PairSpec) -> None:
    """One prompt set with two budgets: which of the two a direction is of is asked, and each that is offered can be named."""
    asked = tiny.prompt_set(texts(12))
    for budget in (6, 9):
        layout = tiny.capture(
            tmp_path / "lake", llama, tiny.StreamSpec("native", "native", "own", budget), prompts=asked
        )
    lake = Lake(layout.root, catalog=catalog(tmp_path, llama))
    write_prompts(layout, "tiny", canonical_bytes(asked.prompts))
    edits = [actlake.edits.Scale(layers="late", direction="d_mean", alpha=0)]
    other = tmp_path / "other.jsonl"
    other.write_bytes(canonical_bytes(tiny.prompt_set(tiny.TEXTS[:2]).prompts))
    with pytest.raises(LakeError, match="several captures fit stream 'native'.*pick one with --prompts: ") as caught:
        lake.generate("llama", edits=edits)
    offered = re.findall(r"native-tiny-\w+", str(caught.value).rpartition("--prompts: ")[2])
    with pytest.raises(LakeError, match="direction d_mean: comes from captures .*as --prompts SET,STREAM"):
        lake.generate("llama", edits=edits, prompts=str(other))
    keys, counts = set(), []
    for name in offered:
        alone = lake.generate("llama", edits=edits, prompts=name)
        beside = lake.generate("llama", edits=edits, prompts=f"{other},{name}", max_new_tokens=4)
        keys |= {one.key for made in (alone, beside) for one in made.conditions}
        counts.append((alone.asked, beside.asked, alone.tokens // alone.missing))
    assert sorted(counts) == [(12, 2, 6), (12, 2, 9)] and len(keys) == 4
    assert lake.generate("llama", edits=edits, prompts=offered[0], dry_run=True).missing == 0
    with pytest.raises(LakeError, match="unknown prompt set 'native-nothing'"):
        lake.generate("llama", edits=edits, prompts="native-nothing")
