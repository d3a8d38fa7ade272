"""What commands load: torch and transformers, which take seconds, only where something is computed with them."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
from actlake.queries.answer.asking import answer_all
from actlake.queries.rows.registry import find
from actlake.store.tables.declared import TABLES
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


@pytest.mark.parametrize("command", [["--help"], ["run", "--help"], ["run", "L2", "--about"], ["run", "--published"]])
def test_explaining_loads_nothing(command: list[str]) -> None:
    assert not loaded(*command)[1]


def test_looking_at_a_lake_loads_nothing(where: list[str]) -> None:
    for words in (["ls", *where[:2]], ["sql", "SELECT layer, avg(block_cos) FROM delta GROUP BY layer", *where]):
        assert not loaded(*words)[1]


def test_declaring_tables_loads_nothing() -> None:
    code = f"import sys, actlake; from actlake.store.tables.declared import TABLES; n = len(TABLES); print(n, *({{*{HEAVY}}} & sys.modules.keys()))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.split() == [str(len(TABLES))]
