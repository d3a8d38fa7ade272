"""Tuned-lens probes in the lake: sealed Zarr groups with their provenance, and the state of a training under way."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..core.errors import CorruptError, LakeError
from ..core.files import (
    explain_full_disk,
    hash_files,
    hash_json,
    parse_json,
    read_json,
    sync_file,
    temporary_of,
    write_json,
)
from ..core.schema import FORMAT_VERSION, MANIFEST
from ..format.npz import read_npz
from ..format.parquet import first_line
from ..format.paths import Layout, check_version
from ..format.records import REPAIRS, check_record, is_whole
from ..format.zarr_groups import checked, open_group
from ..format.zarr_metadata import check_dims
from ..remote.files import HERE, Files
from .models import write_group

PROBE_DIMS = {
    "weight": ("fold", "boundary", "d_out", "d_model"),
    "bias": ("fold", "boundary", "d_out"),
    "boundary": ("boundary",),
}
FOLDS = 1000  # more than anyone trains
Curve = list[dict[str, Any]]
Training = list[tuple[dict[str, np.ndarray], Curve]]  # of each fold


def probes_path(layout: Layout, model: str, name: str) -> Path:
    """Zarr group of one set of probes."""
    return layout.lenses(model) / f"tuned-{name}.zarr"


def write_probes(path: Path, weight: np.ndarray, bias: np.ndarray, record: dict[str, Any], lake: Files = HERE) -> None:
    """Seal probes of F folds and the boundaries 0 .. L-1 (weight [F, L, d, d], bias [F, L, d], float32) under `path`.

    The group appears whole, with a manifest of `record` and the hash of every file, by one rename. What is there already
    stays. The training state beside it goes. A full disk is a LakeError and leaves nothing behind.
    """
    temporary = temporary_of(path)
    arrays = {"weight": weight, "bias": bias, "boundary": np.arange(bias.shape[1], dtype=np.int32)}
    named = {name: record[name] for name in ("model", "stream", "model_sha256", "capture_sha256")}
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with explain_full_disk(f"writing {path}"):
            files = write_group(temporary, arrays, PROBE_DIMS, named, lambda shape: (1, 1, *shape[2:])[: len(shape)])
            sealed = {"format_version": FORMAT_VERSION, **record, "files": files, "probes_sha256": hash_json(files)}
            write_json(temporary / MANIFEST, sealed)
            try:
                temporary.rename(path)
            except OSError:
                if not (path / MANIFEST).exists():  # else another process was faster
                    shutil.rmtree(path, ignore_errors=True)
                    temporary.rename(path)
            lake.publish(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    training_file(path).unlink(missing_ok=True)


def read_probes(path: Path, lake: Files = HERE) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """weight [F, L, d, d] and bias [F, L, d], float32, and the manifest of a sealed set.

    Every file is hashed before its numbers are used. LakeError when there is no such set, CorruptError on damage.
    """
    record = _record(lake.bring(path) / MANIFEST)
    again = f"restore it, or delete {path} and train again"
    if hash_json(record.get("files")) != record.get("probes_sha256"):
        raise CorruptError(f"{path / MANIFEST}: damaged; {again}")
    present = (file for file in path.rglob("*") if file.is_file() and file.name != MANIFEST)
    found, wanted = hash_files(present, path), record["files"]
    if wrong := [name for name in sorted(found.keys() | wanted.keys()) if found.get(name) != wanted.get(name)]:
        here, then = (files.get(wrong[0], "nothing") for files in (found, wanted))
        raise CorruptError(
            f"{path / wrong[0]}: missing, or not the bytes that were written (found {here}, expected {then}); {again}"
        )
    group, arrays = open_group(path, wanted.get("zarr.json", "nothing"))
    check_dims(path, arrays, PROBE_DIMS, {"fold": record["folds"], "boundary": len(record["kl_raw"][0])})
    weight, bias = (checked(path, group, name)[...] for name in ("weight", "bias"))
    return weight, bias, record


def list_probes(layout: Layout, model: str = "*") -> list[tuple[Path, dict[str, Any]]]:
    """Every sealed set with its manifest, or those of a model, by path."""
    sets = sorted(layout.files.bring(layout.root / "lenses", MANIFEST).glob(f"{model}/tuned-*.zarr/{MANIFEST}"))
    return [(file.parent, _record(file)) for file in sets]


def _record(file: Path) -> dict[str, Any]:
    """A set's manifest; where an older version wrote one number for all folds, as a list."""
    found = read_json(file, repair=REPAIRS["probes"])
    if isinstance(found, dict) and is_whole(found.get("folds"), 1, FOLDS):
        found |= {key: [found[key]] * found["folds"] for key in ("steps", "trained_tokens") if is_whole(found.get(key))}
    check_version(found, file, REPAIRS["probes"])
    check_record(found, "probes", file)
    for key in ("steps", "trained_tokens", "kl_raw", "kl_tuned"):
        if (count := len(found[key])) != found["folds"]:
            raise CorruptError(f"{file}: {key}: expected {found['folds']} folds, found {count}; {REPAIRS['probes']}")
    if len(layers := {len(kl) for key in ("kl_raw", "kl_tuned") for kl in found[key]}) != 1 or 0 in layers:
        raise CorruptError(
            f"{file}: kl_raw, kl_tuned: expected one number a boundary in each fold; {REPAIRS['probes']}"
        )
    return dict(found)


def probes_table(layout: Layout) -> pd.DataFrame:
    """One row per set: model, name, recipe, folds, tokens and steps (of a fold), kl_raw, kl_tuned (held-out, mean
    over folds and layers), path."""
    rows = [
        {
            "model": record["model"],
            "name": path.stem,
            "recipe": record["recipe"]["name"],
            "folds": record["folds"],
            "tokens": max(record["trained_tokens"]),
            "steps": max(record["steps"]),
            "kl_raw": float(np.mean(record["kl_raw"])),
            "kl_tuned": float(np.mean(record["kl_tuned"])),
            "path": str(path),
        }
        for path, record in list_probes(layout)
    ]
    columns = ["model", "name", "recipe", "folds", "tokens", "steps", "kl_raw", "kl_tuned", "path"]
    return pd.DataFrame(rows, columns=columns)


def find_probes(layout: Layout, model: str, name: str = "") -> Path:
    """The set of a model whose name starts with `name`; LakeError if none or several do."""
    folder = layout.lenses(model)
    names = [path.stem for path, _ in list_probes(layout, model)]
    found = [name] if name in names else [known for known in names if known.startswith((name, f"tuned-{name}"))]
    if len(found) != 1:
        raise LakeError(
            f"{'no' if not found else 'several'} probes of {model} have a name that starts with {name!r}; there:"
            f" {', '.join(names) or 'none'}. `actlake probes train` makes some"
        )
    return folder / f"{found[0]}.zarr"


def training_file(path: Path) -> Path:
    """Where the state of an unfinished training of `path` lies."""
    return path.with_name(f".{path.stem}.training")


def save_training(path: Path, training: Training) -> None:
    """Keep the state of a training beside `path`, atomically: the arrays and the curve of each fold."""
    file = training_file(path)
    temporary = temporary_of(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    arrays = {f"{fold}/{name}": value for fold, (state, _) in enumerate(training) for name, value in state.items()}
    curves = np.array(json.dumps([curve for _, curve in training]))
    try:
        with explain_full_disk(f"writing {file}"):
            with open(temporary, "wb") as stored:  # array by array: a copy of all would double what a training takes
                np.savez(stored, curves=curves, **arrays)  # type: ignore[arg-type]
            sync_file(temporary)
            temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def load_training(path: Path) -> Training:
    """The state of an unfinished training by fold, empty without one; LakeError when the file can't be read."""
    file = training_file(path)
    if not file.exists():
        return []
    stored = read_npz(file, again := "delete it to train from the start")
    try:
        found: Training = [({}, curve) for curve in parse_json(str(stored.pop("curves")).encode())]
        for name, values in stored.items():
            fold, _, rest = name.partition("/")
            found[int(fold)][0][rest] = values
        return found
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise LakeError(f"{file}: can't be read ({first_line(error)}); {again}") from error
