"""Shuffled batches from a lake against reading the same bytes in order, random rows of a memory map, and SAELens.

The lake: 1 GB of one site and layer as float32 (327,680 rows of 768, made-up values of bfloat16, prompts of 64 to 512 tokens).
In order means `array[rows, layer]`, 65,536 or 4096 rows at a time, whichever is faster here.
Batches of 4096; everybody's come out as what he holds, bfloat16 here and in the map, float32 where the row says so. Cold means
that the file's pages were dropped (posix_fadvise) before each pass; the map's pass is then cut short, as it would take minutes.

Mixing: `same` is the share of pairs in a batch that are of one prompt, `var` the variance of a batch's mean of what is constant
within a prompt, over that of a true shuffle. SAELens shuffles its sequences when it writes its cache; it is given them in order,
as everybody else. It is measured once where it is installed (`pip install sae-lens`), else said to be missing.
"""

import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import actlake
import numpy as np
from actlake.store.captures.allocate import Template, create_capture
from actlake.store.captures.manifest import seal
from actlake.store.captures.reader import Capture
from actlake.store.captures.writer import ShardWriter
from actlake.store.format.paths import Layout
from measure import Row, in_turn, main, median_ratio, medians
from work import random_stream

ROWS, WIDTH, BATCH, BUFFER = 327_680, 768, 4096, 65_536
REPEATS = 3
COLD = 16_384  # random rows that a cold map is asked for
CONTEXT = 128  # of SAELens
FEATURES = 64  # made-up ones, constant within a prompt, that `var` is averaged over
CODES = 128  # a prompt's number is in the first two values of its rows, below this, so exact in bfloat16
HOOK = "blocks.0.hook_resid_post"


def make_lake(root: Path) -> Capture:
    """The lake of this benchmark: one capture of `resid` at two boundaries."""
    layout = Layout.open(root, create=True)
    stream = random_stream(ROWS + 512, (64, 512), 30_000)
    prompt = stream.columns["prompt"]
    made = {"model": "made-it", "model_sha256": "made up", "dtype": "bfloat16", "batch": 1}
    template = Template(stream, {"resid": (2, WIDTH)}, (0, 1), (0,), "bfloat16", made)
    path, rng = layout.capture("made-it", stream.name), np.random.default_rng(0)
    spread = np.exp(rng.standard_normal(WIDTH)).astype(np.float32)
    create_capture(path, template)
    with ShardWriter(path, template) as writer:
        for shard in range(template.n_shards):
            here = prompt[shard * template.shard_tokens : (shard + 1) * template.shard_tokens]
            values = rng.standard_normal((len(here), 2, WIDTH), np.float32) * spread
            values[:, :, 0], values[:, :, 1] = (here % CODES)[:, None], (here // CODES)[:, None]
            writer.put(shard, {"resid": (values.view(np.uint32) >> 16).astype(np.uint16)})
    seal(path)
    return Capture(path)


def drop(*files: Path) -> None:
    """Take files out of the page cache."""
    for file in files:
        handle = os.open(file, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def used(batches: Iterable[Any]) -> int:
    """Go through batches; returns their rows."""
    return sum(len(batch) for batch in batches)


# --- mixing ----------------------------------------------------------------------------------------------------------


def mixing(prompts: Iterable[np.ndarray], sizes: np.ndarray) -> tuple[float, float]:
    """`same` and `var` of batches given by their rows' prompts; `sizes` are the rows of all prompts."""
    drawn = np.random.default_rng(1).standard_normal((len(sizes), FEATURES))
    drawn -= np.average(drawn, axis=0, weights=sizes)
    same, means = [], []
    for batch in prompts:
        count = np.bincount(batch, minlength=len(sizes))
        same.append((count * (count - 1)).sum() / (len(batch) * (len(batch) - 1)))
        means.append(count @ drawn / len(batch))
    rows = sizes.sum()
    true = np.average(drawn**2, axis=0, weights=sizes) / BATCH * (1 - BATCH / rows)
    return float(np.mean(same)), float(np.mean(np.mean(np.square(means), axis=0) / true))


def words(found: tuple[float, float]) -> str:
    return f"same {found[0]:.5f}, var {found[1]:.1f}"


# --- SAELens ---------------------------------------------------------------------------------------------------------


def sae_lens_store(values: np.ndarray, folder: Path) -> Callable[[], Iterator[Any]]:
    """What starts SAELens' own store over an Arrow cache of these rows [n, d], as its runner writes it."""
    import torch
    from datasets import Array2D, Dataset, Features, disable_progress_bars
    from sae_lens.training.activations_store import ActivationsStore

    disable_progress_bars()
    features = Features({HOOK: Array2D(shape=(CONTEXT, WIDTH), dtype="float32")})
    whole = values[: len(values) // CONTEXT * CONTEXT].reshape(-1, CONTEXT, WIDTH)

    def sequences() -> Iterator[dict[str, np.ndarray]]:
        yield from ({HOOK: one} for one in whole)

    Dataset.from_generator(sequences, features=features, cache_dir=str(folder / "made")).save_to_disk(folder / "arrow")

    def start() -> Iterator[Any]:
        store = ActivationsStore(
            model=SimpleNamespace(tokenizer=None, W_E=torch.empty(0)),
            dataset=Dataset.from_dict({"tokens": [[0] * CONTEXT]}),
            streaming=False,
            hook_name=HOOK,
            hook_head_index=None,
            context_size=CONTEXT,
            d_in=WIDTH,
            n_batches_in_buffer=BUFFER // CONTEXT,
            total_training_tokens=len(whole) * CONTEXT,
            store_batch_size_prompts=128,
            train_batch_size_tokens=BATCH,
            prepend_bos=False,
            normalize_activations="none",
            device=torch.device("cpu"),
            dtype="float32",
            cached_activations_path=str(folder / "arrow"),
        )
        return islice(store, len(whole) * CONTEXT // BATCH - BUFFER // BATCH)

    return start


# --- all of it -------------------------------------------------------------------------------------------------------


def run() -> list[Row]:
    """All rows of this benchmark."""
    with tempfile.TemporaryDirectory(prefix="actlake-bench-") as folder:
        return measured(Path(folder))


def measured(folder: Path) -> list[Row]:
    """The same in a folder."""
    capture = make_lake(folder / "lake")
    count, array = capture.n_tokens, capture.array("resid")
    options: dict[str, Any] = {"layer": 0, "batch": BATCH, "buffer": BUFFER, "special": True, "first": True}
    lake = actlake.open(folder / "lake")
    narrow, wide = (lake.batches("made-it", "", dtype=dtype, **options) for dtype in ("bfloat16", "float32"))
    shards = sorted(file for file in capture.path.glob("resid/c/**/*") if file.is_file())
    plain = folder / "rows.bf16"
    with open(plain, "wb") as file:
        for first in range(0, count, BUFFER):
            block = array[first : first + BUFFER, 1]
            file.write((block.view(np.uint32) >> 16).astype(np.uint16).tobytes())

    def in_order(rows: int) -> None:
        for first in range(0, count, rows):
            array[first : first + rows, 1]

    def mapped(rows: int) -> None:
        held = np.memmap(plain, np.uint16, "r", shape=(count, WIDTH))
        order = np.random.default_rng(0).permutation(count)[:rows]
        for first in range(0, rows, BATCH):
            held[order[first : first + BATCH]]

    size = count * WIDTH * 4 / 1e9
    tasks: dict[str, Callable[[], object]] = {
        "order": lambda: in_order(BUFFER),
        "batches": lambda: in_order(BATCH),
        "narrow": lambda: used(batch.x for batch in narrow),
        "wide": lambda: used(batch.x for batch in wide),
    }
    tasks["map"] = lambda: mapped(count)
    for task in tasks.values():
        task()
    warm = in_turn(tasks, REPEATS)
    seconds = medians(warm)
    order = min("order", "batches", key=seconds.__getitem__)
    spent = in_turn({key: tasks[key] for key in (order, "narrow", "wide")}, REPEATS, time.process_time)
    cold: dict[str, list[float]] = {"narrow": [], "map": []}
    for _ in range(REPEATS):
        drop(*shards, plain)
        cold["narrow"] += in_turn({"": tasks["narrow"]}, 1)[""]
        drop(plain)
        cold["map"] += [one * count / COLD for one in in_turn({"": lambda: mapped(COLD)}, 1)[""]]

    sizes = np.bincount(capture.array("prompt")[:])
    note = f"{count:,} rows, {size:.2f} GB as float32; {words(mixing((b.prompt for b in narrow), sizes))}"

    def against(what: str, key: str, other: str, from_: dict[str, list[float]], target: str, note: str = "") -> Row:
        rate = count / 1e3 / medians(from_)[key]
        return Row(what, rate, rate / median_ratio(from_[other], from_[key]), "k rows/s", target, note)

    rows = [
        against("shuffled, bfloat16, against the reader in order", "narrow", order, warm, ">= 0.7", note),
        against("shuffled, float32, against the reader in order", "wide", order, warm, ">= 0.7"),
        against("the same by CPU time, bfloat16", "narrow", order, spent, ""),
        against("the same by CPU time, float32", "wide", order, spent, ""),
        against("shuffled, bfloat16, against random rows of a map, cold", "narrow", "map", cold, ">= 1", f"map: {COLD:,} rows"),
        against("shuffled, bfloat16, against random rows of a map, warm", "narrow", "map", warm, ""),
    ]  # fmt: skip
    large = lake.batches("made-it", "", dtype="bfloat16", **{**options, "buffer": 2 * BUFFER})
    true = float((sizes / count) @ ((sizes - 1) / (count - 1)))
    for name, found in (("64 k rows", narrow), ("128 k rows", large)):
        same, var = mixing((b.prompt for b in found), sizes)
        rows.append(
            Row(f"mixing, buffer of {name}: pairs of one prompt", same, true, "", "", f"var {var:.1f} (1: true)")
        )
    if find_spec("sae_lens") is None:
        return [*rows, Row("SAELens", float("nan"), float("nan"), "", "", "not installed, not measured")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        start = sae_lens_store(np.ascontiguousarray(array[:, 1]), folder)
        served = (count // CONTEXT * CONTEXT // BATCH - BUFFER // BATCH) * BATCH
        once = in_turn({"": lambda: used(start())}, 1)[""][0]
        theirs = mixing((_prompts(batch) for batch in start()), sizes)
    rate = served / 1e3 / once
    ours = count / 1e3 / seconds["wide"]
    about = f"SAELens, buffer of {BUFFER:,}, 128 sequences a read: {words(theirs)}"
    return [*rows, Row("shuffled, float32, against SAELens' cached store", ours, rate, "k rows/s", ">= 3", about)]


def _prompts(batch: Any) -> np.ndarray:
    values = batch.reshape(len(batch), -1)
    return (values[:, 0] + CODES * values[:, 1]).numpy().round().astype(np.int64)


if __name__ == "__main__":
    main("loader", run, __doc__)
