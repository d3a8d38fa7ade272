"""How answers print, and what else there is to say of rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from .printing import line, out, print_json, print_table, records

if TYPE_CHECKING:
    from ..queries.answer.answer import Answer
    from ..queries.answer.asking import Asking
    from ..queries.rows.header import Query

PUBLISHED = 12  # published figures that are shown below an answer


def print_forecast(asking: Asking, as_json: bool) -> None:
    """What each row takes, and all together."""
    found, work = asking.forecast(), asking.work()
    if as_json:
        rows = {
            one.query.id: {**asdict(one.work), "refused": one.refused, "without": list(one.without)} for one in found
        }
        return print_json({"rows": rows, "together": asdict(work) | {"seconds": work.seconds}})
    for one in found:
        out.print(f"[bold]{one.query.id:9}[/] {escape(one.words)}", highlight=False, soft_wrap=True)
    line(f"\nin all, what rows share counted once: {str(work) or 'nothing'}")


def print_about(asked: Sequence[Query]) -> None:
    """Explain rows: what is computed, at which positions, known pitfalls, published figures."""
    for query in asked:
        out.print(f"[bold]{query.id}[/] {escape(query.explained)}\n", highlight=False, soft_wrap=True)
    out.print(
        "METHODS is docs/METHODS.md in actlake's repository: definitions, and every known pitfall. The study is the PT/IT"
        " study, github.com/yifan1207/PT-IT-Model-Differences.",
        soft_wrap=True,
    )


def print_published(asked: Sequence[Query], pairs: list[str], as_json: bool) -> None:
    """What the PT/IT study published for some rows."""
    from ..queries.rows.registry import published

    frames = {query.id: published(query.id, *pairs) for query in asked}
    if as_json:
        return print_json({row: records(frame) for row, frame in frames.items()})
    for query in asked:
        out.print(f"\n[bold]{query.id} · {query.title}[/], published by the PT/IT study", highlight=False)
        frame = frames[query.id]
        if frame.empty:
            out.print(f"nothing{f' for {escape(chr(43).join(pairs))}' if pairs else ''}", style="dim")
        else:
            print_table(frame.drop(columns="row"))


def record(found: Answer) -> dict[str, Any]:
    """An answer as JSON."""
    return {
        "row": found.query.id,
        "pair": found.pair,
        "sentence": found.sentence,
        "table": records(found.table),
        "sql": found.sql,
        "published": records(found.published),
    }


def print_answer(found: Answer, files: list[Path]) -> None:
    """The main numbers, where the others are, what the study published, and last, so that it stays in view, the sentence."""
    query, main = found.query, found.main
    out.print(f"\n[bold]{query.id} · {query.title} · {escape(found.pair)}[/]", highlight=False)
    print_table(main.dropna(axis="columns", how="all"))
    others = found.table.drop(main.index)
    if len(others):
        names = ", ".join(dict.fromkeys(others["measure"]))
        line(f"{len(others)} more in {files[0]}: {names}", style="dim")
    if len(found.published):
        few = found.published.drop(columns="row").head(PUBLISHED)
        out.print("published in the PT/IT study:")
        print_table(few)
        if more := len(found.published) - len(few):
            out.print(f"{more} more: `actlake run {query.id} --published --pair {found.pair}`", style="dim")
    out.print(escape(found.sentence), highlight=False)
    line("files: " + ", ".join(map(str, files)), style="dim")
