"""Rows that count: of the present code and the lake's present captures only; a stale or copied file changes no answer."""

import shutil
from dataclasses import replace

import actlake
import pyarrow.parquet as pq
import pytest
import tiny
from actlake.store.core.errors import CorruptError
from actlake.store.tables import files as live
from actlake.store.tables.declared import TABLES
from actlake.store.tables.sql import connect
from actlake.store.tables.statements import tables_in

COUNT = "SELECT count(*), count(DISTINCT (variant, stream, token, layer)) FROM lens WHERE lens = 'raw'"


def counted(layout) -> tuple[int, int]:
    """Rows of the lens table, and how many different ones."""
    return actlake.open(layout.root).sql(COUNT).fetchall()[0]


def test_rows_of_an_older_version_do_not_count(lake_copy, monkeypatch):
    before = counted(lake_copy)
    assert before[0] == before[1] > 0
    monkeypatch.setitem(TABLES._known, "lens", replace(TABLES["lens"], version=2))
    assert connect(lake_copy).sql(COUNT).fetchall() == [(0, 0)]  # nothing of this version is there yet
    assert counted(lake_copy) == before
    why = set(live.stale_files(lake_copy, "lens").values())
    assert len(why) == 1 and "made by version 1" in why.pop()


def test_rows_of_a_replaced_capture_do_not_count(llama, tmp_path):
    layout = tiny.capture(tmp_path / "lake", llama, tiny.RAW)
    before = counted(layout)
    shutil.rmtree(layout.root / "captures" / "llama-it")
    tiny.capture(tmp_path / "lake", llama, tiny.RAW, batch=2)
    stale = live.stale_files(layout, "lens")
    assert len(stale) == 1 and "made from another capture" in next(iter(stale.values()))
    assert counted(layout) == before  # the same positions, once


def test_a_table_of_another_layout_closes_only_itself(lake_copy):
    counted(lake_copy)
    (lake_copy.table("delta")).mkdir(exist_ok=True)
    (lake_copy.table("delta") / "broken.parquet").write_bytes(b"no table")
    assert counted(lake_copy)[0] > 0
    assert actlake.open(lake_copy.root).sql("SELECT count(*) FROM captures").fetchall()[0][0] > 0
    with pytest.raises(CorruptError, match=r"broken\.parquet"):
        connect(lake_copy, "SELECT * FROM delta")


def test_a_copied_table_file_is_refused_by_name(lake_copy):
    counted(lake_copy)
    file = min(lake_copy.table("lens").glob("*.parquet"))
    copy = file.with_name(f"{file.stem} (copy).parquet")
    shutil.copy(file, copy)
    with pytest.raises(CorruptError, match=r"\(copy\)\.parquet: .* belong into a file named .* delete it"):
        counted(lake_copy)
    copy.unlink()
    other = max(lake_copy.table("lens").glob("*.parquet"))
    shutil.copy(file, other)  # over another file of its table
    with pytest.raises(CorruptError, match=other.stem):
        counted(lake_copy)
    other.unlink()
    assert counted(lake_copy)[0] > 0


def test_a_changed_recipe_is_noticed(lake_copy, tmp_path):
    counted(lake_copy)
    file = min(lake_copy.table("lens").glob("*.parquet"))
    table = pq.read_table(file)
    changed = {
        **table.schema.metadata,
        b"actlake": table.schema.metadata[b"actlake"].replace(b'"version":1', b'"version":9'),
    }
    pq.write_table(table.replace_schema_metadata(changed), file)
    with pytest.raises(CorruptError, match=file.stem):
        counted(lake_copy)


@pytest.mark.parametrize(
    ("sql", "names"),
    [
        ("SELECT pair, tokens FROM captures", {"captures"}),
        ("SELECT layer, avg(entropy) AS attention FROM lens GROUP BY ALL", {"lens"}),
        ("SELECT 'weights' AS note, * FROM captures", {"captures"}),
        ("SELECT 1 AS x -- not of lens", set()),
        ('SELECT * FROM "LENS"', {"lens"}),
        ("WITH tokens AS (SELECT 1 AS a) SELECT * FROM tokens", set()),
        ("WITH x AS (SELECT * FROM delta) SELECT * FROM x, lens", {"delta", "lens"}),
        ("SELECT * FROM lens JOIN (SELECT * FROM tokens) USING (token)", {"lens", "tokens"}),
        ("SELECT (SELECT max(layer) FROM delta)", {"delta"}),
        ("FROM commitment", {"commitment"}),
        ("DESCRIBE words", {"words"}),
        ("SELECT * FROM query_table('lens')", {"lens"}),
        ("SELECT * FROM read_text('/etc/hostname')", set()),
        ("lens", {"lens"}),  # no statement: every name in the text
    ],
)
def test_only_tables_that_are_read_are_named(sql, names):
    assert tables_in(sql) == names
