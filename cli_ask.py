"""The commands that ask: run, sql, report."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from .cli_options import (
    CatalogOption,
    DeviceOption,
    JsonOption,
    LakeOption,
    PairOption,
    PromptsOption,
    open_layout,
    out,
    print_json,
    print_table,
    records,
)
from .lake import Lake

questions = typer.Typer()


@questions.command()
def run(
    rows: Annotated[list[str], typer.Argument(help="Rows of the experiment index, for instance L1 L2 exp16.")],
    pair: PairOption = None,
    prompts: PromptsOption = None,
    folder: Annotated[Path, typer.Option("--out", help="Folder for ROW-PAIR.csv, .png and .sql.")] = Path("answers"),
    about: Annotated[
        bool, typer.Option("--about", help="Only explain the rows: what is computed, how, and the traps.")
    ] = False,
    lake: LakeOption = "default",
    catalog: CatalogOption = None,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Answer rows from the store: a table with intervals, a figure, the SQL, and the seed's figure beside it."""
    from .queries.registry import find

    queries = [find(row) for row in rows]
    if about:
        for query in queries:
            out.print(f"[bold]{query.id}[/] {query.title}\n{escape(query.about)}\nsource: {query.source}\n")
        return
    store = Lake(open_layout(lake, catalog)[0].root)
    answers = [store.run(query.id, pair, prompts, device) for query in queries]
    if as_json:
        return print_json(
            [
                {"row": a.query.id, "pair": a.pair, "says": a.says, "table": records(a.table), "sql": a.sql}
                for a in answers
            ]
        )
    for found in answers:
        out.print(
            f"\n[bold]{found.query.id} · {found.query.title} · {found.pair}[/]\n{escape(found.says)}", highlight=False
        )
        print_table(found.table)
        if found.published.empty:
            out.print(f"The seed published no figure of {found.query.id} for {found.pair}.", style="dim")
        else:
            out.print("published by the seed:")
            print_table(found.published.drop(columns=["row", "model"]))
        out.print("files: " + ", ".join(str(path) for path in found.save(folder)), highlight=False, soft_wrap=True)


@questions.command()
def sql(
    text: Annotated[str, typer.Argument(help="One SELECT statement.")],
    lake: LakeOption = "default",
    catalog: CatalogOption = None,
    rows: Annotated[int, typer.Option(help="Print at most N rows (0: all).", min=0)] = 100,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Any other question: SELECT over tokens, lens, delta, pair_lens, commitment, captures, streams (DuckDB's SQL).

    Tables that are not there yet are computed first.

    Example: actlake sql "SELECT variant, layer, avg(entropy) FROM lens GROUP BY ALL"
    """
    import duckdb

    from .store.tables import sql_error

    relation = Lake(open_layout(lake, catalog)[0].root).sql(text, device)
    try:
        frame = relation.df() if not rows else relation.limit(rows + 1).df()
    except duckdb.Error as error:
        raise sql_error(error) from error
    cut = bool(rows) and len(frame) > rows
    print_table(frame.head(rows) if cut else frame, as_json)
    if cut:
        Console(stderr=True).print(f"the first {rows} rows; --rows 0 prints all", style="dim")


@questions.command()
def report(
    pair: PairOption = None,
    page: Annotated[Path, typer.Option("--out", help="The HTML page to write.")] = Path("report.html"),
    rows: Annotated[
        list[str] | None, typer.Option("--row", help="Row to answer; may be given several times. [default: all]")
    ] = None,
    prompts: PromptsOption = None,
    lake: LakeOption = "default",
    catalog: CatalogOption = None,
    device: DeviceOption = "cpu",
) -> None:
    """Answer rows and write one self-contained HTML page with figures, tables and SQL."""
    from .queries.demo import write_page
    from .queries.registry import find, queries
    from .queries.report import Step

    layout, _ = open_layout(lake, catalog)
    store = Lake(layout.root)
    answers = [store.run(find(row).id, pair, prompts, device) for row in rows or list(queries())]
    steps = [
        Step(f"answer {a.query.id}", a.seconds, sum(p.stat().st_size for p in a.computed), not a.computed)
        for a in answers
    ]
    write_page(layout, answers, steps, page)
    out.print(str(page.absolute()), highlight=False, soft_wrap=True)
