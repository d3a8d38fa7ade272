"""Models at the centre: a chain of checkpoints, each captured once, and pairs of them that share captures and tables."""

import os
import sys
from pathlib import Path

import pytest
import tiny
from actlake.capture.streams.capture_pair import Options, capture_pair
from actlake.lake import Lake
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
    lines += ["chains: {stages: [base, sft, dpo]}"]
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
    assert gap["tuned"] + gap["preferred"] == pytest.approx(gap["both"], abs=2e-2)
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
