"""References to captures, lock files of answers, and answers made again from them."""

import csv
import hashlib
import json
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
from actlake.cli.main import app
from actlake.queries.answer.lock import LARGEST, Lock, canonical, read_lock
from actlake.queries.answer.reproduce import _compare, _lines
from actlake.queries.rows import registry
from actlake.store.captures.manifest import read_manifest
from actlake.store.captures.reader import find_capture
from actlake.store.core.errors import CorruptError, LakeError
from actlake.store.format.paths import Layout
from actlake.store.tables.files import stale_files
from hypothesis import given
from hypothesis import strategies as st
from test_queries import LAYERS, D, Made, put_capture
from typer.testing import CliRunner

ROWS = ["L1", "exp16"]
invoke = CliRunner(env={"COLUMNS": "200"}).invoke


@dataclass
class Case:
    """A lake of one's own, the lock file of two of its answers, and its command line."""

    lake: Path
    file: Path
    made: Made

    def run(self, *words: str) -> Any:
        return invoke(app, [*words, "--lake", str(self.lake)])

    def reproduce(self, code: int) -> list[dict[str, Any]]:
        """What --json says, after the lines for people said as much."""
        done = self.run("reproduce", str(self.file))
        assert done.exit_code == code, done.output
        lines = done.output.splitlines()
        found = json.loads(self.run("reproduce", str(self.file), "--json").output)
        assert [line.split(":")[0] for line in lines] == [f"{one['row']} {one['pair']}" for one in found]
        return found

    def lines(self, code: int) -> list[str]:
        done = self.run("reproduce", str(self.file))
        assert done.exit_code == code, done.output
        return done.output.splitlines()

    def table(self, name: str) -> list[Path]:
        return sorted((self.lake / "tables" / name).glob("*.parquet"))


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("locked")
    case = Case(folder / "lake", folder / "answers.lock", Made(folder / "lake"))
    done = case.run("run", *ROWS, "--out", str(folder / "out"), "--lock", str(case.file))
    assert done.exit_code == 0 and f"lock: {case.file}" in done.output, done.output
    return case


@pytest.fixture
def case(locked: Case, tmp_path: Path) -> Case:
    shutil.copytree(locked.lake, tmp_path / "lake")
    shutil.copy(locked.file, tmp_path / "answers.lock")
    return Case(tmp_path / "lake", tmp_path / "answers.lock", locked.made)


# --- references ------------------------------------------------------------------------------------------------------


def test_a_reference_names_the_capture_its_hash_and_what_made_it(captured: Layout) -> None:
    path = find_capture(captured, "llama-it", "native")
    manifest = read_manifest(path)
    assert manifest
    done = invoke(app, ["cite", "llama-it/native", "--lake", str(captured.root)])
    assert done.exit_code == 0, done.output
    first = done.output.splitlines()[0].split()[1]
    assert first == f"actlake:llama-it/{path.stem}@sha256:{manifest['record_sha256']}"
    record = json.loads(invoke(app, ["cite", first, "--lake", str(captured.root), "--json"]).output)
    model = json.loads((captured.model("llama-it") / "model.json").read_text())
    assert record["reference"] == first and record["prompts"] == {"name": "tiny", "sha256": tiny.prompt_set().sha256}
    assert record["model"] == {name: model[name] for name in ("id", "revision", "sha256")}
    stream = json.loads((captured.streams / f"{path.stem}.json").read_text())
    assert record["stream"] == {"name": path.stem, "sha256": stream["content_sha256"]}
    assert set(record["versions"]) == {"actlake", "torch", "transformers"}
    for value in (model["sha256"], stream["content_sha256"], tiny.prompt_set().sha256):
        assert value in done.output


def test_a_reference_to_something_else_is_refused(captured: Layout, lake_copy: Layout) -> None:
    lake = ["--lake", str(lake_copy.root)]
    path = find_capture(lake_copy, "llama-it", "native")
    other = invoke(app, ["cite", f"actlake:llama-it/{path.stem}@sha256:{'0' * 64}", *lake])
    assert isinstance(other.exception, LakeError) and "not the capture referred to" in str(other.exception)
    wrong = invoke(app, ["cite", "actlake:llama-it/native@sha256:12", *lake])
    assert isinstance(wrong.exception, LakeError) and "64 digits" in str(wrong.exception)
    (path / "manifest.json").unlink()
    unsealed = invoke(app, ["cite", "llama-it/native", *lake])
    assert isinstance(unsealed.exception, LakeError) and "not sealed" in str(unsealed.exception)


# --- lock files ------------------------------------------------------------------------------------------------------


def test_the_lock_file_has_every_hash(locked: Case) -> None:
    record = json.loads(locked.file.read_text())
    assert set(record["versions"]) == {"actlake", "duckdb", "numpy", "scipy"}
    l1, exp16 = record["rows"]
    assert (l1["row"], l1["pairs"], l1["prompts"]) == ("L1", ["made"], "set")
    text = (Path(registry.__file__).parent / "L1.sql").read_bytes()
    assert l1["query_sha256"] == hashlib.sha256(text).hexdigest()
    for row, streams in ((l1, {"pt": "native", "it": "native"}), (exp16, {"pt": "teacher", "it": "native"})):
        paths = [find_capture(locked.made.layout, f"made-{variant}", stream) for variant, stream in streams.items()]
        manifests = {"/".join(path.parts[-2:]).removesuffix(".zarr"): read_manifest(path) for path in paths}
        assert row["captures"] == {name: found["record_sha256"] for name, found in manifests.items() if found}
        for name, sha in row["files"].items():
            assert hashlib.sha256((locked.lake / name).read_bytes()).hexdigest() == sha
        assert hashlib.sha256(row["table"].encode()).hexdigest() == row["table_sha256"]
    tables = {
        name: {str(path.relative_to(locked.lake)) for path in locked.table(name)} for name in ("delta", "pair_lens")
    }
    assert set(l1["files"]) == tables["delta"] and set(exp16["files"]) == tables["pair_lens"]
    # The same numbers as in the CSV file beside it.
    with open(locked.file.parent / "out" / "L1-made.csv", newline="") as file:
        written = list(csv.DictReader(file))
    kept = list(csv.DictReader(l1["table"].splitlines()))
    assert len(kept) == len(written)
    for one, two in zip(kept, written, strict=True):
        assert {k: v for k, v in one.items() if k not in ("estimate", "low", "high")} == {
            k: v for k, v in two.items() if k not in ("estimate", "low", "high")
        }
        for name in ("estimate", "low", "high"):
            assert bool(one[name]) == bool(two[name])
            if one[name]:
                assert float(one[name]) == pytest.approx(float(two[name]), rel=1e-6, abs=1e-11)


def test_nothing_of_the_machine_is_in_it(locked: Case) -> None:
    text = locked.file.read_text()
    assert str(locked.lake.parent) not in text and not re.search(r"\d\d:\d\d:\d\d", text)


def test_the_same_lake_gives_the_same(case: Case) -> None:
    assert case.lines(0) == ["L1 made: same answer", "exp16 made: same answer"]


def test_missing_tables_are_made_again(case: Case) -> None:
    for path in case.table("delta"):
        path.unlink()
    first, second = case.lines(0)
    assert (
        first == "L1 made: same answer; tables made again, as they were missing: 3 of delta"
    )  # the third: both on one text
    assert second == "exp16 made: same answer"
    assert case.reproduce(0)[0]["recomputed"] == []  # now they are there


def test_tables_made_again_to_other_bytes_do_not_count_while_the_answer_is_the_same(case: Case) -> None:
    path, record = case.table("delta")[0], json.loads(case.file.read_text())
    record["rows"][0]["files"][f"tables/delta/{path.name}"] = "0" * 64  # as another version of Parquet's writer gives
    case.file.write_text(json.dumps(record))
    path.unlink()
    made = "tables made again, as they were missing: 1 of delta"
    assert case.lines(0)[0] == f"L1 made: same answer; {made}; other bytes: table delta {path.stem}"
    record["rows"][0]["table"] = record["rows"][0]["table"].replace("0.", "0.5", 1)
    record["rows"][0]["table_sha256"] = hashlib.sha256(record["rows"][0]["table"].encode()).hexdigest()
    case.file.write_text(json.dumps(record))
    path.unlink()
    first = case.lines(1)[0]
    assert (
        f"table delta {path.stem}: expected sha256 {'0' * 12}" in first and "made again here to other numbers" in first
    )


def test_wrong_numbers_under_the_right_name_are_found(case: Case) -> None:
    path = case.table("delta")[0]
    table = pq.read_table(path)
    at = table.schema.get_field_index("block_cos")
    column = pa.array(np.asarray(table["block_cos"].to_numpy() + 0.25, np.float32), from_pandas=True)
    pq.write_table(table.set_column(at, table.schema.field(at), column), path)
    first, second = case.reproduce(1)
    (wrong,) = first["inputs"]
    assert wrong["what"] == f"table delta {path.stem}" and second["same"]
    then = json.loads(case.file.read_text())["rows"][0]["files"][f"tables/delta/{path.name}"]
    assert wrong["expected"] == then and wrong["found"] == hashlib.sha256(path.read_bytes()).hexdigest()
    gap = re.search(r"largest difference of an estimate ([\d.]+)", first["answer"])
    assert gap and float(gap[1]) == pytest.approx(0.25, abs=0.002)
    assert case.run("reproduce", str(case.file), "--tolerance", "0.1").exit_code == 1
    near = case.run("reproduce", str(case.file), "--tolerance", "0.3")  # as far apart as one allows
    assert near.exit_code == 0 and f"L1 made: same answer; other bytes: table delta {path.stem}\n" in near.output
    command = re.search(r"`rm (\S+)`", wrong["repair"])
    assert command and Path(command[1]) == path
    path.unlink()  # what it says repairs it
    assert [one["same"] for one in case.reproduce(0)] == [True, True]


def test_a_table_that_is_no_table_any_more(case: Case) -> None:
    path = case.table("delta")[0]
    path.write_bytes(b"not a table")
    first, _ = case.lines(1)
    assert f"table delta {path.stem}: expected sha256" in first and "not answered" in first and str(path) in first


def test_a_capture_that_was_replaced_is_named(case: Case) -> None:
    layout = Layout.open(case.lake)
    path = find_capture(layout, "made-pt", "native")
    before = read_manifest(path)
    shutil.rmtree(path)
    stream, key = case.made.stream["native", "pt"], ("native", "pt")
    put_capture(layout, "pt", stream, case.made.resid[key][::-1], case.made.mlp[key])
    after = read_manifest(path)
    assert before and after and before["record_sha256"] != after["record_sha256"]
    first, second = case.reproduce(1)
    assert second["same"]  # it reads the teacher's stream
    (wrong,) = first["inputs"]
    assert wrong["what"] == f"capture made-pt/{stream.name}" and "actlake capture made-pt" in wrong["repair"]
    assert (wrong["expected"], wrong["found"]) == (before["record_sha256"], after["record_sha256"])
    # Tables of the former capture are still there, and no row of theirs is read.
    assert not first["problem"] and "largest difference of an estimate" in first["answer"]
    assert len(case.table("delta")) == 4 and len(stale_files(layout, "delta")) == 1


def test_a_missing_capture_an_unknown_row_and_no_lake(case: Case) -> None:
    record = json.loads(case.file.read_text())
    shutil.rmtree(find_capture(Layout.open(case.lake), "made-pt", "teacher"))
    done = case.run("reproduce", str(case.file))
    assert isinstance(done.exception, LakeError)
    assert re.search(
        "exp16: capture made-pt/teacher.* is not in the lake .*`actlake capture made-pt", str(done.exception)
    )
    record["rows"][0]["row"] = "L99"
    case.file.write_text(json.dumps(record))
    done = case.run("reproduce", str(case.file))
    assert isinstance(done.exception, LakeError) and "unknown row 'L99'" in str(done.exception)
    done = invoke(app, ["reproduce", str(case.file), "--lake", str(case.lake / "no")])
    assert isinstance(done.exception, LakeError) and "no lake" in str(done.exception)


def test_a_question_that_changed_is_said(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    known = registry.queries()
    changed = registry.parse((Path(registry.__file__).parent / "L1.sql").read_text() + "\n", "L1.sql")
    monkeypatch.setattr(registry, "queries", lambda *_: {**known, "L1": changed})
    first, second = case.reproduce(1)
    (wrong,) = first["inputs"]
    assert wrong["what"] == "question L1.sql" and first["answer"] == "" and second["same"]
    assert (wrong["expected"], wrong["found"]) == (known["L1"].sha256, changed.sha256)


def test_a_prompt_set_captured_later_does_not_confuse(case: Case) -> None:
    layout = Layout.open(case.lake)
    for variant in ("pt", "it"):
        stream = case.made.stream["native", variant]
        other = replace(stream, prompts="more", prompt_ids=[f"m{i}" for i, _ in enumerate(stream.prompt_ids)])
        other = replace(other, recipe={**stream.recipe, "prompt_set_sha256": "m", "key": f"more-{variant}"})
        shape = (other.n_tokens, LAYERS, D)
        put_capture(layout, variant, other, np.ones((shape[0], LAYERS + 1, D), np.float32), np.ones(shape, np.float32))
    done = case.run("run", "L1")
    assert isinstance(done.exception, LakeError) and "several captures" in str(done.exception)
    assert case.lines(0)[0] == "L1 made: same answer"


def test_an_answer_read_from_another_lake_after_another_table_came(case: Case, tmp_path: Path) -> None:
    record = json.loads(case.file.read_text())
    name = next(iter(record["rows"][0]["files"]))
    del record["rows"][0]["files"][name]
    case.file.write_text(json.dumps(record))
    (wrong,) = case.reproduce(1)[0]["inputs"]
    assert wrong["what"].startswith("table delta") and wrong["expected"] == "-"


def test_a_row_without_captures_and_tables_from_elsewhere(tmp_path: Path) -> None:
    lake, theirs = tmp_path / "lake", tmp_path / "theirs.csv"
    Layout.open(lake, create=True)
    lines = [f"{v},{layer},{0.1 * layer}" for v in ("pt", "it") for layer in range(5)]
    theirs.write_text("variant,layer,block_cos\n" + "\n".join(lines) + "\n")
    words = ["--pair", "far", "--stream", "native-published", "--lake", str(lake)]
    assert invoke(app, ["table", "add", "delta", str(theirs), *words]).exit_code == 0
    case = Case(lake, tmp_path / "lock", None)  # type: ignore[arg-type]
    done = case.run("run", "L1", "--json", "--out", str(tmp_path / "out"), "--lock", str(case.file))
    assert done.exit_code == 0 and json.loads(done.output)[0]["row"] == "L1", done.output
    (row,) = read_lock(case.file).rows
    assert row.captures == {} and [name.split("/")[-1][:8] for name in row.files] == ["foreign-"]
    assert case.lines(0) == ["L1 far: same answer"]


def test_a_table_put_into_the_folder_by_hand_is_in_no_answer_and_sql_refuses_it(case: Case) -> None:
    path = case.table("delta")[0]
    table = pq.read_table(path)
    by_hand = path.with_name("by hand, é.parquet")
    pq.write_table(table.slice(0, 40).replace_schema_metadata(None), by_hand)
    assert all(line.endswith(": same answer") for line in case.lines(0))
    done = case.run("sql", "SELECT count(*) FROM delta")
    assert isinstance(done.exception, CorruptError) and "by hand, é.parquet: holds rows" in str(done.exception)
    by_hand.unlink()
    assert case.run("sql", "SELECT count(*) FROM delta").exit_code == 0


def test_lock_of_all_rows_and_where_it_cannot_be_written(case: Case, tmp_path: Path) -> None:
    shutil.rmtree(find_capture(Layout.open(case.lake), "made-pt", "teacher"))  # rows on it want a model that can be run
    out = ["--out", str(tmp_path / "out")]
    done = case.run("run", "--all", *out, "--lock", str(tmp_path / "deep" / "all.lock"))
    assert done.exit_code == 0, done.output
    assert {"L1", "L2", "0G"} <= {row.row for row in read_lock(tmp_path / "deep" / "all.lock").rows}
    case.file = tmp_path / "deep" / "all.lock"
    assert all(line.endswith(": same answer") for line in case.lines(0))
    done = case.run("run", "L1", *out, "--lock", str(tmp_path))
    assert isinstance(done.exception, LakeError) and "lock" in str(done.exception)
    done = case.run("run", "L1", "--about", "--lock", str(tmp_path / "x"))
    assert isinstance(done.exception, LakeError) and not (tmp_path / "x").exists()


# --- comparing -------------------------------------------------------------------------------------------------------

HEAD = "measure,layer,estimate,low,high,n,unit,method\n"


@pytest.mark.parametrize(
    ("then", "now", "said"),
    [
        ("m,1,0.5039062,,,6,prompts,BCa", "m,1,0.5039063,,,6,prompts,BCa", ""),  # a tie, rounded either way
        ("m,1,1e-13,,,6,prompts,BCa", "m,1,0,,,6,prompts,BCa", ""),
        (
            "m,1,0.5,,,6,prompts,BCa",
            "m,1,0.50001,,,6,prompts,BCa",
            "an estimate 1e-05 (m layer=1: 0.5 then, 0.50001 now)",
        ),
        ("m,1,0.5,0.4,0.6,6,prompts,BCa", "m,1,0.5,0.4,0.7,6,prompts,BCa", "the limit high 0.1"),
        ("m,1,,,,6,prompts,BCa", "m,1,0.5,,,6,prompts,BCa", "from nothing to a number (m layer=1: none then, 0.5 now)"),
        ("m,1,0.5,,,6,prompts,BCa", "m,1,0.5,,,7,prompts,BCa", "n of m layer=1: 6 then, 7 now"),
        (
            "m,1,0.5,,,6,prompts,BCa",
            "m,2,0.5,,,6,prompts,BCa",
            "2 of 2 lines differ; m layer=1 is in the lock file alone",
        ),
    ],
)
def test_how_two_answers_differ(then: str, now: str, said: str) -> None:
    found = _compare(_lines(HEAD + then + "\n"), _lines(HEAD + now + "\n"))
    assert said in found and bool(said) == bool(found)


def test_numbers_may_be_as_far_apart_as_one_allows() -> None:
    then, now = (_lines(f"{HEAD}m,1,{text},,,6,prompts,BCa\n") for text in ("0.01122723", "0.01122717"))
    assert "6e-08" in _compare(then, now) and "6e-08" in _compare(then, now, 5e-8) and not _compare(then, now, 1e-7)


def test_last_digits_do_not_change_the_hash(locked: Case) -> None:
    found = locked.made.lake.run("L1")
    noisy = found.table.assign(estimate=found.table["estimate"] * (1 + 2e-16) + 1e-17)
    assert not noisy["estimate"].equals(found.table["estimate"])
    assert canonical(replace(found, table=noisy)) == canonical(found)
    moved = found.table.assign(estimate=found.table["estimate"] + 1e-3)
    assert canonical(replace(found, table=moved)) != canonical(found)


# --- files of strangers ----------------------------------------------------------------------------------------------


def spoil(record: dict[str, Any], **changes: Any) -> dict[str, Any]:
    row = {**record["rows"][0], **changes}
    return {**record, "rows": [row]}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: [r], "not a lock file"),
        (lambda r: {**r, "format": "poetry"}, "not a lock file"),
        (lambda r: {**r, "format_version": 99}, "format version 99, .* upgrade"),
        (lambda r: {**r, "format_version": "1"}, "no format_version"),
        (lambda r: {**r, "rows": []}, "rows: expected a list"),
        (lambda r: {**r, "rows": [7]}, r"rows\[0\]\..* expected an object, found int"),
        (lambda r: {**r, "versions": {"actlake": 1}}, "versions: expected"),
        (lambda r: spoil(r, row="L1\n"), r"rows\[0\].row: expected"),
        (lambda r: spoil(r, row="x" * 10**6), r"rows\[0\].row: expected"),
        (lambda r: spoil(r, pairs="made"), r"rows\[0\].pairs: expected a list of names, found 'made'"),
        (lambda r: spoil(r, pairs=["../made"]), "pairs"),
        (lambda r: spoil(r, prompts="a b"), "prompts"),
        (lambda r: spoil(r, query_sha256=None), "query_sha256: .* found nothing"),
        (lambda r: spoil(r, captures={"made-pt/../../x": "0" * 64}), "captures"),
        (lambda r: spoil(r, captures={"made/both/x": "0" * 64}), "captures"),
        (lambda r: spoil(r, files={"tables/../../../etc/passwd": "0" * 64}), "files"),
        (lambda r: spoil(r, files={"/etc/passwd": "0" * 64}), "files"),
        (lambda r: spoil(r, files={"tables/lens/a.parquet": "0" * 63}), "files"),
        (lambda r: spoil(r, table="measure,estimate\nm,1\n"), "table: .*the file was changed"),
    ],
)
def test_a_wrong_lock_file_is_refused_in_one_line(locked: Case, tmp_path: Path, change: Any, said: str) -> None:
    file = tmp_path / "lock"
    file.write_text(json.dumps(change(json.loads(locked.file.read_text()))))
    with pytest.raises(LakeError, match=said) as error:
        read_lock(file)
    assert "\n" not in str(error.value) and str(file) in str(error.value) and len(str(error.value)) < 500


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe\x00",
        b"{",
        b"[" * 200_000,
        b'{"format": ' + b'{"a":' * 100_000,
        b"9" * 5000,
        b"\x00" * 100,
        b"null",
    ],
)
def test_garbage_is_refused_in_one_line(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "lock").write_bytes(data)
    with pytest.raises(LakeError) as error:
        read_lock(tmp_path / "lock")
    assert len(str(error.value).splitlines()) == 1


def test_no_file_a_folder_and_a_huge_file(tmp_path: Path) -> None:
    with pytest.raises(LakeError, match="no such file"):
        read_lock(tmp_path / "none")
    with pytest.raises(LakeError, match="not a file"):
        read_lock(tmp_path)
    with open(tmp_path / "huge", "wb") as file:
        file.truncate(LARGEST + 1)
    with pytest.raises(LakeError, match="at most"):
        read_lock(tmp_path / "huge")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.dictionaries(st.sampled_from(["format_version", "versions", "rows", "more"]), JSON, max_size=3),
    st.dictionaries(
        st.sampled_from(["row", "pairs", "prompts", "query_sha256", "captures", "files", "table", "table_sha256"]), JSON
    ),
    JSON,
)
def test_any_json_is_read_or_refused_in_one_line(
    locked: Case, tmp_path_factory: pytest.TempPathFactory, top: dict[str, Any], row: dict[str, Any], other: Any
) -> None:
    record = json.loads(locked.file.read_text())
    file = tmp_path_factory.getbasetemp() / "any.lock"
    for value in (other, {**record, **top}, spoil(record, **row)):
        file.write_text(json.dumps(value))
        try:
            assert isinstance(read_lock(file), Lock)
        except LakeError as error:
            assert len(str(error).splitlines()) == 1


@given(st.text(st.characters(exclude_categories=()), max_size=60), st.sampled_from(["", HEAD, HEAD + 'm,1,"']))
def test_any_table_is_compared_or_refused(text: str, head: str) -> None:
    try:
        found = _compare(_lines(head + text), _lines(HEAD + "m,1,0.5,,,6,prompts,BCa\n"))
    except LakeError as error:
        found = str(error)
    found.encode()  # fit for a terminal
    assert found.isprintable()
