"""A stream through one block after the other: the bytes of a usual capture, one block in memory, resumed at any block."""

import gc
import json
import shutil
import sys
import weakref
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from actlake.capture.model.by_layer import load_frame, weight_bytes
from actlake.capture.model.load import identify, load_model
from actlake.capture.run import by_layer
from actlake.capture.run.ranks import Rank
from actlake.capture.streams.capture_pair import Options
from actlake.capture.streams.estimate import forecast
from actlake.cli import main
from actlake.store.captures.reader import Capture, find_capture
from actlake.store.captures.verify import verify
from actlake.store.core.errors import LakeError
from actlake.store.format.paths import Layout
from test_kill import Killer
from transformers import AutoModelForCausalLM
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.llama import modeling_llama

EVERY = replace(tiny.FULL, sites=("resid", "mlp_out", "attn_out", "attn_entropy"))
LEAN = replace(tiny.FULL, sites=("resid",), boundaries=(0, "last"), scalars=("lens", "delta"))
LOGITS = replace(tiny.FULL, sites=("mlp_out",), logits="full")


def captured(lake, pair, profile=EVERY, stream=tiny.BARE, **options) -> dict[str, bytes]:
    return tiny.tree(tiny.capture(lake, pair, stream, variants=("it",), profile=profile, **options).root)


def both(folder, pair, **options) -> None:
    """A capture made layer by layer is the usual one, in every file of the lake."""
    usual = captured(folder / "usual", pair, **options)
    found = captured(folder / "layers", pair, by_layer=True, **options)
    assert found.keys() == usual.keys() and [name for name in usual if usual[name] != found[name]] == []
    assert sum(name.startswith("captures/") for name in usual) > 20


@pytest.mark.parametrize("family", tiny.sampled("llama", "gemma3_wrapper", "granite", "gpt2"))
def test_same_bytes(tmp_path, pairs, family):
    """Sliding windows, positions learned or rotated, soft caps, tied heads, experts, scaled and parallel branches."""
    both(tmp_path, pairs(family))


@pytest.mark.parametrize("profile", [LEAN, LOGITS], ids=["lean", "logits"])
@pytest.mark.parametrize("family", ["gemma3", "granite", "gpt2"])
def test_same_bytes_of_what_is_made_of_residuals(tmp_path, pairs, family, profile):
    both(tmp_path, pairs(family), profile=profile)


@pytest.mark.parametrize(
    ("family", "dtype"), [("gemma3", "bfloat16"), ("deepseek_v2", "bfloat16"), ("gemma3", "float64")]
)
def test_same_bytes_in_other_dtypes(tmp_path, pairs, family, dtype):
    both(tmp_path, pairs(family), dtype=dtype)


def test_one_block_is_there_at_a_time(tmp_path, llama, monkeypatch):
    whole = weight_bytes(load_model(llama.it).hf)
    seen: list[tuple[int, int]] = []
    before: list[weakref.ref] = []

    def watched(model, block, index, *rest):
        gc.collect()
        assert not [one for one in before if one() is not None], f"a block before block {index} is still there"
        before.append(weakref.ref(block))
        seen.append((weight_bytes(model.hf), weight_bytes(block)))
        return each(model, block, index, *rest)

    each = by_layer._pass
    monkeypatch.setattr(by_layer, "_pass", watched)
    captured(tmp_path / "lake", llama, by_layer=True)
    assert len(seen) == 3
    for there, block in seen:
        assert there == whole - 2 * block < whole


KILLS = [
    ("resid-0001", None),
    ("block-0001.json", None),
    ("shard-000002.json", None),
    ("block-0002.json", "shard-000003.json"),
]


@pytest.mark.parametrize(
    ("kills", "blocks"),
    [
        pytest.param(KILLS[3:], {2: 1}, id="twice", marks=pytest.mark.sweep),
        pytest.param(KILLS[:3], {0: 1, 1: 1, 3: 1}, id="others", marks=pytest.mark.sweep),
    ],
)
def test_resumed_after_a_kill_at_any_block(tmp_path_factory, llama, kills, blocks):
    folder = tmp_path_factory.mktemp("kill")
    usual = captured(folder / "usual", llama, tiny.FULL, batch=2)
    killer, met = Killer(folder, llama.it.path.parent, by_layer=True), Counter[int]()
    try:
        assert killer.expected == {name: data for name, data in usual.items() if not name.endswith(".tmp")}
        for number, (file, again) in enumerate(kills):
            lake = folder / f"{number}"
            assert killer.capture(lake, operation=file)["killed"]
            met[len(list(lake.glob("captures/*/*.zarr/.progress/blocks/block-*.json")))] += 1
            assert not again or killer.capture(lake, operation=again)["killed"]
            assert not killer.capture(lake)["killed"]
            killer.check(lake)
    finally:
        killer.close()
    assert met == blocks


def test_blocks_that_are_done_are_not_read_again(tmp_path, llama, monkeypatch):
    done: list[int] = []
    each = by_layer._pass

    def stopped(model, block, index, *rest):
        done.append(index)
        if len(done) == 3:
            raise KeyboardInterrupt
        return each(model, block, index, *rest)

    monkeypatch.setattr(by_layer, "_pass", stopped)
    with pytest.raises(KeyboardInterrupt):
        captured(tmp_path / "layers", llama, by_layer=True)
    found = captured(tmp_path / "layers", llama, by_layer=True)
    assert done == [0, 1, 2, 2] and found == captured(tmp_path / "usual", llama)


def test_either_way_finishes_what_the_other_began(tmp_path, llama, monkeypatch):
    usual = captured(tmp_path / "usual", llama)
    with monkeypatch.context() as patch:
        patch.setattr(by_layer, "assemble", lambda *_: 1 / 0)
        with pytest.raises(LakeError):
            captured(tmp_path / "layers", llama, by_layer=True)
    assert captured(tmp_path / "layers", llama) == usual


def test_a_teacher_s_text_is_read(tmp_path, llama):
    """What another model wrote, captured before in the usual way."""
    for name, option in (("usual", False), ("layers", True)):
        tiny.capture(tmp_path / name, llama, tiny.TEACHER, variants=("it",))
        tiny.capture(tmp_path / name, llama, tiny.TEACHER, variants=("pt",), by_layer=option)
    assert tiny.tree(tmp_path / "layers") == tiny.tree(tmp_path / "usual")
    layout = Layout.open(tmp_path / "layers")
    assert verify(layout, find_capture(layout, "llama-pt", "teacher")).ok


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"stream": tiny.NATIVE}, r"stream native of llama-it: --by-layer would read all weights once for every token"),
        ({"stream": tiny.TEACHER}, r"stream teacher of llama-it: .*continuation: none.*--outputs"),
        ({"device_map": "auto"}, "--by-layer and --device-map exclude each other"),
        ({"rank": Rank(0, 2)}, "--by-layer and several ranks exclude each other"),
    ],
)
def test_what_is_refused(tmp_path, llama, options, says):
    with pytest.raises(LakeError, match=says) as error:
        captured(tmp_path / "lake", llama, by_layer=True, **options)
    assert "\n" not in str(error.value) and not list(tmp_path.glob("lake/captures/*"))


def test_blocks_that_share_more_than_the_residual_are_refused(tmp_path, llama, monkeypatch):
    plain, shared = modeling_llama.LlamaDecoderLayer.forward, list[torch.Tensor]()

    def sharing(self, hidden_states, *args, **kwargs):
        out = plain(self, hidden_states, *args, **kwargs)
        if self.self_attn.layer_idx == 0:
            shared[:] = [out.argmax(-1, keepdim=True)]  # whole numbers: no gradient would show them
        return out + 1e-3 * shared[0] if self.self_attn.layer_idx == 2 else out

    monkeypatch.setattr(modeling_llama.LlamaDecoderLayer, "forward", sharing)
    with pytest.raises(LakeError, match="block 2 uses what block 0 computed besides the residual; --by-layer keeps"):
        captured(tmp_path / "lake", llama, by_layer=True)


def test_a_residual_changed_between_blocks_is_refused(tmp_path, llama, monkeypatch):
    monkeypatch.setattr(
        modeling_llama.LlamaDecoderLayer,
        "__call__",
        lambda self, x, **given: GradientCheckpointingLayer.__call__(self, x * 1, **given),
    )
    frame = {"identity": identify(llama.it), "device": "cpu", "dtype": "auto"}
    with pytest.raises(LakeError, match="needs each block to read what the one before it left, once; block 1 does not"):
        load_frame(llama.it, **frame)


def test_a_block_that_is_not_whole_is_named_when_its_turn_comes(tmp_path, llama):
    shutil.copytree(llama.it.path, tmp_path / "m")
    hf = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    with torch.no_grad():
        hf.model.layers[1].mlp.down_proj.weight[3, 4] = torch.nan
    hf.save_pretrained(tmp_path / "m")
    pair = replace(llama, pt=None, it=tiny.spec(tmp_path / "m", "broken-it"))
    with pytest.raises(LakeError, match="NaN or infinity around block 1"):
        captured(tmp_path / "lake", pair, by_layer=True)


def test_the_plan_says_what_it_takes(llama):
    set_ = tiny.prompt_set()
    (usual,) = forecast(llama, [tiny.BARE], set_, [tiny.FULL], ("it",))
    (layers,) = forecast(llama, [tiny.BARE], set_, [tiny.FULL], ("it",), Options(by_layer=True))
    hf = load_model(llama.it).hf
    block = weight_bytes(hf.model.layers[0])
    assert layers.read == usual.weights == weight_bytes(hf)
    assert (
        layers.weights == usual.weights - block
    )  # two of three blocks: the one there, and pages of the next one's files
    assert layers.spilled >= layers.size.tokens * 32 * 4 * (4 + 3)  # boundaries and MLP outputs
    row = layers.row(100, 1e6)
    assert row["read"] == layers.read and row["on disk on the way"] == layers.spilled
    assert row["seconds"] == round(
        layers.size.tokens / 100 + (layers.read + 2 * layers.spilled + layers.size.stored) / 1e6
    )


def test_the_commands(tmp_path, llama, monkeypatch, capsys):
    (tmp_path / "set.jsonl").write_text('{"id": "a", "text": "the cat"}\n')
    (tmp_path / "catalog.yaml").write_text(
        f"pairs:\n  llama:\n    it: {{path: {llama.it.path}}}\nprompts:\n  tiny: {{path: set.jsonl}}\nlakes: {{default: lake}}\n"
        "streams:\n  bare: {template: raw, continuation: none}\n"
    )

    def run(*words: str) -> str:
        given = ["--stream", "bare", "--prompts", "tiny", "--by-layer", "--catalog", str(tmp_path / "catalog.yaml")]
        monkeypatch.setattr(sys, "argv", ["actlake", *words, "llama-it", *given])
        try:
            main.main()
        except SystemExit as stop:
            assert not stop.code
        return capsys.readouterr().out

    assert json.loads(run("plan", "--json"))[0]["read"] == weight_bytes(load_model(llama.it).hf)
    assert "of weights are read once" in " ".join(run("plan").split())
    assert "sealed in" in run("capture")
    layout = Layout.open(tmp_path / "lake")
    assert np.isfinite(Capture(find_capture(layout, "llama-it", "bare")).array("resid")[:]).all()
    assert not list(Path(layout.root).rglob("blocks"))
