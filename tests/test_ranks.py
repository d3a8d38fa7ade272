"""Several ranks on one capture: the same bytes as one, whatever order they run in and whichever die."""

import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import ready
import tiny
import zarr
from actlake.capture.run.ranks import ALONE, Rank
from actlake.capture.run.reforward import seal_captures
from actlake.capture.streams import greedy
from actlake.store.artifacts import models
from actlake.store.artifacts.models import read_head, read_model
from actlake.store.captures.reader import find_capture, list_captures
from actlake.store.captures.verify import verify
from actlake.store.core import files
from actlake.store.core.errors import LakeError
from actlake.store.core.files import try_lock
from actlake.store.format.paths import Layout
from hypothesis import given
from hypothesis import strategies as st
from test_kill import Killer

STREAM = "captures/llama-it"


@given(st.integers(0, 60), st.integers(1, 9))
def test_every_row_has_one_owner(count, world):
    rows = [row for rank in range(world) for row in Rank(rank, world).rows(count)]
    assert rows == list(range(count))


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, ALONE),
        ({"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}, Rank(1, 4, 1, "RANK")),
        ({"RANK": "0", "WORLD_SIZE": "1"}, ALONE),
        ({"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "2"}, Rank(5, 8, 2, "SLURM_PROCID")),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, ALONE),
        ({"RANK": "1"}, ALONE),
    ],
)
def test_launchers_say_who_we_are(environment, expected):
    assert Rank.find(None, None, environment) == expected
    assert Rank.find(0, 3, environment) == Rank(0, 3, 0, "--rank and --world")


@pytest.mark.parametrize("bad", [(2, 2), (-1, 2), (0, 0)])
def test_rank_outside_of_the_world(bad):
    with pytest.raises(LakeError, match="ranks count from 0 to world - 1"):
        Rank.find(*bad, {})


def test_half_a_rank():
    with pytest.raises(LakeError, match="--rank and --world belong together"):
        Rank.find(1, None, {})


def capture(lake: Path, pair, rank: Rank, **options):
    return tiny.capture(lake, pair, tiny.NATIVE, variants=("it",), rank=rank, **options)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_ranks_make_the_same_store_as_one(tmp_path, captured, llama, order):
    for rank in order:
        layout = capture(tmp_path / "lake", llama, Rank(rank, 3))
        sealed = list_captures(layout).sealed.tolist()
        assert sealed == [rank == order[-1]]
    assert tiny.tree(layout.root / STREAM) == tiny.tree(captured.root / STREAM)
    assert tiny.tree(layout.root / "models") == {
        name: data for name, data in tiny.tree(captured.root / "models").items() if name.startswith("llama-it")
    }
    assert verify(layout, find_capture(layout, "llama-it", "native")).ok


def test_more_ranks_than_rows(tmp_path, captured, llama):
    for rank in range(13):
        layout = capture(tmp_path / "lake", llama, Rank(rank, 13))
    assert tiny.tree(layout.root / STREAM) == tiny.tree(captured.root / STREAM)


def test_ranks_share_the_work_of_generating(tmp_path, llama, monkeypatch):
    done: list[list] = []
    batch = greedy.decode

    def counted(model, prompts, *rest):
        done.append(prompts)
        if len(done) == 2:
            raise KeyboardInterrupt
        return batch(model, prompts, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(greedy, "decode", counted)
        with pytest.raises(KeyboardInterrupt):
            capture(tmp_path / "lake", llama, Rank(1, 2), batch=2)
        first = done[0]
        done[:] = [[], []]  # never at two again
        capture(tmp_path / "lake", llama, Rank(0, 2), batch=2)
    assert len(done) == 2 + 2 and first not in done  # three batches in all; the other rank's is taken over


def test_another_world_is_refused(tmp_path, llama):
    capture(tmp_path / "lake", llama, Rank(0, 3))
    before = tiny.tree(tmp_path / "lake")
    for rank in (Rank(0, 2), ALONE):
        with pytest.raises(
            LakeError, match=rf"started by 3 ranks, now there are {rank.world}: finish it with --world 3"
        ):
            capture(tmp_path / "lake", llama, rank)
    assert tiny.tree(tmp_path / "lake") == before


def test_two_processes_of_one_rank_are_refused(tmp_path, llama):
    layout = capture(tmp_path / "lake", llama, Rank(0, 2))
    path = find_capture(layout, "llama-it", "native")
    with (
        try_lock(path / ".progress" / "rank-1.lock") as mine,
        pytest.raises(LakeError, match="another process is writing the rows of rank 1 of 2"),
    ):
        assert mine
        capture(tmp_path / "lake", llama, Rank(1, 2))
    capture(tmp_path / "lake", llama, Rank(1, 2))
    assert list_captures(layout).sealed.all()


def test_seal_says_whose_rows_are_missing(tmp_path, captured, llama, monkeypatch):
    layout = capture(tmp_path / "lake", llama, Rank(0, 3))
    with pytest.raises(LakeError, match=r"shard rows are missing, those of rank 1, 2 of 3: .*--rank 1 --world 3 again"):
        seal_captures(layout)
    capture(layout.root, llama, Rank(1, 3))
    with monkeypatch.context() as patch:
        patch.setattr("actlake.capture.run.capture.seal_with_noise", lambda *_: None)
        capture(layout.root, llama, Rank(2, 3))
    assert not list_captures(layout).sealed.any()
    ((path, manifest),) = seal_captures(layout)
    assert manifest["n_tokens"] > 0 and tiny.tree(layout.root / STREAM) == tiny.tree(captured.root / STREAM)
    assert seal_captures(layout, "llama-it/native") == [(path, manifest)]
    with pytest.raises(LakeError, match="no unsealed capture here"):
        seal_captures(layout)


def _rank(lake: Path, pair, rank: Rank) -> None:
    capture(lake, pair, rank)


def test_ranks_at_the_same_time(tmp_path, captured, llama):
    ready.start()
    ranks = [ready.CONTEXT.Process(target=_rank, args=(tmp_path / "lake", llama, Rank(rank, 2))) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
        assert process.exitcode == 0
    assert tiny.tree(tmp_path / "lake" / STREAM) == tiny.tree(captured.root / STREAM)


def test_a_rank_that_is_faster_leaves_a_slower_ones_head_alone(tmp_path, captured, monkeypatch):
    """The faster one does all of it while the slower one has begun."""
    arrays, attrs = read_head(captured, "llama-it")
    attrs.pop("format_version")
    left = ("head_files", "vocab_sha256")  # the vocabulary comes after the model
    record = {key: value for key, value in read_model(captured, "llama-it").items() if key not in left}
    layout, create, turns = Layout.open(tmp_path / "lake", create=True), zarr.create_group, []

    def faster_first(path: Path, **options: Any) -> zarr.Group:
        group = create(path, **options)
        turns.append(path)
        if len(turns) == 1:
            with monkeypatch.context() as other:
                other.setattr(files.platform, "node", lambda: "faster")
                models.write_model(layout, "llama-it", record, arrays, attrs)
        return group

    monkeypatch.setattr(models.zarr, "create_group", faster_first)
    models.write_model(layout, "llama-it", record, arrays, attrs)
    assert len(turns) == 2
    alone = Layout.open(tmp_path / "alone", create=True)
    models.write_model(alone, "llama-it", record, arrays, attrs)
    assert tiny.tree(layout.model("llama-it")) == tiny.tree(alone.model("llama-it"))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_hundred_kills_over_three_ranks(tmp_path, llama):
    """Three ranks at once, each killed at random moments of its work and started again, until 200 kills are done."""
    folders, rng = [tmp_path / f"rank{rank}" for rank in range(3)], random.Random(0)
    for folder in folders:
        folder.mkdir()
    killers = [Killer(folder, llama.it.path.parent) for folder in folders]

    def until_done(rank: int, lake: Path, pauses: list[float]) -> None:
        while killers[rank].capture(lake, after=pauses.pop() if pauses else None, rank=(rank, 3))["killed"]:
            pass

    rounds = 0
    while sum(killer.kills for killer in killers) < 200:
        lake = tmp_path / f"lake{rounds}"
        # A rank has less to do than the whole, but three share the machine.
        pauses = [[rng.uniform(0.0, 1.5 * killers[0].seconds) for _ in range(5)] for _ in killers]
        with ThreadPoolExecutor(3) as pool:
            for done in [pool.submit(until_done, rank, lake, pauses[rank]) for rank in range(3)]:
                done.result()
        killers[0].check(lake)
        rounds += 1
    reached = sum((killer.phases for killer in killers), Counter())
    assert set(reached) >= {"stream", "allocating", "writing"}, reached
    for killer in killers:
        killer.close()
