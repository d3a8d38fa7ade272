"""Our tuned lens against the package `tuned-lens` on the same model, text and number of tokens.

Model: pocket/pt, a Llama, in float32. Text: the packaged prompts, raw; a fifth of them held out. The package is used as far as
it runs with current libraries: its `TunedLens` and the loss, the optimiser settings, the schedule and the clipping of its
training loop (SGD, learning rate 1 - 0.9, Nesterov momentum, decay 1e-3, linear fall, norm 1 over all translators), on the
hidden states of Hugging Face's own forward. Its `train` command needs torchdata's DataLoader2, which torchdata no longer has;
left out of the loop are that loader, wandb and the bfloat16 autocast. A second run clips each translator by itself and
has no decay: the published variant, hence the one that ours must follow layer by layer. Ours trains from a stored capture.
Both are measured by the model's own norm and head on the held-out tokens.
"""

import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from actlake.analyze.tuned.folds import fold_of
from actlake.analyze.tuned.recipes import Sgd
from actlake.capture.streams.capture_pair import Options, capture_pair, find_prompts
from actlake.capture.streams.prompts import PromptSet
from actlake.queries.probes.choice import load_probes
from actlake.queries.probes.training import train_probes
from actlake.store.artifacts.streams import read_stream
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


def run() -> list[Row]:
    """Train all three, measure them on the same held-out tokens."""
    with tempfile.TemporaryDirectory() as folder:
        layout, path = captured(Path(folder) / "lake")
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        stream = read_stream(layout, next(layout.streams.glob("*.parquet")).stem)
        told = fold_of(stream.prompt_ids, 1) == 0
        train, test = (
            rows(model, [t for t, h in zip(stream.tokens, told, strict=True) if h == which]) for which in (False, True)
        )
        raw = measured(model, *test, lambda h, _layer: h)
        as_is, seconds = with_package(model, *train, each=False)
        by_probe, _ = with_package(model, *train, each=True)
        ours, mine = with_ours(layout)
        first, second, third = (measured(model, *test, found) for found in (as_is, by_probe, ours))
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
    ]


if __name__ == "__main__":
    main("tuned_lens", run)
