"""A linear probe at every layer: which category is a prompt of, read off one token's residual?

    python examples/training/linear_probe.py --lake lake

Prompts, not tokens, are held out, so that the probe can't know a prompt again. One pass trains the probes of all layers at once.
"""

from collections.abc import Sequence
from typing import Any

import actlake
import numpy as np
import torch
from common import Curve, figure, options, run
from torch import nn


def main(words: Sequence[str] | None = None) -> float:
    """Train, draw, and return the best layer's held-out accuracy."""
    asked = options(
        __doc__, words, model="pocket/it", stream="native", batch=512, epochs=15, rate=3e-3, decay=0.1, validation=0.25, seed=0
    )  # fmt: skip
    lake = actlake.open(asked.lake)
    stored = lake.dataset(asked.model, asked.stream)
    names, category = np.unique(stored.category.values.astype(object), return_inverse=True)
    about = {"normalize": "center", "validation": asked.validation, "where": "step >= 0", "seed": asked.seed}
    batches = lake.batches(asked.model, asked.stream, split="train", batch=asked.batch, **about)  # all layers
    held_out = lake.batches(asked.model, asked.stream, split="validation", shuffle=False, batch=64, **about)
    layers, width = batches.shape
    weight = nn.Parameter(torch.zeros(layers, width, len(names)))
    bias = nn.Parameter(torch.zeros(layers, 1, len(names)))
    adam, curve, step = torch.optim.AdamW([weight, bias], asked.rate, weight_decay=asked.decay), Curve(), 0

    def logits(batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """[layers, n, categories], and which is right [n]."""
        x = torch.as_tensor(batch.x).transpose(0, 1)
        return x @ weight / width**0.5 + bias, torch.as_tensor(category[batch.prompt])

    for _ in range(asked.epochs):
        for batch in batches:
            found, right = logits(batch)
            loss = nn.functional.cross_entropy(found.flatten(0, 1), right.repeat(layers))
            adam.zero_grad()
            loss.backward()
            adam.step()
            step += 1
            curve.append((step, float(loss.detach())))
    hits, count = torch.zeros(layers), 0
    with torch.no_grad():
        for batch in held_out:
            found, right = logits(batch)
            hits += (found.argmax(2) == right).sum(1)
            count += len(right)
    accuracy = (hits / count).numpy()
    prompts = np.unique(np.concatenate([batch.prompt for batch in batches]))
    common = np.bincount(category[prompts]).argmax()  # what knows nothing would say
    guess = float(np.mean(category[np.concatenate([batch.prompt for batch in held_out])] == common))

    def draw(axes: Any) -> None:
        axes.plot(range(-1, layers - 1), accuracy, marker="o")
        axes.axhline(guess, color="grey", linestyle=":")
        axes.set(
            xlabel="layer", ylabel="accuracy, held-out prompts", title=f"{len(names)} categories; dotted: no probe"
        )

    file = figure(
        asked.out / "linear_probe.png", asked.model, {"train": curve}, "cross-entropy, mean over layers (nats)", draw
    )
    best = int(accuracy.argmax())
    print(f"{batches}\nheld out: {accuracy[best]:.3f} right at layer {best - 1}, {guess:.3f} without a probe; {file}")
    return float(accuracy[best])


if __name__ == "__main__":
    run(main)
