"""Tables of one number or cloud per prompt at its last prompt token: geometry of the residuals, attention entropy."""

from __future__ import annotations

import numpy as np

from ...analyze.residual.geometry import FEWEST_POINTS, MOST_POINTS, geometry
from ...store.core.columns import LAYER, MODEL, PROMPT, Column, label_column
from ...store.core.errors import LakeError
from ..engine.blocks import Block, Columns
from ..engine.context import Context, Names, all_boundaries, name_columns
from ..engine.declare import table
from ..engine.job import TableJob


def last_prompt_tokens(prompt: np.ndarray, step: np.ndarray) -> np.ndarray:
    """Place of each prompt's last prompt token [prompts] among the tokens of whole prompts: step 0, or the last of all."""
    ends = np.flatnonzero(np.diff(prompt, append=-1))
    zero = np.flatnonzero(step == 0)
    ends[np.searchsorted(prompt[ends], prompt[zero])] = zero
    return ends


@table(
    "geometry",
    [
        *MODEL,
        LAYER,
        label_column("metric", "measure of the cloud, as in analyze/residual/geometry.py"),
        label_column("draw", "0: of all points; from 1 up: of a subsample", "int32", fill="0"),
        Column(
            "value",
            "float32",
            "value of the metric",
            "1",
            null="fewer than 21 different points (dimensions), or all equal",
        ),
        Column("n", "int32", "points", "prompts"),
    ],
    "Dimension and spread of the residuals at the last prompt token, one point a prompt.",
    "layer x metric x draw",
    version=1,
)
class _Geometry(TableJob):
    """The table `geometry`: keeps one residual per prompt and boundary during the sweep, measures the clouds at its end."""

    splits = True

    def __init__(self, kit: Context, names: Names):
        capture = kit.capture(names)
        all_boundaries(capture, "geometry")
        prompts = len(capture.array("prompt_id")[:])
        if prompts < FEWEST_POINTS:
            raise LakeError(
                f"{capture.path}: {prompts} prompts; geometry needs {FEWEST_POINTS}, one point each: capture more of them"
            )
        super().__init__(kit.layout, "geometry", kit.recipe("geometry", names))
        self.captures, self.reads = (capture,), ("resid",)
        self._named = name_columns(names)
        self._points: list[np.ndarray] = []

    def part(self, *rows: Block) -> Columns:
        """The residuals of the last prompt tokens, all boundaries; in one order in memory, wherever they were computed."""
        at = last_prompt_tokens(rows[0].columns["prompt"], rows[0].columns["step"])
        few = at[: max(0, MOST_POINTS - rows[0].prompts.start)]
        return {"points": np.ascontiguousarray(rows[0]["resid"][few])}

    def join(self, part: Columns) -> None:
        """Keep them."""
        self._points.append(part["points"])

    def finish(self) -> None:
        """Measure, and write one row per layer, metric and draw."""
        points = np.concatenate(self._points)
        self._points.clear()
        try:
            found = geometry(points)
        except ValueError as error:
            raise LakeError(f"{self.captures[0].path}: {error}") from error
        draws, boundaries = next(iter(found.values())).shape
        shape = (boundaries, len(found), draws)
        layer, metric, draw = (index.ravel() for index in np.indices(shape))
        self.add(
            {
                **self._named,
                "layer": layer - 1,
                "metric": np.array(list(found), dtype=object)[metric],
                "draw": draw,
                "value": np.stack([values.T for values in found.values()], axis=1).ravel(),
                "n": np.full(layer.size, len(points)),
            }
        )


@table(
    "attention",
    [
        *MODEL,
        *PROMPT,
        Column("keys", "int32", "tokens up to the last of the prompt", "tokens"),
        LAYER,
        label_column("head", "attention head", "int32", null="a mean over the heads"),
        Column("entropy", "float32", "entropy of the last prompt token's attention row", "nats"),
        Column("entropy_norm", "float32", "entropy over ln(keys)", "1", null="one key"),
    ],
    "Attention entropy at the last prompt token.",
    "prompt x layer x head",
    version=1,
)
class _Attention(TableJob):
    """The table `attention`: the entropies that the capture took of the last prompt token's attention rows."""

    def __init__(self, kit: Context, names: Names):
        capture = kit.capture(names)
        if "attn_entropy" not in capture:
            model, stream = names
            raise LakeError(
                f"{capture.path}: no attn_entropy, which can only be taken while the model runs: capture it into another lake,"
                f" `actlake capture {model} --stream {stream.split('-')[0]} --profile attention --lake OTHER`"
            )
        super().__init__(kit.layout, "attention", kit.recipe("attention", names))
        self._capture = capture
        self._named = name_columns(names)

    def finish(self) -> None:
        """Write one row per prompt, layer and head; the normalised entropy is a share of ln(number of keys)."""
        array, entropy = self._capture.array, self._capture.array("attn_entropy")[...].astype(np.float64)
        prompt, step, position = (array(name)[:] for name in ("prompt", "step", "position"))
        keys = position[last_prompt_tokens(prompt, step)] + 1
        most = np.log(keys)[:, None, None]
        share = np.divide(entropy, most, out=np.full(entropy.shape, np.nan), where=most > 0)
        row, layer, head = (index.ravel() for index in np.indices(entropy.shape))
        self.add(
            {
                **self._named,
                "prompt": row,
                "prompt_id": array("prompt_id")[:].astype(object)[row],
                "category": array("category")[:].astype(object)[row],
                "keys": keys[row],
                "layer": layer,
                "head": head,
                "entropy": entropy.ravel(),
                "entropy_norm": share.ravel(),
            }
        )
