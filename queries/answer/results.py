"""Many rows at once: answered together, written into a folder of results, and gathered on one page."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...store.captures.reader import list_captures
from ...store.format.paths import Layout
from ..figures.page import Step, page, png
from ..rows.findings import Findings
from .answer import Answer, Refused
from .asking import Asking


@dataclass(frozen=True)
class Results:
    """A folder of results: its answers, the rows that need more than the lake has, the page, and the seconds it took."""

    answers: list[Answer]
    refused: list[Refused]
    page: Path
    seconds: float


def write_results(asking: Asking, folder: Path, show: Callable[[Answer], None] = lambda answer: None) -> Results:
    """Answer rows, and write per row ID-PAIR.csv, .png, .svg and .sql as soon as it is ready, and index.html for all.

    Rows that need more data are no error: their reasons say which command makes it. `show` is given each answer once its
    files are there. Stopped by Ctrl-C, the page has the rows that were ready.
    """
    started = time.perf_counter()
    files: dict[str, Path] = {}
    answers: list[Answer] = []
    index = folder / "index.html"
    try:
        for found in asking:
            if isinstance(found, Answer):
                files[found.query.id] = next(path for path in found.save(folder) if path.suffix == ".png")
                answers.append(found)
                show(found)
    finally:
        answers.sort(key=lambda found: asking.order[found.query.id])
        steps = table_steps(answers, asking.seconds)
        write_page(
            asking.layout, answers, steps, index, asking.refused, lambda found: files[found.query.id].read_bytes()
        )
    return Results(answers, asking.refused, index, time.perf_counter() - started)


def table_steps(answers: Sequence[Answer], seconds: float) -> list[Step]:
    """What answering took: one step for all the tables, then one per row."""
    made = {path: path.stat().st_size for found in answers for path in found.computed}
    tables = Step("tables, in one pass over the captures", seconds, sum(made.values()), not made)
    return [tables, *(Step(f"answer {found.query.id}", found.seconds, 0, not found.computed) for found in answers)]


def write_page(
    layout: Layout,
    answers: Sequence[Answer],
    steps: Sequence[Step],
    out: Path,
    refused: Sequence[Refused] = (),
    picture: Callable[[Findings], bytes] = png,
) -> None:
    """Write the HTML page of some answers; `picture` gives the PNG of one that is drawn already."""
    pairs = ", ".join(dict.fromkeys(found.pair for found in answers))
    text = page(
        answers,
        title=f"actlake: {pairs}" if pairs else "actlake",
        sentences=[found.says for found in answers],
        steps=list(steps),
        captures=list_captures(layout),
        next_commands=next_commands(answers[0].pair) if answers else [],
        refused=[(f"{found.query.id} · {found.query.title}", found.reason) for found in refused],
        picture=picture,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")


def next_commands(pair: str) -> list[str]:
    """Three commands worth trying next."""
    return [
        'actlake sql "SELECT variant, layer, avg(kl_final_layer) AS kl FROM lens GROUP BY ALL ORDER BY ALL"',
        f"actlake run --all --pair {pair}",
        f"actlake verify --pair {pair} --reforward 8",
    ]
