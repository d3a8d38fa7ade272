"""The table `weights`: a pair's two checkpoints compared where the catalog, or the lake, has their files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...store.artifacts.models import has_model, read_model
from ...store.artifacts.weights import check_weights, read_weights, weights_folder
from ...store.core.catalog import ModelSpec
from ...store.core.columns import LAYER, MODELS, Column, label_column
from ...store.core.errors import LakeError
from ...store.core.files import hash_files
from ...store.core.progress import bar
from ...store.core.schema import VARIANTS
from ...store.format.paths import Layout
from ...store.tables.declared import TABLES
from ...store.tables.files import drop_tables
from ..engine.context import Context, Scope, check_both
from ..engine.declare import table
from ..engine.job import TableJob

WEIGHTS = "*.safetensors"


@table(
    "weights",
    [
        *MODELS,
        label_column("grouping", "how weights are grouped: by module, or as in the PT/IT study (seed)", fill="'seed'"),
        LAYER,
        label_column("group", "group of weights; layer -1: outside the blocks"),
        Column("rms", "float32", "root mean square of IT - PT", "1"),
        Column("rms_pt", "float32", "root mean square of PT", "1"),
        Column("parameters", "int64", "weights of the group", "weights"),
    ],
    "How far a pair's weights are apart.",
    "grouping x layer x group",
    of="pair",
    version=1,
    how="weights",
)
class _Weights(TableJob):
    """RMS of IT - PT per layer and group, both groupings, in one pass over both checkpoints' files."""

    def __init__(self, kit: Context, scope: Scope):
        pair = scope.pair
        check_both(kit, pair, "table weights")
        found = {variant: checkpoint(kit.layout, _spec(kit, scope.models[variant])) for variant in VARIANTS}
        recipe = {
            "models": scope.models,
            "files": {v: identity for v, (_, identity) in found.items()},
            "version": TABLES["weights"].version,
        }
        super().__init__(kit.layout, "weights", recipe)
        self._scope, self._layout, (self._pt, self._it) = scope, kit.layout, (found[variant][0] for variant in VARIANTS)

    def finish(self) -> None:
        """Compare tensor by tensor, then pool twice."""
        from ...capture.model.checkpoint_diff import group_changes, tensor_changes, total_parameters

        with bar(f"weights {self._scope.pair}", total_parameters(self._pt), "weights") as progress:
            changes = list(tensor_changes(self._pt, self._it, progress.advance))
        drop_tables(self._layout, "weights", {"models": self._scope.models}, keep=self.path)
        for grouping in ("module", "seed"):
            columns = group_changes(changes, grouping)
            self.add({**self._scope.columns, "grouping": grouping, **columns})


def _spec(kit: Context, model: str) -> ModelSpec:
    """A model as the catalog names it, or of the lake's own files; LakeError when neither has it."""
    if model in kit.catalog.models:
        return kit.catalog.model(model)
    if read_weights(kit.layout, model):
        return ModelSpec(model, weights_folder(kit.layout, model), None, None, None)
    raise LakeError(
        f"table weights compares the models' own files; this lake has none of {model} (`actlake capture {model}"
        f" --with-weights` keeps them there), and {kit.catalog.where} does not name the model"
    )


def checkpoint(layout: Layout, spec: ModelSpec) -> tuple[Path, Any]:
    """The folder of a model's safetensors, and what tells their content: file hashes, or the hub's id and commit.

    The lake's own copy comes first, then the catalog's folder, then what the hub's cache holds; nothing is downloaded.
    LakeError when there is none, or when it is not what the lake's captures were made from.
    """
    name = spec.name
    record = read_model(layout, name) if has_model(layout, name) else {}
    stored = read_weights(layout, name) or {"files": {}}
    kept = {file: entry["sha256"] for file, entry in stored["files"].items() if file.endswith(".safetensors")}
    if kept:
        check_weights(layout, name)
        return weights_folder(layout, name), kept
    if spec.gguf_file:
        raise LakeError(f"model {name}: {spec.gguf_file} is GGUF; weights are compared from safetensors only")
    found: Any
    if spec.path:
        folder, found = spec.path, hash_files(spec.path.glob(WEIGHTS), spec.path)
        known: Any = {file: sha for file, sha in record.get("files", {}).items() if file in found} or found
    else:
        from ...capture.model.weights_copy import cached_folder

        folder = cached_folder(spec)
        found = [spec.hub, folder.name]  # the cache names its folders by commit
        known = [record.get("id", spec.hub), record.get("revision") or folder.name]
    if known != found:
        raise LakeError(
            f"model {name}: the catalog's weights ({folder}) are not those that the lake's captures were made from; name the same"
            " checkpoint, or give the other one another name"
        )
    return folder, found
