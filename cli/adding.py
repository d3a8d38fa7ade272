"""Commands that check a model, and bring in what others made: model check, prompts add, table add."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from ..store.core.catalog import load_catalog
from ..store.core.errors import LakeError, needs
from ..store.core.files import human_bytes
from .options import Computing, DeviceMapOption, DtypeOption, JsonOption, Where, grouped
from .printing import line, out, print_json

adding = typer.Typer()
prompts_app = typer.Typer(help="Prompt sets.", no_args_is_help=True)
model_app = typer.Typer(help="Models.", no_args_is_help=True)
table_app = typer.Typer(help="Import a table.", no_args_is_help=True)
adding.add_typer(prompts_app, name="prompts")
adding.add_typer(model_app, name="model")
adding.add_typer(table_app, name="table")


@model_app.command("check", epilog="Example: `actlake model check pocket`")
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


@prompts_app.command("add", epilog="Example: `actlake prompts add mine.csv --text question`")
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
        path = lake.layout.prompts / added.name
    if as_json:
        return print_json({"path": str(path), "name": added.name, "prompts": len(added.prompts)})
    line(f"{path}: {len(added.prompts)} prompts; use it with --prompts {added.name}")


@dataclass(frozen=True)
class _Whose:
    """Of whom the rows of a table are, where the file does not say."""

    pair: Annotated[str | None, typer.Option(help="Pair of all rows, if the file has no column `pair`.")] = None
    model: Annotated[str | None, typer.Option(help="Model of all rows, in place of a pair and a variant.")] = None
    variant: Annotated[str | None, typer.Option(help="pt or it, if the file has no column `variant`.")] = None
    stream: Annotated[
        str | None,
        typer.Option(help="Stream name, e.g. native-theirs. [default: published, which answers rows of every stream]"),
    ] = None
    stream_pt: Annotated[str | None, typer.Option(help="Stream of the pt, in tables of both variants.")] = None
    model_pt: Annotated[str | None, typer.Option(help="Base model, in tables of both variants.")] = None
    model_it: Annotated[str | None, typer.Option(help="Instruction-tuned model, in tables of both variants.")] = None
    lens: Annotated[str | None, typer.Option(help="raw, tuned or jacobian, in tables of lenses. [default: raw]")] = None


@table_app.command("add", epilog="Example: `actlake table add lens theirs.parquet`")
@grouped
def table_add(
    name: Annotated[str, typer.Argument(help="The table that the file has columns of: lens, delta, pair_lens ...")],
    file: Annotated[Path, typer.Argument(help="A .parquet or .csv file: values per token, per prompt or per layer.")],
    whose: _Whose,
    where: Where,
    as_json: JsonOption = False,
) -> None:
    """Check a table of other people's numbers and import it into the lake, so that `run` and `sql` work on it.

    Columns that the file lacks are filled in where that is safe (stream, lens, draw, event ...) or NULL; the message for one
    that has to be there says which. Without prompt and token a row stands for the mean over them: published curves (variant,
    layer, value) give published numbers, without intervals.
    """
    with where.writing() as lake:
        added = lake.add_table(name, file, **vars(whose))
    if as_json:
        return print_json(vars(added))
    captures = "; ".join("/".join(capture.values()) for capture in added.captures)
    state = "was there already" if added.reused else "added"
    line(f"{added.path}: {added.rows:,} rows of {captures}, {state}")


@adding.command("import", epilog="Example: `actlake import vllm hidden_states --model pocket/it --boundaries 0-12`")
@grouped
def import_capture(
    format: Annotated[
        str,
        typer.Argument(
            metavar="FORMAT",
            help="vllm, speculators, specforge, crosscoder, saelens, transformerlens, nnsight, datasets, npy; or tokens: what an"
            " engine wrote, a .jsonl or .parquet file of prompt_token_ids and token_ids.",
        ),
    ],
    path: Annotated[Path, typer.Argument(help="The file or folder.")],
    model: Annotated[str, typer.Option(help="The model it is of: MODEL or PAIR/ROLE.")],
    where: Computing,
    stream: Annotated[
        str | None, typer.Option(help="Stream of the lake it was made on, for files without token ids.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the prompt set. [default: the file's]")] = None,
    boundaries: Annotated[
        str | None,
        typer.Option(
            help="Which boundaries unnamed layers are: 0 enters block 0, l+1 leaves block l; as 1,2,3 or 0-12."
        ),
    ] = None,
    engine: Annotated[str, typer.Option(help="With tokens: the engine that wrote them.")] = "",
    setting: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="With tokens: a setting of the engine.")
    ] = None,
    dtype: DtypeOption = "auto",
    allow_nonfinite: Annotated[
        bool, typer.Option("--allow-nonfinite", help="Keep NaN and infinity instead of refusing them.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Bring in a capture that another tool made, bit for bit; or text that another engine wrote, which is captured here.

    Interrupted? Run the same command again. `actlake verify MODEL/STREAM --reforward 8` then says whether it is right.
    """
    from ..exchange.tokens import said

    lists = format == "tokens"
    if lists and (stream or boundaries) or not lists and (engine or setting):
        raise LakeError("--engine and --setting go with tokens, --stream and --boundaries with all other formats")
    with where.writing() as lake:
        if lists:
            settings = {key: value for key, _, value in (one.partition("=") for one in setting or ())}
            found = lake.add_tokens(path, model, engine=engine, settings=settings, name=name, dtype=dtype)
            result, more = found.result, vars(found) | {"result": None}
        else:
            result = lake.add_capture(
                format, path, model, stream, name=name, boundaries=_numbers(boundaries), dtype=dtype,
                allow_nonfinite=allow_nonfinite,
            )  # fmt: skip
            more = {}
    more.pop("result", None)
    if as_json:
        return print_json({**vars(result), "path": str(result.path), **more})
    state = "was there already" if result.reused else f"imported in {result.seconds:.1f} s"
    line(f"{result.path}: {result.tokens:,} tokens, {human_bytes(result.bytes)}, {state}")
    if more and (how := said(more["tokens"], more["other"], more["first"])):
        line(how)


def _numbers(text: str | None) -> list[int]:
    """Numbers as 1,2,3 or 0-12 says them."""
    found = list[int]()
    for part in (text or "").split(",") if text else []:
        low, dash, high = part.strip().partition("-")
        first, last = (
            int(number) if number.isdecimal() and len(number) < 6 else -1 for number in (low, high if dash else low)
        )
        if not 0 <= first <= last:
            raise LakeError(f"--boundaries {text!r}", expected="numbers such as 1,2,3 or 0-12")
        found += range(first, last + 1)
    return found
