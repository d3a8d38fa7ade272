"""What commands load: torch and transformers, which take seconds, only where something is computed with them."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
from actlake.queries.rows.registry import find
from actlake.store.tables.declared import TABLES
from asking import answer_all
from test_graft_rows import catalog
from test_observed_rows import texts

ROWS = ("L1", "L2", "L3", "0A", "0G", "0H", "exp10", "exp11", "exp13A", "exp16", "exp22", "tuned")
HEAVY = ("torch", "transformers", "matplotlib", "dask.array", "xarray")
CODE = (
    "import sys; from actlake.cli.main import app; app(sys.argv[1:], standalone_mode=False);"
    f"print(*({{*{HEAVY}}} & sys.modules.keys()), file=sys.stderr)"
)


def loaded(*words: str) -> tuple[str, set[str]]:
    """What a command prints, run in a process of its own, and which of the heavy packages it loaded."""
    done = subprocess.run([sys.executable, "-c", CODE, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, set(done.stderr.splitlines()[-1].split())


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options that name a lake with captures of 16 prompts and the tables of ROWS."""
    root = tmp_path_factory.mktemp("startup")
    pair = tiny.make_pair(root / "pair", "llama", num_hidden_layers=4)
    streams = [replace(stream, max_new_tokens=16) for stream in (tiny.NATIVE, tiny.TEACHER)]
    layout = tiny.capture(root / "lake", pair, *streams, prompts=tiny.prompt_set(texts(16)))
    file = catalog(root, pair)
    answers, refused, _ = answer_all(layout, [find(row) for row in ROWS], "llama", catalog=file, generate=False)
    assert len(answers) == len(ROWS), refused
    return ["--lake", str(layout.root), "--catalog", str(file)]


def test_rows_whose_tables_are_there_load_no_torch(where: list[str]) -> None:
    before = sorted(Path(where[1]).rglob("*"))
    said, found = loaded("run", *ROWS, "--json", "--no-generate", *where)
    assert len(json.loads(said)) == len(ROWS) and not found
    assert sorted(Path(where[1]).rglob("*")) == before


@pytest.mark.parametrize(
    "command",
    [
        ["--help"],
        ["run", "L2", "--about"],
        *(pytest.param(words, marks=pytest.mark.sweep) for words in (["run", "--help"], ["run", "--published"])),
    ],
)
def test_explaining_loads_nothing(command: list[str]) -> None:
    assert not loaded(*command)[1]


def test_looking_at_a_lake_loads_nothing(where: list[str]) -> None:
    for words in (["ls", *where[:2]], ["sql", "SELECT layer, avg(block_cos) FROM delta GROUP BY layer", *where]):
        assert not loaded(*words)[1]


def test_declaring_tables_loads_nothing() -> None:
    code = f"import sys, actlake; from actlake.store.tables.declared import TABLES; n = len(TABLES); print(n, *({{*{HEAVY}}} & sys.modules.keys()))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.split() == [str(len(TABLES))]


@pytest.mark.parametrize(("given", "kept"), [({}, "10000"), ({"GOMP_SPINCOUNT": "5"}, "5")])
def test_threads_of_torch_that_wait_rest_soon_unless_the_user_has_it_otherwise(
    given: dict[str, str], kept: str
) -> None:
    around = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"} | given
    code = "import os, actlake; print(os.environ['GOMP_SPINCOUNT'])"
    words = [sys.executable, "-c", code]
    assert subprocess.run(words, capture_output=True, text=True, check=True, env=around).stdout.strip() == kept


# What the extra `capture` and the others bring: a reader's environment has none of it.
ABSENT = (
    "torch",
    "transformers",
    "safetensors",
    "huggingface_hub",
    "accelerate",
    "skdim",
    "sklearn",
    "openai",
    "distributed",
)
BLOCKED = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {ABSENT}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
"""


def without_extras(code: str, *words: str, ok: bool = True) -> subprocess.CompletedProcess[str]:
    """Python code in a process in which the packages of the extras can't be imported."""
    done = subprocess.run([sys.executable, "-c", BLOCKED + code, *words], capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == ok, done.stderr
    return done


@pytest.mark.sweep
def test_a_lake_is_explored_without_the_extras(where: list[str], tmp_path: Path) -> None:
    code = f"""
import actlake
from actlake.explore.packing import unpacked
page = actlake.open({where[1]!r}, catalog={where[3]!r}).explore({str(tmp_path / "site")!r})
read = lambda name: unpacked((page.parent / "data" / (name + ".js")).read_bytes())[1:]
value, arrays = read("cells/0/0")
assert "takes torch" in value["notes"][0] and value["lenses"] and arrays["raw.top"].shape[0] == 1, value
rows = {{one["row"]: one for one in read("rows")[0]["rows"]}}
assert rows["L2"]["file"] is not None and rows["A1"]["file"] is None and rows["A1"]["why"], rows
"""
    without_extras(code)


def test_a_lake_is_read_asked_and_drawn_without_the_extras(where: list[str], tmp_path: Path) -> None:
    code = f"""
import actlake
lake = actlake.open({where[1]!r}, catalog={where[3]!r})
for table in (lake.captures, lake.models, lake.streams, lake.prompts, lake.tables, lake.rows, lake.texts()):
    assert "<table" in table._repr_html_()
data = lake.dataset("llama/it", "native")
assert data.resid[:5].values.shape[0] == 5
ids = lake.tokens("llama/it", "native")["token_id"][:4]
assert lake.decode(ids, "llama/it")
assert lake.sql("SELECT count(*) FROM delta").fetchall()[0][0] > 0
answer = lake.rows.L2(pair="llama", generate=False)
assert "<img" in answer._repr_html_() and "IT" in answer.sentence and answer.sql and len(answer.table)
assert [path.suffix for path in answer.save({str(tmp_path)!r})] == [".csv", ".png", ".svg", ".sql"]
answer.lock({str(tmp_path / "L2.lock")!r})
assert [one.same for one in lake.reproduce({str(tmp_path / "L2.lock")!r}, generate=False)] == [True]
found = lake.run_all(["L1", "exp16"], "llama", generate=False)
assert len(found.answers) == 2 and found.page({str(tmp_path / "page.html")!r}).stat().st_size > 10000
assert lake.cite("llama/it/native")["reference"].startswith("actlake:")
assert all(report.ok for report in lake.verify()) and lake.gc().empty
"""
    without_extras(code)


def test_what_needs_an_extra_says_so_in_a_line(where: list[str]) -> None:
    calls = (
        'lake.capture("llama")',
        'lake.plan("llama")',
        'lake.head("llama/it")',
        'lake.fit_lens("llama/it")',
        'lake.generate("llama/it", ["none"])',
        'lake.run("exp10_P3", "llama")',
        'lake.sql("SELECT count(*) FROM patching")',
    )
    code = f"""
import actlake
lake = actlake.open({where[1]!r}, catalog={where[3]!r})
for call in {calls!r}:
    try:
        eval(call)
    except actlake.LakeError as error:
        print(call, "|", error, "|", error.repair)
"""
    lines = without_extras(code).stdout.splitlines()
    assert [line.partition(" | ")[0] for line in lines] == list(calls)
    for line in lines:
        assert "needs the package" in line and line.endswith("| pip install 'actlake[capture]'"), line
    command = "from actlake.cli.main import main; main()"
    for words in (["capture", "llama", *where], ["model", "check", "llama", *where[2:]]):
        said = without_extras(command, *words, ok=False).stderr.splitlines()
        assert len(said) == 1 and said[0].startswith("error: ") and "pip install 'actlake[capture]'" in said[0], said
    asked = f"import actlake; print(actlake.open({where[1]!r}, catalog={where[3]!r}).ask(pair='llama').reasons())"
    assert "this needs the package torch" in without_extras(asked).stdout  # of single rows: the others are planned
    said = without_extras(command, "run", "exp10_P3", "--pair", "llama", *where, ok=False).stderr
    assert "this needs the package" in said.splitlines()[-1] and "Traceback" not in said, said
    assert without_extras("from actlake.analyze.core.device import pick; print(pick())").stdout == "cpu\n"
    said = without_extras(command, "doctor", *where).stdout
    assert "lake " in said and "devices" not in said and "Traceback" not in said
