"""Jacobian lenses that others published: a file {J, n_prompts, source_layers, d_model}, checked against the lake's model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...exchange.torch_files import load_tensors
from ...store.artifacts.models import read_model
from ...store.artifacts.probes import JACOBIAN, probes_path, read_facts, write_probes
from ...store.core.errors import LakeError
from ...store.core.files import hash_file
from ...store.core.progress import say
from ...store.tables.streams import stream_table
from ..engine.context import Context
from .jacobian import looked_at

if TYPE_CHECKING:
    from torch import Tensor

VERSION = 1  # raise when a file is read as other numbers
KEYS = ("J", "n_prompts", "source_layers", "d_model")
# A map that belongs to a model finds its final top token, before the last block, about as often as the raw lens or oftener.
LEAST = 0.5


def import_jacobian(kit: Context, file: Path, model: str) -> tuple[Path, dict[str, Any]]:
    """Keep a published Jacobian lens for a model of the lake; returns the set and what is on record of it.

    Layer l of the file is what leaves block l, boundary l + 1. It has none of the embeddings, which are read as they are.
    LakeError, one line, for a file of another format, of other sizes than the model's, of another model by its metadata, and
    for one whose last map reads residuals of the lake far worse than no map at all.
    """
    found, record = _loaded(file), read_model(kit.layout, model)
    layers, width = record["n_layers"], record["d_model"]
    weight = np.stack([np.eye(width, dtype=np.float32), *_maps(file, found, model, layers, width)])
    _check_facts(file, found, record)
    recipe = {
        "model": model,
        "kind": JACOBIAN,
        "file_sha256": hash_file(file),
        "model_sha256": kit.head_hash((model, "")),
        "checkpoint_sha256": record["sha256"],
        "recipe": {"name": "imported", "prompts": int(found["n_prompts"])},
        "folds": 1,
        "version": VERSION,
    }
    path = probes_path(kit.layout, recipe)
    if not path.exists():
        facts = {"prompts": [int(found["n_prompts"])], "trained_tokens": [0], "error": [[None] * layers]}
        looks = _checked(kit, file, model, weight)
        write_probes(kit.layout, recipe, weight[None], np.zeros((1, layers, width), np.float32), facts | looks)
    return path, read_facts(kit.layout.files, path)


def _loaded(file: Path) -> dict[str, Any]:
    """The dictionary of a file, from which no code is run; LakeError for anything else."""
    found = load_tensors(file)
    if not isinstance(found, dict) or (lacks := [key for key in KEYS if key not in found]):
        what = f"it lacks {', '.join(lacks)}" if isinstance(found, dict) else f"a {type(found).__name__}"
        raise LakeError(f"{file}: no Jacobian lens", expected=f"a dictionary with {', '.join(KEYS)}", found=what)
    if type(found["n_prompts"]) is not int or found["n_prompts"] < 1:
        raise LakeError(f"{file}: n_prompts", expected="a whole number from 1", found=repr(found["n_prompts"])[:60])
    return found


def _maps(file: Path, found: dict[str, Any], model: str, layers: int, width: int) -> list[np.ndarray]:
    """The maps [d, d] of the boundaries 1 .. L-1, float32."""
    import torch

    maps: Any = found["J"]
    if found["d_model"] != width:
        raise LakeError(
            f"{file}: d_model", expected=f"{width}, the width of {model}", found=repr(found["d_model"])[:60]
        )
    if not isinstance(maps, dict) or not all(type(layer) is int for layer in maps):
        raise LakeError(f"{file}: J", expected="a dictionary from layers to matrices", found=type(maps).__name__)
    wanted, there = list(range(layers - 1)), sorted(maps)
    if there != wanted or _numbers(found["source_layers"]) != wanted:
        raise LakeError(
            f"{file}: its layers",
            expected=f"0 to {layers - 2}, all but the last of the {layers} of {model}",
            found=f"matrices of {_few(there)}, source_layers {_few(_numbers(found['source_layers']))}",
        )
    for layer, matrix in maps.items():
        fits = isinstance(matrix, torch.Tensor) and matrix.shape == (width, width) and matrix.is_floating_point()
        if not fits or not torch.isfinite(matrix).all():
            shape = (
                f"{list(matrix.shape)} of {matrix.dtype}" if isinstance(matrix, torch.Tensor) else type(matrix).__name__
            )
            raise LakeError(f"{file}: J of layer {layer}", expected=f"finite floats [{width}, {width}]", found=shape)
    return [_array(maps[layer]) for layer in wanted]


def _array(matrix: Tensor) -> np.ndarray:
    return np.asarray(matrix.float().numpy())


def _numbers(layers: Any) -> list[int]:
    return sorted(layers) if isinstance(layers, list | tuple) and all(type(one) is int for one in layers) else []


def _few(layers: list[int]) -> str:
    return f"{layers[0]} to {layers[-1]}, {len(layers)} of them" if layers else "none"


def _check_facts(file: Path, found: dict[str, Any], record: dict[str, Any]) -> None:
    """LakeError when the file's metadata name another target than the last layer, or another hub model than the lake's."""
    facts = found.get("metadata")
    facts = facts if isinstance(facts, dict) else {}
    if (target := facts.get("target_layer", last := record["n_layers"] - 1)) != last:
        raise LakeError(f"{file}: target_layer", expected=f"{last}, the last of the model", found=repr(target)[:60])
    said, revision = facts.get("model_name") or facts.get("model"), facts.get("model_revision")
    if record["files"] or not isinstance(said, str):  # a local folder has no name that says what it is
        return
    if said.rpartition("/")[2].lower() != record["id"].rpartition("/")[2].lower():
        raise LakeError(f"{file}: a lens of another model", expected=record["id"], found=said[:100])
    if revision and record["revision"] and revision != record["revision"]:
        raise LakeError(
            f"{file}: a lens of another revision of the model", expected=record["revision"], found=str(revision)[:60]
        )


def _checked(kit: Context, file: Path, model: str, weight: np.ndarray) -> dict[str, list[float]]:
    """What `looked_at` finds on a capture of the model, if the lake has one of all residuals; LakeError where it does not fit."""
    import torch

    from ...analyze.lens.tuned_lens import Probes

    probes = Probes(torch.from_numpy(weight), torch.zeros(weight.shape[:2]))
    streams = stream_table(kit.layout, [model])
    for stream in sorted(set(streams["stream"]), key=lambda name: (not name.startswith("native"), name)):
        if kit.layout.capture(model, stream).exists() and (looks := looked_at(kit, (model, stream), [probes])):
            raw, mapped = looks["top1_raw"][-1], looks["top1_jacobian"][-1]
            if mapped < LEAST * raw:
                raise LakeError(
                    f"{file}: a lens of another checkpoint than {model}",
                    expected=f"the final top token at {raw:.0%} of positions before the last block, as without a map, or more",
                    found=f"{mapped:.0%}",
                )
            return looks
    say(f"{model}: no capture here has residuals at every boundary, so that the lens is checked by its sizes alone")
    return {}
