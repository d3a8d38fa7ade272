"""A TopK sparse autoencoder on the residual stream, trained from a lake.

    python examples/training/sae.py --lake lake --layer 4

It prints the loss on prompts that were held out, as a share of the variance, and draws the loss curve and how often latents fire.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import actlake
import torch
from common import Curve, figure, options, run
from torch import Tensor, nn


class SAE(nn.Module):
    """x -> the k largest of W_enc (x - b) + b_enc, kept where positive -> W_dec z + b."""

    def __init__(self, width: int, latents: int, k: int, seed: int):
        super().__init__()
        random = torch.Generator().manual_seed(seed)
        decoder = nn.functional.normalize(torch.randn(latents, width, generator=random), dim=1)
        self.k = k
        self.decoder, self.encoder = nn.Parameter(decoder), nn.Parameter(decoder.T.clone())
        self.bias, self.encoder_bias = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(latents))

    def encode(self, x: Tensor) -> Tensor:
        """Latents [n, latents]."""
        values = (x - self.bias) @ self.encoder + self.encoder_bias
        top = values.topk(self.k, dim=1)
        return torch.zeros_like(values).scatter(1, top.indices, top.values.relu())

    def forward(self, x: Tensor) -> Tensor:
        """The reconstruction [n, width]."""
        return self.encode(x) @ self.decoder + self.bias


def share_lost(sae: SAE, batches: Iterable[Any]) -> float:
    """Squared error of the reconstruction over the variance of rows that are centred."""
    lost = total = 0.0
    with torch.no_grad():
        for batch in batches:
            x = torch.as_tensor(batch.x)
            lost += float((x - sae(x)).square().sum())
            total += float(x.square().sum())
    return lost / total


def train(
    batches: Iterable[Any],
    held_out: Iterable[Any],
    width: int,
    latents: int,
    k: int,
    epochs: int,
    rate: float,
    seed: int,
) -> tuple[SAE, dict[str, Curve]]:
    """An SAE and its losses by step: on each batch, and after each epoch on the rows that were held out."""
    sae = SAE(width, latents, k, seed)
    adam, step = torch.optim.Adam(sae.parameters(), rate), 0
    curves: dict[str, Curve] = {"train": [], "held out": [(0, share_lost(sae, held_out))]}
    for _ in range(epochs):
        for batch in batches:
            x = torch.as_tensor(batch.x)
            loss = (x - sae(x)).square().sum() / x.square().sum()
            adam.zero_grad()
            loss.backward()
            adam.step()
            step += 1
            curves["train"].append((step, float(loss.detach())))
        curves["held out"].append((step, share_lost(sae, held_out)))
    return sae, curves


def main(words: Sequence[str] | None = None) -> float:
    """Train, draw, and return the held-out loss."""
    asked = options(
        __doc__, words, model="pocket/it", stream="native", layer=4, batch=512, latents=768, k=16, epochs=20, rate=2e-3, seed=0
    )  # fmt: skip
    lake = actlake.open(asked.lake)
    about = {"layer": asked.layer, "batch": asked.batch, "normalize": "center", "seed": asked.seed}
    batches = lake.batches(asked.model, asked.stream, split="train", **about)
    held_out = lake.batches(asked.model, asked.stream, split="validation", shuffle=False, **{**about, "batch": 64})
    width = batches.shape[-1]
    sae, curves = train(batches, held_out, width, asked.latents, asked.k, asked.epochs, asked.rate, asked.seed)
    lost = curves["held out"][-1][1]
    with torch.no_grad():
        fires = torch.cat([sae.encode(torch.as_tensor(batch.x)) > 0 for batch in held_out]).float().mean(0)

    def draw(axes: Any) -> None:
        axes.hist(fires[fires > 0].log10().numpy(), bins=30)
        axes.set(
            xlabel="log10 share of held-out tokens",
            ylabel="latents",
            title=f"{int((fires == 0).sum())} of {len(fires)} never fire",
        )

    file = figure(asked.out / "sae.png", f"{asked.model}, layer {asked.layer}", curves, "share of variance lost", draw)
    print(f"{batches}\nheld out: {lost:.3f} of the variance is lost with {asked.k} of {asked.latents} latents; {file}")
    return lost


if __name__ == "__main__":
    run(main)
