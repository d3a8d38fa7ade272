"""Prompt sets that were brought into a lake: prompts/NAME/ is an artifact whose one file is the set in its canonical form."""

from hashlib import sha256
from pathlib import Path
from typing import Any

from ..core.errors import CorruptError
from ..core.files import write_atomic
from ..core.schema import RECORD
from ..format.paths import Layout
from ..format.records import REPAIRS
from ..format.rules import is_name
from ..remote.files import Files
from .artifact import Artifact, read, writing

FILE = "prompts.jsonl"


def write_prompts(layout: Layout, name: str, data: bytes) -> Path:
    """Keep a set, given as its canonical file; returns where that is. A set that has the name already stays."""
    folder = layout.prompts / name
    recipe: dict[str, Any] = {"prompts": name, "content_sha256": sha256(data).hexdigest()}
    with writing(layout, folder, recipe, {}) as made:
        write_atomic(made / FILE, data)
    return folder / FILE


def stored_prompts(layout: Layout, name: str) -> Path | None:
    """The file of a set that the lake keeps, or None; CorruptError when it is not what was kept."""
    if not is_name(name) or not ((folder := layout.prompts / name) / RECORD).is_file():
        return None
    read_set(layout.files, folder).check()
    return folder / FILE


def read_set(lake: Files, folder: Path) -> Artifact:
    """A set with its record checked; CorruptError where that is another set's."""
    found = read(lake, folder, "prompts")
    if (name := found.record["recipe"]["prompts"]) != folder.name:
        raise CorruptError(f"{folder / RECORD}: the record of {name}; {REPAIRS['prompts']}")
    kept, said = found.record["files"].get(FILE, {}).get("sha256"), found.record["recipe"]["content_sha256"]
    if kept != said:
        raise CorruptError(f"{folder / FILE}: recorded as {kept}, the recipe says {said}; {REPAIRS['prompts']}")
    return found
