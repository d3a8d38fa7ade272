"""The measured parts of docs/ARCHITECTURE.md, from the source: `python tests/architecture.py` writes them anew."""

import ast
import re
from collections import Counter
from pathlib import Path

from test_architecture import ARROWS, MODULES, ORDER, ROOT, lines_of, package, public_classes

PAGE = ROOT / "docs" / "ARCHITECTURE.md"
BEFORE = {
    "lines of Python": "25,631",
    "of these code": "16,454",
    "docstrings": "2,647",
    "blank": "4,426",
    "imports": "1,963",
    "public classes": "186",
    "modules": "150",
    "import circles": "4",
}


def arrows() -> dict[str, set[str]]:
    """Package -> the packages it imports, without those that it reaches through another one."""
    direct: dict[str, set[str]] = {name: set() for name in ORDER}
    for name, others in ARROWS.items():
        if MODULES[name].stem != "__init__":
            direct[package(name)] |= {package(other) for other in others} & set(ORDER) - {package(name)}
    reached: dict[str, set[str]] = {}
    for name in reversed(ORDER):  # what it imports comes later in the order, so is known already
        reached[name] = set().union(direct[name], *(reached.get(other, set()) for other in direct[name]))
    return {
        name: {other for other in others if not any(other in reached[third] for third in others - {other})}
        for name, others in direct.items()
    }


def picture() -> str:
    """The packages as a Mermaid graph, grouped by folder, drawn from the top down."""
    lines, folders = ["flowchart TD"], {}
    for name in ORDER:
        folders.setdefault(name.split(".")[0], []).append(name)
    for folder, names in folders.items():
        if len(names) == 1:
            lines.append(f"  {_id(names[0])}[{names[0]}]")
        else:
            lines += [f"  subgraph {folder}_[{folder}]", *(f"    {_id(name)}[{name}]" for name in names), "  end"]
    lines += [
        f"  {_id(name)} --> {_id(other)}"
        for name, others in arrows().items()
        for other in sorted(others, key=ORDER.index)
    ]
    return "\n".join(["```mermaid", *lines, "```"])


def packages() -> str:
    """A table of the packages from the top down: what each is for, its modules and lines."""
    rows = ["| package | what it is for | modules | lines |", "|---|---|---:|---:|"]
    for name in ORDER:
        own = [path for module, path in MODULES.items() if package(module) == name and path.stem != "__init__"]
        own += [MODULES[name]] if name in MODULES and MODULES[name].stem == "__init__" else []
        text = ast.get_docstring(ast.parse(MODULES[name].read_text())) or ""
        about = text.split("\n\n")[0].replace("\n", " ").replace("|", "\\|")
        modules = sum(path.stem != "__init__" for path in own) or len(own)
        rows.append(f"| `{name}` | {about} | {modules} | {sum(map(lines_of, own)):,} |")
    return "\n".join(rows)


def numbers() -> str:
    """Sizes of the source before the packages were laid out, and now."""
    modules = [path for path in MODULES.values() if path.stem != "__init__"]
    longest = max(modules, key=lines_of)
    parts = sum((parts_of(path) for path in MODULES.values()), Counter())
    now = {
        "lines of Python": f"{sum(map(lines_of, MODULES.values())):,}",
        **{name: f"{parts[name]:,}" for name in ("of these code", "docstrings", "blank", "imports")},
        "public classes": f"{public_classes()}",
        "modules": f"{len(modules)}",
        "import circles": "0",
    }
    rows = [f"| {name} | {BEFORE[name]} | {now[name]} |" for name in BEFORE]
    rows += [f"| longest module | | {lines_of(longest)} lines, `{longest.relative_to(ROOT)}` |"]
    return "\n".join(["| | before | now |", "|---|---:|---:|", *rows])


def parts_of(path: Path) -> Counter[str]:
    """What the lines of a module are: docstrings with their blank lines, imports, blank, comments, and all else, the code."""
    lines, kinds = path.read_text().splitlines(), dict[int, str]()
    for node in ast.walk(ast.parse("\n".join(lines))):
        found = ""
        if isinstance(node, ast.Import | ast.ImportFrom):
            found = "imports"
        elif isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node, found = node.body[0], "docstrings"
        if found:
            kinds |= dict.fromkeys(range(node.lineno, (node.end_lineno or node.lineno) + 1), found)
    for number, line in enumerate(lines, 1):
        text = line.strip()
        kinds.setdefault(number, "blank" if not text else "comments" if text.startswith("#") else "of these code")
    return Counter(kinds.values())


def written(text: str) -> str:
    """The page with its measured parts renewed."""
    for name, made in (("picture", picture()), ("packages", packages()), ("numbers", numbers())):
        mark = f"<!-- {name} -->"
        text, count = re.subn(rf"{mark}.*?{mark}", lambda _, m=mark, t=made: f"{m}\n{t}\n{m}", text, flags=re.DOTALL)
        assert count == 1, name
    return text


def _id(name: str) -> str:
    return f"p_{name.replace('.', '_')}"


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
