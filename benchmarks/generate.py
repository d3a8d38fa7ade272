"""Free generation under edits against Hugging Face's own `generate` without any, and what shared conditions save.

Speed: the pair pocket, 240 prompts in batches of 64, 64 new tokens each (no stop token, so that all decode as many), both
in turn. Order: prompts of 5 to 200 tokens in batches of 16, sorted by length against as they come. Sweep: A1, A1_rand and
A5a together on 240 prompts, as `actlake generate --sweep` runs them.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from actlake.analyze.residual.directions import random_units
from actlake.capture.checkpoint.tokens import encode, real_token_mask
from actlake.capture.edit.edits import Edit, Graft, Matched, Scale, Skip
from actlake.capture.model.load import Model, load_model
from actlake.capture.model.partial import load_donor
from actlake.capture.run.batching import batch_plan
from actlake.capture.streams.capture_pair import Options, capture_pair, find_prompts
from actlake.capture.streams.free import decoded
from actlake.capture.streams.greedy import decode
from actlake.queries.engine.context import Context
from actlake.queries.generation.generate import plan, write
from actlake.store.core.catalog import load_catalog
from actlake.store.core.progress import ERRORS
from actlake.store.core.specs import default_windows
from actlake.store.format.paths import Layout
from measure import Row, in_turn, main, median_ratio
from work import CATALOG

PROMPTS, NEW, BATCH, ROUNDS = 240, 64, 64, 5
MIXED, SMALL, FEW = 160, 16, 16  # prompts of mixed lengths, in small batches, few new tokens
SWEEPS = ("A1", "A1_rand", "A5a")


@torch.no_grad()
def bare(model: Model, prompts: Sequence[Sequence[int]]) -> None:
    """Hugging Face's generate, in the batches that ours takes."""
    for indices in batch_plan([len(row) for row in prompts], BATCH):
        width = max(len(prompts[index]) for index in indices)
        ids, mask = torch.zeros((2, len(indices), width), dtype=torch.long)
        for row, index in enumerate(indices):
            ids[row, width - len(prompts[index]) :] = torch.tensor(prompts[index])
            mask[row, width - len(prompts[index]) :] = 1
        options = {"do_sample": False, "max_new_tokens": NEW, "eos_token_id": None, "pad_token_id": 0}
        model.hf.generate(ids, attention_mask=mask, **options)


def ours(model: Model, prompts: Sequence[Sequence[int]], real: np.ndarray, edits: Sequence[Edit]) -> None:
    """Our engine, under edits."""
    for _ in decoded(model, prompts, NEW, (), BATCH, edits, real):
        pass


def speed() -> list[Row]:
    """Tokens per second with edits over those of Hugging Face without."""
    catalog = load_catalog(CATALOG)
    pair = catalog.pair("pocket")
    model = load_model(pair.model("it"))
    texts = [prompt.text for prompt in find_prompts(catalog, None, "pocket", PROMPTS).prompts]
    prompts = [encode(model.tokenizer, text, "chat") for text in texts]
    real = real_token_mask(model.tokenizer, model.head.vocab)
    layers = range(*default_windows(model.n_layers)["late"])
    units = random_units(layers, model.head.d_model, 1)
    edits: dict[str, list[Edit]] = {
        "no edit": [],
        "scale": [Scale(direction=units, alpha=0.5)],
        "matched": [Matched(direction=units, alpha=0.5)],
        "graft": [Graft(load_donor(pair.model("pt"), list(layers)))],
        "skip": [Skip(layers)],
    }
    tasks: dict[str, Callable[[], object]] = {"bare": partial(bare, model, prompts)}
    tasks |= {name: partial(ours, model, prompts, real, changes) for name, changes in edits.items()}
    in_turn(tasks, 1)
    seconds = in_turn(tasks, ROUNDS)
    count = PROMPTS * NEW
    best = count / min(seconds["bare"]) / 1e3
    return [
        Row(
            f"{name}, vs Hugging Face generate without edits",
            best * median_ratio(seconds["bare"], seconds[name]),
            best,
            "k tokens/s",
            ">= 0.9",
        )
        for name in edits
    ] + [*order(model), agreement(model, prompts, real)]


@torch.no_grad()
def agreement(model: Model, prompts: Sequence[Sequence[int]], real: np.ndarray) -> Row:
    """Share of the tokens written that one forward over the whole text has on top too, in the model's own bfloat16."""
    same = count = 0
    for indices, texts in decoded(model, prompts, NEW, (), BATCH, (), real):
        for index, row in zip(indices, texts, strict=True):
            logits = model.hf(torch.tensor([[*prompts[index], *row]]), use_cache=False).logits[
                0, len(prompts[index]) - 1 : -1
            ]
            logits[:, torch.from_numpy(~real)] = -torch.inf
            same += int((logits.argmax(-1) == torch.tensor(row)).sum())
            count += len(row)
    what = f"tokens written that one forward has on top, {str(model.dtype).removeprefix('torch.')}"
    return Row(what, float(same), float(count), "tokens", note="in float32 all of them, every family, in the tests")


def order(model: Model) -> list[Row]:
    """Prompts of like lengths together against the order they come in."""
    rng = np.random.default_rng(0)
    prompts = [rng.integers(5, model.head.vocab, size).tolist() for size in rng.integers(5, 201, MIXED)]

    def arriving() -> None:
        for start in range(0, MIXED, SMALL):
            decode(model, prompts[start : start + SMALL], FEW, ())

    def sorted_by_length() -> None:
        for _ in decoded(model, prompts, FEW, (), SMALL):
            pass

    seconds = in_turn({"arriving": arriving, "sorted": sorted_by_length}, ROUNDS)
    ratio = median_ratio(seconds["arriving"], seconds["sorted"])
    rate = MIXED / min(seconds["arriving"])
    note = f"{MIXED} prompts of 5 to 200 tokens, batches of {SMALL}, {FEW} new tokens"
    return [Row("sorted by length, vs in order of arrival", rate * ratio, rate, "prompts/s", ">= 1", note)]


def sweeps(folder: Path) -> list[Row]:
    """What the row set A1, A1_rand, A5a generates of what it asks for, in one process."""
    layout, catalog = Layout.open(folder, create=True), load_catalog(CATALOG)
    prompts = find_prompts(catalog, layout, "pocket", PROMPTS)
    capture_pair(
        layout, catalog.pair("pocket"), [catalog.stream("native")], prompts, catalog.profile("full"), options=Options()
    )
    started = time.perf_counter()
    found = plan(Context(layout, catalog=CATALOG), "pocket", SWEEPS, prompts, max_new_tokens=NEW)
    done = write(found)
    seconds = time.perf_counter() - started
    again = plan(Context(layout, catalog=CATALOG), "pocket", SWEEPS, prompts, max_new_tokens=NEW)
    generated, tokens = sum(one.generated for one in done), sum(one.tokens for one in done)
    note = (
        f"{len(found.jobs)} conditions, {len(found.distinct)} distinct: {found.asked - generated:,} texts not generated;"
        f" {tokens:,} tokens in {seconds:.0f} s, {tokens / seconds:,.0f} tokens/s"
    )
    return [
        Row(f"{'+'.join(SWEEPS)}: generated, vs asked for", generated, found.asked, "texts", note=note),
        Row("the same once more: generated, vs asked for", again.missing, again.asked, "texts"),
    ]


def run() -> list[Row]:
    """All rows of this benchmark."""
    ERRORS.quiet = True
    with tempfile.TemporaryDirectory(prefix="actlake-bench-") as folder:
        return [*speed(), *sweeps(Path(folder) / "lake")]


if __name__ == "__main__":
    main("generate", run, __doc__)
