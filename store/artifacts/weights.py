"""A model's own files in the lake: `weights/` beside its head and, once all of them are there, weights.json."""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from ..core.errors import CorruptError, LakeError
from ..core.files import BLOCK, clear_dead, free_bytes, hash_file, human_bytes, replacing, write_json
from ..core.schema import FORMAT_VERSION
from ..format.paths import Layout
from ..format.records import REPAIRS, read_record, sealed
from ..remote.hashes import known_hash
from .artifact import problems
from .models import has_model, read_model

RECORD = "weights.json"


def weights_folder(layout: Layout, model: str) -> Path:
    """Where a model's own files lie, if the lake has them."""
    return layout.model(model) / "weights"


def read_weights(layout: Layout, model: str) -> dict[str, Any] | None:
    """weights.json of a model: `files` (name -> sha256 and bytes) and `model_sha256`; None when the lake lacks them."""
    path = layout.model(model) / RECORD
    return read_record(path, "weights") if path.exists() else None


def differences(record: dict[str, Any], model: dict[str, Any], file: Path) -> Iterator[str]:
    """How weights.json (`file`) differs from what the model's record says of its files: a line each."""
    found = {name: entry["sha256"] for name, entry in record["files"].items()} | {"": record["model_sha256"]}
    for name, sha256 in {**model["files"], "": model["sha256"]}.items():
        if name in found and found[name] != sha256:
            what = f"files: {name}" if name else "model_sha256"
            yield f"{file}: {what}: found {found[name]}, model.json says {sha256}; {REPAIRS['weights']}"


def check_weights(layout: Layout, model: str) -> None:
    """Raise CorruptError unless a model's own files in the lake are what was captured; untouched ones are not read again."""
    record, folder = read_weights(layout, model) or {"files": {}}, weights_folder(layout, model)
    captured = has_model(layout, model)  # else there is nothing to compare with yet
    wrong = chain(
        differences(record, read_model(layout, model), layout.model(model) / RECORD) if captured else (),
        problems(folder, record["files"], "weights", known_hash),
    )
    if record["files"] and (problem := next(wrong, None)):
        raise CorruptError(problem)


def bytes_to_copy(layout: Layout, model: str, source: Path, names: Sequence[str]) -> int:
    """Bytes of the files of a model that are not in the lake yet."""
    folder = weights_folder(layout, model)
    return sum((source / name).stat().st_size for name in names if not (folder / name).exists())


def check_room(layout: Layout, models: str, needed: int) -> None:
    """Raise LakeError when the weights of these models, `needed` bytes, do not fit on the disk."""
    free = free_bytes(layout.root)
    if needed > free:
        raise LakeError(
            f"{layout}: the weights of {models} need {human_bytes(needed)}, {human_bytes(free)} are free: use another"
            " lake, or leave --with-weights out"
        )


def write_weights(
    layout: Layout,
    model: str,
    source: Path,
    names: Sequence[str],
    model_sha256: str,
    known: Mapping[str, str] | None = None,
    link: bool = False,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Put files of the folder `source` into the lake and return their record; what an earlier run copied is kept.

    Each file appears whole, by rename, and the record last. `link` makes hard links where the file system can: only for
    files that nobody changes in place. LakeError when a file's bytes are not the `known` ones (name -> SHA-256).
    """
    check_room(layout, f"{model}", bytes_to_copy(layout, model, source, names))
    folder = weights_folder(layout, model)
    files: dict[str, dict[str, Any]] = {}
    for name in names:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        there = target.exists()
        sha256 = (
            hash_file(target) if there or (link and _linked(source / name, target)) else _copy(source / name, target)
        )
        if known and known[name] != sha256:
            target.unlink()
            raise LakeError(
                f"{target if there else source / name}: not the file that was captured (its bytes differ); run the command"
                " again with the model as it was"
            )
        files[name] = {"sha256": sha256, "bytes": target.stat().st_size}
        if progress:
            progress(files[name]["bytes"])
    record = sealed({"format_version": FORMAT_VERSION, "model_sha256": model_sha256, "files": files})
    write_json(layout.model(model) / RECORD, record)
    clear_dead(folder)  # a kill in the middle of a file
    layout.files.publish(folder, layout.model(model) / RECORD)
    return record


def _linked(source: Path, target: Path) -> bool:
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system, or one without links: it is copied instead
        return False
    return True


def _copy(source: Path, target: Path) -> str:
    """Copy a file so that it appears whole and flushed; returns the SHA-256 of what was copied."""
    digest = hashlib.sha256()
    with replacing(target) as temporary, open(source, "rb") as given, open(temporary, "wb") as taken:
        while block := given.read(BLOCK):
            digest.update(block)
            taken.write(block)
    return digest.hexdigest()
