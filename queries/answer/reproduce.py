"""Rows answered again from a lock file: which input differs, or by how much the answer does."""

import csv
import io
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import duckdb
import pyarrow as pa

from ...store.captures.reader import check_sealed
from ...store.core.errors import CorruptError, LakeError
from ...store.format.paths import Layout
from ...store.format.records import SEAL
from ...store.tables.files import FOREIGN
from ...store.tables.names import Chain
from ..rows.header import Query
from ..rows.registry import find
from .answer import Answer
from .asking import Asking
from .estimates import MEASURED
from .lock import DIGITS, TINY, Lock, Locked, canonical, captures_of, files_of, hash_of, versions

NUMBERS = ("estimate", "low", "high")
SHOWN = 2  # inputs named in a row's line; --json has them all
Key = tuple[tuple[str, str], ...]
Lines = dict[Key, dict[str, str]]  # dimensions -> columns of the estimate, as text


@dataclass(frozen=True)
class _Difference:
    """An input that is not what the lock file says: what, its SHA-256 there and here (- for absent), and what repairs it."""

    what: str
    expected: str
    found: str
    repair: str

    def __str__(self) -> str:
        return f"{self.what}: expected sha256 {self.expected[:12]}, found {self.found[:12]}; {self.repair}"


@dataclass
class Compared:
    """What came of one row: inputs that differ, how the answer differs, or why there is none.

    `recomputed` are the tables made again, `noise` files with other bytes that do not count, as the answer is the same.
    """

    row: str
    pair: str
    inputs: list[_Difference] = field(default_factory=list)
    recomputed: list[str] = field(default_factory=list)
    noise: list[str] = field(default_factory=list)
    answer: str = ""
    problem: str = ""

    @property
    def same(self) -> bool:
        """Whether all inputs and the answer are those of the lock file."""
        return not (self.inputs or self.answer or self.problem)

    def __str__(self) -> str:
        parts = list(map(str, self.inputs[:SHOWN]))
        if (more := len(self.inputs) - SHOWN) > 0:
            parts.append(f"and {more} inputs more")
        parts += [self.answer or "same answer"] if not self.problem else [f"not answered: {self.problem}"]
        if self.recomputed:
            counts = Counter(name.split("/")[1] for name in self.recomputed)
            made = ", ".join(f"{count} of {table}" for table, count in counts.items())
            parts.append(f"tables made again, as they were missing: {made}")
        if self.noise:
            parts.append(
                f"other bytes: {self.noise[0]}" + (f" and {len(self.noise) - 1} more" if self.noise[1:] else "")
            )
        return f"{self.row} {self.pair}: {'; '.join(parts)}"


def reproduce(
    layout: Layout,
    lock: Lock,
    device: str = "auto",
    catalog: Path | None = None,
    generate: bool = True,
    tolerance: float = 0.0,
) -> list[Compared]:
    """Answer the rows of a lock file again and compare inputs and answers; what is missing of the tables is made again.

    Numbers are the same when they agree to DIGITS - 1 significant digits, or are no more than `tolerance` apart: what
    is made again with other threads or on another machine differs in float32's last digits. With a tolerance, tables of other
    bytes are no difference either when the answer is within it. `generate` is that of `Asking`.
    LakeError for an unknown row, or a capture that is not there, not sealed or damaged.
    """
    queries = [find(locked.row, catalog) for locked in lock.rows]
    replaced = [list(_replaced(layout, locked)) for locked in lock.rows]
    # What the lake has under another key is not computed again.
    hashed = cache(lambda name: hash_of(layout.files.bring(layout.root / name)))
    before = [{name: hashed(name) for name in locked.files} for locked in lock.rows]
    done = [Compared(query.id, "+".join(locked.pairs)) for query, locked in zip(queries, lock.rows, strict=True)]
    found = _answers(layout, queries, lock, done, device, catalog, generate)
    for place, (one, locked) in enumerate(zip(done, lock.rows, strict=True)):
        one.inputs += [change for change in [_question(queries[place], locked, lock)] if change] + replaced[place]
        altered, answer = list(_altered(layout, locked, before[place])), found.get(place)
        if answer is None:
            one.inputs += altered
            continue
        again = {name: hash_of(layout.root / name) for name, known in before[place].items() if known is None}
        one.recomputed = [name for name, sha in again.items() if sha and name.startswith("tables/")]
        one.answer = _compare(_lines(locked.table), _lines(canonical(answer)), tolerance)
        otherwise = list(_made_otherwise(locked, again))
        if not one.answer:
            one.noise = [change.what for change in otherwise]
            if tolerance:  # what is that near may come from tables that are
                one.noise += [change.what for change in altered if change.what.startswith("table ")]
                altered = [change for change in altered if change.what not in one.noise]
        one.inputs += altered + (list(_others(layout, locked, answer)) if not replaced[place] else [])
        if one.answer and not one.inputs:
            one.inputs = otherwise
    return done


def _answers(
    layout: Layout,
    queries: Sequence[Query],
    lock: Lock,
    done: Sequence[Compared],
    device: str,
    catalog: Path | None,
    generate: bool,
) -> dict[int, Answer]:
    """Place in the lock file -> answer, of rows without a problem; rows of the same pairs and prompts share their passes."""
    together: dict[tuple[tuple[str, ...], str | None, Chain | None, tuple[str, ...]], list[int]] = {}
    for place, locked in enumerate(lock.rows):
        if not done[place].problem:
            asked = tuple(locked.pairs), locked.prompts, locked.chain, locked.segments
            together.setdefault(asked, []).append(place)
    found: dict[int, Answer] = {}
    for (pairs, prompts, chain, segments), places in together.items():
        again = {queries[place].id: queries[place] for place in places}
        try:
            rows = list(again.values())
            asking = Asking(layout, rows, pairs, prompts, device, catalog, generate, chain=chain, segments=segments)
            asking.announce()
            known = {one.query.id: one for one in asking if isinstance(one, Answer)}
        except (duckdb.Error, pa.ArrowException, CorruptError) as error:  # a table that is no Parquet file any more
            words = str(error).splitlines()[0]
            known, reasons = {}, dict.fromkeys(again, words)
        else:
            reasons = {no.query.id: no.reason for no in asking.refused}
        for place in places:
            name = queries[place].id
            if name in known:
                found[place] = known[name]
            else:
                done[place].problem = reasons[name]
    return found


# --- inputs ----------------------------------------------------------------------------------------------------------


def _question(query: Query, locked: Locked, lock: Lock) -> _Difference | None:
    if query.sha256 == locked.query_sha256:
        return None
    made, here = lock.versions.get("actlake", "unknown"), versions()["actlake"]
    return _Difference(
        f"question {query.id}.sql",
        locked.query_sha256,
        query.sha256,
        f"it was answered by actlake {made}, this is {here}: use that version",
    )


def _replaced(layout: Layout, locked: Locked) -> Iterator[_Difference]:
    """Captures with another hash; LakeError for one that is not there."""
    for name, expected in locked.captures.items():
        model, stream = name.split("/")
        path, recipe = layout.capture(model, stream), stream.split("-")[0]
        prompts = f" --prompts {locked.prompts}" if locked.prompts else ""
        command = f"`actlake capture {model} --stream {recipe}{prompts}`"
        if not path.exists():
            raise LakeError(
                f"{locked.row}: capture {name} of the lock file is not in the lake {layout}: {command} makes it"
            )
        if (found := check_sealed(path)[SEAL]) != expected:
            repair = f"put that capture back, or delete {path} and {command}"
            yield _Difference(f"capture {name}", expected, found, repair)


def _altered(layout: Layout, locked: Locked, before: dict[str, str | None]) -> Iterator[_Difference]:
    """Files that were there with other bytes before anything was computed."""
    for name, expected in locked.files.items():
        found, path = before[name], layout.root / name
        if found not in (None, expected):
            again = (
                f"`actlake table add {path.parent.name} FILE` brings it back"
                if path.name.startswith(FOREIGN)
                else "repeat"
            )
            yield _Difference(_named(name), expected, str(found), f"`rm {'-r ' * path.is_dir()}{path}` and {again}")


def _others(layout: Layout, locked: Locked, answer: Answer) -> Iterator[_Difference]:
    """Captures and tables that the row reads now and did not then, and tables that it no longer reads."""
    for name, found in captures_of(layout, answer.captures).items():
        if name not in locked.captures:
            yield _Difference(f"capture {name}", "-", found, "the lock file has others: pick with the prompts of then")
    read = files_of(layout, answer)
    for name in sorted({name for name in {*read, *locked.files} if name.startswith("tables/")}):
        if name not in locked.files:
            yield _Difference(_named(name), "-", hash_of(layout.root / name) or "-", "the row did not read it then")
        elif name not in read:
            why = "the row does not read it now: catalog, models or version are others than then"
            yield _Difference(_named(name), locked.files[name], hash_of(layout.root / name) or "-", why)


def _made_otherwise(locked: Locked, again: dict[str, str | None]) -> Iterator[_Difference]:
    """Files made again to other bytes: what a different answer comes from."""
    for name, found in again.items():
        if found and found != locked.files[name]:
            yield _Difference(_named(name), locked.files[name], found, "made again here to other numbers")


def _named(file: str) -> str:
    """'tables/lens/KEY.parquet' -> 'table lens KEY'."""
    folder, *rest = file.split("/")
    return " ".join([folder.removesuffix("s"), *rest]).removesuffix(".parquet")


# --- answers ---------------------------------------------------------------------------------------------------------


def _lines(table: str) -> Lines:
    """A canonical table by its dimensions; LakeError when it can't be read."""
    try:
        rows = list(csv.DictReader(io.StringIO(table, newline=""), strict=True))
    except csv.Error as error:
        raise LakeError(f"the table of an answer in the lock file can't be read ({error})") from error
    return {
        tuple(
            (name, value) for name, value in row.items() if name not in MEASURED and isinstance(value, str) and value
        ): {name: row.get(name) or "" for name in MEASURED}
        for row in rows
    }


def _compare(then: Lines, now: Lines, tolerance: float = 0.0) -> str:
    """How two answers differ, or nothing: the largest difference of an estimate (else of a limit, else of the rest)."""
    every = {**then, **now}
    lines = [key for key in every if not (key in then and key in now and _equal(then[key], now[key], tolerance))]
    if not lines:
        return ""
    difference = f"other answer: {len(lines)} of {len(every)} lines differ"
    shared = [key for key in lines if key in then and key in now]
    for name in NUMBERS:
        apart = [(_gap(then[key][name], now[key][name], tolerance), key) for key in shared]
        gap, key = max(apart, default=(0.0, ()), key=lambda pair: pair[0])
        if gap:
            what = "an estimate" if name == "estimate" else f"the limit {name}"
            size = f"{gap:.3g}" if math.isfinite(gap) else "from nothing to a number"
            values = f"{_clean(then[key][name]) or 'none'} then, {now[key][name] or 'none'} now"
            return f"{difference}; largest difference of {what} {size} ({_words(key)}: {values})"
    key = lines[0]
    if key in then and key in now:
        name = next(name for name in MEASURED if then[key][name] != now[key][name])
        return f"{difference}; {name} of {_words(key)}: {_clean(then[key][name])} then, {now[key][name]} now"
    return f"{difference}; {_words(key)} is in {'the lock file' if key in then else 'the answer now'} alone"


def _equal(one: dict[str, str], two: dict[str, str], tolerance: float) -> bool:
    return all(
        one[name] == two[name] or (name in NUMBERS and not _gap(one[name], two[name], tolerance)) for name in MEASURED
    )


def _gap(one: str, two: str, tolerance: float) -> float:
    """How far apart two numbers are: 0 when they agree to DIGITS - 1 digits or so far, infinite when one is not there."""
    if one == two:
        return 0.0
    a, b = _number(one), _number(two)
    gap = abs(a - b)
    if not math.isfinite(gap):
        return math.inf
    # Rounding may have put two equal numbers one unit of the last digit apart.
    return 0.0 if gap <= max(2 * TINY, tolerance, 1.5 * 10.0 ** (1 - DIGITS) * max(abs(a), abs(b))) else gap


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _words(key: Key) -> str:
    return _clean(" ".join(value if name == "measure" else f"{name}={value}" for name, value in key))


def _clean(text: str) -> str:
    """What a stranger's file says, fit for a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:100])
