"""Pages of the site that the code says: the public names with their types, the commands, the figures of rows."""

import inspect
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import actlake
import typer
from actlake.cli.main import app
from actlake.queries.answer.answer import Answer
from actlake.queries.answer.asking import Asking
from actlake.queries.answer.results import Results

# Methods of a lake by what one wants; what is named nowhere comes last.
SUBJECTS = {
    "What is there": "captures models pairs streams prompts tables rows catalog stale only_pair describe",
    "Arrays and texts": "dataset batches tokens decode head lenses directions texts prompt",
    "Making": "plan capture seal fit_lens import_lens generate score judge add_prompts add_table add_capture on",
    "Asking": "sql sql_frame run run_all ask",
    "Trust and sharing": "verify cite reproduce push pull sync index serve explore gc",
}


def named(annotation: Any) -> str:
    """A type as it is written, without the names of modules."""
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return re.sub(r"\b(?:actlake|pathlib|collections\.abc|typing)\.(?:\w+\.)*", "", text)


def signature(name: str, found: Any) -> str:
    """A function's name with its arguments, one a line when they are many, with types and defaults."""
    given = inspect.signature(found)
    parts, star = [], False
    for each in given.parameters.values():
        if each.name == "self":
            continue
        if each.kind is each.KEYWORD_ONLY and not star:
            parts.append("*")
        star = star or each.kind in (each.KEYWORD_ONLY, each.VAR_POSITIONAL)
        text = {each.VAR_POSITIONAL: "*", each.VAR_KEYWORD: "**"}.get(each.kind, "") + each.name
        text += "" if each.annotation is each.empty else f": {named(each.annotation)}"
        default = "..." if callable(each.default) else repr(each.default)
        parts.append(text if each.default is each.empty else f"{text} = {default}")
    back = "" if given.return_annotation is given.empty else f" -> {named(given.return_annotation)}"
    line = f"{name}({', '.join(parts)}){back}"
    return line if len(line) <= 88 else f"{name}(\n    " + ",\n    ".join(parts) + f",\n){back}"


def words(found: Any) -> str:
    """A docstring as Markdown; what looks like a tag is text."""
    text = inspect.getdoc(found) or ""
    return re.sub(r"(`[^`]*`)|<", lambda one: one[1] or "&lt;", text)


def entry(name: str, found: Any, level: int = 3) -> str:
    """A heading, the signature and the docstring of a function, method or property."""
    short = name.rpartition(".")[2] if name.startswith("lake.") else name
    shown = found.fget if isinstance(found, property) else getattr(found, "func", found)
    if isinstance(found, property) or hasattr(found, "func"):
        back = inspect.signature(shown).return_annotation
        head = f"{name}: {named(back)}"
    else:
        head = signature(name, shown)
    return f"{'#' * level} {short}\n\n```python\n{head}\n```\n\n{words(shown)}\n"


def members(name: str, found: type) -> Iterator[str]:
    """The entries of a class' public methods and properties; fields of a dataclass as one list."""
    held = [each for each in fields(found) if not each.name.startswith("_")] if is_dataclass(found) else []
    if held:
        yield "\n".join(f"- `{name}.{each.name}`: `{str(each.type).replace(chr(39), '')}`" for each in held) + "\n"
    for member in sorted(dir(found)):
        value = inspect.getattr_static(found, member)
        value = getattr(value, "__func__", value)
        known = isinstance(value, property) or hasattr(value, "func") or inspect.isfunction(value)
        if not member.startswith("_") and known and member not in {each.name for each in held}:
            yield entry(f"{name}.{member}", value, 4)


def api() -> str:
    """Every public name: what `tests/page.txt` pins, with its docstring."""
    parts = [
        "# Python API\n",
        "Written from the docstrings. `import actlake` loads no torch; what needs an extra says which. Every mistake is an"
        " `actlake.LakeError` of one line. Names of captures and models are explained in the [glossary](../GLOSSARY.md).\n",
        "## Opening a lake\n",
        entry("actlake.open", actlake.open),
        entry("actlake.sample", actlake.sample),
    ]
    lake = {name: inspect.getattr_static(actlake.Lake, name) for name in dir(actlake.Lake) if name[0] != "_"}
    known = {name for names in SUBJECTS.values() for name in names.split()}
    rest = " ".join(name for name in lake if name not in known)
    for subject, names in {**SUBJECTS, **({"More": rest} if rest else {})}.items():
        parts.append(f"## {subject}\n")
        parts += [entry(f"lake.{name}", lake[name]) for name in names.split() if name in lake]
    parts.append("## Answers\n")
    for name, found in (("answer", Answer), ("results", Results), ("asking", Asking)):
        parts += [f"### {name}\n", words(found) + "\n", *members(name, found)]
    parts += ["## Parts of a lake, errors\n", f"### actlake.Selection\n\n{words(actlake.Selection)}\n"]
    parts += members("selection", actlake.Selection)
    for kind in (actlake.LakeError, actlake.CorruptError):
        parts.append(
            f"### actlake.{kind.__name__}\n\n```python\n{signature(kind.__name__, kind)}\n```\n\n{words(kind)}\n"
        )
    parts += ["## Edits\n", words(actlake.edits) + "\n"]
    parts += [entry(f"actlake.edits.{name}", getattr(actlake.edits, name)) for name in actlake.edits.__all__]
    parts += ["## Tables, rows and edits of your own\n", "[Extending actlake](../EXTENDING.md) shows each.\n"]
    parts += [entry("actlake.table", actlake.table), entry("actlake.edit", actlake.edit)]
    parts.append(
        f"### actlake.Column\n\n```python\n{signature('Column', actlake.Column)}\n```\n\n{words(actlake.Column)}\n"
    )
    parts += ["## Kernels on arrays\n", words(actlake.analyze) + "\n"]
    for module in ("lens", "stats"):
        place = getattr(actlake.analyze, module)
        parts += [entry(f"actlake.analyze.{module}.{name}", getattr(place, name)) for name in place.__all__]
    parts += [entry(f"actlake.analyze.{name}", getattr(actlake.analyze, name)) for name in ("delta", "geometry")]
    for name in ("lens", "delta", "geometry"):
        if hasattr(actlake.analyze.lazy, name):
            parts.append(entry(f"actlake.analyze.lazy.{name}", getattr(actlake.analyze.lazy, name)))
    parts += ["## actlake.testing\n", words(actlake.testing).partition("\n\n")[0] + "\n"]
    own = {name: each for name, each in vars(actlake.testing).items() if inspect.isfunction(each) and name[0] != "_"}
    parts += [entry(f"actlake.testing.{n}", e) for n, e in own.items() if e.__module__ == actlake.testing.__name__]
    return "\n".join(parts)


def commands(command: Any, name: str = "actlake") -> Iterator[tuple[str, Any]]:
    """Every command that runs something, by all its words."""
    for part, below in getattr(command, "commands", {}).items():
        yield from commands(below, f"{name} {part}")
    if not hasattr(command, "commands"):
        yield name, command


def cell(text: str) -> str:
    """Text of one cell of a table."""
    return re.sub(r"(`[^`]*`)|<", lambda one: one[1] or "&lt;", " ".join(text.split())).replace("|", "\\|")


def _option(each: Any) -> str:
    """A line of a command's table of options."""
    argument = each.param_type_name == "argument"
    name = (
        f"`{(each.metavar or each.name.upper()).strip('{}')}`"
        if argument
        else ", ".join(f"`{word}`" for word in [*each.opts, *each.secondary_opts])
    )
    default = each.show_default if isinstance(each.show_default, str) else each.default
    shown = "" if default in (None, False, True, (), []) or callable(default) or each.required else f"`{default}`"
    return f"| {name} | {'several' if each.multiple or each.nargs == -1 else ''} | {cell(shown)} | {cell(each.help or '')} |"


def cli() -> str:
    """Every command with its options: what --help says."""
    every = [*commands(typer.main.get_command(app))]
    parts = [
        "# Command line\n",
        "Written from the commands themselves; `actlake COMMAND --help` says the same. A mistake is one line on standard"
        " error and exit code 2. `--json` prints for machines.\n",
        "| command | |\n|---|---|",
        *(
            f"| [`{name}`](#{name.replace(' ', '-')}) | {cell((command.help or '').split(chr(10) * 2)[0])} |"
            for name, command in every
        ),
        "",
    ]
    for name, command in every:
        example = re.sub(r"^Example: `(.*)`$", r"\1", command.epilog or "")
        shown = [each for each in command.params if not getattr(each, "hidden", False)]
        text = re.sub(r"(`[^`]*`)|<", lambda one: one[1] or "&lt;", inspect.cleandoc(command.help or ""))
        lines = "\n".join(_option(each) for each in shown)
        parts.append(
            f"## {name}\n\n{text}\n\n```\n{example}\n```\n\n| option | times | default | meaning |\n|---|---|---|---|\n{lines}\n"
        )
    return "\n".join(parts)


def with_figures(text: str, gallery: Path, to: Path) -> str:
    """The page of rows with each row's figure, drawn for the pair pocket, under its heading."""
    to.mkdir(parents=True, exist_ok=True)

    def figure(found: re.Match[str]) -> str:
        file = gallery / f"{found[1]}.svg"
        if not file.is_file():
            return found[0]
        shutil.copy(file, to / file.name)
        return f"{found[0]}\n![Figure of {found[1]} for the pair pocket](_pictures/gallery/{file.name})\n"

    return re.sub(r"^## (\S+)\n", figure, text, flags=re.MULTILINE)


PAGES: dict[str, Callable[[], str]] = {"api.md": api, "cli.md": cli}
