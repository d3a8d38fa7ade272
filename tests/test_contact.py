"""First contact: what a lake, an answer, a head show of themselves, what can be looked up, and SQL's manners."""

import json
import shutil
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import actlake
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import ready
import tiny
import xarray as xr
from actlake.capture.streams.prompts import canonical_bytes
from actlake.cli.main import app, main
from actlake.cli.printing import print_json, print_table
from actlake.lake import Lake
from actlake.store.artifacts.streams import write_prompts
from actlake.store.core.catalog import PairSpec
from actlake.store.core.errors import LakeError, SqlError
from actlake.store.format.paths import Layout
from actlake.store.tables import sql
from matplotlib.figure import Figure
from test_observed_rows import texts
from typer.testing import CliRunner

run = CliRunner(env={"COLUMNS": "80"}).invoke


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory, llama: PairSpec) -> Lake:
    """A lake with native and teacher captures of 24 prompts, whose set it holds, and the answer of L2 without probes."""
    asked = tiny.prompt_set(texts(24))
    streams = [replace(stream, max_new_tokens=12) for stream in (tiny.NATIVE, tiny.TEACHER)]
    layout = tiny.capture(tmp_path_factory.mktemp("contact") / "lake", llama, *streams, prompts=asked)
    return Lake(layout.root)


def test_an_answer_is_short_in_text_and_whole_in_a_notebook(lake: Lake) -> None:
    answer = lake.run("L2", probes=False)
    said = repr(answer)
    assert said.startswith("Answer: L2, Convergence gap and commitment, llama. Through the second half")
    assert said.endswith(f"{len(answer.table)} estimates") and len(said) < 1000 and "SELECT" not in said
    html = answer._repr_html_()
    assert "data:image/svg+xml;base64," in html and answer.query.title in html and "cg_raw" in html
    assert (
        "convergence gap, raw lens (nats)" in html and "KL(final ‖ layer) (nats) by layer: PT from" in html
    )  # in words
    assert html.count("<tr") > len(answer.table)  # the main numbers, and folded all of them
    figure = answer.figure()
    png, size = figure._repr_png_()
    assert isinstance(figure, Figure) and png.startswith(b"\x89PNG") and size["width"] == 768


def test_a_figure_shows_in_a_notebook_without_pyplot() -> None:
    formatters = pytest.importorskip("IPython.core.formatters")
    from actlake.queries.figures.figure import Picture

    shown, _ = formatters.DisplayFormatter().format(Picture(figsize=(2, 1)))
    assert shown["image/png"].startswith(b"\x89PNG")


def test_a_notebook_shows_lakes_answers_figures_and_bars(lake: Lake) -> None:
    """In a kernel as Jupyter starts it, whose DuckDB and rich behave otherwise than in a terminal."""
    jupyter = pytest.importorskip("jupyter_client")
    pytest.importorskip("ipykernel")
    manager = jupyter.KernelManager()
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    manager._kernel_spec = jupyter.kernelspec.KernelSpec(argv=argv, language="python", display_name="here")
    shown: list[dict[str, str]] = []

    def note(message: dict) -> None:
        content = message["content"]
        assert message["msg_type"] != "error", "\n".join(content["traceback"])
        shown.append(content.get("data", {}))

    manager.start_kernel()
    try:
        client = manager.client()
        client.start_channels()
        client.wait_for_ready(timeout=120)

        def cell(code: str) -> list[dict[str, str]]:
            shown.clear()
            client.execute_interactive(code, timeout=120, output_hook=note)
            return [data for data in shown if data]

        (found,) = cell(f"import actlake; lake = actlake.open({str(lake.layout.root)!r}); lake")
        assert "llama" in found["text/html"]
        assert "data:image/svg+xml" in cell("answer = lake.run('L1', probes=False); answer")[-1]["text/html"]
        assert cell("answer.figure()")[-1]["image/png"]
        assert "kl" in cell("lake.sql('SELECT avg(kl_final_layer) AS kl FROM lens').df()")[-1]["text/html"]
        prompt = lake.prompts["id"].iloc[0]
        assert "<td style=" in cell(f"view = lake.prompt({prompt!r}).lens(pair='llama'); view")[-1]["text/html"]
        assert cell("view.figure()")[-1]["image/png"]
        bars = cell("from actlake.store.core.progress import bar\nwith bar('work', 7) as one: one.advance(7)")
        assert "<progress max='7' value='7'>" in bars[-1]["text/html"]
    finally:
        manager.shutdown_kernel(now=True)


def test_names_from_a_lake_are_no_markup_in_a_notebook(lake: Lake) -> None:
    answer = replace(lake.run("L1"), sentence="<script>alert(1)</script>")
    assert "<script>" not in answer._repr_html_() and "&lt;script&gt;" in answer._repr_html_()


def test_a_lake_a_head_and_probes_are_short(lake: Lake) -> None:
    assert repr(lake).startswith("Lake('") and "llama-it, llama-pt; 3 captures, " in repr(lake)
    assert "llama" in lake._repr_html_() and "tiny" in lake._repr_html_()
    head = lake.head("llama-it")
    assert repr(head) == "Head(300 tokens x 32, rms norm)" and "<th" in head._repr_html_()
    probes = actlake.analyze.lens.tuned_lens.Probes.identity(3, 32)
    assert repr([probes]) == "[Probes(3 boundaries, width 32)]" and "width" in probes._repr_html_()


def test_what_can_be_asked_and_what_there_is(lake: Lake) -> None:
    rows = lake.rows
    assert isinstance(rows, pd.DataFrame) and set(rows.columns) == {"row", "title", "how", "streams", "tables"}
    assert rows.L1(pair="llama").query.id == "L1" and rows.title.str.len().min() > 5
    assert lake.models["model"].tolist() == ["llama-it", "llama-pt"] and lake.models["blocks"].tolist() == [3, 3]
    assert set(lake.streams["recipe"]) == {"native", "teacher"}
    known = lake.tables.set_index("table")
    assert (
        known.loc["delta", "rows"] > 0 and known.loc["churn", "rows"] == 0 and "layer" in known.loc["lens", "columns"]
    )


def test_texts_of_prompts_come_from_the_set_or_from_its_tokens(lake: Lake, tmp_path: Path) -> None:
    asked = tiny.prompt_set(texts(24))
    expected = [(prompt.id, prompt.category, prompt.text) for prompt in asked.prompts]
    found = lake.prompts  # the set is nowhere: its raw tokens say it
    assert found[["id", "category", "text"]].apply(tuple, axis=1).tolist() == expected
    layout = Layout(lake.layout.root)
    for kept in (asked, tiny.prompt_set()):  # the set, and another one
        try:
            write_prompts(layout, "tiny", canonical_bytes(kept.prompts))
            assert lake.prompts.equals(found)
        finally:
            shutil.rmtree(layout.prompts)


def test_one_prompt_of_a_capture(lake: Lake) -> None:
    whole = lake.dataset("llama-it", "native")
    names = whole["prompt_id"].values.tolist()
    some = lake.dataset("llama-it", "native", prompt=names[3])
    assert set(some["prompt"].values.tolist()) == {3}
    assert np.array_equal(some.resid.values, whole.resid.values[whole["prompt"].values == 3], equal_nan=True)
    assert set(lake.dataset("llama-it", "native", prompt=[names[0], names[5]])["prompt"].values.tolist()) == {0, 5}
    with pytest.raises(LakeError, match=f"no prompt '{names[3]}x' among the 24 of this capture; did you mean "):
        lake.dataset("llama-it", "native", prompt=f"{names[3]}x")


def test_directions_are_unit_vectors_of_each_layer(lake: Lake, tmp_path: Path) -> None:
    found = lake.directions("llama", "d_mean")
    assert found.dims == ("layer", "d_model") and found.shape == (3, 32)
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    found.to_netcdf(tmp_path / "d.nc")
    with xr.open_dataset(tmp_path / "d.nc") as again:
        assert np.array_equal(again["d_mean"], found) and set(again["d_mean"].attrs) == {
            "pair",
            "stream_pt",
            "stream_it",
        }
    with pytest.raises(LakeError, match="direction 'mean': expected one of d_mean, d_record, d_conv, d_grad"):
        lake.directions(name="mean")


# --- SQL -------------------------------------------------------------------------------------------------------------


def test_sql_without_computing_reads_what_is_there(lake: Lake, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    before = tiny.tree(lake.layout.root)
    with pytest.raises(
        LakeError, match="table churn has no rows yet, and computing is switched off; to compute: churn for 3"
    ):
        lake.sql("SELECT * FROM churn", compute=False)
    where = ["--lake", str(lake.layout.root)]
    refused = run(app, ["sql", "SELECT * FROM churn", "--no-compute", *where])
    assert "computing is switched off" in str(refused.exception)
    assert tiny.tree(lake.layout.root) == before
    lake.run("L1")
    for file in lake.layout.table("delta").glob("*.parquet"):
        if "teacher" in str(pq.read_table(file, columns=["stream"])["stream"][0]):
            file.unlink()
    assert lake.sql("SELECT count(DISTINCT stream) FROM delta", compute=False).fetchall()[0] == (2,)
    assert (
        "not computed: delta for 1 capture, a few seconds; the rows are those that are there" in capsys.readouterr().err
    )
    monkeypatch.setattr("actlake.queries.makers.MOMENT", 0.0)
    assert lake.sql("SELECT count(DISTINCT stream) FROM delta").fetchall()[0] == (3,)
    assert "computing delta for 1 capture on cpu, a few seconds (--no-compute" in " ".join(
        capsys.readouterr().err.split()
    )


def test_a_mistake_in_sql_is_shown_with_its_place(lake: Lake, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SqlError) as caught:
        lake.sql("SELEC 1")
    assert "\n" not in str(caught.value) and caught.value.lines[-2:] == ["LINE 1: SELEC 1", "        ^^^^^"]
    monkeypatch.setattr(sys, "argv", ["actlake", "sql", "SELEC 1", "--lake", str(lake.layout.root)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    lines = capsys.readouterr().err.rstrip().splitlines()
    assert lines[0].startswith("error: SQL: Parser Error: syntax error") and lines[-1] == "        ^^^^^"


def test_sql_reads_no_file_of_the_working_folder(lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".tmp").mkdir()
    (tmp_path / ".tmp" / "note.txt").write_text("secret")
    for path in (".tmp/note.txt", str(tmp_path / ".tmp" / "note.txt")):
        with pytest.raises(LakeError, match="only the lake's own tables"):
            lake.sql(f"SELECT content FROM read_text('{path}')").fetchall()
    folder = sql._scratch()
    assert folder.is_dir() and folder.stat().st_mode & 0o077 == 0 and not list(folder.iterdir())
    settings = lake.sql("SELECT current_setting('temp_directory'), current_setting('enable_progress_bar')").fetchall()[
        0
    ]
    assert settings == (str(folder), False)


VALUES = [
    # SQL, what is printed, what JSON says
    ("12345678901234567890123::HUGEINT", "12345678901234567890123", 12345678901234567890123),
    ("(-170141183460469231731687303715884105727)::HUGEINT", str(1 - 2**127), 1 - 2**127),
    ("340282366920938463463374607431768211455::UHUGEINT", str(2**128 - 1), 2**128 - 1),
    ("18446744073709551615::UBIGINT", "18446744073709551615", 2**64 - 1),
    ("sum(9007199254740993::BIGINT)", "9007199254740993", 2**53 + 1),
    ("sum(2)", "2", 2),
    ("0.1", "0.1", 0.1),
    ("1234567890123456789.25", "1234567890123456789.25", "1234567890123456789.25"),
    ("[9007199254740993::HUGEINT, NULL]", "[9007199254740993, -]", [2**53 + 1, None]),
    ("{'a': 9007199254740993::HUGEINT}", "{'a': 9007199254740993}", {"a": 2**53 + 1}),
    ("'nan'::DOUBLE", "NaN", "NaN"),
    ("'nan'::FLOAT", "NaN", "NaN"),
    ("'-inf'::DOUBLE", "-inf", "-Infinity"),
    ("2.0::DOUBLE", "2", 2.0),
    ("NULL::DOUBLE", "-", None),
    ("NULL::VARCHAR", "-", None),
    ("NULL", "-", None),
    ("[1.5::DOUBLE, 'nan', NULL]", "[1.5, NaN, -]", [1.5, "NaN", None]),
    ("TRUE", "True", True),
    ("DATE '2020-01-31'", "2020-01-31", "2020-01-31"),
]


@pytest.mark.parametrize("beside", [False, True])
def test_sql_prints_each_value_as_it_is(lake: Lake, beside: bool) -> None:
    """Whole numbers and decimals have all their digits, alone and beside NULL; NaN and NULL can be told apart."""
    columns = [f"{value} AS c{place}" for place, (value, _, _) in enumerate(VALUES)]
    query = f"SELECT {', '.join(columns)}" + (
        f" UNION ALL SELECT {', '.join(['NULL'] * len(VALUES))}" if beside else ""
    )
    where = ["--lake", str(lake.layout.root)]
    said, told = run(app, ["sql", query, *where]), run(app, ["sql", query, "--json", *where])
    assert said.exit_code == 0 and told.exit_code == 0, (said.exception, told.exception)
    rows = [line.split("  ") for line in said.stdout.splitlines()[1:]]
    assert [cell.strip() for cell in rows[0] if cell.strip()] == [shown for _, shown, _ in VALUES]
    assert len(rows) == 1 + beside and (not beside or set(" ".join(rows[1]).split()) == {"-"})
    found = json.loads(told.stdout)
    assert list(found[0].values()) == [expected for _, _, expected in VALUES]
    assert len(found) == 1 + beside and (not beside or set(found[1].values()) == {None})
    frame = lake.sql_frame(query)
    assert (
        frame["c3"][0] == 2**64 - 1
        and frame["c4"][0] == 2**53 + 1
        and frame["c6"].dtype == ("Float64" if beside else float)
    )
    server = lake.explore()
    try:  # JavaScript counts to 2^53
        shown = server.answer(query)["rows"][0]
    finally:
        server.close()
    assert (
        shown[:4] == [text for _, text, _ in VALUES[:4]] and shown[5] == 2 and shown[10] == "NaN" and shown[14] is None
    )


SAYS_WHEN_IT_ASKS = """
import threading
from actlake.cli.main import main
from actlake.store.tables import sql
class Said(threading.Thread):
    def start(self):
        print("asking", flush=True)
        super().start()
sql.threading.Thread = Said
main()
"""


@pytest.mark.parametrize(
    "query",
    [
        "SELECT count(*) FROM range(1000000000000)",
        "WITH RECURSIVE t AS (SELECT 1 i UNION ALL SELECT i + 1 FROM t) SELECT count(*) FROM t",
    ],
)
def test_ctrl_c_stops_a_query(lake: Lake, query: str) -> None:
    process = ready.Process("-c", SAYS_WHEN_IT_ASKS, "sql", query, "--lake", lake.layout.root)
    try:
        assert process.stdout.readline() == "asking\n"
        time.sleep(0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert "stopped" in process.communicate(timeout=60)[1] and process.returncode == 130
    finally:
        process.kill()


def test_tables_of_the_command_line_are_whole(capsys) -> None:
    frame = pd.DataFrame(
        {
            "a_rather_long_name_of_a_column": ["the\ncat", " mat\t"],
            "kl_final_layer_of_the_other_model": [0.123456, 16510.25],
            "count": [16510.0, np.nan],
            "token_id": [list(range(40)), [1, 2]],
            "text": ["word " * 40, "short"],
            "bytes": [2_000_000, 3],
        }
    )
    print_table(frame)
    said = capsys.readouterr().out
    for name in frame.columns:
        assert name in said
    assert "the\\ncat" in said and " mat\\t" in said and "[0, 1, 2, 3, 4, 5 ... 40 in all]" in said and "[1, 2]" in said
    assert " 16510 " in said and " - " in said and "0.1235" in said and "16510.25" not in said and "2.0 MB" in said
    assert max(map(len, said.splitlines())) < 240 and said.count("word") == 40


def test_json_has_all_digits_and_no_control_characters(capsys) -> None:
    masked = np.ma.MaskedArray([1.5, 2.5], mask=[False, True])
    frame = pd.DataFrame(
        {
            "x": [1e-12, np.nan, np.inf],
            "n": [1, 2, 3],
            "l": [[1], masked, np.array([0.1 + 0.2])],
            "d": [{"a": np.int64(1)}, None, pd.NaT],
        }
    )
    print_table(frame, as_json=True)
    assert json.loads(capsys.readouterr().out) == [
        {"x": 1e-12, "n": 1, "l": [1], "d": {"a": 1}},
        {"x": None, "n": 2, "l": [1.5, None], "d": None},
        {"x": None, "n": 3, "l": [0.1 + 0.2], "d": None},
    ]
    strange = "\x9b31mRED\x7f\u202e\u2066 é 雨\n"
    print_json({strange: strange})
    said = capsys.readouterr().out
    assert json.loads(said) == {strange: strange} and "é 雨" in said and said.isascii() is False
    assert "\\u009b31mRED\\u007f\\u202e\\u2066" in said and not set("\x9b\x7f\u202e\u2066") & set(said)
