"""Direct logit attribution: parts add up to the difference of two logits, heads to their block's attention."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from actlake.capture.model.load import load_model
from actlake.lake import Lake
from actlake.store.core.catalog import PairSpec
from actlake.store.core.errors import LakeError

Pairs = Callable[[str], PairSpec]
KEYS = ["token", "layer"]


def lake_of(folder: Path, pair: PairSpec, *sites: str, variants: tuple[str, ...] = ("it",)) -> Lake:
    profile = replace(tiny.FULL, sites=("resid", "mlp_out", *sites))
    layout = tiny.capture(folder / "lake", pair, tiny.NATIVE, profile=profile, variants=variants)
    paths = ", ".join(f"{variant}: {{path: {pair.model(variant).path}}}" for variant in variants)
    (folder / "catalog.yaml").write_text(f"pairs: {{{pair.name}: {{{paths}}}}}\n")
    return Lake(layout.root, catalog=folder / "catalog.yaml")


def logits_of(lake: Lake, pair: PairSpec) -> np.ndarray:
    """Every token's logits before a soft cap, from Hugging Face's own forward: the model's norm and unembedding."""
    model = load_model(pair.it)
    tokens = lake.dataset(f"{pair.name}-it", "native")
    found = []
    for prompt in np.unique(tokens.prompt):
        last: list[torch.Tensor] = []
        handle = model.parts.unembed.register_forward_hook(lambda _m, _a, out, last=last: last.append(out[0]))
        with torch.no_grad():
            model.hf(torch.tensor(tokens.token_id.values[tokens.prompt == prompt][None].astype(np.int64)))
        handle.remove()
        found.append(last[0].double().numpy() * (model.head.logit_scale / model.parts.head_scale))
    return np.concatenate(found)


@pytest.mark.parametrize("family", tiny.sampled("llama", "gemma3", "gpt_neox"))
def test_parts_add_up_to_the_difference_of_two_logits(pairs: Pairs, family: str, tmp_path: Path) -> None:
    lake = lake_of(tmp_path, pairs(family), "z")
    logits = logits_of(lake, pairs(family))
    rows = lake.sql("SELECT * FROM dla ORDER BY token").df()
    two = np.sort(logits, -1)[:, -2:]
    lead = rows.groupby("token")["effect"].sum().to_numpy()
    assert np.abs(lead - (two[:, 1] - two[:, 0])).max() < 1e-4 * np.abs(logits).max()
    assert set(rows["part"]) == {"bias", "embed", "attn", "mlp"} and len(rows) == len(logits) * (2 + 2 * 3)
    assert (
        rows.loc[rows["part"] != "bias", "norm"].notna().all() and rows.loc[rows["part"] == "bias", "norm"].isna().all()
    )
    heads = lake.sql("SELECT * FROM dla_heads ORDER BY token, layer, head").df()
    assert len(heads) == len(logits) * 3 * 4
    attn = rows[rows["part"] == "attn"].set_index(KEYS)["effect"]
    rest = (attn - heads.groupby(KEYS)["effect"].sum()).to_numpy()
    if not has_bias(pairs(family)):
        assert np.abs(rest).max() < 1e-4 * np.abs(logits).max()
    else:
        assert np.abs(rest).max() > 1e-4


def has_bias(pair: PairSpec) -> bool:
    """Whether attention adds something that is no head's."""
    return getattr(load_model(pair.it).parts.attention(0).inner, "bias", None) is not None


def test_a_head_adds_what_is_missing_without_it(llama: PairSpec, tmp_path: Path) -> None:
    """Against a forward whose norm's scale is held: the head's write, by plain loops over the model's own weights."""
    lake = lake_of(tmp_path, llama, "z")
    model = load_model(llama.it).hf
    found = lake.dataset("llama-it", "native")
    final = found.resid.values[:, -1].astype(np.float64)
    scale = 1 / np.sqrt((final**2).mean(-1) + model.model.norm.variance_epsilon)
    weight, unembed = (one.weight.detach().double().numpy() for one in (model.model.norm, model.lm_head))
    ids = found.topk_id.values[:, :2]
    rows = lake.sql("SELECT * FROM dla_heads").df().set_index(["layer", "head", "token"]).sort_index()
    for layer, head in ((0, 1), (2, 3)):
        project = model.model.layers[layer].self_attn.o_proj.weight.detach().double().numpy()
        write = found.z.values[:, layer, head] @ project[:, 8 * head : 8 * head + 8].T
        apart = unembed[ids[:, 0]] - unembed[ids[:, 1]]
        expected = (write * weight * scale[:, None] * apart).sum(-1)
        assert np.allclose(rows.loc[(layer, head), "effect"], expected, atol=1e-5)
        assert np.allclose(rows.loc[(layer, head), "norm"], np.linalg.norm(write, axis=-1), rtol=1e-4)


def test_the_row_is_the_mean_over_tokens(llama: PairSpec, tmp_path: Path) -> None:
    lake = lake_of(tmp_path, llama, "z", variants=("pt", "it"))
    answer = lake.run("dla", pair="llama", probes=False)
    table = answer.table
    means = lake.sql(
        "SELECT variant, layer, part, avg(effect) AS e FROM dla WHERE step >= 1 AND stream LIKE 'native%' GROUP BY ALL"
    ).df()
    means = means.set_index(["variant", "part", "layer"])["e"]

    def estimate(measure: str, variant: str, layer: object = None, head: object = None) -> float:
        rows = table[(table["measure"] == measure) & (table["variant"] == variant)]
        for name, value in (("layer", layer), ("head", head)):
            rows = rows[rows[name].isna()] if value is None else rows[rows[name] == value]
        return float(rows["estimate"].iloc[0])

    for variant in ("pt", "it"):
        assert estimate("mlp", variant, 1) == pytest.approx(means[variant, "mlp", 1], abs=1e-6)
        assert estimate("late_attn", variant) == pytest.approx(means[variant, "attn", 2], abs=1e-6)
        assert estimate("lead", variant) == pytest.approx(means[variant].sum(), abs=1e-5)
        heads = sum(estimate("head", variant, 0, head) for head in range(4))
        assert heads == pytest.approx(means[variant, "attn", 0], abs=1e-5)
    assert "write" in answer.sentence and len(answer.figure().axes) >= 4
    assert not pd.isna(table["low"]).all()


def test_without_z_or_weights_the_row_does_without_heads(llama: PairSpec, captured, tmp_path: Path) -> None:
    answer = Lake(captured.root).run("dla", pair="llama", probes=False)
    assert "head" not in set(answer.table["measure"])
    assert "table dla_heads needs z, which this capture did not keep" in answer.sentence
    with pytest.raises(LakeError, match="dla_heads needs z.*--profile heads` into another lake"):
        Lake(captured.root).sql("SELECT * FROM dla_heads")
    lake = lake_of(tmp_path, llama, "z")
    with pytest.raises(LakeError, match="model llama-it: no weights found; looked in"):
        Lake(lake.layout.root).sql("SELECT * FROM dla_heads")
