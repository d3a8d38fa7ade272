"""actlake: an activation lake for comparing pretrained and instruction-tuned language models.

>>> import actlake
>>> lake = actlake.open("lake")                       # doctest: +SKIP
>>> lake.run("L2", pair="pocket").table               # doctest: +SKIP
"""

import os
from pathlib import Path
from typing import Any

from . import analyze, edits
from .lake import Lake
from .store.core.columns import Column
from .store.core.errors import CorruptError, LakeError
from .store.core.version import __version__
from .store.exchange.transfer import Selection
from .store.tables.declared import TABLES

__all__ = [
    "Column",
    "CorruptError",
    "Lake",
    "LakeError",
    "Selection",
    "Server",
    "__version__",
    "analyze",
    "edit",
    "edits",
    "open",
    "sample",
    "table",
    "testing",
]


# What torch reads when it starts. Threads that spin long while they wait make it several times slower as soon as another
# program wants a core; with 10,000 turns an idle machine stays about as fast. On a CPU it keeps compiled kernels and their
# scratch memory for up to 1,024 shapes each, and every batch has shapes of its own: a forward has few, and those are kept.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")
os.environ.setdefault("LRU_CACHE_CAPACITY", "32")

# Modules that declare tables; each module of these packages does so when it is imported, at the first look at TABLES.
TABLES.declared_in(*(f"{__name__}.queries.{part}" for part in ("tables", "replayed", "generation.tables")))


def open(
    url: str | Path = "lake",
    create: bool = False,
    catalog: str | Path | None = None,
    device: str = "auto",
    workers: str | Path | None = None,
) -> Lake:
    """Open the lake in a folder, at a URL, or of that name in the catalog; with `create`, make an empty one first.

    `catalog` is the file that says where checkpoints lie (default: ./catalog.yaml, else the packaged one), `device` what
    computes (auto: cuda, else mps, else cpu), `workers` a dask scheduler that computes tables in this process's place.
    LakeError when there is no lake.
    """
    if "://" not in str(url) and not Path(url).exists() and not (create and str(url) == "sample"):
        from .page.sample import place_of

        url = place_of(str(url), Path(catalog) if catalog else None)
    lake = Lake(url, create=create, catalog=Path(catalog) if catalog else None, device=device)
    return lake.on(workers) if workers else lake


def sample() -> Lake:
    """The small lake that comes with actlake: 12 prompts of the pair `pocket`, with tables, a tuned lens and texts of a sweep.

    It is unpacked into the user's cache folder ($ACTLAKE_CACHE); also `--lake sample`. Rows such as L2 need no torch.
    """
    return open("sample")


def __getattr__(name: str) -> Any:
    if name == "table":  # with what it needs of the engine
        from .queries.engine.declare import table

        return table
    if name == "testing":  # what programs seldom need
        import importlib

        return importlib.import_module(f"{__name__}.testing")
    if name == "Server":
        from .exchange.server import Server

        return Server
    if name == "edit":  # with torch
        from .capture.edit.edits import edit

        return edit
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
