"""A checkpoint's own files into the lake, so that a shared lake can run the model again without the hub."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

from ...store.artifacts.weights import bytes_to_copy, check_room, read_weights, write_weights
from ...store.core.catalog import ModelSpec
from ...store.core.errors import LakeError
from ...store.core.progress import ERRORS, Estimate, bar
from ...store.format.paths import Layout
from ..checkpoint.configs import source
from .checkpoint_diff import INDEX, weight_map
from .load import stored_weights

# What belongs to a checkpoint: weights, configs, tokenizer files, licences. Other formats of the same weights do not.
SUFFIXES = (".safetensors", ".json", ".jinja", ".txt", ".model", ".tiktoken", ".md")
LICENCES = ("LICENSE", "NOTICE", "USE_POLICY")


def cached_folder(spec: ModelSpec) -> Path:
    """The folder of a hub model in the hub's cache on this machine, named by its commit; LakeError when it is missing."""
    try:
        return Path(snapshot_download(str(spec.hub), revision=spec.revision, local_files_only=True))
    except (OSError, ValueError) as error:
        revision = f" --revision {spec.revision}" if spec.revision else ""
        raise LakeError(
            f"model {spec.name}: its weights are not on this machine; fetch them with `hf download {spec.hub}{revision}`"
        ) from error


def check_here(spec: ModelSpec) -> None:
    """LakeError unless the weights of a model are on this machine."""
    if spec.path:
        source(spec)
    else:
        cached_folder(spec)


def here_or_stored(layout: Layout, spec: ModelSpec) -> ModelSpec:
    """The catalog's model, or the lake's own copy of it (`--with-weights`) when this machine no longer has it."""
    stored = stored_weights(layout, spec.name)
    if stored is None:
        return spec
    try:
        check_here(spec)
    except LakeError:
        where = spec.path or spec.hub
        ERRORS.print(
            f"model {spec.name}: {where} is not here, taking the lake's own copy {stored.path}",
            highlight=False,
            soft_wrap=True,
        )
        return stored
    return spec


def files_of(spec: ModelSpec) -> tuple[Path, list[str]]:
    """The folder of a checkpoint on this machine (the hub's cache for a hub model) and the names of its files."""
    folder = spec.path or cached_folder(spec)
    if spec.gguf_file:
        return folder, [spec.gguf_file]
    names = sorted(
        file.name
        for file in folder.iterdir()
        if file.is_file() and (file.suffix in SUFFIXES or file.name.startswith(LICENCES))
    )
    if spec.hub and (folder / INDEX).is_file():  # some repositories hold the weights a second time in another layout
        loaded = set(weight_map(folder / INDEX).values())
        names = [name for name in names if not name.endswith(".safetensors") or name in loaded]
    return folder, names


def weights_to_copy(layout: Layout, models: Sequence[ModelSpec]) -> int:
    """Bytes that `keep_weights` will take for these models; a hub model is fetched later and not counted."""
    new = [spec for spec in models if spec.path and not read_weights(layout, spec.name)]
    return sum(bytes_to_copy(layout, spec.name, *files_of(spec)) for spec in new)


def check_weights_fit(layout: Layout, models: Sequence[ModelSpec]) -> None:
    """Raise LakeError when `keep_weights` would not find the room, however little a capture takes beside it."""
    check_room(layout, ", ".join(spec.name for spec in models), weights_to_copy(layout, models))


def keep_weights(layout: Layout, spec: ModelSpec, identity: dict[str, Any]) -> None:
    """Put the files of a model into the lake, once; `identity` (model.identify) says what they must be."""
    if read_weights(layout, spec.name):
        return
    folder, names = files_of(spec)
    total = sum((folder / name).stat().st_size for name in names)
    licence = (
        "The model's licence comes with them: who shares the lake passes the model on, and gated models ask each user to accept"
        " their terms first"
    )
    ERRORS.print(str(Estimate(f"weights of {spec.name} into the lake", total, leave_out=licence)), highlight=False)
    with bar(f"weights {spec.name}", total, "bytes") as progress:
        write_weights(
            layout,
            spec.name,
            folder,
            names,
            identity["sha256"],
            known=identity["files"],
            link=spec.path is None,  # files in the hub's cache never change; a folder's may be saved over
            progress=progress.advance,
        )
