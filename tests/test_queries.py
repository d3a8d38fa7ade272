"""Rows answered from a store whose numbers are known: hand-made cases, and every row against plain loops over METHODS."""

import math
import sys
from pathlib import Path

import actlake
import numpy as np
import pandas as pd
import pytest
import tiny
from actlake.queries.answer import estimates
from actlake.queries.answer.narrowed import scoped
from actlake.queries.figures import figure
from actlake.queries.rows.header import parse
from actlake.queries.rows.registry import find, published, queries
from actlake.store.artifacts.models import write_model
from actlake.store.artifacts.streams import Stream, write_stream
from actlake.store.captures.allocate import Template, create_capture
from actlake.store.captures.manifest import seal
from actlake.store.captures.writer import ShardWriter
from actlake.store.core.errors import LakeError
from actlake.store.format.paths import Layout
from actlake.store.tables.files import write_table
from actlake.store.tables.sql import connect
from asking import answer as ask

LAYERS, D, VOCAB, PROMPTS, ANSWER = 5, 4, 7, 6, 14
PAIR = "made"


def make_stream(kind: str, variant: str, rng: np.random.Generator, answers_: list[np.ndarray]) -> Stream:
    starts = [int(rng.integers(1, 5)) + (variant == "it") for _ in answers_]
    tokens = [
        np.concatenate([rng.integers(0, VOCAB, s), a]).astype(np.int32) for s, a in zip(starts, answers_, strict=True)
    ]
    total = sum(map(len, tokens))
    recipe = {"prompt_set_sha256": "p", "max_new_tokens": ANSWER, "key": f"{kind}-{variant}", "tokenizer_sha256": "t"}
    return Stream(
        kind=kind,
        prompts="set",
        prompt_ids=[f"q{i}" for i in range(len(tokens))],
        categories=["A"] * len(tokens),
        tokens=tokens,
        starts=starts,
        texts=["x"] * total,
        special=np.zeros(total, dtype=bool),
        recipe=recipe,
    )


def put_model(layout: Layout, variant: str, unembed: np.ndarray) -> None:
    arrays = {
        "norm_weight": np.ones(D, np.float32),
        "unembed": unembed.astype(np.float32),
        "real_token": np.ones(VOCAB, dtype=bool),
    }
    attrs = {"norm": "rms", "norm_eps": 1e-6, "softcap": None, "logit_scale": 1.0, "parallel": False}
    write_model(layout, f"{PAIR}-{variant}", {"id": variant, "sha256": variant, **tiny.MODEL}, arrays, attrs)


def put_capture(layout: Layout, variant: str, stream: Stream, resid: np.ndarray, mlp: np.ndarray) -> None:
    write_stream(layout, stream)
    template = Template(
        stream=stream,
        sizes={"resid": resid.shape[1:], "mlp_out": mlp.shape[1:]},
        boundaries=tuple(range(LAYERS + 1)),
        layers=tuple(range(LAYERS)),
        source_dtype="float32",
        provenance={"model": f"{PAIR}-{variant}", "model_sha256": variant, "batch": 4, "dtype": "float32"},
        shard=32,
    )
    path = layout.capture(f"{PAIR}-{variant}", stream.name)
    create_capture(path, template)
    with ShardWriter(path, template) as writer:
        for shard in range(template.n_shards):
            rows = slice(shard * 32, (shard + 1) * 32)
            writer.put(shard, {"resid": resid[rows], "mlp_out": mlp[rows]})
    seal(path)


class Made:
    """A lake without any model behind it, and what was put into it."""

    def __init__(self, root: Path, seed: int = 0):
        rng = np.random.default_rng(seed)
        self.layout = Layout.open(root, create=True)
        self.unembed = {v: rng.normal(size=(VOCAB, D)) for v in ("pt", "it")}
        told = {
            v: [rng.integers(0, VOCAB, int(rng.integers(12, ANSWER + 1))) for _ in range(PROMPTS)] for v in ("pt", "it")
        }
        self.stream, self.resid, self.mlp = {}, {}, {}
        for variant in ("pt", "it"):
            put_model(self.layout, variant, self.unembed[variant])
        for kind, variant in (("native", "pt"), ("native", "it"), ("teacher", "pt")):
            key = (kind, variant)
            self.stream[key] = make_stream(kind, variant, rng, told["it" if kind == "teacher" else variant])
            n = self.stream[key].n_tokens
            self.resid[key] = np.cumsum(rng.normal(size=(n, LAYERS + 1, D)), axis=1).astype(np.float32)
            self.mlp[key] = rng.normal(size=(n, LAYERS, D)).astype(np.float32)
            put_capture(self.layout, variant, self.stream[key], self.resid[key], self.mlp[key])
        # IT's teacher stream has the content of its native one: only a pointer.
        native = self.stream["native", "it"]
        write_stream(
            self.layout, Stream(**{**{f: getattr(native, f) for f in native.__dataclass_fields__}, "kind": "teacher"})
        )
        self.lake = actlake.open(root)

    def probabilities(self, key: tuple[str, str]) -> np.ndarray:
        """float64 [tokens, layers, vocab] from the definition of METHODS 0, block outputs only."""
        h = self.resid[key].astype(np.float64)[:, 1:]
        z = (
            h
            / np.sqrt((h**2).mean(-1, keepdims=True) + 1e-6)
            @ self.unembed[key[1]].astype(np.float32).astype(np.float64).T
        )
        e = np.exp(z - z.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    def rows(self, key: tuple[str, str]) -> pd.DataFrame:
        return pd.DataFrame({name: self.stream[key].columns[name] for name in ("prompt", "step", "token_id")})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("made") / "lake")


def estimate(table: pd.DataFrame, measure: str, **dims: object) -> float:
    rows = table[table["measure"] == measure]
    for name, value in dims.items():
        rows = rows[rows[name].isna()] if value is None else rows[rows[name] == value]
    assert len(rows) == 1, (measure, dims, len(rows))
    return float(rows["estimate"].iloc[0])


def test_L1_is_the_profile_of_METHODS_by_plain_loops(made: Made) -> None:
    table = made.lake.run("L1").table
    profile = {}
    for variant in ("pt", "it"):
        key = ("native", variant)
        h, rows = made.resid[key].astype(np.float64), made.rows(key)
        heat: dict[int, list[np.ndarray]] = {}
        for token, row in rows.iterrows():
            t = row.step - 1  # the study's record index: its first record predicts the second generated token
            if 10 <= t <= 99:
                after, before = h[token, 2:], h[token, 1:-1]
                up = after - before
                cosine = (up * before).sum(-1) / np.linalg.norm(up, axis=-1) / np.linalg.norm(before, axis=-1)
                heat.setdefault(t, []).append(cosine)
        profile[variant] = np.mean([np.mean(values, axis=0) for values in heat.values()], axis=0)
        for layer in range(1, LAYERS):
            assert estimate(table, "profile", variant=variant, layer=layer) == pytest.approx(
                profile[variant][layer - 1], abs=1e-5
            )
    late = math.floor(0.8 * LAYERS)
    expected = (profile["it"] - profile["pt"])[late - 1 :].mean()
    assert estimate(table, "final20", variant="it - pt", layer=None) == pytest.approx(expected, abs=1e-5)
    last = (profile["it"] - profile["pt"])[-1]
    assert estimate(table, "last_layer", variant="it - pt", layer=None) == pytest.approx(last, abs=1e-5)
    assert not ((table["measure"] == "profile") & (table["layer"] == 0)).any()


def test_L1_thirds_and_0J_onset_by_plain_loops(made: Made) -> None:
    table = made.lake.run("L1").table
    profile = {
        v: [estimate(table, "profile", variant=v, layer=layer) for layer in range(1, LAYERS)] for v in ("pt", "it")
    }
    diff = dict(enumerate(np.subtract(profile["it"], profile["pt"]), start=1))
    third = LAYERS // 3
    for name, layers in {
        "first": range(third), "middle": range(third, 2 * LAYERS // 3), "last": range(2 * LAYERS // 3, LAYERS),
    }.items():  # fmt: skip
        inside = [diff[layer] for layer in layers if layer in diff]
        found = table[(table["measure"] == f"{name}_third") & (table["variant"] == "it - pt")]["estimate"].tolist()
        assert found == pytest.approx([np.mean(inside)] if inside else [], abs=1e-5)
    found = made.lake.run("0J").table.set_index("measure")["estimate"]
    base = [diff[layer] for layer in range(round(6 * LAYERS / 34), round(14 * LAYERS / 34) + 1)]
    bounds = {f"{k:g}sd": np.mean(base) - k * np.std(base) for k in (0.5, 0.75, 1, 1.5, 2)}
    bounds |= {f"{t:.2f}": -t for t in (0.02, 0.05, 0.10, 0.15)}
    onsets = {}
    for name, bound in bounds.items():
        for layer in range(round(14 * LAYERS / 34) + 1, LAYERS - 1):
            if diff[layer] < bound and diff[layer + 1] < bound:
                onsets.setdefault(name, layer)
    assert found["onset_scaled_rules"] == len(onsets)
    assert {name: found.get(f"onset_scaled_{name}") for name in bounds} == {name: onsets.get(name) for name in bounds}
    assert not any(name.startswith("onset_1") for name in found.index)  # 5 layers: nothing as published


def test_0J_as_published_on_a_deep_profile(tmp_path: Path) -> None:
    layout = Layout.open(tmp_path / "lake", create=True)
    rng = np.random.default_rng(3)
    drop = np.r_[rng.normal(0, 0.01, 20), -0.018, 0.0, -0.012, -0.03, -0.06, -0.03, -0.2, -0.2, -0.2]
    for variant in ("pt", "it"):
        rows = {
            "model": f"{PAIR}-{variant}", "stream": f"native-set-{variant}", "prompt_id": "a", "category": "A",
            "prompt": 0, "token": 0, "position": 20, "step": 15, "layer": np.arange(len(drop)),
            "block_cos": (drop if variant == "it" else 0 * drop).astype("f4"), "mlp_cos": 0.0 * drop, "mlp_norm": 0.0 * drop,
            "resid_norm": 0.0 * drop,
        }  # fmt: skip
        write_table(layout, "delta", {"variant": variant}, [rows])
    scope = tiny.scope(PAIR, {v: f"native-set-{v}" for v in ("pt", "it")}, "native")
    read = estimates.read(connect(layout, None, {PAIR: scope.models}), scoped(find("0J"), [scope]), find("0J"), [PAIR])
    found = estimates.table_of([read[PAIR]], find("0J")).set_index("measure")["estimate"]
    base = drop[6:15].astype("f4")
    for name, bound in {
        "1sd": base.mean() - base.std(),
        "2sd": base.mean() - 2 * base.std(),
        "0.02": -0.02,
        "0.05": -0.05,
    }.items():
        onset = next(i for i in range(15, len(drop) - 1) if drop[i] < bound and drop[i + 1] < bound)
        assert found[f"onset_{name}"] == onset
    assert found["onset_rules"] == 9 and found["onset_latest"] == 26 and found["onset_0.02"] == 23


def test_0G_numbers_by_plain_loops(made: Made) -> None:
    table = made.lake.run("0G").table
    for variant in ("pt", "it"):
        key = ("native", variant)
        p, rows = made.probabilities(key), made.rows(key)
        final = p[:, -1:]
        kl = (final * (np.log(final) - np.log(p))).sum(-1)
        top = p.argmax(-1)
        settled = np.array([next(i for i in range(LAYERS) if (row[i:] == row[-1]).all()) for row in top])
        under = {
            bound: np.array([next((i for i in range(LAYERS) if (row[i:] < bound).all()), LAYERS - 1) for row in kl])
            for bound in (0.05, 0.1, 0.2, 0.5, 1.0)
        }
        every, skip5 = rows["step"] >= 1, rows["step"] >= 6
        assert estimate(table, "commit_top1_raw_median", variant=variant) == np.median(settled[every])
        assert estimate(table, "commit_kl01_raw_median", variant=variant) == np.median(under[0.1][every])
        assert estimate(table, "commit_top1_raw_mean_skip5", variant=variant) == pytest.approx(settled[skip5].mean())
        by_prompt = pd.Series(settled[skip5]).groupby(rows["prompt"][skip5].to_numpy()).mean()
        assert estimate(table, "commit_top1_raw_prompt_mean", variant=variant) == pytest.approx(by_prompt.mean())
        for bound, layers in under.items():
            assert estimate(table, "kl", lens="raw", variant=variant, threshold=bound) == pytest.approx(
                layers[every].mean()
            )
    line = table[(table["measure"] == "commit_top1_raw_median") & (table["variant"] == "it - pt")].iloc[0]
    parts = [estimate(table, "commit_top1_raw_median", variant=v) for v in ("it", "pt")]
    assert line["estimate"] == parts[0] - parts[1] and line["low"] <= line["estimate"] <= line["high"]


def test_L2_gap_and_commitment_are_those_of_METHODS_by_plain_loops(made: Made) -> None:
    table = made.lake.run("L2").table
    curves, late = {}, math.floor(LAYERS / 2)
    for variant in ("pt", "it"):
        key = ("native", variant)
        p, chosen = made.probabilities(key), made.rows(key)["step"].to_numpy() >= 1
        final = p[:, -1:]
        kl_final_layer = (final * (np.log(final) - np.log(p))).sum(-1)[chosen]
        kl_layer_final = (p * (np.log(p) - np.log(final))).sum(-1)[chosen]
        curves[variant] = kl_final_layer.mean(0)
        top = p.argmax(-1)[chosen]
        stable = [next(layer for layer in range(LAYERS) if (row[layer:] == row[-1]).all()) for row in top]
        under = [
            next((layer for layer in range(LAYERS) if (row[layer:] < 0.1).all()), LAYERS - 1) for row in kl_final_layer
        ]
        for layer in range(LAYERS):
            where = {"lens": "raw", "variant": variant, "layer": layer}
            assert estimate(table, "kl_final_layer", **where) == pytest.approx(curves[variant][layer], abs=1e-4)
            found = estimate(table, "kl_layer_final", **where)
            assert found == pytest.approx(kl_layer_final.mean(0)[layer], abs=1e-4)
        assert estimate(table, "commit_top1_raw_mean", variant=variant) == pytest.approx(np.mean(stable))
        assert estimate(table, "commit_kl01_raw_mean", variant=variant) == pytest.approx(np.mean(under))
    gap = (curves["it"] - curves["pt"])[late:].mean()
    assert estimate(table, "cg_raw", variant="it - pt") == pytest.approx(gap, abs=1e-4)
    apart = curves["it"] - curves["pt"]
    third = LAYERS // 3
    for name, layers in {
        "first": slice(third), "middle": slice(third, 2 * LAYERS // 3), "last": slice(2 * LAYERS // 3, None),
    }.items():  # fmt: skip
        found = estimate(table, f"gap_raw_{name}_third", variant="it - pt")
        assert found == pytest.approx(apart[layers].mean(), abs=1e-4)
    assert estimate(table, "late_half_layers") == LAYERS - late
    assert estimate(table, "late_half_layers_it_above_pt_raw") == (apart[late:] > 1e-9).sum()
    for variant in ("pt", "it"):
        assert estimate(table, f"tokens_{variant}") == (made.rows(("native", variant))["step"] >= 1).sum()


def test_exp16_js_by_plain_loops(made: Made) -> None:
    table = made.lake.run("exp16").table
    pt, it = ("teacher", "pt"), ("native", "it")
    p, q = made.probabilities(pt), made.probabilities(it)
    at = {
        key: {(r.prompt, r.step): i for i, r in enumerate(made.rows(key).itertuples()) if r.step >= 0}
        for key in (pt, it)
    }
    assert at[pt].keys() == at[it].keys()
    js = []
    for where in at[pt]:
        a, b = p[at[pt][where]], q[at[it][where]]
        m = (a + b) / 2
        js.append(((a * np.log(a / m)).sum(-1) + (b * np.log(b / m)).sum(-1)) / 2)
    mean = np.mean(js, axis=0)
    for layer in range(LAYERS):
        assert estimate(table, "js", layer=layer) == pytest.approx(mean[layer], abs=1e-5)
    assert estimate(table, "js_ac_full", layer=None) == pytest.approx(mean.mean(), abs=1e-5)
    assert estimate(table, "js_ac_pre", layer=None) == pytest.approx(mean[: round(0.6 * LAYERS)].mean(), abs=1e-5)
    assert estimate(table, "js_ac_final20", layer=None) == pytest.approx(
        mean[math.floor(0.8 * LAYERS) :].mean(), abs=1e-5
    )
    assert table["estimate"].between(0, math.log(2)).all()


def test_hand_made_numbers(tmp_path: Path) -> None:
    """Two tokens, an orthogonal unembedding: every probability is (a, b, b, ...) and can be worked out on paper."""
    layout = Layout.open(tmp_path / "lake", create=True)
    unembed = np.zeros((VOCAB, D))
    unembed[0, 0] = math.log(VOCAB - 1) / 2  # the rms norm of (x, 0, 0, 0) is (2, 0, 0, 0): logit of token 0 = ln 6
    rng = np.random.default_rng(1)
    told = [np.zeros(ANSWER, dtype=np.int64) for _ in range(3)]
    for variant in ("pt", "it"):
        put_model(layout, variant, unembed)
        stream = make_stream("native", variant, rng, told)
        resid = np.zeros((stream.n_tokens, LAYERS + 1, D), dtype=np.float32)
        resid[..., 1] = 1.0  # points away from token 0: all logits equal
        resid[:, -1] = (3.0, 0.0, 0.0, 0.0)  # the last layer: p(token 0) = 6/12 = 1/2, the others 1/12
        if variant == "it":
            resid[:, -2] = resid[:, -1]  # IT is there one layer earlier
        put_capture(layout, variant, stream, resid, np.ones((stream.n_tokens, LAYERS, D), dtype=np.float32))
    table = actlake.open(tmp_path / "lake").run("L2").table
    uniform = 0.5 * math.log(0.5 * VOCAB) + 0.5 * math.log(VOCAB / (2 * (VOCAB - 1)))  # KL(final || uniform)
    assert estimate(table, "kl_final_layer", lens="raw", variant="pt", layer=LAYERS - 2) == pytest.approx(
        uniform, abs=1e-5
    )
    assert estimate(table, "kl_final_layer", lens="raw", variant="it", layer=LAYERS - 2) == pytest.approx(0, abs=1e-6)
    assert estimate(table, "kl_final_layer", lens="raw", variant="pt", layer=LAYERS - 1) == pytest.approx(0, abs=1e-6)
    late = LAYERS - math.floor(LAYERS / 2)
    assert estimate(table, "cg_raw", variant="it - pt") == pytest.approx(-uniform / late, abs=1e-5)
    assert estimate(table, "commit_kl01_raw_mean", variant="pt") == LAYERS - 1
    assert estimate(table, "commit_kl01_raw_mean", variant="it") == LAYERS - 2


def test_answers_say_their_unit_and_reuse_tables(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = made.lake.run("L2", pair=PAIR)
    assert set(found.table.columns) >= {"measure", "variant", "layer", "estimate", "low", "high", "n", "method"}
    prompts = found.table[found.table["unit"] == "prompts"]
    assert (prompts["n"] == PROMPTS).all() and set(found.table["unit"]) == {"prompts", "layers", "tokens"}
    inside = found.table["low"].isna() | (found.table["low"] <= found.table["estimate"] + 1e-9)
    assert inside.all()
    assert "convergence gap" in found.sentence and "{" not in found.sentence
    again = made.lake.run("L2", pair=PAIR)
    assert again.computed == []
    pd.testing.assert_frame_equal(found.table, again.table)
    files = found.save(tmp_path)
    assert [f.suffix for f in files] == [".csv", ".png", ".svg", ".sql"] and all(f.stat().st_size for f in files)
    before = [f.read_bytes() for f in files]
    monkeypatch.setattr(figure, "draw", None)
    assert again.save(tmp_path) == files  # the same figure: not drawn again
    assert [f.read_bytes() for f in files] == before


@pytest.mark.parametrize("row", ["L1", "L2", "exp16"])
def test_the_sql_of_an_answer_runs_as_it_stands(made: Made, row: str) -> None:
    found = made.lake.run(row)
    frame = made.lake.sql(found.sql).df()
    assert len(frame) == found.rows
    read = estimates.read(connect(made.layout), found.sql, find(row), [PAIR])
    pd.testing.assert_frame_equal(estimates.table_of([read[PAIR]], find(row)), found.table)


def test_a_second_capture_does_not_leak_into_the_first(made: Made, tmp_path: Path) -> None:
    """Two prompt sets in one lake: the query keeps to the chosen one and says so when it can't tell."""
    other = Made(tmp_path / "lake", seed=5)
    before = other.lake.run("L2").table
    rng = np.random.default_rng(9)
    for variant in ("pt", "it"):
        told = [rng.integers(0, VOCAB, 13) for _ in range(3)]
        stream = make_stream("native", variant, rng, told)
        fields = {f: getattr(stream, f) for f in stream.__dataclass_fields__}
        stream = Stream(
            **{
                **fields,
                "prompts": "other",
                "recipe": {**stream.recipe, "prompt_set_sha256": "o", "key": f"o{variant}"},
            }
        )
        shape = (stream.n_tokens, LAYERS + 1, D)
        put_capture(
            other.layout,
            variant,
            stream,
            rng.normal(size=shape).astype("f4"),
            rng.normal(size=(shape[0], LAYERS, D)).astype("f4"),
        )
    with pytest.raises(LakeError, match="--prompts"):
        other.lake.run("L2")
    pd.testing.assert_frame_equal(other.lake.run("L2", prompts="set").table, before)
    assert (other.lake.run("L1", prompts="other").table["n"] == 3).all()


def test_lens_rows_and_free_sql(made: Made) -> None:
    frame = made.lake.sql(
        "SELECT variant, layer, count(*) AS n, avg(entropy) AS h FROM lens WHERE lens = 'raw' GROUP BY ALL ORDER BY ALL"
    ).df()
    assert set(frame["layer"]) == set(range(-1, LAYERS))
    tokens = {v: sum(s.n_tokens for (k, w), s in made.stream.items() if w == v) for v in ("pt", "it")}
    assert frame.groupby("variant")["n"].first().to_dict() == tokens
    key = ("native", "it")
    name = made.stream[key].name
    rank = made.lake.sql(
        f"SELECT token, layer, rank_target, p_target FROM lens WHERE lens = 'raw' AND stream = '{name}' ORDER BY ALL"
    ).df()
    p, rows = made.probabilities(key), made.rows(key)
    follows = np.append(rows["prompt"].to_numpy()[1:] == rows["prompt"].to_numpy()[:-1], False)
    last = rank[rank["layer"] == LAYERS - 1].set_index("token")
    assert last["rank_target"].isna().to_numpy().tolist() == (~follows).tolist()
    for token in np.flatnonzero(follows)[:20]:
        target = rows["token_id"][token + 1]
        assert last.loc[token, "p_target"] == pytest.approx(p[token, -1, target], abs=1e-5)
        assert last.loc[token, "rank_target"] == 1 + (p[token, -1] > p[token, -1, target]).sum()


def test_every_query_file_has_its_header_and_unknown_rows_are_refused() -> None:
    assert {"L1", "L2", "exp16"} <= queries().keys()
    for query in queries().values():
        assert query.about and query.source.startswith("METHODS") and query.says and query.plot["kind"]
    with pytest.raises(LakeError, match="L1, L2, .*0G, .*exp16"):
        find("L99")
    with pytest.raises(LakeError, match="x.sql:1"):
        parse("SELECT 1", "x.sql")
    with pytest.raises(LakeError, match="lacks source"):
        parse("-- id: a\n-- title: b\n-- needs: lens\n-- stream: native\nSELECT 1", "x.sql")


def test_published_figures_stand_beside_their_row() -> None:
    table = published("L2", "gemma3_4b").set_index("quantity")
    assert table.loc["cg_raw", "value"] == 1.008
    assert published("L2", "pocket").empty


def test_no_pair_no_capture_are_told(tmp_path: Path) -> None:
    lake = actlake.open(tmp_path / "new", create=True)
    with pytest.raises(LakeError, match="none yet"):
        lake.run("L1")
    with pytest.raises(LakeError, match="unknown pair 'nopair'"):
        lake.run("L1", pair="nopair")
    with pytest.raises(LakeError, match="actlake capture pocket --stream native"):
        lake.run("L1", pair="pocket")


# --- the form of a row that returns estimates -------------------------------------------------------------------------


def final(sql: str, **header: str) -> object:
    lines = {
        "id": "Z1", "title": "t", "needs": "lens", "stream": "native", "bootstrap": "none", "source": "METHODS 0",
        "contrast": "variant it - pt", "says": "gap {share}, {share?more|less|unclear}", **header,
    }  # fmt: skip
    return parse("\n".join(f"-- {key}: {value}" for key, value in lines.items() if value) + f"\n{sql}", "z.sql")


SHARES = "SELECT 'share' AS measure, variant, avg((top1 = 0)::INT) AS estimate, count(*) AS n, 'tokens' AS unit FROM lens GROUP BY ALL"


def test_a_row_may_return_estimates_and_gets_their_differences(made: Made) -> None:
    found = ask(made.layout, final(SHARES), PAIR)
    table = found.table.set_index("variant")
    assert list(table.columns) == ["measure", "estimate", "low", "high", "n", "unit", "method"]
    share = {v: (made.probabilities(("native", v)).argmax(-1) == 0).mean() for v in ("pt", "it")}
    lens = made.lake.sql(found.sql).df().set_index("variant")["estimate"]
    assert table.loc["it", "estimate"] == lens["it"] and abs(lens["it"] - share["it"]) < 0.2  # boundary 0 is in it too
    assert table.loc["it - pt", "estimate"] == pytest.approx(lens["it"] - lens["pt"])
    assert table.loc["it - pt", ["low", "high"]].isna().all() and table.loc["it - pt", "method"] == "none"
    assert table.loc["pt", "unit"] == "tokens" and pd.isna(table.loc["it - pt", "n"])
    more = "more" if lens["it"] > lens["pt"] else "less"  # without an interval the sign decides, and the number says so
    number = f"{lens['it'] - lens['pt']:+.3g}".replace("-", "−")  # three significant digits
    assert found.sentence.startswith(f"gap {number} [no interval], {more}")
    assert found.figure().axes


def test_intervals_of_few_prompts_do_not_depend_on_the_order_of_lines(made: Made) -> None:
    sql = (
        "SELECT 'm' || m AS measure, p AS prompt, (hash(m * 100 + p) % 1000003) / 1e4 AS total, 1 AS n"
        " FROM range(60) AS a (m), range(7) AS b (p) ORDER BY "
    )
    query = find("exp23")
    tables = [
        estimates.table_of([estimates.read(connect(made.layout), sql + order, query, [PAIR])[PAIR]], query)
        for order in ("m", "m DESC", "hash(m)", "p, hash(m + 1)")
    ]
    assert all(table.equals(tables[0]) for table in tables) and (tables[0]["method"] == "BCa").all()


def test_a_contrast_that_the_sql_gives_with_its_interval_is_kept(made: Made) -> None:
    sql = (
        "SELECT * FROM (VALUES ('share', 'it', 1, .5, .4, .6, 9, 'seeds'), ('share', 'pt', 1, .2, .1, .3, 9, 'seeds'), "
    )
    sql += (
        "('share', 'it - pt', 1, .3, .2, .35, 9, 'seeds')) AS v (measure, variant, layer, estimate, low, high, n, unit)"
    )
    table = ask(made.layout, final(sql), PAIR).table
    assert len(table) == 3
    line = table[table["variant"] == "it - pt"].iloc[0]
    assert (line["estimate"], line["low"], line["high"], line["n"], line["unit"]) == (0.3, 0.2, 0.35, 9, "seeds")


def test_estimates_without_a_name_or_twice_are_refused(made: Made) -> None:
    with pytest.raises(LakeError, match="Z1: its SQL must return `measure` and `estimate`"):
        ask(made.layout, final("SELECT 'a' AS measure, 1 AS n"), PAIR)
    with pytest.raises(LakeError, match="more than once"):
        ask(made.layout, final("SELECT 'a' AS measure, 1.0 AS estimate UNION ALL SELECT 'a', 2.0"), PAIR)
    with pytest.raises(LakeError, match="z.sql:.*: bootstrap 'token'"):
        final(SHARES, bootstrap="token")


def test_a_row_may_read_several_streams_or_none(made: Made) -> None:
    sql = "SELECT recipe AS measure, variant, count(*) AS estimate FROM lens WHERE lens = 'raw' AND layer = 0 GROUP BY ALL"
    found = ask(made.layout, final(sql, stream="native, teacher"), PAIR)
    for recipe in ("native", "teacher"):
        for variant in ("pt", "it"):
            key = (recipe, variant) if (recipe, variant) in made.stream else ("native", variant)
            assert estimate(found.table, recipe, variant=variant) == made.stream[key].n_tokens
    assert set(found.streams) == {"native pt", "native it", "teacher pt", "teacher it"}
    assert found.streams["native it"] == found.streams["teacher it"]
    none = ask(made.layout, final("SELECT 'x' AS measure, 1.5 AS estimate", stream="none", contrast=""), PAIR)
    assert none.streams == {} and none.table["estimate"].tolist() == [1.5]


def test_several_pairs_are_pooled_family_by_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seed in (("one", 1), ("two", 2)):
        monkeypatch.setattr(sys.modules[__name__], "PAIR", name)
        lake = Made(tmp_path / "lake", seed).lake
    single = [lake.run("L2", pair=name) for name in ("one", "two")]
    both = lake.run("L2", pair=["one", "two"])
    for measure in ("cg_raw", "commit_top1_raw_mean"):
        parts = [estimate(found.table, measure, variant="it - pt") for found in single]
        assert estimate(both.table, measure, variant="it - pt") == pytest.approx(np.mean(parts))
    line = both.table[both.table["measure"] == "cg_raw"].iloc[0]
    assert (line["n"], line["unit"]) == (2 * PROMPTS, "prompts of 2 pairs")
    assert both.pair == "one+two" and set(both.streams) == {"one pt", "one it", "two pt", "two it"}
    assert len(lake.sql(both.sql).df()) == both.rows == sum(found.rows for found in single)
    js = lake.run("exp16", pair=["one", "two"]).table.set_index("measure")["estimate"]
    frames = [
        lake.sql(lake.run("exp16", pair=name).sql).df().query("measure == 'js_ac_pre'") for name in ("one", "two")
    ]
    whole = pd.concat(frames)
    assert js["js_ac_pre_token_weighted"] == pytest.approx(whole["total"].sum() / whole["n"].sum())
    assert js["js_ac_pre"] == pytest.approx(np.mean([f["total"].sum() / f["n"].sum() for f in frames]))
