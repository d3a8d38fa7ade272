"""Damage: verify names the file, and reading raises with the file's name instead of returning numbers."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import zarr
from actlake.capture.model.load import load_model
from actlake.capture.run.reforward import reforward
from actlake.store.artifacts.models import read_head
from actlake.store.captures.manifest import seal
from actlake.store.captures.reader import Capture, find_capture, open_capture
from actlake.store.captures.verify import verify
from actlake.store.core.errors import CorruptError, LakeError
from actlake.store.core.files import hash_file, hash_json
from actlake.store.format.records import sealed
from safetensors.torch import load_file, save_file

SITES = ("resid", "mlp_out", "topk_id", "topk_logit", "logsumexp")
COORDINATES = (
    "token_id",
    "prompt",
    "position",
    "step",
    "is_special",
    "segment",
    "turn",
    "prompt_id",
    "category",
    "offset",
    "boundary",
    "layer",
)


def shard_of(path: Path, name: str, shard: int) -> Path:
    (file,) = [f for f in (path / name / "c" / str(shard), *(path / name / "c" / str(shard)).rglob("*")) if f.is_file()]
    return file


def problems(layout, path) -> str:
    report = verify(layout, path)
    assert not report.ok
    return "\n".join(report.problems)


def test_good_captures_pass(captured):
    for model, stream in (("llama-it", "native"), ("llama-pt", "native"), ("llama-pt", "teacher")):
        path, done = find_capture(captured, model, stream), list[int]()
        report = verify(captured, path, done.append)
        assert report.ok and report.problems == []
        manifest = json.loads((path / "manifest.json").read_text())
        assert report.bytes == sum(done) == manifest["bytes"] and report.files == len(manifest["files"])
        assert (
            report.shards == manifest["n_shards"] * 4 and report.capture == path.relative_to(captured.root).as_posix()
        )


@pytest.mark.parametrize("name", SITES)
def test_flipped_byte_in_a_shard(lake_copy, name):
    path = find_capture(lake_copy, "llama-it", "native")
    file = shard_of(path, name, 1)
    size, whole = file.stat().st_size, Capture(path).array(name)[:]
    spots = random.Random(name).sample(range(size), 2)
    for at in (0, size // 2, size - 1, *spots):  # data, somewhere, the index' own checksum
        tiny.flip(file, at)
        assert f"{file}: bytes differ" in problems(lake_copy, path)
        capture, dataset = Capture(path), open_capture(path)
        for read in (
            lambda: capture.array(name)[:],  # noqa: B023
            lambda: capture.array(name)[16:32],  # noqa: B023
            lambda: dataset[name].values,  # noqa: B023
            lambda: dataset[name][16:32].mean().compute(),  # noqa: B023
            lambda: dataset[name][::3].values,  # noqa: B023
        ):
            with pytest.raises(CorruptError, match="stored bytes are damaged") as caught:
                read()
            assert str(caught.value).startswith(f"{file}: ") and "\n" not in str(caught.value)
        # The rest of the capture still reads, and reads right.
        assert np.array_equal(capture.array(name)[:16], whole[:16]) and np.array_equal(
            capture.array(name)[32:], whole[32:]
        )
        tiny.flip(file, at)
    assert verify(lake_copy, path).ok


@pytest.mark.parametrize("name", COORDINATES)
def test_flipped_byte_in_a_coordinate(lake_copy, name):
    path = find_capture(lake_copy, "llama-it", "native")
    file = shard_of(path, name, 0)
    for at in (0, file.stat().st_size - 1):
        tiny.flip(file, at)
        assert f"{file}: bytes differ" in problems(lake_copy, path)
        for read in (lambda: Capture(path).array(name)[:], lambda: open_capture(path)[name].values):
            with pytest.raises(CorruptError) as caught:
                read()
            assert str(caught.value).startswith(f"{file}: ") and "\n" not in str(caught.value)
        tiny.flip(file, at)


@pytest.mark.parametrize("name", ["zarr.json", "resid/zarr.json", "token_id/zarr.json", "prompt_id/zarr.json"])
def test_damaged_metadata(lake_copy, name):
    path = find_capture(lake_copy, "llama-it", "native")
    size = (path / name).stat().st_size
    for at in (0, size // 3, size // 2, size - 2):
        tiny.flip(path / name, at)
        assert f"{path / name}: bytes differ" in problems(lake_copy, path)
        tiny.flip(path / name, at)
    # Readable but wrong: another shape, other numbers.
    text = (path / name).read_text()
    (path / name).write_text(text.replace("float32", "float64").replace('"int32"', '"int16"'))
    if (path / name).read_text() != text:
        assert f"{path / name}: " in problems(lake_copy, path)
    (path / name).write_text("{}")
    assert f"{path / name}: 2 bytes, the manifest says {size}" in problems(lake_copy, path)
    if name == "zarr.json":  # all metadata is consolidated in it
        for read in (lambda: Capture(path).array("resid")[:], lambda: open_capture(path)):
            with pytest.raises(CorruptError) as caught:
                read()
            assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_damaged_manifest(lake_copy):
    path = find_capture(lake_copy, "llama-it", "native")
    good = (path / "manifest.json").read_bytes()
    (path / "manifest.json").write_bytes(good[:100])
    for read in (lambda: verify(lake_copy, path), lambda: open_capture(path)):
        with pytest.raises(LakeError, match="manifest.json: not valid JSON"):
            read()
    # A list of files that was edited no longer hashes to what is recorded beside it.
    record = json.loads(good)
    record["files"].popitem()
    (path / "manifest.json").write_text(json.dumps(record))
    for read in (lambda: verify(lake_copy, path), lambda: open_capture(path)):
        with pytest.raises(CorruptError, match="manifest.json: its content is damaged"):
            read()


@pytest.mark.parametrize("name", [*SITES, "token_id", "prompt_id"])
@pytest.mark.parametrize("how", ["truncated", "emptied", "missing"])
def test_truncated_and_missing_files(lake_copy, name, how):
    path = find_capture(lake_copy, "llama-pt", "teacher")
    file = shard_of(path, name, 0)
    data = file.read_bytes()
    if how == "missing":
        file.unlink()
        expected = f"{file}: missing"
    else:
        file.write_bytes(data[: len(data) // 2 if how == "truncated" else 0])
        expected = f"{file}: {file.stat().st_size} bytes, the manifest says {len(data)}"
    assert expected in problems(lake_copy, path)
    for read in (lambda: Capture(path).array(name)[:], lambda: open_capture(path)[name].values):
        with pytest.raises(CorruptError) as caught:
            read()
        assert str(caught.value).startswith(f"{file}: ") and "\n" not in str(caught.value)


def test_every_kind_of_file_is_watched(lake_copy):
    """One flipped byte in each file of a capture in turn; none gets past verify."""
    path = find_capture(lake_copy, "llama-pt", "native")
    pick = random.Random(5)
    files = [f for f in path.rglob("*") if f.is_file() and f.name != "manifest.json"]
    for file in pick.sample(files, 25):
        tiny.flip(file, pick.randrange(file.stat().st_size))
    flipped = [f for f in files if f"{f}: bytes differ" in problems(lake_copy, path)]
    assert len(flipped) == 25


def test_extra_files_are_named(lake_copy):
    path = find_capture(lake_copy, "llama-it", "native")
    (path / "resid" / "c" / "99").mkdir()
    (path / "resid" / "c" / "99" / "0").write_text("x")
    assert problems(lake_copy, path) == f"{path}/resid/c/99/0: not in the manifest"


def test_exchanged_shards_are_found(lake_copy):
    """Two good shards of one array in each other's place: every checksum inside holds, the manifest's does not."""
    path = find_capture(lake_copy, "llama-it", "native")
    one, two = shard_of(path, "resid", 0), shard_of(path, "resid", 1)
    data = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(data)
    found = problems(lake_copy, path)
    assert str(one) in found and str(two) in found


def rewrite(layout, path, name, change) -> None:
    """Rewrite shard 0 of a variable with changed values and record its new hash, as a careless tool would."""
    array = zarr.open_array(path / name, mode="r+")
    block = np.asarray(array[:16])
    change(block)
    array[:16] = block
    record_again(path, shard_of(path, name, 0))


def record_again(path, file) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"][file.relative_to(path).as_posix()] = {"sha256": hash_file(file), "bytes": file.stat().st_size}
    manifest["bytes"] = sum(entry["bytes"] for entry in manifest["files"].values())
    manifest["capture_sha256"] = hash_json(manifest["files"])
    (path / "manifest.json").write_text(json.dumps(sealed(manifest)))


@pytest.fixture(scope="module")
def widened(tmp_path_factory):
    root = tmp_path_factory.mktemp("widened")
    pair = tiny.make_pair(root / "pair", dtype=torch.bfloat16)
    return tiny.capture(root / "lake", pair, tiny.BARE, variants=("pt",))


def test_low_halves_are_checked_even_when_the_hash_is_right(widened, tmp_path):
    shutil.copytree(widened.root, tmp_path / "copy")
    layout = type(widened).open(tmp_path / "copy")
    path = find_capture(layout, "llama-pt", "bare")
    assert verify(layout, path).ok

    def dirty(block):
        block.view(np.uint32)[3, 1, :2] |= 1

    rewrite(layout, path, "resid", dirty)
    assert f"{path}/resid: 2 values are not widened bfloat16 (low 16 bits set)" in problems(layout, path)


def test_values_are_checked_even_when_the_hash_is_right(lake_copy):
    path = find_capture(lake_copy, "llama-it", "native")

    def spoil(block):
        block[0, 0, 0], block[1, 0, 0] = np.nan, 1e9

    rewrite(lake_copy, path, "mlp_out", spoil)
    found = problems(lake_copy, path)
    assert "mlp_out: 1 values are not finite, the manifest says 0" in found
    assert "mlp_out: range [" in found and "1000000000.0], the manifest says [" in found


def test_coordinates_are_checked_against_the_stream(lake_copy):
    path = find_capture(lake_copy, "llama-it", "native")
    array = zarr.open_array(path / "step", mode="r+")
    array[5] = 3
    record_again(path, shard_of(path, "step", 0))
    assert f"{path}/step: differs from stream" in problems(lake_copy, path)


def test_shard_that_another_program_spoiled(lake_copy):
    """The manifest's hash fits the file, and the file is no shard."""
    path = find_capture(lake_copy, "llama-it", "native")
    file = shard_of(path, "mlp_out", 2)
    file.write_bytes(b"no shard")
    record_again(path, file)
    assert f"{file}: stored bytes are damaged" in problems(lake_copy, path)


def test_missing_or_damaged_stream_is_a_problem_of_the_capture(lake_copy):
    path = find_capture(lake_copy, "llama-it", "native")
    stream = lake_copy.streams / f"{path.stem}.parquet"
    tiny.flip(stream, stream.stat().st_size // 2)
    assert f"{stream}: bytes differ" in problems(lake_copy, path)
    stream.unlink()
    assert f"{stream}: stream {path.stem} is recorded but its token file is missing" in problems(lake_copy, path)


def test_damaged_head_names_its_file(lake_copy):
    arrays, _ = read_head(lake_copy, "llama-it")
    assert set(arrays) == {"norm_weight", "unembed", "real_token"}
    for file in (lake_copy.model("llama-it") / "head.zarr").rglob("c/0*"):
        for found in (f for f in (file, *file.rglob("*")) if f.is_file()):
            tiny.flip(found, found.stat().st_size // 2)
            with pytest.raises(CorruptError) as caught:
                read_head(lake_copy, "llama-it")
            assert str(caught.value).startswith(f"{found}: ")
            tiny.flip(found, found.stat().st_size // 2)


def test_reforward_is_exact_on_the_same_machine(captured, llama):
    model = load_model(llama.it)
    outcome = reforward(captured, model, find_capture(captured, "llama-it", "native"), 3)
    assert outcome.exact and outcome.ok and outcome.prompts == 3
    assert outcome.worst == dict.fromkeys(("resid", "mlp_out", "logsumexp"), 0.0)
    assert reforward(captured, model, find_capture(captured, "llama-it", "native"), 99).prompts == len(tiny.TEXTS)


def test_reforward_tells_changed_weights(captured, llama, tmp_path):
    path = find_capture(captured, "llama-it", "native")
    shutil.copytree(llama.it.path, tmp_path / "it")
    weights = load_file(tmp_path / "it" / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][0, 0] += 1.0
    save_file(weights, tmp_path / "it" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LakeError, match="was captured from another checkpoint"):
        reforward(captured, load_model(tiny.spec(tmp_path / "it", "llama-it")), path, 2)
    # The same files, but a model that computes something else.
    model = load_model(llama.it)
    with torch.no_grad():
        model.hf.model.layers[1].mlp.up_proj.weight[0, 0] += 1.0
    outcome = reforward(captured, model, path, 2)
    assert not outcome.exact and not outcome.ok and outcome.worst["mlp_out"] > outcome.allowed["mlp_out"]


def test_leftover_records_of_a_kill_after_sealing_are_harmless(lake_copy, llama):
    path = find_capture(lake_copy, "llama-it", "native")
    clean = tiny.tree(path)
    (path / ".progress").mkdir()
    (path / ".progress" / "shard-000000.json").write_text("{}")
    assert verify(lake_copy, path).ok
    tiny.capture(lake_copy.root, llama, tiny.NATIVE)
    assert tiny.tree(path) == clean


def test_sealing_twice_gives_the_same_bytes(lake):
    """A kill between consolidating the metadata and the manifest: sealing starts over on what it left."""
    from test_store_capture import made_template

    template = made_template()
    path = lake.capture("made-pt", template.stream.name)
    tiny.write_capture(path, template)
    zarr.consolidate_metadata(str(path))
    shutil.copytree(path, path.with_name("again.zarr"))
    seal(path)
    zarr.consolidate_metadata(str(path.with_name("again.zarr")))
    seal(path.with_name("again.zarr"))
    assert tiny.tree(path) == tiny.tree(path.with_name("again.zarr"))
