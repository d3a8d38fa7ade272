"""Weight change against the parameters of the loaded modules, and checkpoints that are saved in another way."""

import json
import shutil
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from actlake.capture.model import checkpoint_diff
from actlake.capture.model.checkpoint_diff import (
    bare_name,
    group_changes,
    module_group,
    seed_groups,
    tensor_changes,
    total_parameters,
)
from actlake.store.core.catalog import PairSpec
from actlake.store.core.errors import LakeError
from safetensors.torch import load_file, save_file
from tiny import FAMILIES, make_model, sampled
from transformers import AutoModelForCausalLM

CLASSES = {"Norm": "norms", "Router": "router", "Experts": "experts"}
PARTS = {"self_attn": "attention", "attn": "attention", "attention": "attention", "mlp": "mlp"}


def weight_change(pt: Path, it: Path, grouping: str = "module") -> dict[str, np.ndarray]:
    """RMS of IT - PT per layer and group of two checkpoint folders."""
    return group_changes(list(tensor_changes(pt, it)), grouping)


def folders(pair: PairSpec) -> tuple[Path, Path]:
    assert pair.pt and pair.it and pair.pt.path and pair.it.path
    return pair.pt.path, pair.it.path


def of_modules(folder: Path, blocks: str) -> dict[tuple[int, str, str], np.ndarray]:
    """(layer, group, parameter) -> float64 values; groups by the modules' places and classes, not by tensor names."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    owner: dict[int, tuple[int, str]] = {id(p): (-1, "lm_head") for p in model.get_output_embeddings().parameters()}
    owner |= {id(p): (-1, "embed") for p in model.get_input_embeddings().parameters()}
    for layer, block in enumerate(model.get_submodule(blocks)):
        for name, child in block.named_children():
            owner |= {id(p): (layer, PARTS.get(name, "other")) for p in child.parameters()}
        for name, module in block.named_modules():  # parents come first, so that the innermost module decides
            kind = "Experts" if name.endswith("shared_experts") else type(module).__name__
            for end, group in CLASSES.items():
                if kind.endswith(end):
                    owner |= {id(p): (layer, group) for p in module.parameters()}

    def rest(name: str) -> tuple[int, str]:
        """Position embeddings, an image tower and its projector, the last norm."""
        image = "vision_tower" in name or "multi_modal_projector" in name
        return (-1, "embed") if "wpe" in name else (-1, "other") if image else (-1, "final_norm")

    return {(*owner.get(id(p), rest(name)), name): p.detach().numpy() for name, p in model.named_parameters()}


@pytest.mark.parametrize("family", sampled("llama", "gemma3", "deepseek_v2", "gpt_neox"))
def test_every_group_matches_the_loaded_modules(pairs: Callable[[str], PairSpec], family: str) -> None:
    pt, it = folders(pairs(family))
    a, b = (of_modules(folder, FAMILIES[family].blocks) for folder in (pt, it))
    sums: dict[tuple[int, str], np.ndarray] = defaultdict(lambda: np.zeros(3))
    for key, value in a.items():
        sums[key[:2]] += (((b[key] - value) ** 2).sum(), (value**2).sum(), value.size)
    got = weight_change(pt, it)
    assert {(int(layer), group) for layer, group in zip(got["layer"], got["group"], strict=True)} == set(sums)
    for i, key in enumerate(zip(got["layer"].tolist(), got["group"], strict=True)):
        change, scale, size = sums[key]
        assert got["parameters"][i] == size, key
        assert got["rms"][i] == pytest.approx(np.sqrt(change / size), rel=1e-6), key
        assert got["rms_pt"][i] == pytest.approx(np.sqrt(scale / size), rel=1e-6), key
    assert got["parameters"].sum() == total_parameters(pt)


def test_groups_of_names_as_families_write_them() -> None:
    cases = {
        "model.layers.3.self_attn.q_proj.weight": "attention",
        "model.layers.3.self_attn.q_norm.weight": "norms",
        "language_model.model.layers.3.post_attention_layernorm.weight": "norms",
        "model.language_model.layers.3.mlp.gate_proj.weight": "mlp",
        "model.layers.1.mlp.gate.weight": "router",
        "model.layers.1.mlp.experts.5.gate_proj.weight": "experts",
        "model.layers.1.mlp.experts.gate_up_proj": "experts",
        "model.layers.1.mlp.shared_expert_gate.weight": "router",
        "model.layers.1.block_sparse_moe.experts.0.w1.weight": "experts",
        "transformer.h.0.attn.c_attn.bias": "attention",
        "transformer.h.0.ln_1.weight": "norms",
        "transformer.wte.weight": "embed",
        "gpt_neox.embed_in.weight": "embed",
        "embed_out.weight": "lm_head",
        "language_model.lm_head.weight": "lm_head",
        "gpt_neox.final_layer_norm.bias": "final_norm",
        "model.norm.weight": "final_norm",
        "model.vision_tower.encoder.layers.0.self_attn.q_proj.weight": "other",
    }
    assert {name: module_group(bare_name(name)) for name in cases} == cases


def test_seed_grouping_takes_substrings_and_overlaps() -> None:
    assert seed_groups("layers.0.self_attn.q_proj.weight") == ("attn",)
    assert seed_groups("layers.0.post_attention_layernorm.weight") == ("attn", "norm")
    assert seed_groups("layers.0.mlp.experts.7.gate_proj.weight") == ("mlp", "router")
    assert seed_groups("layers.0.mlp.gate.weight") == ("mlp",)
    assert seed_groups("layers.0.input_layernorm.weight") == ("norm",)
    assert seed_groups("norm.weight") == ("final_norm",)


def test_seed_grouping_on_a_mixture_of_experts(pairs: Callable[[str], PairSpec]) -> None:
    pt, it = folders(pairs("deepseek_v2"))
    a, b = ({k: v.double() for k, v in load_file(f / "model.safetensors").items()} for f in (pt, it))
    got = weight_change(pt, it, "seed")
    at = {(int(layer), group): i for i, (layer, group) in enumerate(zip(got["layer"], got["group"], strict=True))}
    for group, words in {"router": ("router", "gate_proj"), "attn": ("self_attn", "attention")}.items():
        names = [k for k in a if k.startswith("model.layers.2.") and any(w in k for w in words)]
        assert names
        size = sum(a[k].numel() for k in names)
        change = sum(float(((b[k] - a[k]) ** 2).sum()) for k in names)
        assert got["rms"][at[2, group]] == pytest.approx((change / size) ** 0.5, rel=1e-6)
        assert got["parameters"][at[2, group]] == size
    module = weight_change(pt, it)
    router = [i for i, g in enumerate(module["group"]) if g == "router"]
    assert module["parameters"][router].max() < got["parameters"][at[2, "router"]]  # mostly not the router


def resaved(folder: Path, to: Path, rename: Callable[[str], str] = str, **save: object) -> Path:
    """A checkpoint folder with the same tensors under other names or in several files."""
    shutil.copytree(folder, to)
    if save:
        (to / "model.safetensors").unlink()
        AutoModelForCausalLM.from_pretrained(folder).save_pretrained(to, **save)
    else:
        save_file({rename(k): v for k, v in load_file(folder / "model.safetensors").items()}, to / "model.safetensors")
    return to


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


def test_shards_prefixes_and_blocks_of_rows_change_nothing(
    llama: PairSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pt, it = folders(llama)
    want = weight_change(pt, it)
    shards = resaved(pt, tmp_path / "shards", max_shard_size="20KB")
    assert len(list(shards.glob("*.safetensors"))) > 2
    wrapped = resaved(it, tmp_path / "wrapped", lambda k: f"language_model.{k}")
    same(weight_change(shards, wrapped), want)
    loose = tmp_path / "loose"  # several files, no index
    shutil.copytree(shards, loose)
    (loose / checkpoint_diff.INDEX).unlink()
    same(weight_change(loose, it), want)
    monkeypatch.setattr(checkpoint_diff, "BLOCK", 100)
    small = weight_change(pt, it)
    np.testing.assert_allclose(small["rms"], want["rms"], rtol=1e-12)


def test_weights_kept_a_second_time_are_not_read_twice(llama: PairSpec, tmp_path: Path) -> None:
    pt, it = folders(llama)
    both = resaved(it, tmp_path / "both")
    save_file({"tok_embeddings.weight": torch.zeros(3)}, both / "consolidated.safetensors")
    same(weight_change(pt, both), weight_change(pt, it))


def test_tied_head_that_one_side_does_not_store(pairs: Callable[[str], PairSpec]) -> None:
    tied, untied = folders(pairs("llama_tied"))[0], folders(pairs("llama"))[1]
    a, b = (load_file(folder / "model.safetensors") for folder in (tied, untied))
    assert "lm_head.weight" not in a
    for pt, it in ((tied, untied), (untied, tied)):
        got = weight_change(pt, it)
        want = (b["lm_head.weight"].double() - a["model.embed_tokens.weight"].double()).square().mean().sqrt()
        assert got["rms"][list(got["group"]).index("lm_head")] == pytest.approx(float(want), rel=1e-6)
    assert "lm_head" not in weight_change(tied, tied)["group"]  # tied in both: once, as the embedding


def test_more_tokens_in_one_vocabulary(llama: PairSpec, tmp_path: Path) -> None:
    pt, it = folders(llama)
    found = load_file(it / "model.safetensors")
    rows = len(found["model.embed_tokens.weight"])
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        found[name] = torch.cat([found[name], torch.full((4, found[name].shape[1]), 1e3)])
    longer = tmp_path / "longer"
    shutil.copytree(it, longer)
    save_file(found, longer / "model.safetensors")
    got = weight_change(pt, longer)
    same(got, weight_change(pt, it))
    assert got["parameters"][list(got["group"]).index("embed")] == rows * found["lm_head.weight"].shape[1]


def test_bfloat16_equal_models_and_towers(tmp_path: Path, llama: PairSpec) -> None:
    pt = make_model(tmp_path / "pt", seed=0, dtype=torch.bfloat16)
    got = weight_change(pt, pt)
    assert (got["rms"] == 0).all() and (got["rms_pt"] > 0).all()
    tower = resaved(pt, tmp_path / "tower")
    extra = {"vision_tower.encoder.layers.0.mlp.fc1.weight": torch.ones(2, 2)}
    save_file(load_file(pt / "model.safetensors") | extra, tower / "model.safetensors")
    same(weight_change(pt, tower), got)
    both = weight_change(tower, tower)
    assert both["group"].tolist().count("other") == 1 and both["layer"][list(both["group"]).index("other")] == -1


def test_what_cannot_be_compared_is_said(llama: PairSpec, pairs: Callable[[str], PairSpec], tmp_path: Path) -> None:
    pt, it = folders(llama)

    def refused(a: Path, b: Path, words: str) -> None:
        with pytest.raises(LakeError) as caught:
            weight_change(a, b)
        assert words in str(caught.value) and "\n" not in str(caught.value)

    refused(pt, tmp_path, "no .safetensors file")
    refused(pt, folders(pairs("gpt2"))[1], "checkpoints of one architecture")
    refused(pt, make_model(tmp_path / "wide", intermediate_size=96), "has shape (32, 96), expected (32, 64)")
    refused(make_model(tmp_path / "deep", num_hidden_layers=4), it, "lacks 9 of the other checkpoint's tensors")
    shards = resaved(pt, tmp_path / "shards", max_shard_size="20KB")
    next(shards.glob("model-*.safetensors")).unlink()
    refused(shards, it, "1 weight files that model.safetensors.index.json names are missing")
    (shards / checkpoint_diff.INDEX).write_text(json.dumps({"metadata": {}}))
    refused(shards, it, "not an index of safetensors")
    quantised = resaved(it, tmp_path / "int8")
    found = load_file(it / "model.safetensors")
    found["model.norm.weight"] = found["model.norm.weight"].to(torch.int8)
    save_file(found, quantised / "model.safetensors")
    refused(pt, quantised, "norm.weight holds I8")
    broken = resaved(it, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"\x00" * 40)
    refused(pt, broken, "can't be read")
    with pytest.raises(ValueError, match="expected module or seed"):
        weight_change(pt, it, "layer")
