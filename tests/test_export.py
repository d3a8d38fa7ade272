"""What is exported comes back by import, bit for bit, from every format; nothing is overwritten, and nothing half is left."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import xarray as xr
from actlake.lake import Lake
from actlake.store.core.catalog import PairSpec
from actlake.store.core.errors import LakeError
from actlake.store.format.paths import Layout
from safetensors.numpy import load_file

CAPTURE = "llama-it/native"


@pytest.fixture
def lake(captured: Layout, llama: PairSpec) -> Lake:
    found = Lake(captured)
    found.__dict__["catalog"] = tiny.catalog_of(llama)
    return found


@pytest.mark.parametrize(
    ("format", "back", "more"),
    [
        ("safetensors", "vllm", {"sites": ["resid"]}),
        ("npy", "npy", {}),
        ("parquet", "datasets", {}),
        ("arrow", "datasets", {}),
    ],
)
def test_what_is_exported_comes_back(lake: Lake, tmp_path: Path, format: str, back: str, more: dict[str, Any]) -> None:
    out = tmp_path / f"out.{format}" if format in ("parquet", "arrow") else tmp_path / "out"
    assert lake.export(CAPTURE, format, out, **more) == out
    other = Lake(Layout.open(tmp_path / "lake", create=True))
    other.__dict__["catalog"] = lake.catalog
    result = other.add_capture(back, out, "llama-it")
    before, after = lake.dataset("llama-it", "native"), other.dataset("llama-it", result.path.stem)
    for site in more.get("sites", ["resid", "mlp_out"]):
        assert np.array_equal(before[site].values.view(np.uint32), after[site].values.view(np.uint32)), site
    assert before.token_id.values.tolist() == after.token_id.values.tolist()
    assert before.offset.values.tolist() == after.offset.values.tolist()
    assert all(report.ok for report in other.verify(reforward=2))


def test_parts_and_stock_readers(lake: Lake, tmp_path: Path) -> None:
    whole = lake.dataset("llama-it", "native")
    lake.export(CAPTURE, "netcdf", tmp_path / "x.nc", boundaries=[1, 3], limit=2)
    with xr.open_dataset(tmp_path / "x.nc", engine="scipy") as found:
        tokens = int(whole.offset[2])
        assert np.array_equal(found.resid.values, whole.resid.sel(boundary=[1, 3])[:tokens].values)
        assert found.boundary.values.tolist() == [1, 3] and found.attrs["model"] == "llama-it"
    lake.export(CAPTURE, "safetensors", tmp_path / "x", limit=1)
    assert load_file(tmp_path / "x" / "0.safetensors")["hidden_states"].shape == (int(whole.offset[1]), 4, 32)
    lake.export(CAPTURE, "npy", tmp_path / "y", sites=["mlp_out"])
    mapped = np.load(tmp_path / "y" / "mlp_out" / "2.npy", mmap_mode="r")
    assert np.array_equal(mapped, whole.mlp_out[:, 2].values)


def test_bfloat16_keeps_its_bits(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file as load_torch

    pair = tiny.make_pair(tmp_path / "pair", dtype=torch.bfloat16)
    lake = Lake(tiny.capture(tmp_path / "lake", pair, tiny.RAW, variants=("it",)))
    lake.export("llama-it/raw", "safetensors", tmp_path / "x")
    found = load_torch(tmp_path / "x" / "0.safetensors")["hidden_states"]
    whole = lake.dataset("llama-it", "raw").resid.values[: len(found)]
    assert found.dtype == torch.bfloat16 and np.array_equal(found.float().numpy(), whole)


def test_refusals(lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "taken").write_text("mine")
    for format, out, more, words in (
        ("csv", "x", {}, "format 'csv': expected one of safetensors, npy, parquet, arrow, netcdf"),
        ("npy", "taken", {}, "taken: is there already, and nothing is overwritten"),
        ("npy", "x", {"sites": ["z"]}, "site z: expected one of resid, mlp_out"),
        ("npy", "x", {"boundaries": [9]}, "boundary 9: expected one of 0, 1, 2, 3"),
        ("npy", "x", {"limit": 0}, "a limit of 0 leaves no prompts; give 1 or more"),
        ("npy", "x", {"limit": -1}, "a limit of -1 leaves no prompts; give 1 or more"),
        ("npy", "x", {"limit": 2.5}, "limit: expected a whole number of prompts, found 2.5"),
        ("npy", "x", {"sites": "z"}, "site z: expected one of resid, mlp_out"),
    ):
        with pytest.raises(LakeError) as refused:
            lake.export(CAPTURE, format, tmp_path / out, **more)
        assert words in str(refused.value)
    from actlake.exchange import export

    monkeypatch.setattr(export, "free_bytes", lambda _: 10)
    with pytest.raises(LakeError, match="10 B are free|10.0 B are free"):
        lake.export(CAPTURE, "npy", tmp_path / "x")
    assert [file.name for file in tmp_path.iterdir()] == ["taken"] and (tmp_path / "taken").read_text() == "mine"


def test_an_export_that_fails_leaves_nothing(lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from actlake.exchange import export

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(export, "_write_safetensors", stop)
    with pytest.raises(KeyboardInterrupt):
        lake.export(CAPTURE, "safetensors", tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_the_command_line(captured: Layout, tmp_path: Path, command_line: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = command_line(
        "export", CAPTURE, "npy", str(tmp_path / "x"), "--boundary", "1", "--lake", str(captured.root)
    )
    assert code == 0 and str(tmp_path / "x") in out and (tmp_path / "x" / "resid" / "1.npy").exists(), err
    code, _, err = command_line("export", CAPTURE, "npy", str(tmp_path / "x"), "--lake", str(captured.root))
    assert code == 2 and err.count("\n") == 1 and "nothing is overwritten" in err


def test_a_place_that_can_not_be_used(
    captured: Layout, tmp_path: Path, command_line: Callable[..., tuple[int, str, str]]
) -> None:
    (tmp_path / "file").write_text("mine")
    place = str(tmp_path / "file" / "x")
    for words in (["export", CAPTURE, "npy", place], ["explore", "--out", place]):
        code, _, err = command_line(*words, "--lake", str(captured.root))
        line = err.splitlines()[-1]
        assert code == 2 and "Traceback" not in err and str(tmp_path / "file") in line, err
        assert "Not a directory; name another place" in line or "File exists; name another place" in line, err
