"""Checkpoints that don't load any more: the rows that run them say so, and all others are answered."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
import tiny
from actlake.capture.model.load import Model
from actlake.cli.main import app
from actlake.queries.replayed.replays import Replays
from actlake.queries.rows.registry import find
from actlake.store.core.catalog import PairSpec
from actlake.store.core.errors import LakeError
from actlake.store.format.paths import Layout
from asking import answer, answer_all
from safetensors.torch import load_file, save_file
from test_graft_rows import catalog
from test_observed_rows import texts
from typer.testing import CliRunner

ROWS = ("0A", "exp11", "exp14", "exp16", "exp16_BD", "exp20", "exp21", "exp23")
REPLAYED = {"exp11", "exp14", "exp16_BD", "exp20", "exp23"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PairSpec]:
    """A folder with a pair and a lake of its captures; copy it before you spoil it."""
    folder = tmp_path_factory.mktemp("broken")
    pair = tiny.make_pair(folder / "pair")
    tiny.capture(folder / "lake", pair, tiny.NATIVE, tiny.TEACHER, tiny.RAW, prompts=tiny.prompt_set(texts(12)))
    return folder, pair


@pytest.fixture
def scene(tmp_path: Path, whole: tuple[Path, PairSpec]) -> tuple[Layout, Path, Path]:
    """A lake, its catalog, and the folder of the PT checkpoint."""
    shutil.copytree(whole[0], tmp_path / "copy")
    pair = PairSpec("llama", *(tiny.spec(tmp_path / "copy" / "pair" / v, f"llama-{v}") for v in ("pt", "it")), {})
    return Layout.open(tmp_path / "copy" / "lake"), catalog(tmp_path, pair), pair.pt.path


def drop(folder: Path, name: str) -> None:
    """Take a tensor out of a checkpoint."""
    weights = load_file(folder / "model.safetensors")
    del weights[name]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def asked(layout: Layout, file: Path) -> tuple[set[str], dict[str, str]]:
    """The rows that are answered, and why the others are not."""
    answers, refused, _ = answer_all(layout, [find(row) for row in ROWS], "llama", catalog=file)
    return {found.query.id for found in answers}, {missing.query.id: missing.reason for missing in refused}


def test_a_missing_tensor_stops_the_rows_that_need_it(scene, monkeypatch) -> None:
    layout, file, folder = scene
    drop(folder, "model.layers.2.mlp.down_proj.weight")
    loads, load = [], Replays._load_host

    def counted(self: Replays, variant: str) -> Model:
        loads.append(self._names[variant])
        return load(self, variant)

    monkeypatch.setattr(Replays, "_load_host", counted)
    answered, refused = asked(layout, file)
    assert answered == set(ROWS) - REPLAYED and set(refused) == REPLAYED
    for row, reason in refused.items():
        assert "model llama-pt: " in reason and "lacks 1 weights" in reason and "down_proj" in reason, row
        assert reason.endswith(f"; then run `actlake run {row} --pair llama`") and "\n" not in reason
    assert sorted(loads) == [
        "llama-it",
        "llama-it",
        "llama-pt",
        "llama-pt",
    ]  # before and after probes, not once a condition
    left = {path.parent.name for path in (layout.root / "tables").rglob("*.parquet")}
    assert {"delta", "pair_lens", "tokens", "writeout"} <= left
    assert not {"graft", "divergence", "factorial"} & left
    with pytest.raises(LakeError, match="lacks 1 weights"):
        answer(layout, find("exp11"), "llama", catalog=file)


def test_a_missing_folder_is_seen_before_anything_runs(scene) -> None:
    layout, file, folder = scene
    shutil.rmtree(folder)
    answered, refused = asked(layout, file)
    assert answered == set(ROWS) - REPLAYED
    assert all(f"model llama-pt: {folder} has no config.json" in reason for reason in refused.values())


def test_optional_tables_of_a_model_that_does_not_load_are_done_without(scene, monkeypatch) -> None:
    """exp14 does without `mechanism`: here its job alone can't load the models."""
    layout, file, _ = scene
    expected = answer(layout, find("exp14"), "llama", catalog=file)
    for name in ("graft", "mechanism"):
        shutil.rmtree(layout.root / "tables" / name)

    def fails(*_: object) -> None:
        raise LakeError("no memory for this")

    monkeypatch.setattr("actlake.queries.replayed.graft._pushes", fails)
    found = answer(layout, find("exp14"), "llama", catalog=file)
    assert found.sentence.count("without mechanism(") == 4 and "no memory for this" in found.sentence
    assert len(found.table) < len(expected.table)


def test_all_rows_with_a_broken_model(scene, tmp_path, monkeypatch) -> None:
    layout, file, folder = scene
    drop(folder, "model.layers.2.mlp.down_proj.weight")
    some = {row: find(row) for row in ("0A", "exp16", "exp23")}
    monkeypatch.setattr("actlake.queries.rows.registry.queries", lambda *_: some)
    words = ["run", "--all", "--lake", str(layout.root), "--catalog", str(file), "--out", str(tmp_path / "out")]
    done = CliRunner(env={"COLUMNS": "200"}).invoke(app, words)
    said = " ".join(done.stdout.split())
    assert done.exit_code == 0 and "2 of 3 rows" in said
    assert "exp23 model llama-pt: " in said and said.count("lacks 1 weights") == 1
    assert pd.read_csv(tmp_path / "out" / "exp16-llama.csv")["n"].max() == 12
    assert "lacks 1 weights" in (tmp_path / "out" / "index.html").read_text()
