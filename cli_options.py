"""What the commands share: their options, the console, and how tables are printed."""

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import pandas as pd
import typer
from rich.markup import escape
from rich.table import Table

from .store.catalog import Catalog, load_catalog
from .store.files import human_bytes
from .store.layout import Layout
from .store.progress import Terminal

if TYPE_CHECKING:
    from distributed import Client

    from .queries.sweep import Engine

out = Terminal(width=None if sys.stdout.isatty() else 160)  # a pipe has no width to fit

CAPTURE = "PAIR/VARIANT/STREAM, the stream by a unique beginning of its name: pocket/it/native."
LakeOption = Annotated[
    str,
    typer.Option("--lake", help="Folder of the lake, or its name in the catalog.", show_default="catalog's default"),
]
CatalogOption = Annotated[
    Path | None, typer.Option("--catalog", help="catalog.yaml to use instead of ./catalog.yaml or the packaged one.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
DeviceOption = Annotated[
    str, typer.Option("--device", help="auto (cuda, else mps, else cpu), cpu, cuda, cuda:1, mps ...")
]
DeviceMapOption = Annotated[
    str | None,
    typer.Option(
        "--device-map",
        help="auto: spread a model that is larger than one device over all of them (needs the package accelerate).",
    ),
]
StreamOption = Annotated[
    list[str] | None,
    typer.Option("--stream", help="Stream recipe of the catalog; may be given several times. [default: native]"),
]
PromptSetOption = Annotated[
    str | None,
    typer.Option(
        "--prompts",
        help="Prompt set of the catalog or the lake, or a .jsonl/.csv file. [default: pocket for the pair pocket, else core]",
    ),
]
DtypeOption = Annotated[str, typer.Option("--dtype", help="auto (as stored), bfloat16, float16 or float32.")]
BatchOption = Annotated[int, typer.Option("--batch", help="Sequences a forward; part of the recorded plan.", min=1)]
LimitOption = Annotated[int | None, typer.Option("--limit", help="Only the first N prompts.")]
NewTokensOption = Annotated[
    int | None, typer.Option("--max-new-tokens", help="Longest continuation, in place of the stream's.")
]
RankOption = Annotated[
    int | None,
    typer.Option("--rank", help="This process's number among --world. [default: from torchrun's or Slurm's variables]"),
]
WorldOption = Annotated[int | None, typer.Option("--world", help="Processes that share the work.")]
GenerateOption = Annotated[
    bool,
    typer.Option(
        "--generate/--no-generate",
        help="Let models write the texts that a row needs; without, such rows only use what is there.",
    ),
]
SchedulerOption = Annotated[
    str | None,
    typer.Option(
        "--scheduler",
        help="Compute tables on the workers of this dask scheduler: tcp://HOST:8786, or its scheduler file (docs/CLUSTER.md).",
    ),
]
PairOption = Annotated[str | None, typer.Option("--pair", help="Pair, needed when the lake holds several.")]
PairsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--pair", help="Pair, needed when the lake holds several; several pairs are pooled, family by family."
    ),
]
PromptsOption = Annotated[
    str | None, typer.Option("--prompts", help="Prompt set (or start of a stream name), when several were captured.")
]


def open_layout(lake: str, catalog: Path | None) -> tuple[Layout, Catalog]:
    """The lake of this name or folder, and the catalog in use."""
    known = load_catalog(catalog)
    return Layout.open(known.lakes.get(lake, lake)), known


@contextmanager
def client_of(scheduler: str | None) -> "Iterator[Client | None]":
    """A client of the scheduler, if one is named, that is closed in the end."""
    if scheduler is None:
        yield None
        return
    from .queries.scheduler import connect

    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what concerns a user is raised as well
    with connect(scheduler) as client:
        yield client


def engine_of(client: "Client | None") -> "Engine":
    """What computes tables: the workers behind a client, or this process."""
    if client is None:
        from .queries.sweep import run

        return run
    from .queries.distribute import Cluster

    return Cluster(client).run


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """A table as JSON records."""
    return json.loads(frame.to_json(orient="records"))


def print_json(value: Any) -> None:
    """Print one JSON value on one line."""
    print(json.dumps(value, default=str, ensure_ascii=False))


def print_table(frame: pd.DataFrame, as_json: bool = False) -> None:
    """Print a table for people, or as JSON records."""
    if as_json:
        return print_json(records(frame))
    table = Table(*[escape(str(name)) for name in frame.columns], box=None, padding=(0, 2, 0, 0), header_style="bold")
    for row in frame.itertuples(index=False):
        table.add_row(*[escape(_cell(name, value)) for name, value in zip(frame.columns, row, strict=True)])
    out.print(table)


def _cell(name: str, value: Any) -> str:
    if value is None or value is pd.NA or (isinstance(value, float) and pd.isna(value)):
        return "-"
    if name == "bytes":
        return human_bytes(value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
