"""Rows of one's own: the skeleton, what is wrong with one line by line, and a package with a row, a table and an edit, installed."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import actlake
import numpy as np
import pytest
import tiny
from actlake.capture.streams.prompts import canonical_bytes
from actlake.queries.answer.own import checked, new_row
from actlake.queries.rows import registry
from actlake.store.core.catalog import PairSpec
from actlake.store.core.errors import LakeError
from actlake.store.format.paths import Layout

Run = Callable[..., tuple[int, str, str]]
EXAMPLE = Path(__file__).parent.parent / "examples" / "kurtosis"


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    (tmp_path / "my_rows").mkdir()
    file = tmp_path / "catalog.yaml"
    file.write_text("rows: [./my_rows]\n")
    return file


def test_a_new_row_is_answered_as_it_is(
    lake_copy: Layout, catalog: Path, command_line: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(catalog.parent)
    code, out, _ = command_line("rows", "new", "mine")
    file = catalog.parent / "my_rows" / "mine.sql"
    assert code == 0 and f"`actlake rows check {file}`" in out and "name its folder" not in out
    assert command_line("rows", "check", str(file))[:2] == (0, f"{file}: row mine is well formed\n")
    lake = actlake.open(lake_copy.root, catalog=catalog)
    answer = lake.run("mine", pair="llama")
    late = answer.table[(answer.table["measure"] == "late_entropy") & (answer.table["variant"] == "it - pt")].iloc[0]
    lens = lake.sql(
        "SELECT variant, avg(entropy) AS e FROM lens WHERE pair = 'llama' AND step >= 1 AND layer >= 2"
        " AND stream LIKE 'native%' AND lens = 'raw' GROUP BY ALL"
    ).df()
    means = lens.set_index("variant")["e"]
    assert late["estimate"] == pytest.approx(means["it"] - means["pt"]) and late["low"] < late["high"]
    assert "entropy differs by" in answer.sentence and len(answer.figure().axes) == 2


def test_a_new_row_overwrites_nothing(catalog: Path, command_line: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(catalog.parent)
    for words, said in (
        (("new", "elsewhere/mine"), f"rows: [{catalog.parent / 'elsewhere'}], so that run finds it"),
        (("new", "elsewhere/mine"), "elsewhere/mine.sql is there already; nothing is overwritten"),
        (("new", "l2"), "row 'L2' is there already; give it another name"),
        (("new", "my row"), "row 'my row': expected a name of letters, digits and _"),
        (("new",), "rows new: expected a row, `new NAME`, `check FILE`, or nothing for all rows"),
        (("check", "nowhere.sql"), "nowhere.sql: can't be read as text (No such file or directory)"),
    ):
        code, out, err = command_line("rows", *words)
        assert said in out + err and code == (0 if "so that" in said else 2)


GOOD = """\
-- id: mine
-- title: Entropy
-- needs: lens
-- stream: native
-- contrast: variant it - pt
-- source: mine
SELECT 'entropy' AS measure, variant, prompt,
    sum(entropy) AS total, count(*) AS n
FROM lens
GROUP BY ALL
"""


@pytest.mark.parametrize(
    ("old", "new", "lines"),
    [
        ("", "", []),
        ("-- id: mine\n-- title: Entropy\n", "", ["1: the header lacks id: write", "1: the header lacks title: write"]),
        ("-- title", "-- bootstrap: token\n-- plot: line x\n-- title", ["2: bootstrap 'token'", "3: plot 'line x'"]),
        ("needs: lens", "needs: delta", ["3: its SELECT reads lens, which `needs` does not name"]),
        (
            "needs: lens",
            "needs: lense, nothing",
            ["3: needs table 'lense', which nobody declares; did you", "3: needs"],
        ),
        ("(entropy)", "(entropie)", ['8: SQL: Binder Error: Referenced column "entropie"']),
        ("FROM lens", "FROM lens WHERE", ["10: SQL: Parser Error"]),
        (", count(*) AS n", "", ["7: its SELECT returns totals without `n`"]),
        ("contrast: variant", "contrast: side", ["5: contrast is over side, which its SELECT does not return"]),
        (
            "-- source",
            "-- says: {entropy} {entropie}\n-- measures:\n--   - entropy | entropy | nats | of the lens\n-- plot: line x=depth\n-- source",
            ["6: says {entropie}, which is none of its measures: entropy", "9: plot has x=depth"],
        ),
        ("GROUP BY ALL\n", "GROUP BY ALL;\n", ["10: its SQL ends in 'GROUP BY ALL;'"]),
        (GOOD, "SELECT 1", [f"1: the header lacks {name}" for name in ("id", "title", "needs", "stream", "source")]),
        (GOOD, "", ["1: the header lacks"] * 5 + ["1: no SQL after the header"]),
    ],
)
def test_what_is_wrong_is_said_line_by_line(
    tmp_path: Path, command_line: Run, old: str, new: str, lines: list[str]
) -> None:
    file = tmp_path / "mine.sql"
    file.write_text(GOOD.replace(old, new) if old else GOOD)
    query, problems = checked(file)
    assert len(problems) == len(lines) and (query is None) == bool(lines)
    for problem, line in zip(problems, lines, strict=True):
        assert problem.startswith(f"{file}:{line}"), problem
    code, out, _ = command_line("rows", "check", str(file))
    assert code == (2 if lines else 0) and out.splitlines() == (problems or [f"{file}: row mine is well formed"])


def test_every_row_of_the_index_passes_the_check() -> None:
    for file in sorted(registry.FOLDER.glob("*.sql")):
        assert checked(file)[1] == []


def test_a_row_without_plot_and_sentence_has_both(captured: Layout, catalog: Path) -> None:
    (catalog.parent / "my_rows" / "mine.sql").write_text(GOOD)
    answer = actlake.open(captured.root, catalog=catalog).run("mine", pair="llama", probes=False)
    line = answer.table.set_index("variant").loc["it - pt"]
    assert line["low"] < line["estimate"] < line["high"] and line["method"] == "BCa"
    assert answer.sentence.startswith("entropy (IT − PT): ") and "[" in answer.sentence
    assert answer.figure().axes and answer.main["measure"].tolist() == ["entropy"] * 3


def test_two_rows_of_one_name_and_a_file_that_is_no_text(catalog: Path) -> None:
    folder = catalog.parent / "my_rows"
    (folder / "a.sql").write_text(GOOD)
    (folder / "b.sql").write_text(GOOD.replace("id: mine", "id: MINE"))
    with pytest.raises(LakeError, match="row 'mine|MINE' is there already; give it another id"):
        registry.queries(catalog)
    (folder / "b.sql").write_bytes(b"\xff\xfe")
    with pytest.raises(LakeError, match="b.sql: can't be read as text"):
        registry.queries(catalog)
    with pytest.raises(LakeError, match="expected a name of letters"):
        new_row("2nd", catalog)


SCRIPT = """\
import json, sys
import actlake
from actlake.queries.rows.registry import find
lake = actlake.open(sys.argv[1], catalog=sys.argv[2])
answer = lake.run("kurtosis", pair="llama")
texts = {}
for name, edit in {"clamp": actlake.edits.Clamp(layers="all", limit=0), "zero": "zero:layers=all"}.items():
    made = lake.generate("llama/it", edits=[edit], prompts=sys.argv[3], limit=3, max_new_tokens=4)
    texts[name] = made.texts["text"].tolist()
print(json.dumps({
    "table": json.loads(answer.table.to_json(orient="records")), "sentence": answer.sentence, "texts": texts,
    "rows": lake.rows["row"].tolist(), "axes": len(answer.figure().axes),
}))
"""


def test_the_example_package_is_installed_and_answers(lake_copy: Layout, llama: PairSpec, tmp_path: Path) -> None:
    """With pip, into a folder on the path; beside it packages of which one raises and one has a row that can't be read."""
    site = tmp_path / "site"
    tree = tmp_path / "kurtosis"
    tree.mkdir()
    for file in EXAMPLE.rglob("*"):
        if file.is_file() and file.suffix in (".py", ".sql", ".toml"):
            (tree / file.relative_to(EXAMPLE)).parent.mkdir(exist_ok=True)
            (tree / file.relative_to(EXAMPLE)).write_bytes(file.read_bytes())
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        str(tree),
        "--no-deps",
        "--no-build-isolation",
        "-q",
        "-t",
        str(site),
    ]
    subprocess.run(pip, check=True, capture_output=True)
    (site / "headless").mkdir()
    (site / "headless" / "__init__.py").touch()
    (site / "headless" / "row.sql").write_text("SELECT 1")
    (site / "raising.py").write_text("raise RuntimeError('not today')")
    for name, groups in (("headless", ("rows",)), ("raising", ("tables", "edits", "rows"))):
        (info := site / f"{name}-1.dist-info").mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        (info / "entry_points.txt").write_text("".join(f"[actlake.{group}]\n{name} = {name}\n" for group in groups))
    catalog = tmp_path / "catalog.yaml"
    catalog.write_text(f"pairs: {{llama: {{pt: {{path: {llama.pt.path}}}, it: {{path: {llama.it.path}}}}}}}\n")
    (tmp_path / "p.jsonl").write_bytes(canonical_bytes(tiny.prompt_set().prompts))
    path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-c", SCRIPT, str(lake_copy.root), str(catalog), str(tmp_path / "p.jsonl")]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    resid = actlake.open(lake_copy.root).dataset("llama-it", "native")
    late = (
        resid["resid"].values[(resid["step"] >= 1).values][:, 3:].astype(np.float64)
    )  # out of block 2, the last third
    centred = late - late.mean(-1, keepdims=True)
    expected = ((centred**4).mean(-1) / (centred**2).mean(-1) ** 2 - 3).mean()
    lines = {(line["measure"], line["variant"]): line for line in found["table"] if line["layer"] is None}
    assert lines["late_kurtosis", "it"]["estimate"] == pytest.approx(expected, rel=1e-4)
    assert lines["late_kurtosis", "it - pt"]["low"] < lines["late_kurtosis", "it - pt"]["high"]
    assert found["sentence"].startswith("In the last third of the layers IT's residual is ") and found["axes"]
    assert found["texts"]["clamp"] == found["texts"]["zero"] and len(found["texts"]["zero"]) == 3
    assert {"kurtosis", "L2"} <= {*found["rows"]} and "row" not in found["rows"]
    for said in (
        "tables of raising (raising) are left out: RuntimeError: not today",
        "edits of raising (raising) are left out: RuntimeError: not today",
        "rows of raising are left out: RuntimeError: not today",
        "rows of headless are left out: ",
    ):
        assert [line for line in done.stderr.splitlines() if line.startswith(said)], (said, done.stderr)
    assert "Traceback" not in done.stderr
