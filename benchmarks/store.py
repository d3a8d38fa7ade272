"""The store against its limits: compression against entropy, writing against encoding, reads against decoding.

The activations are real ones: the embedded pocket pair in bfloat16 on the project's prompts. Compression is held
against the plug-in entropy of the bfloat16 bits (sign + exponent + mantissa, as if all values of a layer were drawn
independently), speed against the codec alone on the same chunks, in memory, in one thread and in two.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import zarr
from actlake.capture.streams.capture_pair import capture_pair
from actlake.capture.streams.prompts import read_prompts
from actlake.store.artifacts.streams import Stream, read_stream
from actlake.store.captures.allocate import Template, create_capture
from actlake.store.captures.manifest import seal
from actlake.store.captures.reader import Capture
from actlake.store.captures.writer import ShardWriter, encode_row, grid_of, write_row
from actlake.store.core.catalog import ProfileSpec, StreamSpec, load_catalog
from actlake.store.format.paths import Layout
from codec import CODEC, as_captured, encode, single_threaded_blosc, threaded, widened
from measure import Row, in_turn, main, median_ratio, medians
from work import stream_of

CATALOG = Path(__file__).parent.parent / "catalog.yaml"
SITES = ("resid", "mlp_out", "attn_out")
REPEATS = 5
CHUNK_OVERHEAD = 20  # bytes: a chunk's checksum and its entry in the shard's index
Blocks = list[dict[str, np.ndarray]]


def capture_pocket(layout: Layout) -> list[Capture]:
    """Capture both pocket models on the larger prompt set, without continuations."""
    catalog = load_catalog(CATALOG)
    prompts = read_prompts(catalog.prompt_path("core"), "core")
    plain = StreamSpec("plain", "native", "none", 0)
    profile = ProfileSpec("bench", SITES, "none", "auto", None)
    return [Capture(result.path) for result in capture_pair(layout, catalog.pair("pocket"), [plain], prompts, profile)]


# --- compression -----------------------------------------------------------------------------------------------------


def entropy(values: np.ndarray) -> float:
    """Plug-in entropy in bits of small non-negative integers."""
    count = np.bincount(values)
    share = count[count > 0] / values.size
    return float(-(share * np.log2(share)).sum())


def bit_entropy(bits: np.ndarray) -> float:
    """Bits a value takes when the sign, exponent and mantissa of bfloat16 are coded independently: s + e + m."""
    flat = np.ascontiguousarray(bits).ravel()
    return entropy(flat >> 15) + entropy((flat >> 7) & 0xFF) + entropy(flat & 0x7F)


def compression(capture: Capture, name: str) -> list[Row]:
    """A site's stored bytes against the entropy limit: with every row of a layer kept once, and as it is on disk.

    Equal rows (a prompt's first tokens under one template, token embeddings at boundary 0) cost the codec nearly nothing
    and would lift it over any limit for independent values; so the row with the target counts distinct rows only. The
    entropies are taken within each layer, since a codec that sees one layer at a time can adapt to it.
    """
    array = capture.array(name)
    tokens, values = array.array.chunks[0], array[:]
    raw = coded = ideal = ideal_all = 0.0
    for layer in range(values.shape[1]):
        rows = np.ascontiguousarray(values[:, layer])
        ideal_all += bit_entropy(rows.view(np.uint32) >> 16) / 8 * rows.size
        rows = rows[np.sort(np.unique(rows.view(f"V{rows.shape[1] * 4}"), return_index=True)[1])]
        ideal += bit_entropy(rows.view(np.uint32) >> 16) / 8 * rows.size
        raw += 2 * rows.size
        for start in range(0, len(rows), tokens):
            coded += len(encode(as_captured(rows[start : start + tokens]))) + CHUNK_OVERHEAD
    files = capture.manifest["files"].items()
    stored = sum(entry["bytes"] for file, entry in files if file.startswith(f"{name}/c/"))
    what = f"compression of {name}, {capture.manifest['provenance']['model']}"
    return [
        Row(f"{what}, distinct rows", raw / coded, raw / ideal, "x", ">= 0.97"),
        Row(f"{what}, as stored", 2 * values.size / stored, 2 * values.size / ideal_all, "x"),
    ]


# --- speed -----------------------------------------------------------------------------------------------------------


def read_blocks(capture: Capture, names: Sequence[str] = SITES) -> Blocks:
    """The shard rows of a capture, in memory."""
    size, count = capture.manifest["shard_tokens"], capture.manifest["n_shards"]
    return [{name: capture.array(name)[s * size : (s + 1) * size] for name in names} for s in range(count)]


def cut_chunks(capture: Capture, blocks: Blocks) -> dict[str, list[np.ndarray]]:
    """The inner chunks that the store encodes, site by site, contiguous; the last ones shorter, as it pads them."""
    chunks: dict[str, list[np.ndarray]] = {}
    for name in blocks[0]:
        tokens = capture.array(name).array.chunks[0]
        chunks[name] = [
            np.ascontiguousarray(block[name][start : start + tokens, layer])
            for block in blocks
            for layer in range(block[name].shape[1])
            for start in range(0, len(block[name]), tokens)
        ]
    return chunks


def template_of(capture: Capture, stream: Stream) -> Template:
    """A template that makes the same arrays again."""
    record = capture.manifest
    return Template(
        stream=stream,
        sizes={name: tuple(record["sizes"][name]) for name in SITES},
        boundaries=tuple(record["boundaries"]),
        layers=tuple(record["layers"]),
        source_dtype=record["source_dtype"],
        provenance=record["provenance"],
        shard=record["shard_tokens"],
    )


def write_speed(capture: Capture, stream: Stream, blocks: Blocks, folder: Path) -> list[Row]:
    """Committing shard rows (encode, write, fsync, hash, range) against encoding the same chunks."""
    template = template_of(capture, stream)
    create_capture(folder, template)
    group = zarr.open_group(folder, mode="r", use_consolidated=False)
    grids = {name: grid_of(group, name) for name in template.sizes}
    chunks = [as_captured(chunk) for part in cut_chunks(capture, blocks).values() for chunk in part]

    def write() -> None:
        for shard, block in enumerate(blocks):
            write_row(folder, shard, encode_row(grids, block))

    tasks = {"write": write, "one": threaded(encode, chunks, 1), "two": threaded(encode, chunks, 2)}
    return speed_rows("write, all sites", tasks, sum(widened(chunk).nbytes for chunk in chunks), ">= 0.35")


def encode_speed(what: str, chunks: list[np.ndarray]) -> list[Row]:
    """Frames by planes against the stock codec on the same bits of bfloat16 [n, d] a chunk, which it widens first."""
    size = sum(chunk.nbytes for chunk in chunks) / 1e9
    ways = {"planes": encode, "stock": lambda chunk: bytes(CODEC.encode(widened(chunk)))}
    tasks = {f"{way} {n}": threaded(make, chunks, n) for way, make in ways.items() for n in (1, 2)}
    seconds = in_turn(tasks, REPEATS)
    rate = {task: size / value for task, value in medians(seconds).items()}
    share = {n: median_ratio(seconds[f"stock {n}"], seconds[f"planes {n}"]) for n in (1, 2)}
    bytes_of = {way: sum(len(make(chunk)) for chunk in chunks) for way, make in ways.items()}
    return [
        Row(f"encode {what}, two threads, against 2 GB/s", rate["planes 2"], 2.0, "GB/s", ">= 1"),
        *(
            Row(
                f"encode {what}, stock codec on {n} thread{'s' * (n > 1)}",
                rate[f"planes {n}"],
                rate[f"planes {n}"] / share[n],
                "GB/s",
                ">= 1.5",
            )
            for n in (1, 2)
        ),
        Row(
            f"bytes of {what}, against the stock codec", bytes_of["planes"] / 1e6, bytes_of["stock"] / 1e6, "MB", "<= 1"
        ),
    ]


def repeated_prefixes(width: int = 576, prefix: int = 30, own: int = 20, prompts: int = 40) -> Row:
    """What the rows of a prefix that all prompts of a chunk share add to its bytes, against their size."""
    rows = np.random.default_rng(0).standard_normal((prefix + own * prompts, width)).astype(np.float32)
    bits = (rows.view(np.uint32) >> 16).astype(np.uint16)
    parts = [bits[prefix + own * k : prefix + own * (k + 1)] for k in range(prompts)]
    whole = np.concatenate([part for own_rows in parts for part in (bits[:prefix], own_rows)])
    extra = len(encode(whole)) - len(encode(np.concatenate([bits[:prefix], *parts])))
    note = f"{prompts} prompts of {prefix} shared tokens and {own} of their own, d = {width}"
    return Row(
        "bytes of repeated prefixes, against their size",
        extra / 1e6,
        (whole.nbytes - bits.nbytes) / 1e6,
        "MB",
        "<= 0.05",
        note,
    )


def read_speed(capture: Capture, blocks: Blocks, offset: np.ndarray, what: str) -> list[Row]:
    """Reading `resid` one boundary at a time, all tokens, and prompt by prompt, all boundaries, against decoding."""
    array = capture.array("resid")
    chunks = cut_chunks(capture, blocks)["resid"]
    encoded = [encode(as_captured(chunk)) for chunk in chunks]

    def boundaries() -> None:
        for boundary in range(array.shape[1]):
            array[:, boundary]

    def prompts() -> None:
        for start, stop in pairwise(offset.tolist()):
            array[start:stop]

    decode = {"one": threaded(CODEC.decode, encoded, 1), "two": threaded(CODEC.decode, encoded, 2)}
    size = sum(chunk.nbytes for chunk in chunks)
    about = (
        f"{what}: {len(offset) - 1} prompts of {int(np.diff(offset).mean())} tokens, chunks of {array.array.chunks[0]}"
    )
    rows = speed_rows(f"read, one boundary at a time, {what}", {"read": boundaries, **decode}, size, ">= 0.4")
    found = speed_rows(f"read, one prompt at a time, {what}", {"read": prompts, **decode}, size, "")
    return rows + [replace(row, note=about) for row in found[:1]]


def synthetic(layout: Layout, width: int, layers: int, prompts: int) -> tuple[Capture, np.ndarray]:
    """A capture of `resid` alone with made-up bfloat16 values of SmolLM2-135M's shape, and the offsets of its prompts."""
    rng = np.random.default_rng(0)
    stream = stream_of([np.zeros(size, np.int32) for size in rng.integers(40, 161, prompts)])
    shape = (layers + 1, width)
    made = {"model": "synthetic-pt", "model_sha256": "made up", "dtype": "bfloat16", "batch": 1}
    template = Template(stream, {"resid": shape}, tuple(range(layers + 1)), tuple(range(layers)), "bfloat16", made)
    path = layout.capture("synthetic-pt", stream.name)
    create_capture(path, template)
    with ShardWriter(path, template) as writer:
        for shard in range(template.n_shards):
            tokens = min(template.shard_tokens, stream.n_tokens - shard * template.shard_tokens)
            values = torch.randn(shape[0], tokens, width) * torch.randn(shape[0], 1, width).exp()
            bits = values.bfloat16().view(torch.int16).numpy().view(np.uint16)
            writer.put(shard, {"resid": bits.swapaxes(0, 1)})
    seal(path)
    return Capture(path), stream.offset


def speed_rows(what: str, tasks: Mapping[str, Callable[[], object]], size: int, target: str) -> list[Row]:
    """Two rows, MB/s of float32: the store against the codec on two threads (with the target) and on one."""
    for task in tasks.values():
        task()
    seconds = in_turn(tasks, REPEATS)
    store = next(iter(tasks))
    rate = size / 1e6 / medians(seconds)[store]
    rows = []
    for threads, bound in (("two", target), ("one", "")):
        share = median_ratio(seconds[threads], seconds[store])
        rows.append(
            Row(f"{what}, codec on {threads} thread{'s' * (threads == 'two')}", rate, rate / share, "MB/s", bound)
        )
    return rows


def run() -> list[Row]:
    """All rows of this benchmark."""
    with tempfile.TemporaryDirectory(prefix="actlake-bench-") as folder, single_threaded_blosc():
        layout = Layout.open(Path(folder) / "lake", create=True)
        captures = capture_pocket(layout)
        rows = [row for capture in captures for name in SITES for row in compression(capture, name)]
        blocks, stream = read_blocks(captures[0]), read_stream(layout, captures[0].manifest["stream"])
        rows += write_speed(captures[0], stream, blocks, Path(folder) / "copy.zarr")
        rows += read_speed(captures[0], blocks, stream.offset, "pocket")
        rows += encode_speed(
            "pocket", [as_captured(chunk) for part in cut_chunks(captures[0], blocks).values() for chunk in part]
        )
        made, offset = synthetic(layout, 576, 30, 80)
        large = cut_chunks(made, read_blocks(made, ("resid",)))["resid"]
        rows += [*encode_speed("30 layers of 576", [as_captured(chunk) for chunk in large]), repeated_prefixes()]
        return rows + read_speed(made, read_blocks(made, ("resid",)), offset, "30 layers of 576")


if __name__ == "__main__":
    main("store", run)
