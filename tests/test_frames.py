"""Frames that actlake writes plane by plane: what every reader of Zarr makes of them, and which way a chunk is coded."""

from pathlib import Path

import numpy as np
import pytest
import zarr
from actlake.store.format import frames
from actlake.store.format.chunks import blosc_blocks
from actlake.store.format.frames import SMALLEST, encode_frame, repeats
from actlake.store.format.shards import Grid, statistics, widen
from actlake.store.format.zarr_groups import compressors
from hypothesis import given, settings
from hypothesis import strategies as st
from numcodecs import Blosc

SEED = st.integers(0, 2**32 - 1)


def made(rows: int, width: int, bits: bool, seed: int, copies: int = 1) -> np.ndarray:
    """Normal values as float32 or as bits of bfloat16; each row comes `copies` times."""
    values = np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)
    values = np.tile(values[: -(-rows // copies)], (copies, 1))[:rows]
    return (values.view(np.uint32) >> 16).astype(np.uint16) if bits else values


def decoded(frame: bytes) -> np.ndarray:
    return np.frombuffer(Blosc().decode(frame), np.uint32)


@given(st.integers(1, 300), st.integers(1, 700), st.booleans(), st.integers(1, 9), SEED)
@settings(max_examples=60)
def test_the_stock_decoder_gives_the_same_bits(rows: int, width: int, bits: bool, copies: int, seed: int) -> None:
    chunk = made(rows, width, bits, seed, copies)
    odd = np.random.default_rng(seed).integers(0, chunk.size, 3)
    chunk.reshape(-1)[odd] = (0x7F80, 0xFFC0, 0x8000) if bits else (np.inf, np.nan, -0.0)
    if chunk.size * 4 < SMALLEST:
        with pytest.raises(ValueError, match="expected uint16 or float32, 16384 at least"):
            encode_frame(chunk)
        return
    frame = encode_frame(chunk)
    assert np.array_equal(decoded(frame), widen(chunk).view(np.uint32).reshape(-1))
    assert encode_frame(chunk.copy()) == frame


@pytest.mark.parametrize("bits", [True, False])
def test_random_and_constant_bits(bits: bool) -> None:
    r = np.random.default_rng(1)
    for chunk in (r.integers(0, 256, (100, 64 * (2 if bits else 4)), np.uint8), np.zeros((100, 512), np.uint8)):
        chunk = chunk.view(np.uint16 if bits else np.float32)
        assert np.array_equal(decoded(encode_frame(chunk)), widen(chunk).view(np.uint32).reshape(-1))


def test_some_tokens_of_a_frame() -> None:
    for copies in (1, 4):
        chunk = made(2048, 96, True, 5, copies)
        frame, whole = np.frombuffer(encode_frame(chunk), np.uint8), widen(chunk)
        for start, stop in ((0, 1), (700, 760), (2000, 2048)):
            part, first, size = blosc_blocks(frame, start * 384, stop * 384)
            found = np.frombuffer(Blosc().decode(part), np.uint8)
            assert len(found) == size and first <= start * 384 and stop * 384 <= first + size
            assert found[start * 384 - first :][: (stop - start) * 384].tobytes() == whole[start:stop].tobytes()


def test_rows_that_repeat_cost_little() -> None:
    """Below five per cent of their size of two bytes a value; rows that don't are within 0.97 of their entropy."""
    distinct = made(2048, 576, True, 7)
    prompts = np.concatenate([np.concatenate([distinct[:30], distinct[30 + 20 * k : 50 + 20 * k]]) for k in range(40)])
    assert repeats(prompts) and not repeats(distinct)
    once = np.concatenate([distinct[:30], *(distinct[30 + 20 * k : 50 + 20 * k] for k in range(40))])
    extra = len(encode_frame(prompts)) - len(encode_frame(once))
    assert extra <= 0.05 * 2 * (prompts.size - once.size)
    entropy = 0.0
    for plane in (distinct & 0xFF, distinct >> 8):
        share = np.bincount(plane.reshape(-1)) / distinct.size
        entropy -= (share[share > 0] * np.log2(share[share > 0])).sum() / 8
    assert 0.97 * len(encode_frame(distinct)) <= entropy * distinct.size


def test_blocks_of_equal_length() -> None:
    for words, target in ((1 << 16, 1 << 18), (4099, 1 << 10), (2048 * 576, 1 << 18), (2048 * 576, 1 << 22), (12, 4)):
        count = frames._blocks(words * 4, target)
        assert words % count == 0 and count >= 1


@given(
    SEED,
    st.sampled_from(
        [(0, 1 << 16), (0, 0x7F80), (0x8000, 0xFF80), (0x7F80, 0x8000), (0xFF80, 1 << 16), (0x7000, 0x9000)]
    ),
)
def test_statistics_of_bits_are_those_of_their_floats(seed: int, span: tuple[int, int]) -> None:
    bits = np.random.default_rng(seed).integers(*span, 50).astype(np.uint16)
    with np.errstate(invalid="ignore"):
        assert statistics(bits) == statistics(widen(bits))


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """An array as a capture has it, of bits of bfloat16 with repeated rows in one layer, and its values."""
    path = tmp_path_factory.mktemp("frames")
    bits = np.stack([made(600, 64, True, 3), made(600, 64, True, 4, 5)], 1)
    group = zarr.create_group(path, zarr_format=3)
    array = group.create_array(
        "resid",
        shape=bits.shape,
        dtype="float32",
        chunks=(128, 1, 64),
        shards=(512, 2, 64),
        compressors=compressors(),
        fill_value=np.nan,
    )
    grid = Grid.of(array)
    assert grid
    for shard in range(2):
        file = path / "resid" / "c" / str(shard) / "0" / "0"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"".join(grid.encode(bits[shard * 512 : (shard + 1) * 512]).pieces))
    return path, widen(bits)


def test_zarr_reads_them(stored: tuple[Path, np.ndarray]) -> None:
    path, values = stored
    found = zarr.open_group(path, mode="r")["resid"]
    assert isinstance(found, zarr.Array)
    assert np.array_equal(np.asarray(found[:]).view(np.uint32), values.view(np.uint32))


def test_tensorstore_reads_them(stored: tuple[Path, np.ndarray]) -> None:
    tensorstore = pytest.importorskip("tensorstore")
    path, values = stored
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path / "resid")}}
    found = tensorstore.open(spec, read=True).result().read().result()
    assert np.array_equal(found.view(np.uint32), values.view(np.uint32))


def test_zarrs_reads_them(stored: tuple[Path, np.ndarray]) -> None:
    pytest.importorskip("zarrs")
    path, values = stored
    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
        found = zarr.open_group(path, mode="r")["resid"]
        assert isinstance(found, zarr.Array)
        assert "Zarrs" in type(found._async_array.codec_pipeline).__name__
        assert np.array_equal(np.asarray(found[:]).view(np.uint32), values.view(np.uint32))
