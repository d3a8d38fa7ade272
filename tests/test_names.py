"""Names on the command line: PAIR, PAIR/ROLE and a bare role mean the same to every command, and misspelt ones are told apart."""

import json
from pathlib import Path

import pytest
from actlake.capture.streams.names import one_pair, requested_pairs
from actlake.cli.main import app
from actlake.lake import Lake
from actlake.store.core.catalog import Catalog, load_catalog
from actlake.store.core.errors import LakeError
from actlake.store.format.paths import Layout
from tiny import CORPUS, make_pair
from typer.testing import CliRunner

CATALOG = """
models: {base: {path: base}, sft: {path: sft}, dpo: {path: dpo}, lone: {path: lone}}
pairs:
  a: {pt: {path: x}, it: {path: y}}
  b: {pt: base, it: sft}
  c: {pt: sft, it: dpo}
chains: {stages: [base, sft, dpo]}
"""


@pytest.fixture
def known(tmp_path: Path) -> Catalog:
    (tmp_path / "c.yaml").write_text(CATALOG)
    return load_catalog(tmp_path / "c.yaml")


@pytest.mark.parametrize(
    "names, found",
    [
        (["a"], {"a": ("pt", "it")}),
        (["a/it"], {"a": ("it",)}),
        (["a-it"], {"a": ("it",)}),  # in one pair only: it stands for its role there
        (["a", "it"], {"a": ("it",)}),
        (["a", "it", "pt"], {"a": ("pt", "it")}),
        (["a/it", "a-pt"], {"a": ("pt", "it")}),
        (["a/it", "a"], {"a": ("pt", "it")}),
        (["a", "b/pt", "c"], {"a": ("pt", "it"), "b": ("pt",), "c": ("pt", "it")}),
        (["sft"], {"sft": ("it",)}),  # in two pairs: on its own
        (["stages"], {"b": ("pt",), "sft": ("it",), "c": ("it",)}),
        (["lone"], {"lone": ("it",)}),
    ],
)
def test_names_are_models_pairs_roles_and_chains(
    known: Catalog, names: list[str], found: dict[str, tuple[str, ...]]
) -> None:
    assert {pair: roles for pair, (_, roles) in requested_pairs(names, known, None).items()} == found


@pytest.mark.parametrize(
    "names, problem",
    [
        (["it"], "it is a role"),
        (["a/base"], "'a/base': expected MODEL, PAIR, PAIR/ROLE or CHAIN"),
        (["a/"], "'a/': expected MODEL, PAIR"),
        (["/it"], "unknown pair ''"),
        (["[red]a"], r"unknown pair, model or chain '\[red\]a'"),
        (["stage"], "unknown pair, model or chain 'stage'.*did you mean 'stages'"),
    ],
)
def test_wrong_names_are_refused(known: Catalog, lake: Layout, names: list[str], problem: str) -> None:
    with pytest.raises(LakeError, match=problem):
        requested_pairs(names, known, None)
    with pytest.raises(LakeError, match="takes one pair, found a, b"):
        one_pair(["a", "b"], "generate", known, lake)
    with pytest.raises(LakeError, match="generate: model sft is in the pairs b, c: name PAIR/ROLE"):
        one_pair(["sft"], "generate", known, lake)
    with pytest.raises(LakeError, match="generate: model lone is in no pair"):
        one_pair(["lone"], "generate", known, lake)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a catalog of a pair `two`, a pair `half` of one model, prompts and no lake."""
    make_pair(tmp_path / "two")
    (tmp_path / "catalog.yaml").write_text(
        "pairs: {two: {pt: {path: two/pt}, it: {path: two/it}}, half: {it: {path: two/it}}}\n"
        "prompts: {core: {path: p.jsonl}}\n"
    )
    rows = [json.dumps({"id": f"p{n}", "text": f"{CORPUS[0][:12]} {n}"}) for n in range(4)]
    (tmp_path / "p.jsonl").write_text("\n".join(rows) + "\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words: str) -> str:
    """What a command prints."""
    found = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert found.exit_code == 0, found.output
    return found.output


def captured(lake: Path = Path("lake")) -> set[str]:
    table = Lake(lake).captures
    return set(table["model"])


SHORT = ("--max-new-tokens", "3", "--device", "cpu")


@pytest.mark.parametrize(
    "words, found",
    [
        (["half"], {"half-it"}),
        (["half", "it"], {"half-it"}),
        (["two/pt"], {"two-pt"}),
        (["two", "pt"], {"two-pt"}),
        (["two", "half"], {"two-pt", "two-it", "half-it"}),
    ],
)
def test_capture_and_plan_take_the_same_words(place: Path, words: list[str], found: set[str]) -> None:
    planned = json.loads(run("plan", *words, *SHORT, "--profile", "full", "--json"))
    assert {row["model"] for row in planned} == found
    said = run("capture", *words, *SHORT)
    assert captured() == found
    assert ("next: actlake run" in said) == (found != {"two-pt"}) and 'actlake sql "SELECT' in said


def test_generate_push_and_pull_take_them_too(place: Path) -> None:
    run("capture", "two", "half", *SHORT)
    for words in (["half"], ["half-it"], ["half/it"], ["two", "pt"], ["two/pt"], ["two-pt"]):
        done = json.loads(run("generate", *words, "--prompts", "core", *SHORT, "--json"))
        assert len(done["conditions"]) == 1
        assert done["conditions"][0]["variant"] == ("pt" if words[0].startswith("two") else "it")
    assert (
        json.loads(run("generate", "half", "--edit", "zero:layers=1,site=mlp", "--prompts", "core", *SHORT, "--json"))[
            "asked"
        ]
        == 4
    )
    run("push", "there", "half", "two/pt")
    assert captured(Path("there")) == {"half-it", "two-pt"}
    run("pull", "there", "two-pt", "--lake", "mine")
    assert captured(Path("mine")) == {"two-pt"}
    run("pull", "there", "half-it", "--lake", "mine")
    assert captured(Path("mine")) == {"half-it", "two-pt"}


def test_misspelt_names_say_what_they_may_mean(place: Path) -> None:
    run("capture", "half", *SHORT)
    for words in (
        ["capture", "haIf"],
        ["plan", "haIf"],
        ["generate", "haIf"],
        ["score", "haIf"],
        ["fit-lens", "haIf"],
    ):
        with pytest.raises(LakeError, match=r"unknown pair, model or chain 'haIf': .*; did you mean 'half'\?"):
            run(*words)
    for words in (["push", "there", "haIf"], ["push", "there", "haIf/it"]):
        with pytest.raises(LakeError, match=r"unknown pair,? .*'haIf': .*; did you mean 'half'\?"):
            run(*words)
    with pytest.raises(LakeError, match=r"unknown pair 'haIf'.*did you mean 'half'"):
        run("run", "L1", "--pair", "haIf")
    with pytest.raises(LakeError, match="'half-it' names a model; name a pair: it is in half"):
        run("run", "L1", "--pair", "half-it")
    with pytest.raises(LakeError, match="pair half has no variant 'pt'; it has it"):
        run("capture", "half/pt")
    with pytest.raises(LakeError, match="half has it only; scores compares two models"):
        run("score", "half")
    with pytest.raises(LakeError, match="half has it only; direction d_mean compares two models"):
        run("generate", "half", "--edit", "scale:layers=1,direction=d_mean,alpha=0", "--prompts", "core", *SHORT)


def test_a_pair_of_the_lake_alone_is_known(place: Path) -> None:
    run("capture", "half", *SHORT, "--with-weights")
    (place / "catalog.yaml").write_text("prompts: {core: {path: p.jsonl}}\n")
    assert "was there already" in run("capture", "half", *SHORT)  # with the lake's own files
    run("capture", "half", *SHORT, "--stream", "raw")
    assert len(Lake("lake").captures) == 2
    (place / "lake/models/half-it/weights.json").unlink()
    with pytest.raises(LakeError, match="pair half: the lake has it, but not its weights"):
        run("capture", "half", *SHORT)
