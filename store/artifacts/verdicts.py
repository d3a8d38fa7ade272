"""What LLM judges answered, kept in a lake in small files that are written once: nothing is asked twice."""

from pathlib import Path
from typing import Any

from ..core.errors import CorruptError, LakeError
from ..core.files import canonical_json, explain_full_disk, hash_json, parse_json, write_atomic
from ..format.records import LARGEST
from ..remote.files import HERE, Files

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
