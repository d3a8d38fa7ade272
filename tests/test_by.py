"""One model compared with itself: on two prompt sets, on two streams; rows that can't say so are refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
from actlake.lake import Lake
from actlake.queries.answer.own import checked
from actlake.queries.rows.header import COMPARES, parse
from actlake.queries.rows.registry import queries
from actlake.store.core.catalog import PairSpec
from actlake.store.core.errors import LakeError
from actlake.store.tables.declared import TABLES
from actlake.store.tables.statements import tables_behind

OTHER = [(f"q{n}", "FACT", f"the {('cat', 'dog', 'rain', 'log')[n % 4]} sat on {n} mats") for n in range(8)]


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory, llama: PairSpec) -> Lake:
    """One model on two prompt sets, on one of them with and without its template."""
    root = tmp_path_factory.mktemp("by") / "lake"
    layout = tiny.capture(root, llama, tiny.NATIVE, tiny.RAW, variants=("it",))
    tiny.capture(root, llama, tiny.NATIVE, variants=("it",), prompts=tiny.prompt_set(OTHER, "other"))
    return Lake(layout.root)


def gap(lake: Lake, stream: str) -> float:
    """Mean KL(final || layer) of the second half of the layers."""
    sql = f"""SELECT sum(kl_final_layer) / count(kl_final_layer) FROM lens
        WHERE stream LIKE '{stream}%' AND step >= 1 AND layer >= 1 AND lens = 'raw' AND variant = 'it'"""
    return float(lake.sql(sql).fetchall()[0][0])


def late(lake: Lake, name: str) -> float:
    (path,) = [path.stem for path in lake.layout.root.glob(f"captures/llama-it/{name}*.zarr")]
    # Layers 1 and 2 of three: the mean of two sums of equal counts.
    return gap(lake, path)


@pytest.mark.parametrize(
    ("by", "first", "second"),
    [("prompts=tiny..other", "native-tiny", "native-other"), ("streams=raw..native", "raw-tiny", "native-tiny")],
)
def test_the_difference_is_that_of_two_answers(lake: Lake, by: str, first: str, second: str) -> None:
    one, two = by.partition("=")[2].split("..")
    answer = lake.run("L2", pair="llama/it", probes=False, by=by, prompts=None if "prompts" in by else "tiny")
    lines = answer.table[answer.table["measure"] == "cg_raw"].set_index("variant")
    assert set(lines.index) == {one, two, f"{two} - {one}"}
    assert lines.loc[one, "estimate"] == pytest.approx(late(lake, first), rel=1e-5)
    assert lines.loc[two, "estimate"] == pytest.approx(late(lake, second), rel=1e-5)
    change = lines.loc[f"{two} - {one}"]
    assert change["estimate"] == pytest.approx(lines.loc[two, "estimate"] - lines.loc[one, "estimate"])
    assert change["low"] < change["estimate"] < change["high"]
    # Prompts of one set are resampled together, those of two sets each by themselves.
    assert change["n"] == (6 if one == "raw" else 6 + 8)
    assert f"“{two}” stays" in answer.sentence and f" “{one}” (convergence gap" in answer.sentence
    assert "PT" not in answer.sentence and answer.published.empty and set(answer.streams) == {one, two}
    assert answer.figure().axes and answer.pair == f"llama-it-{one}..{two}"
    assert len(lake.sql(answer.sql).df()) == answer.rows


def test_rows_say_what_they_compare(lake: Lake) -> None:
    able = [query.id for query in queries().values() if query.compares[:3] == COMPARES[:3]]
    assert able == ["L1", "L2", "L8", "L9", "0G", "dla"] and "layers" not in queries()["0G"].compares
    for name in able:
        for want in queries()[name].needs:
            assert {TABLES[table].of for table in tables_behind(want.table)} == {"capture"}
    for row in ("exp16", "L3", "A1"):
        with pytest.raises(LakeError, match=f"{row}: it compares models, not prompts of one model: leave --by out"):
            lake.run(row, pair="llama/it", by="prompts=tiny..other")
    with pytest.raises(
        LakeError, match=r"x.sql:6: compares 'layer', expected some of models, prompts, streams, layers"
    ):
        text = "-- id: x\n-- title: t\n-- needs: lens\n-- stream: native\n-- source: s\n-- compares: layer\nSELECT 1"
        parse(text, "x.sql")


def test_two_layers_of_one_model(lake: Lake) -> None:
    answer = lake.run("dla", pair="llama/it", by="layers=0..2", prompts="tiny", probes=False)
    means = lake.sql(
        "SELECT layer, avg(effect) AS e FROM dla WHERE stream LIKE 'native-tiny%' AND variant = 'it' AND part = 'mlp'"
        " AND step >= 1 GROUP BY ALL ORDER BY ALL"
    ).df()["e"]
    lines = answer.table[answer.table["measure"] == "mlp"].set_index("variant")
    assert lines.loc["layer 0", "estimate"] == pytest.approx(means[0], abs=1e-6)
    change = lines.loc["layer 2 - layer 0"]
    assert change["estimate"] == pytest.approx(means[2] - means[0], abs=1e-6) and change["low"] < change["high"]
    assert "MLP, direct effect (layer 2 − layer 0): " in answer.sentence and answer.figure() is not None
    with pytest.raises(LakeError, match="llama-it: layer 3: expected 0 to 2"):
        lake.run("dla", pair="llama/it", by="layers=0..3", prompts="tiny", probes=False)


def test_a_row_about_pairs_is_told(tmp_path: Path) -> None:
    text = "-- id: x\n-- title: t\n-- needs: pair_lens\n-- compares: models, prompts\n-- stream: native\n-- source: s\n"
    (tmp_path / "x.sql").write_text(f"{text}SELECT 'js' AS measure, avg(js) AS estimate FROM pair_lens")
    said = checked(tmp_path / "x.sql")[1]
    assert said == [f"{tmp_path / 'x.sql'}:4: compares more than models, but table pair_lens is about two of them"]


@pytest.mark.parametrize(
    ("by", "pair", "said"),
    [
        (
            "prompts=tiny..othr",
            "llama/it",
            "llama-it: no capture on prompt set 'othr'; did you mean 'other'.*there: other, tiny",
        ),
        ("streams=raw..teacher", "llama/it", "llama-it: no capture on stream 'teacher'; there: native, raw"),
        (
            "prompts=tiny..tiny",
            "llama/it",
            "by 'prompts=tiny..tiny': expected prompts=A..B, streams=A..B or layers=A..B",
        ),
        ("layers=1..x", "llama/it", "by 'layers=1..x': expected prompts=A..B, streams=A..B or layers=A..B"),
        ("layers=01..1", "llama/it", "by 'layers=01..1': expected prompts=A..B, streams=A..B or layers=A..B"),
        ("layers=\u0661..2", "llama/it", "by 'layers=\u0661..2': expected prompts=A..B, streams=A..B or layers=A..B"),
        ("", "llama/it", "by: expected a name, found an empty one"),
        ("heads=1..2", "llama/it", "by 'heads=1..2': expected prompts=A..B, streams=A..B or layers=A..B"),
        ("prompts=tiny..other", None, "--by compares one model with itself: name it with --pair, MODEL or PAIR/ROLE"),
        ("streams=raw..native", "llama/it", "several captures fit stream 'native'.*pick one with --prompts"),
    ],
)
def test_what_can_not_be_compared_is_refused_in_a_line(lake: Lake, by: str, pair: str | None, said: str) -> None:
    with pytest.raises(LakeError, match=said) as caught:
        lake.run("L2", pair=pair, probes=False, by=by)
    assert "\n" not in str(caught.value)


def test_from_the_command_line(lake: Lake, command_line: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    place = ("--lake", str(lake.layout.root), "--out", str(tmp_path / "out"), "--json")
    asked = ("run", "L1", "--pair", "llama/it", "--by", "prompts=tiny..other")
    code, out, err = command_line("run", "dla", *asked[2:], *place)
    assert code == 0, err
    (found,) = json.loads(out)
    assert {row["variant"] for row in found["table"]} == {"tiny", "other", "other - tiny"}
    code, _, err = command_line(*asked, *place, "--lock", str(tmp_path / "x.lock"))
    assert code == 2 and "--lock: a lock file is about models; leave --by out" in err
