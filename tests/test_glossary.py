"""docs/GLOSSARY.md: every term is used, its links lead somewhere, and pages that readers open link it."""

import re
from pathlib import Path

from actlake.queries.rows.registry import queries

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/GLOSSARY.md").read_text(encoding="utf-8")
TERMS = dict(re.findall(r"^\| (?!term|---)([^|]+?) \| ([^|]+) \|$", PAGE, re.MULTILINE))
PAGES = [
    "README.md",
    "docs/METHODS.md",
    "docs/FORMAT.md",
    "docs/ROWS.md",
    "prompts/README.md",
    "tests/help.txt",
    "catalog.yaml",
]


def used() -> str:
    rows = [f"{query.title} {query.about} {query.positions} {query.published}" for query in queries().values()]
    return " ".join([*((ROOT / name).read_text(encoding="utf-8") for name in PAGES), *rows])


def test_every_term_of_the_glossary_is_used() -> None:
    text = used()
    assert len(TERMS) > 50
    for term in TERMS:
        for word in ("A'", "B_late") if term.startswith("branches") else re.split(r", ", term):
            assert re.search(rf"\b{re.escape(word)}(?:e?s\b|\b|(?<=\W))", text, re.IGNORECASE), word


def test_a_term_has_one_line_and_its_links_lead_to_headings() -> None:
    lines = re.findall(r"^\| (?!term|---)", PAGE, re.MULTILINE)
    assert len(lines) == len(TERMS)
    for name, anchor in re.findall(r"\]\((\w+\.md)(?:#([^)]+))?\)", PAGE):
        text = (ROOT / "docs" / name).read_text(encoding="utf-8")
        anchors = {
            re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^#+ (.+)$", text, re.MULTILINE)
        }
        assert not anchor or anchor in anchors, anchor


def test_pages_link_the_glossary() -> None:
    for name in ("README.md", "docs/ROWS.md", "docs/METHODS.md"):
        assert "GLOSSARY.md" in (ROOT / name).read_text(encoding="utf-8"), name
