"""What is to move between two places of a lake: a selection, and the plan that is made of it (exchange.plan)."""

from dataclasses import dataclass, field
from typing import Any

from ..format.partial import Partial
from ..remote.store import Store


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
