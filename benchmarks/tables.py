"""SQL over the lake's Parquet tables against the same rows in a native DuckDB table in memory.

Ten million rows of the `lens` table, 25 layers x 400,000 tokens, written as the lake writes them and asked through the
lake's own locked connection. The values are random, so that they compress less than real ones.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from actlake.store.format.paths import Layout
from actlake.store.tables.declared import TABLES
from actlake.store.tables.files import ROW_GROUP_TOKENS, write_table
from actlake.store.tables.sql import connect
from actlake.store.tables.statements import VIEWS
from measure import Row, in_turn, main, median_ratio, medians

LAYERS, TOKENS, PROMPT_TOKENS, REPEATS = 25, 400_000, 100, 5
CATEGORIES = ("CONTENT-FACT", "CONTENT-REASON", "GOV-FORMAT", "GOV-CONV", "SAFETY", "GOV-REGISTER", "BASELINE-EASY")
QUERIES = {
    "mean per layer": "SELECT layer, avg(kl_final_layer) FROM lens GROUP BY layer ORDER BY layer",
    "mean of one layer": "SELECT avg(kl_final_layer) FROM lens WHERE layer = 12",
    "median and correlation, two layers": "SELECT layer, quantile_cont(kl_final_layer, 0.5), corr(kl_final_layer, entropy)"
    " FROM lens WHERE layer IN (8, 20) GROUP BY layer ORDER BY layer",
    "totals per prompt and layer": "SELECT prompt, layer, sum(kl_final_layer), count(kl_final_layer)"
    " FROM lens GROUP BY prompt, layer ORDER BY prompt, layer",
}
COMMITMENT = "SELECT rule, avg(layer) FROM commitment GROUP BY rule ORDER BY rule"


def token_columns(token: np.ndarray) -> dict[str, Any]:
    """What all layers of a token share: its prompt, its place, its text columns."""
    prompt = (token // PROMPT_TOKENS).astype(np.int32)
    names = pa.array([f"prompt-{index:05d}" for index in range(prompt[-1] + 1)])
    categories = pa.array([CATEGORIES[index % len(CATEGORIES)] for index in range(len(names))])
    return {
        "model": "made-it",
        "stream": "native-made-00000000",
        "lens": "raw",
        "prompt": prompt,
        "prompt_id": pa.DictionaryArray.from_arrays(pa.array(prompt), names),
        "category": pa.DictionaryArray.from_arrays(pa.array(prompt), categories),
        "token": token,
        "position": (token % PROMPT_TOKENS).astype(np.int32),
        "step": (token % PROMPT_TOKENS - PROMPT_TOKENS // 2).clip(-1).astype(np.int32),
    }


def layer_groups() -> Iterator[dict[str, Any]]:
    """Row groups of a layer, -1 for boundary 0: divergences that fall with depth, tokens that settle on a winner."""
    rng = np.random.default_rng(0)
    for start in range(0, TOKENS, ROW_GROUP_TOKENS):
        token = np.arange(start, min(start + ROW_GROUP_TOKENS, TOKENS))
        winner = rng.integers(0, 50_000, len(token), dtype=np.int32)
        yield from layers_of(rng, token, winner)


def layers_of(rng: np.random.Generator, token: np.ndarray, winner: np.ndarray) -> Iterator[dict[str, Any]]:
    """The row groups of some tokens."""
    rows, shared = len(token), token_columns(token)
    for layer in range(-1, LAYERS - 1):
        left = (LAYERS - 2 - layer) / LAYERS
        settled = rng.random(rows) >= left
        floats = {
            "kl_layer_final": rng.gamma(2.0, 1.0, rows) * left,
            "kl_final_layer": rng.gamma(2.0, 1.0, rows) * left,
            "js_next": rng.random(rows) * left,
            "entropy": rng.gamma(2.0, 1.0, rows),
            "p_target": rng.random(rows),
            "cos_final": 1 - rng.random(rows) * left,
        }
        ints = {
            "top1": np.where(settled, winner, rng.integers(0, 50_000, rows, dtype=np.int32)),
            "rank_target": rng.integers(1, 1000, rows, dtype=np.int32),
        }
        yield (
            shared
            | {"layer": np.full(rows, layer, np.int32)}
            | ints
            | {k: v.astype(np.float32) for k, v in floats.items()}
        )


def native(file: Path) -> duckdb.DuckDBPyConnection:
    """The same rows in an ordinary in-memory table, and the views over them."""
    connection = duckdb.connect(":memory:")
    connection.execute(f"CREATE TABLE lens AS SELECT * FROM read_parquet('{file}')")
    for name in ("commit_layers", "commitment"):
        connection.execute(f"CREATE VIEW {name} AS {VIEWS[name]}")
    return connection


def compare(
    lake: duckdb.DuckDBPyConnection, table: duckdb.DuckDBPyConnection, what: str, sql: str, target: str, repeats: int
) -> Row:
    """One query both ways: equal answers first, then times, in turn."""
    found, expected = (np.array(c.execute(sql).fetchall(), dtype=object) for c in (lake, table))
    assert found.shape == expected.shape and len(found), f"{what}: different answers"
    for column in range(found.shape[1]):
        if not isinstance(found[0, column], str):
            np.testing.assert_allclose(found[:, column].astype(float), expected[:, column].astype(float), rtol=1e-9)
    tasks = {"lake": lambda: lake.execute(sql).fetchall(), "native": lambda: table.execute(sql).fetchall()}
    seconds = in_turn(tasks, repeats)
    measured, ratio = 1e3 * medians(seconds)["lake"], median_ratio(seconds["lake"], seconds["native"])
    return Row(what, measured, measured / ratio, "ms", target)


def run() -> list[Row]:
    """All rows of this benchmark."""
    with tempfile.TemporaryDirectory(prefix="actlake-bench-") as folder:
        layout = Layout.open(Path(folder) / "lake", create=True)
        file = write_table(layout, "lens", {"benchmark": "tables"}, layer_groups())
        lake, table = connect(layout), native(file)
        assert set(TABLES["lens"].names) == {row[0] for row in table.execute("DESCRIBE lens").fetchall()}
        rows = []
        for what, sql in QUERIES.items():
            target = "<= 2" if "GROUP BY layer" in sql and "WHERE" not in sql else ""
            rows.append(compare(lake, table, what, sql, target, REPEATS))
        rows.append(compare(lake, table, "commitment, mean layer per rule", COMMITMENT, "", 1))
        count = lake.execute("SELECT count(*) FROM lens").fetchone()
        first = rows[0]
        size = f"{count[0] if count else 0:,} rows, {file.stat().st_size / 1e6:.0f} MB of Parquet"
        return [Row(first.what, first.measured, first.limit, first.unit, first.target, size), *rows[1:]]


if __name__ == "__main__":
    main("tables", run)
