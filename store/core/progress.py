"""Progress with rate and time left on standard error: bars in a terminal and in notebooks, elsewhere a line a minute.

ACTLAKE_PROGRESS=off silences it; a number there is the seconds between lines.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from html import escape
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from .files import human_bytes

Advance = Callable[[int], None]
LINE_SECONDS = 60.0  # between lines where there is no terminal
WORTH_SAYING = 8.0  # seconds: what takes longer is said before it starts
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
    """Show a progress bar of `total` units while the block runs."""
    with _display() as progress:
        yield Bar(progress, label, total, unit)


def words(seconds: float) -> str:
    """A time for people: 'a few seconds', 'about 40 s', 'about 14 min', 'about 3.5 h'."""
    if seconds < 5:
        return "a few seconds"
    if seconds < 55:
        return f"about {max(5, round(seconds / 5) * 5)} s"
    return f"about {max(1, round(seconds / 60))} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"


def say(text: str) -> None:
    """One line on standard error, unless ACTLAKE_PROGRESS=off."""
    if _every() is not None:
        ERRORS.print(text, highlight=False, soft_wrap=True, markup=False)


@dataclass(frozen=True)
class Estimate:
    """What some work takes, roughly, said before it starts; `leave_out` says what leaves it out or takes less."""

    what: str
    bytes: int = 0
    seconds: float | None = None
    leave_out: str = ""
    counts: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        size = [f"{count:,} {name}" for name, count in self.counts.items()]
        size += [human_bytes(self.bytes)] if self.bytes else []
        spent = [words(self.seconds)] if self.seconds is not None else []
        return ", ".join([self.what, *size, *spent]) + (f"; {self.leave_out}" if self.leave_out else "")

    def announce(self, tell: Callable[[str], None] = say, least: float | None = None) -> None:
        """Say it where it takes at least so many seconds (WORTH_SAYING unless given)."""
        if (self.seconds or 0.0) >= (WORTH_SAYING if least is None else least):
            tell(str(self))


def _every() -> float | None:
    """Seconds between lines where there is no terminal; None: nothing at all is shown."""
    wanted = os.environ.get("ACTLAKE_PROGRESS", "").strip().lower()
    if wanted in ("off", "0", "no", "none"):
        return None
    try:
        return max(0.05, float(wanted))
    except ValueError:
        return LINE_SECONDS


@contextmanager
def _display() -> Iterator[Progress]:
    """What shows bars here."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f} %"),
        _Rate(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    every, terminal = _every(), ERRORS.is_terminal
    shown = terminal and every is not None
    with Progress(*columns, console=ERRORS, transient=False, disable=not shown, speed_estimate_period=600) as progress:
        if shown or every is None:
            yield progress
            return
        over = threading.Event()
        write = _notebook() if ERRORS.is_jupyter else _lines
        watching = threading.Thread(
            target=_watch, args=(progress, over, 0.5 if ERRORS.is_jupyter else every, write), daemon=True
        )
        watching.start()
        try:
            yield progress
        finally:
            over.set()
            watching.join()
            if ERRORS.is_jupyter:
                write(progress)


def _watch(progress: Progress, over: threading.Event, every: float, write: Callable[[Progress], None]) -> None:
    """Tell how far a display's bars are, again and again until it is over."""
    while not over.wait(every):
        write(progress)


def _lines(progress: Progress) -> None:
    for task in progress.tasks:
        if not task.finished:
            ERRORS.print(status(task), highlight=False, soft_wrap=True, markup=False)


def _notebook() -> Callable[[Progress], None]:
    """Writes bars into the output of a notebook's cell, and over them later; needs no widgets."""
    from IPython.display import HTML, display

    handle = display(HTML(""), display_id=True)

    def write(progress: Progress) -> None:
        bars = (
            f"<progress max='{task.total or 1}' value='{task.completed}'></progress> {escape(status(task))}"
            for task in progress.tasks
        )
        handle.update(HTML("<br>".join(bars)))

    return write


def status(task: Task) -> str:
    """How far a task is, in a line: 'lens pocket: 1,200 of 15,000 tokens (8 %), about 3 min left'."""
    done, total = int(task.completed), int(task.total or 0)
    unit = task.fields["unit"]
    amount = f"{human_bytes(done)} of {human_bytes(total)}" if unit == "bytes" else f"{done:,} of {total:,} {unit}"
    share = f" ({100 * done / total:.0f} %)" if total else ""
    if task.finished:
        return f"{task.description}: {amount}{share}, {time.strftime('%H:%M:%S', time.gmtime(task.elapsed or 0))}"
    left = task.time_remaining
    return f"{task.description}: {amount}{share}" + (f", {words(left)} left" if left else "")
