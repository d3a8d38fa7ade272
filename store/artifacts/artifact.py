"""Artifacts: what a lake holds is sealed, hashed and named by what determines it.

An artifact is a folder with files and, written last, record.json: `recipe` is all that determines the content (inputs by hash,
the version of the code that makes it), `key` the first 16 digits of the recipe's hash, `files` the hash and size of every file,
`record_sha256` the hash of all the rest. One writer, one reader and one check serve every kind; what is in a record or a
hashed file is vouched for, and there is nothing else.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import CorruptError, LakeError
from ..core.files import explain_full_disk, hash_file, hash_json, temporary_of, write_json
from ..core.schema import FORMAT_VERSION, RECORD
from ..format.paths import Layout
from ..format.records import REPAIRS, SEAL, read_record, sealed
from ..remote.files import Files
from ..remote.hashes import known_hash

KEY = 16  # digits


def key_of(recipe: Mapping[str, Any]) -> str:
    """The name of what a recipe makes."""
    return hash_json(recipe)[:KEY]


def files_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Hash and bytes of every file below a folder but its record, by name."""
    found = {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*")) if file.is_file()}
    return {
        name: {"sha256": hash_file(file), "bytes": file.stat().st_size}
        for name, file in found.items()
        if name != RECORD
    }


@contextmanager
def writing(layout: Layout, folder: Path, recipe: Mapping[str, Any], facts: dict[str, Any]) -> Iterator[Path]:
    """Write an artifact: the block fills the folder it is given, and `facts`; the artifact appears whole at its end.

    One that is there by then stays. What raises inside leaves nothing behind; a full disk is a LakeError.
    """

    def record(files: dict[str, Any]) -> dict[str, Any]:
        return {"recipe": dict(recipe), "key": key_of(recipe), **facts, "files": files}

    with making(layout, folder, folder / RECORD, record, (folder / RECORD).exists) as made:
        yield made


@contextmanager
def making(
    layout: Layout,
    folder: Path,
    marker: Path,
    record: Callable[[dict[str, Any]], dict[str, Any]],
    is_there: Callable[[], bool],
) -> Iterator[Path]:
    """Make a folder that counts once `marker`, in it or beside it, has the sealed `record` of its files; else as `writing`."""
    temporary = temporary_of(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with explain_full_disk(f"writing {folder}"):
            temporary.mkdir(exist_ok=True)
            yield temporary
            about = sealed({"format_version": FORMAT_VERSION, **record(files_of(temporary))})
            inside = marker.parent == folder
            if inside:
                write_json(temporary / marker.name, about)
            with layout.locked():
                if not is_there():  # else another process was faster
                    shutil.rmtree(folder, ignore_errors=True)  # what a kill left before its record
                    temporary.rename(folder)
                    if not inside:
                        write_json(marker, about)
            layout.files.publish(folder, *([] if inside else [marker]))
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@dataclass(frozen=True)
class Artifact:
    """A sealed thing of a lake."""

    lake: Files
    kind: str
    folder: Path
    record: dict[str, Any]

    @property
    def sha256(self) -> str:
        """The hash that stands for all of it."""
        return str(self.record[SEAL])

    def check(self) -> None:
        """Raise CorruptError unless every file is there, with its bytes, and no other; untouched files are not read again."""
        problem = next(problems(self.folder, self.record["files"], self.kind, known_hash), None)
        if problem:
            raise CorruptError(problem)


def read(lake: Files, folder: Path, kind: str) -> Artifact:
    """An artifact, its files brought here and its record checked; LakeError when it is not there, CorruptError on damage."""
    return read_sealed(lake, lake.bring(folder), kind)


def read_sealed(lake: Files, folder: Path, kind: str) -> Artifact:
    """An artifact whose record is here, its record checked, its files left where they are."""
    if not (folder / RECORD).is_file():
        raise LakeError(f"{folder}: missing", repair=REPAIRS[kind])
    record = read_record(folder / RECORD, kind)
    if (key := key_of(record["recipe"])) != record["key"]:
        raise CorruptError(
            f"{folder / RECORD}: key: found {record['key']}, its recipe makes {key}", repair=REPAIRS[kind]
        )
    return Artifact(lake, kind, folder, record)


def problems(folder: Path, files: Mapping[str, Mapping[str, Any]], kind: str, hashed: Any = hash_file) -> Iterator[str]:
    """What is wrong with the files of an artifact: a line each with the file, what was expected and found, and what mends it."""
    there = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    for name, entry in files.items():
        file = folder / name
        if name not in there:
            yield f"{file}: missing, expected {entry['bytes']} bytes; {REPAIRS[kind]}"
        elif (size := file.stat().st_size) != entry["bytes"]:
            yield f"{file}: {size} bytes, expected {entry['bytes']}; {REPAIRS[kind]}"
        elif (found := hashed(file)) != entry["sha256"]:
            yield f"{file}: not the bytes that were written (found {found}, expected {entry['sha256']}); {REPAIRS[kind]}"
    for name in sorted(there - files.keys() - {RECORD}):
        yield f"{folder / name}: not in the record of what is there; {REPAIRS[kind]}"
