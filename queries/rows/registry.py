"""Named questions: one .sql file each, whose header says what it needs, how to plot it and what it means."""

import hashlib
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from ...store.core.catalog import load_catalog
from ...store.core.errors import LakeError
from ...store.core.progress import remark
from ...store.core.yaml_file import hint
from .measures import parse_measures

FOLDER = Path(__file__).parent
GROUP = "actlake.rows"  # of entry points
# A line indented further continues the one above, whatever its first word.
LINE = re.compile(r"--(?: ?(\w+):)?\s*(.*)")
# The fields of a header, in their order.
KEYS: tuple[str, ...] = ("id", "title", "needs", "models", "stream", "bootstrap", "contrast", "tokens", "plot", "says")
KEYS += ("about", "measures", "positions", "pitfalls", "published", "source")
ITEM = "- "  # begins an item of a list in `about`, `measures` and `pitfalls`
NEED = re.compile(r"(\w+)(?:\((\w+)\))?(?:@(pt|it))?(\?{0,2})")

# What rows are about, by the first of their tables that is named here.
GROUPS = {
    "Texts under edits": "scores effects judged behaviour",
    "Late blocks exchanged or changed": "graft factorial mechanism candidates divergence patching writeout",
    "Directions and geometry": "directions geometry",
    "Layers and lenses": "lens delta pair_lens churn lens_eval endpoint commit_layers commitment",
    "Weights and attention": "weights attention",
}


class Wanted(NamedTuple):
    """A table that a query reads: `lens(tuned)@pt?` is the table lens of kind tuned, of the PT alone, done without where it
    can't be had; with `??`, of a Jacobian lens, not even asked for where no model has one."""

    table: str
    kind: str
    optional: bool
    variant: str = ""  # the one whose rows are read; both without
    there: bool = False  # asked for only where a lens of its kind was fitted


@dataclass(frozen=True)
class Query:
    """One row of the experiment index.

    `bootstrap: prompt`: the SQL returns one line per quantity and prompt: `measure`, the dimensions it is drawn by (variant,
    layer, ...), `prompt`, optionally `stratum`, `total` (a sum over tokens) and `n` (how many). An estimate is the mean
    over strata of sum(total) / sum(n). With `value` in place of total, n tokens of the prompt have that value, and the
    estimate is the median over tokens. Intervals are a bootstrap over prompts. A prompt that is NULL stands for all.

    `bootstrap: none`: the SQL returns estimates: `measure`, the dimensions, `estimate`, and what it knows of `low`, `high`,
    `n`, `unit` (what n counts: prompts, subsamples, tokens ...) and `method`. With `bootstrap: prompt`, lines with neither
    total nor value are such estimates too. Pooled over several pairs, measures named by `tokens` get a second line
    (`MEASURE_token_weighted`) in which every token of every pair counts alike.

    `models: 1`: the row has a meaning for one model, too, and answers a pair that has only one.

    `stream: native, teacher`: tables hold the captures of both recipes, with a column `recipe` that every table
    of the query has; `stream: none`: the row reads no captures, and its tables are narrowed to the pair alone.

    For readers: `about` says what is computed, a paragraph and a list; `measures` has the label, unit and definition of
    every measure; `positions` which tokens, prompts and layers count; `pitfalls` maps names of docs/METHODS.md, section
    21, to what each means for this row; `published` describes the study's figures. Items of a list are lines that begin
    with "- ".
    """

    id: str
    title: str
    needs: tuple[Wanted, ...]
    recipes: tuple[str, ...]
    bootstrap: str
    contrast: tuple[str, str, str] | None
    tokens: tuple[str, ...]
    plot: dict[str, str]
    says: str
    about: str
    source: str
    sql: str
    measures: tuple[tuple[str, ...], ...] = ()  # name or pattern, label, unit, definition
    models: int = 2
    sha256: str = ""  # of the file's text
    positions: str = ""
    pitfalls: dict[str, str] = field(default_factory=dict)
    published: str = ""

    @property
    def explained(self) -> str:
        """What the row asks, then its description field by field; pitfalls with links."""
        parts = [self.title]
        for name, paragraphs, items in description(self):
            lines = paragraphs + [f"- {item}" for item in items]
            if name == "pitfalls":
                lines = [f"{line}\n  {pitfall_link(line[2 : line.index(': ')])}" for line in lines]
            parts.append("\n".join([name, *lines]))
        return "\n\n".join(parts)


def parse(text: str, where: str) -> Query:
    """Read a query file; LakeError names the file and line of a header that can't be understood."""
    header: dict[str, str] = {}
    key, lines = "", text.splitlines()
    end = next((i for i, line in enumerate(lines) if not line.startswith("--")), len(lines))
    for number, line in enumerate(lines[:end], 1):
        match = LINE.fullmatch(line)
        assert match
        if match[1] and match[1] in header:
            raise LakeError(f"{where}:{number}: header {match[1]!r} is there twice")
        if match[1] in KEYS:
            key = match[1]
            header[key] = match[2].strip()
        elif key:  # a line without a known key continues the one above
            more = line.removeprefix("--").strip()
            header[key] += ("\n" if more.startswith(ITEM) else " ") + more
        else:
            raise LakeError(f"{where}:{number}: a query begins with `-- id: NAME`, found {line!r}")
    missing = {"id", "title", "needs", "stream", "source"} - header.keys()
    if missing:
        raise LakeError(f"{where}:1: the header lacks {', '.join(sorted(missing))}")
    sql = "\n".join(lines[end:]).strip()
    if not sql:
        raise LakeError(f"{where}:{end}: no SQL after the header")
    if "--" in (last := sql.splitlines()[-1]) or last.endswith(";"):
        raise LakeError(
            f"{where}: its SQL ends in {last!r}; put no comment into the last line and no ; as it stands in brackets"
        )
    return Query(
        id=header["id"],
        title=header["title"],
        needs=_needs(header["needs"], where),
        recipes=tuple(name.strip() for name in header["stream"].split(",") if name.strip() != "none"),
        bootstrap=_bootstrap(header.get("bootstrap", "prompt"), where),
        contrast=_contrast(header.get("contrast", ""), where),
        tokens=tuple(header.get("tokens", "").split()),
        plot=_plot(header.get("plot", ""), where),
        says=header.get("says", ""),
        about=header.get("about", ""),
        positions=header.get("positions", ""),
        pitfalls=_pitfalls(header.get("pitfalls", "none"), where),
        published=header.get("published", ""),
        source=header["source"],
        sql=sql,
        measures=parse_measures(header.get("measures", ""), where),
        models=_models(header.get("models", "2"), where),
        sha256=hashlib.sha256(text.encode()).hexdigest(),
    )


def _needs(text: str, where: str) -> tuple[Wanted, ...]:
    found = []
    for word in re.split(r"[\s,]+", text.strip()):
        match = NEED.fullmatch(word)
        if not match:
            raise LakeError(f"{where}: needs {word!r}, expected a table such as lens, lens(tuned), lens@pt or lens?")
        found.append(Wanted(match[1], match[2] or "", bool(match[4]), match[3] or "", match[4] == "??"))
    return tuple(found)


def _models(text: str, where: str) -> int:
    if text not in ("1", "2"):
        raise LakeError(f"{where}: models {text!r}, expected 1 (the row has a meaning for one model) or 2")
    return int(text)


def _bootstrap(text: str, where: str) -> str:
    if text not in ("prompt", "none"):
        raise LakeError(
            f"{where}: bootstrap {text!r}, expected `prompt` (the SQL returns totals) or `none` (it returns estimates)"
        )
    return text


def _plot(text: str, where: str) -> dict[str, str]:
    """'line x=layer y="KL (nats)"' -> {"kind": "line", "x": "layer", "y": "KL (nats)"}."""
    try:
        kind, *words = shlex.split(text) or [""]
    except ValueError as error:
        raise LakeError(f"{where}: plot {text!r} can't be read ({error})") from None
    found, name = {"kind": kind} if kind else {}, ""
    for word in words:
        first, equals, rest = word.partition("=")
        name = first if equals else name
        if not name:
            raise LakeError(f"{where}: plot {text!r}: {word!r} follows no NAME=, expected `line x=layer y=...`")
        found[name] = rest if equals else found[name] + word  # a list goes on after a comma and a line's end
    return found


def _contrast(text: str, where: str) -> tuple[str, str, str] | None:
    if not text:
        return None
    match = re.fullmatch(r"(\w+) (\w+) - (\w+)", text)
    if not match:
        raise LakeError(f"{where}: contrast {text!r}, expected `column a - b`, for instance `variant it - pt`")
    return match[1], match[2], match[3]


def _pitfalls(text: str, where: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in text.strip().splitlines():
        name, colon, note = line.removeprefix(ITEM).partition(": ")
        if line.startswith(ITEM) and colon and note.strip():
            found[name] = note.strip()
        elif line != "none":
            raise LakeError(f"{where}: pitfalls has {line!r}, expected `none` or a list of lines `- NAME: NOTE`")
    return found


@cache
def _own() -> dict[str, Query]:
    return _read(FOLDER, lambda path: path.name)


def _read(folder: Path, where: Callable[[Path], str]) -> dict[str, Query]:
    found = [parse(path.read_text(encoding="utf-8"), where(path)) for path in sorted(folder.glob("*.sql"))]
    return {query.id: query for query in sorted(found, key=_order)}


def queries(catalog: Path | None = None) -> dict[str, Query]:
    """Every row by its id, in the order that answers are read in: actlake's, then those of other people.

    These come from the folders that the catalog names (`rows: [./my_rows]`) and from installed packages (entry points of the
    group `actlake.rows`, each a module with .sql files beside it). LakeError for a row of a name that is taken, and for a file
    whose header can't be understood.
    """
    every = dict(_own())
    folders = dict(load_catalog(catalog).rows)
    for point in entry_points(group=GROUP):
        try:
            folders[point.value] = Path(str(point.load().__file__)).parent
        except Exception as error:  # a stranger's module may raise anything; the other rows are not to suffer
            remark(f"rows of {point.value} are left out: {type(error).__name__}: {error}")
    for folder in folders.values():
        for name, query in _read(folder, str).items():
            if name.lower() in {known.lower() for known in every}:
                raise LakeError(f"{folder}: row {name!r} is there already; give it another id")
            every[name] = query
    return every


def _order(query: Query) -> tuple[bool, bool, str, int, str]:
    """L1 to L9, then 0A to 0J, then the experiments by number: a row comes after those that it builds on."""
    letters, digits = re.match(r"(\D*)(\d*)", query.id).groups()  # type: ignore[union-attr]
    return letters != "L", letters != "", letters or query.id, int(digits or 0), query.id


def pitfall_link(name: str) -> str:
    """Where a known pitfall is described, as a path in actlake's repository."""
    return f"docs/METHODS.md#pitfall-{re.sub(r'[^a-z0-9-]', '', name.lower().replace(' ', '-'))}"


def description(query: Query) -> list[tuple[str, list[str], list[str]]]:
    """What a row is, for readers: per field its name, its paragraphs and the items of its list; empty fields are left out."""
    notes = "\n".join(f"{ITEM}{name}: {note}" for name, note in query.pitfalls.items())
    named = [f"{ITEM}`{name}`: {label} ({unit}); {what}" for name, label, unit, what in query.measures]
    fields = {
        "about": query.about,
        "measures": "\n".join(named),
        "positions": query.positions,
        "pitfalls": notes,
        "published": query.published,
        "source": query.source,
    }
    return [
        (
            name,
            [line for line in text.splitlines() if line and not line.startswith(ITEM)],
            [line.removeprefix(ITEM) for line in text.splitlines() if line.startswith(ITEM)],
        )
        for name, text in fields.items()
        if text
    ]


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
