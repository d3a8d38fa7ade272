"""Made-up answers with the shape of real ones, for the tests of figures and pages."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
from actlake.queries.rows.findings import split
from actlake.queries.rows.registry import find, published

STREAMS = {"pt": "native-pocket-1a2b3c4d", "it": "native-pocket-5e6f7a8b"}


class Made(SimpleNamespace):
    """An object with the attributes of an Answer."""

    parts = property(split)


def row(measure: str, estimate: float, half: float, n: int = 240, **dims: Any) -> dict[str, Any]:
    method = "none" if np.isnan(half) else "BCa"
    return {
        "measure": measure,
        **dims,
        "estimate": estimate,
        "low": estimate - half,
        "high": estimate + half,
        "n": n,
        "unit": "prompts",
        "method": method,
    }


def answer(name: str, pair: str, rows: list[dict[str, Any]], **plot: str) -> Any:
    """A made-up answer of the packaged query of this name."""
    query = find(name)
    table = pd.DataFrame(rows)
    if "layer" in table:
        table["layer"] = table["layer"].astype("Int64")
    return Made(
        query=SimpleNamespace(**{**vars(query), "plot": {**query.plot, **plot}}),
        pair=pair,
        streams=dict(STREAMS),
        table=table,
        sql=query.sql,
        published=published(name, pair),
        sentence="Through the second half of the layers IT stays farther from its own final distribution than PT.",
        seconds=0.42,
        rows=len(rows) * 240,
        chain=None,
    )


def by_variant(measure: str, pt: float, it: float, half: float, n: int = 240, **dims: Any) -> list[dict[str, Any]]:
    return [
        row(measure, it, half, n, variant="it", **dims),
        row(measure, it - pt, 0.7 * half, n, variant="it - pt", **dims),
        row(measure, pt, half, n, variant="pt", **dims),
    ]


def l1(pair: str = "pocket", layers: int = 6) -> Any:
    """Block cosines per layer, none at layer 0, and two single numbers."""
    rows = []
    for layer in range(1, layers):
        depth = layer / layers
        pt = -0.1 - 0.25 * depth**3 + 0.03 * np.cos(layer)
        rows += by_variant("profile", pt, pt - 0.25 * depth**6, 0.012 + 0.01 * depth, 231, layer=layer)
    rows += by_variant("final20", -0.21, -0.455, 0.02, 231, layer=pd.NA)
    rows += by_variant("last_layer", -0.42, -1.32, 0.05, 229, layer=pd.NA)
    return answer("L1", pair, rows, numbers="cosine", y="δ-cosine")


def l2(pair: str = "pocket", layers: int = 6) -> Any:
    """Two KL curves and four single numbers, in nats and in layers."""
    rows = []
    for layer in range(layers):
        depth = (layer + 1) / layers
        fall = 9 * (1 - depth) ** 1.3
        half = 0.25 * (1 - depth)
        rows += by_variant("kl_final_layer", fall, fall * 1.15 + 2.2 * depth * (1 - depth), half, layer=layer)
        rows += by_variant("kl_layer_final", 0.8 * fall, 0.93 * fall, half, layer=layer)
    rows += by_variant("cg_raw", 2.13, 3.04, 0.11, layer=pd.NA)
    rows += by_variant("cg_raw_prompt", 2.17, 2.91, 0.12, layer=pd.NA)
    rows += by_variant("commit_kl01_raw_mean", 0.84 * layers, 0.9 * layers, 0.02 * layers, layer=pd.NA)
    rows += by_variant("commit_top1_raw_mean_skip5", 0.65 * layers, 0.74 * layers, 0.02 * layers, layer=pd.NA)
    return answer("L2", pair, rows)


def exp16(pair: str = "pocket", layers: int = 6) -> Any:
    """One curve without variants, and six regions of it."""
    rows = [row("js", 0.05 + 0.17 * (layer / layers) ** 2, 0.008, layer=layer) for layer in range(layers)]
    for name, value in {"final20": 0.214, "full": 0.142, "pre": 0.097}.items():
        rows.append(row(f"js_ac_{name}", value, 0.006, layer=pd.NA))
        rows.append(row(f"js_ac_{name}_prompt_mean", value * 1.08, 0.007, layer=pd.NA))
    return answer("exp16", pair, rows, numbers="JS (nats)")
