"""A remote lake on this machine: a folder that holds its small files, and brings the others when they are asked for.

Everything else in the store works on folders. What a command reads of a remote lake is brought into its mirror first (hashes
checked where they are recorded); shards of captures stay where they are and are read by byte range. What it writes appears in
the mirror and is published from there, except shards, which go straight to the lake; of a lake that can only be read, tables
made here stay in the mirror, for the next command.
"""

import json
import os
import re
import shlex
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

from ..core.errors import KEEPER, REWORD, CorruptError, LakeError
from ..core.files import hash_file, read_json, try_lock, write_atomic, write_json
from ..core.progress import ERRORS, bar
from ..core.schema import MANIFEST, MARKER, PARTIAL, PROGRESS, TEMPLATE, VARIABLES
from .opening import open_store
from .store import LARGEST_RECORD, AccessError, Entry, Store, safe, side_by_side, transfers

TAGS = ".origin.json"
AREAS = ("streams", "prompts", "models", "probes", "directions", "tables", "outputs")  # listed whole, brought in part
FEW = 16 << 20  # bytes that are brought without a progress bar
# What says which captures, streams and models there are.
RECORD = re.compile(
    rf"{MARKER}|streams/[^/]+\.json|models/[^/]+/[^/]+/[^/]+\.json|captures/[^/]+/[^/]+/[^/]+/({MANIFEST}|{PARTIAL})"
)
HIDDEN = re.compile(r"(^|/)\.[^/]*\.(tmp|training)(/|$)")
SHARD = re.compile(r"captures/[^/]+/[^/]+/[^/]+\.zarr/([^/]+)/c/.+")
T = TypeVar("T")
_open: dict[Path, "Mirror"] = {}


def cache_folder() -> Path:
    """Where mirrors lie: $ACTLAKE_CACHE, else actlake/ in the user's cache folder."""
    if here := os.environ.get("ACTLAKE_CACHE"):
        return Path(here).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "actlake"


def is_shard(name: str) -> bool:
    """Whether a file of a lake is a shard of activations, which mirrors leave where it is."""
    match = SHARD.fullmatch(name)
    return bool(match and match[1] in VARIABLES and VARIABLES[match[1]].activation)


class Mirror:
    """The mirror of one remote lake in `root`, as of the last `refresh`."""

    def __init__(self, url: str):
        self.origin = open_store(url)
        mark = sha256(f"{self.origin.url} {self.origin.endpoint}".encode()).hexdigest()[:12]
        name = re.sub(r"[^A-Za-z0-9]+", "-", str(self.origin)).strip("-")[-60:]
        self.root = cache_folder() / f"{name}-{mark}"
        self.listed: dict[str, Entry] = {}
        self._tags: dict[str, str] = {}
        self._lock = threading.RLock()  # one thread at a time writes here

    def refresh(self) -> None:
        """List what the lake holds and bring the records that say what captures, streams and models there are."""
        tags = self.root / TAGS
        self._tags = read_json(tags) if tags.exists() else {}
        self.origin.refresh()
        found = transfers().map(self.origin.find, AREAS)
        self.listed = {name: entry for area in found for name, entry in area.items()}
        self._list_captures()
        self._forget()
        self.listed[MARKER] = self.origin.entry(MARKER) or Entry(None)
        self.bring(filter(RECORD.fullmatch, self.listed))

    def _list_captures(self) -> None:
        """Captures by folder: a listing of all their shards would take a lab's lake minutes."""
        pairs, _ = self.origin.list("captures")
        variants = [folder for folders, _ in transfers().map(self.origin.list, pairs) for folder in folders]
        groups = [folder for folders, _ in transfers().map(self.origin.list, variants) for folder in folders]
        groups = [group for group in groups if group.endswith(".zarr") and not Path(group).name.startswith(".")]
        found = set()
        for group, (_, files) in zip(groups, transfers().map(self.origin.list, groups), strict=True):
            records = {name: entry for name, entry in files.items() if RECORD.fullmatch(name)}
            # A folder without either is what deletion left of a capture, or a capture that is only beginning.
            if records or self.origin.entry(f"{group}/{PROGRESS}/{TEMPLATE}"):
                found.add(group)
            self.listed |= records
        for folder in (self.root / "captures").glob("*/*/[!.]*.zarr"):
            name = folder.relative_to(self.root).as_posix()
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

    def bring(self, names: Iterable[str], hashes: Mapping[str, str] | None = None) -> None:
        """Copy the listed files among `names` that are not here or have changed since; `hashes` are what they must have."""
        with self._lock:
            hashes = hashes or {}
            new = [name for name in names if name in self.listed and self._is_new(name, hashes.get(name))]
            if new:
                self._bring(new, hashes)

    def fetch(self, name: str) -> None:
        """Copy a file here unless it is; FileNotFoundError when the lake has none."""
        with self._lock:
            if not (self.root / name).exists():
                self.origin.get(name, self.root / name)

    def _bring(self, new: list[str], hashes: Mapping[str, str]) -> None:
        sizes = {name: self.listed[name].size or 0 for name in new}
        if large := [name for name in new if name.endswith(".json") and sizes[name] > LARGEST_RECORD]:
            raise CorruptError(
                f"{self.origin}/{large[0]}: {sizes[large[0]]} bytes, expected a record of at most {LARGEST_RECORD}"
            )

        def get(name: str) -> int:
            self.origin.get(name, self.root / name, hashes.get(name), self.listed[name].size)
            return sizes[name]

        if sum(sizes.values()) < FEW:
            side_by_side(get, new)
        else:
            with bar(f"fetch {self.origin}", sum(sizes.values()), "bytes") as progress:
                side_by_side(lambda name: progress.advance(get(name)), new)
        self._note(new)

    def _is_new(self, name: str, sha256: str | None) -> bool:
        entry, file = self.listed[name], self.root / name
        if not file.exists():
            return True
        if name in self._tags:  # a server that tells no mark leaves records in doubt
            return self._tags[name] != _mark(entry) or (not entry.tag and name.endswith(".json"))
        if sha256:
            return hash_file(file) != sha256
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

    def send(self, names: Iterable[str]) -> None:
        """Send files made here to the lake, in this order; LakeError when it can only be read."""
        names = list(names)
        for name in names:
            self.origin.put(name, self.root / name)
        self.listed |= {name: self.origin.entry(name) or Entry(None) for name in names}
        self._note(names)

    def offer(self, names: Iterable[str]) -> None:
        """Send files made here to the lake if it takes them; of one that can only be read they stay here."""
        if not self.origin.writable:
            return
        try:
            self.send(names)
        except AccessError as error:
            self.origin.writable = False
            ERRORS.print(f"{error}: what is made of this lake stays in {self.root}", highlight=False, soft_wrap=True)

    def renew(self, folder: str) -> None:
        """See a capture under way as the lake has it now: what other machines recorded is brought, what it lacks is gone."""
        there = self.origin.find(folder)
        self.listed = {name: entry for name, entry in self.listed.items() if not name.startswith(f"{folder}/")} | there
        for file in (self.root / folder / PROGRESS).glob("*.json"):
            if file.relative_to(self.root).as_posix() not in there:
                file.unlink(missing_ok=True)
        self.bring([name for name in self.below(folder) if not is_shard(name)])


def _mark(entry: Entry) -> str:
    return entry.tag or str(entry.size)


def open_mirror(url: str, create: bool = False, marker: dict[str, Any] | None = None) -> Path:
    """The mirror's folder of the lake at a URL, fresh; with `create` an empty place becomes a lake with this `marker`.

    LakeError when there is no lake, or no way to it.
    """
    mirror = Mirror(url)
    try:
        mirror.root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LakeError(
            f"{mirror.root}: no place for what is read of {mirror.origin} ({error.strerror}); name another with ACTLAKE_CACHE"
        ) from error
    mirror.origin.refresh()
    if mirror.origin.entry(MARKER) is None:
        if not create:
            raise LakeError(
                f"no lake at {mirror.origin} (no {MARKER}); `actlake push {mirror.origin}` or `actlake capture PAIR --lake"
                f" {mirror.origin}` makes one"
            )
        if not mirror.origin.empty():
            raise LakeError(f"lake {mirror.origin}: the place is not empty and not a lake; name an empty or new one")
        mirror.origin.put(MARKER, json.dumps(marker, indent=1, sort_keys=True).encode() + b"\n", new=True)
    mirror.refresh()
    _open[mirror.root] = mirror
    return mirror.root


def _reword(message: str) -> str:
    """A message about a file of a mirror as one about the lake, which nobody is told to delete from."""
    for root, mirror in _open.items():
        if str(root) in message:
            message = message.replace(str(root), str(mirror.origin))
            if re.search(r"\b(delete|rm|restore)\b", message):
                problem = re.split(r"[;:,] (?=[^;]*\b(?:delete|rm|restore)\b)", message, maxsplit=1)[0]
                fresh = f"`rm -r {shlex.quote(str(root))}` lets it be fetched anew"
                return f"{problem}; {KEEPER}; if only its copy here is damaged, {fresh}"
    return message


REWORD.append(_reword)


def mirror_of(path: Path) -> "Mirror | None":
    """The open mirror that a path lies in, if any."""
    return next((_open[parent] for parent in (path, *path.parents) if parent in _open), None) if _open else None


def refresh(path: Path) -> None:
    """See what has come to a remote lake since it was opened; in a local one everything shows by itself."""
    if mirror := mirror_of(path):
        mirror.refresh()


def fetch(file: Path) -> Path:
    """Make sure that a file is here which is younger than the last listing; FileNotFoundError when there is none."""
    if mirror := mirror_of(file):
        mirror.fetch(file.relative_to(mirror.root).as_posix())
    return file


def bring(path: Path, pattern: str = "*") -> Path:
    """Make sure that the files that a lake has at or below a path, with names of this pattern, are here; returns the path.

    Nothing to do in a local lake. Shards stay away.
    """
    if mirror := mirror_of(path):
        names = mirror.below(path.relative_to(mirror.root).as_posix())
        mirror.bring([name for name in names if fnmatchcase(name.rpartition("/")[2], pattern) and not is_shard(name)])
    return path


def bring_capture(path: Path, manifest: dict[str, Any] | None) -> None:
    """Make sure that the small files of a capture are here, checked against its manifest if it is sealed."""
    mirror = mirror_of(path)
    if not mirror:
        return
    folder = path.relative_to(mirror.root).as_posix()
    if not manifest:
        mirror.listed |= mirror.origin.find(folder)
        mirror.bring([name for name in mirror.below(folder) if not is_shard(name)])
        return
    named = {f"{folder}/{name}": entry for name, entry in manifest["files"].items() if safe(name)}
    files = {name: entry for name, entry in named.items() if not is_shard(name)}
    # The hash is the mark: what is here of another capture that bore this name is brought anew.
    mirror.listed |= {name: Entry(entry["bytes"], entry["sha256"]) for name, entry in files.items()}
    mirror.bring(files, {name: entry["sha256"] for name, entry in files.items()})


def publish(*paths: Path) -> None:
    """Offer what was made in the mirror of a remote lake to the lake: files, or folders with all they hold, in this order.

    In a local lake everything is in its place already.
    """
    if mirror := mirror_of(paths[0]):
        files = [file for path in paths for file in (_in_order(path) if path.is_dir() else [path])]
        mirror.offer([file.relative_to(mirror.root).as_posix() for file in files])


@contextmanager
def shared_start(path: Path) -> Iterator[None]:
    """Start on a capture under way: of a remote lake one process of this machine at a time, with what others recorded here.

    LakeError for a lake that can only be read.
    """
    mirror = mirror_of(path)
    if not mirror:
        yield
        return
    if not mirror.origin.writable:
        raise LakeError(f"{mirror.origin}: can only be read; capture into a folder or a bucket")
    with try_lock(path.with_name(f".{path.name}.start.lock"), wait=True):
        renew(path)
        yield


def renew(path: Path) -> None:
    """Bring what other machines recorded of a capture under way in a remote lake; in a local one all see it anyway."""
    if mirror := mirror_of(path):
        mirror.renew(path.relative_to(mirror.root).as_posix())


def write_record(file: Path, data: bytes) -> None:
    """Write a small file whole; of a remote lake there first, so that nothing is on record here that the lake lacks."""
    if mirror := mirror_of(file):
        mirror.origin.put(file.relative_to(mirror.root).as_posix(), data)
    write_atomic(file, data)


def move_in(made: Path, path: Path, last: str) -> bool:
    """Give a folder made under another name its own, unless one is there; of a remote lake its files are sent first, `last`
    at the end and only if the lake has none. False when another machine's was there."""
    if mirror := mirror_of(path):
        folder, end = path.relative_to(mirror.root).as_posix(), made / last
        for file in made.rglob("*"):
            if file.is_file() and file != end:
                mirror.origin.put(f"{folder}/{file.relative_to(made).as_posix()}", file)
        if not mirror.origin.put(f"{folder}/{last}", end.read_bytes(), new=True):
            return False
    made.rename(path)
    return True


def seal_remote(path: Path, manifest: bytes) -> bool:
    """Send what sealing has changed of a capture in a remote lake, the manifest last and only if it has none, and drop what
    was recorded on the way; False when another machine's is there (it is here then). In a local lake True."""
    mirror = mirror_of(path)
    if not mirror:
        return True
    folder = path.relative_to(mirror.root).as_posix()
    files = [file for file in path.rglob("*") if file.is_file() and PROGRESS not in file.relative_to(path).parts]
    mirror.send(sorted(file.relative_to(mirror.root).as_posix() for file in files))
    mine = mirror.origin.put(f"{folder}/{MANIFEST}", manifest, new=True)
    if not mine:
        mirror.origin.get(f"{folder}/{MANIFEST}", path / MANIFEST)
    mirror.origin.delete(f"{folder}/{PROGRESS}")
    return mine


def _in_order(folder: Path) -> list[Path]:
    """The files of a folder, last the manifest that makes them count."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return sorted(files, key=lambda file: (file == folder / MANIFEST, file))


def withdraw(path: Path) -> None:
    """Take a file or folder away from a remote lake as well; it was taken away here."""
    mirror = mirror_of(path)
    if mirror and mirror.origin.writable:
        name = path.relative_to(mirror.root).as_posix()
        mirror.origin.delete(name)
        mirror.listed = {
            found: entry for found, entry in mirror.listed.items() if found != name and not found.startswith(f"{name}/")
        }


class Remote:
    """A file that stays at the origin, for reading by ranges from several threads."""

    def __init__(self, origin: Store, name: str, size: int | None = None):
        """`size` is the file's bytes where they are known; else the server is asked, once."""
        self._origin, self._name, self._size = origin, name, size
        self._lock, self._end = threading.Lock(), b""

    def __str__(self) -> str:
        return f"{self._origin}/{self._name}"

    def exists(self) -> bool:
        """Whether the server has the file."""
        return self._origin.entry(self._name) is not None

    @property
    def size(self) -> int:
        """Bytes of the file; FileNotFoundError when there is none."""
        if self._size is None:
            entry = self._origin.entry(self._name)
            if entry is None:
                raise FileNotFoundError(str(self))
            self._size = entry.size or 0
        return self._size

    def read(self, start: int, stop: int) -> bytes:
        """The bytes from start to stop."""
        return self._origin.read(self._name, start, stop)

    def end(self, count: int) -> bytes:
        """The last `count` bytes, asked for once: of a shard, its index."""
        with self._lock:
            if len(self._end) != min(count, self.size):
                self._end = self.read(max(self.size - count, 0), self.size)
            return self._end


def blob_of(path: Path, size: int | None = None) -> Path | Remote:
    """What to read a file from: its path when it is here or nowhere else, else the origin of the mirror it belongs to."""
    mirror = mirror_of(path)
    if mirror is None or path.is_file():
        return path
    return Remote(mirror.origin, path.relative_to(mirror.root).as_posix(), size)


class Files:
    """The files at or below a folder as the lake itself has them, a mirror's as they lie at its origin."""

    def __init__(self, path: Path):
        self.path, self._mirror = path, mirror_of(path)
        if self._mirror:
            self._folder = path.relative_to(self._mirror.root).as_posix()
            found = self._mirror.origin.find(self._folder)
            self.sizes = {name[len(self._folder) + 1 :]: entry.size or 0 for name, entry in found.items()}
        else:
            files = (file for file in path.rglob("*") if file.is_file())
            self.sizes = {file.relative_to(path).as_posix(): file.stat().st_size for file in files}

    def __str__(self) -> str:
        return f"{self._mirror.origin}/{self._folder}" if self._mirror else str(self.path)

    def hash(self, name: str) -> str:
        """SHA-256 (hex) of one of them."""
        if self._mirror:
            return self._mirror.origin.hash(f"{self._folder}/{name}", self.sizes[name])
        return hash_file(self.path / name)

    def map(self, action: Callable[[str], T], names: Iterable[str]) -> Iterator[T]:
        """What `action` makes of each, in order; side by side where it waits on a network."""
        return transfers().map(action, names) if self._mirror else map(action, names)
