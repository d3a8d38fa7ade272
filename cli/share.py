"""Commands that move lakes, or parts of them, between places: push, pull, sync, index."""

from contextlib import suppress
from datetime import timedelta
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from ..store.core.catalog import load_catalog
from ..store.core.errors import LakeError
from ..store.core.files import human_bytes
from ..store.exchange.plan import Planner, origin_of
from ..store.exchange.selection import Plan, Selection
from ..store.exchange.transfer import move, note_source, write_index
from ..store.remote.store import is_remote
from .names import models_named
from .options import CatalogOption, JsonOption, LakeOption, open_layout, out, print_json

sharing = typer.Typer()

OtherLake = Annotated[
    str, typer.Argument(metavar="URL", help="The other lake: a name of the catalog, a folder or a URL.")
]
MoveNames = Annotated[
    list[str] | None,
    typer.Argument(metavar="[NAME]...", help="Only these: PAIR or PAIR/ROLE, for instance pocket or pocket/it."),
]
PairsOption = Annotated[list[str] | None, typer.Option("--pair", help="Only this pair; may be given several times.")]
VariantsOption = Annotated[list[str] | None, typer.Option("--variant", help="Only pt or only it.")]
StreamsOption = Annotated[
    list[str] | None, typer.Option("--stream", help="Only streams whose name begins like this, for instance native.")
]
SitesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--site", help="Of each capture only this variable (resid, mlp_out, topk_logit ...), as a copy of a part."
    ),
]
BoundariesOption = Annotated[
    list[int] | None,
    typer.Option(
        "--boundary", help="Only the residual at this boundary, and the outputs of the block that ends there."
    ),
]
PromptsOption = Annotated[
    list[str] | None, typer.Option("--prompt", help="Only the shard rows that hold the prompt of this id.")
]
FirstOption = Annotated[int | None, typer.Option("--limit", help="Only the shard rows of the first N prompts.", min=1)]
TablesOption = Annotated[
    bool,
    typer.Option("--tables/--no-tables", help="With what was made of captures: tables, probes, directions, texts."),
]
WeightsOption = Annotated[
    bool, typer.Option("--with-weights", help="With models' own files, and so with their licences.")
]
CheckOption = Annotated[
    bool, typer.Option("--check", help="Hash what is there already, and replace what is damaged. Reads all of it.")
]
DryOption = Annotated[bool, typer.Option("--dry-run", help="Say what would move, and how long it takes; move nothing.")]
SpeedOption = Annotated[float, typer.Option("--speed", help="For the time: what the network carries, MB/s.", min=0.001)]


@sharing.command()
def push(
    url: OtherLake,
    names: MoveNames = None,
    pair: PairsOption = None,
    variant: VariantsOption = None,
    stream: StreamsOption = None,
    site: SitesOption = None,
    boundary: BoundariesOption = None,
    prompt: PromptsOption = None,
    limit: FirstOption = None,
    tables: TablesOption = True,
    with_weights: WeightsOption = False,
    check: CheckOption = False,
    dry_run: DryOption = False,
    speed: SpeedOption = 50,
    lake: LakeOption = "default",
    catalog: CatalogOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy this lake, or a part of it, to another place: only what is missing there moves, checked by its hashes.

    Interrupted? The same command goes on. A part of captures (--site, --boundary, --prompt, --limit) makes a valid lake that
    says what it lacks; a later push or pull adds to it.
    """
    layout, known = open_layout(lake, catalog)
    wish = _wish(names, pair, variant, stream, site, boundary, prompt, limit, tables, with_weights)
    plan = Planner(origin_of(layout), origin_of(known.lakes.get(url, url)), wish, check).plan()
    _carry_out([plan], dry_run, speed, as_json)


@sharing.command()
def pull(
    url: OtherLake,
    names: MoveNames = None,
    pair: PairsOption = None,
    variant: VariantsOption = None,
    stream: StreamsOption = None,
    site: SitesOption = None,
    boundary: BoundariesOption = None,
    prompt: PromptsOption = None,
    limit: FirstOption = None,
    tables: TablesOption = True,
    with_weights: WeightsOption = False,
    check: CheckOption = False,
    dry_run: DryOption = False,
    speed: SpeedOption = 50,
    lake: LakeOption = "default",
    catalog: CatalogOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy another lake, or a part of it, into this one (made if need be): only what is missing here moves, hashes checked.

    Interrupted? The same command goes on. A part of captures (--site, --boundary, --prompt, --limit) makes a valid lake that
    says what it lacks; a later pull adds to it.
    """
    known = load_catalog(catalog)
    wish = _wish(names, pair, variant, stream, site, boundary, prompt, limit, tables, with_weights)
    plan = Planner(origin_of(known.lakes.get(url, url)), origin_of(known.lakes.get(lake, lake)), wish, check).plan()
    _carry_out([plan], dry_run, speed, as_json)
    if not dry_run:
        note_source(plan)


@sharing.command()
def sync(
    url: OtherLake,
    names: MoveNames = None,
    pair: PairsOption = None,
    variant: VariantsOption = None,
    stream: StreamsOption = None,
    tables: TablesOption = True,
    with_weights: WeightsOption = False,
    check: CheckOption = False,
    dry_run: DryOption = False,
    speed: SpeedOption = 50,
    lake: LakeOption = "default",
    catalog: CatalogOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give this lake and another one what either lacks of the other: pull, then push."""
    layout, known = open_layout(lake, catalog)
    here, there = origin_of(layout), origin_of(known.lakes.get(url, url))
    wish = _wish(names, pair, variant, stream, None, None, None, None, tables, with_weights)
    plans = [Planner(there, here, wish, check).plan(), Planner(here, there, wish).plan()]
    _carry_out(plans, dry_run, speed, as_json)


@sharing.command()
def index(lake: LakeOption = "default", catalog: CatalogOption = None) -> None:
    """Write files.json, which names all files of a lake: with it any web server can hand out the lake, read-only.

    Run it again when the lake has changed; `push` does so by itself where there is one.
    """
    place = origin_of(open_layout(lake, catalog)[0])
    out.print(f"{place}/files.json: {write_index(place):,} files", highlight=False, soft_wrap=True)


@sharing.command()
def serve(
    lake: Annotated[
        str, typer.Argument(metavar="LAKE", help="Folder of the lake, or its name in the catalog.", show_default=False)
    ] = "default",
    port: Annotated[int, typer.Option(help="Port to listen on; 0: any that is free.", min=0, max=65535)] = 8080,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in, all of them.")
    ] = "127.0.0.1",
    catalog: CatalogOption = None,
) -> None:
    """Hand out a lake over http, read-only, with the parts of files that readers ask for; Ctrl-C ends it.

    On another machine `actlake ls --lake http://HOST:8080` and `xarray.open_zarr("http://HOST:8080/captures/...")` read it.
    """
    from ..store.remote.serve import LakeServer

    layout = open_layout(lake, catalog)[0]
    if is_remote(layout.address):
        raise LakeError(f"{layout}: is served already; `actlake serve` hands out a lake in a folder")
    try:
        server = LakeServer(layout.root, host, port)
    except (OSError, OverflowError) as error:
        raise LakeError(f"{host}:{port}: can't listen there ({error}); choose another --port or --host") from error
    out.print(f"{layout} is at {server.url} (read-only; Ctrl-C ends it)", highlight=False, soft_wrap=True)
    with server, suppress(KeyboardInterrupt):
        server.serve_forever()


def _wish(
    names: list[str] | None,
    pair: list[str] | None,
    variant: list[str] | None,
    stream: list[str] | None,
    site: list[str] | None,
    boundary: list[int] | None,
    prompt: list[str] | None,
    limit: int | None,
    tables: bool,
    weights: bool,
) -> Selection:
    if names and pair:
        raise LakeError("name pairs after the URL or with --pair, not both")
    return Selection(
        tuple(pair or ()),
        tuple(variant or ()),
        tuple(stream or ()),
        tuple(site or ()),
        tuple(boundary or ()),
        tuple(prompt or ()),
        limit,
        tables,
        weights,
        tuple(models_named(names or []).items()),
    )


def _carry_out(plans: list[Plan], dry_run: bool, speed: float, as_json: bool) -> None:
    """Show what will move, then move it."""
    for plan in plans:
        if not as_json:
            _show(plan, speed)
        if not dry_run:
            move(plan)
    if as_json:
        print_json(
            [{"from": str(p.source), "to": str(p.target), "moved": not dry_run, "units": p.rows()} for p in plans]
        )
    elif not dry_run and any(plan.bytes for plan in plans):
        out.print(f"moved {human_bytes(sum(plan.bytes for plan in plans))}", highlight=False)


def _show(plan: Plan, speed: float) -> None:
    out.print(escape(f"{plan.source} -> {plan.target}"), highlight=False, soft_wrap=True)
    table = Table(
        "", "parts", "files to move", "to move", "there already", box=None, padding=(0, 2, 0, 0), header_style="bold"
    )
    for row in (row for row in plan.rows() if row["files"] or row["there"]):
        sizes = (human_bytes(row["bytes"]), human_bytes(row["there"]))
        table.add_row(row["what"], str(row["units"]), f"{row['files']:,}", *sizes)
    out.print(table)
    for note in dict.fromkeys(plan.notes):
        out.print(f"  {escape(note)}", highlight=False, soft_wrap=True)
    if not plan.todo:
        out.print("nothing to move: all of it is there", highlight=False)
        return
    took = timedelta(seconds=round(plan.bytes / speed / 1e6))
    out.print(f"{human_bytes(plan.bytes)} to move, {took} at {speed:g} MB/s (--speed)", highlight=False)
