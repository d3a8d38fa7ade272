"""A crosscoder over PT and IT: one set of latents that reconstructs both models' residuals where they read the same answer.

    python examples/training/crosscoder.py --lake lake --layer 4

A latent whose decoder is long for one model and short for the other is that model's own: the figure shows the relative norm
|d_IT| / (|d_PT| + |d_IT|). On so few tokens it only shows how it is done.
"""

from collections.abc import Sequence
from typing import Any

import actlake
import torch
from common import Curve, figure, options, run
from torch import Tensor, nn


class Crosscoder(nn.Module):
    """x [n, models, d] -> relu of what its models' encoders add up to -> a reconstruction by each model's decoder."""

    def __init__(self, models: int, width: int, latents: int, seed: int):
        super().__init__()
        random = torch.Generator().manual_seed(seed)
        decoder = 0.1 * nn.functional.normalize(torch.randn(latents, models, width, generator=random), dim=2)
        self.decoder = nn.Parameter(decoder)
        self.encoder = nn.Parameter(decoder.permute(1, 2, 0).clone())
        self.encoder_bias, self.bias = nn.Parameter(torch.zeros(latents)), nn.Parameter(torch.zeros(models, width))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The reconstruction [n, models, d] and the latents [n, latents]."""
        latents = (torch.einsum("nmd,mdl->nl", x, self.encoder) + self.encoder_bias).relu()
        return torch.einsum("nl,lmd->nmd", latents, self.decoder) + self.bias, latents

    def norms(self) -> Tensor:
        """Norms of the decoders [latents, models]."""
        return self.decoder.norm(dim=2)


def main(words: Sequence[str] | None = None) -> float:
    """Train, draw, and return the share of variance that is lost on held-out prompts."""
    asked = options(
        __doc__, words, pair="pocket", stream="teacher", layer=4, batch=256, latents=512, epochs=20, rate=2e-3, sparsity=6.0,
        seed=0,
    )  # fmt: skip
    lake = actlake.open(asked.lake)
    about = {"layer": asked.layer, "normalize": "center", "pair": asked.pair, "seed": asked.seed}
    batches = lake.batches(f"{asked.pair}/it", asked.stream, split="train", batch=asked.batch, drop_last=True, **about)
    held_out = lake.batches(f"{asked.pair}/it", asked.stream, split="validation", shuffle=False, batch=64, **about)
    coder = Crosscoder(*batches.shape, asked.latents, asked.seed)
    adam, curves = (
        torch.optim.Adam(coder.parameters(), asked.rate),
        {"loss": Curve(), "share of variance lost": Curve()},
    )
    for step in range(asked.epochs * len(batches)):
        if step % len(batches) == 0:
            rows = iter(batches)
        x = torch.as_tensor(next(rows).x)
        found, latents = coder(x)
        error = (x - found).square().sum((1, 2)).mean() / x.shape[2]
        # The penalty is by the sum of the decoders' norms, so that a latent of both models costs as much as two.
        loss = error + asked.sparsity / asked.latents * (latents * coder.norms().sum(1)).sum(1).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        curves["loss"].append((step, float(loss.detach())))
        curves["share of variance lost"].append((step, float(error.detach()) / x.shape[1]))
    with torch.no_grad():
        x = torch.cat([torch.as_tensor(batch.x) for batch in held_out])
        found, latents = coder(x)
        lost = float((x - found).square().sum() / x.square().sum())
        norms = coder.norms()[(latents > 0).any(0)]
        own = (norms[:, 1] / norms.sum(1)).numpy()

    def draw(axes: Any) -> None:
        axes.hist(own, bins=30, range=(0, 1))
        axes.set(xlabel="relative norm of the decoder: 0 PT alone, 1 IT alone", ylabel="latents")

    file = figure(asked.out / "crosscoder.png", f"{asked.pair}, layer {asked.layer}", curves, "loss", draw)
    fire = float((latents > 0).sum(1).float().mean())
    print(f"{batches}\nheld out: {lost:.3f} of the variance is lost, {fire:.0f} latents fire; {file}")
    return lost


if __name__ == "__main__":
    run(main)
