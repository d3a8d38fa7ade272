"""Fixtures: tiny pairs (one per family, built once), an empty lake, and a lake with captures in it."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from uuid import uuid4

# Captures of tests are too small for threads, and bit-identical runs should not depend on how many there are.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import fsspec
import hypothesis
import pytest
import tiny
import torch
from actlake.analyze.tuned.recipes import Adam
from actlake.cli import main
from actlake.queries.probes import choice as probe_choice
from actlake.store.core.catalog import PairSpec
from actlake.store.format.paths import Layout
from servers import S3, environment

torch.set_num_threads(1)
# Probes that rows of tests train on the way need not be good.
USUAL, probe_choice.DEFAULT = probe_choice.DEFAULT, Adam(batch=32, steps=40, check_every=10, peak=1e-2)
hypothesis.settings.register_profile("shared-cores", deadline=None)
hypothesis.settings.load_profile("shared-cores")


def pytest_configure(config: pytest.Config) -> None:
    """Leave out the slow tests, and what a sweep's sample stands for, unless -m asks for them."""
    config.option.markexpr = config.option.markexpr or "not slow and not sweep"


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], PairSpec]:
    """Family name -> a float32 pair of it, built at the first use."""
    root = tmp_path_factory.mktemp("pairs")

    @cache
    def pair(family: str) -> PairSpec:
        return tiny.make_pair(root / family, family)

    return pair


@pytest.fixture(autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where mirrors of remote lakes lie: nothing of one test is found by another, or by the user's own lakes."""
    folder = tmp_path_factory.mktemp("mirrors")
    monkeypatch.setenv("ACTLAKE_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """A running S3 server of this session's."""
    server = S3(tmp_path_factory.mktemp("s3") / "server")
    server.start()
    with environment(**server.environment):
        fsspec.filesystem("s3", skip_instance_cache=True).mkdir("lakes")
    yield server
    server.stop()


@pytest.fixture
def bucket(s3_server: S3, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty place in a bucket, whose owner the test is."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://lakes/{uuid4().hex[:12]}"


@pytest.fixture(scope="session")
def llama(pairs: Callable[[str], PairSpec]) -> PairSpec:
    """The pair that most tests use."""
    return pairs("llama")


@pytest.fixture
def lake(tmp_path: Path) -> Layout:
    """An empty lake."""
    return Layout.open(tmp_path / "lake", create=True)


@pytest.fixture(scope="session")
def captured(tmp_path_factory: pytest.TempPathFactory, llama: PairSpec) -> Layout:
    """A lake with native and teacher captures of both llama variants; read it, never change it (see `lake_copy`)."""
    return tiny.capture(tmp_path_factory.mktemp("captured") / "lake", llama, tiny.NATIVE, tiny.TEACHER)


@pytest.fixture
def lake_copy(captured: Layout, tmp_path: Path) -> Layout:
    """A copy of the captured lake that a test may damage."""
    shutil.copytree(captured.root, tmp_path / "copy")
    return Layout.open(tmp_path / "copy")


@pytest.fixture
def command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run `actlake ...` as the program does: exit code, standard output, standard error."""

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["actlake", *words])
        capsys.readouterr()
        code = 0
        try:
            main.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        return (code, *capsys.readouterr())

    return run
