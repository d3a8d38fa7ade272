"""Capturing: one teacher-forced forward per batch of a frozen plan, shard rows committed as they fill."""

import shutil
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from ...store.artifacts.models import clear_unfinished, has_model, write_model
from ...store.artifacts.streams import Stream, read_stream
from ...store.captures.allocate import Template, create_capture
from ...store.captures.manifest import missing_rows, read_manifest
from ...store.captures.writer import ShardWriter, missing_shards
from ...store.core.catalog import ProfileSpec
from ...store.core.errors import LakeError
from ...store.core.files import give_back_memory, human_bytes, json_bytes, try_lock
from ...store.core.progress import ERRORS, Estimate, bar
from ...store.core.schema import PROGRESS, PROMPT_SITES, SITES, VARIABLES, scalars
from ...store.core.specs import resolve_boundaries
from ...store.core.version import __version__
from ...store.format.paths import Layout
from ...store.format.shards import widen
from ...store.remote.files import HERE, Files
from ..checkpoint.loading import attention_of
from ..model.hooks import ActivationSink, Batch, pad_id
from ..model.load import Model, head_arrays
from ..model.sites import check_inside, site_lengths
from .batching import (
    BATCH,
    WINDOW,
    CaptureSize,
    ShardBuffers,
    batch_plan,
    capture_sizes,
    check_disk,
    estimate,
    explain_memory,
    stored_ratio,
)
from .by_layer import spilled_bytes, through_blocks
from .forward import forward, read, watch
from .ranks import ALONE, Rank
from .reforward import NOISE, noise_floor, rows_of_noise, seal_with_noise

Windows = Mapping[str, tuple[int, int]]
ENDING = "end.lock"  # of ranks that are done at once, one measures the noise floor and seals


@dataclass(frozen=True)
class Result:
    """What a run did: where the capture is, whether it is sealed (else other ranks' rows lack) and was so before, tokens,
    bytes on disk, seconds."""

    path: Path
    sealed: bool
    reused: bool
    tokens: int
    bytes: int
    seconds: float

    def __repr__(self) -> str:
        state = "there already" if self.reused else f"{self.seconds:.1f} s{'' if self.sealed else ', not sealed'}"
        name = f"{self.path.parent.name}/{self.path.stem}"
        return f"Result({name}: {self.tokens:,} tokens, {human_bytes(self.bytes)}, {state})"


def make_template(
    model: Model, stream: Stream, profile: ProfileSpec, batch: int = BATCH, windows: Windows | None = None
) -> Template:
    """The arrays and provenance of a capture of `model` on `stream`; `windows` are the pair's own.

    LakeError for a site that the model has not.
    """
    boundaries = resolve_boundaries(profile, model.n_layers, windows or {})
    if model.blocks and (inner := [site for site in profile.sites if site in SITES and SITES[site].inside]):
        raise LakeError(f"{model.name}: --by-layer keeps what is as wide as the residual, not {inner[0]}: leave it out")
    lengths = site_lengths(model.hf.config, profile.sites, model.name)
    check_inside(model.name, model.parts, lengths)
    return Template(
        stream=stream,
        sizes=capture_sizes(profile, model.n_layers, model.head.d_model, model.head.vocab, boundaries, lengths),
        boundaries=boundaries,
        layers=tuple(range(model.n_layers)),
        source_dtype=model.record["dtype"],
        shard=profile.shard_tokens,
        per_prompt=tuple(site for site in profile.sites if site in PROMPT_SITES),
        precision=profile.precision,
        provenance={
            "model": model.name,
            "model_id": model.record["id"],
            "model_revision": model.record["revision"],
            "model_sha256": model.record["sha256"],
            "tokenizer_sha256": model.record["tokenizer_sha256"],
            "dtype": model.record["dtype"],
            "attn_implementation": attention_of(model.hf),
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
    layout: Layout,
    model: str,
    stream: str,
    identity: dict[str, Any],
    profile: ProfileSpec,
    windows: Windows,
) -> Path | None:
    """The sealed capture that already answers this request, or None when there is none yet.

    Raises LakeError when one of another checkpoint or that keeps less has the name: sealed captures never change.
    """
    path = layout.capture(model, stream)
    manifest = read_manifest(path)
    if manifest is None:
        return None
    shutil.rmtree(path / PROGRESS, ignore_errors=True)  # left when a kill came right after the manifest
    if manifest["provenance"]["model_sha256"] != identity["sha256"]:
        raise LakeError(f"{path}: sealed with another checkpoint or dtype of {model}; use another lake or model name")
    lacking = _lacking(manifest, profile, windows)
    if lacking:
        raise LakeError(
            f"{path}: sealed without {', '.join(lacking)}; a sealed capture never changes: use another lake"
        )
    return path


def _lacking(manifest: dict[str, Any], profile: ProfileSpec, windows: Windows) -> list[str]:
    """What `profile` asks for and a sealed capture does not have; all residuals stand in for scalars."""
    layers, sizes = len(manifest["layers"]), manifest["sizes"]
    lacking = [site for site in profile.sites if site not in sizes and site not in manifest.get("per_prompt", [])]
    for site, word in manifest.get("precision", {}).items():
        if site in profile.sites and profile.precision.get(site) != word:
            lacking.append(f"{site} in {profile.precision.get(site, 'full')} precision (it is rounded to {word})")
    if "resid" in profile.sites and "resid" in sizes:
        asked = resolve_boundaries(profile, layers, windows)
        lacking += [f"boundary {b}" for b in asked if b not in manifest["boundaries"]]
    if "resid" not in sizes or len(manifest["boundaries"]) <= layers:
        lacking += [f"{table} scalars" for table in profile.scalars if not set(scalars(table).values()) <= set(sizes)]
    if profile.logits != "none" and "logits" not in sizes:
        lacking += ["logits"] if profile.logits == "full" else ["topk_id"] if "topk_id" not in sizes else []
    return lacking


def capture(
    layout: Layout,
    model: Model,
    name: str,
    profile: ProfileSpec,
    batch: int = BATCH,
    allow_nonfinite: bool = False,
    rank: Rank = ALONE,
    windows: Windows | None = None,
    weights: int = 0,
) -> Result:
    """Read one model on one stream into the lake and seal the capture; an interrupted one goes on where it stopped.

    Prints sizes before it starts. `weights` are bytes of models' own files that the disk must hold as well. A rank writes its
    own shard rows, and the one that finds all rows there seals. Raises LakeError when the disk can't hold it, when it or the
    memory fills up on the way, and for NaN or infinity in an activation (with model, layer, prompt and token) unless allowed.
    """
    started = time.perf_counter()
    stream = read_stream(layout, name)
    if stream.recipe.get("tokenizer_sha256") != model.record["tokenizer_sha256"]:
        raise LakeError(
            f"stream {name}: was made with another tokenizer than that of {model.name}; its token ids mean other text there: let"
            " `actlake capture` make the model's own stream"
        )
    template = make_template(model, stream, profile, batch, windows)
    path = layout.capture(model.name, stream.name)
    plan = batch_plan(np.diff(stream.offset).tolist(), batch)
    size = estimate(template, plan, model.head.vocab, model.device.type)
    rows = rank.rows(template.n_shards)
    head = 0 if has_model(layout, model.name) else model.head.unembed.numel() * 4
    missing = len(missing_shards(path, template.n_shards) if rank.world == 1 else rows)
    head = int(head / stored_ratio(template.source_dtype))
    if model.blocks:
        head += spilled_bytes(template, plan, model.head.d_model, model.dtype.itemsize)
    check_disk(size, missing, layout, head, weights)
    if not model.blocks:
        write_model(layout, model.name, model.record, *head_arrays(model))
    create_capture(path, template, rank.world, layout.files)
    with rank.alone(path):
        if manifest := read_manifest(path):  # by another process, meanwhile
            shutil.rmtree(path / PROGRESS, ignore_errors=True)
            return Result(path, True, True, stream.n_tokens, manifest["bytes"], time.perf_counter() - started)
        todo = [shard for shard in missing_rows(path, layout.files)[0] if shard in rows]
        if not model.blocks:
            _announce(model, name, template, plan, size, rank, len(todo))
        with explain_memory(f"capturing {model.name}", batch):
            if model.blocks:
                model = through_blocks(model, template, plan, path, stream)
                write_model(layout, model.name, model.record, *head_arrays(model))
            fill(model, template, path, plan, todo, allow_nonfinite, layout.files)
            manifest = _seal_if_whole(layout, model, path, stream)
    seconds = time.perf_counter() - started
    if not manifest:
        return Result(path, False, False, stream.n_tokens * len(rows) // template.n_shards, 0, seconds)
    return Result(path, True, False, stream.n_tokens, manifest["bytes"], seconds)


def _announce(
    model: Model, name: str, template: Template, plan: list[list[int]], size: CaptureSize, rank: Rank, todo: int
) -> None:
    """Say what will be done, how large it gets and how long it takes, before it starts."""
    weights = sum(p.numel() * p.element_size() for p in model.hf.parameters())
    share = len(rank.rows(template.n_shards))
    what = f"capture {model.name} on {name}: {size} + {human_bytes(weights)} weights, on {model.device}"
    seconds = size.tokens / _rate(model, template.stream, plan)
    more = [f"{rank} (by {rank.source}) owns {share} of {template.n_shards} shard rows"] * (rank.world > 1)
    more += [f"{share - todo} shard rows are there already"] * (todo < share)
    ERRORS.print(str(Estimate(what, seconds=seconds, leave_out="; ".join(more))), highlight=False)
    for note in model.notes:
        ERRORS.print(f"{model.name}: {note}", highlight=False, markup=False, soft_wrap=True)
    if template.source_dtype == "float64":
        ERRORS.print(
            f"{model.name}: computes in float64, is stored as float32 (rounded)", highlight=False, markup=False
        )


def _seal_if_whole(layout: Layout, model: Model, path: Path, stream: Stream) -> dict[str, Any] | None:
    """Measure the noise floor once its prompts are there, and seal when every row is; None while other ranks' rows lack."""
    with try_lock(path / PROGRESS / ENDING, wait=True):
        missing, _ = missing_rows(path, layout.files)
        if manifest := read_manifest(path):  # another rank was faster
            shutil.rmtree(path / PROGRESS, ignore_errors=True)
            return manifest
        noise = path / PROGRESS / NOISE
        if not noise.exists() and not set(missing) & rows_of_noise(path, stream):
            layout.files.write(noise, json_bytes(noise_floor(layout, model, path, stream)))
        if missing:
            return None
        clear_unfinished(layout, model.name)
        return seal_with_noise(layout, path)


def _rate(model: Model, stream: Stream, plan: list[list[int]]) -> float:
    """Tokens/s of a small forward, to tell the expected time (it also warms the model up)."""
    batch = Batch([stream.tokens[i] for i in plan[0][:4]], pad_id(model), model.device)
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
    lake: Files = HERE,
) -> None:
    """Run every batch that a missing shard row needs; rows go to the writer as soon as all their tokens are there.

    A GPU is one batch ahead of the copies that leave it. On a CPU the model waits while a row is encoded: both want all
    cores, and taking turns is faster than getting in each other's way.
    """
    stream, size, gpu = template.stream, template.shard_tokens, model.device.type == "cuda"
    rows = ShardBuffers(template, todo, model.dtype, pin=gpu)
    needed = [batch for batch in plan if any(rows.wants(prompt) for prompt in batch)]

    def check(shard: int, blocks: dict[str, np.ndarray]) -> None:
        if not allow_nonfinite:
            check_finite(model.name, stream, shard * size, blocks, template.boundaries)

    with (
        bar(
            f"capture {model.name}", sum(len(stream.tokens[prompt]) for batch in needed for prompt in batch)
        ) as progress,
        ShardWriter(
            path, template, check=check, on_write=progress.store, recycle=rows.recycle, wait=not gpu, lake=lake
        ) as writer,
    ):

        def finish(indices: list[int], sink: ActivationSink) -> None:
            sink.wait()
            full = rows.filled(indices)
            for row in full:
                writer.put(*row)
            if full:
                give_back_memory()
            progress.advance(sum(len(stream.tokens[prompt]) for prompt in indices))

        ahead: deque[tuple[list[int], ActivationSink]] = deque()
        for indices in needed:
            batch = Batch([stream.tokens[i] for i in indices], pad_id(model), model.device)
            ends = np.asarray([stream.starts[prompt] - 1 for prompt in indices])
            with watch(model, ends, template.per_prompt) as found:
                sink = read(model, batch, template.sizes, template.boundaries, rows.parts(indices))
            for name, values in found.items():
                rows.note(name, indices, values)
            ahead.append((indices, sink))
            if len(ahead) > gpu:
                finish(*ahead.popleft())
        while ahead:
            finish(*ahead.popleft())


def check_finite(
    model: str,
    stream: Stream,
    start: int,
    blocks: dict[str, np.ndarray],
    boundaries: Sequence[int] | None = None,
) -> None:
    """Raise LakeError that names model, variable, layer, prompt and token of the first NaN or infinity.

    The lowest layer comes first: attention carries a NaN to other tokens of its prompt, earlier ones included.
    """
    for name, found in blocks.items():
        if VARIABLES[name].gaps:
            continue
        block = widen(found)
        finite = np.isfinite(block)
        if finite.all():
            continue
        spots = np.argwhere(~finite)
        variable = VARIABLES[name]
        where = spots[np.argmin(spots[:, 1])] if variable.layered else spots[0]
        token = start + int(where[0])
        prompt = int(stream.columns["prompt"][token])
        layer = ""
        if variable.layered:
            axis = variable.dims[1]
            number = boundaries[where[1]] if axis == "boundary" and boundaries else where[1] - (axis == "lens_layer")
            layer = f", {axis} {number}"
        raise LakeError(
            f"{model}: {name} is {block[tuple(where)]}{layer}, prompt {stream.prompt_ids[prompt]!r}, position"
            f" {stream.columns['position'][token]} (token {stream.texts[token]!r}); rows before it are safe. Another dtype may"
            " help; --allow-nonfinite stores it as it is"
        )
