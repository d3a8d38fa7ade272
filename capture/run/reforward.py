"""Repeated forwards of a capture's prompts: the noise that batching makes, and whether stored activations are reproduced."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...store.artifacts.streams import Stream, read_stream
from ...store.captures.manifest import capture_warning, largest, missing_rows, read_manifest, rounding, seal
from ...store.captures.precision import rounded, rounding_error
from ...store.captures.reader import Capture, find_capture, list_captures, split_capture
from ...store.core.errors import LakeError
from ...store.core.progress import ERRORS, bar
from ...store.core.schema import PROGRESS, SITES, TEMPLATE
from ...store.format.paths import Layout
from ...store.format.records import read_record
from ..model.hooks import Batch, pad_id
from ..model.load import Model
from .batching import batch_plan
from .forward import forward, watch
from .ranks import Rank

NOISE_PROMPTS = 4
NOISE = "noise.json"  # in the progress folder: measured by the first rank that finds the rows of these prompts


def noise_floor(layout: Layout, model: Model, path: Path, stream: Stream) -> dict[str, Any]:
    """Largest difference between the stored values and some prompts run alone, unpadded: what batching changes."""
    stored = Capture(path, allow_unsealed=True, lake=layout.files)
    sizes = {name: stored.array(name).shape[1:] for name in SITES if name in stored.group}
    boundaries = stored.array("boundary")[:].tolist()
    worst = dict.fromkeys(sizes, 0.0)
    prompts = noise_prompts(path, stream)
    for prompt in prompts:
        batch = Batch([stream.tokens[prompt]], pad_id(model), model.device)
        for name, block in forward(model, batch, sizes, boundaries).items():
            worst[name] = max(worst[name], _worst(stored, stream, name, prompt, block))
    return {"prompts": len(prompts), "max_abs": worst}


def rows_of_noise(path: Path, stream: Stream) -> set[int]:
    """Shard rows that hold the prompts of the noise floor."""
    tokens = read_record(path / PROGRESS / TEMPLATE, "template")["shard_tokens"]
    spans = ((int(stream.offset[prompt]), int(stream.offset[prompt + 1])) for prompt in noise_prompts(path, stream))
    return {row for start, end in spans for row in range(start // tokens, -(-end // tokens))}


def noise_prompts(path: Path, stream: Stream) -> list[int]:
    """The prompts that padding would change most: by turns those with most of it in their batch, and the longest with any."""
    lengths = np.diff(stream.offset).tolist()
    plan = batch_plan(lengths, read_record(path / PROGRESS / TEMPLATE, "template")["provenance"]["batch"])
    width = {prompt: max(lengths[other] for other in batch) for batch in plan for prompt in batch}
    padded = sorted(width, key=lambda prompt: (lengths[prompt] - width[prompt], prompt))
    longest = sorted(width, key=lambda prompt: (lengths[prompt] == width[prompt], -lengths[prompt], prompt))
    turns = (prompt for both in zip(padded, longest, strict=True) for prompt in both)
    return list(dict.fromkeys(turns))[:NOISE_PROMPTS]


def seal_with_noise(layout: Layout, path: Path) -> dict[str, Any]:
    """Seal a complete capture, with a warning where batching changes far more than rounding does, or values were rounded.

    LakeError when no rank has measured the noise floor.
    """
    noise = path / PROGRESS / NOISE
    if not noise.exists() and not read_manifest(path):
        raise LakeError(
            f"{path}: all rows are there, the noise floor is not; run any rank again, it measures it and seals"
        )
    manifest = seal(path, {"noise_floor": read_record(noise, "noise")} if noise.exists() else {}, layout.files)
    if warning := capture_warning(manifest):
        ERRORS.print(f"warning: {warning}", style="yellow", highlight=False, markup=False, soft_wrap=True)
    return manifest


def seal_captures(layout: Layout, name: str | None = None) -> list[tuple[Path, dict[str, Any]]]:
    """Seal one capture (MODEL/STREAM) or all that are not, and return their manifests.

    Raises LakeError that says which rank's rows are missing.
    """
    if name:
        paths = [find_capture(layout, *split_capture(name))]
    else:
        paths = [Path(row.path) for row in list_captures(layout).itertuples() if not row.sealed]
    if not paths:
        raise LakeError(f"{layout}: no unsealed capture here; `actlake ls` shows what the lake has")
    for path in paths:
        if not read_manifest(path):
            _check_whole(layout, path)
    return [(path, read_manifest(path) or seal_with_noise(layout, path)) for path in paths]


def _check_whole(layout: Layout, path: Path) -> None:
    missing, count = missing_rows(path, layout.files)
    world = read_record(path / PROGRESS / TEMPLATE, "template")["world"]
    lacking = [rank for rank in range(world) if set(Rank(rank, world).rows(count)) & set(missing)]
    if lacking:
        raise LakeError(
            f"{path}: {len(missing)} of {count} shard rows are missing, those of rank {', '.join(map(str, lacking))} of"
            f" {world}: run the same `actlake capture` command with --rank {lacking[0]} --world {world} again"
        )


def _worst(stored: Capture, stream: Stream, name: str, prompt: int, block: np.ndarray) -> float:
    """Largest difference between a prompt's stored values and `block`, which is rounded as they were."""
    if name in stored.precision:
        block = rounded(block, stored.precision[name])
    kept = stored.array(name)[int(stream.offset[prompt]) : int(stream.offset[prompt + 1])]
    return _apart(kept, block)


def _apart(a: np.ndarray, b: np.ndarray | float) -> float:
    """Largest absolute difference, NaN left out."""
    return float(np.nanmax(np.abs(a - b), initial=0.0))


def allowed_apart(manifest: dict[str, Any]) -> dict[str, float]:
    """By how much each compared variable of a sealed capture may differ when its prompts run again: see `reforward`."""
    floor = manifest.get("noise_floor", {}).get("max_abs", {})
    names = [name for name in manifest["sizes"] if name in SITES or name in ("logits", "logsumexp")]
    eps = rounding(manifest["source_dtype"])
    steps = {name: 2 * rounding_error(manifest, name) for name in names}  # what differs a little may round apart
    return {name: max(4 * floor.get(name, 0.0), eps * largest(manifest, name) + steps[name]) for name in names}


@dataclass(frozen=True)
class _Reforward:
    """Outcome of running prompts again: largest absolute difference per variable, and what is allowed."""

    prompts: int
    exact: bool
    worst: dict[str, float]
    allowed: dict[str, float]

    @property
    def ok(self) -> bool:
        """True when nothing differs by more than allowed."""
        return all(value <= self.allowed[name] for name, value in self.worst.items())


def check_checkpoint(stored: Capture, model: Model) -> None:
    """Raise LakeError unless a model is the checkpoint that a capture is recorded as."""
    if stored.manifest["provenance"]["model_sha256"] != model.record["sha256"]:
        raise LakeError(
            f"{stored.path}: was captured from another checkpoint or dtype than {model.name} is now; nothing to compare"
        )


def reforward(layout: Layout, model: Model, path: Path, count: int) -> _Reforward:
    """Run `count` prompts of a sealed capture again, in the batches of its recorded plan, and compare with what is stored.

    On the machine and versions of the capture the difference is zero. Elsewhere it may reach the recorded noise floor;
    four times that, or what rounding makes of the largest value (captures.manifest.rounding), is allowed. Raises LakeError for
    another checkpoint.
    """
    stored = Capture(path, lake=layout.files)
    manifest = stored.manifest
    check_checkpoint(stored, model)
    stream = read_stream(layout, manifest["stream"])
    plan = batch_plan(np.diff(stream.offset).tolist(), manifest["provenance"]["batch"])
    wanted = set(np.linspace(0, len(stream.starts) - 1, min(count, len(stream.starts))).astype(int).tolist())
    sizes = {name: tuple(size) for name, size in manifest["sizes"].items()}
    compared = [name for name in sizes if name in SITES or name in ("logits", "logsumexp")]
    per_prompt = manifest.get("per_prompt", [])
    worst = dict.fromkeys([*compared, *per_prompt], 0.0)
    with bar(f"reforward {model.name}", len(wanted), "prompts") as progress:
        for indices in (batch for batch in plan if wanted & set(batch)):
            batch = Batch([stream.tokens[i] for i in indices], pad_id(model), model.device)
            ends = np.asarray([stream.starts[prompt] - 1 for prompt in indices])
            with watch(model, ends, per_prompt) as found:
                arrays = forward(model, batch, sizes, manifest["boundaries"])
            edges = np.concatenate([[0], np.cumsum(batch.lengths)])
            for place, prompt in enumerate(indices):
                if prompt in wanted:
                    for name in compared:
                        block = arrays[name][edges[place] : edges[place + 1]]
                        worst[name] = max(worst[name], _worst(stored, stream, name, prompt, block))
                    for name in per_prompt:
                        worst[name] = max(worst[name], _apart(stored.array(name)[prompt], found[name][place]))
                    progress.advance(1)
    eps = rounding(manifest["source_dtype"])
    allowed = allowed_apart(manifest) | {name: eps * _apart(stored.array(name)[...], 0) for name in per_prompt}
    return _Reforward(len(wanted), not any(worst.values()), worst, allowed)
