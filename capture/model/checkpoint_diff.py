"""Weight change by post-training: RMS of IT - PT per layer and group, read from safetensors files."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...store.core.errors import LakeError
from ...store.core.files import read_json
from ...store.format.records import LARGEST
from ...store.format.rules import FILE, TEXT, misfit

BLOCK = 1 << 24  # elements of one tensor in memory at a time: 64 MiB as float32, for each model
INDEX = "model.safetensors.index.json"
# Wrappers of the text model: PT and IT may be saved from classes that wrap it differently.
WRAPPERS = {"model", "language_model", "text_model", "transformer", "gpt_neox", "decoder", "backbone", "base_model"}
BLOCKS = re.compile(r"(?:layers|h|blocks)\.(\d+)\.(.+)")
BUFFERS = ("rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias")
TOKEN_EMBED = {"embed_tokens", "wte", "embed_in"}
EMBED = TOKEN_EMBED | {"wpe", "embed_positions"}
LM_HEAD = {"lm_head", "embed_out", "output"}
ATTENTION = {"self_attn", "attn", "attention", "self_attention", "linear_attn"}
MLP = {"mlp", "feed_forward", "ffn", "block_sparse_moe"}
ROUTER = {"gate", "router", "shared_expert_gate"}
GROUPS = ("attention", "mlp", "router", "experts", "norms", "embed", "final_norm", "lm_head", "other")
SEED_GROUPS = ("attn", "mlp", "norm", "router", "embed", "final_norm", "lm_head")


@dataclass(frozen=True)
class _Place:
    """A tensor's file and its name in it."""

    file: Path
    key: str


@dataclass(frozen=True)
class _Change:
    """One parameter tensor in both checkpoints: block (-1 outside of them), name without wrappers, sums of squares, size."""

    layer: int
    name: str
    change: float
    scale: float
    parameters: int


def tensor_changes(pt: Path, it: Path, progress: Callable[[int], None] | None = None) -> Iterator[_Change]:
    """Compare two folders of safetensors tensor by tensor, a bounded block of rows at a time; no model is built.

    Differences are taken in float32 (float64 for float64 weights), sums in float64. Names are compared without the
    wrappers that differ between model classes. A tied lm_head that one side does not store is that side's embedding; of
    embeddings with unequal vocabularies the first rows, which both have, are compared. Towers for images or sound
    count as other, and only where both have them. `progress` is called with the parameters of each tensor. LakeError for a
    folder without safetensors, a missing shard, tensors of the text model that one side lacks or has in another
    shape, and quantised weights. Source: METHODS 4 (L3).
    """
    places = {"pt": _places(pt), "it": _places(it)}
    names = _common(places["pt"], places["it"], pt, it)
    with ExitStack() as stack:
        files: dict[Path, Any] = {}

        def view(place: _Place) -> Any:
            if place.file not in files:
                files[place.file] = stack.enter_context(_open(place.file))
            return files[place.file].get_slice(place.key)

        for name, (a, b) in names.items():
            layer, _ = split_name(name)
            change = _compare(view(a), view(b), name, pt, it)
            if change is not None:
                yield _Change(layer, name, *change)
                if progress is not None:
                    progress(change[2])


def total_parameters(folder: Path) -> int:
    """Number of elements in a checkpoint's files, from their headers alone."""
    total = 0
    for file in {place.file for place in _places(folder).values()}:
        with _open(file) as opened:
            total += sum(int(np.prod(opened.get_slice(key).get_shape())) for key in opened.keys())  # noqa: SIM118
    return total


def group_changes(changes: list[_Change], grouping: str = "module") -> dict[str, np.ndarray]:
    """Pool tensors: sqrt(sum of squares / number of elements) per layer and group.

    grouping 'module': each tensor is in the group of the module it belongs to, norms in 'norms' wherever they are.
    'seed': by substrings of the name, as the study does, so that its figures can be had: a tensor may be in several
    groups (post_attention_layernorm in 'attn' and 'norm', a gated MLP's gate_proj in 'mlp' and 'router') or in none.
    Returns columns of equal length: layer int32 (-1 outside the blocks), group (text), rms and rms_pt (RMS of PT's own
    weights) float64, parameters int64. ValueError for another grouping. Source: METHODS 4 (L3), 21.
    """
    if grouping not in ("module", "seed"):
        raise ValueError(f"weights: grouping {grouping!r}, expected module or seed")
    sums: dict[tuple[int, str], np.ndarray] = {}
    for change in changes:
        for group in (module_group(change.name),) if grouping == "module" else seed_groups(change.name):
            row = sums.setdefault((change.layer, group), np.zeros(3))
            row += (change.change, change.scale, change.parameters)
    order = {name: i for i, name in enumerate(GROUPS if grouping == "module" else SEED_GROUPS)}
    keys = sorted(sums, key=lambda key: (key[0], order[key[1]]))
    table = np.array([sums[key] for key in keys]).reshape(-1, 3)
    return {
        "layer": np.array([layer for layer, _ in keys], np.int32),
        "group": np.array([group for _, group in keys], dtype=object),
        "rms": np.sqrt(table[:, 0] / table[:, 2]),
        "rms_pt": np.sqrt(table[:, 1] / table[:, 2]),
        "parameters": table[:, 2].astype(np.int64),
    }


# --- names -----------------------------------------------------------------------------------------------------------


def bare_name(key: str) -> str:
    """A tensor's name without the wrappers in front: 'model.language_model.layers.0.x' -> 'layers.0.x'."""
    parts = key.split(".")
    while len(parts) > 1 and parts[0] in WRAPPERS:
        parts = parts[1:]
    return ".".join(parts)


def split_name(name: str) -> tuple[int, str]:
    """(block, name within it) of a bare name; block -1 for tensors outside the text model's blocks."""
    match = BLOCKS.fullmatch(name)
    return (int(match[1]), match[2]) if match else (-1, name)


def module_group(name: str) -> str:
    """The group of a bare name by its module, one of GROUPS."""
    layer, rest = split_name(name)
    parts = rest.split(".")[:-1]  # the last part is weight or bias
    if layer < 0:
        found = {"embed": EMBED, "lm_head": LM_HEAD}
        group = next((group for group, names in found.items() if parts and parts[0] in names), None)
        return group or ("final_norm" if len(parts) == 1 and _is_norm(parts[0]) else "other")
    if any(map(_is_norm, parts)):
        return "norms"
    if any("expert" in part for part in parts) and parts[-1] not in ROUTER:
        return "experts"
    for group, names in (("router", ROUTER), ("attention", ATTENTION), ("mlp", MLP)):
        if names & set(parts):
            return group
    return "other"


def _is_norm(part: str) -> bool:
    return "norm" in part or part.startswith("ln_")


def seed_groups(name: str) -> tuple[str, ...]:
    """The groups of a bare name by substrings, as the study's collector has them; none, one or several of SEED_GROUPS."""
    layer, rest = split_name(name)
    if layer < 0:
        group = module_group(name)
        return (group,) if group in SEED_GROUPS else ()
    words = {
        "attn": ("self_attn", "attention"),
        "mlp": (".mlp.", "expert", "router", "gate"),
        "norm": ("norm",),
        "router": ("router", "gate_proj"),
    }
    return tuple(group for group, parts in words.items() if any(part in f".{rest}" for part in parts))


# --- files -----------------------------------------------------------------------------------------------------------


def _places(folder: Path) -> dict[str, _Place]:
    """Bare name -> where the tensor is, for the safetensors that a Hugging Face folder would be loaded from."""
    index, whole = folder / INDEX, folder / "model.safetensors"
    if index.is_file():
        found = weight_map(index)
        if lost := sorted({file for file in found.values() if not (folder / file).is_file()}):
            raise LakeError(
                f"{folder / lost[0]}: {len(lost)} weight files that {INDEX} names are missing; fetch them again"
            )
        return _by_bare_name(folder, [_Place(folder / file, key) for key, file in found.items()])
    # Some repositories hold the weights a second time in another layout; model.safetensors is the one that is loaded.
    files = [whole] if whole.is_file() else sorted(folder.glob("*.safetensors"))
    if not files:
        raise LakeError(f"{folder}: no .safetensors file; weights are compared from safetensors only")
    places = []
    for file in files:
        with _open(file) as opened:
            places += [_Place(file, key) for key in opened.keys()]  # noqa: SIM118 (not a dict)
    return _by_bare_name(folder, places)


def weight_map(index: Path) -> dict[str, str]:
    """Tensor -> file of an index of safetensors; LakeError for anything else, and for files outside the folder."""
    record = read_json(index, LARGEST)
    found = record.get("weight_map") if isinstance(record, dict) else None
    if wrong := misfit(found, {TEXT: FILE}, "weight_map"):
        raise LakeError(f"{index}: not an index of safetensors ({wrong}); fetch it again")
    return dict(found or {})


def _by_bare_name(folder: Path, places: list[_Place]) -> dict[str, _Place]:
    found: dict[str, _Place] = {}
    for place in places:
        name = bare_name(place.key)
        if name in found:
            raise LakeError(
                f"{folder}: tensors {found[name].key} and {place.key} are both {name}; which one is the weight?"
            )
        if not f".{name}".endswith(BUFFERS):
            found[name] = place
    return found


def _open(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise LakeError(f"{file}: can't be read ({str(error).splitlines()[0]}); fetch it again") from error


def _common(pt: dict[str, _Place], it: dict[str, _Place], at_pt: Path, at_it: Path) -> dict[str, tuple[_Place, _Place]]:
    """The tensors to compare; LakeError when one side lacks a tensor of the text model."""
    pt, it = (_with_head(one, other) for one, other in ((pt, it), (it, pt)))
    for mine, yours, where in ((pt, it, at_it), (it, pt, at_pt)):
        if lost := [name for name in mine if name not in yours and module_group(name) != "other"]:
            raise LakeError(
                f"{where}: lacks {len(lost)} of the other checkpoint's tensors (first: {lost[0]}); weights are compared between"
                " checkpoints of one architecture"
            )
    return {name: (pt[name], it[name]) for name in pt if name in it}


def _with_head(places: dict[str, _Place], other: dict[str, _Place]) -> dict[str, _Place]:
    """Give a checkpoint with a tied, unsaved unembedding its embedding under the name that the other one uses."""
    embed = next((place for name, place in places.items() if name.split(".")[0] in TOKEN_EMBED), None)
    heads = [name for name in other if module_group(name) == "lm_head" and name.endswith("weight")]
    missing = [name for name in heads if name not in places]
    return places | (dict.fromkeys(missing, embed) if embed else {})


# --- numbers ---------------------------------------------------------------------------------------------------------


def _compare(a: Any, b: Any, name: str, pt: Path, it: Path) -> tuple[float, float, int] | None:
    """(sum of squares of b - a, sum of squares of a, elements) of two slices; None for masks."""
    shapes = [tuple(view.get_shape()) for view in (a, b)]
    if a.get_dtype() == "BOOL":
        return None
    for view, where in ((a, pt), (b, it)):
        if view.get_dtype() not in ("F64", "F32", "F16", "BF16"):
            raise LakeError(
                f"{where}: {name} holds {view.get_dtype()}, expected floating-point numbers; name a checkpoint that is not"
                " quantised"
            )
    rows = shapes[0][:1]
    if shapes[0] != shapes[1]:
        if module_group(name) not in ("embed", "lm_head") or shapes[0][1:] != shapes[1][1:]:
            raise LakeError(
                f"{it}: {name} has shape {shapes[1]}, expected {shapes[0]} as in {pt}; another architecture?"
            )
        rows = (min(shapes[0][0], shapes[1][0]),)
    wide = torch.float64 if "F64" in (a.get_dtype(), b.get_dtype()) else torch.float32
    change = scale = 0.0
    for x, y in _pieces(a, b, shapes[0], rows):
        x, y = x.to(wide), y.to(wide)
        change, scale = change + _square(y - x), scale + _square(x)
    return change, scale, int(np.prod((*rows, *shapes[0][1:])))


def _pieces(a: Any, b: Any, shape: tuple[int, ...], rows: tuple[int, ...]) -> Iterator[tuple[Tensor, Tensor]]:
    if not shape:
        yield a[...], b[...]
        return
    step = max(1, BLOCK // max(1, int(np.prod(shape[1:]))))
    for start in range(0, rows[0], step):
        part = slice(start, min(start + step, rows[0]))
        yield a[part], b[part]


def _square(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x, dtype=torch.float64)) ** 2
