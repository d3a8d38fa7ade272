"""Drawn figures, kept on this machine by what they show: none is drawn twice, in whatever folder or lake."""

from __future__ import annotations

import hashlib
import tempfile
from contextlib import suppress
from pathlib import Path

import matplotlib
from matplotlib import rc_context
from matplotlib.figure import Figure

from ...store.core.errors import LakeError
from ...store.core.files import hash_file, hash_json, write_atomic
from ...store.remote.hashes import user_cache
from ..rows import findings, numbers
from ..rows.findings import Findings
from . import figure

DRAWING = (figure, findings, numbers)  # modules that decide what a figure looks like
MOST = 2000  # files that are kept, those that were asked for last


def save(drawing: Figure, *paths: Path) -> None:
    """Write a figure as PNG (150 dots per inch) or SVG, its text as text, by the endings of the names; it carries no date."""
    for path in paths:
        if path.suffix.lower() not in (".png", ".svg"):
            raise LakeError(f"{path}: a figure is written as .png or .svg")
    if engine := drawing.get_layout_engine():  # once for all files: it takes as long as drawing does
        engine.execute(drawing)
        drawing.set_layout_engine("none")
    for path in paths:
        svg = path.suffix.lower() == ".svg"
        with rc_context({"svg.fonttype": "none", "svg.hashsalt": "actlake"}):
            drawing.savefig(path, dpi=figure.DPI, metadata={"Date": None} if svg else {"Software": None})


def figure_key(answer: Findings) -> str:
    """Hash of all that a figure shows and of the code that draws it."""
    query, code = answer.query, [hash_file(Path(str(module.__file__))) for module in DRAWING]
    shown = [query.id, query.title, query.plot, query.contrast, answer.pair, answer.streams]
    # DuckDB's threads add in no fixed order: the last digits of a sum differ from run to run and show in no figure.
    table = answer.table.to_csv(float_format="%.7g")
    return hash_json([*shown, table, answer.published.to_csv(), code, matplotlib.__version__])


def drawn(answer: Findings, suffix: str = ".png") -> bytes:
    """The figure of an answer as PNG, or as `.svg`, drawn unless it is kept; a damaged file is drawn again."""
    folder, key = user_cache() / "figures", figure_key(answer)
    with suppress(OSError):
        file = folder / f"{key}{suffix}"
        told, data = file.read_bytes().split(b"\n", 1)
        if told == _digest(data):
            file.touch()
            return data
    suffixes = dict.fromkeys((suffix, ".png", ".svg"))
    with tempfile.TemporaryDirectory() as place:
        files = {each: Path(place) / f"figure{each}" for each in suffixes}
        save(figure.draw(answer), *files.values())
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
