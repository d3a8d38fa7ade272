"""docs/ROWS.md, every row in one table, from the headers of the query files: `python -m actlake.queries.rows.index FILE`."""

import sys
from pathlib import Path

from ...store.tables.declared import HOW, TABLES
from ...store.tables.sql import tables_behind
from .registry import Query, pitfall_link, published, queries

INTRODUCTION = """\
# The rows of the experiment index

Written from the headers of `queries/*.sql` by `python -m actlake.queries.rows.index docs/ROWS.md`; a test compares the two.
`actlake run ROW --about` says how a row is computed. *The study* is the
[PT/IT study](https://github.com/yifan1207/PT-IT-Model-Differences); METHODS is [METHODS.md](METHODS.md).

- *offline*: answered from the store alone; no model, no checkpoint. Tables that are not there yet are computed from
  stored residuals in one pass.
- *weights*: reads both checkpoints, tensor by tensor; runs no model.
- *replay*: runs late blocks of a model from a residual stored at a boundary, with or without an edit, once per
  condition; after that offline.
- *generate*: models write freely under the row's edits, one reply a prompt and condition. Every text is kept by what
  determines it: no row, sweep or `actlake generate` makes it twice, and once it is there the row is offline. `actlake run
  --no-generate` answers such a row only when its texts are there.

What is linear in stored arrays needs no replay either: `actlake.analyze.residual.direct` reads MLP outputs and edited final
residuals through the head.

Status: every row here is answered by this version. The last column counts the figures of the PT/IT study that stand
beside a row's own (`actlake run ROW --published`); those of an LLM judge need `actlake score --judge` first.

| row | title | how | streams | tables (? = optional) | figure | source | known pitfalls | published figures |
|---|---|---|---|---|---|---|---|---|"""


def reads(query: Query) -> str:
    """What a row takes besides its SQL: `offline` the store alone, `weights` both checkpoints, `replay` late blocks of them,
    `generate` texts that whole models write."""
    found = {TABLES[name].takes(want.kind) for want in query.needs for name in tables_behind(want.table)}
    return max(found, key=list(HOW).index, default="offline")


def page() -> str:
    """The page as Markdown."""
    rows = [
        f"| {query.id} | {query.title} | {reads(query)} | {', '.join(query.recipes) or 'none'} | {_tables(query)}"
        f" | {query.plot.get('kind', 'none')} | {query.source} | {_pitfalls(query)} | {len(published(query.id))} |"
        for query in queries().values()
    ]
    return "\n".join([INTRODUCTION, *rows, ""])


def _pitfalls(query: Query) -> str:
    return ", ".join(f"[{name}]({pitfall_link(name).removeprefix('docs/')})" for name in query.pitfalls)


def _tables(query: Query) -> str:
    return ", ".join(
        f"`{want.table}{f'({want.kind})' if want.kind else ''}`{'?' if want.optional else ''}" for want in query.needs
    )


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")
