"""Documentation as a stranger meets it: links lead somewhere, examples parse, what a page tells one to do works."""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import actlake
import numpy as np
import pytest
import tiny
import yaml
from actlake.capture.edit.edits import EDITS
from actlake.cli.main import app
from actlake.queries.answer.own import check_row
from actlake.store.core.registry import Registry
from actlake.store.format.paths import Layout
from actlake.store.tables.declared import TABLES
from typer.main import get_command

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    page
    for pattern in ("*.md", "docs/**/*.md", "prompts/*.md", "models/*/*.md", "examples/**/*.md", "llms.txt")
    for page in ROOT.glob(pattern)
)
LINK = re.compile(r"\]\(([^()\s]+)\)")
HEADING = re.compile(r"^#+ (.+?)(?: \{#[\w-]+\})?$", re.MULTILINE)
FENCED = re.compile(r"^(`{3,}).*?^\1$", re.MULTILINE | re.DOTALL)
DIFF = re.compile(r"^```diff\n---[^\n]*\n\+\+\+ b?/?(\S+)\n@@[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """What a link may name after # in a page."""
    text = FENCED.sub("", page.read_text(encoding="utf-8"))
    names = [
        re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).replace(" ", "-") for heading in HEADING.findall(text)
    ]
    return {*names, *re.findall(r"^\(([\w-]+)\)=$", text, re.MULTILINE)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(FENCED.sub("", page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), target
        assert not anchor or file.suffix != ".md" or anchor in anchors(file), target


def test_every_page_is_in_the_contents_of_the_site() -> None:
    docs = ROOT / "docs"
    listed = {*re.findall(r"^[\w/-]+$", (docs / "index.md").read_text(encoding="utf-8"), re.MULTILINE)}
    own = {page.relative_to(docs).with_suffix("").as_posix() for page in docs.rglob("*.md") if page.name != "README.md"}
    assert own - {"index"} <= listed, own - listed


def commands(command: Any, name: str = "actlake") -> Iterator[tuple[str, Any]]:
    """Every command that runs something, by all its words."""
    for part, below in getattr(command, "commands", {}).items():
        yield from commands(below, f"{name} {part}")
    if not hasattr(command, "commands"):
        yield name, command


@pytest.mark.parametrize(("name", "command"), [*commands(get_command(app))], ids=lambda value: str(value)[:40])
def test_every_command_has_an_example_that_parses(name: str, command: Any) -> None:
    example = re.fullmatch(r"Example: `(.+)`", command.epilog or "")
    assert example and f"{example[1]} ".startswith(f"{name} "), name
    command.make_context(name, shlex.split(example[1])[len(name.split()) :])


def test_every_column_of_numbers_has_a_unit_and_every_column_a_meaning() -> None:
    for table in TABLES.values():
        assert table.about, table.name
        for column in table.columns:
            assert len(column.meaning) > 3, (table.name, column.name)
            assert column.unit or column.key or not column.type.startswith("float"), (table.name, column.name)


def test_every_public_name_is_shown_on_a_page_that_somebody_wrote() -> None:
    written = [page for page in PAGES if page.name not in ("ROWS.md", "TABLES.md", "ARCHITECTURE.md", "llms.txt")]
    text = "\n".join(page.read_text(encoding="utf-8") for page in written)
    for line in (ROOT / "tests" / "page.txt").read_text(encoding="utf-8").splitlines():
        owner, _, name = re.match(r"[\w.]+", line)[0].rpartition(".")  # type: ignore[index]
        before = {"actlake": r"actlake\.", "actlake.Lake": r"\."}.get(owner, r"\b")
        assert re.search(rf"{before}{name}\b", text), line


def additions() -> dict[str, str]:
    """File -> the lines that a diff of CONTRIBUTING.md adds to it."""
    found = DIFF.findall((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    return {file: "".join(f"{line[1:]}\n" for line in text.splitlines() if line[:1] == "+") for file, text in found}


@pytest.fixture
def registries() -> Iterator[None]:
    """What a test declares is forgotten after it."""
    registry: Registry[Any]
    kept = [(registry, (len(registry), dict(registry._known))[1]) for registry in (TABLES, EDITS)]
    yield
    for registry, known in kept:
        registry._known = known


def test_the_row_that_contributing_adds_is_well_formed(tmp_path: Path) -> None:
    name, text = next(item for item in additions().items() if item[0].endswith(".sql"))
    (tmp_path / Path(name).name).write_text(text, encoding="utf-8")
    assert check_row(tmp_path / Path(name).name).id == Path(name).stem


def test_the_table_that_contributing_adds_is_what_numpy_says(captured: Layout, registries: None) -> None:
    text = next(text for name, text in additions().items() if "/tables/" in name)
    # The same function, declared from outside: its imports are the public ones.
    code = re.sub(r"^from \.\..*\n", "", text, flags=re.MULTILINE).replace("version=1", "version='x'")
    exec(compile(code, "spikes.py", "exec"), {"Column": actlake.Column, "table": actlake.table, "__name__": "mine"})
    lake = actlake.open(captured.root)
    found = lake.sql_frame("SELECT * FROM spikes WHERE model = 'llama-it' ORDER BY token, layer")
    resid = lake.dataset("llama-it", "native").resid.transpose("token", "boundary", "d_model").values
    largest = np.abs(resid).max(-1) ** 2 / np.square(resid).sum(-1)
    kept = found["stream"] == found["stream"].iloc[0]
    assert np.allclose(found[kept]["share"], largest.reshape(-1)[: kept.sum()], rtol=1e-5)


def test_the_edit_that_contributing_adds_is_known_by_its_word(registries: None) -> None:
    import torch
    from actlake.capture.edit import edits

    exec(additions()["capture/edit/edits.py"], {**vars(edits), "__name__": "mine"})
    made = EDITS["clip"](blocks=(0,), limit=1.0)
    assert made.operator(0, torch.device("cpu"))(torch.tensor([-2.0, 0.5, 3.0])).tolist() == [-1.0, 0.5, 1.0]


def test_the_family_that_contributing_adds_can_be_made(tmp_path: Path) -> None:
    name, family = next(iter(eval("{" + additions()["tests/tiny.py"] + "}", {"Family": tiny.Family}).items()))
    assert name not in tiny.FAMILIES
    tiny.FAMILIES[name] = family
    try:
        folder = tiny.make_model(tmp_path, name)
    finally:
        del tiny.FAMILIES[name]
    assert json.loads((folder / "config.json").read_text())["model_type"] == name


def test_workflows_and_forms_are_yaml_and_run_what_make_knows() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    asked = set()
    for file in (ROOT / ".github").rglob("*.yml"):
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
        assert found, file
        asked |= set(re.findall(r"run: make (\w+)", file.read_text(encoding="utf-8")))
    assert {"lint", "test", "demo", "sweep"} <= asked <= targets
