"""Lazy analysis: nothing is read before values are asked for, graphs stay small, and the values are the tables'."""

import dask
import numpy as np
import pytest
import tiny
from actlake.analyze import lazy
from actlake.lake import Lake
from actlake.store.captures.allocate import Template, create_capture
from actlake.store.captures.reader import find_capture, open_capture
from actlake.store.core.errors import LakeError
from actlake.store.format.paths import Layout
from actlake.store.format.shards import Grid
from dask._task_spec import Alias


@pytest.fixture
def reads(monkeypatch):
    """Shards that were opened."""
    found: list[str] = []
    pieces = Grid._pieces
    monkeypatch.setattr(Grid, "_pieces", lambda self, file, spots: (found.append(file), pieces(self, file, spots))[1])
    return found


@pytest.mark.parametrize("by", ["layer", "token"])
def test_columns_are_those_of_the_tables(captured, reads, by):
    lake = Lake(captured.root)
    tables = {
        name: lake.sql(
            f"SELECT * FROM {name} WHERE variant = 'it' AND stream LIKE 'native%' ORDER BY layer, token"
        ).df()
        for name in ("lens", "delta")
    }
    reads.clear()
    capture = lake.dataset("llama-it", "native", by=by)
    found = {"lens": lazy.lens(capture, lake.head("llama-it")), "delta": lazy.delta(capture)}
    assert not reads
    for name, dataset in found.items():
        assert dataset.sizes == {"token": capture.sizes["token"], "layer": capture.sizes["layer"] + 1}
        values, table = dataset.compute(), tables[name]
        for column in dataset.data_vars:
            expected = table[column].to_numpy(float, na_value=np.nan).reshape(values.sizes["layer"], -1)
            if column == "rank_target":
                expected = np.nan_to_num(expected)  # NULL where nothing follows
            assert np.allclose(values[column].transpose("layer", "token"), expected, atol=1e-5, equal_nan=True), column
    assert reads and found["lens"].layer.values.tolist() == [-1, 0, 1, 2]
    by_step = found["lens"].kl_final_layer.groupby("step").mean()
    assert by_step.sizes["step"] == len(np.unique(capture.step)) > 3


def test_other_captures_are_refused(captured):
    capture = Lake(captured.root).dataset("llama-it", "native")
    with pytest.raises(ValueError, match="resid is not there at each of the 4 boundaries"):
        lazy.delta(capture.isel(boundary=slice(0, 2)))
    with pytest.raises(LakeError, match="by='prompt': expected layer"):
        Lake(captured.root).dataset("llama-it", "native", by="prompt")


@pytest.fixture(scope="module")
def huge(tmp_path_factory) -> Layout:
    """1.5 million tokens of a model of Gemma-3-4B's shape, allocated and not written: metadata alone."""
    layout = Layout.open(tmp_path_factory.mktemp("huge") / "lake", create=True)
    rows = [(f"p{index}", "", [5] * 500, [6] * 500) for index in range(1500)]
    stream = tiny.synthetic_stream(rows, texts=[])
    template = Template(
        stream, {"resid": (35, 2560), "mlp_out": (34, 2560)}, tuple(range(35)), tuple(range(34)), "bfloat16", tiny.MADE
    )
    create_capture(layout.capture("huge-it", stream.name), template)
    return layout


@pytest.mark.parametrize("row", ["lens", "delta", "mean"])
def test_graphs_of_large_captures_stay_small(huge, reads, row):
    path = find_capture(huge, "huge-it", "raw")
    capture = open_capture(path, allow_unsealed=True, by="layer" if row == "mean" else "token")
    head = tiny.head(2560, 64)
    expression = {
        "lens": lambda: lazy.lens(capture, head).kl_final_layer.mean("token"),
        "delta": lambda: lazy.delta(capture).block_cos.mean("token"),
        "mean": lambda: capture.resid.sel(boundary=20).mean("token"),
    }[row]()
    (optimized,) = dask.optimize(expression.data)
    graph = optimized.__dask_graph__()
    tasks = [key for key in graph if not isinstance(graph[key], Alias)]  # second names of fused tasks do nothing
    assert 10 < len(tasks) < 5000
    assert not reads
