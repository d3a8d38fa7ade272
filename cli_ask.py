"""The commands that ask: run, sql, report; and what others need to check an answer: cite, reproduce."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from .cli_options import (
    CAPTURE,
    CatalogOption,
    DeviceOption,
    GenerateOption,
    JsonOption,
    LakeOption,
    PairsOption,
    PromptsOption,
    SchedulerOption,
    client_of,
    engine_of,
    open_layout,
    out,
    print_json,
    print_table,
    records,
)
from .lake import Lake
from .store.catalog import load_catalog
from .store.errors import LakeError
from .store.layout import Layout, writing

if TYPE_CHECKING:
    from .queries.answer import Answer
    from .queries.registry import Query
    from .queries.results import Results

questions = typer.Typer()
table_app = typer.Typer(help="Tables from elsewhere.", no_args_is_help=True)
questions.add_typer(table_app, name="table")


@questions.command()
def run(
    rows: Annotated[
        list[str] | None, typer.Argument(help="Rows of the experiment index, for instance L1 L2 exp16.")
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Every row that the store can answer, and one page: DIR/index.html.")
    ] = False,
    pair: PairsOption = None,
    prompts: PromptsOption = None,
    folder: Annotated[Path, typer.Option("--out", help="Folder for ROW-PAIR.csv, .png, .svg and .sql.")] = Path(
        "answers"
    ),
    about: Annotated[
        bool, typer.Option("--about", help="Only explain the rows: what is computed, how, and the traps.")
    ] = False,
    published: Annotated[
        bool, typer.Option("--published", help="Only print what the seed published for the rows; needs no lake.")
    ] = False,
    lake: LakeOption = "default",
    catalog: CatalogOption = None,
    device: DeviceOption = "auto",
    scheduler: SchedulerOption = None,
    generate: GenerateOption = True,
    lock: Annotated[
        Path | None,
        typer.Option("--lock", help="File for all that the answers used, by hash: `actlake reproduce FILE` checks it."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Answer rows from the store: tables with intervals, figures, the SQL, and the seed's figures beside them.

    Missing tables of all rows are computed together first, in as few passes over the captures as there can be. Rows that
    --all can't answer are listed with the command that makes what they need. Where models have to write for a row you are
    told how much; --no-generate leaves that out.
    """
    from .queries.registry import find, queries

    if every and rows:
        raise LakeError("name rows or say --all, not both")
    if not (rows or every or about or published):
        raise LakeError(f"name rows, or say --all for every one of {', '.join(queries())}")
    asked = [find(row) for row in rows] if rows else list(queries().values())
    if lock and (about or published):
        raise LakeError("--lock is for answers; leave --about and --published out")
    if about:
        return _about(asked)
    if published:
        return _published(asked, pair or [], as_json)
    layout = open_layout(lake, catalog)[0]
    pairs = pair or [Lake(layout.root).only_pair()]
    if every:
        with client_of(scheduler) as client:
            from .queries.results import write_results

            engine = engine_of(client)
            done = write_results(layout, asked, pairs, folder, prompts, device, catalog, generate, engine)
        _all(done, folder, as_json)
        return _lock(layout, done.answers, lock, prompts, as_json)
    with client_of(scheduler) as client:  # before all that takes longer
        from .queries.answer import answer_all

        engine = engine_of(client)
        answers, refused, _ = answer_all(layout, asked, pairs, prompts, device, catalog, generate, engine)
    if refused:
        raise LakeError(refused[0].reason)
    if as_json:
        print_json([_record(found) for found in answers])
    else:
        for found in answers:
            _show(found)
            out.print("files: " + ", ".join(str(path) for path in found.save(folder)), highlight=False, soft_wrap=True)
    _lock(layout, answers, lock, prompts, as_json)


@questions.command()
def reproduce(
    file: Annotated[Path, typer.Argument(help="What `actlake run --lock FILE` wrote.")],
    lake: LakeOption = "default",
    catalog: CatalogOption = None,
    device: DeviceOption = "auto",
    generate: GenerateOption = True,
    tolerance: Annotated[
        float,
        typer.Option(help="How far apart numbers may be: 1e-6, say, where tables are made again elsewhere.", min=0),
    ] = 0,
    as_json: JsonOption = False,
) -> None:
    """Answer the rows of a lock file again: is every capture and table the same, and does the same come out?

    Tables that are missing are made again. Exit code 1 when an input or an answer differs.
    """
    from .queries.lock import read_lock
    from .queries.reproduce import reproduce as compare

    locked = read_lock(file)
    found = compare(open_layout(lake, catalog)[0], locked, device, catalog, generate, tolerance)
    if as_json:
        print_json([asdict(one) | {"same": one.same} for one in found])
    else:
        for one in found:
            out.print(escape(str(one)), highlight=False, soft_wrap=True)
    if not all(one.same for one in found):
        raise typer.Exit(1)


@questions.command()
def cite(
    capture: Annotated[str, typer.Argument(help=CAPTURE + " Or a whole reference, to check it.")],
    lake: LakeOption = "default",
    catalog: CatalogOption = None,
    as_json: JsonOption = False,
) -> None:
    """An immutable reference to a sealed capture, and the model, stream, prompts and versions behind it."""
    from .store.cite import citation, citation_lines, find_cited

    layout = open_layout(lake, catalog)[0]
    found = citation(layout, find_cited(layout, capture))
    if as_json:
        return print_json(found)
    for name, value in citation_lines(found):
        out.print(f"{name:10} {escape(value)}", highlight=False, soft_wrap=True)


@questions.command()
def sql(
    text: Annotated[str, typer.Argument(help="One SELECT statement.")],
    lake: LakeOption = "default",
    catalog: CatalogOption = None,
    rows: Annotated[int, typer.Option(help="Print at most N rows (0: all).", min=0)] = 100,
    device: DeviceOption = "auto",
    scheduler: SchedulerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Any other question: SELECT over tokens, lens, delta, pair_lens, commitment, captures, streams, outputs (DuckDB's SQL).

    Tables that are not there yet are computed first; texts and their scores are shown as far as they are there.

    Example: actlake sql "SELECT variant, layer, avg(entropy) FROM lens GROUP BY ALL"
    """
    import duckdb

    from .store.tables import sql_error

    opened = Lake(open_layout(lake, catalog)[0].root, catalog=catalog)
    with client_of(scheduler) as client:
        relation = (opened.on(client) if client else opened).sql(text, device)
    try:
        frame = relation.df() if not rows else relation.limit(rows + 1).df()
    except duckdb.Error as error:
        raise sql_error(error, opened.layout) from error
    cut = bool(rows) and len(frame) > rows
    print_table(frame.head(rows) if cut else frame, as_json)
    if cut:
        Console(stderr=True).print(f"the first {rows} rows; --rows 0 prints all", style="dim")


@questions.command()
def report(
    pair: PairsOption = None,
    page: Annotated[Path, typer.Option("--out", help="The HTML page to write.")] = Path("report.html"),
    rows: Annotated[
        list[str] | None, typer.Option("--row", help="Row to answer; may be given several times. [default: all]")
    ] = None,
    prompts: PromptsOption = None,
    lake: LakeOption = "default",
    catalog: CatalogOption = None,
    device: DeviceOption = "auto",
    scheduler: SchedulerOption = None,
) -> None:
    """Answer rows and write one self-contained HTML page with figures, tables and SQL.

    Rows for which models would have to write first are left to `run`, unless named.
    """
    from .queries.answer import answer_all
    from .queries.registry import find, queries
    from .queries.results import table_steps, write_page

    layout = open_layout(lake, catalog)[0]
    asked = [find(row) for row in rows] if rows else list(queries().values())
    pairs = pair or [Lake(layout.root).only_pair()]
    with client_of(scheduler) as client:
        engine = engine_of(client)
        answers, refused, spent = answer_all(layout, asked, pairs, prompts, device, catalog, bool(rows), engine)
    if refused and (rows or not answers):
        raise LakeError(refused[0].reason)
    write_page(layout, answers, table_steps(answers, spent), page, refused)
    out.print(str(page.absolute()), highlight=False, soft_wrap=True)


@table_app.command("add")
def table_add(
    name: Annotated[str, typer.Argument(help="The table that the file has columns of: lens, delta, pair_lens ...")],
    file: Annotated[Path, typer.Argument(help="A .parquet or .csv file: values per token, per prompt or per layer.")],
    pair: Annotated[str | None, typer.Option(help="Pair of all rows, if the file has no such column.")] = None,
    variant: Annotated[str | None, typer.Option(help="pt or it, likewise.")] = None,
    stream: Annotated[
        str | None, typer.Option(help="Recipe, and a name to keep it apart by: native-published. Likewise.")
    ] = None,
    stream_pt: Annotated[str | None, typer.Option(help="Stream of the pt, in tables of both variants.")] = None,
    lens: Annotated[str | None, typer.Option(help="raw or tuned, in tables of lenses. [default: raw]")] = None,
    lake: LakeOption = "default",
    catalog: CatalogOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check a table of somebody else's numbers and bring it into the lake, so that `run` and `sql` work on them.

    Columns that the file lacks are NULL. Without prompt and token a row stands for the mean over them: published curves
    (variant, layer, value) give published numbers.
    """
    from .store.foreign import add_table

    known = load_catalog(catalog)
    with writing(known.lakes.get(lake, lake)) as layout:
        names = {"pair": pair, "variant": variant, "stream": stream, "stream_pt": stream_pt, "lens": lens}
        added = add_table(layout, name, file, **names)
    if as_json:
        return print_json(vars(added))
    whose = "; ".join("/".join(capture.values()) for capture in added.captures)
    state = "was there already" if added.reused else "added"
    out.print(f"{added.path}: {added.rows:,} rows of {whose}, {state}", highlight=False, soft_wrap=True)


# --- printing --------------------------------------------------------------------------------------------------------


def _about(asked: "list[Query]") -> None:
    from .queries.registry import pitfall_link

    for query in asked:
        out.print(f"[bold]{query.id}[/] {query.title}\n{escape(query.about)}\nsource: {escape(query.source)}")
        if query.pitfalls:
            out.print("known pitfalls:")
        for name in query.pitfalls:
            out.print(f"  {name}: {pitfall_link(name)}", highlight=False, soft_wrap=True)
        out.print()
    out.print(
        "METHODS is docs/METHODS.md in actlake's repository: definitions, and every known pitfall.", soft_wrap=True
    )


def _published(asked: "list[Query]", pairs: list[str], as_json: bool) -> None:
    from .queries.registry import published

    frames = {query.id: published(query.id, *pairs) for query in asked}
    if as_json:
        return print_json({row: records(frame) for row, frame in frames.items()})
    for query in asked:
        out.print(f"\n[bold]{query.id} · {query.title}[/], published by the seed", highlight=False)
        frame = frames[query.id]
        if frame.empty:
            out.print(f"nothing{f' for {escape(chr(43).join(pairs))}' if pairs else ''}", style="dim")
        else:
            print_table(frame.drop(columns="row"))


def _lock(layout: Layout, answers: "list[Answer]", file: Path | None, prompts: str | None, quiet: bool) -> None:
    if file:
        from .queries.lock import write_lock

        write_lock(layout, answers, file, prompts)
        if not quiet:
            out.print(f"lock: {file}; `actlake reproduce {file}` checks it", highlight=False, soft_wrap=True)


def _record(found: "Answer") -> dict[str, Any]:
    return {
        "row": found.query.id,
        "pair": found.pair,
        "says": found.says,
        "table": records(found.table),
        "sql": found.sql,
        "published": records(found.published),
    }


def _show(found: "Answer") -> None:
    query = found.query
    out.print(f"\n[bold]{query.id} · {query.title} · {escape(found.pair)}[/]\n{escape(found.says)}", highlight=False)
    print_table(found.table)
    if found.published.empty:
        out.print(f"The seed published no figure of {query.id} for {escape(found.pair)}.", style="dim")
    else:
        out.print("published by the seed:")
        print_table(found.published.drop(columns="row"))


def _all(done: "Results", folder: Path, as_json: bool) -> None:
    if as_json:
        return print_json(
            {
                "answers": [_record(found) for found in done.answers],
                "refused": {found.query.id: found.reason for found in done.refused},
                "page": str(done.page),
            }
        )
    for answer in done.answers:
        out.print(f"[bold]{answer.query.id:6}[/] {escape(answer.says)}", highlight=False)
    if done.refused:
        out.print("\nnot answered; these rows need more data:")
        for missing in done.refused:
            out.print(f"[bold]{missing.query.id:6}[/] {escape(missing.reason)}", highlight=False, soft_wrap=True)
    rows = len(done.answers) + len(done.refused)
    out.print(
        f"\n{len(done.answers)} of {rows} rows in {done.seconds:.1f} s: {folder}{os.sep}, page {done.page}",
        highlight=False,
        soft_wrap=True,
    )
