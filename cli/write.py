"""Commands that let models write freely: generate, score."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from ..store.core.catalog import check_date, load_catalog
from ..store.core.errors import LakeError
from ..store.format.paths import writing
from .names import one_pair
from .options import (
    CatalogOption,
    ControlOption,
    DateOption,
    DeviceOption,
    JsonOption,
    LakeOption,
    LimitOption,
    NamesArgument,
    NewTokensOption,
    PromptsOption,
    RankOption,
    WorldOption,
    open_layout,
    out,
    print_json,
    print_table,
    records,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..judge.judge import Cost
    from ..queries.generation.sweeps import Setting

writers = typer.Typer()


@writers.command()
def generate(
    names: NamesArgument,
    variant: Annotated[str | None, typer.Option("--variant", help="pt or it, for --edit. [default: it]")] = None,
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
            help="Prompt set of the catalog or the lake, or a .jsonl/.csv file. [default: the one that the pair's captures read]",
        ),
    ] = None,
    limit: LimitOption = None,
    max_new_tokens: NewTokensOption = None,
    date: DateOption = None,
    control_tokens: ControlOption = False,
    batch: Annotated[
        int, typer.Option(help="Prompts decoded together: more are faster, and take more memory.", min=1)
    ] = 64,
    show: Annotated[int, typer.Option(help="Print the first N texts of each condition.", min=0)] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what there would be to do, and stop.")] = False,
    rank: RankOption = None,
    world: WorldOption = None,
    lake: LakeOption = "default",
    catalog: CatalogOption = None,
    device: DeviceOption = "auto",
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

    Interrupted? Run the same command again: it goes on where it stopped. Several GPUs: once for each with --rank R --world N,
    or under torchrun or srun. Texts that equal conditions or other prompt sets
    share are taken from the lake.
    """
    from ..capture.run.ranks import Rank
    from ..capture.streams.capture_pair import find_prompts
    from ..queries.engine.context import Context
    from ..queries.generation.generate import plan, setting_of, write

    known = load_catalog(catalog)
    with writing(known.lakes.get(lake, lake)) as layout:
        place = Rank.find(rank, world)
        kit = Context(layout, place.device(device), catalog)
        pair, roles = one_pair(names, variant, "generate")
        there = kit.variants(pair)
        wanted: list[Setting | str] = [*(sweep or [])]
        for name in condition or []:
            spec = known.condition(name)
            wanted.append(setting_of(kit, pair, spec.variant, spec.edits, spec.template))
        if edit or not wanted:
            texts = [text for text in edit or [] if text != "none"]
            wanted += [setting_of(kit, pair, who, texts, template) for who in roles or there[-1:]]
        chosen = find_prompts(known, layout, prompts, limit) if prompts else None
        if date:
            check_date(date)
        if limit and chosen is None:
            raise LakeError("--limit: goes with --prompts; without it the prompts are those that the captures read")
        found = plan(
            kit, pair, wanted, chosen, None, max_new_tokens or (64 if chosen else None), batch, date, control_tokens
        )
        if not as_json:
            out.print(found.line(), highlight=False)
        done = [] if dry_run else write(found, place)
    if as_json:
        rows = [{name: value for name, value in asdict(one).items() if name != "rows"} for one in done]
        return print_json({"asked": found.asked, "missing": found.missing, "tokens": found.tokens, "conditions": rows})
    if dry_run:
        return
    table = Table(
        "key", "who", "condition", "texts", "new", "tokens", box=None, padding=(0, 2, 0, 0), header_style="bold"
    )
    for one in done:
        table.add_row(
            one.key, one.variant, escape(one.condition), str(one.texts), str(one.generated), f"{one.tokens:,}"
        )
    out.print(table)
    saved = found.asked - sum(one.generated for one in done)
    out.print(f"{saved:,} of {found.asked:,} texts asked for did not have to be generated", highlight=False)
    for one in done:
        for row in one.rows[:show]:
            out.print(f"\n[bold]{one.key} {escape(row['prompt_id'])}[/]\n{escape(row['text'])}", highlight=False)


@writers.command()
def score(
    names: NamesArgument,
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
    lake: LakeOption = "default",
    catalog: CatalogOption = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Score what models wrote: form, answers, refusals, coherence, structure, and with --judge what an LLM says of it.

    Texts that are not there yet are generated. The judge's verdicts stay in the lake: nothing is asked twice. Before it is
    called, it prints how many calls and tokens that takes. Rows (`actlake run exp12`) show the verdicts beside the rest.
    """
    from ..queries.engine.context import Context
    from ..queries.generation.judging import agreement_with, judge_sweep
    from ..queries.generation.scores import mean_scores, scope_of

    pair, roles = one_pair(names, None, "score")
    if len(roles) == 1:
        raise LakeError(f"score reads texts of both models: name the pair, {pair}")
    layout, _ = open_layout(lake, catalog)
    kit = Context(layout, device, catalog)
    options = {"url": judge_url, "model": judge_model, "price_in": price_in, "price_out": price_out}
    scope = scope_of(kit, pair, prompts)
    if gold:
        for line in agreement_with(kit, scope, gold, rubrics, **options):
            out.print(line, highlight=False)
        return
    found: dict[str, Any] = {}
    for name in sweep or ["exp12"]:
        table = mean_scores(kit, scope, name, metric or [])
        found[name] = {"scores": records(table)}
        if not as_json:
            out.print(f"\n[bold]{name}[/]", highlight=False)
            print_table(table)
        if judge:
            lines = judge_sweep(kit, scope, name, rubrics, _agree(yes), second, referee, **options)
            found[name]["judge"] = list(lines) if as_json else []
            for line in [] if as_json else lines:
                out.print(line, highlight=False)
    if as_json:
        print_json(found)


def _agree(yes: bool) -> "Callable[[Cost], bool]":
    def agree(cost: "Cost") -> bool:
        out.print(str(cost), highlight=False)
        return yes or not cost.calls or typer.confirm("go on?", default=False)

    return agree
