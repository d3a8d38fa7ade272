"""Where everything in a lake is, and the one place that decides whether a path or URL is a lake."""

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ..core.errors import CorruptError, LakeError
from ..core.files import read_json, try_lock, write_json
from ..core.schema import FORMAT_VERSION, MARKER, RECORD, VARIANTS
from ..remote.cache import RemoteFiles
from ..remote.files import Files
from ..remote.store import is_remote

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
LAKE = {"format": "actlake", "format_version": FORMAT_VERSION}  # what its marker says
MEND = f"write {json.dumps(LAKE)} into it, which every lake has there"


def check_name(name: str, what: str) -> str:
    """Return `name` if it can be a single folder name (letters, digits, '_', '.', '-'), else raise LakeError."""
    if not NAME.fullmatch(name) or ".." in name:
        raise LakeError(f"{what} {name!r} is not a valid name: use letters, digits, '_', '.' and '-'")
    return name


@dataclass(frozen=True)
class Layout:
    """The folder of a lake and the paths in it, and its `files`, which bring and send those of a remote lake."""

    root: Path
    files: Files = field(default=None, compare=False, repr=False)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.files is None:
            object.__setattr__(self, "files", Files(self.root))

    @classmethod
    def open(cls, url: str | Path, create: bool = False) -> "Layout":
        """Open the lake at a folder or any URL that fsspec understands, making it first if `create`.

        Raises LakeError for a place that is not a lake, is out of reach or can't be made one, or a lake of a newer format.
        """
        text = str(url)
        if is_remote(text):
            files = RemoteFiles.open(text, create, LAKE)
            layout = cls(files.root, files)
            check_marker(layout.root / MARKER)
            return layout
        layout = cls(Path(text.removeprefix("file://")).expanduser().absolute())
        marker = layout.root / MARKER
        if not marker.exists():
            if not create:
                raise LakeError(
                    f"no lake at {text} (no {MARKER})", repair="`actlake demo` or `actlake capture PAIR` makes one"
                )
            if layout.root.exists() and not layout.root.is_dir():
                raise LakeError(f"lake {text}: this is a file, not a folder")
            # A kill while the marker was written leaves nothing but its temporary file.
            others = layout.root.is_dir() and any(
                not path.name.startswith(f".{MARKER}.") for path in layout.root.iterdir()
            )
            if others and not marker.exists():  # else another rank has just made the lake
                raise LakeError(f"lake {text}: the folder is not empty and not a lake; name an empty or new folder")
            try:
                write_json(marker, LAKE)
            except OSError as error:
                raise LakeError(f"lake {text}: can't be made there ({error.strerror})") from error
        check_marker(marker)
        check_links(layout.root)
        return layout

    def __str__(self) -> str:
        return str(self.files)

    @property
    def address(self) -> str:
        """What opens this lake on another machine, or in another process: its URL, or its folder."""
        return self.files.address

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lake's lock, which is on its marker, while finished work gets its place: one process after the other."""
        with try_lock(self.root / MARKER, wait=True):
            yield

    def model(self, model: str) -> Path:
        """Folder of one model's metadata and head."""
        return self.root / "models" / check_name(model, "model")

    def capture(self, model: str, stream: str) -> Path:
        """Zarr group of one capture."""
        return self.root / "captures" / check_name(model, "model") / f"{check_name(stream, 'stream')}.zarr"

    @property
    def streams(self) -> Path:
        """Folder of the streams."""
        return self.root / "streams"

    @property
    def prompts(self) -> Path:
        """Folder of the prompt sets imported into this lake."""
        return self.files.bring(self.root / "prompts")

    @property
    def judge(self) -> Path:
        """Folder of what LLM judges answered."""
        return self.files.bring(self.root / "verdicts")

    def directions(self, models: Mapping[str, str]) -> Path:
        """Folder of the directions from a base model to another (variant -> model)."""
        pt, it = (check_name(models[variant], "model") for variant in VARIANTS)
        return self.files.bring(self.root / "directions" / f"{pt}--{it}", RECORD)

    def lenses(self, model: str) -> Path:
        """Folder of one model's lenses."""
        return self.root / "lenses" / check_name(model, "model")

    def texts(self, model: str) -> Path:
        """Folder of one model's free-running texts, a folder per condition."""
        return self.files.bring(self.root / "texts" / check_name(model, "model"))

    def table(self, name: str) -> Path:
        """Folder of one table's Parquet files."""
        return self.root / "tables" / check_name(name, "table")


@contextmanager
def writing(url: str | Path) -> Iterator[Layout]:
    """Open the lake at `url` for a command that writes, making it if need be.

    A lake made here is taken away again when the command is refused before it wrote anything.
    """
    if is_remote(url):
        yield Layout.open(url, create=True)
        return
    layout = Layout(Path(str(url).removeprefix("file://")).expanduser().absolute())
    new_folder, new = not layout.root.exists(), not (layout.root / MARKER).exists()
    layout = Layout.open(url, create=True)
    try:
        yield layout
    except LakeError:
        if new and [path.name for path in layout.root.iterdir()] == [MARKER]:
            (layout.root / MARKER).unlink()
            if new_folder:
                layout.root.rmdir()
        raise


def check_links(root: Path) -> None:
    """Raise LakeError for a link among a lake's files and folders that leads out of it.

    A lake may come from a stranger: what is read and written through it stays inside. Only the chunks of arrays, which are
    known by hash and may be a million, are not looked at.
    """
    real, level = root.resolve(), [str(root)]  # a lake has ten thousands of folders: as text, in half the time
    while level:
        below = list[str]()
        for folder in level:
            array, folders = False, list[str]()
            for entry in _entries(folder):
                if entry.is_symlink() and not Path(entry.path).resolve().is_relative_to(real):
                    raise LakeError(
                        f"{entry.path}: a link that leaves the lake (to {os.readlink(entry.path)}); `cp -rL` makes a copy of a"
                        " lake with what its links lead to"
                    )
                array |= entry.name == "zarr.json"
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
            below += [each for each in folders if not (array and each.endswith(f"{os.sep}c"))]
        level = below


def _entries(folder: str) -> list[os.DirEntry[str]]:
    """What is in a folder of a lake; nothing when it has just gone, as those of work under way do."""
    try:
        with os.scandir(folder) as found:
            return list(found)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise LakeError(f"{error.filename}: this folder of the lake can't be read ({error.strerror})") from error


def check_marker(marker: Path) -> None:
    """Raise LakeError unless a lake's marker says that this code reads the lake."""
    check_lake(read_json(marker, repair=MEND), marker)


def check_lake(record: object, where: object) -> None:
    """Raise LakeError unless the content of a marker says that this is a lake, of a version that this code reads."""
    check_version(record, where, MEND)
    if (found := record.get("format") if isinstance(record, dict) else None) != LAKE["format"]:
        raise CorruptError(f"{where}: format: expected {LAKE['format']!r}, found {str(found)[:60]!r}; {MEND}")


def check_version(record: object, where: object, repair: str = "") -> None:
    """Raise LakeError unless `record` carries a format version that this code reads; `repair`: what to do where it has none."""
    version = record.get("format_version") if isinstance(record, dict) else None
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise LakeError(
            f"{where}: no format_version; expected {FORMAT_VERSION}: this is not a lake's file", repair=repair
        )
    if version > FORMAT_VERSION:
        raise LakeError(
            f"{where}: format version {version}, this actlake reads {FORMAT_VERSION}: upgrade with `pip install -U actlake`"
        )
    if version < FORMAT_VERSION:
        raise LakeError(
            f"{where}: format version {version}, this actlake reads {FORMAT_VERSION} and converts no older lake: capture into a"
            " new one"
        )
