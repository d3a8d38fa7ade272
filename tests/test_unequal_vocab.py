"""A pair whose models have unequal vocabularies: one added token and one more embedding row in one of them.

Every row answers on the tokens that are real to both, and texts that both models read end before a token that either lacks.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from actlake.capture.streams.capture_pair import sources_of
from actlake.lake import Lake
from actlake.queries.rows.registry import queries
from actlake.store.artifacts.models import read_head
from actlake.store.core.catalog import ProfileSpec, StreamSpec
from actlake.store.tables.streams import stream_table
from asking import answer_all
from tiny import add_token, capture, make_pair, prompt_set

TEXTS = [
    (f"p{n}", ("FACT", "FORMAT", "SAFETY")[n % 3], f"the {('cat', 'dog', 'rain', 'mat')[n % 4]} {n} sat on the log")
    for n in range(32)
]
STREAMS = [
    StreamSpec(name, template, who, 14)
    for name, template, who in (
        ("raw", "raw", "own"),
        ("native", "native", "own"),
        ("teacher", "native", "it"),
        ("reverse", "native", "pt"),
    )
]
PROFILE = ProfileSpec("full", ("resid", "mlp_out", "attn_entropy"), "auto", "auto", 64)
WRITTEN = {"0C", "0D", "0E", "0F", "0I", "A1", "A1_notmpl", "A1_rand", "A2", "A5a", "exp10_P4", "exp12", "exp15"}
ADDED = 300


@pytest.fixture(scope="module", params=["it", pytest.param("pt", marks=pytest.mark.sweep)])
def lake(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Lake, str]:
    """A lake of a pair with all streams, and which of the two has the added token."""
    folder = tmp_path_factory.mktemp(f"added_{request.param}")
    pair = make_pair(folder)
    add_token(folder / request.param)
    (folder / "catalog.yaml").write_text(
        "pairs: {llama: {pt: {path: pt}, it: {path: it}}}\nprompts: {tiny: {path: p.jsonl}}\n"
    )
    rows = [json.dumps({"id": name, "category": category, "text": text}) for name, category, text in TEXTS]
    (folder / "p.jsonl").write_text("\n".join(rows) + "\n")
    capture(folder / "lake", pair, *STREAMS, prompts=prompt_set(TEXTS), profile=PROFILE)
    return Lake(folder / "lake", catalog=folder / "catalog.yaml"), request.param


def test_every_row_is_answered(lake: tuple[Lake, str]) -> None:
    found, wider = lake
    asked = [query for query in queries().values() if wider == "it" or query.id in ("exp11", "exp16", "exp20", "exp23")]
    answers, refused, _ = answer_all(found.layout, asked, "llama", catalog=found._catalog, generate=False)
    assert {one.query.id for one in refused} == WRITTEN & {query.id for query in asked}
    assert all("switched off" in one.reason for one in refused)
    assert all(answer.table["estimate"].notna().any() for answer in answers)


def test_a_written_row_is_answered(lake: tuple[Lake, str]) -> None:
    found, _ = lake
    answer = found.run("exp12", pair="llama")
    assert answer.table["estimate"].notna().any()


def test_js_is_that_of_the_common_tokens(lake: tuple[Lake, str]) -> None:
    found, _ = lake
    streams = stream_table(found.layout).query("recipe == 'teacher'").set_index("model")["stream"]
    sides, logp = {}, {}
    for variant in ("pt", "it"):
        arrays, attrs = read_head(found.layout, f"llama-{variant}")
        data = found.dataset(f"llama-{variant}", streams[f"llama-{variant}"])
        sides[variant] = data
        at = np.flatnonzero(data["step"].values >= 0)
        h = data["resid"].values[at].astype(np.float64)
        h = h / np.sqrt((h**2).mean(-1, keepdims=True) + attrs["norm_eps"]) * arrays["norm_weight"]
        z = (h @ arrays["unembed"].T.astype(np.float64))[..., :ADDED]
        logp[variant] = z - np.log(np.exp(z).sum(-1, keepdims=True))
    p, q = (np.exp(logp[variant]) for variant in ("pt", "it"))
    mid = np.log((p + q) / 2)
    js = 0.5 * (p * (logp["pt"] - mid) + q * (logp["it"] - mid)).sum(-1)
    table = found.sql(
        f"SELECT js, kl_pt_it FROM pair_lens WHERE stream = '{streams['llama-it']}' AND stream_pt = '{streams['llama-pt']}'"
        " AND step >= 0 ORDER BY prompt, step, layer"
    ).df()
    assert np.allclose(table["js"], js.ravel(), atol=2e-6)
    assert np.allclose(table["kl_pt_it"], (p * (logp["pt"] - logp["it"])).sum(-1).ravel(), atol=1e-5)
    answer = found.run("exp16", pair="llama").table
    prompts = sides["pt"]["prompt"].values[sides["pt"]["step"].values >= 0]
    curve = answer[(answer["measure"] == "js") & answer["layer"].notna()].set_index("layer")["estimate"]
    assert len(prompts) == len(js) and np.allclose(curve.sort_index(), js[:, 1:].mean(0), atol=1e-6)


def test_a_text_that_both_read_ends_before_a_token_that_one_lacks(lake: tuple[Lake, str]) -> None:
    found, wider = lake
    shared, own = ("teacher", "native") if wider == "it" else ("reverse", "native")
    texts = found.sql(
        "SELECT t.variant, recipe, prompt, list(token_id ORDER BY position) AS ids"
        " FROM tokens t JOIN streams s ON s.pair = t.pair AND s.variant = t.variant AND s.stream = t.stream"
        f" WHERE recipe IN ('{shared}', '{own}') AND is_continuation GROUP BY ALL"
    ).df()
    kept = {key: group.set_index("prompt")["ids"] for key, group in texts.groupby(["variant", "recipe"])}
    whole = kept[wider, own]
    assert any(ADDED in ids for ids in whole)  # else this shows nothing
    for prompt, ids in whole.items():
        cut = list(ids).index(ADDED) if ADDED in ids else len(ids)
        for variant in ("pt", "it"):
            read = kept[variant, shared].get(prompt, [])
            assert list(read) == list(ids[:cut])


def test_events_are_those_of_tokens_that_both_have(lake: tuple[Lake, str]) -> None:
    found, wider = lake
    parted = found.sql("SELECT prompt, it_token, pt_token FROM first_diff WHERE stream LIKE 'raw%'").df()
    both = parted[(parted["it_token"] < ADDED) & (parted["pt_token"] < ADDED)]
    assert len(both) < len(parted)
    for table in ("divergence", "writeout", "factorial"):
        rows = found.sql(f"SELECT DISTINCT prompt FROM {table} WHERE stream LIKE 'raw%'").df()
        assert set(rows["prompt"]) == set(both["prompt"]), table


def test_equal_vocabularies_change_no_recipe(tmp_path: Path) -> None:
    from actlake.capture.streams.capture_pair import Options
    from actlake.capture.streams.streams import recipe_of

    pair = make_pair(tmp_path)
    for variant in ("pt", "it"):
        sources = sources_of(pair, ("pt", "it"), STREAMS, Options())
        assert "common_vocab" not in recipe_of(sources, variant, STREAMS[2], prompt_set(), False, 4)
    add_token(tmp_path / "pt")
    sources = sources_of(pair, ("pt", "it"), STREAMS, Options())
    assert recipe_of(sources, "it", STREAMS[2], prompt_set(), False, 4)["common_vocab"] == ADDED
    assert "common_vocab" not in recipe_of(sources, "it", STREAMS[1], prompt_set(), False, 4)
