"""The whole way on one pair: capture both models, answer the first rows, write the page."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..capture.pair import Options, capture_pair, find_prompts
from ..store.captures import list_captures
from ..store.catalog import Catalog
from ..store.layout import Layout
from .answer import Answer, answer
from .registry import find
from .report import Step, page

ROWS = ("L1", "L2", "exp16")
STREAMS = ("native", "teacher")


@dataclass(frozen=True)
class Done:
    """What the demo did: its steps with seconds and bytes, the answers, and where the page lies."""

    steps: list[Step]
    answers: list[Answer]
    page: Path
    lake: Path


def demo(
    catalog: Catalog,
    layout: Layout,
    out: Path,
    pair: str = "pocket",
    prompts: str = "pocket",
    limit: int | None = None,
    device: str = "cpu",
    rows: Sequence[str] = ROWS,
) -> Done:
    """Capture a pair on the native and teacher streams, answer the rows, and write a self-contained HTML page to `out`."""
    steps = []
    started = time.perf_counter()
    results = capture_pair(
        layout,
        catalog.pair(pair),
        [catalog.stream(name) for name in STREAMS],
        find_prompts(catalog, layout, prompts, limit),
        catalog.profile("full"),
        options=Options(device=device),
    )
    spent = sum(result.seconds for result in results)
    steps.append(
        Step("streams (greedy continuations)", time.perf_counter() - started - spent, 0, all(r.reused for r in results))
    )
    for result in results:
        variant, stream = result.path.parts[-2], result.path.stem
        steps.append(Step(f"capture {pair}/{variant} on {stream}", result.seconds, result.bytes, result.reused))
    answers = []
    for row in rows:
        found = answer(layout, find(row), pair, prompts, device)
        stored = sum(path.stat().st_size for path in found.computed)
        steps.append(Step(f"answer {row}", found.seconds, stored, not found.computed))
        answers.append(found)
    write_page(layout, answers, steps, out)
    return Done(steps, answers, out, layout.root)


def write_page(layout: Layout, answers: Sequence[Answer], steps: Sequence[Step], out: Path) -> None:
    """Write the HTML page of some answers."""
    pairs = ", ".join(dict.fromkeys(found.pair for found in answers))
    text = page(
        answers,
        title=f"actlake: {pairs}",
        sentences=[found.says for found in answers],
        steps=list(steps),
        captures=list_captures(layout),
        next_commands=next_commands(layout, answers[0].pair),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")


def next_commands(layout: Layout, pair: str) -> list[str]:
    """Three commands worth trying after the demo."""
    return [
        'actlake sql "SELECT variant, layer, avg(kl_final_layer) AS kl FROM lens GROUP BY ALL ORDER BY ALL"',
        f"actlake run L2 --pair {pair} --about",
        f"actlake verify --pair {pair} --reforward 8",
    ]
