"""Streams: templates, BOS, whose continuation, greedy decoding against a naive loop, aliases, and alignment."""

import json
import shutil
from functools import cache

import numpy as np
import pytest
import tiny
import torch
from actlake.capture.checkpoint.configs import load_tokenizer
from actlake.capture.checkpoint.stops import stop_ids
from actlake.capture.checkpoint.tokens import encode, is_special, real_token_mask, tokenizer_hash
from actlake.capture.streams.capture_pair import Options, capture_pair
from actlake.store.artifacts.streams import read_stream, stream_records
from actlake.store.captures.reader import Capture, find_capture
from actlake.store.core.catalog import StreamSpec
from actlake.store.core.errors import LakeError
from actlake.store.format.paths import Layout
from transformers import AutoModelForCausalLM

FAMILIES = tiny.sampled("qwen3", "gemma3_wrapper", "cohere", "starcoder2")
IDS = [row[0] for row in tiny.TEXTS]


def stream_of(layout: Layout, model: str, stream: str):
    return read_stream(layout, Capture(find_capture(layout, model, stream)).manifest["stream"])


@torch.no_grad()
def naive(hf, prompt: list[int], steps: int, stops: tuple[int, ...] = (tiny.EOS,)) -> list[int]:
    """Greedy decoding as in a textbook: the whole sequence again for every token, no cache, no padding."""
    told: list[int] = []
    while len(told) < steps and not (told and told[-1] in stops):
        told.append(int(hf(input_ids=torch.tensor([[*prompt, *told]]), use_cache=False).logits[0, -1].argmax()))
    return told


@pytest.fixture(scope="module")
def taught(tmp_path_factory, pairs):
    """Family -> a lake with both variants on their native streams and the pt on the it's tokens."""
    root = tmp_path_factory.mktemp("taught")
    return cache(lambda family: tiny.capture(root / family, pairs(family), tiny.NATIVE, tiny.TEACHER))


@pytest.mark.parametrize("family", FAMILIES)
def test_continuation_is_the_naive_argmax(taught, pairs, family):
    for variant in ("pt", "it"):
        stream = stream_of(taught(family), f"{family}-{variant}", "native")
        hf = AutoModelForCausalLM.from_pretrained(pairs(family).model(variant).path)
        told = [row[start:].tolist() for row, start in zip(stream.tokens, stream.starts, strict=True)]
        prompts = [row[:start].tolist() for row, start in zip(stream.tokens, stream.starts, strict=True)]
        assert told == [naive(hf, prompt, 6) for prompt in prompts]
        assert len({tuple(row) for row in told}) > 1 and len({token for row in told for token in row}) > 6


def test_native_is_raw_for_pt_and_chat_for_it(captured, llama):
    pt, it = (stream_of(captured, f"llama-{v}", "native") for v in ("pt", "it"))
    tokenizer = load_tokenizer(llama.it)
    for (_, _, text), tokens, start in zip(tiny.TEXTS, pt.tokens, pt.starts, strict=True):
        assert tokenizer.decode(tokens[:start]) == f"<|bos|>{text}"
    for (_, _, text), tokens, start in zip(tiny.TEXTS, it.tokens, it.starts, strict=True):
        assert tokenizer.decode(tokens[:start]) == f"<|bos|><|user|>\n{text}<|eos|>\n<|assistant|>\n"
        assert tokens[:start].tolist() == tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, tokenize=True, return_dict=False
        )
    assert list(pt.prompt_ids) == list(it.prompt_ids) == IDS
    assert pt.recipe["template"] == "raw" and it.recipe["template"] == "chat"


@pytest.mark.parametrize("family", FAMILIES)
def test_teacher_gives_pt_the_words_of_it(taught, family):
    teacher, native_pt, native_it = (
        stream_of(taught(family), f"{family}-{variant}", stream)
        for variant, stream in (("pt", "teacher"), ("pt", "native"), ("it", "native"))
    )
    for p in range(len(IDS)):
        start = teacher.starts[p]
        assert teacher.tokens[p][:start].tolist() == native_pt.tokens[p][:start].tolist()  # its own prompt
        assert teacher.tokens[p][start:].tolist() == native_it.tokens[p][native_it.starts[p] :].tolist()
    # Aligned on (prompt, step) although positions differ.
    steps = [
        {(r, s) for r, s in zip(x.columns["prompt"], x.columns["step"], strict=True) if s >= 0}
        for x in (teacher, native_it)
    ]
    assert steps[0] == steps[1] and len(steps[0]) == sum(
        len(t) - s for t, s in zip(teacher.tokens, teacher.starts, strict=True)
    )


def test_it_teacher_is_its_native_stream_and_is_captured_once(captured):
    assert find_capture(captured, "llama-it", "teacher") == find_capture(captured, "llama-it", "native")
    assert sorted(p.name.split("-")[0] for p in captured.capture("llama-it", "x").parent.iterdir()) == ["native"]
    assert sorted(p.name.split("-")[0] for p in captured.capture("llama-pt", "x").parent.iterdir()) == [
        "native",
        "teacher",
    ]


def test_equal_content_under_three_names_is_one_capture(tmp_path, llama):
    """raw, native and a stream of another recipe kind hold the same tokens for a pt; asking again changes nothing."""
    streams = (tiny.RAW, tiny.NATIVE, StreamSpec("again", "raw", "pt", 6))
    trees = []
    for _ in range(3):
        layout = tiny.capture(tmp_path / "lake", llama, *streams, variants=("pt",))
        trees.append(tiny.tree(layout.root))
        assert trees[-1] == trees[0]
        assert [p.name.split("-")[0] for p in layout.capture("llama-pt", "x").parent.iterdir()] == ["raw"]
        assert {find_capture(layout, "llama-pt", s.name).stem.split("-")[0] for s in streams} == {"raw"}


def test_two_models_that_say_the_same_share_a_stream(tmp_path, llama):
    """Equal tokens from different recipes (here: pt and it are one checkpoint) keep both recipes findable."""
    shutil.copytree(llama.pt.path, tmp_path / "same")
    (tmp_path / "same" / "generation_config.json").unlink()
    config = tmp_path / "same" / "config.json"
    config.write_text(config.read_text() + "\n")  # other bytes, so another checkpoint, with the same weights
    twins = type(llama)("llama", llama.pt, tiny.spec(tmp_path / "same", "llama-it"), {})
    trees = []
    for _ in range(3):
        layout = tiny.capture(tmp_path / "lake", twins, tiny.RAW, tiny.NATIVE, tiny.TEACHER)
        trees.append(tiny.tree(layout.root))
        assert trees[-1] == trees[0]
        for record in stream_records(layout):
            assert read_stream(layout, record["name"]).content_sha256 == record["content_sha256"]
        assert find_capture(layout, "llama-pt", "raw").stem == find_capture(layout, "llama-it", "raw").stem


def test_nothing_is_loaded_when_everything_is_there(captured, llama, monkeypatch):
    def never(*_):
        pytest.fail("a model was loaded")

    monkeypatch.setattr("actlake.capture.streams.capture_pair.load_model", never)
    before = tiny.tree(captured.root)
    results = capture_pair(
        captured, llama, (tiny.NATIVE, tiny.TEACHER), tiny.prompt_set(), tiny.FULL, options=Options(batch=4)
    )
    assert [r.reused for r in results] == [True] * 3 and all(r.seconds == 0 for r in results)
    manifests = [json.loads((r.path / "manifest.json").read_text()) for r in results]
    assert [(r.tokens, r.bytes) for r in results] == [(m["n_tokens"], m["bytes"]) for m in manifests]
    assert tiny.tree(captured.root) == before


@pytest.mark.parametrize("family", FAMILIES)
def test_bos_exactly_once(taught, family):
    for model, name in ((f"{family}-pt", "native"), (f"{family}-it", "native"), (f"{family}-pt", "teacher")):
        stream = stream_of(taught(family), model, name)
        for tokens, start in zip(stream.tokens, stream.starts, strict=True):
            assert tokens[0] == tiny.BOS and tokens[:start].tolist().count(tiny.BOS) == 1


def test_the_seeds_double_bos(tmp_path, captured, llama):
    layout = tiny.capture(tmp_path / "lake", llama, tiny.NATIVE, double_bos=True)
    pt, it = (stream_of(layout, f"llama-{v}", "native") for v in ("pt", "it"))
    assert all(row[:2].tolist() == [tiny.BOS] * 2 and row[2] != tiny.BOS for row in it.tokens)
    assert it.recipe["double_bos"] and not pt.recipe["double_bos"]
    assert pt.content_sha256 == stream_of(captured, "llama-pt", "native").content_sha256


def test_bos_is_added_where_the_chat_template_forgets_it():
    tokenizer = tiny.tokenizer()
    with_bos = encode(tokenizer, "the cat", "chat")
    tokenizer.chat_template = tiny.CHAT.replace("{{ bos_token }}", "")
    assert encode(tokenizer, "the cat", "chat") == with_bos
    assert encode(tokenizer, "the cat", "raw")[0] == tiny.BOS
    tokenizer.chat_template = None
    with pytest.raises(LakeError, match="no chat template"):
        encode(tokenizer, "the cat", "chat")


def test_stop_token_ends_the_continuation_and_is_kept(tmp_path, llama):
    shutil.copytree(llama.pt.path, tmp_path / "pt")
    hf = AutoModelForCausalLM.from_pretrained(llama.pt.path)
    prompt = encode(tiny.tokenizer(), tiny.TEXTS[0][2], "raw")
    free = naive(hf, prompt, 6)
    stop = free[3]
    assert stop not in free[:3] and len(free) == 6
    (tmp_path / "pt" / "generation_config.json").write_text(json.dumps({"eos_token_id": [tiny.EOS, stop]}))
    pair = type(llama)("llama", tiny.spec(tmp_path / "pt", "llama-pt"), None, {})
    stream = stream_of(tiny.capture(tmp_path / "lake", pair, tiny.RAW, variants=("pt",)), "llama-pt", "raw")
    told = [row[start:].tolist() for row, start in zip(stream.tokens, stream.starts, strict=True)]
    assert told[0] == free[:4]
    stops = (tiny.EOS, stop)
    assert told == [naive(hf, t[:s].tolist(), 6, stops) for t, s in zip(stream.tokens, stream.starts, strict=True)]
    assert len({len(row) for row in told}) > 1  # shorter and longer ones in one batch
    assert stop_ids(tiny.tokenizer(), None, chat=False) == [tiny.EOS]


def test_end_of_turn_of_the_chat_template_stops():
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = tiny.CHAT.replace("{{ eos_token }}", "<|user|>")
    assert stop_ids(tokenizer, None, chat=True) == [tiny.EOS, tiny.USER]
    assert stop_ids(tokenizer, None, chat=False) == [tiny.EOS]


def test_coordinates_on_a_hand_made_example(tmp_path, llama):
    """Three prompts of 3, 2 and 4 tokens, continued by up to 2: every coordinate written out by hand."""
    texts = (("a", "X", "xy"), ("b", "", "z"), ("c", "X", "xyz"))
    two = StreamSpec("raw", "raw", "own", 2)
    layout = tiny.capture(tmp_path / "lake", llama, two, variants=("pt",), prompts=tiny.prompt_set(texts))
    capture = Capture(find_capture(layout, "llama-pt", "raw"))
    found = {
        name: capture.array(name)[:].tolist() for name in ("prompt", "position", "step", "offset", "boundary", "layer")
    }
    assert found["offset"] == [0, 5, 9, 15]
    assert found["prompt"] == [0] * 5 + [1] * 4 + [2] * 6
    assert found["position"] == [0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 1, 2, 3, 4, 5]
    assert found["step"] == [-1, -1, 0, 1, -1, -1, 0, 1, -1, -1, -1, -1, 0, 1, -1]
    assert found["boundary"] == [0, 1, 2, 3] and found["layer"] == [0, 1, 2]
    columns = capture.columns()
    assert columns["prompt_id"].tolist() == ["a"] * 5 + ["b"] * 4 + ["c"] * 6
    assert columns["category"].tolist() == ["X"] * 5 + [""] * 4 + ["X"] * 6
    stream = read_stream(layout, capture.manifest["stream"])
    assert (
        stream.columns["is_continuation"].tolist()
        == [False] * 3 + [True] * 2 + [False] * 2 + [True] * 2 + [False] * 4 + [True] * 2
    )
    special = np.isin(columns["token_id"], range(5))
    assert columns["is_special"].tolist() == special.tolist() and special[[0, 5, 9]].all()
    # What step s says is predicted there is the token that comes next.
    for token in np.flatnonzero(columns["step"] >= 0):
        prompt, step = columns["prompt"][token], columns["step"][token]
        assert columns["token_id"][token + 1] == stream.tokens[prompt][stream.starts[prompt] + step]


def test_stream_without_continuation(tmp_path, llama):
    layout = tiny.capture(tmp_path / "lake", llama, tiny.BARE)
    stream = stream_of(layout, "llama-pt", "bare")
    assert set(stream.columns["step"].tolist()) == {-1} and not stream.columns["is_continuation"].any()
    # Same text, same tokenizer, nobody's continuation: one stream for both.
    assert find_capture(layout, "llama-pt", "bare").name == find_capture(layout, "llama-it", "bare").name


def test_real_tokens_leave_out_placeholders_and_the_tail():
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(["<unused7>", "<|reserved_special_token_3|>"])
    mask = real_token_mask(tokenizer, len(tokenizer) + 4)
    assert np.flatnonzero(~mask).tolist() == list(range(len(tokenizer) - 2, len(tokenizer) + 4))
    assert is_special(tokenizer, np.asarray([tiny.BOS, 40])).tolist() == [True, False]


def test_tokenizer_hash_sees_vocabulary_and_cutting_but_not_the_template():
    one, two = tiny.tokenizer(), tiny.tokenizer()
    two.chat_template = "{{ messages }}"
    assert tokenizer_hash(one) == tokenizer_hash(two)
    two.add_tokens(["new"])
    assert tokenizer_hash(one) != tokenizer_hash(two)
