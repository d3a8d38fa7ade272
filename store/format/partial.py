"""Copies of a capture that lack a part of it: partial.json says what they hold, and shards can be cut to some layers.

A copy keeps the capture's manifest. Whole shards are checked by its hashes; a cut shard holds the chosen layers' chunks as they
are, each with its checksum, and has a hash of its own in partial.json.
"""

import shlex
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from ..core.errors import CorruptError, LakeError
from ..core.schema import FORMAT_VERSION, PARTIAL, PULLED, VARIABLES
from .chunks import CHECKSUM, check_sum, checksum, damaged
from .records import REPAIRS, read_record, sealed
from .shards import ABSENT, Grid, check_places

PLURAL = {"boundary": "boundaries", "layer": "layers", "lens_layer": "layers"}


@dataclass(frozen=True)
class Held:
    """What a copy has of one variable: shard rows, and places along its axis of layers; None stands for all."""

    rows: frozenset[int] | None = None
    places: frozenset[int] | None = None

    def __or__(self, other: "Held") -> "Held":
        """The smallest box that holds both."""
        return Held(_either(self.rows, other.rows), _either(self.places, other.places))

    def record(self) -> dict[str, Any]:
        """For partial.json."""
        return {name: None if part is None else sorted(part) for name, part in vars(self).items()}


def _either(a: frozenset[int] | None, b: frozenset[int] | None) -> frozenset[int] | None:
    return None if a is None or b is None else a | b


@dataclass(frozen=True)
class Partial:
    """What a copy holds, by activation variable, and the hashes of shards that were cut."""

    holds: Mapping[str, Held]
    files: Mapping[str, Mapping[str, Any]]

    def has(self, file: str) -> bool:
        """Whether the copy holds a file of the manifest, whole or cut."""
        variable, _, rest = file.partition("/c/")
        if variable not in VARIABLES or not VARIABLES[variable].activation or not rest:
            return True
        held, row = self.holds.get(variable), rest.split("/")[0]
        return held is not None and (held.rows is None or (row.isdecimal() and int(row) in held.rows))

    def lacks(self, manifest: Mapping[str, Any]) -> str:
        """What is missing, in words."""
        words = []
        for name in manifest["sizes"]:
            held = self.holds.get(name)
            if held is None:
                words.append(name)
                continue
            if held.rows is not None:
                words.append(f"{name} of {manifest['n_shards'] - len(held.rows)} of {manifest['n_shards']} shard rows")
            if held.places is not None:
                axis, count = VARIABLES[name].dims[1], manifest["sizes"][name][0]
                words.append(f"{name} at {count - len(held.places)} of {count} {PLURAL[axis]}")
        return ", ".join(words)

    def record(self, capture_sha256: str) -> dict[str, Any]:
        """partial.json."""
        holds = {name: held.record() for name, held in self.holds.items()}
        named = {"format_version": FORMAT_VERSION, "capture_sha256": capture_sha256}
        return sealed({**named, "holds": holds, "files": dict(self.files)})


def pulled_from(root: Path) -> str:
    """Where a lake was last pulled from, without credentials; empty when it never was."""
    place = ""
    if (file := root / PULLED).is_file():
        with suppress(LakeError):  # only a hint: `actlake verify` says what is wrong with it
            place = str(read_record(file, "pulled")["from"])
    return place if place.isprintable() else ""


def pull_of(root: Path) -> str:
    """The command that brings what a lake lacks, with its source as far as that is known."""
    return f"`actlake pull {shlex.quote(pulled_from(root)) if pulled_from(root) else 'URL'}`"


def read_partial(path: Path, manifest: Mapping[str, Any]) -> Partial | None:
    """What the copy of a capture at `path` holds, or None for a whole one; LakeError for a damaged record, or another's."""
    file = path / PARTIAL
    return parse_partial(read_record(file, "partial"), manifest, file) if file.exists() else None


def parse_partial(record: Mapping[str, Any], manifest: Mapping[str, Any], where: object) -> Partial:
    """A record of kind partial; CorruptError, with `where` it stands, when it is not about the capture of this manifest."""
    holds = {
        name: Held(*(None if held[axis] is None else frozenset(held[axis]) for axis in ("rows", "places")))
        for name, held in record["holds"].items()
    }
    wrong = [f"files: {name!r}" for name in record["files"] if name not in manifest["files"]]
    wrong += [f"holds: {name}" for name, held in holds.items() if not _within(held, manifest, name)]
    if record["capture_sha256"] != manifest["capture_sha256"]:
        wrong = [f"capture_sha256: found {record['capture_sha256']}, expected {manifest['capture_sha256']}"]
    if wrong:
        raise CorruptError(
            f"{where}: {wrong[0]}: not of the capture that the manifest describes", repair=REPAIRS["partial"]
        )
    return Partial(holds, record["files"])


def _within(held: Held, manifest: Mapping[str, Any], name: str) -> bool:
    size = manifest["sizes"].get(name)
    return size is not None and all(
        part is None or max(part, default=-1) < count
        for part, count in ((held.rows, manifest["n_shards"]), (held.places, [*size, 0][0]))
    )


def cut_shard(
    array: zarr.Array, read: Callable[[int, int], bytes], size: int, places: Iterable[int], where: str
) -> list[bytes]:
    """A shard of `array` with nothing but the chunks at these places of its second axis, in pieces.

    `read(start, stop)` reads the whole one, of `size` bytes. CorruptError when its index is damaged, LakeError for an array of
    another layout than docs/FORMAT.md has.
    """
    grid = Grid.of(array)
    if grid is None or len(grid.counts) < 3:
        raise LakeError(f"{where}: shards of {array.basename} can't be cut to layers; pull it whole")
    length = prod(grid.counts) * 16 + CHECKSUM
    table = np.frombuffer(read(max(size - length, 0), size), dtype=np.uint8)
    try:
        if len(table) != length:
            raise ValueError(f"found {size} bytes, expected an index of {length} at the end")
        check_sum(table, "its index")
        old = table[:-CHECKSUM].view("<u8").reshape(*grid.counts, 2)
        check_places(old, size - length)
    except ValueError as error:
        raise damaged(where, error) from error
    new = np.full_like(old, ABSENT)
    spans, at = list[tuple[int, int]](), 0
    for place in sorted(places):
        for chunk, *rest in np.ndindex(grid.counts[0], *grid.counts[2:]):
            spot = (chunk, place, *rest)
            start, count = old[spot].tolist()
            if start == ABSENT:
                continue
            new[spot] = at, count
            at += count
            if spans and spans[-1][1] == start:
                spans[-1] = (spans[-1][0], start + count)
            else:
                spans.append((start, start + count))
    pieces = [read(start, stop) for start, stop in spans]
    index = new.tobytes()
    return [*pieces, index + checksum(index)]
