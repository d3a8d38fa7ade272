"""Making streams: prompts under a template, followed by a model's greedy continuation."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ...store.artifacts.streams import Stream, find_stream, read_stream, write_stream
from ...store.artifacts.texts import find_condition, prompt_key, read_condition, read_texts
from ...store.core.catalog import PairSpec, StreamSpec
from ...store.core.errors import LakeError
from ...store.core.files import hash_json
from ...store.core.progress import bar, remark
from ...store.core.specs import thinking_of
from ...store.format.paths import Layout
from ..checkpoint.tokens import is_special, notes, reading, template_for, token_texts, up_to_unknown
from ..run.batching import BATCH, explain_memory
from ..run.ranks import ALONE, Rank
from .greedy import greedy
from .prompts import PromptSet
from .source import Source

WHOLE = "own"  # the kind of a stream that is only made so that others may be cut from it
TEXTS = "texts/"  # how a continuation begins that is stored texts: texts/VARIANT/KEY


def writer_of(sources: dict[str, Source], variant: str, spec: StreamSpec) -> Source:
    """The model that writes the continuation that `variant` reads."""
    if spec.continuation.startswith(TEXTS):
        return sources[spec.continuation.split("/")[1]]
    return sources[variant if spec.continuation in ("own", "none") else spec.continuation]


def steered(layout: Layout, pair: PairSpec, variant: str, key: str) -> StreamSpec:
    """The stream recipe whose continuations are the stored texts of a condition (`actlake generate`), named by its key.

    LakeError unless the key begins exactly one condition of the pair's model.
    """
    model = pair.model(variant)
    folder = find_condition(layout, model.name, key)
    recipe = read_condition(folder)
    template = "native" if recipe["template"] == model.template else recipe["template"]
    continuation = f"{TEXTS}{variant}/{folder.name}"
    control = recipe.get("control_tokens") == "allowed"
    how = (recipe.get("date"), control, thinking_of(recipe.get("thinking")))
    return StreamSpec("steered", template, continuation, recipe["max_new_tokens"], *how)


def _stored(layout: Layout, writer: Source, spec: StreamSpec, prompts: PromptSet) -> list[list[int]]:
    """The stored continuation of each prompt; LakeError for a prompt without one, or that was another then."""
    folder = layout.texts(writer.name) / spec.continuation.rpartition("/")[2]
    known = {row["prompt_sha"]: row["token_id"] for row in read_texts(folder)}
    written = []
    for prompt, ids in zip(prompts.prompts, writer.read(spec, prompts), strict=True):
        if (sha := prompt_key(ids)) not in known:
            raise LakeError(
                f"{folder}: has no text for prompt {prompt.id!r} of set {prompts.name} as it is now; `actlake generate` with"
                f" --prompts {prompts.name} writes it"
            )
        written.append(known[sha])
    return written


def recipe_of(
    sources: dict[str, Source], variant: str, spec: StreamSpec, prompts: PromptSet, double_bos: bool, batch: int
) -> dict[str, Any]:
    """Everything that determines the tokens that `variant` reads under `spec`; `key` is its hash.

    The continuation may be another model's, written after its own version of the prompt. Where the two models have
    unequal numbers of embeddings, one that both read ends before the first token that either lacks: `common_vocab`.
    """
    source, writer = sources[variant], writer_of(sources, variant, spec)
    own = template_for(spec.template, source.template)
    recipe: dict[str, Any] = {
        "template": own,
        "double_bos": double_bos and own == "chat",
        "prompt_set_sha256": prompts.sha256,
        "tokenizer_sha256": source.identity["tokenizer_sha256"],
        "chat_template_sha256": source.identity["chat_template_sha256"] if own == "chat" else None,
        "max_new_tokens": 0,
        **reading(source.tokenizer, own, double_bos, spec.date, spec.control_tokens, spec.thinking),
    }
    if spec.continuation != "none":
        template = template_for(spec.template, writer.template)
        if spec.continuation.startswith(TEXTS):
            stored = {"outputs": spec.continuation.rpartition("/")[2], "model_sha256": writer.identity["sha256"]}
            recipe |= {"max_new_tokens": spec.max_new_tokens, "continuation": stored}
        else:
            recipe |= {
                "max_new_tokens": spec.max_new_tokens,
                "continuation": {
                    "model_sha256": writer.identity["sha256"],
                    "template": template,
                    "chat_template_sha256": writer.identity["chat_template_sha256"] if template == "chat" else None,
                    **_writing(writer, template == "chat", batch),
                    **reading(writer.tokenizer, template, double_bos, spec.date, spec.control_tokens, spec.thinking),
                    **({"double_bos": True} if double_bos and template == "chat" else {}),
                },
            }
    if common := _common_vocab(sources, spec):
        recipe["common_vocab"] = common
    return {**recipe, "key": hash_json(recipe)}


def _writing(writer: Source, chat: bool, batch: int) -> dict[str, Any]:
    """How a model's continuations are written: in what batches and up to which tokens, or what an engine is asked for."""
    return writer.elsewhere.recipe(writer) if writer.elsewhere else {"batch": batch, **writer.stops(chat).recipe(chat)}


def _common_vocab(sources: dict[str, Source], spec: StreamSpec) -> int | None:
    """Embeddings that both models of a pair have, where a continuation is read by both and one has more; else None."""
    sizes = {source.vocab for source in sources.values()}
    return min(sizes) if len(sizes) > 1 and spec.continuation not in ("own", "none") else None


def ensure_stream(
    layout: Layout,
    sources: dict[str, Source],
    variant: str,
    spec: StreamSpec,
    prompts: PromptSet,
    double_bos: bool = False,
    batch: int = BATCH,
    rank: Rank = ALONE,
) -> tuple[str, bool]:
    """The name of the stream that `variant` reads under `spec`, made first when the lake lacks it.

    Returns (name of the stored stream, True when it was already there). A teacher stream makes its teacher's own
    stream first. Ranks share the work of generating: each begins with other batches and takes over what it finds done.
    Raises LakeError for prompts longer than the model's context.
    """
    source = sources[variant]
    writer = writer_of(sources, variant, spec)
    recipe = recipe_of(sources, variant, spec, prompts, double_bos, batch)
    record = find_stream(layout, recipe["key"], spec.name)
    if record:
        shutil.rmtree(_parts(layout, recipe), ignore_errors=True)  # a kill may have come between the stream and this
        if record["kind"] == spec.name:
            return str(record["same_as"]), True
        # Equal by recipe under another name: only the pointer is new.
        stored = read_stream(layout, record["name"])
        renamed = replace(
            stored, kind=spec.name, recipe={**recipe, "prompt_set": prompts.name}, continuation=spec.continuation
        )
        return write_stream(layout, renamed), True
    starts = source.read(spec, prompts, double_bos)
    for line in notes(source.name, source.tokenizer, recipe):
        remark(line)
    if spec.date and recipe["template"] == "chat" and "date" not in recipe:
        remark(f"{source.name}: its chat template reads no date: {spec.date} changes nothing")
    if spec.continuation == "none":
        written: list[Any] = [[] for _ in starts]
    elif spec.continuation.startswith(TEXTS):
        written = _stored(layout, writer, spec, prompts)
    elif writer is source and "common_vocab" not in recipe:
        written = _tell(layout, writer, starts, spec, recipe, prompts.labels, rank)
    else:
        native = replace(spec, continuation="own")
        if "common_vocab" in recipe:  # then it is another stream than the one made here, and has a name of its own
            whole = recipe_of(sources, writer.variant, native, prompts, double_bos, batch)["key"]
            native = replace(native, name=(find_stream(layout, whole, WHOLE) or {"kind": WHOLE})["kind"])
        name, _ = ensure_stream(layout, sources, writer.variant, native, prompts, double_bos, batch, rank)
        taught = read_stream(layout, name)
        written = [row[start:].tolist() for row, start in zip(taught.tokens, taught.starts, strict=True)]
    if common := recipe.get("common_vocab"):
        written = [up_to_unknown(row, common) for row in written]
    tokens = [np.asarray([*start, *more], dtype=np.int32) for start, more in zip(starts, written, strict=True)]
    flat = np.concatenate(tokens)
    stream = Stream(
        kind=spec.name,
        prompts=prompts.name,
        prompt_ids=[prompt.id for prompt in prompts.prompts],
        categories=[prompt.category for prompt in prompts.prompts],
        tokens=tokens,
        starts=[len(start) for start in starts],
        texts=token_texts(source.tokenizer, flat),
        special=is_special(source.tokenizer, flat),
        recipe={
            **recipe,
            "prompt_set": prompts.name,
            **({"server_url": writer.elsewhere.url} if writer.elsewhere else {}),
        },
        continuation=spec.continuation,
        **source.token_segments(spec, prompts, starts, written, writer),
    )
    name = write_stream(layout, stream)
    shutil.rmtree(_parts(layout, recipe), ignore_errors=True)
    return name, False


def _parts(layout: Layout, recipe: dict[str, Any]) -> Any:
    return layout.streams / f".{recipe['key'][:16]}.parts"


def check_readable(
    layout: Layout,
    sources: dict[str, Source],
    variant: str,
    spec: StreamSpec,
    prompts: PromptSet,
    double_bos: bool,
    key: str,
) -> None:
    """Raise LakeError for what `ensure_stream` would refuse of prompts, before a model is loaded; nothing for a stream that is
    there (`key` is its recipe's)."""
    if not find_stream(layout, key, spec.name):
        for reader in {
            variant: sources[variant],
            (writer := writer_of(sources, variant, spec)).variant: writer,
        }.values():
            reader.read(spec, prompts, double_bos)


def unwritten(
    layout: Layout,
    sources: dict[str, Source],
    variant: str,
    spec: StreamSpec,
    prompts: PromptSet,
    double_bos: bool,
    batch: int,
) -> bool:
    """Whether `ensure_stream` would let a model write."""
    recipe, writer = recipe_of(sources, variant, spec, prompts, double_bos, batch), writer_of(sources, variant, spec)
    if (
        find_stream(layout, recipe["key"], spec.name)
        or spec.continuation == "none"
        or spec.continuation.startswith(TEXTS)
    ):
        return False
    native = replace(spec, continuation="own")
    return native == spec or unwritten(layout, sources, writer.variant, native, prompts, double_bos, batch)


def _tell(
    layout: Layout,
    writer: Source,
    starts: list[list[int]],
    spec: StreamSpec,
    recipe: dict[str, Any],
    names: Sequence[str],
    rank: Rank,
) -> list[list[int]]:
    if writer.elsewhere:
        return writer.elsewhere.write(writer, names, starts, spec.max_new_tokens, _parts(layout, recipe))
    stops, size = writer.stops(recipe["template"] == "chat"), recipe["continuation"]["batch"]
    if line := stops.note(writer.name):
        remark(line)
    model = writer.load()
    with (
        bar(f"generate {model.name}", len(starts), "prompts") as progress,
        explain_memory(f"{model.name} writes", size),
    ):
        return greedy(
            model,
            starts,
            spec.max_new_tokens,
            stops.ids,
            _parts(layout, recipe),
            size,
            progress.advance,
            rank,
        )
