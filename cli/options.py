"""What the commands share: their options, the console, and how tables are printed."""

import json
import logging
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import pandas as pd
import typer
from pandas.api.types import is_float_dtype
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from ..store.core.catalog import Catalog, load_catalog
from ..store.core.files import human_bytes
from ..store.core.progress import Terminal
from ..store.format.paths import Layout

if TYPE_CHECKING:
    from distributed import Client

    from ..queries.engine.passes import Engine

out = Terminal(width=None if sys.stdout.isatty() else 160)  # a pipe has no width to fit

FOLDED = 60  # letters of a cell in one line; longer texts are folded
LISTED = 6  # values of a list that are shown
LINE_ENDS = {ord(end): shown for end, shown in (("\n", "\\n"), ("\r", "\\r"), ("\t", "\\t"))}

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
NamesArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="NAME...",
        help="PAIR (the models it has) or PAIR/ROLE, for instance pocket or pocket/it; a bare pt or it after a pair means its"
        " role.",
    ),
]
VariantOption = Annotated[
    str | None, typer.Option("--variant", help="pt or it: only this model of the pairs named without a role.")
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
BatchOption = Annotated[
    int,
    typer.Option(
        "--batch", help="Batch size: sequences in a forward. Recorded, since it changes low-order bits.", min=1
    ),
]
LimitOption = Annotated[int | None, typer.Option("--limit", help="Only the first N prompts.")]
DateOption = Annotated[
    str | None,
    typer.Option(
        "--date",
        help="Day that chat templates write which name one, as 2025-01-31. [default: the stream's, else 2024-07-26]",
    ),
]
ControlOption = Annotated[
    bool,
    typer.Option("--control-tokens", help="Let prompts hold control tokens such as <|im_end|>; else they are refused."),
]
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
ProbesOption = Annotated[
    bool,
    typer.Option(
        "--probes/--no-probes",
        help="Train probes of the tuned lens that a row needs, after all else; without, rows do without the tuned lens, or are"
        " left out where they are about it.",
    ),
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Say what there would be to do, and stop.")]
SchedulerOption = Annotated[
    str | None,
    typer.Option(
        "--scheduler",
        help="Compute tables on the workers of this dask scheduler: tcp://HOST:8786, or its scheduler file"
        " (docs/CLUSTER.md in actlake's repository).",
    ),
]
PairOption = Annotated[str | None, typer.Option("--pair", help="Pair, needed when the lake holds several.")]
PairsOption = Annotated[
    list[str] | None,
    typer.Option("--pair", help="Pair, needed when the lake holds several; several pairs are averaged."),
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
    from ..queries.cluster.scheduler import connect

    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what concerns a user is raised as well
    with connect(scheduler) as client:
        yield client


def engine_of(client: "Client | None") -> "Engine":
    """What computes tables: the workers behind a client, or this process."""
    if client is None:
        from ..queries.engine.passes import run

        return run
    from ..queries.cluster.cluster import Cluster

    return Cluster(client).run


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """A table as JSON records."""
    return json.loads(frame.to_json(orient="records"))


def print_json(value: Any) -> None:
    """Print one JSON value on one line."""
    print(json.dumps(value, default=str, ensure_ascii=False))


def print_table(frame: pd.DataFrame, as_json: bool = False) -> None:
    """Print a table for people, or as JSON records.

    Nothing is cut: a table that is wider than the terminal runs on, long texts are folded, lists are shortened.
    """
    if as_json:
        return print_json(records(frame))
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    columns = [_column(str(name), frame.iloc[:, place]) for place, name in enumerate(frame.columns)]
    for name, cells in zip(frame.columns, columns, strict=True):
        long = max(map(len, cells), default=0) > FOLDED
        table.add_column(escape(str(name)), no_wrap=not long, max_width=FOLDED if long else None, overflow="fold")
    for row in zip(*columns, strict=True):
        table.add_row(*map(escape, row))
    width = Measurement.get(out, out.options.update(max_width=100_000), table).maximum
    Terminal(width=max(width, out.width)).print(table, crop=False, no_wrap=True)


def _column(name: str, values: pd.Series) -> list[str]:
    """The cells of a column as text; numbers that are all whole have no decimal point."""
    whole = is_float_dtype(values) and bool(((values.dropna() % 1) == 0).all())
    return [_cell(name, value, whole) for value in values]


def _cell(name: str, value: Any, whole: bool) -> str:
    if isinstance(value, list | tuple | np.ndarray):
        shown = ", ".join(_cell(name, each, False) for each in value[:LISTED])
        return f"[{shown}]" if len(value) <= LISTED else f"[{shown} ... {len(value)} in all]"
    if value is None or value is pd.NA or (isinstance(value, float) and pd.isna(value)):
        return "-"
    if name == "bytes":
        return human_bytes(value)
    if isinstance(value, float) and math.isfinite(value) and (whole or abs(value) >= 1e4):
        return f"{value:.0f}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value).translate(LINE_ENDS) if isinstance(value, str) else str(value)
