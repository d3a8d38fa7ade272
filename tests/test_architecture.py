"""The architecture, held by the imports: arrows point down a list of packages, and no modules import each other in a circle."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
# From the top down; imports point down this list. A module of no folder here stands under its own name.
ORDER = (
    "__main__",
    "cli",
    "intake_driver",
    "actlake",
    "lake",
    "page",
    "edits",
    "explore",
    "queries.cluster",
    "queries.answer",
    "queries.figures",
    "queries.replayed",
    "queries.generation",
    "queries.tables",
    "queries.probes",
    "queries",
    "queries.rows",
    "queries.engine",
    "judge",
    "capture.streams",
    "capture.edit",
    "capture.run",
    "capture.model",
    "capture.checkpoint",
    "analyze",
    "analyze.text",
    "analyze.stats",
    "analyze.residual",
    "analyze.lens",
    "analyze.tuned",
    "analyze.core",
    "store.exchange",
    "store.tables",
    "store.captures",
    "store.artifacts",
    "store.format",
    "store.remote",
    "store.core",
)
ENTRIES = 12  # modules in a folder, at most


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name without `actlake.`; the package itself is `actlake`."""
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[0].startswith(".") or parts[0] in ("tests", "benchmarks", "models", "examples", "build"):
            continue
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts) or "actlake"] = path
    return found


def imports(name: str, path: Path, known: dict[str, Path]) -> Iterator[str]:
    """The modules that one imports, anywhere in it."""
    folder = [] if name == "actlake" else name.split(".") if path.stem == "__init__" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = folder[: len(folder) - node.level + 1] + (node.module.split(".") if node.module else [])
            for alias in node.names:
                module = ".".join([*base, alias.name])
                yield module if module in known else ".".join(base) or "actlake"


def package(name: str) -> str:
    """The folder that a module is in; a module of the root is its own."""
    return name.rpartition(".")[0] or name


MODULES = modules()
ARROWS = {name: set(imports(name, path, MODULES)) - {name} for name, path in MODULES.items()}


def test_every_package_has_its_place():
    """Of packages, only those with modules of their own."""
    assert {package(name) for name in MODULES if MODULES[name].stem != "__init__"} | {"actlake"} == set(ORDER)


def test_imports_point_down():
    upward = [
        f"{name} -> {other}"
        for name, others in ARROWS.items()
        for other in others
        if MODULES[name].stem != "__init__" or name == "actlake"
        if package(name) != package(other) and ORDER.index(package(name)) > ORDER.index(package(other))
    ]
    assert not upward


def test_no_modules_import_each_other():
    done: set[str] = set()

    def walk(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join([*way, name])
        if name not in done:
            for other in ARROWS[name]:
                walk(other, (*way, name))
            done.add(name)

    for name in ARROWS:
        walk(name, ())


def test_folders_are_small():
    folders = [package(name) for name, path in MODULES.items() if path.stem != "__init__" and "." in name]
    assert not [folder for folder in set(folders) if folders.count(folder) > ENTRIES]


def test_the_page_describes_every_package():
    page = (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
    listed = [line.split("`")[1] for line in page.splitlines() if line.startswith("| `")]
    assert listed == list(ORDER), "run `python tests/architecture.py`"
