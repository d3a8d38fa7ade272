"""The frame every benchmark stands in: timed repeats taken in turn, rows of measured against limit, a table, a JSON file."""

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import machine

HEADER = ("what", "measured", "limit", "ratio", "target", "verdict")


@dataclass(frozen=True)
class Row:
    """One figure against its limit in the same run; `target` reads '>= 0.93', or is empty for a figure without a target."""

    what: str
    measured: float
    limit: float
    unit: str
    target: str = ""
    note: str = ""

    @property
    def ratio(self) -> float:
        """Measured over limit."""
        return self.measured / self.limit if self.limit else float("nan")

    @property
    def verdict(self) -> str:
        """'met', 'missed', or '' without a target."""
        if not self.target:
            return ""
        sign, bound = self.target.split()
        return "met" if (self.ratio >= float(bound) if sign == ">=" else self.ratio <= float(bound)) else "missed"

    def cells(self) -> tuple[str, ...]:
        """The row as text, in the order of HEADER."""
        limit = f"{self.limit:.4g} {self.unit}" if self.limit == self.limit else ""
        ratio = f"{self.ratio:.3f}" if self.ratio == self.ratio else ""
        return (self.what, f"{self.measured:.4g} {self.unit}", limit, ratio, self.target, self.verdict)


def in_turn(
    tasks: Mapping[str, Callable[[], object]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of each task, `repeats` times, all tasks once per round so that slow phases of the machine hit all alike.

    `clock` may be time.process_time to count CPU time, which other load disturbs less.
    """
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(repeats):
        for name, task in tasks.items():
            gc.collect()
            started = clock()
            task()
            seconds[name].append(clock() - started)
    return seconds


def medians(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Median of each list."""
    return {name: statistics.median(values) for name, values in seconds.items()}


def median_ratio(top: Sequence[float], bottom: Sequence[float]) -> float:
    """Median over rounds of top / bottom: each quotient comes from one round, so from one phase of the machine."""
    return statistics.median(a / b for a, b in zip(top, bottom, strict=True))


def table(rows: Sequence[Sequence[str]]) -> str:
    """Aligned plain text."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def main(
    name: str,
    run: Callable[..., list[Row]],
    about: str | None = None,
    options: Callable[[argparse.ArgumentParser], object] = lambda parser: None,
) -> None:
    """Run one benchmark from the command line: print its table and, with --json FILE, keep its figures.

    `about` is what --help tells beside that; what `options` adds to the parser reaches `run` by name.
    """
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog=f"benchmarks/{name}.py", description=about, formatter_class=form)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here as well")
    options(parser)
    given = vars(parser.parse_args())
    where = given.pop("json")
    load, others, started = machine.load_average(), machine.Others(), time.perf_counter()
    rows = run(**given)
    seconds, busy = time.perf_counter() - started, others.cores()
    print(machine.describe())
    print(table([HEADER, *(row.cells() for row in rows)]))
    for row in rows:
        if row.note:
            print(f"  {row.what}: {row.note}")
    print(f"load average {load:.2f} before; {machine.note(busy)}; {seconds:.0f} s")
    if where:
        record = {
            "benchmark": name,
            "machine": machine.describe(),
            "load_average": load,
            "others_cores": busy,
            "rows": [{**asdict(row), "ratio": row.ratio, "verdict": row.verdict} for row in rows],
        }
        where.write_text(json.dumps(record, indent=1) + "\n")
