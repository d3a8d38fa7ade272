"""`actlake run`: all rows into a folder of results, what is missing, several pairs, and published figures without a lake."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from actlake.cli.main import app
from actlake.queries.engine import passes as sweep
from actlake.queries.rows.registry import POOLS, published, queries
from actlake.store.format.paths import Layout
from test_queries import Made
from test_report import Reader
from typer.testing import CliRunner

run = CliRunner(env={"COLUMNS": "200"}).invoke


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("made") / "lake")


def test_all_rows_into_a_folder_and_what_is_missing(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = tmp_path / "lake"
    shutil.copytree(made.layout.root, lake)
    shutil.rmtree(next((lake / "captures" / "made-pt").glob("teacher*")))
    passes = []
    sweep_ = sweep._sweep
    monkeypatch.setattr(sweep, "_sweep", lambda jobs: (passes.append([job.name for job in jobs]), sweep_(jobs)))
    done = run(app, ["run", "--all", "--lake", str(lake), "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    # Every table of every row at once, and those that need probes after these are trained, last of all.
    assert len(passes) == 2 and {"delta", "lens"} <= set(passes[0]) and "lens_eval" in passes[1]
    for row in ("L1", "L2", "0G", "0J"):
        for suffix in ("csv", "png", "svg", "sql"):
            assert (tmp_path / "out" / f"{row}-made.{suffix}").stat().st_size > 100
    assert pd.read_csv(tmp_path / "out" / "L1-made.csv")["n"].max() == 6
    said = " ".join(done.output.split())
    assert "run `actlake capture made --stream teacher --prompts set`" in said  # exp16
    assert "table endpoint needs the last residual and the largest logits" in said  # exp22
    html = (tmp_path / "out" / "index.html").read_text()
    text = Reader(html).text
    assert "exp16 · Divergence of PT and IT" in text and "actlake capture made --stream teacher" in text
    assert text.index("L1 · ") < text.index("L2 · ") < text.index("0G · ") < text.rindex("Not answered")
    drawn = [1 for q in queries() if (tmp_path / "out" / f"{q}-made.png").exists()]
    assert html.count('<svg class="figure"') == len(drawn)
    again = json.loads(run(app, ["run", "--all", "--lake", str(lake), "--out", str(tmp_path / "o"), "--json"]).output)
    assert len(passes) == 2 and {"exp16", "exp22"} <= again["refused"].keys()
    assert {"L1", "L2"} <= {found["row"] for found in again["answers"]} and Path(again["page"]).exists()


def test_several_rows_share_a_pass_and_a_refused_one_stops_them(made: Made, tmp_path: Path) -> None:
    lake = ["--lake", str(made.layout.root)]
    done = run(app, ["run", "L1", "l2", *lake, "--out", str(tmp_path)])
    assert done.exit_code == 0 and "profile" in done.output and "cg_raw" in done.output
    refused = run(app, ["run", "L1", "exp22", *lake, "--out", str(tmp_path / "none")])
    assert "table endpoint needs" in str(refused.exception) and not (tmp_path / "none").exists()
    assert "name rows" in str(run(app, ["run", *lake]).exception)
    assert "not both" in str(run(app, ["run", "L1", "--all", *lake]).exception)


def test_published_figures_need_no_lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shown = run(app, ["run", "L2", "--published", "--pair", "gemma3_4b"])
    assert shown.exit_code == 0 and "1.008" in shown.output and "llama31_8b" not in shown.output
    every = json.loads(run(app, ["run", "--published", "--json"]).output)
    assert every.keys() == queries().keys() and len(every["L2"]) > 100 and len(every["0J"]) == 12
    dense5 = [arg for name in sorted(POOLS["dense5"]) for arg in ("--pair", name)]
    pooled = run(app, ["run", "L2", "--published", *dense5]).output
    assert "0.771" in pooled and "pooled6" not in pooled
    assert "pooled6" in run(app, ["run", "L2", "--published", "--pair", "a", "--pair", "b"]).output
    assert list(tmp_path.iterdir()) == []


def test_every_published_figure_belongs_to_a_row_and_a_known_model() -> None:
    table = pd.concat([published(row) for row in queries()])
    assert table["value"].notna().all() and table["source"].str.startswith("METHODS").all()
    known = {*POOLS["pooled6"], *POOLS, "qwen25_32b"}
    assert set(table["model"]) <= known
    assert not table.duplicated(["row", "model", "quantity", "source"]).sum() - table.duplicated().sum()
    limits = table.dropna(subset=["low", "high"])
    assert ((limits["low"] <= limits["value"]) & (limits["value"] <= limits["high"])).all()


def test_rows_come_in_the_order_they_build_on_each_other() -> None:
    names = list(queries())
    assert names.index("L1") < names.index("L2") < names.index("0G") < names.index("0J") < names.index("exp16")
    assert names.index("exp16") < names.index("exp22")


def test_an_empty_lake_has_nothing_to_answer(tmp_path: Path) -> None:
    Layout.open(tmp_path / "lake", create=True)
    assert "none yet" in str(run(app, ["run", "--all", "--lake", str(tmp_path / "lake")]).exception)
