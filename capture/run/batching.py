"""What a capture does: the fixed batch plan, sizes and memory, and the buffers in which shard rows fill."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod

import numpy as np
import torch

from ...analyze.lens.logit_lens import usual_block
from ...store.captures.allocate import Template
from ...store.captures.writer import DEPTH, PromptValues
from ...store.core.catalog import ProfileSpec
from ...store.core.errors import LakeError
from ...store.core.files import free_bytes, human_bytes
from ...store.core.schema import PROMPT_SITES, SCALARS, SITES, TOP_K, VARIABLES, scalars
from ...store.format.paths import Layout
from ..model.hooks import TokenSpan, block_of, buffer

BATCH = 16
WINDOW = 8  # batches; prompts are sorted by length inside a window of this many, so that few slots are padding
LOGIT_ROWS = 1 << 24  # elements of logits computed at a time
IN_FLIGHT = 16  # hidden states that a block holds at once, the MLP's wider ones counted as several
# Raw float32 bytes over stored bytes; widened bfloat16: 2.8 to 2.9 (STORAGE 2b), rounded: benchmarks/precision.py.
STORED_RATIO = {"bfloat16": 2.7, "int8": 4.0, "fp8": 4.6}


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
    profile: ProfileSpec,
    n_layers: int,
    d_model: int,
    vocab: int,
    boundaries: Sequence[int],
    more: Mapping[str, int] | None = None,
) -> dict[str, tuple[int, ...]]:
    """Variable -> shape after the token axis, for what a profile keeps of a model of this shape; `more` of `site_lengths`."""
    lengths = {"boundary": len(boundaries), "layer": n_layers, "d_model": d_model, **(more or {})}
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
    """Raw float32 bytes over those that the codec leaves, for values computed in `dtype` or rounded to int8 or fp8."""
    return STORED_RATIO.get(dtype, 1.1)


def estimate(template: Template, plan: list[list[int]], vocab: int = 0, device: str = "cpu") -> CaptureSize:
    """Sizes of a capture from its template, batch plan, vocabulary and the type of device the model runs on."""
    per_token = sum(template.bytes_per_token.values())
    tokens, shard, offset = template.stream.n_tokens, template.shard_tokens, template.stream.offset
    open_rows = max((len(_shards_of(batches, offset, shard)) for batches in _windows(plan)), default=0)
    narrow = template.source_dtype == "bfloat16"
    stored = _stored(template)
    # bfloat16 sites are held as they are; rows under way are held once more, encoded.
    half = {name for name in SITES if narrow and not VARIABLES[name].derived}
    held = sum(size // (2 if name in half else 1) for name, size in template.bytes_per_token.items())
    rows = min(open_rows + DEPTH, template.n_shards) * held + min(DEPTH, template.n_shards) * stored
    return CaptureSize(
        tokens=tokens,
        shards=template.n_shards,
        raw=tokens * per_token,
        stored=int(tokens * stored),
        memory=int(rows * min(shard, tokens)),
        device=_device_bytes(template, plan, vocab, device),
    )


def _stored(template: Template) -> float:
    """Bytes on disk that a token is expected to take."""
    each = template.bytes_per_token
    return sum(size / stored_ratio(template.precision.get(name, template.source_dtype)) for name, size in each.items())


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


class ShardBuffers:
    """Buffers of shard rows; a full row is handed out, and comes back to be filled again.

    A row's buffers are pinned when the model is on a GPU, and used again: first touch of new memory costs more than
    filling it.
    """

    def __init__(self, template: Template, todo: list[int], dtype: torch.dtype, pin: bool = False):
        self._template, self._size = template, template.shard_tokens
        self._dtype, self._pin = dtype, pin
        self._offset = template.stream.offset
        self._todo = set(todo)
        self._open: dict[int, dict[str, torch.Tensor]] = {}
        self._left: dict[int, int] = {}
        self._spare: deque[dict[str, torch.Tensor]] = deque()
        self._out: dict[int, dict[str, torch.Tensor]] = {}
        self._notes: dict[int, PromptValues] = {}

    def _shards(self, prompt: int) -> range:
        """Shard rows that hold tokens of a prompt."""
        return range(int(self._offset[prompt]) // self._size, (int(self._offset[prompt + 1]) - 1) // self._size + 1)

    def wants(self, prompt: int) -> bool:
        """True when a row that holds tokens of this prompt is still to be filled."""
        return any(shard in self._todo for shard in self._shards(prompt))

    def parts(self, prompts: list[int]) -> list[TokenSpan]:
        """Where the tokens of a batch of these prompts go; those of rows that are done already go nowhere."""
        found = []
        for row, prompt in enumerate(prompts):
            first, last = int(self._offset[prompt]), int(self._offset[prompt + 1])
            for shard in self._shards(prompt):
                if shard in self._todo:
                    low, high = max(first, shard * self._size), min(last, (shard + 1) * self._size)
                    found.append(TokenSpan(row, low - first, high - first, self._row(shard), low - shard * self._size))
        return found

    def note(self, name: str, prompts: list[int], values: np.ndarray) -> None:
        """Keep one value a prompt [batch, ...] with the row that holds the prompt's last prompt token."""
        for prompt, value in zip(prompts, values, strict=True):
            shard = (int(self._offset[prompt]) + self._template.stream.starts[prompt] - 1) // self._size
            if shard in self._todo:
                self._notes.setdefault(shard, {}).setdefault(name, {})[prompt] = value

    def filled(self, prompts: list[int]) -> list[tuple[int, dict[str, np.ndarray], PromptValues | None]]:
        """Count a batch as copied; return what this completed as the writer takes it: rows and their prompts' values."""
        full = []
        for prompt in prompts:
            first, last = int(self._offset[prompt]), int(self._offset[prompt + 1])
            for shard in self._shards(prompt):
                if shard in self._left:
                    self._left[shard] -= min(last, (shard + 1) * self._size) - max(first, shard * self._size)
                    if not self._left[shard]:
                        full.append((shard, self._hand_out(shard), self._notes.pop(shard, None)))
        return full

    def recycle(self, shard: int) -> None:
        """Take back the buffers of a row that is encoded (called from the writer's threads)."""
        self._spare.append(self._out.pop(shard))

    def _hand_out(self, shard: int) -> dict[str, np.ndarray]:
        del self._left[shard]
        self._todo.discard(shard)
        self._out[shard] = self._open.pop(shard)
        tokens = self._tokens(shard)
        return {name: block_of(tensor)[:tokens] for name, tensor in self._out[shard].items()}

    def _tokens(self, shard: int) -> int:
        return min(self._size, int(self._offset[-1]) - shard * self._size)

    def _row(self, shard: int) -> dict[str, torch.Tensor]:
        if shard not in self._open:
            size = min(self._size, int(self._offset[-1]))
            self._open[shard] = (
                self._spare.popleft()
                if self._spare
                else {
                    name: buffer(name, shape, size, self._dtype, self._pin)
                    for name, shape in self._template.sizes.items()
                }
            )
            self._left[shard] = self._tokens(shard)
        return self._open[shard]
