"""Streams on disk: round trips of anything that can be a stream, content hashes, aliases, damage."""

import hashlib
import json
import struct
from dataclasses import replace

import numpy as np
import pytest
import tiny
from actlake.store.artifacts.streams import find_stream, read_stream, stream_records, write_stream
from actlake.store.core.errors import CorruptError, LakeError
from actlake.store.core.files import hash_json, write_atomic
from actlake.store.format.paths import Layout
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
TOKENS = st.lists(st.integers(0, 2**31 - 1), max_size=6)
ROWS = st.lists(
    st.tuples(TEXT, st.text(max_size=4), TOKENS.filter(bool), TOKENS),
    min_size=1,
    max_size=7,
    unique_by=lambda row: row[0],
)
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Layout:
    return Layout.open(tmp_path_factory.mktemp("streams") / "lake", create=True)


@QUICK
@given(rows=ROWS)
def test_any_stream_comes_back_as_it_was(shared, rows):
    made = tiny.synthetic_stream(rows)
    back = read_stream(shared, write_stream(shared, made))
    assert [t.tolist() for t in back.tokens] == [[*s, *c] for _, _, s, c in rows]
    assert list(back.prompt_ids) == [row[0] for row in rows] and list(back.categories) == [row[1] for row in rows]
    assert list(back.starts) == [len(row[2]) for row in rows]
    assert back.texts == made.texts and back.special.tolist() == made.special.tolist()
    assert (back.name, back.content_sha256, back.recipe) == (made.name, made.content_sha256, made.recipe)
    for name, values in made.columns.items():
        assert np.array_equal(back.columns[name], values) and back.columns[name].dtype == values.dtype


@QUICK
@given(rows=ROWS)
def test_coordinates_of_any_stream(rows):
    """Against a plain loop over prompts and positions."""
    columns = tiny.synthetic_stream(rows).columns
    expected = []
    for prompt, (_, _, start, told) in enumerate(rows):
        for position in range(len(start) + len(told)):
            step = position - (len(start) - 1)
            expected.append((prompt, position, step if 0 <= step < len(told) else -1, position >= len(start)))
    names = ("prompt", "position", "step", "is_continuation")
    assert list(zip(*(columns[name].tolist() for name in names), strict=True)) == expected


ROW = ("a", "C", [1, 2], [3])


@pytest.mark.parametrize(
    "changed",
    [
        [("b", "C", [1, 2], [3])],  # another id
        [("a", "C", [1, 2], [4])],  # another token
        [("a", "C", [1], [2, 3])],  # the same tokens, another step
        [("a", "C", [1, 2], [3]), ("b", "C", [5], [])],
    ],
)
def test_content_hash_sees_what_matters(changed):
    assert tiny.synthetic_stream([ROW]).content_sha256 != tiny.synthetic_stream(changed).content_sha256


def test_content_hash_ignores_names_and_recipe_but_not_the_tokenizer():
    one = tiny.synthetic_stream([ROW])
    other = tiny.synthetic_stream([ROW], kind="native", recipe={"key": "x", "tokenizer_sha256": "t"})
    assert one.content_sha256 == other.content_sha256 and other.name == f"native-made-{one.content_sha256[:8]}"
    assert one.content_sha256 != tiny.synthetic_stream([ROW], recipe={"tokenizer_sha256": "u"}).content_sha256


def test_content_hash_is_pinned():
    """Written out by hand; a change gives every stored stream another name and needs a new format version."""
    text = b"t" + (1).to_bytes(8, "little") + b"a"
    numbers = struct.pack("<2q", 0, 3) + struct.pack("<3i", 1, 2, 3) + struct.pack("<3i", -1, 0, -1)
    assert tiny.synthetic_stream([ROW]).content_sha256 == hashlib.sha256(text + numbers).hexdigest()


def test_equal_content_is_stored_once_under_many_names(lake):
    first = tiny.synthetic_stream([ROW], recipe={"key": "k1", "tokenizer_sha256": "t"})
    assert write_stream(lake, first) == first.name
    for kind, key in (("native", "k2"), ("raw", "k3"), ("native", "k4"), ("raw", "k1")):
        twin = replace(first, kind=kind, recipe={"key": key, "tokenizer_sha256": "t"})
        assert write_stream(lake, twin) == first.name
        assert find_stream(lake, key, kind)["name"] == twin.name
        assert read_stream(lake, twin.name).content_sha256 == first.content_sha256
    assert [path.name for path in lake.streams.glob("*.parquet")] == [f"{first.name}.parquet"]
    assert {record["name"]: record["keys"] for record in stream_records(lake)} == {
        first.name: ["k1", "k3"],
        first.name.replace("raw", "native"): ["k2", "k4"],
    }
    assert find_stream(lake, "k9", "raw") is None
    before = tiny.tree(lake.root)
    write_stream(lake, first)
    assert tiny.tree(lake.root) == before


def test_stream_is_finished_when_a_kill_left_only_its_tokens(lake):
    made = tiny.synthetic_stream([ROW])
    write_stream(lake, made)
    whole = tiny.tree(lake.root)
    (lake.streams / f"{made.name}.json").unlink()
    write_stream(lake, made)
    assert tiny.tree(lake.root) == whole


def test_damaged_missing_and_foreign_streams(lake):
    name = write_stream(lake, tiny.synthetic_stream([ROW]))
    path = lake.streams / f"{name}.parquet"
    tiny.flip(path, len(path.read_bytes()) // 2)
    with pytest.raises(CorruptError, match=f"{name}.parquet: bytes differ"):
        read_stream(lake, name)
    path.unlink()
    with pytest.raises(LakeError, match="token file is missing"):
        read_stream(lake, name)
    with pytest.raises(LakeError, match="no such file"):
        read_stream(lake, "raw-made-00000000")
    tiny.edit_json(lake.streams / f"{name}.json", format_version=3)
    with pytest.raises(LakeError, match="format version 3, this actlake reads 2"):
        stream_records(lake)


def test_atomic_write_leaves_the_old_file_when_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "folder" / "file"
    write_atomic(path, b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, b"new")
    assert tiny.tree(tmp_path) == {"folder/file": b"old"}


@given(
    st.dictionaries(
        st.text(max_size=5),
        st.one_of(st.integers(), st.text(max_size=5), st.floats(allow_nan=False, allow_infinity=False)),
        max_size=6,
    )
)
def test_hash_of_json_does_not_depend_on_order(record):
    turned = dict(reversed(record.items()))
    assert hash_json(record) == hash_json(turned) == hash_json(json.loads(json.dumps(record)))
