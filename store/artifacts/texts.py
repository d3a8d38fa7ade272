"""Free-running texts: a folder per condition, named by all that determines its texts, with a Parquet file per prompt set.

LAKE/texts/MODEL/KEY/condition.json says what the condition is; a file KIND-HASH.parquet holds one line per prompt
(`texts` what was written, `nats-...` how likely a model finds it, `choices` what it chose). Batches under way lie in `.parts`.
"""

import hashlib
from collections.abc import Iterable, Sequence, Set
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ..core.errors import CorruptError, LakeError
from ..core.files import canonical_json, explain_full_disk, hash_json, parse_json, replacing, write_atomic, write_json
from ..core.schema import FORMAT_VERSION, OUTPUT_KINDS
from ..format.parquet import about, parquet_writer, read_parquet
from ..format.paths import Layout
from ..format.records import LARGEST, REPAIRS, read_batch, read_record
from ..remote.files import HERE, Files
from ..remote.hashes import while_same

Row = dict[str, Any]
AGAIN = "delete the file and run `actlake generate` again, or restore it"


def prompt_key(ids: Sequence[int]) -> str:
    """The hash of a prompt's token ids: equal prompts of whatever set have one text under a condition."""
    return hashlib.sha256(np.asarray(ids, "<i4").tobytes()).hexdigest()[:16]


class Condition:
    """The folder of one condition; `recipe` is everything that determines its texts, but for the prompts."""

    def __init__(self, layout: Layout, model: str, recipe: dict[str, Any]):
        self.key = hash_json(recipe)[:16]
        self.model, self.recipe = model, recipe
        self.folder, self._files = layout.texts(model) / self.key, layout.files

    def file(self, kind: str, prompts: Sequence[tuple[str, str]]) -> Path:
        """The file of this kind for these prompts, (prompt id, hash of its tokens) each, in order."""
        return self.folder / f"{kind}-{_set_key(prompts)}.parquet"

    def known(self, kind: str) -> dict[str, Row]:
        """Hash of a prompt's tokens -> its line, from all files of a kind and from the batches under way."""
        found = self.parts(kind)  # first: what another process puts into a file meanwhile is then found there
        for file in sorted(self.folder.glob(f"{kind}-*.parquet")):
            found |= {row["prompt_sha"]: row for row in read_lines(file)}
        return found

    def parts(self, kind: str) -> dict[str, Row]:
        """The lines of batches that no file holds yet."""
        found: dict[str, Row] = {}
        for part in sorted((self.folder / ".parts").glob(f"{kind}-*.json")):
            with suppress(FileNotFoundError):  # another process has put them into a file
                found |= {row["prompt_sha"]: row for row in read_batch(part, "lines")}
        return found

    def keep(self, kind: str, rows: Sequence[Row]) -> None:
        """Keep a finished batch, so that a kill costs nothing that is done."""
        data = canonical_json(list(rows))
        with explain_full_disk(f"writing texts of {self.model}"):
            part = self.folder / ".parts" / f"{kind}-{hashlib.sha256(data).hexdigest()[:16]}.json"
            write_atomic(part, data)
            self._files.publish(part)

    def seal(self, kind: str, path: Path, rows: Iterable[Row], schema: pa.Schema, provenance: dict[str, Any]) -> None:
        """Write the file of a prompt set, and what the condition is; its batches under way are then of no more use.

        The file's metadata say where it comes from: the recipe, and `provenance` (models, versions, device).
        """
        metadata = {b"actlake": canonical_json({"recipe": self.recipe, "provenance": provenance})}
        table = pa.Table.from_pylist(list(rows), schema.with_metadata(metadata))
        path.parent.mkdir(parents=True, exist_ok=True)
        with explain_full_disk(f"writing texts of {self.model}"):
            with replacing(path) as temporary:
                with parquet_writer(temporary, table.schema) as writer:
                    writer.write_table(table)
                if not (marker := self.folder / "condition.json").exists():
                    named = {"model": self.model, "recipe": self.recipe}
                    write_json(marker, {"format_version": FORMAT_VERSION, **named})
            self._files.publish(marker, path)
        done = {row["prompt_sha"] for row in table.to_pylist()}
        for part in (self.folder / ".parts").glob(f"{kind}-*.json"):
            with suppress(FileNotFoundError):
                if {row["prompt_sha"] for row in read_batch(part, "lines")} <= done:
                    self._files.remove(part)
        with suppress(OSError):  # another kind's batches are still there
            (self.folder / ".parts").rmdir()


def _set_key(prompts: Iterable[tuple[str, str]]) -> str:
    """What a file is named by: the prompts of its set."""
    return hash_json(list(map(list, prompts)))[:16]


def read_lines(file: Path) -> list[Row]:
    """The lines of a file; CorruptError unless it is that of the condition and the prompts which its place says."""
    return read_parquet(file, check_lines(file), AGAIN).to_pylist()


@while_same(1 << 12)
def check_lines(file: Path) -> pa.Schema:
    """The schema of a file; CorruptError as for `read_lines`. Asked once of a file that nobody changes."""
    kind, _, key = file.stem.rpartition("-")
    schema = OUTPUT_KINDS.get(kind.partition("-")[0])
    if schema is None:
        raise CorruptError(f"{file}: no kind of texts ({', '.join(OUTPUT_KINDS)}); {AGAIN}")
    named = read_parquet(file, schema, AGAIN, ("prompt_id", "prompt_sha")).to_pylist()
    recipe = (about(file) or {}).get("recipe")
    found = hash_json(recipe)[:16], _set_key((row["prompt_id"], row["prompt_sha"]) for row in named)
    if found != (file.parent.name, key):
        raise CorruptError(
            f"{file}: holds texts of condition {found[0]} and prompts {found[1]}, of another place; {AGAIN}"
        )
    return schema


def find_condition(layout: Layout, model: str, key: str) -> Path:
    """The folder of the condition whose key begins with `key`; LakeError unless exactly one does."""
    folder = layout.texts(model)
    there = sorted(path.parent.name for path in folder.glob("*/condition.json"))
    found = [name for name in there if name.startswith(key)]
    if len(found) != 1:
        what = "several conditions begin" if found else "no condition begins"
        some = ", ".join(there[:4]) + (f" and {len(there) - 4} more" if len(there) > 4 else "")
        raise LakeError(
            f"texts of {model}: {what} with {key!r}; there: {some or 'none'}. `actlake generate` makes them, `actlake"
            ' sql "SELECT DISTINCT key, model, condition FROM outputs"` lists them'
        )
    return folder / found[0]


def read_condition(folder: Path) -> dict[str, Any]:
    """The recipe of a condition; CorruptError unless it is the one that the folder is named by."""
    record = read_record(file := folder / "condition.json", "condition")
    recipe = dict(record["recipe"])
    if (key := hash_json(recipe)[:16]) != folder.name:
        raise CorruptError(
            f"{file}: recipe: damaged, its key is {key}, the folder's {folder.name}", repair=REPAIRS["condition"]
        )
    if record["model"] != folder.parent.name:
        raise CorruptError(
            f"{file}: model: found {record['model']!r} among the texts of {folder.parent.name}; {REPAIRS['condition']}"
        )
    return recipe


def read_texts(folder: Path) -> list[Row]:
    """Every text of a condition, one line per prompt; equal prompts of several sets once."""
    found: dict[tuple[str, str], Row] = {}
    for file in sorted(folder.glob("texts-*.parquet")):
        found |= {(row["prompt_id"], row["prompt_sha"]): row for row in read_lines(file)}
    return list(found.values())


def output_files(layout: Layout, fetch: bool = True, only: Set[str] | None = None) -> list[Path]:
    """Every file of texts in the lake (of `only` these models) for SQL; of a remote lake those that are here, unless `fetch`."""
    folder = layout.root / "texts"
    found = sorted((layout.files.bring(folder, "texts-*.parquet") if fetch else folder).glob("*/*/texts-*.parquet"))
    found = [file for file in found if only is None or file.parts[-3] in only]
    for file in found:
        check_lines(file)
    return found


PART = 32  # verdicts a file: what a kill may lose


class VerdictStore:
    """The verdicts in one folder, by key; FORMAT 8.3.

    Files are named by their content and never changed, so that any number of processes may add at once.
    """

    def __init__(self, folder: Path, part: int = PART, files: Files = HERE):
        self.folder, self.part, self._lake = folder, part, files
        self._records: dict[str, dict[str, Any]] = {}
        self._files: set[str] = set()
        self._new: list[dict[str, Any]] = []

    def refresh(self) -> None:
        """Read the files that came since the last time; CorruptError names one that can't be read."""
        for file in sorted(self.folder.glob("*.jsonl")):
            if file.name not in self._files:
                for record in read_verdicts(file):
                    # Two processes that ask the same at the same moment both keep an answer; one is used.
                    self._records.setdefault(record["key"], record)
                self._files.add(file.name)

    def get(self, key: str) -> dict[str, Any] | None:
        """The record under this key as of the last refresh or `add`."""
        return self._records.get(key)

    def add(self, record: dict[str, Any]) -> None:
        """Take in a record, which has its `key`; it is on the disk when a part is full, or after `flush`."""
        self._records.setdefault(record["key"], record)
        self._new.append(record)
        if len(self._new) >= self.part:
            self.flush()

    def flush(self) -> None:
        """Write what was added and is not on the disk yet."""
        if not self._new:
            return
        name = f"{hash_json(self._new)[:16]}.jsonl"
        with explain_full_disk(f"writing {self.folder / name}"):
            try:
                write_atomic(self.folder / name, b"".join(canonical_json(record) + b"\n" for record in self._new))
                self._lake.publish(self.folder / name)
            except PermissionError as error:
                raise LakeError(f"{self.folder}: verdicts can't be written there ({error.strerror})") from error
        self._files.add(name)
        self._new = []


def read_verdicts(file: Path) -> list[dict[str, Any]]:
    """The verdicts of a file, which has the name that their hash gives it."""
    if not file.is_file() or file.stat().st_size > LARGEST:
        raise CorruptError(f"{file}: not a file of at most {LARGEST} bytes; delete it and what it held is asked again")
    found = list[dict[str, Any]]()
    for line, text in enumerate(file.read_bytes().splitlines(), 1):
        try:
            record = parse_json(text)
        except ValueError:
            record = None
        if not isinstance(record, dict) or not all(isinstance(record.get(k), str) for k in ("key", "answer", "reason")):
            raise CorruptError(f"{file}:{line}: not a verdict; delete the file and what it held is asked again")
        found.append(record)
    if (key := hash_json(found)[:16]) != file.stem:
        raise CorruptError(f"{file}: damaged, its key is {key}; delete the file and what it held is asked again")
    return found
