"""Batches to train on: every row once, the same sequence whoever reads it, values as `lake.dataset` has them."""

import json
import os
import pickle
import subprocess
import sys
import threading
import time
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import training
from actlake.lake import Lake
from actlake.store.artifacts.streams import write_stream
from actlake.store.captures.allocate import Template, create_capture
from actlake.store.captures.manifest import seal
from actlake.store.captures.reader import find_capture
from actlake.store.captures.writer import ShardWriter
from actlake.store.core.errors import CorruptError, LakeError
from actlake.store.core.schema import RECORD
from actlake.store.exchange.transfer import Selection
from actlake.store.format.frames import decode_bits, encode_frame
from actlake.store.format.paths import Layout
from actlake.store.loader.batches import Batches, rounded
from actlake.store.loader.order import blocks_of, epoch_of
from actlake.store.loader.rows import in_validation
from actlake.store.loader.wanted import Filter, Wanted
from hypothesis import given
from hypothesis import strategies as st
from test_startup import without_extras
from torch.utils.data import DataLoader

WIDTH, SHARD, BATCH = 64, 64, 50  # a chunk is a shard of 64 tokens: 16 KiB, so coded plane by plane
SITES = {"resid": (3, WIDTH), "mlp_out": (2, WIDTH)}
ASK: dict[str, Any] = {"layer": 1, "batch": BATCH, "buffer": 4 * BATCH}


def capture(
    layout: Layout, model: str, rows: Any, dtype: str = "bfloat16", name: str = "made", odd: bool = False
) -> None:
    """A sealed capture of made-up values of a model on a stream of its own; an `odd` one has a NaN in a row of layer 0."""
    stream = tiny.synthetic_stream(rows, prompts=name)
    template = Template(stream, SITES, (0, 1, 2), (0, 1), dtype, {**tiny.MADE, "model": model}, SHARD)
    write_stream(layout, stream)
    path = layout.capture(model, stream.name)
    create_capture(path, template)
    with ShardWriter(path, template) as writer:
        for shard in range(template.n_shards):
            blocks = tiny.blocks_of(template, shard, seed=len(model) + ord(model[-2]))
            if odd and shard == 0:
                blocks["resid"][5, 1, 3] = np.nan
            if dtype == "bfloat16":
                blocks = {key: (block.view(np.uint32) >> 16).astype(np.uint16) for key, block in blocks.items()}
            writer.put(shard, blocks)
    seal(path)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """A pair of bfloat16 and a float32 model, 40 prompts, 900 to 1,100 tokens each; prompts of PT and IT differ in length."""
    layout, r = Layout.open(tmp_path_factory.mktemp("loader") / "lake", create=True), np.random.default_rng(0)
    told = [r.integers(5, 90, r.integers(2, 25)) for _ in range(40)]
    for model, longest in (("made-pt", 12), ("made-it", 20)):
        rows = [
            (f"p{n}", "AB"[n % 2], [tiny.BOS, *r.integers(5, 90, r.integers(2, longest))], told[n][: r.integers(2, 25)])
            for n in range(40)
        ]
        capture(layout, model, rows)
        if model == "made-it":
            capture(layout, "wide-it", rows, "float32")
    return Lake(layout)


def sequence(batches: Any) -> list[list[int]]:
    """The tokens of each batch."""
    return [np.asarray(batch.token).tolist() for batch in batches]


def tokens(batches: Any) -> np.ndarray:
    return np.concatenate([np.asarray(batch.token) for batch in batches])


# --- what a batch holds ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "dtype"), [("made/it", "float32"), ("made/it", "bfloat16"), ("wide-it", "float32")])
def test_rows_are_those_of_the_dataset_each_once(made: Lake, model: str, dtype: str) -> None:
    batches, stored = made.batches(model, "raw", dtype=dtype, **ASK), made.dataset(model, "raw")
    ordinary = np.flatnonzero((stored.position.values > 0) & ~stored.is_special.values)
    assert batches.rows == len(ordinary) > 8 * BATCH and len(batches) == -(-len(ordinary) // BATCH)
    seen, values = [], stored.resid.sel(boundary=2).values
    for batch in batches:
        expected = values[batch.token]
        expected = expected if dtype == "float32" else (expected.view(np.uint32) >> 16).astype(np.uint16)
        assert batch.x.dtype == expected.dtype and np.array_equal(batch.x, expected)
        for name in ("prompt", "position", "step"):
            assert np.array_equal(getattr(batch, name), stored[name].values[batch.token]), name
        seen.append(batch.token)
    assert [len(one) for one in seen[:-1]] == [BATCH] * (len(batches) - 1)
    assert np.array_equal(np.sort(np.concatenate(seen)), ordinary)
    assert batches.prompt_ids[batch.prompt[0]] == stored.prompt_id.values[batch.prompt[0]]
    assert "rows [64]" in repr(batches)


def test_a_row_has_axes_for_models_sites_and_layers(made: Lake) -> None:
    stored = {role: made.dataset(f"made/{role}", "raw") for role in ("pt", "it")}
    batches = made.batches("made/it", "raw", site=["mlp_out", "resid"], layer=[1, 0], batch=BATCH, pair="made")
    batch = next(iter(batches))
    assert batch.x.shape == (BATCH, 2, 2, 2, WIDTH) and batches.shape == (2, 2, 2, WIDTH)
    for m, role in enumerate(("pt", "it")):
        for s, (site, axis) in enumerate((("mlp_out", 0), ("resid", 1))):
            for at, layer in enumerate((1, 0)):
                values = stored[role][site].values[batch.token[:, m], layer + axis]
                assert np.array_equal(batch.x[:, m, s, at], values)
    both = made.batches("made/it", "raw", site=["mlp_out", "resid"], batch=BATCH)
    assert both.shape == (2, 2, WIDTH)  # layers 0 and 1: mlp_out has no -1
    every = made.batches("made/it", "raw", batch=BATCH)
    assert every.shape == (3, WIDTH) and made.batches("made/it", "raw", layer=-1, batch=BATCH).shape == (WIDTH,)


def test_float32_is_rounded_to_the_nearest_bfloat16(made: Lake) -> None:
    batch = next(iter(made.batches("wide-it", "raw", dtype="bfloat16", **ASK)))
    values = torch.from_numpy(made.dataset("wide-it", "raw").resid.values[batch.token, 2]).bfloat16()
    assert np.array_equal(values.view(torch.uint16).numpy(), batch.x)
    odd = np.array([np.nan, np.inf, -np.inf, -0.0, 1 + 2**-8, 1 + 3 * 2**-8, 3.4e38], np.float32)
    assert torch.equal(torch.from_numpy(rounded(odd)).view(torch.bfloat16)[1:], torch.from_numpy(odd).bfloat16()[1:])
    assert rounded(odd)[0] & 0x7F80 == 0x7F80 and rounded(odd)[0] & 0x7F


def test_without_shuffle_rows_keep_their_order(made: Lake) -> None:
    found = tokens(made.batches("made/it", "raw", shuffle=False, **ASK))
    assert np.array_equal(found, np.sort(found)) and len(found) > 500


# --- the sequence ----------------------------------------------------------------------------------------------------


def test_seed_and_epoch_make_the_sequence(made: Lake) -> None:
    batches = made.batches("made/it", "raw", **ASK)
    first, second = sequence(batches), sequence(batches)
    assert first != second and sorted(sum(first, [])) == sorted(sum(second, []))
    again = made.batches("made/it", "raw", threads=1, **ASK)
    assert [sequence(again), sequence(again)] == [first, second]
    assert sequence(made.batches("made/it", "raw", **{**ASK, "seed": 1})) != first
    again.set_epoch(1)
    assert sequence(again) == second
    prompts = [np.diff(np.sort(batch.prompt)) for batch in again]
    assert np.mean([(one == 0).mean() for one in prompts]) < 0.9  # in order nearly all neighbours are of one prompt


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_any_number_of_workers_gives_the_same_sequence(made: Lake, workers: int) -> None:
    expected = list(made.batches("made/it", "raw", **ASK))
    found = list(
        DataLoader(made.batches("made/it", "raw", output="torch", **ASK), batch_size=None, num_workers=workers)
    )
    assert sequence(found) == sequence(expected)
    assert all(torch.equal(one.x, torch.from_numpy(other.x)) for one, other in zip(found, expected, strict=True))


def test_torch_without_workers_and_after_pickling(made: Lake) -> None:
    narrow = made.batches("made/it", "raw", output="torch", dtype="bfloat16", pair="made", **ASK)
    batch = next(iter(DataLoader(pickle.loads(pickle.dumps(narrow)), batch_size=None)))
    assert batch.x.dtype == torch.bfloat16 and batch.x.shape == (BATCH, 2, WIDTH) and batch.token.dtype == torch.int64
    expected = next(iter(made.batches("made/it", "raw", pair="made", **ASK)))
    assert (
        np.array_equal(batch.x.float().numpy(), expected.x) and len(narrow) == len(narrow.batches) and narrow.rows > 0
    )


@pytest.mark.parametrize("at", [0, 1, 5, 10])
def test_a_state_goes_on_in_the_middle_of_an_epoch(made: Lake, at: int) -> None:
    whole = made.batches("made/it", "raw", **ASK)
    expected = sequence(whole) + sequence(whole)
    stopped = made.batches("made/it", "raw", **ASK)
    seen = sequence(islice(iter(stopped), at))
    state = json.loads(json.dumps(stopped.state_dict()))
    assert state["batch"] == at
    resumed = made.batches("made/it", "raw", **ASK)
    resumed.load_state_dict(state)
    rest = list(resumed)
    assert seen + sequence(rest) + sequence(resumed) == expected
    values = made.dataset("made/it", "raw").resid.values[:, 2]
    assert all(np.array_equal(batch.x, values[batch.token]) for batch in rest)


@pytest.mark.parametrize(
    ("workers", "world"), [(2, 1), *(pytest.param(*each, marks=pytest.mark.sweep) for each in ((0, 1), (0, 2), (2, 2)))]
)
def test_killed_and_resumed_is_the_sequence_of_a_run_that_was_not(
    made: Lake, tmp_path: Path, workers: int, world: int
) -> None:
    """A training process is killed in the middle of its second epoch, and goes on from the state that it saved last."""

    def start(rank: int, stands: str) -> subprocess.Popen:
        words = [training.__file__, str(made.layout.root), str(tmp_path), str(workers), str(rank), str(world), stands]
        return subprocess.Popen([sys.executable, *words], env={**os.environ, "ACTLAKE_CACHE": str(tmp_path)})

    def seen(rank: int) -> list[list[Any]]:
        log = tmp_path / f"log-{rank}.jsonl"
        lines = log.read_text().splitlines(keepends=True) if log.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    whole = [made.batches("made/it", "raw", rank=rank, world=world, **training.ASK) for rank in range(world)]
    expected = [
        [
            [epoch, number, batch.token.tolist(), sha256(np.ascontiguousarray(batch.x).tobytes()).hexdigest()]
            for epoch in range(training.EPOCHS)
            for number, batch in enumerate(one, 1)
        ]
        for one in whole
    ]
    running = [start(rank, "5") for rank in range(world)]
    try:
        until, enough = time.monotonic() + 300, len(whole[0]) + 5
        while min(len(seen(rank)) for rank in range(world)) < enough:
            assert time.monotonic() < until and all(one.poll() is None for one in running)
            time.sleep(0.02)
    finally:
        for one in running:
            one.kill()
            one.wait()
    for rank in range(world):
        before = seen(rank)
        state = json.loads((tmp_path / f"state-{rank}.json").read_text())
        assert state["epoch"] == 1 and 0 < state["batch"] < len(whole[rank]) and len(before) < len(expected[rank])
        kept = [line for line in before if (line[0], line[1]) <= (state["epoch"], state["batch"])]
        assert before == expected[rank][: len(before)]
        assert start(rank, "0").wait(300) == 0
        assert kept + seen(rank)[len(before) :] == expected[rank]


def test_a_state_of_another_sequence_is_refused(made: Lake) -> None:
    state = made.batches("made/it", "raw", **ASK).state_dict(batch=3)
    assert state["batch"] == 3
    for change in ({"seed": 1}, {"batch": 40}, {"layer": 0}, {"where": "step >= 0"}, {"rank": 1, "world": 2}):
        with pytest.raises(LakeError, match="another sequence of batches"):
            made.batches("made/it", "raw", **{**ASK, **change}).load_state_dict(state)
    with pytest.raises(LakeError, match="expected a batch from 0 to"):
        made.batches("made/it", "raw", **ASK).load_state_dict({**state, "batch": 1000})
    for wrong in ({**state, "batch": "2"}, {**state, "epoch": -1}, {"of": state["of"]}):
        with pytest.raises(LakeError, match="expected (a whole number|0 or more), found"):
            made.batches("made/it", "raw", **ASK).load_state_dict(wrong)


def test_ranks_have_disjoint_parts_that_make_the_whole(made: Lake) -> None:
    whole = made.batches("made/it", "raw", **ASK)
    for epoch in range(2):
        parts = [made.batches("made/it", "raw", rank=rank, world=3, **ASK) for rank in range(3)]
        for part in parts:
            part.set_epoch(epoch)
        found = [tokens(part) for part in parts]
        assert [len(one) for one in found] == [part.rows for part in parts]
        assert np.array_equal(np.sort(np.concatenate(found)), np.sort(tokens(whole)))
    even = [made.batches("made/it", "raw", rank=rank, world=3, drop_last=True, **ASK) for rank in range(3)]
    assert {len(sequence(one)) for one in even} == {len(even[0])} == {whole.rows // 3 // BATCH}


SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=40)


@given(SIZES, st.integers(1, 6), st.integers(0, 40), st.integers(1, 3), st.none() | st.integers(0, 9))
def test_every_row_is_drawn_once_from_a_bounded_buffer(
    sizes: list[int], batch: int, more: int, world: int, seed: int | None
) -> None:
    edges, capacity = np.concatenate([[0], np.cumsum(sizes)]), 4 * max(batch, *sizes) + more
    drawn = []
    for rank in range(world):
        before = np.empty(0, np.int64)
        fillings = list(epoch_of(edges, capacity, batch, seed, 0, rank, world))
        for number, filled in enumerate(fillings):
            assert len(filled.rows) <= capacity and np.array_equal(filled.rows[: len(filled.kept)], before[filled.kept])
            assert number == len(fillings) - 1 or len(filled.drawn) % batch == 0
            assert np.array_equal(filled.rows[len(filled.kept) :], np.concatenate([before[:0], *filled.pieces]))
            before = filled.rows
            drawn += filled.rows[filled.drawn].tolist()
        assert not fillings or len(fillings[-1].drawn) == len(fillings[-1].rows)
    assert sorted(drawn) == list(range(sum(sizes)))
    assert seed is not None or drawn == sorted(drawn)


def test_blocks_are_the_chunks_that_rows_are_in() -> None:
    assert blocks_of(np.array([0, 3, 7, 8, 30]), 8).tolist() == [0, 3, 4, 5]


# --- which rows ------------------------------------------------------------------------------------------------------


def test_filters_are_those_of_sql(captured: Layout) -> None:
    lake = Lake(captured)
    stream = find_capture(captured, "llama-it", "native").stem

    def found(**options: Any) -> list[int]:
        return lake.batches("llama/it", "native", layer=1, batch=4, **options).tokens.tolist()

    def asked(condition: str) -> list[int]:
        rows = f"SELECT DISTINCT token FROM tokens WHERE model = 'llama-it' AND stream = '{stream}' AND {condition}"
        return sorted(lake.sql_frame(rows)["token"])

    usual = "position > 0 AND NOT is_special"
    assert found() == asked(usual) and found(special=True, first=True) == asked("token >= 0")
    assert found(where="category = 'FACT' AND step >= 0") == asked(f"{usual} AND category = 'FACT' AND step >= 0")
    assert found(segment="assistant") == asked(f"{usual} AND segment = 'assistant'")
    assert found(segment=["user", "template"], special=True) == asked(
        "position > 0 AND segment IN ('user', 'template')"
    )
    assert found(where="true -- a remark") == asked(usual)
    assert found(where="false) OR (step >= 0") == asked(f"{usual} AND step >= 0")  # no tokens of other captures
    for wrong in ("tokn = 3", "step >= 0; DROP TABLE tokens", "true) UNION SELECT * FROM read_csv('x.csv') --"):
        with pytest.raises(LakeError, match="SQL"):
            found(where=wrong)


def test_the_split_is_by_prompt_and_the_same_for_all(made: Lake) -> None:
    halves = {
        (role, split): made.batches(f"made/{role}", "raw", split=split, validation=0.3, **ASK)
        for role in ("pt", "it")
        for split in ("train", "validation")
    }
    prompts = {key: {one.prompt_ids[p] for batch in one for p in batch.prompt} for key, one in halves.items()}
    assert not prompts["it", "train"] & prompts["it", "validation"] and prompts["pt", "train"] == prompts["it", "train"]
    assert len(prompts["it", "train"] | prompts["it", "validation"]) == 40
    assert halves["it", "train"].rows + halves["it", "validation"].rows == made.batches("made/it", "raw", **ASK).rows
    names = sorted(prompts["it", "train"] | prompts["it", "validation"])
    assert {name for name, held in zip(names, in_validation(names, 0.3), strict=True) if held} == prompts[
        "it", "validation"
    ]
    other = made.batches("made/it", "raw", split="validation", validation=0.3, split_seed=1, **ASK)
    assert {other.prompt_ids[p] for batch in other for p in batch.prompt} != prompts["it", "validation"]


def test_pairs_are_aligned_by_prompt_and_step(made: Lake, captured: Layout) -> None:
    stored = {role: made.dataset(f"made/{role}", "raw") for role in ("pt", "it")}
    keys = {}
    for role, each in stored.items():
        ids, steps, special = each.prompt_id.values[each.prompt.values], each.step.values, each.is_special.values
        keys[role] = {
            (ids[t], steps[t]): t
            for t in range(len(steps))
            if steps[t] >= 0 and not special[t] and each.position[t] > 0
        }
    shared = keys["pt"].keys() & keys["it"].keys()
    for named in ("pt", "it"):
        batches = made.batches(f"made/{named}", "raw", pair="made", **ASK)
        assert batches.rows == len(shared) > 100
        for batch in batches:
            for row in range(len(batch.x)):
                key = (batches.prompt_ids[batch.prompt[row]], batch.step[row])
                assert batch.token[row].tolist() == [keys["pt"][key], keys["it"][key]]
                assert batch.position[row].tolist() == [
                    int(stored[role].position[batch.token[row, at]]) for at, role in enumerate(("pt", "it"))
                ]
            values = np.stack(
                [stored[r].resid.values[batch.token[:, m], 2] for m, r in enumerate(("pt", "it"))], axis=1
            )
            assert np.array_equal(batch.x, values)
    whole = made.batches("made/it", find_capture(made.layout, "made-it", "raw").stem, pair="made", **ASK)
    assert whole.rows == len(shared)


def test_a_pair_on_one_stream_is_aligned_token_by_token(tmp_path) -> None:
    layout = Layout.open(tmp_path / "lake", create=True)
    rows = [(f"p{n}", "A", [1, 7, 8, n + 5], [9, 9, 9]) for n in range(20)]
    for model in ("same-pt", "same-it"):
        capture(layout, model, rows)
    batch = next(iter(Lake(layout).batches("same/it", "raw", layer=0, batch=30, pair="same", segment="unknown")))
    assert (batch.token[:, 0] == batch.token[:, 1]).all() and (batch.step == -1).any()
    capture(layout, "same-it", [("q", "A", [1, 7], [8, 9])], name="other")
    with pytest.raises(LakeError, match="no prompt and step is in both streams"):
        names = [
            ("same-pt", find_capture(layout, "same-pt", "raw").stem),
            ("same-it", find_capture(layout, "same-it", "raw-other").stem),
        ]
        Batches(layout, names, 1, Wanted(("resid",), (0,), (True, True), 1), Filter())


# --- statistics ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_normalisation_is_by_the_training_rows(made: Lake, dtype: str) -> None:
    ask = {**ASK, "validation": 0.4, "dtype": dtype}
    values = made.dataset("made/it", "raw").resid.values[:, 2].astype(np.float64)
    train = values[made.batches("made/it", "raw", split="train", **ask).tokens]
    for way in ("scale", "center"):
        mean = train.mean(0) if way == "center" else 0.0
        factor = np.sqrt(WIDTH / np.square(train - mean).sum(1).mean())
        for split in ("train", "validation"):
            batches = made.batches("made/it", "raw", split=split, normalize=way, **ask)
            for batch in batches:
                found = batch.x if dtype == "float32" else (batch.x.astype(np.uint32) << 16).view(np.float32)
                assert np.allclose(
                    found, (values[batch.token] - mean) * factor, rtol=1e-5 if dtype == "float32" else 4e-3, atol=1e-5
                )
            assert np.isclose(batches.scales[0][1], factor, rtol=1e-6)


def test_rows_far_above_the_median_norm_are_left_out(made: Lake) -> None:
    batches = made.batches("made/it", "raw", max_norm=1.05, **ASK)
    norm = np.linalg.norm(made.dataset("made/it", "raw").resid.values[:, 2].astype(np.float64), axis=1)
    every = made.batches("made/it", "raw", **ASK).tokens
    expected = every[norm[every] <= 1.05 * np.median(norm[every])]
    assert np.array_equal(batches.tokens, expected) and 0 < len(expected) < len(every)


def test_statistics_are_kept_checked_and_moved(made: Lake, tmp_path) -> None:
    ask = {**ASK, "normalize": "center", "max_norm": 2.0}
    made.batches("made/pt", "raw", **ask)
    kept = sorted((made.layout.root / "statistics" / "made-pt").glob("*"))
    assert {folder.name.split("-")[0] for folder in kept} == {"norms", "scale"}
    stamps = [(folder / RECORD).stat().st_mtime_ns for folder in kept]
    made.batches("made/pt", "raw", **ask)
    assert [(folder / RECORD).stat().st_mtime_ns for folder in kept] == stamps
    made.push(str(tmp_path / "copy"))
    copy = Lake(tmp_path / "copy")
    assert [one.capture for one in copy.verify() if one.capture == "statistics" and one.ok] == ["statistics"]
    file = next(
        path
        for path in sorted(copy.layout.root.glob("statistics/made-pt/scale-*/**/*"))
        if "/c" in str(path) and path.is_file()
    )
    tiny.flip(file, -8)
    assert [report.capture for report in copy.verify() if not report.ok] == ["statistics"]
    with pytest.raises(CorruptError, match="computes it again"):
        copy.batches("made/pt", "raw", **ask)


# --- where lakes are -------------------------------------------------------------------------------------------------


def test_a_remote_lake_gives_the_same_batches(made: Lake, bucket: str) -> None:
    made.push(bucket)  # with statistics that other tests may have made
    expected = made.batches("made/it", "raw", pair="made", normalize="scale", **ASK)
    first = list(expected)
    with made.serve(port=0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for url in (bucket, server.url):
            there = Lake(url).batches("made/it", "raw", pair="made", normalize="scale", **ASK)
            found = list(there)
            assert sequence(found) == sequence(first)
            assert all(np.array_equal(one.x, other.x) for one, other in zip(found, first, strict=True))


def test_a_remote_lake_is_not_read_in_forked_processes(made: Lake, bucket: str) -> None:
    made.push(bucket)
    batches = Lake(bucket).batches("made/it", "raw", output="torch", **ASK)
    with pytest.raises(LakeError, match="spawn"):
        next(iter(DataLoader(batches, batch_size=None, num_workers=1, multiprocessing_context="fork")))


def test_a_copy_of_a_part_says_what_it_lacks(made: Lake, tmp_path) -> None:
    part = Lake(Layout.open(tmp_path / "part", create=True))
    part.pull(str(made.layout.root), Selection(names=("made/it",), sites=("resid",), boundaries=(2,)))
    values = made.dataset("made/it", "raw").resid.values[:, 2]
    assert all(np.array_equal(batch.x, values[batch.token]) for batch in part.batches("made-it", "raw", **ASK))
    for ask in ({"layer": 0}, {"site": "mlp_out"}):
        with pytest.raises(LakeError, match=r"this copy lacks .* `actlake pull "):
            part.batches("made-it", "raw", **{**ASK, **ask})


def test_damage_is_named(made: Lake, tmp_path) -> None:
    made.push(str(tmp_path / "copy"))
    shard = sorted(tmp_path.glob("copy/captures/made-it/*/resid/c/3/**/*"))[-1]
    tiny.flip(shard, 100)
    with pytest.raises(CorruptError, match="resid/c/3"):
        list(Lake(tmp_path / "copy").batches("made-it", "raw", layer=[-1, 0, 1], batch=BATCH))


def test_the_light_install_is_enough(made: Lake) -> None:
    code = f"""
import sys, actlake
lake = actlake.open({str(made.layout.root)!r})
batches = lake.batches("made/it", "raw", layer=1, batch=50, normalize="center", where="step >= 0")
assert sum(len(batch.x) for batch in batches) == batches.rows and "torch" not in sys.modules
try:
    lake.batches("made/it", "raw", layer=1, batch=50, output="torch")
except actlake.LakeError as error:
    assert "actlake[capture]" in str(error), error
"""
    without_extras(code)


# --- mistakes --------------------------------------------------------------------------------------------------------

WRONG = [
    ({"site": "residual"}, "site 'residual': expected resid or mlp_out or attn_out"),
    ({"site": "attn_out"}, "no site 'attn_out'; it has resid, mlp_out"),
    ({"layer": 7}, "resid at layer 7: expected -1 to 1, found 7"),
    ({"site": "mlp_out", "layer": -1}, "mlp_out at layer -1: expected 0 or 1, found -1"),
    ({"layer": [1, 1]}, "layer: expected each once, found 1, 1"),
    ({"batch": 100_000}, "batch: expected at most"),
    ({"batch": 400, "world": 3}, "rows a rank, 3 ranks), found 400"),
    ({"batch": 0}, "batch: expected 1 at least, found 0"),
    ({"rank": 2, "world": 2}, "rank 2 of 2: ranks count from 0 to world - 1"),
    ({"dtype": "float16"}, "dtype 'float16': expected float32 or bfloat16"),
    ({"normalize": "zscore"}, "normalize 'zscore': expected scale or center"),
    ({"split": "test"}, "split 'test': expected train or validation"),
    ({"split": "train", "validation": 1.5}, "validation: the share of prompts: expected between 0 and 1, found 1.5"),
    ({"split": "validation", "validation": 1e-9}, "split='validation': none of 40 prompts is in it"),
    ({"segment": "asistant"}, "did you mean 'assistant'"),
    ({"segment": "system"}, "no token is left of"),
    ({"where": "step > 1000"}, "no token is left of"),
    ({"max_norm": 1e-6}, "max_norm=1e-06: no row of"),
    ({"max_norm": -1.0}, "max_norm: times the median norm: expected above 0, found -1"),
    ({"output": "jax"}, "output 'jax': expected numpy or torch"),
    ({"pin": True}, "pin=True: tensors alone can be pinned"),
    ({"where": "tokn > 3"}, "SQL: Binder Error"),
    ({"where": 5}, "where: expected text, found 5"),
    ({"layer": "1"}, "layer: expected a whole number, found '1'"),
    ({"layer": 1.0}, "layer: expected a whole number, found 1.0"),
    ({"layer": True}, "layer: expected a whole number, found True"),
    ({"layer": []}, "site and layer: expected one at least, found none"),
    ({"site": 3}, "site: expected text, found 3"),
    ({"segment": 3}, "segment: expected text, found 3"),
    ({"batch": "50"}, "batch: expected a whole number, found '50'"),
    ({"batch": None}, "batch: expected a whole number, found None"),
    ({"seed": 1.5}, "seed: expected a whole number, found 1.5"),
    ({"threads": "two"}, "threads: expected a whole number, found 'two'"),
    ({"max_norm": "10"}, "max_norm: expected a number, found '10'"),
    ({"validation": None}, "validation: expected a number, found None"),
    ({"shuffle": "no"}, "shuffle: expected True or False, found 'no'"),
    ({"special": "no"}, "special: expected True or False, found 'no'"),
    ({"pair": 3}, "pair: expected text, found 3"),
    ({"split": 3}, "split: expected text, found 3"),
    ({"normalize": True}, "normalize: expected text, found True"),
    ({"seed": -1}, "seed: expected 0 or more, found -1"),
    ({"pair": "llama"}, "unknown pair 'llama'"),
    ({"pair": "wide-it..made-pt"}, "its rows need both, and one of them named first"),
    ({"pair": "wide-it..made-it"}, "rows side by side need one dtype"),
]


@pytest.mark.parametrize(("change", "words"), WRONG, ids=lambda value: str(value)[:40])
def test_mistakes_are_told_in_a_line(made: Lake, change: dict[str, Any], words: str) -> None:
    with pytest.raises(LakeError) as error:
        made.batches("made/it", "raw", **{**ASK, **change})
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_buffer_beyond_memory_is_refused_before_it_is_taken(made: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actlake.store.loader.batches._memory", lambda: 80_000)
    words = "buffer: expected at most 78 rows, half of 80.0 KB of memory, found 248, which take 127.0 KB"
    with pytest.raises(LakeError, match=words):
        made.batches("made/it", "raw", layer=[0, 1], batch=20, buffer=80)


def test_values_that_are_not_finite_have_no_mean(tmp_path) -> None:
    layout = Layout.open(tmp_path / "lake", create=True)
    capture(layout, "made-it", [(f"p{n}", "A", [1, 7, 8, n + 5], [9, 9, 9]) for n in range(20)], odd=True)
    lake = Lake(layout)
    with pytest.raises(LakeError, match="not finite, so no mean.* max_norm=NUMBER"):
        lake.batches("made-it", "raw", layer=0, batch=10, normalize="scale")
    found = lake.batches("made-it", "raw", layer=0, batch=10, normalize="scale", max_norm=50.0)
    assert 5 not in found.tokens and all(np.isfinite(batch.x).all() for batch in found)


@pytest.mark.skipif(torch.cuda.is_available(), reason="memory can be pinned here")
def test_pinned_memory_needs_a_gpu(made: Lake) -> None:
    with pytest.raises(LakeError, match="pinned memory needs a GPU"):
        made.batches("made/it", "raw", output="torch", pin=True, **ASK)


def test_unknown_models_and_streams(made: Lake) -> None:
    for model, stream, words in (
        ("made-xx", "raw", "unknown pair, model or chain"),
        ("made/it", "nativ", "no capture of made-it"),
    ):
        with pytest.raises(LakeError, match=words):
            made.batches(model, stream, layer=1)


# --- bits of bfloat16 ------------------------------------------------------------------------------------------------


@given(st.integers(64, 300), st.integers(64, 200), st.sampled_from([1, 5]), st.integers(0, 99))
def test_planes_are_decoded_to_the_bits_they_were(rows: int, width: int, copies: int, seed: int) -> None:
    bits = np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32).view(np.uint16)[:, 1::2]
    bits = np.ascontiguousarray(np.tile(bits[: -(-rows // copies)], (copies, 1))[:rows])
    if 2 * bits.nbytes < 1 << 14:
        return
    frame, out = np.frombuffer(encode_frame(bits), np.uint8), np.zeros_like(bits)
    assert decode_bits(frame, out) and np.array_equal(out, bits)
    wide = np.random.default_rng(seed).standard_normal(bits.shape).astype(np.float32)
    assert not decode_bits(np.frombuffer(encode_frame(wide), np.uint8), out)  # lower planes that are no zeros


def test_frames_that_point_beyond_themselves_are_refused() -> None:
    bits = np.random.default_rng(0).integers(0, 1 << 16, (128, 256)).astype(np.uint16)
    good = np.frombuffer(encode_frame(bits), np.uint8)
    start = int(good[16:20].view("<i4")[0])
    for at, value in ((start, 0xFF), (start + 3, 0x7F)):
        frame = good.copy()
        frame[at] = value
        try:
            assert not decode_bits(frame, np.zeros_like(bits))
        except (ValueError, RuntimeError):
            continue
