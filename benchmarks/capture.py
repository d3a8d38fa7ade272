"""The capture loop against the same batches through the bare Hugging Face model, plus the codec's own time.

Two models in bfloat16 on the CPU: the embedded pocket pair's PT, and a random Llama of SmolLM2-135M's
shape and vocabulary. `bare` is a plain forward of each padded batch, logits and all, without hooks; `capture` is the whole
loop of actlake.capture.run.capture: hooks, top-k logits, checks, row buffers, writer thread, fsync, hashes. The codec's own
time is that of encoding the captured chunks in memory on one thread. `no logits` leaves the top-k logits and their
log-sum-exp out of the capture, and all logits but the last position's out of the bare forward.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from actlake.capture.model.hooks import Batch, pad_id
from actlake.capture.model.load import Model, load_model
from actlake.capture.run.batching import BATCH, ShardBuffers, batch_plan
from actlake.capture.run.capture import fill, make_template
from actlake.capture.run.forward import read
from actlake.store.artifacts.streams import Stream
from actlake.store.captures.allocate import Template, create_capture
from actlake.store.captures.reader import Capture
from actlake.store.core.catalog import ModelSpec, ProfileSpec, load_catalog
from codec import as_captured, encode, single_threaded_blosc, threaded
from measure import Row, in_turn, main, median_ratio, medians
from work import CATALOG, random_llama, random_stream

REPEATS = 3
SITES = ("resid", "mlp_out")


class Loop:
    """One model, one stream, one form of logits ('auto' or 'none'), and the things that are timed on them."""

    def __init__(self, model: Model, stream: Stream, folder: Path, logits: str):
        self.model, self.stream, self.folder = model, stream, folder / logits
        self.plan = batch_plan(np.diff(stream.offset).tolist(), BATCH)
        self.template: Template = make_template(model, stream, ProfileSpec("bench", SITES, logits, "auto", None))
        self.keep = 1 if logits == "none" else 0  # Hugging Face's logits_to_keep: the last position's, or (0) all
        self.runs = 0

    def batches(self) -> list[Batch]:
        """The padded batches of the plan, made anew as the capture loop does."""
        pad = pad_id(self.model)
        return [Batch([self.stream.tokens[i] for i in indices], pad, self.model.device) for indices in self.plan]

    def run(self, batch: Batch) -> None:
        """One plain forward."""
        self.model.hf(
            input_ids=batch.ids,
            attention_mask=batch.mask,
            position_ids=batch.positions,
            use_cache=False,
            logits_to_keep=self.keep,
        )

    @torch.no_grad()
    def bare(self) -> None:
        """Plain forwards of all batches."""
        for batch in self.batches():
            self.run(batch)

    def staged(self) -> None:
        """Forwards whose values are copied into row buffers, which are used again and never written."""
        rows = ShardBuffers(self.template, list(range(self.template.n_shards)), self.model.dtype)
        for indices, batch in zip(self.plan, self.batches(), strict=True):
            read(self.model, batch, self.template.sizes, self.template.boundaries, rows.parts(indices))
            for shard, *_ in rows.filled(indices):
                rows.recycle(shard)

    def capture(self) -> None:
        """The capture loop into a fresh folder, allocated beforehand."""
        path = self.folder / f"{self.runs - 1}.zarr"
        fill(self.model, self.template, path, self.plan, list(range(self.template.n_shards)))

    def allocate(self) -> None:
        """Arrays and coordinates for the next capture; done once per capture whatever its length, so not timed."""
        create_capture(self.folder / f"{self.runs}.zarr", self.template)
        self.runs += 1

    def encode(self) -> Callable[[], None]:
        """A task that encodes the chunks of the latest capture on one thread."""
        return threaded(encode, [as_captured(chunk) for chunk in self.chunks()], 1)

    def chunks(self) -> list[np.ndarray]:
        """All inner chunks of all variables of the latest capture, contiguous."""
        stored = Capture(self.folder / f"{self.runs - 1}.zarr", allow_unsealed=True)
        found = []
        for name in self.template.sizes:
            array = stored.array(name)
            values, tokens = array[:], array.array.chunks[0]
            parts = [values[:, layer] for layer in range(values.shape[1])] if values.ndim == 3 else [values]
            found += [np.ascontiguousarray(p[s : s + tokens]) for p in parts for s in range(0, len(values), tokens)]
        return found


def overhead(name: str, model: Model, stream: Stream, folder: Path) -> list[Row]:
    """Rows of one model: each part against the bare forward, plus the codec where things are written, of its round."""
    full, lean = Loop(model, stream, folder, "auto"), Loop(model, stream, folder, "none")
    for loop in (full, lean):  # warms the model up and leaves the chunks that the codec is timed on
        loop.allocate()
        loop.capture()
    tasks: dict[str, Callable[[], object]] = {
        "bare": full.bare,
        "bare, no logits": lean.bare,
        "staged, no logits": lean.staged,
        "staged": full.staged,
        "allocate": full.allocate,
        "capture": full.capture,
        "allocate, no logits": lean.allocate,
        "capture, no logits": lean.capture,
        "codec": full.encode(),
        "codec, no logits": lean.encode(),
    }
    seconds = in_turn(tasks, REPEATS)
    work = cpu_work({task: tasks[task] for task in ("bare", "allocate", "capture", "codec")})
    tokens, middle = stream.n_tokens, medians(seconds)
    speed = f"{tokens} tokens, {tokens / middle['capture']:,.0f} tokens/s; bare {tokens / middle['bare']:,.0f} tokens/s"

    def row(what: str, task: str, parts: Sequence[str], times: dict[str, list[float]], target: str, note: str) -> Row:
        limit = [sum(values) for values in zip(*(times[part] for part in parts), strict=True)]
        measured = medians(times)[task]
        return Row(f"{name}: {what}", measured, measured / median_ratio(times[task], limit), "s", target, note)

    bare = ("bare, no logits", "codec, no logits")
    return [
        row("capture vs bare + codec", "capture", ("bare", "codec"), seconds, "<= 1.15", speed),
        row("capture without logits vs bare + codec", "capture, no logits", bare, seconds, "<= 1.15", ""),
        row("hooks and staging vs bare", "staged, no logits", bare[:1], seconds, "<= 1.05", ""),
        row("hooks, staging and top-k logits vs bare", "staged", ("bare",), seconds, "", ""),
        row("capture vs bare", "capture", ("bare",), seconds, "", ""),
        row("CPU time, torch on one thread: capture vs bare + codec", "capture", ("bare", "codec"), work, "", ""),
    ]


def cpu_work(tasks: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    """CPU seconds with torch on one thread: all work done, whatever else runs and however well it overlaps."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return in_turn(tasks, 3, time.process_time)
    finally:
        torch.set_num_threads(threads)


def run() -> list[Row]:
    """All rows of this benchmark."""
    spec = load_catalog(CATALOG).pair("pocket").model("pt")
    assert spec.path is not None
    with tempfile.TemporaryDirectory(prefix="actlake-bench-") as name, single_threaded_blosc():
        folder = Path(name)
        pocket, large = (
            load_model(spec),
            load_model(ModelSpec("random-pt", random_llama(folder / "model"), None, None, None, "raw")),
        )
        vocab = min(pocket.head.vocab, large.head.vocab)
        rows = overhead("pocket", pocket, random_stream(8000, (40, 160), vocab), folder / "pocket")
        return rows + overhead("random Llama, d=576", large, random_stream(3200, (40, 160), vocab), folder / "large")


if __name__ == "__main__":
    main("capture", run)
