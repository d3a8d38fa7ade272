"""dictionary_learning's trainers on batches from a lake: they take any iterable of tensors [n, d].

    pip install dictionary-learning
    python examples/training/feed_dictionary_learning.py --lake lake --layer 4

Tried with dictionary-learning 0.1.0. It leaves its dictionary in --out.
"""

from collections.abc import Sequence
from typing import Any

import actlake
import torch
from common import forever, options, run
from dictionary_learning.trainers.top_k import AutoEncoderTopK, TopKTrainer
from dictionary_learning.training import trainSAE


def main(words: Sequence[str] | None = None) -> float:
    """Train and return the share of variance that is lost on held-out prompts."""
    asked = options(
        __doc__, words, model="pocket/it", stream="native", layer=4, batch=512, latents=768, k=16, steps=300, seed=0
    )
    lake = actlake.open(asked.lake)
    about: dict[str, Any] = {"layer": asked.layer, "normalize": "center", "output": "torch", "seed": asked.seed}
    batches = lake.batches(asked.model, asked.stream, split="train", batch=asked.batch, **about)
    held_out = lake.batches(asked.model, asked.stream, split="validation", batch=64, **about)
    config = {
        "trainer": TopKTrainer,
        "steps": asked.steps,
        "activation_dim": batches.shape[-1],
        "dict_size": asked.latents,
        "k": asked.k,
        "layer": asked.layer,
        "lm_name": asked.model,
        "lr": 2e-3,
        "warmup_steps": 20,
        "threshold_start_step": 50,
        "seed": asked.seed,
        "device": "cpu",
    }
    trainSAE(
        forever(batches), [config], steps=asked.steps, save_dir=str(asked.out / "dictionary_learning"), device="cpu"
    )
    kept = asked.out / "dictionary_learning" / "trainer_0" / "ae.pt"
    trained = AutoEncoderTopK.from_pretrained(str(kept), k=asked.k, device="cpu")
    with torch.no_grad():
        x = torch.cat([batch.x for batch in held_out])
        lost = float((x - trained(x)).square().sum() / x.square().sum())
    print(f"{batches.batches}\nheld out: {lost:.3f} of the variance is lost; {kept}")
    return lost


if __name__ == "__main__":
    run(main)
