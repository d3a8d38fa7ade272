"""Lakes behind web servers: `actlake serve` hands out parts of files and nothing else; servers that can't are named; what lies
elsewhere is fetched, not made again, and nobody is told to delete it."""

import functools
import http.client
import http.server
import json
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import ready
import tiny
import xarray as xr
from actlake.cli.main import app
from actlake.lake import Lake
from actlake.store.core.errors import LakeError
from actlake.store.format.paths import Layout
from actlake.store.remote import store
from actlake.store.remote.serve import LakeServer, part_of
from typer.testing import CliRunner

run = CliRunner(env={"COLUMNS": "200"}).invoke


@contextmanager
def running(server: http.server.ThreadingHTTPServer) -> Iterator[str]:
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def without_ranges(folder: Path) -> http.server.ThreadingHTTPServer:
    """Python's own `http.server`, which sends whole files whatever part is asked for."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            """Keep quiet."""

    return http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))


@pytest.fixture
def answered(lake_copy: Layout) -> Layout:
    """A lake with the tables of exp16 and L1's captures."""
    Lake(lake_copy.root).sql("SELECT count(*) FROM pair_lens").fetchall()
    Lake(lake_copy.root).sql("SELECT count(*) FROM delta").fetchall()
    return lake_copy


@pytest.mark.parametrize(
    ("span", "part"),
    [("bytes=0-3", (0, 4)), ("bytes=7-", (7, 10)), ("bytes=-4", (6, 10)), ("bytes=-40", (0, 10)), ("bytes=5-99", (5, 10)),
     ("bytes=10-", None), ("bytes=4-2", None), ("bytes=-0", None), ("bytes=-", None), ("bytes=a-b", None), ("lines=0-1", None),
     ("bytes=0-1,3-4", None)],
)  # fmt: skip
def test_parts_of_a_file(span: str, part: tuple[int, int] | None) -> None:
    assert part_of(span, 10) == part


def test_a_served_lake_is_read_by_actlake_and_by_plain_xarray(answered: Layout, tmp_path: Path, capsys) -> None:
    with running(LakeServer(answered.root)) as url:
        there, here = Lake(url), Lake(answered.root)
        assert there.captures.drop(columns="path").equals(here.captures.drop(columns="path"))
        name = next((answered.root / "captures").glob("llama-it/*.zarr")).relative_to(answered.root).as_posix()
        plain = xr.open_zarr(f"{url}/{name}")
        assert np.array_equal(plain.resid.values, xr.open_zarr(answered.root / name).resid.values, equal_nan=True)
        assert np.array_equal(
            there.dataset("llama-it", "native").resid[:5].values, plain.resid[:5].values, equal_nan=True
        )
        pulled = run(app, ["pull", url, "llama-it", "--lake", str(tmp_path / "part")])
        assert pulled.exit_code == 0, pulled.output
    assert "can't hand out" not in capsys.readouterr().err


def test_nothing_outside_the_lake_is_served(answered: Layout, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    (answered.root / "out.txt").symlink_to(tmp_path / "secret.txt")
    (answered.root / "files.json").write_text("{}")  # may be older than the lake
    with running(LakeServer(answered.root)) as url:
        host = url.removeprefix("http://")

        def ask(path: str, method: str = "GET", **headers: str) -> tuple[int, bytes]:
            connection = http.client.HTTPConnection(host, timeout=10)
            connection.putrequest(method, path, skip_host=False)
            for header, value in headers.items():
                connection.putheader(header, value)
            connection.endheaders()
            answer = connection.getresponse()
            return answer.status, answer.read()

        for path in ("/../secret.txt", "/%2e%2e/secret.txt", "//etc/passwd", f"/{tmp_path}/secret.txt", "/out.txt", "/files.json",
                     "/captures/../../secret.txt", "/a%00b", "/..%5csecret.txt", "/" + "x" * 5000, "/nothing"):  # fmt: skip
            assert ask(path)[0] == 404, path
        status, page = ask("/")
        assert status == 200 and b"lake.json" in page and b"out.txt" not in page and b"files.json" not in page
        whole = (answered.root / "lake.json").read_bytes()
        assert ask("/lake.json") == (200, whole) and ask("/lake.json", "HEAD") == (200, b"")
        assert ask("/lake.json", Range="bytes=-8") == (206, whole[-8:])
        assert ask("/lake.json", Range="bytes=999999-")[0] == 416
        for method in ("POST", "PUT", "DELETE"):
            assert ask("/lake.json", method)[0] == 501
    assert (answered.root / "lake.json").read_bytes() == whole


def test_serve_as_a_command(answered: Layout) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        refused = run(app, ["serve", str(answered.root), "--port", str(taken.getsockname()[1])])
        assert "can't listen there" in str(refused.exception)
    process = ready.Process("-m", "actlake", "serve", answered.root, "--port", "0")
    try:
        line = process.stdout.readline()
        assert "read-only; Ctrl-C ends it" in line
        url = next(word for word in line.split() if word.startswith("http://127.0.0.1:"))
        assert run(app, ["ls", "--lake", url]).exit_code == 0
    finally:
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(20) == 0
        finally:
            process.kill()


def test_a_server_without_ranges_is_named_and_serves_all_the_same(answered: Layout, tmp_path: Path, capsys) -> None:
    with running(without_ranges(answered.root)) as url:
        done = run(app, ["pull", url, "llama-it", "--lake", str(tmp_path / "part")])
        assert done.exit_code == 0, done.exception or done.output
        assert done.output.count("can't hand out parts of files") == 1
        assert "nginx, caddy and S3 can, and `actlake serve LAKE` does" in " ".join(done.output.split())
        part, whole = Lake(tmp_path / "part"), Lake(answered.root)
        found = part.dataset("llama-it", "native").resid.values
        assert np.array_equal(found, whole.dataset("llama-it", "native").resid.values, equal_nan=True)
        there = Lake(url)
        assert np.array_equal(there.dataset("llama-it", "native").resid[:3].values, found[:3], equal_nan=True)


def test_nobody_is_told_to_delete_what_lies_elsewhere(answered: Layout, tmp_path: Path, cache_folder: Path) -> None:
    table = sorted((answered.root / "tables" / "delta").glob("*.parquet"))[0]
    table.write_bytes(b"not a table" * 30)
    model = answered.root / "models" / "llama-it" / "model.json"
    with running(LakeServer(answered.root)) as url:
        commands = (
            ["sql", "SELECT count(*) FROM delta", "--lake", url],
            ["run", "L1", "--lake", url, "--pair", "llama", "--out", str(tmp_path / "out")],
            ["pull", url, "llama-it", "--lake", str(tmp_path / "part")],
        )
        for words in commands:
            said = str(run(app, words).exception)
            assert url in said and "nothing there is to be deleted" in said and "delete it" not in said, (words, said)
            assert str(cache_folder) not in said.partition("; if only its copy here")[0], said
        tiny.flip(model, 40)
        with pytest.raises(LakeError, match="nothing there is to be deleted"):
            Lake(url).head("llama-it")
    with pytest.raises(LakeError, match="delete the"):  # a lake of one's own
        Lake(answered.root).sql("SELECT count(*) FROM delta").fetchall()


def test_tables_of_a_remote_lake_are_fetched_not_made_again(
    answered: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with running(LakeServer(answered.root)) as url:
        made = run(app, ["run", "exp16", "--lake", url, "--pair", "llama", "--out", "out", "--lock", "e.lock"])
        assert made.exit_code == 0, made.exception
        assert json.loads(Path("e.lock").read_text())["lake"] == url
        monkeypatch.setenv("ACTLAKE_CACHE", str(tmp_path / "cold"))
        said = run(app, ["reproduce", "e.lock", "--lake", url])
        assert said.exit_code == 0 and said.output.strip() == "exp16 llama: same answer"
        lost = run(app, ["reproduce", "e.lock"])
        assert str(lost.exception).endswith(f"the answers were made from {url}: pass --lake {url}")
        tables = list((answered.root / "tables" / "pair_lens").glob("*.parquet"))
        for table in tables:
            table.unlink()
        monkeypatch.setenv("ACTLAKE_CACHE", str(tmp_path / "colder"))
        said = run(app, ["reproduce", "e.lock", "--lake", url])
        assert "tables made again, as they were missing: 1 of pair_lens" in said.output
    here = run(
        app, ["run", "exp16", "--lake", str(answered.root), "--pair", "llama", "--out", "out", "--lock", "f.lock"]
    )
    assert here.exit_code == 0 and "lake" not in json.loads(Path("f.lock").read_text())


@pytest.mark.sweep
def test_a_copy_of_a_part_says_once_what_brings_the_rest(answered: Layout, tmp_path: Path) -> None:
    with running(LakeServer(answered.root)) as url:
        assert run(app, ["pull", url, "llama-it", "--lake", str(tmp_path / "part")]).exit_code == 0
        refused = run(app, ["run", "exp16", "--lake", str(tmp_path / "part"), "--out", str(tmp_path / "out")])
        said = str(refused.exception)
        command = f"actlake pull {url} llama/pt --lake {tmp_path / 'part'}"
        assert said == f"exp16: this copy lacks pt; `{command}` brings it, if it is there"
        every = run(
            app, ["run", "--all", "--no-generate", "--lake", str(tmp_path / "part"), "--out", str(tmp_path / "out")]
        )
        assert every.exit_code == 0 and every.output.count("this copy lacks pt") == 1
        heads = "`actlake capture llama-it --profile heads` into another lake"  # which nobody has captured
        assert "actlake capture" not in every.output.replace(heads, "")
        assert run(app, command.split()[1:]).exit_code == 0
    again = run(app, ["run", "exp16", "--lake", str(tmp_path / "part"), "--out", str(tmp_path / "out")])
    assert again.exit_code == 0, again.exception


def test_slices_of_a_copy_read_only_what_they_need(answered: Layout, tmp_path: Path) -> None:
    part = Layout.open(tmp_path / "part", create=True)
    done = run(app, ["pull", str(answered.root), "--lake", str(part.root), "--limit", "2", "--site", "resid"])
    assert done.exit_code == 0, done.exception
    here, whole = Lake(part.root).dataset("llama-it", "native"), Lake(answered.root).dataset("llama-it", "native")
    count = int((whole["prompt"].values < 2).sum())
    for layer in (0, 2):
        found = here.resid.sel(boundary=layer)[:count]
        assert np.allclose(found.mean().values, whole.resid.sel(boundary=layer)[:count].mean().values)
    assert np.array_equal(here.resid[:count].values, whole.resid[:count].values)
    with pytest.raises(LakeError, match="this copy lacks resid at shard row"):
        here.resid.sel(boundary=1).compute()


def test_a_server_that_does_not_answer_is_named_within_seconds(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(store, "QUIET", 0.2)
    monkeypatch.setattr(store, "PAUSES", (0.1, 0.1))
    with socket.socket() as deaf:  # takes connections and says nothing
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        monkeypatch.setattr(store, "SILENCE", 1)
        started = time.monotonic()
        with pytest.raises(LakeError, match="out of reach"):
            Lake(f"http://127.0.0.1:{deaf.getsockname()[1]}/lake")
    assert capsys.readouterr().err.count("no answer yet; trying for half a minute") == 1
    assert time.monotonic() - started < 20
