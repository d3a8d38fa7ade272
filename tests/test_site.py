"""The site's own pages, without Sphinx: every public name and command has a place, links are rewritten, notebooks can be downloaded."""

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from test_docs import ROOT
from test_tutorials import CELL, TUTORIALS

SITE = ROOT / "docs" / "site"


def module(name: str) -> ModuleType:
    """A module of docs/site, which is no package."""
    spec = importlib.util.spec_from_file_location(name, SITE / f"{name}.py")
    assert spec and spec.loader
    sys.modules[name] = found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    return module("reference")


@pytest.fixture(scope="module")
def build(reference: ModuleType) -> ModuleType:
    return module("build")


def test_every_public_name_is_documented(reference: ModuleType) -> None:
    text = reference.api()
    for line in (ROOT / "tests" / "page.txt").read_text(encoding="utf-8").splitlines():
        owner, _, name = re.match(r"[\w.]+", line)[0].rpartition(".")  # type: ignore[index]
        if owner == "actlake" and name in ("Lake", "__version__", "analyze", "edits", "testing"):
            continue  # what stands below these names is there
        shown = {"actlake.Lake": f"lake.{name}", "actlake.Selection": f"selection.{name}"}.get(owner, f"{owner}.{name}")
        assert re.search(rf"{re.escape(shown)}\b", text), line
    assert (
        "actlake.testing.made_lake(" in text
        and "function <" not in text
        and " at 0x" not in text
        and "typing." not in text
    )


def test_every_command_and_option_is_documented(reference: ModuleType) -> None:
    text = reference.cli()
    for name, command in reference.commands(reference.typer.main.get_command(reference.app)):
        section = text.split(f"\n## {name}\n")[1].split("\n## ")[0]
        assert f"\n{name}" in section, name  # the example
        for each in command.params:
            assert getattr(each, "hidden", False) or all(f"`{word}`" in section for word in each.opts if word[0] == "-")


def test_links_are_those_of_the_site_and_code_stays_as_it_is(build: ModuleType, tmp_path: Path) -> None:
    page = ROOT / "docs" / "guides" / "share.md"
    text = "[a](../../prompts/README.md#fields) [b](../METHODS.md) [c](../../pyproject.toml) [d](https://x.org)\n```\n[e](f)\n```\n"
    found = build.placed(text, page, build.pages())
    assert found == "[a](../prompts.md#fields) [b](../METHODS.md) c [d](https://x.org)\n```\n[e](f)\n```\n"


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_a_tutorial_can_be_downloaded_as_a_notebook(build: ModuleType, page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(build.notebook(text))
    code = [cell["source"] for cell in found["cells"] if cell["cell_type"] == "code"]
    assert code == [code.strip("\n") for _, code in CELL.findall(text)]
    words = [cell["source"] for cell in found["cells"] if cell["cell_type"] == "markdown"]
    assert words[0].startswith("# ") and not any("code-cell" in part for part in words)
