"""What the scripts here share: options, a figure with a loss curve, a lake that is opened or named in one line."""

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import actlake
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

Curve = list[tuple[int, float]]


def options(about: str | None, words: Sequence[str] | None, **defaults: Any) -> argparse.Namespace:
    """`--lake`, `--out` and the named ones with their defaults, from the command line (or `words`)."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lake", default="lake", help="folder or URL (default: lake, which `actlake demo` makes)")
    parser.add_argument("--out", type=Path, default=Path("out"), help="where the figure goes")
    for name, value in defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value, help=f"default: {value}")
    found = parser.parse_args(words)
    found.out.mkdir(parents=True, exist_ok=True)
    return found


def run(main: Callable[[], Any]) -> None:
    """Run a script; what is wrong with a lake or an option is one line."""
    try:
        main()
    except actlake.LakeError as error:
        raise SystemExit(f"error: {error}") from error


def forever(batches: Any) -> Iterator[Any]:
    """The rows of one batch after the other, epoch after epoch."""
    while True:
        for batch in batches:
            yield batch.x


def figure(file: Path, title: str, curves: dict[str, Curve], label: str, draw: Callable[[Any], None]) -> Path:
    """Curves by step on the left, what `draw` makes of the axes on the right."""
    drawn, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for name, curve in curves.items():
        left.plot(*zip(*curve, strict=True), label=name)
    left.set(xlabel="step", ylabel=label, title=title)
    left.legend(frameon=False)
    draw(right)
    drawn.savefig(file, dpi=120)
    plt.close(drawn)
    return file
