"""Sealing: when every shard row is recorded, one manifest.json says what the capture is, byte for byte."""

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import zarr

from ..core.errors import CorruptError, LakeError
from ..core.files import clear_dead, hash_file, hash_json, json_bytes, try_lock, write_json
from ..core.progress import remark
from ..core.schema import FORMAT_VERSION, MANIFEST, PROGRESS, TEMPLATE
from ..format.paths import Layout
from ..format.records import REPAIRS, read_record, sealed
from ..format.rules import brief
from ..format.zarr_groups import quiet_zarr
from ..remote.files import HERE, Files
from ..remote.hashes import while_same
from .allocate import wreck_lock
from .precision import fits_precision, merge_errors, rounding_error, rounding_note
from .writer import gather_prompts, missing_shards, shard_record

FAR = 4  # times what rounding explains: below, a noise floor is the order of sums
SEALING = "seal.lock"
HALF_WRITTEN = (".partial", ".tmp")  # temporary files of zarr and of write_atomic that a kill leaves behind


def seal(path: Path, extra: dict[str, Any] | None = None, lake: Files = HERE) -> dict[str, Any]:
    """Write the manifest of a complete capture by atomic rename, with `extra` keys, and drop its progress records.

    The manifest holds no time stamps: an undisturbed run, one resumed after a kill and one of several ranks seal to the
    same bytes. Of ranks that come here at once, one seals. Raises LakeError while shard rows are missing.
    """
    if manifest := read_manifest(path):
        shutil.rmtree(path / PROGRESS, ignore_errors=True)  # left when a kill came right after the manifest
        return manifest
    missing, count = missing_rows(path, lake)
    if missing:
        raise LakeError(
            f"{path}: {len(missing)} of {count} shard rows are missing (first: {missing[0]}); run the capture again"
        )
    with try_lock(path / PROGRESS / SEALING, wait=True):
        manifest = read_manifest(path) or _seal(path, count, extra or {}, lake)
        shutil.rmtree(path / PROGRESS, ignore_errors=True)
    return manifest


def missing_rows(path: Path, lake: Files = HERE) -> tuple[list[int], int]:
    """Shard rows that a capture lacks, and how many it has in all; a sealed one, be it just now by another rank, lacks none."""
    missing, count = list[int](), 0
    lake.renew(path)
    try:
        record = read_record(path / PROGRESS / TEMPLATE, "template")
        count = -(-record["n_tokens"] // record["shard_tokens"])
        missing = missing_shards(path, count)
    except LakeError:
        if not read_manifest(path):
            raise
    manifest = read_manifest(path)
    return ([], manifest["n_shards"]) if manifest else (missing, count)


def _seal(path: Path, count: int, extra: dict[str, Any], lake: Files) -> dict[str, Any]:
    template = read_record(path / PROGRESS / TEMPLATE, "template")
    del template["world"]  # however many ranks wrote it, it is the same capture
    for file in path.rglob("*"):
        if file.name.endswith(HALF_WRITTEN):
            file.unlink(missing_ok=True)
    clear_dead(path.parent)  # left by ranks that were killed while they allocated
    wreck_lock(path).unlink(missing_ok=True)
    gather_prompts(path, template.get("per_prompt", []), template["n_prompts"])
    with quiet_zarr():
        zarr.consolidate_metadata(str(path))
    rows = [read_record(shard_record(path, shard), "shard") for shard in range(count)]
    files = {name: entry for row in rows for name, entry in row["files"].items()}
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path).as_posix()
        if file.is_file() and name not in files and name != MANIFEST and not name.startswith(PROGRESS):
            files[name] = {"sha256": hash_file(file), "bytes": file.stat().st_size}
    record = {
        **template,
        "format_version": FORMAT_VERSION,
        "n_shards": count,
        "variables": {name: _merge([row["statistics"][name] for row in rows]) for name in template["sizes"]},
        **({"rounding": merge_errors([row["rounding"] for row in rows])} if "precision" in template else {}),
        "files": files,
        "bytes": sum(entry["bytes"] for entry in files.values()),
        "capture_sha256": hash_json(files),
        **extra,
    }
    record = sealed(record)
    if not lake.seal(path, json_bytes(record)):
        return read_manifest(path) or record
    write_json(path / MANIFEST, record)
    return record


def _merge(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "min": min((row["min"] for row in rows if row["min"] is not None), default=None),
        "max": max((row["max"] for row in rows if row["max"] is not None), default=None),
        "nonfinite": sum(row["nonfinite"] for row in rows),
    }


def rounding(dtype: str) -> float:
    """The share of its largest value by which a variable may differ where only the order of sums does.

    2^-6 for models in bfloat16 and float16; 1e-5 in float32, and in float64, whose values are stored as float32.
    """
    return 2.0**-6 if dtype in ("bfloat16", "float16") else 1e-5


def largest(manifest: Mapping[str, Any], name: str) -> float:
    """The largest absolute value of a variable of a capture; 0 where none is finite."""
    found = manifest["variables"][name]
    return max(abs(found["min"] or 0.0), abs(found["max"] or 0.0))


def noise_warning(manifest: Mapping[str, Any]) -> str | None:
    """What to say of a capture whose values hang on the batch they were computed in; None where rounding explains it all.

    From the recorded noise floor: batched against alone, more than FAR times what rounding allows.
    """
    allowed = rounding(manifest["source_dtype"])
    floor = manifest.get("noise_floor", {}).get("max_abs", {})
    near = {name: FAR * allowed * largest(manifest, name) + 2 * rounding_error(manifest, name) for name in floor}
    far = {name: value for name, value in floor.items() if value > near[name]}
    if not far:
        return None
    name = max(far, key=lambda name: far[name] / (largest(manifest, name) or 1.0))
    made, most = manifest["provenance"], largest(manifest, name)
    return (
        f"capture {made['model']}/{manifest['stream']}: {name} of a prompt in a batch differs by up to"
        f" {far[name]:.2g} from the same prompt alone (largest value {most:.2g}, rounding explains {allowed * most:.1g}): what"
        " the model computes depends on padding, as sparse attention may; capturing with --batch 1 avoids it"
    )


def capture_warning(manifest: Mapping[str, Any]) -> str | None:
    """What whoever uses a capture must know: that its values hang on their batch, or were rounded; None for most captures."""
    return "; ".join(filter(None, (noise_warning(manifest), rounding_note(manifest)))) or None


def capture_warnings(layout: Layout, captures: Iterable[tuple[str, str]]) -> list[str]:
    """The warnings of those captures (model, stream) that have one."""
    found = (_warning(layout.capture(*names) / MANIFEST) for names in captures)
    return [warning for warning in found if warning]


def say_warnings(layout: Layout, captures: Iterable[tuple[str, str]]) -> None:
    """Say in a line what whoever uses some captures must know."""
    if warnings := capture_warnings(layout, sorted(captures)):
        more = f" (and {len(warnings) - 1} captures more: `actlake ls`)" if len(warnings) > 1 else ""
        remark(f"warning: {warnings[0]}{more}")


@while_same(1 << 14)
def _warning(file: Path) -> str | None:
    """The warning of the capture with this manifest, which may be of megabytes; None where there is none."""
    manifest = read_manifest(file.parent)
    return capture_warning(manifest) if manifest else None


def read_manifest(path: Path) -> dict[str, Any] | None:
    """The manifest of a sealed capture, or None for one that is not sealed."""
    file = path / MANIFEST
    if not file.exists():
        return None
    record = read_record(file, "manifest")
    check_whole(record, file)
    if path.parents[1].name == "captures":
        check_place(record, path)
    return record


def check_place(record: dict[str, Any], path: Path) -> None:
    """Raise CorruptError for the manifest of another capture than the one whose folder it is in."""
    named = {"stream": record["stream"], "provenance: model": record["provenance"]["model"]}
    for (key, found), place in zip(named.items(), (path.stem, path.parent.name), strict=True):
        if found != place:
            words = f"{key}: found {brief(found)} in the place of {brief(place)}"
            raise CorruptError(f"{path / MANIFEST}: {words}; {REPAIRS['manifest']}")


def check_whole(record: dict[str, Any], file: object) -> None:
    """Raise CorruptError unless the parts of a manifest agree with one another."""
    files, variables = record["files"], record["variables"]
    rest: dict[str, Any] = {
        "n_shards": -(-record["n_tokens"] // record["shard_tokens"]),
        "bytes": sum(entry["bytes"] for entry in files.values()),
        "variables": {name: variables.get(name) for name in record["sizes"]},
        "files": files if "zarr.json" in files else "zarr.json among them",
        "rounding": record.get("rounding") if fits_precision(record) else "the error of each layer that is rounded",
    }
    for key, expected in rest.items():
        if record.get(key) != expected:
            check_list(record, file)
            words = f"{key}: found {brief(record.get(key))}, the rest of it says {brief(expected)}"
            raise CorruptError(f"{file}: {words}", repair=REPAIRS["manifest"])


def check_list(record: dict[str, Any], file: object) -> None:
    """Raise CorruptError unless a manifest's list of files has the hash that is recorded beside it."""
    if (found := hash_json(record["files"])) != record["capture_sha256"]:
        raise CorruptError(
            f"{file}: its list of files is damaged (found {found}, expected sha256 {record['capture_sha256']});"
            f" {REPAIRS['manifest']}"
        )
