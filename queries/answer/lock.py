"""Lock files: everything that answers were made of, by hash, so that anyone can tell whether they come out the same."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

from ...store.captures.reader import Capture
from ...store.core.columns import SEGMENTS
from ...store.core.errors import LakeError
from ...store.core.files import hash_file, hash_files, hash_json, read_json, write_json
from ...store.core.schema import FORMAT_VERSION
from ...store.core.version import __version__
from ...store.format.paths import NAME, Layout, check_version
from ...store.remote.store import is_remote
from ...store.tables.files import find_tables, foreign_files, foreign_record
from ...store.tables.names import Chain, models_of
from ...store.tables.statements import tables_behind
from ...store.tables.streams import stream_table
from ..engine.context import Names
from ..rows.findings import Findings

FORMAT = "actlake lock"
LARGEST = 64 << 20  # bytes; a lock file of all rows takes less than a hundredth
DIGITS = (
    7  # significant ones of a number: DuckDB's threads add in no fixed order, the last digits differ from run to run
)
TINY = 1e-12  # what sums that cancel leave over
LIBRARIES = ("duckdb", "numpy", "scipy")
SHA256 = re.compile("[0-9a-f]{64}")
CAPTURE = re.compile(rf"(?!.*\.\.){NAME.pattern}/{NAME.pattern}")
# A table's folder may hold files of any name; what can't be printed is no part of one.
FILE = re.compile(
    r"(?!.*\.\.)(?:tables|texts|lenses|directions|verdicts)(?:/[^/.\x00-\x1f\x7f\ud800-\udfff][^/\x00-\x1f\x7f\ud800-\udfff]*)+"
)
WHERE = re.compile(r"[\x21-\x7e]{1,1000}")  # a URL without credentials; it is never opened by itself
WORD = re.compile(r"[\w.+ -]{1,100}")
ANY = re.compile(r"(?s).*")


@dataclass(frozen=True)
class Locked:
    """One row of a lock file: the question, what was read for it (name -> SHA-256), and its answer as canonical CSV.

    `captures` are named MODEL/STREAM, `files` by their path in the lake.
    """

    row: str
    pairs: list[str]
    prompts: str | None
    query_sha256: str
    captures: dict[str, str]
    files: dict[str, str]
    table: str
    table_sha256: str
    chain: Chain | None = None
    segments: tuple[str, ...] = ()


@dataclass(frozen=True)
class Lock:
    """A lock file: its rows, the versions of actlake and of what it computes with, and the URL of the lake if it had one."""

    rows: list[Locked]
    versions: dict[str, str]
    lake: str = ""


def write_lock(layout: Layout, answers: Sequence[Findings], file: Path, prompts: str | None = None) -> None:
    """Write what some answers used, and the answers; `prompts` is what picked among prompt sets, if anything did.

    LakeError when the file can't be written.
    """
    hashed, rows = cache(hash_of), []
    for found in answers:
        table = canonical(found)
        rows.append(
            {
                "row": found.query.id,
                "pairs": list(found.models),
                **({"chain": [found.chain.name, *found.chain.models]} if found.chain else {}),
                **({"segments": list(found.segments)} if found.segments else {}),
                "prompts": prompts or _picked(layout, found),
                "query_sha256": found.query.sha256,
                "captures": captures_of(layout, found.captures),
                "files": {name: hashed(layout.root / name) for name in files_of(layout, found)},
                "table": table,
                "table_sha256": hashlib.sha256(table.encode()).hexdigest(),
            }
        )
    record = {"format": FORMAT, "format_version": FORMAT_VERSION, "versions": versions(), "rows": rows}
    if is_remote(layout.address):  # a folder means nothing on another machine
        record["lake"] = str(layout)
    try:
        write_json(file, record)
    except OSError as error:
        raise LakeError(f"{file}: the lock file can't be written ({error.strerror})") from error


def versions() -> dict[str, str]:
    """Versions of actlake and of the libraries that turn tables into estimates."""
    return {"actlake": __version__, **{name: version(name) for name in LIBRARIES}}


def canonical(answer: Findings) -> str:
    """An answer's table as CSV with DIGITS significant digits, zero for what is below TINY, nothing for NULL."""
    table = answer.table.copy()
    for name in table.select_dtypes("floating"):
        table[name] = table[name].where(~(table[name].abs() < TINY), 0.0)
    return str(table.to_csv(index=False, float_format=f"%.{DIGITS}g", lineterminator="\n"))


def captures_of(layout: Layout, names: Sequence[Names]) -> dict[str, str]:
    """MODEL/STREAM -> hash of the capture's record; streams of imported tables alone are left out."""
    return {
        "/".join(name): Capture(path, lake=layout.files).sha256
        for name in names
        if (path := layout.capture(*name)).exists()
    }


def files_of(layout: Layout, answer: Findings) -> list[str]:
    """What an answer read, as paths in the lake: files of tables, imported ones too, and what they are made from."""
    found, streams = set(answer.read), {stream for _, stream in answer.captures}
    for want in answer.query.needs:
        for name, models in product(tables_behind(want.table), answer.models.values()):
            found |= {file for file in foreign_files(layout, name) if _is_about(file, models, streams)}
            if name == "judged":  # read as it is where no judge is named
                found |= set(find_tables(layout, name, {"models": models, "sweep": want.kind}))
                found |= set(layout.judge.glob("*.jsonl"))
    return sorted(path.relative_to(layout.root).as_posix() for path in found)


def _is_about(file: Path, models: dict[str, str], streams: set[str]) -> bool:
    """Whether a file from elsewhere holds rows of a pair's models, on one of the streams if it has any."""
    return any(
        set(models_of(one)) <= set(models.values()) and one.get("stream") in (None, *streams)
        for one in foreign_record(file)
    )


def hash_of(path: Path) -> str | None:
    """SHA-256 of a file, or of a folder's list of files and their hashes; None for what is not there."""
    if path.is_dir():
        return hash_json(hash_files((file for file in path.rglob("*") if file.is_file()), path))
    return hash_file(path) if path.is_file() else None


def _picked(layout: Layout, answer: Findings) -> str | None:
    """The prompt set that the captures of an answer are about, when it is one: others may be captured later."""
    rows = stream_table(layout, {model for model, _ in answer.captures}).itertuples()
    there = [row for row in rows if (row.model, row.stream) in answer.captures]
    sets = {str(row.prompts) for row in there if row.recipe in answer.query.recipes}
    return sets.pop() if len(sets) == 1 else None


# --- reading ---------------------------------------------------------------------------------------------------------


def read_lock(file: Path) -> Lock:
    """Read a lock file; LakeError of one line for one that is not there, too large, damaged, newer, or no lock file."""
    record = _parsed(file)
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise LakeError(f"{file}: not a lock file", repair="`actlake run ROW --lock FILE` writes one")
    check_version(record, file)
    check = _Check(file)
    made = check.texts(record, "versions", WORD, WORD)
    rows = record.get("rows")
    if not isinstance(rows, list) or not rows:
        raise check.error("rows", "a list with a row or more", rows)
    where = check.text(record, "lake", WHERE) if "lake" in record else ""
    return Lock([_locked(_Check(file, f"rows[{at}]."), row) for at, row in enumerate(rows)], made, where)


def _parsed(file: Path) -> Any:
    try:
        if file.exists() and not (file.is_file() and file.stat().st_size <= LARGEST):
            raise LakeError(f"{file}: not a file of at most {LARGEST} bytes, as a lock file is")
        return read_json(file, LARGEST)
    except OSError as error:
        raise LakeError(f"{file}: the lock file can't be read ({error.strerror})") from error


def _locked(check: "_Check", row: Any) -> Locked:
    if not isinstance(row, dict):
        raise check.error("", "an object", row)
    pairs, prompts, chain = row.get("pairs"), row.get("prompts"), row.get("chain")
    if not isinstance(pairs, list) or not pairs or not all(_is(NAME, pair) for pair in pairs):
        raise check.error("pairs", "a list of names", pairs)
    if chain is not None and not (
        isinstance(chain, list) and len(chain) > 2 and all(_is(NAME, name) for name in chain)
    ):
        raise check.error("chain", "a list of its name and its models", chain)
    segments = row.get("segments", [])
    if not isinstance(segments, list) or not all(name in SEGMENTS[1:] for name in segments):
        raise check.error("segments", f"a list of {', '.join(SEGMENTS[1:])}", segments)
    found = Locked(
        row=check.text(row, "row", WORD),
        pairs=pairs,
        prompts=None if prompts is None else check.text(row, "prompts", NAME),
        query_sha256=check.text(row, "query_sha256", SHA256),
        captures=check.texts(row, "captures", CAPTURE, SHA256),
        files=check.texts(row, "files", FILE, SHA256),
        table=check.text(row, "table", ANY),
        table_sha256=check.text(row, "table_sha256", SHA256),
        chain=Chain(chain[0], tuple(chain[1:])) if chain else None,
        segments=tuple(segments),
    )
    if hashlib.sha256(found.table.encode(errors="replace")).hexdigest() != found.table_sha256:
        raise check.error("table", "text with the hash in table_sha256: the file was changed", found.table)
    return found


def _is(pattern: re.Pattern[str], value: object) -> bool:
    return isinstance(value, str) and bool(pattern.fullmatch(value))


@dataclass(frozen=True)
class _Check:
    """Takes values from a lock file, or says in one line which is wrong and how."""

    file: Path
    where: str = ""

    def text(self, record: dict[str, Any], key: str, pattern: re.Pattern[str]) -> str:
        value = record.get(key)
        if not _is(pattern, value):
            raise self.error(key, f"text like {pattern.pattern}", value)
        return str(value)

    def texts(
        self, record: dict[str, Any], key: str, names: re.Pattern[str], pattern: re.Pattern[str]
    ) -> dict[str, str]:
        value = record.get(key)
        if not isinstance(value, dict):
            raise self.error(key, "an object", value)
        for name, text in value.items():
            if not _is(names, name) or not _is(pattern, text):
                raise self.error(key, f"names like {names.pattern} with text like {pattern.pattern}", name)
        return value

    def error(self, key: str, expected: str, found: object) -> LakeError:
        shown = repr(found[:60]) if isinstance(found, str) else "nothing" if found is None else type(found).__name__
        return LakeError(f"{self.file}: {self.where}{key}: expected {expected}, found {shown}")
