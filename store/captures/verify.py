"""Checking a sealed capture against its manifest, its stream and the rules of the format; references to it by hash."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..artifacts.models import read_model
from ..artifacts.streams import read_stream, stream_record
from ..artifacts.weights import RECORD, differences, read_weights, weights_folder
from ..core.errors import RESTORE, CorruptError, LakeError
from ..core.schema import MANIFEST, PARTIAL, PROGRESS, VARIABLES
from ..format.partial import read_partial
from ..format.paths import Layout
from ..format.records import REPAIRS, SEAL
from ..format.rules import brief
from ..remote.files import Files
from .precision import precision_words
from .reader import Capture, check_sealed, find_capture, split_capture


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

    `progress` is called with the bytes done. Damage is listed in the report; only a damaged manifest or partial.json raises.
    """
    manifest = check_sealed(path)
    report = Report(capture=path.relative_to(layout.root).as_posix())
    damaged = _check_files(layout.files, path, manifest, report, progress)
    if "zarr.json" in damaged:  # without it nothing can be read
        return report
    try:
        capture = Capture(path, lake=layout.files)
        capture.group  # noqa: B018  read now, so that what is wrong with it is a problem of this capture
    except CorruptError as error:  # hashed right, and not what a capture is
        report.problems.append(str(error))
        return report
    if not damaged:
        _check_provenance(capture, report)
        _check_coordinates(layout, capture, report)
    for name in filter(capture.__contains__, capture.manifest["sizes"]):
        _check_values(capture, name, damaged, report)
    return report


def verify_weights(
    layout: Layout,
    model: str,
    record: dict[str, Any],
    progress: Callable[[int], None] | None = None,
) -> Report:
    """Re-hash a model's own files that the lake holds, as `record` (weights.json) has them."""
    folder = weights_folder(layout, model)
    report = Report(capture=folder.relative_to(layout.root).as_posix())
    report.problems += differences(record, read_model(layout, model), layout.model(model) / RECORD)
    _check_files(layout.files, folder, record, report, progress, REPAIRS["weights"])
    return report


def _check_files(
    lake: Files,
    path: Path,
    manifest: dict[str, Any],
    report: Report,
    progress: Callable[[int], None] | None,
    repair: str = RESTORE,
) -> set[str]:
    partial, sizes = read_partial(path, manifest), lake.sizes(path)
    there = f"{lake}/{path.relative_to(lake.root).as_posix()}"
    recorded = manifest["files"]
    if partial:  # what a copy lacks is no damage
        recorded = {name: entry for name, entry in {**recorded, **partial.files}.items() if partial.has(name)}

    def check(name: str) -> str:
        entry, size = recorded[name], sizes.get(name)
        if size is None:
            return f"missing, expected {entry['bytes']} bytes"
        if size == manifest["files"][name]["bytes"]:
            entry = manifest["files"][name]  # of a copy that is being made whole
        if size != entry["bytes"]:
            return f"{size} bytes, the manifest says {entry['bytes']}"
        if (found := lake.hash(path / name, size)) != entry["sha256"]:
            return f"bytes differ from the manifest's SHA-256 (found {found}, expected {entry['sha256']})"
        return ""

    damaged = set()
    for name, problem in zip(recorded, lake.map(check, recorded), strict=True):
        if problem:
            damaged.add(name)
            report.problems.append(f"{there}/{name}: {problem}; {repair}")
        report.files += 1
        report.bytes += recorded[name]["bytes"]
        if progress:
            progress(recorded[name]["bytes"])
    for name in sorted(sizes.keys() - recorded.keys() - {MANIFEST, PARTIAL}):
        if not name.startswith(PROGRESS):  # records of the capture run, without meaning once it is sealed
            report.problems.append(f"{there}/{name}: not in the manifest")
    return damaged


def _check_coordinates(layout: Layout, capture: Capture, report: Report) -> None:
    manifest = capture.manifest
    try:
        stream = read_stream(layout, capture.path.stem)
    except LakeError as error:
        report.problems.append(str(error))
        return
    if stream.content_sha256 != manifest["content_sha256"]:
        report.problems.append(f"{capture.path}: stream {stream.name} has another content hash than the manifest")
    for name, expected in {**stream.columns, "offset": stream.offset}.items():
        if name in VARIABLES and name in capture and not np.array_equal(capture.array(name)[:], expected):
            report.problems.append(
                f"{capture.path}/{name}: differs from stream {stream.name} ({layout.streams / stream.name}.parquet)"
            )


def _check_provenance(capture: Capture, report: Report) -> None:
    """What a manifest says of the run also stands in the group's attributes, which are hashed."""
    attributes = capture.group.attrs.asdict()
    for key, value in capture.manifest["provenance"].items():
        if attributes.get(key) != value:
            words = (
                f"provenance: {key}: found {brief(value)}, the attributes of the group say {brief(attributes.get(key))}"
            )
            report.problems.append(f"{capture.path / MANIFEST}: {words}; {REPAIRS['manifest']}")


def _check_values(capture: Capture, name: str, damaged: set[str], report: Report) -> None:
    """Read every shard of one variable once, of a copy what it holds, and look at its values."""
    array, manifest = capture.array(name), capture.manifest
    if not VARIABLES[name].dtype.startswith("float"):
        return
    size, held = manifest["shard_tokens"], array.held
    low, high, nonfinite, dirty = np.inf, -np.inf, 0, 0
    for shard in range(manifest["n_shards"]):
        if held and held.rows is not None and shard not in held.rows:
            continue
        if any(file.startswith(f"{name}/c/{shard}/") or file == f"{name}/c/{shard}" for file in damaged):
            continue
        try:
            rows = slice(shard * size, (shard + 1) * size)
            places = held.places if held else None
            block = array[rows] if places is None else np.stack([array[rows, place] for place in sorted(places)])
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
    if held is None and nonfinite != recorded["nonfinite"]:
        report.problems.append(f"{where}: {nonfinite} values are not finite, the manifest says {recorded['nonfinite']}")
    if dirty:
        report.problems.append(f"{where}: {dirty} values are not widened bfloat16 (low 16 bits set)")
    if (
        held is None
        and not damaged
        and recorded["min"] is not None
        and (low, high) != (recorded["min"], recorded["max"])
    ):
        report.problems.append(
            f"{where}: range [{low}, {high}], the manifest says [{recorded['min']}, {recorded['max']}]"
        )


SCHEME = "actlake:"
REFERENCE = re.compile(rf"(?:{SCHEME})?([^@]+)(?:@sha256:([0-9a-f]{{64}}))?")
VERSIONS = ("actlake", "torch", "transformers")


def find_cited(layout: Layout, text: str, model_named: Callable[[str], str] = str) -> Path:
    """The sealed capture of a reference, or of a name without a hash, which may be shortened like any capture's.

    `model_named` says which model PAIR/ROLE is.

    LakeError for text that is neither, a capture that is not there or not sealed, or one with another hash.
    """
    match = REFERENCE.fullmatch(text)
    if not match:
        raise LakeError(f"{text!r}: expected MODEL/STREAM or actlake:MODEL/STREAM@sha256:HASH (64 digits)")
    model, stream = split_capture(match[1])
    path = find_capture(layout, model_named(model), stream)
    found = str(check_sealed(path)[SEAL])
    if match[2] and match[2] != found:
        raise LakeError(f"{path}: this is not the capture referred to: its sha256 is {found}, expected {match[2]}")
    return path


def reference(name: str, manifest: Mapping[str, Any]) -> str:
    """What names the exact bytes of a sealed capture MODEL/STREAM."""
    return f"{SCHEME}{name}@sha256:{manifest[SEAL]}"


def citation(layout: Layout, path: Path) -> dict[str, Any]:
    """What to cite of a sealed capture: `reference`, and the model, stream, prompt set and versions behind it.

    The reference holds for good: a sealed capture never changes, and another one has another hash. LakeError for a capture
    that is not sealed, CorruptError when its list of files is damaged.
    """
    manifest = check_sealed(path)
    made, name = manifest["provenance"], f"{path.parent.name}/{path.stem}"
    stream = stream_record(layout.streams / f"{path.stem}.json")
    model = read_model(layout, path.parent.name)
    kept = read_weights(layout, path.parent.name)
    return {
        "reference": reference(name, manifest),
        "capture": name,
        "capture_sha256": manifest["capture_sha256"],
        "model": {"id": made.get("model_id"), "revision": made.get("model_revision"), "sha256": made["model_sha256"]},
        "stream": {"name": path.stem, "sha256": manifest["content_sha256"]},
        "records": {
            "model": model[SEAL],
            "stream": stream[SEAL],
            **({"weights": kept[SEAL]} if kept else {}),
        },
        "prompts": {"name": stream["prompts"], "sha256": stream["recipe"].get("prompt_set_sha256")},
        "tokens": manifest["n_tokens"],
        "dtype": made.get("dtype"),
        **({"precision": manifest["precision"]} if "precision" in manifest else {}),
        "versions": {key: made[key] for key in VERSIONS if key in made},
        "format_version": manifest["format_version"],
    }


def citation_lines(found: dict[str, Any]) -> list[tuple[str, str]]:
    """A citation as (name, value) lines for people; the first is the reference."""
    model, words = found["model"], precision_words(found)
    rounded = f", rounded: {words}" if words else ""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return [
        ("reference", found["reference"]),
        ("model", f"{model['id'] or '-'}, revision {model['revision'] or '-'}, sha256 {model['sha256']}"),
        *((key, f"{found[key]['name']}, sha256 {found[key]['sha256'] or '-'}") for key in ("stream", "prompts")),
        ("size", f"{found['tokens']:,} tokens, {found['dtype'] or '-'}{rounded}"),
        ("records", ", ".join(f"{name} {sha256}" for name, sha256 in found["records"].items())),
        ("versions", f"{versions + ', ' if versions else ''}format {found['format_version']}"),
    ]
