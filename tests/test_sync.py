"""push, pull and sync: only what is missing moves, hashes are checked, a part of a lake is a lake, and a stop loses nothing."""

import json
import shutil
from itertools import count
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
import xarray as xr
from actlake.cli.main import app
from actlake.lake import Lake
from actlake.store.artifacts.directions import directions_path, directions_writer, read_directions
from actlake.store.artifacts.streams import write_prompts
from actlake.store.artifacts.texts import Condition
from actlake.store.captures.reader import Capture, find_capture
from actlake.store.captures.verify import verify
from actlake.store.core.errors import CorruptError, LakeError
from actlake.store.core.files import hash_file, write_json
from actlake.store.core.schema import OUTPUTS
from actlake.store.exchange import transfer as moving
from actlake.store.exchange.plan import Planner, origin_of
from actlake.store.exchange.transfer import Plan, Selection, move, write_index
from actlake.store.format.parquet import parquet_writer
from actlake.store.format.paths import Layout
from actlake.store.format.records import sealed
from actlake.store.remote.opening import open_store
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from servers import GUEST, environment, served
from typer.testing import CliRunner


def carry(source, target, check: bool = False, **wish) -> Plan:
    """Plan a transfer and carry it out."""
    plan = Planner(origin_of(source), origin_of(str(target)), Selection(**wish), check).plan()
    move(plan)
    return plan


def good(place: Path | str) -> bool:
    layout = Layout.open(place)
    return all(verify(layout, Path(row.path)).ok for row in Lake(layout.root).captures.itertuples())


def command(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture(scope="module")
def full(tmp_path_factory, llama) -> Layout:
    """A lake with captures and tables, to be read and never changed."""
    layout = tiny.capture(tmp_path_factory.mktemp("full") / "lake", llama, tiny.NATIVE, tiny.TEACHER)
    Lake(layout.root).sql("SELECT count(*) FROM lens").fetchall()
    return layout


def test_a_copy_is_the_lake_and_moves_once(full, tmp_path):
    plan = carry(full, tmp_path / "copy")
    assert tiny.tree(tmp_path / "copy") == tiny.tree(full.root)
    assert plan.bytes == sum(map(len, tiny.tree(full.root).values()))
    again = Planner(origin_of(full), origin_of(str(tmp_path / "copy")), Selection()).plan()
    assert not again.todo and not again.bytes


def test_through_a_bucket_and_back(full, bucket, tmp_path):
    carry(full, f"{bucket}/lake")
    carry(f"{bucket}/lake", tmp_path / "back")
    assert tiny.tree(tmp_path / "back") == tiny.tree(full.root)
    plan = carry(f"{bucket}/lake", f"{bucket}/other")  # from bucket to bucket
    assert plan.bytes and open_store(f"{bucket}/other").find("").keys() == tiny.tree(full.root).keys()


def test_from_a_web_server(full, tmp_path):
    shutil.copytree(full.root, tmp_path / "www" / "lake")
    write_index(open_store(tmp_path / "www" / "lake"))
    with served(tmp_path / "www") as server:
        carry(f"{server.url}/lake", tmp_path / "copy", tables=False)
        with pytest.raises(LakeError, match="http:// is read-only here"):
            carry(full, f"{server.url}/lake/new")
    assert good(tmp_path / "copy")
    assert not (tmp_path / "copy" / "tables").exists()


def test_only_what_was_asked_for_moves(full, tmp_path):
    carry(full, tmp_path / "copy", variants=("pt",), streams=("native",))
    copy, lake = Lake(tmp_path / "copy"), Lake(full.root)
    assert copy.captures["stream"].tolist() == [find_capture(full, "llama-pt", "native").stem]
    assert good(tmp_path / "copy")
    sql = "SELECT * FROM lens WHERE variant = 'pt' AND starts_with(stream, 'native') ORDER BY ALL"
    before = tiny.tree(tmp_path / "copy")
    assert copy.sql(sql).df().equals(lake.sql(sql).df())
    assert tiny.tree(tmp_path / "copy") == before  # its table came along
    with pytest.raises(LakeError, match=r"unknown pair, model or chain 'qwen': the lake has llama, "):
        carry(full, tmp_path / "none", names=("qwen",))
    with pytest.raises(LakeError, match=r"no captures of 'pocket'; it has llama \(models llama-it, llama-pt\)"):
        carry(full, tmp_path / "none", names=("pocket",))


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.data())
def test_parts_hold_what_they_say_and_add_up(full, tmp_path_factory, data):
    """Whatever parts are pulled one after the other: what is held is right, the rest is refused, the whole is the whole."""
    folder = tmp_path_factory.mktemp("parts") / "copy"
    ids = Capture(find_capture(full, "llama-it", "native")).array("prompt_id")[:].tolist()
    for _ in range(data.draw(st.integers(1, 3))):
        carry(
            full,
            folder,
            sites=tuple(data.draw(st.sets(st.sampled_from(["resid", "mlp_out", "topk_logit"]), max_size=2))),
            boundaries=tuple(data.draw(st.sets(st.sampled_from([1, 2, 3]), max_size=2))),
            prompts=tuple(data.draw(st.sets(st.sampled_from(ids), max_size=2))),
        )
        assert good(folder)
        _check_part(full, Layout.open(folder))
    carry(full, folder)
    assert tiny.tree(folder) == tiny.tree(full.root)


def _check_part(full: Layout, copy: Layout) -> None:
    for row in Lake(copy.root).captures.itertuples():
        path = Path(row.path)
        whole, part, partial = Capture(full.root / path.relative_to(copy.root)), Capture(path), Capture(path).partial
        held = partial.holds if partial else {}
        for name in whole.manifest["sizes"]:
            if partial and name not in held:
                with pytest.raises(LakeError, match=f"this copy lacks {name}"):
                    part.array(name)
                continue
            expected, found = whole.array(name)[...], part.array(name)
            size = whole.manifest["shard_tokens"]
            rows = range(whole.manifest["n_shards"])
            for shard in rows:
                tokens = slice(shard * size, min((shard + 1) * size, len(expected)))
                places = range(expected.shape[1]) if expected.ndim == 3 else [slice(None)]
                for place in places:
                    key = (tokens, place) if expected.ndim == 3 else tokens
                    there = not partial or (
                        (held[name].rows is None or shard in held[name].rows)
                        and (held[name].places is None or place in held[name].places)
                    )
                    if there:
                        assert np.array_equal(found[key], expected[key])
                    else:
                        with pytest.raises(LakeError, match=f"this copy lacks {name} at"):
                            found[key]


def test_a_part_says_what_it_lacks_and_opens_in_plain_xarray(full, tmp_path):
    carry(full, tmp_path / "copy", sites=("resid",), boundaries=(0, 3))
    copy = Lake(tmp_path / "copy")
    assert copy.captures["lacks"].str.contains("resid at 2 of 4 boundaries").all()
    told = copy.sql("SELECT model, lacks, warning FROM captures").fetchall()
    assert told and all("resid at 2 of 4 boundaries" in lacks and warning == "" for _, lacks, warning in told)
    assert {row[0] for row in Lake(full.root).sql("SELECT lacks || warning FROM captures").fetchall()} == {""}
    path = find_capture(copy.layout, "llama-it", "native")
    with xr.open_zarr(path) as part, xr.open_zarr(find_capture(full, "llama-it", "native")) as whole:
        assert part.resid.isel(boundary=[0, 3]).load().equals(whole.resid.isel(boundary=[0, 3]).load())
        assert part.resid.isel(boundary=1).isnull().all()  # never a number that is none
    shown = command("ls", "--lake", str(tmp_path / "copy"))
    assert "lacks" in shown.output and "boundaries" in shown.output
    with pytest.raises(LakeError, match="is itself a copy of a part"):
        carry(copy.layout, tmp_path / "other", sites=("resid",))
    carry(copy.layout, tmp_path / "other")
    assert tiny.tree(tmp_path / "other") == tiny.tree(tmp_path / "copy")


def test_a_stop_loses_nothing_and_shows_nothing_half(full, tmp_path, monkeypatch):
    numbers, one = count(), moving._move_file

    def stops(source, target, item):
        if next(numbers) >= 90:
            raise KeyboardInterrupt
        one(source, target, item)

    monkeypatch.setattr(moving, "_move_file", stops)
    with pytest.raises(KeyboardInterrupt):
        carry(full, tmp_path / "copy")
    monkeypatch.setattr(moving, "_move_file", one)
    copy = Layout.open(tmp_path / "copy")
    captures = Lake(copy.root).captures
    assert not captures["sealed"].all()
    assert all(verify(copy, Path(row.path)).ok for row in captures.query("sealed").itertuples())
    plan = Planner(origin_of(full), origin_of(str(tmp_path / "copy")), Selection()).plan()
    todo = {item.name for unit in plan.units for item in unit.items}
    assert len(todo) == sum(len(unit.items) for unit in _first(full, tmp_path).units) - 90
    move(plan)
    assert tiny.tree(tmp_path / "copy") == tiny.tree(full.root)


def _first(full: Layout, tmp_path: Path) -> Plan:
    return Planner(origin_of(full), origin_of(str(tmp_path / "new")), Selection()).plan()


def test_damage_is_not_passed_on(full, tmp_path):
    shutil.copytree(full.root, tmp_path / "bad")
    path = find_capture(Layout.open(tmp_path / "bad"), "llama-it", "native")
    file = path / "resid" / "c" / "1" / "0" / "0"
    tiny.flip(file, 40)
    for target in (tmp_path / "copy",):
        with pytest.raises(CorruptError, match=r"its sha256 is \w{64}, the manifest says \w{64}") as caught:
            carry(Layout.open(tmp_path / "bad"), target)
        assert "resid/c/1/0/0" in str(caught.value)
        assert not (target / path.relative_to(tmp_path / "bad") / "manifest.json").exists()


def test_damage_at_the_target_is_mended(full, tmp_path):
    carry(full, tmp_path / "copy")
    file = find_capture(Layout.open(tmp_path / "copy"), "llama-it", "native") / "mlp_out" / "c" / "0" / "0" / "0"
    tiny.flip(file, 30)
    assert not carry(full, tmp_path / "copy").todo and not good(tmp_path / "copy")
    plan = carry(full, tmp_path / "copy", check=True)
    assert [item.name.split(".zarr/")[1] for unit in plan.todo for item in unit.items] == ["mlp_out/c/0/0/0"]
    assert tiny.tree(tmp_path / "copy") == tiny.tree(full.root)


def test_another_capture_of_the_name_stays(full, llama, tmp_path):
    other = tiny.capture(tmp_path / "other", llama, tiny.NATIVE, batch=2)
    before = tiny.tree(other.root)
    with pytest.raises(LakeError, match="another capture has this name there"):
        carry(full, other.root)
    assert tiny.tree(other.root) == before


def test_sync_gives_either_what_it_lacks(full, tmp_path):
    carry(full, tmp_path / "a", variants=("it",))
    carry(full, tmp_path / "b", variants=("pt",))
    done = command("sync", str(tmp_path / "b"), "--lake", str(tmp_path / "a"))
    assert done.exit_code == 0, done.output
    assert tiny.tree(tmp_path / "a") == tiny.tree(tmp_path / "b")
    assert len(Lake(tmp_path / "a").captures) == 3


def test_a_dry_run_moves_nothing_and_tells_bytes_and_time(full, tmp_path):
    done = command("push", str(tmp_path / "copy"), "--lake", str(full.root), "--dry-run", "--speed", "0.1")
    assert done.exit_code == 0 and not (tmp_path / "copy").exists()
    assert "at 0.1 MB/s" in done.output and "captures" in done.output
    told = json.loads(command("push", str(tmp_path / "copy"), "--lake", str(full.root), "--dry-run", "--json").output)
    assert sum(unit["bytes"] for unit in told[0]["units"]) == sum(map(len, tiny.tree(full.root).values()))


def test_a_place_that_lets_nobody_write_is_one_line(full, bucket, s3_server):
    carry(full, f"{bucket}/lake", tables=False)
    with environment(**{**s3_server.environment, **GUEST}), pytest.raises(LakeError, match="access denied") as caught:
        carry(full, f"{bucket}/lake")
    assert GUEST["AWS_SECRET_ACCESS_KEY"] not in str(caught.value)


def test_no_lake_to_pull_from(tmp_path):
    with pytest.raises(LakeError, match="no lake at"):
        carry(str(tmp_path), tmp_path / "copy")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"x")
    with pytest.raises(LakeError, match="not empty and not a lake"):
        carry(Layout.open(tmp_path / "new", create=True), tmp_path / "photos")


def test_the_weights_stay_unless_asked_for(llama, tmp_path):
    layout = tiny.capture(tmp_path / "lake", llama, tiny.NATIVE, variants=("it",), with_weights=True)
    plan = carry(layout, tmp_path / "copy")
    assert any("--with-weights takes them along, and their licence" in note for note in plan.notes)
    assert not list((tmp_path / "copy").rglob("*.safetensors"))
    carry(layout, tmp_path / "copy", weights=True)
    assert tiny.tree(tmp_path / "copy") == tiny.tree(layout.root)


@pytest.mark.parametrize("pattern", ["captures/*/*.zarr/manifest.json", "streams/*.json", "models/*/model.json"])
def test_check_replaces_a_damaged_record_at_the_target(full, tmp_path, pattern):
    """What messages about damaged files advise: `actlake pull COPY --check`."""
    carry(full, tmp_path / "lake")
    file = min((tmp_path / "lake").glob(pattern))
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(CorruptError, match=f"{file.name}: not valid JSON"):
        carry(full, tmp_path / "lake")
    plan = carry(full, tmp_path / "lake", check=True)
    assert any(file.name in note and "is replaced" in note for note in plan.notes)
    assert tiny.tree(tmp_path / "lake") == tiny.tree(full.root)


MODELS = {"pt": "llama-pt", "it": "llama-it"}


def numbers(lake: Layout) -> list:
    return Lake(lake.root).sql("SELECT layer, avg(entropy) FROM lens GROUP BY layer ORDER BY layer").fetchall()


def content(lake: Layout) -> dict[str, bytes]:
    return {name: data for name, data in tiny.tree(lake.root).items() if name != "pulled.json"}


def two(full: Layout, tmp_path: Path) -> tuple[Layout, Layout]:
    for name in ("mine", "theirs"):
        shutil.copytree(full.root, tmp_path / name)
    return Layout.open(tmp_path / "mine"), Layout.open(tmp_path / "theirs")


@pytest.mark.parametrize("words", [("pull", "theirs", "mine"), ("push", "mine", "theirs"), ("sync", "mine", "theirs")])
@pytest.mark.parametrize("check", [(), ("--check",)])
def test_nothing_of_one_name_and_other_content_is_overwritten(full, tmp_path, words, check):
    """Prompts, texts, probes and directions of the same name in both lakes; equal sizes hide nothing."""
    mine, theirs = two(full, tmp_path)
    for lake, letter in ((mine, "a"), (theirs, "b")):
        write_prompts(lake, "study", f'{{"id": "p", "text": "{letter}"}}\n'.encode())
        with directions_writer(lake, MODELS, "own", {"version": 1}) as writer:
            writer.put("norm", np.full(2, ord(letter)))
        condition = Condition(lake, "llama-it", {"template": "chat", "max_new_tokens": 4})
        text = dict.fromkeys(OUTPUTS.names, letter) | {
            "prompt_tokens": 1,
            "token_id": [1, 2],
            "tokens": 2,
            "ended": True,
        }
        condition.seal("texts", condition.file("texts", [("p0", "s")]), [text], OUTPUTS, {})
    before = content(mine), content(theirs)
    verb, at, other = words
    done = command(
        verb, str(tmp_path / ("theirs" if verb == "pull" else other)), "--lake", str(tmp_path / "mine"), *check
    )
    said = str(done.exception)
    assert isinstance(done.exception, LakeError) and "Nothing was moved" in said and "--take" in said
    assert all(
        part in said
        for part in ("prompts/study: prompts of other content", "directions/llama-pt--llama-it/own-", "texts/llama-it/")
    )
    assert (content(mine), content(theirs)) == before


def test_one_side_wins_on_request_and_the_other_is_kept(full, tmp_path):
    mine, theirs = two(full, tmp_path)
    for lake, letter in ((mine, "a"), (theirs, "b")):
        with directions_writer(lake, MODELS, "own", {"version": 1}) as writer:
            writer.put("norm", np.full(2, ord(letter)))
        write_prompts(lake, "study", letter.encode())
    path = directions_path(mine, MODELS, "own", {"version": 1})
    done = command("pull", str(theirs.root), "--lake", str(mine.root), "--take", "mine")
    assert done.exit_code == 0 and read_directions(path)[0]["norm"][:].tolist() == [97, 97]
    done = command("pull", str(theirs.root), "--lake", str(mine.root), "--take", "theirs")
    assert done.exit_code == 0 and read_directions(path)[0]["norm"][:].tolist() == [98, 98]
    assert (mine.root / "prompts" / "study" / "prompts.jsonl").read_text() == "b"
    (kept,) = (mine.root / "kept").glob(f"*/{path.relative_to(mine.root)}")
    assert read_directions(kept)[0]["norm"][:].tolist() == [97, 97]
    assert [file.read_text() for file in (mine.root / "kept").glob("*/prompts/study/prompts.jsonl")] == ["a"]
    wrong = command("pull", str(theirs.root), "--lake", str(mine.root), "--take", "ours")
    assert "expected theirs" in str(wrong.exception)


def test_tables_of_other_content_stay_and_are_counted(full, tmp_path):
    mine, theirs = two(full, tmp_path)
    expected = numbers(mine)
    file = min((theirs.root / "tables" / "lens").glob("*.parquet"))
    rows = pq.read_table(file)
    with parquet_writer(file, rows.schema) as writer:
        writer.write_table(
            rows.set_column(
                rows.schema.get_field_index("entropy"),
                rows.schema.field("entropy"),
                pa.array(np.full(len(rows), 9, np.float32)),
            )
        )
    for check in ((), ("--check",)):
        done = command("pull", str(theirs.root), "--lake", str(mine.root), *check)
        assert done.exit_code == 0 and "tables: 1 of other content under the same name" in done.output
        assert numbers(mine) == expected


def test_a_stream_of_equal_tokens_in_other_bytes_is_the_same_stream(full, tmp_path):
    """Two labs, two versions of pyarrow: the footer differs, the tokens don't."""
    mine, theirs = two(full, tmp_path)
    for file in theirs.streams.glob("*.parquet"):
        pq.write_table(pq.read_table(file), file, compression="snappy")
        record = json.loads(file.with_suffix(".json").read_bytes()) | {"parquet_sha256": hash_file(file)}
        del record["record_sha256"]
        write_json(file.with_suffix(".json"), sealed(record))
    assert good(tmp_path / "theirs")
    before = content(mine), content(theirs)
    for words in (("pull",), ("push",), ("sync",), ("sync", "--check")):
        done = command(words[0], str(theirs.root), "--lake", str(mine.root), *words[1:])
        assert done.exit_code == 0, done.exception
        assert (content(mine), content(theirs)) == before
    assert good(tmp_path / "mine") and good(tmp_path / "theirs")


def test_a_limit_that_leaves_no_prompts_moves_nothing() -> None:
    with pytest.raises(LakeError, match="a limit of 0 leaves no prompts"):
        Selection(limit=0)
