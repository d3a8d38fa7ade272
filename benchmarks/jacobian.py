"""Fitting a Jacobian lens: time against what is announced, and operations a second against a bare matrix product.

    python benchmarks/jacobian.py [--prompts 16] [--lake DIR --model NAME] [--rows 12]

A fit of pocket/it from its native capture, whole. Then a random Llama of SmolLM2-135M's shape: --rows rows of J on eight
sequences of 64 tokens are computed, of 576, and from their time follows that of 64 such prompts, for all rows cost alike. With
--lake and --model the same of a model of yours instead, on its own native stream.
"""

import argparse
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from actlake.capture.edit.replay import find_weights
from actlake.capture.model.load import Model, load_model
from actlake.capture.run.jacobian import JacobianSums, fit
from actlake.lake import Lake
from actlake.queries.engine.context import Context
from actlake.queries.engine.estimate import speed_of
from actlake.queries.probes.jacobian import estimated
from actlake.store.artifacts.models import read_model
from actlake.store.artifacts.streams import read_stream
from actlake.store.captures.reader import find_capture
from actlake.store.core.catalog import ModelSpec, load_catalog
from actlake.store.format.paths import Layout
from measure import Row, main
from work import CATALOG, random_llama

PROMPTS, TOKENS = 64, 64  # that the estimate is for


class Enough(Exception):
    """Enough rows were computed."""


def seconds_of(model: Model, sequences: list[np.ndarray], rows: int) -> float:
    """Seconds of the forward and the first rows of J, all sequences together."""
    sums = JacobianSums(1, model.n_layers, model.head.d_model, model.dtype, "cpu")
    done = 0

    def count(_: int) -> None:
        nonlocal done
        done += 1
        if done == rows:
            raise Enough

    started = time.perf_counter()
    with suppress(Enough):
        fit(model, sequences, np.zeros(len(sequences), np.int64), 16, sums, 1 << 30, progress=count)
    return time.perf_counter() - started


def whole_fit(prompts: int) -> list[Row]:
    """A fit of pocket/it, against its announcement."""
    with tempfile.TemporaryDirectory() as folder:
        lake = Lake(Layout.open(Path(folder) / "lake", create=True), catalog=CATALOG)
        lake.capture("pocket/it", "native", "pocket", limit=4 * prompts)
        names = ("pocket-it", find_capture(lake.layout, "pocket-it", "native").stem)
        kit, record = Context(lake.layout), read_model(lake.layout, names[0])
        started = time.perf_counter()
        ((_, found),) = lake.fit_lens("pocket/it", "jacobian", count=prompts, folds=1).items()
        took, tokens = time.perf_counter() - started, found["trained_tokens"][0]
        each = np.full(tokens // prompts, 0, np.int32)
        said = estimated(kit, names[0], record, [each] * prompts, 1).seconds or np.nan
        note = f"{prompts} prompts, {tokens:,} tokens: {tokens / took:,.1f} tokens/s with loading and sealing"
        return [Row("fit of pocket/it, against what is announced", took, said, "s", "<= 2", note)]


def some_rows(model: Model, what: str, sequences: list[np.ndarray], rows: int) -> list[Row]:
    """Rows of J of a model, and what all of them take for PROMPTS prompts."""
    width, tokens = model.head.d_model, sum(map(len, sequences))
    few, more = seconds_of(model, sequences, 1), seconds_of(model, sequences, rows + 1)
    each = (more - few) / rows
    weights = sum(p.numel() for block in model.parts.blocks for p in block.parameters())
    whole = (few + each * (width - 1)) * PROMPTS * TOKENS / tokens
    note = f"{rows} of {width} rows of {len(sequences)} sequences, {tokens / (each * width):.3g} tokens/s"
    return [
        Row(f"{what}: operations a second", 2.0 * weights * tokens / each, speed_of("cpu"), "/s", ">= 0.5", note),
        Row(f"{what}: {PROMPTS} prompts of {TOKENS} tokens", whole / 60, np.nan, "min", "", "from the same rows"),
    ]


def run(prompts: int, rows: int, lake: Path | None = None, model: str = "") -> list[Row]:
    """All of it, or the rows of one model of a lake."""
    if lake:
        layout = Layout.open(lake)
        stream = read_stream(layout, find_capture(layout, model, "native").stem)
        chosen = sorted((row[:TOKENS] for row in stream.tokens if len(row) > TOKENS // 2), key=len)[-8:]
        loaded = load_model(find_weights(layout, model, load_catalog(None)), dtype="float32")
        return some_rows(loaded, model, chosen, rows)
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        path = random_llama(Path(folder))
        spec: Any = ModelSpec("smol", path, None, None, None, "raw")
        smol = load_model(spec, dtype="float32")
        sequences = [random.integers(10, smol.head.vocab, TOKENS) for _ in range(8)]
        found = some_rows(smol, "SmolLM2-135M's shape", sequences, rows)
    return [*whole_fit(prompts), *found]


def options(parser: argparse.ArgumentParser) -> None:
    """How much, and of which model."""
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--rows", type=int, default=12)
    parser.add_argument("--lake", type=Path, metavar="DIR")
    parser.add_argument("--model", default="", metavar="NAME")


if __name__ == "__main__":
    main("jacobian", run, __doc__, options)
