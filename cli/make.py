"""Commands that capture models and fit lenses: demo, capture, plan, seal, fit-lens, import-lens."""

import math
import time
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer
from rich.markup import escape

from ..store.core.errors import LakeError
from ..store.core.files import human_bytes
from ..store.core.schema import SITES
from ..store.tables.names import stored_pairs
from .engine import Engine
from .options import (
    CAPTURE,
    BatchOption,
    ByLayerOption,
    Computing,
    DeviceMapOption,
    DtypeOption,
    JsonOption,
    NamesArgument,
    Ranks,
    Reading,
    Tokens,
    Where,
    grouped,
)
from .printing import grid, line, out, print_json, print_table

DEMO_STREAMS, DEMO_ROWS = ("native", "teacher"), ("L1", "L2", "exp16")
making = typer.Typer()
PrecisionOption = Annotated[
    str | None,
    typer.Option(help="Round sites to int8 (1-2 % off, 0.7 of bfloat16's size), fp8 (3 %, 0.6), or SITE=int8,..."),
]


@making.command(epilog="Example: `actlake demo --limit 24`")
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


@making.command(epilog="Example: `actlake capture pocket --stream native --stream teacher`")
@grouped
def capture(
    names: NamesArgument,
    reading: Reading,
    tokens: Tokens,
    where: Computing,
    ranks: Ranks,
    engine: Engine,
    profile: Annotated[str, typer.Option(help="Profile of the catalog: what is kept.")] = "full",
    dtype: DtypeOption = "auto",
    batch: BatchOption = 16,
    device_map: DeviceMapOption = None,
    by_layer: ByLayerOption = False,
    precision: PrecisionOption = None,
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
    GPU: --device-map auto. One that is larger than memory: --by-layer.
    """
    server = engine.opened()
    with where.writing() as lake:
        results = lake.capture(
            names, profile=profile, outputs=outputs, dtype=dtype, batch=batch, double_bos=double_bos, precision=precision,
            allow_nonfinite=allow_nonfinite, device_map=device_map, with_weights=with_weights, by_layer=by_layer,
            server=server, streams=reading.streams or (), prompts=reading.prompts, **vars(tokens), **vars(ranks),
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


@making.command(epilog="Example: `actlake plan gemma3_4b --limit 200`")
@grouped
def plan(
    names: NamesArgument,
    reading: Reading,
    tokens: Tokens,
    where: Computing,
    profile: Annotated[
        list[str] | None, typer.Option("--profile", help="May be given several times. [default: all of the catalog]")
    ] = None,
    tokens_per_second: Annotated[float, typer.Option(help="What the model reads in a second.", min=1)] = 2000,
    disk_speed: Annotated[float, typer.Option(help="What the disk takes, in MB/s.", min=1)] = 500,
    dtype: DtypeOption = "auto",
    batch: BatchOption = 16,
    by_layer: ByLayerOption = False,
    precision: PrecisionOption = None,
    as_json: JsonOption = False,
) -> None:
    """What a capture will take: tokens, bytes, shards, memory, time. Reads configs and tokenizers, loads no weights.

    A stream that the lake holds already is counted exactly; otherwise every continuation counts in full ("at most").
    """
    table = where.open(missing=True).plan(
        names, profiles=profile or (), dtype=dtype, batch=batch, tokens_per_second=tokens_per_second,
        disk_speed=disk_speed, by_layer=by_layer, precision=precision,
        streams=reading.streams or (), prompts=reading.prompts, **vars(tokens),
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
    way = ""
    if by_layer:
        read, spilled = (human_bytes(int(table[name].max())) for name in ("read", "on disk on the way"))
        way = (
            f"; layer by layer: {read} of weights are read once, {spilled} lie in the lake until the capture is sealed"
        )
    out.print(
        f"time at {tokens_per_second:,.0f} tokens/s and {disk_speed:,.0f} MB/s of disk (--tokens-per-second, --disk-speed);"
        " generating continuations comes on top; device memory = weights + the largest batch; host memory = buffers + the"
        f" head, which the lake keeps, too ({human_bytes(int(table['head'].max()))} before compression, once a model)"
        + way,
        style="dim",
    )


@making.command(epilog="Example: `actlake seal pocket/it/native`")
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


@making.command(name="fit-lens", epilog="Example: `actlake fit-lens pocket/it --kind jacobian`")
@grouped
def fit_lens(
    names: NamesArgument,
    where: Computing,
    kind: Annotated[
        str,
        typer.Option(
            help="tuned: an affine map per layer, trained to predict the final distribution. jacobian: the mean derivative of the"
            " last residual, by backward passes of the model."
        ),
    ] = "tuned",
    recipe: Annotated[str, typer.Option(help="tuned: ridge, adam or sgd (the published one).")] = "ridge",
    stream: Annotated[str, typer.Option(help="Captured stream to fit on, by a unique beginning.")] = "native",
    tokens: Annotated[
        int | None,
        typer.Option(
            help="tuned: tokens to train on, again and again if memory holds them. [default: the recipe's]", min=1
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            help="Tokens a step; of a Jacobian lens, tokens that are computed together. [default: the recipe's; what fits]",
            min=1,
        ),
    ] = None,
    scale: Annotated[
        float | None, typer.Option(help="sgd: learning rate divided by 0.1. [default: the published one of the family]")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the order of the tokens, or of which prompts are taken.", min=0)] = 0,
    folds: Annotated[
        int,
        typer.Option(
            help="Sets of maps, each kept for the prompts it was not fitted on. 1: a single set, for data outside the evaluation"
            " set; tuned is trained on 80 % of the prompts, jacobian on all.",
            min=1,
        ),
    ] = 2,
    count: Annotated[
        int | None,
        typer.Option(help="jacobian: prompts to fit on. [default: 100, for widths from 576 on 200]", min=2),
    ] = None,
    skip: Annotated[int, typer.Option(help="jacobian: first tokens of a prompt that do not count.", min=0)] = 16,
    length: Annotated[int, typer.Option(help="jacobian: tokens of a prompt that are read, at most.", min=2)] = 128,
    centred: Annotated[
        bool,
        typer.Option("--centred", help="jacobian: map the mean residual to the mean last one, in place of 0 to 0."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Fit a lens: tuned, trained from a stored capture without the model, or jacobian, from the model's weights.

    Interrupted? The same command continues from the state saved last, at most a minute old. What a fit takes is said before.
    Rows that need a tuned lens use what was trained here, the most tokens first, before the lens they train by themselves. Rows
    and the explorer show a Jacobian lens beside the others where there is one. `actlake ls lenses` lists them.
    """
    found = where.open().fit_lens(
        names, kind, stream=stream, recipe=recipe, tokens=tokens, batch=batch, scale=scale, seed=seed, folds=folds,
        count=count, skip=skip, length=length, centred=centred,
    )  # fmt: skip
    if as_json:
        return print_json({str(path): record for path, record in found.items()})
    for path, record in found.items():
        if "kind" in record:
            _show_jacobian(path, record)
            continue
        line(f"{path}: held-out KL in nats, layers -1 to {len(record['kl_raw'][0]) - 2}")
        for fold in range(folds):
            took = f"{record['trained_tokens'][fold]:,} tokens in {record['steps'][fold]} steps"
            out.print(f"  fold {fold + 1} of {folds}, {took}", highlight=False)
            for name in ("raw", "tuned"):
                _numbers(name, record[f"kl_{name}"][fold], "    ", 5)


@making.command(name="import-lens", epilog="Example: `actlake import-lens jlens.pt --model pocket/it`")
@grouped
def import_lens(
    file: Annotated[Path, typer.Argument(help="What torch.save wrote: J, n_prompts, source_layers, d_model.")],
    where: Computing,
    model: Annotated[str, typer.Option(help="MODEL or PAIR/ROLE of the lake that the lens is of.")],
    kind: Annotated[str, typer.Option(help="jacobian: the format that Jacobian lenses are published in.")] = "jacobian",
    as_json: JsonOption = False,
) -> None:
    """Keep a Jacobian lens that others published, checked against the model: sizes, name, and how it reads stored residuals.

    No code in the file is run. It has no map of the embeddings: layer -1 is read as it is.
    """
    if kind != "jacobian":
        raise LakeError("lens kind", expected="jacobian", found=kind)
    path, record = where.open().import_lens(file, model)
    if as_json:
        return print_json({str(path): record})
    _show_jacobian(path, record)


def _show_jacobian(path: Path, record: dict[str, Any]) -> None:
    """What came of a Jacobian lens, layer by layer."""
    line(f"{path}: a Jacobian lens, layers -1 to {len(record['error'][0]) - 2}")
    for fold, (prompts, tokens) in enumerate(zip(record["prompts"], record["trained_tokens"], strict=True), 1):
        size = f"{prompts:,} prompts" + (f", {tokens:,} tokens" if tokens else "")
        out.print(f"  fold {fold} of {record['folds']}, {size}", highlight=False)
        if None not in (errors := record["error"][fold - 1]):
            _numbers("relative error of the mean", errors, "    ")
            needed = {goal: math.ceil(prompts * (max(errors) / goal) ** 2) for goal in (0.1, 0.05)}
            goals = ", ".join(f"{goal:.0%} from {count:,} prompts on" for goal, count in needed.items())
            out.print(f"    at the worst layer {goals}: it falls with the root of their number", highlight=False)
    if "halves" in record:
        _numbers("difference of two halves of the prompts", record["halves"], "  ")
    for name, what in (("kl", "KL to the final distribution, nats"), ("top1", "share of the final top token")):
        for lens in ("raw", "jacobian") if f"{name}_jacobian" in record else ():
            _numbers(f"{what}, {lens}", record[f"{name}_{lens}"], "  ", 44)


def _numbers(name: str, values: Iterable[float], indent: str = "", width: int = 0) -> None:
    """A line of numbers with their name before them."""
    out.print(f"{indent}{name:{width}} {' '.join(f'{value:.4g}' for value in values)}", highlight=False)
