"""Prompt sets: read, check and import JSONL and CSV files. prompts/README.md describes every field."""

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from ...store.artifacts.streams import stored_prompts, write_prompts
from ...store.core.errors import LakeError
from ...store.core.files import LARGEST, canonical_json, parse_json, too_deep
from ...store.format.paths import Layout
from .rows import FIELDS, check_scoring, check_talk, is_text, short

NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
PROMPTS = "prompt file"
MAPPED = (
    "; `actlake prompts add FILE --text COLUMN --category COLUMN` takes other columns and numbers prompts without ids"
)


@dataclass(frozen=True)
class Prompt:
    """One prompt: what the model reads, and in `fields` whatever else its row holds (answer, criteria).

    Of a conversation (`talk`: messages and tools as JSON) `text` is the last thing that a user says.
    """

    id: str
    category: str
    text: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    talk: bytes = b""

    @property
    def said(self) -> str | bytes:
        """What the model reads: the text, or the conversation."""
        return self.talk or self.text

    def line(self) -> bytes:
        """The prompt as a line of the canonical file. Templates write the keys of tools and calls in their order: it is kept."""
        said = json.loads(self.talk) if self.talk else {"text": self.text}
        row = {**self.fields, "id": self.id, "category": self.category, **said}
        values = ((key, (_in_order if key in said else canonical_json)(row[key])) for key in sorted(row))
        return b"{" + b",".join(canonical_json(key) + b":" + value for key, value in values) + b"}\n"


@dataclass(frozen=True)
class PromptSet:
    """A named, ordered, non-empty set of prompts; `sha256` is the hash of its canonical file.

    The canonical file is one compact JSON object a line with sorted keys, so white space, key order and the
    file type do not change the hash, while a changed word or another order of prompts does.
    """

    name: str
    prompts: tuple[Prompt, ...]
    sha256: str

    @property
    def labels(self) -> list[str]:
        """The prompts in messages."""
        return [f"prompt {prompt.id!r} of set {self.name}" for prompt in self.prompts]


def _in_order(value: Any) -> bytes:
    """Compact JSON with keys in their order."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def canonical_bytes(prompts: Iterable[Prompt]) -> bytes:
    """The one JSONL text of these prompts: sorted keys, no spaces, a line feed after each."""
    return b"".join(prompt.line() for prompt in prompts)


def read_prompts(
    path: str | Path,
    name: str | None = None,
    limit: int | None = None,
    columns: Mapping[str, str] | None = None,
    number: bool = False,
) -> PromptSet:
    """Read and check a prompt file (.jsonl or .csv); the set is named after the file unless `name` is given.

    `columns` says which of the file's are `id`, `text` and `category` where their names are others; with `number` prompts of
    a file without ids are numbered from 1.

    The whole file is checked even when `limit` keeps only the first prompts, and the hash is that of the kept
    ones. Whatever is wrong raises a LakeError that names the file and the line.
    """
    path = Path(path)
    if limit is not None and limit < 1:
        raise LakeError(f"{path}: a limit of {limit} leaves no prompts; give 1 or more")
    prompts: list[Prompt] = []
    lines: dict[str, int] = {}
    for line, record in _named(path, dict(columns or {}), number):
        prompt = _checked(record, f"{path}:{line}")
        if prompt.id in lines:
            first = lines[prompt.id]
            raise LakeError(f"{path}:{line}: id {prompt.id!r} is already on line {first}; make ids unique")
        lines[prompt.id] = line
        prompts.append(prompt)
    if not prompts:
        raise LakeError(f"{path}: the prompt set is empty; expected at least one row with `id` and `text`")
    kept = tuple(prompts[:limit])
    return PromptSet(name or path.stem, kept, sha256(canonical_bytes(kept)).hexdigest())


def _named(path: Path, columns: dict[str, str], number: bool) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a prompt file under the names id, text and category, numbered where the file has no ids."""
    needed = [
        columns.get(name, name) for name in ("id", "text") if not (number and name == "id" and name not in columns)
    ]
    needed += [columns["category"]] if "category" in columns else []
    numbered = number and "id" not in columns
    for count, (line, record) in enumerate(read_rows(path, PROMPTS, tuple(needed)), 1):
        for name, column in columns.items():
            if column not in record and name != "category":
                raise LakeError(
                    f"{path}:{line}: no {column}, which is to be the {name}; the row has {short([*record])}"
                )
        taken = {name: record.get(column) for name, column in columns.items()}
        for name in ("id", "category"):  # numbers of another program's
            if type(taken.get(name)) is int:
                taken[name] = str(taken[name])
        record = {key: value for key, value in record.items() if key not in columns.values()} | taken
        numbered &= count > 1 or "id" not in record
        if numbered:
            if "id" in record:
                raise LakeError(
                    f"{path}:{line}: has an id, and the rows before have none; give all of them one, or none"
                )
            record["id"] = str(count)
        yield line, record


def read_rows(path: Path, what: str, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a .jsonl or .csv file with the line each begins on; a CSV header has to name `columns`.

    `what` the file should be stands in messages. Whatever can't be read is a LakeError with file and line.
    """
    suffix = path.suffix.lower()
    if suffix not in (".jsonl", ".csv"):
        raise LakeError(f"{path}: unknown type {path.suffix!r}; a {what} ends in .jsonl or .csv")
    text = _read_text(path, what)
    yield from _json_rows(path, text, columns) if suffix == ".jsonl" else _csv_rows(path, text, columns)


def add_prompts(source: str | Path, layout: Layout, name: str, columns: Mapping[str, str] | None = None) -> Path:
    """Check a prompt file and keep its canonical form in a lake; return where that is.

    `columns` as in `read_prompts`; prompts of a file without ids are numbered.
    A set that is already there with the same content is left alone; another content is refused.
    """
    if not NAME.fullmatch(name):
        raise LakeError(f"prompt-set name {name!r}: expected lower-case letters, digits, _ and -, as in my-set")
    added = read_prompts(source, name, columns=columns, number=True)
    target = stored_prompts(layout, name)
    if target is None:
        try:
            target = write_prompts(layout, name, canonical_bytes(added.prompts))
        except OSError as error:
            raise LakeError(f"{layout.prompts / name}: cannot write the prompt set ({error.strerror})") from None
    if read_prompts(target).sha256 != added.sha256:  # was there, or another process has just been faster
        raise LakeError(f"{target}: another prompt set has this name and is never replaced; choose a new name")
    return target


def _read_text(path: Path, what: str) -> str:
    try:
        if path.exists() and not path.is_dir() and not (path.is_file() and path.stat().st_size <= LARGEST):
            raise LakeError(f"{path}: not a file of at most {LARGEST} bytes, as a {what} is")
        data = path.read_bytes()
    except FileNotFoundError:
        raise LakeError(f"{path}: no such {what}") from None
    except OSError as error:
        raise LakeError(f"{path}: cannot read the {what} ({error.strerror})") from None
    try:
        return data.decode("utf-8-sig")  # spreadsheets like to begin with a byte order mark
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise LakeError(f"{path}:{line}: not UTF-8 text; save the file as UTF-8") from None


def _json_rows(path: Path, text: str, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, Any]]]:
    # Not splitlines(): that would also cut at U+2028, which JSON allows inside a string.
    for line, content in enumerate(text.split("\n"), 1):
        if not content.strip():
            continue
        try:
            record = json.loads(content, object_pairs_hook=_without_duplicates)
        except (ValueError, RecursionError) as error:
            raise LakeError(f"{path}:{line}: not one JSON object on one line ({_reason(error)})") from None
        if too_deep(record):
            raise LakeError(f"{path}:{line}: not one JSON object on one line (nested too deeply)")
        if not isinstance(record, dict):
            example = ", ".join(f'"{column}": ...' for column in columns)
            raise LakeError(f"{path}:{line}: expected a JSON object such as {{{example}}}")
        yield line, record


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        raise ValueError("a key occurs twice")
    return record


def _csv_rows(path: Path, text: str, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, Any]]]:
    csv.field_size_limit(LARGEST)  # a long prompt is one cell
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    start = 1  # a quoted cell may span lines: report where its row begins
    try:
        for cells in reader:
            if cells and header is None:
                header = _header(cells, f"{path}:{start}", columns)
            elif cells and header is not None:
                yield start, _csv_record(header, cells, f"{path}:{start}")
            start = reader.line_num + 1
    except csv.Error as error:
        raise LakeError(f"{path}:{start}: not valid CSV ({error})") from None


def _header(cells: list[str], where: str, columns: tuple[str, ...]) -> list[str]:
    header = [cell.strip() for cell in cells]
    if re.fullmatch(r"sep=.?", header[0], re.IGNORECASE):
        other = "" if header[0][4:] in ("", ",") else " and save the file with commas"
        raise LakeError(f"{where}: a line of Excel's own ({header[0]}); delete it{other}")
    if "" in header:
        column = header.index("") + 1
        raise LakeError(f"{where}: column {column} has no name (in pandas, write with index=False)")
    if len(set(header)) < len(header):
        raise LakeError(f"{where}: a column name occurs twice in {short(header)}")
    if missing := set(columns) - set(header) - ({"text"} if "messages" in header else set()):
        raise LakeError(
            f"{where}: no column {', '.join(sorted(missing))}; the header is {short(header)}{_hint(header, columns)}"
        )
    return header


def _hint(header: list[str], columns: tuple[str, ...]) -> str:
    """What to do about columns of other names."""
    if len(header) == 1 and re.search(r"[;\t|]", header[0]):
        return "; save the file with commas between the cells"
    return MAPPED if set(columns) <= {"id", "text"} else ""


def _csv_record(header: list[str], cells: list[str], where: str) -> dict[str, Any]:
    if len(cells) != len(header):
        raise LakeError(f"{where}: {len(cells)} cells, but {len(header)} columns; quote cells that hold commas")
    record: dict[str, Any] = {key: cell for key, cell in zip(header, cells, strict=True) if cell}
    for key in ("choices", "criteria", *(FIELDS if "messages" in record else ())):  # lists are JSON inside their cell
        if key in record:
            try:
                record[key] = parse_json(record[key].encode())
            except (ValueError, RecursionError) as error:
                raise LakeError(f"{where}: {key} is not JSON ({_reason(error)})") from None
    return record


def _checked(record: dict[str, Any], where: str) -> Prompt:
    record = {key: value for key, value in record.items() if value is not None}  # null means absent
    if "messages" in record:
        record["text"] = check_talk(record, where)
    for key in ("id", "text"):
        if key not in record:
            raise LakeError(
                f"{where}: no {key}; every prompt needs `id` and `text` (or `messages`), and this has {short([*record])}{MAPPED}"
            )
        if not is_text(record[key]):
            raise LakeError(f"{where}: {key} is {short(record[key])}, expected non-blank text")
    category = record.pop("category", "")
    if not isinstance(category, str):
        raise LakeError(f"{where}: category is {short(category)}, expected text")
    check_scoring(record, where)
    try:
        canonical_json([record, category])
    except ValueError:
        raise LakeError(f"{where}: holds NaN, infinity or half a surrogate pair, expected none") from None
    talk = {key: record.pop(key) for key in FIELDS if key in record} if "messages" in record else {}
    return Prompt(record.pop("id"), category, record.pop("text"), record, _in_order(talk) if talk else b"")


def _reason(error: Exception) -> str:
    # Python's own sentence counts lines within the one line it was given, which would mislead here.
    return f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
