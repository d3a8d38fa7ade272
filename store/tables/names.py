"""Models, pairs and chains by name: those of a lake and of the catalog, and what a misspelt one may have meant."""

import re
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import pandas as pd

from ..core.catalog import Catalog
from ..core.errors import LakeError
from ..core.schema import VARIANTS
from ..core.yaml_file import hint, listed
from ..format.paths import Layout, check_name
from .declared import TABLES
from .files import foreign_files, foreign_record

Pairs = dict[str, dict[str, str]]  # pair -> variant -> model
BETWEEN = ".."  # BASE..TUNED is a pair of any two models; no model's name may hold it


@dataclass(frozen=True)
class Chain:
    """Models in the order of their training, the base first."""

    name: str
    models: tuple[str, ...]
    training: tuple[int, ...] = ()  # the training step of each model, where the catalog says it

    @property
    def from_base(self) -> dict[str, str]:
        """Stage -> the pair of the base and it."""
        return {stage: f"{self.models[0]}{BETWEEN}{stage}" for stage in self.models[1:]}

    @property
    def steps(self) -> dict[str, str]:
        """Stage -> the pair of the stage before and it."""
        return {stage: f"{before}{BETWEEN}{stage}" for before, stage in pairwise(self.models)}

    @property
    def pairs(self) -> list[str]:
        """All pairs, each once."""
        return list(dict.fromkeys([*self.from_base.values(), *self.steps.values()]))


class _By(NamedTuple):
    """One model compared with itself: on two prompt sets, on two streams of one, or at two layers, in PT's and IT's place."""

    what: str  # prompts, streams or layers
    names: tuple[str, str]
    model: str

    @property
    def labels(self) -> tuple[str, str]:
        """What the two are called in answers."""
        one, two = self.names
        return (f"layer {one}", f"layer {two}") if self.what == "layers" else (one, two)

    @property
    def pair(self) -> str:
        """The pair of the model with itself."""
        return f"{self.model}{BETWEEN}{self.model}"

    @property
    def title(self) -> str:
        """What is compared, as a name that files may have."""
        return f"{self.model}-{BETWEEN.join(self.names)}"


@dataclass(frozen=True)
class Named:
    """A model that a name asks for, and the pair and variant that it was asked as, if any."""

    model: str
    pair: str = ""
    variant: str = ""


def stored_models(layout: Layout) -> set[str]:
    """Models of a lake: captured, kept, or known from tables of somebody else."""
    there = {path.parent.name for path in layout.root.glob("captures/*/*.zarr")}
    there |= {path.parent.name for path in layout.root.glob("models/*/model.json")}
    return there | {
        model for name in TABLES for capture in foreign_captures(layout, name) for model in models_of(capture)
    }


def foreign_captures(layout: Layout, name: str) -> list[dict[str, str]]:
    """The captures that foreign files of a table stand for: models, and where the table has them stream, lens ..."""
    return [capture for path in foreign_files(layout, name) for capture in foreign_record(path)]


NAMES_PAIRS = (
    "a catalog.yaml in the folder you work in names pairs, `pairs: {NAME: {pt: MODEL, it: MODEL}}`, and where models are,"
    " `models: {MODEL: {hub: OWNER/NAME}}`"
)


def models_of(capture: Mapping[str, str]) -> Iterator[str]:
    """The models that rows from elsewhere are about."""
    return (capture[name] for name in ("model", "model_pt", "model_it") if capture.get(name))


def known_pairs(catalog: Catalog, there: set[str]) -> Pairs:
    """The catalog's pairs; and X of models X-pt and X-it of a lake (`there`), where these are in no pair of the catalog."""
    found = {name: dict(spec.models) for name, spec in catalog.pairs.items()}
    named = {model for models in found.values() for model in models.values()}
    for model in sorted(there - named):
        pair, _, variant = model.rpartition("-")
        if pair and variant in VARIANTS:
            found.setdefault(pair, {}).setdefault(variant, model)
    return {name: {v: models[v] for v in VARIANTS if v in models} for name, models in found.items()}


def stored_pairs(catalog: Catalog, there: set[str]) -> Pairs:
    """The pairs of which a lake has a model; `there` are its models."""
    return {name: of for name, of in known_pairs(catalog, there).items() if there & set(of.values())}


def pair_named(name: str, catalog: Catalog, there: set[str]) -> dict[str, str]:
    """The models of a pair by variant; LakeError for an unknown pair. `there` are the models of the lake."""
    pairs = known_pairs(catalog, there)
    if name in pairs:
        return pairs[name]
    if BETWEEN in name:
        return _between(name, {*there, *catalog.models})
    if name in {*there, *catalog.models}:
        of = [pair for pair, models in pairs.items() if name in models.values()]
        add = "" if of else f"; {NAMES_PAIRS}"
        raise LakeError(f"{name!r} names a model; name a pair: it is in {listed(of)}{add}")
    if "/" in name:
        raise LakeError(f"{name!r} names a model; name its pair, {name.partition('/')[0]}")
    here = stored_pairs(catalog, there)
    where = f"the lake has {listed(here)}, {catalog.where} {listed(catalog.pairs)}"
    raise LakeError(f"unknown pair {name!r}: {where}{hint(name, pairs)}")


def _between(name: str, models: Set[str]) -> dict[str, str]:
    """The models of BASE..TUNED; LakeError unless they are two of `models`."""
    found = dict(zip(VARIANTS, name.split(BETWEEN), strict=False))
    for model in found.values():
        if model not in models:
            raise LakeError(f"{name!r}: no model {model!r} in the lake or the catalog{hint(model, models)}")
    if name.count(BETWEEN) > 1 or len(set(found.values())) < len(VARIANTS):
        raise LakeError(f"{name!r}: expected two different models, BASE..TUNED")
    return found


def pairs_in(text: str, there: Set[str]) -> Pairs:
    """The pairs BASE..TUNED of models of a lake (`there`) that a text quotes."""
    quoted = {tuple(name.split(BETWEEN)) for name in re.findall(r"'([^']+)'", text) if BETWEEN in name}
    found = [models for models in quoted if len(models) == len(VARIANTS) and there >= set(models)]
    return {BETWEEN.join(models): dict(zip(VARIANTS, models, strict=True)) for models in sorted(found)}


def by_named(text: str, name: str, catalog: Catalog, there: set[str]) -> _By:
    """What `prompts=A..B`, `streams=A..B` and `layers=A..B` compare of a model, MODEL or PAIR/ROLE; LakeError for other words."""
    match = re.fullmatch(rf"(?:(prompts|streams)=(.+?)|(layers)=([0-9]+)){re.escape(BETWEEN)}((?(3)[0-9]+|.+))", text)
    what, one, two = (match[1] or match[3], match[2] or match[4], match[5]) if match else ("", "", "")
    if what == "layers":
        one, two = (layer.lstrip("0") or "0" for layer in (one, two))  # 03 is 3
    if one == two:
        raise LakeError(
            f"by {text!r}", expected="prompts=A..B, streams=A..B or layers=A..B, two different ones of one model"
        )
    return _By(what, (one, two), model_named(name, catalog, there))


def chain_named(name: str, catalog: Catalog) -> Chain:
    """A chain of the catalog; LakeError for an unknown one."""
    if name not in catalog.chains:
        near = hint(name, catalog.chains)
        raise LakeError(
            f"unknown chain {name!r}: {catalog.path} has {listed(catalog.chains)}{near}; `chains: {{NAME: [BASE, SFT, ...]}}`"
            " in a catalog.yaml names one"
        )
    return Chain(name, catalog.chains[name], catalog.training.get(name, ()))


def models_named(
    names: Sequence[str], catalog: Catalog, there: set[str], variants: Sequence[str] = VARIANTS
) -> list[Named]:
    """What MODEL, PAIR, PAIR/ROLE and CHAIN ask for, each model once; of pairs only these variants.

    `there` are the models of the lake. LakeError for a name of neither the lake nor the catalog.
    """
    found: dict[Named, None] = {}
    pairs = known_pairs(catalog, there)
    for name in names:
        pair, slash, role = name.partition("/")
        if slash and role not in VARIANTS:
            raise LakeError(
                f"{name!r}: expected MODEL, PAIR, PAIR/ROLE or CHAIN, for instance pocket-it, pocket or pocket/it"
            )
        if slash or name in pairs or BETWEEN in name:
            models = pair_named(pair, catalog, there)
            if role and role not in models:
                raise LakeError(f"pair {pair} has no variant {role!r}; it has {' and '.join(models)}")
            roles = [role] if role else [variant for variant in models if variant in variants]
            found |= dict.fromkeys(Named(models[variant], pair, variant) for variant in roles)
        elif name in catalog.chains:
            found |= dict.fromkeys(map(Named, catalog.chains[name]))
        elif name in {*there, *catalog.models}:
            found[Named(check_name(name, "model"))] = None
        else:
            known = [*pairs, *catalog.chains, *sorted({*there, *catalog.models})]
            here = f"the lake has {listed(stored_pairs(catalog, there))}, " if there else ""
            raise LakeError(
                f"unknown pair, model or chain {name!r}: {here}{catalog.where} {listed(catalog.pairs)}{hint(name, known)}"
            )
    paired = {one.model for one in found if one.pair}
    return [one for one in found if one.pair or one.model not in paired]


def model_named(name: str, catalog: Catalog, there: set[str]) -> str:
    """The model that MODEL or PAIR/ROLE names (pocket-it, pocket/it); LakeError for another name."""
    found = models_named([name], catalog, there)
    if len(found) != 1:
        raise LakeError(f"{name!r} names {len(found)} models; name one of {' or '.join(one.model for one in found)}")
    return found[0].model


def pair_table(pairs: Pairs) -> pd.DataFrame:
    """The table `pairs`: a row per pair and variant, with the model's name."""
    rows = [(pair, variant, model) for pair, models in sorted(pairs.items()) for variant, model in models.items()]
    return pd.DataFrame(rows, columns=["pair", "variant", "model"], dtype=object)
