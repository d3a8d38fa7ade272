"""A pair of one model: rows that have a meaning for one answer it, those that compare two say so, tables and texts likewise."""

import json
from dataclasses import replace

import numpy as np
import pytest
from actlake.lake import Lake
from actlake.queries.rows.header import parse
from actlake.queries.rows.registry import queries
from actlake.store.core.catalog import ProfileSpec, StreamSpec
from actlake.store.core.errors import LakeError
from asking import answer_all
from tiny import capture, make_pair, prompt_set

TEXTS = [
    (f"p{n}", ("FACT", "FORMAT")[n % 2], f"the {('cat', 'dog', 'rain')[n % 3]} {n} sat on the log") for n in range(32)
]
PROFILE = ProfileSpec("full", ("resid", "mlp_out", "attn_entropy"), "auto", "auto", 64)
ALONE = ["0G", "L1", "L2", "L8", "L9", "dla", "tuned"]


@pytest.fixture(scope="module", params=["it", "pt"])
def lake(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Lake, str]:
    """A lake of a pair that has one model, and which."""
    folder = tmp_path_factory.mktemp(f"half_{request.param}")
    pair = replace(make_pair(folder), **{{"it": "pt", "pt": "it"}[request.param]: None})
    (folder / "catalog.yaml").write_text(
        f"pairs: {{llama: {{{request.param}: {{path: {request.param}}}}}}}\nprompts: {{tiny: {{path: p.jsonl}}}}\n"
    )
    rows = [json.dumps({"id": name, "category": category, "text": text}) for name, category, text in TEXTS]
    (folder / "p.jsonl").write_text("\n".join(rows) + "\n")
    native = StreamSpec("native", "native", "own", 14)
    capture(folder / "lake", pair, native, prompts=prompt_set(TEXTS), profile=PROFILE, variants=(request.param,))
    return Lake(folder / "lake", catalog=folder / "catalog.yaml"), request.param


def test_rows_of_one_model_have_one_column(lake: tuple[Lake, str]) -> None:
    found, who = lake
    asked = list(queries().values())
    answers, refused, _ = answer_all(found.layout, asked, "llama", catalog=found._catalog)
    assert sorted(answer.query.id for answer in answers) == ALONE
    assert {one.query.id: one.reason for one in refused} == {
        query.id: f"llama has {who} only; {query.id} compares two models" for query in asked if query.id not in ALONE
    }
    for answer in answers:
        if "variant" in answer.table:
            assert set(answer.table["variant"].dropna()) == {who}
        assert answer.sentence.startswith(f"llama has {who} only, which is compared with no other model. ")
        assert "undefined" not in answer.sentence and answer.table["estimate"].notna().any()
        assert answer.figure() is not None


def test_the_number_is_the_same_as_in_a_pair(lake: tuple[Lake, str]) -> None:
    found, who = lake
    cosines = found.sql(
        "SELECT layer, step, avg(block_cos) AS c FROM delta WHERE step BETWEEN 11 AND 100 AND layer >= 1 GROUP BY ALL"
    )
    by_layer = cosines.df().groupby("layer")["c"].mean()
    table = found.run("L1", "llama").table
    profile = table[(table["measure"] == "profile") & (table["variant"] == who)].set_index("layer")["estimate"]
    assert np.allclose(profile.sort_index(), by_layer.sort_index(), atol=1e-6)


def test_tables_of_two_models_say_what_is_missing(lake: tuple[Lake, str]) -> None:
    found, who = lake
    for table in ("pair_lens", "directions", "divergence", "graft"):
        with pytest.raises(
            LakeError, match=rf"table {table} needs both models of a pair; none here has both \(captured: llama/{who}\)"
        ):
            found.sql(f"SELECT count(*) FROM {table}")
    assert found.sql("SELECT count(*) FROM lens_eval").fetchall()[0][0] > 0
    assert found.sql("SELECT count(*) FROM words").fetchall()[0][0] > 0
    assert found.sql("SELECT count(*) FROM vocab").fetchall()[0][0] == 300


def test_what_it_lacks_is_named_without_a_command_that_must_fail(lake: tuple[Lake, str]) -> None:
    found, who = lake
    other = {"it": "pt", "pt": "it"}[who]
    with pytest.raises(LakeError, match=rf"^llama has {who} only; exp16 compares two models$"):
        found.run("exp16", "llama")
    with pytest.raises(LakeError, match="compares two models"):
        found.run("L3", "llama")
    with pytest.raises(LakeError, match=rf"^llama has {who} only; pooling compares two models$"):
        found.run("L1", ["llama", "pocket"])
    assert other not in found.run("L1", "llama").sentence.split()


def test_an_unknown_pair_is_named_before_anything_else(lake: tuple[Lake, str]) -> None:
    found, _ = lake
    for pair, meant in (("lama", "llama"), ("pockett", "pocket")):
        for row in ("L2", "L3", "exp16", "A1"):
            with pytest.raises(
                LakeError, match=rf"^unknown pair '{pair}': the lake has llama, .* did you mean '{meant}'\?$"
            ):
                found.run(row, pair)
        with pytest.raises(LakeError, match="unknown pair"):
            answer_all(found.layout, list(queries().values()), pair, catalog=found._catalog)


def test_the_header_of_a_query_says_how_many_models_it_takes() -> None:
    text = "-- id: x\n-- title: t\n-- needs: lens(raw)\n-- models: {}\n-- stream: native\n-- source: s\nSELECT 1"
    assert parse(text.format(1), "x.sql").models == 1 and queries()["exp16"].models == 2
    with pytest.raises(LakeError, match="models '3', expected 1"):
        parse(text.format(3), "x.sql")
