"""The header of a row's file: its fields, what each says, and what is wrong with one."""

import hashlib
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from ...store.core.errors import LakeError
from .measures import parse_measures

T = TypeVar("T")
# A line indented further continues the one above, whatever its first word.
LINE = re.compile(r"--(?: ?(\w+):)?\s*(.*)")
# The fields of a header, in their order.
KEYS: tuple[str, ...] = (
    "id",
    "title",
    "needs",
    "models",
    "compares",
    "stream",
    "bootstrap",
    "contrast",
    "tokens",
    "plot",
)
KEYS += ("says", "about", "measures", "positions", "pitfalls", "published", "source")
# Those that each header has, and what to write.
REQUIRED = {
    "id": "a name of one word",
    "title": "what the row asks, in a few words",
    "needs": "the tables that its SELECT reads, such as lens or delta",
    "stream": "native, teacher, both, or none",
    "source": "where the question comes from: a paper, a note, yourself",
}
ITEM = "- "  # begins an item of a list in `about`, `measures` and `pitfalls`
COMMENT = re.compile(r"--\s*#.*")  # in a header
COMPARES = (
    "models",
    "prompts",
    "streams",
    "layers",
)  # two models; of one model two prompt sets, streams of one set, layers
NEED = re.compile(r"(\w+)(?:\((\w+)\))?(?:@(pt|it))?(\?{0,2})")


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

    `models: 1`: the row has a meaning for one model, too, and answers a pair that has only one. `compares` says what its
    contrast may be of: `models`; `prompts`, `streams` and `layers`: one model with itself, on two prompt sets or two streams, or
    its curves at two layers.

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
    compares: tuple[str, ...] = COMPARES[:1]
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
    """Read a query file; LakeError names the file and line of the first thing in its header that can't be understood."""
    query, problems = read_header(text, where)
    if query is None:
        more = f" (and {len(problems) - 1} more: `actlake rows check {where}`)" if problems[1:] else ""
        raise LakeError(f"{problems[0]}{more}")
    return query


def read_header(text: str, where: str) -> tuple[Query | None, list[str]]:
    """The row of a file, and what is wrong with its header, a line each: the row is None when something is."""
    lines = text.splitlines()
    end = next((i for i, line in enumerate(lines) if not line.startswith("--")), len(lines))
    header, problems = _fields(lines[:end], where)
    problems += [
        f"{where}:1: the header lacks {name}: write `-- {name}: ...`, {what}"
        for name, what in REQUIRED.items()
        if not header.get(name, (0, ""))[1]
    ]

    def given(name: str, read: Callable[[str, str], T], otherwise: str = "") -> T | None:
        line, text = header.get(name, (1, otherwise))
        try:
            return read(text, f"{where}:{line}")
        except LakeError as error:
            problems.append(str(error))
            return None

    sql = "\n".join(lines[end:]).strip()
    if not sql:
        problems.append(f"{where}:{max(end, 1)}: no SQL after the header")
    elif "--" in (last := sql.splitlines()[-1]) or last.endswith(";"):
        problems.append(
            f"{where}:{len(text.rstrip().splitlines())}: its SQL ends in {last!r}; put no comment into the last line and no ; as"
            " it stands in brackets"
        )
    read: dict[str, Any] = {
        "needs": given("needs", _needs) if header.get("needs", (0, ""))[1] else (),
        "bootstrap": given("bootstrap", _bootstrap, "prompt"),
        "contrast": given("contrast", _contrast),
        "plot": given("plot", _plot),
        "pitfalls": given("pitfalls", _pitfalls, "none"),
        "measures": given("measures", parse_measures),
        "models": given("models", _models, "2"),
        "compares": given("compares", _compares, COMPARES[0]),
    }
    if problems:
        return None, problems
    texts = {name: header.get(name, (0, ""))[1] for name in KEYS}
    read |= {name: texts[name] for name in ("id", "title", "says", "about", "positions", "published", "source")}
    recipes = tuple(name.strip() for name in texts["stream"].split(",") if name.strip() != "none")
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    tokens = tuple(texts["tokens"].split())
    return Query(**read, recipes=recipes, tokens=tokens, sql=sql, sha256=sha256), problems


def _fields(lines: list[str], where: str) -> tuple[dict[str, tuple[int, str]], list[str]]:
    """The fields of a header: the line that each begins on and its text; and what is wrong with its lines."""
    header: dict[str, tuple[int, str]] = {}
    problems, key = list[str](), ""
    for number, line in enumerate(lines, 1):
        match = LINE.fullmatch(line)
        assert match
        if COMMENT.fullmatch(line):
            continue
        if match[1] and match[1] in header:
            problems.append(f"{where}:{number}: header {match[1]!r} is there twice")
        elif match[1] in KEYS:
            key = match[1]
            header[key] = number, match[2].strip()
        elif key:  # a line without a known key continues the one above
            more = line.removeprefix("--").strip()
            at, text = header[key]
            header[key] = at, text + ("\n" if more.startswith(ITEM) else " ") + more
        else:
            problems.append(f"{where}:{number}: a query begins with `-- id: NAME`, found {line!r}")
    return header, problems


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


def _compares(text: str, where: str) -> tuple[str, ...]:
    found = tuple(re.split(r"[\s,]+", text.strip()))
    if unknown := [word for word in found if word not in COMPARES]:
        raise LakeError(f"{where}: compares {unknown[0]!r}, expected some of {', '.join(COMPARES)}")
    return found


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


def pitfall_link(name: str) -> str:
    """Where a known pitfall is described, as a path in actlake's repository."""
    return f"docs/METHODS.md#pitfall-{re.sub(r'[^a-z0-9-]', '', name.lower().replace(' ', '-'))}"


def description(query: Query) -> list[tuple[str, list[str], list[str]]]:
    """What a row is, for readers: per field its name, its paragraphs and the items of its list; empty fields are left out."""
    notes = "\n".join(f"{ITEM}{name}: {note}" for name, note in query.pitfalls.items())
    more = [" or ".join(f"two {what}" for what in query.compares[1:])] if query.compares[1:] else []
    named = [f"{ITEM}`{name}`: {label} ({unit}); {what}" for name, label, unit, what in query.measures]
    fields = {
        "about": query.about,
        "measures": "\n".join(named),
        "compares": "".join(f"Two models; with --by also {beside} of one model." for beside in more),
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
