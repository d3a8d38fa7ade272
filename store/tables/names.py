"""Pairs and models by name: those of a lake and of the catalog, and what a misspelt one may have meant."""

from ..captures.reader import list_captures
from ..core.catalog import Catalog
from ..core.errors import LakeError
from ..core.schema import VARIANTS
from ..core.yaml_file import hint, listed
from ..format.paths import Layout
from .declared import TABLES
from .sql import foreign_files, foreign_record


def stored_pairs(layout: Layout) -> dict[str, set[str]]:
    """Pair -> its variants in the lake: captured, kept as models, or known from tables of somebody else (which may name none)."""
    captured = list_captures(layout)
    models = {(path.parts[-3], path.parts[-2]) for path in layout.root.glob("models/*/*/model.json")}
    found: dict[str, set[str]] = {}
    for pair, variant in {*zip(captured["pair"], captured["variant"], strict=True), *models}:
        found.setdefault(pair, set()).add(variant)
    for record in (
        record for name in TABLES for file in foreign_files(layout, name) for record in foreign_record(file)
    ):
        named = set(VARIANTS) if "stream_pt" in record else {record.get("variant", "")} & set(VARIANTS)
        found.setdefault(record["pair"], set()).update(named)
    return found


def variants_of(pair: str, stored: dict[str, set[str]], catalog: Catalog) -> tuple[str, ...]:
    """The models of a pair, pt before it, of a lake's pairs (`stored_pairs`) and the catalog's; LakeError for an unknown pair."""
    if "/" in pair:
        raise LakeError(f"{pair!r} names a model; name its pair, {pair.partition('/')[0]}")
    if pair not in stored and pair not in catalog.pairs:
        where = f"the lake has {listed(stored)}, {catalog.path} {listed(catalog.pairs)}"
        raise LakeError(f"unknown pair {pair!r}: {where}{hint(pair, [*stored, *catalog.pairs])}")
    spec = catalog.pairs.get(pair)
    named = {variant for variant in VARIANTS if spec and getattr(spec, variant)}
    return tuple(variant for variant in VARIANTS if variant in stored.get(pair, set()) | named)
