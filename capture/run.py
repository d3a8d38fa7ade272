"""Capturing: one teacher-forced forward per batch of a frozen plan, shard rows committed as they fill."""

import shutil
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from ..store.captures import Capture
from ..store.catalog import ProfileSpec
from ..store.errors import LakeError
from ..store.files import human_bytes
from ..store.layout import Layout
from ..store.manifest import read_manifest, seal
from ..store.models import write_model
from ..store.progress import ERRORS, bar
from ..store.schema import SITES, VARIABLES
from ..store.streams import Stream, read_stream
from ..store.version import __version__
from ..store.writer import PROGRESS, ShardWriter, Template, create_capture, missing_shards
from .hooks import Batch, forward, make_room, pad_id
from .model import Model, head_arrays
from .plan import BATCH, WINDOW, batch_plan, capture_sizes, check_disk, estimate

NOISE_PROMPTS = 2


@dataclass(frozen=True)
class Result:
    """What a capture run did: where it lies, whether it was there already, tokens, bytes on disk, seconds."""

    path: Path
    reused: bool
    tokens: int
    bytes: int
    seconds: float


def make_template(model: Model, stream: Stream, profile: ProfileSpec, batch: int = BATCH) -> Template:
    """The arrays and provenance of a capture of `model` on `stream`."""
    return Template(
        stream=stream,
        sizes=capture_sizes(model, profile.sites, profile.logits),
        boundaries=tuple(range(model.n_layers + 1)),
        layers=tuple(range(model.n_layers)),
        source_dtype=model.record["dtype"],
        shard=profile.shard_tokens,
        provenance={
            "pair": model.spec.pair,
            "variant": model.spec.variant,
            "model_id": model.record["id"],
            "model_revision": model.record["revision"],
            "model_sha256": model.record["sha256"],
            "tokenizer_sha256": model.record["tokenizer_sha256"],
            "dtype": model.record["dtype"],
            "attn_implementation": model.hf.config._attn_implementation,
            "device": model.device.type,
            "batch": batch,
            "batch_window": WINDOW,
            "padding_side": "right",
            "actlake": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    )


def find_sealed(
    layout: Layout, pair: str, variant: str, stream: str, identity: dict[str, Any], profile: ProfileSpec
) -> Path | None:
    """The sealed capture that already answers this request, or None when there is none yet.

    Raises LakeError when one of another checkpoint or with fewer sites has the name: sealed captures never change.
    """
    path = layout.capture(pair, variant, stream)
    manifest = read_manifest(path)
    if manifest is None:
        return None
    shutil.rmtree(path / PROGRESS, ignore_errors=True)  # left when a kill came right after the manifest
    lacking = set(profile.sites) - set(manifest["sizes"])
    if profile.logits != "none" and "logits" not in manifest["sizes"]:
        lacking |= {"logits"} if profile.logits == "full" else {"topk_id"} - set(manifest["sizes"])
    if manifest["provenance"]["model_sha256"] != identity["sha256"]:
        raise LakeError(
            f"{path}: sealed with another checkpoint or dtype of {pair}/{variant}; use another lake or pair name"
        )
    if lacking:
        raise LakeError(
            f"{path}: sealed without {', '.join(sorted(lacking))}; a sealed capture never changes: use another lake"
        )
    return path


def capture(
    layout: Layout, model: Model, name: str, profile: ProfileSpec, batch: int = BATCH, allow_nonfinite: bool = False
) -> Result:
    """Read one model on one stream into the lake and seal the capture; an interrupted one goes on where it stopped.

    Prints sizes before it starts. Raises LakeError when the disk can't hold it, when it fills up on the way, and for
    NaN or infinity in an activation (with model, layer, prompt and token) unless allowed.
    """
    started = time.perf_counter()
    stream = read_stream(layout, name)
    template = make_template(model, stream, profile, batch)
    path = layout.capture(model.spec.pair, model.spec.variant, stream.name)
    plan = batch_plan(np.diff(stream.offset).tolist(), batch)
    size = estimate(template, plan)
    check_disk(size, len(missing_shards(path, template.n_shards)), layout.root)
    write_model(layout, model.spec.pair, model.spec.variant, model.record, *head_arrays(model))
    create_capture(path, template)
    todo = missing_shards(path, template.n_shards)
    rate = _rate(model, stream, plan)
    weights = sum(p.numel() * p.element_size() for p in model.hf.parameters())
    done = f"; {template.n_shards - len(todo)} shard rows are there already" if len(todo) < template.n_shards else ""
    ERRORS.print(
        f"capture {model.name} on {name}: {size.line(rate)} + {human_bytes(weights)} weights{done}", highlight=False
    )
    _fill(model, template, path, plan, todo, allow_nonfinite)
    manifest = seal(path, template, {"noise_floor": _noise_floor(model, path, stream, template)})
    return Result(path, False, stream.n_tokens, manifest["bytes"], time.perf_counter() - started)


def _rate(model: Model, stream: Stream, plan: list[list[int]]) -> float:
    """Tokens/s of a small forward, to tell the expected time (it also warms the model up)."""
    batch = Batch([stream.tokens[i] for i in plan[0][:4]], pad_id(model.tokenizer), model.device)
    for _ in range(2):
        started = time.perf_counter()
        forward(model, batch, {})
    return batch.n_tokens / (time.perf_counter() - started)


def _fill(
    model: Model, template: Template, path: Path, plan: list[list[int]], todo: list[int], allow_nonfinite: bool
) -> None:
    """Run every batch that a missing shard row needs; rows go to the writer as soon as all their tokens are there."""
    stream, size = template.stream, template.shard_tokens
    rows = _Rows(template, todo)
    needed = [batch for batch in plan if any(rows.wants(prompt) for prompt in batch)]
    tokens = [sum(len(stream.tokens[prompt]) for prompt in batch) for batch in needed]
    room = make_room(template.sizes, max(tokens, default=0))

    def check(shard: int, blocks: dict[str, np.ndarray]) -> None:
        if not allow_nonfinite:
            check_finite(model.name, stream, shard * size, blocks)

    with (
        bar(f"capture {model.name}", sum(tokens)) as progress,
        ShardWriter(path, template, check=check, on_write=progress.store, recycle=rows.recycle) as writer,
    ):
        for indices in needed:
            batch = Batch([stream.tokens[i] for i in indices], pad_id(model.tokenizer), model.device)
            arrays = forward(model, batch, template.sizes, room)
            for shard, blocks in rows.add(indices, arrays):
                writer.put(shard, blocks)
            progress.advance(batch.n_tokens)


class _Rows:
    """Host buffers of the shard rows that are being filled; a full row is handed out, and comes back to be filled again."""

    def __init__(self, template: Template, todo: list[int]):
        self._template, self._size = template, template.shard_tokens
        self._offset = template.stream.offset
        self._todo = set(todo)
        self._open: dict[int, dict[str, np.ndarray]] = {}
        self._left: dict[int, int] = {}
        self._spare: deque[dict[str, np.ndarray]] = deque()  # filled by the writer's thread

    def shards(self, prompt: int) -> range:
        """Shard rows that hold tokens of a prompt."""
        return range(int(self._offset[prompt]) // self._size, (int(self._offset[prompt + 1]) - 1) // self._size + 1)

    def wants(self, prompt: int) -> bool:
        """True when a row that holds tokens of this prompt is still to be written."""
        return any(shard in self._todo for shard in self.shards(prompt))

    def add(self, prompts: list[int], arrays: dict[str, np.ndarray]) -> list[tuple[int, dict[str, np.ndarray]]]:
        """Copy a batch's tokens (in the order of `prompts`) into their rows; return the rows this filled."""
        full, start = [], 0
        for prompt in prompts:
            first, last = int(self._offset[prompt]), int(self._offset[prompt + 1])
            for shard in self.shards(prompt):
                if shard in self._todo:
                    low, high = max(first, shard * self._size), min(last, (shard + 1) * self._size)
                    blocks = self._row(shard)
                    for name, block in blocks.items():
                        block[low - shard * self._size : high - shard * self._size] = arrays[name][
                            start + low - first : start + high - first
                        ]
                    self._left[shard] -= high - low
                    if not self._left[shard]:
                        self._todo.discard(shard)
                        full.append((shard, self._open.pop(shard)))
            start += last - first
        return full

    def recycle(self, blocks: dict[str, np.ndarray]) -> None:
        """Take back the buffers of a written row; first touch of new memory costs more than filling it."""
        if len(next(iter(blocks.values()))) == self._size:
            self._spare.append(blocks)

    def _row(self, shard: int) -> dict[str, np.ndarray]:
        if shard not in self._open:
            tokens = min(self._size, int(self._offset[-1]) - shard * self._size)
            blocks = self._spare.popleft() if self._spare else self._allocate(tokens)
            self._open[shard] = {name: block[:tokens] for name, block in blocks.items()}
            self._left[shard] = tokens
        return self._open[shard]

    def _allocate(self, tokens: int) -> dict[str, np.ndarray]:
        """Buffers of a row; sites lie layer by layer in memory, as the model fills them and the codec reads them."""
        blocks = {}
        for name, shape in self._template.sizes.items():
            layers, rest = (shape[:1], shape[1:]) if name in SITES else ((), shape)
            blocks[name] = np.empty((*layers, tokens, *rest), dtype=VARIABLES[name].dtype)
            if layers:
                blocks[name] = blocks[name].swapaxes(0, 1)
        return blocks


def check_finite(model: str, stream: Stream, start: int, blocks: dict[str, np.ndarray]) -> None:
    """Raise LakeError that names model, variable, layer, prompt and token of the first NaN or infinity.

    The lowest layer comes first: attention carries a NaN to other tokens of its prompt, earlier ones included.
    """
    for name, block in blocks.items():
        finite = np.isfinite(block)
        if finite.all():
            continue
        spots = np.argwhere(~finite)
        where = spots[np.argmin(spots[:, 1])] if block.ndim == 3 else spots[0]
        token = start + int(where[0])
        prompt = int(stream.columns["prompt"][token])
        layer = f", {'boundary' if name == 'resid' else 'layer'} {where[1]}" if block.ndim == 3 else ""
        raise LakeError(
            f"{model}: {name} is {block[tuple(where)]}{layer}, prompt {stream.prompt_ids[prompt]!r}, position"
            f" {stream.columns['position'][token]} (token {stream.texts[token]!r}); rows before it are safe. Another dtype may"
            " help; --allow-nonfinite stores it as it is"
        )


def _noise_floor(model: Model, path: Path, stream: Stream, template: Template) -> dict[str, Any]:
    """Largest difference between the stored values and the first prompts run alone, unpadded: what batching changes."""
    return {
        "prompts": NOISE_PROMPTS,
        **_alone(model, Capture(path, allow_unsealed=True), stream, range(min(NOISE_PROMPTS, len(stream.starts)))),
    }


def _alone(model: Model, stored: Capture, stream: Stream, prompts: range) -> dict[str, Any]:
    sizes = {name: stored.array(name).shape[1:] for name in ("resid", "mlp_out") if name in stored.group}
    worst = dict.fromkeys(sizes, 0.0)
    for prompt in prompts:
        batch = Batch([stream.tokens[prompt]], pad_id(model.tokenizer), model.device)
        for name, block in forward(model, batch, sizes).items():
            kept = stored.array(name)[int(stream.offset[prompt]) : int(stream.offset[prompt + 1])]
            worst[name] = max(worst[name], float(np.nanmax(np.abs(kept - block), initial=0.0)))
    return {"max_abs": worst}


@dataclass(frozen=True)
class Reforward:
    """Outcome of running prompts again: largest absolute difference per variable, and what is allowed."""

    prompts: int
    exact: bool
    worst: dict[str, float]
    allowed: dict[str, float]

    @property
    def ok(self) -> bool:
        """True when nothing differs by more than allowed."""
        return all(value <= self.allowed[name] for name, value in self.worst.items())


def reforward(layout: Layout, model: Model, path: Path, count: int) -> Reforward:
    """Run `count` prompts of a sealed capture again, in the batches of its recorded plan, and compare with what is stored.

    On the machine and versions of the capture the difference is zero. Elsewhere it may reach the recorded noise floor;
    four times that, or 1e-5 of the largest value in float32, is allowed. Raises LakeError for another checkpoint.
    """
    stored = Capture(path)
    manifest = stored.manifest
    if manifest["provenance"]["model_sha256"] != model.record["sha256"]:
        raise LakeError(
            f"{path}: was captured from another checkpoint or dtype than {model.name} is now; nothing to compare"
        )
    stream = read_stream(layout, manifest["stream"])
    plan = batch_plan(np.diff(stream.offset).tolist(), manifest["provenance"]["batch"])
    wanted = set(np.linspace(0, len(stream.starts) - 1, min(count, len(stream.starts))).astype(int).tolist())
    sizes = {
        name: tuple(size)
        for name, size in manifest["sizes"].items()
        if name in ("resid", "mlp_out", "logits", "logsumexp")
    }
    worst = dict.fromkeys(sizes, 0.0)
    with bar(f"reforward {model.name}", len(wanted), "prompts") as progress:
        for indices in (batch for batch in plan if wanted & set(batch)):
            batch = Batch([stream.tokens[i] for i in indices], pad_id(model.tokenizer), model.device)
            arrays = forward(model, batch, {name: tuple(size) for name, size in manifest["sizes"].items()})
            start = 0
            for prompt in indices:
                length = len(stream.tokens[prompt])
                if prompt in wanted:
                    for name in sizes:
                        kept = stored.array(name)[int(stream.offset[prompt]) : int(stream.offset[prompt + 1])]
                        worst[name] = max(
                            worst[name],
                            float(np.nanmax(np.abs(kept - arrays[name][start : start + length]), initial=0.0)),
                        )
                    progress.advance(1)
                start += length
    floor = manifest.get("noise_floor", {}).get("max_abs", {})
    scale = {
        name: max(abs(manifest["variables"][name]["min"]), abs(manifest["variables"][name]["max"])) for name in sizes
    }
    eps = 2.0**-6 if model.record["dtype"] != "float32" else 1e-5
    allowed = {name: max(4 * floor.get(name, 0.0), eps * scale[name]) for name in sizes}
    return Reforward(len(wanted), not any(worst.values()), worst, allowed)
