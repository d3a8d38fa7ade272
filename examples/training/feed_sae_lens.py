"""SAELens' own trainer on batches from a lake: it takes any iterator of tensors [n, d].

    pip install sae-lens
    python examples/training/feed_sae_lens.py --lake lake --layer 4

Tried with sae-lens 6.54. The SAE that it leaves in --out is one of SAELens', in its own format.
"""

from collections.abc import Sequence
from typing import Any

import actlake
import torch
from common import forever, options, run
from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer


def main(words: Sequence[str] | None = None) -> float:
    """Train and return the share of variance that is lost on held-out prompts."""
    asked = options(
        __doc__, words, model="pocket/it", stream="native", layer=4, batch=512, latents=768, k=16, steps=300, seed=0
    )
    lake = actlake.open(asked.lake)
    about: dict[str, Any] = {"layer": asked.layer, "normalize": "center", "output": "torch", "seed": asked.seed}
    batches = lake.batches(asked.model, asked.stream, split="train", batch=asked.batch, drop_last=True, **about)
    held_out = lake.batches(asked.model, asked.stream, split="validation", batch=64, **about)
    torch.manual_seed(asked.seed)
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=batches.shape[-1], d_sae=asked.latents, k=asked.k))
    config = SAETrainerConfig(
        total_training_samples=asked.steps * asked.batch,
        train_batch_size_samples=asked.batch,
        lr=2e-3,
        lr_end=2e-4,
        device="cpu",
        logger=LoggingConfig(log_to_wandb=False),
    )
    trained = SAETrainer(config, sae, forever(batches)).fit()
    with torch.no_grad():
        x = torch.cat([batch.x for batch in held_out])
        lost = float((x - trained(x)).square().sum() / x.square().sum())
    trained.save_model(str(asked.out / "sae_lens"))
    print(f"{batches.batches}\nheld out: {lost:.3f} of the variance is lost; {asked.out / 'sae_lens'}")
    return lost


if __name__ == "__main__":
    run(main)
