"""Sites inside branches: what heads give adds up to what attention gives, a router's logits choose the experts that ran."""

import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import families
import numpy as np
import pytest
import tiny
import torch
from actlake.capture.edit.replay import replay_whole
from actlake.capture.edit.start import open_start
from actlake.capture.model.hooks import at_outputs
from actlake.capture.model.load import load_model
from actlake.capture.model.sites import check_inside, inside, projection_of, site_lengths
from actlake.capture.model.structure import discover
from actlake.capture.model.trace import accepted, random_tokens
from actlake.capture.streams.estimate import forecast
from actlake.lake import Lake
from actlake.store.captures.reader import Capture, list_captures, open_capture
from actlake.store.core.catalog import PairSpec
from actlake.store.core.errors import LakeError

Pairs = Callable[[str], PairSpec]
HEADS = replace(tiny.FULL, sites=("resid", "attn_out", "z"))
ROUTER = replace(tiny.FULL, sites=("resid", "router"), logits="none")


@pytest.mark.parametrize("family", tiny.sampled("llama", "gemma3", "gpt2", "deepseek_v2"))
def test_heads_add_up_to_what_attention_gives(pairs: Pairs, family: str, tmp_path: Path) -> None:
    pair = pairs(family)
    layout = tiny.capture(tmp_path / "lake", pair, tiny.BARE, profile=HEADS, variants=("pt",))
    model = load_model(pair.pt)
    capture = Capture(Path(list_captures(layout).iloc[0]["path"]))
    z, out = capture.array("z")[...], capture.array("attn_out")[...]
    assert z.shape[1:] == (3, 4, 8)
    for layer in range(3):
        weight, bias = projection_of(model.name, model.parts, layer)
        heads = weight.reshape(4, 8, 32).numpy()
        parts = np.einsum("thk,hkd->thd", z[:, layer], heads)
        total = parts.sum(1) + (0 if bias is None else bias.detach().numpy())
        assert np.abs(total - out[:, layer]).max() < 1e-5
        assert np.abs(parts).sum(1).max() > 1e-3


UNLIKE = ("gemma4_text", "jetmoe", "falcon_h1")  # heads of two widths, experts of attention, two token mixers


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.sweep if at % 24 else ()) for at, name in enumerate(families.NAMES)]
    + [pytest.param(name, id=f"unlike-{name}") for name in UNLIKE],
)
def test_of_any_class_heads_add_up_or_are_refused_in_a_line(name: str) -> None:
    """Every causal-LM class of transformers; and a router gives a logit for each expert and token."""
    warnings.simplefilter("ignore")
    try:
        hf = families.build(name)
    except Exception as error:  # too large, or tiny sizes that this class can't have
        pytest.skip(f"can't be built: {type(error).__name__}: {str(error)[:80]}")
    try:
        parts, _ = discover(hf)
    except LakeError as error:
        assert "\n" not in str(error)
        pytest.skip(f"refused as a whole: {str(error)[:80]}")
    kept: dict[tuple[str, int], torch.Tensor] = {}
    try:
        lengths = site_lengths(hf.config, ("z",), name)
        check_inside(name, parts, lengths)
        assert name not in UNLIKE
    except LakeError as error:
        assert str(error).endswith(("leave the site out", "leave them out")) and "\n" not in str(error)
        lengths = {}
    mixed = range(len(parts.blocks)) if lengths else ()
    routers = [layer for layer in range(len(parts.blocks)) if parts.mlp(layer).inner is not None]
    with ExitStack() as stack, torch.no_grad():
        for layer in mixed:
            stack.enter_context(inside(parts, "heads", layer, partial(_note, kept, ("z", layer))))
            stack.enter_context(at_outputs(parts.attention(layer).outs, partial(_note, kept, ("out", layer))))
        for layer in routers:
            stack.enter_context(inside(parts, "router", layer, partial(_note, kept, ("router", layer))))
        hf(**accepted(hf, {**random_tokens(hf), "use_cache": False}))
    for layer in mixed:
        weight, bias = projection_of(name, parts, layer)
        z, out = kept["z", layer].reshape(16, lengths["head"], -1), kept["out", layer].reshape(16, -1)
        total = torch.einsum("thk,hkd->thd", z, weight.reshape(*z.shape[1:], -1)).sum(1)
        total = total if bias is None else total + bias
        assert (total - out).abs().max() <= 1e-5 * out.abs().max().clamp_min(1)
    experts = site_lengths(hf.config, ("router",), name)["expert"] if routers else 0
    assert all(kept["router", layer].reshape(16, -1).shape[1] == experts for layer in routers)


def _note(kept: dict[tuple[str, int], torch.Tensor], key: tuple[str, int], value: torch.Tensor) -> None:
    kept[key] = value.detach().clone()


def test_each_head_attends_for_itself(llama: PairSpec, tmp_path: Path) -> None:
    """Without its values a head gives nothing, and the others what they gave; a reader sees heads by number."""
    one = tiny.capture(tmp_path / "one", llama, tiny.BARE, profile=HEADS, variants=("pt",))
    folder = tiny.make_model(tmp_path / "cut")
    model = load_model(tiny.spec(folder, "llama-pt"))
    with torch.no_grad():
        model.hf.model.layers[0].self_attn.v_proj.weight[8:] = 0  # of the second of two key-value heads: heads 2 and 3
    model.hf.save_pretrained(folder)
    cut = PairSpec("llama", tiny.spec(folder, "llama-pt"), None, {})
    two = tiny.capture(tmp_path / "two", cut, tiny.BARE, profile=HEADS, variants=("pt",))
    before, after = (open_capture(Path(list_captures(layout).iloc[0]["path"])).z for layout in (one, two))
    assert before.dims == ("token", "layer", "head", "d_head")
    assert not after.isel(layer=0, head=[2, 3]).values.any() and before.isel(layer=0, head=[2, 3]).values.all(-1).any()
    assert np.array_equal(before.isel(layer=0, head=[0, 1]), after.isel(layer=0, head=[0, 1]))


def test_router_logits_choose_the_experts_that_run(pairs: Pairs, tmp_path: Path) -> None:
    pair = pairs("deepseek_v2")
    layout = tiny.capture(tmp_path / "lake", pair, tiny.BARE, profile=ROUTER, variants=("pt",))
    found = open_capture(Path(list_captures(layout).iloc[0]["path"])).router
    assert found.dims == ("token", "layer", "expert") and found.shape[1:] == (3, 4)
    assert np.isnan(found.isel(layer=0)).all() and np.isfinite(found.isel(layer=[1, 2])).all()
    model, chosen = load_model(pair.pt), []

    def note(_module: object, _args: object, output: tuple) -> None:
        chosen.extend(next(part for part in output if part.dtype == torch.int64).reshape(-1, 2).sort(-1)[0].tolist())

    model.hf.model.layers[1].mlp.experts.register_forward_pre_hook(
        lambda _m, args: chosen.extend(args[1].reshape(-1, 2).sort(-1)[0].tolist())
    )
    tokens = open_capture(Path(list_captures(layout).iloc[0]["path"]))
    for prompt in np.unique(tokens.prompt):
        with torch.no_grad():
            model.hf(torch.tensor(tokens.token_id.values[tokens.prompt == prompt][None].astype(np.int64)))
    assert np.sort(np.argsort(-found.isel(layer=1).values, -1)[:, :2], -1).tolist() == chosen


def test_heads_are_rows_to_train_on(llama: PairSpec, tmp_path: Path) -> None:
    """As wide as all heads of a block; a reader of a batch takes them apart."""
    lake = Lake(tiny.capture(tmp_path / "lake", llama, tiny.NATIVE, profile=HEADS, variants=("it",)).root)
    whole = lake.dataset("llama-it", "native").z.values[:, 1]
    batches = lake.batches("llama-it", "native", site="z", layer=1, batch=16, shuffle=False)
    found = np.concatenate([np.asarray(getattr(batch, "x", batch)) for batch in batches])
    assert found.shape[1:] == (32,) and {row.tobytes() for row in found} <= {
        row.tobytes() for row in whole.reshape(-1, 32)
    }


def test_other_sites_keep_their_bytes(llama: PairSpec, tmp_path: Path) -> None:
    plain = tiny.capture(tmp_path / "plain", llama, tiny.BARE, variants=("pt",))
    more = tiny.capture(
        tmp_path / "more",
        llama,
        tiny.BARE,
        profile=replace(tiny.FULL, sites=("resid", "mlp_out", "z")),
        variants=("pt",),
    )
    one, two = (tiny.tree(Path(list_captures(layout).iloc[0]["path"])) for layout in (plain, more))
    chunks = [name for name in one if name.startswith(("resid/c", "mlp_out/c", "topk_"))]
    assert len(chunks) > 8 and all(one[name] == two[name] for name in chunks)


def test_plans_know_their_size_and_what_a_model_has_not_is_refused(pairs: Pairs, tmp_path: Path) -> None:
    pair = pairs("deepseek_v2")
    profile = replace(tiny.FULL, sites=("z", "router"))
    (one, *_) = forecast(pair, [tiny.BARE], tiny.prompt_set(), [profile])
    assert one.site_bytes["z"] == 4 * 3 * 4 * 8 * one.size.tokens
    assert one.site_bytes["router"] == 4 * 3 * 4 * one.size.tokens
    for sites, said in ((("router",), "llama-..: site router: it has no mixture of experts; leave the site out"),):
        with pytest.raises(LakeError, match=said):
            tiny.capture(tmp_path / "lake", pairs("llama"), tiny.BARE, profile=replace(tiny.FULL, sites=sites))
        with pytest.raises(LakeError, match=said):
            forecast(pairs("llama"), [tiny.BARE], tiny.prompt_set(), [replace(tiny.FULL, sites=sites)])
    config = SimpleNamespace(num_attention_heads=[2, 4, 4])
    config.get_text_config = lambda: config
    with pytest.raises(
        LakeError, match="m: site z: its config names no heads of one width that all blocks have; leave the site out"
    ):
        site_lengths(config, ("z",), "m")
    layout = tiny.capture(tmp_path / "full", pairs("llama"), tiny.BARE, variants=("pt",))
    model = load_model(pairs("llama").pt)
    start = open_start(layout, "llama-pt", list_captures(layout).iloc[0]["stream"], 1)
    with pytest.raises(LakeError, match="replay: no site 'z'; expected resid, mlp_out, attn_out"):
        replay_whole(model, start, keep=("z",))
