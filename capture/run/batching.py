"""What a capture will do before it does it: the fixed batch plan, sizes and memory."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod

import numpy as np
import torch

from ...analyze.lens.logit_lens import usual_block
from ...store.captures.allocate import Template
from ...store.captures.writer import DEPTH
from ...store.core.catalog import ProfileSpec
from ...store.core.errors import LakeError
from ...store.core.files import free_bytes, human_bytes
from ...store.core.schema import PROMPT_SITES, SCALARS, SITES, TOP_K, scalars
from ...store.format.paths import Layout

BATCH = 16
WINDOW = 8  # batches; prompts are sorted by length inside a window of this many, so that few slots are padding
LOGIT_ROWS = 1 << 24  # elements of logits computed at a time
IN_FLIGHT = 16  # hidden states that a block holds at once, the MLP's wider ones counted as several
STORED_RATIO = {"bfloat16": 2.7}  # raw float32 bytes over stored bytes; widened bfloat16: 2.8 to 2.9 (STORAGE 2b)


def batch_plan(lengths: Sequence[int], batch: int = BATCH) -> list[list[int]]:
    """Prompt indices of each batch, a function of the lengths alone, so that PT and IT share it on a shared stream.

    Prompts are taken in windows of WINDOW batches, sorted by length inside (ties by index), and cut into batches.
    """
    plan = []
    for start in range(0, len(lengths), batch * WINDOW):
        window = range(start, min(start + batch * WINDOW, len(lengths)))
        ordered = sorted(window, key=lambda index: (lengths[index], index))
        plan += [ordered[i : i + batch] for i in range(0, len(ordered), batch)]
    return plan


def check_sites(sites: Sequence[str]) -> None:
    """Raise LakeError for a site that this version can't capture."""
    known = (*SITES, *PROMPT_SITES)
    unknown = [site for site in sites if site not in known]
    if unknown:
        raise LakeError(f"site {unknown[0]!r} can't be captured by this version; it knows {', '.join(known)}")


def capture_sizes(
    profile: ProfileSpec, n_layers: int, d_model: int, vocab: int, boundaries: Sequence[int]
) -> dict[str, tuple[int, ...]]:
    """Variable -> shape after the token axis, for what a profile keeps of a model of this shape."""
    lengths = {"boundary": len(boundaries), "layer": n_layers, "d_model": d_model}
    sizes = {name: SITES[name].shape(lengths) for name in profile.sites if name in SITES}
    for table in profile.scalars:
        sizes |= dict.fromkeys(scalars(table).values(), (n_layers + 1,))
    if profile.logits == "full":
        sizes["logits"] = (vocab,)
    elif profile.logits in ("auto", "topk"):
        k = min(TOP_K, vocab)
        sizes |= {"topk_id": (k,), "topk_logit": (k,), "logsumexp": ()}
    return sizes


def stages(sizes: dict[str, tuple[int, ...]]) -> list[str]:
    """The tables among `sizes` whose columns are computed during the capture."""
    return [table for table in SCALARS if set(scalars(table).values()) & set(sizes)]


@dataclass(frozen=True)
class CaptureSize:
    """Sizes of a capture, all in bytes but for tokens and shard rows.

    `raw` as float32 and `stored` as expected on disk; `memory` the peak on the host on top of the model; `device` the peak
    beside the weights where the model runs.
    """

    tokens: int
    shards: int
    raw: int
    stored: int
    memory: int
    device: int

    def __str__(self) -> str:
        return (
            f"{self.tokens:,} tokens, {self.shards} shard rows, about {human_bytes(self.stored)} on disk"
            f" ({human_bytes(self.raw)} as float32), {human_bytes(self.memory)} buffers"
        )


def stored_ratio(dtype: str) -> float:
    """Raw float32 bytes over those that the codec leaves, for values computed in `dtype`."""
    return STORED_RATIO.get(dtype, 1.1)


def estimate(template: Template, plan: list[list[int]], vocab: int = 0, device: str = "cpu") -> CaptureSize:
    """Sizes of a capture from its template, batch plan, vocabulary and the type of device the model runs on."""
    per_token = sum(template.bytes_per_token.values())
    tokens, shard, offset = template.stream.n_tokens, template.shard_tokens, template.stream.offset
    open_rows = max((len(_shards_of(batches, offset, shard)) for batches in _windows(plan)), default=0)
    narrow = template.source_dtype == "bfloat16"
    ratio = stored_ratio(template.source_dtype)
    # bfloat16 sites are held as they are; rows under way are held once more, encoded.
    held = sum(size // (2 if narrow and name in SITES else 1) for name, size in template.bytes_per_token.items())
    rows = min(open_rows + DEPTH, template.n_shards) * held + min(DEPTH, template.n_shards) * per_token / ratio
    return CaptureSize(
        tokens=tokens,
        shards=template.n_shards,
        raw=tokens * per_token,
        stored=int(tokens * per_token / ratio),
        memory=int(rows * min(shard, tokens)),
        device=_device_bytes(template, plan, vocab, device),
    )


def _device_bytes(template: Template, plan: list[list[int]], vocab: int, device: str) -> int:
    """What the largest batch takes where the model runs: activations and logits in flight, and what lean computes there."""
    lengths = np.diff(template.stream.offset)
    padded = max((len(batch) * int(lengths[batch].max()) for batch in plan), default=0)
    boundaries = len(template.layers) + 1
    width = max((prod(size[1:]) for name, size in template.sizes.items() if name in SITES), default=0)
    wide = 2 if template.source_dtype in ("bfloat16", "float16") else 4
    # Logits once as they are, once as float32, once more while the largest are chosen.
    phases = [padded * width * wide * IN_FLIGHT, min(padded * vocab, LOGIT_ROWS) * (wide + 8)]
    held, tables = 0, stages(template.sizes)
    if tables:  # all boundaries and MLP outputs
        held += padded * width * wide * (2 * boundaries - 1)
    if "lens" in tables:  # the unembedding in float32
        held += 4 * vocab * width
        phases.append(usual_block(device).work(boundaries, vocab, padded))
    return int(held + max(phases))


def _windows(plan: list[list[int]]) -> list[list[list[int]]]:
    return [plan[i : i + WINDOW] for i in range(0, len(plan), WINDOW)]


def _shards_of(batches: list[list[int]], offset: np.ndarray, shard: int) -> set[int]:
    found: set[int] = set()
    for batch in batches:
        for prompt in batch:
            found |= set(range(int(offset[prompt]) // shard, (int(offset[prompt + 1]) - 1) // shard + 1))
    return found


def check_disk(size: CaptureSize, missing: int, layout: Layout, more: int = 0, weights: int = 0) -> None:
    """Raise LakeError when the disk can't hold the `missing` shard rows, `more` bytes and `weights`, before any is written."""
    if layout.files.remote:  # shards go straight to a remote lake, whose room nobody tells
        return
    free = free_bytes(layout.root)
    needed = size.stored * missing // size.shards + more
    if needed + weights > free:
        beside, without = (
            (f" and {human_bytes(weights)} for the models' own files", " no --with-weights,") if weights else ("", "")
        )
        raise LakeError(
            f"{layout.root}: the capture needs about {human_bytes(needed)}{beside}, {human_bytes(free)} are free: use another"
            f" lake,{without} a smaller --limit, or fewer sites"
        )


@contextmanager
def explain_memory(what: str, batch: int) -> Iterator[None]:
    """Turn running out of memory inside the block into a LakeError that says what to lower."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch's own kind is a RuntimeError, on a CPU a plain one
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise LakeError(
            f"out of memory while {what} in batches of {batch} prompts; what is written stays. --batch {max(1, batch // 2)} needs"
            " less, but makes another plan, so delete the unfinished capture first; --device-map auto or a device with more"
            " memory keeps the plan"
        ) from error
