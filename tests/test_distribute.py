"""Tables computed by dask workers: the bytes that one process makes, whoever dies on the way."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny
from actlake.cli import app
from actlake.lake import Lake
from actlake.queries import distribute, probes, sweep
from actlake.queries.build import ensure
from actlake.queries.distribute import Cluster, runs_of
from actlake.queries.kit import Scope
from actlake.store import parts
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
