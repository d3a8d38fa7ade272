"""Tables computed by dask workers: the bytes that one process makes, whoever dies on the way."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny
from actlake.cli import app
from actlake.lake import Lake
from actlake.queries import distribute, probes, scheduler, sweep
from actlake.queries.build import ensure
from actlake.queries.distribute import Cluster, runs_of
from actlake.queries.kit import Scope
from actlake.store.captures import find_capture
from actlake.store.errors import LakeError
from actlake.store.layout import Layout
from actlake.store.parts import part_writer, read_part
from distributed import Client, LocalCluster, WorkerPlugin
from typer.testing import CliRunner

COPIES = 10  # of the tiny prompts: enough points for geometry, enough blocks for many tasks


class Quick(WorkerPlugin):
    """The quick recipe of the tests, in workers that start again too."""

    def __init__(self, recipe):
        self.recipe = recipe

    def setup(self, worker):
        from actlake.queries import probes as there

        there.DEFAULT = self.recipe


@pytest.fixture(scope="module")
def client():
    """Two workers of one thread each, in processes that are spawned."""
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, processes=True) as cluster,
        Client(cluster) as found,
    ):
        found.register_plugin(Quick(probes.DEFAULT))
        yield found


@pytest.fixture(scope="module")
def source(tmp_path_factory, llama) -> Layout:
    """A lake with native and teacher captures of some prompts; its tables are made in copies."""
    texts = [(f"{name}-{copy}", kind, text) for copy in range(COPIES) for name, kind, text in tiny.TEXTS]
    folder = tmp_path_factory.mktemp("distribute") / "lake"
    return tiny.capture(folder, llama, tiny.NATIVE, tiny.TEACHER, prompts=tiny.prompt_set(texts))


@pytest.fixture
def small(monkeypatch):
    """Blocks, row groups and tasks so small that a tiny capture has many."""
    monkeypatch.setattr(sweep, "BLOCK_BYTES", 40_000)
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
    names = {variant: find_capture(lake, f"llama/{variant}", stream).stem for variant in ("pt", "it")}
    return Scope("llama", names, stream)


def made(lake: Layout) -> dict[str, bytes]:
    """Everything that was computed in a lake."""
    folders = ("tables", "probes", "directions")
    return {f"{name}/{file}": data for name in folders for file, data in tiny.tree(lake.root / name).items()}


EVERY = [
    *[(table, kind, "native") for table, kind in (("lens", "raw"), ("lens", "tuned"), ("delta", ""), ("geometry", ""))],
    *[(table, kind, "native") for table, kind in (("lens_eval", ""), ("endpoint", ""), ("directions", "stability"))],
    *[(table, kind, "teacher") for table, kind in (("pair_lens", ""), ("graft", "B_late"), ("directions", "contrast"))],
    *[(table, kind, "teacher") for table, kind in (("tokens", ""), ("candidates", "D_late_tuned"))],
]


def test_the_same_bytes_as_one_process(source, tmp_path, client, small, llama):
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
        patch.setattr(sweep, "BLOCK_BYTES", 40_000)
        ensure(here, [("lens", "raw", scope(here, "native"))])
    return made(here)


def lens_on(lake: Layout, client, **options) -> list[Path]:
    return ensure(lake, [("lens", "raw", scope(lake, "native"))], engine=Cluster(client).run, **options)


@pytest.fixture
def taken(monkeypatch):
    """Called with each task that has come to an end."""
    calls, take = [], distribute._Pass._take

    def seen(self, future, progress):
        task = self._running[future][0] if future in self._running else None
        take(self, future, progress)
        if task:
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


def test_one_that_takes_too_long_is_helped(source, tmp_path, client, small, local, monkeypatch):
    """The first task hangs in its worker; the other worker does it again."""
    lake, hung = copy_of(source, tmp_path / "lake"), tmp_path / "hung"

    def hang(path: str):
        import time
        from pathlib import Path

        from actlake.queries import worker

        share = worker.part_file

        def slow(*given):
            if not Path(path).exists():
                Path(path).touch()
                time.sleep(8)
            return share(*given)

        worker.part_file = slow

    monkeypatch.setattr(distribute, "SLOW", 1.0)
    client.run(hang, str(hung))
    started = time.monotonic()
    lens_on(lake, client)
    assert hung.exists() and time.monotonic() - started < 8
    assert made(lake) == local


def test_a_mistake_on_a_worker_is_told_in_one_line(source, tmp_path, client, small, llama):
    """Weights that are not what the captures were made with: the graft fails, and the other tables are made."""
    lake, other = copy_of(source, tmp_path / "lake"), tmp_path / "other"
    for variant in ("pt", "it"):
        tiny.make_model(other / variant, "llama", seed=5)
    wrong = tiny.PairSpec("llama", *(tiny.spec(other / v, "llama", v) for v in ("pt", "it")), {})
    needs = [("graft", "B_late", scope(lake, "teacher")), ("pair_lens", "", scope(lake, "teacher"))]
    here = copy_of(source, tmp_path / "here")
    with pytest.raises(LakeError) as alone:
        ensure(here, needs, catalog=catalog_of(wrong, tmp_path))
    with pytest.raises(LakeError) as shared:
        ensure(lake, needs, catalog=catalog_of(wrong, tmp_path), engine=Cluster(client).run)
    assert str(shared.value) == str(alone.value).replace(str(here.root), str(lake.root))
    assert "\n" not in str(shared.value)
