"""Tables from elsewhere: what is refused, and that published curves give the published numbers through the rows' SQL."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from actlake.cli.main import app
from actlake.lake import Lake
from actlake.queries.rows.registry import POOLS, published
from actlake.store.core.errors import LakeError
from actlake.store.format.paths import Layout
from actlake.store.tables.imported import add_table
from actlake.store.tables.sql import connect
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

# Mean KL(final || layer) of the tuned lens by layer: convergence_gap_values.json (METHODS 4, L2), to four decimals.
CURVES = pd.read_csv(Path(__file__).parent / "published_curves.csv")
LAYERS = 10


def write(folder: Path, frame: Any, name: str = "x.csv") -> Path:
    path = folder / name
    frame = pd.DataFrame(frame)
    frame.to_csv(path, index=False) if name.endswith("csv") else frame.to_parquet(path)
    return path


def profile(**more: Any) -> pd.DataFrame:
    """delta-cosine curves: PT constant -0.1, IT lower by layer / 100."""
    layer = np.arange(LAYERS)
    parts = [
        pd.DataFrame({"variant": v, "layer": layer, "block_cos": -0.1 - (v == "it") * layer / 100})
        for v in ("pt", "it")
    ]
    frame = pd.concat(parts).assign(**more)
    frame.loc[frame["layer"] == 0, "block_cos"] = np.nan  # undefined there
    return frame


def number(table: pd.DataFrame, measure: str, variant: str | None = "it - pt") -> pd.Series:
    rows = table[
        (table["measure"] == measure) & (table["variant"].isna() if variant is None else table["variant"] == variant)
    ]
    assert len(rows) == 1, (measure, variant)
    return rows.iloc[0]


def test_curves_per_layer_answer_L1_and_0J(lake: Layout, tmp_path: Path) -> None:
    add_table(lake, "delta", write(tmp_path, profile()), pair="theirs", stream="native")
    found = Lake(lake.root).run("L1")  # the only pair, which nobody captured
    assert found.pair == "theirs" and found.streams == {"pt": "native", "it": "native"}
    assert number(found.table, "final20")["estimate"] == pytest.approx(-np.mean([0.08, 0.09]))
    assert number(found.table, "last_layer")["estimate"] == pytest.approx(-0.09)
    assert number(found.table, "first_third")["estimate"] == pytest.approx(-np.mean([0.01, 0.02]))
    assert number(found.table, "last_third")["estimate"] == pytest.approx(-np.mean([0.06, 0.07, 0.08, 0.09]))
    line = number(found.table, "final20")
    assert (line["n"], line["unit"], line["method"]) == (1, "curves", "none") and np.isnan(line["low"])
    assert "less along the residual" in found.sentence and "δ-cosine difference −0.0850 [no interval]" in found.sentence
    onset = Lake(lake.root).run("0J").table.set_index("measure")["estimate"]
    assert onset["onset_scaled_0.02"] == 5  # baseline layers 2 to 4: the search starts after them
    assert "onset_scaled_0.10" not in onset  # -0.09 is the lowest


def test_values_per_prompt_answer_L1_with_intervals(lake: Layout, tmp_path: Path) -> None:
    r = np.random.default_rng(0)
    shift = r.normal(0, 0.01, 30)
    frames = [
        profile().assign(prompt_id=f"q{i}", block_cos=lambda f, i=i: f["block_cos"] + shift[i]) for i in range(30)
    ]
    path = write(tmp_path, pd.concat(frames), "x.parquet")
    add_table(lake, "delta", path, pair="theirs", stream="native")
    table = Lake(lake.root).run("L1").table
    level = number(table, "last_layer", "it")
    assert level["estimate"] == pytest.approx(-0.19 + shift.mean(), abs=1e-6) and (level["n"], level["unit"]) == (
        30,
        "prompts",
    )
    assert level["low"] < level["estimate"] < level["high"]
    gap = number(table, "last_layer")
    assert gap["estimate"] == pytest.approx(-0.09) and gap["high"] - gap["low"] < 1e-6  # shifts cancel prompt by prompt


@pytest.fixture
def theirs(lake: Layout, tmp_path: Path) -> Lake:
    """The published tuned curves of all six families."""
    long = CURVES.melt(["model", "layer"], ["pt", "it"], "variant", "kl_final_layer")
    add_table(
        lake, "lens", write(tmp_path, long.rename(columns={"model": "pair"})), stream="native-published", lens="tuned"
    )
    return Lake(lake.root)


@pytest.mark.parametrize("pair", sorted(POOLS["pooled6"]))
def test_published_curves_give_the_published_gap(theirs: Lake, pair: str) -> None:
    found = theirs.run("L2", pair=pair)
    said = published("L2", pair).set_index("quantity")["value"]
    assert number(found.table, "cg_tuned")["estimate"] == pytest.approx(said["cg_tuned"], abs=6e-4)
    for name in ("late_half_layers", "late_half_layers_it_above_pt_tuned"):
        assert number(found.table, name, None)["estimate"] == said[name]
    assert not found.table["measure"].str.startswith(("commit", "tokens", "cg_raw")).any()
    assert found.sentence.startswith("With the tuned lens the gap is") and "undefined" not in found.sentence
    assert "without lens(raw): table lens has no rows of" in found.sentence


def test_pooled_published_curves_give_the_pooled_figures(theirs: Lake) -> None:
    six = theirs.run("L2", pair=sorted(POOLS["pooled6"]))
    said = six.published.set_index("quantity")["value"]
    assert set(six.published["model"]) == {"pooled6"}
    for third in ("first", "middle", "last"):
        name = f"gap_tuned_{third}_third"
        assert number(six.table, name)["estimate"] == pytest.approx(said[name], abs=6e-4)
    assert "layer" not in six.table or six.table["layer"].isna().all()  # models of different depth
    five = theirs.run("L2", pair=sorted(POOLS["dense5"]))
    assert set(five.published["model"]) == {"dense5"}
    assert number(five.table, "cg_tuned")["estimate"] == pytest.approx(0.410, abs=6e-4)
    assert five.figure().axes


def test_foreign_and_captured_rows_stand_side_by_side(lake_copy: Layout, tmp_path: Path) -> None:
    mine = Lake(lake_copy.root)
    before = mine.run("L2", pair="llama").table
    frame = pd.DataFrame({"layer": range(4), "kl_final_layer": [3.0, 2.0, 1.0, 0.0]})
    for variant in ("pt", "it"):
        name = write(
            tmp_path, frame.assign(kl_final_layer=frame["kl_final_layer"] * (1 + (variant == "it"))), f"{variant}.csv"
        )
        add_table(lake_copy, "lens", name, pair="llama", variant=variant, stream="native-theirs")
    with pytest.raises(LakeError, match="pick one with --prompts"):
        mine.run("L2", pair="llama")
    pd.testing.assert_frame_equal(mine.run("L2", pair="llama", prompts="tiny").table, before)
    found = mine.run("L2", pair="llama", prompts="theirs").table
    assert number(found, "cg_raw")["estimate"] == pytest.approx(0.5)
    assert mine.sql("SELECT count(*) FROM lens WHERE stream = 'native-theirs'").fetchall() == [(8,)]
    with pytest.raises(
        LakeError, match=r"table delta has no rows of llama-it, native-theirs.*`actlake table add delta FILE"
    ):
        mine.run("L1", pair="llama", prompts="theirs")
    native = mine.run("L2", pair="llama", prompts="tiny").streams["pt"]
    with pytest.raises(LakeError, match="the lake has rows of model llama-pt, stream .* already; choose another"):
        add_table(lake_copy, "lens", write(tmp_path, frame), pair="llama", variant="pt", stream=native)


def test_pair_lens_curves_answer_exp16(lake: Layout, tmp_path: Path) -> None:
    frame = pd.DataFrame({"layer": range(5), "js": [0.1, 0.2, 0.3, 0.4, 0.5]})
    path = write(tmp_path, frame)
    add_table(lake, "pair_lens", path, pair="theirs", stream="teacher", stream_pt="teacher")
    table = Lake(lake.root).run("exp16").table.set_index("measure")["estimate"]
    assert (table["js_ac_full"], table["js_ac_pre"], table["js_ac_final20"]) == pytest.approx((0.3, 0.2, 0.5))


def test_what_is_written_says_where_it_comes_from(lake: Layout, tmp_path: Path) -> None:
    file = write(tmp_path, profile())
    added = add_table(lake, "delta", file, pair="theirs", stream="native")
    assert added.path.name.startswith("foreign-") and (added.rows, added.reused) == (2 * LAYERS, False)
    record = json.loads(pq.read_schema(added.path).metadata[b"actlake"])
    assert record["foreign"]["file"] == "x.csv" and record["foreign"]["given"] == {"pair": "theirs", "stream": "native"}
    again = add_table(lake, "delta", file, pair="theirs", stream="native")
    assert again.reused and again.path == added.path
    rows = (
        connect(lake)
        .sql("SELECT variant, layer, step, token, block_cos FROM delta WHERE layer < 2 ORDER BY ALL")
        .fetchall()
    )
    assert [(v, layer, step, token) for v, layer, step, token, _ in rows] == [
        (v, i, None, None) for v in ("it", "pt") for i in (0, 1)
    ]
    assert rows[0][4] is None and rows[1][4] == pytest.approx(-0.11)
    streams = connect(lake).sql("SELECT pair, variant, recipe, prompt_set FROM streams ORDER BY ALL").fetchall()
    assert streams == [("theirs", v, "native", "foreign") for v in ("it", "pt")]


CURVE = {"variant": ["pt", "it"], "layer": [1, 1], "block_cos": [0.1, 0.2]}
GIVEN = {"pair": "p", "stream": "native"}
BAD: list[tuple[str, Any, dict[str, str], str]] = [
    ("delta", {**CURVE, "cosine": [1, 2]}, GIVEN, "table delta has no column 'cosine'; it has pair, variant"),
    ("commitment", CURVE, GIVEN, "commitment is a view over lens; tables are attention, "),
    ("nothing", CURVE, GIVEN, "no table 'nothing'; tables are"),
    ("delta", {**CURVE, "stream": ["native", None]}, {"pair": "p"}, r"column stream of table delta has gaps \(1 of 2 rows\): give it with --stream"),
    ("lens", {k: [v[0]] for k, v in CURVE.items() if k == "layer"} | {"kl_final_layer": [1]}, {}, r"column pair of table lens is missing: give it with --pair; so is variant \(or name --model instead\) \(filled in as the file lacks it: stream with 'published', lens with 'raw'\)"),
    ("graft", {"variant": ["pt"], "layer": [1], "js_host": [0.1]}, GIVEN, "column condition of table graft is missing: every row needs it"),
    ("delta", CURVE, {"model": "a"}, "table delta of models by name \\(for variants, give --pair in place of it\\) has no column 'variant'"),
    ("delta", CURVE, {"stream": "native"}, "column pair .* give it with --pair"),
    ("delta", {"variant": ["pt"], "block_cos": [0.1]}, GIVEN, "column layer .*: every row needs it"),
    ("delta", CURVE, {**GIVEN, "variant": "it"}, "--variant does not apply: the file has it"),
    ("delta", CURVE, {**GIVEN, "lens": "raw"}, "--lens does not apply: table delta has none"),
    ("delta", {**CURVE, "block_cos": [0.1, 1.2]}, GIVEN, "column block_cos, row 2: 1.2, expected -1 to 1"),
    ("lens", {**{k: CURVE[k] for k in ("variant", "layer")}, "kl_final_layer": [-0.5, 1]}, GIVEN, "row 1: -0.5, expected 0 to inf"),
    ("delta", {**CURVE, "block_cos": [0.1, np.inf]}, GIVEN, "row 2: inf"),
    ("delta", {**CURVE, "variant": ["pt", "base"]}, GIVEN, "variant 'base'; expected pt or it"),
    ("delta", {**CURVE, "variant": ["pt", "pt"]}, GIVEN, "two rows for pair p, variant pt, stream native, layer 1"),
    ("delta", {**CURVE, "block_cos": ["a", "b"]}, GIVEN, "Could not convert string 'a'.*block_cos FLOAT"),
    ("delta", {"variant": ["pt"], "layer": [1]}, GIVEN, "no values; table delta has block_cos"),
    ("delta", {"variant": [], "layer": [], "block_cos": []}, GIVEN, "no rows"),
    ("delta", CURVE, {**GIVEN, "pair": "../up"}, "pair '../up' is not a valid name"),
    ("pair_lens", {"layer": [0], "js": [0.8]}, {**GIVEN, "stream_pt": "s"}, "column js, row 1: 0.8, expected 0 to 0.6932"),
]  # fmt: skip


@pytest.mark.parametrize(("table", "rows", "options", "words"), BAD)
def test_what_does_not_fit_is_refused(lake: Layout, tmp_path: Path, table, rows, options, words) -> None:
    with pytest.raises(LakeError, match=words):
        add_table(lake, table, write(tmp_path, rows), **options)
    assert not (lake.root / "tables").exists()


def test_files_that_cannot_be_read(lake: Layout, tmp_path: Path) -> None:
    with pytest.raises(LakeError, match="no such file"):
        add_table(lake, "delta", tmp_path / "none.csv")
    (tmp_path / "x.parquet").write_bytes(b"not parquet at all")
    with pytest.raises(LakeError, match="can't be read as parquet"):
        add_table(lake, "delta", tmp_path / "x.parquet")
    with pytest.raises(LakeError, match="a table is a .parquet or .csv file"):
        add_table(lake, "delta", write(tmp_path, CURVE, "x.csv").rename(tmp_path / "x.npz"))


def test_the_command_tells_what_came_in(tmp_path: Path) -> None:
    run, lake = CliRunner(env={"COLUMNS": "200"}).invoke, str(tmp_path / "lake")
    file = write(tmp_path, profile())
    done = run(app, ["table", "add", "delta", str(file), "--pair", "theirs", "--stream", "native", "--lake", lake])
    assert done.exit_code == 0 and "20 rows of theirs-it/native; theirs-pt/native, added" in done.output
    every = run(app, ["run", "--all", "--lake", lake, "--out", str(tmp_path / "out"), "--json"])
    reported = json.loads(every.output)
    assert {found["row"] for found in reported["answers"]} == {"L1", "0J"}
    assert "actlake table add lens FILE --model theirs-" in reported["refused"]["L2"]
    refused = run(app, ["table", "add", "delta", str(file), "--lake", str(tmp_path / "other")])
    assert "give it with --pair" in str(refused.exception) and not (tmp_path / "other").exists()


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.sampled_from(["pt", "it"]), st.integers(-1, 40), st.integers(0, 5)),
        min_size=1,
        max_size=30,
        unique=True,
    ),
    st.sampled_from(["x.csv", "x.parquet"]),
    st.randoms(),
)
def test_any_rows_come_back_as_they_were(tmp_path_factory, keys, name, random) -> None:
    folder = tmp_path_factory.mktemp("any")
    frame = pd.DataFrame(keys, columns=["variant", "layer", "prompt"])
    frame["js_next"] = [random.choice([None, round(random.random() * 0.69, 3)]) for _ in keys]
    frame["top1"] = [random.randrange(1000) for _ in keys]
    lake = Layout.open(folder / "lake", create=True)
    add_table(lake, "lens", write(folder, frame, name), pair="p", stream="native")
    found = connect(lake).sql("SELECT variant, layer, prompt, js_next, top1, lens FROM lens ORDER BY ALL").df()
    want = frame.sort_values(["variant", "layer", "prompt"], ignore_index=True)
    assert (
        found[["variant", "layer", "prompt", "top1"]].values.tolist()
        == want[["variant", "layer", "prompt", "top1"]].values.tolist()
    )
    assert np.allclose(found["js_next"].astype(float), want["js_next"].astype(float), equal_nan=True)
    assert set(found["lens"]) == {"raw"}


def csv(folder: Path, text: str, name: str) -> Path:
    (folder / name).write_text(text.replace(" ", "\n") + "\n")
    return folder / name


KL = "variant,layer,kl_final_layer pt,0,2 pt,1,1 pt,2,0 it,0,3 it,1,2 it,2,0"


def test_sql_reads_tables_of_any_streams_and_conditions(lake: Layout, tmp_path: Path) -> None:
    add_table(lake, "lens", csv(tmp_path, KL, "lens.csv"), pair="theirs", stream="native-pub")
    pair = csv(tmp_path, "layer,js 0,0.1 1,0.2 2,0.3", "pair.csv")
    add_table(lake, "pair_lens", pair, pair="theirs", stream="teacher-pub", stream_pt="teacher-pub-pt")
    graft = csv(tmp_path, "condition,layer,js_host B_late,0,0.1 B_late,1,0.2", "graft.csv")
    add_table(lake, "graft", graft, pair="theirs")
    geometry = csv(tmp_path, "variant,layer,metric,value pt,0,twonn,5 it,0,twonn,7", "geometry.csv")
    add_table(lake, "geometry", geometry, pair="others")
    mine = Lake(lake.root)
    counts = {
        name: mine.sql(f"SELECT count(*) FROM {name}").fetchall()[0][0] for name in ("lens", "pair_lens", "graft")
    }
    assert counts == {"lens": 6, "pair_lens": 3, "graft": 2}
    assert mine.sql("SELECT DISTINCT stream, variant, window_start FROM graft").fetchall() == [
        ("published", "pt", None)
    ]
    assert mine.sql("SELECT count(*), min(draw) FROM geometry").fetchall() == [(2, 0)]
    with pytest.raises(LakeError, match="table delta has no rows of"):
        mine.sql("SELECT * FROM delta")


def test_values_of_all_points_need_no_draw(lake: Layout, tmp_path: Path) -> None:
    rows = "variant,layer,metric,value pt,0,twonn,5 pt,1,twonn,6 it,0,twonn,7 it,1,twonn,9"
    add_table(lake, "geometry", csv(tmp_path, rows, "g.csv"), pair="theirs")
    cosines = "name,layer,value matched,0,0.9 matched,1,0.8 matched,2,0.7 reverse,0,-1 reverse,1,-0.5 reverse,2,-0.4"
    add_table(lake, "directions", csv(tmp_path, cosines, "d.csv"), pair="theirs")
    found = Lake(lake.root).run("L8", pair="theirs")
    line = number(found.table, "late_twonn")
    assert (line["estimate"], line["method"]) == (3, "none") and np.isnan(line["low"])
    assert "+3.00 [no interval]" in found.sentence and not found.table["method"].str.contains("undefined").any()
    cosine = Lake(lake.root).run("0B", pair="theirs").table.set_index("measure")["estimate"]
    assert cosine["corrective_matched"] == pytest.approx(0.7) and cosine["corrective_reverse_min"] == pytest.approx(
        -0.4
    )


def test_what_is_undefined_gets_its_true_reason(lake: Layout, tmp_path: Path) -> None:
    rows = "variant,layer,metric,draw,value,n pt,0,twonn,1,5,40 it,0,twonn,1,6,40 pt,0,pc1,0,,40 it,0,pc1,0,0.5,40"
    add_table(lake, "geometry", csv(tmp_path, rows, "g.csv"), pair="theirs")
    table = Lake(lake.root).run("L8", pair="theirs").table
    reasons = {(line.measure, line.variant): line.method for line in table.itertuples()}
    assert reasons["twonn", "pt"] == "undefined: no value of all points"
    assert reasons["pc1", "pt"] == "undefined: points coincide" and reasons["pc1", "it"] == "none"


def scores(folder: Path, sweep: str, cells: dict[tuple[str, str, float], float]) -> Path:
    rows = [{"sweep": sweep, "metric": m, "arm": a, "dose": d, "value": v} for (m, a, d), v in cells.items()]
    return write(folder, rows, f"{sweep}.csv")


def test_contrasts_of_published_means(lake: Layout, tmp_path: Path) -> None:
    g1 = {("g1", "A", 0): 1.39, ("g1", "B", 0): 1.58, ("g1", "C", 0): 3.83, ("str", "A", 0): 0.1, ("str", "B", 0): 0.2}
    doses = {("str", "d_mean", a): v for a, v in {-5: 0.066, 0: 0.152, 1: 0.056, 3: 0.275, 5: 0.766}.items()}
    doses |= {("str", "d_conv", 1): 0.05, ("str", "d_conv", 5): 0.06}
    for sweep, cells in (
        ("exp12", g1),
        ("exp10_P4", doses),
        ("A1", {k: v for k, v in doses.items() if k[1] == "d_mean"}),
    ):
        add_table(lake, "scores", scores(tmp_path, sweep, cells), pair="theirs")
    mine = Lake(lake.root)
    said = mine.run("exp12", pair="theirs")
    table = said.table.set_index(["measure", said.table["arm"].fillna("")])["estimate"]
    assert table["g1", "B - A"] == pytest.approx(0.19) and table["gap_closed_g1", ""] == pytest.approx(0.19 / 2.44)
    assert "structural words: +0.100 [no interval]" in said.sentence and "undefined" not in said.sentence
    steered = mine.run("exp10_P4", pair="theirs").table.set_index("measure")["estimate"]
    assert steered["str_times_5_d_mean"] == pytest.approx(13.7, abs=0.03)
    assert steered["str_d_mean_0"] == pytest.approx(0.096) and steered["str_apart_5"] == pytest.approx(0.7)
    a1, effect = (mine.run(row, pair="theirs").table.set_index("measure")["estimate"] for row in ("A1", "0D"))
    # DuckDB's threads add in no fixed order: the last digit of a sum may differ.
    for name, other, value in (("str_change_5", "str_change_5", 0.71), ("str_spearman", "rho_str", 0.7)):
        assert a1[name] == pytest.approx(effect[other], rel=1e-12) and a1[name] == pytest.approx(value)


def grafts(conditions: str, lens: str = "raw", **columns: float) -> pd.DataFrame:
    rows = [{"condition": c, "layer": layer, "lens": lens, **columns} for c in conditions.split() for layer in range(5)]
    return pd.DataFrame(rows)


def test_means_per_layer_answer_the_graft_rows(lake: Layout, tmp_path: Path) -> None:
    every = "B_early B_mid B_late D_early D_mid D_late"
    frame = grafts(every, js_target=0.1, js_host=0.05)
    add_table(lake, "graft", write(tmp_path, frame), pair="js")
    add_table(lake, "pair_lens", write(tmp_path, {"layer": range(5), "js": [0.3] * 5}), pair="js")
    table = Lake(lake.root).run("exp16_BD", pair="js").table
    closer = table.set_index("measure")["estimate"]["closer_b_mid_final20"]
    assert closer == pytest.approx(0.2) and set(table["unit"].dropna()) == {"curves"}
    tuned = grafts(every, "tuned", kl_layer_final=2.0)
    add_table(lake, "graft", write(tmp_path, tuned), pair="kl")
    own = {"variant": ["pt"] * 5 + ["it"] * 5, "layer": [*range(5)] * 2, "kl_layer_final": [1.5] * 5 + [2.5] * 5}
    add_table(lake, "lens", write(tmp_path, own), pair="kl", lens="tuned")
    found = Lake(lake.root).run("exp14", pair="kl")
    measures = found.table.set_index("measure")["estimate"]
    assert measures["dkl_final20_b_late_tuned"] == pytest.approx(0.5)
    assert measures["dkl_final20_d_late_tuned"] == pytest.approx(-0.5)
    assert found.sentence.startswith("With the tuned lens late ones give 0.500 [no interval] in the PT")
    assert Lake(lake.root).run("exp11", pair="kl").table.set_index("measure")["estimate"][
        "dkl_final20_mid_tuned"
    ] == pytest.approx(0.5)


def test_a_row_asks_only_for_the_variant_it_reads(lake: Layout, tmp_path: Path) -> None:
    frame = grafts("B_early B_mid B_late B_early_random B_mid_random B_late_random", kl_layer_final=2.0)
    add_table(lake, "graft", write(tmp_path, frame), pair="theirs")
    own = {"layer": range(5), "kl_layer_final": [1.5] * 5}
    add_table(lake, "lens", write(tmp_path, own), pair="theirs", variant="pt")
    found = Lake(lake.root).run("exp19B", pair="theirs")
    assert found.table.set_index("measure")["estimate"]["true_late_raw"] == pytest.approx(0.5)
    assert "lens(raw)" not in found.sentence


def test_differences_need_both_sides(lake: Layout, tmp_path: Path) -> None:
    """Of grafts without their random controls there is no excess, of events without top tokens no share of picks."""
    add_table(lake, "graft", write(tmp_path, grafts("B_late B_mid", kl_layer_final=2.0, js_target=0.1)), pair="theirs")
    own = {"variant": ["pt"] * 5, "layer": range(5), "kl_layer_final": [1.5] * 5}
    add_table(lake, "lens", write(tmp_path, own), pair="theirs")
    found = Lake(lake.root).run("exp19B", pair="theirs")
    assert not found.table["measure"].str.startswith("excess").any() and "late MLPs, raw lens: 0.500" in found.sentence
    cells = [
        {"condition": c, "layer": i, "margin": m + i}
        for c, m in {"A": -2, "B_mid": 1, "C": 3}.items()
        for i in range(4)
    ]
    add_table(lake, "divergence", write(tmp_path, cells), pair="theirs")
    picked = Lake(lake.root).run("exp20", pair="theirs")
    assert not picked.table["measure"].str.contains("picks").any()
    moved = picked.table[picked.table["measure"] == "moved"].set_index("condition")["estimate"]
    assert moved["B_mid"] == pytest.approx(3)


def test_rows_on_the_published_stream_are_found_beside_others(lake: Layout, tmp_path: Path) -> None:
    add_table(lake, "lens", csv(tmp_path, KL, "lens.csv"), pair="theirs")
    add_table(lake, "delta", write(tmp_path, profile()), pair="theirs", stream="native-more")
    mine = Lake(lake.root)
    assert "+0.500 [no interval]" in mine.run("L2", pair="theirs").sentence
    assert mine.run("L1", pair="theirs").streams == {"pt": "native-more", "it": "native-more"}
    with pytest.raises(LakeError, match="table geometry has no rows of"):
        mine.run("L8", pair="theirs")


def test_what_means_cannot_answer_says_why(lake: Layout, tmp_path: Path) -> None:
    add_table(lake, "lens", csv(tmp_path, KL, "lens.csv"), pair="theirs")
    for row in ("0G", "exp22"):
        with pytest.raises(LakeError, match=f"{row}: .*rows brought in for pair theirs give none of its numbers"):
            Lake(lake.root).run(row, pair="theirs")


@pytest.mark.parametrize("row", ["L1", "L2", "L9"])
@pytest.mark.parametrize("step", [0.25, -0.25])
def test_a_sentence_never_denies_a_number_without_interval(lake: Layout, tmp_path: Path, row: str, step: float) -> None:
    table, column = {"L1": ("delta", "block_cos"), "L2": ("lens", "kl_final_layer"), "L9": ("attention", "entropy")}[
        row
    ]
    rows = [{"variant": v, "layer": i, column: 0.5 + step * (v == "it")} for v in ("pt", "it") for i in range(4)]
    add_table(lake, table, write(tmp_path, rows), pair="theirs")
    said = Lake(lake.root).run(row, pair="theirs").sentence
    assert ("+0.250" if step > 0 else "−0.250") + " [no interval]" in said
    assert "about as" not in said and "neither" not in said and "-0.2" not in said


def test_models_in_no_pair_are_answered_as_the_message_says(lake: Layout, tmp_path: Path, monkeypatch) -> None:
    for name in ("a", "b"):
        file = write(tmp_path, pd.DataFrame({"layer": range(3), "kl_final_layer": [2.0, 1.0, 0.0]}), f"{name}.csv")
        add_table(lake, "lens", file, model=name)
    with pytest.raises(LakeError, match=r"the lake's models \(a, b\) are in none; a catalog.yaml in the folder"):
        Lake(lake.root).run("L2")
    (tmp_path / "catalog.yaml").write_text("models: {a: {hub: x/a}, b: {hub: x/b}}\npairs: {ours: {pt: a, it: b}}\n")
    monkeypatch.chdir(tmp_path)
    found = Lake(lake.root).run("L2", probes=False).table
    assert number(found, "cg_raw")["estimate"] == 0
