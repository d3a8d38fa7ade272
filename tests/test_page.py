"""The public page: its signatures, and what a lake answers to them.

After a wanted change: `python tests/test_page.py --write`, then read the diff of tests/page.txt.
"""

import difflib
import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import actlake
import pytest

FILE = Path(__file__).parent / "page.txt"
# What users hold in their hands, by the name that they find it under.
CLASSES = ("actlake.Lake", "actlake.LakeError", "actlake.Selection")
MODULES = ("edits", "analyze.lens", "analyze.stats")
FUNCTIONS = ("delta", "geometry")  # of actlake.analyze


def members(name: str, found: Any) -> Iterator[str]:
    """A line for each public method and property of a class."""
    held = [each.name for each in fields(found)] if is_dataclass(found) else []
    yield from (f"{name}.{each}" for each in held)
    for member in sorted(dir(found)):
        value = inspect.getattr_static(found, member)
        if (
            member.startswith("_")
            or member in held
            or value.__class__.__name__ in ("getset_descriptor", "method_descriptor")
        ):
            continue
        value = getattr(value, "__func__", value)
        yield f"{name}.{member}{inspect.signature(value) if inspect.isfunction(value) else ''}"


def page() -> str:
    """All of it, a line each."""
    from actlake.queries.answer.answer import Answer
    from actlake.queries.answer.asking import Asking
    from actlake.queries.answer.results import Results

    lines = [f"actlake.{name}" for name in actlake.__all__] + [f"actlake.open{inspect.signature(actlake.open)}"]
    for name in CLASSES:
        found = getattr(actlake, name.split(".")[1])
        lines += [f"{name}{inspect.signature(found)}", *members(name, found)]
    for name, found in (("answer", Answer), ("results", Results), ("asking", Asking)):
        lines += members(name, found)
    for module in MODULES:
        place: Any = actlake
        for part in module.split("."):
            place = getattr(place, part)
        lines += [f"actlake.{module}.{name}{inspect.signature(getattr(place, name))}" for name in place.__all__]
    lines += [f"actlake.analyze.{name}{inspect.signature(getattr(actlake.analyze, name))}" for name in FUNCTIONS]
    return re.sub(r" at 0x\w+", "", "\n".join(lines)) + "\n"


def test_the_page_is_what_it_was() -> None:
    diff = "\n".join(difflib.unified_diff(FILE.read_text().splitlines(), page().splitlines(), "page.txt", "now", n=0))
    assert not diff, f"\n{diff}\nIf the change is meant: python tests/test_page.py --write"


def test_every_public_name_has_a_docstring() -> None:
    for name in dir(actlake.Lake):
        value = inspect.getattr_static(actlake.Lake, name)
        if not name.startswith("_"):
            assert inspect.getdoc(value), name


def test_errors_have_fields_and_are_one_line() -> None:
    error = actlake.LakeError(
        "stream 'x'", expected="raw or native", found="x", repair="`actlake ls streams` lists them"
    )
    assert (error.problem, error.expected, error.found) == ("stream 'x'", "raw or native", "x")
    assert str(error) == "stream 'x': expected raw or native, found x; `actlake ls streams` lists them"
    assert str(actlake.LakeError("no lake")) == "no lake" and actlake.LakeError("no lake").repair == ""


@pytest.mark.parametrize("kind", [actlake.LakeError, actlake.CorruptError])
def test_errors_come_out_of_other_processes_as_they_were(kind: type[actlake.LakeError]) -> None:
    import pickle

    error = kind("a", expected="b", found="c", repair="d")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind and str(again) == str(error) and again.repair == "d"


def test_edits_are_the_words_that_the_parser_takes() -> None:
    from actlake.capture.edit.edits import EDITS
    from actlake.capture.edit.words import parse_edit
    from actlake.edits import Graft, Inject, Matched, RandomGraft, Scale, Skip, Zero

    made = [
        Scale(layers="late", direction="d_mean", alpha=0),
        Inject(layers=[2, 3], direction="random", beta=0.5, seed=3),
        Matched(layers=range(2, 4), direction="d_mean", alpha=0.25),
        Zero(layers=3, site="attn"),
        Skip(layers="all"),
        Graft(layers="late"),
        RandomGraft(layers="late"),
    ]
    found = [parse_edit(str(edit), 4, {"late": (2, 4)}) for edit in made]
    assert {one.kind for one in found} == set(EDITS)
    assert found[0] == parse_edit("scale:layers=2-3,direction=d_mean,alpha=0", 4, {"late": (2, 4)})
    assert found[1]["seed"] == "3" and found[1].layers == (2, 3) and found[3]["site"] == "attn"


def test_rows_are_methods_explained_by_their_headers() -> None:
    from actlake.queries.answer.listings import rows

    asked = []

    def ask(row: str, pair: str | None = None, generate: bool = True) -> str:
        asked.append((row, pair, generate))
        return row

    found = rows(ask)
    assert found.L2(pair="pocket") == "L2" and found.L2("mine", generate=False) == "L2"
    assert asked == [("L2", "pocket", True), ("L2", "mine", False)]
    assert list(inspect.signature(found.L2).parameters) == ["pair", "generate"]
    assert inspect.getdoc(found.L2).startswith(found.set_index("row").loc["L2", "title"]) and "L2" in dir(found)
    assert list(found["row"]) and found.shape[0] > 30
    with pytest.raises(AttributeError):
        found.L99()


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("python tests/test_page.py --write")
    FILE.write_text(page())
