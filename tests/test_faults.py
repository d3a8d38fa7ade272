"""A small part of the fault drill (benchmarks/faults.py), and the damage that it found to pass for data."""

import json
import random
import re
import shutil
import sys
from pathlib import Path

import duckdb
import google_crc32c
import mutate
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
from actlake.store.artifacts.directions import read_directions
from actlake.store.artifacts.models import read_head
from actlake.store.artifacts.streams import read_stream, stream_records
from actlake.store.artifacts.texts import VerdictStore, read_condition
from actlake.store.captures.reader import find_capture
from actlake.store.captures.verify import verify
from actlake.store.core.errors import CorruptError, LakeError
from actlake.store.core.files import json_bytes
from actlake.store.exchange.transfer import write_index
from actlake.store.exchange.whole_lake import verify_rest
from actlake.store.format.parquet import parquet_writer, read_parquet
from actlake.store.format.paths import Layout
from actlake.store.format.records import read_record, sealed
from actlake.store.remote.opening import open_store
from actlake.store.tables.files import write_table
from actlake.store.tables.sql import connect
from proxy import KINDS, bad_network
from servers import served

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "benchmarks"))
import drill  # noqa: E402
import faults  # noqa: E402
import networks  # noqa: E402
import vouched  # noqa: E402


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> drill.Work:
    return drill.make_work(tmp_path_factory.mktemp("faults"), seed=1, share=0.02)


def clean(tally: drill.Tally, least: int = 1) -> None:
    assert not tally.bad, tally.bad
    assert tally.tried == tally.detected + tally.survived >= least


@pytest.mark.parametrize("part", [faults.damage, faults.fuzz])
def test_damage_is_detected_or_harmless(work, part):
    made = part(work)
    for tally in [made] if isinstance(made, drill.Tally) else made:
        clean(tally, 4)


def test_every_folder_of_a_lake_is_in_the_drills(work):
    """A kind that docs/FORMAT.md lists has its place in the lake that is damaged, and so in all that follows."""
    layout = (ROOT / "docs" / "FORMAT.md").read_text().partition("\n## 2 Layout")[2].split("```")[1]
    listed = set(re.findall(r"^  (\w+)/", layout, re.MULTILINE))
    assert listed == {name.split("/")[0] for name in work.victim.files if "/" in name} and len(listed) > 8


@pytest.mark.parametrize("part", [vouched.every_file, vouched.every_value, vouched.two_lakes])
def test_whatever_changes_in_a_lake_is_noticed(work, part, tmp_path):
    more = {"folder": tmp_path} if part is vouched.two_lakes else {}
    counts = part(work.victim, random.Random(1), share=0.0, **more)
    assert not [told for count in counts.values() for told in count.bad]
    assert sum(count.tried for count in counts.values()) > 2


def test_a_disk_that_fills_up(work):
    clean(faults._fill(work, work.jobs()[2]))


def test_clocks_that_jump(work):
    for job in work.jobs()[1:3]:
        with faults.Jumping(lake := work.fresh("clock"), random.Random(3)) as jumping:
            assert drill.command(*job.words(lake))[0] == 0
        assert drill.finished(lake) == drill.finished(job.result) and jumping.jumps


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_network(work, kind, tmp_path, monkeypatch):
    monkeypatch.setattr("actlake.store.remote.store.PAUSES", (0.01,) * 6)
    shutil.copytree(work.victim.root, tmp_path / "www" / "lake")
    write_index(open_store(tmp_path / "www" / "lake"))
    tally, rng = drill.Tally("web"), random.Random(2)
    with served(tmp_path / "www") as web, bad_network(int(web.url.rpartition(":")[2])) as proxy:
        for number, odds in enumerate((0.2, 0.6)):
            networks._bad_read(tally, work, f"{proxy.url}/lake", proxy, networks.Fault(kind, number, odds, rng))
    clean(tally, 0 if kind == "falsify" else 1)  # reading sends nothing that could be falsified


def test_a_drill_counts_what_it_must_not_see(work):
    """The drill itself: other values without a word, and a crash, are told."""
    tally, victim = drill.Tally("x"), work.victim
    name = next(name for name in victim.files if name.startswith("tables/lens/"))
    table = pq.read_table(victim.root / name)
    at = table.schema.names.index("entropy")
    pq.write_table(table.set_column(at, "entropy", pa.array(np.zeros(len(table), np.float32))), victim.root / name)
    try:
        found = drill.read_all(victim.root, victim, name)
    finally:
        victim.restore()
    drill.judge(tally, "zeros", found)
    drill.judge(tally, "crash", drill.Reading(crashed=[("open", ValueError("x"))]))
    assert len(tally.wrong) == len(tally.tracebacks) == 1 and tally.row().verdict == "missed"


# --- damage that passed for data -----------------------------------------------------------------------------------------


@pytest.fixture
def table(lake) -> Path:
    floats = ("kl_layer_final", "kl_final_layer", "js_next", "entropy", "p_target", "cos_final")
    rng = np.random.default_rng(0)
    rows = {"model": "p-it", "stream": "s", "lens": "raw", "prompt_id": "p0", "category": "C"}
    rows |= dict.fromkeys(("prompt", "token", "position", "step", "layer", "top1", "rank_target"), np.arange(500))
    return write_table(lake, "lens", {"version": 1}, [rows | {name: rng.random(500) for name in floats}])


def test_no_bit_of_a_table_turns_over_unseen(lake, table):
    data, rng = table.read_bytes(), random.Random(0)
    ask = lambda: connect(lake).sql("SELECT * FROM lens ORDER BY ALL").fetchall()  # noqa: E731
    expected, refused, passed = ask(), 0, 0
    for _ in range(60):
        at = rng.randrange(len(data))
        table.write_bytes(data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :])
        passed += duckdb_reads_otherwise(table, expected)
        try:
            assert ask() == expected
        except CorruptError as error:
            refused += str(table) in str(error)
    assert refused > 55 and passed > 2  # without the checksum those would have been other numbers


def duckdb_reads_otherwise(file: Path, expected: list[tuple]) -> bool:
    """What there would be without a checksum."""
    try:
        names = ", ".join(f'"{name}"' for name in pq.read_schema(file).names)
        return duckdb.sql(f"SELECT {names} FROM read_parquet('{file}') ORDER BY ALL").fetchall() != expected
    except (duckdb.Error, pa.ArrowException, OSError, ValueError):
        return False


def test_the_checksum_of_a_parquet_file(table):
    data = table.read_bytes()
    at = data.rindex(mutate.PARQUET) + len(mutate.PARQUET)
    assert int(data[at : at + 8], 16) == google_crc32c.value(data[:at] + b"0" * 8 + data[at + 8 :])


@pytest.mark.parametrize("block", [7, 64, 1000])
def test_the_checksum_does_not_depend_on_how_a_file_is_read(tmp_path, monkeypatch, block):
    schema = pa.schema([("x", pa.int64())])
    for name in ("whole", "parts"):
        with parquet_writer(tmp_path / name, schema) as writer:
            writer.write_table(pa.table({"x": range(300)}, schema))
        assert read_parquet(tmp_path / name, schema).num_rows == 300
        monkeypatch.setattr("actlake.store.format.parquet.BLOCK", block)
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "parts").read_bytes()


def test_a_parquet_file_from_elsewhere_needs_no_checksum(tmp_path):
    schema = pa.schema([("x", pa.int64())])
    pq.write_table(pa.table({"x": [1, 2]}, schema), tmp_path / "x.parquet")
    assert read_parquet(tmp_path / "x.parquet", schema)["x"].to_pylist() == [1, 2]


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def test_a_record_that_is_not_what_its_name_says(work):
    lake = Layout.open(work.copy("records"))
    marker = next(file for file in lake.root.glob("texts/*/*/condition.json") if 'tokens": 4' in file.read_text())
    edit(marker, '"max_new_tokens": 4', '"max_new_tokens": 5')
    with pytest.raises(CorruptError, match=r"condition.json: recipe: damaged, its key is \w{16}"):
        read_condition(marker.parent)
    edit(file := next(lake.judge.glob("*.jsonl")), '"answer":"1"', '"answer":"3"')
    with pytest.raises(CorruptError, match=rf"{file.name}: damaged, its key is"):
        VerdictStore(lake.judge).refresh()
    edit(file := min(lake.streams.glob("native-*.json")), '"kind": "native"', '"kind": "nativf"')
    mutate.again(lake.root, file)  # else its own hash tells
    with pytest.raises(CorruptError, match="make the name nativf-"):
        read_stream(lake, file.stem)
    with pytest.raises(CorruptError, match=file.name):
        stream_records(lake)


@pytest.mark.parametrize(
    ("kind", "pattern"),
    [
        ("stream", "streams/*.json"),
        ("model", "models/*/model.json"),
        ("manifest", "captures/*/*/manifest.json"),
        ("directions", "directions/*/*/record.json"),
        ("probes", "lenses/*/*/record.json"),
    ],
)
def test_any_change_of_what_only_a_record_says_is_found(work, kind, pattern):
    lake = Layout.open(work.copy("records"))
    file = min(lake.root.glob(pattern))
    whole = file.read_text()
    record = read_record(file, kind)
    values = re.findall(r'": (".*?"|\d+|true|false|null),?\n', whole)
    assert len(values) > 4
    for old in values:
        file.write_text(whole.replace(f": {old}", ': "0"' if old[0] == '"' else ": 77", 1))
        with pytest.raises(LakeError, match=file.name):
            read_record(file, kind)
    del record["record_sha256"]
    file.write_text(json.dumps(record))
    with pytest.raises(CorruptError, match="record_sha256"):
        read_record(file, kind)


def test_verify_finds_another_provenance(lake_copy):
    path = find_capture(lake_copy, "llama-it", "native")
    provenance = json.loads((path / "manifest.json").read_bytes())["provenance"]
    tiny.edit_json(path / "manifest.json", provenance=provenance | {"batch": 5})
    assert [problem for problem in verify(lake_copy, path).problems if "provenance: batch: found 5" in problem]


def test_directions_of_another_recipe_are_refused(work):
    lake = Layout.open(work.copy("records"))
    marker = next(lake.root.glob("directions/*/*/record.json"))
    edit(marker, '"version": 1', '"version": 3')
    with pytest.raises(CorruptError, match="its content is damaged"):
        read_directions(marker.parent)
    record = json.loads(marker.read_bytes())
    del record["record_sha256"]
    marker.write_bytes(json_bytes(sealed(record)))
    with pytest.raises(CorruptError, match="its recipe makes"):
        read_directions(marker.parent)


@pytest.mark.parametrize(
    "pattern",
    [
        "models/*/head.zarr/unembed/c/*/*",
        "models/*/vocab.parquet",
        "streams/*.parquet",
        "lenses/*/*/weight/c/*/*/*/*",
        "directions/*/*/d_mean/c/*/*",
        "texts/*/*/texts-*.parquet",
        "tables/lens/*.parquet",
    ],
)
def test_verify_covers_every_kind(work, pattern):
    lake = Layout.open(work.copy("kinds"))
    assert all(report.ok for report in verify_rest(lake))
    file = min(lake.root.glob(pattern))
    tiny.flip(file, file.stat().st_size // 2)
    (report,) = (report for report in verify_rest(lake) if not report.ok)
    assert any(str(file) in problem for problem in report.problems), report.problems


@pytest.mark.parametrize("area", ["models/*/head.zarr", "directions/*/*"])
def test_exchanged_files_are_found_by_reading_and_by_verify(work, area):
    """Two files that are good by themselves, in each other's place: only the record tells."""
    lake = Layout.open(work.copy("exchanged"))
    files = sorted(file for file in lake.root.glob(f"{area}/**/c/**/*") if file.is_file())
    one, two = files[0].read_bytes(), files[-1].read_bytes()
    files[0].write_bytes(two)
    files[-1].write_bytes(one)
    assert any(str(files[0]) in problem for report in verify_rest(lake) for problem in report.problems)
    with pytest.raises(CorruptError, match="not the bytes that were written|bytes, expected"):
        if area.startswith("models"):
            read_head(lake, files[0].parts[len(lake.root.parts) + 1])
        else:
            read_directions(next(folder for folder in files[0].parents if folder.suffix == ".zarr"))


def test_no_link_below_texts_leads_out(work, tmp_path):
    lake = work.copy("links")
    folder = min(lake.glob("texts/*/*"))
    (folder / ".parts").symlink_to(tmp_path)
    with pytest.raises(LakeError, match="a link that leaves the lake"):
        Layout.open(lake)
