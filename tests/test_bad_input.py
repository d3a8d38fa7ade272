"""Mistakes of a user, from Python and from the command line: one clear line, nothing written, nothing lost."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import transformers
from actlake.capture.model.load import load_model
from actlake.capture.model.structure import discover
from actlake.capture.run.capture import capture
from actlake.capture.streams.capture_pair import find_prompts
from actlake.store.artifacts.models import read_head
from actlake.store.artifacts.streams import stream_records
from actlake.store.captures.manifest import read_manifest
from actlake.store.captures.reader import Capture, find_capture, list_captures, open_capture
from actlake.store.captures.verify import verify
from actlake.store.core.catalog import PairSpec, load_catalog
from actlake.store.core.errors import LakeError
from actlake.store.format.paths import Layout
from safetensors.torch import load_file, save_file


def refused(lake: Path, action: Callable[[], object]) -> str:
    """The message of the LakeError that `action` must raise, in one line, with the lake as it was."""
    before = tiny.tree(lake)
    with pytest.raises(LakeError) as caught:
        action()
    assert tiny.tree(lake) == before
    message = str(caught.value)
    assert "\n" not in message and 20 < len(message) < 500
    return message


@pytest.fixture
def copy(llama, tmp_path) -> PairSpec:
    """A copy of the llama pair that a test may spoil."""
    shutil.copytree(llama.pt.path.parent, tmp_path / "llama")
    return PairSpec("llama", *(tiny.spec(tmp_path / "llama" / v, f"llama-{v}") for v in ("pt", "it")), {})


def change_weight(folder: Path, name: str, change: Callable[[torch.Tensor], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights[name])
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


# --- what to do --------------------------------------------------------------------------------------------------------


def test_what_to_do_is_apart_from_what_is_wrong(lake_copy: Layout, tmp_path: Path) -> None:
    """A program shows the problem, and a person the command: both are there, and in the line as before."""
    stream = lake_copy.streams / f"{find_capture(lake_copy, 'llama-it', 'native').stem}.json"
    stream.write_text("{}")
    for action, command in (
        (lambda: Layout.open(tmp_path / "none"), "`actlake demo`"),
        (lambda: open_capture(lake_copy.capture("llama-it", "none")), "`actlake ls`"),
        (lambda: find_capture(lake_copy, "llama-pt", "none"), "`actlake capture llama-pt --stream none`"),
        (lambda: stream_records(lake_copy), "`actlake capture`"),
    ):
        with pytest.raises(LakeError) as caught:
            action()
        assert command in caught.value.repair and "`" not in caught.value.problem
        assert str(caught.value) == f"{caught.value.problem}; {caught.value.repair}"


# --- names -------------------------------------------------------------------------------------------------------------


def test_unknown_names_list_what_is_known():
    catalog = load_catalog()
    for look_up, name, known in (
        (catalog.pair, "pockte", "pocket"),
        (catalog.stream, "natve", "native"),
        (catalog.profile, "ful", "full"),
        (catalog.prompt_path, "cor", "core"),
        (lambda name: find_prompts(catalog, None, name), "pokcet", "pocket"),
    ):
        message = str(pytest.raises(LakeError, look_up, name).value)
        assert message.startswith("unknown ") and repr(name) in message and known in message and "\n" not in message


def test_pair_without_the_asked_variant(lake, llama):
    only_pt = PairSpec("llama", llama.pt, None, {})
    assert "has no variant 'it'" in refused(lake.root, lambda: tiny.capture(lake.root, only_pt, tiny.RAW))
    message = refused(lake.root, lambda: tiny.capture(lake.root, only_pt, tiny.TEACHER, variants=("pt",)))
    assert message == "stream teacher: needs the it model of pair llama, which the catalog lacks"


def test_names_that_would_leave_the_lake(lake):
    for name in ("../x", "a/b", "", ".hidden", "a b", "x..y"):
        with pytest.raises(LakeError, match="is not a valid name"):
            lake.capture(name, "raw")
        with pytest.raises(LakeError, match="is not a valid name"):
            lake.table(name)


def test_prompt_set_whose_name_can_not_be_a_file(lake, llama, tmp_path):
    (tmp_path / "my set.jsonl").write_text('{"id": "a", "text": "hello"}\n')
    prompts = find_prompts(load_catalog(), lake, str(tmp_path / "my set.jsonl"))
    assert "'my set'" in refused(lake.root, lambda: tiny.capture(lake.root, llama, tiny.RAW, prompts=prompts))


# --- prompts and models ------------------------------------------------------------------------------------------------


def test_prompt_longer_than_the_context(lake, llama):
    prompts = tiny.prompt_set([("short", "", "x"), ("long", "", "x" * 125)])
    message = refused(lake.root, lambda: tiny.capture(lake.root, llama, tiny.RAW, variants=("pt",), prompts=prompts))
    assert message.startswith("prompt 'long' of set tiny: 126 tokens + 6 new ones, the model's context holds 128")
    fits = tiny.prompt_set([("short", "", "x"), ("long", "", "x" * 121)])  # BOS + 121 + 6 = 128
    tiny.capture(lake.root, llama, tiny.RAW, variants=("pt",), prompts=fits)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "has no .safetensors file"),
        (lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"), "has no .safetensors file"),
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "llama-pt: can't "),
        (lambda folder: tiny.edit_json(folder / "config.json", model_type="nonsense"), "llama-pt: can't "),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"12345678rubbish"), "llama-pt: can't load"),
        (lambda folder: os.truncate(folder / "model.safetensors", 40_000), "llama-pt: can't load"),
        (lambda folder: [(folder / name).unlink() for name in ("tokenizer.json", "tokenizer_config.json")], "llama-pt: can't load its tokenizer"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "llama-pt: can't load its tokenizer"),
        (lambda folder: tiny.edit_json(folder / "config.json", hidden_size=48), "or has them in another shape (first: lm_head.weight)"),
        (lambda folder: shutil.rmtree(folder), "has no config.json"),
    ],
    ids=["no-safetensors", "only-bin", "no-config", "torn-config", "unknown-type", "rubbish", "truncated", "no-tokenizer", "torn-tokenizer", "wrong-shape", "no-folder"],
)  # fmt: skip
def test_model_folder_that_can_not_be_loaded(lake, copy, spoil, says):
    spoil(copy.pt.path)
    message = refused(lake.root, lambda: tiny.capture(lake.root, copy, tiny.RAW, variants=("pt",)))
    assert says in message


def test_weights_that_a_config_promises_and_the_file_lacks(lake, copy):
    weights = load_file(copy.pt.path / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, copy.pt.path / "model.safetensors", metadata={"format": "pt"})
    message = refused(lake.root, lambda: tiny.capture(lake.root, copy, tiny.RAW, variants=("pt",)))
    assert "model.layers.1.mlp.up_proj.weight" in message


def test_decoder_whose_parts_can_not_be_found(pairs):
    with torch.device("cpu"):
        mamba = transformers.AutoModelForCausalLM.from_config(
            transformers.MambaConfig(hidden_size=16, num_hidden_layers=2, vocab_size=50, state_size=4)
        )
    says = "MambaForCausalLM: block 0 has no MLP (its modules with weight matrices: mixer: MambaMixer)"
    assert says in str(pytest.raises(LakeError, discover, mamba).value)
    llama = transformers.AutoModelForCausalLM.from_pretrained(pairs("llama").pt.path)
    llama.config.num_hidden_layers = 4
    says = "LlamaForCausalLM: no stack of blocks found: looked for a ModuleList of 4 modules (num_hidden_layers of its config)"
    message = str(pytest.raises(LakeError, discover, llama).value)
    assert says in message and "its ModuleLists have 3 modules" in message
    llama = transformers.AutoModelForCausalLM.from_pretrained(pairs("llama").pt.path)
    llama.model.layers[1].mlp = torch.nn.Identity()
    message = str(pytest.raises(LakeError, discover, llama).value)
    assert "block 1 has no MLP (its modules with weight matrices: self_attn: LlamaAttention)" in message


def test_tokenizer_with_more_tokens_than_the_model_has_embeddings(lake, copy):
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(["cat sat"])
    tokenizer.save_pretrained(copy.pt.path)
    message = refused(lake.root, lambda: tiny.capture(lake.root, copy, tiny.RAW, variants=("pt",)))
    assert message.startswith("prompt 'p1' of set tiny: token id 300 ('cat sat'), llama-pt has 300 embeddings")


def test_stream_of_another_tokenizer(captured, lake, copy):
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(["<unused0>"])
    tokenizer.save_pretrained(copy.it.path)
    name = find_capture(captured, "llama-it", "native").stem
    shutil.copytree(captured.streams, lake.streams)
    model = load_model(copy.it)
    message = refused(lake.root, lambda: capture(lake, model, name, tiny.FULL))
    assert message.startswith(f"stream {name}: was made with another tokenizer than that of llama-it")


def test_memory_that_runs_out_while_generating(lake, llama, monkeypatch):
    from actlake.capture.streams import greedy

    batch, calls = greedy.decode, []

    def full(*args):
        calls.append(args)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2.00 GiB")
        return batch(*args)

    with monkeypatch.context() as patch:
        patch.setattr(greedy, "decode", full)
        with pytest.raises(
            LakeError, match="out of memory while llama-pt writes in batches of 2 prompts; .*--batch 1 needs less"
        ):
            tiny.capture(lake.root, llama, tiny.RAW, variants=("pt",), batch=2)
    calls.clear()
    monkeypatch.setattr(greedy, "decode", lambda *args: (calls.append(args), batch(*args))[1])
    tiny.capture(lake.root, llama, tiny.RAW, variants=("pt",), batch=2)
    assert len(calls) == 2 and list_captures(lake).sealed.all()  # of three batches one was there


def test_tokenizers_that_differ(lake, copy):
    tokenizer = tiny.tokenizer()
    record = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = record["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (copy.it.path / "tokenizer.json").write_text(json.dumps(record))
    message = refused(lake.root, lambda: tiny.capture(lake.root, copy, tiny.NATIVE))
    assert message.startswith("pair llama: the tokenizers differ: 'a' is ") or message.startswith(
        "pair llama: the tokenizers differ: 'b' is "
    )


def test_tokenizers_that_cut_differently(lake, copy):
    record = json.loads((copy.it.path / "tokenizer.json").read_text())
    record["pre_tokenizer"]["add_prefix_space"] = True
    (copy.it.path / "tokenizer.json").write_text(json.dumps(record))
    assert "cut the same text differently" in refused(lake.root, lambda: tiny.capture(lake.root, copy, tiny.NATIVE))


def test_chat_without_a_template(lake, copy):
    (copy.it.path / "chat_template.jinja").unlink()
    assert "has no chat template" in refused(
        lake.root, lambda: tiny.capture(lake.root, copy, tiny.NATIVE, variants=("it",))
    )


def test_unknown_dtype_and_site(lake, llama):
    assert "dtype 'float8': expected auto, float32" in refused(
        lake.root, lambda: tiny.capture(lake.root, llama, tiny.BARE, dtype="float8")
    )
    profile = replace(tiny.FULL, sites=("resid", "attn_in"))
    with pytest.raises(
        LakeError,
        match="site .attn_in. can.t be captured by this version; it knows resid, mlp_out, attn_out, z, router, attn_entropy",
    ):
        tiny.capture(lake.root, llama, tiny.BARE, profile=profile)
    assert list_captures(lake).empty


# --- lakes -------------------------------------------------------------------------------------------------------------


def test_lake_in_a_wrong_place(tmp_path):
    file = tmp_path / "file"
    file.write_text("x")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("x")
    for path, says in (
        (file, "this is a file, not a folder"),
        (file / "lake", "can't be made there"),
        (tmp_path / "photos", "the folder is not empty and not a lake"),
        ("nosuch://bucket/lake", "lake nosuch://bucket/lake: can't be opened (Protocol not known: nosuch)"),
    ):
        assert says in refused(tmp_path, partial(Layout.open, path, create=True))
    assert "no lake at" in refused(tmp_path, lambda: Layout.open(tmp_path / "nowhere"))
    assert "no lake at" in refused(tmp_path, lambda: Layout.open(tmp_path / "photos"))
    assert Layout.open(f"file://{tmp_path}/new", create=True).root == tmp_path / "new"


def test_lake_that_a_kill_left_before_its_marker(tmp_path):
    (tmp_path / "lake").mkdir()
    (tmp_path / "lake" / ".lake.json.123.tmp").write_text('{"for')
    assert Layout.open(tmp_path / "lake", create=True).root.is_dir()


def test_lake_of_a_newer_format(lake_copy, llama):
    newer = "format version 3, this actlake reads 2: upgrade"
    path = find_capture(lake_copy, "llama-it", "native")
    marks = {
        lake_copy.root / "lake.json": lambda: Layout.open(lake_copy.root),
        lake_copy.streams / f"{path.stem}.json": lambda: tiny.capture(lake_copy.root, llama, tiny.NATIVE),
        path / "manifest.json": lambda: open_capture(path),
        lake_copy.model("llama-it") / "model.json": lambda: tiny.capture(
            lake_copy.root, llama, tiny.BARE, variants=("it",)
        ),
    }
    for file, action in marks.items():
        good = file.read_text()
        tiny.edit_json(file, format_version=3)
        assert refused(lake_copy.root, action) == f"{file}: {newer} with `pip install -U actlake`"
        tiny.edit_json(file, format_version=1)
        assert "format version 1, this actlake reads 2 and converts no older lake" in refused(lake_copy.root, action)
        tiny.edit_json(file, format_version="new")
        assert "no format_version" in refused(lake_copy.root, action)
        file.write_text("[")
        assert f"{file}: not valid JSON" in refused(lake_copy.root, action)
        file.write_text(good)
    assert verify(lake_copy, path).ok


def test_another_checkpoint_under_the_same_name(lake_copy, copy):
    tiny.capture(lake_copy.root, copy, tiny.NATIVE)  # the same files at another place: the same model
    change_weight(copy.it.path, "lm_head.weight", lambda weight: weight[0, 0].add_(1))
    for stream in (tiny.NATIVE, tiny.RAW):
        message = refused(lake_copy.root, partial(tiny.capture, lake_copy.root, copy, stream))
        assert "holds llama-it from other files or in another dtype (it, float32, " in message
    assert "bfloat16" in refused(
        lake_copy.root, lambda: tiny.capture(lake_copy.root, copy, tiny.NATIVE, variants=("pt",), dtype="bfloat16")
    )


def test_sealed_capture_with_fewer_sites_than_asked(tmp_path, llama):
    lean = replace(tiny.FULL, sites=("resid",), logits="none")
    layout = tiny.capture(tmp_path / "lake", llama, tiny.BARE, profile=lean, variants=("pt",))
    assert set(open_capture(find_capture(layout, "llama-pt", "bare")).data_vars) == {"resid"}
    for profile, lacking in (
        (tiny.FULL, "mlp_out"),
        (replace(tiny.FULL, logits="full"), "mlp_out, logits"),
        (replace(lean, logits="topk"), "topk_id"),
    ):
        message = refused(
            layout.root, partial(tiny.capture, layout.root, llama, tiny.BARE, profile=profile, variants=("pt",))
        )
        assert lacking in message and "a sealed capture never changes" in message


def test_full_and_no_logits(tmp_path, llama):
    full = tiny.capture(
        tmp_path / "full", llama, tiny.BARE, profile=replace(tiny.FULL, logits="full"), variants=("pt",)
    )
    stored = Capture(find_capture(full, "llama-pt", "bare"))
    assert stored.array("logits").shape[1] == len(tiny.tokenizer()) and "topk_id" not in stored.group
    topk = tiny.capture(tmp_path / "topk", llama, tiny.BARE, variants=("pt",))
    other = Capture(find_capture(topk, "llama-pt", "bare"))
    logits, ids = stored.array("logits")[:], other.array("topk_id")[:].astype(np.int64)
    assert np.array_equal(np.take_along_axis(logits, ids, -1), other.array("topk_logit")[:])
    total = np.log(np.exp(logits.astype(np.float64)).sum(-1))
    assert np.abs(total - other.array("logsumexp")[:]).max() < 1e-5
    # What full logits hold answers a question for top-k as well, but not the other way round.
    tiny.capture(full.root, llama, tiny.BARE, variants=("pt",), profile=replace(tiny.FULL, logits="full"))


# --- interrupted and unsealed ------------------------------------------------------------------------------------------


class Stop(Exception):
    pass


@pytest.fixture
def interrupted(tmp_path, llama, monkeypatch) -> Layout:
    """A lake whose only capture was stopped after three shard rows."""
    from actlake.store.captures import writer

    written: list[tuple] = []

    def write(*args):
        if len(written) == 3:
            raise Stop
        written.append(args)
        return original(*args)

    original = writer.write_row
    with monkeypatch.context() as patch:
        patch.setattr(writer, "write_row", write)
        with pytest.raises(Stop):
            tiny.capture(tmp_path / "lake", llama, tiny.BARE, variants=("pt",))
    return Layout.open(tmp_path / "lake")


def test_unsealed_capture_is_refused_until_it_is_finished(interrupted, llama, tmp_path):
    path = find_capture(interrupted, "llama-pt", "bare")
    for action in (lambda: open_capture(path), lambda: Capture(path), lambda: verify(interrupted, path)):
        assert "this capture is not sealed" in refused(interrupted.root, action)
    row = list_captures(interrupted).iloc[0]
    assert (row.sealed, row.tokens) == (False, 0) and row.bytes > 0
    partial = open_capture(path, allow_unsealed=True)
    assert np.isnan(partial.resid.values).any() and np.isfinite(partial.resid.values).any()
    tiny.capture(interrupted.root, llama, tiny.BARE, variants=("pt",))
    undisturbed = tiny.capture(tmp_path / "undisturbed", llama, tiny.BARE, variants=("pt",))
    assert tiny.tree(interrupted.root) == tiny.tree(undisturbed.root)


def test_unfinished_capture_with_another_configuration(interrupted, llama):
    for options, key in (
        ({"batch": 2}, "provenance"),
        ({"profile": replace(tiny.FULL, shard_tokens=32)}, "shard_tokens"),
        ({"profile": replace(tiny.FULL, logits="none")}, "sizes"),
    ):
        message = refused(
            interrupted.root, partial(tiny.capture, interrupted.root, llama, tiny.BARE, variants=("pt",), **options)
        )
        assert f"an unfinished capture with another configuration is there ({key} differ)" in message


@pytest.mark.parametrize("change", ["text", "limit", "order"])
def test_prompts_that_changed_under_an_unfinished_capture(interrupted, llama, tmp_path, change):
    texts = {
        "text": (("p0", "FACT", "the dog"), *tiny.TEXTS[1:]),
        "limit": tiny.TEXTS[:3],
        "order": tiny.TEXTS[::-1],
    }[change]
    path, changed = find_capture(interrupted, "llama-pt", "bare"), tiny.prompt_set(texts)
    again = partial(tiny.capture, interrupted.root, llama, tiny.BARE, variants=("pt",))
    message = refused(interrupted.root, partial(again, prompts=changed))
    assert message.startswith(f"{path}: an unfinished capture of prompt set tiny as it was before")
    again(prompts=tiny.prompt_set(texts, "other"))  # another set has nothing to do with it
    again()  # finished with the prompts as they were: the changed ones are a capture of their own
    again(prompts=changed)  # the tokens of `other`, so the same capture
    assert list_captures(interrupted).sealed.tolist() == [True] * 2
    undisturbed = tiny.capture(tmp_path / "undisturbed", llama, tiny.BARE, variants=("pt",))
    assert tiny.tree(path) == tiny.tree(find_capture(undisturbed, "llama-pt", "bare"))


def test_changed_categories_are_no_other_tokens(interrupted, llama):
    """Nothing that a model reads has changed: of two recipes of one stream, each finishes what it began."""
    renamed = tiny.prompt_set([(name, "OTHER", text) for name, _, text in tiny.TEXTS])
    tiny.capture(interrupted.root, llama, tiny.BARE, variants=("it",), prompts=renamed)
    tiny.capture(interrupted.root, llama, tiny.BARE, variants=("pt",), prompts=renamed)
    assert list_captures(interrupted).sealed.tolist() == [True] * 2


def test_deleting_the_unfinished_capture_is_enough(interrupted, llama):
    shutil.rmtree(find_capture(interrupted, "llama-pt", "bare"))
    few = tiny.prompt_set(tiny.TEXTS[:2])
    tiny.capture(interrupted.root, llama, tiny.BARE, variants=("pt",), prompts=few)
    assert list_captures(interrupted).sealed.tolist() == [True]


# --- full disk ---------------------------------------------------------------------------------------------------------


def test_full_disk_at_any_moment(tmp_path, llama, monkeypatch):
    """The n-th flush to disk fails, for n all over the run: the message says what is safe, and running again finishes."""
    flush, calls = os.fsync, [0, 0]

    def full(fd):
        calls[0] += 1
        if calls[0] == calls[1]:
            raise OSError(28, "No space left on device")
        flush(fd)

    undisturbed = tiny.capture(tmp_path / "undisturbed", llama, tiny.RAW, variants=("pt",))
    monkeypatch.setattr(os, "fsync", full)
    lake = Layout.open(tmp_path / "counted", create=True).root
    calls[:] = [0, 0]
    tiny.capture(lake, llama, tiny.RAW, variants=("pt",))
    last = calls[0]
    assert last > 40
    for number in (1, 3, 5, 6, 7, 12, last // 2, last - 1, last):
        lake = Layout.open(tmp_path / f"lake{number}", create=True).root
        calls[:] = [0, number]
        with pytest.raises(LakeError, match=r"disk full while .*(safe).*run the same command again") as caught:
            tiny.capture(lake, llama, tiny.RAW, variants=("pt",))
        assert "\n" not in str(caught.value)
        calls[:] = [0, 0]
        tiny.capture(lake, llama, tiny.RAW, variants=("pt",))
        assert tiny.tree(lake) == tiny.tree(undisturbed.root)


def test_full_disk_counts_the_safe_shards(tmp_path, llama, monkeypatch):
    from actlake.store.captures import writer

    write = writer.write_row

    def full(path, shard, row, *lake):
        if shard >= 2:
            raise OSError(28, "No space left on device")
        return write(path, shard, row, *lake)

    monkeypatch.setattr(writer, "write_row", full)
    with pytest.raises(LakeError, match=r"disk full while writing .*: \d of 5 shards are safe") as caught:
        tiny.capture(tmp_path / "lake", llama, tiny.BARE, variants=("pt",))
    safe = list((tmp_path / "lake").glob("captures/*/*/.progress/shard-*.json"))
    assert f": {len(safe)} of 5 shards are safe" in str(caught.value) and len(safe) < 5


def test_disk_that_can_not_hold_the_capture_is_refused_before(lake, llama, monkeypatch):
    tiny.capture(lake.root, llama, tiny.BARE, variants=("pt",))
    monkeypatch.setattr("actlake.capture.run.batching.free_bytes", lambda _: 10_000)
    message = refused(lake.root, lambda: tiny.capture(lake.root, llama, tiny.BARE, variants=("it",)))
    assert "the capture needs about" in message and "10.0 KB are free" in message
    # The head of a model goes into the lake with its first capture and is counted once.
    monkeypatch.setattr("actlake.capture.run.batching.free_bytes", lambda _: 10**9)
    tiny.capture(lake.root, llama, tiny.BARE, variants=("it",))
    head = read_head(lake, "llama-it")[0]["unembed"].nbytes
    pt, it = (find_capture(lake, f"llama-{variant}", "bare") for variant in ("pt", "it"))
    asked: list[int] = []
    monkeypatch.setattr(
        "actlake.capture.run.capture.check_disk", lambda size, missing, path, more, weights: asked.append(more)
    )
    for path, model, more in ((it, "it", 0), (pt, "pt", int(head / 1.1))):
        shutil.rmtree(path)
        shutil.rmtree(lake.model("llama-pt"), ignore_errors=True)
        tiny.capture(lake.root, llama, tiny.BARE, variants=(model,))
        assert asked.pop() == more


def test_an_interrupted_capture_needs_room_for_what_is_missing_only(lake, llama, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("actlake.capture.run.capture.seal_with_noise", interrupt)  # every shard row is on disk by then
        with pytest.raises(KeyboardInterrupt):
            tiny.capture(lake.root, llama, tiny.BARE, variants=("pt",))
    monkeypatch.setattr("actlake.capture.run.batching.free_bytes", lambda _: 10)
    tiny.capture(lake.root, llama, tiny.BARE, variants=("pt",))
    assert list_captures(lake)["sealed"].tolist() == [True]


def small_disk(folder: Path, size: str) -> bool:
    """Mount a file system of this size; False where that is not allowed."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    return (
        shutil.which("mount") is not None and subprocess.run(command, capture_output=True, check=False).returncode == 0
    )


def test_a_disk_that_really_is_full(tmp_path, llama):
    """On a small file system, where one can be mounted; elsewhere a file of the size limit stands in for it."""
    disk = tmp_path / "disk"
    mounted = small_disk(disk, "2m")
    try:
        lake, ballast = disk / "lake", disk / "ballast"
        tiny.capture(lake, llama, tiny.BARE, variants=("it",))
        undisturbed = tiny.tree(lake)
        shutil.rmtree(lake)
        if not mounted:
            return
        for kilobytes in (40, 120, 200):
            Layout.open(lake, create=True)
            ballast.write_bytes(b"")
            with ballast.open("wb") as file:
                free = shutil.disk_usage(disk).free
                file.write(b"\0" * max(0, free - kilobytes * 1000))
            with pytest.raises(LakeError, match="disk full|are free"):
                tiny.capture(lake, llama, tiny.BARE, variants=("it",))
            ballast.unlink()
            tiny.capture(lake, llama, tiny.BARE, variants=("it",))
            assert tiny.tree(lake) == undisturbed
            shutil.rmtree(lake)
    finally:
        if mounted:
            subprocess.run(["umount", str(disk)], check=True)


# --- NaN ---------------------------------------------------------------------------------------------------------------


def test_nan_in_an_activation_is_placed_and_stops(tmp_path, copy):
    token = tiny.tokenizer()("é", add_special_tokens=False)["input_ids"][0]
    prompts, profile = tiny.prompt_set(), replace(tiny.FULL, shard_tokens=256)
    change_weight(copy.pt.path, "model.embed_tokens.weight", lambda weight: weight[token, 3].fill_(float("nan")))
    with pytest.raises(LakeError) as caught:
        tiny.capture(tmp_path / "lake", copy, tiny.BARE, variants=("pt",), prompts=prompts, profile=profile)
    message = str(caught.value)
    layout = Layout.open(tmp_path / "lake")
    (record,) = stream_records(layout)
    position = tiny.tokenizer()(prompts.prompts[3].text)["input_ids"].index(token)
    assert message.startswith(f"llama-pt: resid is nan, boundary 0, prompt 'p3', position {position} (token ")
    assert "--allow-nonfinite" in message and "\n" not in message
    path = layout.capture("llama-pt", record["name"])
    assert read_manifest(path) is None
    tiny.capture(tmp_path / "lake", copy, tiny.BARE, variants=("pt",), profile=profile, allow_nonfinite=True)
    manifest = read_manifest(path)
    assert manifest["variables"]["resid"]["nonfinite"] > 0 and np.isfinite(manifest["variables"]["resid"]["max"])
    assert verify(layout, path).ok
    resid = Capture(path).array("resid")[:]
    offset = Capture(path).array("offset")[:]
    assert np.argwhere(np.isnan(resid[:, 0])).tolist()[0] == [offset[3] + position, 3]
    bad = np.flatnonzero(np.isnan(resid).any((1, 2)))
    assert set(bad.tolist()) <= set(range(offset[3], offset[4])) and np.isnan(resid[offset[3] + position :, -1]).any()


def test_nan_everywhere_is_found_at_loading(tmp_path, copy):
    change_weight(copy.pt.path, "model.layers.1.mlp.down_proj.weight", lambda weight: weight.fill_(float("nan")))
    with pytest.raises(LakeError, match="LlamaForCausalLM: NaN or infinity around block 1 in a short forward"):
        tiny.capture(tmp_path / "lake", copy, tiny.BARE, variants=("pt",))


def test_infinity_in_a_narrow_dtype_names_the_layer(tmp_path, copy):
    (token,) = tiny.tokenizer()("z", add_special_tokens=False)["input_ids"]
    change_weight(copy.pt.path, "model.embed_tokens.weight", lambda weight: weight[token].fill_(1e6))
    prompts = tiny.prompt_set([("fine", "", "the cat"), ("hot", "", "z")])
    with pytest.raises(LakeError, match=r"llama-pt: (resid|mlp_out) is -?(inf|nan), (boundary|layer) \d, prompt 'hot'"):
        tiny.capture(tmp_path / "lake", copy, tiny.BARE, variants=("pt",), prompts=prompts, dtype="float16")


# --- the command line --------------------------------------------------------------------------------------------------


@pytest.fixture
def catalog(tmp_path, llama) -> Path:
    rows = "".join(json.dumps({"id": row[0], "category": row[1], "text": row[2]}) + "\n" for row in tiny.TEXTS)
    (tmp_path / "set.jsonl").write_text(rows)
    (tmp_path / "catalog.yaml").write_text(
        f"pairs:\n  llama:\n    pt: {{path: {llama.pt.path}}}\n    it: {{path: {llama.it.path}}}\n"
        f"  broken:\n    pt: {{path: {tmp_path}}}\n"
        "prompts:\n  tiny: {path: set.jsonl}\n"
        "streams:\n  native: {template: native, continuation: own, max_new_tokens: 6}\n"
        "profiles:\n  full: {sites: [resid, mlp_out], logits: auto, dtype: auto, shard_tokens: 16}\n"
        "lakes:\n  default: lake\n"
    )
    return tmp_path / "catalog.yaml"


@pytest.fixture
def command(catalog, command_line) -> Callable[..., tuple[int, str, str]]:
    """Run `actlake ...` with the catalog; returns exit code, standard output, standard error."""

    def run(*words: str) -> tuple[int, str, str]:
        return command_line(*words, *([] if words[0] == "--version" else ["--catalog", str(catalog)]))

    return run


COMMANDS = [
    (["capture", "lama", "--prompts", "tiny"], "unknown pair, model or chain 'lama'"),
    (["capture", "llama", "--prompts", "tyni"], "unknown prompt set 'tyni'"),
    (["capture", "llama", "--prompts", "tiny", "--stream", "nativ"], "unknown stream 'nativ'"),
    (["capture", "llama", "--prompts", "tiny", "--profile", "ful"], "unknown profile 'ful'"),
    (["capture", "llama", "base", "--prompts", "tiny"], "unknown pair, model or chain 'base'"),
    (["capture", "broken", "pt", "--prompts", "tiny"], "has no config.json"),
    (["capture", "llama", "--prompts", "tiny", "--max-new-tokens", "500"], "the model's context holds 128"),
    (["capture", "llama", "--prompts", "tiny", "--limit", "0"], "a limit of 0 leaves no prompts"),
    (["capture", "llama", "--prompts", "tiny", "--dtype", "float8"], "dtype 'float8'"),
    (["capture", "llama", "--prompts", "tiny", "--lake", "{catalog}"], "this is a file, not a folder"),
    (["capture", "llama", "--prompts", "tiny", "--lake", "{folder}"], "the folder is not empty and not a lake"),
    (["ls", "--lake", "{folder}/nowhere"], "no lake at"),
    (["show", "llama-it/native"], "no capture of llama-it"),
    (["show", "llama"], "'llama' names 2 models; name one of llama-pt or llama-it"),
    (["verify"], "no sealed capture to verify"),
    (["verify", "llama-it/native"], "no capture of llama-it"),
    (["run", "L99"], "L99"),
    (["run", "L1"], "name a pair"),
    (["run", "L1", "--pair", "llama"], "llama"),
    (["sql", "SELEC 1"], "SQL: "),
    (["sql", "SELECT * FROM nowhere"], "SQL: "),
    (["sql", "COPY (SELECT 1) TO '{folder}/x.csv'"], "one SELECT statement expected, found COPY"),
    (["sql", "SELECT * FROM read_csv('/etc/passwd')"], "only the lake's own tables"),
    (["sql", "SELECT * FROM '{folder}/set.jsonl'"], "SQL: "),
    (["prompts", "add", "{folder}/none.jsonl"], "none.jsonl"),
    (["report", "--row", "L99"], "L99"),
]


@pytest.mark.parametrize(("words", "says"), COMMANDS, ids=[" ".join(words) for words, _ in COMMANDS])
def test_command_refuses_in_one_line(command, tmp_path, words, says):
    Layout.open(tmp_path / "lake", create=True)
    before = tiny.tree(tmp_path)
    code, out, err = command(*[word.format(catalog=tmp_path / "catalog.yaml", folder=tmp_path) for word in words])
    assert code == 2, (out, err)
    place = err.partition("\nLINE 1: ")[2]  # of a mistake in SQL: the statement, and a caret below it
    assert err.startswith("error: ") and err.count("\n") == 1 + 2 * bool(place) and says in err
    assert out == "" and "Traceback" not in err
    assert tiny.tree(tmp_path) == before


def test_mistaken_command_makes_no_lake(command, tmp_path):
    for words in (
        ["capture", "lama"],
        ["capture", "llama", "--prompts", "tyni"],
        ["capture", "llama", "--prompts", "tiny", "--stream", "nativ"],
    ):
        code, _, _ = command(*words)
        assert code == 2 and not (tmp_path / "lake").exists()


def test_malformed_catalog_names_the_line(command, catalog, tmp_path):
    catalog.write_text(
        catalog.read_text().replace("streams:\n", "streams:\n  odd: {template: rw, continuation: own}\n")
    )
    code, _, err = command("ls")
    assert code == 2 and f"{catalog}:10: " in err and err.count("\n") == 1


def test_commands_do_their_work_and_find_damage(command, tmp_path):
    code, out, _ = command("capture", "llama-it", "--prompts", "tiny", "--batch", "4", "--json")
    assert code == 0
    (row,) = json.loads(out)
    assert (row["reused"], row["tokens"]) == (False, read_manifest(Path(row["path"]))["n_tokens"])
    code, out, _ = command("capture", "llama-it", "--prompts", "tiny", "--batch", "4", "--json")
    assert code == 0 and json.loads(out) == [{**row, "reused": True, "seconds": 0.0}]
    code, out, _ = command("ls", "--json")
    assert code == 0 and json.loads(out)[0]["sealed"] is True
    code, out, _ = command("verify", "--reforward", "2", "--json")
    found, *rest = json.loads(out)
    assert code == 0 and found["ok"] and all(one["ok"] for one in rest) and "bit for bit equal" in found["reforward"]
    code, out, _ = command("sql", "SELECT model, tokens FROM captures", "--json")
    assert code == 0 and json.loads(out) == [{"model": "llama-it", "tokens": row["tokens"]}]
    file = Path(row["path"]) / "resid" / "c" / "0" / "0" / "0"
    tiny.flip(file, 100)
    code, out, _ = command("verify")
    assert code == 1 and "DAMAGED" in out and f"{file}: bytes differ" in out


def test_a_fresh_process_prints_one_line_and_no_traceback(tmp_path):
    command = [sys.executable, "-m", "actlake", "ls", "--lake", str(tmp_path / "nowhere")]
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert run.returncode == 2 and run.stdout == ""
    assert run.stderr.startswith("error: no lake at") and run.stderr.count("\n") == 1
