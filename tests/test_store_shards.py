"""Shards written here and read by zarr, and the other way round; damage is named, never returned as numbers."""

import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import zarr
from actlake.store.captures.reader import CheckedArray
from actlake.store.core.errors import CorruptError
from actlake.store.format.chunk_cache import _Recent
from actlake.store.format.chunks import blosc_blocks, frame_of
from actlake.store.format.shards import Grid, pad, statistics, widen
from actlake.store.format.zarr_groups import as_box, compressors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numcodecs import Blosc

shapes = st.tuples(st.integers(1, 40), st.integers(1, 4), st.integers(1, 5))


def allocate(folder: Path, shape, chunk: int, per_shard: int, dtype="float32"):
    """An array as `create_capture` makes it: chunks of one layer, shards of all."""
    warnings.simplefilter("ignore")
    inner = (1, *shape[2:]) if len(shape) == 3 else shape[1:]
    return zarr.create_array(
        folder / "x",
        shape=shape,
        dtype=dtype,
        chunks=(chunk, *inner),
        shards=(chunk * per_shard, *shape[1:]),
        compressors=compressors(),
        fill_value=np.nan if dtype == "float32" else -1,
        config={"write_empty_chunks": True},
        overwrite=True,
    )


def files(folder: Path, ndim: int):
    return lambda shard: folder.joinpath("x", "c", str(shard), *["0"] * (ndim - 1))


def write(folder: Path, array, values) -> Grid:
    grid, of = Grid.of(array), files(folder, values.ndim)
    assert grid is not None
    for shard in range(-(-len(values) // grid.shard)):
        encoded = grid.encode(values[shard * grid.shard : (shard + 1) * grid.shard])
        of(shard).parent.mkdir(parents=True, exist_ok=True)
        of(shard).write_bytes(b"".join(encoded.pieces))
    return grid


@settings(max_examples=60, deadline=None)
@given(shape=shapes, chunk=st.integers(1, 8), per_shard=st.integers(1, 3), data=st.data())
def test_zarr_reads_what_is_encoded_here(tmp_path_factory, shape, chunk, per_shard, data):
    folder = tmp_path_factory.mktemp("a")
    values = np.random.default_rng(shape).standard_normal(shape).astype(np.float32)
    array = allocate(folder, shape, chunk, per_shard)
    grid = write(folder, array, values)
    assert np.array_equal(array[:], values)
    box = []
    for size in shape:
        low = data.draw(st.integers(0, size))
        box.append(slice(low, data.draw(st.integers(low, size))))
    assert np.array_equal(grid.read(files(folder, 3), tuple(box), True), values[tuple(box)])


@settings(max_examples=30, deadline=None)
@given(shape=shapes, chunk=st.integers(1, 8), per_shard=st.integers(1, 3))
def test_what_zarr_wrote_is_read_here(tmp_path_factory, shape, chunk, per_shard):
    folder = tmp_path_factory.mktemp("b")
    values = np.random.default_rng(shape).standard_normal(shape).astype(np.float32)
    array = allocate(folder, shape, chunk, per_shard)
    array[:] = values
    grid = Grid.of(array)
    assert np.array_equal(grid.read(files(folder, 3), tuple(slice(0, n) for n in shape), True), values)


@pytest.mark.parametrize(("shape", "dtype"), [((37,), "float32"), ((37, 6), "int32"), ((37, 6), "float32")])
def test_variables_without_layers(tmp_path, shape, dtype):
    values = (np.random.default_rng(0).standard_normal(shape) * 100).astype(dtype)
    array = allocate(tmp_path, shape, 8, 2, dtype)
    grid = write(tmp_path, array, values)
    assert np.array_equal(array[:], values)
    whole = tuple(slice(0, n) for n in shape)
    assert np.array_equal(grid.read(files(tmp_path, len(shape)), whole, True), values)


def test_bits_of_bfloat16_are_widened_exactly(tmp_path):
    bits = np.random.default_rng(0).integers(0, 1 << 16, (40, 3, 5), dtype=np.uint16)
    bits &= np.uint16(0xBFFF)  # no infinity, no NaN
    expected = (bits.astype(np.uint32) << 16).view(np.float32)
    array = allocate(tmp_path, bits.shape, 8, 2)
    write(tmp_path, array, bits)
    assert np.array_equal(array[:].view(np.uint32), expected.view(np.uint32))
    assert np.array_equal(widen(bits).view(np.uint32), expected.view(np.uint32))
    # Layer by layer in memory, as the model fills it.
    write(tmp_path, array, np.ascontiguousarray(bits.swapaxes(0, 1)).swapaxes(0, 1))
    assert np.array_equal(array[:].view(np.uint32), expected.view(np.uint32))


def test_statistics_see_through_nan_and_infinity():
    assert statistics(np.asarray([3.0, -1.0], np.float32)) == (-1.0, 3.0, 0)
    assert statistics(np.asarray([np.nan, 2.0, -np.inf, 5.0], np.float32)) == (2.0, 5.0, 2)
    assert statistics(np.asarray([np.nan], np.float32)) == (np.inf, -np.inf, 1)


def test_padding_is_the_fill_value():
    out = pad(np.ones((2, 3), np.float32), 4, np.nan)
    assert np.array_equal(out, [[1] * 3, [1] * 3, [np.nan] * 3, [np.nan] * 3], equal_nan=True)
    assert pad(np.ones((1, 2), np.int32), 2, -1).tolist() == [[1, 1], [-1, -1]]


def test_damage_anywhere_in_a_shard_is_named(tmp_path):
    values = np.random.default_rng(0).standard_normal((30, 2, 4)).astype(np.float32)
    grid = write(tmp_path, allocate(tmp_path, values.shape, 8, 2), values)
    of, whole = files(tmp_path, 3), tuple(slice(0, n) for n in values.shape)
    good = of(1).read_bytes()
    for at in range(0, len(good), 7):
        of(1).write_bytes(good[:at] + bytes([good[at] ^ 0xFF]) + good[at + 1 :])
        with pytest.raises(CorruptError, match="c/1/0/0: stored bytes are damaged"):
            grid.read(of, whole, True)
        assert np.array_equal(grid.read(of, (slice(0, 16), *whole[1:]), True), values[:16])  # the other shard
    for length in (0, 3, len(good) // 2, len(good) - 1):
        of(1).write_bytes(good[:length])
        with pytest.raises(CorruptError, match="c/1/0/0: stored bytes are damaged"):
            grid.read(of, whole, True)
    os.remove(of(1))
    with pytest.raises(CorruptError, match="c/1/0/0: missing"):
        grid.read(of, whole, True)
    assert np.isnan(grid.read(of, whole, False)[16:]).all()


def test_an_absent_chunk_of_a_sealed_shard_is_damage(tmp_path):
    warnings.simplefilter("ignore")
    array = allocate(tmp_path, (16, 2, 4), 8, 2)
    array[:8] = 1.0  # zarr leaves the other chunks out of the index
    whole = tuple(slice(0, n) for n in array.shape)
    grid = Grid.of(array)
    assert np.isnan(grid.read(files(tmp_path, 3), whole, False)[8:]).all()
    with pytest.raises(CorruptError, match="a chunk is absent"):
        grid.read(files(tmp_path, 3), whole, True)


KEYS = [
    slice(None),
    ...,
    5,
    -1,
    np.int64(3),
    slice(3, 20),
    slice(-5, None),
    slice(9, 4),
    (slice(2, 30), 1),
    (slice(None), slice(1, 3), slice(0, 2)),
    (..., 2),
    (4, ..., 1),
    (slice(None, None, 3), 0),
    (np.asarray([1, 30, 7]), slice(None)),
    (slice(None), -1),
]


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_keys_mean_what_they_mean_in_numpy(tmp_path, key):
    values = np.random.default_rng(0).standard_normal((37, 3, 4)).astype(np.float32)
    array = allocate(tmp_path, values.shape, 8, 2)
    write(tmp_path, array, values)
    named = zarr.open_group(tmp_path, mode="a", zarr_format=3)["x"]  # an array knows its name from its group
    found = CheckedArray(tmp_path, named, True)[key]
    assert np.array_equal(found, values[key]) and found.shape == values[key].shape


def test_index_beyond_the_axis():
    with pytest.raises(IndexError):
        as_box((99, 0, 0), (10, 3, 4))
    assert as_box((slice(0, 2), None, 0, 0), (10, 3, 4)) is None and as_box((0, 0, 0, 0), (10, 3, 4)) is None


@settings(max_examples=80, deadline=None)
@given(size=st.integers(1, 9000), noise=st.booleans(), data=st.data())
def test_any_bytes_of_a_blosc_frame_come_from_its_blocks(size, noise, data):
    rng = np.random.default_rng(size)
    raw = rng.integers(0, 256 if noise else 3, size).astype(np.uint8)
    codec = Blosc("zstd", 1, Blosc.SHUFFLE, data.draw(st.sampled_from([512, 1024, 4096])), typesize=4)
    start = data.draw(st.integers(0, size - 1))
    stop = data.draw(st.integers(start + 1, size))
    whole = np.frombuffer(codec.encode(raw), np.uint8)
    frame, first, decoded = blosc_blocks(whole, start, stop)
    found = np.frombuffer(codec.decode(frame), np.uint8)
    assert len(found) == decoded and first <= start and len(frame) <= len(whole)
    assert np.array_equal(found[start - first : stop - first], raw[start:stop])


def test_few_tokens_need_few_blocks(tmp_path, monkeypatch):
    values = np.random.default_rng(0).standard_normal((4096, 2, 576)).astype(np.float32)
    array = allocate(tmp_path, values.shape, 2048, 2)
    grid, decoded = write(tmp_path, array, values), []
    monkeypatch.setattr(
        "actlake.store.format.shards.blosc_blocks",
        lambda *a: (found := blosc_blocks(*a), decoded.append(found[2]))[0],
    )
    for start, stop in ((0, 50), (1000, 1100), (2040, 2048), (2047, 2049), (4000, 4096)):
        box = (slice(start, stop), slice(0, 2), slice(0, 576))
        assert np.array_equal(grid.read(files(tmp_path, 3), box, True), values[start:stop])
    assert max(decoded) <= 2 << 20 and 2048 * 576 * 4 > 4 << 20


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chunk=st.integers(1, 700), held=st.sampled_from([0, 3000, 1 << 20]), data=st.data())
def test_any_order_of_reads_gives_the_same_values(tmp_path, monkeypatch, chunk, held, data):
    values = np.random.default_rng(chunk).standard_normal((1500, 2, 8)).astype(np.float32)
    array = allocate(tmp_path, values.shape, chunk, 2)
    grid = write(tmp_path, array, values)
    monkeypatch.setattr("actlake.store.format.chunk_cache.TICK", 0)
    stretches = _Recent(held)
    monkeypatch.setattr("actlake.store.format.shards.recent", lambda: stretches)
    for _ in range(12):
        start = data.draw(st.integers(0, 1499))
        stop = data.draw(st.integers(start + 1, 1500))
        layer = data.draw(st.sampled_from([slice(0, 2), slice(0, 1), slice(1, 2)]))
        found = grid.read(files(tmp_path, 3), (slice(start, stop), layer, slice(0, 8)), True)
        assert np.array_equal(found, values[start:stop, layer])


def test_a_loop_over_prompts_decodes_each_chunk_once(tmp_path, monkeypatch):
    values = np.random.default_rng(0).standard_normal((2048, 3, 192)).astype(np.float32)
    grid, decoded = write(tmp_path, allocate(tmp_path, values.shape, 512, 2), values), []
    monkeypatch.setattr("actlake.store.format.shards.frame_of", lambda *a: (decoded.append(a), frame_of(*a))[1])

    def loop() -> None:
        for start in range(0, 2048, 64):
            box = (slice(start, start + 64), slice(0, 3), slice(0, 192))
            assert np.array_equal(grid.read(files(tmp_path, 3), box, True), values[start : start + 64])

    monkeypatch.setattr("actlake.store.format.chunk_cache.TICK", 1 << 62)
    loop()
    assert len(decoded) == 32 * 3  # right after writing a file can't be told from the one that takes its place
    monkeypatch.setattr("actlake.store.format.chunk_cache.TICK", 0)
    decoded.clear()
    loop()
    assert len(decoded) == 4 * 3
    loop()
    assert len(decoded) == 4 * 3
    shard = files(tmp_path, 3)(0)
    shard.write_bytes(shard.read_bytes()[:-500])
    with pytest.raises(CorruptError, match=r"c/0/0/0: stored bytes are damaged"):
        loop()


def test_what_is_held_stays_below_its_limit():
    held, data = _Recent(1000), np.arange(400, dtype=np.uint8)
    for name in "abc":
        held.put(name, 100, data)
    assert held.get("a", 100, 101) is None  # two of three fit
    assert held.get("b", 100, 500) == (100, pytest.approx(data)) and held.get("b", 99, 500) is None
    held.put("d", 0, data)
    assert held.get("c", 100, 101) is None and held.get("b", 100, 101)  # the longest unused goes
    held.put("b", 0, data[:50])
    held.put("e", 0, data)
    assert held.get("b", 0, 50) and held.get("d", 0, 400) and held.get("e", 0, 400)
    held.put("f", 0, np.zeros(1001, np.uint8))
    assert not any(held.get(name, 0, 1) for name in "abcdef")
