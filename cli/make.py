"""Commands that bring something into a lake: demo, capture, plan, seal, fit-lens, generate, score, prompts add, table add."""

import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import pandas as pd
import typer
from rich.markup import escape

from ..store.core.catalog import load_catalog
from ..store.core.errors import LakeError
from ..store.core.extras import needs
from ..store.core.files import human_bytes
from ..store.core.schema import SITES
from ..store.tables.names import stored_pairs
from .options import (
    CAPTURE,
    BatchOption,
    Computing,
    DeviceMapOption,
    DryRunOption,
    DtypeOption,
    JsonOption,
    NamesArgument,
    PromptsOption,
    Ranks,
    Reading,
    Where,
    grouped,
)
from .printing import grid, line, out, print_json, print_table, records

if TYPE_CHECKING:
    from ..judge.judge import Cost

DEMO_STREAMS, DEMO_ROWS = ("native", "teacher"), ("L1", "L2", "exp16")
making = typer.Typer()
prompts_app = typer.Typer(help="Prompt sets.", no_args_is_help=True)
model_app = typer.Typer(help="Models.", no_args_is_help=True)
table_app = typer.Typer(help="Import a table.", no_args_is_help=True)
making.add_typer(prompts_app, name="prompts")
making.add_typer(model_app, name="model")
making.add_typer(table_app, name="table")


@making.command()
@grouped
def demo(
    where: Computing,
    page: Annotated[Path, typer.Option("--out", help="The HTML page to write.")] = Path("report.html"),
    limit: Annotated[int | None, typer.Option(help="Only the first N prompts.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Full run on the built-in example pair: capture PT and IT once, answer L1, L2 and exp16 from the store, write a page.

    Run it twice: the second time everything is there and nothing is computed.
    """
    from ..queries.answer.results import next_commands
    from ..queries.figures.page import Step

    started = time.perf_counter()
    with where.writing() as lake:
        # The profile `attention`, so that `actlake run --all` can answer every row afterwards.
        captures = lake.capture("pocket", DEMO_STREAMS, "pocket", "attention", limit=limit)
        spent = sum(one.seconds for one in captures)
        reused = all(one.reused for one in captures)
        steps = [Step("streams (greedy continuations)", time.perf_counter() - started - spent, 0, reused)]
        for one in captures:
            name = f"capture {one.path.parent.name} on {one.path.stem}"
            steps.append(Step(name, one.seconds, one.bytes, one.reused))
        found = lake.run_all(DEMO_ROWS, "pocket")
        if found.refused:
            raise LakeError(found.refused[0].reason)
        found.page(page, steps)
        steps += found.steps
    seconds = time.perf_counter() - started
    if as_json:
        sentences = {one.query.id: one.sentence for one in found.answers}
        return print_json({"answers": sentences, "page": str(page), "lake": str(lake.layout), "seconds": seconds})
    out.print()
    for number, answer in enumerate(found.answers, 1):
        out.print(f"{number}. {escape(answer.sentence)}", highlight=False)
    table = grid("step", "seconds", "bytes", "")
    for step in steps:
        size = human_bytes(step.bytes) if step.bytes else ""
        table.add_row(step.name, f"{step.seconds:.1f}", size, "reused" if step.reused else "")
    out.print()
    out.print(table)
    there = "everything was there already; " if all(step.reused for step in steps) else ""
    out.print(f"\n{there}{seconds:.1f} s in all")
    line(f"lake  {lake.layout.root}\npage  {page.absolute()}\n\nnext:")
    for command in next_commands("pocket"):
        line(f"  {command}")


@making.command()
@grouped
def capture(
    names: NamesArgument,
    reading: Reading,
    where: Computing,
    ranks: Ranks,
    profile: Annotated[str, typer.Option(help="Profile of the catalog: what is kept.")] = "full",
    dtype: DtypeOption = "auto",
    batch: BatchOption = 16,
    device_map: DeviceMapOption = None,
    outputs: Annotated[
        str | None,
        typer.Option(
            help="Read texts that `actlake generate` wrote, in place of a --stream: VARIANT/KEY, the key or its beginning."
        ),
    ] = None,
    double_bos: Annotated[
        bool, typer.Option(help="Tokenize the rendered chat template with BOS again, as the PT/IT study did.")
    ] = False,
    allow_nonfinite: Annotated[bool, typer.Option(help="Store NaN and infinity instead of stopping.")] = False,
    with_weights: Annotated[
        bool,
        typer.Option(
            help="Keep the models' own files in the lake, to run them again without the hub; mind their licence."
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Read models on token streams into the lake; what a stream needs (continuations, say) is made first.

    Interrupted? Run the same command again: it continues where it stopped and seals the same bytes.

    Several GPUs or machines: start the command once for each with --rank R --world N, or under torchrun or srun. Ranks write
    disjoint shard rows and never talk; the last to finish seals, or `actlake seal` does. A model that is larger than one
    GPU: --device-map auto.
    """
    with where.writing() as lake:
        results = lake.capture(
            names, profile=profile, outputs=outputs, dtype=dtype, batch=batch, double_bos=double_bos,
            allow_nonfinite=allow_nonfinite, device_map=device_map, with_weights=with_weights, **reading.named, **vars(ranks),
        )  # fmt: skip
    if as_json:
        return print_json([{**vars(one), "path": str(one.path), "seconds": round(one.seconds, 2)} for one in results])
    for one in results:
        state = "was there already" if one.reused else f"sealed in {one.seconds:.1f} s"
        if not one.sealed:
            state = f"this rank's rows written in {one.seconds:.1f} s; other ranks' are missing"
        size = f", {human_bytes(one.bytes)}" if one.bytes else ""
        line(f"{one.path}: {one.tokens:,} tokens{size}, {state}")
    if all(one.sealed for one in results):
        from ..queries.answer.ready import next_questions

        captured = {one.path.parent.name for one in results}
        pairs = [
            pair for pair, models in stored_pairs(lake.catalog, captured).items() if captured >= {*models.values()}
        ]
        for question in next_questions(lake.layout, pairs, where.catalog):
            line(question, style="dim")


@making.command()
@grouped
def plan(
    names: NamesArgument,
    reading: Reading,
    where: Computing,
    profile: Annotated[
        list[str] | None, typer.Option("--profile", help="May be given several times. [default: all of the catalog]")
    ] = None,
    tokens_per_second: Annotated[float, typer.Option(help="What the model reads in a second.", min=1)] = 2000,
    disk_speed: Annotated[float, typer.Option(help="What the disk takes, in MB/s.", min=1)] = 500,
    dtype: DtypeOption = "auto",
    batch: BatchOption = 16,
    as_json: JsonOption = False,
) -> None:
    """What a capture will take: tokens, bytes, shards, memory, time. Reads configs and tokenizers, loads no weights.

    A stream that the lake holds already is counted exactly; otherwise every continuation counts in full ("at most").
    """
    table = where.open(missing=True).plan(
        names, profiles=profile or (), dtype=dtype, batch=batch, tokens_per_second=tokens_per_second,
        disk_speed=disk_speed, **reading.named,
    )  # fmt: skip
    if as_json:
        return print_table(table, True)
    shown = grid("capture", "tokens", "shard rows", "sites, raw", "on disk", "device memory", "host memory", "time")
    for row in table.to_dict("records"):
        sites = ", ".join(
            f"{name} {human_bytes(row[key])}" for name in SITES if pd.notna(row.get(key := f"{name} (raw)"))
        )
        shown.add_row(
            f"{row['model']} {row['stream']} {row['profile']}",
            f"{'' if row['exact'] else 'at most '}{row['tokens']:,}",
            str(row["shard rows"]),
            f"{sites} of {human_bytes(row['raw'])}".removeprefix(" of "),
            *(human_bytes(row[name]) for name in ("on disk", "device memory", "host memory")),
            str(timedelta(seconds=row["seconds"])),
        )
    out.print(shown)
    out.print(
        f"time at {tokens_per_second:,.0f} tokens/s and {disk_speed:,.0f} MB/s of disk (--tokens-per-second, --disk-speed);"
        " generating continuations comes on top; device memory = weights + the largest batch; host memory = buffers + the"
        f" head, which the lake keeps, too ({human_bytes(int(table['head'].max()))} before compression, once a model)",
        style="dim",
    )


@making.command()
@grouped
def seal(
    where: Where,
    capture: Annotated[str | None, typer.Argument(help=CAPTURE + " Every unsealed one when left out.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Seal captures whose ranks have all finished; lists the shards still to be written."""
    sealed = where.open().seal(capture)
    if as_json:
        return print_table(sealed, True)
    for row in sealed.itertuples():
        line(f"{row.path}: sealed, {row.tokens:,} tokens, {human_bytes(row.bytes)}")


@making.command(name="fit-lens")
@grouped
def fit_lens(
    names: NamesArgument,
    where: Computing,
    kind: Annotated[str, typer.Option(help="tuned: an affine map per layer.")] = "tuned",
    recipe: Annotated[str, typer.Option(help="sgd (the published one) or adam.")] = "adam",
    stream: Annotated[str, typer.Option(help="Captured stream to train on, by a unique beginning.")] = "native",
    tokens: Annotated[
        int | None,
        typer.Option(help="Tokens to train on, again and again if memory holds them. [default: the recipe's]", min=1),
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Tokens a step. [default: the recipe's]", min=1)] = None,
    scale: Annotated[
        float | None, typer.Option(help="sgd: learning rate divided by 0.1. [default: the published one of the family]")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the order of the tokens.")] = 0,
    folds: Annotated[
        int,
        typer.Option(
            help="Sets of maps, each kept for the prompts it was not trained on. 1: a single set,"
            " trained on 80 % of the prompts, for data outside the evaluation set.",
            min=1,
        ),
    ] = 2,
    as_json: JsonOption = False,
) -> None:
    """Train a tuned lens from a stored capture, so that each layer predicts the final distribution. Loads no model.

    Interrupted? The same command continues from the state saved last, at most a minute old.
    Rows that need a tuned lens use what was trained here, the
    most tokens first, before the lens they train by themselves. `actlake ls lenses` lists them.
    """
    found = where.open().fit_lens(
        names, kind, stream=stream, recipe=recipe, tokens=tokens, batch=batch, scale=scale, seed=seed, folds=folds
    )
    if as_json:
        return print_json({str(path): record for path, record in found.items()})
    for path, record in found.items():
        line(f"{path}: held-out KL in nats, layers -1 to {len(record['kl_raw'][0]) - 2}")
        for fold in range(folds):
            took = f"{record['trained_tokens'][fold]:,} tokens in {record['steps'][fold]} steps"
            out.print(f"  fold {fold + 1} of {folds}, {took}", highlight=False)
            for name in ("raw", "tuned"):
                values = " ".join(f"{kl:.4g}" for kl in record[f"kl_{name}"][fold])
                out.print(f"    {name:5} {values}", highlight=False)


@making.command()
@grouped
def generate(
    names: NamesArgument,
    where: Computing,
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
            help="Prompt set of the catalog or the lake, or a .jsonl/.csv file. [default: the one that the pair's captures read]",
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", help="Only the first N prompts.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option("--max-new-tokens", help="Longest text.")] = None,
    date: Annotated[str | None, typer.Option("--date", help="As for `actlake capture`.")] = None,
    control_tokens: Annotated[bool, typer.Option("--control-tokens", help="As for `actlake capture`.")] = False,
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
            limit=limit, max_new_tokens=max_new_tokens, date=date, control_tokens=control_tokens, batch=batch,
            dry_run=dry_run, show=None if as_json else line, **vars(ranks),
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


@making.command()
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


@model_app.command("check")
@grouped
def model_check(
    what: Annotated[
        str,
        typer.Argument(metavar="PATH|NAME", help="A model folder, a .gguf file, or a model or pair of the catalog."),
    ],
    where: Computing,
    device_map: DeviceMapOption = None,
    dtype: DtypeOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Load models and tell what was found: blocks, norms, what the MLP output means, head, attention, tokenizer.

    Runs the checks of a capture on the way; a model that passes can be captured.
    """
    with needs():
        from ..capture.model.describe import check_models, find_specs, lines

    found = check_models(find_specs(load_catalog(where.catalog), what), where.device, dtype, device_map)
    if as_json:
        return print_json(found)
    for model in found:
        out.print(f"[bold]{escape(model['model'])}[/]", highlight=False)
        for name, text in lines(model):
            line(f"  {name:11} {text}")
    if len(found) == 2:
        line("the two have one shape and one tokenizer: they can be captured as a pair")


@prompts_app.command("add")
@grouped
def prompts_add(
    file: Annotated[Path, typer.Argument(help="A .jsonl or .csv file; prompts without ids are numbered.")],
    where: Where,
    name: Annotated[str | None, typer.Option(help="Name of the set. [default: the file's]")] = None,
    text: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Which column is the text. [default: text]")
    ] = None,
    id: Annotated[str | None, typer.Option(metavar="COLUMN", help="Which column is the id. [default: id]")] = None,
    category: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Which column is the category. [default: category]")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check a prompt set and keep it in the lake, so that `--prompts NAME` finds it."""
    given = {"text": text, "id": id, "category": category}
    with where.writing() as lake:
        added = lake.add_prompts(file, name, {key: column for key, column in given.items() if column})
        path = lake.layout.prompts / f"{added.name}.jsonl"
    if as_json:
        return print_json({"path": str(path), "name": added.name, "prompts": len(added.prompts)})
    line(f"{path}: {len(added.prompts)} prompts; use it with --prompts {added.name}")


@table_app.command("add")
@grouped
def table_add(
    name: Annotated[str, typer.Argument(help="The table that the file has columns of: lens, delta, pair_lens ...")],
    file: Annotated[Path, typer.Argument(help="A .parquet or .csv file: values per token, per prompt or per layer.")],
    where: Where,
    pair: Annotated[str | None, typer.Option(help="Pair of all rows, if the file has no column `pair`.")] = None,
    model: Annotated[str | None, typer.Option(help="Model of all rows, in place of a pair and a variant.")] = None,
    variant: Annotated[str | None, typer.Option(help="pt or it, if the file has no column `variant`.")] = None,
    stream: Annotated[
        str | None,
        typer.Option(help="Stream name, e.g. native-theirs. [default: published, which answers rows of every stream]"),
    ] = None,
    stream_pt: Annotated[str | None, typer.Option(help="Stream of the pt, in tables of both variants.")] = None,
    model_pt: Annotated[str | None, typer.Option(help="Base model, in tables of both variants.")] = None,
    model_it: Annotated[str | None, typer.Option(help="Instruction-tuned model, in tables of both variants.")] = None,
    lens: Annotated[str | None, typer.Option(help="raw or tuned, in tables of lenses. [default: raw]")] = None,
    as_json: JsonOption = False,
) -> None:
    """Check a table of other people's numbers and import it into the lake, so that `run` and `sql` work on it.

    Columns that the file lacks are filled in where that is safe (stream, lens, draw, event ...) or NULL; the message for one
    that has to be there says which. Without prompt and token a row stands for the mean over them: published curves (variant,
    layer, value) give published numbers, without intervals.
    """
    with where.writing() as lake:
        added = lake.add_table(
            name,
            file,
            model=model,
            pair=pair,
            variant=variant,
            stream=stream,
            stream_pt=stream_pt,
            model_pt=model_pt,
            model_it=model_it,
            lens=lens,
        )
    if as_json:
        return print_json(vars(added))
    whose = "; ".join("/".join(capture.values()) for capture in added.captures)
    state = "was there already" if added.reused else "added"
    line(f"{added.path}: {added.rows:,} rows of {whose}, {state}")
