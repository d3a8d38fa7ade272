"""Models in GGUF files: the same activations as the same weights in safetensors, and what stands behind a capture."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny

pytest.importorskip("accelerate")
pytest.importorskip("gguf")

import ggufs
from actlake.capture.checkpoint import gguf
from actlake.capture.model.describe import check_models, describe, lines
from actlake.capture.model.load import identify, load_model
from actlake.capture.streams.estimate import forecast
from actlake.store.artifacts.models import read_model
from actlake.store.captures.reader import Capture, find_capture
from actlake.store.core.catalog import ModelSpec, PairSpec, load_catalog
from actlake.store.core.errors import LakeError
from actlake.store.core.files import hash_file
from gguf import GGUFReader, GGUFValueType, GGUFWriter


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with `tiny.gguf` and, in `dense`, the same weights as a Hugging Face model."""
    made = tmp_path_factory.mktemp("gguf")
    ggufs.make_gguf(made)
    return made


def in_file(folder: Path) -> ModelSpec:
    return ModelSpec("tiny-it", folder, None, None, "tiny.gguf")


def pair_of(spec: ModelSpec) -> PairSpec:
    return PairSpec("tiny", None, spec, {})


def test_activations_are_those_of_the_dequantised_weights(tmp_path, folder):
    specs = in_file(folder), tiny.spec(folder / "dense", "tiny-it")
    stored = []
    for number, spec in enumerate(specs):
        layout = tiny.capture(tmp_path / f"{number}", pair_of(spec), tiny.NATIVE, variants=("it",), dtype="float32")
        stored.append(Capture(find_capture(layout, "tiny-it", "native")))
    one, two = stored
    assert one.array("token_id")[0] == tiny.BOS
    for name in ("token_id", "step", "resid", "mlp_out", "topk_id", "topk_logit", "logsumexp"):
        assert np.array_equal(one.array(name)[:], two.array(name)[:])
    assert one.manifest["provenance"]["model_sha256"] != two.manifest["provenance"]["model_sha256"]


def test_lake_says_what_it_was_quantised_from(tmp_path, folder):
    layout = tiny.capture(tmp_path / "lake", pair_of(in_file(folder)), tiny.BARE, variants=("it",))
    record, manifest = read_model(layout, "tiny-it"), Capture(find_capture(layout, "tiny-it", "bare")).manifest
    sha256 = hash_file(folder / "tiny.gguf")
    assert record["quantized_from"] == {"file": "tiny.gguf", "sha256": sha256}
    assert record["files"] == {"tiny.gguf": sha256} and record["id"] == "tiny"
    assert record["dtype"] == manifest["source_dtype"] == "bfloat16"  # unless another is asked for
    assert record["sha256"] == manifest["provenance"]["model_sha256"] == identify(in_file(folder))["sha256"]
    assert "quantized_from" not in identify(tiny.spec(folder / "dense", "tiny-it"))


def test_only_the_file_is_the_model(tmp_path, folder):
    shutil.copy(folder / "tiny.gguf", tmp_path)
    before = identify(in_file(tmp_path))
    (tmp_path / "other.gguf").write_bytes(b"something else")
    assert identify(in_file(tmp_path)) == before
    assert identify(in_file(tmp_path), "float32")["sha256"] != before["sha256"]
    with open(tmp_path / "tiny.gguf", "r+b") as file:  # one weight changes
        file.seek(-5, 2)
        file.write(b"\x01")
    assert identify(in_file(tmp_path))["sha256"] != before["sha256"]
    other = ModelSpec("tiny-it", None, "owner/name", "1234567", "a.gguf")
    assert gguf.loading(other)["gguf_file"] == "a.gguf" and gguf.gguf_path(other) is None


def test_plan_and_check_know_the_file(folder):
    (found,) = forecast(pair_of(in_file(folder)), [tiny.BARE], tiny.prompt_set(), [tiny.FULL], ("it",))
    model = load_model(in_file(folder))
    assert found.exact and found.weights == sum(p.nbytes for p in model.hf.parameters())
    told = describe(model)
    assert (told["norm_placement"], told["bos"]["raw"], told["bos"]["chat"]) == ("pre", 1, 1)
    assert dict(lines(told))["class"].endswith("bfloat16, dequantised from tiny.gguf")


def test_commands_take_a_gguf_file(tmp_path, folder, command_line):
    (tmp_path / "catalog.yaml").write_text(
        f"pairs:\n  tiny:\n    it: {{path: {folder}, gguf_file: tiny.gguf}}\nlakes:\n  default: lake\n"
        "prompts:\n  tiny: {path: set.jsonl}\n"
    )
    (tmp_path / "set.jsonl").write_text('{"id": "a", "text": "the cat"}\n{"id": "b", "text": "the dog sat"}\n')

    def ok(*words: str) -> str:
        code, out, _ = command_line(*words, "--catalog", str(tmp_path / "catalog.yaml"))
        assert code == 0
        return out

    assert json.loads(ok("model", "check", str(folder / "tiny.gguf"), "--json"))[0]["model"] == "tiny"
    ok("capture", "tiny-it", "--prompts", "tiny", "--max-new-tokens", "3")
    report, *rest = json.loads(ok("verify", "--reforward", "2", "--json"))
    assert report["ok"] and "bit for bit equal" in report["reforward"]
    assert [(one["capture"], one["ok"]) for one in rest] == [("lake", True), ("models", True), ("streams", True)]


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda file: file.unlink(), "tiny.gguf: no such file"),
        (lambda file: file.write_bytes(b"12345678 rubbish"), "no GGUF file, but something that begins with"),
        (lambda file: file.write_bytes(b""), "tiny.gguf: no GGUF file, but empty"),
        (lambda file: file.write_bytes(file.read_bytes()[:3000]), "its header ends too early"),
        (lambda file: file.write_bytes(file.read_bytes()[:-3000]), "tiny-it: can't "),
    ],
    ids=["absent", "rubbish", "empty", "cut-in-metadata", "cut-in-weights"],
)
def test_file_that_can_not_be_loaded(tmp_path, folder, spoil, says):
    shutil.copy(folder / "tiny.gguf", tmp_path)
    spoil(tmp_path / "tiny.gguf")
    with pytest.raises(LakeError) as caught:
        tiny.capture(tmp_path / "lake", pair_of(in_file(tmp_path)), tiny.BARE, variants=("it",))
    assert says in str(caught.value) and "\n" not in str(caught.value)
    assert list((tmp_path / "lake").iterdir()) == [tmp_path / "lake" / "lake.json"] or not list(
        (tmp_path / "lake").glob("captures/*/*")
    )


def test_architecture_that_hugging_face_can_not_read(tmp_path):
    writer = GGUFWriter(tmp_path / "tiny.gguf", "deepseek2")
    writer.add_block_count(2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(LakeError, match="model tiny-it: can't .*deepseek2") as caught:
        load_model(in_file(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("package", gguf.PACKAGES)
def test_missing_package_says_what_to_install(folder, monkeypatch, package):
    monkeypatch.setattr(gguf, "find_spec", lambda name: None if name == package else object())
    with pytest.raises(LakeError, match=rf"needs the package {package}: pip install 'actlake\[gguf\]'"):
        load_model(in_file(folder))


def test_a_changed_file_is_read_again(tmp_path, folder):
    for seed in (1, 2):
        ggufs.make_gguf(tmp_path / f"{seed}", seed)
        shutil.copy(tmp_path / f"{seed}" / "tiny.gguf", tmp_path / "tiny.gguf")
        one, two = load_model(in_file(tmp_path)), load_model(replace(in_file(tmp_path / f"{seed}")))
        assert one.record["sha256"] == two.record["sha256"]


def test_catalog_wants_a_name_inside_the_folder(tmp_path):
    for name in ("/x/y.gguf", "../y.gguf"):
        (tmp_path / "c.yaml").write_text(f"pairs:\n  a:\n    pt:\n      path: x\n      gguf_file: {name}\n")
        with pytest.raises(LakeError, match="c.yaml:5: pair a, pt, gguf_file: expected the name of a file inside"):
            load_catalog(tmp_path / "c.yaml")


def test_a_header_is_parsed_once_and_no_bar_goes_into_logs(folder, monkeypatch, capfd) -> None:
    """transformers parses it for the config, the tokenizer and the weights, and draws a bar each time."""
    shutil.copy(folder / "tiny.gguf", folder / "again.gguf")
    read, reader = [], GGUFReader.__init__
    monkeypatch.setattr(GGUFReader, "__init__", lambda self, *a: (read.append(a), reader(self, *a))[1])
    check_models([ModelSpec("tiny-it", folder, None, None, "again.gguf")])
    assert len(read) == 1
    assert "de-quantizing" not in capfd.readouterr().err


@pytest.mark.parametrize("number", [1, 2])
def test_one_part_of_several_is_refused_from_its_header(folder, tmp_path, monkeypatch, number) -> None:
    name = f"m-{number:05d}-of-00002.gguf"
    writer = GGUFWriter(tmp_path / name, "llama")
    writer.add_key_value("split.no", number - 1, GGUFValueType.UINT16)
    writer.add_key_value("split.count", 2, GGUFValueType.UINT16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    monkeypatch.setattr(GGUFReader, "__init__", lambda *_: pytest.fail("read by transformers"))
    with pytest.raises(LakeError) as caught:
        load_model(ModelSpec("m-it", tmp_path, None, None, name))
    other = f"m-{3 - number:05d}-of-00002.gguf"
    assert f"model m-it: {name} is part {number} of 2, and transformers reads whole files only" in str(caught.value)
    assert f"missing here: {other}: join" in str(caught.value) and "--merge m-00001-of-00002.gguf" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"<!doctype html><html>", "no GGUF file, but a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "a Git LFS pointer"),
        (b"GGUF" + (1).to_bytes(4, "little") + bytes(40), "GGUF version 1; versions 2 and 3"),
        (b"GGUF" + (3).to_bytes(4, "little") + (2**40).to_bytes(8, "little") * 2, "its header ends too early"),
    ],
)
def test_what_is_no_whole_gguf_file_is_told_from_its_first_bytes(tmp_path, content, says) -> None:
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(LakeError, match=says) as caught:
        load_model(ModelSpec("m-it", tmp_path, None, None, "m.gguf"))
    assert "\n" not in str(caught.value)


def test_other_vocabularies_and_a_missing_template_are_told_from_headers(tmp_path, folder, monkeypatch) -> None:
    """Before any tokenizer is converted, which takes a minute where the vocabulary is large."""
    for name, tokens in (("a", ["x", "y", "z"]), ("b", ["y", "x", "z"])):
        writer = GGUFWriter(tmp_path / f"{name}.gguf", "llama")
        writer.add_token_list(tokens)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    monkeypatch.setattr(GGUFReader, "__init__", lambda *_: pytest.fail("read by transformers"))
    pt, it = (ModelSpec(f"m-{v}", tmp_path, None, None, f"{name}.gguf") for v, name in (("pt", "a"), ("it", "b")))
    for name, run in (
        ("m-pt and m-it", lambda: check_models([pt, it])),
        ("m", lambda: tiny.capture(tmp_path / "lake", PairSpec("m", pt, it, {}), tiny.RAW)),
    ):
        with pytest.raises(LakeError, match=f"pair {name}: the tokenizers differ: '[xy]' is "):
            run()
    with pytest.raises(LakeError, match="model m-it: template 'chat': this model's tokenizer has no chat template"):
        tiny.capture(tmp_path / "lake", PairSpec("m", None, it, {}), tiny.NATIVE, variants=("it",))
