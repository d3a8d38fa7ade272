"""Tables from elsewhere: what is refused, and that published curves give the published numbers through the rows' SQL."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from actlake.cli import app
from actlake.lake import Lake
from actlake.queries.registry import POOLS, published
from actlake.store.errors import LakeError
from actlake.store.foreign import add_table
from actlake.store.layout import Layout
from actlake.store.tables import connect
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
    assert "δ-cosine difference -0.085." in found.says
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
    assert found.says.startswith("With the tuned lens the gap is") and "undefined" not in found.says
    assert "without lens(raw): table lens has no rows of" in found.says


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
        LakeError, match=r"table delta has no rows of llama, it, native-theirs.*`actlake table add delta FILE"
    ):
        mine.run("L1", pair="llama", prompts="theirs")
    native = mine.run("L2", pair="llama", prompts="tiny").streams["pt"]
    with pytest.raises(
        LakeError, match="the lake has rows of pair llama, variant pt, stream .* already; choose another"
    ):
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
    ("commitment", CURVE, GIVEN, "commitment is a view over lens; tables are tokens, lens"),
    ("nothing", CURVE, GIVEN, "no table 'nothing'; tables are"),
    ("delta", CURVE, {"pair": "p"}, "column stream of table delta is missing or has gaps: give it with --stream"),
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
    assert done.exit_code == 0 and "20 rows of theirs/it/native; theirs/pt/native, added" in done.output
    every = run(app, ["run", "--all", "--lake", lake, "--out", str(tmp_path / "out"), "--json"])
    told = json.loads(every.output)
    assert {found["row"] for found in told["answers"]} == {"L1", "0J"}
    assert "actlake table add lens FILE --pair theirs" in told["refused"]["L2"]
    refused = run(app, ["table", "add", "delta", str(file), "--pair", "x", "--lake", str(tmp_path / "other")])
    assert "give it with --stream" in str(refused.exception) and not (tmp_path / "other").exists()


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
