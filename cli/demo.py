"""Full run on one pair: capture both models, answer the first rows, write the page."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..capture.streams.capture_pair import Options, capture_pair, find_prompts
from ..queries.answer.answer import Answer
from ..queries.answer.asking import answer_all
from ..queries.answer.results import table_steps, write_page
from ..queries.figures.page import Step
from ..queries.rows.registry import find
from ..store.core.catalog import Catalog
from ..store.core.errors import LakeError
from ..store.format.paths import Layout

ROWS = ("L1", "L2", "exp16")
STREAMS = ("native", "teacher")


@dataclass(frozen=True)
class Done:
    """What the demo did: its steps with seconds and bytes, the answers, and where the page is."""

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
    device: str = "auto",
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
        catalog.profile("attention"),  # so that `actlake run --all` can answer every row afterwards
        options=Options(device=device),
    )
    spent = sum(result.seconds for result in results)
    steps.append(
        Step("streams (greedy continuations)", time.perf_counter() - started - spent, 0, all(r.reused for r in results))
    )
    for result in results:
        model, stream = result.path.parent.name, result.path.stem
        steps.append(Step(f"capture {model} on {stream}", result.seconds, result.bytes, result.reused))
    answers, refused, spent = answer_all(layout, [find(row) for row in rows], pair, prompts, device)
    if refused:
        raise LakeError(refused[0].reason)
    steps += table_steps(answers, spent)
    write_page(layout, answers, steps, out)
    return Done(steps, answers, out, layout.root)
