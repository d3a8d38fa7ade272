"""docs/METHODS.md against what cites it: every section, anchor and known pitfall that code, headers and pages name is there."""

import re
import subprocess
from pathlib import Path

import pytest
from actlake.cli.main import app
from actlake.queries.rows.header import Query, parse, pitfall_link
from actlake.queries.rows.registry import published, queries
from actlake.store.core.errors import LakeError
from typer.testing import CliRunner

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/METHODS.md").read_text(encoding="utf-8")
HEADINGS = re.findall(r"^#{2,3} (.+)$", PAGE, re.MULTILINE)
SECTIONS = {number.rstrip("."): text for number, text in (heading.split(" ", 1) for heading in HEADINGS)}
PITFALLS = {
    name: re.sub(r"\s+", " ", text).strip()
    for name, text in re.findall(r"^### Pitfall: (.+)\n((?:(?!^#).*\n?)*)", PAGE, re.MULTILINE)
}
CITED = re.compile(
    r"METHODS (\d+(?:\.\d+)?(?: \([^)]*\)|, row \w+)?(?:(?:, | and | to )\d+(?:\.\d+)?(?: \([^)]*\))?)*)"
)
KINDS = ("*.py", "*.sql", "*.md", "*.yaml", "*.j2", "*.csv")


def texts() -> dict[str, str]:
    """Every text file of the repository but the page and this test, as running text without comment signs."""
    try:
        names = subprocess.run(
            ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "--", *KINDS],
            check=True, capture_output=True, text=True,
        ).stdout.splitlines()  # fmt: skip
    except (OSError, subprocess.CalledProcessError):  # an unpacked archive
        names = [str(path.relative_to(ROOT)) for kind in KINDS for path in ROOT.rglob(kind)]
        names = [name for name in names if not name.startswith((".", "build/", "shared/"))]
    skipped = {"docs/METHODS.md", "tests/test_methods.py"}
    kept = [name for name in names if name not in skipped and (ROOT / name).exists()]
    return {name: re.sub(r"\s*\n\s*(?:--|#(?!#))?\s*", " ", (ROOT / name).read_text(encoding="utf-8")) for name in kept}


def anchor(heading: str) -> str:
    """The anchor that a heading gets on GitHub."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def rows_of(name: str) -> set[str]:
    match = re.search(r"Rows: ([\w, ]+)\.$", PITFALLS[name])
    assert match, f"the pitfall {name} does not end with its rows"
    return set(match[1].split(", "))


def section(number: str) -> str:
    """The text of a section, with its subsections."""
    start = PAGE.index(f" {number}. ") if "." not in number else PAGE.index(f"### {number} ")
    end = re.search(r"\n## " if "." not in number else r"\n#{2,3} ", PAGE[start:])
    return PAGE[start : start + end.start()] if end else PAGE[start:]


def test_every_section_that_is_cited_is_there() -> None:
    found = 0
    for name, text in texts().items():
        for citation in CITED.findall(text):
            for number, inside in re.findall(r"(\d+(?:\.\d+)?)(?: \(([^)]*)\)|, row \w+)?", citation):
                found += 1
                assert number in SECTIONS, f"{name} cites METHODS {number}"
                for row in re.findall(r"\b(?:L\d|\d[A-J]|exp\d+\w*|A\da?)\b", inside):
                    assert row in section(number), f"{name} cites METHODS {number} ({row})"
    assert found > 150


def test_the_page_holds_the_anchors_that_are_linked() -> None:
    anchors = {anchor(heading) for heading in HEADINGS}
    linked = re.findall(r"\]\(#([^)]+)\)", PAGE)
    linked += [link for text in texts().values() for link in re.findall(r"METHODS\.md#([\w-]+)(?![\w{-])", text)]
    assert len(linked) > 20
    assert set(linked) <= anchors


def test_there_are_22_pitfalls_each_with_a_short_name_a_text_and_rows() -> None:
    assert len(PITFALLS) == 22
    for name, text in PITFALLS.items():
        assert 2 <= len(name.split()) <= 4, name
        assert len(text) > 80
        assert rows_of(name) <= queries().keys(), name
        assert pitfall_link(name) == f"docs/METHODS.md#{anchor(f'Pitfall: {name}')}"


def test_a_continued_line_may_begin_with_a_header_word() -> None:
    for query in queries().values():
        assert all(re.fullmatch(r"\w+", name) for name in query.tokens), query.id
    assert "`dkl_final20`" in queries()["exp11"].about and queries()["exp11"].tokens == ()


@pytest.mark.parametrize("query", queries().values(), ids=lambda query: query.id)
def test_a_row_says_what_it_computes_where_and_beside_which_figures(query: Query) -> None:
    paragraph, *items = query.about.splitlines()
    assert paragraph.endswith((".", "?")) and not paragraph.startswith("- ")
    assert len(paragraph) < 900 and len(query.about) < 4000
    for text in (*items, query.positions, *query.pitfalls.values()):
        assert text.rstrip(".") and text.endswith("."), text
    assert "\n" not in query.positions + query.published
    assert query.published and query.published.startswith("none") == published(query.id).empty


def test_pitfalls_are_a_list_or_none() -> None:
    header = "-- id: a\n-- title: b\n-- needs: lens\n-- stream: native\n-- source: METHODS 4\n-- pitfalls: {}\nSELECT 1"
    assert parse(header.format("none"), "x.sql").pitfalls == {}
    assert parse(header.format("\n--   - double BOS: two\n--     of them."), "x.sql").pitfalls == {
        "double BOS": "two of them."
    }
    for wrong in ("double BOS, off-by-one step", "\n--   - double BOS"):
        with pytest.raises(LakeError, match="x.sql:6: pitfalls has .*expected `none` or a list"):
            parse(header.format(wrong), "x.sql")


@pytest.mark.parametrize("command", [["run", "--about"], ["rows"]])
@pytest.mark.parametrize("row", ["L1", "exp14", "0J"])
def test_a_row_is_explained_field_by_field(row: str, command: list[str]) -> None:
    result = CliRunner().invoke(app, [command[0], row, *command[1:]])
    assert result.exit_code == 0
    query = queries()[row]
    for name in ("about", "positions", "pitfalls", "published", "source"):
        text = getattr(query, name)
        parts = (
            [f"{k}: {v}\n  docs/METHODS.md#pitfall-{anchor(k)}" for k, v in text.items()]
            if name == "pitfalls"
            else [text]
        )
        assert (f"\n{name}\n" in result.output) == bool(text)
        assert all(part in result.output for part in parts), name
    assert result.output.rstrip().endswith(
        "The study is the PT/IT study, github.com/yifan1207/PT-IT-Model-Differences."
    )


@pytest.mark.parametrize("query", queries().values(), ids=lambda query: query.id)
def test_a_row_names_the_pitfalls_that_concern_it(query: Query) -> None:
    assert set(query.pitfalls) == {name for name in PITFALLS if query.id in rows_of(name)}


def test_every_pitfall_that_is_named_is_on_the_page() -> None:
    found = 0
    for name, text in texts().items():
        for several, named in re.findall(r"[Kk]nown pitfall(s?): ([^.;:()]+)", text):
            parts = re.split(r", | and ", named) if several else [named]
            for part in parts:
                found += 1
                known = [
                    pitfall for pitfall in PITFALLS if re.match(rf"{re.escape(pitfall)}(?!\w)", part.strip(" `'\""))
                ]
                assert known or "{{" in part, f"{name} names the pitfall {part!r}"
    assert found > 5


def test_the_study_is_named_and_linked() -> None:
    for name in ("docs/METHODS.md", "README.md"):
        assert "https://github.com/yifan1207/PT-IT-Model-Differences" in (ROOT / name).read_text(encoding="utf-8"), name


def test_no_text_speaks_of_the_study_or_its_pitfalls_by_private_names() -> None:
    """Readers know neither "the seed" nor the numbers of traps; a random seed is fine, and so are names in quotes."""
    private = re.compile(
        r"(?i)\bthe seed(?:'s)?\b(?! is that of| and the shard)|\btraps? (?:in METHODS )?\(?\d|METHODS 21,? \(?\d"
    )
    bad = {f"{name}: {match[0]}" for name, text in texts().items() for match in private.finditer(text)}
    assert not bad
