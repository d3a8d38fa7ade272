"""exp20 and exp23: where the answers part by a plain loop, and every cell by whole Hugging Face forwards with hooks from here."""

import hashlib
import re
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from actlake.analyze.residual.mechanism import choose
from actlake.capture.edit import replay
from actlake.capture.edit.replay import load_late, replay_whole
from actlake.capture.edit.start import open_start
from actlake.lake import Lake
from actlake.store.artifacts.streams import read_stream
from actlake.store.captures.reader import Capture, find_capture
from actlake.store.core.catalog import PairSpec, load_catalog
from actlake.store.core.errors import LakeError
from actlake.store.format.paths import Layout
from actlake.store.tables.imported import add_table
from actlake.store.tables.statements import VIEWS
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM

FAMILIES = ["llama", *(pytest.param(name, marks=pytest.mark.sweep) for name in ("gemma3", "deepseek_v2"))]
LAYERS, ONSET = 5, 3
WINDOWS = {"early": (0, 2), "mid": (1, 3), "late": (3, 5)}
GRAFTED = WINDOWS | {"midlate": (1, 5), "earlymid": (0, 3), "last3": (2, 5), "last1": (4, 5)}
WORDS = ["cat", "dog", "mat", "log", "rain", "plain", "the", "on", "over", "ran", "sat", "fell"]
RAW = replace(tiny.RAW, max_new_tokens=24)
TOLERANCE = 1e-4


def make_pair(folder: Path, family: str) -> PairSpec:
    """A pair whose it is the pt with noise on every weight, so that their answers agree for a while."""
    pair = tiny.make_pair(folder, family, num_hidden_layers=LAYERS)
    model = AutoModelForCausalLM.from_pretrained(pair.pt.path)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.03 * parameter.std(correction=0) * torch.randn_like(parameter))
    model.save_pretrained(pair.it.path)
    return pair


def catalog(folder: Path, pair: PairSpec, more: str = "") -> Path:
    file = folder / "catalog.yaml"
    file.write_text(
        f"pairs:\n  {pair.name}:\n    pt: {{path: {pair.pt.path}}}\n    it: {{path: {pair.it.path}}}\n{more}"
    )
    return file


@dataclass
class Scene:
    """A lake with raw captures of a pair, and both Hugging Face models to compare with."""

    lake: Lake
    pair: PairSpec
    catalog: Path
    hf: dict[str, Any]
    blocks: dict[str, Any]
    events: pd.DataFrame

    def prefix(self, event: Any) -> Tensor:
        """The shared tokens up to where the answers part, [1, n]."""
        return torch.tensor(
            read_stream(self.lake.layout, event.stream).tokens[event.prompt][None, : event.position + 1]
        ).long()


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Scene]:
    root = tmp_path_factory.mktemp("scenes")
    rng = np.random.default_rng(0)
    texts = [(f"p{i}", "FACT", " ".join(rng.choice(WORDS, 1 + i % 6))) for i in range(24)]

    @cache
    def scene(family: str) -> Scene:
        pair = make_pair(root / family, family)
        layout = tiny.capture(root / f"{family}-lake", pair, RAW, tiny.NATIVE, prompts=tiny.prompt_set(texts))
        file = catalog(root / family, pair)
        lake = Lake(layout.root, catalog=file)
        hf = {v: AutoModelForCausalLM.from_pretrained(pair.model(v).path).eval() for v in ("pt", "it")}
        blocks = {v: model.get_submodule(tiny.FAMILIES[family].blocks) for v, model in hf.items()}
        events = lake.sql("SELECT * FROM first_diff WHERE starts_with(stream, 'raw') ORDER BY prompt").df()
        return Scene(lake, pair, file, hf, blocks, events)

    return scene


def enters(block: Any, change: Callable[[Tensor], Tensor | None]) -> Any:
    """A hook on what enters a block."""

    def hook(_module: Any, args: tuple, kwargs: dict) -> Any:
        new = change(args[0] if args else kwargs["hidden_states"])
        if new is None:
            return None
        return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": new})

    return block.register_forward_pre_hook(hook, with_kwargs=True)


def leaves(module: Any, change: Callable[[Any, Tensor], Tensor | None]) -> Any:
    """A hook on what a module returns; `change` also gets its input."""

    def hook(_module: Any, args: tuple, kwargs: dict, value: Any) -> Any:
        whole = isinstance(value, tuple)
        new = change(args[0] if args else kwargs["hidden_states"], value[0] if whole else value)
        return None if new is None else (new, *value[1:]) if whole else new

    return module.register_forward_hook(hook, with_kwargs=True)


@torch.no_grad()
def run(scene: Scene, variant: str, ids: Tensor, *hooks: Any) -> Tensor:
    """Logits [V] at the last position of a whole forward; the hooks are taken away afterwards."""
    logits = scene.hf[variant](input_ids=ids, use_cache=False).logits[0, -1]
    for hook in hooks:
        hook.remove()
    return logits


def cell(scene: Scene, ids: Tensor, upstream: str, late: str) -> dict[str, Tensor]:
    """Readout -> logits [V] of one cell: two whole forwards, and one more for each head."""
    state: list[Tensor] = []
    final: list[Tensor] = []
    run(scene, upstream, ids, enters(scene.blocks[upstream][ONSET], lambda h: state.append(h.clone())))
    native = run(
        scene,
        late,
        ids,
        enters(scene.blocks[late][ONSET], lambda _h: state[0]),
        leaves(scene.blocks[late][-1], lambda _x, h: final.append(h.clone())),
    )
    heads = {
        f"common_{v}": run(scene, v, ids, leaves(scene.blocks[v][-1], lambda _x, _h: final[0])) for v in ("pt", "it")
    }
    return {"native": native, **heads}


# --- where the answers part ------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(st.lists(st.tuples(*[st.lists(st.integers(0, 2), max_size=5)] * 2, st.integers(1, 3)), min_size=1, max_size=4))
def test_first_divergence_by_a_plain_loop(answers: list[tuple[list[int], list[int], int]]) -> None:
    streams, tokens, expected = [], [], []
    for variant, place in (("pt", 0), ("it", 1)):
        name = f"raw-{variant}"
        streams += [
            ("a", variant, "raw", "p", name, name, "set", 5, 1),
            ("a", variant, "native", "p", name, f"n-{name}", "set", 5, 1),
        ]
        made = tiny.synthetic_stream(
            [(f"q{i}", "C", range(9, 9 + row[2]), row[place]) for i, row in enumerate(answers)]
        )
        columns = {"token": np.arange(made.n_tokens), **made.columns}
        tokens.append(pd.DataFrame({"pair": "a", "variant": variant, "stream": name, **columns, "category": "C"}))
        tokens[-1]["prompt_id"] = [f"q{i}" for i in tokens[-1]["prompt"]]
    for prompt, (pt, it, length) in enumerate(answers):
        for step, (one, other) in enumerate(zip(pt, it, strict=False)):
            if one != other:
                expected.append((prompt, f"q{prompt}", step, length - 1 + step, length - 1 + step, other, one))
                break
    connection = duckdb.connect(":memory:")
    names = ["pair", "variant", "recipe", "prompts", "stream", "name", "prompt_set", "max_new_tokens", "n_prompts"]
    for name, frame in (("streams", pd.DataFrame(streams, columns=names)), ("tokens", pd.concat(tokens))):
        connection.register(f"_{name}", frame)
        connection.execute(f"CREATE TABLE {name} AS SELECT * FROM _{name}")
    connection.execute(f"CREATE VIEW first_diff AS {VIEWS['first_diff']}")
    found = connection.execute(
        "SELECT prompt, prompt_id, step, position, position_pt, it_token, pt_token, token, token_pt FROM first_diff ORDER BY prompt"
    ).fetchall()
    assert [row[:7] for row in found] == expected
    starts = {v: frame.groupby("prompt")["token"].min() for v, frame in zip(("pt", "it"), tokens, strict=True)}
    for prompt, _, _, position, position_pt, _, _, token, token_pt in found:
        assert (token, token_pt) == (starts["it"][prompt] + position, starts["pt"][prompt] + position_pt)


@pytest.mark.parametrize("family", FAMILIES)
def test_events_of_a_lake(scenes, family: str) -> None:
    scene = scenes(family)
    streams = {
        v: read_stream(scene.lake.layout, find_capture(scene.lake.layout, f"{family}-{v}", "raw").stem)
        for v in ("pt", "it")
    }
    expected = []
    for prompt, start in enumerate(streams["it"].starts):
        sequences = [streams[v].tokens[prompt][start:].tolist() for v in ("it", "pt")]
        step = next((i for i, pair in enumerate(zip(*sequences, strict=False)) if pair[0] != pair[1]), None)
        if step is not None:
            expected.append([prompt, step, start + step - 1, sequences[0][step], sequences[1][step]])
    found = scene.events[["prompt", "step", "position", "it_token", "pt_token"]].to_numpy().tolist()
    assert found == expected and len(found) > 8 and len({row[1] for row in found}) > 3


# --- exp23 -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_every_cell_by_whole_forwards(scenes, family: str) -> None:
    scene = scenes(family)
    table = scene.lake.sql("SELECT * FROM factorial").df()
    assert len(table) == 12 * len(scene.events) and set(table["event"]) == {"first_diff"}
    table = table.set_index(["prompt", "upstream", "late", "readout"])
    cells = table["margin"].unstack(["upstream", "late"])
    assert (cells.max(axis=1) - cells.min(axis=1)).median() > 100 * TOLERANCE  # a wrong cell could not pass
    for event in scene.events.itertuples():
        for upstream in ("pt", "it"):
            for late in ("pt", "it"):
                for readout, logits in cell(scene, scene.prefix(event), upstream, late).items():
                    row = table.loc[event.prompt, upstream, late, readout]
                    it, pt = (float(logits[token]) for token in (event.it_token, event.pt_token))
                    assert (row.it_logit, row.pt_logit, row.margin) == pytest.approx((it, pt, it - pt), abs=TOLERANCE)
                    two = logits.topk(2).values
                    assert row.top1 == int(logits.argmax()) or two[0] - two[1] < TOLERANCE
                    assert (row.it_token, row.pt_token, row.step) == (event.it_token, event.pt_token, event.step)


@pytest.mark.parametrize("family", FAMILIES)
def test_cells_of_one_model_are_its_stored_logits_and_a_replay_of_its_own_state(scenes, family: str) -> None:
    scene, layout = scenes(family), scenes(family).lake.layout
    found = scene.lake.sql("SELECT * FROM factorial WHERE upstream = late AND readout = 'native' ORDER BY prompt").df()
    for variant, tokens in (("pt", scene.events["token_pt"]), ("it", scene.events["token"])):
        capture = Capture(find_capture(layout, f"{family}-{variant}", "raw"))
        mine = found[found["late"] == variant]
        ids, logits = capture.array("topk_id")[:][tokens], capture.array("topk_logit")[:][tokens]
        assert np.array_equal(ids[:, 0], mine["top1"]) and np.array_equal(ids[:, 0], mine[f"{variant}_token"])
        assert np.abs(logits[:, 0] - mine[f"{variant}_logit"]).max() < 1e-5
        model = load_late(layout, f"{family}-{variant}", ONSET, load_catalog(scene.catalog))
        again = replay_whole(model, open_start(layout, f"{family}-{variant}", "raw", ONSET), logits="full").arrays[
            "logits"
        ][tokens]
        assert np.abs(again[np.arange(len(mine)), mine["it_token"]] - mine["it_logit"]).max() < 1e-5


def effects(scene: Scene, readout: str) -> pd.DataFrame:
    """The arithmetic of METHODS 17 on the table's margins, an event a row."""
    table = scene.lake.sql(f"SELECT * FROM factorial WHERE readout = '{readout}'").df()
    y = {key: group.set_index("prompt")["margin"].astype(float) for key, group in table.groupby(["upstream", "late"])}
    late_pt, late_it = y["pt", "it"] - y["pt", "pt"], y["it", "it"] - y["it", "pt"]
    upstream = (y["it", "pt"] - y["pt", "pt"] + y["it", "it"] - y["pt", "it"]) / 2
    step = table.drop_duplicates("prompt").set_index("prompt")["step"]
    return pd.DataFrame(
        {"late_pt": late_pt, "late_it": late_it, "interaction": late_it - late_pt, "late_weight": (late_pt + late_it) / 2, "upstream": upstream, "step": step}
    )  # fmt: skip


def test_exp23_is_the_arithmetic_of_METHODS(scenes) -> None:
    scene = scenes("llama")
    found = scene.lake.run("exp23")
    table = found.table
    plain = table[table["readout"].isna()].set_index("measure")
    common = effects(scene, "common_it")
    for name in ("late_pt", "late_it", "interaction", "late_weight", "upstream"):
        assert plain.loc[name, "estimate"] == pytest.approx(common[name].mean(), abs=1e-5)
    late = common[common["step"] >= 3]
    assert plain.loc["interaction_step3", "estimate"] == pytest.approx(late["interaction"].mean(), abs=1e-5)
    assert plain.loc["interaction_step3", "n"] == len(late) < plain.loc["interaction", "n"] == len(common)
    bins = pd.cut(common["step"], [-1, 0, 2, 7, 99], labels=["0", "1-2", "3-7", "8+"]).astype(str)
    for readout in ("common_it", "common_pt", "native"):
        mine = effects(scene, readout)
        parts = {"all": mine} | {steps: part for steps, part in mine.groupby(bins) if len(part) >= 5}
        assert set(table.loc[table["readout"] == readout, "steps"]) == set(parts) and len(parts) > 1
        for steps, part in parts.items():
            chosen = table[(table["readout"] == readout) & (table["steps"] == steps)].set_index("measure")
            assert chosen.loc["interaction_by_step", "estimate"] == pytest.approx(part["interaction"].mean(), abs=1e-5)
            assert chosen.loc["late_pt_by_step", "n"] == len(part)
    # Signs of the null: bits of the last eight bytes of an MD5, the first of them lowest.
    ids = scene.lake.sql("SELECT DISTINCT prompt, prompt_id FROM factorial ORDER BY prompt").df()["prompt_id"]
    halves = [
        [int.from_bytes(hashlib.md5(f"{i} {block}".encode()).digest()[8:], "little") for block in range(160)]
        for i in ids
    ]
    bits = np.array([[(half >> bit) & 1 for half in row for bit in range(64)] for row in halves])
    null = ((1 - 2 * bits) * common["interaction"].to_numpy()[:, None]).mean(0)
    assert abs(bits.mean() - 0.5) < 0.01
    assert plain.loc["interaction_null_999", "estimate"] == pytest.approx(np.quantile(null, 0.999), abs=1e-5)
    sign = (
        "positive"
        if plain.loc["interaction", "low"] > 0
        else "negative"
        if plain.loc["interaction", "high"] < 0
        else "not clearly"
    )
    assert f"The interaction is {sign}" in found.sentence and found.figure().axes


def test_the_second_question_loads_nothing(scenes, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = scenes("llama")
    before = [scene.lake.run(row) for row in ("exp20", "exp23")]
    for name in ("load_late", "load_mlps", "find_weights"):
        monkeypatch.setattr(replay, name, None)
    monkeypatch.setattr("actlake.capture.edit.start.open_start", None)
    again = [scene.lake.run(row) for row in ("exp20", "exp23")]
    assert all(not answer.computed for answer in again)
    for one, other in zip(before, again, strict=True):
        pd.testing.assert_frame_equal(one.table, other.table)


# --- exp20 -----------------------------------------------------------------------------------------------------------


def grafted(scene: Scene, ids: Tensor, host: str, window: tuple[int, int]) -> list[Tensor]:
    """Logits [V] that the host's head reads at each edge of the windows, with the other's MLPs in a window."""
    other = "it" if host == "pt" else "pt"
    held: dict[int, Tensor] = {}
    hooks = [
        leaves(scene.blocks[host][layer].mlp, lambda x, _m, layer=layer: first(scene.blocks[other][layer].mlp(x)))
        for layer in range(*window)
    ]
    hooks += [
        enters(block, lambda h, at=at: held.update({at: h.clone()})) for at, block in enumerate(scene.blocks[host])
    ]
    final = run(scene, host, ids, *hooks)
    edges = [run(scene, host, ids, leaves(scene.blocks[host][-1], lambda _x, _h, at=at: held[at])) for at in range(4)]
    return [*edges, final]


def first(value: Any) -> Tensor:
    return value[0] if isinstance(value, tuple) else value


@pytest.mark.parametrize("family", FAMILIES)
def test_every_condition_by_whole_forwards(scenes, family: str) -> None:
    scene = scenes(family)
    table = scene.lake.sql("SELECT * FROM divergence").df()
    layers = [-1, 0, 1, 2, 4]
    runs = {f"{letter}_{name}": window for letter in "BD" for name, window in GRAFTED.items()}
    assert set(table["condition"]) == {"A", "C", *runs} and table["top1"].notna().eq(table["layer"] == 4).all()
    table = table.set_index(["prompt", "condition", "layer"])
    for event in list(scene.events.itertuples())[::5]:
        for condition, window in {"A": (0, 0), "C": (0, 0), **runs}.items():
            logits = grafted(scene, scene.prefix(event), "pt" if condition[0] in "AB" else "it", window)
            for layer, read in zip(layers, logits, strict=True):
                if layer + 1 < window[0]:
                    assert (event.prompt, condition, layer) not in table.index
                    continue
                row = table.loc[event.prompt, condition, layer]
                it, pt = float(read[event.it_token]), float(read[event.pt_token])
                assert (row.it_logit, row.pt_logit, row.margin) == pytest.approx((it, pt, it - pt), abs=TOLERANCE)
            two = logits[-1].topk(2).values
            assert row.top1 == int(logits[-1].argmax()) or two[0] - two[1] < TOLERANCE


def test_exp20_counts_what_each_condition_picks(scenes) -> None:
    scene = scenes("llama")
    found = scene.lake.run("exp20")
    table = scene.lake.sql("SELECT * FROM divergence").df()
    last = table[table["layer"] == LAYERS - 1]
    got = found.table.set_index(["measure", "condition"])["estimate"]
    plain = found.table[found.table["condition"].isna()].set_index("measure")
    margins = {condition: group.set_index("prompt")["margin"] for condition, group in last.groupby("condition")}
    for condition, group in last.groupby("condition"):
        picks = {"it": group["top1"] == group["it_token"], "pt": group["top1"] == group["pt_token"]}
        picks["other"] = ~(picks["it"] | picks["pt"])
        for name, picked in picks.items():
            assert got[f"picks_{name}", condition] == pytest.approx(picked.mean())
        if "_" in condition:
            host = margins["A" if condition[0] == "B" else "C"]
            moved = (margins[condition] - host) * (1 if condition[0] == "B" else -1)
            assert got["moved", condition] == pytest.approx(moved.mean(), abs=1e-5)
    assert got["picks_pt", "A"] == got["picks_it", "C"] == 1
    assert plain.loc["d_mid_picks_pt", "estimate"] == got["picks_pt", "D_mid"]
    mid, late = (plain.loc[f"b_{name}_picks_it", "estimate"] for name in ("mid", "late"))
    assert plain.loc["b_mid_minus_late", "estimate"] == pytest.approx(mid - late)
    assert plain.loc["step_mean", "estimate"] == pytest.approx(scene.events["step"].mean())
    before = table[(table["layer"] == ONSET - 1) & (table["condition"] == "C")].set_index("prompt")["margin"]
    assert plain.loc["late_gain_c", "estimate"] == pytest.approx((margins["C"] - before).mean(), abs=1e-5)
    assert "grafted into PT's middle window" in found.sentence and found.figure().axes


# --- exp21 -----------------------------------------------------------------------------------------------------------


def logits(hf: Any, h: Tensor) -> Tensor:
    """What the model's own head makes of a residual."""
    z, cap = hf.lm_head(hf.get_decoder().norm(h)), getattr(hf.config, "final_logit_softcapping", None)
    return torch.tanh(z / cap) * cap if cap else z


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_every_mlp_that_is_written_by_whole_forwards(scenes, family: str) -> None:
    scene = scenes(family)
    table = scene.lake.sql("SELECT * FROM writeout").df().set_index(["prompt", "condition", "layer"]).sort_index()
    late = range(*WINDOWS["late"])
    assert len(table) == 2 * (LAYERS + len(late)) * len(scene.events)
    for event in list(scene.events.itertuples())[::3]:
        for condition, host in {"A": "pt", "B_late": "pt", "C": "it", "D_late": "it"}.items():
            other, exchanged = "it" if host == "pt" else "pt", late if "_" in condition else range(0)
            hf, seen = scene.hf[host], {layer: list[Tensor]() for layer in range(LAYERS)}
            with ExitStack() as hooks:
                for layer, block in enumerate(scene.blocks[host]):
                    if layer in exchanged:
                        theirs = scene.blocks[other][layer].mlp
                        hook = leaves(block.mlp, lambda x, _m, theirs=theirs: first(theirs(x)))
                        hooks.enter_context(hook)
                    norms = tiny.FAMILIES[family].post_norms
                    for module in (block.post_feedforward_layernorm if norms else block.mlp, block):
                        keep = partial(lambda kept, _module, _args, out: kept.append(first(out)[0, -1]), seen[layer])
                        hooks.callback(module.register_forward_hook(keep).remove)
                hf(scene.prefix(event))
            for layer in exchanged or range(LAYERS):
                u, after = seen[layer]
                support = logits(hf, after) - logits(hf, after - u)
                row = table.loc[event.prompt, condition, layer]
                expected = (float(support[event.it_token]), float(support[event.pt_token]))
                assert row.variant == host, (condition, layer)
                assert (row.support_it, row.support_pt) == pytest.approx(expected, abs=TOLERANCE)
                assert (row.early, row.mid, row.late) == tuple(
                    start <= layer < stop for start, stop in WINDOWS.values()
                )


def test_exp21_counts_windows_and_effects(scenes) -> None:
    scene = scenes("llama")
    table = scene.lake.sql("SELECT * FROM writeout").df()
    table["margin"] = table["support_it"] - table["support_pt"]
    flat = table[table["condition"].isin(["A", "C"])]
    found = scene.lake.run("exp21")
    got = found.table[found.table["layer"].isna()].set_index(["measure", "variant"])["estimate"]
    for variant, mine in flat.groupby("variant"):
        for name in ("early", "mid", "late"):
            mean = mine[mine[name]].groupby("prompt")["margin"].mean().mean()
            assert got[f"margin_{name}", variant] == pytest.approx(mean, abs=1e-5)
    late = flat[flat["late"] & (flat["variant"] == "it")]
    numbers = found.table[found.table["variant"].isna()].set_index("measure")["estimate"]
    assert numbers["against_late_it"] == pytest.approx(late.groupby("prompt")["against"].mean().mean(), abs=1e-6)
    for name in ("margin", "support_it"):
        cells = table[table["late"]].groupby(["condition", "prompt"])[name].mean().groupby("condition").mean()
        a, b, c, d = (cells[condition] for condition in ("A", "B_late", "C", "D_late"))
        effects = {
            "late_pt": b - a,
            "late_it": c - d,
            "late_weight": (b - a + c - d) / 2,
            "upstream": (d - a + c - b) / 2,
            "interaction": c - d - (b - a),
        }
        for effect, value in effects.items():
            assert numbers[f"{effect}_{name}"] == pytest.approx(value, abs=1e-5)
    assert "late window moves" in found.sentence and "the interaction is" in found.sentence and found.figure().axes


# --- kernel, foreign records, what is refused ------------------------------------------------------------------------


def test_choice_is_a_masked_argmax() -> None:
    head, rng = tiny.head(8, 20), np.random.default_rng(0)
    resid, tokens, mask = (
        rng.normal(size=(7, 3, 8)).astype(np.float32),
        rng.integers(0, 20, (7, 2)),
        rng.random(20) < 0.5,
    )
    h = resid.astype(np.float64)
    whole = h / np.sqrt((h**2).mean(-1, keepdims=True) + 1e-6) @ head.unembed.double().numpy().T
    logits, top1 = choose(head, resid, tokens, mask=mask)
    assert np.allclose(logits, np.take_along_axis(whole, tokens[:, None].repeat(3, 1), -1), atol=1e-5)
    assert top1.tolist() == [max(np.flatnonzero(mask), key=lambda t: row[t]) for row in whole[:, -1]]
    assert choose(head, resid, tokens)[1].tolist() == whole[:, -1].argmax(-1).tolist()
    with pytest.raises(ValueError, match=r"choose: resid \(7, 8\) and tokens \(7, 2\), expected \(n, boundaries, 8\)"):
        choose(head, resid[:, 0], tokens)


def test_records_from_elsewhere_answer_exp23_alone_and_pooled(lake: Layout, tmp_path: Path) -> None:
    y = {("pt", "pt"): -2.0, ("pt", "it"): -1.0, ("it", "pt"): 1.0, ("it", "it"): 4.0}
    for pair, scale in (("theirs", 1), ("others", 3)):
        cells = [{"upstream": u, "late": v, "margin": scale * m} for (u, v), m in y.items()]
        rows = (
            pd.DataFrame(cells)
            .assign(event="first_diff", readout="common_it")
            .merge(pd.DataFrame({"step": range(8)}), "cross")
        )
        rows.assign(prompt_id="r" + rows["step"].astype(str)).to_csv(tmp_path / f"{pair}.csv", index=False)
        names = {"pair": pair, "stream": "raw-theirs", "stream_pt": "raw-theirs"}
        add_table(lake, "factorial", tmp_path / f"{pair}.csv", **names)
    found = [Lake(lake.root).run("exp23", pair=pair).table for pair in ("theirs", "others", ["theirs", "others"])]
    one, other, both = (table[table["steps"].isna()].set_index("measure")["estimate"] for table in found)
    assert (one["late_pt"], one["late_it"], one["interaction"], one["upstream"]) == (1, 3, 2, 4)
    for name in ("interaction", "interaction_step3", "interaction_null_999", "cell_it_it"):
        assert both[name] == pytest.approx((one[name] + other[name]) / 2) == pytest.approx(2 * one[name])


def refused(scene: Scene, root: Path, row: str = "exp23", file: Path | None = None) -> str:
    with pytest.raises(LakeError) as caught:
        Lake(root, catalog=file or scene.catalog).run(row)
    return str(caught.value)


def test_what_is_missing_is_said_before_anything_runs(scenes, tmp_path: Path) -> None:
    scene = scenes("llama")
    pair, prompts = scene.pair, tiny.prompt_set(tiny.TEXTS[:3])
    native = tiny.capture(tmp_path / "native", pair, tiny.NATIVE, prompts=prompts)
    for row in ("exp20", "exp23"):
        assert "run `actlake capture llama --stream raw --prompts tiny`" in refused(scene, native.root, row)
    profile = replace(tiny.FULL, boundaries=(0, "last"))
    few = tiny.capture(tmp_path / "few", pair, RAW, prompts=prompts, profile=profile)
    assert "needs the residual at every boundary" in refused(scene, few.root, "exp21")
    assert re.search("boundary 3 is not stored in this capture .it has 0, 5.*--profile full", refused(scene, few.root))
    full = tiny.capture(tmp_path / "full", pair, RAW, prompts=prompts)
    assert "no weights found" in refused(scene, full.root, file=catalog(tmp_path, replace(pair, name="other")))
    gone = replace(pair, pt=replace(pair.pt, path=tmp_path / "gone"))
    assert "gone has no config.json" in refused(scene, full.root, file=catalog(tmp_path, gone))
    wide = catalog(tmp_path, pair, "    windows: {late: [3, 9]}\n")
    assert "window late [3, 9) of" in refused(scene, full.root, file=wide) and "blocks are 0 to 4" in refused(
        scene, full.root, file=wide
    )
    assert not (full.root / "tables" / "factorial").exists() and not (full.root / "tables" / "tokens").exists()
    with pytest.raises(LakeError, match="prompt 0 has other tokens"):
        Lake(native.root, catalog=scene.catalog).sql("SELECT * FROM factorial")


def test_rows_of_another_window_give_way(scenes, tmp_path: Path) -> None:
    scene = scenes("llama")
    before = scene.lake.run("exp23").table
    shutil.copytree(scene.lake.layout.root, tmp_path / "lake")
    lake = Lake(tmp_path / "lake", catalog=catalog(tmp_path, scene.pair, "    windows: {late: [4, 5]}\n"))
    after = lake.run("exp23").table
    assert len(list((tmp_path / "lake" / "tables" / "factorial").glob("*.parquet"))) == 1
    assert before["n"].equals(after["n"]) and not np.allclose(before["estimate"], after["estimate"])


def test_models_that_answer_alike_have_no_events(tmp_path: Path) -> None:
    pair = tiny.make_pair(tmp_path / "pair")
    shutil.copytree(pair.pt.path, pair.it.path, dirs_exist_ok=True)
    layout = tiny.capture(tmp_path / "lake", pair, RAW, prompts=tiny.prompt_set(tiny.TEXTS[:3]))
    with pytest.raises(LakeError, match="exp23: nothing of pair llama qualifies on stream raw"):
        Lake(layout.root, catalog=catalog(tmp_path, pair)).run("exp23")
