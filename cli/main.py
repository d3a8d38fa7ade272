"""The command line: parse, call, print."""

import os
import sys
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from ..lake import Lake
from ..store.core.catalog import Catalog, StreamSpec, check_date, load_catalog
from ..store.core.errors import LakeError, SqlError
from ..store.core.files import human_bytes
from ..store.core.progress import Terminal
from ..store.core.schema import MARKER, SITES
from ..store.core.version import __version__
from ..store.format.paths import writing
from ..store.remote.store import is_remote
from ..store.tables.names import stored_pairs, variants_of
from .ask import questions
from .names import find_pair, models_named, one_pair
from .options import (
    CAPTURE,
    BatchOption,
    CatalogOption,
    ControlOption,
    DateOption,
    DeviceMapOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    LakeOption,
    LimitOption,
    NamesArgument,
    NewTokensOption,
    PairOption,
    PromptSetOption,
    RankOption,
    StreamOption,
    VariantOption,
    WorldOption,
    open_layout,
    out,
    print_json,
    print_table,
)
from .share import sharing
from .write import writers

# What torch reads when it starts. Threads that spin long while they wait make it several times slower as soon as another
# program wants a core; with 10,000 turns an idle machine stays about as fast. On a CPU it keeps compiled kernels and their
# scratch memory for up to 1,024 shapes each, and every batch has shapes of its own: a forward has few, and those are kept.
ENVIRONMENT = {
    "HF_HUB_VERBOSITY": "error",  # without a network it would print each of its retries
    "GOMP_SPINCOUNT": "10000",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "32",
    "LRU_CACHE_CAPACITY": "32",
}

app = typer.Typer(
    help="An activation lake: capture pretrained and instruction-tuned models once, then ask every question of the store.",
    epilog="Start with `actlake demo`. Every command explains itself with --help.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
prompts_app = typer.Typer(help="Prompt sets.", no_args_is_help=True)
app.add_typer(prompts_app, name="prompts")
model_app = typer.Typer(help="Models.", no_args_is_help=True)
app.add_typer(model_app, name="model")
probes_app = typer.Typer(help="Tuned-lens probes.", no_args_is_help=True)
app.add_typer(probes_app, name="probes")
app.add_typer(questions)
app.add_typer(writers)
app.add_typer(sharing)


@app.command()
def demo(
    lake: LakeOption = "default",
    catalog: CatalogOption = None,
    page: Annotated[Path, typer.Option("--out", help="The HTML page to write.")] = Path("report.html"),
    limit: Annotated[int | None, typer.Option(help="Only the first N prompts.")] = None,
    device: DeviceOption = "auto",
) -> None:
    """Full run on the built-in example pair: capture PT and IT once, answer L1, L2 and exp16 from the store, write a page.

    Run it twice: the second time everything is there and nothing is computed.
    """
    from ..queries.answer.results import next_commands
    from .demo import demo as run_demo

    started = time.perf_counter()
    known = load_catalog(catalog)
    with writing(known.lakes.get(lake, lake)) as layout:
        done = run_demo(known, layout, page, limit=limit, device=device)
    out.print()
    for number, found in enumerate(done.answers, 1):
        out.print(f"{number}. {escape(found.says)}", highlight=False)
    table = Table("step", "seconds", "bytes", "", box=None, padding=(0, 2, 0, 0))
    for step in done.steps:
        table.add_row(
            step.name,
            f"{step.seconds:.1f}",
            human_bytes(step.bytes) if step.bytes else "",
            "reused" if step.reused else "",
        )
    out.print()
    out.print(table)
    out.print(
        f"\n{'everything was there already; ' if all(s.reused for s in done.steps) else ''}"
        f"{time.perf_counter() - started:.1f} s in all"
    )
    out.print(f"lake  {done.lake}\npage  {done.page.absolute()}\n\nnext:", highlight=False, soft_wrap=True)
    for command in next_commands(done.answers[0].pair):
        out.print(f"  {escape(command)}", highlight=False, soft_wrap=True)


@app.command()
def capture(
    names: NamesArgument,
    variant: VariantOption = None,
    stream: StreamOption = None,
    prompts: PromptSetOption = None,
    profile: Annotated[str, typer.Option(help="Profile of the catalog: what is kept.")] = "full",
    lake: LakeOption = "default",
    catalog: CatalogOption = None,
    device: DeviceOption = "auto",
    device_map: DeviceMapOption = None,
    dtype: DtypeOption = "auto",
    batch: BatchOption = 16,
    limit: LimitOption = None,
    max_new_tokens: NewTokensOption = None,
    date: DateOption = None,
    control_tokens: ControlOption = False,
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
    rank: RankOption = None,
    world: WorldOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read models on token streams into the lake; what a stream needs (continuations, say) is made first.

    Interrupted? Run the same command again: it goes on where it stopped and seals the same bytes.

    Several GPUs or machines: start the command once for each with --rank R --world N, or under torchrun or srun. Ranks write
    disjoint shard rows and never talk; the last to finish seals, or `actlake seal` does. A model that is larger than one
    GPU: --device-map auto.
    """
    from ..capture.run.ranks import Rank
    from ..capture.streams.capture_pair import Options, capture_pair, find_prompts
    from ..capture.streams.streams import steered

    known, wanted = load_catalog(catalog), models_named(names, variant)
    place = Rank.find(rank, world)
    if outputs and (stream or max_new_tokens or date or control_tokens):
        raise LakeError(
            "--outputs: the texts are there already, with all that made them; leave --stream, --max-new-tokens, --date and"
            " --control-tokens out"
        )
    if outputs and len(wanted) > 1:
        raise LakeError("--outputs: names texts of one pair; capture one at a time")
    results = []
    with writing(known.lakes.get(lake, lake)) as layout:
        found = {name: find_pair(name, roles, known, layout) for name, roles in wanted.items()}
        for name, roles in wanted.items():
            if outputs:
                who, _, key = outputs.rpartition("/")
                specs = [steered(layout, name, who or "it", key)]
            else:
                specs = _streams(known, stream, max_new_tokens, date, control_tokens)
            results += capture_pair(
                layout,
                found[name],
                specs,
                find_prompts(known, layout, prompts or _usual_prompts(name), limit),
                known.profile(profile),
                roles,
                Options(
                    place.device(device), dtype, batch, double_bos, allow_nonfinite, place, device_map, with_weights
                ),
            )
    rows = [
        {
            "path": str(r.path),
            "sealed": r.sealed,
            "reused": r.reused,
            "tokens": r.tokens,
            "bytes": r.bytes,
            "seconds": round(r.seconds, 2),
        }
        for r in results
    ]
    if as_json:
        return print_json(rows)
    for row, result in zip(rows, results, strict=True):
        state = "was there already" if result.reused else f"sealed in {result.seconds:.1f} s"
        if not result.sealed:
            state = f"{place}'s rows written in {result.seconds:.1f} s; other ranks' are missing"
        size = f", {human_bytes(result.bytes)}" if result.bytes else ""
        out.print(
            f"{row['path']}: {result.tokens:,} tokens{size}, {state}",
            highlight=False,
            soft_wrap=True,
        )
    if all(result.sealed for result in results):
        from ..queries.answer.ready import next_questions

        for line in next_questions(layout, list(wanted), catalog):
            out.print(escape(line), highlight=False, soft_wrap=True, style="dim")


@app.command()
def plan(
    names: NamesArgument,
    variant: VariantOption = None,
    stream: StreamOption = None,
    prompts: PromptSetOption = None,
    profile: Annotated[
        list[str] | None, typer.Option("--profile", help="May be given several times. [default: all of the catalog]")
    ] = None,
    tokens_per_second: Annotated[float, typer.Option(help="What the model reads in a second.", min=1)] = 2000,
    disk_speed: Annotated[float, typer.Option(help="What the disk takes, in MB/s.", min=1)] = 500,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    batch: BatchOption = 16,
    limit: LimitOption = None,
    max_new_tokens: NewTokensOption = None,
    date: DateOption = None,
    control_tokens: ControlOption = False,
    lake: LakeOption = "default",
    catalog: CatalogOption = None,
    as_json: JsonOption = False,
) -> None:
    """What a capture will take: tokens, bytes, shards, memory, time. Reads configs and tokenizers, loads no weights.

    A stream that the lake holds already is counted exactly; otherwise every continuation counts in full ("at most").
    """
    from ..capture.streams.capture_pair import Options, find_prompts
    from ..capture.streams.estimate import forecast

    known = load_catalog(catalog)
    place = known.lakes.get(lake, lake)
    layout = open_layout(lake, catalog)[0] if is_remote(place) or (Path(place) / MARKER).exists() else None
    wanted = models_named(names, variant)
    specs = {name: find_pair(name, roles, known, layout) for name, roles in wanted.items()}
    found = [
        one
        for name, roles in wanted.items()
        for one in forecast(
            specs[name],
            _streams(known, stream, max_new_tokens, date, control_tokens),
            find_prompts(known, layout, prompts or _usual_prompts(name), limit),
            [known.profile(name) for name in profile or known.profiles],
            roles,
            Options(device, dtype, batch),
            layout,
        )
    ]
    rows: list[dict[str, Any]] = [
        {
            "pair": f.pair,
            "variant": f.variant,
            "stream": f.stream,
            "profile": f.profile,
            "exact": f.exact,
            "tokens": f.size.tokens,
            "shard rows": f.size.shards,
            **{f"{name} (raw)": count for name, count in f.site_bytes.items()},
            "raw": f.raw,
            "on disk": f.size.stored,
            "device memory": f.weights + f.size.device,
            "host memory": f.head + f.size.memory,
            "seconds": round(f.seconds(tokens_per_second, disk_speed * 1e6)),
        }
        for f in found
    ]
    if as_json:
        return print_json(rows)
    columns = ["capture", "tokens", "shard rows", "sites, raw", "on disk", "device memory", "host memory", "time"]
    table = Table(*columns, box=None, padding=(0, 2, 0, 0), header_style="bold")
    for f, row in zip(found, rows, strict=True):
        sites = ", ".join(f"{name} {human_bytes(f.site_bytes[name])}" for name in f.site_bytes if name in SITES)
        table.add_row(
            f"{f.pair}/{f.variant} {f.stream} {f.profile}",
            f"{'' if f.exact else 'at most '}{f.size.tokens:,}",
            str(f.size.shards),
            f"{sites} of {human_bytes(f.raw)}".removeprefix(" of "),
            human_bytes(f.size.stored),
            human_bytes(row["device memory"]),
            human_bytes(row["host memory"]),
            str(timedelta(seconds=row["seconds"])),
        )
    out.print(table)
    out.print(
        f"time at {tokens_per_second:,.0f} tokens/s and {disk_speed:,.0f} MB/s of disk (--tokens-per-second, --disk-speed);"
        " generating continuations comes on top; device memory = weights + the largest batch; host memory = buffers + the"
        f" head, which the lake keeps, too ({human_bytes(max(f.head for f in found))} before compression, once a model)",
        style="dim",
    )


@app.command()
def seal(
    capture: Annotated[str | None, typer.Argument(help=CAPTURE + " Every unsealed one when left out.")] = None,
    lake: LakeOption = "default",
    catalog: CatalogOption = None,
) -> None:
    """Seal captures whose ranks have all come to their end; says which rows are missing where one has not."""
    from ..capture.run.reforward import seal_captures

    for path, manifest in seal_captures(open_layout(lake, catalog)[0], capture):
        out.print(
            f"{path}: sealed, {manifest['n_tokens']:,} tokens, {human_bytes(manifest['bytes'])}",
            highlight=False,
            soft_wrap=True,
        )


@app.command()
def ls(lake: LakeOption = "default", catalog: CatalogOption = None, as_json: JsonOption = False) -> None:
    """What the lake holds: every capture with its tokens and bytes."""
    table = Lake(open_layout(lake, catalog)[0].root).captures
    print_table(table if as_json else table.drop(columns="path"), as_json)


@app.command()
def show(
    capture: Annotated[str, typer.Argument(help=CAPTURE)],
    lake: LakeOption = "default",
    catalog: CatalogOption = None,
    as_json: JsonOption = False,
) -> None:
    """One capture: its arrays and where it comes from."""
    from ..store.captures.manifest import noise_warning, read_manifest
    from ..store.captures.reader import find_capture, open_capture, split_capture

    layout, _ = open_layout(lake, catalog)
    path = find_capture(layout, *split_capture(capture))
    manifest = read_manifest(path) or {}
    if as_json:
        return print_json(manifest)
    out.print(escape(str(open_capture(path, lake=layout.files))), highlight=False, soft_wrap=True)
    for key in ("capture_sha256", "bytes", "n_shards", "shard_tokens", "noise_floor"):
        out.print(f"{key:15} {manifest.get(key)}", highlight=False)
    if warning := manifest and noise_warning(manifest):
        out.print(f"warning: {warning}", style="yellow", highlight=False, markup=False, soft_wrap=True)


@app.command()
def verify(
    capture: Annotated[str | None, typer.Argument(help=CAPTURE + " Every sealed capture when left out.")] = None,
    reforward: Annotated[int, typer.Option(help="Run N prompts again and compare.", min=0)] = 0,
    pair: PairOption = None,
    lake: LakeOption = "default",
    catalog: CatalogOption = None,
    device: DeviceOption = "auto",
    device_map: DeviceMapOption = None,
    as_json: JsonOption = False,
) -> None:
    """Re-hash every shard, check counts, finiteness and the zero low halves of widened bfloat16.

    Exit code 1 when something is wrong.
    """
    from .check import check_captures

    layout, known = open_layout(lake, catalog)
    reports = check_captures(layout, known, capture, pair, reforward, device, device_map)
    if as_json:
        print_json([vars(report) | {"ok": report.ok} for report in reports])
    else:
        for report in reports:
            state = "[green]good[/]" if report.ok else "[red]DAMAGED[/]"
            out.print(
                f"{state}  {report.capture}: {report.files} files, {human_bytes(report.bytes)}{report.reforward}",
                highlight=False,
                soft_wrap=True,
            )
            for problem in report.problems:
                out.print(f"  {escape(problem)}", highlight=False, soft_wrap=True)
    if not all(report.ok for report in reports):
        raise typer.Exit(1)


@model_app.command("check")
def model_check(
    what: Annotated[
        str, typer.Argument(metavar="PATH|PAIR", help="A model folder, a .gguf file, or a pair of the catalog.")
    ],
    device: DeviceOption = "auto",
    device_map: DeviceMapOption = None,
    dtype: DtypeOption = "auto",
    catalog: CatalogOption = None,
    as_json: JsonOption = False,
) -> None:
    """Load models and tell what was found: blocks, norms, what the MLP output means, head, attention, tokenizer.

    Runs the checks of a capture on the way; a model that passes can be captured.
    """
    from ..capture.model.describe import check_models, find_specs, lines

    found = check_models(find_specs(load_catalog(catalog), what), device, dtype, device_map)
    if as_json:
        return print_json(found)
    for model in found:
        out.print(f"[bold]{escape(model['model'])}[/]", highlight=False)
        for name, text in lines(model):
            out.print(f"  {name:11} {escape(text)}", highlight=False, soft_wrap=True)
    if len(found) == 2:
        out.print("the two have one shape and one tokenizer: they can be captured as a pair", highlight=False)


@prompts_app.command("add")
def prompts_add(
    file: Annotated[Path, typer.Argument(help="A .jsonl or .csv file; prompts without ids are numbered.")],
    name: Annotated[str | None, typer.Option(help="Name of the set. [default: the file's]")] = None,
    text: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Which column is the text. [default: text]")
    ] = None,
    id: Annotated[str | None, typer.Option(metavar="COLUMN", help="Which column is the id. [default: id]")] = None,
    category: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Which column is the category. [default: category]")
    ] = None,
    lake: LakeOption = "default",
    catalog: CatalogOption = None,
) -> None:
    """Check a prompt set and keep it in the lake, so that `--prompts NAME` finds it."""
    from ..capture.streams.prompts import add_prompts, read_prompts

    known = load_catalog(catalog)
    if (name or file.stem) in known.prompts:
        raise LakeError(
            f"prompt set {name or file.stem!r} is already a name of {known.path}; choose another with --name"
        )
    with writing(known.lakes.get(lake, lake)) as layout:
        given = {"text": text, "id": id, "category": category}
        columns = {key: column for key, column in given.items() if column}
        path = add_prompts(file, layout.prompts, name or file.stem, columns)
        layout.files.publish(path)
    count = len(read_prompts(path).prompts)
    out.print(f"{path}: {count} prompts; use it with --prompts {path.stem}", highlight=False, soft_wrap=True)


@probes_app.command("train")
def probes_train(
    names: NamesArgument,
    variant: VariantOption = None,
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
            help="Sets of probes, each kept for the prompts it was not trained on. 1: a single set,"
            " trained on 80 % of the prompts, for data outside the evaluation set.",
            min=1,
        ),
    ] = 2,
    lake: LakeOption = "default",
    catalog: CatalogOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Train an affine probe per layer from a stored capture, so that its lens predicts the final distribution. Loads no model.

    Interrupted? The same command goes on from a minute before. Rows that need a tuned lens use what was trained here, the
    most tokens first, before the probes they train by themselves.
    """
    from ..queries.probes.training import recipe_of, train_probes

    layout, known = open_layout(lake, catalog)
    pair, roles = one_pair(names, variant, "probes train")
    there = variants_of(pair, stored_pairs(layout), known)
    for name in roles or there:
        chosen = recipe_of(layout, recipe, f"{pair}/{name}", batch, scale)
        path, record = train_probes(
            layout, f"{pair}/{name}", stream, chosen, tokens=tokens, seed=seed, folds=folds, device=device
        )
        layers = f"layers -1 to {len(record['kl_raw'][0]) - 2}"
        out.print(f"{path}: held-out KL in nats, {layers}", highlight=False, soft_wrap=True)
        for fold in range(folds):
            took = f"{record['trained_tokens'][fold]:,} tokens in {record['steps'][fold]} steps"
            out.print(f"  fold {fold + 1} of {folds}, {took}", highlight=False)
            for kind in ("raw", "tuned"):
                values = " ".join(f"{kl:.4g}" for kl in record[f"kl_{kind}"][fold])
                out.print(f"    {kind:5} {values}", highlight=False)


@probes_app.command("ls")
def probes_ls(lake: LakeOption = "default", catalog: CatalogOption = None, as_json: JsonOption = False) -> None:
    """Every set of probes, with its held-out KL (nats, mean over the layers that have a probe), raw and tuned."""
    from ..store.artifacts.probes import probes_table

    table = probes_table(open_layout(lake, catalog)[0])
    print_table(table if as_json else table.drop(columns="path"), as_json)


@app.command()
def doctor(lake: LakeOption = "default", catalog: CatalogOption = None) -> None:
    """Versions, devices, disk, catalog and lake, one line each."""
    from .check import doctor_lines

    for name, value in doctor_lines(lake, catalog):
        out.print(f"{name:12} {value}", highlight=False, soft_wrap=True)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        out.print(f"actlake {__version__}", highlight=False)
        raise typer.Exit()


def main() -> None:
    """Run a command; a user's mistake is one line on standard error and exit code 2."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        app(standalone_mode=True)
    except LakeError as error:
        if isinstance(error, SqlError) and len(error.lines) > 1:  # the last points at the place
            Terminal(stderr=True, soft_wrap=True).print(
                "[red]error:[/] SQL: " + escape("\n".join(error.lines)), highlight=False
            )
            sys.exit(2)
        Terminal(stderr=True, soft_wrap=True).print(
            f"[red]error:[/] {escape(' '.join(str(error).split()))}", highlight=False
        )
        sys.exit(2)
    except SystemExit as stop:
        if stop.code == 130:  # Ctrl-C
            Terminal(stderr=True).print("stopped; what is written stays: the same command goes on from there")
        raise


# --- shared ----------------------------------------------------------------------------------------------------------


def _streams(
    known: Catalog, names: list[str] | None, max_new_tokens: int | None, date: str | None, control_tokens: bool
) -> list[StreamSpec]:
    specs = [known.stream(name) for name in names or ["native"]]
    if date:
        specs = [replace(spec, date=check_date(date)) for spec in specs]
    if control_tokens:
        specs = [replace(spec, control_tokens=True) for spec in specs]
    return [
        replace(spec, max_new_tokens=max_new_tokens)
        if max_new_tokens is not None and spec.continuation != "none"
        else spec
        for spec in specs
    ]


def _usual_prompts(pair: str) -> str:
    return "pocket" if pair == "pocket" else "core"
