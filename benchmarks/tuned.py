"""Our tuned lens against the package `tuned-lens` on the same model, text and number of tokens.

Model: pocket/pt, a Llama, in float32. Text: the packaged prompts, raw; a fifth of them held out. The package is used as far as
it runs with current libraries: its `TunedLens` and the loss, the optimiser settings, the schedule and the clipping of its
training loop (SGD, learning rate 1 - 0.9, Nesterov momentum, decay 1e-3, linear fall, norm 1 over all translators), on the
hidden states of Hugging Face's own forward. Its `train` command needs torchdata's DataLoader2, which torchdata no longer has;
left out of the loop are that loader, wandb and the bfloat16 autocast. A second run clips each translator by itself and
has no decay: the published variant, hence the one that ours must follow layer by layer. Ours trains from a stored capture.
Both are measured by the model's own norm and head on the held-out tokens.

Then our recipe `ridge` against `adam` from the same store, two folds each, measured on all tokens that a fold holds out; with
`--lake DIR --model NAME` that alone, on the native capture of a model of yours.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from actlake.analyze.lens.logit_lens import lens
from actlake.analyze.tuned.folds import fold_of
from actlake.analyze.tuned.recipes import Adam, Recipe, Ridge, Sgd
from actlake.capture.streams.capture_pair import Options, capture_pair, find_prompts
from actlake.capture.streams.prompts import PromptSet
from actlake.queries.engine.context import Context
from actlake.queries.probes.choice import load_probes
from actlake.queries.probes.training import train_probes
from actlake.store.artifacts.streams import read_stream
from actlake.store.captures.reader import find_capture
from actlake.store.core.catalog import StreamSpec, load_catalog
from actlake.store.format.paths import Layout
from measure import Row, main
from torch import Tensor
from transformers import AutoModelForCausalLM, get_linear_schedule_with_warmup

MODEL, BARE = "pocket/pt", StreamSpec("bare", "raw", "none", 0)
RECIPE = Sgd(batch=2048, steps=40, check_every=40)
MICRO = 512  # rows whose logits the package holds at a time
Translate = Callable[[Tensor, int], Tensor]


def captured(folder: Path) -> tuple[Layout, Path]:
    """A lake with MODEL's capture of all packaged prompts, and the model's folder."""
    known, layout = load_catalog(None), Layout.open(folder, create=True)
    sets = [find_prompts(known, layout, name, None) for name in ("core", "pocket")]
    prompts = PromptSet("packaged", tuple(p for found in sets for p in found.prompts), sets[0].sha256)
    pair = known.pair("pocket")
    capture_pair(
        layout,
        pair,
        [BARE],
        prompts,
        replace(known.profile("full"), dtype="float32"),
        ("pt",),
        Options(dtype="float32"),
    )
    model = pair.model("pt").path
    assert model is not None
    return layout, model


@torch.no_grad()
def rows(model: Any, tokens: Iterable[np.ndarray]) -> tuple[Tensor, Tensor]:
    """What the package trains on: hidden states [n, L, d] before the last, final logits [n, V]; no first positions."""
    states, logits = [], []
    for ids in tokens:
        found = model(torch.tensor(ids[None].astype(np.int64)), output_hidden_states=True)
        states.append(torch.stack(found.hidden_states[:-1], 2)[0, 1:])
        logits.append(found.logits[0, 1:])
    return torch.cat(states), torch.cat(logits)


def kl(labels: Tensor, logits: Tensor) -> Tensor:
    """The package's loss, as its loop has it: KL(p_L || p) from log-probabilities and logits [n, V], mean."""
    return torch.sum(labels.exp() * (labels - logits.log_softmax(-1)), dim=-1).mean()


def with_package(model: Any, states: Tensor, logits: Tensor, each: bool) -> tuple[Translate, float]:
    """The package's lens after RECIPE's steps, and the seconds they took; `each`: clipped one by one, without decay."""
    from tuned_lens import TunedLens

    lens, order = TunedLens.from_model(model), torch.Generator().manual_seed(0)
    decay = 0.0 if each else 1e-3
    optimizer = torch.optim.SGD(lens.parameters(), lr=1 - 0.9, momentum=0.9, nesterov=True, weight_decay=decay)
    schedule = get_linear_schedule_with_warmup(optimizer, 0, RECIPE.steps)
    epochs = -(-RECIPE.steps * RECIPE.batch // len(states))
    index = torch.cat([torch.randperm(len(states), generator=order) for _ in range(epochs)])
    started = time.perf_counter()
    for batch in index[: RECIPE.steps * RECIPE.batch].split(RECIPE.batch):
        for part in batch.split(MICRO):
            labels = logits[part].float().log_softmax(dim=-1)
            for layer in range(len(lens)):
                (kl(labels, lens(states[part, layer], idx=layer)) * len(part) / len(batch)).backward()
        for group in [probe.parameters() for probe in lens] if each else [lens.parameters()]:
            torch.nn.utils.clip_grad_norm_(list(group), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        schedule.step()
    return lens.transform_hidden, time.perf_counter() - started


def with_ours(layout: Layout) -> tuple[Translate, float]:
    """Our probes after RECIPE's steps, from the store, and the seconds that took."""
    started = time.perf_counter()
    path, _ = train_probes(layout, MODEL, BARE.name, RECIPE, folds=1)
    seconds = time.perf_counter() - started
    probes = load_probes(path)[0]
    return lambda h, layer: h @ probes.weight[layer].T + probes.bias[layer], seconds


@torch.no_grad()
def measured(model: Any, states: Tensor, logits: Tensor, translate: Translate) -> np.ndarray:
    """Mean KL(p_L || p_l) in nats of each layer [L], by the model's own norm and head."""
    labels, layers = logits.log_softmax(-1), range(states.shape[1])
    return np.array([kl(labels, model.lm_head(model.model.norm(translate(states[:, i], i)))).item() for i in layers])


def held_out(layout: Layout, model: str, stream: str, recipe: Recipe) -> tuple[np.ndarray, float]:
    """Mean KL of each layer [L] over all tokens that a fold holds out, after training by a recipe; the seconds that took."""
    started = time.perf_counter()
    path, _ = train_probes(layout, model, stream, recipe)
    seconds = time.perf_counter() - started
    kit = Context(layout)
    names = (model, find_capture(layout, model, stream).stem)
    capture, found = kit.capture(names), list[np.ndarray]()
    columns, folds = capture.columns(), load_probes(path)
    fold = fold_of(capture.array("prompt_id")[:], len(folds))[columns["prompt"]]
    for number, probes in enumerate(folds):
        resid = capture.array("resid")[:][(fold == number) & (columns["position"] > 0)]
        table = lens(kit.head(names), resid, np.full(len(resid), -1), probes=probes, js_next=False)
        found.append(table["kl_final_layer"][:, :-1])
    return np.concatenate(found).mean(0), seconds


def recipes(layout: Layout, model: str, stream: str) -> list[Row]:
    """Ridge against Adam on one capture."""
    (mine, took), (theirs, seconds) = (held_out(layout, model, stream, recipe) for recipe in (Ridge(), Adam()))
    ratio = mine / theirs
    spread = f"layer by layer {ratio.min():.3f} to {ratio.max():.3f}, {(ratio > 1).sum()} of {len(ratio)} above 1"
    return [
        Row("held-out KL, ridge against adam", mine.mean(), theirs.mean(), "nats", "<= 1", spread),
        Row("training, ridge against adam", took, seconds, "s", "<= 0.5"),
    ]


def run(lake: Path | None = None, model: str = "") -> list[Row]:
    """Train all three, measure them on the same held-out tokens; then the two recipes."""
    if lake:
        return recipes(Layout.open(lake), model, "native")
    with tempfile.TemporaryDirectory() as folder:
        layout, path = captured(Path(folder) / "lake")
        hf = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        stream = read_stream(layout, next(layout.streams.glob("*.parquet")).stem)
        held_out = fold_of(stream.prompt_ids, 1) == 0
        train, test = (
            rows(hf, [t for t, h in zip(stream.tokens, held_out, strict=True) if h == which]) for which in (False, True)
        )
        raw = measured(hf, *test, lambda h, _layer: h)
        as_is, seconds = with_package(hf, *train, each=False)
        by_probe, _ = with_package(hf, *train, each=True)
        ours, mine = with_ours(layout)
        first, second, third = (measured(hf, *test, found) for found in (as_is, by_probe, ours))
        both = recipes(layout, MODEL, BARE.name)
    tokens = RECIPE.steps * RECIPE.batch
    note = f"{tokens:,} tokens of {len(train[0]):,} different ones; {len(test[0]):,} held out; raw lens {raw.mean():.4g} nats"
    spread = f"layer by layer {np.min(third / second):.3f} to {np.max(third / second):.3f}"
    speed = tokens / mine / 1e3, tokens / seconds / 1e3
    return [
        Row("held-out KL, against the package as it trains", third.mean(), first.mean(), "nats", "<= 1.05", note),
        Row("held-out KL, against it clipped by probe", third.mean(), second.mean(), "nats", "<= 1.05", spread),
        Row(
            "training, against the package", *speed, "k tokens/s", "", "ours reads the store, theirs has all in memory"
        ),
        *both,
    ]


def options(parser: argparse.ArgumentParser) -> None:
    """The two recipes on another lake."""
    parser.add_argument("--lake", type=Path, metavar="DIR")
    parser.add_argument("--model", default="", metavar="NAME")


if __name__ == "__main__":
    main("tuned_lens", run, __doc__, options)
