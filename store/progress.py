"""Progress bars with rate and time left, on the terminal's standard error; silent where nobody watches."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from .files import human_bytes

Advance = Callable[[int], None]
# What a terminal would act on, or turn a line around with: control characters but tab and line feed.
CONTROLS = dict.fromkeys(
    (*range(9), *range(11, 32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A)), "\ufffd"
)


class Terminal(Console):
    """A console that shows a mark where a stranger's text has a control character."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Text of rich from text that may hold markup."""
        return super().render_str(text.translate(CONTROLS), **options)


ERRORS = Terminal(stderr=True)


@cache
def remark(line: str) -> None:
    """Print a line on standard error, once a process."""
    ERRORS.print(line, highlight=False, markup=False, soft_wrap=True)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        seconds = task.elapsed or 0
        if not task.completed or not seconds:
            return Text("")
        unit, rate = task.fields["unit"], task.completed / seconds
        text = f"{human_bytes(rate)}/s" if unit == "bytes" else f"{rate:,.0f} {unit}/s"
        if stored := task.fields.get("stored"):
            text += f"  {human_bytes(stored / seconds)}/s"
        return Text(text, style="cyan")


class Bar:
    """One running bar; `advance` moves it, `store` adds to the bytes written that it shows beside the rate."""

    def __init__(self, progress: Progress, label: str, total: int, unit: str):
        self._progress = progress
        self._task = progress.add_task(label, total=total, unit=unit, stored=0)
        self._stored = 0

    def advance(self, count: int) -> None:
        """Move on by `count` units."""
        self._progress.advance(self._task, count)

    def shrink(self, count: int) -> None:
        """There are `count` units fewer to do than was thought."""
        total = self._progress.tasks[self._progress.task_ids.index(self._task)].total or 0
        self._progress.update(self._task, total=total - count)

    def store(self, count: int) -> None:
        """Add `count` written bytes."""
        self._stored += count
        self._progress.update(self._task, stored=self._stored)


@contextmanager
def bar(label: str, total: int, unit: str = "tokens") -> Iterator[Bar]:
    """Show a progress bar of `total` units while the block runs; inside `together`, under the bars before it."""
    with _display() if _shared is None else nullcontext(_shared) as progress:
        yield Bar(progress, label, total, unit)


@contextmanager
def together() -> Iterator[None]:
    """Bars of the block share one display."""
    global _shared
    with _display() as progress:
        before, _shared = _shared, progress
        try:
            yield
        finally:
            _shared = before


_shared: Progress | None = None


def _display() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f} %"),
        _Rate(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=ERRORS, transient=False, disable=not ERRORS.is_terminal)
