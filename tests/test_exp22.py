"""exp22 against float64 loops over Hugging Face's own forward, and its kernels against plain definitions."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from actlake.analyze.lens.head import Head
from actlake.analyze.lens.topk import churn, top_k
from actlake.analyze.tuned.folds import fold_of
from actlake.lake import Lake
from actlake.store.artifacts.probes import list_probes, read_probes
from actlake.store.artifacts.streams import read_stream
from actlake.store.core.catalog import PairSpec, ProfileSpec, StreamSpec
from actlake.store.core.errors import LakeError
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

LAYERS = 6
TEXTS = [(f"q{i}", "FACT", " ".join(tiny.TEXTS[i % 4][2].split()[: 1 + i % 5])) for i in range(12)]


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> tuple[Lake, PairSpec]:
    """A lake with native captures of a six-layer pair."""
    folder = tmp_path_factory.mktemp("deep")
    pair = tiny.make_pair(folder / "pair", num_hidden_layers=LAYERS)
    streams = (StreamSpec("native", "native", "own", 20),)
    layout = tiny.capture(folder / "lake", pair, *streams, prompts=tiny.prompt_set(TEXTS))
    return Lake(layout.root), pair


def probes(lake: Lake, variant: str, prompt: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Weight and bias for the output of each block but the last, in float64: those that are kept for the prompt."""
    (path,) = [path for path, record in list_probes(lake.layout) if record["model"] == f"llama-{variant}"]
    fold = fold_of([prompt], 2)[0]
    weight, bias = (torch.as_tensor(array[fold]).double() for array in read_probes(path)[:2])
    return list(zip(weight[1:], bias[1:], strict=True))


def stack(lake: Lake, pair: PairSpec, variant: str, lens: str) -> pd.DataFrame:
    """One row per answer token from the sixth on, everything in float64 from the model itself."""
    names = lake.captures.query(f"model == 'llama-{variant}'").iloc[0]
    stream = read_stream(lake.layout, names["stream"])
    model = AutoModelForCausalLM.from_pretrained(pair.model(variant).path).double()
    kept: list[torch.Tensor] = []
    for block in model.model.layers:
        block.register_forward_hook(lambda _m, _a, out: kept.append(out[0] if isinstance(out, tuple) else out))
    rows, at = [], 0
    for prompt, ids in enumerate(stream.tokens):
        kept.clear()
        with torch.no_grad():
            model(torch.tensor(ids[None].astype(np.int64)))
            read = [h.reshape(len(ids), -1) for h in kept]
            if lens == "tuned":
                mine = probes(lake, variant, stream.prompt_ids[prompt])
                read = [*(h @ w.T + b for h, (w, b) in zip(read, mine, strict=False)), read[-1]]
            logits = model.lm_head(model.model.norm(torch.stack(read)))
        logp = logits.log_softmax(-1).numpy()  # [L, n, V]
        for position in range(len(ids)):
            if stream.columns["step"][at + position] >= 5:
                rows.append({"prompt": prompt, "variant": variant, **outcomes(logp[:, position])})
        at += len(ids)
    return pd.DataFrame(rows)


def outcomes(logp: np.ndarray) -> dict[str, float]:
    """METHODS 16 for one token: logp [L, V]."""
    p, start = np.exp(logp), int(0.8 * LAYERS)
    kl = [(p[j] * (logp[j] - logp[-1])).sum() for j in range(start, LAYERS)]
    top = logp.argmax(-1)
    five = [set(np.argsort(-row)[:5]) for row in logp]

    def js(j: int) -> float:
        m = (p[j] + p[j + 1]) / 2
        return sum((q * (np.log(q) - np.log(m))).sum() for q in (p[j], p[j + 1])) / 2

    late = range(start, LAYERS - 1)
    last = np.sort(logp[-1])[::-1]
    return {
        "late_kl": float(np.mean(kl)),
        "adjacent_js": float(np.mean([sum(js(j) for j in range(i, LAYERS - 1)) for i in late])),
        "flips": float(np.mean([sum(top[j] != top[j + 1] for j in range(i, LAYERS - 1)) for i in late])),
        "churn": float(np.mean([1 - len(five[j] & five[j + 1]) / len(five[j] | five[j + 1]) for j in late])),
        "entropy": float(-(p[-1] * logp[-1]).sum()),
        "confidence": float(p[-1].max()),
        "margin": float(last[0] - last[1]),
    }


def as_stored(lake: Lake, tokens: pd.DataFrame) -> pd.DataFrame:
    """The endpoints as the lake keeps them in float32, checked against the model: a token on the edge of a cell is then in
    the same cell here and there."""
    names = ["entropy", "confidence", "margin"]
    kept = lake.sql(f"SELECT {', '.join(names)} FROM endpoint WHERE step >= 5 ORDER BY variant DESC, prompt, step").df()
    np.testing.assert_allclose(kept, tokens[names], atol=1e-5)
    return tokens.assign(**kept)


def weigh(tokens: pd.DataFrame) -> pd.DataFrame:
    """Add the four weights, cell by cell."""
    cell = []
    for name in ("entropy", "confidence", "margin"):
        edges = np.quantile(tokens[name], np.arange(1, 10) / 10)
        cell.append(np.searchsorted(edges, tokens[name], side="left"))
    tokens = tokens.assign(cell=list(zip(*cell, strict=True)), all=1.0, matched=0.0, ipw=0.0, overlap=0.0)
    share = {v: (tokens["variant"] == v).mean() for v in ("pt", "it")}
    for _, group in tokens.groupby("cell"):
        n = group["variant"].value_counts()
        if len(n) == 2:
            for variant in ("pt", "it"):
                mine = group.index[group["variant"] == variant]
                tokens.loc[mine, "matched"] = n.min() / n[variant]
                tokens.loc[mine, "ipw"] = share[variant] / (n[variant] / n.sum())
                tokens.loc[mine, "overlap"] = 1 - n[variant] / n.sum()
    return tokens


def test_every_number_is_that_of_METHODS_from_the_models_themselves(deep) -> None:
    lake, pair = deep
    found = lake.run("exp22", pair="llama")
    read = {
        lens: weigh(as_stored(lake, pd.concat([stack(lake, pair, v, lens) for v in ("pt", "it")], ignore_index=True)))
        for lens in ("raw", "tuned")
    }
    tokens = read["raw"]
    assert len(tokens) > 200 and tokens["matched"].eq(0).any() and tokens["matched"].between(0.01, 0.99).any()
    assert not np.allclose(tokens["late_kl"], read["tuned"]["late_kl"], atol=1e-3)
    table = found.table.set_index(["measure", "lens", "weights", "variant"])["estimate"]
    for lens, rows in {**read, "both": pd.concat(read.values())}.items():
        for name in ("late_kl", "adjacent_js", "flips", "churn"):
            for weights in ("all", "matched", "ipw", "overlap"):
                means = {v: np.average(g[name], weights=g[weights]) for v, g in rows.groupby("variant")}
                for variant, want in {**means, "it - pt": means["it"] - means["pt"]}.items():
                    assert table[name, lens, weights, variant] == pytest.approx(want, abs=2e-5), (name, lens, weights)
    plain = found.table[found.table["weights"].isna()].set_index(["measure", "variant"])["estimate"]
    line = table["late_kl", "raw", "matched", "it - pt"]
    assert plain["late_kl_raw_matched", "it - pt"] == pytest.approx(line, rel=1e-12)
    assert plain["retained", np.nan] == pytest.approx((tokens["matched"] > 0).mean())
    smds = []
    for name in ("entropy", "confidence", "margin"):
        mean, var = {}, {}
        for v, g in tokens.groupby("variant"):
            mean[v] = np.average(g[name], weights=g["matched"])
            var[v] = np.average((g[name] - mean[v]) ** 2, weights=g["matched"])
        smds.append((mean["it"] - mean["pt"]) / np.sqrt((var["it"] + var["pt"]) / 2))
        assert plain[f"smd_{name}", np.nan] == pytest.approx(smds[-1], abs=1e-4)
    assert plain["max_smd", np.nan] == pytest.approx(np.abs(smds).max(), abs=1e-4)
    assert "undefined" not in found.sentence and "[" in found.sentence


def test_full_logits_give_the_same_endpoint(deep, tmp_path: Path) -> None:
    lake, pair = deep
    full = ProfileSpec("full", ("resid",), "full", "auto", 16)
    streams = (StreamSpec("native", "native", "own", 20),)
    other = tiny.capture(tmp_path / "lake", pair, *streams, prompts=tiny.prompt_set(TEXTS), profile=full)
    sql = "SELECT variant, token, layer, entropy, confidence, margin, logsumexp FROM endpoint ORDER BY ALL"
    one, two = (Lake(layout.root).sql(sql).df() for layout in (lake.layout, other))
    assert (one["layer"] == LAYERS - 1).all()
    pd.testing.assert_frame_equal(one, two, atol=1e-5)


def test_a_capture_without_logits_is_refused_and_one_without_all_residuals_goes_without_churn(
    llama, tmp_path: Path
) -> None:
    bare = ProfileSpec("bare", ("resid",), "none", "auto", 16)
    lake = Lake(tiny.capture(tmp_path / "bare", llama, tiny.NATIVE, profile=bare).root)
    with pytest.raises(LakeError, match="endpoint needs .* did not keep; `actlake capture llama-.. --profile full`"):
        lake.run("exp22")
    lean = ProfileSpec("lean", ("resid",), "auto", "auto", 16, boundaries=("last",), scalars=("lens",))
    lake = Lake(tiny.capture(tmp_path / "lean", llama, tiny.NATIVE, profile=lean).root)
    found = lake.run("exp22")
    assert "without churn(raw)" in found.sentence and "churn" not in set(found.table["measure"])
    assert "late_kl" in set(found.table["measure"])


@given(st.integers(1, 9), st.integers(2, 4), st.integers(5, 40), st.integers(0, 99))
def test_churn_is_one_minus_jaccard(tokens: int, boundaries: int, vocab: int, seed: int) -> None:
    r = np.random.default_rng(seed)
    resid = r.normal(size=(tokens, boundaries, 3)).astype(np.float32)
    head = Head(torch.tensor(r.normal(size=(vocab, 3)), dtype=torch.float32), torch.ones(3))
    logits = head.logits(torch.tensor(resid)).numpy()
    five = [[set(np.argsort(-row, kind="stable")[:5]) for row in token] for token in logits]
    want = [[1 - len(a & b) / len(a | b) for a, b in zip(t, t[1:], strict=False)] for t in five]
    assert np.allclose(churn(head, resid), want, atol=1e-6)


def test_churn_in_slices_and_of_a_small_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    r = np.random.default_rng(0)
    resid = r.normal(size=(11, 3, 4)).astype(np.float32)
    head = Head(torch.tensor(r.normal(size=(50, 4)), dtype=torch.float32), torch.ones(4))
    whole = churn(head, resid)
    monkeypatch.setattr("actlake.analyze.lens.topk.LOGITS", 400)
    assert np.array_equal(churn(head, resid), whole) and 0 < whole.mean() < 1
    assert (churn(Head(torch.eye(4)[:3], torch.ones(4)), resid) == 0).all()  # three tokens: always the same ones
    with pytest.raises(ValueError, match="2 boundaries or more"):
        churn(head, resid[:, :1])


@pytest.mark.parametrize(("vocab", "k"), [(7, 5), (100, 5), (1000, 64), (999, 3)])
def test_top_k_is_torchs(vocab: int, k: int) -> None:
    logits = torch.randn(6, vocab, generator=torch.Generator().manual_seed(vocab))
    value, index = top_k(logits, k)
    assert torch.equal(value, logits.topk(k).values) and torch.equal(index, logits.topk(k).indices)
