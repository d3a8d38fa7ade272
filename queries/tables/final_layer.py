"""Tables about the end of the stack: what the final distribution looks like, how the top tokens change just before it."""

import numpy as np

from ...store.core.columns import LAYER, LENS, MODEL, NONNEGATIVE, PLACE, SHARE, TOKEN, Column, by_lens
from ...store.core.errors import LakeError
from ..engine.blocks import Block
from ..engine.context import Context, Names, all_boundaries, label, name_columns
from ..engine.declare import table
from ..engine.job import LayerTable
from ..probes.choice import lens_of
from .tuned import probed_table, translated

LATE = 0.8  # METHODS 0: the final 20 % of layers are floor(0.8 L) and up


@table(
    "endpoint",
    [
        *MODEL,
        *TOKEN,
        *PLACE,
        LAYER,
        Column("entropy", "float32", "entropy of the model's distribution", "nats"),
        Column("confidence", "float32", "largest probability", "1", SHARE),
        Column("margin", "float32", "first minus second log-probability", "nats", NONNEGATIVE),
        Column("logsumexp", "float32", "log of the summed exponentials of the logits", "nats"),
    ],
    "The model's own distribution at the last layer.",
    "token",
    version=1,
    lenses=0.15,
)
def endpoint_table(kit: Context, names: Names) -> LayerTable:
    """The table `endpoint`: entropy, confidence, margin and log-sum-exp of the model's own distribution (METHODS 16).

    The largest logits are those the model gave, the entropy is that of the lens at the last layer. LakeError when the
    capture keeps no logits, or not the residual at the last boundary.
    """
    capture = kit.capture(names)
    logits = ("topk_logit", "logsumexp") if "topk_logit" in capture else ("logits",)
    if not all(name in capture for name in ("resid", *logits)):
        raise LakeError(
            f"{capture.path}: table endpoint needs the last residual and the largest logits, which this capture did not keep",
            repair=f"`actlake capture {names[0]} --profile full` into another lake",
        )

    def compute(rows: Block) -> dict[str, np.ndarray]:
        from ...analyze.lens.logit_lens import lens

        last = lens(kit.head(names), rows["resid"][:, -1:], rows.columns["target"], js_next=False, device=kit.device)
        if len(logits) == 2:
            two, total = rows["topk_logit"][:, :2].astype(np.float64), rows["logsumexp"].astype(np.float64)
        else:
            two = -np.partition(-rows["logits"], 1, axis=-1)[:, :2].astype(np.float64)
            total = two[:, 0] + np.log(np.exp(rows["logits"] - two[:, :1]).sum(-1))
        found = {"confidence": np.exp(two[:, 0] - total), "margin": two[:, 0] - two[:, 1], "logsumexp": total}
        return {"entropy": last["entropy"], **{name: value[:, None] for name, value in found.items()}}

    columns = name_columns(names)
    return LayerTable(
        kit.layout,
        "endpoint",
        kit.recipe("endpoint", names, head=True),
        (capture,),
        ("resid", *logits),
        compute,
        lambda rows: {**columns, **label(rows)},
        first=capture.layers - 1,
    )


@table(
    "churn",
    [
        *MODEL,
        LENS,
        *TOKEN,
        *PLACE,
        LAYER,
        Column("churn", "float32", "1 - Jaccard of the five likeliest tokens of this layer and the next", "1", SHARE),
    ],
    "How the likeliest tokens change between the last layers, floor(0.8 L) to L - 2.",
    "lens x token x late layer",
    version=1,
    kind_columns=by_lens,
    lenses=0.5,
)
def churn_table(kit: Context, names: Names, kind: str) -> LayerTable:
    """The table `churn`: 1 - Jaccard of the five most likely tokens of each late layer and the next (METHODS 16).

    LakeError when the capture does not hold the residual at every boundary, and as for `lens(tuned)`.
    """
    lens, capture = lens_of("churn", kind), kit.capture(names)
    all_boundaries(capture, "churn")
    layers = capture.layers
    start = min(int(LATE * layers), layers - 2)  # one step at least, however shallow the model

    def compute(rows: Block) -> dict[str, np.ndarray]:
        from ...analyze.lens.topk import churn

        resid = translated(kit, names, rows, lens)
        return {"churn": churn(kit.head(names), resid[:, start + 1 :], device=kit.device)}

    if lens != "raw":
        return probed_table(kit, names, "churn", lens, compute, first=start)
    columns = {**name_columns(names), "lens": "raw"}
    return LayerTable(
        kit.layout,
        "churn",
        kit.recipe("churn", names, head=True, lens="raw"),
        (capture,),
        ("resid",),
        compute,
        lambda rows: {**columns, **label(rows)},
        first=start,
    )
