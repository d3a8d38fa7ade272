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
    "testing",
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
    "exchange",
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
    "store.loader",
    "store.exchange",
    "store.tables",
    "store.captures",
    "store.artifacts",
    "store.format",
    "store.remote",
    "store.core",
)
ENTRIES = 12  # modules in a folder, at most
LONGEST = 350  # lines of a module, at most
DEPTH = 2  # classes of this package that one inherits from, one above the other, at most
# What the source has come to. These only go down: take something out before you add.
LINES = 46_358
CLASSES = 219  # public ones


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name without `actlake.`; the package itself is `actlake`."""
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[0].startswith(".") or parts[0] in ("tests", "benchmarks", "models", "examples", "docs", "build"):
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


def lines_of(path: Path) -> int:
    """Lines of a module."""
    return len(path.read_text().splitlines())


def classes() -> dict[str, list[ast.ClassDef]]:
    """The classes of every module, by its name."""
    trees = {name: ast.parse(path.read_text()).body for name, path in MODULES.items()}
    return {name: [node for node in body if isinstance(node, ast.ClassDef)] for name, body in trees.items()}


def public_classes() -> int:
    """How many classes have no underscore before their name."""
    return sum(not node.name.startswith("_") for found in classes().values() for node in found)


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


def test_modules_are_short():
    assert not {name: lines for name, path in MODULES.items() if (lines := lines_of(path)) > LONGEST}


def test_the_source_does_not_grow():
    assert sum(map(lines_of, MODULES.values())) <= LINES
    assert public_classes() <= CLASSES


def test_few_classes_stand_above_one_another():
    """Bases are found by their names: of two classes of one name, the one with more above it counts."""
    above: dict[str, set[str]] = {}
    for node in (node for found in classes().values() for node in found):
        bases = {ast.unparse(base).partition("[")[0].rpartition(".")[2] for base in node.bases}
        above.setdefault(node.name, set()).update(bases - {node.name})

    def depth(name: str) -> int:
        return max((1 + depth(base) for base in above[name] if base in above), default=0)

    assert not {name: depth(name) for name in above if depth(name) > DEPTH}


def test_the_page_describes_every_package():
    page = (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
    listed = [line.split("`")[1] for line in page.splitlines() if line.startswith("| `")]
    assert listed == list(ORDER), "run `python tests/architecture.py`"
