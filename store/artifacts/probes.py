"""Probes of lenses in the lake, tuned or Jacobian: sealed Zarr groups with their provenance, and the state of a fit under way."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..core.errors import CorruptError, LakeError
from ..core.files import explain_full_disk, parse_json, replacing
from ..core.schema import RECORD
from ..format.npz import read_npz
from ..format.parquet import first_line
from ..format.paths import Layout
from ..format.records import REPAIRS
from ..format.zarr_groups import checked, open_group
from ..format.zarr_metadata import check_dims
from ..remote.files import HERE, Files
from .artifact import Artifact, key_of, read, read_sealed, writing
from .models import write_group

PROBE_DIMS = {
    "weight": ("fold", "boundary", "d_out", "d_model"),
    "bias": ("fold", "boundary", "d_out"),
    "boundary": ("boundary",),
}
TUNED, JACOBIAN = "tuned", "jacobian"  # kinds of lenses that probes read
Curve = list[dict[str, Any]]
Training = list[tuple[dict[str, np.ndarray], Curve]]  # of each fold


def probes_path(layout: Layout, recipe: dict[str, Any]) -> Path:
    """Zarr group of the set that a recipe makes: tuned-STREAM-RECIPE-KEY.zarr, KEY the first 8 digits of the recipe's; of a
    Jacobian lens jacobian-STREAM-KEY.zarr, or jacobian-imported-KEY.zarr.
    """
    kind, name = recipe.get("kind", TUNED), recipe["recipe"]["name"]
    words = [kind, recipe.get("stream", ""), "" if name == kind else name, key_of(recipe)[:8]]
    return layout.lenses(recipe["model"]) / f"{'-'.join(filter(None, words))}.zarr"


def record_kind(folder: str | Path) -> str:
    """The kind of record that seals a set, by the name of its group."""
    return JACOBIAN if Path(folder).name.startswith(f"{JACOBIAN}-") else "probes"


def write_probes(
    layout: Layout, recipe: dict[str, Any], weight: np.ndarray, bias: np.ndarray, facts: dict[str, Any]
) -> Path:
    """Seal probes of F folds and the boundaries 0 .. L-1 (weight [F, L, d, d], bias [F, L, d], float32); returns their group.

    `recipe` is all that determines them, `facts` what came of it. What is there already stays. The training state beside it
    goes. A full disk is a LakeError and leaves nothing behind.
    """
    path = probes_path(layout, recipe)
    arrays = {"weight": weight, "bias": bias, "boundary": np.arange(bias.shape[1], dtype=np.int32)}
    with writing(layout, path, recipe, facts) as folder:
        write_group(folder, arrays, PROBE_DIMS, recipe, lambda shape: (1, 1, *shape[2:])[: len(shape)])
    training_file(path).unlink(missing_ok=True)
    return path


def read_probes(path: Path, lake: Files = HERE) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """weight [F, L, d, d] and bias [F, L, d], float32, and what is on record of a sealed set.

    Every file is hashed before its numbers are used. LakeError when there is no such set, CorruptError on damage.
    """
    found = read(lake, path, record_kind(path))
    found.check()
    record = _facts(found)
    group, arrays = open_group(path, found.record["files"]["zarr.json"]["sha256"])
    boundaries = len(record["error" if record_kind(path) == JACOBIAN else "kl_raw"][0])
    check_dims(path, arrays, PROBE_DIMS, {"fold": record["folds"], "boundary": boundaries})
    weight, bias = (checked(path, group, name)[...] for name in ("weight", "bias"))
    return weight, bias, record


def list_probes(layout: Layout, model: str = "*", kind: str = TUNED) -> list[tuple[Path, dict[str, Any]]]:
    """Every sealed set of a kind of lens (* for all) with what is on record of it, or those of a model, by path."""
    sets = sorted(layout.files.bring(layout.root / "lenses", RECORD).glob(f"{model}/{kind}-*.zarr/{RECORD}"))
    return [(file.parent, read_facts(layout.files, file.parent)) for file in sets]


def read_facts(lake: Files, path: Path) -> dict[str, Any]:
    """What is on record of a set: its recipe (`recipe` is that of the training) and what came of it."""
    return _facts(read_sealed(lake, path, record_kind(path)))


def _facts(found: Artifact) -> dict[str, Any]:
    file, record = found.folder / RECORD, {**found.record, **found.record["recipe"]}
    repair, fitted = REPAIRS[found.kind], found.kind == JACOBIAN
    if not file.parent.stem.endswith(f"-{found.record['key'][:8]}"):
        raise CorruptError(f"{file}: key: found {found.record['key']} in a folder of another", repair=repair)
    for key in ("prompts", "error") if fitted else ("steps", "trained_tokens", "kl_raw", "kl_tuned"):
        if (count := len(record[key])) != record["folds"]:
            raise CorruptError(f"{file}: {key}: expected {record['folds']} folds, found {count}", repair=repair)
    each = ("error",) if fitted else ("kl_raw", "kl_tuned")
    if len(layers := {len(line) for key in each for line in record[key]}) != 1 or 0 in layers:
        raise CorruptError(f"{file}: {', '.join(each)}: expected one number a boundary in each fold", repair=repair)
    return record


def probes_table(layout: Layout) -> pd.DataFrame:
    """One row per set: model, name, recipe, folds, tokens and steps (of a fold), kl_raw, kl_tuned, kl_jacobian (held-out,
    mean over folds and layers), error, path. Of a Jacobian lens a step is a prompt, and `error` its largest relative error.
    """
    rows = [
        {
            "model": record["model"],
            "name": path.stem,
            "recipe": record["recipe"]["name"],
            "folds": record["folds"],
            "tokens": max(record["trained_tokens"]),
            "steps": max(record.get("steps") or record["prompts"]),
            **{name: _mean(record.get(name)) for name in ("kl_raw", "kl_tuned", "kl_jacobian")},
            "error": max((e for line in record.get("error", []) for e in line if e is not None), default=np.nan),
            "path": str(path),
        }
        for path, record in list_probes(layout, kind="*")
    ]
    columns = ["model", "name", "recipe", "folds", "tokens", "steps"]
    columns += ["kl_raw", "kl_tuned", "kl_jacobian", "error", "path"]
    return pd.DataFrame(rows, columns=columns)


def _mean(numbers: list[Any] | None) -> float:
    return float(np.mean(numbers)) if numbers else np.nan


def find_probes(layout: Layout, model: str, name: str = "") -> Path:
    """The set of a model whose name starts with `name`, without a name one of a tuned lens before others; LakeError if
    none or several do.
    """
    folder = layout.lenses(model)
    names = [path.stem for path, _ in list_probes(layout, model, "*")]
    if not name and any(known.startswith(TUNED) for known in names):
        name = TUNED
    found = [name] if name in names else [known for known in names if known.startswith((name, f"tuned-{name}"))]
    if len(found) != 1:
        raise LakeError(
            f"{'no' if not found else 'several'} probes of {model} have a name that starts with {name!r}; there:"
            f" {', '.join(names) or 'none'}",
            repair="`actlake fit-lens` makes some",
        )
    return folder / f"{found[0]}.zarr"


def training_file(path: Path) -> Path:
    """Path of the state of an unfinished training of `path`."""
    return path.with_name(f".{path.stem}.training")


def save_training(path: Path, training: Training) -> None:
    """Keep the state of a training beside `path`, atomically: the arrays and the curve of each fold."""
    file = training_file(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    arrays = {f"{fold}/{name}": value for fold, (state, _) in enumerate(training) for name, value in state.items()}
    curves = np.array(json.dumps([curve for _, curve in training]))
    with explain_full_disk(f"writing {file}"), replacing(file) as temporary, open(temporary, "wb") as stored:
        np.savez(stored, curves=curves, **arrays)  # type: ignore[arg-type]  # a copy of all would double what it takes


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
