"""A capture run as a whole: the batch plan, what the manifest says about it, stopping and going on, and sharing of shards."""

import json
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
import transformers
from actlake.capture.model.load import identify, load_model
from actlake.capture.run import capture as running
from actlake.capture.run.batching import WINDOW, batch_plan, estimate
from actlake.capture.run.capture import check_finite, make_template
from actlake.capture.run.ranks import ALONE
from actlake.store.artifacts.models import read_head, read_model
from actlake.store.artifacts.streams import read_stream
from actlake.store.captures.manifest import read_manifest
from actlake.store.captures.reader import Capture, find_capture, list_captures
from actlake.store.core.errors import LakeError
from actlake.store.core.files import canonical_json, hash_file, human_bytes
from actlake.store.core.version import __version__
from actlake.store.format.paths import Layout
from hypothesis import given
from hypothesis import strategies as st


@given(st.lists(st.integers(1, 50), min_size=1, max_size=200), st.integers(1, 9))
def test_batch_plan_takes_every_prompt_once_and_near_its_place(lengths, batch):
    plan = batch_plan(lengths, batch)
    assert sorted(index for row in plan for index in row) == list(range(len(lengths)))
    assert all(0 < len(row) <= batch for row in plan)
    for number, row in enumerate(plan):
        window = number // WINDOW * WINDOW * batch
        assert all(window <= index < window + WINDOW * batch for index in row)
        assert [lengths[index] for index in row] == sorted(lengths[index] for index in row)
    assert plan == batch_plan(list(lengths), batch)


def test_batch_plan_by_hand():
    assert batch_plan([3, 1, 2, 5, 1], 2) == [[1, 4], [2, 0], [3]]


def test_manifest_says_where_a_capture_comes_from(captured, llama):
    path = find_capture(captured, "llama-it", "native")
    manifest, model = read_manifest(path), read_model(captured, "llama-it")
    identity = identify(llama.it)
    assert manifest["provenance"] == {
        "model": "llama-it",
        "model_id": "it",
        "model_revision": None,
        "model_sha256": identity["sha256"],
        "tokenizer_sha256": identity["tokenizer_sha256"],
        "dtype": "float32",
        "attn_implementation": "sdpa",
        "device": "cpu",
        "batch": 4,
        "batch_window": WINDOW,
        "padding_side": "right",
        "actlake": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    assert json.loads((path / "zarr.json").read_text())["attributes"]["model_sha256"] == identity["sha256"]
    assert model["files"]["model.safetensors"] == hash_file(llama.it.path / "model.safetensors")
    assert (model["class"], model["n_layers"], model["d_model"], model["dtype"]) == (
        "LlamaForCausalLM",
        3,
        32,
        "float32",
    )
    assert manifest["content_sha256"] == read_stream(captured, manifest["stream"]).content_sha256
    assert manifest["noise_floor"]["prompts"] == 4 and manifest["noise_floor"]["max_abs"]["resid"] < 1e-5


def test_nothing_in_a_lake_tells_the_machine_or_the_time(captured, llama):
    for name, data in tiny.tree(captured.root).items():
        assert str(llama.it.path.parent).encode() not in data and str(captured.root).encode() not in data, name


def test_pt_and_it_share_the_plan_and_differ_in_values(captured):
    one, two = (Capture(find_capture(captured, f"llama-{v}", s)) for v, s in (("pt", "teacher"), ("it", "native")))
    steps = [c.array("step")[:] for c in (one, two)]
    prompts = [c.array("prompt")[:] for c in (one, two)]
    keys = [list(zip(p[s >= 0], s[s >= 0], strict=True)) for p, s in zip(prompts, steps, strict=True)]
    assert keys[0] == keys[1]
    last = [c.array("resid")[:, -1][s >= 0] for c, s in zip((one, two), steps, strict=True)]
    assert last[0].shape == last[1].shape and not np.allclose(last[0], last[1])


@pytest.mark.parametrize("shard", [16, 48, 1024])
def test_shard_size_changes_no_value(tmp_path, captured, llama, shard):
    profile = replace(tiny.FULL, shard_tokens=shard)
    layout = tiny.capture(tmp_path / "lake", llama, tiny.NATIVE, profile=profile, variants=("it",))
    one, two = (Capture(find_capture(lake, "llama-it", "native")) for lake in (captured, layout))
    for name in ("resid", "mlp_out", "topk_id", "topk_logit", "logsumexp"):
        assert np.array_equal(one.array(name)[:], two.array(name)[:])
    assert two.manifest["n_shards"] == -(-one.n_tokens // shard)


def test_two_runs_in_two_lakes_are_the_same_bytes(captured, llama, tmp_path):
    again = tiny.capture(tmp_path / "again", llama, tiny.NATIVE, tiny.TEACHER)
    one, two = tiny.tree(captured.root), tiny.tree(again.root)
    captures = {name for name in one if name.startswith(("captures/", "models/"))}
    assert captures == {name for name in two if name.startswith(("captures/", "models/"))} and len(captures) > 200
    assert [name for name in captures if one[name] != two[name]] == []


@pytest.mark.parametrize(
    ("stop", "raised"),
    [
        (KeyboardInterrupt, pytest.raises(KeyboardInterrupt)),
        (
            MemoryError,
            pytest.raises(LakeError, match="out of memory while capturing llama-it in batches of 4.*--batch 2"),
        ),
        (torch.OutOfMemoryError, pytest.raises(LakeError, match="what is written stays")),
    ],
)
def test_stopping_in_the_middle_keeps_what_is_written(tmp_path, captured, llama, monkeypatch, stop, raised):
    calls, read = [], running.read

    def broken(*args):
        calls.append(args)
        if len(calls) == 2:
            raise stop
        return read(*args)

    with monkeypatch.context() as patch:
        patch.setattr(running, "read", broken)
        with raised:
            tiny.capture(tmp_path / "lake", llama, tiny.NATIVE, variants=("it",))
    layout = Layout.open(tmp_path / "lake")
    assert list_captures(layout)["sealed"].tolist() == [False]
    kept = list((tmp_path / "lake").glob("captures/*/*/.progress/shard-*.json"))
    assert kept
    times = {file: file.stat().st_mtime_ns for file in (tmp_path / "lake").rglob("c/0/0/0")}
    tiny.capture(tmp_path / "lake", llama, tiny.NATIVE, variants=("it",))
    assert all(file.stat().st_mtime_ns == time for file, time in times.items())  # finished rows are not written again
    folder = "captures/llama-it"
    assert tiny.tree(layout.root / folder) == tiny.tree(captured.root / folder)


def test_estimate_is_what_is_written(captured, llama, monkeypatch, capsys):
    stream = read_stream(captured, find_capture(captured, "llama-it", "native").stem)
    template = make_template(load_model(llama.it), stream, tiny.FULL, 4)
    size = estimate(template, batch_plan(np.diff(stream.offset).tolist(), 4))
    manifest = read_manifest(find_capture(captured, "llama-it", "native"))
    assert (size.tokens, size.shards) == (manifest["n_tokens"], manifest["n_shards"])
    assert size.raw == stream.n_tokens * 4 * (4 * 32 + 3 * 32 + 64 + 64 + 1)
    shards = sum(entry["bytes"] for name, entry in manifest["files"].items() if "/c/" in name)
    assert 0.8 < size.stored / shards < 1.2
    assert str(size).startswith(f"{stream.n_tokens} tokens, {size.shards} shard rows, about ")
    monkeypatch.setattr(running, "_rate", lambda *_: size.tokens / 15)  # tokens a second
    running._announce(load_model(llama.it), "s", template, [], size, ALONE, size.shards)
    said = " ".join(capsys.readouterr().err.split())
    assert str(size) in said and said.endswith("on cpu, about 15 s")


def test_check_names_the_lowest_layer_first():
    stream = tiny.synthetic_stream([("a", "", [1, 2], [3]), ("b", "", [4, 5, 6], [])])
    block = np.zeros((6, 3, 2), np.float32)
    check_finite("p-it", stream, 0, {"resid": block})
    block[1, 2, 0], block[4, 1, 1] = np.nan, -np.inf
    with pytest.raises(LakeError, match=r"^p-it: resid is -inf, boundary 1, prompt 'b', position 1 \(token '<5>'\)"):
        check_finite("p-it", stream, 0, {"resid": block})
    with pytest.raises(LakeError, match=r"^p-it: mlp_out is nan, layer 0, prompt 'b', position 2"):
        check_finite("p-it", stream, 4, {"resid": block[:0], "mlp_out": np.asarray([[[0.0]], [[np.nan]]], np.float32)})
    with pytest.raises(LakeError, match=r"^p-it: logsumexp is inf, prompt 'a', position 2"):
        check_finite("p-it", stream, 2, {"logsumexp": np.asarray([np.inf], np.float32)})


def test_stored_head_is_the_models(captured, llama):
    model = load_model(llama.it)
    arrays, attrs = read_head(captured, "llama-it")
    assert np.array_equal(arrays["unembed"], model.hf.lm_head.weight.detach().numpy())
    assert np.array_equal(arrays["norm_weight"], model.hf.model.norm.weight.detach().numpy())
    assert arrays["real_token"].sum() == len(model.tokenizer)
    assert (attrs["norm"], attrs["softcap"], attrs["logit_scale"], attrs["parallel"]) == ("rms", None, 1.0, False)
    assert attrs["norm_eps"] == model.hf.config.rms_norm_eps


def test_small_things():
    assert [human_bytes(n) for n in (0, 999, 1536, 2_500_000, 3e15)] == ["0 B", "999 B", "1.5 KB", "2.5 MB", "3.0 PB"]
    assert canonical_json({"b": 1, "a": "ü"}) == '{"a":"ü","b":1}'.encode()
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(float("nan"))
