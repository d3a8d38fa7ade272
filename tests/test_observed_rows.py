"""Rows L3, L8, L9, 0A, 0B, 0H, 1A and exp10 against Hugging Face's own forward in float64, prompt by prompt."""

import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import skdim
import tiny
import torch
from actlake.analyze.lens.tuned_lens import Probes
from actlake.analyze.tuned.folds import fold_of
from actlake.analyze.tuned.recipes import Adam
from actlake.lake import Lake
from actlake.queries.answer import estimates
from actlake.queries.engine import passes
from actlake.queries.engine.context import Context
from actlake.queries.probes import choice as probe_choice
from actlake.queries.probes.choice import choose
from actlake.queries.rows.registry import find
from actlake.queries.tables.directions import directions_table
from actlake.queries.tables.per_prompt import last_prompt_tokens
from actlake.store.artifacts.directions import read_directions
from actlake.store.artifacts.streams import read_stream
from actlake.store.artifacts.weights import write_weights
from actlake.store.captures.reader import capture_names, find_capture
from actlake.store.core.catalog import PairSpec, StreamSpec
from actlake.store.core.errors import LakeError
from actlake.store.format.paths import Layout
from actlake.store.format.shards import Grid
from actlake.store.tables.sql import connect
from asking import answer_all
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from sklearn.linear_model import Ridge
from transformers import AutoModelForCausalLM

WORDS = ["cat", "dog", "mat", "log", "rain", "plain", "the", "on", "over", "ran", "sat", "fell", "while", "and"]
REVERSE = StreamSpec("reverse", "native", "pt", 6)
PROFILE = replace(tiny.FULL, sites=("resid", "mlp_out", "attn_entropy"))
LAYERS, D = 3, 32


def texts(count: int) -> list[tuple[str, str, str]]:
    rng = np.random.default_rng(0)
    return [(f"p{i}", "FACT", " ".join(rng.choice(WORDS, 1 + i % 6))) for i in range(count)]


@pytest.fixture(scope="module", autouse=True)
def quick_training() -> Iterator[None]:
    """Probes are trained briefly; what they predict does not matter here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probe_choice, "DEFAULT", Adam(batch=32, steps=20, check_every=10, peak=1e-2))
        yield


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory, llama: PairSpec) -> Lake:
    """40 prompts of the tiny pair on its own and on each other's answers."""
    root = tmp_path_factory.mktemp("observed") / "lake"
    streams = (tiny.NATIVE, tiny.TEACHER, REVERSE)
    tiny.capture(root, llama, *streams, profile=PROFILE, prompts=tiny.prompt_set(texts(40)), batch=16)
    return Lake(root)


class Forward:
    """One model in float64, and what its own forward gives for every prompt of a captured stream."""

    def __init__(self, folder: Path):
        self.hf = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()
        self.mlp: list[torch.Tensor] = []
        for block in self.hf.model.layers:
            block.mlp.register_forward_hook(lambda _m, _i, out: self.mlp.append(out[0]))
        # The last of the library's hidden states is normed already; what enters the norm is the residual.
        self.hf.model.norm.register_forward_pre_hook(lambda _m, given: setattr(self, "last", given[0][0]))

    @torch.no_grad()
    def __call__(self, tokens: np.ndarray) -> dict[str, np.ndarray]:
        self.mlp.clear()
        found = self.hf(torch.tensor(tokens[None].astype(np.int64)), output_hidden_states=True, output_attentions=True)
        hidden = [*(h[0] for h in found.hidden_states[1:-1]), self.last]
        logp = self.hf.lm_head(self.hf.model.norm(self.last)).log_softmax(-1)
        return {
            "resid": torch.stack(hidden, 1).numpy(),
            "mlp": torch.stack(self.mlp, 1).numpy(),
            "logp": logp.numpy(),
            "attention": torch.stack([a[0] for a in found.attentions]).numpy(),
        }


class Reference:
    """Every prompt of every capture, run alone: (variant, recipe) -> per prompt what `Forward` gives, tokens and P."""

    def __init__(self, lake: Lake, pair: PairSpec):
        self.layout = lake.layout
        self.models = {"pt": Forward(pair.pt.path), "it": Forward(pair.it.path)}
        self.runs = cache(self._runs)

    def _runs(self, variant: str, recipe: str) -> list[dict[str, np.ndarray]]:
        names = capture_names(self.layout, f"llama-{variant}")
        stream = read_stream(self.layout, next(names[name] for name in sorted(names) if name.startswith(f"{recipe}-")))
        return [
            {**self.models[variant](tokens), "tokens": tokens, "start": start}
            for tokens, start in zip(stream.tokens, stream.starts, strict=True)
        ]

    def told(self, variant: str) -> np.ndarray:
        return np.array([len(r["tokens"]) - r["start"] for r in self.runs(variant, "native")])

    def difference(self, recipe: str, counts: np.ndarray) -> np.ndarray:
        """IT - PT of the mean MLP output over the first `counts` generated tokens, [records, layers, d]."""
        means = {
            v: [
                r["mlp"][r["start"] : r["start"] + n].mean(0)
                for r, n in zip(self.runs(v, recipe), counts, strict=True)
                if n
            ]
            for v in ("pt", "it")
        }
        return np.stack(means["it"]) - np.stack(means["pt"])

    def own(self) -> tuple[np.ndarray, np.ndarray]:
        """Record differences on the models' own answers and the tokens behind each; METHODS 5.1."""
        shortest = np.minimum(self.told("pt"), self.told("it"))
        counts = np.where(shortest >= 5, np.minimum(shortest, 200) - 1, 0)
        return self.difference("native", counts), counts


@pytest.fixture(scope="module")
def reference(observed: Lake, llama: PairSpec) -> Reference:
    return Reference(observed, llama)


@pytest.fixture(scope="module")
def rows(observed: Lake, llama: PairSpec, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], pd.DataFrame]:
    """Row -> its table."""
    lake = Lake(observed.layout.root, catalog=catalog(tmp_path_factory.mktemp("catalog"), llama))
    return cache(lambda row: lake.run(row, pair="llama").table)


def catalog(folder: Path, pair: PairSpec, it: Path | None = None) -> Path:
    file = folder / "catalog.yaml"
    file.write_text(f"pairs:\n  llama:\n    pt: {{path: {pair.pt.path}}}\n    it: {{path: {it or pair.it.path}}}\n")
    return file


def value(table: pd.DataFrame, measure: str, layer: int | None = None, **dims: object) -> float:
    chosen = (table["measure"] == measure) & (
        table["layer"].isna() if layer is None else table["layer"].eq(layer).fillna(False)
    )
    for name, wanted in dims.items():
        chosen &= table[name] == wanted
    assert chosen.sum() == 1, (measure, layer, dims)
    return float(table.loc[chosen, "estimate"].iloc[0])


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x)


def test_geometry_of_last_prompt_tokens(rows: Callable, reference: Reference) -> None:
    found, late = rows("L8"), {}
    for variant in ("pt", "it"):
        for layer in range(LAYERS):
            x = np.stack([r["resid"][r["start"] - 1, layer] for r in reference.runs(variant, "native")])
            lam = np.linalg.svd(x - x.mean(0), compute_uv=False) ** 2
            late[variant] = lam.sum() ** 2 / (lam**2).sum()
            assert value(found, "participation_ratio", layer, variant=variant) == pytest.approx(late[variant], rel=1e-3)
            distinct = np.unique(x.round(4), axis=0)
            twonn = skdim.id.TwoNN().fit(distinct).dimension_
            assert value(found, "twonn", layer, variant=variant) == pytest.approx(twonn, rel=1e-2)
    # floor(0.8 * 3) = 2: the late mean is the last layer alone.
    assert value(found, "late_participation_ratio", variant="it - pt") == pytest.approx(
        late["it"] - late["pt"], abs=1e-2
    )
    lines = found[found["measure"] == "late_participation_ratio"]
    assert (lines["low"] < lines["high"]).all() and set(lines["n"]) == {40} and set(lines["unit"]) == {"prompts"}


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 3)), min_size=1, max_size=6), st.integers(0, 5))
def test_last_prompt_tokens_with_and_without_continuation(lengths: list[tuple[int, int]], first: int) -> None:
    prompt, step, want, at = [], [], [], 0
    for p, (start, told) in enumerate(lengths, first):
        size = start + told
        prompt += [p] * size
        step += [q - start + 1 if start - 1 <= q < size - 1 else -1 for q in range(size)]
        want.append(at + start - 1)
        at += size
    assert last_prompt_tokens(np.array(prompt), np.array(step)).tolist() == want


def test_embedding_of_one_token_is_a_point(observed: Lake, rows: Callable) -> None:
    rows("L8")
    undefined = observed.sql(
        "SELECT variant, count(value), count(*) FROM geometry WHERE layer = -1 GROUP BY variant ORDER BY variant"
    ).fetchall()
    variant, defined, rows_ = undefined[0]
    assert (variant, defined) == ("it", 0) and rows_ >= 8 * 101  # the template ends in one token for every prompt
    assert observed.sql("SELECT count(*) FROM geometry WHERE isnan(value)").fetchall() == [(0,)]


def test_attention_entropy(rows: Callable, reference: Reference) -> None:
    found, mean = rows("L9"), {}
    for variant in ("pt", "it"):
        entropy, share = [], []
        for run in reference.runs(variant, "native"):
            a = run["attention"][:, :, run["start"] - 1, : run["start"]]
            h = -np.where(a > 0, a * np.log(np.where(a > 0, a, 1)), 0).sum(-1).mean(-1)
            entropy.append(h)
            share.append(h / np.log(run["start"]) if run["start"] > 1 else np.full(LAYERS, np.nan))
        mean[variant] = np.mean(entropy)
        for layer in range(LAYERS):
            assert value(found, "entropy", layer, variant=variant) == pytest.approx(
                np.mean(entropy, 0)[layer], abs=1e-5
            )
        assert value(found, "mean_entropy_norm", variant=variant) == pytest.approx(np.nanmean(share), abs=1e-5)
    assert value(found, "mean_entropy", variant="it - pt") == pytest.approx(mean["it"] - mean["pt"], abs=1e-5)
    assert set(found.loc[found["measure"] == "mean_entropy", "method"]) == {"BCa"}


def test_weight_change(rows: Callable, llama: PairSpec) -> None:
    found = rows("L3")
    pt, it = (load_file(spec.path / "model.safetensors") for spec in (llama.pt, llama.it))
    per_layer = []
    for layer in range(LAYERS):
        names = [name for name in pt if name.startswith(f"model.layers.{layer}.mlp.")]
        change = sum(float((it[n].double() - pt[n].double()).square().sum()) for n in names)
        per_layer.append((change / sum(pt[n].numel() for n in names)) ** 0.5)
        assert value(found, "rms", layer, part="mlp") == pytest.approx(per_layer[-1], rel=1e-5)
    assert value(found, "mlp_max") == pytest.approx(max(per_layer), rel=1e-5)
    assert value(found, "mlp_argmax") == int(np.argmax(per_layer))
    onset = round(0.6 * len(per_layer))
    late_early = np.mean(per_layer[onset:]) / np.mean(per_layer[:onset])
    assert value(found, "mlp_late_early") == pytest.approx(late_early, rel=1e-5)
    assert not (found["part"] == "router").any()  # gate_proj of a dense model is none
    head = (it["lm_head.weight"].double() - pt["lm_head.weight"].double()).square().mean().sqrt()
    assert value(found, "rms", part="lm_head") == pytest.approx(float(head), rel=1e-5)


def test_stability_and_stored_directions(rows: Callable, observed: Lake, reference: Reference) -> None:
    found = rows("0A")
    difference, counts = reference.own()
    kept, n = counts[counts > 0], len(difference)
    assert n >= 30
    arrays, recipe = read_directions(next((observed.layout.root / "directions/llama-pt--llama-it").glob("own-*.zarr")))
    assert recipe["tokens"] == kept.sum()
    for layer in range(LAYERS):
        d = difference[:, layer]
        np.testing.assert_allclose(arrays["d_mean"][layer], unit(kept @ d), atol=1e-4)
        np.testing.assert_allclose(arrays["d_record"][layer], unit(d.mean(0)), atol=1e-4)
        rng = np.random.default_rng(42)
        draws = np.stack([unit(d[rng.choice(n, n)].mean(0)) for _ in range(50)])
        cosines = draws @ unit(d.mean(0))
        assert value(found, "canonical", layer) == pytest.approx(cosines.mean(), abs=1e-4)
        pairwise = [draws[i] @ draws[j] for i in range(50) for j in range(i)]
        assert value(found, "pairwise", layer) == pytest.approx(np.mean(pairwise), abs=1e-4)
        if layer == 2:  # round(0.6 * 3) = 2: the only corrective layer
            assert value(found, "corrective_pairwise_min") == pytest.approx(min(pairwise), abs=1e-4)
            assert value(found, "corrective_canonical_min") == pytest.approx(cosines.min(), abs=1e-4)
        rng = np.random.default_rng(42)
        subset = [unit(d[rng.choice(n, 25, replace=False)].mean(0)) @ unit(d.mean(0)) for _ in range(20)]
        assert value(found, "subset", layer, records="25") == pytest.approx(np.mean(subset), abs=1e-4)


def test_spread_of_the_difference(rows: Callable, reference: Reference) -> None:
    found, (difference, counts) = rows("1A"), reference.own()
    means = [unit(counts[counts > 0] @ difference[:, layer]) for layer in range(LAYERS)]
    for layer in range(LAYERS):
        d = difference[:, layer]
        s = np.linalg.svd(d - d.mean(0), compute_uv=False) ** 2
        assert value(found, "pc5", layer) == pytest.approx(s[:5].sum() / s.sum(), abs=1e-4)
        assert value(found, "mean_share", layer) == pytest.approx(
            (d.mean(0) ** 2).sum() / (d**2).sum(1).mean(), abs=1e-4
        )
    assert value(found, "early_corrective") == pytest.approx(means[1] @ means[2], abs=1e-4)


def test_matched_tokens(rows: Callable, reference: Reference) -> None:
    found, (difference, counts) = rows("0B"), reference.own()
    for measure, recipe, teller in (("matched", "teacher", "it"), ("reverse", "reverse", "pt")):
        forced = reference.difference(recipe, np.where(counts, np.minimum(reference.told(teller), 80), 0))
        for layer in range(LAYERS):
            want = unit(forced[:, layer].mean(0)) @ unit(counts[counts > 0] @ difference[:, layer])
            assert value(found, measure, layer) == pytest.approx(want, abs=1e-4)
        line = found[(found["measure"] == f"corrective_{measure}")].iloc[0]
        assert line["low"] < line["estimate"] < line["high"] and line["n"] == (counts > 0).sum()


def test_calibration_splits(rows: Callable, reference: Reference) -> None:
    found, (difference, counts) = rows("0H"), reference.own()
    nats = []
    for run in reference.runs("pt", "teacher"):
        told = np.arange(run["start"], len(run["tokens"]))
        nats.append(-run["logp"][told - 1, run["tokens"][told]].mean())
    order = np.argsort(-np.array(nats)[counts > 0], kind="stable")
    half = len(order) // 2
    top, bottom = order[:half], order[len(order) - half :]
    for layer in range(LAYERS):
        d = difference[:, layer]
        want = unit(d[top].mean(0)) @ unit(d[bottom].mean(0))
        assert value(found, "cosine", layer, sets="top_bottom") == pytest.approx(want, abs=1e-3)
        want = unit(d[top].mean(0)) @ unit(d.mean(0))
        assert value(found, "cosine", layer, sets="top_all") == pytest.approx(want, abs=1e-3)
    assert value(found, "corrective_top_bottom") == value(found, "cosine", 2, sets="top_bottom")


@pytest.mark.parametrize("lens", ["raw", "tuned"])
def test_direction_of_later_convergence(lens: str, rows: Callable, observed: Lake, reference: Reference) -> None:
    found, (difference, counts) = rows("exp10"), reference.own()
    runs = {v: reference.runs(v, "teacher") for v in ("pt", "it")}
    probes = {v: trained(observed, v) if lens == "tuned" else [None, None] for v in runs}
    fold = fold_of([name for name, *_ in texts(40)], 2)
    x, y, held = [], [], np.random.default_rng(42).permutation(40)[:8]
    gradient = np.zeros((LAYERS, D))
    for pt, it, part in zip(runs["pt"], runs["it"], fold, strict=True):
        told = {"pt": pt["resid"][pt["start"] :], "it": it["resid"][it["start"] :]}
        kl = {v: kl_and_gradient(reference.models[v].hf, resid, probes[v][part]) for v, resid in told.items()}
        change = kl["it"][0] - kl["pt"][0]
        if len(change) > 4:
            change = np.clip(change, *np.percentile(change, [5, 95], axis=0))
        x.append(told["it"] - told["pt"])
        y.append(change)
        gradient += kl["it"][1]
    test = np.concatenate([np.full(len(part), p in held) for p, part in enumerate(y)])
    x, y = np.concatenate(x), np.concatenate(y)
    for layer in range(LAYERS):
        assert value(found, f"dkl_{lens}", layer) == pytest.approx(y[:, layer].mean(), abs=1e-4)
    for layer in range(LAYERS - 1):
        everything, fitted = Ridge(1.0).fit(x[:, layer], y[:, layer]), Ridge(1.0).fit(x[~test, layer], y[~test, layer])
        want = {
            "in_sample": everything.score(x[:, layer], y[:, layer]),
            "train": fitted.score(x[~test, layer], y[~test, layer]),
            "held_out": fitted.score(x[test, layer], y[test, layer]),
        }
        for part, score in want.items():
            assert value(found, f"r2_{lens}", layer, part=part) == pytest.approx(score, abs=2e-3)
        mean, conv = unit(counts[counts > 0] @ difference[:, layer]), unit(everything.coef_)
        cosines = {"conv_mean": conv @ mean, "mean_grad": unit(gradient[layer]) @ mean}
        for part, cosine in cosines.items():
            assert value(found, f"cosine_{lens}", layer, part=part) == pytest.approx(cosine, abs=2e-3)
        assert value(found, "dh_norm", layer) == pytest.approx(np.linalg.norm(x[:, layer], axis=-1).mean(), rel=1e-4)
    lines = found.set_index(["measure", "part", "layer"])["n"]
    assert lines[f"r2_{lens}", "held_out", 0] == 8 and lines[f"r2_{lens}", "train", 0] == 32


def trained(lake: Lake, variant: str) -> list[Probes]:
    """The probes that the row used, by fold."""
    names = (f"llama-{variant}", find_capture(lake.layout, f"llama-{variant}", "native").stem)
    return choose(Context(lake.layout), names).folds


def kl_and_gradient(hf: torch.nn.Module, resid: np.ndarray, probes: Probes | None) -> tuple[np.ndarray, np.ndarray]:
    """KL(p_L || p_l) [n, layers] and the sum over tokens of its gradient in h_l, by autograd, [layers, d]."""
    h = torch.tensor(resid, requires_grad=True)
    read = h
    if probes is not None:  # boundary l + 1 is layer l; the last one has no probe
        weight, bias = probes.weight[1:].double(), probes.bias[1:].double()
        read = torch.cat([torch.einsum("nld,led->nle", h[:, :-1], weight) + bias, h[:, -1:]], dim=1)
    logp = hf.lm_head(hf.model.norm(read)).log_softmax(-1)
    final = logp[:, -1:].detach()
    kl = (final.exp() * (final - logp)).sum(-1)
    kl.sum().backward()
    return kl.detach().numpy(), h.grad.sum(0).numpy()


# --- one pass --------------------------------------------------------------------------------------------------------


def test_all_rows_decode_a_chunk_once_and_twice_more_for_the_tuned_lens(
    observed: Lake, llama: PairSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = Layout.open(tmp_path / "lake", create=True)
    for name in ("models", "streams", "captures"):
        (fresh.root / name).symlink_to(observed.layout.root / name)
    counts: dict[tuple[str, object], int] = {}
    pieces = Grid._pieces

    def counted(self: Grid, file: Path, spots: list) -> object:
        for spot in spots:
            counts[str(file), spot] = counts.get((str(file), spot), 0) + 1
        return pieces(self, file, spots)

    monkeypatch.setattr(Grid, "_pieces", counted)
    monkeypatch.setattr(passes, "BLOCK_BYTES", 300_000)
    wanted = [
        find(row)
        for row in ("L1", "L2", "L3", "L8", "L9", "0A", "0B", "0G", "0H", "0J", "1A", "exp10", "exp16", "exp22")
    ]
    answers, refused, _ = answer_all(fresh, wanted, "llama", catalog=catalog(tmp_path, llama))
    assert [found.query.id for found in refused] == ["L1", "0J"]  # their table is made, the answers are too short
    read = {re.search(r"\.zarr/(\w+)/", file)[1] for file, _ in counts}
    # Rows that need no probes are answered before any are trained: a pass for them, one to train, one through the probes.
    assert max(counts.values()) == 3 and read == {"resid", "mlp_out", "topk_logit", "logsumexp"}
    # Blocks of any size give the same numbers as one block.
    whole = {
        row: Lake(observed.layout.root, catalog=catalog(tmp_path, llama)).run(row).table
        for row in ("0B", "L8", "exp10")
    }
    for found in answers:
        if found.query.id in whole:
            a, b = found.table, whole[found.query.id]
            np.testing.assert_allclose(a["estimate"].astype(float), b["estimate"].astype(float), atol=1e-4)


# --- what can't be answered ------------------------------------------------------------------------------------------


def refused(lake: Lake, row: str, words: str) -> None:
    with pytest.raises(LakeError) as caught:
        lake.run(row, pair="llama")
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_too_few_prompts(captured: Layout) -> None:
    lake = Lake(captured.root)
    refused(lake, "L8", "6 prompts; geometry needs 30")
    refused(lake, "0A", "directions need 10")
    refused(lake, "exp10", "the regression needs 10")


def test_missing_sites_and_streams_say_the_command(tmp_path: Path, llama: PairSpec, captured: Layout) -> None:
    refused(Lake(captured.root), "L9", "`actlake capture llama-it --stream native --profile attention --lake OTHER`")
    bare = replace(tiny.FULL, sites=("resid",))
    layout = tiny.capture(tmp_path / "lake", llama, tiny.NATIVE, profile=bare, prompts=tiny.prompt_set(texts(12)))
    lake = Lake(layout.root)
    refused(lake, "0A", "directions need mlp_out, which this capture left out: capture with the profile full")
    refused(lake, "0H", "run `actlake capture llama --stream teacher --prompts tiny`")
    refused(lake, "exp10", "run `actlake capture llama --stream teacher --prompts tiny`")
    refused(lake, "L3", "this lake has none of llama-pt (`actlake capture llama-pt --with-weights` keeps them there)")
    lean = replace(tiny.FULL, sites=("resid",), boundaries=(0, 3))
    layout = tiny.capture(tmp_path / "lean", llama, tiny.NATIVE, profile=lean, prompts=tiny.prompt_set(texts(30)))
    refused(Lake(layout.root), "L8", "geometry needs the residual at every boundary")


def test_other_texts_and_other_shapes(observed: Lake, tmp_path: Path) -> None:
    names = {v: find_capture(observed.layout, f"llama-{v}", "native").stem for v in ("pt", "it")}
    with pytest.raises(LakeError, match="different continuations"):
        directions_table(Context(observed.layout), tiny.scope("llama", names, "native"), "contrast")
    teacher = {v: find_capture(observed.layout, f"llama-{v}", "teacher").stem for v in ("pt", "it")}
    with pytest.raises(LakeError, match="both captures read one answer"):
        directions_table(Context(observed.layout), tiny.scope("llama", teacher, "teacher"), "stability")
    with pytest.raises(LakeError, match="expected one of stability, spread"):
        directions_table(Context(observed.layout), tiny.scope("llama", names, "native"), "sideways")
    wide = tiny.make_model(tmp_path / "wide", hidden_size=48)
    pair = tiny.make_pair(tmp_path / "pair")
    pair = replace(pair, it=tiny.spec(wide, "llama-it"))
    layout = tiny.capture(tmp_path / "lake", pair, tiny.NATIVE, prompts=tiny.prompt_set(texts(12)))
    refused(Lake(layout.root), "0A", "directions compare models of one shape")


def test_equal_prompts_are_undefined_not_nan(tmp_path: Path, llama: PairSpec) -> None:
    same = tiny.prompt_set([(f"p{i}", "FACT", "the cat sat") for i in range(30)])
    layout = tiny.capture(tmp_path / "lake", llama, tiny.NATIVE, prompts=same)
    found = Lake(layout.root).run("L8")
    assert found.table["estimate"].isna().all() and found.table["low"].isna().all()
    assert set(found.table["method"]) == {"undefined: points coincide"}
    assert "(participation ratio, final 20 % of layers undefined)" in found.sentence
    table = Lake(layout.root).run("0A").table
    assert value(table, "pairwise", 1) == pytest.approx(1) and value(table, "canonical", 1) == pytest.approx(1)


def test_where_weights_come_from(
    observed: Lake, llama: PairSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tiny.make_model(tmp_path / "other", seed=7)
    lake = Lake(observed.layout.root, catalog=catalog(tmp_path, llama, other))
    refused(lake, "L3", "are not those that the lake's captures were made from")
    file, weights = catalog(tmp_path, llama), llama.pt.path / "model.safetensors"
    file.write_text(file.read_text().replace(f"path: {llama.pt.path}", "hub: nobody/nothing"))
    fresh = Lake(tmp_path / "lake", create=True, catalog=file)
    refused(fresh, "L3", "fetch them with `hf download nobody/nothing`")
    cached = tmp_path / "hub" / "models--nobody--nothing"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("abc")
    (cached / "snapshots" / "abc").mkdir(parents=True)
    shutil.copy(weights, cached / "snapshots" / "abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    table = fresh.run("L3", pair="llama").table
    refused(lake, "L3", "are not those that the lake's captures were made from")  # which came from a folder
    shutil.rmtree(tmp_path / "hub")
    shutil.rmtree(tmp_path / "lake" / "tables")
    # The lake's own copy comes first.
    write_weights(fresh.layout, "llama-pt", llama.pt.path, ["model.safetensors"], "1234")
    pd.testing.assert_frame_equal(fresh.run("L3", pair="llama").table, table)


def test_free_sql_gets_what_can_be_had(observed: Lake, captured: Layout) -> None:
    kinds = observed.sql("SELECT DISTINCT kind FROM directions ORDER BY kind").fetchall()
    assert [kind for (kind,) in kinds] == [
        "contrast",
        "contrast_tuned",
        "matched",
        "reverse",
        "splits",
        "spread",
        "stability",
    ]
    with pytest.raises(LakeError, match="no attn_entropy"):
        Lake(captured.root).sql("SELECT * FROM attention")


@pytest.mark.sweep
def test_the_sql_of_every_answer_runs_by_itself(observed: Lake, llama: PairSpec, tmp_path: Path) -> None:
    """Also where a table was left out, which can't be made: it gives the numbers of the answer."""
    shutil.copytree(observed.layout.root, tmp_path / "lake")
    lake = Lake(tmp_path / "lake", catalog=catalog(tmp_path, llama))
    answers = lake.run_all(pair="llama", generate=False, probes=False).answers
    answers += lake.run_all(["L2", "exp16"], "llama", generate=False, probes=False, segment="assistant").answers
    assert {"L2", "L9", "0A", "0B", "1A", "dla", "exp11", "exp16", "exp22"} <= {a.query.id for a in answers}
    assert any("without dla_heads" in one.sentence for one in answers)
    alone = Lake(tmp_path / "lake", catalog=lake.catalog.where)
    for one in answers:
        assert len(alone.sql(one.sql).df()) == one.rows, one.query.id
        read = estimates.read(connect(alone.layout), one.sql, one.query, ["llama"])
        pd.testing.assert_frame_equal(estimates.table_of([read["llama"]], one.query), one.table)
