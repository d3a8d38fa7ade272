"""Checking a sealed capture against its manifest, its stream and the rules of the format."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .captures import Capture, check_sealed
from .errors import RESTORE, CorruptError, LakeError
from .files import hash_file
from .layout import Layout
from .manifest import MANIFEST
from .records import REPAIRS
from .schema import VARIABLES
from .streams import read_stream
from .weights import weights_folder
from .writer import PROGRESS


@dataclass
class Report:
    """What a verification did and what it found wrong, one line each; empty `problems` means the capture is good."""

    capture: str
    files: int = 0
    bytes: int = 0
    shards: int = 0
    reforward: str = ""
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """True when nothing is wrong."""
        return not self.problems


def verify(layout: Layout, path: Path, progress: Callable[[int], None] | None = None) -> Report:
    """Re-hash every file of a capture, then check counts, stream, finiteness and the zero low halves of widened bfloat16.

    `progress` is called with the bytes done. Damage is listed in the report; only a damaged manifest raises.
    """
    manifest = check_sealed(path)
    report = Report(capture=path.relative_to(layout.root).as_posix())
    damaged = _check_files(path, manifest, report, progress)
    if "zarr.json" in damaged:  # without it nothing can be read
        return report
    try:
        capture = Capture(path)
    except CorruptError as error:  # hashed right, and not what a capture is
        report.problems.append(str(error))
        return report
    if not damaged:
        _check_coordinates(layout, capture, report)
    for name in capture.manifest["sizes"]:
        _check_values(capture, name, damaged, report)
    return report


def verify_weights(
    layout: Layout,
    pair: str,
    variant: str,
    record: dict[str, Any],
    progress: Callable[[int], None] | None = None,
) -> Report:
    """Re-hash a model's own files that the lake holds, as `record` (weights.json) has them."""
    folder = weights_folder(layout, pair, variant)
    report = Report(capture=folder.relative_to(layout.root).as_posix())
    _check_files(folder, record, report, progress, REPAIRS["weights"])
    return report


def _check_files(
    path: Path,
    manifest: dict[str, Any],
    report: Report,
    progress: Callable[[int], None] | None,
    repair: str = RESTORE,
) -> set[str]:
    recorded = manifest["files"]
    damaged = set()
    for name, entry in recorded.items():
        file = path / name
        if not file.is_file():
            damaged.add(name)
            report.problems.append(f"{file}: missing, expected {entry['bytes']} bytes; {repair}")
        elif file.stat().st_size != entry["bytes"]:
            damaged.add(name)
            report.problems.append(f"{file}: {file.stat().st_size} bytes, the manifest says {entry['bytes']}; {repair}")
        elif (found := hash_file(file)) != entry["sha256"]:
            damaged.add(name)
            report.problems.append(
                f"{file}: bytes differ from the manifest's SHA-256 (found {found}, expected {entry['sha256']}); {repair}"
            )
        report.files += 1
        report.bytes += entry["bytes"]
        if progress:
            progress(entry["bytes"])
    present = {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()}
    for name in sorted(present - set(recorded) - {MANIFEST}):
        if not name.startswith(PROGRESS):  # records of the capture run, without meaning once it is sealed
            report.problems.append(f"{path / name}: not in the manifest")
    return damaged


def _check_coordinates(layout: Layout, capture: Capture, report: Report) -> None:
    manifest = capture.manifest
    try:
        stream = read_stream(layout, manifest["stream"])
    except LakeError as error:
        report.problems.append(str(error))
        return
    if stream.content_sha256 != manifest["content_sha256"]:
        report.problems.append(f"{capture.path}: stream {stream.name} has another content hash than the manifest")
    for name, expected in {**stream.columns, "offset": stream.offset}.items():
        if name in VARIABLES and not np.array_equal(capture.array(name)[:], expected):
            report.problems.append(f"{capture.path}/{name}: differs from stream {stream.name}")


def _check_values(capture: Capture, name: str, damaged: set[str], report: Report) -> None:
    """Read every whole shard of one variable once and look at its values."""
    array, manifest = capture.array(name), capture.manifest
    if not VARIABLES[name].dtype.startswith("float"):
        return
    size = manifest["shard_tokens"]
    low, high, nonfinite, dirty = np.inf, -np.inf, 0, 0
    for shard in range(manifest["n_shards"]):
        if any(file.startswith(f"{name}/c/{shard}/") or file == f"{name}/c/{shard}" for file in damaged):
            continue
        try:
            block = array[shard * size : (shard + 1) * size]
        except CorruptError as error:  # the hash is right and the bytes are not: written by something else
            report.problems.append(str(error))
            continue
        finite = np.isfinite(block)
        nonfinite += int(block.size - finite.sum())
        low, high = (
            min(low, block.min(where=finite, initial=np.inf)),
            max(high, block.max(where=finite, initial=-np.inf)),
        )
        if array.array.attrs.get("lossless_cast") == "bfloat16":
            dirty += int(np.count_nonzero(block.view(np.uint32) & 0xFFFF))
        report.shards += 1
    recorded = manifest["variables"][name]
    where = f"{capture.path}/{name}"
    if nonfinite != recorded["nonfinite"]:
        report.problems.append(f"{where}: {nonfinite} values are not finite, the manifest says {recorded['nonfinite']}")
    if dirty:
        report.problems.append(f"{where}: {dirty} values are not widened bfloat16 (low 16 bits set)")
    if not damaged and recorded["min"] is not None and (low, high) != (recorded["min"], recorded["max"]):
        report.problems.append(
            f"{where}: range [{low}, {high}], the manifest says [{recorded['min']}, {recorded['max']}]"
        )
