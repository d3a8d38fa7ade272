"""Tutorials: the tour runs with few prompts in the normal suite, all of them as they stand in the sweep (`make sweep`)."""

import ast
import os
import re
from pathlib import Path

import pytest
import ready

FOLDER = Path(__file__).parent.parent / "docs" / "tutorials"
TUTORIALS = sorted(FOLDER.glob("*.md"))
CELL = re.compile(r"^```\{code-cell\} python\n((?::[^\n]*\n)*)\n?(.*?)^```$", re.MULTILINE | re.DOTALL)


def cells(page: Path) -> list[str]:
    """The code of a notebook's cells, but of those that only install."""
    return [code for head, code in CELL.findall(page.read_text(encoding="utf-8")) if "skip-execution" not in head]


def program(page: Path) -> str:
    """A notebook as one program, which shows what a cell ends with as a notebook does: in HTML where it has one."""
    show = "def show(value):\n    getattr(value, '_repr_html_', lambda: repr(value))()\n"
    parts = [show]
    for code in cells(page):
        tree = ast.parse(code)
        if tree.body and isinstance(tree.body[-1], ast.Expr):
            tree.body[-1] = ast.parse(f"show({ast.unparse(tree.body[-1].value)})").body[0]
        parts.append(ast.unparse(tree))
    return "\n".join(parts)


def run(code: str, folder: Path) -> None:
    environment = {**os.environ, "MPLBACKEND": "agg", "OMP_NUM_THREADS": "1", "ACTLAKE_CACHE": str(folder / "cache")}
    done = ready.run("-c", code, cwd=folder, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_a_tutorial_is_a_notebook_that_installs_first_and_says_what_it_shows(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text.startswith("---\nfile_format: mystnb\n") and "kernelspec" in text
    every = CELL.findall(text)
    assert len(every) == text.count("```{code-cell}") and "%pip install" in every[0][1]
    for code in cells(page):
        ast.parse(code)


def test_the_tour_runs_with_few_prompts(tmp_path: Path) -> None:
    code, whole = program(FOLDER / "1-tour.md"), "streams=['native', 'teacher', 'raw']"
    assert code.count(whole) == 1
    run(code.replace(whole, f"{whole}, limit=8"), tmp_path)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder whose lake all tutorials share, as on the site."""
    return tmp_path_factory.mktemp("tutorials")


@pytest.mark.sweep
@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_a_tutorial_runs_as_it_stands(page: Path, shared: Path) -> None:
    run(program(page), shared)


# What these pages show needs a bucket or a judge.
ELSEWHERE = {"share", "judge"}
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
GUIDES = [page for page in sorted(FOLDER.parent.glob("guides/*.md")) if BLOCK.search(page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
def test_python_of_guides_is_python(page: Path) -> None:
    for code in BLOCK.findall(page.read_text(encoding="utf-8")):
        ast.parse(code)


@pytest.mark.sweep
@pytest.mark.parametrize("page", [page for page in GUIDES if page.stem not in ELSEWHERE], ids=lambda page: page.stem)
def test_python_of_guides_runs_as_it_stands(page: Path, shared: Path) -> None:
    made = "import actlake\nactlake.open('lake', create=True).capture('pocket', ['native', 'teacher', 'raw'], profile='attention')\n"
    run(made + "\n".join(BLOCK.findall(page.read_text(encoding="utf-8"))), shared)
