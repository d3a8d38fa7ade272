"""Direct logit attribution of blocks (table `dla`) and of attention heads (table `dla_heads`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ...store.artifacts.models import check_same_model, read_model
from ...store.captures.reader import Capture
from ...store.core.columns import LAYER, MODEL, NONNEGATIVE, PLACE, TOKEN, Column, label_column
from ...store.core.errors import LakeError
from ...store.core.progress import say
from ..engine.blocks import Block
from ..engine.context import Context, Names, all_boundaries, label, name_columns
from ..engine.declare import table
from ..engine.job import LayerTable

if TYPE_CHECKING:
    from torch import Tensor

    Projection = tuple[Tensor, Tensor | None, tuple[Tensor, float] | None]  # weight, bias, norm behind attention

PARTS = ("bias", "embed", "attn", "mlp")
EFFECT = "what it adds to the logit of the model's likeliest token over that of the second, the final norm's scale held fixed"
NORM = "length of what is added to the residual"


@table(
    "dla",
    [
        *MODEL,
        *TOKEN,
        *PLACE,
        LAYER,
        label_column(
            "part", "embed (layer -1), attn and mlp of a block; bias (layer -1): the final norm's and unembedding's"
        ),
        Column("effect", "float32", EFFECT, "logits"),
        Column("norm", "float32", NORM, "1", NONNEGATIVE, null="of the biases"),
    ],
    "Direct logit attribution: what embedding, attention and MLPs add to the lead of the model's likeliest token, before a soft"
    " cap.",
    "token x layer x part",
    version=1,
    lenses=0.1,
)
def dla_table(kit: Context, names: Names) -> LayerTable:
    """The table `dla`; LakeError for a capture without all residuals, MLP outputs or the largest logits."""
    capture = kit.capture(names)
    all_boundaries(capture, "dla")
    reads = ("resid", "mlp_out", _needed(capture, "dla", "mlp_out"))

    def compute(rows: Block) -> dict[str, np.ndarray]:
        from ...analyze.residual.attribution import block_attribution

        post, _ = kit.mlp_branch(names)
        return block_attribution(kit.head(names), rows["resid"], rows["mlp_out"], _two(rows), post)

    def place(at: int) -> dict[str, int | str]:
        return {"layer": at // 2 - 1, "part": PARTS[at] if at < 2 else PARTS[2 + at % 2]}

    recipe, named = kit.recipe("dla", names, head=True), name_columns(names)
    return LayerTable(
        kit.layout, "dla", recipe, (capture,), reads, compute, lambda rows: {**named, **label(rows)}, place=place
    )


@table(
    "dla_heads",
    [
        *MODEL,
        *TOKEN,
        *PLACE,
        LAYER,
        label_column("head", "attention head of the block", "int32"),
        Column("effect", "float32", EFFECT, "logits"),
        Column("norm", "float32", NORM, "1", NONNEGATIVE),
    ],
    "Direct logit attribution of attention heads: each head's part of `attn` in the table `dla`, from the site z and the model's"
    " output projections.",
    "token x layer x head",
    version=1,
    lenses=0.3,
    how="weights",
)
def dla_heads_table(kit: Context, names: Names) -> LayerTable:
    """The table `dla_heads`; LakeError for a capture without z, last residuals or largest logits, and without the weights."""
    capture = kit.capture(names)
    reads = ("resid", "z", _needed(capture, "dla_heads", "z"))
    if "resid" not in capture:
        raise LakeError(f"{capture.path}: table dla_heads needs the last residual, which this capture did not keep")
    from ...capture.edit.replay import find_weights  # not above: torch need not be loaded to refuse a capture without z

    find_weights(kit.layout, names[0], kit.catalog)
    layers, heads = capture.size("z")[:2]

    def compute(rows: Block) -> dict[str, np.ndarray]:
        import torch

        from ...analyze.residual.attribution import head_attribution, readout

        final = torch.as_tensor(np.ascontiguousarray(rows["resid"][:, -1])).double()
        weights, _ = readout(kit.head(names), final, torch.as_tensor(_two(rows)).long())
        found = [
            head_attribution(weights, np.ascontiguousarray(rows["z"][:, layer]), *projection)
            for layer, projection in enumerate(kit.once(_projections, names[0]))
        ]
        return {name: np.concatenate([one[name] for one in found], axis=1) for name in ("effect", "norm")}

    recipe, named = kit.recipe("dla_heads", names, head=True), name_columns(names)
    job = LayerTable(
        kit.layout,
        "dla_heads",
        recipe,
        (capture,),
        reads,
        compute,
        lambda rows: {**named, **label(rows)},
        place=lambda at: {"layer": at // heads, "head": at % heads},
    )
    job.stays = True  # the weights are here
    return job


def _needed(capture: Capture, table: str, site: str) -> str:
    """The variable that the two likeliest tokens are read from; LakeError for a capture without it, or without the site."""
    logits = next((name for name in ("topk_id", "logits") if name in capture), None)
    if site not in capture or logits is None:
        lacking = site if site not in capture else "the largest logits"
        profile = "heads" if site == "z" else "full"
        raise LakeError(
            f"{capture.path}: table {table} needs {lacking}, which this capture did not keep",
            repair=f"`actlake capture {capture.path.parent.name} --profile {profile}` into another lake",
        )
    return logits


def _two(rows: Block) -> np.ndarray:
    """The model's two likeliest tokens of each row, [n, 2]."""
    if "topk_id" in rows.values:
        return rows["topk_id"][:, :2].astype(np.int64)
    top = np.argpartition(-rows["logits"], 1, axis=-1)[:, :2]
    return np.take_along_axis(top, np.argsort(-np.take_along_axis(rows["logits"], top, -1), -1), -1)


def _projections(kit: Context, model: str) -> list[Projection]:
    """The output projection of each block's attention, from the model's weights; LakeError for another checkpoint's."""
    from ...capture.edit.replay import find_weights
    from ...capture.model.heads import norm_parameters
    from ...capture.model.load import load_model
    from ...capture.model.sites import projection_of

    record = read_model(kit.layout, model)
    say(f"reading the weights of {model} for the output projections of its attention heads")
    loaded = load_model(find_weights(kit.layout, model, kit.catalog), "cpu", record["dtype"])
    check_same_model(kit.layout, model, loaded.record)
    found: list[Projection] = []
    for layer in range(loaded.n_layers):
        weight, bias = projection_of(model, loaded.parts, layer)
        weight, bias = weight.float(), None if bias is None else bias.detach().float()
        branch = loaded.parts.attention(layer)
        if branch.norm is None:
            found.append((weight * branch.scale, bias, None))
            continue
        norm = norm_parameters(branch.norm, weight)
        if norm["norm"] != "rms" or norm["bias"] is not None:
            raise LakeError(
                f"{model}: table dla_heads: block {layer} has a norm with a mean or a bias behind attention"
            )
        found.append((weight, bias, (norm["weight"] * branch.scale, norm["eps"])))
    return found
