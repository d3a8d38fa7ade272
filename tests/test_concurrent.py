"""Several processes on one lake: the first wins, nobody sees half a thing, and the dead leave nothing behind that lasts."""

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ready
import tiny
import working
from actlake.store.artifacts.directions import directions_path, read_directions
from actlake.store.artifacts.models import read_head
from actlake.store.artifacts.probes import list_probes, read_probes
from actlake.store.artifacts.streams import stream_records
from actlake.store.artifacts.texts import Condition, VerdictStore
from actlake.store.captures.allocate import Template
from actlake.store.captures.reader import find_capture, list_captures
from actlake.store.captures.verify import verify
from actlake.store.core import files
from actlake.store.core.errors import LakeError
from actlake.store.core.files import clear_dead, replacing, temporary_of
from actlake.store.format.paths import Layout
from actlake.store.tables.sql import connect

MADE = ("table", "head", "probes", "directions", "outputs", "verdicts", "prompts", "stream", "sealing")


LONG = 900  # seconds after which a process hangs, on a machine that is busy with other things
STARTED: list[ready.Process] = []


@pytest.fixture(autouse=True)
def ended():
    """No process outlives the test that started it, however that ends."""
    yield
    for process in STARTED:
        process.kill()
        process.wait()
    STARTED.clear()


class Worker:
    """A process of working.py that has imported everything and waits for the word."""

    def __init__(self, layout: Layout, task: str, operation: int | None = None):
        self.process = start([working.__file__, str(layout.root), task, *([str(operation)] if operation else [])])
        self.line = self.process.stdout.readline

    def go(self) -> None:
        """Say the word."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self) -> dict[str, Any]:
        """Wait for the end, which must be a good one, and return what it told."""
        out, errors = self.process.communicate(timeout=LONG)
        assert self.process.returncode == 0, errors
        return json.loads(out.splitlines()[-1])

    def killed(self) -> None:
        """Wait for the death by its own hand."""
        self.process.communicate(timeout=LONG)
        assert self.process.returncode == -signal.SIGKILL


def at_once(layout: Layout, task: str, count: int) -> list[dict[str, Any]]:
    """Let some processes do one thing at the same moment."""
    workers = [Worker(layout, task) for _ in range(count)]
    for worker in workers:
        assert worker.line() == "ready\n"
    for worker in workers:
        worker.go()
    return [worker.end() for worker in workers]


def temporaries(lake: Path) -> list[str]:
    """Files and folders that are not there to stay."""
    found = [path for path in lake.rglob("*") if path.name.endswith((".tmp", ".partial", ".lock", ".merged"))]
    return [path.relative_to(lake).as_posix() for path in found]


# --- commands that capture ---------------------------------------------------------------------------------------------


@pytest.fixture
def command(llama, tmp_path) -> Callable[..., list[str]]:
    """(lake, words ...) -> an `actlake capture` command on the tiny pair."""
    (tmp_path / "tiny.jsonl").write_text(
        "".join(json.dumps({"id": name, "category": kind, "text": text}) + "\n" for name, kind, text in tiny.TEXTS)
    )
    (tmp_path / "catalog.yaml").write_text(
        f"pairs: {{llama: {{pt: {{path: {llama.pt.path}}}, it: {{path: {llama.it.path}}}}}}}\n"
        "prompts: {tiny: {path: tiny.jsonl}}\n"
        "profiles: {full: {sites: [resid, mlp_out], shard_tokens: 16}}\n"
    )
    more = ("--prompts", "tiny", "--max-new-tokens", "6", "--batch", "4", "--catalog", str(tmp_path / "catalog.yaml"))

    def made(lake: Path, *words: str) -> list[str]:
        return ["-m", "actlake", "capture", "llama", *more, *words, "--lake", str(lake)]

    return made


def start(words: list[str]) -> ready.Process:
    STARTED.append(ready.Process(*words))
    return STARTED[-1]


def finish(*commands: ready.Process) -> list[str]:
    """Wait for commands, which must succeed; what they printed."""
    said = [process.communicate(timeout=LONG) for process in commands]
    assert [process.returncode for process in commands] == [0] * len(commands), said
    return [out for out, _ in said]


def test_captures_at_the_same_time_and_ten_readers(command, lake_copy, llama, tmp_path):
    """Two identical commands, another one beside them, and readers all the while, on a lake that has captures."""
    before = tiny.tree(lake_copy.root)
    readers = [Worker(lake_copy, task) for task in ["read"] * 8 + ["read_tables"] * 2]
    for reader in readers:
        assert reader.line() == "ready\n"
        reader.go()
    it, pt = (
        ("it", "--stream", "raw"),
        ("pt", "--stream", "raw", "--max-new-tokens", "3"),
    )  # PT's native one is its raw one
    finish(*[start(command(lake_copy.root, *words)) for words in (it, it, pt)])
    (tmp_path / "stop").touch()
    told = [reader.end() for reader in readers]
    assert all(each["rounds"] and len(each["seen"]) >= 3 for each in told)
    sealed = list_captures(lake_copy).query("sealed")
    assert len(sealed) == 5 and temporaries(lake_copy.root) == []
    assert len(list(lake_copy.table("tokens").glob("*"))) == 5  # a file a capture, however many computed it

    for variant, spec in (("it", tiny.RAW), ("pt", replace(tiny.RAW, max_new_tokens=3))):
        tiny.capture(tmp_path / "alone", llama, spec, variants=(variant,))
    alone, now = tiny.tree(tmp_path / "alone"), tiny.tree(lake_copy.root)
    new = now.keys() - before.keys()
    assert {name: now[name] for name in before} == before and sum("/c/" in name for name in new) > 50
    for name in new | {name for name in alone if not name.startswith("streams/")}:
        assert name.startswith("tables/") or now[name] == alone[name], name
    assert all(verify(lake_copy, find_capture(lake_copy, f"llama-{variant}", "raw")).ok for variant in ("it", "pt"))


def test_a_second_command_goes_on_when_the_first_is_killed(command, captured, tmp_path):
    for attempt in range(10):  # a command that is through before it can be stopped is no test
        layout = Layout.open(tmp_path / f"lake-{attempt}", create=True)
        first = start(command(layout.root, "it"))
        while not list(layout.root.glob("captures/*/*.zarr/.progress/shard-*.json")):
            assert first.poll() is None
            time.sleep(0.001)
        first.send_signal(signal.SIGSTOP)
        path = Path(list_captures(layout).path.item())
        if not (path / "manifest.json").exists():
            break
        first.kill()
        first.wait()
    assert not (path / "manifest.json").exists()
    second = start(command(layout.root, "it"))
    assert "waiting for it" in second.stderr.readline()
    first.kill()
    first.wait()
    finish(second)
    assert verify(layout, path).ok and temporaries(layout.root) == []


# --- writers of the same thing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 5])
def test_writers_of_one_table(lake, tmp_path, count):
    alone = Layout.open(tmp_path / "alone", create=True)
    working.table(alone)
    at_once(lake, "table", count)
    assert tiny.tree(lake.root) == tiny.tree(alone.root)
    (file,) = lake.table("lens").glob("*")
    assert pq.read_metadata(file).num_rows == 200_000 and pq.read_metadata(file).num_row_groups == 2


def test_the_slower_writer_keeps_the_faster_ones_file(lake):
    workers = [Worker(lake, "slow_table") for _ in range(2)]
    for worker in workers:
        assert worker.line() == "ready\n"
        worker.go()
        assert worker.line() == "begun\n"
    assert connect(lake).sql("SELECT count(*) FROM lens").fetchall() == [(0,)]  # both have begun: nothing to be seen
    first, second = (worker.go() or worker.end() for worker in workers)
    assert first["inode"] == second["inode"] and temporaries(lake.root) == []
    assert connect(lake).sql("SELECT layer, kl_final_layer FROM lens ORDER BY layer").fetchall() == [(0, 1.0), (1, 1.0)]


def test_without_hard_links_the_first_file_stays_too(lake, monkeypatch):
    def refused(*_: Any) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "link", refused)
    working.table(lake)
    before = tiny.tree(lake.root)
    (file,) = lake.table("lens").glob("*")
    first = file.stat().st_ino
    with replacing(file, first=True) as temporary:
        temporary.write_bytes(b"another")
    assert file.stat().st_ino == first and tiny.tree(lake.root) == before


def test_writers_of_one_of_each(lake, tmp_path):
    alone = Layout.open(tmp_path / "alone", create=True)
    working.everything(alone)
    at_once(lake, "everything", 3)
    assert tiny.tree(lake.root) == tiny.tree(alone.root)


def test_another_prompt_set_of_the_same_name_is_refused_at_the_last_moment(lake, tmp_path, monkeypatch):
    """Both look, none is there, both write."""
    working.prompts(lake)
    kept = tiny.tree(lake.root)
    (tmp_path / "mine.jsonl").write_text('{"id": "other", "text": "t"}\n')
    with monkeypatch.context() as patch:
        patch.setattr("actlake.capture.streams.prompts.stored_prompts", lambda lake, name: None)
        with pytest.raises(LakeError, match="another prompt set has this name"):
            working.add_prompts(tmp_path / "mine.jsonl", lake, "mine")
    assert tiny.tree(lake.root) == kept


def test_what_several_processes_add_to_has_it_all(lake):
    """Recipes of one stream, texts of one condition, verdicts."""
    told = at_once(lake, "together", 3)
    (record,) = stream_records(lake)
    assert record["keys"] == sorted(key for each in told for key in each["keys"])
    condition = Condition(lake, "p-it", {"made": 1})
    known = condition.known("texts")
    assert {sha: row["text"] for sha, row in known.items()} == {f"{i}": f"says {i}" for i in range(12)}
    assert len(list(condition.folder.glob("texts-*.parquet"))) == 20 and not (condition.folder / ".parts").exists()
    store = VerdictStore(lake.judge)
    store.refresh()
    assert all(store.get(key) for each in told for key in each["keys"] + ["all-0", "all-19"])
    assert temporaries(lake.root) == []


# --- the dead ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unsealed(tmp_path_factory) -> Path:
    """A lake with a capture whose rows are all there."""
    layout = Layout.open(tmp_path_factory.mktemp("unsealed") / "lake", create=True)
    stream = tiny.synthetic_stream([("a", "C", [1, 2, 3], [4, 5]), ("b", "C", [1, 2], [3])])
    sizes = {"resid": (3, 8), "mlp_out": (2, 8)}
    template = Template(stream, sizes, (0, 1, 2), (0, 1), "float32", tiny.MADE | {"model": "p-it"}, 4)
    working.write_stream(layout, stream)
    tiny.write_capture(layout.capture("p-it", stream.name), template)
    return layout.root


@pytest.mark.parametrize("task", MADE)
def test_killed_in_the_middle(lake, tmp_path, unsealed, task):
    """The next process makes the same as an undisturbed one, and what the dead left goes."""

    def fresh(name: str) -> Layout:
        if task == "sealing":
            shutil.copytree(unsealed, tmp_path / name)
        return Layout.open(tmp_path / name, create=True)

    whole, left = fresh("whole"), 0
    counter = working.Counter(str(whole.root), None)
    sys.addaudithook(counter)
    getattr(working, task)(whole)
    named = counter.naming[3 * len(counter.naming) // 4]  # before this one a temporary is there
    moments = sorted({counter.count // 4, counter.count // 2, named})
    workers = [(fresh(f"at-{moment}"), moment) for moment in moments]
    dying = [(layout, Worker(layout, task, moment)) for layout, moment in workers]
    for _, worker in dying:
        worker.line()
        worker.go()
    for layout, worker in dying:
        worker.killed()
        found, done = temporaries(layout.root), tiny.tree(whole.root).items() <= tiny.tree(layout.root).items()
        left += len(found)
        files._clear_once.cache_clear()  # as in a new process
        getattr(working, task)(layout)
        for path in found if done else ():  # nothing was to be done: it goes when something is written there
            clear_dead((layout.root / path).parent)
        assert tiny.tree(layout.root) == tiny.tree(whole.root)
    assert left


def test_what_was_killed_can_be_read_when_made_again(lake):
    """The things of `working` are what they say: else the tests above compare nothing."""
    for task in MADE:
        getattr(working, task)(lake)
    assert read_head(lake, "p-it")[0]["unembed"].shape == (9000, 8)
    assert len(list_probes(lake)) == 1 and read_probes(list_probes(lake)[0][0])[0].shape == (2, 3, 4, 4)
    assert (
        read_directions(directions_path(lake, {"pt": "p-pt", "it": "p-it"}, "own", {"made": 1}))[0]["difference"][
            :
        ].sum()
        == 40
    )
    assert connect(lake).sql("SELECT text FROM outputs ORDER BY 1").fetchall() == [(f"says {i}",) for i in "abc"]


def test_only_the_dead_of_this_machine_are_cleared(tmp_path):
    target = tmp_path / "lens" / "key.parquet"
    target.parent.mkdir()
    dead, folder = tiny.dead_name(target), tiny.dead_name(tmp_path / "lens" / "x.zarr")
    dead.write_bytes(b"half")
    (folder / "deep").mkdir(parents=True)
    alive = temporary_of(target)
    alive.write_bytes(b"mine")
    elsewhere = dead.with_name(dead.name.replace(files._machine(), "elsewhere-1"))
    like = dead.with_name("." + dead.name.removesuffix(".tmp"))
    large = dead.with_name(f".x.{files._machine()}-{10**30}.tmp")  # no process has such a number
    for path in (elsewhere, like, large, target):
        path.write_bytes(b"kept")
    clear_dead(target.parent)
    assert sorted(target.parent.iterdir()) == sorted([alive, elsewhere, like, large, target])
    clear_dead(tmp_path / "nowhere")
