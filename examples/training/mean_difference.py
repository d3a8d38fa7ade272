"""A difference-of-means probe: is a token of the user's text or of the assistant's?

    python examples/training/mean_difference.py --lake lake --layer 3

The direction is the mean of the one class less that of the other, the threshold halfway; both come from one pass over the
batches, without torch. scikit-learn's NearestCentroid on all rows in memory has to say the same of every held-out token.
"""

from collections.abc import Sequence
from typing import Any

import actlake
import numpy as np
from common import Curve, figure, options, run
from sklearn.neighbors import NearestCentroid


def main(words: Sequence[str] | None = None) -> float:
    """Fit, compare, draw, and return the share of held-out tokens of which scikit-learn says the same."""
    asked = options(__doc__, words, model="pocket/it", stream="native", layer=3, batch=256, seed=0)
    lake = actlake.open(asked.lake)
    segment = lake.tokens(asked.model, asked.stream)["segment"].to_numpy()
    about = {"layer": asked.layer, "batch": asked.batch, "segment": ["user", "assistant"], "seed": asked.seed}
    batches = lake.batches(asked.model, asked.stream, split="train", **about)
    held_out = list(lake.batches(asked.model, asked.stream, split="validation", **{**about, "batch": 64}))
    x = np.concatenate([batch.x for batch in held_out]).astype(np.float64)
    is_reply = segment[np.concatenate([batch.token for batch in held_out])] == "assistant"

    total, count, curve = np.zeros((2, batches.shape[-1])), np.zeros(2), Curve()
    for step, batch in enumerate(batches):
        reply = segment[batch.token] == "assistant"
        for label in (0, 1):
            total[label] += batch.x[reply == label].sum(0, dtype=np.float64)
            count[label] += (reply == label).sum()
        user, assistant = total / np.maximum(count, 1)[:, None]
        direction = assistant - user
        said = (x - (user + assistant) / 2) @ direction > 0
        curve.append((step + 1, float(np.mean(said != is_reply))))

    tokens = batches.tokens
    boundary = asked.layer + 1  # of resid
    rows = lake.dataset(asked.model, asked.stream).resid.sel(boundary=boundary).values[tokens]
    theirs = NearestCentroid().fit(rows.astype(np.float64), segment[tokens] == "assistant").predict(x)
    agree = float(np.mean(theirs == said))

    def draw(axes: Any) -> None:
        along = (x - (user + assistant) / 2) @ direction / np.linalg.norm(direction)
        for label, name in ((False, "user"), (True, "assistant")):
            axes.hist(along[is_reply == label], bins=40, alpha=0.6, label=name)
        axes.set(xlabel="along the direction, from halfway", ylabel="held-out tokens")
        axes.legend(frameon=False)

    file = figure(
        asked.out / "mean_difference.png",
        f"{asked.model}, layer {asked.layer}",
        {"held out": curve},
        "share wrong",
        draw,
    )
    print(f"{batches}\nheld out: {1 - curve[-1][1]:.3f} right; scikit-learn says the same of {agree:.4f}; {file}")
    return agree


if __name__ == "__main__":
    run(main)
