"""What reads different texts says so, and has the number on the same text beside; pair_lens tells the two apart."""

from dataclasses import replace
from pathlib import Path

import tiny
from actlake.lake import Lake
from actlake.queries.rows.numbers import number
from actlake.store.core.catalog import PairSpec
from actlake.store.format.paths import Layout

GAP = """WITH d AS (SELECT max(layer) + 1 AS n FROM lens), s AS (
    SELECT variant, layer, avg(kl_final_layer) AS kl FROM lens, d
    WHERE lens = 'raw' AND step >= 1 AND layer >= floor(n / 2)
        AND starts_with(stream, if(variant = 'it', 'native', 'teacher'))
    GROUP BY variant, layer)
SELECT avg(kl) FILTER (variant = 'it') - avg(kl) FILTER (variant = 'pt') FROM s"""


def test_the_number_on_the_same_text_stands_beside(lake_copy: Layout) -> None:
    lake = Lake(lake_copy.root)
    said = lake.run("L2", probes=False).sentence
    assert "PT and IT read their own texts here" in said
    ((gap,),) = lake.sql(GAP).fetchall()
    beside = said.partition("On the same text, IT's answers read by both, it is ")[2]
    assert beside.startswith(number(gap, sign=True)[:5]) and "(convergence gap, raw lens, nats)." in beside


def test_without_a_capture_on_the_same_text_the_sentence_says_only_whose_texts(tmp_path: Path, llama: PairSpec) -> None:
    layout = tiny.capture(tmp_path / "lake", llama, tiny.NATIVE)
    said = Lake(layout.root).run("L2", probes=False).sentence
    assert "PT and IT read their own texts here" in said and "On the same text" not in said


def test_rows_of_the_last_prompt_token_speak_of_prompts(tmp_path: Path, llama: PairSpec) -> None:
    profile = replace(tiny.FULL, sites=(*tiny.FULL.sites, "attn_entropy"))
    layout = tiny.capture(tmp_path / "lake", llama, tiny.NATIVE, profile=profile)
    assert "PT and IT each read the prompt in their own form here" in Lake(layout.root).run("L9").sentence


def test_pair_lens_marks_whose_history_it_is(lake_copy: Layout) -> None:
    found = Lake(lake_copy.root).sql("SELECT DISTINCT history, stream_pt FROM pair_lens ORDER BY ALL").fetchall()
    assert [(history, name.split("-")[0]) for history, name in found] == [("own", "native"), ("shared", "teacher")]
