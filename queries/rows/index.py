"""docs/ROWS.md and docs/TABLES.md, written by `python -m actlake.queries.rows.index docs`."""

import sys
from pathlib import Path

from ...store.tables.declared import HOW, TABLES
from ...store.tables.statements import tables_behind
from .header import Query, description, pitfall_link
from .registry import published, queries

INTRODUCTION = """\
# Rows

A row is a named question: one `.sql` file in `queries/rows/` with a header. This page is written from the headers by
`python -m actlake.queries.rows.index docs`; a test compares the two. `actlake rows ROW` prints the same.
*The study* is the [PT/IT study](https://github.com/yifan1207/PT-IT-Model-Differences), METHODS is
[METHODS.md](METHODS.md), words are in the [glossary](GLOSSARY.md).

- *offline*: answered from the store alone; no model, no checkpoint. Missing tables are computed from stored residuals
  in one pass.
- *weights*: reads both checkpoints, tensor by tensor; runs no model.
- *replay*: runs late blocks of a model from a residual stored at a boundary, with or without an edit, once per
  condition; after that offline.
- *generate*: models write freely under the row's edits, one reply a prompt and condition. Texts are stored by a hash of
  model, edits, template and prompt, so nothing is generated twice; once the texts exist the row is offline. `actlake run
  --no-generate` answers such a row only when its texts exist.

What is linear in stored arrays needs no replay: `Head.logits_of` reads the logits of chosen tokens off any residual,
edited or not.

The last column counts the study's figures beside the row's own (`actlake run ROW --published`). Those of an LLM judge
need `actlake score --judge` first.

| row | title | how | streams | tables (? = optional) | figure | published figures |
|---|---|---|---|---|---|---|"""


TABLES_INTRODUCTION = """\
# The tables

Written from the declarations of tables by `python -m actlake.queries.rows.index docs`; a test compares the two. Each is
declared once, beside the function that computes it; `actlake tables TABLE` and `COMMENT ON` in SQL say the same. FORMAT.md 8
says how their files lie in a lake. A version is raised when numbers change. Columns in bold tell rows apart; NULL says when a
column has no value, never where that is empty. All divergences and entropies are in nats."""


def reads(query: Query) -> str:
    """What a row takes besides its SQL: `offline` the store alone, `weights` both checkpoints, `replay` late blocks of them,
    `generate` texts that whole models write."""
    found = {TABLES[name].takes(want.kind) for want in query.needs for name in tables_behind(want.table)}
    return max(found, key=list(HOW).index, default="offline")


def page() -> str:
    """The page as Markdown."""
    rows = [
        f"| [{query.id}](#{query.id.lower()}) | {query.title} | {reads(query)} | {', '.join(query.recipes) or 'none'}"
        f" | {_tables(query)} | {query.plot.get('kind', 'none')} | {len(published(query.id))} |"
        for query in queries().values()
    ]
    return "\n".join([INTRODUCTION, *rows, "", *map(_section, queries().values())])


def _section(query: Query) -> str:
    lines = [f"## {query.id}", "", query.title if query.title.endswith("?") else f"{query.title}.", ""]
    for name, paragraphs, items in description(query):
        lines += [f"**{name.capitalize()}.** {' '.join(paragraphs)}".rstrip(), ""]
        lines += [f"- {_linked(item) if name == 'pitfalls' else item}" for item in items]
        lines += [""] * bool(items)
    return "\n".join(lines)


def _linked(item: str) -> str:
    name, _, note = item.partition(": ")
    return f"[{name}]({pitfall_link(name).removeprefix('docs/')}): {note}"


def _tables(query: Query) -> str:
    return ", ".join(
        f"`{want.table}{f'({want.kind})' if want.kind else ''}`{' where fitted' if want.there else '?' if want.optional else ''}"
        for want in query.needs
    )


def tables_page() -> str:
    """docs/TABLES.md as Markdown: every table of this package, and its columns."""
    parts = [TABLES_INTRODUCTION]
    for table in TABLES.values():
        if not table.mine:
            continue
        what = {kind: table.takes(kind) for kind in ("", *table.kinds)}
        how = ", ".join(dict.fromkeys(what.values()))
        lines = [
            f"## {table.name}",
            "",
            f"{table.about} Grain: {table.grain}. Takes: {how}. Version {table.version}.",
            "",
        ]
        lines += ["| column | type | unit | meaning | NULL |", "|---|---|---|---|---|"]
        for column in table.columns:
            name = f"**`{column.name}`**" if column.key else f"`{column.name}`"
            meaning = column.meaning.replace("|", "\\|")
            lines.append(f"| {name} | {column.type} | {column.unit} | {meaning} | {column.null} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


PAGES = {"ROWS.md": page, "TABLES.md": tables_page}

if __name__ == "__main__":
    for file, write in PAGES.items():
        (Path(sys.argv[1]) / file).write_text(write(), encoding="utf-8")
