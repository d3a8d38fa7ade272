"""Lakes and questions that are not what a command expects: each is one clear line and exit code 2, and nothing is lost."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny
from actlake.store.core.catalog import PairSpec
from actlake.store.core.files import hash_json
from actlake.store.tables.files import write_table
from servers import served

Command = Callable[..., tuple[int, str, str]]
LENS = "SELECT count(*) FROM lens"


@pytest.fixture
def run(tmp_path, llama, monkeypatch, command_line) -> Command:
    """Run `actlake ...` in a folder with a catalog of the pair, a chain and rows of one's own: exit code, output, errors."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "catalog.yaml").write_text(
        f"pairs:\n  llama: {{pt: {{path: {llama.pt.path}}}, it: {{path: {llama.it.path}}}}}\n"
        f"models:\n  mid: {{path: {llama.it.path}}}\n"
        "chains:\n  steps: [llama-pt, llama-it, mid]\n"
        "rows: [./mine]\nlakes: {default: copy}\n"
    )
    monkeypatch.chdir(tmp_path)
    return command_line


def lakes(folder: Path) -> dict[str, bytes]:
    """The files of a folder but for the cache of hashes and mirrors."""
    return {name: data for name, data in tiny.tree(folder).items() if not name.startswith("mirrors/")}


def content(lake: Path) -> dict[str, bytes]:
    """The files of a lake but for where it was pulled from, and the index."""
    return {name: data for name, data in tiny.tree(lake).items() if name not in ("pulled.json", "files.json")}


def refused(run: Command, folder: Path, *words: str) -> str:
    """The one line that refuses a command, which changes nothing; progress may come before it."""
    before = lakes(folder)
    code, out, err = run(*words)
    *_, line = err.splitlines()
    assert code == 2 and out == "" and line.startswith("error: ") and "Traceback" not in err, (code, out, err)
    assert lakes(folder) == before
    return line


def rows(llama: PairSpec, **more: object) -> dict[str, object]:
    """Rows of the table lens."""
    numbers = ("prompt", "token", "position", "step", "layer", "top1", "rank_target")
    floats = ("kl_layer_final", "kl_final_layer", "js_next", "entropy", "p_target", "cos_final")
    named = {"model": "llama-it", "stream": "s", "lens": "raw", "prompt_id": "p", "category": "C", **more}
    return named | dict.fromkeys(numbers, np.arange(9)) | dict.fromkeys(floats, np.arange(9.0))


@pytest.mark.parametrize(("version", "says"), [(1, "converts no older lake"), (3, "upgrade with `pip install -U")])
@pytest.mark.parametrize("words", [["ls"], ["verify"], ["sql", LENS], ["pull", "copy", "--lake", "other"]])
def test_a_lake_of_another_format(run, lake_copy, tmp_path, version, says, words):
    tiny.edit_json(lake_copy.root / "lake.json", format_version=version)
    line = refused(run, tmp_path, *words)
    assert f"lake.json: format version {version}, this actlake reads 2" in line and says in line


def test_two_tables_of_one_name(run, lake_copy, tmp_path, llama):
    file = write_table(lake_copy, "lens", {"version": 1}, [rows(llama)])
    shutil.copy(file, file.with_name("copy of it.parquet"))
    line = refused(run, lake_copy.root, "sql", LENS, "--no-compute")
    assert "copy of it.parquet" in line and file.name in line and "delete it" in line


def test_two_prompt_sets_of_one_name(run, lake_copy, tmp_path):
    for letter in "ab":
        (tmp_path / letter).mkdir()
        (tmp_path / letter / "set.jsonl").write_text(f'{{"id": "p", "text": "{letter}"}}\n')
    assert run("prompts", "add", "a/set.jsonl")[0] == 0
    assert "another prompt set has this name and is never replaced" in refused(
        run, tmp_path, "prompts", "add", "b/set.jsonl"
    )
    (moved := lake_copy.root / "prompts" / "other").parent.joinpath("set").rename(moved)
    assert "the record of set" in refused(run, tmp_path, "capture", "llama-it", "--prompts", "other")


def test_a_stale_table_is_not_read_and_listed(run, lake_copy, tmp_path, llama):
    file = write_table(lake_copy, "lens", {"version": 0}, [rows(llama)])
    code, out, _ = run("sql", LENS, "--no-compute", "--json")
    assert code == 0 and list(json.loads(out)[0].values()) == [0]
    code, out, _ = run("ls", "--stale", "--json")
    assert code == 0 and [row["file"] for row in json.loads(out)] == [file.name]


def test_a_partial_copy_says_which_pull_brings_the_rest(run, lake_copy, tmp_path):
    assert run("pull", "copy", "--lake", "my part", "--boundary", "0", "--site", "resid")[0] == 0
    for words in (["sql", LENS], ["run", "L2", "--pair", "llama", "--no-probes", "--no-generate"]):
        line = refused(run, tmp_path / "my part" / "captures", *words, "--lake", "my part")
        assert "this copy lacks resid at boundary 1" in line and f"`actlake pull {lake_copy.root}` brings" in line


def test_a_pair_whose_models_are_in_different_lakes(run, captured, tmp_path):
    for role in ("pt", "it"):
        assert run("pull", str(captured.root), "--lake", role, f"llama/{role}")[0] == 0
        asked = ("run", "L2", "--pair", "llama", "--lake", role, "--no-probes")
        other = "it" if role == "pt" else "pt"
        line = refused(run, tmp_path, *asked)
        assert f"this copy lacks {other}; `actlake pull {captured.root} llama/{other} --lake " in line
        (tmp_path / role / "pulled.json").unlink()
        line = refused(run, tmp_path, *asked)
        assert "needs sealed captures of pt and it" in line and f"there: {role}:native-" in line
        assert "run `actlake capture llama" in line


def test_a_chain_with_a_model_that_was_not_captured(run, lake_copy, tmp_path):
    code, out, err = run("pull", "copy", "--lake", "other", "steps")
    assert code == 0 and "chain steps: no captures of mid" in out + err
    assert "no capture of mid; `actlake capture mid` makes one" in refused(run, tmp_path, "show", "mid")
    assert "'steps' names 3 models" in refused(run, tmp_path, "show", "steps")


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ("", "the header lacks id"),
        ("-- id: mine\n-- title: t\n-- needs: mine\n-- stream: native\n-- source: s\n", "unknown table 'mine'"),
        ("-- id: mine\n-- title: t\n-- needs: other\n-- stream: native\n-- source: s\n", "unknown table 'other'"),
    ],
    ids=["no header", "needs itself", "needs a row that needs it"],
)
def test_a_row_of_ones_own_that_can_not_be_asked(run, lake_copy, tmp_path, header, says):
    (tmp_path / "mine" / "mine.sql").write_text(f"{header}SELECT 1 AS x\n")
    if "other" in header:
        (tmp_path / "mine" / "other.sql").write_text(f"{header.replace('mine', 'other', 1)}SELECT 1 AS x\n")
    line = refused(run, tmp_path, "run", "mine", "--pair", "llama")
    assert says in line and "mine" in line


RECORDS = ["lake.json", "captures/*/*/manifest.json", "streams/*.json", "models/*/model.json"]


@pytest.mark.parametrize("pattern", RECORDS)
def test_a_record_of_two_gigabytes_is_not_read(run, lake_copy, tmp_path, pattern):
    file = min(lake_copy.root.glob(pattern))
    before = file.read_bytes()
    os.truncate(file, 2 << 30)  # takes no room on the disk
    for words in (["verify"], ["sql", "SELECT * FROM tokens"], ["pull", "copy", "--lake", "other"]):
        code, out, err = run(*words)
        naming = [line for line in (out + err).splitlines() if "2147483648 bytes" in line]
        assert code in (1, 2) and naming and all(file.name in line for line in naming) and "Traceback" not in out + err
    os.truncate(file, len(before))
    assert file.read_bytes() == before


def test_names_with_markup_are_only_names(run, captured, tmp_path):
    odd = tmp_path / "l[b]x" / "la[red]ke [link=http:"
    shutil.copytree(captured.root, odd)
    for words in (["ls"], ["verify"]):
        code, out, err = run(*words, "--lake", str(odd))
        assert code == 0 and "native" in out and "Traceback" not in err
    assert "nowhere[red]" in refused(run, odd, "ls", "--lake", str(tmp_path / "nowhere[red]"))
    assert "'[link=http:x]a[b]'" in refused(run, odd, "capture", "[link=http:x]a[b]", "--lake", str(odd))
    code, out, _ = run("sql", "SELECT '[/oops]' AS \"a[/b]\"", "--lake", str(odd))
    assert code == 0 and "[/oops]" in out and "a[/b]" in out


@pytest.mark.parametrize("more", [-7, 7, 40 << 20])
@pytest.mark.parametrize(
    "pattern", ["lake.json", "captures/*/*/manifest.json", "streams/*.parquet", "models/*/vocab.parquet"]
)
def test_a_server_that_lies_about_sizes(run, lake_copy, tmp_path, monkeypatch, pattern, more):
    """What it lists as its files' sizes is not what it sends."""
    monkeypatch.setattr("actlake.store.remote.store.PAUSES", (0.01,))
    file = min(lake_copy.root.glob(pattern))
    assert run("index")[0] == 0
    index = json.loads((lake_copy.root / "files.json").read_bytes())
    index["files"][file.relative_to(lake_copy.root).as_posix()][0] += more
    index["files_sha256"] = hash_json(index["files"])
    (lake_copy.root / "files.json").write_text(json.dumps(index))
    with served(tmp_path) as web:
        code, out, err = run("pull", f"{web.url}/copy", "--lake", "other")
    assert "Traceback" not in out + err
    if code == 0:  # its hash says that the file is whole, whatever was listed
        assert content(tmp_path / "other") == content(lake_copy.root)
    else:
        *_, line = err.splitlines()
        assert code == 2 and line.startswith("error: ") and file.name in line
        assert not list(tmp_path.glob(f"other/{pattern}"))
