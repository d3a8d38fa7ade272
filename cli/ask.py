"""The commands that ask: run, sql, rows, tables, report, reproduce."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from ..store.core.errors import LakeError
from .answers import print_about, print_answer, print_forecast, print_published, record
from .options import (
    CatalogOption,
    ChainOption,
    Computing,
    DryRunOption,
    GenerateOption,
    JsonOption,
    PairsOption,
    ProbesOption,
    PromptsOption,
    SegmentOption,
    Where,
    Workers,
    grouped,
)
from .printing import line, out, print_json, print_table

if TYPE_CHECKING:
    from ..queries.answer.answer import Answer
    from ..queries.answer.asking import Asking

questions = typer.Typer()


@questions.command(epilog="Example: `actlake run L2 exp16 --pair pocket`")
@grouped
def run(
    where: Workers,
    rows: Annotated[
        list[str] | None, typer.Argument(help="Rows of the experiment index, for instance L1 L2 exp16.")
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Every row that the store can answer, and one page: DIR/index.html.")
    ] = False,
    pair: PairsOption = None,
    chain: ChainOption = None,
    prompts: PromptsOption = None,
    segment: SegmentOption = None,
    by: Annotated[
        str | None,
        typer.Option(
            "--by",
            help="Compare one model (--pair MODEL or PAIR/ROLE) with itself: prompts=A..B, two prompt sets, streams=A..B, two"
            " streams, or layers=A..B.",
        ),
    ] = None,
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
        raise LakeError(f"name rows, or say --all for every one of {', '.join(queries(where.catalog))}")
    asked = [find(row, where.catalog) for row in rows] if rows else list(queries(where.catalog).values())
    if lock and (about or published or dry_run):
        raise LakeError("--lock is for answers; leave --about, --published and --dry-run out")
    if lock and by:
        raise LakeError("--lock: a lock file is about models; leave --by out")
    if about:
        return print_about(asked)
    if published:
        return print_published(asked, pair or [], as_json)
    with where.opened() as lake:
        asking = lake.ask(rows or (), pair, prompts, generate, probes, chain, segment or (), by)
        if dry_run:
            return print_forecast(asking, as_json)
        answers: list[Answer] = []
        try:
            if every:
                _run_all(asking, answers, folder, as_json)
            else:
                _run_rows(asking, answers, folder, as_json)
        finally:
            if lock:
                from ..queries.answer.lock import write_lock

                write_lock(lake.layout, answers, lock, prompts)
        if lock and not as_json:
            line(f"lock: {lock}; `actlake reproduce {lock}` checks it")


@questions.command(epilog="Example: `actlake reproduce L2.lock`")
@grouped
def reproduce(
    file: Annotated[Path, typer.Argument(help="What `actlake run --lock FILE` wrote.")],
    where: Computing,
    generate: GenerateOption = True,
    tolerance: Annotated[
        float,
        typer.Option(
            help="Largest difference allowed, for instance 1e-6 where tables are computed on another machine.", min=0
        ),
    ] = 0,
    as_json: JsonOption = False,
) -> None:
    """Answer the rows of a lock file again: is every capture and table the same, and does the same come out?

    Tables that are missing are made again. Exit code 1 when an input or an answer differs.
    """
    from ..queries.answer.lock import read_lock

    locked = read_lock(file)
    try:
        found = where.open().reproduce(file, generate, tolerance)
    except LakeError as error:
        if where.lake == "default" and locked.lake:
            raise LakeError(f"{error}; the answers were made from {locked.lake}: pass --lake {locked.lake}") from error
        raise
    if as_json:
        print_json([asdict(one) | {"same": one.same} for one in found])
    for one in [] if as_json else found:
        line(one)
    if not all(one.same for one in found):
        raise typer.Exit(1)


@questions.command(epilog='Example: `actlake sql "SELECT variant, layer, avg(kl_final_layer) FROM lens GROUP BY ALL"`')
@grouped
def sql(
    text: Annotated[str, typer.Argument(help="One SELECT statement.")],
    where: Workers,
    rows: Annotated[int, typer.Option(help="Print at most N rows (0: all).", min=0)] = 100,
    compute: Annotated[
        bool,
        typer.Option(
            "--compute/--no-compute",
            help="Compute what is missing of the tables named; without, only what is there is read.",
        ),
    ] = True,
    timeout: Annotated[
        float | None, typer.Option(help="Stop the query after N seconds (0: never). [default: 3600]", min=0)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Any other question: SELECT over tokens, lens, delta, pair_lens, commitment, captures, streams, outputs (DuckDB's SQL).

    Tables that are not there yet are computed first, for every capture; what that takes is said before. Texts and their scores
    are shown as far as they are there. `pair_lens` holds two comparisons: `history` is `shared` where both models read the same
    answer, `own` where each read its own. Narrow by it. NULL is printed as -, and null in JSON; NaN and infinities are the texts
    NaN, Infinity and -Infinity there.

    Example: actlake sql "SELECT variant, layer, avg(entropy) FROM lens GROUP BY ALL"
    """
    with where.opened() as lake:
        frame = lake.sql_frame(text, rows + 1 if rows else 0, compute, timeout)
    cut = bool(rows) and len(frame) > rows
    print_table(frame.head(rows) if cut else frame, as_json, exact=True)
    if cut:
        Console(stderr=True).print(f"the first {rows} rows; --rows 0 prints all", style="dim")


@questions.command(name="rows", epilog="Example: `actlake rows L2`")
@grouped
def list_rows(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[ROW | new NAME | check FILE]",
            help="A row, to be explained; `new NAME` writes a row of your own to begin with, `check FILE` says what one lacks."
            " Every row with its title when left out.",
        ),
    ] = None,
    catalog: CatalogOption = None,
    as_json: JsonOption = False,
) -> None:
    """The rows of the experiment index: its question, what it reads, and whether models must run for it. Needs no lake.

    Rows of your own are .sql files in a folder that the catalog names, `rows: [./my_rows]`: `actlake rows new NAME` writes one.
    """
    from ..queries.answer.listings import rows as every
    from ..queries.rows.registry import find

    if not words:
        return print_table(every(catalog=catalog), as_json)
    verb, *given = words
    if verb in ("new", "check") and len(given) == 1:
        return _new_row(given[0], catalog, as_json) if verb == "new" else _check_row(Path(given[0]), as_json)
    if given or verb in ("new", "check"):
        raise LakeError(f"rows {' '.join(words)}", expected="a row, `new NAME`, `check FILE`, or nothing for all rows")
    print_about([find(verb, catalog)])


def _new_row(name: str, catalog: Path | None, as_json: bool) -> None:
    """A row of one's own to begin with."""
    from ..queries.answer.own import new_row

    file, found = new_row(name, catalog)
    if as_json:
        return print_json({"path": str(file.absolute()), "found": found})
    known = (
        "" if found else f"; name its folder in your catalog, rows: [{file.parent.absolute()}], so that run finds it"
    )
    line(f"{file}: change it; `actlake rows check {file}` says what it lacks{known}")


def _check_row(file: Path, as_json: bool) -> None:
    """What a row of one's own lacks, line by line; exit code 2 when it lacks anything."""
    from ..queries.answer.own import checked

    query, problems = checked(file)
    if as_json:
        print_json({"row": query.id if query else None, "problems": problems})
    for problem in () if as_json else problems:
        line(problem)
    if query is None:
        raise typer.Exit(2)
    if not as_json:
        line(f"{file}: row {query.id} is well formed")


@questions.command(name="tables", epilog="Example: `actlake tables lens`")
@grouped
def list_tables(
    where: Where,
    table: Annotated[str | None, typer.Argument(help="A table, for its columns. Every table when left out.")] = None,
    as_json: JsonOption = False,
) -> None:
    """The tables that `actlake sql` can ask: rows and bytes that are there, and their columns with types."""
    from ..queries.answer.listings import column_table

    print_table(column_table(table) if table else where.open().tables, as_json)


@questions.command(epilog="Example: `actlake report --pair pocket --out report.html`")
@grouped
def report(
    where: Workers,
    pair: PairsOption = None,
    page: Annotated[Path, typer.Option("--out", help="The HTML page to write.")] = Path("report.html"),
    rows: Annotated[
        list[str] | None, typer.Option("--row", help="Row to answer; may be given several times. [default: all]")
    ] = None,
    prompts: PromptsOption = None,
    probes: ProbesOption = True,
    as_json: JsonOption = False,
) -> None:
    """Answer rows and write one self-contained HTML page with figures, tables and SQL.

    Rows for which models would have to write first are left to `run`, unless named.
    """
    with where.opened() as lake:
        found = lake.run_all(rows or (), pair, prompts, generate=bool(rows), probes=probes)
    if found.refused and (rows or not found.answers):
        raise LakeError(found.refused[0].reason)
    found.page(page)
    if as_json:
        return print_json({"page": str(page.absolute()), "answers": [record(one) for one in found.answers]})
    line(page.absolute())


# --- answering -------------------------------------------------------------------------------------------------------


def _run_rows(asking: "Asking", answers: "list[Answer]", folder: Path, as_json: bool) -> None:
    """Rows by name: each is shown when it is ready; LakeError when one can't be answered, known beforehand or at the end."""
    _check_refused(asking)
    asking.announce()
    try:
        for found in asking.answers():
            answers.append(found)
            if not as_json:
                print_answer(found, found.save(folder))
    finally:
        if as_json:
            print_json([record(found) for found in answers])
    _check_refused(asking)


def _check_refused(asking: "Asking") -> None:
    if asking.refused:
        raise LakeError("; ".join(f"{listed}: {reason}" for listed, reason in asking.reasons()))


def _run_all(asking: "Asking", answers: "list[Answer]", folder: Path, as_json: bool) -> None:
    """Every row: each sentence when it is ready, and a page of them; first of all the rows that can't be answered."""
    from ..queries.answer.results import answer_rows

    def refused(heading: str, start: int = 0) -> None:
        if asking.refused[start:] and not as_json:
            line(heading)
            for listed, reason in asking.reasons(start):
                out.print(f"[bold]{listed}[/] {escape(reason)}", highlight=False, soft_wrap=True)
            out.print()

    def show(answer: "Answer") -> None:
        answers.append(answer)
        if not as_json:
            out.print(f"[bold]{answer.query.id:6}[/] {escape(answer.sentence)}", highlight=False)

    known = len(asking.refused)
    refused(f"{known} of {asking.asked} rows can't be answered:")
    done = answer_rows(asking, folder, show)
    page = folder / "index.html"
    if as_json:
        reasons = {found.query.id: found.reason for found in done.refused}
        return print_json({"answers": [record(found) for found in done.answers], "refused": reasons, "page": str(page)})
    refused("\nnot answered after all:", known)
    left = f", {len(done.refused)} not (see above)" if done.refused else ""
    line(
        f"\n{len(done.answers)} of {asking.asked} rows answered{left} in {done.seconds:.1f} s: {folder}{os.sep}, page {page}"
    )
