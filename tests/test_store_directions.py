"""Stored directions: what goes in comes out, in plain xarray too; kills and damage are seen."""

import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from actlake.store.artifacts import directions
from actlake.store.artifacts.directions import directions_path, directions_writer, read_directions
from actlake.store.core.errors import CorruptError, LakeError
from actlake.store.format.paths import Layout
from tiny import flip, tree

MODELS = {"pt": "p-pt", "it": "p-it"}
RECIPE = {"captures": ["a", "b"], "version": 1}


def write(lake: Layout, values: np.ndarray, step: int = 3) -> Path:
    with directions_writer(lake, MODELS, "own", RECIPE) as writer:
        writer.create("difference", values.shape)
        for start in range(0, len(values), step):
            writer.append("difference", values[start : start + step])
        writer.put("tokens", np.arange(len(values)))
        writer.put("norm", np.array([1.0, np.nan]))
    return directions_path(lake, MODELS, "own", RECIPE)


@pytest.mark.parametrize("chunk", [1, 100, 32 << 20])
def test_records_come_back_whatever_the_chunks(lake: Layout, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directions, "CHUNK_BYTES", chunk)
    values = np.random.default_rng(0).standard_normal((10, 2, 4)).astype(np.float32)
    marker = write(lake, values)
    arrays, recipe = read_directions(marker)
    assert recipe == {"kind": "own", "models": MODELS, **RECIPE}
    np.testing.assert_array_equal(arrays["difference"][:], values)
    np.testing.assert_array_equal(arrays["difference"][:, 1], values[:, 1])
    plain = xr.open_zarr(marker.with_suffix(".zarr"))
    assert plain.difference.dims == ("record", "layer", "d_model") and plain.attrs["recipe"]["kind"] == "own"
    np.testing.assert_array_equal(plain.difference, values)
    np.testing.assert_array_equal(plain.norm, [1, np.nan])
    assert plain.tokens.values.tolist() == list(range(10))
    assert [path.name for path in marker.parent.iterdir() if path.name.startswith(".")] == []


def test_an_error_leaves_nothing_and_a_kill_is_written_over(lake: Layout) -> None:
    before = tree(lake.root)
    with pytest.raises(RuntimeError, match="stop"), directions_writer(lake, MODELS, "own", RECIPE) as writer:
        writer.put("norm", np.zeros(2))
        raise RuntimeError("stop")
    assert tree(lake.root) == before
    marker = write(lake, np.zeros((2, 2, 4)))
    whole = tree(lake.root)
    (marker / "record.json").unlink()
    with pytest.raises(LakeError, match="missing"):
        read_directions(marker)
    write(lake, np.zeros((2, 2, 4)))
    assert tree(lake.root) == whole


def test_damage_is_named(lake: Layout) -> None:
    marker = write(lake, np.random.default_rng(1).standard_normal((2, 2, 4)))
    folder = marker.with_suffix(".zarr")
    chunk = folder / "difference" / "c" / "0" / "0" / "0"
    whole = chunk.read_bytes()
    flip(chunk, len(whole) // 2)
    with pytest.raises(CorruptError, match="difference/c/0"):
        read_directions(marker)[0]["difference"][:]
    chunk.write_bytes(whole)
    flip(folder / "zarr.json", 40)
    with pytest.raises(CorruptError, match="zarr.json"):
        read_directions(marker)
    folder.rename(folder.with_name("elsewhere"))
    with pytest.raises(LakeError, match="run the question again"):
        read_directions(marker)
    folder.mkdir()
    (folder / "record.json").write_text(json.dumps({"format_version": 99}))
    with pytest.raises(LakeError, match="upgrade"):
        read_directions(marker)
