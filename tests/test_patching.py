"""The table `patching` against whole Hugging Face models in float64 with hooks of the test's own, and its row by plain loops."""

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from actlake.analyze.residual.directions import PARTS, parts
from actlake.capture.edit import replay
from actlake.lake import Lake
from actlake.queries.engine.context import Context
from actlake.queries.makers import ensure
from actlake.queries.probes.choice import choose
from actlake.queries.replayed import patching
from actlake.queries.replayed.patching import _Patching, best_layers, first_tokens
from actlake.store.artifacts.directions import read_directions
from actlake.store.artifacts.streams import read_stream
from actlake.store.captures.reader import Capture
from actlake.store.core.catalog import PairSpec
from actlake.store.core.errors import LakeError
from hypothesis import given
from hypothesis import strategies as st
from test_graft_rows import catalog, kl, scope, table
from test_observed_rows import texts
from torch import Tensor
from transformers import AutoModelForCausalLM

BLOCKS, TOLERANCE = 4, 1e-4


@pytest.fixture(scope="module")
def lakes(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Lake, PairSpec]]:
    """Family -> a lake of a pair of four blocks on its own and on IT's answers, and the pair."""
    root = tmp_path_factory.mktemp("patching")

    def made(family: str) -> tuple[Lake, PairSpec]:
        pair = tiny.make_pair(root / family / "pair", family, num_hidden_layers=BLOCKS)
        prompts = tiny.prompt_set(texts(12))
        tiny.capture(root / family / "lake", pair, tiny.NATIVE, tiny.TEACHER, prompts=prompts)
        return Lake(root / family / "lake", catalog=catalog(root / family, pair)), pair

    return cache(made)


class Model:
    """A whole model, and what its own forward gives with states changed; in float64 where it computes in that."""

    def __init__(self, pair: PairSpec, variant: str):
        path, dtype = pair.model(variant).path, torch.float32 if pair.name == "deepseek_v2" else torch.float64
        self.hf = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation="eager").eval()
        self.blocks = self.hf.get_submodule(tiny.FAMILIES[pair.name].blocks)

    @torch.no_grad()
    def __call__(
        self, tokens: np.ndarray, layer: int = 0, change: Callable[[Tensor], Tensor] | None = None, copies: int = 1
    ) -> Tensor:
        """Outputs of all blocks [copies, n, L, d] of one sequence where those of one block pass through `change`."""
        found: list[Tensor] = []

        def after(_module: Any, _given: Any, out: Any, number: int) -> Any:
            h = out[0] if isinstance(out, tuple) else out
            h = change(h.clone()) if change and number == layer else h
            found.append(h)
            return (h, *out[1:]) if isinstance(out, tuple) else h

        handles = [b.register_forward_hook(partial(after, number=i)) for i, b in enumerate(self.blocks)]
        self.hf(torch.tensor(tokens[None].astype(np.int64)).expand(copies, -1), use_cache=False)
        for handle in handles:
            handle.remove()
        return torch.stack(found, 2).double()

    @torch.no_grad()
    def profile(self, h: Tensor, probes: Any = None) -> Tensor:
        """KL(final || layer) [n, L] of the outputs of all blocks, [n, L, d]."""
        if probes is not None:
            weight, bias = probes.weight[1:].double(), probes.bias[1:].double()
            h = torch.cat([torch.einsum("nld,led->nle", h[:, :-1], weight) + bias, h[:, -1:]], 1)
        z = self.hf.lm_head(self.hf.get_decoder().norm(h.to(self.hf.dtype))).double()
        cap = getattr(self.hf.config, "final_logit_softcapping", None)
        logp = (cap * torch.tanh(z / cap) if cap else z).log_softmax(-1)
        return kl(logp[:, -1:], logp)


def directions(lake: Lake, job: _Patching) -> dict[str, np.ndarray]:
    """Unit vectors of each layer by the name of the part that lies along them."""
    contrast, own = (read_directions(path)[0] for path in job._groups)
    rng = np.random.default_rng(42)
    draws = rng.standard_normal((BLOCKS - 1, contrast["d_conv"].shape[1]))
    random = draws / np.linalg.norm(draws, axis=1, keepdims=True)
    return {"conv": contrast["d_conv"][:], "mean": own["d_mean"][:], "random": random}


@pytest.mark.parametrize(
    ("family", "lens"), [("llama", "raw"), ("llama", "tuned"), ("gemma3", "raw"), ("deepseek_v2", "raw")]
)
def test_rows_are_those_of_whole_models_with_a_hook(lakes: Callable, family: str, lens: str) -> None:
    lake, pair = lakes(family)
    names = scope(lake.layout, family)
    ensure(lake.layout, [("patching", lens, names)], catalog=lake._catalog)
    found = table(lake.layout, f"FROM patching WHERE lens = '{lens}'")
    models = {v: Model(pair, v) for v in ("pt", "it")}
    streams = {v: read_stream(lake.layout, names.streams[v]) for v in ("pt", "it")}
    d = directions(lake, _Patching(Context(lake.layout, catalog=lake._catalog), names, lens))
    chosen = choose(Context(lake.layout), names.names("pt")) if lens == "tuned" else None
    curves = {key: g.sort_values("layer") for key, g in found.groupby(["prompt", "position", "patch_layer", "patch"])}
    seen, moved = 0, 0.0
    for prompt, prompt_id in [*enumerate(streams["pt"].prompt_ids)][::2]:
        probes = next(chosen.readers(np.array([prompt_id])))[0] if chosen else None
        tokens, starts = ({v: getattr(s, key)[prompt] for v, s in streams.items()} for key in ("tokens", "starts"))
        whole = {v: models[v](tokens[v])[0] for v in ("pt", "it")}
        for index in range(min(5, len(tokens["pt"]) - starts["pt"])):
            at, other = starts["pt"] + index, starts["it"] + index
            host = models["pt"].profile(whole["pt"][at : at + 1], probes)[0]
            for layer in range(BLOCKS - 1):
                ours, theirs = whole["pt"][at, layer].numpy(), whole["it"][other, layer].numpy()
                x, (c, m, u) = theirs - ours, (d[name][layer].astype(np.float64) for name in ("conv", "mean", "random"))
                ends = {
                    "conv": ours + x @ c * c,
                    "full": theirs,
                    "random": ours + x @ c * u,
                    "mean": ours + x @ m * m,
                    "rest": theirs - x @ c * c,
                }

                def change(h: Tensor, ends: Any = ends, at: int = at) -> Tensor:
                    h[:, at] = torch.tensor(np.stack([*ends.values()])).to(h)
                    return h

                edited = models["pt"](tokens["pt"], layer, change, len(ends))[:, at]
                for patch, after in zip(ends, models["pt"].profile(edited, probes), strict=True):
                    curve = curves[prompt, at, layer, patch]
                    assert curve["layer"].tolist() == list(range(BLOCKS))
                    np.testing.assert_allclose(curve["kl_final_layer"], after, atol=TOLERANCE, err_msg=patch)
                    np.testing.assert_allclose(curve["kl_host"], host, atol=TOLERANCE)
                    seen, moved = seen + len(curve), max(moved, float((after - host).abs().max()))
    assert seen == (found["prompt"] % 2 == 0).sum() and moved > 100 * TOLERANCE
    assert sorted(set(found["prompt"])) == list(range(12)) and set(found["patch"]) == set(PARTS)


@pytest.mark.parametrize("lens", ["raw", "tuned"])
def test_without_a_patch_the_host_is_the_lens(lakes: Callable, lens: str) -> None:
    lake, _ = lakes("llama")
    names = scope(lake.layout, "llama")
    needs = [("patching", lens, names), ("lens", lens, tiny.scope("llama", {"pt": names.streams["pt"]}, "teacher"))]
    ensure(lake.layout, needs, catalog=lake._catalog)
    both = table(
        lake.layout,
        "SELECT p.kl_host, l.kl_final_layer, p.step AS mine, l.step FROM patching p JOIN lens l"
        f" ON l.variant = 'pt' AND p.lens = l.lens AND p.prompt_id = l.prompt_id AND p.position = l.position"
        f" AND p.layer = l.layer AND l.stream = p.stream_pt WHERE l.lens = '{lens}'",
    )
    assert len(both) == len(table(lake.layout, f"FROM patching WHERE lens = '{lens}'")) and len(both)
    np.testing.assert_allclose(both["kl_host"], both["kl_final_layer"], atol=1e-5)
    assert (both["mine"] == both["step"]).all()


@given(st.integers(1, 6), st.integers(2, 40), st.integers(0, 1000))
def test_parts_by_their_geometry(n: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, vectors = rng.standard_normal((n, width)).astype(np.float32), rng.standard_normal((3, width))
    conv, mean, random = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    found = parts(x, conv, mean, random)
    assert tuple(found) == PARTS and np.array_equal(found["full"], x)
    np.testing.assert_allclose(found["conv"] + found["rest"], x, atol=1e-12)
    np.testing.assert_allclose(found["rest"] @ conv, 0, atol=1e-12)
    np.testing.assert_allclose((found["full"] - found["mean"]) @ mean, 0, atol=1e-12)
    np.testing.assert_allclose(*(np.linalg.norm(found[name], axis=1) for name in ("conv", "random")), atol=1e-12)
    np.testing.assert_allclose(found["random"] @ random, x.astype(np.float64) @ conv, atol=1e-12)


# --- which layers, which tokens --------------------------------------------------------------------------------------


def test_layers_are_the_best_that_have_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    r2, d = np.array([0.1, 0.5, np.nan, 0.5, 0.9, 0.2]), np.ones((6, 3))
    assert best_layers(r2, d, d) == [0, 1, 3, 4, 5]
    d_mean = d.copy()
    d_mean[4] = np.nan
    monkeypatch.setitem(patching.SIZES, "layers", 2)
    assert best_layers(r2, d, d) == [1, 4] and best_layers(r2, d, d_mean) == [1, 3]
    assert best_layers(np.full(6, np.nan), d, d) == []


def test_tokens_are_the_first_of_the_last_answers(lakes: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    lake, _ = lakes("llama")
    names = scope(lake.layout, "llama")
    monkeypatch.setitem(patching.SIZES, "prompts", 3)
    monkeypatch.setitem(patching.SIZES, "tokens", 2)
    for variant in ("pt", "it"):
        stream, expected, flat = read_stream(lake.layout, names.streams[variant]), [], 0
        for tokens, start in zip(stream.tokens, stream.starts, strict=True):
            expected.append([flat + start + i for i in range(min(2, len(tokens) - start))])
            flat += len(tokens)
        capture = Capture(lake.layout.capture(f"llama-{variant}", names.streams[variant]))
        assert first_tokens(capture).tolist() == sum([some for some in expected if some][-3:], [])


# --- the row ---------------------------------------------------------------------------------------------------------


def crossing(curve: list[float]) -> float:
    """The layer at which a curve is first 0.1, between two layers by a straight line (METHODS 3.3)."""
    for layer, value in enumerate(curve):
        if value < 0.1:
            return layer - 1 + (curve[layer - 1] - 0.1) / (curve[layer - 1] - value) if layer else 0.0
    return len(curve) - 1.0


@pytest.mark.parametrize("lens", ["raw", "tuned"])
def test_exp10_P3_by_plain_loops(lakes: Callable, lens: str) -> None:
    lake, _ = lakes("llama")
    answer = lake.run("exp10_P3")
    found = answer.table.set_index(["measure", "layer", "patch"])["estimate"]
    numbers = answer.table[answer.table["layer"].isna()].set_index("measure")
    rows = table(lake.layout, f"FROM patching WHERE lens = '{lens}'")
    cells: list[dict[str, Any]] = []
    for (prompt, position, patched, patch), group in rows.groupby(["prompt", "position", "patch_layer", "patch"]):
        group = group.sort_values("layer")
        change = (group["kl_final_layer"] - group["kl_host"]).to_numpy(np.float64)
        moved = crossing(group["kl_final_layer"].tolist()) - crossing(group["kl_host"].tolist())
        cells.append({"prompt": prompt, "position": position, "patched": patched, "patch": patch, "change": change})
        cells[-1] |= {"dkl": change[patched : BLOCKS - 1].mean(), "dcommit": moved}
    frame = pd.DataFrame(cells)
    for patch, group in frame.groupby("patch"):
        for measure in ("dkl", "dcommit"):
            assert numbers.loc[f"{measure}_{patch}_{lens}", "estimate"] == pytest.approx(
                group[measure].mean(), abs=1e-5
            )
            for layer, part in group.groupby("patched"):
                by_patch = found[f"{measure}_by_patch_{lens}", layer, patch]
                assert by_patch == pytest.approx(part[measure].mean(), abs=1e-5)
        for layer in range(BLOCKS):
            read = [change[layer] for change, at in zip(group["change"], group["patched"], strict=True) if at <= layer]
            assert found[f"dkl_{lens}", layer, patch] == pytest.approx(np.mean(read), abs=1e-5)
    conv, random = (frame[frame["patch"] == patch] for patch in ("conv", "random"))
    excess = conv["dkl"].mean() - random["dkl"].mean()
    assert numbers.loc[f"excess_dkl_{lens}", "estimate"] == pytest.approx(excess, abs=1e-5)
    assert numbers.loc[f"dkl_conv_{lens}", "n"] == frame["prompt"].nunique()
    assert found[f"dkl_{lens}", BLOCKS - 1, "conv"] == 0  # whatever is patched
    assert "undefined" not in answer.sentence and answer.figure().axes


def test_a_second_question_runs_nothing(lakes: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    lake, _ = lakes("llama")
    before = lake.run("exp10_P3")
    for name in ("load_late", "find_weights"):
        monkeypatch.setattr(replay, name, None)
    monkeypatch.setattr("actlake.capture.edit.start.open_start", None)
    after = lake.run("exp10_P3")
    assert not after.computed and after.table.equals(before.table)


def test_other_directions_take_the_place_of_rows(lakes: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    lake, _ = lakes("gemma3")
    names = scope(lake.layout, "gemma3")
    ensure(lake.layout, [("patching", "raw", names)], catalog=lake._catalog)
    ran, again = [], replay.replay
    monkeypatch.setattr(replay, "replay", lambda *args, **options: ran.append(args[1]) or again(*args, **options))
    monkeypatch.setitem(patching.SIZES, "layers", 1)
    ensure(lake.layout, [("patching", "raw", names)], catalog=lake._catalog)
    found = table(lake.layout, "SELECT DISTINCT patch_layer FROM patching")
    assert len(found) == len(ran) == 1 and ran[0].boundary == found["patch_layer"][0] + 1
    # A row runs its own prefix and nothing behind it.
    tokens = table(lake.layout, "SELECT sum(position + 1) AS n FROM patching WHERE layer = 0")["n"][0]
    assert ran[0].lengths.sum() == tokens == len(ran[0].token_id)


# --- what can't be answered ------------------------------------------------------------------------------------------


def test_what_is_missing_is_named(tmp_path: Path, lakes: Callable) -> None:
    lake, pair = lakes("llama")
    kit, names = Context(lake.layout, catalog=lake._catalog), scope(lake.layout, "llama")
    with pytest.raises(LakeError, match=r"patching\(logit\): the lens is raw, tuned or jacobian"):
        _Patching(kit, names, "logit")
    with pytest.raises(LakeError, match="capture both"):
        _Patching(kit, tiny.scope("llama", {"pt": names.streams["pt"]}, "teacher"), "raw")
    with pytest.raises(LakeError, match="read different continuations"):
        _Patching(kit, scope(lake.layout, "llama", "native"), "raw")
    prompts = tiny.prompt_set(texts(12))
    alone = tiny.capture(tmp_path / "native", pair, tiny.NATIVE, prompts=prompts)
    with pytest.raises(LakeError, match="run `actlake capture llama --stream teacher --prompts tiny`"):
        Lake(alone.root, catalog=lake._catalog).run("exp10_P3")
    both = tiny.capture(alone.root, pair, tiny.TEACHER, prompts=prompts)
    with pytest.raises(LakeError, match="model llama-pt: no weights found; looked in"):
        Lake(both.root).run("exp10_P3")
    few = tiny.capture(tmp_path / "few", pair, tiny.NATIVE, tiny.TEACHER, prompts=tiny.prompt_set(texts(6)))
    with pytest.raises(LakeError, match="6 prompts have an answer; the regression needs 10"):
        Lake(few.root, catalog=lake._catalog).run("exp10_P3")


def test_models_without_directions_have_no_rows(
    lakes: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake, pair = lakes("llama")
    monkeypatch.setattr(patching, "best_layers", lambda *_: [])
    layout = tiny.capture(tmp_path / "lake", pair, tiny.NATIVE, tiny.TEACHER, prompts=tiny.prompt_set(texts(12)))
    with pytest.raises(LakeError, match="nothing of pair llama qualifies"):
        Lake(layout.root, catalog=lake._catalog).run("exp10_P3")
