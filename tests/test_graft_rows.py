"""The table `graft` against whole Hugging Face models in float64 with hooks of the test's own, and its rows by plain loops."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from actlake.capture.edit import replay
from actlake.lake import Lake
from actlake.queries.engine import passes
from actlake.queries.engine.context import Context, Scope
from actlake.queries.makers import ensure
from actlake.queries.probes.choice import choose
from actlake.queries.replayed import graft
from actlake.store.artifacts.models import read_head
from actlake.store.artifacts.streams import read_stream
from actlake.store.captures.reader import find_capture
from actlake.store.core.catalog import PairSpec
from actlake.store.core.errors import LakeError
from actlake.store.format.paths import Layout
from actlake.store.tables.sql import connect
from test_observed_rows import texts
from torch import Tensor
from transformers import AutoModelForCausalLM

SIX = ["B_early", "B_mid", "B_late", "D_early", "D_mid", "D_late"]
WINDOWS = {"early": (0, 1), "mid": (1, 2), "late": (2, 3)}  # three blocks: round(0.6 * 3) = 2
ALL_WINDOWS = {**WINDOWS, "midlate": (1, 3)}
LAYERS, SEED = 3, 42


def catalog(folder: Path, pair: PairSpec, windows: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "catalog.yaml"
    models = "".join(f"    {v}: {{path: {pair.model(v).path}}}\n" for v in ("pt", "it"))
    file.write_text(f"pairs:\n  {pair.name}:\n{models}{windows and f'    windows: {{{windows}}}' + chr(10)}")
    return file


def scope(layout: Layout, pair: str, kind: str = "teacher") -> Scope:
    return tiny.scope(pair, {v: find_capture(layout, f"{pair}-{v}", kind).stem for v in ("pt", "it")}, kind)


def table(layout: Layout, sql: str) -> pd.DataFrame:
    return connect(layout).sql(sql).df()


@pytest.fixture(scope="module")
def lakes(tmp_path_factory: pytest.TempPathFactory, pairs: Callable[[str], PairSpec]) -> Callable[[str], Lake]:
    """Family -> a lake of its pair on IT's answers."""
    root = tmp_path_factory.mktemp("grafts")

    def made(family: str) -> Lake:
        prompts = tiny.prompt_set(texts(12))
        tiny.capture(root / family / "lake", pairs(family), tiny.NATIVE, tiny.TEACHER, prompts=prompts)
        return Lake(root / family / "lake", catalog=catalog(root / family, pairs(family)))

    return cache(made)


# --- the table -------------------------------------------------------------------------------------------------------


@dataclass
class Whole:
    """Both models of a family in float64, and what their own forwards give with any MLPs exchanged."""

    family: str
    hf: dict[str, Any]

    @classmethod
    def of(cls, pair: PairSpec) -> "Whole":
        load = AutoModelForCausalLM.from_pretrained
        paths = {v: pair.model(v).path for v in ("pt", "it")}
        return cls(
            pair.name,
            {v: load(path, dtype=torch.float64, attn_implementation="eager").eval() for v, path in paths.items()},
        )

    def blocks(self, variant: str) -> Any:
        return self.hf[variant].get_submodule(tiny.FAMILIES[self.family].blocks)

    def change(self, host: str, layer: int, random: bool) -> Callable[..., Tensor]:
        donor = self.blocks("it" if host == "pt" else "pt")[layer].mlp

        def hook(_module: Any, given: tuple[Tensor], out: Tensor) -> Tensor:
            if not random:
                return donor(given[0])
            delta, x = donor(given[0]) - out, given[0] / given[0].norm(dim=-1, keepdim=True)
            draw = torch.randn(x.shape[-1], generator=torch.Generator().manual_seed(SEED + 7919 * layer)).double()
            along = (delta * x).sum(-1, keepdim=True) * x
            across = draw - (draw * x).sum(-1, keepdim=True) * x
            return out + along + (delta - along).norm(dim=-1, keepdim=True) * across / across.norm(dim=-1, keepdim=True)

        return hook

    @torch.no_grad()
    def __call__(self, host: str, tokens: np.ndarray, window: tuple[int, int] = (0, 0), random: bool = False) -> Any:
        """Residuals [n, L+1, d], MLP outputs and what entered the MLP sub-blocks [n, L, d] of one prompt."""
        found: dict[str, list[Tensor]] = {"resid": [], "mlp": [], "entering": []}
        blocks, handles = self.blocks(host), []
        for layer, block in enumerate(blocks):
            if window[0] <= layer < window[1]:
                handles.append(block.mlp.register_forward_hook(self.change(host, layer, random)))
            handles.append(block.mlp.register_forward_hook(lambda _m, _i, out: found["mlp"].append(out[0])))
            added = block.post_feedforward_layernorm if tiny.FAMILIES[self.family].post_norms else block.mlp
            handles.append(added.register_forward_hook(lambda _m, _i, out: found["entering"].append(-out[0])))
            handles.append(block.register_forward_pre_hook(lambda _m, given: found["resid"].append(given[0][0])))
        norm = self.hf[host].get_decoder().norm
        handles.append(norm.register_forward_pre_hook(lambda _m, given: found["resid"].append(given[0][0])))
        self.hf[host](torch.tensor(tokens[None].astype(np.int64)))
        for handle in handles:
            handle.remove()
        entering = [h + less for h, less in zip(found["resid"][1:], found["entering"], strict=True)]
        return found["resid"], found["mlp"], entering

    @torch.no_grad()
    def logp(self, variant: str, h: Tensor, mask: np.ndarray | None = None) -> Tensor:
        z = self.hf[variant].lm_head(self.hf[variant].get_decoder().norm(h))
        return (z if mask is None else z.masked_fill(~torch.from_numpy(mask), -torch.inf)).log_softmax(-1)


def kl(p: Tensor, q: Tensor) -> Tensor:
    return torch.where(p.exp() > 0, p.exp() * (p - q), 0.0).sum(-1)


def js(p: Tensor, q: Tensor) -> Tensor:
    middle = ((p.exp() + q.exp()) / 2).log()
    return (kl(p, middle) + kl(q, middle)) / 2


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1) / a.norm(dim=-1) / b.norm(dim=-1)


def expected(whole: Whole, lake: Lake, names: Scope, condition: str) -> pd.DataFrame:
    """Rows of one condition of the raw lens, prompt by prompt and layer by layer."""
    letter, name, *random = condition.split("_")
    host, other = ("pt", "it") if letter == "B" else ("it", "pt")
    streams = {v: read_stream(lake.layout, names.streams[v]) for v in ("pt", "it")}
    real = {v: read_head(lake.layout, f"{whole.family}-{v}")[0]["real_token"] for v in ("pt", "it")}
    rows = []
    for prompt, start in enumerate(streams[host].starts):
        tokens, n = {v: s.tokens[prompt] for v, s in streams.items()}, len(streams[host].tokens[prompt]) - start
        at = {v: slice(s.starts[prompt] - 1, s.starts[prompt] - 1 + n) for v, s in streams.items()}
        resid, mlp, entering = whole(host, tokens[host], ALL_WINDOWS[name], bool(random))
        own, theirs = whole(host, tokens[host])[0], whole(other, tokens[other])[0]
        final, target = whole.logp(host, resid[-1]), torch.tensor(tokens[host][start:].astype(np.int64))
        for boundary in range(LAYERS + 1):
            here, masked = slice(at[host].start, at[host].stop), {}
            masked["branch"], masked["own"], masked["read"] = (
                whole.logp(host, h[boundary], real[host]) for h in (resid, own, theirs)
            )
            both = real["pt"] & real["it"]
            p, q = whole.logp(host, resid[boundary])[here], final[here]
            chosen = p.gather(1, target[:, None])[:, 0]
            branch, base = masked["branch"][here], masked["own"][here]
            read = masked["read"][at[other]]
            found = {
                "kl_layer_final": kl(p, q),
                "kl_final_layer": kl(q, p),
                "entropy": -(p.exp() * p).sum(-1),
                "top1": p.argmax(-1),
                "p_target": chosen.exp(),
                "rank_target": 1 + (p > chosen[:, None]).sum(-1),
                "cos_final": cosine(resid[boundary], resid[-1])[here],
                "js_host": js(branch, base),
                "js_target": js(
                    whole.logp(host, resid[boundary], both)[here], whole.logp(other, theirs[boundary], both)[at[other]]
                ),
                "cross_kl": kl(branch, read),
                "cross_kl_host": kl(base, read),
                "js_next": js(p, whole.logp(host, resid[boundary + 1])[here]) if boundary < LAYERS else [np.nan] * n,
                "mlp_cos": cosine(mlp[boundary - 1], entering[boundary - 1])[here] if boundary else [np.nan] * n,
            }
            columns = {key: np.asarray(value) for key, value in found.items()}
            rows.append(pd.DataFrame({"prompt": prompt, "step": np.arange(n), "layer": boundary - 1, **columns}))
    return pd.concat(rows)


@pytest.mark.parametrize("family", ["llama", "olmo2"])
@pytest.mark.parametrize("condition", [*SIX, "B_midlate", "B_late_random", "D_early_random"])
def test_rows_are_those_of_whole_models_with_hooks(
    lakes: Callable, pairs: Callable, family: str, condition: str
) -> None:
    lake = lakes(family)
    names = scope(lake.layout, family)
    ensure(lake.layout, [("graft", condition, names)], catalog=lake._catalog)
    found = table(lake.layout, f"FROM graft WHERE condition = '{condition}' AND lens = 'raw'")
    wanted = expected(Whole.of(pairs(family)), lake, names, condition)
    both = found.merge(wanted, on=["prompt", "step", "layer"], suffixes=("", "_w"))
    assert len(found) == len(wanted) == len(both) and len(found) >= 12 * (LAYERS + 1)
    for name in wanted.columns[3:]:
        np.testing.assert_allclose(both[name].astype(float), both[f"{name}_w"].astype(float), atol=1e-4, err_msg=name)
    host, window = {"B": "pt", "D": "it"}[condition[0]], ALL_WINDOWS[condition.split("_")[1]]
    assert set(found["variant"]) == {host} and {(r.window_start, r.window_stop) for r in found.itertuples()} == {window}
    assert both["js_host"].max() > 1e-3  # the exchange does something


def test_tuned_rows_read_everything_through_the_hosts_probes(lakes: Callable, pairs: Callable) -> None:
    lake, whole = lakes("llama"), Whole.of(pairs("llama"))
    names = scope(lake.layout, "llama")
    ensure(lake.layout, [("graft", "D_mid_tuned", names)], catalog=lake._catalog)
    found = table(lake.layout, "FROM graft WHERE condition = 'D_mid' AND lens = 'tuned' AND layer >= 0")
    assert found[["js_host", "js_target"]].isna().all(axis=None)
    host = ("llama-it", names.streams["it"])
    chosen = choose(Context(lake.layout), host)
    streams = {v: read_stream(lake.layout, names.streams[v]) for v in ("pt", "it")}
    real = torch.from_numpy(read_head(lake.layout, "llama-it")[0]["real_token"])
    for prompt, prompt_id in enumerate(streams["it"].prompt_ids):
        probes, _ = next(chosen.readers(np.array([prompt_id])))
        its, pts = streams["it"].tokens[prompt], streams["pt"].tokens[prompt]
        (resid, *_), (theirs, *_), (own, *_) = whole("it", its, (1, 2)), whole("pt", pts), whole("it", its)
        n = len(its) - streams["it"].starts[prompt]

        def read(h: list[Tensor], boundary: int, last: int = n, probes: Any = probes) -> Tensor:
            x = h[boundary][-last - 1 : -1]
            if boundary < LAYERS:
                x = x @ probes.weight[boundary].double().T + probes.bias[boundary].double()
            return whole.logp("it", x)

        for boundary in range(1, LAYERS + 1):
            part = found[(found["prompt"] == prompt) & (found["layer"] == boundary - 1)].sort_values("step")
            p, base, other = (read(h, boundary) for h in (resid, own, theirs))
            p_real, base_real, other_real = (x.masked_fill(~real, -torch.inf).log_softmax(-1) for x in (p, base, other))
            np.testing.assert_allclose(part["kl_layer_final"], kl(p, read(resid, LAYERS)), atol=1e-4)
            np.testing.assert_allclose(part["cross_kl"], kl(p_real, other_real), atol=1e-4)
            np.testing.assert_allclose(part["cross_kl_host"], kl(base_real, other_real), atol=1e-4)


def test_the_hosts_own_mlps_change_nothing_and_blocks_may_be_small(
    tmp_path: Path, pairs: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = pairs("llama")
    twins = replace(pair, it=replace(pair.it, path=pair.pt.path))
    layout = tiny.capture(tmp_path / "lake", twins, tiny.NATIVE, tiny.TEACHER, prompts=tiny.prompt_set(texts(12)))
    names = scope(layout, "llama")
    monkeypatch.setattr(passes, "BLOCK_BYTES", 20_000)
    needs = [("graft", kind, names) for kind in SIX] + [("lens", "raw", names), ("pair_lens", "", names)]
    ensure(layout, [*needs, ("delta", "", names)], catalog=catalog(tmp_path, twins))
    both = table(
        layout,
        "SELECT g.*, l.kl_layer_final AS kl, d.mlp_cos AS cos, p.js FROM graft g"
        " JOIN lens l USING (variant, prompt, step, layer) JOIN delta d USING (variant, prompt, step, layer)"
        " JOIN pair_lens p USING (prompt, step, layer)",
    )
    assert len(both) == 6 * table(layout, "SELECT count(*) FROM pair_lens").iloc[0, 0] and both["js"].max() > 1e-3
    assert both["js_host"].max() < 1e-5
    for found, stored in (
        ("kl_layer_final", "kl"),
        ("mlp_cos", "cos"),
        ("js_target", "js"),
        ("cross_kl", "cross_kl_host"),
    ):
        np.testing.assert_allclose(both[found], both[stored], atol=1e-5, err_msg=found)


PIPELINES = {"A": ("pt", (0, 0)), "B_late": ("pt", (4, 6)), "C": ("it", (0, 0)), "D_late": ("it", (4, 6))}


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> tuple[Lake, PairSpec]:
    """A pair of six blocks: the final 20 % are blocks 4 and 5."""
    root = tmp_path_factory.mktemp("deep")
    pair = tiny.make_pair(root / "pair", num_hidden_layers=6)
    tiny.capture(root / "lake", pair, tiny.NATIVE, tiny.TEACHER, prompts=tiny.prompt_set(texts(12)))
    return Lake(root / "lake", catalog=catalog(root, pair)), pair


def test_mechanism_by_autograd_on_whole_models(deep: tuple[Lake, PairSpec]) -> None:
    lake, whole = deep[0], Whole.of(deep[1])
    numbers = lake.run("exp14").table.set_index("measure")["estimate"]
    names, late = scope(lake.layout, "llama"), (4, 5)
    found = table(lake.layout, "FROM mechanism ORDER BY prompt, step, layer")
    means: dict[str, list[float]] = {}
    for condition, (host, window) in PIPELINES.items():
        mine, stream = found[found["condition"] == condition], read_stream(lake.layout, names.streams[host])
        assert set(mine["variant"]) == {host} and set(mine["layer"]) == {*late}
        for prompt, (tokens, start) in enumerate(zip(stream.tokens, stream.starts, strict=True)):
            resid, mlp, _ = whole(host, tokens, window)
            for step in range(len(tokens) - start):
                at, token = start - 1 + step, int(tokens[start + step])
                final = whole.logp(host, resid[-1][at])
                here = mine[(mine["prompt"] == prompt) & (mine["step"] == step)].set_index("layer")
                for layer in late:
                    u, h = mlp[layer][at], resid[layer + 1][at]

                    def along(
                        value: Callable[[Tensor], Tensor], h: Tensor = h, u: Tensor = u, host: str = host
                    ) -> float:
                        x = h.clone().requires_grad_()
                        value(whole.hf[host].lm_head(whole.hf[host].model.norm(x))).backward()
                        return float(u @ x.grad / x.grad.norm())

                    assert here.loc[layer, "support_teacher"] == pytest.approx(along(lambda z, t=token: z[t]), abs=1e-4)
                    assert here.loc[layer, "anti_top1"] == pytest.approx(-along(lambda z: z.max()), abs=1e-4)
                    if layer == 4:
                        kl_to = along(lambda z, p=final: (p.exp() * (p - z.log_softmax(-1))).sum())
                        assert here.loc[layer, "anti_kl"] == pytest.approx(kl_to, abs=1e-4)
                assert np.isnan(here.loc[5, "anti_kl"])
                means.setdefault(condition, []).append(here["support_teacher"].mean())
        assert numbers[f"support_teacher_{condition.lower()}"] == pytest.approx(np.mean(means[condition]), abs=1e-5)


def test_mechanism_numbers_by_plain_loops(deep: tuple[Lake, PairSpec]) -> None:
    lake, pairs = deep[0], []
    numbers = lake.run("exp14").table.set_index("measure")["estimate"]
    pushed, edited, lens = (
        table(lake.layout, f"FROM {name} WHERE layer >= 4") for name in ("mechanism", "graft", "lens")
    )
    streams = scope(lake.layout, "llama").streams
    for condition, (host, window) in PIPELINES.items():
        own = lens[(lens["stream"] == streams[host]) & (lens["lens"] == "raw") & (lens["step"] >= 0)]
        after = edited[(edited["condition"] == condition) & (edited["lens"] == "raw")] if window[1] else own
        keys = ["prompt", "step"]
        kl = after.groupby(keys)["kl_layer_final"].mean()
        pairs.append(pd.concat([pushed[pushed["condition"] == condition].groupby(keys)["anti_kl"].mean(), kl], axis=1))
        if window[1]:
            gain = own.groupby(keys)["rank_target"].mean() - after.groupby(keys)["rank_target"].mean()
            assert numbers[f"rank_gain_{condition.lower()}"] == pytest.approx(gain.mean(), abs=1e-6)
    both = pd.concat(pairs)
    assert numbers["correlation_anti_kl"] == pytest.approx(np.corrcoef(both.T)[0, 1], abs=1e-6)


# --- rows ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lake(lakes: Callable[[str], Lake]) -> Lake:
    return lakes("llama")


@pytest.fixture(scope="module")
def tokens(lake: Lake) -> pd.DataFrame:
    """Everything a row may ask of a condition, lens, prompt, step and layer, with the unedited host's values."""
    for row in ("exp11", "exp14", "exp16_BD", "exp19B", "exp23_KL"):
        lake.run(row)
    edited, lens, delta, apart = (
        table(lake.layout, f"FROM {name} WHERE layer >= 0") for name in ("graft", "lens", "delta", "pair_lens")
    )
    streams = scope(lake.layout, "llama").streams.values()
    lens, delta = lens[lens["stream"].isin(streams)], delta[delta["stream"].isin(streams)]
    place = ["prompt", "step", "layer"]
    both = edited.merge(
        lens[["variant", "lens", *place, "kl_layer_final"]], on=["variant", "lens", *place], suffixes=("", "_own")
    )
    both = both.merge(delta[["variant", *place, "mlp_cos"]], on=["variant", *place], suffixes=("", "_own"))
    both = both.merge(apart[[*place, "js"]], on=place)
    assert len(both) == len(edited) == len(edited.drop_duplicates(["condition", "lens", "prompt", "step", "layer"]))
    return both


def numbers(lake: Lake, row: str) -> dict[str, float]:
    found = lake.run(row).table
    found = found[~found["measure"].str.startswith("correlation")]
    assert (found["n"] == 12).all() and found["low"].le(found["estimate"] + 1e-6).all()
    return dict(found[found["layer"].isna()].set_index("measure")["estimate"])


def groups(tokens: pd.DataFrame, condition: str, lens: str) -> Iterator[pd.DataFrame]:
    """The layers of each token under a condition, ascending."""
    mine = tokens[(tokens["condition"] == condition) & (tokens["lens"] == lens)]
    for _, group in mine.groupby(["prompt", "step"]):
        yield group.sort_values("layer")


def late(group: pd.DataFrame) -> pd.DataFrame:
    return group[group["layer"] >= int(0.8 * LAYERS)]


def inside(group: pd.DataFrame) -> pd.DataFrame:
    return group[(group["layer"] >= group["window_start"]) & (group["layer"] < group["window_stop"])]


def committed(values: pd.Series) -> int:
    """First layer from which all values stay below 0.1."""
    layer = LAYERS
    while layer and values.iloc[layer - 1] < 0.1:
        layer -= 1
    return layer


def gap(group: pd.DataFrame) -> float:
    return float((group["kl_layer_final"] - group["kl_layer_final_own"]).mean())


@pytest.mark.parametrize("lens", ["raw", "tuned"])
def test_exp11_and_exp14_by_plain_loops(lake: Lake, tokens: pd.DataFrame, lens: str) -> None:
    eleven, fourteen = numbers(lake, "exp11"), numbers(lake, "exp14")
    for condition in SIX:
        of, window = [*groups(tokens, condition, lens)], condition.split("_")[1]
        final20, own = np.mean([gap(late(g)) for g in of]), np.mean([gap(inside(g)) for g in of])
        dcos = np.mean([(late(g)["mlp_cos"] - late(g)["mlp_cos_own"]).mean() for g in of])
        name = f"{condition.lower()}_{lens}"
        assert np.isclose(fourteen[f"dkl_final20_{name}"], final20, atol=1e-6)
        assert np.isclose(fourteen[f"dkl_window_{name}"], own, atol=1e-6)
        assert np.isclose(fourteen[f"dcos_{condition.lower()}"], dcos, atol=1e-6)
        base = np.mean([late(g)["kl_layer_final_own"].mean() for g in of])
        assert np.isclose(fourteen[f"kl_final20_{'a' if condition[0] == 'B' else 'c'}_{lens}"], base, atol=1e-6)
        if condition[0] == "B":
            cross = np.mean([(late(g)["cross_kl"] - late(g)["cross_kl_host"]).mean() for g in of])
            moved = np.mean([committed(g["kl_layer_final"]) - committed(g["kl_layer_final_own"]) for g in of])
            assert np.isclose(eleven[f"dkl_final20_{window}_{lens}"], final20, atol=1e-6)
            assert np.isclose(eleven[f"dkl_window_{window}_{lens}"], own, atol=1e-6)
            assert np.isclose(eleven[f"dcross_kl_{window}_{lens}"], cross, atol=1e-6)
            assert np.isclose(eleven[f"dcommit_{window}_{lens}"], moved, atol=1e-6)
            assert np.isclose(eleven[f"dcos_{window}"], dcos, atol=1e-6)


def test_exp23_KL_by_plain_loops(lake: Lake, tokens: pd.DataFrame) -> None:
    found = numbers(lake, "exp23_KL")
    for host, letter in (("pt", "B"), ("it", "D")):
        cells = [
            [late(g)["kl_layer_final"].mean() for g in groups(tokens, f"{letter}_{w}", "raw")]
            for w in ("mid", "late", "midlate")
        ]
        none = np.mean([late(g)["kl_layer_final_own"].mean() for g in groups(tokens, f"{letter}_mid", "raw")])
        mid, last, both = map(np.mean, cells)
        assert np.isclose(found[f"late_{host}"], (last - none + both - mid) / 2, atol=1e-6)
        assert np.isclose(found[f"mid_{host}"], (mid - none + both - last) / 2, atol=1e-6)
        assert np.isclose(found[f"interaction_{host}"], both - mid - last + none, atol=1e-6)
        assert np.isclose(found[f"alone_late_{host}"], last - none, atol=1e-6)
        assert np.isclose(found[f"with_late_mid_{host}"], both - last, atol=1e-6)
        assert np.isclose(found[f"kl_final20_{host}"], none, atol=1e-6)


def test_exp16_BD_by_plain_loops(lake: Lake, tokens: pd.DataFrame) -> None:
    found, closer = numbers(lake, "exp16_BD"), {}
    regions = {
        "full": lambda g: g,
        "pre": lambda g: g[g["layer"] < round(0.6 * LAYERS)],
        "final20": late,
        "window": inside,
    }
    for condition in SIX:
        for region, pick in regions.items():
            of = [pick(g) for g in groups(tokens, condition, "raw")]
            name = f"{condition.lower()}_{region}"
            for measure in ("js_target", "js_host"):
                values = pd.Series([g[measure].mean() for g in of], [g["prompt"].iloc[0] for g in of])
                assert np.isclose(found[f"{measure}_{name}"], values.mean(), atol=1e-6)
                prompts = values.groupby(level=0).mean().mean()
                assert np.isclose(found[f"{measure}_{name}_prompt_mean"], prompts, atol=1e-6)
            closer[name] = np.mean([(g["js"] - g["js_target"]).mean() for g in of])
            assert np.isclose(found[f"closer_{name}"], closer[name], atol=1e-6)
    difference = closer["d_mid_final20"] - closer["d_late_final20"]
    assert np.isclose(found["closer_d_mid_late_final20"], difference, atol=1e-6)
    assert np.isclose(found["js_ac_full"], numbers(lake, "exp16")["js_ac_full"], atol=1e-6)
    assert found["js_host_b_late_pre"] == 0


@pytest.mark.parametrize("lens", ["raw", "tuned"])
def test_exp19B_by_plain_loops(lake: Lake, tokens: pd.DataFrame, lens: str) -> None:
    found = numbers(lake, "exp19B")
    for window in WINDOWS:
        mean = {}
        for kind, condition in (("true", f"B_{window}"), ("random", f"B_{window}_random")):
            of = [*groups(tokens, condition, lens)]
            values = pd.Series([gap(late(g)) for g in of], [g["prompt"].iloc[0] for g in of])
            mean[kind] = values.groupby(level=0).mean()
            assert np.isclose(found[f"{kind}_{window}_{lens}"], mean[kind].mean(), atol=1e-6)
        assert np.isclose(found[f"excess_{window}_{lens}"], (mean["true"] - mean["random"]).mean(), atol=1e-6)


def test_rows_share_conditions_and_a_second_question_costs_nothing(
    lakes: Callable, pairs: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = tiny.capture(
        tmp_path / "lake", pairs("llama"), tiny.NATIVE, tiny.TEACHER, prompts=tiny.prompt_set(texts(12))
    )
    lake = Lake(layout.root, catalog=catalog(tmp_path, pairs("llama")))
    ran, whole = [], replay.replay_whole

    def counted(model: Any, start: Any, edits: Any, **options: Any) -> Any:
        ran.append((model.name, start.boundary, type(edits[0]).__name__))
        return whole(model, start, edits, **options)

    monkeypatch.setattr(replay, "replay_whole", counted)
    lake.run("exp11")
    assert ran == [("llama-pt", start, "Graft") for start, _ in WINDOWS.values()]  # raw and tuned of one replay
    ran.clear()
    made = Counter(path.parent.name for path in lake.run("exp14").computed)
    made.pop("llama-it")  # IT's probes, which exp11 does not read; nor its lens and delta
    assert made == {"graft": 6, "mechanism": 4, "lens": 2, "delta": 1}  # D three times raw and tuned
    assert ran == [("llama-pt", 2, "Graft"), *(("llama-it", start, "Graft") for start, _ in WINDOWS.values())]
    ran.clear()
    lake.run("exp16_BD")
    lake.run("exp11")
    assert not ran
    # Other windows are other content, and take the place of the rows before.
    other = Lake(layout.root, catalog=catalog(tmp_path / "other", pairs("llama"), "late: [1, 3]"))
    assert other.run("exp11").computed and ran == [("llama-pt", 1, "Graft")]
    starts = "SELECT DISTINCT window_start FROM graft WHERE condition = 'B_late' AND lens = 'raw'"
    assert table(layout, starts).iloc[:, 0].tolist() == [1]


def test_free_sql_gets_the_six_conditions(lake: Lake) -> None:
    found = lake.sql("SELECT DISTINCT condition FROM graft WHERE lens = 'raw'").df()["condition"]
    assert {*SIX} <= {*found}


# --- what can't be answered ------------------------------------------------------------------------------------------


def refused(lake: Lake, words: str, row: str = "exp11") -> None:
    with pytest.raises(LakeError) as caught:
        lake.run(row, pair="llama")
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_missing_is_named(tmp_path: Path, pairs: Callable) -> None:
    pair, prompts = pairs("llama"), tiny.prompt_set(texts(12))
    layout = tiny.capture(tmp_path / "lake", pair, tiny.NATIVE, prompts=prompts)
    file = catalog(tmp_path, pair)
    refused(Lake(layout.root, catalog=file), "run `actlake capture llama --stream teacher --prompts tiny`")
    native = scope(layout, "llama", "native")
    with pytest.raises(LakeError, match="are different answers; .*`actlake capture llama --stream teacher`"):
        graft.graft_table(Context(layout, catalog=file), native, "B_late")
    with pytest.raises(LakeError, match="expected B .* or D"):
        graft.graft_table(Context(layout, catalog=file), native, "A_late")
    tiny.capture(layout.root, pair, tiny.TEACHER, prompts=prompts)
    refused(Lake(layout.root), "model llama-pt: no weights found; looked in")
    wrong = catalog(tmp_path / "wrong", pair, "late: [2, 9]")
    refused(Lake(layout.root, catalog=wrong), "pair llama: window late [2, 9) of")
    lean = replace(tiny.FULL, boundaries=(0, 2, 3))
    layout = tiny.capture(tmp_path / "lean", pair, tiny.NATIVE, tiny.TEACHER, prompts=prompts, profile=lean)
    refused(Lake(layout.root, catalog=file), "table graft needs the residual at every boundary", "exp19B")


def test_captures_without_mlp_outputs_answer_what_needs_none(tmp_path: Path, pairs: Callable) -> None:
    bare = replace(tiny.FULL, sites=("resid",))
    layout = tiny.capture(
        tmp_path / "lake", pairs("llama"), tiny.NATIVE, tiny.TEACHER, prompts=tiny.prompt_set(texts(12)), profile=bare
    )
    lake = Lake(layout.root, catalog=catalog(tmp_path, pairs("llama")))
    found = lake.run("exp11").table
    assert not found["measure"].str.startswith("dcos").any() and found["estimate"].notna().all()
    cosines = table(layout, "SELECT condition, layer, count(mlp_cos) AS n FROM graft WHERE lens = 'raw' GROUP BY ALL")
    late = cosines[cosines["condition"] == "B_late"].set_index("layer")["n"]
    assert late[2] > 0 and not late[[-1, 0, 1]].any()
