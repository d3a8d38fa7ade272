"""Estimated cost of a capture, from configs and tokenizers alone: no weights are loaded, nothing is written."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...store.artifacts.streams import Stream, find_stream, read_stream
from ...store.captures.allocate import Template
from ...store.core.catalog import PairSpec, ProfileSpec, StreamSpec
from ...store.core.progress import remark
from ...store.core.specs import resolve_boundaries
from ...store.format.paths import Layout
from ..checkpoint.configs import DTYPES
from ..checkpoint.loading import device_of
from ..checkpoint.tokens import notes
from ..model.by_layer import weight_bytes, without_memory
from ..model.partial import stack_of
from ..model.sites import site_lengths
from ..run.batching import CaptureSize, batch_plan, capture_sizes, check_sites, estimate
from ..run.by_layer import spilled_bytes
from .capture_pair import Options, sources_of
from .prompts import PromptSet
from .source import Source
from .streams import recipe_of, writer_of


@dataclass(frozen=True)
class Forecast:
    """One capture to come: sizes in bytes; `exact` when its stream is there, else every continuation counts in full.

    `weights` as the model holds them at a time; `head` in float32, which stays on the host and goes into the lake once a
    model; `site_bytes` of every variable before compression. Layer by layer `read` are all weights, and `spilled` what is kept on
    disk until the capture is sealed.
    """

    model: str
    stream: str
    profile: str
    exact: bool
    weights: int
    head: int
    size: CaptureSize
    site_bytes: dict[str, int]
    read: int = 0
    spilled: int = 0

    @property
    def raw(self) -> int:
        """Bytes of all variables before compression."""
        return sum(self.site_bytes.values())

    def seconds(self, rate: float, disk: float) -> float:
        """Time for `rate` tokens/s of the model and `disk` bytes/s, which overlap; what goes layer by layer does not."""
        if self.read:
            return self.size.tokens / rate + (self.read + 2 * self.spilled + self.size.stored) / disk
        return max(self.size.tokens / rate, self.size.stored / disk)

    def row(self, rate: float, disk: float) -> dict[str, Any]:
        """The line of a table of estimates; bytes before compression of each variable are `NAME (raw)`."""
        return {
            "model": self.model,
            "stream": self.stream,
            "profile": self.profile,
            "exact": self.exact,
            "tokens": self.size.tokens,
            "shard rows": self.size.shards,
            **{f"{name} (raw)": count for name, count in self.site_bytes.items()},
            "raw": self.raw,
            "on disk": self.size.stored,
            **({"read": self.read, "on disk on the way": self.spilled} if self.read else {}),
            "device memory": self.weights + self.size.device,
            "host memory": self.head + self.size.memory,
            "head": self.head,
            "seconds": round(self.seconds(rate, disk)),
        }


@dataclass(frozen=True)
class _Shape:
    """What sizes follow from: blocks, attention heads, width, vocabulary, bytes of the weights, of those at a time, config."""

    layers: int
    heads: int
    width: int
    vocab: int
    weights: int
    held: int
    config: Any = None


def forecast(
    pair: PairSpec,
    streams: Sequence[StreamSpec],
    prompts: PromptSet,
    profiles: Sequence[ProfileSpec],
    variants: Sequence[str] = (),
    options: Options = Options(),  # noqa: B008 (frozen)
    layout: Layout | None = None,
) -> list[Forecast]:
    """Sizes of every capture that these names ask for; a stream that `layout` holds is counted exactly.

    Raises LakeError for what the capture itself would refuse: a missing variant, tokenizers that differ, unknown sites,
    prompts too long for the model.
    """
    for profile in profiles:
        check_sites(profile.sites)
    profiles = [profile.rounded(options.precision) for profile in profiles]
    variants = variants or pair.variants
    sources = sources_of(pair, variants, streams, options)
    found = []
    for variant in variants:
        shape = shape_of(pair, variant, sources[variant].identity["dtype"], options.by_layer)
        for spec in streams:
            stream, exact = _stream(sources, variant, spec, prompts, options, layout)
            for profile in profiles:
                found.append(_one(pair, variant, spec, stream, exact, profile, shape, sources, options))
    return found


def shape_of(pair: PairSpec, variant: str, dtype: str, by_layer: bool = False) -> _Shape:
    """The shape of a model, built without memory (on torch's meta device)."""
    spec = pair.model(variant)
    hf = without_memory(spec, dtype)
    unembed, weights = hf.get_output_embeddings().weight, weight_bytes(hf)
    text, sizes = hf.config.get_text_config(), list(map(weight_bytes, stack_of(hf) if by_layer else []))
    # Of blocks one is there, while the next one's pages of the files are mapped.
    held = weights - sum(sizes) + 2 * max(sizes, default=0)
    width, vocab = unembed.shape[1], unembed.shape[0]
    return _Shape(text.num_hidden_layers, text.num_attention_heads, width, vocab, weights, held, hf.config)


def _stream(
    sources: dict[str, Source],
    variant: str,
    spec: StreamSpec,
    prompts: PromptSet,
    options: Options,
    layout: Layout | None,
) -> tuple[Stream, bool]:
    """The stream itself when the lake holds it, else one of the same prompts with continuations of full length."""
    source = sources[variant]
    recipe = recipe_of(sources, variant, spec, prompts, options.double_bos, options.batch)
    record = find_stream(layout, recipe["key"], spec.name) if layout else None
    if layout and record:
        return read_stream(layout, record["name"]), True
    starts = source.read(spec, prompts, options.double_bos)
    writer_of(sources, variant, spec).read(spec, prompts, options.double_bos)
    for line in notes(source.name, source.tokenizer, recipe):
        remark(line)
    more = 0 if spec.continuation == "none" else spec.max_new_tokens
    rows = [np.zeros(len(start) + more, dtype=np.int32) for start in starts]
    stream = Stream(spec.name, prompts.name, [], [], rows, list(map(len, starts)), [], np.zeros(0, bool))
    return stream, spec.continuation == "none"


def _one(
    pair: PairSpec,
    variant: str,
    spec: StreamSpec,
    stream: Stream,
    exact: bool,
    profile: ProfileSpec,
    shape: _Shape,
    sources: dict[str, Source],
    options: Options,
) -> Forecast:
    boundaries = resolve_boundaries(profile, shape.layers, pair.windows)
    lengths = site_lengths(shape.config, profile.sites, pair.model(variant).name)
    template = Template(
        stream=stream,
        sizes=capture_sizes(profile, shape.layers, shape.width, shape.vocab, boundaries, lengths),
        boundaries=boundaries,
        layers=tuple(range(shape.layers)),
        source_dtype=sources[variant].identity["dtype"],
        provenance={},
        shard=profile.shard_tokens,
        precision=profile.precision,
    )
    batches = batch_plan(np.diff(stream.offset).tolist(), options.batch)
    size = estimate(template, batches, shape.vocab, device_of(options.device).type)
    each = {name: count * stream.n_tokens for name, count in template.bytes_per_token.items()}
    if "attn_entropy" in profile.sites:
        each["attn_entropy"] = 4 * len(stream.starts) * shape.layers * shape.heads
    head = 4 * shape.vocab * shape.width
    found = Forecast(pair.model(variant).name, spec.name, profile.name, exact, shape.held, head, size, each)
    if not options.by_layer:
        return found
    itemsize = DTYPES[template.source_dtype].itemsize
    return replace(found, read=shape.weights, spilled=spilled_bytes(template, batches, shape.width, itemsize))
