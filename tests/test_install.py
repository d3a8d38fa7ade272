"""`make` takes torch's CPU build from its own index where that answers, at once from pip's where it does not."""

import functools
import http.server
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="needs make")


@pytest.fixture
def index(tmp_path: Path) -> Iterator[str]:
    """The URL of an index that has a page for torch."""
    (tmp_path / "index" / "torch").mkdir(parents=True)
    (tmp_path / "index" / "torch" / "index.html").write_text("torch")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "index"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def make(folder: Path, *words: str) -> str:
    """The output of `make`, whatever the `make` that runs these tests was told."""
    told = ("MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES", "TORCH_INDEX", "VENV", "PYTHON")
    environment = {name: value for name, value in os.environ.items() if name not in told}
    done = subprocess.run(["make", *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def installs(folder: Path, *settings: str) -> tuple[list[str], str]:
    """What `make` has pip install, word by word, in an environment whose pip only writes down what it is asked; and the output."""
    (folder / "bin").mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder.parent / name)
    python = folder / "bin" / "python"
    python.write_text(f'#!/bin/sh\n[ "$1" = -m ] || exec "{sys.executable}" "$@"\necho "$@" >> "{folder}/asked"\n')
    python.chmod(0o755)
    said = make(folder.parent, f"VENV={folder}", *settings, f"{folder}/.installed-dev")
    return (folder / "asked").read_text().splitlines(), said


def test_torch_comes_first_and_from_the_index_that_answers(index: str, tmp_path: Path) -> None:
    asked, said = installs(tmp_path / "work" / "venv", f"TORCH_INDEX={index}")
    assert len(asked) == 3 and asked[0].endswith(f"-c constraints.txt --extra-index-url {index} torch")
    assert asked[1].endswith("-e .[capture]") and asked[2].endswith("-e .[dev]") and f"torch from {index}" in said
    assert not any("index" in line for line in asked[1:])


def test_an_index_that_does_not_answer_costs_seconds(tmp_path: Path) -> None:
    started = time.monotonic()
    asked, said = installs(tmp_path / "work" / "venv", "TORCH_INDEX=http://127.0.0.1:9/whl")
    assert time.monotonic() - started < 20 and len(asked) == 2
    assert "no torch to be had at http://127.0.0.1:9/whl: it comes from where pip looks (TORCH_INDEX=URL" in said
    assert not any("--extra-index-url" in line for line in asked)


def test_default_is_what_pip_finds_and_a_name_is_one_of_pytorchs(tmp_path: Path) -> None:
    asked, said = installs(tmp_path / "work" / "venv", "TORCH_INDEX=default")
    assert len(asked) == 2 and "no torch" not in said and "download.pytorch.org" not in said
    for settings, name in ((["TORCH_INDEX=cu130"], "cu130"), ([], "cpu")):
        shown = make(ROOT, "-n", "VENV=none", *settings, "none/.installed")
        assert f"--extra-index-url 'https://download.pytorch.org/whl/{name}' torch" in shown


def test_clean_keeps_what_was_captured_and_answered(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path / "Makefile")
    for name in ("lake/lake.json", "answers/L1.csv", "report.html", "dist/a.whl", ".venv/bin/python"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    make(tmp_path, "clean")
    left = sorted(file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*") if file.is_file())
    assert left == ["Makefile", "answers/L1.csv", "lake/lake.json", "report.html"]
