"""Commands that look at a lake, check it, and move it between places: ls, show, verify, gc, cite, push, pull ...; explore."""

import webbrowser
from contextlib import closing, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from ..page.share import pull_lake
from ..store.core.catalog import load_catalog
from ..store.core.errors import LakeError
from ..store.core.files import human_bytes
from ..store.core.progress import Estimate
from ..store.exchange.plan import origin_of
from ..store.exchange.transfer import Plan
from .options import (
    CAPTURE,
    CatalogOption,
    Computing,
    Cut,
    DeviceMapOption,
    DryRunOption,
    JsonOption,
    Moving,
    PairOption,
    Part,
    Where,
    grouped,
)
from .printing import grid, line, out, print_json, print_table

LISTINGS = ("captures", "models", "streams", "prompts", "lenses", "texts")
sharing = typer.Typer()

OtherLake = Annotated[
    str, typer.Argument(metavar="URL", help="The other lake: a name of the catalog, a folder or a URL.")
]
CaptureArgument = Annotated[str, typer.Argument(help=CAPTURE)]


@sharing.command(epilog="Example: `actlake ls models`")
@grouped
def ls(
    what: Annotated[str, typer.Argument(help=f"What to list: {', '.join(LISTINGS)}.")] = "captures",
    stale: Annotated[
        bool,
        typer.Option("--stale", help="Table files that are never read any more, and why; `actlake gc` removes them."),
    ] = False,
    where: Where = Where(),  # noqa: B008 (frozen)
    as_json: JsonOption = False,
) -> None:
    """What the lake holds: every capture with its tokens and bytes; or its models, streams, prompts, lenses, texts."""
    if what not in LISTINGS:
        raise typer.BadParameter(f"{what!r}: expected one of {', '.join(LISTINGS)}")
    lake = where.open()
    found = lake.stale() if stale else getattr(lake, what)
    table = found() if callable(found) else found
    print_table(table if as_json else table.drop(columns="path", errors="ignore"), as_json)


@sharing.command(epilog="Example: `actlake show pocket/it/native`")
@grouped
def show(capture: CaptureArgument, where: Where, as_json: JsonOption = False) -> None:
    """One capture: its arrays and where it comes from."""
    from ..store.captures.manifest import capture_warning
    from ..store.captures.reader import split_capture

    lake = where.open()
    record = lake.describe(capture)
    if as_json:
        return print_json(record)
    line(lake.dataset(*split_capture(capture)))
    for key in ("record_sha256", "capture_sha256", "bytes", "n_shards", "shard_tokens", "noise_floor"):
        out.print(f"{key:15} {record.get(key)}", highlight=False)
    if warning := record and capture_warning(record):
        line(f"warning: {warning}", style="yellow")


@sharing.command(epilog="Example: `actlake verify --reforward 8`")
@grouped
def verify(
    where: Computing,
    capture: Annotated[str | None, typer.Argument(help=CAPTURE + " Every sealed capture when left out.")] = None,
    reforward: Annotated[int, typer.Option(help="Run N prompts again and compare.", min=0)] = 0,
    pair: PairOption = None,
    device_map: DeviceMapOption = None,
    as_json: JsonOption = False,
) -> None:
    """Re-hash every shard, check counts, finiteness and the zero low halves of widened bfloat16.

    Exit code 1 when something is wrong.
    """
    reports = where.open().verify(capture, pair, reforward=reforward, device_map=device_map)
    if as_json:
        print_json([vars(report) | {"ok": report.ok} for report in reports])
    for report in [] if as_json else reports:
        state = "[green]good[/]" if report.ok else "[red]DAMAGED[/]"
        size = f"{report.files} files, {human_bytes(report.bytes)}"
        out.print(f"{state}  {report.capture}: {size}{report.reforward}", highlight=False, soft_wrap=True)
        for problem in report.problems:
            line(f"  {problem}")
    if not all(report.ok for report in reports):
        raise typer.Exit(1)


@sharing.command(epilog="Example: `actlake gc --dry-run`")
@grouped
def gc(
    where: Where,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be removed.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove table files that are never read any more: made by another version, or of a capture that was replaced."""
    found = where.open().gc(dry_run)
    print_table(found, as_json)
    if not as_json:
        line(f"{len(found)} files, {human_bytes(int(found['bytes'].sum()))}{', not removed (--dry-run)' * dry_run}")


@sharing.command(epilog="Example: `actlake cite pocket/it/native`")
@grouped
def cite(
    capture: Annotated[str, typer.Argument(help=CAPTURE + " Or a whole reference, to check it.")],
    where: Where,
    as_json: JsonOption = False,
) -> None:
    """An immutable reference to a sealed capture, and the model, stream, prompts and versions behind it."""
    from ..store.captures.verify import citation_lines

    found = where.open().cite(capture)
    if as_json:
        return print_json(found)
    for name, value in citation_lines(found):
        line(f"{name:10} {value}")


@sharing.command(epilog="Example: `actlake export pocket/it/native npy residuals --boundary 4`")
@grouped
def export(
    capture: CaptureArgument,
    format: Annotated[str, typer.Argument(help="safetensors, npy, parquet, arrow or netcdf.")],
    out_place: Annotated[Path, typer.Argument(metavar="OUT", help="A file or folder that is not there yet.")],
    where: Where,
    site: Annotated[
        list[str] | None, typer.Option(help="Only this site (resid, mlp_out ...); may be repeated.")
    ] = None,
    boundary: Annotated[list[int] | None, typer.Option(help="Only this boundary; may be repeated.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N prompts.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a capture, or a part of it, in a format of other tools; `actlake import` reads all but netcdf back."""
    show = None if as_json else lambda estimate: line(str(estimate))
    made = where.open().export(
        capture, format, out_place, sites=site or (), boundaries=boundary or (), limit=limit, show=show
    )
    if as_json:
        return print_json({"path": str(made)})
    line(f"{made}: written")


@sharing.command(epilog="Example: `actlake push s3://bucket/lake pocket --dry-run`")
@grouped
def push(url: OtherLake, part: Cut, moving: Moving, where: Where, as_json: JsonOption = False) -> None:
    """Copy this lake, or a part of it, to another place: only what is missing there moves, checked by its hashes.

    Interrupted? Run the same command again. A part of captures (--site, --boundary, --prompt, --limit) makes a valid lake that
    says what it lacks; a later push or pull adds to it.
    """
    plan = where.open().push(url, part.selection, **_options(moving, as_json))
    _moved([plan], moving, as_json)


@sharing.command(epilog="Example: `actlake pull s3://bucket/lake pocket/it --lake part --site resid --limit 100`")
@grouped
def pull(url: OtherLake, part: Cut, moving: Moving, where: Where, as_json: JsonOption = False) -> None:
    """Copy another lake, or a part of it, into this one (made if need be): only what is missing here moves, hashes checked.

    Interrupted? Run the same command again. A part of captures (--site, --boundary, --prompt, --limit) makes a valid lake that
    says what it lacks; a later pull adds to it.
    """
    there, here = origin_of(load_catalog(where.catalog).lakes.get(url, url)), origin_of(where.place)
    plan = pull_lake(there, here, part.selection, **_options(moving, as_json))
    _moved([plan], moving, as_json)


@sharing.command(epilog="Example: `actlake sync s3://bucket/lake`")
@grouped
def sync(url: OtherLake, part: Part, moving: Moving, where: Where, as_json: JsonOption = False) -> None:
    """Give this lake and another one what either lacks of the other: pull, then push."""
    plans = where.open().sync(url, part.selection, **_options(moving, as_json))
    _moved(plans, moving, as_json)


@sharing.command(epilog="Example: `actlake index --lake /srv/www/lake`")
@grouped
def index(where: Where, as_json: JsonOption = False) -> None:
    """Write files.json, which names all files of a lake: with it any web server can hand out the lake, read-only.

    Run it again when the lake has changed; `push` does so by itself where there is one.
    """
    lake = where.open()
    count = lake.index()
    if as_json:
        return print_json({"files": count})
    line(f"{lake.layout.address}/files.json: {count:,} files")


@sharing.command(epilog="Example: `actlake serve lake --port 8080`")
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
    opened = Where(lake, catalog).open()
    with opened.serve(port, host) as server, suppress(KeyboardInterrupt):
        line(f"{opened.layout} is at {server.url} (read-only; Ctrl-C ends it)")
        server.serve_forever()


@sharing.command(epilog="Example: `actlake explore --out site --limit 100`")
@grouped
def explore(
    where: Computing,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Write the pages into this folder, a static site. [default: a local server]"),
    ] = None,
    prompts: Annotated[str | None, typer.Option("--prompts", help="Only this prompt set.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", help="Only the first N prompts of each set.", min=1)] = None,
    top: Annotated[
        int,
        typer.Option(
            "--top",
            help="Likeliest tokens of each cell; beyond the first they are computed from residuals.",
            min=1,
            max=20,
        ),
    ] = 5,
    port: Annotated[int, typer.Option(help="Port of the local server; 0: any that is free.", min=0, max=65535)] = 0,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the page in the browser at once.")
    ] = True,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Look at a lake in the browser: prompts, what each layer would say, both models side by side, tables, SQL.

    A local server answers this machine alone, read-only, until Ctrl-C. With --out the same pages are written as a static site
    that needs no server: open DIR/index.html, or put the folder on any web server. Its size is said first.

    Example: actlake explore --out site --limit 100
    """
    if dry_run and out is None:
        raise LakeError("--dry-run says what a static site takes: name its folder with --out")
    lake = where.open()
    if out is None:
        server = lake.explore(prompts=prompts, limit=limit, top=top, port=port)
        with closing(server), suppress(KeyboardInterrupt):
            if as_json:
                print_json({"url": server.url})
            else:
                line(f"{lake.layout} is at {server.url} (this machine only, read-only; Ctrl-C ends it)")
            if browser and not as_json:
                webbrowser.open(server.url)
            server.wait()
        return
    plans: list[Estimate] = []

    def show(plan: Estimate) -> None:
        plans.append(plan)
        if not as_json:
            line(f"{out}: {plan}")

    page = lake.explore(out, prompts=prompts, limit=limit, top=top, show=show, dry_run=dry_run)
    if as_json:
        size = {**plans[0].counts, "bytes": plans[0].bytes, "seconds": plans[0].seconds}
        return print_json({"page": None if dry_run else str(page.absolute()), **size})
    if not dry_run:
        line(f"open {page.absolute()}")


def _options(moving: Moving, as_json: bool) -> dict[str, Any]:
    """Arguments of `lake.push`, `pull` and `sync`; for people, what will move is printed first."""
    shown = None if as_json else partial(_show, speed=moving.speed)
    return {"check": moving.check, "take": moving.take, "dry_run": moving.dry_run, "show": shown}


def _show(plan: Plan, speed: float) -> None:
    """What will move."""
    line(f"{plan.source} -> {plan.target}")
    table = grid("", "parts", "files to move", "to move", "there already")
    for row in (row for row in plan.rows() if row["files"] or row["there"]):
        sizes = (human_bytes(row["bytes"]), human_bytes(row["there"]))
        table.add_row(row["what"], str(row["units"]), f"{row['files']:,}", *sizes)
    out.print(table)
    for note in dict.fromkeys(plan.notes):
        line(f"  {note}")
    if not plan.todo:
        return line("nothing to move: all of it is there")
    took = timedelta(seconds=round(plan.bytes / speed / 1e6))
    line(f"{human_bytes(plan.bytes)} to move, {took} at {speed:g} MB/s (--speed)")


def _moved(plans: list[Plan], moving: Moving, as_json: bool) -> None:
    if as_json:
        rows = [
            {"from": str(p.source), "to": str(p.target), "moved": not moving.dry_run, "units": p.rows()} for p in plans
        ]
        print_json(rows)
    elif not moving.dry_run and any(plan.bytes for plan in plans):
        line(f"moved {human_bytes(sum(plan.bytes for plan in plans))}")
