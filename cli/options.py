"""What the commands share: their options, each declared once, alone or in groups that a command takes as one parameter."""

import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from ..lake import Lake
from ..page.sample import place_of
from ..store.core.schema import MARKER
from ..store.exchange.transfer import Selection
from ..store.format.paths import Layout, writing
from ..store.remote.store import is_remote

CAPTURE = "MODEL/STREAM or PAIR/ROLE/STREAM, the stream by a unique beginning of its name: pocket-it/native."
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
NamesArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="NAME...",
        help="PAIR (the models it has) or PAIR/ROLE, for instance pocket or pocket/it; a bare pt or it after a pair means its"
        " role.",
    ),
]
DeviceMapOption = Annotated[
    str | None,
    typer.Option(
        "--device-map",
        help="auto: spread a model that is larger than one device over all of them (needs the package accelerate).",
    ),
]
ByLayerOption = Annotated[
    bool,
    typer.Option(
        "--by-layer",
        help="For a model larger than memory: read each block once and take the whole stream through it; the same bytes.",
    ),
]
DtypeOption = Annotated[str, typer.Option("--dtype", help="auto (as stored), bfloat16, float16 or float32.")]
BatchOption = Annotated[
    int,
    typer.Option(
        "--batch", help="Batch size: sequences in a forward. Recorded, since it changes low-order bits.", min=1
    ),
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Say what there would be to do, and stop.")]
PairOption = Annotated[str | None, typer.Option("--pair", help="Pair, needed when the lake holds several.")]
PairsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--pair",
        help="Pair, needed when the lake holds several; BASE..TUNED is any two models. Several pairs are averaged.",
    ),
]
ChainOption = Annotated[
    str | None,
    typer.Option(
        "--chain",
        help="Chain of the catalog, in place of a pair: each model against the first and against the one before.",
    ),
]
SegmentOption = Annotated[
    list[str] | None,
    typer.Option(
        "--segment",
        help="Only tokens of this segment: assistant, thinking, user, system, tool or template; may be given several times.",
    ),
]
PromptsOption = Annotated[
    str | None, typer.Option("--prompts", help="Prompt set (or start of a stream name), when several were captured.")
]
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


CatalogOption = Annotated[
    Path | None, typer.Option("--catalog", help="catalog.yaml to use instead of ./catalog.yaml or the packaged one.")
]


@dataclass(frozen=True)
class Where:
    """Which lake, and which catalog."""

    lake: Annotated[
        str,
        typer.Option(
            "--lake", help="Folder or URL of the lake, or its name in the catalog.", show_default="catalog's default"
        ),
    ] = "default"
    catalog: CatalogOption = None

    @property
    def place(self) -> str:
        """Folder or URL of the lake."""
        return place_of(self.lake, self.catalog)

    def open(self, missing: bool = False) -> Lake:
        """The lake; with `missing`, one that holds nothing where there is none, for what reads only the catalog."""
        place = self.place
        absent = missing and not is_remote(place) and not (Path(place) / MARKER).exists()
        url = Layout(Path(place).absolute()) if absent else place
        return Lake(url, catalog=self.catalog, device=getattr(self, "device", "auto"))

    @contextmanager
    def writing(self) -> Iterator[Lake]:
        """The lake, made if need be; one made here is taken away again when the command is refused before it wrote anything."""
        with writing(self.place) as layout:
            yield Lake(layout, catalog=self.catalog, device=getattr(self, "device", "auto"))


@dataclass(frozen=True)
class Computing(Where):
    """Which lake, and what computes."""

    device: Annotated[
        str, typer.Option("--device", help="auto (cuda, else mps, else cpu), cpu, cuda, cuda:1, mps ...")
    ] = "auto"


@dataclass(frozen=True)
class Workers(Computing):
    """Which lake, and what computes: this process, or the workers of a scheduler."""

    scheduler: Annotated[
        str | None,
        typer.Option(
            "--scheduler",
            help="Compute tables on the workers of this dask scheduler: tcp://HOST:8786, or its scheduler file"
            " (docs/CLUSTER.md in actlake's repository).",
        ),
    ] = None

    @contextmanager
    def opened(self) -> Iterator[Lake]:
        """The lake; a client of the scheduler is closed in the end."""
        if self.scheduler is None:
            yield self.open()
            return
        from ..queries.cluster.scheduler import connect

        logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what concerns a user is raised as well
        lake = self.open()
        with connect(self.scheduler) as client:  # before all that takes longer
            yield lake.on(client)


@dataclass(frozen=True)
class Reading:
    """What a capture reads."""

    streams: Annotated[
        list[str] | None,
        typer.Option("--stream", help="Stream recipe of the catalog; may be given several times. [default: native]"),
    ] = None
    prompts: Annotated[
        str | None,
        typer.Option(
            "--prompts",
            help="Prompt set of the catalog or the lake, or a .jsonl/.csv file. [default: pocket for the pocket models, else"
            " core]",
        ),
    ] = None


@dataclass(frozen=True)
class Tokens:
    """Which prompts are read, and how they become tokens; the fields are parameters of `lake.capture`, `plan` and `generate`."""

    limit: Annotated[int | None, typer.Option("--limit", help="Only the first N prompts.")] = None
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-new-tokens",
            help="Most tokens that a model writes after a prompt. [default: the stream's or condition's]",
        ),
    ] = None
    date: Annotated[
        str | None,
        typer.Option(
            "--date",
            help="Day that chat templates write which name one, as 2025-01-31. [default: the stream's, else 2024-07-26]",
        ),
    ] = None
    control_tokens: Annotated[
        bool,
        typer.Option(
            "--control-tokens", help="Let prompts hold control tokens such as <|im_end|>; else they are refused."
        ),
    ] = False
    thinking: Annotated[
        str | None,
        typer.Option(
            "--thinking",
            help="on or off: tell a chat template whether the model thinks before it answers. [default: the stream's, else off]",
            metavar="on|off",
        ),
    ] = None


@dataclass(frozen=True)
class Ranks:
    """This process among those that share the work."""

    rank: Annotated[
        int | None,
        typer.Option(
            "--rank", help="This process's number among --world. [default: from torchrun's or Slurm's variables]"
        ),
    ] = None
    world: Annotated[int | None, typer.Option("--world", help="Processes that share the work.")] = None


@dataclass(frozen=True)
class Part:
    """Which part of a lake moves."""

    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME]...", help="Only these: MODEL (pocket-it), PAIR (pocket), PAIR/ROLE (pocket/it) or CHAIN."
        ),
    ] = None
    stream: Annotated[
        list[str] | None,
        typer.Option("--stream", help="Only streams whose name begins like this, for instance native."),
    ] = None
    tables: Annotated[
        bool,
        typer.Option("--tables/--no-tables", help="With what was made of captures: tables, probes, directions, texts."),
    ] = True
    with_weights: Annotated[
        bool, typer.Option("--with-weights", help="With models' own files, and so with their licences.")
    ] = False

    @property
    def selection(self) -> Selection:
        """The same for `lake.push`, `pull` and `sync`."""
        from ..capture.streams.names import joined

        return Selection(
            tuple(joined(self.names or [])),
            streams=tuple(self.stream or ()),
            tables=self.tables,
            weights=self.with_weights,
            **self._cut(),
        )

    def _cut(self) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class Cut(Part):
    """The same, with parts of captures."""

    site: Annotated[
        list[str] | None,
        typer.Option(
            "--site",
            help="Of each capture only this variable (resid, mlp_out, topk_logit ...), as a copy of a part.",
        ),
    ] = None
    boundary: Annotated[
        list[int] | None,
        typer.Option(
            "--boundary", help="Only the residual at this boundary, and the outputs of the block that ends there."
        ),
    ] = None
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", help="Only the shard rows that hold the prompt of this id.")
    ] = None
    limit: Annotated[int | None, typer.Option("--limit", help="Only the shard rows of the first N prompts.", min=1)] = (
        None
    )

    def _cut(self) -> dict[str, Any]:
        return {
            "sites": tuple(self.site or ()),
            "boundaries": tuple(self.boundary or ()),
            "prompts": tuple(self.prompt or ()),
            "limit": self.limit,
        }


@dataclass(frozen=True)
class Moving:
    """How a transfer is done and shown."""

    check: Annotated[
        bool,
        typer.Option("--check", help="Hash what is there already, and replace what is damaged. Reads all of it."),
    ] = False
    take: Annotated[
        str | None,
        typer.Option(
            "--take",
            metavar="theirs|mine",
            help="Whose wins where both lakes have other content under one name; the other is kept below kept/.",
        ),
    ] = None
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would move, and how long it takes; move nothing.")
    ] = False
    speed: Annotated[
        float, typer.Option("--speed", help="For the time: what the network carries, MB/s.", min=0.001)
    ] = 50


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """A command for typer: parameters that are groups of options stand for the options that are their fields."""
    groups, parameters = dict[str, Any](), list[inspect.Parameter]()
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        kind = parameter.annotation
        if not is_dataclass(kind):
            parameters.append(parameter.replace(kind=parameter.KEYWORD_ONLY))
            continue
        groups[parameter.name], hints = kind, get_type_hints(kind, include_extras=True)
        parameters += [
            inspect.Parameter(each.name, parameter.KEYWORD_ONLY, default=each.default, annotation=hints[each.name])
            for each in fields(kind)
        ]

    @wraps(command)
    def run(**given: Any) -> None:
        made = {name: kind(**{f.name: given.pop(f.name) for f in fields(kind)}) for name, kind in groups.items()}
        command(**given, **made)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run
