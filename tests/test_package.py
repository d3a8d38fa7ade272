"""`pip install .` without -e: everything the command needs travels in the wheel, and nothing generic does."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from actlake.queries.rows import index

ROOT = Path(__file__).parent.parent
NEEDED = (
    "catalog.yaml",
    "py.typed",
    "models/pocket/it/model.safetensors",
    "models/pocket/it/tokenizer.json",
    "models/pocket/pt/model.safetensors",
    "prompts/core.jsonl",
    "prompts/pocket.jsonl",
    "prompts/rubrics.yaml",
    "queries/rows/L1.sql",
    "queries/figures/page.html.j2",
    "queries/rows/published.csv",
    "store/tables/views/commit_layers.sql",
    "store/tables/views/commitment.sql",
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy so that no build folder is left in the tree."""
    copy, out = tmp_path_factory.mktemp("src") / "tree", tmp_path_factory.mktemp("wheel")
    skip = shutil.ignore_patterns(".*", "lake", "build", "*.egg-info", "__pycache__", "answers")
    shutil.copytree(ROOT, copy, ignore=skip)
    command = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "-q", "-w", str(out)]
    subprocess.run(command, cwd=copy, check=True, capture_output=True, text=True)
    return next(out.glob("*.whl"))


def test_the_wheel_holds_code_and_data_under_one_name(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {f"actlake/{name}" for name in NEEDED} <= set(names)
    tops = {name.split("/")[0] for name in names}
    assert tops == {"actlake", next(t for t in tops if t.endswith(".dist-info"))}
    assert not any(name.startswith(("actlake/tests", "actlake/benchmarks", "actlake/docs")) for name in names)


def test_an_installed_wheel_finds_its_catalog_prompts_queries_and_models(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    code = (
        "import actlake, pathlib; from actlake.store.core.catalog import load_catalog; from actlake.queries.rows.registry import queries;"
        "from actlake.capture.streams.prompts import read_prompts; c = load_catalog(); p = c.pair('pocket');"
        f"assert pathlib.Path(actlake.__file__).parent.parent == pathlib.Path({str(site)!r}), actlake.__file__;"
        "assert (p.it.path / 'model.safetensors').is_file() and len(queries()) >= 3;"
        "assert len(read_prompts(c.prompt_path('pocket')).prompts) >= 240; print(c.lake('default'))"
    )
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # The packaged catalog's lake lies where one works, not in site-packages.
    assert Path(done.stdout.strip()).resolve() == (tmp_path / "lake").resolve()


def test_the_command_sets_up_torch_before_it_is_loaded() -> None:
    code = "import os, sys, actlake.cli.main; assert 'torch' not in sys.modules; sys.argv[1:] = ['--version']; actlake.cli.main.main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("actlake ")


def test_the_page_of_rows_is_that_of_the_headers() -> None:
    for file, page in index.PAGES.items():
        assert (ROOT / "docs" / file).read_text(encoding="utf-8") == page(), index.__doc__
