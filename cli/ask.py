"""The commands that ask: run, sql, report; and what others need to check an answer: cite, reproduce."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from ..lake import Lake
from ..store.core.catalog import load_catalog
from ..store.core.errors import LakeError
from ..store.format.paths import Layout, writing
from .options import (
    CAPTURE,
    CatalogOption,
    DeviceOption,
    DryRunOption,
    GenerateOption,
    JsonOption,
    LakeOption,
    PairsOption,
    ProbesOption,
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

if TYPE_CHECKING:
    from ..queries.answer.answer import Answer
    from ..queries.answer.asking import Asking
    from ..queries.rows.registry import Query

PUBLISHED = 12  # published figures that are shown below an answer
questions = typer.Typer()
table_app = typer.Typer(help="Import a table.", no_args_is_help=True)
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
        bool,
        typer.Option(
            "--about",
            help="Only explain the rows: what is computed, at which positions, known pitfalls, published figures.",
        ),
    ] = False,
    published: Annotated[
        bool, typer.Option("--published", help="Only print what the PT/IT study published for the rows; needs no lake.")
    ] = False,
    lake: LakeOption = "default",
    catalog: CatalogOption = None,
    device: DeviceOption = "auto",
    scheduler: SchedulerOption = None,
    generate: GenerateOption = True,
    probes: ProbesOption = True,
    dry_run: DryRunOption = False,
    lock: Annotated[
        Path | None,
        typer.Option("--lock", help="File for all that the answers used, by hash: `actlake reproduce FILE` checks it."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Answer rows from the store: tables with intervals, figures, the SQL, and the figures of the PT/IT study beside them.

    Rows that need nothing new come first, then those whose tables take seconds, then all that reads captures, then rows that
    models have to write for, and last those that probes are trained for. What takes longer than some seconds is said before it
    starts; --no-generate and --no-probes leave these two out, and --dry-run only says what each row would take.
    """
    from ..queries.rows.registry import find, queries

    if every and rows:
        raise LakeError("name rows or say --all, not both")
    if not (rows or every or about or published):
        raise LakeError(f"name rows, or say --all for every one of {', '.join(queries(catalog))}")
    asked = [find(row, catalog) for row in rows] if rows else list(queries(catalog).values())
    if lock and (about or published or dry_run):
        raise LakeError("--lock is for answers; leave --about, --published and --dry-run out")
    if about:
        return _about(asked)
    if published:
        return _published(asked, pair or [], as_json)
    layout = open_layout(lake, catalog)[0]
    pairs = pair or [Lake(layout.root).only_pair()]
    with client_of(scheduler) as client:  # before all that takes longer
        from ..queries.answer.asking import Asking

        engine = engine_of(client)
        asking = Asking(layout, asked, pairs, prompts, device, catalog, generate, probes, engine)
        if dry_run:
            return _forecast(asking, as_json)
        if every:
            _run_all(asking, layout, folder, lock, prompts, as_json)
        else:
            _run_rows(asking, layout, folder, lock, prompts, as_json)


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
    from ..queries.answer.lock import read_lock
    from ..queries.answer.reproduce import reproduce as compare

    locked = read_lock(file)
    try:
        found = compare(open_layout(lake, catalog)[0], locked, device, catalog, generate, tolerance)
    except LakeError as error:
        if lake == "default" and locked.lake:
            raise LakeError(f"{error}; the answers were made from {locked.lake}: pass --lake {locked.lake}") from error
        raise
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
    from ..store.captures.cite import citation, citation_lines, find_cited

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
    compute: Annotated[
        bool,
        typer.Option(
            "--compute/--no-compute",
            help="Compute what is missing of the tables named; without, only what is there is read.",
        ),
    ] = True,
    device: DeviceOption = "auto",
    scheduler: SchedulerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Any other question: SELECT over tokens, lens, delta, pair_lens, commitment, captures, streams, outputs (DuckDB's SQL).

    Tables that are not there yet are computed first, for every capture; what that takes is said before. Texts and their scores
    are shown as far as they are there. `pair_lens` holds two comparisons: `history` is `shared` where both models read the same
    answer, `own` where each read its own. Narrow by it.

    Example: actlake sql "SELECT variant, layer, avg(entropy) FROM lens GROUP BY ALL"
    """
    opened = Lake(open_layout(lake, catalog)[0].root, catalog=catalog)
    with client_of(scheduler) as client:
        asked = opened.on(client) if client else opened
        frame = asked.sql_frame(text, rows + 1 if rows else 0, compute, device)
    cut = bool(rows) and len(frame) > rows
    print_table(frame.head(rows) if cut else frame, as_json)
    if cut:
        Console(stderr=True).print(f"the first {rows} rows; --rows 0 prints all", style="dim")


@questions.command(name="rows")
def list_rows(
    row: Annotated[
        str | None, typer.Argument(help="A row, to be explained. Every row with its title when left out.")
    ] = None,
    check: Annotated[
        Path | None, typer.Option(help="A row's .sql file: say what is wrong with it.", metavar="FILE")
    ] = None,
    catalog: CatalogOption = None,
    as_json: JsonOption = False,
) -> None:
    """The rows of the experiment index: what each asks, what it reads, and whether models must run for it. Needs no lake.

    Rows of your own are .sql files in a folder that the catalog names, `rows: [./my_rows]`.
    """
    from ..queries.answer.listings import rows as every
    from ..queries.rows.registry import find

    if check:
        from ..queries.answer.check_row import check_row

        found = check_row(check)
        return out.print(
            f"{escape(str(check))}: row {escape(found.id)} is well formed", highlight=False, soft_wrap=True
        )
    if row:
        return _about([find(row, catalog)])
    print_table(every(catalog=catalog), as_json)


@questions.command(name="tables")
def list_tables(
    table: Annotated[str | None, typer.Argument(help="A table, for its columns. Every table when left out.")] = None,
    lake: LakeOption = "default",
    catalog: CatalogOption = None,
    as_json: JsonOption = False,
) -> None:
    """The tables that `actlake sql` can ask: rows and bytes that are there, and their columns with types."""
    from ..queries.answer.listings import column_table, table_table

    layout = open_layout(lake, catalog)[0]
    print_table(column_table(table) if table else table_table(layout), as_json)


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
    from ..queries.answer.asking import answer_all
    from ..queries.answer.results import table_steps, write_page
    from ..queries.rows.registry import find, queries

    layout = open_layout(lake, catalog)[0]
    asked = [find(row, catalog) for row in rows] if rows else list(queries(catalog).values())
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
    pair: Annotated[str | None, typer.Option(help="Pair of all rows, if the file has no column `pair`.")] = None,
    variant: Annotated[str | None, typer.Option(help="pt or it, if the file has no column `variant`.")] = None,
    stream: Annotated[
        str | None,
        typer.Option(help="Stream name, e.g. native-theirs. [default: published, which answers rows of every stream]"),
    ] = None,
    stream_pt: Annotated[str | None, typer.Option(help="Stream of the pt, in tables of both variants.")] = None,
    lens: Annotated[str | None, typer.Option(help="raw or tuned, in tables of lenses. [default: raw]")] = None,
    lake: LakeOption = "default",
    catalog: CatalogOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check a table of other people's numbers and import it into the lake, so that `run` and `sql` work on it.

    Columns that the file lacks are filled in where that is safe (stream, lens, draw, event ...) or NULL; the message for one
    that has to be there says which. Without prompt and token a row stands for the mean over them: published curves (variant,
    layer, value) give published numbers, without intervals.
    """
    from ..store.tables.imported import add_table

    known = load_catalog(catalog)
    with writing(known.lakes.get(lake, lake)) as layout:
        names = {"pair": pair, "variant": variant, "stream": stream, "stream_pt": stream_pt, "lens": lens}
        added = add_table(layout, name, file, **names)
    if as_json:
        return print_json(vars(added))
    whose = "; ".join("/".join(capture.values()) for capture in added.captures)
    state = "was there already" if added.reused else "added"
    out.print(f"{added.path}: {added.rows:,} rows of {whose}, {state}", highlight=False, soft_wrap=True)


# --- answering -------------------------------------------------------------------------------------------------------


def _run_rows(
    asking: "Asking", layout: Layout, folder: Path, lock: Path | None, prompts: str | None, as_json: bool
) -> None:
    """Rows by name: each is shown when it is ready; LakeError when one can't be answered, known beforehand or at the end."""
    from ..queries.answer.answer import Refused
    from ..queries.answer.asking import grouped

    if asking.refused:
        raise LakeError("; ".join(f"{listed}: {reason}" for listed, reason in grouped(asking.refused)))
    asking.announce()
    answers: list[Answer] = []
    try:
        for found in asking:
            if isinstance(found, Refused):
                continue
            answers.append(found)
            if not as_json:
                _show(found, found.save(folder))
    finally:
        if as_json:
            print_json([_record(found) for found in answers])
        _lock(layout, answers, lock, prompts, as_json)
    if asking.refused:
        raise LakeError("; ".join(f"{listed}: {reason}" for listed, reason in grouped(asking.refused)))


def _run_all(
    asking: "Asking", layout: Layout, folder: Path, lock: Path | None, prompts: str | None, as_json: bool
) -> None:
    """Every row: each sentence when it is ready, and a page of them; first of all the rows that can't be answered."""
    from ..queries.answer.asking import grouped
    from ..queries.answer.results import write_results

    if asking.refused and not as_json:
        out.print(f"{len(asking.refused)} of {asking.asked} rows can't be answered:", highlight=False)
        for listed, reason in grouped(asking.refused):
            out.print(f"[bold]{listed}[/] {escape(reason)}", highlight=False, soft_wrap=True)
        out.print()
    known = len(asking.refused)
    asking.announce()

    def show(answer: "Answer") -> None:
        if not as_json:
            out.print(f"[bold]{answer.query.id:6}[/] {escape(answer.says)}", highlight=False)

    done = write_results(asking, folder, show)
    if as_json:
        print_json(
            {
                "answers": [_record(found) for found in done.answers],
                "refused": {found.query.id: found.reason for found in done.refused},
                "page": str(done.page),
            }
        )
    else:
        if later := done.refused[known:]:
            out.print("\nnot answered after all:")
            for listed, reason in grouped(later):
                out.print(f"[bold]{listed}[/] {escape(reason)}", highlight=False, soft_wrap=True)
        left = f", {len(done.refused)} not (see above)" if done.refused else ""
        out.print(
            f"\n{len(done.answers)} of {asking.asked} rows answered{left} in {done.seconds:.1f} s: {folder}{os.sep}, page"
            f" {done.page}",
            highlight=False,
            soft_wrap=True,
        )
    _lock(layout, done.answers, lock, prompts, as_json)


def _forecast(asking: "Asking", as_json: bool) -> None:
    """What each row takes, and all together."""
    found, work = asking.forecast(), asking.work()
    if as_json:
        return print_json(
            {
                "rows": {
                    one.query.id: {**asdict(one.work), "refused": one.refused, "without": list(one.without)}
                    for one in found
                },
                "together": asdict(work) | {"seconds": work.seconds},
            }
        )
    for one in found:
        out.print(f"[bold]{one.query.id:9}[/] {escape(one.words)}", highlight=False, soft_wrap=True)
    together = "; ".join(work.parts()) or "nothing"
    out.print(f"\nin all, what rows share counted once: {together}", highlight=False, soft_wrap=True)


# --- printing --------------------------------------------------------------------------------------------------------


def _about(asked: "list[Query]") -> None:
    from ..queries.rows.registry import description, pitfall_link

    for query in asked:
        out.print(f"[bold]{query.id}[/] {escape(query.title)}", highlight=False)
        for name, paragraphs, items in description(query):
            lines = paragraphs + [f"- {item}" for item in items]
            if name == "pitfalls":
                lines = [f"{line}\n  {pitfall_link(line[2 : line.index(': ')])}" for line in lines]
            out.print(f"\n[bold]{name}[/]\n{escape(chr(10).join(lines))}", highlight=False, soft_wrap=True)
        out.print()
    out.print(
        "METHODS is docs/METHODS.md in actlake's repository: definitions, and every known pitfall. The study is the PT/IT"
        " study, github.com/yifan1207/PT-IT-Model-Differences.",
        soft_wrap=True,
    )


def _published(asked: "list[Query]", pairs: list[str], as_json: bool) -> None:
    from ..queries.rows.registry import published

    frames = {query.id: published(query.id, *pairs) for query in asked}
    if as_json:
        return print_json({row: records(frame) for row, frame in frames.items()})
    for query in asked:
        out.print(f"\n[bold]{query.id} · {query.title}[/], published by the PT/IT study", highlight=False)
        frame = frames[query.id]
        if frame.empty:
            out.print(f"nothing{f' for {escape(chr(43).join(pairs))}' if pairs else ''}", style="dim")
        else:
            print_table(frame.drop(columns="row"))


def _lock(layout: Layout, answers: "list[Answer]", file: Path | None, prompts: str | None, quiet: bool) -> None:
    if file:
        from ..queries.answer.lock import write_lock

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


def _show(found: "Answer", files: list[Path]) -> None:
    """The main numbers, where the others are, what the study published, and last, so that it stays in view, the sentence."""
    query, main = found.query, found.main
    out.print(f"\n[bold]{query.id} · {query.title} · {escape(found.pair)}[/]", highlight=False)
    print_table(main.dropna(axis="columns", how="all"))
    others = found.table.drop(main.index)
    if len(others):
        names = ", ".join(dict.fromkeys(others["measure"]))
        out.print(f"{len(others)} more in {files[0]}: {names}", style="dim", highlight=False, soft_wrap=True)
    if len(found.published):
        few = found.published.drop(columns="row").head(PUBLISHED)
        out.print("published in the PT/IT study:")
        print_table(few)
        if more := len(found.published) - len(few):
            out.print(f"{more} more: `actlake run {query.id} --published --pair {found.pair}`", style="dim")
    out.print(escape(found.says), highlight=False)
    out.print("files: " + ", ".join(map(str, files)), style="dim", highlight=False, soft_wrap=True)
