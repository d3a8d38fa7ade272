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

from ..store.catalog import ProfileSpec
from ..store.errors import LakeError
from ..store.files import human_bytes
from ..store.layout import Layout
from ..store.manifest import read_manifest, seal
from ..store.models import write_model
from ..store.progress import ERRORS, bar
from ..store.shards import widen
from ..store.streams import Stream, read_stream
from ..store.version import __version__
from ..store.writer import PROGRESS, ShardWriter, Template, create_capture, missing_shards
from .again import noise_floor
from .hooks import Batch, forward, pad_id, read
from .model import Model, head_arrays
from .plan import BATCH, WINDOW, batch_plan, capture_sizes, check_disk, estimate
from .rows import Rows


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
    fill(model, template, path, plan, todo, allow_nonfinite)
    manifest = seal(path, template, {"noise_floor": noise_floor(model, path, stream)})
    return Result(path, False, stream.n_tokens, manifest["bytes"], time.perf_counter() - started)


def _rate(model: Model, stream: Stream, plan: list[list[int]]) -> float:
    """Tokens/s of a small forward, to tell the expected time (it also warms the model up)."""
    batch = Batch([stream.tokens[i] for i in plan[0][:4]], pad_id(model.tokenizer), model.device)
    for _ in range(2):
        started = time.perf_counter()
        forward(model, batch, {}, ())
        if model.device.type == "cuda":
            torch.cuda.synchronize()
    return batch.n_tokens / (time.perf_counter() - started)


def fill(
    model: Model,
    template: Template,
    path: Path,
    plan: list[list[int]],
    todo: list[int],
    allow_nonfinite: bool = False,
) -> None:
    """Run every batch that a missing shard row needs; rows go to the writer as soon as all their tokens are there.

    A GPU is one batch ahead of the copies that leave it. On a CPU the model waits while a row is encoded: both want all
    cores, and taking turns is faster than getting in each other's way.
    """
    stream, size, gpu = template.stream, template.shard_tokens, model.device.type == "cuda"
    rows = Rows(template, todo, model.dtype, pin=gpu)
    needed = [batch for batch in plan if any(rows.wants(prompt) for prompt in batch)]

    def check(shard: int, blocks: dict[str, np.ndarray]) -> None:
        if not allow_nonfinite:
            check_finite(model.name, stream, shard * size, blocks)

    with (
        bar(
            f"capture {model.name}", sum(len(stream.tokens[prompt]) for batch in needed for prompt in batch)
        ) as progress,
        ShardWriter(path, template, check=check, on_write=progress.store, recycle=rows.recycle, wait=not gpu) as writer,
    ):

        def finish(indices: list[int], event: Any) -> None:
            if event is not None:
                event.synchronize()
            for shard, blocks in rows.filled(indices):
                writer.put(shard, blocks)
            progress.advance(sum(len(stream.tokens[prompt]) for prompt in indices))

        ahead: deque[tuple[list[int], Any]] = deque()
        for indices in needed:
            batch = Batch([stream.tokens[i] for i in indices], pad_id(model.tokenizer), model.device)
            event = read(model, batch, template.sizes, template.boundaries, rows.parts(indices))
            ahead.append((indices, event))
            if len(ahead) > gpu:
                finish(*ahead.popleft())
        while ahead:
            finish(*ahead.popleft())


def check_finite(model: str, stream: Stream, start: int, blocks: dict[str, np.ndarray]) -> None:
    """Raise LakeError that names model, variable, layer, prompt and token of the first NaN or infinity.

    The lowest layer comes first: attention carries a NaN to other tokens of its prompt, earlier ones included.
    """
    for name, found in blocks.items():
        block = widen(found)
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
