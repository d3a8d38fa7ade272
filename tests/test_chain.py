"""Models at the centre: a chain of checkpoints, each captured once, and pairs of them that share captures and tables."""

import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
from actlake.analyze.stats.bootstrap import Quantity, Sample, shares
from actlake.capture.streams.capture_pair import Options, capture_pair
from actlake.lake import Lake
from actlake.queries.figures.chosen import described
from actlake.store.captures.reader import list_captures
from actlake.store.core.catalog import ModelSpec, PairSpec
from actlake.store.core.errors import LakeError
from actlake.store.core.files import write_json
from actlake.store.format.paths import Layout
from actlake.store.tables.streams import pair_streams, same_prompts
from tiny import CORPUS

PAIRS = {"tuned": ("base", "sft"), "preferred": ("sft", "dpo"), "both": ("base", "dpo")}
TEXTS = [(f"p{n}", "A", text[: 10 + 2 * n]) for n, text in enumerate((CORPUS * 3)[:12])]


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """base -> sft -> dpo, every pair of them captured on its native and teacher streams, and a catalog that names them."""
    root = tmp_path_factory.mktemp("chain")
    models = {}
    for seed, name in enumerate(("base", "sft", "dpo")):
        tiny.make_model(root / name, "llama", seed)
        models[name] = ModelSpec(name, root / name, None, None, None, "raw" if name == "base" else "chat")
    layout, prompts = Layout.open(root / "lake", create=True), tiny.prompt_set(TEXTS)
    for pair, (pt, it) in PAIRS.items():
        spec = PairSpec(pair, models[pt], models[it], {})
        capture_pair(layout, spec, [tiny.NATIVE, tiny.TEACHER], prompts, tiny.FULL, options=Options(batch=4))
    lines = [f"  {name}: {{path: {name}}}" for name in models]
    lines += ["pairs:", *(f"  {pair}: {{pt: {pt}, it: {it}}}" for pair, (pt, it) in PAIRS.items())]
    lines += ["chains: {stages: [base, sft, dpo], training: {0: base, 64: sft, 4096: dpo}}"]
    (root / "catalog.yaml").write_text("\n".join(["models:", *lines]) + "\n")
    return Lake(layout, catalog=root / "catalog.yaml")


def number(lake: Lake, pair: str, measure: str) -> float:
    table = lake.run("L2", pair=pair, probes=False).table
    row = table[(table["measure"] == measure) & (table["variant"] == "it - pt")]
    return float(row["estimate"].iloc[0])


def test_each_model_is_captured_once_on_a_stream(chain: Lake) -> None:
    assert sorted(chain.captures["model"]) == ["base", "base", "base", "dpo", "sft", "sft"]
    own = chain.streams.query("recipe == 'native'")
    assert sorted(own["model"]) == ["base", "dpo", "sft"] and own["stream"].nunique() == 3
    # base reads the answers of sft and of dpo, sft those of dpo; what a model wrote itself it has read as its native stream.
    taught = chain.streams.query("recipe == 'teacher' and stream not in @own.stream.tolist()")
    assert sorted(taught["model"]) == ["base", "base"]
    assert sorted(path.name for path in (chain.layout.root / "models").iterdir()) == ["base", "dpo", "sft"]
    assert {path.parent.name for path in chain.layout.root.glob("captures/*/*.zarr")} == {"base", "sft", "dpo"}


def test_a_pairs_teacher_is_its_own_it(chain: Lake) -> None:
    streams = pair_streams(chain.layout, {pair: {"pt": pt, "it": it} for pair, (pt, it) in PAIRS.items()})
    read = {pair: same_prompts(streams, pair, "teacher", None) for pair in PAIRS}
    native = {pair: same_prompts(streams, pair, "native", None) for pair in PAIRS}
    assert all(read[pair]["it"] == native[pair]["it"] for pair in PAIRS)
    assert len({read[pair]["pt"] for pair in PAIRS}) == 3 and native["preferred"]["pt"] == native["tuned"]["it"]


def test_pairs_that_share_a_model_share_its_tables_and_agree(chain: Lake) -> None:
    gap = {}
    for pair in PAIRS:
        gap[pair] = number(chain, pair, "cg_raw")
    files = list((chain.layout.root / "tables" / "lens").glob("*.parquet"))
    lens = chain.sql("SELECT DISTINCT model, stream FROM lens WHERE lens = 'raw'", compute=False).fetchall()
    assert len(files) == len(lens)  # one file a capture, however many pairs ask
    # sft has read dpo's answers, too, under the name of dpo's own stream: its gap is that of its own answers alone.
    assert gap["tuned"] + gap["preferred"] == pytest.approx(gap["both"], abs=1e-9)
    again = chain.run("L2", pair="both", probes=False)
    assert not again.computed
    # exp16 compares on one text: the teacher's, of each pair its own.
    for pair, (pt, it) in PAIRS.items():
        answer = chain.run("exp16", pair=pair, probes=False)
        assert answer.models == {pair: {"pt": pt, "it": it}}


def test_sql_knows_models_pairs_and_variants(chain: Lake) -> None:
    number(chain, "tuned", "cg_raw")
    found = chain.sql("SELECT pair, variant, model FROM pairs ORDER BY ALL").fetchall()
    assert found == sorted(
        (pair, v, name) for pair, names in PAIRS.items() for v, name in zip(("pt", "it"), names, strict=True)
    )
    sft = "SELECT DISTINCT pair, variant FROM lens WHERE model = 'sft' ORDER BY ALL"
    assert chain.sql(sft, compute=False).fetchall() == [("preferred", "pt"), ("tuned", "it")]
    once = "SELECT count(*) FROM lens WHERE model = 'sft' AND pair = 'tuned'"
    twice = "SELECT count(*) FROM lens WHERE model = 'sft'"
    ((rows,),), ((every,),) = (chain.sql(text, compute=False).fetchall() for text in (once, twice))
    assert rows and every == 2 * rows


def test_names_of_models_roles_and_chains(chain: Lake) -> None:
    one, other = chain.dataset("sft", "native"), chain.dataset("tuned/it", "native")
    assert one.identical(other) and chain.dataset("preferred/pt", "native").identical(one)
    with pytest.raises(LakeError, match="'stages' names 3 models; name one of base or sft or dpo"):
        chain.dataset("stages", "native")
    with pytest.raises(LakeError, match="'sft' names a model; name a pair: it is in tuned, preferred"):
        chain.run("L2", pair="sft")


def test_a_question_opens_the_files_of_its_pair_alone(chain: Lake) -> None:
    for pair in PAIRS:
        number(chain, pair, "cg_raw")
    for other in range(20):  # more models than the question is about
        for kind in ("models", "captures"):
            source, target = chain.layout.root / kind / "dpo", chain.layout.root / kind / f"other{other}-it"
            if not target.exists():
                target.symlink_to(source, target_is_directory=True)
    for file in chain.layout.root.glob("models/*/model.json"):  # what this process remembers of them counts no more
        os.utime(file)
    opened: list[str] = []
    watching = True

    def watch(event: str, given: tuple) -> None:
        if watching and event == "open" and isinstance(given[0], str):
            opened.append(given[0])

    sys.addaudithook(watch)
    try:
        number(Lake(chain.layout, catalog=chain._catalog), "tuned", "cg_raw")
    finally:
        watching = False
        for link in chain.layout.root.glob("*/other*-it"):
            link.unlink()
    read = {
        Path(name).relative_to(chain.layout.root).parts for name in opened if name.startswith(str(chain.layout.root))
    }
    assert {parts[1] for parts in read if parts[0] in ("models", "captures")} <= {"base", "sft"}
    assert read


@pytest.mark.parametrize("version", [1, 3])
def test_a_lake_of_another_format_is_refused_in_a_line(tmp_path: Path, version: int) -> None:
    layout = Layout.open(tmp_path / "lake", create=True)
    write_json(layout.root / "lake.json", {"format": "actlake", "format_version": version})
    with pytest.raises(LakeError, match=rf"format version {version}, this actlake reads 2") as caught:
        Layout.open(tmp_path / "lake")
    assert "\n" not in str(caught.value)


def test_a_model_that_was_not_captured_is_named(chain: Lake, tmp_path: Path) -> None:
    (tmp_path / "catalog.yaml").write_text(
        f"models: {{base: {{path: {tmp_path}}}, new: {{path: {tmp_path}}}}}\npairs: {{late: {{pt: base, it: new}}}}\n"
    )
    with pytest.raises(LakeError, match="pair late: needs sealed captures of pt and it on stream 'native'"):
        Lake(chain.layout, catalog=tmp_path / "catalog.yaml").run("L2", pair="late")
    assert len(list_captures(chain.layout)) == 6


def line(table, measure: str, stage: str, compared: str = "base", variant: str | None = "it - pt"):
    mine = table[(table["measure"] == measure) & (table["stage"] == stage) & (table["compared"] == compared)]
    mine = mine[mine["variant"] == variant] if variant else mine
    mine = mine[mine["layer"].isna()]
    assert len(mine) == 1
    return mine.iloc[0]


def test_a_row_along_a_chain(chain: Lake, tmp_path: Path) -> None:
    answer = chain.run("L2", chain="stages", probes=False)
    # Each stage against the base, and in one step, is what the pair alone says.
    alone = {pair: chain.run("L2", pair=pair, probes=False).table for pair in PAIRS}
    for pair, stage, compared in (("tuned", "sft", "base"), ("both", "dpo", "base"), ("preferred", "dpo", "step")):
        mine = alone[pair]
        of_pair = mine[(mine["measure"] == "cg_raw") & (mine["variant"] == "it - pt")].iloc[0]
        found = line(answer.table, "cg_raw", stage, compared)
        assert tuple(found[["estimate", "low", "high", "n"]]) == tuple(of_pair[["estimate", "low", "high", "n"]])
    share = line(answer.table, "cg_raw_share", "sft", variant=None)
    parts = [line(answer.table, "cg_raw", stage)["estimate"] for stage in ("sft", "dpo")]
    whole = line(answer.table, "cg_raw", "dpo")
    if whole["low"] > 0 or whole["high"] < 0:
        assert share["estimate"] == pytest.approx(parts[0] / parts[1]) and share["low"] < share["high"]
        assert line(answer.table, "cg_raw_share", "dpo", variant=None)["estimate"] == 1
        assert "% after sft" in answer.sentence
    else:
        assert share["method"].startswith("undefined") and "on the way, against base: sft" in answer.sentence
    assert answer.sentence.startswith("From base to dpo the change is ")
    assert "(convergence gap, raw lens, nats)" in answer.sentence
    assert answer.pair == "stages" and set(answer.models) == {"base..sft", "base..dpo", "sft..dpo"}
    # Its SQL is one that anybody can ask.
    assert len(chain.sql(answer.sql).df()) == answer.rows
    assert sorted(path.name for path in answer.save(tmp_path)) == [
        f"L2-stages{end}" for end in (".csv", ".png", ".sql", ".svg")
    ]
    chain.run("exp16", chain="stages").lock(tmp_path / "lock.json")
    (same,) = chain.reproduce(tmp_path / "lock.json")
    assert same.same, str(same)


def test_a_figure_has_the_stages_or_training_steps_on_its_first_axis(chain: Lake) -> None:
    named, trained = (chain.run("L2", chain=name, probes=False) for name in ("stages", "training"))
    assert trained.table.equals(named.table)  # the same models: only the axis differs
    differences = [line(named.table, "cg_raw", stage)["estimate"] for stage in ("sft", "dpo")]
    for answer, scale, places in ((named, "linear", [0, 1]), (trained, "log", [64, 4096])):
        axes = next(axes for axes in answer.figure().axes if "chain" in axes.get_xlabel())
        curve = max(axes.lines, key=lambda found: len(found.get_xdata()) * bool(found.get_marker() != "None"))
        assert axes.get_xscale() == scale
        assert curve.get_xdata().tolist() == places and curve.get_ydata().tolist() == differences
    assert [text.get_text() for text in named.figure().axes[0].get_xticklabels()] == ["sft", "dpo"]
    assert "by training step" in described(trained) and "at 64 to" in described(trained)


def test_any_two_models_are_a_pair(chain: Lake) -> None:
    one, two = (chain.run("L2", pair=pair, probes=False) for pair in ("both", "base..dpo"))
    assert two.models == {"base..dpo": {"pt": "base", "it": "dpo"}} and not two.computed
    assert one.table.equals(two.table)
    for name, says in (
        ("base..dop", "no model 'dop' in the lake or the catalog; did you mean 'dpo'?"),
        ("base..base", "expected two different models, BASE..TUNED"),
        ("base..sft..dpo", "expected two different models, BASE..TUNED"),
    ):
        with pytest.raises(LakeError, match=re.escape(says)):
            chain.run("L2", pair=name)
    with pytest.raises(LakeError, match="unknown chain 'stage'.*stages"):
        chain.run("L2", chain="stage")
    with pytest.raises(LakeError, match="a pair or a chain, not both"):
        chain.run("L2", chain="stages", pair="both")


def test_a_share_has_the_interval_of_its_ratio() -> None:
    """Against a bootstrap written out: prompts drawn once for both differences."""
    draw = np.random.default_rng(3)
    base, early, last = (Sample.mean(draw.normal(mean, 1, (60, 1)), np.ones((60, 1))) for mean in (0, 2, 3))
    found = shares([Quantity((early,), (base,)), Quantity((last,), (base,))], n_resamples=4000)
    index = np.random.default_rng(0).integers(0, 60, (4000, 60))
    means = [sample.total[index, 0].mean(1) for sample in (base, early, last)]
    low, high = np.quantile((means[1] - means[0]) / (means[2] - means[0]), [0.025, 0.975])
    assert found[0].low == pytest.approx(low, abs=0.03) and found[0].high == pytest.approx(high, abs=0.03)
    assert (found[1].estimate, found[1].low, found[1].high) == (1, 1, 1)


def test_a_chain_is_captured_in_one_command(chain: Lake, tmp_path: Path) -> None:
    """Each model reads its own answers once, and each earlier one those of the base's and its own successors."""
    prompts = tmp_path / "few.jsonl"
    prompts.write_text(
        "".join(json.dumps({"id": f"q{n}", "text": text[:20]}) + "\n" for n, text in enumerate(CORPUS[:4]))
    )
    lake = Lake(Layout.open(tmp_path / "lake", create=True), catalog=chain.catalog.path)
    made = lake.capture("stages", streams=["native", "teacher"], prompts=str(prompts), max_new_tokens=4)
    there = sorted(
        zip(
            lake.captures["model"],
            lake.captures["recipe"] if "recipe" in lake.captures else lake.captures["stream"],
            strict=True,
        )
    )
    assert len(made) == len(lake.captures) == len({result.path for result in made}), there
    assert sorted(lake.captures["model"]) == ["base", "base", "base", "dpo", "sft", "sft"]
    assert lake.run("L2", chain="stages", probes=False).chain and lake.run("exp16", chain="stages", probes=False).chain
