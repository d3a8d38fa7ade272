"""Names of models: MODEL, PAIR, PAIR/ROLE (pocket/it) or CHAIN, and what they stand for."""

from collections.abc import Sequence

from ...store.core.catalog import Catalog, ModelSpec, PairSpec
from ...store.core.errors import LakeError
from ...store.core.schema import VARIANTS
from ...store.format.paths import Layout
from ...store.tables.names import Named, known_pairs, models_named, pair_named, stored_models

PairRequests = dict[str, tuple[PairSpec, tuple[str, ...]]]  # pair -> what is known of it, and the variants asked for


def named(names: Sequence[str], catalog: Catalog, layout: Layout | None) -> list[Named]:
    """The models asked for; a bare pt or it after a pair's name is its role, as in `capture pocket it`."""
    return models_named(joined(names), catalog, stored_models(layout) if layout else set())


def joined(names: Sequence[str]) -> list[str]:
    """The names with a bare pt or it joined to the pair before it; LakeError for one that follows no pair."""
    found: list[str] = []
    for name in names:
        if name not in VARIANTS:
            found.append(name)
            continue
        if not found:
            raise LakeError(f"{name} is a role: name its pair first, PAIR/{name}")
        pair, slash, _ = found[-1].partition("/")
        found[-1:] = [found[-1], f"{pair}/{name}"] if slash else [f"{pair}/{name}"]
    return found


def requested_pairs(names: Sequence[str], catalog: Catalog, layout: Layout | None) -> PairRequests:
    """The models asked for, each with the pair that it is captured as part of.

    A model that is in one pair only stands for its role there; one of no pair, or of several, is on its own.
    """
    pairs = known_pairs(catalog, stored_models(layout) if layout else set())
    found: dict[str, list[Named]] = {}
    for one in named(names, catalog, layout):
        of = [(pair, role) for pair, models in pairs.items() for role, model in models.items() if model == one.model]
        if not one.pair and len(of) == 1:
            one = Named(one.model, *of[0])
        found.setdefault(one.pair or one.model, []).append(one)
    asked = {}
    for name, some in found.items():
        roles = [one.variant for one in some]
        spec = find_pair(name, roles, catalog, layout) if some[0].pair else _alone(some[0].model, catalog, layout)
        asked[name] = (spec, tuple(v for v in VARIANTS if v in roles) or spec.variants)
    return asked


def one_pair(names: Sequence[str], command: str, catalog: Catalog, layout: Layout) -> tuple[str, tuple[str, ...]]:
    """The pair of a command that takes one, and the variants asked for by name (none for a bare pair)."""
    pairs = known_pairs(catalog, stored_models(layout))
    found = {(one.pair, one.variant): one for one in named(names, catalog, layout)}
    for one in [one for one in found.values() if not one.pair]:
        of = [(pair, role) for pair, models in pairs.items() for role, model in models.items() if model == one.model]
        if len(of) != 1:
            where = f"is in the pairs {', '.join(pair for pair, _ in of)}" if of else "is in no pair"
            raise LakeError(f"{command}: model {one.model} {where}: name PAIR/ROLE")
        del found["", ""]
        found[of[0]] = Named(one.model, *of[0])
    if len(every := {pair for pair, _ in found}) != 1:
        raise LakeError(f"{command} takes one pair, found {', '.join(sorted(every))}")
    pair = every.pop()
    roles = tuple(role for role in VARIANTS if (pair, role) in found)
    return pair, () if list(names) == [pair] else roles


def find_pair(name: str, variants: Sequence[str], catalog: Catalog, layout: Layout | None) -> PairSpec:
    """A pair of the catalog, or of the lake's own files; LakeError when neither has it, or not these variants."""
    if name in catalog.pairs:
        spec = catalog.pairs[name]
    else:
        models = pair_named(name, catalog, stored_models(layout) if layout else set())
        mine = {} if name in known_pairs(catalog, set(models.values())) else catalog.models
        pt, it = (mine.get(models[v]) or _stored(models[v], layout) if v in models else None for v in VARIANTS)
        if not (pt or it):
            raise LakeError(
                f"pair {name}: the lake has it, but not its weights, and {catalog.where} does not name them: add the pair to a"
                " catalog.yaml in the folder you work in"
            )
        spec = PairSpec(name, pt, it, {})
    for variant in variants:
        spec.model(variant)
    return spec


def _alone(model: str, catalog: Catalog, layout: Layout | None) -> PairSpec:
    """A model on its own, as a pair of one."""
    spec = catalog.models.get(model) or _stored(model, layout)
    if spec is None:
        raise LakeError(
            f"model {model}: the lake has it, but not its weights, and {catalog.where} does not name them: add the model to a"
            " catalog.yaml in the folder you work in"
        )
    base = spec.template == "raw"
    return PairSpec(model, spec if base else None, None if base else spec, {})


def _stored(model: str, layout: Layout | None) -> ModelSpec | None:
    from ..model.load import stored_weights

    return stored_weights(layout, model) if layout else None
