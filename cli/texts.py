"""Commands that let models write, and score what they wrote: generate, score."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from ..store.core.errors import LakeError
from .options import (
    Computing,
    DryRunOption,
    JsonOption,
    NamesArgument,
    PromptsOption,
    Ranks,
    Tokens,
    grouped,
)
from .printing import grid, line, out, print_json, print_table, records

if TYPE_CHECKING:
    from ..judge.judge import Cost

writing = typer.Typer()


@writing.command(
    epilog="Example: `actlake generate pocket/it --edit scale:layers=late,direction=d_mean,alpha=0 --show 3`"
)
@grouped
def generate(
    names: NamesArgument,
    where: Computing,
    tokens: Tokens,
    ranks: Ranks,
    edit: Annotated[
        list[str] | None, typer.Option("--edit", help="An edit in words; several are done in order. none: no edit.")
    ] = None,
    condition: Annotated[
        list[str] | None, typer.Option("--condition", help="A condition of the catalog; may be given several times.")
    ] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option("--sweep", help="All conditions of a row (A1, A5a, exp15 ...); may be given several times."),
    ] = None,
    template: Annotated[
        str, typer.Option(help="raw, chat, or native (raw for a pt, chat for an it), for --edit.")
    ] = "native",
    prompts: Annotated[
        str | None,
        typer.Option(
            "--prompts",
            help="Prompt set of the catalog or the lake, or a .jsonl/.csv file; or the start of a stream's name, where several of"
            " one set were captured: its prompts, and directions from it (SET,STREAM: these alone). [default: the set that the"
            " pair's captures read]",
        ),
    ] = None,
    batch: Annotated[
        int, typer.Option(help="Prompts decoded together: more are faster, and take more memory.", min=1)
    ] = 64,
    show: Annotated[int, typer.Option(help="Print the first N texts of each condition.", min=0)] = 0,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Let models write freely, greedily, with or without edits; every text stays in the lake and is never made twice.

    An edit is an operator and its settings:

    scale:layers=20-33,direction=d_mean,alpha=0.5 multiplies the MLP outputs' component along a direction (0 removes it);
    inject:...,beta=1 adds beta times each output's norm along it; matched:...,alpha=0 makes as large a change along a random
    direction; zero:layers=5,site=mlp and skip:layers=31-33 silence modules or whole blocks; graft:layers=late puts the
    other model's MLPs in, random_graft a random change of that size.

    layers: 20-33, 3+5, a window (early, mid, late), all. direction: d_mean, d_conv, content, random, rotated, d_mean_top,
    d_mean_bottom, d_mean_random, from the lake's captures. site: mlp, attn, block.

    Interrupted? Run the same command again: it continues where it stopped. Several GPUs: once for each with --rank R --world N,
    or under torchrun or srun. Texts that equal conditions or other prompt sets
    share are taken from the lake.
    """
    with where.writing() as lake:
        found = lake.generate(
            names, edit or (), conditions=condition or (), sweeps=sweep or (), template=template, prompts=prompts,
            batch=batch, dry_run=dry_run, show=None if as_json else line, **vars(tokens), **vars(ranks),
        )  # fmt: skip
    done = found.conditions
    if as_json:
        rows = [{name: value for name, value in asdict(one).items() if name != "rows"} for one in done]
        return print_json({"asked": found.asked, "missing": found.missing, "tokens": found.tokens, "conditions": rows})
    if dry_run:
        return
    table = grid("key", "who", "condition", "texts", "new", "tokens")
    for one in done:
        counts = (str(one.texts), str(one.generated), f"{one.tokens:,}")
        table.add_row(one.key, one.variant, escape(one.condition), *counts)
    out.print(table)
    saved = found.asked - sum(one.generated for one in done)
    out.print(f"{saved:,} of {found.asked:,} texts were already in the lake", highlight=False)
    for one in done:
        for row in one.rows[:show]:
            out.print(f"\n[bold]{one.key} {escape(row['prompt_id'])}[/]\n{escape(row['text'])}", highlight=False)


@writing.command(epilog="Example: `actlake score pocket --sweep exp12`")
@grouped
def score(
    names: NamesArgument,
    where: Computing,
    sweep: Annotated[list[str] | None, typer.Option("--sweep", help="Sweeps to score. [default: exp12]")] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option("--metric", help="Metrics to show; a pattern such as share_*. [default: the usual ones]"),
    ] = None,
    judge: Annotated[bool, typer.Option("--judge", help="Ask an LLM judge about every reply, too.")] = False,
    judge_url: Annotated[
        str | None,
        typer.Option(help="OpenAI-compatible address. [default: ACTLAKE_JUDGE_URL; the key: ACTLAKE_JUDGE_KEY]"),
    ] = None,
    judge_model: Annotated[str | None, typer.Option(help="Its model. [default: ACTLAKE_JUDGE_MODEL]")] = None,
    second: Annotated[
        str | None, typer.Option(help="A second judge at the same address; where the two differ, --referee decides.")
    ] = None,
    referee: Annotated[
        str | None, typer.Option(help="Set ACTLAKE_JUDGE_REFEREE to it, so that rows take its verdicts too.")
    ] = None,
    rubrics: Annotated[
        Path | None,
        typer.Option(help="A file of rubrics of your own. [default: ACTLAKE_JUDGE_RUBRICS, else the packaged]"),
    ] = None,
    price_in: Annotated[float | None, typer.Option(help="Price of a million tokens sent, for the estimate.")] = None,
    price_out: Annotated[float | None, typer.Option(help="Price of a million tokens answered.")] = None,
    gold: Annotated[
        Path | None, typer.Option(help="Only measure the judge's agreement with this file: id, rubric, reply, value.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask before the judge is called.")] = False,
    prompts: PromptsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score what models wrote: form, answers, refusals, coherence, structure, and with --judge what an LLM says of it.

    Texts that are not there yet are generated. The judge's verdicts stay in the lake: nothing is judged twice. Before it is
    called, it prints how many calls and tokens that takes. Rows (`actlake run exp12`) show the verdicts beside the rest.
    """
    from ..capture.streams.names import one_pair

    lake, found = where.open(), dict[str, Any]()
    pair, roles = one_pair(names, "score", lake.catalog, lake.layout)
    if len(roles) == 1:
        raise LakeError(f"score reads texts of both models: name the pair, {pair}")
    server = {"url": judge_url, "model": judge_model, "price_in": price_in, "price_out": price_out}
    options: dict[str, Any] = {"rubrics": rubrics, "prompts": prompts, **server}
    if gold:
        lines = lake.judge(pair, gold=gold, **options)
        if as_json:
            return print_json(lines)
        return line("\n".join(lines))
    for name in (sweep or ["exp12"]) if judge else ():  # before texts are written
        lake.judge(pair, name, second=second, referee=referee, check=True, **options)
    for name in sweep or ["exp12"]:
        table = lake.score(pair, name, metric or (), prompts)
        found[name] = {"scores": records(table)}
        if not as_json:
            out.print(f"\n[bold]{name}[/]", highlight=False)
            print_table(table)
        if judge:
            lines = lake.judge(pair, name, second=second, referee=referee, agree=_agree(yes), **options)
            found[name]["judge"] = lines
            for text in [] if as_json else lines:
                line(text)
    if as_json:
        print_json(found)


def _agree(yes: bool) -> "Callable[[Cost], bool]":
    def agree(cost: "Cost") -> bool:
        line(cost)
        return yes or not cost.calls or typer.confirm("continue?", default=False)

    return agree
