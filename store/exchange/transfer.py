"""What is selected, and the transfer that is planned of it: files side by side and checked, then records."""

import hashlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import zarr
from zarr.core.buffer.cpu import Buffer
from zarr.storage import MemoryStore

from ..core.errors import CorruptError, LakeError, check_limit
from ..core.files import explain_full_disk, hash_file, hash_json, human_bytes, json_bytes
from ..core.progress import bar
from ..core.schema import FORMAT_VERSION, PARTIAL, PULLED
from ..format.partial import Partial, cut_shard
from ..format.records import sealed
from ..format.zarr_groups import quiet_zarr
from ..format.zarr_metadata import check_array
from ..remote.folder import Folder
from ..remote.store import INDEX, Store, safe, side_by_side


@dataclass(frozen=True)
class Selection:
    """Which part of a lake to move; empty means all of it.

    `names` are models, pairs (of which `variants` picks), PAIR/ROLE or chains. `streams` are beginnings of streams' names.
    `sites` are variables of captures, `boundaries` numbers (with the blocks that end there), `prompts` prompt ids, `limit` the
    first so many: any of these makes copies of a part. Tables can be left out;
    models' own files go only on request, since their licences go with them.
    """

    names: tuple[str, ...] = ()
    variants: tuple[str, ...] = ()
    streams: tuple[str, ...] = ()
    sites: tuple[str, ...] = ()
    boundaries: tuple[int, ...] = ()
    prompts: tuple[str, ...] = ()
    limit: int | None = None
    tables: bool = True
    weights: bool = False

    def __post_init__(self) -> None:
        check_limit(self.limit)

    def stream(self, name: str) -> bool:
        """Whether a stream does."""
        return not self.streams or name.startswith(self.streams)

    @property
    def whole(self) -> bool:
        """Whether it is the whole lake."""
        return not (self.names or self.variants or self.streams)

    @property
    def cuts(self) -> bool:
        """Whether it asks for parts of captures."""
        return bool(self.sites or self.boundaries or self.prompts or self.limit)


@dataclass(frozen=True)
class Item:
    """A file to move: its name, bytes, its hash where one is recorded, and for a shard that is cut the places to keep."""

    name: str
    size: int
    sha256: str | None = None
    places: frozenset[int] | None = None


@dataclass
class Unit:
    """What belongs together: files to move, then records to write (name -> bytes) and names to take away, in this order."""

    kind: str
    name: str
    items: list[Item] = field(default_factory=list)
    records: dict[str, bytes] = field(default_factory=dict)
    drop: list[str] = field(default_factory=list)
    keep: dict[str, str] = field(default_factory=dict)  # files and folders that give way -> where they are kept
    there: int = 0  # bytes that the target has already
    partial: Partial | None = None
    manifest: dict[str, Any] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Bytes to move."""
        return sum(item.size for item in self.items) + sum(map(len, self.records.values()))


@dataclass
class Plan:
    """What a transfer will do."""

    source: Store
    target: Store
    units: list[Unit]
    notes: list[str]

    def __repr__(self) -> str:
        moved = ", ".join(f"{row['files']} files of {row['what']}" for row in self.rows() if row["files"])
        return f"Plan({self.source} to {self.target}: {human_bytes(self.bytes)}; {moved or 'nothing to move'})"

    @property
    def todo(self) -> list[Unit]:
        """Units with something to do."""
        return [unit for unit in self.units if unit.items or unit.records or unit.drop]

    @property
    def bytes(self) -> int:
        """Bytes to move."""
        return sum(unit.bytes for unit in self.units)

    def rows(self) -> list[dict[str, Any]]:
        """One line per kind: units, files and bytes to move, bytes there already."""
        found: list[dict[str, Any]] = []
        for kind in dict.fromkeys(unit.kind for unit in self.units):
            units = [unit for unit in self.units if unit.kind == kind]
            files = sum(len(unit.items) + len(unit.records) for unit in units)
            found.append(
                {
                    "what": kind,
                    "units": len(units),
                    "files": files,
                    "bytes": sum(unit.bytes for unit in units),
                    "there": sum(unit.there for unit in units),
                }
            )
        return found


IN_MEMORY = 16 << 20  # bytes of a file that is read once, to be hashed and sent


def move(plan: Plan) -> None:
    """Move what a plan says, with a progress bar; what was moved before an error stays and is not moved again.

    Raises CorruptError for a file that is not what its manifest says, LakeError for a full disk or a place out of reach.
    """
    with (
        explain_full_disk(f"writing to {plan.target}"),
        bar(f"{plan.source} to {plan.target}", plan.bytes, "bytes") as progress,
    ):
        for unit in plan.todo:
            with plan.target.together(unit.name):
                _move_unit(plan, unit, progress.advance)
        if any(unit.items or unit.records for unit in plan.todo) and plan.target.entry(INDEX):
            write_index(plan.target)


def note_source(plan: Plan) -> None:
    """Keep in a local lake where it was pulled from, so that messages about what a copy of a part lacks can name it."""
    if plan.target.local:
        plan.target.put(PULLED, json_bytes(sealed({"format_version": FORMAT_VERSION, "from": str(plan.source)})))


def _move_unit(plan: Plan, unit: Unit, advance: Callable[[int], None]) -> None:
    open_array = cache(lambda variable: _array(plan.source, f"{unit.name}/{variable}"))
    cuts: dict[str, dict[str, Any]] = {}

    def one(item: Item) -> None:
        if item.places is None:
            _move_file(plan.source, plan.target, item)
        else:
            name = item.name[len(unit.name) + 1 :]
            cuts[name] = _move_cut(plan, unit, item, open_array(name.partition("/c/")[0]))
        advance(item.size)

    for name, kept in unit.keep.items():
        _keep(plan.target, name, kept)
    side_by_side(one, unit.items)
    if unit.partial:
        files = {**unit.partial.files, **cuts}
        record = Partial(unit.partial.holds, files).record(unit.manifest["capture_sha256"])
        plan.target.put(f"{unit.name}/{PARTIAL}", json_bytes(record))
    for name, data in unit.records.items():
        plan.target.put(name, data)
        advance(len(data))
    for name in unit.drop:
        plan.target.delete(name)


def _keep(place: Store, name: str, kept: str) -> None:
    """Put a file or folder that gives way under another name, where it is found again."""
    with tempfile.TemporaryDirectory() as folder:
        for file in list(place.find(name)) or [name]:
            place.get(file, Path(folder) / "file")
            place.put(f"{kept}{file[len(name) :]}", Path(folder) / "file")
    place.delete(name)


def _move_file(source: Store, target: Store, item: Item) -> None:
    try:
        if isinstance(target, Folder):
            source.get(item.name, target.path(item.name), item.sha256, item.size or None)
        elif isinstance(source, Folder):
            target.put(item.name, _checked(source.path(item.name), item))
        else:
            with tempfile.TemporaryDirectory() as folder:
                source.get(item.name, Path(folder) / "file", item.sha256, item.size or None)
                target.put(item.name, Path(folder) / "file")
    except FileNotFoundError:
        raise LakeError(
            f"{source}/{item.name}: missing, though the lake records it; `actlake verify` tells what else is"
        ) from None


def _checked(file: Path, item: Item) -> bytes | Path:
    """What to send of a local file: its bytes when they are few, else its path; CorruptError unless it has its hash."""
    small = file.stat().st_size <= IN_MEMORY
    data = file.read_bytes() if small else b""
    if item.sha256:
        found = hashlib.sha256(data).hexdigest() if small else hash_file(file)
        if found != item.sha256:
            raise CorruptError(
                f"{file}: its sha256 is {found}, the manifest says {item.sha256}; restore the file or capture again"
            )
    return data if small else file


def _move_cut(plan: Plan, unit: Unit, item: Item, array: zarr.Array) -> dict[str, Any]:
    """Move the chosen layers of a shard; its new hash and bytes."""
    size = unit.manifest["files"][item.name[len(unit.name) + 1 :]]["bytes"]
    pieces = cut_shard(
        array,
        lambda start, stop: plan.source.read(item.name, start, stop),
        size,
        item.places or (),
        f"{plan.source}/{item.name}",
    )
    data = b"".join(pieces)
    plan.target.put(item.name, data)
    return {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


def _array(source: Store, folder: str) -> zarr.Array:
    """The metadata of an array, for how its shards are made."""
    name = f"{folder}/zarr.json"
    data = source.record(name) or b""
    check_array(data, f"{source}/{name}")
    with quiet_zarr():
        return zarr.open_array(MemoryStore({"zarr.json": Buffer.from_bytes(data)}), mode="r")


def write_index(place: Store) -> int:
    """Write files.json, which names every file of a lake for servers that do not list folders; returns how many.

    The mark of a small record is its hash, of anything else its bytes: those never change under their names.
    """
    found = {}
    for name, entry in place.find("").items():
        if any(part.startswith(".") for part in name.split("/")) or name == INDEX or not safe(name):
            continue
        mark = hashlib.sha256(place.read(name)).hexdigest()[:16] if name.endswith(".json") else str(entry.size)
        found[name] = [entry.size, mark]
    place.put(INDEX, json_bytes({"files": found, "files_sha256": hash_json(found)}))
    return len(found)
