"""Names on the command line: PAIR, PAIR/ROLE and a bare role mean the same to every command, and misspelt ones are told apart."""

import json
from pathlib import Path

import pytest
from actlake.capture.streams.names import models_named, one_pair
from actlake.cli.main import app
from actlake.lake import Lake
from actlake.store.core.errors import LakeError
from tiny import CORPUS, make_pair
from typer.testing import CliRunner


@pytest.mark.parametrize(
    "names, found",
    [
        (["a"], {"a": ()}),
        (["a/it"], {"a": ("it",)}),
        (["a", "it"], {"a": ("it",)}),
        (["a", "it", "pt"], {"a": ("pt", "it")}),
        (["a/it", "a/pt"], {"a": ("pt", "it")}),
        (["a/it", "a"], {"a": ()}),
        (["a", "b/pt", "c"], {"a": (), "b": ("pt",), "c": ()}),
    ],
)
def test_names_are_pairs_and_roles(names: list[str], found: dict[str, tuple[str, ...]]) -> None:
    assert models_named(names) == found


@pytest.mark.parametrize(
    "names, problem",
    [
        (["it"], "it is a role"),
        (["a/base"], "'a/base': expected PAIR or PAIR/ROLE"),
        (["a/"], "'a/': expected PAIR"),
        (["/it"], "'/it': expected PAIR"),
    ],
)
def test_wrong_names_are_refused(names: list[str], problem: str) -> None:
    with pytest.raises(LakeError, match=problem):
        models_named(names)
    with pytest.raises(LakeError, match="takes one pair, found a, b"):
        one_pair(["a", "b"], "generate")


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
    return {f"{row.pair}/{row.variant}" for row in table.itertuples()}


SHORT = ("--max-new-tokens", "3", "--device", "cpu")


@pytest.mark.parametrize(
    "words, found",
    [
        (["half"], {"half/it"}),
        (["half", "it"], {"half/it"}),
        (["two/pt"], {"two/pt"}),
        (["two", "pt"], {"two/pt"}),
        (["two", "half"], {"two/pt", "two/it", "half/it"}),
    ],
)
def test_capture_and_plan_take_the_same_words(place: Path, words: list[str], found: set[str]) -> None:
    planned = json.loads(run("plan", *words, *SHORT, "--profile", "full", "--json"))
    assert {f"{row['pair']}/{row['variant']}" for row in planned} == found
    said = run("capture", *words, *SHORT)
    assert captured() == found
    assert ("next: actlake run" in said) == (found != {"two/pt"}) and 'actlake sql "SELECT' in said


def test_generate_push_and_pull_take_them_too(place: Path) -> None:
    run("capture", "two", "half", *SHORT)
    for words in (["half"], ["half/it"], ["two", "pt"], ["two/pt"]):
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
    assert captured(Path("there")) == {"half/it", "two/pt"}
    run("pull", "there", "two/pt", "--lake", "mine")
    assert captured(Path("mine")) == {"two/pt"}
    run("pull", "there", "half", "it", "--lake", "mine")
    assert captured(Path("mine")) == {"half/it", "two/pt"}


def test_misspelt_names_say_what_they_may_mean(place: Path) -> None:
    run("capture", "half", *SHORT)
    for words in (
        ["capture", "haIf"],
        ["plan", "haIf"],
        ["generate", "haIf"],
        ["score", "haIf"],
        ["fit-lens", "haIf"],
    ):
        with pytest.raises(LakeError, match=r"unknown pair 'haIf': .*; did you mean 'half'\?"):
            run(*words)
    for words in (["push", "there", "haIf"], ["push", "there", "haIf/it"]):
        with pytest.raises(LakeError, match=r"no captures of pair 'haIf'; it has half; did you mean 'half'\?"):
            run(*words)
    with pytest.raises(LakeError, match=r"unknown pair 'haIf'.*did you mean 'half'"):
        run("run", "L1", "--pair", "haIf")
    with pytest.raises(LakeError, match="'half/it' names a model; name its pair, half"):
        run("run", "L1", "--pair", "half/it")
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
    (place / "lake/models/half/it/weights.json").unlink()
    with pytest.raises(LakeError, match="pair half: the lake has it, but not its weights"):
        run("capture", "half", *SHORT)
