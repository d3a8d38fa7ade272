"""Lakes at URLs, against real servers: S3 (SeaweedFS, credentials on) and a static web server with range requests."""

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import numpy as np
import pytest
import ready
import tiny
import xarray as xr
from actlake.lake import Lake
from actlake.store.artifacts.streams import write_stream
from actlake.store.captures.allocate import Template
from actlake.store.captures.manifest import seal
from actlake.store.captures.reader import Capture, find_capture, list_captures, open_capture
from actlake.store.captures.verify import verify
from actlake.store.core.errors import CorruptError, LakeError
from actlake.store.exchange.plan import Planner, origin_of
from actlake.store.exchange.transfer import Selection, move, write_index
from actlake.store.format.paths import Layout
from actlake.store.remote import store as origins
from actlake.store.remote.opening import open_store
from actlake.store.remote.store import Store
from servers import GUEST, environment, served

SQL = (
    "SELECT layer, avg(kl_final_layer) AS kl, count(*) AS n FROM lens WHERE lens = 'raw' GROUP BY layer ORDER BY layer"
)


def push(layout: Layout, url: str) -> None:
    move(Planner(origin_of(layout), origin_of(url), Selection(tables=False)).plan())


def arrays(layout: Layout) -> dict[str, np.ndarray]:
    """Every value of every capture."""
    found = {}
    for row in list_captures(layout).itertuples():
        capture = Capture(Path(row.path), lake=layout.files)
        for name in capture.group.array_keys():
            found[f"{row.model}/{row.stream}/{name}"] = capture.array(name)[...]
    return found


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    """Equal to the last bit."""
    return a.keys() == b.keys() and all(
        x.tobytes() == y.tobytes() if x.dtype.kind in "fiub" else x.tolist() == y.tolist()
        for x, y in ((a[name], b[name]) for name in a)
    )


@pytest.fixture
def pushed(captured, bucket):
    """The captured lake at s3://, to be read and never changed."""
    push(captured, f"{bucket}/lake")
    return f"{bucket}/lake"


@pytest.fixture
def web(captured, tmp_path):
    """The captured lake behind a web server without listings."""
    shutil.copytree(captured.root, tmp_path / "www" / "lake")
    write_index(open_store(tmp_path / "www" / "lake"))
    with served(tmp_path / "www") as server:
        yield server


def test_a_lake_on_s3_is_the_lake(pushed, captured):
    lake = Lake(pushed)
    columns = ["model", "stream", "prompts", "tokens", "bytes", "sealed"]
    assert lake.captures[columns].equals(Lake(captured.root).captures[columns])
    assert same(arrays(lake.layout), arrays(captured))
    assert "s3://" in repr(lake)


def test_shards_stay_where_they_are(pushed):
    lake = Lake(pushed)
    capture = Capture(find_capture(lake.layout, "llama-it", "native"), lake=lake.layout.files)
    assert np.isfinite(capture.array("resid")[:]).all()
    assert not [file for file in lake.layout.root.rglob("resid/c/*/*/*") if file.is_file()]


@pytest.mark.parametrize("stream", ["native", "teacher"])
def test_plain_xarray_opens_the_url(pushed, captured, stream):
    path = find_capture(captured, "llama-pt", stream)
    with xr.open_zarr(f"{pushed}/{path.relative_to(captured.root)}") as found, xr.open_zarr(path) as expected:
        assert found.load().identical(expected.load())


def test_plain_xarray_opens_the_url_of_a_web_server(web, captured):
    path = find_capture(captured, "llama-it", "native")
    with xr.open_zarr(f"{web.url}/lake/{path.relative_to(captured.root)}") as found, xr.open_zarr(path) as expected:
        assert found.load().identical(expected.load())


def test_tables_are_made_and_kept_in_the_bucket(pushed, captured, cache_folder):
    found = Lake(pushed).sql(SQL).df()
    assert found.equals(Lake(captured.root).sql(SQL).df())
    names = [name for name in open_store(pushed).find("tables") if name.startswith("tables/lens/")]
    assert names
    shutil.rmtree(cache_folder)  # a colleague's machine
    lake = Lake(pushed)
    again = lake.sql(SQL).df()
    assert again.equals(found)
    assert sorted(open_store(pushed).find("tables")) == sorted(names)  # nothing was computed anew


def test_a_row_of_a_remote_lake(pushed, captured):
    found, expected = Lake(pushed).run("exp16").table, Lake(captured.root).run("exp16").table
    assert found.equals(expected)


def test_a_lake_that_can_only_be_read_keeps_tables_here(pushed, captured, s3_server, capsys):
    with environment(**{**s3_server.environment, **GUEST}):
        lake = Lake(pushed)
        found = lake.sql(SQL).df()
        assert found.equals(Lake(captured.root).sql(SQL).df())
        written = {file: file.stat().st_mtime_ns for file in lake.layout.table("lens").glob("*.parquet")}
        assert Lake(pushed).sql(SQL).df().equals(found)
        assert written == {file: file.stat().st_mtime_ns for file in lake.layout.table("lens").glob("*.parquet")}
    assert not [name for name in open_store(pushed).find("tables") if "/lens/" in name]
    printed_words = capsys.readouterr().err
    assert "access denied" in printed_words and "stays in" in printed_words


def test_a_capture_straight_to_s3_is_byte_for_byte_a_local_one(bucket, captured, llama):
    url = f"{bucket}/lake"
    tiny.capture(url, llama, tiny.NATIVE, tiny.TEACHER)
    back = open_store(url)
    expected = {name: (captured.root / name).read_bytes() for name in open_store(captured.root).find("captures")}
    found = {name: back.read(name) for name in back.find("captures")}
    assert found.keys() == expected.keys()
    assert found == expected
    assert all(verify(Layout.open(url), Path(row.path)).ok for row in Lake(url).captures.itertuples())


def test_a_capture_killed_on_its_way_to_s3_goes_on_elsewhere(bucket, captured, llama, tmp_path, monkeypatch):
    """The second run is another machine: another mirror. It redoes what is not on record in the bucket, no more."""
    put, puts = Store.put, []

    def killed(self, name, source, new=False):
        puts.append(name)
        if len([name for name in puts if "/shard-" in name]) == 4:
            raise KeyboardInterrupt
        return put(self, name, source, new)

    monkeypatch.setattr(Store, "put", killed)
    with pytest.raises(KeyboardInterrupt):
        tiny.capture(f"{bucket}/lake", llama, tiny.NATIVE)
    monkeypatch.setattr(Store, "put", put)
    assert not Lake(f"{bucket}/lake").captures["sealed"].any()
    recorded = {name for name in open_store(f"{bucket}/lake").find("captures") if "/.progress/shard-" in name}
    assert 3 <= len(recorded) < 10  # rows that were under way may come to their end
    monkeypatch.setenv("ACTLAKE_CACHE", str(tmp_path / "other"))
    again = []

    def seen(self, name, source, new=False):
        again.append(name)
        return put(self, name, source, new)

    monkeypatch.setattr(Store, "put", seen)
    layout = tiny.capture(f"{bucket}/lake", llama, tiny.NATIVE)
    it = next(iter(recorded)).partition("/.progress/")[0]
    redone = {name for name in again if name.startswith(it) and "/shard-" in name}
    assert not redone & recorded and len(redone | recorded) == 10
    expected = {name: array for name, array in arrays(captured).items() if "/native-" in name}
    assert same(arrays(layout), expected)
    assert not [name for name in open_store(f"{bucket}/lake").find("captures") if ".progress" in name]


def test_two_ranks_with_a_mirror_each_make_the_same_store(bucket, captured, llama, tmp_path, monkeypatch):
    from actlake.capture.run.ranks import Rank

    for rank in (0, 1):
        monkeypatch.setenv("ACTLAKE_CACHE", str(tmp_path / f"machine{rank}"))
        tiny.capture(f"{bucket}/lake", llama, tiny.NATIVE, variants=("it",), rank=Rank(rank, 2, rank, "test"))
    monkeypatch.setenv("ACTLAKE_CACHE", str(tmp_path / "third"))
    back = open_store(f"{bucket}/lake")
    name = find_capture(captured, "llama-it", "native").relative_to(captured.root).as_posix()
    assert {file: back.read(file) for file in back.find(name)} == {
        file: (captured.root / file).read_bytes() for file in open_store(captured.root).find(name)
    }


def test_no_capture_into_a_lake_that_can_only_be_read(web, llama):
    with pytest.raises(LakeError, match="can only be read; capture into a folder or a bucket"):
        tiny.capture(f"{web.url}/lake", llama, tiny.RAW)


def test_a_web_server_needs_no_listing(web, captured):
    lake = Lake(f"{web.url}/lake")
    assert same(arrays(lake.layout), arrays(captured))
    assert lake.sql(SQL).df().equals(Lake(captured.root).sql(SQL).df())


def test_a_web_server_with_listings_needs_no_index(captured, tmp_path):
    shutil.copytree(captured.root, tmp_path / "www" / "lake")
    with served(tmp_path / "www", listing=True) as server:
        assert same(arrays(Layout.open(f"{server.url}/lake")), arrays(captured))


def test_one_prompt_over_http_touches_only_its_bytes(tmp_path):
    """Chunks of 256 tokens, as of a model of 4B: one prompt costs at most three times its stored bytes."""
    rows = [(f"p{p}", "C", list(range(1, 60)), list(range(60, 60 + 400 + p))) for p in range(12)]
    sizes = {"resid": (5, 1024), "mlp_out": (4, 1024)}
    layout = Layout.open(tmp_path / "www" / "lake", create=True)
    template = Template(tiny.synthetic_stream(rows), sizes, tuple(range(5)), tuple(range(4)), "float32", tiny.MADE)
    write_stream(layout, template.stream)
    path = layout.capture("made-pt", template.stream.name)
    tiny.write_capture(path, template)
    manifest = seal(path)
    write_index(open_store(layout.root))
    assert Capture(path).array("resid").array.chunks[0] == 256
    stored = {
        name: sum(entry["bytes"] for file, entry in manifest["files"].items() if file.startswith(f"{name}/c/"))
        for name in sizes
    }
    with served(tmp_path / "www") as server:
        lake = Lake(f"{server.url}/lake")
        ds = lake.dataset("made-pt", template.stream.name)
        for prompt in (0, 5, 11):
            first, last = template.stream.offset[prompt : prompt + 2].tolist()
            server.requests.clear()
            found = ds[["resid", "mlp_out"]].isel(token=slice(first, last)).compute()
            expected = Capture(path)
            assert np.array_equal(found.resid, expected.array("resid")[first:last])
            assert np.array_equal(found.mlp_out, expected.array("mlp_out")[first:last])
            fair = sum(stored.values()) * (last - first) / template.stream.n_tokens
            assert 0 < server.sent <= 3 * fair
            # A range for each layer of each site in each shard it lies in, and once each shard's index.
            shards = {token // template.shard_tokens for token in (first, last - 1)}
            assert len(server.requests) <= len(shards) * (5 + 4 + 2)
            assert all(asked.startswith("bytes=") for _, asked, _ in server.requests)
        # What was decoded is held: a neighbour in the same chunks costs nothing.
        ds.resid[600:650].compute()
        server.requests.clear()
        assert np.array_equal(ds.resid[650:700].compute(), Capture(path).array("resid")[650:700])
        assert not server.requests


def test_an_index_with_another_content_is_refused(web):
    file = web.folder / "lake" / "files.json"
    whole = file.read_text()
    for old, new in (
        ("resid", "resic"),
        ("manifest.json", "manifest.jsoo"),
        (" 1", " 2"),
        ('"files_sha256": "', '"files_sha256": "0'),
    ):
        assert old in whole
        file.write_text(whole.replace(old, new, 1))
        with pytest.raises(CorruptError, match=r"files\.json: its list of files is damaged .*`actlake index`"):
            Lake(f"{web.url}/lake")
    file.write_text(json.dumps({"files": json.loads(whole)["files"]}))  # as older versions wrote it
    assert len(Lake(f"{web.url}/lake").captures)


def test_many_threads_may_open_a_lake_that_is_not_here_yet(web, captured, cache_folder):
    layout = Lake(f"{web.url}/lake").layout
    path, here = find_capture(layout, "llama-it", "native"), find_capture(captured, "llama-it", "native")
    expected = open_capture(here).token_id.values
    web.wait, before = 0.02, len(web.requests)
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: open_capture(path, lake=layout.files).token_id.values, range(16)))
    assert all(np.array_equal(one, expected) for one in found)
    names = [name for name, _, _ in web.requests[before:] if "/c/" in name]
    assert names and len(names) == len(set(names))  # each file once
    assert not list(cache_folder.rglob("*.tmp"))


def test_servers_that_fail_for_a_while_are_asked_again(web, captured, monkeypatch):
    monkeypatch.setattr(origins, "PAUSES", (0.01,) * 6)
    lake = Lake(f"{web.url}/lake")
    web.failures += [503, 500, 502]
    assert same(arrays(lake.layout), arrays(captured))
    web.failures += [503] * 4000
    path = find_capture(lake.layout, "llama-it", "native")
    with pytest.raises(LakeError, match=r"out of reach .*503"):
        Capture(path, lake=lake.layout.files).array("resid")[:]
    web.failures.clear()


def test_a_server_that_is_gone_is_one_line(captured, tmp_path, monkeypatch):
    monkeypatch.setattr(origins, "PAUSES", (0.01,) * 2)
    with pytest.raises(LakeError, match=r"^http://127.0.0.1:1/lake: out of reach|^http://127.0.0.1:1/lake/"):
        Layout.open("http://127.0.0.1:1/lake")


@pytest.mark.sweep
def test_an_s3_server_that_starts_again_is_waited_for(pushed, captured, s3_server):
    lake = Lake(pushed)
    s3_server.stop()
    back = threading.Timer(3, s3_server.start)
    back.start()
    try:
        assert same(arrays(lake.layout), arrays(captured))
    finally:
        back.join()


def test_no_lake_and_no_rights_are_told(bucket, s3_server, tmp_path):
    with pytest.raises(
        LakeError, match=rf"no lake at {bucket}/nothing \(no lake.json\); `actlake push {bucket}/nothing`"
    ):
        Layout.open(f"{bucket}/nothing")
    wrong = {"AWS_ACCESS_KEY_ID": "NOBODY", "AWS_SECRET_ACCESS_KEY": "sesame-open-secret"}
    with environment(**{**s3_server.environment, **wrong}), pytest.raises(LakeError, match="access denied") as caught:
        Layout.open(f"{bucket}/nothing")
    assert "sesame" not in str(caught.value)
    fsspec.filesystem("s3", skip_instance_cache=True).pipe_file(f"{bucket}/photos/cat.jpg", b"x")
    with pytest.raises(LakeError, match="not empty and not a lake"):
        Layout.open(f"{bucket}/photos", create=True)


def test_damage_at_the_origin_is_named(pushed, captured, cache_folder):
    path = find_capture(captured, "llama-it", "native").relative_to(captured.root).as_posix()
    place = open_store(pushed)
    for name in (f"{path}/resid/c/1/0/0", f"{path}/token_id/c/0"):
        data = bytearray(place.read(name))
        data[len(data) // 2] ^= 4
        place.put(name, bytes(data))
        shutil.rmtree(cache_folder, ignore_errors=True)  # what was brought before the damage is good
        layout = Layout.open(pushed)
        with pytest.raises(CorruptError, match=name):
            Capture(layout.root / path, lake=layout.files).array(name.split(".zarr/")[1].split("/")[0])[:]
        if "resid" in name:
            report = verify(layout, layout.root / path)
            assert any(name in problem and "the manifest's SHA-256 (found" in problem for problem in report.problems)


def test_a_lake_made_anew_at_the_same_place_is_seen(captured, bucket, llama, tmp_path):
    url = f"{bucket}/lake"
    push(captured, url)
    before = arrays(Layout.open(url))
    open_store(url).delete("")
    other = tiny.capture(tmp_path / "other", llama, tiny.NATIVE, batch=2)
    push(other, url)
    lake = Lake(url)
    assert same(arrays(lake.layout), arrays(other)) and not same(arrays(lake.layout), before)
    for row in lake.captures.itertuples():
        assert Capture(Path(row.path), lake=lake.layout.files).group.attrs["batch"] == 2
        assert verify(lake.layout, Path(row.path)).ok


def test_the_command_reads_a_bucket(pushed, s3_server, tmp_path):
    words = ("sql", "SELECT tokens FROM captures", "--lake", pushed, "--json")
    done = ready.run("-m", "actlake", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert '"tokens": 147' in done.stdout
    gone = ready.run("-m", "actlake", "ls", "--lake", f"{pushed}-not-there", cwd=tmp_path)
    assert gone.returncode == 2 and "Traceback" not in gone.stderr and len(gone.stderr.strip().splitlines()) <= 3
