"""kill -9 at any moment: the same command run again seals a capture that is bit for bit that of an undisturbed run."""

import json
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import killing
import pytest
import tiny
from actlake.store.captures.reader import find_capture
from actlake.store.captures.verify import verify
from actlake.store.format.paths import Layout

PHASES = ("nothing", "generating", "stream", "allocating", "writing", "written", "sealed")


class Killer:
    """Captures in another process and kills it on request; see killing.py."""

    def __init__(self, folder: Path, pair: Path, by_layer: bool = False):
        self.by_layer = by_layer
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, killing.__file__, str(pair), str(folder)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=open(folder / "errors.txt", "w"),  # noqa: SIM115 (as long as the process)
            text=True,
            env=environment,
        )
        self.folder, self.kills, self.phases = folder, 0, Counter[str]()
        whole = self.capture(folder / "undisturbed")
        self.seconds, self.operations = whole["seconds"], whole["operations"]
        self.expected = lake_tree(folder / "undisturbed")

    def capture(
        self,
        lake: Path,
        after: float | None = None,
        operation: int | str | None = None,
        rank: tuple[int, int] | None = None,
    ) -> dict:
        """One run of the capture command; `after` seconds or before file operation `operation` it is killed."""
        assert self._process.stdin and self._process.stdout
        order = {"lake": str(lake), "after": after, "operation": operation, "rank": rank, "by_layer": self.by_layer}
        print(json.dumps(order), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        assert line, (self.folder / "errors.txt").read_text()[-4000:]
        answer = json.loads(line)
        if answer["killed"]:
            self.kills += 1
            self.phases[phase(lake)] += 1
        return answer

    def check(self, lake: Path) -> None:
        """The finished lake is the undisturbed one, and its capture passes."""
        assert lake_tree(lake) == self.expected
        layout = Layout.open(lake)
        report = verify(layout, find_capture(layout, "llama-it", "bare" if self.by_layer else "native"))
        assert report.ok, report.problems

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        assert self._process.wait(30) == 0


def lake_tree(lake: Path) -> dict[str, bytes]:
    """All files, but for half-written temporary ones outside of captures, which nothing reads."""
    return {
        name: data
        for name, data in tiny.tree(lake).items()
        if name.startswith("captures/") or not name.endswith((".tmp", ".partial"))
    }


def phase(lake: Path) -> str:
    """How far a killed capture had come, by what it left."""
    if next(lake.glob("captures/*/*.zarr/manifest.json"), None):
        return "sealed"
    records = len(list(lake.glob("captures/*/*.zarr/.progress/shard-*.json")))
    if records:
        return "written" if records == 10 else "writing"
    if next(lake.glob("captures/*/*.zarr"), None):
        return "writing"
    if next(lake.glob("captures/*/.*.zarr.*"), None):
        return "allocating"
    if next(lake.glob("streams/*.json"), None):
        return "stream"
    return "generating" if next(lake.glob("streams/.*.parts"), None) else "nothing"


@pytest.fixture(scope="module")
def killer(tmp_path_factory, llama):
    killer = Killer(tmp_path_factory.mktemp("kill"), llama.it.path.parent)
    yield killer
    killer.close()


def at_random_moments(killer: Killer, kills: int, seed: int) -> int:
    """Kill the same capture again and again until it gets through, then start another; returns how many got through."""
    moments, lakes, target = random.Random(seed), 0, killer.kills + kills
    lake = killer.folder / f"random-{seed}-{lakes}"
    while killer.kills < target:
        if not killer.capture(lake, after=moments.uniform(0.02, 1.1) * killer.seconds)["killed"]:
            killer.check(lake)
            shutil.rmtree(lake)
            lakes += 1
            lake = killer.folder / f"random-{seed}-{lakes}"
    assert not killer.capture(lake)["killed"]
    killer.check(lake)
    return lakes + 1


def before_operations(killer: Killer, numbers: list[int]) -> None:
    """Kill a fresh capture before each of these file operations, and a second time somewhere in what is left."""
    again = random.Random(1)
    for number in numbers:
        lake = killer.folder / f"operation-{number}"
        assert killer.capture(lake, operation=number)["killed"]
        killer.capture(lake, operation=again.randrange(1, killer.operations - number + 2))
        assert not killer.capture(lake)["killed"]
        killer.check(lake)
        shutil.rmtree(lake)


def test_undisturbed_runs_are_identical(killer):
    assert lake_tree(killer.folder / "first") == killer.expected
    assert sum(name.startswith("captures/") for name in killer.expected) > 60 and killer.operations > 200
    killer.check(killer.folder / "undisturbed")


@pytest.mark.parametrize("count", [10, pytest.param(25, marks=pytest.mark.sweep)])
def test_random_kills(killer, count):
    before = killer.phases.copy()
    at_random_moments(killer, count, seed=0)
    for seed in range(1, 6):  # on a busy machine moments fall elsewhere
        if (killer.phases - before)["writing"] < 3:
            killer.seconds = killer.capture(killer.folder / f"timed-{seed}")["seconds"]
            at_random_moments(killer, 10, seed=seed)
    met = killer.phases - before
    assert met["writing"] >= 3 and len(met) >= 3, met


@pytest.mark.parametrize(
    ("percent", "last"),
    [
        pytest.param((4, 30, 98), (0, 12), id="some"),
        pytest.param((1, 3, 10, 20, 43, 60, 80), range(1, 12), id="others", marks=pytest.mark.sweep),
    ],
)
def test_kills_between_file_operations(killer, percent, last):
    """Spread over the run (the first tenth decodes), and of the last ones, where the capture is sealed and the vocabulary
    kept."""
    before, count = killer.phases.copy(), killer.operations
    before_operations(killer, [*(count * each // 100 for each in percent), *(count - each for each in last)])
    met = killer.phases - before
    assert set(met) >= {"generating", "writing", "sealed", "allocating" if 1 in percent else "written"}, met


@pytest.mark.slow
def test_200_random_kills(killer):
    before = killer.phases.copy()
    at_random_moments(killer, 200, seed=1)
    met = killer.phases - before
    assert sum(met.values()) == 200 and met["writing"] >= 20 and len(met) >= 5, met


@pytest.mark.slow
def test_kill_before_every_file_operation(killer):
    before_operations(killer, list(range(1, killer.operations + 1)))
    assert set(killer.phases) == set(PHASES)
