"""What the entries of a catalog are: models, pairs, streams, profiles, conditions; and windows of a model's blocks."""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import date as calendar
from pathlib import Path

from .errors import LakeError
from .schema import PRECISIONS, SITES, VARIABLES, VARIANTS
from .yaml_file import listed


@dataclass(frozen=True)
class ModelSpec:
    """Where a model comes from: a local folder (`path`) or a Hugging Face repository (`hub`).

    Both only for a lake's own copy of a hub model: it is loaded from the folder and known by the hub's name. `template` is
    what `native` streams wrap its prompts in: raw or chat.
    """

    name: str
    path: Path | None
    hub: str | None
    revision: str | None
    gguf_file: str | None
    template: str = "chat"


@dataclass(frozen=True)
class PairSpec:
    """A base model and its post-trained descendant; `windows` overrides some of `default_windows`."""

    name: str
    pt: ModelSpec | None
    it: ModelSpec | None
    windows: dict[str, tuple[int, int]]

    @property
    def variants(self) -> tuple[str, ...]:
        """The models that it has."""
        return tuple(variant for variant in VARIANTS if getattr(self, variant))

    def model(self, variant: str) -> ModelSpec:
        """The pt or it model of this pair, or a LakeError when the pair has none."""
        found = {"pt": self.pt, "it": self.it}.get(variant)
        if found is None:
            raise LakeError(f"pair {self.name} has no variant {variant!r}; it has {' and '.join(self.variants)}")
        return found

    @property
    def models(self) -> dict[str, str]:
        """Variant -> name of its model."""
        return {variant: self.model(variant).name for variant in self.variants}


THINKING = {"on": True, "off": False}  # as options, catalogs and recipes say it


def thinking_of(word: str | None) -> bool | None:
    """Whether a chat template lets the model think, by a word of THINKING; None where nothing is said. LakeError for others."""
    if word is not None and word not in THINKING:
        raise LakeError(f"thinking {word!r}: expected {' or '.join(THINKING)}")
    return None if word is None else THINKING[word]


@dataclass(frozen=True)
class StreamSpec:
    """A recipe for token sequences: how prompts are wrapped, and whose greedy tokens follow them.

    `date` is the day that chat templates write (None: the default's); `control_tokens` lets prompts hold some; `thinking` is
    whether a chat template lets the model think (None: not, and it need not know of it).
    """

    name: str
    template: str
    continuation: str
    max_new_tokens: int
    date: str | None = None
    control_tokens: bool = False
    thinking: bool | None = None


@dataclass(frozen=True)
class ProfileSpec:
    """What a capture keeps, and the compute type; without `shard_tokens` the model's size decides.

    `boundaries` are numbers or the names of windows (a window's first boundary) or 'last'; None keeps all. `scalars` are
    tables whose columns are computed during the capture. `precision` says to what sites are rounded, int8 or fp8.
    """

    name: str
    sites: tuple[str, ...]
    logits: str
    dtype: str
    shard_tokens: int | None
    boundaries: tuple[int | str, ...] | None = None
    scalars: tuple[str, ...] = ()
    precision: dict[str, str] = field(default_factory=dict)

    def rounded(self, asked: str | None) -> "ProfileSpec":
        """The same with a precision in words, as `precision_of` reads them; None changes nothing."""
        return replace(self, precision=precision_of(asked, self.sites)) if asked is not None else self


@dataclass(frozen=True)
class ConditionSpec:
    """A condition of free generation: who writes, after which template, with which edits (in words, done in order)."""

    name: str
    variant: str
    template: str
    edits: tuple[str, ...]


def precision_of(asked: str, sites: Sequence[str]) -> dict[str, str]:
    """Site -> int8 or fp8, from words: one for all of `sites` (int8), or one for some (resid=int8,mlp_out=fp8).

    LakeError for another word, and for a site that is not kept or can't be rounded.
    """
    known = can_round(sites)
    some = dict(part.strip().partition("=")[::2] for part in asked.split(",")) if "=" in asked else {}
    found = some or dict.fromkeys(known, asked)
    if unknown := [site for site in found if site not in known]:
        raise LakeError(f"precision of {unknown[0]!r}: of what is kept, {listed(known)} can be rounded")
    for word in found.values() if known else [asked]:
        if word not in PRECISIONS:
            raise LakeError(f"precision {word!r}: expected {' or '.join(PRECISIONS)}, or SITE={PRECISIONS[0]},...")
    return found


def can_round(sites: Sequence[str]) -> list[str]:
    """Those of some sites that a capture may round: what the model computed in its own dtype, at every token."""
    return [site for site in sites if site in SITES and not VARIABLES[site].derived]


def check_date(date: str) -> str:
    """The date itself; LakeError unless it is one of the form 2025-01-31."""
    with suppress(ValueError):  # 2025-02-30
        if re.fullmatch(r"[12]\d{3}-\d\d-\d\d", date):
            return calendar.fromisoformat(date).isoformat()
    raise LakeError(f"date {date!r}: expected a day as 2025-01-31")


def default_windows(n_layers: int) -> dict[str, tuple[int, int]]:
    """Early, mid and late blocks of METHODS 1.6, half open and equally wide, from the number of blocks.

    Late begins at 60 % of the depth (the onset) and ends with the stack; its width is also that of the other
    two: early begins at block 0, mid is in the middle. Windows overlap by a few blocks, as in the study.
    """
    if n_layers < 2:
        raise LakeError(f"a model of {n_layers} blocks has no early, mid and late window; it needs 2 or more")
    onset = (6 * n_layers + 5) // 10  # round(0.6 L) in whole numbers
    width, middle = n_layers - onset, onset // 2
    return {"early": (0, width), "mid": (middle, middle + width), "late": (onset, n_layers)}


def resolve_boundaries(profile: ProfileSpec, n_layers: int, windows: Mapping[str, tuple[int, int]]) -> tuple[int, ...]:
    """The boundaries that a profile keeps of a model of `n_layers` blocks, ascending.

    Raises LakeError for a number beyond the last boundary or a name that is no window.
    """
    if profile.boundaries is None:
        return tuple(range(n_layers + 1))
    known = {"last": n_layers} | {
        name: start for name, (start, _) in (default_windows(n_layers) | dict(windows)).items()
    }
    found = set()
    for boundary in profile.boundaries:
        number = known.get(boundary) if isinstance(boundary, str) else boundary
        if number is None:
            raise LakeError(
                f"profile {profile.name}: no boundary {boundary!r}; expected a number or one of {listed(known)}"
            )
        if number > n_layers:
            raise LakeError(f"profile {profile.name}: boundary {number}, the model's boundaries end at {n_layers}")
        found.add(number)
    return tuple(sorted(found))
