"""The catalog: which models, pairs, chains, prompt sets, streams, profiles and lakes there are. catalog.yaml explains itself."""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any, TypeVar

from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from .columns import SCALARS
from .errors import LakeError, redacted
from .schema import PRECISIONS, PROMPT_SITES, SITES, VARIANTS
from .specs import THINKING, ConditionSpec, ModelSpec, PairSpec, ProfileSpec, StreamSpec, can_round, check_date
from .yaml_file import NodeReader, compose, hint, kind_of, listed

T = TypeVar("T")
PACKAGED = Path(__file__).parent.parent.parent / "catalog.yaml"
ROWS = "rows"
SECTIONS = ("models", "pairs", "chains", "prompts", "streams", "profiles", "conditions", "lakes", ROWS)
KINDS = ("models", "pairs", "chains")  # of what commands take by one name
INTAKE = ("sources", "metadata")  # sections that intake reads, not actlake
TEMPLATES = ("raw", "chat", "native")
CONTROL_TOKENS = ("refuse", "allow")
CONTINUATIONS = ("none", "own", "pt", "it")
LOGITS = ("auto", "topk", "full", "none")
DTYPES = ("auto", "bfloat16", "float16", "float32")
NEW_TOKENS = 64  # length of a continuation when the stream does not say


@dataclass(frozen=True)
class Catalog:
    """Everything catalog.yaml names, checked; each lookup raises a LakeError that lists what is known."""

    path: Path
    models: dict[str, ModelSpec]
    pairs: dict[str, PairSpec]
    chains: dict[str, tuple[str, ...]]  # names of models, the base first
    training: dict[str, tuple[int, ...]]  # chain -> training steps of its models, where its entry says them
    prompts: dict[str, Path]
    streams: dict[str, StreamSpec]
    profiles: dict[str, ProfileSpec]
    conditions: dict[str, ConditionSpec]
    lakes: dict[str, str]
    rows: dict[str, Path]  # folders of .sql files, by what the catalog calls them

    @property
    def where(self) -> str:
        """What messages call it: its file, or what it is where that is none of the user's."""
        return "the catalog that comes with actlake" if self.path == PACKAGED else str(self.path)

    def model(self, name: str) -> ModelSpec:
        """The model of this name."""
        return self._find("model", self.models, name)

    def pair(self, name: str) -> PairSpec:
        """The pair of this name."""
        return self._find("pair", self.pairs, name)

    def stream(self, name: str) -> StreamSpec:
        """The stream recipe of this name."""
        return self._find("stream", self.streams, name)

    def profile(self, name: str) -> ProfileSpec:
        """The capture profile of this name."""
        return self._find("profile", self.profiles, name)

    def condition(self, name: str) -> ConditionSpec:
        """The condition of free generation of this name."""
        return self._find("condition", self.conditions, name)

    def prompt_path(self, name: str) -> Path:
        """The file of the prompt set of this name."""
        return self._find("prompt set", self.prompts, name)

    def lake(self, name: str) -> str:
        """The folder or URL of the lake of this name."""
        return self._find("lake", self.lakes, name)

    def _find(self, kind: str, entries: Mapping[str, T], name: str) -> T:
        if name in entries:
            return entries[name]
        where = self.where if _is_packaged(self.path) else f"{self.path} (with what comes with actlake)"
        raise LakeError(f"unknown {kind} {name!r}: {where} has {listed(entries)}{hint(name, entries)}")


def load_catalog(path: str | Path | None = None) -> Catalog:
    """Read the catalog at `path`, else ./catalog.yaml, else the one that comes with actlake.

    Relative paths count from the catalog's folder; only lakes of the packaged catalog count from the working
    folder. Entries are merged with those of the packaged catalog, section by section; of two of one name the catalog's own
    counts.
    """
    here = Path("catalog.yaml")
    file = Path(path) if path is not None else here if here.is_file() else PACKAGED
    packaged = _packaged(Path.cwd())
    found, packaged = (packaged, {}) if _is_packaged(file) else (_read(file), {**packaged})
    for kind in KINDS:  # a name of the catalog's own is no other kind of thing because the packaged one has it
        mine = set().union(*(found.get(other, {}) for other in KINDS if other != kind))
        packaged[kind] = {name: entry for name, entry in packaged.get(kind, {}).items() if name not in mine}
    models = packaged["models"].keys() | found.get("models", {}).keys()
    for kind in ("pairs", "chains"):
        packaged[kind] = {n: entry for n, entry in packaged[kind].items() if models >= set(entry.models.values())}
    mine_first = {section: {**found.get(section, {}), **packaged.get(section, {})} for section in SECTIONS}
    merged = {name: some | found.get(name, {}) for name, some in mine_first.items()}
    return replace(_EMPTY, path=file, **_resolved(merged))


MODEL_ENTRY = "; its section models names one as MODEL: {path: FOLDER} or {hub: OWNER/NAME}"


def _resolved(merged: dict[str, dict]) -> dict[str, dict]:
    """The sections with pairs and chains of models; LakeError for one of a model that no catalog names."""
    entries, models = merged["pairs"], merged["models"]
    for name, entry in [*entries.items(), *merged["chains"].items()]:
        if lacking := [model for model in entry.models.values() if model not in models]:
            near = hint(lacking[0], models)
            raise LakeError(
                f"{entry.where}: {name} names the model {lacking[0]!r}, which no catalog has{near}{MODEL_ENTRY}"
            )
    bases, tuned = ({entry.models[v] for entry in entries.values() if v in entry.models} for v in VARIANTS)
    for entry in merged["chains"].values():
        first, *later = entry.models.values()
        bases, tuned = bases | {first}, tuned | set(later)
    models = {
        name: spec if spec.template else replace(spec, template="raw" if name in bases - tuned else "chat")
        for name, spec in models.items()
    }

    def both(entry: _Group) -> tuple[ModelSpec | None, ModelSpec | None]:
        pt, it = (models[entry.models[v]] if v in entry.models else None for v in VARIANTS)
        return pt, it

    pairs = {name: PairSpec(name, *both(entry), entry.windows) for name, entry in entries.items()}
    chains = {name: tuple(entry.models.values()) for name, entry in merged["chains"].items()}
    training = {name: entry.training for name, entry in merged["chains"].items() if entry.training}
    return {**merged, "models": models, "pairs": pairs, "chains": chains, "training": training}


def _is_packaged(file: Path) -> bool:
    return file.resolve() == PACKAGED.resolve()


_EMPTY = Catalog(PACKAGED, {}, {}, {}, {}, {}, {}, {}, {}, {}, {})


@cache
def _packaged(working: Path) -> dict[str, dict]:
    """The sections of the catalog that comes with actlake, as they are in a working folder; to be read only."""
    return _read(PACKAGED)


def _read(file: Path) -> dict[str, dict]:
    reader = _Reader(file)
    root = compose(file, "catalog")
    if root is None:
        raise LakeError(f"{file}: the catalog is empty; expected one or more of {listed(SECTIONS)}")
    parsers: dict[str, Callable[[str, Node], object]] = {
        "models": reader.model,
        "pairs": reader.pair,
        "chains": reader.chain,
        "prompts": reader.prompt_set,
        "streams": reader.stream,
        "profiles": reader.profile,
        "conditions": reader.condition,
        "lakes": reader.lake,
    }
    sections = reader.mapping(root, "the catalog", (*SECTIONS, *INTAKE))
    folders = sections.pop(ROWS, None)
    rows = (
        {} if folders is None else {part.value: reader.rows(part) for part in reader.list(folders, ROWS, "[./my_rows]")}
    )
    found: dict[str, dict[str, Any]] = {ROWS: rows} | {
        section: {name: parsers[section](name, node) for name, node in reader.mapping(entries, section).items()}
        for section, entries in sections.items()
        if section in parsers
    }
    for name, (spec, node) in reader.inline.items():
        if name in found.get("models", {}):
            raise reader.error(
                node, f"model {name}: named twice, here inside a pair and in the section models; rename one"
            )
        found.setdefault("models", {})[name] = spec
    for one, other in combinations(KINDS, 2):
        if both := found.get(one, {}).keys() & found.get(other, {}).keys():
            raise LakeError(
                f"{file}: {min(both)} is a name in {one} and in {other}; commands could not tell which is meant: rename one"
            )
    return found


@dataclass(frozen=True)
class _Group:
    """A pair or chain as it stands in a file: names of its models, by variant or place, and the line it begins on."""

    models: dict[Any, str]
    windows: dict[str, tuple[int, int]]
    where: str
    training: tuple[int, ...] = ()  # steps of a chain's models


class _Reader(NodeReader):
    """Turns the catalog's nodes into what they name."""

    def __init__(self, file: Path):
        super().__init__(file)
        self.folder = file.absolute().parent
        self.inline: dict[str, tuple[ModelSpec, Node]] = {}  # models that stand inside a pair
        # An installed package's own folder is no place for data.
        self.lake_folder = Path.cwd() if _is_packaged(file) else self.folder

    def local(self, node: Node, what: str) -> Path:
        text = self.text(node, what)
        if "://" in text:
            raise self.error(node, f"{what} is the URL {redacted(text)!r}, expected a local path")
        return self.folder / os.path.expanduser(text)

    def rows(self, node: Node) -> Path:
        folder = self.local(node, ROWS)
        if not folder.is_dir():
            raise self.error(node, f"{ROWS}: {folder}: no such folder")
        return folder

    def pair(self, name: str, node: Node) -> _Group:
        what = f"pair {name}"
        entry = self.mapping(node, what, (*VARIANTS, "windows"))
        if not entry.keys() & set(VARIANTS):
            raise self.error(node, f"{what} names no model; expected pt, it or both")
        models = {}
        for variant in VARIANTS:
            if isinstance(entry.get(variant), ScalarNode):
                models[variant] = self.text(entry[variant], f"{what}, {variant}")
            elif variant in entry:
                models[variant] = f"{name}-{variant}"
                self.inline[models[variant]] = self._model(models[variant], f"{what}, {variant}", entry[variant]), node
        if len(set(models.values())) < len(models):
            raise self.error(node, f"{what}: pt and it are one model, {models['pt']}; a pair has two")
        windows = self.mapping(entry["windows"], f"{what}, windows") if "windows" in entry else {}
        read = {w: self.window(n, f"{what}, window {w}") for w, n in windows.items()}
        return _Group(models, read, f"{self.file}:{node.start_mark.line + 1}")

    def chain(self, name: str, node: Node) -> _Group:
        what, example = f"chain {name}", "[base, sft, dpo] or {STEP: MODEL, ...}"
        of_steps = self.growing(node, what, "training step") if isinstance(node, MappingNode) else None
        training, nodes = of_steps or ((), self.list(node, what, example))
        found = tuple(self.text(part, f"{what}, a model") for part in nodes)
        if len(found) < 2 or len(set(found)) < len(found):
            raise self.error(node, f"{what}: expected two models or more, each once, found {listed(found)}")
        return _Group(dict(enumerate(found)), {}, f"{self.file}:{node.start_mark.line + 1}", training)

    def model(self, name: str, node: Node) -> ModelSpec:
        return self._model(name, f"model {name}", node)

    def _model(self, name: str, what: str, node: Node) -> ModelSpec:
        entry = self.mapping(node, what, ("path", "hub", "revision", "gguf_file", "template"))
        if ("path" in entry) == ("hub" in entry):
            raise self.error(node, f"{what}: expected either path (a folder) or hub (OWNER/NAME)")
        if "revision" in entry and "hub" not in entry:
            raise self.error(entry["revision"], f"{what}: a folder has no revision; only a hub model has")
        template = (
            self.choice(entry.pop("template"), f"{what}, template", ("raw", "chat")) if "template" in entry else ""
        )
        path = self.local(entry["path"], f"{what}, path") if "path" in entry else None
        texts = {key: self.text(value, f"{what}, {key}") for key, value in entry.items() if key != "path"}
        if path is None and not re.fullmatch(r"[\w.-]+/[\w.-]+", texts["hub"], re.ASCII):
            raise self.error(entry["hub"], f"{what}, hub is {texts['hub']!r}, expected OWNER/NAME")
        if Path(texts.get("gguf_file", "")).is_absolute() or ".." in Path(texts.get("gguf_file", "")).parts:
            raise self.error(entry["gguf_file"], f"{what}, gguf_file: expected the name of a file inside the folder")
        return ModelSpec(name, path, texts.get("hub"), texts.get("revision"), texts.get("gguf_file"), template)

    def window(self, node: Node, what: str) -> tuple[int, int]:
        if not isinstance(node, SequenceNode) or len(node.value) != 2:
            raise self.error(node, f"{what} is {kind_of(node)}, expected [first block, block after the last]")
        start, stop = (self.whole(part, what, 0) for part in node.value)
        if start >= stop:
            raise self.error(node, f"{what} [{start}, {stop}] is empty; the second number is the larger one")
        return start, stop

    def prompt_set(self, name: str, node: Node) -> Path:
        entry = self.mapping(node, f"prompt set {name}", ("path",), ("path",))
        return self.local(entry["path"], f"prompt set {name}, path")

    def stream(self, name: str, node: Node) -> StreamSpec:
        what = f"stream {name}"
        required = ("template", "continuation")
        entry = self.mapping(node, what, (*required, "max_new_tokens", "date", "control_tokens", "thinking"), required)
        template = self.choice(entry["template"], f"{what}, template", TEMPLATES)
        continuation = self.choice(entry["continuation"], f"{what}, continuation", CONTINUATIONS)
        reading: dict[str, Any] = {}
        if "date" in entry:
            reading["date"] = self.date(entry["date"], f"{what}, date")
        if "control_tokens" in entry:
            allowed = self.choice(entry["control_tokens"], f"{what}, control_tokens", CONTROL_TOKENS)
            reading["control_tokens"] = allowed == "allow"
        if "thinking" in entry:
            reading["thinking"] = THINKING[self.choice(entry["thinking"], f"{what}, thinking", tuple(THINKING))]
        if continuation == "none":
            if "max_new_tokens" in entry:
                raise self.error(entry["max_new_tokens"], f"{what}: no continuation, no new tokens; leave it out")
            return StreamSpec(name, template, continuation, 0, **reading)
        count = entry.get("max_new_tokens")
        tokens = NEW_TOKENS if count is None else self.whole(count, f"{what}, max_new_tokens", 1)
        return StreamSpec(name, template, continuation, tokens, **reading)

    def date(self, node: Node, what: str) -> str:
        try:
            return check_date(str(node.value) if isinstance(node, ScalarNode) else kind_of(node))
        except LakeError as error:
            raise self.error(node, f"{what}: {error}") from None

    def profile(self, name: str, node: Node) -> ProfileSpec:
        what = f"profile {name}"
        keys = ("sites", "boundaries", "scalars", "logits", "dtype", "precision", "shard_tokens")
        entry = self.mapping(node, what, keys, ("sites",))
        names = tuple(
            self.choice(site, f"{what}, a site", (*SITES, *PROMPT_SITES))
            for site in self.list(entry["sites"], f"{what}, sites", "[resid, mlp_out]")
        )
        found = self.list(entry["scalars"], f"{what}, scalars", "[lens, delta]") if "scalars" in entry else []
        scalars = tuple(self.choice(table, f"{what}, a table of scalars", SCALARS) for table in found)
        boundaries = None
        if "boundaries" in entry:
            found = self.list(entry["boundaries"], f"{what}, boundaries", "[0, mid, late, last]")
            boundaries = tuple(self.boundary(part, f"{what}, a boundary") for part in found)
        logits = self.choice(entry["logits"], f"{what}, logits", LOGITS) if "logits" in entry else "auto"
        dtype = self.choice(entry["dtype"], f"{what}, dtype", DTYPES) if "dtype" in entry else "auto"
        count, tokens = entry.get("shard_tokens"), None
        if count is not None and not count.tag.endswith(":null"):
            tokens = self.whole(count, f"{what}, shard_tokens", 1)
        asked, may = entry.get("precision"), can_round(names)
        precision = self.each(asked, f"{what}, precision", may, PRECISIONS) if asked else {}
        return ProfileSpec(name, names, logits, dtype, tokens, boundaries, scalars, precision)

    def condition(self, name: str, node: Node) -> ConditionSpec:
        what = f"condition {name}"
        entry = self.mapping(node, what, ("variant", "template", "edits"), ("variant", "edits"))
        variant = self.choice(entry["variant"], f"{what}, variant", VARIANTS)
        template = self.choice(entry["template"], f"{what}, template", TEMPLATES) if "template" in entry else "native"
        edits = self.list(entry["edits"], f"{what}, edits", '["scale:layers=late,direction=d_mean,alpha=0"]')
        return ConditionSpec(name, variant, template, tuple(self.text(edit, f"{what}, an edit") for edit in edits))

    def boundary(self, node: Node, what: str) -> int | str:
        return self.whole(node, what, 0) if node.tag.endswith(":int") else self.text(node, what)

    def lake(self, name: str, node: Node) -> str:
        place = self.text(node, f"lake {name}")
        return place if "://" in place else str(self.lake_folder / os.path.expanduser(place))
