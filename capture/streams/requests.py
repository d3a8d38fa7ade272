"""Captures and their estimates by name: models, streams, prompt sets and profiles as a catalog and a lake have them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...store.core.catalog import Catalog, PairSpec, StreamSpec
from ...store.core.errors import LakeError
from ...store.core.schema import VARIANTS
from ...store.core.specs import check_date, thinking_of
from ...store.format.paths import Layout
from ...store.tables.names import chain_named
from ..run.capture import Result
from .capture_pair import Options, capture_pair, find_prompts
from .estimate import Forecast, forecast
from .names import PairRequests, requested_pairs
from .prompts import PromptSet, add_prompts, read_prompts
from .streams import steered


@dataclass(frozen=True)
class Request:
    """What to read: streams of the catalog (none: native), with a shorter continuation, another date, control tokens
    allowed, thinking on or off; a prompt set (None: `pocket` for the pocket models, else `core`), its first `limit` prompts."""

    streams: Sequence[str] = ()
    prompts: str | None = None
    limit: int | None = None
    max_new_tokens: int | None = None
    date: str | None = None
    control_tokens: bool = False
    thinking: str | None = None

    def specs(self, catalog: Catalog) -> list[StreamSpec]:
        """The streams; LakeError for an unknown one, for text that is no date, and for thinking that is neither on nor off."""
        specs = [catalog.stream(name) for name in self.streams or ("native",)]
        if self.date:
            specs = [replace(spec, date=check_date(self.date)) for spec in specs]
        if self.control_tokens:
            specs = [replace(spec, control_tokens=True) for spec in specs]
        if self.thinking is not None:
            specs = [replace(spec, thinking=thinking_of(self.thinking)) for spec in specs]
        if self.max_new_tokens is None:
            return specs
        return [
            spec if spec.continuation == "none" else replace(spec, max_new_tokens=self.max_new_tokens) for spec in specs
        ]

    def pairs(self, names: Sequence[str], catalog: Catalog, layout: Layout | None) -> PairRequests:
        """The models asked for, each with its pair; a chain's as pairs of them where one reads what another wrote."""
        shared = any(spec.continuation in VARIANTS for spec in self.specs(catalog))
        chains = {name: chain_named(name, catalog).pairs if shared else [name] for name in catalog.chains}
        return requested_pairs([pair for name in names for pair in chains.get(name, [name])], catalog, layout)

    def prompt_set(self, catalog: Catalog, layout: Layout | None, pair: PairSpec) -> PromptSet:
        """The prompts for a pair."""
        mine = all(model.startswith("pocket-") for model in pair.models.values())
        usual = "pocket" if mine else "core"
        return find_prompts(catalog, layout, self.prompts or usual, self.limit)


def capture_models(
    layout: Layout,
    catalog: Catalog,
    names: Sequence[str],
    request: Request,
    profile: str,
    outputs: str | None,
    options: Options,
) -> list[Result]:
    """Capture models by name. With `outputs`, VARIANT/KEY of texts in the lake, these are read in place of a stream.

    LakeError for unknown names, before any model is loaded, and for all that `capture_pair` raises.
    """
    wanted = request.pairs(names, catalog, layout)
    if outputs and replace(request, prompts=None, limit=None) != Request():
        raise LakeError(
            "--outputs: the texts are there already, with all that made them; leave --stream, --max-new-tokens, --date,"
            " --control-tokens and --thinking out"
        )
    if outputs and len(wanted) > 1:
        raise LakeError("--outputs: names texts of one pair; capture one at a time")
    results: dict[Path, Result] = {}  # pairs of a chain share captures
    for pair, roles in wanted.values():
        who, _, key = (outputs or "").rpartition("/")
        specs = [steered(layout, pair, who or "it", key)] if outputs else request.specs(catalog)
        prompts = request.prompt_set(catalog, layout, pair)
        for result in capture_pair(layout, pair, specs, prompts, catalog.profile(profile), roles, options):
            results.setdefault(result.path, result)
    return list(results.values())


def plan_captures(
    layout: Layout | None,
    catalog: Catalog,
    names: Sequence[str],
    request: Request,
    profiles: Sequence[str],
    options: Options,
) -> list[Forecast]:
    """What capturing models by name will take, with each of some profiles (all of the catalog when none is named)."""
    return [
        one
        for pair, roles in request.pairs(names, catalog, layout).values()
        for one in forecast(
            pair,
            request.specs(catalog),
            request.prompt_set(catalog, layout, pair),
            [catalog.profile(each) for each in profiles or catalog.profiles],
            roles,
            options,
            layout,
        )
    ]


def keep_prompts(layout: Layout, catalog: Catalog, file: Path, name: str | None, columns: dict[str, str]) -> PromptSet:
    """Check a prompt set and keep it in the lake under a name that the catalog does not have; `columns` says which column
    of the file is text, id and category where their names differ."""
    name = name or file.stem
    if name in catalog.prompts:
        raise LakeError(f"prompt set {name!r} is already a name of {catalog.where}; choose another with --name")
    return read_prompts(add_prompts(file, layout, name, columns), name)
