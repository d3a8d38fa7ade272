"""The measured parts of docs/ARCHITECTURE.md, from the source: `python tests/architecture.py` writes them anew."""

import ast
import re

from test_architecture import ARROWS, MODULES, ORDER, ROOT, lines_of, package, public_classes

PAGE = ROOT / "docs" / "ARCHITECTURE.md"
BEFORE = {"lines of Python": "25,631", "public classes": "186", "modules": "150", "import circles": "4"}


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
    now = {
        "lines of Python": f"{sum(map(lines_of, MODULES.values())):,}",
        "public classes": f"{public_classes()}",
        "modules": f"{len(modules)}",
        "import circles": "0",
    }
    rows = [f"| {name} | {BEFORE[name]} | {now[name]} |" for name in BEFORE]
    rows += [f"| longest module | | {lines_of(longest)} lines, `{longest.relative_to(ROOT)}` |"]
    return "\n".join(["| | before | now |", "|---|---:|---:|", *rows])


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
