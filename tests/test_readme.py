"""README: every block of Python runs as it stands, in a folder with a lake like the demo's; every command line there exists."""

import os
import re
import shlex
from pathlib import Path

import pytest
import ready
import tiny
from actlake.capture.streams.capture_pair import Options, capture_pair, find_prompts
from actlake.cli.main import app
from actlake.store.core.catalog import load_catalog
from actlake.store.exchange.plan import Planner, origin_of
from actlake.store.exchange.transfer import Selection, move
from actlake.store.format.paths import Layout
from typer.main import get_command

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = [(language, text) for language, text in BLOCK.findall(README)]
PYTHON = [text for language, text in BLOCKS if language == "python"]
INLINE = re.findall(r"`(actlake\.analyze[^`]+\))`", " ".join(README.split()))
COMMANDS = [
    part.strip()
    for language, text in BLOCKS
    if not language
    for line in text.splitlines()
    for part in re.split(r"\s{2,}", line)[0].split("&&")
    if re.match(r"(\w+=\S+ )*actlake (?!ls \|)", part.strip())
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with the embedded pair's lake, of 24 prompts."""
    root = tmp_path_factory.mktemp("readme")
    catalog, layout = load_catalog(None), Layout.open(root / "lake", create=True)
    streams = [catalog.stream(name) for name in ("native", "teacher")]
    prompts = find_prompts(catalog, layout, "pocket", 24)
    capture_pair(layout, catalog.pair("pocket"), streams, prompts, catalog.profile("attention"), options=Options("cpu"))
    return root


def python(folder: Path, code: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACTLAKE_CACHE": str(folder / "cache")}
    done = ready.run("-c", code, cwd=folder, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_sample_is_answered_as_it_stands(folder: Path) -> None:
    said = python(folder, PYTHON[0])
    assert said.startswith("Through the")


def test_the_python_tour_runs_as_it_stands(folder: Path) -> None:
    said = python(folder, PYTHON[1])
    assert re.match(r"\[\s*-?\d", said) and "kl" in said and "cg_raw" in said


def test_python_of_remote_lakes_runs_on_a_lake_by_name(folder: Path, bucket: str) -> None:
    assert len(PYTHON) == 3 and PYTHON[2].count("s3://bucket/lake") == 1
    move(Planner(origin_of(Layout.open(folder / "lake")), origin_of(bucket), Selection()).plan())
    # The block as it stands, but for the bucket's name.
    python(folder, PYTHON[2].replace("s3://bucket/lake", bucket) + "\nprint(it.resid[0, 0].values.shape)")


def test_python_between_the_lines_runs(folder: Path) -> None:
    assert any("analyze.lazy.lens" in code for code in INLINE)
    for code in INLINE:
        python(folder, f"import actlake\nlake = actlake.open('lake')\nfound = {code}\nprint(found)")


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_and_options_of_readme_exist(line: str) -> None:
    words = [word for word in shlex.split(line) if not re.fullmatch(r"[A-Z_]+=\S*", word)]
    command = get_command(app)
    assert words.pop(0) == "actlake"
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    command.make_context("actlake", words)  # parses, and refuses what it does not know


LOCAL = ("run L1 L2 exp16", "run L2 --published", "cite ", "run L2 --lock", "reproduce", "sql ", "plan pocket")


def test_commands_that_need_nothing_else_run(folder: Path) -> None:
    lines = [line for line in COMMANDS if line.removeprefix("actlake ").startswith(LOCAL)]
    assert len(lines) >= 6
    for line in lines:
        words = shlex.split(line)[1:]
        done = ready.run("-m", "actlake", *words, cwd=folder)
        assert done.returncode == 0, (line, done.stderr[-2000:])
    assert (folder / "answers" / "L1-pocket.png").stat().st_size > 1000 and tiny.tree(folder / "answers")
