"""Tables: what is written comes back through SQL, nothing else can be reached, and the commitment view on hand-made rows."""

from dataclasses import replace
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import tiny
from actlake.store.core.columns import Column
from actlake.store.core.errors import CorruptError, LakeError
from actlake.store.format.paths import Layout
from actlake.store.tables import files
from actlake.store.tables.declared import TABLES
from actlake.store.tables.files import table_file, table_key, write_table
from actlake.store.tables.sql import check_select, connect, interruptible, sql_error
from actlake.store.tables.statements import tables_in
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

RULES = [
    "top1",
    *(f"{family}_{threshold}" for family in ("kl", "entropy") for threshold in ("0.05", "0.1", "0.2", "0.5", "1.0")),
    *(f"cos_{threshold}" for threshold in ("0.8", "0.9", "0.95", "0.99")),
]


def lens_rows(layers: int, **columns: Any) -> dict[str, Any]:
    """Lens rows of one token, layer by layer (0 to L-1); columns that are not given are plain."""
    rows: dict[str, Any] = {
        "model": "p-it",
        "stream": "s",
        "lens": "raw",
        "prompt": np.zeros(layers, np.int32),
        "prompt_id": "a",
        "category": "C",
        "token": np.zeros(layers, np.int64),
        "position": np.zeros(layers, np.int32),
        "step": np.zeros(layers, np.int32),
        "layer": np.arange(layers, dtype=np.int32),
        "kl_layer_final": np.zeros(layers, np.float32),
        "kl_final_layer": np.zeros(layers, np.float32),
        "js_next": np.zeros(layers, np.float32),
        "entropy": np.zeros(layers, np.float32),
        "top1": np.full(layers, 7, np.int32),
        "p_target": np.ones(layers, np.float32),
        "rank_target": np.zeros(layers, np.int32),
        "cos_final": np.ones(layers, np.float32),
    }
    for name, value in columns.items():
        kept = rows[name]
        rows[name] = np.asarray(value, kept.dtype) if isinstance(kept, np.ndarray) else value
    return rows


def test_rows_come_back_through_sql(lake):
    rows = lens_rows(3, js_next=[0.5, np.nan, 0.25], top1=[1, 2, 3])
    path = write_table(lake, "lens", {"capture": "c", "kernel": 1}, [rows, {**rows, "model": "p-pt"}])
    found = connect(lake).sql("SELECT * FROM lens ORDER BY model, layer").df()
    assert list(found.columns) == ["pair", "variant", *TABLES["lens"].names]
    assert found.model.tolist() == ["p-it"] * 3 + ["p-pt"] * 3 and found.top1.tolist() == [1, 2, 3] * 2
    assert found.js_next.isna().tolist() == [False, True, False] * 2  # NaN is SQL's NULL
    assert connect(lake).sql("SELECT avg(js_next) FROM lens").fetchall() == [(0.375,)]
    file = pq.ParquetFile(path)
    assert file.num_row_groups == 2 and b'"kernel":1' in file.metadata.metadata[b"actlake"]


def test_groups_of_one_layer_become_one(lake, monkeypatch):
    monkeypatch.setattr(files, "ROW_GROUP_TOKENS", 5)

    def group(layer: int, start: int, size: int) -> dict[str, Any]:
        token = np.arange(start, start + size)
        return lens_rows(size, token=token, layer=np.full(size, layer), entropy=token + layer, prompt_id=f"p{start}")

    sizes = {0: 3, 3: 2, 5: 2, 7: 4}  # first token -> tokens
    written = [group(layer, start, size) for start, size in sizes.items() for layer in (-1, 0)]
    file = pq.ParquetFile(write_table(lake, "lens", {"capture": "c"}, written))
    found = [file.read_row_group(number).to_pydict() for number in range(file.num_row_groups)]
    assert [(part["layer"], part["token"]) for part in found] == [
        ([layer] * len(tokens), tokens) for tokens in ([0, 1, 2, 3, 4], [5, 6], [7, 8, 9, 10]) for layer in (-1, 0)
    ]
    rows = pd.concat(pd.DataFrame(part) for part in found)
    assert (rows["entropy"] == rows["token"] + rows["layer"]).all()
    assert rows["prompt_id"].tolist() == [f"p{max(start for start in sizes if start <= t)}" for t in rows["token"]]
    assert b'"capture":"c"' in file.metadata.metadata[b"actlake"] and not [*lake.table("lens").glob(".*")]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=6),
    text=st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=5),
)
def test_any_values_come_back(tmp_path_factory, values, text):
    lake = Layout.open(tmp_path_factory.mktemp("t") / "lake", create=True)
    write_table(lake, "lens", {"v": values}, [lens_rows(len(values), entropy=values, prompt_id=text)])
    found = connect(lake).sql("SELECT entropy, prompt_id FROM lens ORDER BY layer").fetchall()
    assert found == [(value, text) for value in values]


def test_key_is_the_recipe_and_an_existing_file_is_kept(lake):
    recipe = {"capture": "c", "dtype": "float32"}
    assert table_key("lens", recipe) == table_key("lens", dict(reversed(recipe.items())))
    assert (
        table_key("lens", recipe) != table_key("delta", recipe) != table_key("delta", {**recipe, "dtype": "bfloat16"})
    )
    path = write_table(lake, "lens", recipe, [lens_rows(2)])
    before = path.stat().st_mtime_ns
    assert path == table_file(lake, "lens", table_key("lens", recipe))
    assert write_table(lake, "lens", recipe, iter(lambda: pytest.fail("computed again"), None)) == path
    assert path.stat().st_mtime_ns == before


def test_failed_table_leaves_nothing_behind(lake):
    def groups():
        yield lens_rows(2)
        raise KeyError("kernel")

    with pytest.raises(KeyError):
        write_table(lake, "lens", {}, groups())

    def full():
        yield lens_rows(2)
        raise OSError(28, "No space left on device")

    with pytest.raises(LakeError, match="disk full while writing table lens .* nothing was kept"):
        write_table(lake, "lens", {}, full())
    assert set(tiny.tree(lake.root)) == {"lake.json"}


def test_tables_of_an_empty_lake_are_empty_and_typed(lake):
    connection = connect(lake)
    for name, table in TABLES.items():
        relation = connection.sql(f"SELECT * FROM {name}")
        asked = ["pair", "variant"] if "model" in table.names else ["pair"]
        assert (
            relation.columns == [*asked, *table.names, *["history"] * (name in ("pair_lens", "pair_lenses"))]
            and relation.fetchall() == []
        )
    assert connection.sql("SELECT count(*) FROM commitment").fetchall() == [(0,)]
    assert connection.sql("SELECT count(*) FROM captures").fetchall() == [(0,)]
    assert tables_in("SELECT * FROM lens JOIN tokens USING (token)") == {"lens", "tokens"}


def test_captures_and_streams_are_tables(captured):
    connection = connect(captured)
    assert connection.sql(
        "SELECT model, count(*) FROM captures WHERE sealed GROUP BY model ORDER BY model"
    ).fetchall() == [("llama-it", 1), ("llama-pt", 2)]
    rows = connection.sql("SELECT variant, recipe, split_part(stream, '-', 1) FROM streams ORDER BY ALL").fetchall()
    assert rows == [
        ("it", "native", "native"),
        ("it", "teacher", "native"),
        ("pt", "native", "native"),
        ("pt", "teacher", "teacher"),
    ]


# --- nothing but reading ----------------------------------------------------------------------------------------------

WRITING = [
    "COPY (SELECT 1) TO '{lake}/tables/x.csv'",
    "COPY lens TO '{outside}/x.parquet'",
    "COPY lens FROM '{outside}/secret.csv'",
    "ATTACH '{lake}/tables/x.db' AS x",
    "ATTACH '{outside}/x.db'",
    "INSERT INTO captures SELECT * FROM captures",
    "DELETE FROM captures",
    "UPDATE captures SET sealed = true",
    "DROP TABLE captures",
    "CREATE TABLE t AS SELECT 1",
    "CREATE TEMP TABLE t (a INT)",
    "CREATE VIEW v AS SELECT 1",
    "CREATE MACRO m() AS 1",
    "CREATE SECRET s (TYPE s3)",
    "ALTER TABLE captures ADD COLUMN x INT",
    "PRAGMA database_list",
    "PRAGMA enable_profiling",
    "SET enable_external_access = true",
    "SET allowed_directories = ['/']",
    "RESET allowed_directories",
    "INSTALL httpfs",
    "LOAD httpfs",
    "EXPORT DATABASE '{outside}/dump'",
    "IMPORT DATABASE '{outside}/dump'",
    "CALL pragma_version()",
    "CHECKPOINT",
    "VACUUM",
    "BEGIN",
    "USE memory",
    "PREPARE q AS SELECT 1",
    "SELECT 1; SELECT 2",
    "SELECT 1; COPY (SELECT 1) TO '{outside}/x.csv'",
    "EXPLAIN ANALYZE COPY (SELECT 1) TO '{outside}/x.csv'",
    "",
    "-- nothing",
]
READING = [
    "SELECT * FROM read_csv('/etc/passwd')",
    "SELECT * FROM read_csv('{outside}/secret.csv')",
    "SELECT * FROM read_csv_auto('{lake}/lake.json')",
    "SELECT * FROM read_text('{outside}/secret.csv')",
    "SELECT * FROM read_blob('{lake}/tables/../../secret.csv')",
    "SELECT * FROM read_text('{lake}/tables/../lake.json')",
    "SELECT * FROM read_text('{lake}/tables/link/secret.csv')",
    "SELECT * FROM read_json('{lake}/lake.json')",
    "SELECT * FROM read_parquet('{lake}/streams/*.parquet')",
    "SELECT * FROM parquet_metadata('{outside}/x.parquet')",
    "SELECT * FROM parquet_schema('{outside}/x.parquet')",
    "SELECT * FROM sniff_csv('{outside}/secret.csv')",
    "SELECT * FROM glob('{outside}/*')",
    "SELECT * FROM glob('/etc/*')",
    "SELECT * FROM '/etc/passwd'",
    "SELECT * FROM '{outside}/secret.csv'",
    "SELECT * FROM '{lake}/streams/*.parquet'",
    "SELECT * FROM 'https://example.org/x.parquet'",
    "SELECT * FROM read_parquet('s3://bucket/x.parquet')",
    "SELECT * FROM query('COPY (SELECT 1) TO ''{outside}/x.csv''')",
    "SELECT * FROM query_table('{outside}/secret.csv')",
    "SELECT * FROM python_variable",
    "SELECT * FROM frame",
    "SELECT * FROM lens JOIN read_csv('/etc/passwd') ON true",
    "WITH x AS (FROM read_text('/etc/passwd')) SELECT (SELECT content FROM x)",
    "SELECT * FROM enable_logging(storage = 'file', storage_path = '{outside}/log')",
    "SELECT * FROM enable_profiling(save_location = '{outside}/x.json')",
    "SELECT getenv('HOME')",
]
python_variable = frame = pd.DataFrame({"a": [1]})  # DuckDB would find them by name
BAD = [
    "SELEC 1",
    "SELECT * FROM nothing",
    "SELECT nothing FROM lens",
    "SELECT 'open",
    "SELECT 1/0 +",
    "SELECT CAST('x' AS INT)",
]


@pytest.fixture
def guarded(lake, tmp_path):
    (tmp_path / "secret.csv").write_text("a,b\n1,2\n")
    write_table(lake, "lens", {}, [lens_rows(2)])
    (lake.root / "tables" / "link").symlink_to(tmp_path)
    return lake, tmp_path


def ask(connection: duckdb.DuckDBPyConnection, sql: str) -> list:
    """What `lake.sql` does with a statement."""
    check_select(sql)
    try:
        return connection.execute(sql).fetchall()
    except duckdb.Error as error:
        raise sql_error(error) from error


@pytest.mark.parametrize("sql", WRITING + READING + BAD)
def test_everything_but_reading_tables_is_refused_in_one_line(guarded, sql):
    lake, outside = guarded
    before, connection = tiny.tree(outside), connect(lake)
    with pytest.raises(LakeError, match="^SQL: ") as caught:
        ask(connection, sql.format(lake=lake.root, outside=outside))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    assert tiny.tree(outside) == before
    assert ask(connection, "SELECT count(*) FROM lens") == [(2,)]


def test_without_the_statement_check_the_connection_still_reaches_no_other_file(guarded):
    """The second wall: statements that read files fail in DuckDB itself, and its settings are locked."""
    lake, outside = guarded
    connection = connect(lake)
    for sql in (*READING[:-1], WRITING[1], WRITING[4], *WRITING[17:22]):
        with pytest.raises(duckdb.Error):
            connection.execute(sql.format(lake=lake.root, outside=outside)).fetchall()
    assert sorted(p.name for p in outside.iterdir()) == ["lake", "secret.csv"]


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 42",
        "FROM lens",
        "WITH x AS (SELECT 1 AS a) FROM x",
        "SELECT layer, avg(entropy) FROM lens GROUP BY ALL",
        "VALUES (1)",
        "SELECT * FROM (SELECT layer, top1 FROM lens) UNPIVOT (v FOR k IN (layer, top1))",
        "SELECT 1 -- comment; COPY",
        "SELECT 'COPY x TO y'",
        "SELECT * FROM commitment",
        "SELECT * FROM captures",
    ],
)
def test_reading_is_allowed(guarded, sql):
    assert isinstance(ask(connect(guarded[0]), sql), list)


# --- commitment --------------------------------------------------------------------------------------------------------


def commitment(lake, **columns) -> dict[str, int]:
    write_table(lake, "lens", {"rows": {k: list(map(float, v)) for k, v in columns.items()}}, [lens_rows(5, **columns)])
    rows = connect(lake).sql("SELECT rule, layer FROM commitment").fetchall()
    assert sorted(rule for rule, _ in rows) == sorted(RULES)
    return dict(rows)


def test_commitment_of_top1_with_a_flip_back(lake):
    """Top tokens 7 5 7 5 7 of five layers: the early agreements do not last, so it commits at the last layer."""
    assert commitment(lake, top1=[7, 5, 7, 5, 7])["top1"] == 4


@pytest.mark.parametrize(
    ("top1", "layer"), [([7, 7, 7, 7, 7], 0), ([5, 7, 7, 7, 7], 1), ([7, 7, 5, 7, 7], 3), ([5, 5, 5, 5, 7], 4)]
)
def test_commitment_of_top1(lake, top1, layer):
    assert commitment(lake, top1=top1)["top1"] == layer


def test_commitment_thresholds(lake):
    found = commitment(lake, kl_final_layer=[2.0, 0.7, 0.3, 0.07, 0.0], cos_final=[0.5, 0.85, 0.92, 0.97, 1.0])
    assert {rule: layer for rule, layer in found.items() if rule.startswith("kl")} == {
        "kl_1.0": 1, "kl_0.5": 2, "kl_0.2": 3, "kl_0.1": 3, "kl_0.05": 4,
    }  # fmt: skip
    assert {rule: layer for rule, layer in found.items() if rule.startswith("cos")} == {
        "cos_0.8": 1, "cos_0.9": 2, "cos_0.95": 3, "cos_0.99": 4,
    }  # fmt: skip
    assert found["top1"] == 0


def test_commitment_comes_back_over_the_threshold(lake):
    found = commitment(lake, kl_final_layer=[0.01, 0.01, 0.3, 0.01, 0.0], cos_final=[1.0, 0.7, 1.0, 1.0, 1.0])
    assert (found["kl_0.2"], found["kl_0.5"], found["cos_0.8"], found["cos_0.99"]) == (3, 0, 2, 2)


def test_never_committing_is_the_last_layer(lake):
    """A tuned lens may miss its own threshold even at the last layer."""
    found = commitment(lake, kl_final_layer=[3, 3, 3, 3, 3], cos_final=[0, 0, 0, 0, 0], entropy=[0, 2, 0, 2, 0])
    assert {found[rule] for rule in RULES if rule != "top1"} == {4} and found["top1"] == 0


def test_commitment_keeps_models_streams_and_lenses_apart(lake):
    for number, (model, lens, top1) in enumerate(
        (("p-it", "raw", [5, 7, 7]), ("p-pt", "raw", [5, 5, 7]), ("p-it", "tuned", [7, 7, 7]))
    ):
        rows = lens_rows(3, top1=top1, model=model, lens=lens)
        write_table(
            lake,
            "lens",
            {"n": number},
            [rows, {**rows, "layer": rows["layer"], "token": rows["token"] + 9, "top1": np.full(3, 1, np.int32)}],
        )
    found = (
        connect(lake)
        .sql("SELECT model, lens, token, layer FROM commitment WHERE rule = 'top1' ORDER BY ALL")
        .fetchall()
    )
    assert found == [
        ("p-it", "raw", 0, 1), ("p-it", "raw", 9, 0), ("p-it", "tuned", 0, 0), ("p-it", "tuned", 9, 0), ("p-pt", "raw", 0, 2), ("p-pt", "raw", 9, 0),
    ]  # fmt: skip


def test_boundary_zero_does_not_count_as_a_layer(lake):
    rows = lens_rows(3, layer=[-1, 0, 1], top1=[5, 7, 7])
    write_table(lake, "lens", {}, [rows])
    assert connect(lake).sql("SELECT layer FROM commitment WHERE rule = 'top1'").fetchall() == [(0,)]


def test_a_column_that_older_files_lack_is_null_in_them(lake, monkeypatch):
    write_table(lake, "lens", {"capture": "old"}, [lens_rows(2)])
    wider = replace(TABLES["lens"], columns=(*TABLES["lens"].columns, Column("surprise", "float32", "new", "nats")))
    monkeypatch.setitem(TABLES._known, "lens", wider)
    connection = connect(lake)
    assert connection.sql("SELECT count(*), count(surprise) FROM lens").fetchall() == [(2, 0)]
    write_table(lake, "lens", {"capture": "new"}, [{**lens_rows(3), "surprise": np.ones(3, np.float32)}])
    assert connect(lake).sql("SELECT count(*), sum(surprise) FROM lens").fetchall() == [(5, 3.0)]


def test_one_broken_file_closes_the_statements_that_read_its_table_alone(lake):
    write_table(lake, "lens", {"capture": "c"}, [lens_rows(2)])
    lake.table("delta").mkdir(parents=True)
    (lake.table("delta") / "broken.parquet").write_bytes(b"PAR1 not really")
    for sql in ("SELECT count(*) FROM captures", "SELECT count(*) FROM lens", "SELECT 'delta' AS delta FROM lens"):
        connect(lake, sql).sql(sql).fetchall()
    with pytest.raises(CorruptError, match=r"broken\.parquet: not a Parquet file"):
        connect(lake, "SELECT count(*) FROM delta")


def test_a_query_that_takes_too_long_is_stopped(lake):
    connection = connect(lake, "SELECT 1")
    with pytest.raises(LakeError, match="SQL: stopped after 0.3 s; give it longer"):
        interruptible(connection, lambda: connection.sql("SELECT count(*) FROM range(1000000000000)").fetchall(), 0.3)
    assert interruptible(connection, lambda: connection.sql("SELECT 1").fetchall(), 60) == [(1,)]
