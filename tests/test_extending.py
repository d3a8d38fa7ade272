"""Tables and rows from outside the package: a notebook's decorator, entry points of packages, folders that the catalog names."""

import linecache
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import actlake
import numpy as np
import pytest
import tiny
from actlake.capture.edit.edits import EDITS
from actlake.queries.answer.own import check_row
from actlake.queries.engine.context import Context
from actlake.queries.makers import jobs_of
from actlake.queries.rows.registry import find, queries
from actlake.store.core.errors import LakeError
from actlake.store.format.paths import Layout
from actlake.store.tables.declared import TABLES
from actlake.store.tables.files import stale_files
from actlake.store.tables.sql import connect
from actlake.store.tables.statements import known_tables, tables_behind

KURTOSIS = actlake.Column("kurtosis", "float32", "excess kurtosis of the residual", "1")
ROW = """\
-- id: mine
-- title: Kurtosis of the residual
-- needs: kurtosis
-- models: 1
-- stream: native
-- plot: line x=layer hue=variant y="kurtosis"
-- source: mine
SELECT 'kurtosis' AS measure, variant, layer, prompt, sum(kurtosis) AS total, count(*) AS n FROM kurtosis GROUP BY ALL
"""
PLUGIN = """\
import actlake
@actlake.table("width", [actlake.Column("width", "float32", "width of the residual", "1")], reads=["resid"], grain="token", version=3)
def width(rows, context):
    "How wide the residual is."
    return {"width": [rows["resid"].shape[-1]] * len(rows)}
"""


def kurtosis(resid: np.ndarray) -> np.ndarray:
    """Excess kurtosis of residuals [n, L + 1, d]: [n, L + 1]."""
    centred = resid - resid.mean(-1, keepdims=True)
    return (centred**4).mean(-1) / (centred**2).mean(-1) ** 2 - 3


@pytest.fixture(autouse=True)
def tables() -> Iterator[None]:
    """Tables that a test declares are forgotten after it."""
    len(TABLES)
    known = dict(TABLES._known)
    yield
    TABLES._known = known


def declared(**facts: object) -> None:
    """Declare the table `kurtosis`, as a cell of a notebook does."""

    @actlake.table("kurtosis", [KURTOSIS], reads=["resid"], **facts)
    def resid_kurtosis(rows, context):
        """Excess kurtosis of the residual at each boundary."""
        return {"kurtosis": kurtosis(rows["resid"])}


def test_a_notebook_adds_a_table_and_a_row(lake_copy: Layout, tmp_path: Path) -> None:
    declared()
    (tmp_path / "my_rows").mkdir()
    (tmp_path / "my_rows" / "mine.sql").write_text(ROW)
    catalog = tmp_path / "catalog.yaml"
    catalog.write_text("rows: [./my_rows]\n")
    lake = actlake.open(lake_copy.root, catalog=catalog)
    resid = lake.dataset("llama-it", "native")["resid"].values
    found = lake.sql(
        "SELECT token, layer, kurtosis FROM kurtosis WHERE variant = 'it' AND stream LIKE 'native%' ORDER BY ALL"
    )
    rows = found.df()
    assert rows["layer"].min() == -1
    np.testing.assert_allclose(rows["kurtosis"], kurtosis(resid).ravel(), rtol=1e-5)
    comment = "SELECT comment FROM duckdb_columns() WHERE table_name = 'kurtosis' AND column_name = 'kurtosis'"
    assert lake.sql(comment).fetchall() == [("excess kurtosis of the residual",)]
    answer = lake.run("mine", pair="llama")
    assert set(answer.table["measure"]) >= {"kurtosis"} and "mine" in set(lake.rows["row"]) and not answer.computed
    assert lake.tables.set_index("table").loc["kurtosis", "rows"] > 0


def test_a_changed_function_makes_its_rows_anew(lake_copy: Layout) -> None:
    lake = actlake.open(lake_copy.root)
    for version, value in ((1, 1.0), (2, 2.0)):

        @actlake.table(
            "constant", [actlake.Column("value", "float32", "always the same")], reads=["resid"], version=version
        )
        def constant(rows, context, value=value):
            """A constant."""
            return {"value": np.full(rows["resid"].shape[:2], value)}

        assert lake.sql("SELECT DISTINCT value FROM constant").fetchall() == [(value,)]
    assert all("made by version 1" in why for why in stale_files(lake_copy, "constant").values())
    declared()
    declared()  # a cell that runs twice
    assert len(str(TABLES["kurtosis"].version)) == 16  # of the function's text


def test_a_function_that_errs_is_one_line(lake_copy: Layout) -> None:
    lake = actlake.open(lake_copy.root)
    assert not any(tables_behind(name) for name in ("broken", "flat", "other", "needy"))

    @actlake.table("broken", [KURTOSIS], reads=["resid"])
    def broken(rows, context):
        return {"kurtosis": rows["resid"] / rows["nothing"]}

    @actlake.table("flat", [KURTOSIS], reads=["resid"])
    def flat(rows, context):
        return {"kurtosis": np.zeros(len(rows))}

    @actlake.table("other", [KURTOSIS], reads=["resid"])
    def other(rows, context):
        return {"skewness": np.zeros(len(rows))}

    @actlake.table("needy", [KURTOSIS], reads=["logits"])
    def needy(rows, context):
        return {}

    for name, words in (  # asked about before, each was unknown
        ("broken", r"table broken: KeyError: 'nothing' \(test_extending.py:\d+\)"),
        ("flat", r"table flat: column kurtosis is of shape \(\d+,\); expected \(\d+, \d+\) or"),
        ("other", "table other: its function gave skewness; expected columns kurtosis"),
        ("needy", "table needy needs logits, which this capture did not keep"),
    ):
        with pytest.raises(LakeError, match=words):
            lake.sql(f"SELECT * FROM {name}")
    with pytest.raises(LakeError, match="table lens: declared by .*lens_table and by .*; give one another name"):
        actlake.table("lens", [KURTOSIS], reads=["resid"])(broken)


def test_tables_that_need_each_other(captured: Layout) -> None:
    for one, other in (("a", "b"), ("b", "a")):

        @actlake.table(one, [KURTOSIS], version=1)
        def maker(context, names, other=other):
            return jobs_of(context, (other, "", scope))[0]

    stream = next(row.stream for row in Context(captured).streams.itertuples() if row.model == "llama-it")
    scope = tiny.scope("llama", {"it": stream})
    with pytest.raises(LakeError, match="tables need each other: a -> b -> a"):
        jobs_of(Context(captured), ("a", "", scope))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("SELECT 1", "bad.sql:1: the header lacks id: write "),
        (
            ROW.replace("needs: kurtosis", "needs: lens(tuned"),
            r"bad.sql:3: needs 'lens\(tuned', expected a table such as",
        ),
        (
            ROW.replace("kurtosis\n-- models", "lense\n-- models"),
            "bad.sql:3: needs table 'lense', .*did you mean 'lens'",
        ),
        (ROW.replace("sum(kurtosis)", "sum(entropie)"), "bad.sql:8: SQL: .*entropie"),
        (ROW.replace("SELECT 'kurtosis'", "DROP TABLE lens; SELECT 'kurtosis'"), "bad.sql:8: SQL: Parser Error"),
    ],
)
def test_what_is_wrong_with_a_row(tmp_path: Path, text: str, words: str) -> None:
    declared()
    file = tmp_path / "bad.sql"
    file.write_text(text)
    with pytest.raises(LakeError, match=words):
        check_row(file)
    file.write_text(ROW)
    assert check_row(file).id == "mine"


def test_rows_of_a_catalog_are_refused_by_name(tmp_path: Path) -> None:
    catalog = tmp_path / "catalog.yaml"
    catalog.write_text("rows: [./nowhere]\n")
    with pytest.raises(LakeError, match=r"catalog.yaml:1: rows: .*nowhere: no such folder"):
        queries(catalog)
    (tmp_path / "nowhere").mkdir()
    (tmp_path / "nowhere" / "mine.sql").write_text(ROW.replace("id: mine", "id: l2"))
    with pytest.raises(LakeError, match="row 'l2' is there already; give it another id"):
        queries(catalog)
    (tmp_path / "nowhere" / "mine.sql").write_text(ROW)
    assert find("MINE", catalog).title == "Kurtosis of the residual"
    with pytest.raises(LakeError, match="unknown row 'mine'"):
        find("mine")


def test_entry_points_add_tables_and_rows_and_a_broken_one_is_left_out(captured: Layout, tmp_path: Path) -> None:
    """In a process of its own, with packages of other people on the path; the lake itself brings nothing."""
    site, lake = tmp_path / "site", tmp_path / "lake"
    (site / "theirs").mkdir(parents=True)
    shutil.copytree(captured.root, lake)
    (site / "theirs" / "__init__.py").write_text(PLUGIN)
    (site / "theirs" / "wide.sql").write_text(
        ROW.replace("kurtosis", "width").replace("id: mine", "id: wide").replace(", layer", "")
    )
    (site / "bad.py").write_text("1 / 0")
    for name, module in (("theirs", "theirs"), ("bad", "bad")):
        info = site / f"{name}-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        groups = "".join(f"[actlake.{group}]\n{name} = {module}\n" for group in ("tables", "rows"))
        (info / "entry_points.txt").write_text(groups)
    path = os.pathsep.join([str(site), os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else [str(site)])
    command = [
        sys.executable,
        "-m",
        "actlake",
        "sql",
        "SELECT DISTINCT width FROM width",
        "--json",
        "--lake",
        str(lake),
    ]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (
        '"width"' in done.stdout
        and "tables of bad (bad) are left out: ZeroDivisionError: division by zero" in done.stderr
    )
    command[3:] = ["rows", "--json"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, cwd=tmp_path)
    assert '"wide"' in done.stdout and "Traceback" not in done.stderr


def test_every_column_of_sql_has_a_meaning(lake: Layout) -> None:
    declared()
    connection = connect(lake, "SELECT comment FROM duckdb_columns()")
    columns = connection.execute(
        "SELECT table_name, column_name, comment FROM duckdb_columns() WHERE NOT internal"
    ).fetchall()
    assert {name for name, _, _ in columns} == set(known_tables())
    assert not [(table, column) for table, column, comment in columns if not comment]
    units = {column: comment for table, column, comment in columns if table == "lens"}
    assert "(nats)" in units["entropy"] and "NULL: at the last layer" in units["js_next"]


def test_the_examples_of_the_guide_run(lake_copy: Layout, tmp_path: Path) -> None:
    text = (Path(__file__).parent.parent / "docs" / "EXTENDING.md").read_text(encoding="utf-8")
    blocks = [part.split("```")[0] for part in text.split("```python\n")[1:]]
    known = dict(EDITS)
    try:
        for block in blocks:
            module = {"__name__": "guide"}
            linecache.cache["guide.py"] = (len(block), None, block.splitlines(True), "guide.py")
            exec(compile(block, "guide.py", "exec"), module)
        assert len(blocks) == 3 and "clamp" in EDITS
        module["test_kurtosis"](tmp_path)
    finally:
        EDITS._known = known
    rows = actlake.open(lake_copy.root).sql("SELECT count(*), count(kurtosis) FROM resid_kurtosis").fetchall()
    assert rows[0][0] == rows[0][1] > 0
