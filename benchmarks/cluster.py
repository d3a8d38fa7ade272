"""The raw lens of a made-up capture by two dask workers of one thread each against one process: the same bytes, in what time.

34 layers of width 640, a vocabulary of 2,048: about 0.1 TFLOP a thousand tokens. Workers and process are warm; tables are
deleted between the rounds. `alone, all threads` is what one process does with the whole machine. `S3`: the lake is in a
bucket (SeaweedFS on the same machine), each worker has a mirror of its own, and the table goes back to the bucket.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))  # workers have the threads that dask gives them

import argparse
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import fsspec
import torch
from actlake.queries.cluster.cluster import Cluster
from actlake.queries.engine.context import Scope
from actlake.queries.makers import ensure
from actlake.store.core.files import hash_files
from actlake.store.core.progress import ERRORS
from actlake.store.exchange.plan import Planner, origin_of
from actlake.store.exchange.transfer import Selection, move
from actlake.store.format.paths import Layout
from actlake.store.remote.opening import open_store
from distributed import Client, LocalCluster
from measure import Row, in_turn, main, median_ratio, medians
from memory import made_up

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from servers import S3, environment  # noqa: E402

TOKENS, VOCAB = 12_000, 2048
REPEATS = 3
URL = "s3://lakes/lake"


def apart(folder: str) -> None:
    """In a worker: a mirror of its own."""
    os.environ["ACTLAKE_CACHE"] = f"{folder}/{os.getpid()}"


def run(tokens: int = TOKENS) -> list[Row]:
    """All rows of this benchmark; stops when the tables differ."""
    ERRORS.quiet = True
    with tempfile.TemporaryDirectory(prefix="actlake-bench-") as folder:
        server = S3(Path(folder) / "s3")
        server.start()
        try:
            with environment(ACTLAKE_CACHE=f"{folder}/mirrors", **server.environment):
                return measure(Path(folder), tokens)
        finally:
            server.stop()


def measure(folder: Path, tokens: int) -> list[Row]:
    """The rows, with data in a folder and a server at hand."""
    every, found = torch.get_num_threads(), dict[str, dict[str, str]]()
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0") as workers,
        Client(workers) as client,
    ):
        made = made_up(folder / "lake", tokens, VOCAB)
        layout, scope = (
            Layout.open(folder / "lake"),
            Scope("bench", {"it": "bench-it"}, {"it": made.streams["it"]}),
        )
        client.run(apart, str(folder))
        fsspec.filesystem("s3").mkdir("lakes")
        move(Planner(origin_of(layout), origin_of(URL), Selection()).plan())
        cluster, tables = Cluster(client), layout.root / "tables"

        def lens(name: str, **options: Any) -> None:
            shutil.rmtree(tables, ignore_errors=True)
            ensure(layout, [("lens", "raw", scope)], **options)
            found[name] = hash_files(tables.rglob("*.parquet"), tables)

        def alone(threads: int) -> None:
            torch.set_num_threads(threads)
            lens(f"alone, {threads}")

        def bucket() -> None:
            for name in open_store(URL).find("tables"):
                open_store(URL).delete(name)
            there = Layout.open(URL)
            ensure(there, [("lens", "raw", scope)], engine=cluster.run)
            found["S3"] = {
                name.removeprefix("tables/"): open_store(URL).hash(name, entry.size or 0)
                for name, entry in open_store(URL).find("tables").items()
            }

        tasks = {
            "S3": bucket,
            "workers": lambda: lens("workers", engine=cluster.run),
            "alone": lambda: alone(1),
            "all threads": lambda: alone(every),
        }
        for task in tasks.values():
            task()
        seconds = in_turn(tasks, REPEATS)
    if not found["S3"] == found["workers"] == found["alone, 1"]:
        raise SystemExit(f"the tables differ: {found}")
    middle = medians(seconds)
    same = "the same bytes" if found["workers"] == found[f"alone, {every}"] else "not the same bytes"
    return [
        Row(
            f"lens of {tokens:,} tokens, two workers, vs one process of one thread",
            middle["workers"],
            middle["workers"] / median_ratio(seconds["workers"], seconds["alone"]),
            "s",
            "<= 0.6",
            "the same bytes",
        ),
        Row(
            f"lens of {tokens:,} tokens on S3, two workers, vs one process of one thread on a disk",
            middle["S3"],
            middle["S3"] / median_ratio(seconds["S3"], seconds["alone"]),
            "s",
            "",
            "the same bytes",
        ),
        Row(
            f"lens of {tokens:,} tokens, two workers, vs one process of {every} threads",
            middle["workers"],
            middle["workers"] / median_ratio(seconds["workers"], seconds["all threads"]),
            "s",
            "",
            same,
        ),
    ]


def options(parser: argparse.ArgumentParser) -> None:
    """How much is read."""
    parser.add_argument("--tokens", type=int, default=TOKENS, help=f"of the capture (default: {TOKENS:,})")


if __name__ == "__main__":
    main("cluster", run, __doc__, options)
