"""What of a model is to move: its record, head, vocabulary, and on request its own files."""

from collections.abc import Mapping
from typing import Any

from ..artifacts.vocab import FILE as VOCAB
from ..artifacts.vocab import with_vocab
from ..core.errors import LakeError
from ..core.files import json_bytes
from ..format.records import parse_record
from ..remote.store import Entry
from .conflicts import Compared
from .selection import Unit


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
