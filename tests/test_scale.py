"""The benchmark of metadata on a small lake: what grows with the tokens of a capture is a few tasks a shard row, and no time is told here."""

import sys
from pathlib import Path

import actlake
import pytest
from actlake.store.captures import reader
from actlake.store.captures.manifest import read_manifest
from tiny import edit_json

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import scale  # noqa: E402

ROWS = (4, 12)  # shard rows of each capture


@pytest.fixture(scope="module")
def lakes(tmp_path_factory: pytest.TempPathFactory) -> dict[int, actlake.Lake]:
    """Shard rows -> a lake of one pair."""
    root = tmp_path_factory.mktemp("scale")
    made = {rows: scale.make_lake(root / str(rows), rows * scale.SHARD - 100, pairs=1) for rows in ROWS}
    return {rows: actlake.Lake(layout.root) for rows, layout in made.items()}


def test_the_lake_is_what_it_says(lakes: dict[int, actlake.Lake]) -> None:
    for rows, lake in lakes.items():
        table = lake.captures
        assert table.sealed.all() and table.tokens.tolist() == [rows * scale.SHARD - 100] * 2
        manifest = read_manifest(Path(table.path[0])) or {}
        shards = [name for name in manifest["files"] if "/c/" in name and name.split("/")[0] in scale.SIZES]
        assert manifest["n_shards"] == rows and len(shards) == rows * len(scale.SIZES)
        found = lake.dataset("pair0-it", "native")
        assert found.resid.shape == (rows * scale.SHARD - 100, scale.LAYERS + 1, scale.WIDTH)


def test_tasks_a_shard_row(lakes: dict[int, actlake.Lake]) -> None:
    few, many = (scale.graphs(lakes[rows]) for rows in ROWS)
    a_row = {what: (many[what] - few[what]) / (ROWS[1] - ROWS[0]) for what in few}
    rows = scale.TOKENS / scale.SHARD
    assert all(count * rows < scale.TASKS for what, count in a_row.items() if "mean" in what), a_row
    assert a_row["every column of the lens, token by token"] <= 10  # a task for the lens, one a column, one to read


def test_a_row_is_planned_without_reading_shards(lakes: dict[int, actlake.Lake]) -> None:
    """There are none."""
    jobs, blocks = scale.row_plan(lakes[4].layout, "L2")
    prompts = int(lakes[4].captures.prompts.sum())
    assert jobs == 4 and blocks == prompts  # a prompt's residuals are more than a block is to hold


def test_a_manifest_is_read_once_for_all_listings(
    lakes: dict[int, actlake.Lake], monkeypatch: pytest.MonkeyPatch
) -> None:
    lake, read = lakes[4], list[Path]()
    reader._sizes.cache_clear()
    monkeypatch.setattr(reader, "read_manifest", lambda path: (read.append(path), read_manifest(path))[1])
    first = lake.captures
    assert lake.captures.equals(first) and lake.sql("SELECT sum(bytes) FROM captures").fetchall()
    assert len(read) == 2
    file = read[0] / "manifest.json"
    data = file.read_bytes()
    file.with_name("again").write_bytes(data)
    edit_json(file.with_name("again"), n_prompts=7)
    file.with_name("again").replace(file)
    assert lake.captures.prompts.tolist()[0] == first.prompts[0] - 1 and len(read) == 3
    file.write_bytes(data)
