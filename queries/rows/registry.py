"""Named questions: one .sql file each, whose header says what it needs, how to plot it and what it means."""

import re
from collections.abc import Callable
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path

import pandas as pd

from ...store.core.catalog import load_catalog
from ...store.core.errors import LakeError
from ...store.core.progress import remark
from ...store.core.yaml_file import hint
from .header import Query, parse

FOLDER = Path(__file__).parent
GROUP = "actlake.rows"  # of entry points

# What rows are about, by the first of their tables that is named here.
GROUPS = {
    "Texts under edits": "scores effects judged behaviour",
    "Late blocks exchanged or changed": "graft factorial mechanism candidates divergence patching writeout",
    "Directions and geometry": "directions geometry",
    "Layers and lenses": "dla lens delta pair_lens churn lens_eval endpoint commit_layers commitment",
    "Weights and attention": "weights attention",
}


@cache
def _own() -> dict[str, Query]:
    return _read(FOLDER, lambda path: path.name)


def _read(folder: Path, where: Callable[[Path], str]) -> dict[str, Query]:
    found = dict[str, Query]()
    for query in sorted((_parsed(path, where(path)) for path in sorted(folder.glob("*.sql"))), key=_order):
        _add(found, query, folder)
    return found


def _parsed(path: Path, where: str) -> Query:
    return parse(text_of(path), where)


def _add(every: dict[str, Query], query: Query, folder: Path) -> None:
    if query.id.lower() in {known.lower() for known in every}:
        raise LakeError(f"{folder}: row {query.id!r} is there already; give it another id")
    every[query.id] = query


def text_of(file: Path) -> str:
    """The text of a row's file; LakeError for one that is not there or no text."""
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise LakeError(f"{file}: can't be read as text ({why})") from None


def queries(catalog: Path | None = None) -> dict[str, Query]:
    """Every row by its id, in the order that answers are read in: actlake's, then those of other people.

    These come from the folders that the catalog names (`rows: [./my_rows]`) and from installed packages (entry points of the
    group `actlake.rows`, each a module with .sql files beside it). LakeError for a row in one of these folders of a name that
    is taken, or whose header can't be understood; a package that has one is left out, with a line that says why.
    """
    every = dict(_own())
    for folder in load_catalog(catalog).rows.values():
        for query in _read(folder, str).values():
            _add(every, query, folder)
    for point in entry_points(group=GROUP):
        theirs = dict(every)
        try:
            for query in _read(folder := Path(str(point.load().__file__)).parent, str).values():
                _add(theirs, query, folder)
        except Exception as error:  # a stranger's module may raise anything; the other rows are not to suffer
            said = error if isinstance(error, LakeError) else f"{type(error).__name__}: {error}"
            remark(f"rows of {point.value} are left out: {said}")
            continue
        every = theirs
    return every


def _order(query: Query) -> tuple[bool, bool, str, int, str]:
    """L1 to L9, then 0A to 0J, then the experiments by number: a row comes after those that it builds on."""
    letters, digits = re.match(r"(\D*)(\d*)", query.id).groups()  # type: ignore[union-attr]
    return letters != "L", letters != "", letters or query.id, int(digits or 0), query.id


def group_of(query: Query) -> str:
    """The group of rows that one belongs to, by the tables that it reads."""
    tables = {want.table for want in query.needs}
    return next((name for name, known in GROUPS.items() if tables & set(known.split())), "Others")


def find(name: str, catalog: Path | None = None) -> Query:
    """The query of this id (case does not matter); LakeError lists the known ones."""
    known = queries(catalog)
    found = next((query for key, query in known.items() if key.lower() == name.lower()), None)
    if found is None:
        raise LakeError(f"unknown row {name!r}; known are {', '.join(known)}{hint(name, known)}")
    return found


@cache
def _published() -> pd.DataFrame:
    return pd.read_csv(FOLDER / "published.csv", dtype={"row": str, "model": str, "quantity": str})


# Families that the study pools: the mean of their means.
DENSE5 = ("gemma3_4b", "llama31_8b", "mistral_7b", "olmo2_7b", "qwen3_4b")
POOLS = {
    "dense5": frozenset(DENSE5),
    "pooled6": frozenset((*DENSE5, "deepseek_v2_lite")),
    "dense6": frozenset((*DENSE5, "qwen25_32b")),
    "core5": frozenset({*DENSE5, "qwen25_32b"} - {"gemma3_4b"}),
}


def published(row: str, *pairs: str) -> pd.DataFrame:
    """The study's figures for one row: row, model, quantity, value, low, high, source; often empty.

    Those of one pair; for several, those of the study's pool of the same pairs, or of every pool when none is the same;
    for no pair all of them. A figure may belong to several rows ("L2 0G").
    """
    table = _published()
    table = table[[row in rows.split() for rows in table["row"]]]
    models = [name for name, members in POOLS.items() if members == set(pairs)] or list(POOLS)
    if pairs:
        table = table[table["model"].isin(models if len(pairs) > 1 else pairs)]
    return table.reset_index(drop=True)
