"""What has one name and other content in two lakes: nothing of it is overwritten.

What people or models made (prompts, captures, texts, verdicts, lenses, directions) is refused and listed; of derived tables the
target keeps its own, and they are counted. On request one side wins, and what loses is kept below kept/ under its own hash.
"""

import hashlib
import io
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..artifacts.models import FILE as VOCAB
from ..artifacts.models import with_vocab
from ..artifacts.probes import record_kind
from ..core.errors import CorruptError, LakeError
from ..core.files import json_bytes
from ..core.schema import LATER, RECORD
from ..format.parquet import first_line, torn
from ..format.records import REPAIRS, SEAL, parse_record
from ..remote.folder import Folder
from ..remote.hashes import known_hash
from ..remote.store import Entry, Store
from .transfer import Item, Unit

KEPT = "kept"  # where what lost against another of its name is
LISTED = 12  # names in a refusal
KINDS = {
    "lenses": "probes",
    "directions": "directions",
    "statistics": "statistics",
    "prompts": "prompts",
}  # areas whose folders have a record -> its kind
DERIVED = "tables"
WORDS = ("category", "token_text", "is_special", *sorted(LATER))  # of a stream, what its content hash leaves out


class Compared:
    """Two lakes compared: what is equal, and what has one name and other content."""

    def __init__(self, source: Store, target: Store, check: bool, take: str = ""):
        """`take`: `source` or `target` wins where content differs; empty refuses that."""
        self.source, self.target, self.check, self.take = source, target, check, take
        self.refused: list[str] = []
        self.replaced: list[str] = []
        self.kept = 0  # tables of the target's own

    def differs(self, unit: Unit, name: str, what: str, sha256: str, loses: tuple[str, ...] = ()) -> bool:
        """Take note of another content under a name of the target's; True when the source's wins.

        `sha256` is the target's, `loses` are the names of what gives way then (the name itself, unless given).
        """
        if self.take == "source":
            unit.keep |= {one: f"{KEPT}/{sha256[:16]}/{one}" for one in loses or (name,)}
            return True
        if not self.take:
            self.refused.append(f"{name}: {what}")
        return False

    def refuse(self) -> None:
        """LakeError when there is something that nobody decided on."""
        if self.refused:
            more = f"; and {len(self.refused) - LISTED} more" if len(self.refused) > LISTED else ""
            raise LakeError(
                f"{self.target}/{'; '.join(self.refused[:LISTED])}{more}. Nothing was moved: --take theirs or --take mine"
                " decides, and what loses is kept below kept/; or use another lake"
            )

    def notes(self) -> Iterator[str]:
        """What is replaced, and in one line what was left as it was."""
        yield from self.replaced
        if self.kept:
            yield f"tables: {self.kept} of other content under the same name; the target keeps its own (--take decides)"

    def known(self, name: str, kind: str) -> dict[str, Any] | None:
        """A record of the target, None when it has none; where damage is looked for, a damaged one is replaced."""
        data = self.target.record(name)
        if data is None:
            return None
        try:
            return parse_record(data, kind, f"{self.target}/{name}")
        except CorruptError as error:
            if not self.check:
                raise
            self.replaced.append(f"{error} (is replaced)")
            return None

    def is_there(self, name: str, entry: Mapping[str, Any], found: Entry | None) -> bool:
        """Whether the target has a file of these `bytes` and, where damage is looked for, this `sha256`."""
        if found is None or (found.size is not None and found.size != entry["bytes"]):
            return False
        return not self.check or self.target.hash(name, entry["bytes"]) == entry["sha256"]

    def hashed(
        self, unit: Unit, folder: str, hashes: Mapping[str, str], found: dict[str, Entry], there: dict[str, Entry]
    ) -> None:
        """Add files of a folder whose hashes are on record."""
        for file, sha256 in hashes.items():
            name = f"{folder}/{file}"
            size = (found[name].size or 0) if name in found else 0
            if self.is_there(name, {"sha256": sha256, "bytes": size}, there.get(name)):
                unit.there += size
            else:
                unit.items.append(Item(name, size, sha256))

    # --- what was made of captures, and prompt sets ----------------------------------------------------------------

    def units(self, area: str, wanted: Callable[[str], bool]) -> Iterator[Unit]:
        """The artifacts of an area as units to move, records last."""
        found, there = self.source.find(area), self.target.find(area)
        folders = [name.rpartition("/")[0] for name in found if name.endswith(f"/{RECORD}") and area in KINDS]
        for folder in folders:
            if wanted(folder) and not _hidden(folder):
                yield self._sealed(area, folder, there)
        whole = Unit(area, area)
        for name in sorted(found, key=lambda name: (name.endswith(".json"), name)):
            if not _hidden(name) and wanted(name) and not any(name.startswith(f"{folder}/") for folder in folders):
                self._file(whole, name, found[name], there.get(name))
        yield whole

    def _sealed(self, area: str, folder: str, there: Mapping[str, Entry]) -> Unit:
        kind = record_kind(folder) if area == "lenses" else KINDS[area]
        unit, name = Unit(area, folder), f"{folder}/{RECORD}"
        data = self.source.record(name) or b""
        record = parse_record(data, kind, f"{self.source}/{name}")
        mine = self.known(name, kind) if name in there else None
        if mine and mine[SEAL] != record[SEAL]:
            words = f"{kind} of other content have this name there (sha256 {mine[SEAL][:12]}, here {record[SEAL][:12]})"
            if not self.differs(unit, folder, words, mine[SEAL]):
                return unit
            mine = None
        for file, entry in record["files"].items():
            if mine is not None and self.is_there(f"{folder}/{file}", entry, there.get(f"{folder}/{file}")):
                unit.there += entry["bytes"]
            else:
                unit.items.append(Item(f"{folder}/{file}", entry["bytes"], entry["sha256"]))
        if mine is None:
            unit.records[name] = data
        return unit

    def _file(self, unit: Unit, name: str, entry: Entry, there: Entry | None) -> None:
        """A file that is an artifact by itself, or a part of one that is known by its name."""
        if there is None:
            self._move(unit, name, entry)
        elif self._equal(name, entry, there):
            unit.there += entry.size or 0
        elif self.check and self._broken(name):
            self._move(unit, name, entry)
        elif unit.kind == DERIVED and not self.take:
            self.kept += 1
        elif self.differs(unit, name, "other content has this name there", self._hash(self.target, name, there)):
            self._move(unit, name, entry)

    def _move(self, unit: Unit, name: str, entry: Entry) -> None:
        if name.endswith(".json"):  # says that files are there: it comes last
            unit.records[name] = self.source.record(name) or b""
        else:
            unit.items.append(Item(name, entry.size or 0))

    def _equal(self, name: str, entry: Entry, there: Entry) -> bool:
        if entry.size is not None and there.size is not None and entry.size != there.size:
            return False
        # Of tables, which may take a hundred GB, the target's stay in any case.
        if name.startswith(f"{DERIVED}/") and not self.check and not self.take:
            return True
        return self._hash(self.source, name, entry) == self._hash(self.target, name, there)

    @staticmethod
    def _hash(store: Store, name: str, entry: Entry) -> str:
        if isinstance(store, Folder):
            return known_hash(store.path(name))
        if entry.size is None:
            return hashlib.sha256(store.read(name)).hexdigest()
        return store.hash(name, entry.size)

    def _broken(self, name: str) -> bool:
        """Whether a file of the target is not even what was written there, by its own checksum."""
        if not name.endswith(".parquet"):
            return False
        if isinstance(self.target, Folder):
            return bool(torn(self.target.path(name)))
        with tempfile.TemporaryDirectory() as folder:
            self.target.get(name, Path(folder) / "file")
            return bool(torn(Path(folder) / "file"))


def other_stream(source: Store, target: Store, record: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    """How a stream of the target's is another one of the name: by its tokens, or by what captures hold beside them."""
    if known["content_sha256"] != record["content_sha256"]:
        return f"another stream has this name there ({known['content_sha256'][:12]})"
    one, two = record.get("parquet_sha256"), known.get("parquet_sha256")
    file = f"streams/{record['name']}.parquet"
    if not one or not two or one == two or not (source.entry(file) and target.entry(file)):
        return ""
    mine, theirs = (_words(place, file) for place in (target, source))
    wrong = [name for name in WORDS if name in mine and name in theirs and mine[name] != theirs[name]]
    return f"a stream of equal tokens has other values of {', '.join(wrong)} there" if wrong else ""


def _words(place: Store, file: str) -> dict[str, list[Any]]:
    try:
        table = pq.read_table(io.BytesIO(place.read(file)))
        there = [name for name in WORDS if name in table.column_names or name not in LATER]
        return {name: table[name].to_pylist() for name in there}
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise CorruptError(f"{place}/{file}: can't be read ({first_line(error)}); {REPAIRS['stream']}") from error


def _hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def model_unit(compared: Compared, name: str, weights: bool, notes: list[str]) -> Unit:
    """The model of the record `name`; LakeError where the target has another checkpoint of its name."""
    source, target = compared.source, compared.target
    there, found = target.find("models"), source.find("models")
    data, folder = source.record(name) or b"", name.rpartition("/")[0]
    record, unit = parse_record(data, "model", f"{source}/{name}"), Unit("models", folder)
    known = compared.known(name, "model") if name in there else None
    if known and known["sha256"] != record["sha256"]:
        raise LakeError(f"{target}/{name}: another checkpoint has this name there; name only what you want")
    _head(compared, unit, record, known, found, there)
    # The vocabulary, where the target's model has none, or the same.
    sha256 = record.get("vocab_sha256")
    if sha256 and (not known or known.get("vocab_sha256", sha256) == sha256):
        compared.hashed(unit, folder, {VOCAB: sha256}, found, there)
        if known and "vocab_sha256" not in known:
            unit.records[name] = json_bytes(with_vocab(known, sha256))
    if not known:
        unit.records[name] = data
    marker = f"{folder}/weights.json"
    if marker in found and not weights:
        notes.append(f"{folder}: the model's own files stay here; --with-weights takes them along, and their licence")
    elif marker in found:
        data = source.record(marker) or b""
        files = parse_record(data, "weights", f"{source}/{marker}")["files"]
        hashes = {file: entry["sha256"] for file, entry in files.items()}
        compared.hashed(unit, f"{folder}/weights", hashes, found, there)
        if marker not in there:
            unit.records[marker] = data
    return unit


def _head(
    compared: Compared,
    unit: Unit,
    record: Mapping[str, Any],
    known: Mapping[str, Any] | None,
    found: dict[str, Entry],
    there: dict[str, Entry],
) -> None:
    """The head's files; the same checkpoint's head in another writer's bytes stays as the target has it."""
    folder = f"{unit.name}/head.zarr"
    if not known or known["head_files"] == record["head_files"]:
        hashes = {file: entry["sha256"] for file, entry in record["head_files"].items()}
        return compared.hashed(unit, folder, hashes, found, there)
    mine = [file for file in known["head_files"] if f"{folder}/{file}" in there]
    unit.there += sum(there[f"{folder}/{file}"].size or 0 for file in mine)
    if len(mine) < len(known["head_files"]):
        raise LakeError(
            f"{compared.target}/{folder}: lacks files, and the head of {compared.source} has other bytes: delete the"
            " model's folder there, or restore it from the lake that it came from"
        )
