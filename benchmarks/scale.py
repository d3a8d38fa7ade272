"""A lake of 12 captures of 1.5 million tokens each, as far as metadata go: opening, listing, planning.

Six pairs of Gemma-3-4B's shape (34 blocks, d = 2560, shards of 1024 tokens) on one stream per variant: coordinates, array
metadata, manifests and streams are as large as real ones and made by the same code; the shards themselves are not there, so
that nothing that is timed here can have read one. `--tokens N` makes a smaller lake.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import actlake
import dask
import numpy as np
import torch
from actlake.analyze import lazy
from actlake.analyze.lens.head import Head
from actlake.queries.answer.answer import Plan
from actlake.queries.engine.context import Context
from actlake.queries.engine.passes import BLOCK_BYTES
from actlake.queries.rows.registry import find
from actlake.store.artifacts.models import write_model
from actlake.store.artifacts.streams import Stream, write_stream
from actlake.store.captures.allocate import Template, create_capture
from actlake.store.captures.manifest import seal
from actlake.store.captures.reader import Capture
from actlake.store.captures.writer import shard_file, shard_record
from actlake.store.format.paths import Layout
from dask._task_spec import Alias, DataNode
from measure import Row, main

PAIRS, LAYERS, WIDTH, TOP_K, VOCAB = 6, 34, 2560, 64, 262_144
TOKENS, PROMPT_TOKENS, SHARD = 1_500_000, 500, 1024
SIZES = {
    "resid": (LAYERS + 1, WIDTH),
    "mlp_out": (LAYERS, WIDTH),
    "topk_id": (TOP_K,),
    "topk_logit": (TOP_K,),
    "logsumexp": (),
}
OPEN, LIST, TASKS = 2.0, 1.0, 5000
REPEATS = 3


def make_stream(tokens: int, seed: int) -> Stream:
    """A stream of random tokens, half of each prompt a continuation."""
    rng, count = np.random.default_rng(seed), -(-tokens // PROMPT_TOKENS)
    rows = np.array_split(rng.integers(5, VOCAB, tokens, dtype=np.int32), count)
    names = [f"prompt-{index:05d}" for index in range(count)]
    recipe = {"key": f"{seed}", "tokenizer_sha256": "t", "prompt_set_sha256": "p", "max_new_tokens": PROMPT_TOKENS // 2}
    texts = np.full(tokens, "token").tolist()
    starts = [len(row) // 2 for row in rows]
    return Stream("native", "made", names, ["FACT"] * count, rows, starts, texts, np.zeros(tokens, bool), recipe)


def make_capture(layout: Layout, pair: str, variant: str, stream: Stream) -> None:
    """Allocate a capture, say that every shard row is written, and seal it."""
    provenance = {
        "model": f"{pair}-{variant}",
        "model_sha256": f"{pair}-{variant}",
        "batch": 16,
        "dtype": "bfloat16",
    }
    layers = tuple(range(LAYERS))
    template = Template(stream, SIZES, (*layers, LAYERS), layers, "bfloat16", provenance, SHARD)
    path = layout.capture(f"{pair}-{variant}", stream.name)
    create_capture(path, template)
    for shard in range(template.n_shards):
        files = {
            shard_file(path, name, shard).relative_to(path).as_posix(): {
                "sha256": sha256(f"{path}{name}{shard}".encode()).hexdigest(),
                "bytes": SHARD * 4 * int(np.prod(size)) // 3,
            }
            for name, size in SIZES.items()
        }
        ranges = {name: {"min": -1.0, "max": 1.0, "nonfinite": 0} for name in SIZES}
        shard_record(path, shard).write_text(json.dumps({"shard": shard, "files": files, "statistics": ranges}))
    seal(path)


def make_lake(root: Path, tokens: int = TOKENS, pairs: int = PAIRS) -> Layout:
    """The whole lake."""
    layout = Layout.open(root, create=True)
    streams = {variant: make_stream(tokens, seed) for seed, variant in enumerate(("pt", "it"))}
    for stream in streams.values():
        write_stream(layout, stream)
    for number in range(pairs):
        for variant, stream in streams.items():
            make_capture(layout, f"pair{number}", variant, stream)
            arrays = {"norm_weight": np.ones(WIDTH, np.float32), "unembed": np.ones((TOP_K, WIDTH), np.float32)}
            texts = dict.fromkeys(("id", "class", "tokenizer_sha256", "chat_template_sha256"), "made")
            record: dict[str, Any] = {
                **texts,
                "sha256": f"pair{number}/{variant}",
                "revision": None,
                "files": {},
                "dtype": "bfloat16",
                "template": "chat",
            }
            write_model(layout, f"pair{number}-{variant}", record, arrays, {"norm": "rms", "norm_eps": 1e-6})
    return layout


# --- what is measured --------------------------------------------------------------------------------------------------


def seconds(task: Callable[[], Any]) -> float:
    """The shortest of some runs in this process."""
    found = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        task()
        found.append(time.perf_counter() - started)
    return min(found)


def command(code: str, *words: str) -> float:
    """The shortest of some runs of a new Python that does `code` and prints how long that took by itself."""
    timed = (
        f"import sys, time; import actlake; started = time.perf_counter(); {code}; print(time.perf_counter() - started)"
    )
    run = [
        subprocess.run([sys.executable, "-c", timed, *words], check=True, capture_output=True, text=True)
        for _ in range(REPEATS)
    ]
    return min(float(each.stdout.split()[-1]) for each in run)


def tasks(value: Any) -> int:
    """Tasks that dask's schedulers get for a lazy array or dataset; second names of fused ones and data are none."""
    arrays = [array.data for array in (value.data_vars.values() if hasattr(value, "data_vars") else [value])]
    graphs = [dict(array.__dask_graph__()) for array in dask.optimize(*arrays)]
    return sum(
        not isinstance(task, Alias | DataNode)
        for task in {key: graph[key] for graph in graphs for key in graph}.values()
    )


def graphs(lake: Any) -> dict[str, int]:
    """What is asked of one capture -> its tasks."""
    layers, tokens = lake.dataset("pair0-it", "native"), lake.dataset("pair0-it", "native", by="token")
    head = Head(torch.zeros(TOP_K, WIDTH), torch.ones(WIDTH))
    lens, delta = lazy.lens(tokens, head), lazy.delta(tokens)
    return {
        "mean of a layer": tasks(layers.resid.sel(boundary=4).mean("token")),
        "mean of every layer": tasks(tokens.resid.mean("token")),
        "mean of a column of the lens, by layer": tasks(lens.kl_final_layer.mean("token")),
        "mean of a column of delta, by layer": tasks(delta.block_cos.mean("token")),
        "every column of the lens, token by token": tasks(lens),
    }


def row_plan(layout: Layout, row: str) -> tuple[int, int]:
    """Jobs that make the missing tables of a row, and blocks of prompts that they take from each capture, in all."""
    plan = Plan.make(Context(layout), find(row), ["pair0"], None)
    jobs = [job for some in plan.made_by.values() for job in some]
    reads: dict[Capture, set[str]] = {}
    for job in jobs:
        for capture in job.captures:
            reads[capture] = reads.get(capture, set()) | set(job.reads)
    blocks = 0
    for capture, names in reads.items():
        prompt = PROMPT_TOKENS * sum(4 * int(np.prod(capture.array(name).shape[1:])) for name in names)
        blocks += -(-capture.manifest["n_prompts"] // max(1, BLOCK_BYTES // prompt))
    return len(jobs), blocks


def run(tokens: int = TOKENS) -> list[Row]:
    """All rows of this benchmark."""
    with tempfile.TemporaryDirectory(prefix="actlake-bench-") as folder:
        layout = make_lake(Path(folder) / "lake", tokens)
        root, lake = str(layout.root), actlake.open(layout.root)
        manifests = [file.stat().st_size for file in layout.root.glob("captures/*/*.zarr/manifest.json")]
        size = f"{len(manifests)} captures of {tokens:,} tokens, {sum(manifests) / 1e6:.1f} MB of manifests"
        ls = [sys.executable, "-m", "actlake", "ls", "--lake", root]
        rows = [
            Row(
                "open a lake and a capture in it",
                command("actlake.open(sys.argv[1]).dataset('pair0-it', 'native')", root),
                OPEN,
                "s",
                "<= 1",
                size,
            ),
            Row("list its captures", command("actlake.open(sys.argv[1]).captures", root), LIST, "s", "<= 1"),
            Row(
                "SQL over captures",
                command("actlake.open(sys.argv[1]).sql('FROM captures').fetchall()", root),
                LIST,
                "s",
                "<= 1",
            ),
            Row(
                "`actlake ls`, the whole command",
                seconds(lambda: subprocess.run(ls, check=True, capture_output=True)),
                OPEN,
                "s",
                "<= 1",
            ),
        ]
        for what, count in graphs(lake).items():
            rows.append(Row(f"dask: {what}", count, TASKS, "tasks", "<= 1" if "mean" in what else ""))
        started = time.perf_counter()
        jobs, blocks = row_plan(layout, "L2")
        took = time.perf_counter() - started
        rows.append(
            Row("plan of row L2", took, OPEN, "s", "<= 1", f"{jobs} jobs, {blocks:,} blocks of prompts in one pass")
        )
        return rows


def options(parser: argparse.ArgumentParser) -> None:
    """A smaller lake."""
    parser.add_argument("--tokens", type=int, default=TOKENS, help="tokens of each capture")


if __name__ == "__main__":
    main("scale", run, __doc__, options)
