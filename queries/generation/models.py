"""Models that write freely: one whole host in memory at a time, the other's MLPs for grafts, and directions to steer along."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ...analyze.residual import directions as kernels
from ...capture.checkpoint.configs import load_config, load_tokenizer, source
from ...capture.checkpoint.stops import Stops, declared, find_stops
from ...capture.checkpoint.tokens import real_token_mask
from ...capture.edit.edits import Edit
from ...capture.edit.replay import find_weights
from ...capture.edit.words import SEEDED, EditSpec, build
from ...capture.model.load import Model, identify, load_model
from ...capture.model.partial import Donor, load_donor
from ...capture.streams.capture_pair import find_prompts
from ...capture.streams.prompts import PromptSet
from ...store.artifacts.directions import read_directions
from ...store.artifacts.models import check_same_model, has_model, read_model
from ...store.artifacts.streams import stream_records
from ...store.core.errors import LakeError
from ...store.core.schema import VARIANTS
from ...store.tables.streams import same_prompts
from ..engine.context import OTHER, Context, Names, Scope, check_both
from ..engine.job import Job
from ..tables.directions import calibration
from ..tables.mean_differences import Contrast, records, sibling
from ..tables.per_layer import raw_lens_table
from .sweeps import Shape

SPLIT = "d_mean_"  # and top, bottom or random: the direction of a calibration set (0H)
KNOWN = ("d_mean", "d_conv", "content", *SEEDED, *(f"{SPLIT}{name}" for name in ("top", "bottom", "random")))


class LoadedModels:
    """The pair's models for free generation; loading one lets the one before go."""

    def __init__(self, kit: Context, pair: str):
        self._kit, self._pair, self._names = kit, pair, kit.models(pair)
        self._model: Model | None = None
        self._donor: tuple[tuple[str, tuple[int, ...]], Donor] | None = None
        self._checked: set[str] = set()

    def name(self, variant: str) -> str:
        """The name of a model; LakeError for a variant that the pair lacks."""
        if variant not in self._names:
            raise LakeError(f"pair {self._pair} has no variant {variant!r}; it has {' and '.join(self._names)}")
        return self._names[variant]

    def record(self, variant: str) -> dict[str, Any]:
        """What tells a model from another: the lake's record of it, or its files' where it has not been captured."""
        return self._kit.once(_record, self.name(variant))

    def config(self, variant: str) -> Any:
        """A model's text config."""
        return self._kit.once(_config, self.name(variant)).get_text_config()

    def shape(self) -> Shape:
        """The number of blocks and the windows; LakeError unless both models have as many blocks."""
        counts = {v: self.config(v).num_hidden_layers for v in self._kit.variants(self._pair)}
        if len(set(counts.values())) > 1:
            raise LakeError(
                f"pair {self._pair}: pt has {counts['pt']} blocks, it has {counts['it']}; a pair is of one shape"
            )
        layers = next(iter(counts.values()))
        return Shape(layers, self._kit.windows(self._pair, layers))

    def tokenizer(self, variant: str) -> Any:
        """A model's tokenizer."""
        return self._kit.once(_tokenizer, self.name(variant))

    def stops(self, variant: str, chat: bool) -> Stops:
        """What ends a model's continuations, after a chat prompt or raw text."""
        return self._kit.once(_stops, self.name(variant), chat)

    def real(self, variant: str) -> np.ndarray:
        """Tokens that a model may choose, bool [V] (METHODS 1.4)."""
        return self._kit.once(_real, self.name(variant), self.model(variant).head.vocab)

    def check(self, variant: str) -> None:
        """LakeError unless the weights are here and those that the lake's captures were made from."""
        if variant not in self._checked:
            identity = identify(self._spec(variant), self.record(variant)["dtype"], self.tokenizer(variant))
            check_same_model(self._kit.layout, self.name(variant), identity)
            self._checked.add(variant)

    def model(self, variant: str) -> Model:
        """The whole model, loaded now unless it was the last one asked for."""
        if self._model is None or self._model.name != self.name(variant):
            self._model = None  # gone before the next one comes
            self.check(variant)
            found = load_model(self._spec(variant), self._kit.device, self.record(variant)["dtype"])
            self._model = found
        return self._model

    def donor(self, host: str, layers: Sequence[int]) -> Donor:
        """The other model's MLPs of some blocks of a host."""
        key = (host, tuple(layers))
        if self._donor is None or self._donor[0] != key:
            self._donor = None
            other, dtype = OTHER[host], self.record(host)["dtype"]
            self.check(other)
            self._donor = key, load_donor(self._spec(other), layers, self._kit.device, dtype)
        return self._donor[1]

    def _spec(self, variant: str) -> Any:
        return _spec(self._kit, self.name(variant))


def _spec(kit: Context, model: str) -> Any:
    return find_weights(kit.layout, model, kit.catalog)


def _record(kit: Context, model: str) -> dict[str, Any]:
    if has_model(kit.layout, model):
        return read_model(kit.layout, model)
    return identify(_spec(kit, model), tokenizer=kit.once(_tokenizer, model))


def _config(kit: Context, model: str) -> Any:
    return load_config(_spec(kit, model))


def _tokenizer(kit: Context, model: str) -> Any:
    return load_tokenizer(_spec(kit, model))


def _stops(kit: Context, model: str, chat: bool) -> Stops:
    spec = _spec(kit, model)
    return find_stops(kit.once(_tokenizer, model), declared(spec, source(spec), load_config(spec)), chat)


def _real(kit: Context, model: str, vocab: int) -> np.ndarray:
    return real_token_mask(kit.once(_tokenizer, model), vocab)


def hosts(kit: Context, pair: str) -> LoadedModels:
    """The models of a pair, shared by all that ask."""
    return kit.once(LoadedModels, pair)


class SteeringVectors:
    """Directions by name, from a pair's captures on its own texts; `before` makes them, `key` says what they come from."""

    def __init__(self, kit: Context, scope: Scope):
        self._kit, self._scope = kit, scope
        self._jobs: dict[str, tuple[Job, ...]] = {}

    def before(self, edits: Sequence[EditSpec]) -> tuple[Job, ...]:
        """The jobs that make what some edits go along."""
        found = [job for edit in edits if edit.direction for job in self._of(edit.direction[0])]
        return tuple({job.path: job for job in found}.values())

    def key(self, edits: Sequence[EditSpec]) -> dict[str, str]:
        """Direction -> what determines its vectors, for the content key of a condition."""
        names = {edit.direction[0] for edit in edits if edit.direction}
        return {name: "+".join(job.path.stem for job in self._of(name)) for name in sorted(names - {"random"})}

    def vectors(self, direction: tuple[str, int], layers: Sequence[int]) -> Mapping[int, np.ndarray]:
        """Unit vectors, float64 [d], of those layers that have one. METHODS 5.1, 5.2, 6 (0H), 7."""
        name, seed = direction
        if name == "random":
            some = self._kit.variants(self._scope.pair)[-1]
            width = hosts(self._kit, self._scope.pair).config(some).hidden_size
            return kernels.random_units(layers, width, seed)
        found = self._found(name)
        here = {layer: found[layer] for layer in layers if layer in found}
        return kernels.rotated_units(here, seed) if name == "rotated" else here

    def _of(self, name: str) -> tuple[Job, ...]:
        if name not in KNOWN:
            raise LakeError(f"unknown direction {name!r}; expected one of {', '.join(KNOWN)}")
        if name not in self._jobs:
            self._jobs[name] = self._make(name)
        return self._jobs[name]

    def _make(self, name: str) -> tuple[Job, ...]:
        if name == "random":
            return ()
        check_both(self._kit, self._scope.pair, f"direction {name}")
        if set(self._scope.streams) != set(VARIANTS):
            of = f"direction {name}: comes from captures of pt and it on their own texts"
            try:  # why there are none, or which of several
                same_prompts(self._kit.streams_of(self._scope.pair), self._scope.pair, "native", None)
            except LakeError as error:
                beside = ", beside a prompt set as --prompts SET,STREAM" if "--prompts: " in error.repair else ""
                raise LakeError(f"{of}: {error}{beside}") from error
            raise LakeError(of, repair=f"run `actlake capture {self._scope.pair} --stream native`")
        if name == "d_conv":
            return (Contrast(self._kit, sibling(self._kit, self._scope, "teacher"), "raw"),)
        own = records(self._kit, self._scope, "own")
        return (own, raw_lens_table(self._kit, self._teacher)) if name.startswith(SPLIT) else (own,)

    @property
    def _teacher(self) -> Names:
        teacher = sibling(self._kit, self._scope, "teacher")
        return teacher.names("pt")

    def _found(self, name: str) -> Mapping[int, np.ndarray]:
        """All layers of a direction."""
        group = read_directions(self._of(name)[0].path, self._kit.layout.files)[0]
        if name == "d_conv":
            return _by_layer(group["layer"][:], group["d_conv"][:])
        if name.startswith(SPLIT):
            weight = calibration(self._kit, self._teacher, group["prompt"][:])[name.removeprefix(SPLIT)]
            tokens, layers = group["tokens"][:].astype(np.float64), group["layer"][:]
            difference = group["difference"]
            return _by_layer(
                layers,
                np.stack([kernels.direction(difference[:, layer], tokens * weight) for layer in layers.tolist()]),
            )
        found = _by_layer(group["layer"][:], group["d_mean"][:])
        if name == "content":  # the mean direction of the blocks before the late ones, the same everywhere
            count = len(found)
            first = self._kit.windows(self._scope.pair, count)["late"][0]
            mean = np.sum([found[layer] for layer in range(first) if layer in found], axis=0)
            return dict.fromkeys(range(count), mean / np.linalg.norm(mean))
        return found


def _by_layer(layers: np.ndarray, vectors: np.ndarray) -> dict[int, np.ndarray]:
    """Layer -> unit vector; layers without a direction (NaN, zero) are left out."""
    norms = np.linalg.norm(vectors.astype(np.float64), axis=-1)
    return {
        layer: vector.astype(np.float64) / norm
        for layer, vector, norm in zip(layers.tolist(), vectors, norms.tolist(), strict=True)
        if norm > 1e-4
    }


def steering(kit: Context, scope: Scope) -> SteeringVectors:
    """The directions of a scope, shared by all that ask."""
    return kit.once(SteeringVectors, scope)


def edits_of(host: LoadedModels, variant: str, edits: Sequence[EditSpec], vectors: Callable[..., Any]) -> list[Edit]:
    """Edits that attach to a host."""
    return build(edits, vectors, lambda layers: host.donor(variant, layers))


def prompts_of(kit: Context, scope: Scope) -> PromptSet:
    """The prompt set that the captures of a scope read, with its scoring fields.

    LakeError when it is not found under its name any more, or has changed.
    """
    return kit.once(_prompts, scope.main)


def _prompts(kit: Context, stream: str) -> PromptSet:
    record = next(record for record in stream_records(kit.layout, [stream]) if record["name"] == stream)
    name, then = record["prompts"], record["recipe"].get("prompt_set_sha256")
    try:
        found = find_prompts(kit.catalog, kit.layout, name, record["n_prompts"])
    except LakeError as error:
        raise LakeError(
            f"{error}: the captures read it, and scores need its fields; `actlake prompts add` keeps a set"
        ) from None
    if found.sha256 != then:
        raise LakeError(
            f"prompt set {name}: is not the one that stream {stream} was made from (SHA-256 {found.sha256[:12]}, then"
            f" {str(then)[:12]}): put the old file back, or capture the new one"
        )
    return found
