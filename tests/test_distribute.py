"""Tables computed by dask workers: the bytes that one process makes, whoever dies on the way."""

import hashlib
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import dask
import numpy as np
import pyarrow.parquet as pq
import pytest
import ready
import tiny
from actlake.cli.main import app
from actlake.lake import Lake
from actlake.queries.cluster import cluster as distribute
from actlake.queries.cluster import scheduler
from actlake.queries.cluster.cluster import Cluster, runs_of
from actlake.queries.engine import blocks, passes
from actlake.queries.engine.blocks import part_writer, read_part
from actlake.queries.engine.context import Scope
from actlake.queries.makers import ensure
from actlake.queries.probes import choice as probe_choice
from actlake.store.captures.reader import find_capture
from actlake.store.core.errors import LakeError
from actlake.store.exchange.plan import Planner, origin_of
from actlake.store.exchange.transfer import Selection, move
from actlake.store.format.paths import Layout
from actlake.store.remote.opening import open_store
from distributed import Client, LocalCluster, WorkerPlugin
from typer.testing import CliRunner

FORKED = {"distributed.worker.multiprocessing-method": "forkserver"}
COPIES = 10  # of the tiny prompts: enough points for geometry, enough blocks for many tasks


class Quick(WorkerPlugin):
    """The quick recipe of the tests, in workers that start again too."""

    def __init__(self, recipe):
        self.recipe = recipe

    def setup(self, worker):
        from actlake.queries.probes import choice as there

        there.DEFAULT = self.recipe


@pytest.fixture(scope="module")
def client():
    """Two workers of one thread each, in processes of their own."""
    ready.start()
    with (
        dask.config.set(FORKED),
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0", processes=True) as cluster,
        Client(cluster) as found,
    ):
        found.register_plugin(Quick(probe_choice.DEFAULT))
        yield found


@pytest.fixture(autouse=True)
def no_scheduler_left():
    """A client whose scheduler went away leaves dask's setting that names it."""
    before = dask.config.get("scheduler", None)
    yield
    if before is None:
        dask.config.config.pop("scheduler", None)


@pytest.fixture(scope="module")
def source(tmp_path_factory, llama) -> Layout:
    """A lake with native and teacher captures of some prompts; its tables are made in copies."""
    texts = [(f"{name}-{copy}", kind, text) for copy in range(COPIES) for name, kind, text in tiny.TEXTS]
    folder = tmp_path_factory.mktemp("distribute") / "lake"
    return tiny.capture(folder, llama, tiny.NATIVE, tiny.TEACHER, prompts=tiny.prompt_set(texts))


@pytest.fixture
def small(monkeypatch):
    """Blocks, row groups and tasks so small that a tiny capture has many."""
    monkeypatch.setattr(passes, "BLOCK_BYTES", 40_000)
    monkeypatch.setattr(distribute, "TASK_BYTES", 150_000)


def copy_of(lake: Layout, folder: Path) -> Layout:
    shutil.copytree(lake.root, folder)
    return Layout.open(folder)


def catalog_of(pair, folder: Path) -> Path:
    """A catalog that says where the weights of the tiny pair lie."""
    file = folder / "catalog.yaml"
    lines = [f"    {variant}: {{path: {pair.model(variant).path}}}" for variant in ("pt", "it")]
    file.write_text("\n".join(["pairs:", f"  {pair.name}:", *lines]) + "\n")
    return file


def scope(lake: Layout, stream: str) -> Scope:
    names = {variant: find_capture(lake, f"llama-{variant}", stream).stem for variant in ("pt", "it")}
    return tiny.scope("llama", names, stream)


def made(lake: Layout) -> dict[str, bytes]:
    """Everything that was computed in a lake."""
    folders = ("tables", "lenses", "directions")
    return {f"{name}/{file}": data for name in folders for file, data in tiny.tree(lake.root / name).items()}


EVERY = [
    *[(table, kind, "native") for table, kind in (("lens", "raw"), ("lens", "tuned"), ("delta", ""), ("geometry", ""))],
    *[(table, kind, "native") for table, kind in (("lens_eval", ""), ("endpoint", ""), ("directions", "stability"))],
    *[(table, kind, "teacher") for table, kind in (("pair_lens", ""), ("graft", "B_late"), ("directions", "contrast"))],
    *[(table, kind, "teacher") for table, kind in (("tokens", ""), ("candidates", "D_late_tuned"))],
]


def test_the_same_bytes_as_one_process(source, tmp_path, client, small, llama, monkeypatch):
    monkeypatch.setattr(distribute, "TASK_BYTES", 600_000)
    here, there = copy_of(source, tmp_path / "here"), copy_of(source, tmp_path / "there")
    catalog = catalog_of(llama, tmp_path)
    needs = [(table, kind, scope(source, stream)) for table, kind, stream in EVERY]
    alone = ensure(here, needs, catalog=catalog)
    shared = ensure(there, needs, catalog=catalog, engine=Cluster(client).run)
    assert [path.relative_to(there.root) for path in shared] == [path.relative_to(here.root) for path in alone]
    one, other = made(here), made(there)
    assert sorted(one) == sorted(other)
    assert [name for name in one if one[name] != other[name]] == []


@pytest.fixture(scope="module")
def local(source, tmp_path_factory) -> dict[str, bytes]:
    """The raw lens of the native captures by one process."""
    here = copy_of(source, tmp_path_factory.mktemp("local") / "lake")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passes, "BLOCK_BYTES", 40_000)
        ensure(here, [("lens", "raw", scope(here, "native"))])
    return made(here)


def lens_on(lake: Layout, client, **options) -> list[Path]:
    return ensure(lake, [("lens", "raw", scope(lake, "native"))], engine=Cluster(client).run, **options)


@pytest.fixture
def taken(monkeypatch):
    """Called with each task that has come to an end."""
    calls, take = [], distribute._Pass._take

    def seen(self, future, progress):
        task = self._running[future]
        take(self, future, progress)
        calls.append(task)
        seen.then(task)

    seen.then = lambda task: None
    seen.calls = calls
    monkeypatch.setattr(distribute._Pass, "_take", seen)
    return seen


def test_a_worker_is_killed(source, tmp_path, client, small, local, taken):
    """Twice, in the middle of the work: the tasks go to the others, and every row is there once."""
    lake, killed = copy_of(source, tmp_path / "lake"), []

    def kill(task):
        if task.share is distribute.parts and len(taken.calls) in (3, 6):
            pid = next(iter(client.run(os.getpid).values()))
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)

    taken.then = kill
    files = lens_on(lake, client)
    assert len(set(killed)) == 2 and not set(killed) & set(client.run(os.getpid).values())
    assert made(lake) == local  # and with that no part, and no row twice
    rows = pq.read_table(files[0], columns=["token", "layer"]).to_pandas()
    assert not rows.duplicated().any()


def test_what_a_killed_call_left_is_used(source, tmp_path, client, small, local, taken):
    lake = copy_of(source, tmp_path / "lake")

    def stop(task):
        if len(taken.calls) == 4:
            raise KeyboardInterrupt

    taken.then = stop
    with pytest.raises(KeyboardInterrupt):
        lens_on(lake, client)
    kept = [name for name in made(lake) if name.endswith(".arrow")]
    assert len(kept) >= 8  # of both models
    first = {task.name for task in taken.calls}
    taken.then = lambda task: None
    taken.calls.clear()
    lens_on(lake, client)
    assert not first & {task.name for task in taken.calls}
    assert made(lake) == local


def test_a_task_that_fails_by_chance_is_tried_again(source, tmp_path, client, small, local):
    """The first task raises what is no LakeError; its worker, or the other one, does it again."""
    lake, failed = copy_of(source, tmp_path / "lake"), tmp_path / "failed"

    def break_once(path: str):
        from pathlib import Path

        from actlake.queries.cluster import worker

        share = worker.part_file

        def broken(*given):
            if not Path(path).exists():
                Path(path).touch()
                raise OSError("the network was away")
            return share(*given)

        worker.part_file = broken

    client.run(break_once, str(failed))
    lens_on(lake, client)
    assert failed.exists() and made(lake) == local


def test_a_mistake_on_a_worker_is_told_in_one_line(source, tmp_path, client, small, llama):
    """Weights that are not what the captures were made with: the graft fails, and the other tables are made."""
    lake, other = copy_of(source, tmp_path / "lake"), tmp_path / "other"
    for variant in ("pt", "it"):
        tiny.make_model(other / variant, "llama", seed=5)
    wrong = tiny.PairSpec("llama", *(tiny.spec(other / v, f"llama-{v}") for v in ("pt", "it")), {})
    needs = [("graft", "B_late", scope(lake, "teacher")), ("pair_lens", "", scope(lake, "teacher"))]
    here = copy_of(source, tmp_path / "here")
    with pytest.raises(LakeError) as alone:
        ensure(here, needs, catalog=catalog_of(wrong, tmp_path))
    with pytest.raises(LakeError) as shared:
        ensure(lake, needs, catalog=catalog_of(wrong, tmp_path), engine=Cluster(client).run)
    assert str(shared.value) == str(alone.value).replace(str(here.root), str(lake.root))
    assert "\n" not in str(shared.value)


def test_the_command_line(source, tmp_path, client, small, local):
    """By the scheduler's address, and by its file."""
    lake, file = copy_of(source, tmp_path / "lake"), tmp_path / "scheduler.json"
    file.write_text(json.dumps({"address": client.scheduler.address}))  # what `dask scheduler` writes there
    run = CliRunner(env={"COLUMNS": "200"}).invoke
    count = "SELECT count(*) AS n FROM tokens WHERE position = 0"
    told = run(app, ["sql", count, "--lake", str(lake.root), "--scheduler", client.scheduler.address, "--json"])
    assert json.loads(told.output) == [{"n": 4 * 6 * COPIES - 6 * COPIES}], (
        told.output
    )  # IT's teacher stream is its own
    told = run(app, ["run", "L2", "--lake", str(lake.root), "--scheduler", str(file), "--out", str(tmp_path / "out")])
    assert told.exit_code == 0 and "cg_raw" in told.output, told.output
    assert (tmp_path / "out" / "L2-llama.csv").exists()


def test_a_lake_on_a_client(source, tmp_path, client, small):
    lake = Lake(copy_of(source, tmp_path / "lake").root)
    sql = "SELECT variant, count(*), sum(block_cos) FROM delta GROUP BY ALL ORDER BY ALL"
    found = lake.on(client).sql(sql).fetchall()
    assert len(found) == 2 and found == Lake(lake.layout.root).sql(sql).fetchall()


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "nowhere", "http://127.0.0.1:1"])
def test_no_scheduler_there(source, address, monkeypatch):
    monkeypatch.setattr(scheduler, "CONNECT", 0.5)
    told = CliRunner().invoke(app, ["sql", "SELECT 1 FROM lens", "--lake", str(source.root), "--scheduler", address])
    assert isinstance(told.exception, LakeError)
    assert str(told.exception).startswith(f"scheduler {address}: no answer (") and "\n" not in str(told.exception)


def test_one_line_and_exit_code_2(source):
    words = ["sql", "SELECT 1 FROM lens", "--lake", str(source.root), "--scheduler", "tcp://127.0.0.1:1"]
    done = ready.run("-m", "actlake", *words)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1 and "no answer" in done.stderr, done.stderr


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(LakeError, match=r"needs the package distributed: `pip install 'actlake\[cluster\]'`"):
        scheduler.connect("tcp://127.0.0.1:1")


def test_workers_must_be_of_this_version_and_see_this_lake(source, tmp_path, client, monkeypatch):
    lake = copy_of(source, tmp_path / "lake")
    with monkeypatch.context() as patch:
        patch.setattr(scheduler, "__version__", "9.9")
        with pytest.raises(LakeError, match=r"worker tcp://\S+: its actlake is .*, here it is 9.9"):
            lens_on(lake, client)

    elsewhere = Layout(tmp_path / "elsewhere")
    elsewhere.root.mkdir()
    with pytest.raises(LakeError, match=r"worker tcp://\S+: it finds no lake at \S+elsewhere \(no lake.json\)"):
        scheduler.check_workers(client, elsewhere)
    monkeypatch.setattr(Path, "touch", lambda self: None)  # as if the mark lay on this machine only
    with pytest.raises(LakeError, match="is another lake than the one here: all workers must share one file system"):
        scheduler.check_workers(client, lake)


def test_no_workers(source, tmp_path, monkeypatch):
    monkeypatch.setattr(scheduler, "PATIENCE", 0.2)
    with (
        LocalCluster(n_workers=0, processes=False, dashboard_address=":0") as none,
        Client(none) as client,
        pytest.raises(LakeError, match=r"it has no workers: `dask worker inproc://\S+ --nthreads 1"),
    ):
        lens_on(source, client)


def test_the_scheduler_goes_away(source, tmp_path, small, local, taken):
    """In the middle: told in one line, and what was done is kept for the next call."""
    lake = copy_of(source, tmp_path / "lake")
    with LocalCluster(n_workers=1, processes=False, dashboard_address=":0") as gone, Client(gone, timeout=1) as client:
        taken.then = lambda task: gone.close()
        with pytest.raises(LakeError, match=r"scheduler \S+: it is gone.*run this again to continue"):
            lens_on(lake, client)
    assert [name for name in made(lake) if name.endswith(".arrow")]


@pytest.mark.parametrize("status", ["running", "closed"])
def test_other_errors_are_told_as_they_are(status):
    """Unless the client has lost its scheduler, which may show as anything."""
    client = SimpleNamespace(status=status, scheduler=SimpleNamespace(address="tcp://here:1"))
    with pytest.raises(ValueError if status == "running" else LakeError), scheduler.clear_errors(client):
        raise ValueError("a bug")
    with pytest.raises(LakeError, match="mine"), scheduler.clear_errors(client):
        raise LakeError("mine")


# --- without workers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompts", [1, 7, 200_000])
def test_a_plan_stays_small(prompts):
    """Up to 200,000 prompts of 500 tokens, 34 boundaries of width 4096: 56 TB decoded, in fewer than 5,000 tasks."""
    feed = SimpleNamespace(offset=np.arange(prompts + 1) * 500, bytes_per_token=4 * 34 * 4096)
    runs = runs_of([feed])
    blocks = [block for run in runs for block in run]
    assert blocks == list(passes.prompt_blocks([feed])) and all(runs)  # every block once, in order
    assert len(runs) <= 4096 and len(runs) >= min(4096, prompts * 500 * feed.bytes_per_token // distribute.TASK_BYTES)
    sizes = [(run[-1].stop - run[0].start) for run in runs]
    assert max(sizes) <= 2 * min(sizes) or len(runs) <= 7


def test_parts_come_back_as_they_were(tmp_path):
    rng = np.random.default_rng(0)
    blocks = []
    for n in (3, 0, 5):
        masked = np.ma.masked_less(rng.integers(0, 9, (n, 4), np.int32), 3)
        names = np.array(["a", "ü雨", ""] * n, object)[:n]
        values = rng.standard_normal((4, n)).astype(np.float32).T
        values[:1] = np.nan
        blocks.append(
            {"pair": "p", "start": 3, "name": names, "rank": masked, "kl": values, "points": rng.random((n, 2, 3))}
            | {"flag": rng.random((n, 4)) > 0.5, "step": np.arange(n)}
        )
    file = tmp_path / "0-3.arrow"
    with part_writer(file) as add:
        for block in blocks:
            add(block)
    for block, found in zip(blocks, read_part(file), strict=True):
        assert block.keys() == found.keys()
        for name, value in block.items():
            other = found[name]
            if not isinstance(value, np.ndarray):
                assert value == other and type(value) is type(other)
                continue
            assert type(value) is type(other) and value.dtype == other.dtype and value.shape == other.shape
            assert np.array_equal(np.ma.getmaskarray(value), np.ma.getmaskarray(other))
            kept = ~np.ma.getmaskarray(value)
            assert np.array_equal(
                np.ma.getdata(value)[kept], np.ma.getdata(other)[kept], equal_nan=value.dtype.kind == "f"
            )
    with part_writer(tmp_path / "3-4.arrow"):
        pass
    assert list(read_part(tmp_path / "3-4.arrow")) == []


def test_a_part_that_breaks_off_is_not_there(tmp_path):
    file = blocks.part_file(tmp_path / "x.parquet", "plan", range(3))
    with pytest.raises(FileNotFoundError), part_writer(file):
        pass
    file.parent.mkdir()
    with pytest.raises(RuntimeError), part_writer(file) as add:
        add({"x": np.arange(3)})
        raise RuntimeError
    assert list(file.parent.iterdir()) == []
    blocks.drop_parts(tmp_path / "x.parquet")
    assert not file.parent.exists()


def test_workers_with_nothing_in_common_but_a_bucket(source, local, small, bucket, tmp_path):
    """Each worker has a mirror of its own; the tables in the bucket are, byte for byte, those of one process and a folder."""
    move(Planner(origin_of(source), origin_of(f"{bucket}/lake"), Selection()).plan())

    def apart(folder: str, variables: dict[str, str]) -> None:
        os.environ.update(variables)
        os.environ["ACTLAKE_CACHE"] = f"{folder}/{os.getpid()}"

    ready.start()
    with (
        dask.config.set(FORKED),
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0", processes=True) as cluster,
        Client(cluster) as here,
    ):
        here.run(apart, str(tmp_path), dict(os.environ))
        lake = Lake(f"{bucket}/lake")
        ensure(lake.layout, [("lens", "raw", scope(lake.layout, "native"))], engine=Cluster(here).run)
    found = {name: open_store(f"{bucket}/lake").read(name) for name in open_store(f"{bucket}/lake").find("tables")}
    assert {name: hashlib.sha256(data).hexdigest() for name, data in found.items()} == {
        name: hashlib.sha256(data).hexdigest() for name, data in local.items()
    }
    assert lake.sql("SELECT count(*) FROM lens").fetchall()[0][0] > 0
