"""Many rows at once: answered together, written into a folder of results, and gathered on one page."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from ...store.captures.reader import list_captures
from ...store.format.paths import Layout
from ..figures.page import Step, page
from .answer import Answer, Refused
from .asking import Asking
from .lock import write_lock


@dataclass(frozen=True)
class Results:
    """Many rows answered: `answers`, `refused` with their reasons, what took how long, and the seconds it took in all."""

    answers: list[Answer]
    refused: list[Refused]
    steps: list[Step]
    seconds: float
    layout: Layout

    def page(self, file: str | Path, before: Sequence[Step] = ()) -> Path:
        """Write one self-contained HTML page of sentences, figures, tables and SQL; `before` are steps that came first."""
        write_page(self.layout, self.answers, [*before, *self.steps], Path(file), self.refused)
        return Path(file)

    def lock(self, file: str | Path, prompts: str | None = None) -> None:
        """Write all that the answers used, by hash, and the answers into a file, for `lake.reproduce`."""
        write_lock(self.layout, self.answers, Path(file), prompts)

    def _repr_html_(self) -> str:
        refused = [f"<p>{escape(one.query.id)}: {escape(one.reason)}</p>" for one in self.refused]
        return "".join([*(answer._repr_html_() for answer in self.answers), *refused])


def answer_rows(asking: Asking, folder: Path | None, show: Callable[[Answer], None] | None = None) -> Results:
    """Answer rows; a `folder` gets ID-PAIR.csv, .png, .svg and .sql of each as soon as it is ready, and index.html of all.

    Rows that need more data are no error: their reasons say which command makes it. `show` is given each answer once its
    files are there. Stopped by Ctrl-C, the page has the rows that were ready.
    """
    started = time.perf_counter()
    answers: list[Answer] = []

    def results() -> Results:
        answers.sort(key=lambda found: asking.order[found.query.id])
        steps = table_steps(answers, asking.seconds)
        return Results(answers, asking.refused, steps, time.perf_counter() - started, asking.layout)

    asking.announce()
    try:
        for found in asking.answers():
            if folder:
                found.save(folder)
            answers.append(found)
            if show:
                show(found)
    finally:
        if folder:
            results().page(folder / "index.html")
    return results()


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
) -> None:
    """Write the HTML page of some answers."""
    pairs = ", ".join(dict.fromkeys(found.pair for found in answers))
    text = page(
        answers,
        title=f"actlake: {pairs}" if pairs else "actlake",
        sentences=[found.sentence for found in answers],
        steps=list(steps),
        captures=list_captures(layout),
        next_commands=next_commands(answers[0].pair) if answers else [],
        refused=[(f"{found.query.id} · {found.query.title}", found.reason) for found in refused],
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
