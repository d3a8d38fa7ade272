"""Peak memory must not grow with the work: a capture of 8 times the prompts, and a sweep of 200,000 tokens.

Each measurement runs in a fresh process and counts resident memory above what the process held when the model (or the
lake) was open. The sweep's capture is made up: 34 layers of width 640 with a small vocabulary, so that reading it, not
the lens, is what takes time; every shard is a copy of the first.

On a CPU torch would keep kernels and scratch memory for up to 1,024 shapes of a batch, hundreds of MB with this model. The
command tells it to keep few, and so does this benchmark.
"""

import multiprocessing
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import actlake  # noqa: F401, before torch: sets what torch reads when it is imported
import machine
import numpy as np
import torch
from actlake.analyze.tuned.recipes import Adam
from actlake.capture.model.load import load_model
from actlake.capture.run.batching import batch_plan, estimate
from actlake.capture.run.capture import capture, make_template
from actlake.queries.engine.context import Scope
from actlake.queries.makers import ensure
from actlake.queries.probes.training import train_probes
from actlake.store.artifacts.models import write_model
from actlake.store.artifacts.streams import write_stream
from actlake.store.captures.allocate import Template, create_capture
from actlake.store.captures.manifest import seal
from actlake.store.captures.writer import ShardWriter
from actlake.store.core.catalog import ModelSpec, ProfileSpec
from actlake.store.core.progress import ERRORS
from actlake.store.core.schema import FORMAT_VERSION
from actlake.store.format.paths import Layout
from measure import Row, main
from work import random_llama, random_stream, read_by, stream_of

PROFILE = ProfileSpec("bench", ("resid", "mlp_out"), "auto", "auto", None)
TOKENS, TRAINED = 64_000, 1024  # as many tokens as fill all buffers, and more
LAYERS, WIDTH, VOCAB, LONG = 34, 640, 64, 200_000
# All tables of token x layer and what is made of residuals beside them; those left out need sites or streams of their own.
SWEPT = [
    *(("lens", ""), ("lens", "tuned"), ("delta", ""), ("pair_lens", "")),
    *(("churn", "raw"), ("churn", "tuned"), ("geometry", ""), ("lens_eval", "")),
]


def apart(work: Callable[..., Any], *args: Any) -> Any:
    """The result of a function that runs in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, args)


def capture_memory(model: Path, folder: Path, tokens: int) -> tuple[float, float]:
    """Bytes at the peak of a capture above what the loaded model holds, and what actlake says beforehand."""
    ERRORS.quiet = True
    layout, loaded = Layout.open(folder, create=True), load_model(ModelSpec("bench-pt", model, None, None, None))
    warm = read_by(loaded, random_stream(200, (40, 160), 4000))
    capture(layout, loaded, write_stream(layout, warm), PROFILE)
    stream = read_by(loaded, random_stream(tokens, (40, 160), 4000))
    name = write_stream(layout, stream)
    machine.reset_peak_memory()
    before = machine.peak_memory()
    capture(layout, loaded, name, PROFILE)
    plan = batch_plan(np.diff(stream.offset).tolist())
    said = estimate(make_template(loaded, stream, PROFILE), plan, loaded.head.vocab)
    return machine.peak_memory() - before, float(said.memory + said.device)


def made_up(folder: Path, tokens: int, vocab: int = VOCAB) -> Scope:
    """A lake with a capture of both variants, values of the first shard repeated, and a random head."""
    layout = Layout.open(folder, create=True)
    rng, rows = np.random.default_rng(0), [np.full(200, 7, np.int32)] * (tokens // 200)
    stream = replace(
        stream_of(rows), starts=[100] * len(rows)
    )  # the second half is continuation: a pair is compared there
    sizes: dict[str, tuple[int, ...]] = {"resid": (LAYERS + 1, WIDTH), "mlp_out": (LAYERS, WIDTH)}
    made = {"model": "bench-it", "model_sha256": "made up", "dtype": "bfloat16", "batch": 1}
    template = Template(stream, sizes, tuple(range(LAYERS + 1)), tuple(range(LAYERS)), "bfloat16", made)
    blocks = {
        name: torch.randn(size[0], template.shard_tokens, WIDTH).bfloat16().view(torch.int16).numpy().view(np.uint16)
        for name, size in sizes.items()
    }
    head = {"norm_weight": np.ones(WIDTH, np.float32), "real_token": np.ones(vocab, bool)}
    head["unembed"] = rng.standard_normal((vocab, WIDTH), np.float32)
    facts = {"norm": "rms", "norm_eps": 1e-6, "softcap": None, "logit_scale": 1.0, "parallel": False}
    texts = ("sha256", "id", "class", "tokenizer_sha256", "chat_template_sha256")
    record = {"format_version": FORMAT_VERSION, "dtype": "bfloat16", "revision": None, "files": {}, "template": "chat"}
    record |= dict.fromkeys(texts, "made up")
    name = write_stream(layout, stream)
    for variant in ("pt", "it"):
        write_model(layout, f"bench-{variant}", record, head, facts)
        path = layout.capture(f"bench-{variant}", name)
        create_capture(path, template)
        with ShardWriter(path, template) as writer:
            for shard in range(template.n_shards):
                count = min(template.shard_tokens, stream.n_tokens - shard * template.shard_tokens)
                writer.put(shard, {site: block.swapaxes(0, 1)[:count] for site, block in blocks.items()})
        seal(path)
    return Scope("bench", {"pt": "bench-pt", "it": "bench-it"}, {"pt": name, "it": name})


def sweep_memory(folder: Path, scope: Scope) -> float:
    """Bytes at the peak of computing the tables that read residuals, all in one pass, the process included."""
    ERRORS.quiet = True
    ensure(Layout.open(folder), [(table, kind, scope) for table, kind in SWEPT])
    return machine.peak_memory()


def training_memory(folder: Path, scope: Scope) -> float:
    """Bytes at the peak of training both tuned lenses (two folds) on a part of the captures that no buffer holds, all
    included. The sweep after it reads through these."""
    ERRORS.quiet = True
    for variant in ("pt", "it"):
        train_probes(Layout.open(folder), f"{scope.pair}/{variant}", scope.streams[variant], Adam(), tokens=TRAINED)
    return machine.peak_memory()


def run() -> list[Row]:
    """All rows of this benchmark."""
    with tempfile.TemporaryDirectory(prefix="actlake-bench-") as name:
        folder = Path(name)
        model = random_llama(folder / "model")
        once, said = apart(capture_memory, model, folder / "once", TOKENS)
        more, _ = apart(capture_memory, model, folder / "more", 8 * TOKENS)
        rows = [
            Row("capture, peak at 8 times the prompts vs once", more / 1e6, once / 1e6, "MB", "<= 1.1"),
            Row("capture, peak vs what it says before it starts", once / 1e6, said / 1e6, "MB", "<= 1.25"),
        ]
        about = f"{LAYERS} layers of {WIDTH}, both variants"
        lake = folder / "long"
        scope = made_up(lake, LONG)
        for what, work in (("tuned lens trained on", training_memory), ("eight tables of", sweep_memory)):
            peak = apart(work, lake, scope)
            rows.append(Row(f"{what} {LONG:,} tokens, peak vs 2 GB", peak / 1e9, 2.0, "GB", "<= 1", about))
        return rows


if __name__ == "__main__":
    main("memory", run, __doc__)
