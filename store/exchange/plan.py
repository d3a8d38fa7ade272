"""What has to move between two places of a lake, or of a part of it: planned here, moved by exchange.transfer.

A lake is moved unit by unit: a capture, a model, a table ... The files of a unit go first, side by side, and last, one after the
other, those that make it count (manifests, records), so that whoever stops in between leaves nothing half there; the next run
of the same command goes on with what is missing.
"""

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..captures.manifest import check_list, check_whole
from ..core.catalog import Catalog, load_catalog
from ..core.errors import KEEPER, CorruptError, LakeError
from ..core.files import json_bytes, parse_json
from ..core.schema import MANIFEST, MARKER, PARTIAL, VARIABLES, VARIANTS
from ..core.yaml_file import hint, listed
from ..format.parquet import first_line
from ..format.partial import Held, Partial, parse_partial
from ..format.paths import MEND, Layout, check_lake, check_links
from ..format.records import REPAIRS, SEAL, parse_record, sealed
from ..remote.files import RangeFile, is_shard
from ..remote.opening import open_store
from ..remote.store import Entry, Store, transfers
from ..tables.files import FOREIGN
from ..tables.names import models_named, models_of, stored_pairs
from .card import check_hub
from .conflicts import Compared, model_unit, other_stream
from .transfer import Item, Plan, Selection, Unit


def origin_of(place: Layout | str) -> Store:
    """The files of an open lake, or of a URL or folder that may become one."""
    if isinstance(place, Layout):
        return place.files.store
    folder = Path(place).expanduser().absolute() if "://" not in place else None
    if folder and folder.is_dir():
        check_links(folder)
    origin = open_store(folder or place)
    origin.refresh()
    return origin


# --- planning --------------------------------------------------------------------------------------------------------


class Planner:
    """Compares two places and lists what a transfer has to move."""

    def __init__(
        self,
        source: Store,
        target: Store,
        selection: Selection,
        check: bool = False,
        catalog: Catalog | None = None,
        take: str = "",
    ):
        """`check` reads what the target has and compares hashes; else a file of the right size counts as there. `catalog`
        says which models names stand for, beside the source. `take`: whose wins where the lakes have other content under one
        name, `source` or `target`; empty refuses that."""
        self._catalog, self._wanted = catalog, set[str]()
        self.source, self.target, self.selection, self.check = source, target, selection, check
        self.compared = Compared(source, target, check, take)
        self.notes: list[str] = []

    def plan(self) -> Plan:
        """All units, captures last but for what was made of them."""
        marker = self.source.record(MARKER)
        if marker is None:
            raise LakeError(f"no lake at {self.source} (no {MARKER})")
        _check_marker(marker, f"{self.source}/{MARKER}")
        there = self.target.record(MARKER)
        start = Unit("lake", MARKER)
        if there is None:
            if not self.target.empty():
                raise LakeError(f"{self.target}: the place is not empty and not a lake; name an empty or new one")
            start.records[MARKER] = marker
        self._find_models()
        captures = self._captures()
        streams = {unit.manifest["stream"] for unit in captures}
        made = self._made() if self.selection.tables else []
        units = [start, *self._prompts(), *self._streams(streams), *self._models(captures), *captures, *made]
        self.compared.refuse()
        if self.target.scheme == "hf":
            check_hub(self.source, self.target, units)
        return Plan(self.source, self.target, units, [*self.notes, *self.compared.notes()])

    def _find_models(self) -> None:
        """Turn names into models; LakeError for one that the source has no captures of."""
        there = {folder.split("/")[1] for folder in self.source.list("captures")[0]}
        catalog, variants = self._catalog or load_catalog(), self.selection.variants or VARIANTS
        pairs = stored_pairs(catalog, there)
        self._wanted = there
        if not (self.selection.names or self.selection.variants):
            return
        try:
            asked = models_named(self.selection.names or list(pairs), catalog, there, variants)
        except LakeError as error:
            raise LakeError(f"{self.source}: {error}") from error
        self._wanted = {one.model for one in asked}
        for name in self.selection.names:
            lacking = [one.model for one in models_named([name], catalog, there, variants) if one.model not in there]
            if lacking and name in catalog.chains:
                self.notes.append(f"chain {name}: no captures of {listed(lacking)} in {self.source}")
            if not there & {one.model for one in models_named([name], catalog, there, variants)}:
                have = f"{listed(pairs)} (models {listed(sorted(there))})"
                raise LakeError(f"{self.source}: no captures of {name!r}; it has {have}{hint(name, {*pairs, *there})}")

    def _captures(self) -> list[Unit]:
        groups = [
            group
            for folder in self.source.list("captures")[0]
            if folder.split("/")[1] in self._wanted
            for group in self.source.list(folder)[0]
            if group.endswith(".zarr")
            and not Path(group).name.startswith(".")
            and self.selection.stream(Path(group).stem)
        ]
        found = [unit for unit in transfers().map(self._capture, groups) if unit]
        if (self.selection.streams or self.selection.names or self.selection.cuts) and not found:
            raise LakeError(f"{self.source}: no such sealed capture", repair="`actlake ls` shows what there is")
        return found

    def _capture(self, folder: str) -> Unit | None:
        data = self.source.record(f"{folder}/{MANIFEST}")
        if data is None:
            self.notes.append(f"{folder}: not sealed, left out")
            return None
        manifest = parse_record(data, "manifest", where := f"{self.source}/{folder}/{MANIFEST}")
        check_whole(manifest, where)
        check_list(manifest, where)
        unit = Unit("captures", folder, manifest=manifest)
        there = self._same_capture(unit, manifest)
        if there is None:
            return unit
        have = self._partial(self.target, folder, manifest) if there else None
        source = self._partial(self.source, folder, manifest)
        if there and have is None and not self.check:
            unit.there = manifest["bytes"]
            return unit
        if source and self.selection.cuts:
            raise LakeError(
                f"{self.source}/{folder}: is itself a copy of a part; move it as it is, or from the whole capture"
            )
        wanted = self._holds(folder, manifest) if self.selection.cuts else source.holds if source else None
        if wanted is not None and have is not None:  # what a copy has it keeps
            both = {name: wanted[name] | have.holds[name] for name in wanted.keys() & have.holds.keys()}
            wanted = {**have.holds, **wanted, **both}
        if wanted is not None and there and have is None:
            wanted = None  # the target has all of it; only damage is looked for
        unit.partial = Partial(wanted, source.files if source else {}) if wanted is not None else None
        self._fill(unit, manifest, source, have)
        if not there:
            unit.records[f"{folder}/{MANIFEST}"] = data
        elif have and unit.partial is None:
            unit.drop.append(f"{folder}/{PARTIAL}")
        return unit

    def _partial(self, place: Store, folder: str, manifest: dict[str, Any]) -> Partial | None:
        """What a copy of a capture holds, None when it is a whole one."""
        data, where = place.record(f"{folder}/{PARTIAL}"), f"{place}/{folder}/{PARTIAL}"
        return None if data is None else parse_partial(parse_record(data, "partial", where), manifest, where)

    def _same_capture(self, unit: Unit, manifest: dict[str, Any]) -> bool | None:
        """Whether the target has this capture sealed; None when it has another one of its name, which stays."""
        known = self.compared.known(f"{unit.name}/{MANIFEST}", "manifest")
        if known is None:
            return False
        found, sha256 = known[SEAL], manifest[SEAL]
        if found == sha256:
            return True
        words = f"another capture has this name there (sha256 {found[:12]}, here {sha256[:12]})"
        return False if self.compared.differs(unit, unit.name, words, found) else None

    def _fill(self, unit: Unit, manifest: dict[str, Any], source: Partial | None, have: Partial | None) -> None:
        """The files of a capture that the target lacks."""
        there = {} if unit.name in unit.keep else self.target.find(unit.name)
        files = {**manifest["files"], **(source.files if source else {})}
        for file, entry in files.items():
            if source and not source.has(file):
                if unit.partial is None:
                    raise LakeError(f"{self.source}/{unit.name}: lacks {file}")
                continue
            held = unit.partial.holds.get(file.partition("/c/")[0]) if unit.partial else None
            shard = is_shard(f"{unit.name}/{file}")
            if unit.partial and shard and not unit.partial.has(file):
                continue
            places = held.places if held and shard and source is None else None
            item = Item(f"{unit.name}/{file}", entry["bytes"], entry["sha256"], places)
            was = have.holds.get(file.partition("/c/")[0]) if have else None
            known = have.files.get(file, entry) if have and places is not None else entry
            same = places is None or (was is not None and was.places == places)
            if places is not None:
                item = Item(item.name, self._cut_size(item, manifest, places), None, places)
            if same and self.compared.is_there(item.name, known, there.get(item.name)):
                unit.there += known["bytes"]
                if places is not None and have and unit.partial:
                    unit.partial = Partial(unit.partial.holds, {**unit.partial.files, file: known})
            else:
                unit.items.append(item)

    @staticmethod
    def _cut_size(item: Item, manifest: Mapping[str, Any], places: frozenset[int]) -> int:
        """About how many bytes of a shard some layers take."""
        variable = item.name.split(".zarr/", 1)[1].partition("/c/")[0]
        return item.size * len(places) // manifest["sizes"][variable][0]

    def _holds(self, folder: str, manifest: dict[str, Any]) -> dict[str, Held]:
        """What a copy of the asked part holds of each variable."""
        sizes, selection = manifest["sizes"], self.selection
        if wrong := [site for site in selection.sites if site not in sizes]:
            raise LakeError(f"{self.source}/{folder}: has no {wrong[0]}; it has {', '.join(sizes)}")
        if wrong_at := [b for b in selection.boundaries if b not in manifest["boundaries"]]:
            raise LakeError(
                f"{self.source}/{folder}: has no boundary {wrong_at[0]}; it has {', '.join(map(str, manifest['boundaries']))}"
            )
        rows = self._rows(manifest) if selection.prompts or selection.limit else None
        found = {}
        for name in selection.sites or sizes:
            places, axis = None, VARIABLES[name].dims[1:2] if name in VARIABLES else ()
            if selection.boundaries and axis == ("boundary",):
                places = frozenset(manifest["boundaries"].index(b) for b in selection.boundaries)
            elif selection.boundaries and axis == ("layer",):
                places = frozenset(
                    manifest["layers"].index(b - 1) for b in selection.boundaries if b - 1 in manifest["layers"]
                )
            found[name] = Held(rows, places)
        return {name: held for name, held in found.items() if held.places != frozenset()}

    def _rows(self, manifest: dict[str, Any]) -> frozenset[int]:
        """Shard rows that hold tokens of the asked prompts."""
        file = f"streams/{manifest['stream']}.parquet"
        try:
            table = pq.read_table(io.BytesIO(self.source.read(file)), columns=["prompt", "prompt_id"])
            ids, prompt = table["prompt_id"].cast(pa.string()).to_pylist(), table["prompt"].cast(pa.int64()).to_pylist()
        except FileNotFoundError:
            raise LakeError(f"{self.source}/{file}: missing; a capture is on it", repair=REPAIRS["stream"]) from None
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            raise CorruptError(
                f"{self.source}/{file}: can't be read ({first_line(error)})", repair=REPAIRS["stream"]
            ) from error
        wanted = set(self.selection.prompts)
        if lost := wanted - set(ids):
            raise LakeError(f"{self.source}/{file}: has no prompt {min(lost)!r}")
        rows = set()
        for token, (place, name) in enumerate(zip(prompt, ids, strict=True)):
            if name in wanted or (self.selection.limit and place < self.selection.limit):
                rows.add(token // manifest["shard_tokens"])
        return frozenset(rows)

    # --- everything but captures ----------------------------------------------------------------------------------

    def _prompts(self) -> Iterator[Unit]:
        if self.selection.whole:
            yield from self.compared.units("prompts", lambda name: True)

    def _streams(self, captured: set[str]) -> Iterator[Unit]:
        """Token files of the captures' streams, and the records of all names that their content goes by."""
        there, found = self.target.find("streams"), self.source.find("streams")
        for name in (name for name in found if name.endswith(".json")):
            data = self.source.record(name) or b""
            record = parse_record(data, "stream", f"{self.source}/{name}")
            if not self.selection.whole and record["same_as"] not in captured:
                continue
            unit = Unit("streams", name)
            known = self.compared.known(name, "stream") if name in there else None
            if known and (words := other_stream(self.source, self.target, record, known)):
                both = [one for one in (name, f"streams/{record['name']}.parquet") if one in there]
                if not self.compared.differs(unit, name, words, known[SEAL], tuple(both)):
                    continue
                known = None
            before = known
            own = record["same_as"] == record["name"] and not (known and known["same_as"] != known["name"])
            if own and not self._has_tokens(unit, record, known, found, there):
                known = known and {**known, "parquet_sha256": record.get("parquet_sha256")}
            if known:  # equal tokens in another writer's bytes are the same stream
                data = json_bytes(sealed({**known, "keys": sorted({*known["keys"], *record["keys"]})}))
            if not before or json_bytes(before) != data:
                unit.records[name] = data
            yield unit

    def _has_tokens(
        self,
        unit: Unit,
        record: dict[str, Any],
        known: dict[str, Any] | None,
        found: dict[str, Entry],
        there: dict[str, Entry],
    ) -> bool:
        """Whether the target has a stream's token file, as its own record (`known`) says; else it is to move."""
        tokens = f"streams/{record['name']}.parquet"
        if tokens not in found:
            raise LakeError(f"{self.source}/{tokens}: missing, though it is recorded; restore it")
        size = found[tokens].size or 0
        mine = (
            {"sha256": known.get("parquet_sha256"), "bytes": (there.get(tokens) or found[tokens]).size} if known else {}
        )
        if known and self.compared.is_there(tokens, mine, there.get(tokens)):
            unit.there += size
            return True
        unit.items.append(Item(tokens, size, record.get("parquet_sha256")))
        return False

    def _models(self, captures: list[Unit]) -> Iterator[Unit]:
        wanted = {unit.name.split("/")[1] for unit in captures}
        for name in self.source.find("models"):
            if name.endswith("/model.json") and (self.selection.whole or name.split("/")[1] in wanted):
                yield model_unit(self.compared, name, self.selection.weights, self.notes)

    def _made(self) -> Iterator[Unit]:
        """What was made of captures: tables, lenses, directions, statistics, texts, verdicts."""
        yield from self.compared.units("tables", lambda name: self.selection.whole or self._is_about(name))
        for area in ("lenses", "directions", "statistics", "texts", "verdicts"):
            yield from self.compared.units(area, self._is_of_model)

    def _is_of_model(self, name: str) -> bool:
        area, folder, *_ = name.split("/")
        if self.selection.whole or area == "verdicts":
            return self.selection.whole
        return bool(self._wanted & {folder, *folder.split("--")})

    def _is_about(self, name: str) -> bool:
        """Whether a table is about models and streams that were asked for, by the recipe in its metadata."""
        with RangeFile(self.source, name, (self.source.entry(name) or Entry(0)).size or 0) as file:
            try:
                recipe = parse_json((pq.read_schema(file).metadata or {}).get(b"actlake", b"{}"))
                if not isinstance(recipe, dict):
                    raise ValueError("its recipe is no object")
            except (ValueError, OSError) as error:
                words = f"{self.source}/{name}: can't be read as a table ({first_line(error)})"
                raise CorruptError(words, repair="delete it" if self.source.local else KEEPER) from error
        streams = [str(recipe[key]) for key in ("stream", "stream_pt") if key in recipe]
        by_variant = recipe.get("models")
        models = {*(by_variant.values() if isinstance(by_variant, dict) else ()), recipe.get("model")}
        if isinstance(found := recipe.get(FOREIGN), dict):
            models |= {model for one in found.get("captures", ()) for model in models_of(one)}
        return bool(self._wanted & models) and (not streams or any(map(self.selection.stream, streams)))


def _check_marker(data: bytes, where: str) -> None:
    try:
        check_lake(parse_json(data), where)
    except ValueError as error:
        raise CorruptError(f"{where}: not valid JSON ({error}); {MEND}") from None
