"""Capturing a pair: which streams come first, which model is loaded when, and what is there already."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...store.artifacts.models import check_same_model, equal_weights, has_model, has_vocab, keep_vocab, read_model
from ...store.artifacts.streams import stored_prompts, stream_records
from ...store.captures.manifest import read_manifest
from ...store.core.catalog import Catalog, ModelSpec, PairSpec, ProfileSpec, StreamSpec
from ...store.core.errors import LakeError
from ...store.core.files import explain_full_disk
from ...store.core.progress import say
from ...store.core.schema import VARIANTS
from ...store.format.paths import Layout, check_name
from ..checkpoint.configs import load_config, load_tokenizer
from ..checkpoint.configs import source as model_folder
from ..checkpoint.loading import check_device_map
from ..checkpoint.stops import check_glance, declared
from ..checkpoint.tokens import check_same_tokenizer, template_for, vocabulary
from ..model.by_layer import load_frame
from ..model.load import Model, context_of, identify, load_model
from ..model.weights_copy import check_weights_fit, here_or_stored, keep_weights, weights_to_copy
from ..run.batching import BATCH, check_sites
from ..run.capture import Result, capture, find_sealed
from ..run.ranks import ALONE, Rank
from .prompts import PromptSet, read_prompts
from .source import Source, Writer
from .streams import TEXTS, check_readable, ensure_stream, recipe_of, unwritten, writer_of


@dataclass(frozen=True)
class Options:
    """How models run: device, dtype, sequences a batch, the study's double BOS, NaN allowed, the rank of this process, a
    device map in place of one device, whether the checkpoints' own files go into the lake, whether a stream passes a model
    layer by layer, what writes continuations in the models' place, and to what sites are rounded in place of the profile's
    precision.

    dtype 'auto' means the profile's, and if that is 'auto' too, the one of the model's files.
    """

    device: str = "auto"
    dtype: str = "auto"
    batch: int = BATCH
    double_bos: bool = False
    allow_nonfinite: bool = False
    rank: Rank = ALONE
    device_map: Any = None
    with_weights: bool = False
    by_layer: bool = False
    elsewhere: Writer | None = None
    precision: str | None = None


class _Loader:
    """Loads models on demand and keeps the last one, so that two large models are never in memory together."""

    def __init__(self, options: Options):
        self._options = options
        self._model: Model | None = None
        self.loads = 0

    def __call__(self, spec: ModelSpec, identity: dict[str, Any]) -> Model:
        if self._model is None or self._model.spec != spec:
            self._model = None
            options = self._options
            if options.by_layer:
                self._model = load_frame(spec, options.device, options.dtype, identity)
            else:
                self._model = load_model(spec, options.device, options.dtype, device_map=options.device_map)
            self.loads += 1
        return self._model


def find_prompts(catalog: Catalog, layout: Layout | None, name: str, limit: int | None = None) -> PromptSet:
    """A prompt set by its name in the catalog or in the lake, or by the path of a .jsonl or .csv file."""
    imported = stored_prompts(layout, name) if layout else None
    if name in catalog.prompts:
        return read_prompts(catalog.prompts[name], name, limit)
    if imported:
        return read_prompts(imported, name, limit)
    if Path(name).suffix.lower() in (".jsonl", ".csv") or os.path.isfile(name):  # not a set's name
        return read_prompts(name, None, limit)
    return read_prompts(catalog.prompt_path(name), name, limit)


def capture_pair(
    layout: Layout,
    pair: PairSpec,
    streams: Sequence[StreamSpec],
    prompts: PromptSet,
    profile: ProfileSpec,
    variants: Sequence[str] = (),
    options: Options = Options(),  # noqa: B008 (frozen)
) -> list[Result]:
    """Capture the variants of a pair (all that it has) on the streams; what these need is made first, what is there is reused.

    One model is in memory at a time and nothing is loaded when all captures are there. Raises LakeError for tokenizers
    that differ, prompts too long for the model, and all that `run.capture` raises.
    """
    check_sites(profile.sites)
    profile = profile.rounded(options.precision)
    check_device_map(options.device_map, options.device)
    if options.by_layer:
        _check_by_layer(layout, options)
    variants = variants or pair.variants
    options = replace(options, dtype=profile.dtype if options.dtype == "auto" else options.dtype)
    pt, it = (spec and here_or_stored(layout, spec) for spec in (pair.pt, pair.it))
    pair = replace(pair, pt=pt, it=it)
    sources = sources_of(pair, variants, streams, options)
    if options.elsewhere:
        _check_elsewhere(sources, variants, streams, options.rank)
    check_name(prompts.name, "prompt set")  # it becomes part of file names
    if len(sources) == len(VARIANTS) and (
        remark := equal_weights(sources["pt"].identity, sources["it"].identity, pair.name)
    ):
        say(remark)
    for variant in variants:
        check_same_model(layout, sources[variant].name, sources[variant].identity)
        for spec in streams:
            key = recipe_of(sources, variant, spec, prompts, options.double_bos, options.batch)["key"]
            _check_unfinished(layout, sources[variant].name, spec.name, prompts, key)
            check_readable(layout, sources, variant, spec, prompts, options.double_bos, key)
            if (
                options.by_layer
                and not options.elsewhere
                and unwritten(layout, sources, variant, spec, prompts, options.double_bos, options.batch)
            ):
                raise LakeError(
                    f"stream {spec.name} of {sources[variant].name}: --by-layer would read all weights once for every token that"
                    " it writes: take a stream with continuation: none, or text that the lake has already (--outputs, or that of"
                    " a teacher captured before without --by-layer)"
                )
    kept = [pair.model(variant) for variant in variants] if options.with_weights else []
    check_weights_fit(layout, kept)
    results = []
    for variant in _order(variants, streams):
        done: set[str] = set()
        for spec in streams:
            with explain_full_disk(f"capturing {sources[variant].name} into {layout}"):
                name, _ = ensure_stream(
                    layout, sources, variant, spec, prompts, options.double_bos, options.batch, options.rank
                )
                if name not in done:
                    results.append(_one(layout, pair, sources[variant], name, profile, options, kept))
            done.add(name)
        with explain_full_disk(f"keeping the vocabulary of {sources[variant].name} in {layout}"):
            _keep_vocab(layout, sources[variant])
        if options.with_weights and options.rank.rank == 0:
            with explain_full_disk(f"copying the weights of {sources[variant].name} into {layout}"):
                keep_weights(layout, pair.model(variant), sources[variant].identity)
    return results


def sources_of(
    pair: PairSpec, variants: Sequence[str], streams: Sequence[StreamSpec], options: Options
) -> dict[str, Source]:
    """The models of a pair that there are, by variant; LakeError when one is missing or the tokenizers differ."""
    loader = _Loader(options)
    for variant in variants:
        pair.model(variant)  # a LakeError for a variant that the pair lacks
    specs = [spec for spec in (pair.pt, pair.it) if spec]
    asked = [pair.model(variant) for variant in variants]
    chat = [spec for spec in asked if any(template_for(one.template, spec.template) == "chat" for one in streams)]
    check_glance(specs, chat, pair.name)
    sources = {variant: _source(variant, pair.model(variant), loader, options) for variant in pair.variants}
    if len(sources) == 2:
        check_same_tokenizer(sources["pt"].tokenizer, sources["it"].tokenizer, pair.name)
    for spec in streams:
        if spec.continuation in ("pt", "it") and spec.continuation not in sources:
            raise LakeError(
                f"stream {spec.name}: needs the {spec.continuation} model of pair {pair.name}, which the catalog lacks"
            )
    return sources


def _check_by_layer(layout: Layout, options: Options) -> None:
    """Raise LakeError for what does not go together with --by-layer."""
    if options.device_map or options.rank.world > 1:
        other = "--device-map" if options.device_map else "several ranks"
        raise LakeError(
            f"--by-layer and {other} exclude each other: one process takes one block at a time; leave one out"
        )
    if layout.files.remote:
        raise LakeError(
            f"{layout}: --by-layer keeps residuals of every block on the way: capture into a local lake, then `actlake push`"
        )


def _check_elsewhere(
    sources: dict[str, Source], variants: Sequence[str], streams: Sequence[StreamSpec], rank: Rank
) -> None:
    """Raise LakeError unless an engine is to write for one model, asked by one process."""
    if rank.world > 1:
        raise LakeError("--server: one process asks the engine; leave --rank and --world out")
    if idle := next((one for one in streams if one.continuation == "none" or one.continuation.startswith(TEXTS)), None):
        raise LakeError(f"--server: nothing is written for stream {idle.name} (continuation {idle.continuation})")
    names = sorted({writer_of(sources, variant, spec).name for variant in variants for spec in streams})
    if len(names) > 1:
        raise LakeError(
            f"--server: an engine serves one model, and these streams want text of {' and '.join(names)}: name PAIR/ROLE, or a"
            " stream where both read what one of them writes (teacher)"
        )


def _check_unfinished(layout: Layout, model: str, kind: str, prompts: PromptSet, key: str) -> None:
    """Raise LakeError for an unfinished capture whose prompts have changed: running on would leave it behind unseen.

    `key` is the recipe's that is asked for now.
    """
    for record in stream_records(layout):
        if (record["kind"], record["prompts"]) != (kind, prompts.name) or key in record["keys"]:
            continue
        path, then = layout.capture(model, record["same_as"]), record["recipe"].get("prompt_set_sha256")
        if then != prompts.sha256 and path.exists() and not read_manifest(path):
            raise LakeError(
                f"{path}: an unfinished capture of prompt set {prompts.name} as it was before (its file, or --limit, has"
                " changed): finish it with the prompts as they were, or delete the folder, then run this again"
            )


def _order(variants: Sequence[str], streams: Sequence[StreamSpec]) -> list[str]:
    """Teachers first, so that each model is loaded once."""
    teachers = {spec.continuation for spec in streams}
    return sorted(variants, key=lambda variant: (variant not in teachers, variant != "it"))


def _keep_vocab(layout: Layout, source: Source) -> None:
    """Keep what the model's token ids mean, if the lake does not yet."""
    if not has_vocab(layout, source.name):
        size = read_model(layout, source.name)["vocab"]
        keep_vocab(layout, source.name, vocabulary(source.tokenizer, size))


def _one(
    layout: Layout,
    pair: PairSpec,
    source: Source,
    stream: str,
    profile: ProfileSpec,
    options: Options,
    kept: Sequence[ModelSpec],
) -> Result:
    """One capture; the files of the `kept` models must find room beside it."""
    sealed = find_sealed(layout, source.name, stream, source.identity, profile, pair.windows)
    if sealed:
        manifest: dict[str, Any] = read_manifest(sealed) or {}
        return Result(sealed, True, True, manifest["n_tokens"], manifest["bytes"], 0.0)
    model = source.load()
    if has_model(layout, source.name):  # its id there; the lake's own copy of its files bears none
        model = replace(model, record=read_model(layout, source.name))
    return capture(
        layout,
        model,
        stream,
        profile,
        options.batch,
        options.allow_nonfinite,
        options.rank,
        pair.windows,
        weights_to_copy(layout, kept),
    )


def _source(variant: str, spec: ModelSpec, loader: _Loader, options: Options) -> Source:
    tokenizer = load_tokenizer(spec)
    identity = identify(spec, options.dtype, tokenizer)  # explains a config that can't be read
    config = load_config(spec)
    return Source(
        variant=variant,
        template=spec.template,
        identity=identity,
        tokenizer=tokenizer,
        max_positions=context_of(config),
        vocab=config.get_text_config().vocab_size,
        load=lambda: loader(spec, identity),
        declared=declared(spec, model_folder(spec), config),
        name=spec.name,
        elsewhere=options.elsewhere,
    )
