"""Lakes on servers: push and pull against the plain client, one prompt over HTTP, a layer from S3, opening.

The lake is made up: two captures of a model of 4B's width (2560, chunks of 256 tokens, 6 blocks) with shards of about
50 MB, a few different ones under many numbers. The servers run here: SeaweedFS for S3, a static web server that counts; so the
figures tell what actlake costs beside the plain client, not what a network does. Needs about three times --gb of disk.
"""

import argparse
import gc
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any

import fsspec
import numpy as np
import torch
import xarray as xr
import zarr
from actlake.lake import Lake
from actlake.store.artifacts.streams import Stream, write_stream
from actlake.store.captures.allocate import Template, create_capture
from actlake.store.captures.manifest import seal
from actlake.store.captures.reader import Capture
from actlake.store.captures.writer import encode_row, grid_of, shard_record, write_row
from actlake.store.core.files import json_bytes, write_atomic
from actlake.store.exchange.plan import Planner, origin_of
from actlake.store.exchange.transfer import Selection, move, write_index
from actlake.store.format.paths import Layout
from actlake.store.remote.files import is_shard
from actlake.store.remote.hashes import user_cache
from actlake.store.remote.opening import open_store
from machine import peak_memory, reset_peak_memory
from measure import Row, main, medians
from work import stream_of

sys.path.append(str(Path(__file__).parent.parent / "tests"))
from servers import S3, environment, served  # noqa: E402

LENGTHS = (100, 300, 600)  # tokens of prompts
MADE = 4  # different shard rows of a capture
OPENINGS = 3
MODEL = {"model": "made-pt", "model_sha256": "0" * 64, "dtype": "bfloat16", "batch": 1}  # of no model
NOTHING = float("nan")


# --- a lake ----------------------------------------------------------------------------------------------------------


def stream(tokens: int) -> Stream:
    """Prompts of the three lengths in turn, and one that fills the stream up to so many tokens."""
    sizes, lengths = list[int](), cycle(LENGTHS)
    while tokens - sum(sizes) > 2 * max(LENGTHS):
        sizes.append(next(lengths))
    return stream_of([np.zeros(size, np.int32) for size in (*sizes, tokens - sum(sizes))])


def template_of(width: int, layers: int, rows: int, variant: str = "pt") -> Template:
    """Residuals and MLP outputs of so many full shard rows, as a bfloat16 model gives them."""
    sizes: dict[str, tuple[int, ...]] = {"resid": (layers + 1, width), "mlp_out": (layers, width)}
    provenance = {**MODEL, "model": f"made-{variant}"}
    one = Template(stream(4096), sizes, tuple(range(layers + 1)), tuple(range(layers)), "bfloat16", provenance)
    return replace(one, stream=stream(rows * one.shard_tokens))


def make_capture(layout: Layout, variant: str, template: Template) -> Path:
    """Write and seal a capture whose shard rows are a few made-up ones, each encoded once."""
    write_stream(layout, template.stream)
    path = layout.capture(f"made-{variant}", template.stream.name)
    create_capture(path, template)
    group = zarr.open_group(path, mode="r", use_consolidated=False)
    grids = {name: grid_of(group, name) for name in template.sizes}
    torch.manual_seed(variant == "it")
    encoded = []
    for _ in range(min(MADE, template.n_shards)):
        blocks = {}
        for name, size in template.sizes.items():
            values = torch.randn(template.shard_tokens, *size) * torch.randn(size).exp()
            blocks[name] = values.bfloat16().view(torch.int16).numpy().view(np.uint16)
        encoded.append(encode_row(grids, blocks))
    for shard in range(template.n_shards):
        row = encoded[shard % len(encoded)]
        says = {name: {"min": e.low, "max": e.high, "nonfinite": e.nonfinite} for name, e in row.items()}
        done = {"shard": shard, "files": write_row(path, shard, row), "statistics": says}
        write_atomic(shard_record(path, shard), json_bytes(done))
    seal(path)
    return path


def make_lake(folder: Path, width: int, layers: int, gb: float) -> Layout:
    """A lake of two captures, so many GB as stored."""
    layout = Layout.open(folder, create=True)
    one = template_of(width, layers, 1)
    row = sum(one.bytes_per_token.values()) * one.shard_tokens / 2.9e9  # GB of a shard row, compressed about so much
    rows = max(1, round(gb / 2 / row))
    for variant in ("pt", "it"):
        make_capture(layout, variant, template_of(width, layers, rows, variant))
    return layout


def captures(layout: Layout) -> dict[str, Path]:
    """The lake's captures by variant."""
    return {row.model.removeprefix("made-"): Path(row.path) for row in Lake(layout.root).captures.itertuples()}


# --- moving ----------------------------------------------------------------------------------------------------------


def timed(task: Callable[[], object]) -> float:
    """Seconds that a task takes."""
    gc.collect()  # s3fs closes a forgotten client in the loop that is running, and complains in any but its own
    started = time.perf_counter()
    task()
    return time.perf_counter() - started


def against(plain: Callable[[str], object], ours: Callable[[str], object]) -> tuple[float, float, float]:
    """Seconds of either for both captures, one first for the one, second for the other, and the peak memory of ours."""
    seconds, peak = {plain: 0.0, ours: 0.0}, 0.0
    for variant, order in (("pt", (plain, ours)), ("it", (ours, plain))):
        for task in order:
            reset_peak_memory()
            seconds[task] += timed(partial(task, variant))
            if task is ours:
                peak = max(peak, peak_memory())
    return seconds[plain], seconds[ours], peak


def moving(layout: Layout, url: str, copy: Path) -> list[Row]:
    """Push a lake into a bucket, then, the lake being gone, pull it back; the plain client moves the same objects.

    The plain client is s3fs with its own concurrency; actlake also hashes every file and flushes what it pulls to disk.
    """
    fs, size = fsspec.filesystem("s3"), sum(file.stat().st_size for file in layout.root.rglob("*") if file.is_file())
    names = {variant: path.relative_to(layout.root).as_posix() for variant, path in captures(layout).items()}

    def carry(source: Layout | str, target: str, variant: str) -> None:
        move(Planner(origin_of(source), origin_of(target), Selection(variants=(variant,))).plan())

    def put(variant: str) -> None:
        fs.put(f"{layout.root / names[variant]}/", f"{url}/plain/{names[variant]}/", recursive=True)

    def get(variant: str) -> None:
        fs.get(f"{url}/plain/{names[variant]}/", f"{copy.parent / 'plain' / names[variant]}/", recursive=True)
        shutil.rmtree(copy.parent / "plain")

    rows = []
    pushed = against(put, lambda variant: carry(layout, f"{url}/lake", variant))
    rows.append(moved("push to S3, the plain client beside it", size, *pushed, ">= 0.6"))
    shutil.rmtree(layout.root)
    pulled = against(get, lambda variant: carry(f"{url}/lake", str(copy), variant))
    rows.append(moved("pull from S3, the plain client beside it", size, *pulled, ""))
    fs.rm(f"{url}/plain", recursive=True)
    return rows


def moved(what: str, size: int, plain: float, ours: float, peak: float, target: str) -> Row:
    """A row of MB/s of either."""
    note = f"{size / 1e9:.2f} GB; peak memory {peak / 1e9:.2f} GB"
    return Row(what, size / ours / 1e6, size / plain / 1e6, "MB/s", target, note)


# --- reading ---------------------------------------------------------------------------------------------------------


def prompts(layout: Layout, root: Path, what: str, target: str) -> list[Row]:
    """Bytes and requests that one prompt costs over HTTP, all its residuals and MLP outputs, over its stored bytes.

    Chunks are read whole, since their checksums cover all of it: of n tokens in chunks of C, n - 1 + C on average.
    """
    path, rows = captures(layout)["pt"], []
    manifest = Capture(path).manifest
    shards = {file: entry for file, entry in manifest["files"].items() if is_shard(f"captures/a/b/c.zarr/{file}")}
    stored = sum(entry["bytes"] for entry in shards.values())
    write_index(open_store(layout.root))
    with served(root) as server:
        lake = Lake(f"{server.url}/{layout.root.name}")
        offset = Capture(path).array("offset")[:]
        sizes = np.diff(offset)
        for length in LENGTHS:
            sent, asked = [], []
            for place in np.flatnonzero(sizes == length)[:: max(1, int((sizes == length).sum()) // 24)]:
                # Opened anew: no index of a shard is known from the prompt before.
                ds = lake.dataset("made-pt", path.stem)[["resid", "mlp_out"]]
                server.requests.clear()
                ds.isel(token=slice(int(offset[place]), int(offset[place + 1]))).compute(scheduler="threads")
                sent.append(server.sent)
                asked.append(len(server.requests))
            fair = stored * length / manifest["n_tokens"]
            note = f"{len(sent)} prompts, mean; at most {max(sent) / fair:.2f}; {np.mean(asked):.0f} requests"
            title = f"one prompt of {length} tokens over HTTP, {what}"
            rows.append(Row(title, float(np.mean(sent)) / 1e6, fair / 1e6, "MB", target, note))
    return rows


def reading(url: str, here: Layout) -> list[Row]:
    """One boundary of all tokens: from S3, by plain zarr on s3fs, and from the local disk; MB/s of float32."""
    path = captures(here)["pt"]
    name = path.relative_to(here.root).as_posix()
    there = Lake(f"{url}/lake").dataset("made-pt", path.stem)
    plain, local = xr.open_zarr(f"{url}/lake/{name}"), Lake(here.root).dataset("made-pt", path.stem)
    seconds: dict[str, list[float]] = {"s3": [], "plain": [], "local": []}
    for boundary in range(there.sizes["boundary"]):
        for kind, ds in (("s3", there), ("plain", plain), ("local", local)):
            seconds[kind].append(timed(ds.resid.isel(boundary=boundary).compute))
    size, took = 4 * there.sizes["token"] * there.sizes["d_model"] / 1e6, medians(seconds)
    return [
        Row(f"one boundary from S3 against {words}", size / took["s3"], size / took[kind], "MB/s")
        for kind, words in (("plain", "plain xarray, zarr and s3fs"), ("local", "the local disk"))
    ]


@contextmanager
def counting() -> Iterator[list[str]]:
    """The methods of the requests that S3 clients send meanwhile."""
    from aiobotocore.httpsession import AIOHTTPSession

    send, found = AIOHTTPSession.send, list[str]()

    async def counted(self, request):
        found.append(request.method)
        return await send(self, request)

    AIOHTTPSession.send = counted
    try:
        yield found
    finally:
        AIOHTTPSession.send = send


def opening(kind: str, url: str, requests: list[Any]) -> list[Row]:
    """Seconds and requests (as counted in `requests`) until a lake is open and listed; cold means without a mirror."""
    rows = []
    for state in ("cold", "warm"):
        seconds = list[float]()
        for _ in range(OPENINGS):
            if state == "cold":
                shutil.rmtree(user_cache(), ignore_errors=True)
            requests.clear()
            seconds.append(timed(lambda: Lake(url).captures))
        note = f"two captures; {len(requests)} requests"
        rows.append(Row(f"opening a lake over {kind}, {state} mirror", median(seconds), NOTHING, "s", note=note))
    gc.collect()
    return rows


def run(gb: float) -> list[Row]:
    """All rows of this benchmark."""
    with tempfile.TemporaryDirectory(prefix="actlake-bench-") as name:
        folder = Path(name)
        server = S3(folder / "s3")
        server.start()
        try:
            with environment(ACTLAKE_CACHE=str(folder / "mirrors"), **server.environment):
                fsspec.filesystem("s3").mkdir("lakes")
                open_store("s3://lakes").put("first", b"")  # the first write waits for the server to make its volumes
                layout = make_lake(folder / "made", 2560, 6, gb)
                rows = moving(layout, "s3://lakes", folder / "www" / "lake")
                here = Layout.open(folder / "www" / "lake")
                rows += reading("s3://lakes", here)
                with counting() as requests:
                    rows += opening("S3", "s3://lakes/lake", requests)
                rows += prompts(here, folder / "www", "2560 wide, chunks of 256 tokens", "<= 3")
                small = make_lake(folder / "www" / "small", 192, 6, 0.02)
                rows += prompts(small, folder / "www", "192 wide, chunks of 2048 tokens", "")
                with served(folder / "www") as web:
                    rows += opening("HTTP", f"{web.url}/lake", web.requests)
        finally:
            server.stop()
    return rows


def options(parser: argparse.ArgumentParser) -> None:
    """How much is moved."""
    parser.add_argument("--gb", type=float, default=5, help="GB of the made-up lake, as stored")


if __name__ == "__main__":
    main("sharing", run, __doc__, options)
