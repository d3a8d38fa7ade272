"""Prompt files: what is read, what is refused on which line, what the hash covers, and the packaged sets."""

import csv
import io
import json
from collections import Counter
from pathlib import Path

import pytest
from actlake.capture.streams import prompts as module
from actlake.capture.streams.capture_pair import find_prompts
from actlake.capture.streams.prompts import Prompt, add_prompts, canonical_bytes, read_prompts
from actlake.capture.streams.rows import CRITERIA
from actlake.cli.main import app
from actlake.store.core.catalog import load_catalog
from actlake.store.core.errors import LakeError
from actlake.store.format.paths import Layout
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

PACKAGED = Path(module.__file__).resolve().parents[2] / "prompts"
SEVEN = {
    "CONTENT-FACT",
    "CONTENT-REASON",
    "GOV-FORMAT",
    "GOV-CONV",
    "SAFETY",
    "GOV-REGISTER",
    "BASELINE-EASY",
}
GOOD = '{"id": "a", "text": "hello"}'


def write(folder: Path, content: str | bytes, name: str = "set.jsonl") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refused(path: Path, **options) -> str:
    with pytest.raises(LakeError) as caught:
        read_prompts(path, **options)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    return message.removeprefix(str(path)).removeprefix(":")


def with_fields(**fields) -> str:
    return json.dumps({"id": "a", "text": "hello", **fields})


# ---- reading


def test_reads_jsonl_in_order_with_category_and_other_fields(tmp_path):
    path = write(tmp_path, GOOD + '\n\n{"text": "b?", "id": "b", "category": "X", "answer": "1", "note": [1]}\n')
    found = read_prompts(path)
    assert found.name == "set"
    assert found.prompts == (Prompt("a", "", "hello"), Prompt("b", "X", "b?", {"answer": "1", "note": [1]}))


def test_reads_csv_with_json_cells_and_empty_cells_as_absent(tmp_path):
    rows = [
        ["id", "text", "category", "choices", "answer", "criteria"],
        ["a", "one,\ntwo", "X", '["1", "2"]', "2", ""],
        ["b", "three", "", "", "", '[{"type": "json", "value": true}]'],
    ]
    buffer = io.StringIO(newline="")
    csv.writer(buffer).writerows(rows)
    found = read_prompts(write(tmp_path, buffer.getvalue(), "q.csv"), name="mine")
    assert found.name == "mine"
    assert found.prompts[0] == Prompt("a", "X", "one,\ntwo", {"choices": ["1", "2"], "answer": "2"})
    assert found.prompts[1] == Prompt("b", "", "three", {"criteria": [{"type": "json", "value": True}]})


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(tmp_path):
    plain = read_prompts(write(tmp_path, GOOD))
    marked = read_prompts(write(tmp_path, b"\xef\xbb\xbf" + GOOD.encode() + b"\r\n", "marked.jsonl"))
    table = read_prompts(write(tmp_path, b"\xef\xbb\xbfid,text\r\na,hello\r\n", "marked.CSV"))
    assert plain.sha256 == marked.sha256 == table.sha256


def test_a_line_separator_inside_a_text_is_text(tmp_path):
    path = write(tmp_path, json.dumps({"id": "a", "text": "one\u2028two"}, ensure_ascii=False))
    assert read_prompts(path).prompts[0].text == "one\u2028two"


def test_limit_keeps_the_first_prompts_but_checks_all(tmp_path):
    rows = [json.dumps({"id": str(n), "text": "t"}) for n in range(5)]
    path = write(tmp_path, "\n".join(rows))
    short = read_prompts(path, limit=2)
    assert [p.id for p in short.prompts] == ["0", "1"]
    assert short.sha256 == read_prompts(write(tmp_path, "\n".join(rows[:2]), "two.jsonl")).sha256
    assert short.sha256 != read_prompts(path, limit=99).sha256 == read_prompts(path).sha256
    assert refused(write(tmp_path, "\n".join([*rows, "{}"])), limit=2).startswith("6: no id")


# ---- refusing


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("{", "not one JSON object on one line (Expecting property name"),
        ("[" * 100_000, "not one JSON object on one line"),
        ("[1]", "expected a JSON object"),
        ('"text"', "expected a JSON object"),
        ('{"id": "x", "id": "y", "text": "t"}', "a key occurs twice"),
        ('{"text": "t"}', "no id"),
        ('{"id": null, "text": "t"}', "no id"),
        ('{"id": "b"}', "no text"),
        ('{"id": 5, "text": "t"}', "id is 5, expected non-blank text"),
        ('{"id": " ", "text": "t"}', 'id is " ", expected non-blank text'),
        ('{"id": "b", "text": 7}', "text is 7, expected non-blank text"),
        ('{"id": "b", "text": "\\n \\t"}', "expected non-blank text"),
        ('{"id": "b", "text": ["t"]}', 'text is ["t"], expected non-blank text'),
        ('{"id": "a", "text": "t"}', "id 'a' is already on line 1"),
        ('{"id": "b", "text": "t", "category": 1}', "category is 1, expected text"),
        ('{"id": "b", "text": "t", "weight": NaN}', "holds NaN"),
        ('{"id": "b", "text": "t", "weight": 1e999}', "holds NaN, infinity"),
        ('{"id": "b", "text": "\\ud800"}', "half a surrogate pair"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, part):
    message = refused(write(tmp_path, f"{GOOD}\n\n{line}\n"))
    assert message.startswith("3: ") and part in message


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"answer": 13}, "answer is 13, expected text (numbers in quotes)"),
        ({"answer": " "}, "answer is"),
        ({"choices": "1,2"}, 'choices is "1,2", expected a list'),
        ({"choices": ["1"]}, "two or more texts"),
        ({"choices": ["1", 2]}, "two or more texts"),
        ({"choices": ["1", "1"]}, "a choice occurs twice"),
        ({"choices": ["1", "2"], "answer": "3"}, 'the answer "3" is not among the choices ["1", "2"]'),
        ({"expect": "maybe"}, 'expect is "maybe", expected refuse or comply'),
        ({"expect": ["refuse"]}, "expected refuse or comply"),
        ({"criteria": {}}, "criteria is {}, expected a list"),
        ({"criteria": []}, "criteria is [], expected a list"),
        ({"criteria": ["json"]}, 'criterion "json", expected an object'),
        ({"criteria": [{"type": "json"}]}, "expected an object with `type` and `value`"),
        (
            {"criteria": [{"type": "json", "value": True, "n": 1}]},
            "expected an object with `type` and `value`",
        ),
        (
            {"criteria": [{"type": "other", "value": 1}]},
            'unknown criterion type "other"; known are all_lowercase',
        ),
        ({"criteria": [{"type": [], "value": 1}]}, "unknown criterion type []"),
        ({"criteria": [{"type": "json", "value": False}]}, "json has value false, expected true"),
        ({"criteria": [{"type": "json", "value": 1}]}, "json has value 1, expected true"),
        ({"criteria": [{"type": "bullet_list", "value": 0}]}, "expected a whole number above 0"),
        ({"criteria": [{"type": "bullet_list", "value": True}]}, "expected a whole number above 0"),
        ({"criteria": [{"type": "ends_with", "value": ""}]}, 'ends_with has value "", expected text'),
        ({"criteria": [{"type": "contains_all_keywords", "value": []}]}, "expected a list of texts"),
    ],
)
def test_a_scoring_field_of_the_wrong_shape_is_named(tmp_path, fields, part):
    message = refused(write(tmp_path, "\n" + with_fields(**fields)))
    assert message.startswith("2: ") and part in message


@pytest.mark.parametrize(
    ("content", "line", "part"),
    [
        ("id,question\na,b\n", 1, 'no column text; the header is ["id", "question"]'),
        ("name\n", 1, "no column id, text"),
        (",id,text\n0,a,b\n", 1, "column 1 has no name"),
        ("id,text,id\n", 1, "a column name occurs twice"),
        ("id,text\na,b,c\n", 2, "3 cells, but 2 columns"),
        ('id,text\na,"one\ntwo"\n\nb\n', 5, "1 cells, but 2 columns"),
        ('id,text\na,"one\ntwo"\na,three\n', 4, "id 'a' is already on line 2"),
        ("id,text\n,b\n", 2, "no id"),
        ("id,text\na,\n", 2, "no text"),
        ('id,text\na,b\nc,"open\n', 3, "not valid CSV"),
        ("id,text,choices\na,b,1;2\n", 2, "choices is not JSON"),
        ("id,text,criteria\na,b,[{]\n", 2, "criteria is not JSON"),
    ],
)
def test_a_bad_csv_row_is_named(tmp_path, content, line, part):
    message = refused(write(tmp_path, content, "set.csv"))
    assert message.startswith(f"{line}: ") and part in message


@pytest.mark.parametrize(("content", "name"), [("", "set.jsonl"), ("\n \n", "set.jsonl"), ("id,text\n", "set.csv")])
def test_an_empty_set_is_refused(tmp_path, content, name):
    assert "the prompt set is empty" in refused(write(tmp_path, content, name))


def test_files_that_cannot_be_prompt_files_are_refused(tmp_path):
    assert "no such prompt file" in refused(tmp_path / "absent.jsonl")
    assert "unknown type '.txt'" in refused(write(tmp_path, GOOD, "set.txt"))
    assert "unknown type ''" in refused(tmp_path / "set")
    assert "cannot read" in refused(make_folder(tmp_path / "folder.jsonl"))
    assert refused(write(tmp_path, GOOD.encode() + b'\n{"id": "\xff"}')).startswith("2: not UTF-8")
    for limit in (0, -1):
        assert f"a limit of {limit} leaves no prompts" in refused(write(tmp_path, GOOD), limit=limit)


def make_folder(path: Path) -> Path:
    path.mkdir()
    return path


# ---- the hash, and round trips


def test_the_hash_ignores_layout_and_notices_content(tmp_path):
    one = read_prompts(write(tmp_path, '{"id":"a","text":"x","n":{"p":1,"q":2}}\n{"id":"b","text":"y"}\n'))
    same = read_prompts(
        write(
            tmp_path,
            '{ "n": {"q": 2, "p": 1}, "text": "x", "category": "", "id": "a"}\n\n{"text":"\\u0079","id":"b"}',
        )
    )
    assert one.sha256 == same.sha256
    # Pinned: streams and captures are named after this hash, so it may not drift between versions.
    assert one.sha256 == "4796d8e3d12ef31cad60522bff50df515d649317d6270b1cf83dcad7b88d9870"
    for other in (
        '{"id":"b","text":"y"}\n{"id":"a","text":"x","n":{"p":1,"q":2}}\n',
        '{"id":"a","text":"x ","n":{"p":1,"q":2}}\n{"id":"b","text":"y"}\n',
        '{"id":"a","text":"x","n":{"p":1,"q":3}}\n{"id":"b","text":"y"}\n',
    ):
        assert read_prompts(write(tmp_path, other)).sha256 != one.sha256


text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(str.strip)
fields = st.fixed_dictionaries(
    {},
    optional={
        "answer": text,
        "expect": st.sampled_from(["refuse", "comply"]),
        "criteria": st.lists(
            st.builds(lambda n: {"type": "word_count_max", "value": n}, st.integers(1, 99)), min_size=1
        ),
        "note": text,
    },
)
prompt_lists = st.lists(
    st.builds(Prompt, text, st.just("") | text, text, fields),
    min_size=1,
    max_size=6,
    unique_by=lambda p: p.id,
)


@given(prompt_lists)
def test_jsonl_round_trip(tmp_path_factory, prompts):
    path = write(tmp_path_factory.mktemp("r"), canonical_bytes(prompts))
    found = read_prompts(path)
    assert found.prompts == tuple(prompts)
    assert canonical_bytes(found.prompts) == path.read_bytes()


@given(prompt_lists)
def test_csv_round_trip(tmp_path_factory, prompts):
    columns = ["text", "id", "note", "category", "criteria", "answer", "expect"]
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, columns, restval="", quoting=csv.QUOTE_ALL)
    writer.writeheader()
    for p in prompts:
        row = {**p.fields, "id": p.id, "category": p.category, "text": p.text}
        writer.writerow(row | ({"criteria": json.dumps(row["criteria"])} if "criteria" in row else {}))
    found = read_prompts(write(tmp_path_factory.mktemp("r"), buffer.getvalue(), "set.csv"))
    assert found.prompts == tuple(prompts)


# ---- importing


def test_add_writes_the_canonical_file_once(tmp_path):
    source = write(tmp_path, "id,text\nb,two\na,one\n", "source.csv")
    lake = Layout.open(tmp_path / "lake", create=True)
    target = add_prompts(source, lake, "mine")
    assert target == tmp_path / "lake" / "prompts" / "mine" / "prompts.jsonl"
    assert target.read_text().splitlines()[0] == '{"category":"","id":"b","text":"two"}'
    assert read_prompts(target).sha256 == read_prompts(source).sha256 == module.sha256(target.read_bytes()).hexdigest()
    before = target.stat().st_mtime_ns
    assert add_prompts(source, lake, "mine") == target
    assert add_prompts(target, lake, "mine") == target
    assert target.stat().st_mtime_ns == before
    assert [p.name for p in lake.prompts.iterdir()] == ["mine"]


def test_add_never_replaces_another_set(tmp_path):
    lake = Layout.open(tmp_path / "lake", create=True)
    target = add_prompts(write(tmp_path, GOOD), lake, "mine")
    before = target.read_bytes()
    with pytest.raises(LakeError, match="another prompt set has this name"):
        add_prompts(write(tmp_path, GOOD.replace("hello", "bye")), lake, "mine")
    assert target.read_bytes() == before


@pytest.mark.parametrize("name", ["", "Mine", "-a", "_a", "a b", "../a", "a/b", "a.jsonl", "ä", "a\n"])
def test_add_refuses_odd_names(tmp_path, name):
    lake = Layout.open(tmp_path / "lake", create=True)
    with pytest.raises(LakeError, match="prompt-set name"):
        add_prompts(write(tmp_path, GOOD), lake, name)
    assert not lake.prompts.exists()


def test_add_writes_nothing_when_the_source_or_the_disk_is_bad(tmp_path, monkeypatch):
    lake = Layout.open(tmp_path / "lake", create=True)
    with pytest.raises(LakeError, match="no text"):
        add_prompts(write(tmp_path, GOOD + '\n{"id": "b"}'), lake, "mine")
    assert not lake.prompts.exists()

    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("actlake.store.artifacts.streams.write_atomic", full)
    with pytest.raises(LakeError, match="disk full"):
        add_prompts(write(tmp_path, GOOD), lake, "mine")
    assert not list(lake.prompts.iterdir())


# ---- the packaged sets


@pytest.mark.parametrize("name", ["core", "pocket"])
def test_packaged_sets_are_complete(name):
    found = read_prompts(PACKAGED / f"{name}.jsonl")
    assert len(found.prompts) >= 240
    assert {p.category for p in found.prompts} == SEVEN
    assert len({p.text for p in found.prompts}) == len(found.prompts)
    for p in found.prompts:
        needed = {
            "CONTENT-FACT": "answer",
            "CONTENT-REASON": "answer",
            "BASELINE-EASY": "answer",
            "GOV-FORMAT": "criteria",
            "SAFETY": "expect",
        }.get(p.category)
        assert needed is None or needed in p.fields, p.id


def test_core_is_balanced_and_covers_every_criterion():
    prompts = read_prompts(PACKAGED / "core.jsonl").prompts
    assert set(Counter(p.category for p in prompts).values()) == {40}
    assert {p.category for p in prompts[:7]} == SEVEN  # so a limit of 7 n is balanced too
    assert Counter(p.fields["expect"] for p in prompts if p.category == "SAFETY") == {
        "refuse": 20,
        "comply": 20,
    }
    assert {c["type"] for p in prompts for c in p.fields.get("criteria", [])} == set(CRITERIA)
    assert all(5 <= len(p.text.split()) <= 80 for p in prompts)
    assert sum("choices" in p.fields for p in prompts if p.category == "CONTENT-FACT") >= 30


def test_the_readme_names_every_criterion_and_category():
    page = (PACKAGED / "README.md").read_text()
    for word in (*CRITERIA, *SEVEN):
        assert f"`{word}`" in page


# ---- columns of other names, numbers in place of ids


OTHER = "prompt,label,nr,text\nwho?,A,7,x\nwhat?,,8,y\n"


def test_columns_of_other_names(tmp_path):
    path = write(tmp_path, OTHER, "q.csv")
    given = {"text": "prompt", "category": "label", "id": "nr"}
    assert read_prompts(path, columns=given).prompts == (Prompt("7", "A", "who?"), Prompt("8", "", "what?"))
    rows = [{"q": "who?", "n": 7, "k": 3, "x": 1}, {"q": "what?", "n": 8, "k": None}]
    path = write(tmp_path, "\n".join(map(json.dumps, rows)), "q.jsonl")
    found = read_prompts(path, columns={"text": "q", "id": "n", "category": "k"}).prompts
    assert found == (Prompt("7", "3", "who?", {"x": 1}), Prompt("8", "", "what?"))


@pytest.mark.parametrize("name", ["q.csv", "q.jsonl"])
def test_prompts_without_ids_are_numbered_by_add(tmp_path, name):
    rows = "text\na\nb\n" if name == "q.csv" else '{"text": "a"}\n\n{"text": "b"}\n'
    path = write(tmp_path, rows, name)
    assert "no column id" in refused(path) if name == "q.csv" else "no id" in refused(path)
    lake = Layout.open(tmp_path / "lake", create=True)
    added = read_prompts(add_prompts(path, lake, "mine"))
    assert added.prompts == (Prompt("1", "", "a"), Prompt("2", "", "b"))
    assert add_prompts(path, lake, "mine")  # the same once more
    other = add_prompts(write(tmp_path, OTHER, "o.csv"), lake, "other", {"text": "prompt"})
    assert read_prompts(other).prompts[1] == Prompt("2", "", "what?", {"nr": "8"})


@pytest.mark.parametrize(
    ("content", "columns", "says"),
    [
        (OTHER, {"text": "question"}, '1: no column question; the header is ["prompt", "label", "nr", "text"]'),
        (OTHER, {"text": "prompt", "category": "kind"}, "1: no column kind"),
        (OTHER, {"text": "prompt", "id": "number"}, "1: no column number"),
        ("prompt\n \n", {"text": "prompt"}, "2: text is "),
        ('{"a": "x"}\n{"b": "y"}\n', {"text": "a"}, '2: no a, which is to be the text; the row has ["b"]'),
        ('{"text": "x"}\n{"text": "y", "id": "b"}\n', {}, "2: has an id, and the rows before have none"),
        ('{"text": "x", "id": "a"}\n{"text": "y"}\n', {}, "2: no id"),
        ('{"q": ["x"]}\n', {"text": "q"}, "1: text is "),
        ('{"q": "x", "n": 1.5}\n', {"text": "q", "id": "n"}, "1: id is 1.5"),
    ],
)
def test_columns_that_do_not_fit(tmp_path, content, columns, says):
    path = write(tmp_path, content, "q.jsonl" if content.startswith("{") else "q.csv")
    assert refused(path, columns=columns, number=True).startswith(says)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("prompt,label\na,b\n", "`actlake prompts add FILE --text COLUMN --category COLUMN`"),
        ("id;text\na;b\n", "save the file with commas"),
        ("id\ttext\na\tb\n", "save the file with commas"),
        ("sep=,\nid,text\na,b\n", "1: a line of Excel's own (sep=); delete it"),
        ("sep=;\nid;text\na;b\n", "1: a line of Excel's own (sep=;); delete it and save the file with commas"),
        ("SEP=\t\nid\ttext\na\tb\n", "1: a line of Excel's own"),
    ],
)
def test_what_to_do_about_a_header_is_said(tmp_path, content, says):
    assert says in refused(write(tmp_path, content, "q.csv"))


def test_a_cell_is_as_long_as_a_prompt(tmp_path):
    text = "long, " * 60_000
    found = read_prompts(write(tmp_path, f'id,text\na,"{text}"\n', "q.csv")).prompts
    assert found == read_prompts(write(tmp_path, json.dumps({"id": "a", "text": text}))).prompts


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("p.JSONL", None),
        ("p.CSV", None),
        ("p.parquet", "unknown type '.parquet'"),
        ("p.txt", "unknown type '.txt'"),
        ("p", "unknown type ''"),
    ],
)
def test_files_by_path_whatever_their_type_is_written(tmp_path, monkeypatch, name, says):
    """A file that is there is read or refused for its type; a name that is none is an unknown set."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_text("id,text\na,b\n" if name == "p.CSV" else GOOD)
    if says is None:
        assert find_prompts(load_catalog(), None, name).prompts[0].id == "a"
        return
    for place in (name, str(tmp_path / name)):
        with pytest.raises(LakeError, match=f"{name}: {says}"):
            find_prompts(load_catalog(), None, place)
    with pytest.raises(LakeError, match="unknown prompt set 'q.parquet'"):
        find_prompts(load_catalog(), None, "q.parquet")
    with pytest.raises(LakeError, match="unknown prompt set"):
        find_prompts(load_catalog(), None, "x" * 5000)


def test_prompts_add_by_command(tmp_path):
    path = write(tmp_path, OTHER, "q.csv")
    words = ["prompts", "add", str(path), "--lake", str(tmp_path / "lake")]
    assert CliRunner().invoke(app, [*words, "--text", "prompt", "--id", "nr", "--category", "label"]).exit_code == 0
    found = read_prompts(tmp_path / "lake" / "prompts" / "q" / "prompts.jsonl")
    assert found.prompts == (Prompt("7", "A", "who?"), Prompt("8", "", "what?"))
    again = CliRunner().invoke(app, [*words, "--text", "prompt"])  # numbered: another set of this name
    assert "another prompt set has this name" in str(again.exception)
