"""Drawn figures, kept on this machine by what they show: none is drawn twice, in whatever folder or lake."""

from __future__ import annotations

import hashlib
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from ...store.core.errors import LakeError
from ...store.core.files import hash_file, hash_json, write_atomic
from ...store.remote.hashes import user_cache
from ..rows import findings, measures, numbers
from ..rows.findings import Findings
from . import chosen, figure, looks, marks, vector
from .chosen import described
from .vector import svg

# What decides how a figure looks.
DRAWING = (
    *(each.__file__ for each in (figure, chosen, looks, marks, vector, findings, numbers, measures)),
    measures.FILE,
)
MOST = 2000  # files that are kept, those that were asked for last


def save(drawing: Figure, *paths: Path, alt: str = "") -> None:
    """Write a figure as PNG (150 dots per inch, on white) or SVG, by the endings of the names; it carries no date.

    SVG has its text as text, colours for dark pages, and `alt` for readers who don't see it.
    """
    for path in paths:
        if path.suffix.lower() not in (".png", ".svg"):
            raise LakeError(f"{path}: a figure is written as .png or .svg")
    for path in paths:
        if path.suffix.lower() == ".svg":
            path.write_text(svg(drawing, alt), encoding="utf-8")
        else:
            drawing.savefig(path, dpi=figure.DPI, facecolor="white", metadata={"Software": None})


@cache
def _code() -> list[str]:
    return [hash_file(Path(str(file))) for file in DRAWING]


def figure_key(answer: Findings) -> str:
    """Hash of all that a figure shows and of the code that draws it."""
    query = answer.query
    shown = [query.id, query.title, query.plot, query.contrast, query.measures, answer.pair, answer.streams]
    # DuckDB's threads add in no fixed order: the last digits of a sum differ from run to run and show in no figure.
    table = answer.table.to_csv(float_format="%.7g")
    return hash_json([*shown, table, answer.published.to_csv(), _code(), matplotlib.__version__])


def drawn(answer: Findings, suffix: str = ".png") -> bytes:
    """The figure of an answer as PNG, or as `.svg`, drawn unless it is kept; a damaged file is drawn again."""
    folder, key = user_cache() / "figures", figure_key(answer)
    with suppress(OSError):
        file = folder / f"{key}{suffix}"
        digest, data = file.read_bytes().split(b"\n", 1)
        if digest == _digest(data):
            file.touch()
            return data
    suffixes = dict.fromkeys((suffix, ".png", ".svg"))
    with tempfile.TemporaryDirectory() as place:
        files = {each: Path(place) / f"figure{each}" for each in suffixes}
        save(figure.draw(answer), *files.values(), alt=described(answer))
        found = {each: path.read_bytes() for each, path in files.items()}
    with suppress(OSError):  # a full disk, or a cache that can't be written: nothing depends on it
        for each, data in found.items():
            write_atomic(folder / f"{key}{each}", _digest(data) + b"\n" + data)
        oldest = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime)
        for path in oldest[:-MOST]:
            path.unlink(missing_ok=True)
    return found[suffix]


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).hexdigest().encode()
