"""exp13A: its tables against whole Hugging Face models with hooks, and its numbers by plain loops."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from actlake.analyze.lens.head import Head
from actlake.analyze.lens.topk import exchanged
from actlake.analyze.text.word_class import COLLAPSED, GROUPS, alone, in_context
from actlake.lake import Lake
from actlake.queries.engine.context import Context
from actlake.queries.makers import ensure, jobs_of
from actlake.queries.rows.registry import find, published
from actlake.store.artifacts.streams import read_stream
from actlake.store.core.catalog import ModelSpec, PairSpec
from actlake.store.core.errors import LakeError
from actlake.store.format.paths import Layout
from actlake.store.tables.imported import add_table
from hypothesis import given
from hypothesis import strategies as st
from test_graft_rows import WINDOWS, Whole, catalog, scope, table
from test_observed_rows import texts
from transformers import AutoTokenizer

LAYERS, LATE = 3, 2  # floor(0.8 * 3)


@pytest.fixture(scope="module")
def pair(pairs: Callable[[str], PairSpec]) -> PairSpec:
    return pairs("olmo2")


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory, pair: PairSpec) -> Lake:
    root = tmp_path_factory.mktemp("words")
    teacher = replace(tiny.TEACHER, max_new_tokens=12)
    native = replace(tiny.NATIVE, max_new_tokens=12)
    tiny.capture(root / "lake", pair, native, teacher, prompts=tiny.prompt_set(texts(12)))
    return Lake(root / "lake", catalog=catalog(root, pair))


# --- the kernel ------------------------------------------------------------------------------------------------------


@given(st.integers(1, 4), st.integers(1, 3), st.integers(2, 40), st.integers(0, 9))
def test_exchanged_is_a_difference_of_sets(tokens: int, boundaries: int, vocab: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    before, after = (torch.randn(tokens, boundaries, 4, generator=generator) for _ in range(2))
    head, group = Head(torch.randn(vocab, 4, generator=generator), torch.ones(4)), torch.arange(vocab) % 2
    found = exchanged(head, before, after, group, k=5)
    for t in range(tokens):
        for b in range(boundaries):
            old, new = ({*head.logits(h[t, b]).topk(min(5, vocab)).indices.tolist()} for h in (before, after))
            for name, ids in (("entered", new - old), ("left", old - new)):
                assert found[name][t, b].tolist() == [sum(i % 2 == g for i in ids) for g in range(2)]
            assert np.isclose(found["jaccard"][t, b], len(old & new) / len(old | new))


def test_exchanged_in_slices_and_bad_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    head, before, after = tiny.head(4, 50), torch.randn(6, 2, 4), torch.randn(6, 2, 4)
    whole = exchanged(head, before, after, torch.zeros(50, dtype=torch.int64))
    monkeypatch.setattr("actlake.analyze.lens.topk.LOGITS", 150)
    sliced = exchanged(head, before, after, torch.zeros(50, dtype=torch.int64))
    assert all(np.array_equal(whole[name], sliced[name]) for name in whole) and whole["entered"].sum()
    for bad in ((before[:5], after, torch.zeros(50)), (before, after, torch.zeros(49))):
        with pytest.raises(ValueError, match="exchanged: before"):
            exchanged(head, *bad)


# --- tables ----------------------------------------------------------------------------------------------------------


def test_candidates_are_those_of_whole_models_with_hooks(lake: Lake, pair: PairSpec) -> None:
    names, whole = scope(lake.layout, pair.name), Whole.of(pair)
    needs = [("candidates", "B_late", names), ("vocab", "", names)]
    ensure(lake.layout, needs, catalog=lake._catalog)
    found = table(lake.layout, "FROM candidates WHERE lens = 'raw'").set_index(["prompt", "step", "layer"])
    classes = table(lake.layout, "FROM vocab ORDER BY token_id")["word_class"].map(COLLAPSED)
    stream, seen = read_stream(lake.layout, names.streams["pt"]), 0
    for prompt, (tokens, start) in enumerate(zip(stream.tokens, stream.starts, strict=True)):
        sides = [whole("pt", tokens, window)[0] for window in ((0, 0), WINDOWS["late"])]
        for step in range(len(tokens) - start):
            for layer in range(LATE, LAYERS):
                old, new = (
                    {*whole.logp("pt", resid[layer + 1][start - 1 + step]).topk(20).indices.tolist()} for resid in sides
                )
                row, seen = found.loc[(prompt, step, layer)], seen + 1
                for group in GROUPS:
                    assert row[f"entered_{group}"] == sum(classes[index] == group for index in new - old)
                    assert row[f"left_{group}"] == sum(classes[index] == group for index in old - new)
                assert row["jaccard"] == pytest.approx(len(old & new) / len(old | new))
    assert seen == len(found) and found["jaccard"].max() < 1


def test_every_id_and_every_answer_is_classed(lake: Lake, pair: PairSpec) -> None:
    vocab = lake.sql("FROM vocab ORDER BY token_id").df()
    tokenizer = AutoTokenizer.from_pretrained(pair.it.path)
    special = {*tokenizer.all_special_ids}
    assert vocab["token_id"].tolist() == list(range(len(tokenizer))) and set(vocab["pair"]) == {pair.name}
    assert set(vocab.loc[vocab["is_special"], "token_id"]) == special
    for row in vocab.itertuples():  # a byte-level decoder drops nothing
        text = tokenizer.decode([row.token_id])
        assert row.token_text == text and row.word_class == ("OTHER" if row.token_id in special else alone(text))
    words = lake.sql("FROM words").df()
    for variant, name in scope(lake.layout, pair.name).streams.items():
        stream = read_stream(lake.layout, name)
        for prompt, (tokens, start) in enumerate(zip(stream.tokens, stream.starts, strict=True)):
            same = (words["variant"] == variant) & (words["stream"] == name) & (words["prompt"] == prompt)
            mine = words[same].sort_values("step")
            answer = tokens[start:].tolist()
            assert mine["target"].tolist() == answer and mine["step"].tolist() == list(range(len(answer)))
            assert mine["position"].tolist() == list(range(start - 1, len(tokens) - 1))
            wanted = in_context(["" if token in special else tokenizer.decode([token]) for token in answer])
            wanted = ["OTHER" if token in special else name for token, name in zip(answer, wanted, strict=True)]
            assert mine["target_class"].tolist() == wanted


# --- the row ---------------------------------------------------------------------------------------------------------


def phase(ranks: pd.Series) -> str:
    """The phase of the first of some layers, ascending from 0, where the rank is 1."""
    first = next((layer for layer, rank in enumerate(ranks) if rank == 1), None)
    if first is None:
        return "never"
    return "early" if first < 0.4 * LAYERS else "mid" if first < LATE else "late"


@pytest.fixture(scope="module")
def numbers(lake: Lake) -> pd.DataFrame:
    return lake.run("exp13A").table


@pytest.mark.parametrize("lens", ["raw", "tuned"])
def test_exp13A_by_plain_loops(lake: Lake, pair: PairSpec, numbers: pd.DataFrame, lens: str) -> None:
    streams = scope(lake.layout, pair.name).streams
    edited, base, words, moved = (
        table(lake.layout, f"FROM {name} WHERE stream IN ('{streams['pt']}', '{streams['it']}')")
        for name in ("graft", "lens", "words", "candidates")
    )
    classes = table(lake.layout, "FROM vocab ORDER BY token_id")["word_class"].map(COLLAPSED)
    place, wanted = ["prompt", "step", "layer"], {}
    mine = words[words["variant"] == "pt"].set_index(["prompt", "step"])
    target = mine["target_class"].map(COLLAPSED).where(mine["target"] >= len(tiny.SPECIAL), "end")
    own = base[(base["variant"] == "pt") & (base["lens"] == lens) & (base["step"] >= 0) & (base["layer"] >= 0)]
    for window in WINDOWS:
        mine = edited[(edited["condition"] == f"B_{window}") & (edited["lens"] == lens)]
        both = mine.merge(own, on=place, suffixes=("_b", "_a")).sort_values(place)
        gains: dict[str, list[float]] = {group: [] for group in (*GROUPS, "end")}
        supported, suppressed, changed, first = [], [], [], {"a": [], "b": []}
        for token, layers in both.groupby(["prompt", "step"]):
            late = layers[LATE:]
            gains[target[token]].append((late["rank_target_a"] - late["rank_target_b"]).mean())
            for row in late.itertuples():
                changed.append(row.top1_a != row.top1_b)
                if changed[-1]:
                    supported.append(classes[row.top1_b])
                    suppressed.append(classes[row.top1_a])
            for side, seen in first.items():
                seen.append(phase(layers[f"rank_target_{side}"]))
        for group, values in gains.items():
            if values:
                wanted[f"rank_gain_{group}_{window}"] = np.mean(values)
                wanted[f"improved_{group}_{window}"] = np.mean(np.array(values) > 0)
    wanted["changed"] = np.mean(changed)  # late is the last window
    for group in GROUPS:
        up, down = (np.mean([name == group for name in found]) for found in (supported, suppressed))
        wanted |= {f"supported_{group}": up, f"suppressed_{group}": down, f"net_{group}": up - down}
    for name in ("early", "mid", "late", "never"):
        shares = {side: np.mean([found == name for found in seen]) for side, seen in first.items()}
        wanted |= {f"first_top1_{name}_{side}": share for side, share in shares.items()}
        wanted[f"dfirst_top1_{name}"] = shares["b"] - shares["a"]
    mine = moved[(moved["condition"] == "B_late") & (moved["lens"] == lens)]
    for name in ("jaccard", *(f"{way}_{group}" for way in ("entered", "left") for group in GROUPS)):
        wanted[name] = mine[name].mean()
    found = numbers[numbers["layer"].isna()].set_index("measure")["estimate"]
    found = found[found.index.str.endswith(f"_{lens}")]
    assert {name.removesuffix(f"_{lens}") for name in found.index} == wanted.keys()
    for name, value in wanted.items():
        assert found[f"{name}_{lens}"] == pytest.approx(value, abs=1e-5), name
    assert len({*supported}) > 1 and 0 < wanted["changed"] < 1
    assert set(numbers["class"].dropna()) == {*GROUPS}  # no curve of what ends an answer
    curve = numbers[(numbers["measure"] == f"rank_gain_{lens}") & (numbers["class"] == "content")].set_index("layer")
    assert curve.loc[LAYERS - 1, "estimate"] == pytest.approx(wanted["rank_gain_content_late"], abs=1e-5)
    assert (curve.loc[[0, 1], "estimate"] == 0).all()  # below the window nothing has changed


def test_published_figures_are_those_of_measures_of_the_row(numbers: pd.DataFrame) -> None:
    found = published("exp13A")["quantity"].str.removesuffix("_400_prompts").str.removesuffix("_token_weighted")
    assert len(found) == 16 and set(found) <= set(numbers["measure"]) & set(find("exp13A").tokens)


def test_the_row_says_what_came_out(lake: Lake) -> None:
    said = lake.run("exp13A").sentence
    assert "undefined" not in said and "content is s" in said.replace("often as", "") and "Jaccard" in said


# --- what can't be answered ------------------------------------------------------------------------------------------


def refused(layout: Layout, file: Path | None, words: str) -> None:
    with pytest.raises(LakeError, match=words) as caught:
        ensure(layout, [("words", "", scope(layout, "llama"))], catalog=file)
    assert "\n" not in str(caught.value)


def moved(pair: PairSpec, folder: Path, *without: str) -> PairSpec:
    """The pair with a copy of its IT that lacks some files."""
    shutil.copytree(pair.it.path, folder, ignore=shutil.ignore_patterns(*without))
    return replace(pair, it=ModelSpec("llama-it", folder, None, None, None))


def test_a_tokenizer_that_is_missing_or_another_is_named(tmp_path: Path, llama: PairSpec) -> None:
    prompts = tiny.prompt_set(texts(3))
    layout = tiny.capture(tmp_path / "lake", llama, tiny.NATIVE, tiny.TEACHER, prompts=prompts)
    tiny.forget_vocab(layout, "llama-pt", "llama-it")  # as a lake of an older version
    refused(layout, None, "model llama-it: no weights found; looked in")
    lacking = catalog(tmp_path / "a", moved(llama, tmp_path / "lacking", "tokenizer*", "chat_template*", "special*"))
    refused(layout, lacking, "keeps no vocabulary of llama-it .* its tokenizer is not found")
    other = moved(llama, tmp_path / "other", "tokenizer.json")
    file = json.loads((llama.it.path / "tokenizer.json").read_text())
    ids = file["model"]["vocab"]
    ids["a"], ids["b"] = ids["b"], ids["a"]
    (other.it.path / "tokenizer.json").write_text(json.dumps(file))
    refused(layout, catalog(tmp_path / "b", other), "its tokenizer is not the one that the lake's captures were made")
    needs = [("words", "", scope(layout, "llama"))]
    assert len(ensure(layout, needs, catalog=catalog(tmp_path / "c", llama))) == 3  # of vocab and both captures
    assert ensure(layout, needs) == []  # what is there needs no tokenizer any more


def test_an_unknown_condition_is_refused(lake: Lake, pair: PairSpec) -> None:
    with pytest.raises(LakeError, match=r"candidates\(A\): expected B"):
        ensure(lake.layout, [("candidates", "A", scope(lake.layout, pair.name))], catalog=lake._catalog)


def test_a_vocabulary_from_elsewhere_is_told_by_its_pair(tmp_path: Path) -> None:
    layout = Layout.open(tmp_path / "lake", create=True)
    need = ("vocab", "", tiny.scope("theirs", {"pt": "teacher-a", "it": "teacher-b"}, "teacher"))
    with pytest.raises(LakeError, match="`actlake table add vocab FILE --model-pt theirs-pt --model-it theirs-it`"):
        jobs_of(Context(layout), need)
    rows = pd.DataFrame({"token_id": [0, 1], "token_text": ["a", "b"], "word_class": ["FUNCTION", "CONTENT"]})
    rows.to_csv(tmp_path / "vocab.csv", index=False)
    assert add_table(layout, "vocab", tmp_path / "vocab.csv", model_pt="theirs-pt", model_it="theirs-it").rows == 2
    assert jobs_of(Context(layout), need) == []
