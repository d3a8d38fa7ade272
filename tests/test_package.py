"""`pip install .` without -e: all that the command needs travels in the source archive and in the wheel made of it, nothing else does."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from actlake.queries.rows import index

ROOT = Path(__file__).parent.parent
NEEDED = (
    "catalog.yaml",
    "py.typed",
    "models/pocket/dpo/model.safetensors",
    "models/pocket/it/model.safetensors",
    "models/pocket/it/tokenizer.json",
    "models/pocket/pt/model.safetensors",
    "models/pocket/sft/model.safetensors",
    "models/sample/lake.zip",
    "prompts/core.jsonl",
    "prompts/pocket.jsonl",
    "prompts/rubrics.yaml",
    "queries/rows/L1.sql",
    "queries/figures/page.html.j2",
    "queries/rows/published.csv",
    "store/tables/views/commit_layers.sql",
    "store/tables/views/commitment.sql",
)


def built(kind: str, tree: Path, out: Path) -> Path:
    """The `sdist` or `wheel` of a tree, by the build backend itself."""
    code = f"from setuptools import build_meta; build_meta.build_{kind}({str(out)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=tree, check=True, capture_output=True, text=True)
    return next(out.glob("*.whl" if kind == "wheel" else "*.tar.gz"))


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source archive, built from a copy so that no build folder is left in the tree."""
    copy = tmp_path_factory.mktemp("src") / "tree"
    skip = shutil.ignore_patterns(".*", "lake", "build", "*.egg-info", "__pycache__", "answers")
    shutil.copytree(ROOT, copy, ignore=skip)
    return built("sdist", copy, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that is made of the source archive alone."""
    tree = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(archive) as files:
        files.extractall(tree, filter="data")
    return built("wheel", next(tree.iterdir()), tmp_path_factory.mktemp("wheel"))


def test_the_wheel_holds_code_and_data_under_one_name(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {f"actlake/{name}" for name in NEEDED} <= set(names)
    tops = {name.split("/")[0] for name in names}
    assert tops == {"actlake", next(t for t in tops if t.endswith(".dist-info"))}
    assert not any(name.startswith(("actlake/tests", "actlake/benchmarks", "actlake/docs")) for name in names)


def test_an_installed_wheel_finds_its_catalog_prompts_queries_and_models(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--no-deps",
        "--no-index",
        "-q",
        "--target",
        str(site),
        str(wheel),
    ]
    subprocess.run(command, check=True, capture_output=True, text=True)
    assert (site / "bin" / "actlake").is_file()
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


def test_what_an_index_shows_of_it_is_complete_and_one_version_stands_everywhere(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    said = zipfile.ZipFile(wheel).read(next(n for n in names if n.endswith(".dist-info/METADATA"))).decode()
    fields = dict(re.findall(r"^([A-Z][\w-]+): (.+)$", said.split("\n\n")[0], re.MULTILINE))
    for field in ("Summary", "Keywords", "Classifier", "License-Expression", "Requires-Python", "Author"):
        assert fields.get(field), field
    version = fields["Version"]
    assert re.search(rf"^## {re.escape(version)} ", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert f"version: {version}" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    found = {f"actlake.{f.parent.relative_to(ROOT).as_posix().replace('/', '.')}" for f in ROOT.glob("*/**/*.py")}
    outside = ("tests", "benchmarks", "examples", "docs", "build")
    kept = {
        n
        for n in found
        if n.split(".")[1] not in outside and "" not in n.split(".") and not n.startswith("actlake.models")
    }
    assert kept <= {*listed}, kept - {*listed}


def test_the_command_sets_up_torch_before_it_is_loaded() -> None:
    code = "import os, sys, actlake.cli.main; assert 'torch' not in sys.modules; sys.argv[1:] = ['--version']; actlake.cli.main.main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("actlake ")


def test_the_page_of_rows_is_that_of_the_headers() -> None:
    for file, page in index.PAGES.items():
        assert (ROOT / "docs" / file).read_text(encoding="utf-8") == page(), index.__doc__
