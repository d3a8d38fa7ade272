"""Names of models: PAIR or PAIR/ROLE (pocket/it), and what they stand for."""

from collections.abc import Sequence

from ...store.core.catalog import Catalog, PairSpec
from ...store.core.errors import LakeError
from ...store.core.schema import VARIANTS
from ...store.format.paths import Layout
from ...store.tables.names import stored_pairs, variants_of

Models = dict[str, tuple[str, ...]]  # pair -> the variants asked for, none for those that it has


def models_named(names: Sequence[str]) -> Models:
    """Pairs and roles out of PAIR and PAIR/ROLE; a bare pt or it after a pair's name is its role, as in `capture pocket it`.

    LakeError for another role, and a role without a pair.
    """
    asked: list[tuple[str, str]] = []
    for name in names:
        pair, slash, role = name.partition("/")
        if name in VARIANTS and asked and not asked[-1][1]:
            asked[-1] = (asked[-1][0], name)
        elif name in VARIANTS and not asked:
            raise LakeError(f"{name} is a role: name its pair first, PAIR/{name}")
        elif name in VARIANTS:
            asked.append((asked[-1][0], name))
        elif not pair or (slash and role not in VARIANTS):
            raise LakeError(f"{name!r}: expected PAIR or PAIR/ROLE, for instance pocket or pocket/it")
        else:
            asked.append((pair, role))
    found: dict[str, set[str]] = {}
    for pair, role in asked:
        found.setdefault(pair, set()).add(role)
    return {pair: () if "" in roles else tuple(v for v in VARIANTS if v in roles) for pair, roles in found.items()}


def one_pair(names: Sequence[str], command: str) -> tuple[str, tuple[str, ...]]:
    """The pair of a command that takes one, and the variants asked for."""
    found = models_named(names)
    if len(found) != 1:
        raise LakeError(f"{command} takes one pair, found {', '.join(found)}")
    return next(iter(found.items()))


def find_pair(name: str, variants: Sequence[str], catalog: Catalog, layout: Layout | None) -> PairSpec:
    """A pair of the catalog, or of the lake's own files; LakeError when neither has it, or not these variants."""
    if name in catalog.pairs:
        spec = catalog.pairs[name]
    else:
        variants_of(name, stored_pairs(layout) if layout else {}, catalog)  # a LakeError for an unknown pair
        from ..model.load import stored_weights

        assert layout
        pt, it = (stored_weights(layout, name, variant) for variant in VARIANTS)
        if not (pt or it):
            raise LakeError(
                f"pair {name}: the lake has it, but not its weights, and {catalog.path} does not name them: add the pair to the"
                " catalog"
            )
        spec = PairSpec(name, pt, it, {})
    for variant in variants:
        spec.model(variant)
    return spec
