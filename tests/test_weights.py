"""Checkpoints kept in the lake: copied whole, watched by verify, and enough to run a model again on their own."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
from actlake.capture.model import weights_copy
from actlake.capture.model.load import identify, load_model, stored_weights
from actlake.capture.model.weights_copy import files_of
from actlake.capture.run.ranks import Rank
from actlake.capture.run.reforward import reforward
from actlake.store.artifacts.weights import read_weights, weights_folder
from actlake.store.captures.reader import find_capture, list_captures
from actlake.store.captures.verify import verify_weights
from actlake.store.core.catalog import ModelSpec, PairSpec
from actlake.store.core.errors import LakeError
from actlake.store.core.files import hash_file, human_bytes
from actlake.store.format.paths import Layout
from safetensors.torch import load_file


@pytest.fixture
def pair(tmp_path, llama) -> PairSpec:
    """A copy of the llama pair that a test may spoil or take away."""
    shutil.copytree(llama.pt.path.parent, tmp_path / "llama")
    return PairSpec("llama", *(tiny.spec(tmp_path / "llama" / v, f"llama-{v}") for v in ("pt", "it")), {})


def kept(lake: Path, pair: PairSpec, *streams, **options) -> Layout:
    return tiny.capture(lake, pair, *streams, variants=("it",), with_weights=True, **options)


def verified(layout: Layout) -> list[str]:
    return verify_weights(layout, "llama-it", read_weights(layout, "llama-it")).problems


def test_files_are_those_of_the_folder(tmp_path, pair):
    (pair.it.path / "optimizer.pt").write_bytes(b"x" * 100)
    (pair.it.path / "LICENSE").write_text("terms")
    layout = kept(tmp_path / "lake", pair, tiny.BARE)
    folder, record = weights_folder(layout, "llama-it"), read_weights(layout, "llama-it")
    names = {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert {f.name for f in folder.iterdir()} == set(record["files"]) == names | {"chat_template.jinja", "LICENSE"}
    for name, entry in record["files"].items():
        assert (folder / name).read_bytes() == (pair.it.path / name).read_bytes()
        assert entry == {"sha256": hash_file(folder / name), "bytes": (folder / name).stat().st_size}
        assert not os.path.samefile(folder / name, pair.it.path / name)  # saving over the folder leaves the lake alone
    assert record["model_sha256"] == identify(pair.it)["sha256"] and verified(layout) == []
    assert stored_weights(layout, "llama-pt") is None and read_weights(layout, "llama-pt") is None


def test_the_lake_is_enough_to_run_again(tmp_path, pair):
    layout = kept(tmp_path / "lake", pair, tiny.NATIVE)
    sha256 = identify(pair.it)["sha256"]
    shutil.rmtree(pair.it.path)
    spec = stored_weights(layout, "llama-it")
    model = load_model(spec)
    assert (spec.name, model.record["sha256"]) == ("llama-it", sha256)
    found = reforward(layout, model, find_capture(layout, "llama-it", "native"), 3)
    assert found.ok and found.exact


def test_weights_come_later_without_loading_anything(tmp_path, pair, monkeypatch):
    layout = tiny.capture(tmp_path / "lake", pair, tiny.BARE, variants=("it",))
    before = tiny.tree(layout.root)
    monkeypatch.setattr(
        "actlake.capture.streams.capture_pair.load_model", lambda *_, **__: pytest.fail("a model was loaded")
    )
    kept(layout.root, pair, tiny.BARE)
    after = tiny.tree(layout.root)
    assert before.items() <= after.items() and "models/llama-it/weights.json" in after
    monkeypatch.setattr(
        "actlake.capture.model.weights_copy.write_weights", lambda *_, **__: pytest.fail("they were copied again")
    )
    kept(layout.root, pair, tiny.BARE)
    assert tiny.tree(layout.root) == after


def test_copying_goes_on_where_it_was_killed(tmp_path, pair, monkeypatch):
    replace, done = os.replace, []

    def killed(source, target):
        if "weights" in Path(target).parts:
            if len(done) == 2:
                raise KeyboardInterrupt
            done.append(Path(target))
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            kept(tmp_path / "lake", pair, tiny.BARE)
    layout = Layout.open(tmp_path / "lake")
    assert list_captures(layout).sealed.tolist() == [True] and stored_weights(layout, "llama-it") is None
    tiny.dead_name(done[0].parent / "model.safetensors").write_bytes(b"half")  # what a real kill leaves
    times = [file.stat().st_mtime_ns for file in done]
    kept(layout.root, pair, tiny.BARE)
    assert [file.stat().st_mtime_ns for file in done] == times and verified(layout) == []
    whole = kept(tmp_path / "undisturbed", pair, tiny.BARE)
    assert tiny.tree(layout.root) == tiny.tree(whole.root)


def test_damage_is_named(tmp_path, pair):
    layout = kept(tmp_path / "lake", pair, tiny.BARE)
    folder = weights_folder(layout, "llama-it")
    tiny.flip(folder / "model.safetensors", 5000)
    (folder / "config.json").unlink()
    (folder / "extra.json").write_text("{}")
    found = [problem.removeprefix(str(folder)) for problem in verified(layout)]
    expected = ["/config.json: missing", "/model.safetensors: bytes differ", "/extra.json: not in the manifest"]
    assert [problem.startswith(start) for problem, start in zip(found, expected, strict=True)] == [True] * 3
    assert all("run `actlake capture --with-weights` again" in problem for problem in found[:2])


def test_no_room_is_said_before_anything_is_written(tmp_path, lake, pair, monkeypatch):
    monkeypatch.setattr("actlake.store.artifacts.weights.free_bytes", lambda _: 10_000)
    before = tiny.tree(lake.root)
    with pytest.raises(
        LakeError, match=r"the weights of llama-it need \S+ KB, 10.0 KB are free.*leave --with-weights out"
    ):
        kept(lake.root, pair, tiny.BARE)
    assert tiny.tree(lake.root) == before


def test_room_for_capture_and_weights_is_checked_together(tmp_path, pair, monkeypatch):
    """Each of the two would fit; both do not, and nothing is written but the stream."""
    layout = kept(tmp_path / "lake", pair, tiny.BARE)
    capture = sum(map(len, tiny.tree(find_capture(layout, "llama-it", "bare")).values()))
    weights = sum(entry["bytes"] for entry in read_weights(layout, "llama-it")["files"].values())
    for module in ("store.artifacts.weights", "capture.run.batching"):
        monkeypatch.setattr(f"actlake.{module}.free_bytes", lambda _: weights + capture // 2)
    with pytest.raises(LakeError) as caught:
        kept(tmp_path / "small", pair, tiny.BARE)
    said = str(caught.value)
    assert "the capture needs about" in said and f"and {human_bytes(weights)} for the models' own files" in said
    assert "no --with-weights" in said and "\n" not in said
    assert {path.split("/")[0] for path in tiny.tree(tmp_path / "small")} == {"lake.json", "streams"}
    tiny.capture(tmp_path / "small", pair, tiny.BARE, variants=("it",))  # without the weights there is room


def test_room_for_the_weights_of_both_models(tmp_path, pair, monkeypatch):
    weights = sum(file.stat().st_size for file in pair.it.path.iterdir())
    monkeypatch.setattr("actlake.store.artifacts.weights.free_bytes", lambda _: int(1.5 * weights))
    with pytest.raises(LakeError, match=r"the weights of llama-pt, llama-it need"):
        tiny.capture(tmp_path / "lake", pair, tiny.BARE, with_weights=True)


def test_a_capture_takes_the_lakes_own_weights_when_the_folder_is_gone(tmp_path, pair, capsys):
    layout = tiny.capture(tmp_path / "lake", pair, tiny.BARE, with_weights=True)
    whole = tiny.capture(tmp_path / "whole", pair, tiny.BARE, tiny.NATIVE)
    shutil.rmtree(pair.it.path)
    capsys.readouterr()
    tiny.capture(layout.root, pair, tiny.NATIVE)
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("taking the lake's own copy") == 1
    assert f"model llama-it: {pair.it.path} is not here" in said
    before = {path: data for path, data in tiny.tree(whole.root).items() if path.startswith("captures")}
    assert {path: data for path, data in tiny.tree(layout.root).items() if path.startswith("captures")} == before
    shutil.rmtree(weights_folder(layout, "llama-it"))
    (layout.model("llama-it") / "weights.json").unlink()
    with pytest.raises(LakeError, match=f"model llama-it: {pair.it.path} has no config.json"):
        tiny.capture(layout.root, pair, tiny.TEACHER)


def test_full_disk_while_copying(tmp_path, pair, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("actlake.store.artifacts.weights._copy", full)
        with pytest.raises(
            LakeError, match=r"disk full while copying the weights of llama-it .*run the same command again"
        ):
            kept(tmp_path / "lake", pair, tiny.BARE)
    assert verified(kept(tmp_path / "lake", pair, tiny.BARE)) == []


def test_a_file_that_changes_meanwhile_is_not_taken(tmp_path, pair, monkeypatch):
    files = weights_copy.files_of

    def changed(spec):
        tiny.edit_json(pair.it.path / "tokenizer_config.json", padding_side="left")
        return files(spec)

    with monkeypatch.context() as patch:
        patch.setattr(weights_copy, "files_of", changed)
        patch.setattr("actlake.capture.streams.capture_pair.check_weights_fit", lambda *_: None)
        with pytest.raises(LakeError, match=r"tokenizer_config.json: not the file that was captured"):
            kept(tmp_path / "lake", pair, tiny.BARE)
    assert stored_weights(Layout.open(tmp_path / "lake"), "llama-it") is None


def test_one_rank_copies(tmp_path, pair):
    layout = kept(tmp_path / "lake", pair, tiny.BARE, rank=Rank(1, 2))
    assert read_weights(layout, "llama-it") is None
    kept(layout.root, pair, tiny.BARE, rank=Rank(0, 2))
    assert verified(layout) == [] and list_captures(layout).sealed.all()


def as_in_a_repository(folder: Path) -> Path:
    """Turn a model folder into shards with an index, and the same weights once more in another layout."""
    shard, index = folder / "model-00001-of-00001.safetensors", folder / "model.safetensors.index.json"
    shutil.copy(folder / "model.safetensors", folder / "consolidated.safetensors")
    (folder / "model.safetensors").rename(shard)
    index.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(load_file(shard), shard.name)}))
    return folder


@pytest.mark.parametrize("links", [True, False])
def test_a_hub_model_is_known_by_its_name(tmp_path, pair, monkeypatch, links):
    """The hub's cache is played by a folder."""
    hub = ModelSpec("llama-it", None, "owner/name", "a" * 40, None)
    folder = as_in_a_repository(pair.it.path)
    monkeypatch.setattr(weights_copy, "snapshot_download", lambda *_, **__: str(folder))
    link = os.link

    def across(source, target):
        if not links and "weights" in Path(target).parts:
            raise OSError(18, "Invalid cross-device link")
        link(source, target)

    monkeypatch.setattr(os, "link", across)
    with monkeypatch.context() as patch:
        for module in ("configs", "loading"):
            patch.setattr(f"actlake.capture.checkpoint.{module}.source", lambda spec: str(spec.path or folder))
        layout = kept(tmp_path / "lake", PairSpec("llama", None, hub, {}), tiny.BARE)
        sha256 = identify(hub)["sha256"]
    shards = [file for file in read_weights(layout, "llama-it")["files"] if file.endswith(".safetensors")]
    assert shards == ["model-00001-of-00001.safetensors"]
    stored = weights_folder(layout, "llama-it") / shards[0]
    assert os.path.samefile(stored, folder / stored.name) == links
    shutil.rmtree(folder)
    spec = stored_weights(layout, "llama-it")
    assert (spec.hub, spec.revision, spec.path) == ("owner/name", "a" * 40, stored.parent)
    model = load_model(spec)
    assert model.record["sha256"] == sha256 and model.record["id"] == "owner/name"
    assert reforward(layout, model, find_capture(layout, "llama-it", "bare"), 2).exact


def test_a_hub_model_that_is_not_here(tmp_path):
    with pytest.raises(
        LakeError, match="model a-it: its weights are not on this machine; fetch them with `hf download o/n`"
    ):
        files_of(ModelSpec("a-it", None, "o/n", None, None))


def test_a_gguf_file_is_kept_as_it_is(tmp_path):
    pytest.importorskip("gguf")
    import ggufs

    _, file = ggufs.make_gguf(tmp_path / "g")
    spec = ModelSpec("llama-it", file.parent, None, None, file.name)
    layout = kept(tmp_path / "lake", PairSpec("llama", None, spec, {}), tiny.BARE)
    assert list(read_weights(layout, "llama-it")["files"]) == ["tiny.gguf"] and verified(layout) == []
    sha256 = identify(spec)["sha256"]
    shutil.rmtree(file.parent)
    model = load_model(stored_weights(layout, "llama-it"))
    assert model.record["sha256"] == sha256
    assert reforward(layout, model, find_capture(layout, "llama-it", "bare"), 2).exact


@pytest.fixture
def command(tmp_path, pair, command_line) -> Callable[..., tuple[int, str, str]]:
    """Run `actlake ...` with a catalog of the pair; returns exit code, standard output, standard error."""
    (tmp_path / "set.jsonl").write_text('{"id": "a", "text": "the cat"}\n{"id": "b", "text": "the dog sat"}\n')
    (tmp_path / "catalog.yaml").write_text(
        f"pairs:\n  llama:\n    it: {{path: {pair.it.path}}}\nprompts:\n  tiny: {{path: set.jsonl}}\nlakes: {{default: lake}}\n"
    )

    return lambda *words: command_line(*words, "--catalog", str(tmp_path / "catalog.yaml"))


def test_commands(command, tmp_path, pair):
    words = ("capture", "llama-it", "--prompts", "tiny", "--max-new-tokens", "2", "--with-weights")
    code, _, err = command(*words)
    assert code == 0 and " ".join(err.split()).count("The model's licence comes with them") == 1
    assert "licence" not in command(*words)[2]
    shutil.rmtree(pair.it.path)
    code, out, _ = command("verify", "--reforward", "2", "--json")
    capture, _lake, models, streams, weights = json.loads(out)
    assert (models["capture"], streams["capture"]) == ("models", "streams") and models["ok"] and streams["ok"]
    assert code == 0 and "bit for bit equal" in capture["reforward"]
    assert (weights["capture"], weights["files"], weights["ok"]) == ("models/llama-it/weights", 6, True)
    tiny.flip(tmp_path / "lake" / "models" / "llama-it" / "weights" / "tokenizer.json", 10)
    code, out, _ = command("verify")
    assert code == 1 and "DAMAGED  models/llama-it/weights" in out
