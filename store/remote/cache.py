"""The files of a lake at a URL: small files are kept in a folder of this machine, as far as they were asked for."""

import json
import re
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..core.errors import REWORD, CorruptError, LakeError
from ..core.files import read_json, remove, try_lock, write_atomic, write_json
from ..core.progress import ERRORS, bar
from ..core.schema import MANIFEST, MARKER, PARTIAL, PROGRESS, TEMPLATE
from .files import Files, RemoteFile, T, is_shard
from .hashes import known_hash, user_cache
from .opening import open_store
from .store import LARGEST_RECORD, AccessError, Entry, safe, side_by_side, transfers

TAGS = ".origin.json"
AREAS = (
    "streams",
    "prompts",
    "models",
    "lenses",
    "directions",
    "statistics",
    "tables",
    "texts",
    "verdicts",
)  # listed whole, brought in part
FEW = 16 << 20  # bytes that are brought without a progress bar
# What says which captures, streams and models there are.
RECORD = re.compile(
    rf"{MARKER}|streams/[^/]+\.json|models/[^/]+/[^/]+\.json|captures/[^/]+/[^/]+/({MANIFEST}|{PARTIAL})"
)
HIDDEN = re.compile(r"(^|/)\.[^/]*\.(tmp|training)(/|$)")


class RemoteFiles(Files):
    """The files of a lake at a URL, as of the last `refresh`."""

    remote = True

    def __init__(self, url: str):
        self.store = open_store(url)
        mark = sha256(f"{self.store.url} {self.store.endpoint}".encode()).hexdigest()[:12]
        name = re.sub(r"[^A-Za-z0-9]+", "-", str(self.store)).strip("-")[-60:]
        self.root = user_cache() / f"{name}-{mark}"
        self.listed: dict[str, Entry] = {}
        self._tags: dict[str, str] = {}
        self._lock = threading.RLock()  # one thread at a time writes here

    @classmethod
    def open(cls, url: str, create: bool = False, marker: dict[str, Any] | None = None) -> "RemoteFiles":
        """The files of the lake at a URL, fresh; with `create` an empty place becomes a lake with this `marker`.

        LakeError when there is no lake, or no way to it.
        """
        files = cls(url)
        store, root = files.store, files.root
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LakeError(
                f"{root}: no place for what is read of {store} ({error.strerror}); name another with ACTLAKE_CACHE"
            ) from error
        store.refresh()
        if store.entry(MARKER) is None:
            if not create:
                raise LakeError(
                    f"no lake at {store} (no {MARKER}); `actlake push {store}` or `actlake capture PAIR --lake"
                    f" {store}` makes one"
                )
            if not store.empty():
                raise LakeError(f"lake {store}: the place is not empty and not a lake; name an empty or new one")
            store.put(MARKER, json.dumps(marker, indent=1, sort_keys=True).encode() + b"\n", new=True)
        REWORD[str(root)] = str(store)
        files.refresh()
        return files

    def __str__(self) -> str:
        return str(self.store)

    @property
    def address(self) -> str:
        """The URL."""
        return self.store.url

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    # --- reading --------------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """List what the lake holds and bring the records that say what captures, streams and models there are."""
        tags = self.root / TAGS
        self._tags = read_json(tags) if tags.exists() else {}
        self.store.refresh()
        found = transfers().map(self.store.find, AREAS)
        self.listed = {name: entry for area in found for name, entry in area.items()}
        self._list_captures()
        self._forget()
        self.listed[MARKER] = self.store.entry(MARKER) or Entry(None)
        self._bring(filter(RECORD.fullmatch, self.listed))

    def _list_captures(self) -> None:
        """Captures by folder: a listing of all their shards would take a lab's lake minutes."""
        models, _ = self.store.list("captures")
        groups = [folder for folders, _ in transfers().map(self.store.list, models) for folder in folders]
        groups = [group for group in groups if group.endswith(".zarr") and not Path(group).name.startswith(".")]
        found = set()
        for group, (_, files) in zip(groups, transfers().map(self.store.list, groups), strict=True):
            records = {name: entry for name, entry in files.items() if RECORD.fullmatch(name)}
            # A folder without either is what deletion left of a capture, or a capture that is only beginning.
            if records or self.store.entry(f"{group}/{PROGRESS}/{TEMPLATE}"):
                found.add(group)
            self.listed |= records
        for folder in (self.root / "captures").glob("*/[!.]*.zarr"):
            name = self._name(folder)
            unsealed = (folder / MANIFEST).exists() and f"{name}/{MANIFEST}" not in self.listed
            if name not in found or unsealed:
                shutil.rmtree(folder, ignore_errors=True)
        for group in found:
            (self.root / group).mkdir(parents=True, exist_ok=True)

    def _forget(self) -> None:
        """Take away what was brought and is not in the lake any more; what was made here and never sent stays."""
        gone = [name for name in self._tags if name.split("/")[0] in AREAS and name not in self.listed]
        for name in gone:
            (self.root / name).unlink(missing_ok=True)
            del self._tags[name]

    def bring(self, path: Path, pattern: str = "*") -> Path:
        """Make sure that the files at or below a path, with names of this pattern, are here; returns the path."""
        names = self.below(self._name(path))
        self._bring(name for name in names if fnmatchcase(name.rpartition("/")[2], pattern) and not is_shard(name))
        return path

    def _bring(self, names: Iterable[str], hashes: Mapping[str, str] | None = None) -> None:
        """Copy the listed files among `names` that are not here or have changed since; `hashes` are what they must have."""
        with self._lock:
            hashes = hashes or {}
            new = [name for name in names if name in self.listed and self._is_new(name, hashes.get(name))]
            if new:
                self._copy(new, hashes)

    def fetch(self, file: Path) -> Path:
        """Copy a file here unless it is; FileNotFoundError when the lake has none."""
        with self._lock:
            if not file.exists():
                self.store.get(self._name(file), file)
        return file

    def _copy(self, new: list[str], hashes: Mapping[str, str]) -> None:
        sizes = {name: self.listed[name].size or 0 for name in new}
        if large := [name for name in new if name.endswith(".json") and sizes[name] > LARGEST_RECORD]:
            raise CorruptError(
                f"{self.store}/{large[0]}: {sizes[large[0]]} bytes, expected a record of at most {LARGEST_RECORD}"
            )

        def get(name: str) -> int:
            self.store.get(name, self.root / name, hashes.get(name), self.listed[name].size)
            return sizes[name]

        if sum(sizes.values()) < FEW:
            side_by_side(get, new)
        else:
            with bar(f"fetch {self.store}", sum(sizes.values()), "bytes") as progress:
                side_by_side(lambda name: progress.advance(get(name)), new)
        self._note(new)

    def _is_new(self, name: str, sha256: str | None) -> bool:
        entry, file = self.listed[name], self.root / name
        if not file.exists():
            return True
        if name in self._tags:  # a server that tells no mark leaves records in doubt
            return self._tags[name] != _mark(entry) or (not entry.tag and name.endswith(".json"))
        if sha256:
            return known_hash(file) != sha256
        return name.endswith(".json")  # what was made here has the same content as there, records apart

    def _note(self, names: Iterable[str]) -> None:
        with self._lock:
            self._tags |= {name: _mark(self.listed[name]) for name in names}
            write_json(self.root / TAGS, self._tags)

    def below(self, name: str) -> list[str]:
        """Listed files at or below a name, without what is being written."""
        return [
            found
            for found in self.listed
            if (found == name or found.startswith(f"{name}/")) and not HIDDEN.search(found)
        ]

    def hash(self, file: Path, size: int) -> str:
        """SHA-256 (hex) of a remote file of so many bytes."""
        return self.store.hash(self._name(file), size)

    def map(self, action: Callable[[str], T], names: Iterable[str]) -> Iterator[T]:
        """What `action` makes of each name, in order, side by side."""
        return transfers().map(action, names)

    def blob(self, file: Path, size: int | None = None) -> Path | RemoteFile:
        """What to read a file from by ranges: its path when it is here, else its URL."""
        return file if file.is_file() else RemoteFile(self.store, self._name(file), size)

    # --- writing --------------------------------------------------------------------------------------------------

    def publish(self, *paths: Path) -> None:
        """Send files made here to the lake if it takes them; of one that can only be read they stay here."""
        if not self.store.writable:
            return
        files = [file for path in paths for file in (_in_order(path) if path.is_dir() else [path])]
        try:
            self._send(map(self._name, files))
        except AccessError as error:
            self.store.writable = False
            ERRORS.print(f"{error}: what is made of this lake stays in {self.root}", highlight=False, soft_wrap=True)

    def _send(self, names: Iterable[str]) -> None:
        """Send files made here to the lake, in this order; LakeError when it can only be read."""
        names = list(names)
        for name in names:
            self.store.put(name, self.root / name)
        self.listed |= {name: self.store.entry(name) or Entry(None) for name in names}
        self._note(names)

    def remove(self, path: Path) -> None:
        """Take away a file or folder, here and in a lake that can be written to."""
        remove(path)
        if self.store.writable:
            name = self._name(path)
            self.store.delete(name)
            self.listed = {
                found: entry
                for found, entry in self.listed.items()
                if found != name and not found.startswith(f"{name}/")
            }

    # --- captures under way ---------------------------------------------------------------------------------------

    @contextmanager
    def start(self, capture: Path) -> Iterator[None]:
        """Start on a capture under way: one process of this machine at a time, with what others recorded here."""
        if not self.store.writable:
            raise LakeError(f"{self}: can only be read; capture into a folder or a bucket")
        with try_lock(capture.with_name(f".{capture.name}.start.lock"), wait=True):
            self.renew(capture)
            yield

    def renew(self, capture: Path) -> None:
        """See a capture under way as the lake has it now: what other machines recorded is brought, what it lacks is gone."""
        folder = self._name(capture)
        there = self.store.find(folder)
        self.listed = {name: entry for name, entry in self.listed.items() if not name.startswith(f"{folder}/")} | there
        for file in (capture / PROGRESS).glob("*.json"):
            if self._name(file) not in there:
                file.unlink(missing_ok=True)
        self._bring([name for name in self.below(folder) if not is_shard(name)])

    def bring_capture(self, capture: Path, manifest: dict[str, Any] | None) -> None:
        """Make sure that the small files of a capture are here, checked against its manifest if it is sealed."""
        folder = self._name(capture)
        if not manifest:
            self.listed |= self.store.find(folder)
            self._bring([name for name in self.below(folder) if not is_shard(name)])
            return
        named = {f"{folder}/{name}": entry for name, entry in manifest["files"].items() if safe(name)}
        files = {name: entry for name, entry in named.items() if not is_shard(name)}
        # The hash is the mark: what is here of another capture that bore this name is brought anew.
        self.listed |= {name: Entry(entry["bytes"], entry["sha256"]) for name, entry in files.items()}
        self._bring(files, {name: entry["sha256"] for name, entry in files.items()})

    def write(self, file: Path, data: bytes) -> None:
        """Write a small file whole, in the lake first."""
        self.store.put(self._name(file), data)
        write_atomic(file, data)

    def write_shard(
        self, file: Path, pieces: Iterable[bytes | memoryview], hear: Callable[[bytes | memoryview], None]
    ) -> None:
        """Send a shard straight to where it will lie."""
        data = b"".join(pieces)
        hear(data)
        self.store.put(self._name(file), data)

    def move_in(self, made: Path, path: Path, last: str) -> bool:
        """Send the files of a folder made under another name, `last` at the end, and give it its own name here."""
        folder, end = self._name(path), made / last
        for file in made.rglob("*"):
            if file.is_file() and file != end:
                self.store.put(f"{folder}/{file.relative_to(made).as_posix()}", file)
        if not self.store.put(f"{folder}/{last}", end.read_bytes(), new=True):
            return False
        made.rename(path)
        return True

    def seal(self, capture: Path, manifest: bytes) -> bool:
        """Send what sealing has changed of a capture, and drop what was recorded on the way."""
        folder = self._name(capture)
        files = [
            file for file in capture.rglob("*") if file.is_file() and PROGRESS not in file.relative_to(capture).parts
        ]
        self._send(sorted(map(self._name, files)))
        mine = self.store.put(f"{folder}/{MANIFEST}", manifest, new=True)
        if not mine:
            self.store.get(f"{folder}/{MANIFEST}", capture / MANIFEST)
        self.store.delete(f"{folder}/{PROGRESS}")
        return mine


def _mark(entry: Entry) -> str:
    return entry.tag or str(entry.size)


def _in_order(folder: Path) -> list[Path]:
    """The files of a folder, last the manifest that makes them count."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return sorted(files, key=lambda file: (file == folder / MANIFEST, file))
