"""The explorer as a set of files: the page's own, and data files by name, made when they are asked for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

from ..store.core.errors import LakeError
from ..store.core.files import free_bytes, human_bytes
from ..store.core.progress import Estimate, bar
from . import lists
from .answers import Answers
from .cells import TOP, Cells, has_kernels
from .packing import script
from .source import ExplorerSource
from .texts import WrittenTexts
from .vectors import Vectors

PAGE = ("index.html", "explorer.css")
SCRIPTS = (
    "core",
    "figures",
    "heatmap",
    "lake",
    "prompts",
    "prompt-side",
    "prompt-files",
    "prompt",
    "texts",
    "directions",
    "rows",
    "sql",
    "start",
)
NAME = re.compile(r"(index|prompts|cells|pair|texts|condition|rows|directions)((?:/\d{1,9}){0,2})")
AHEAD = 64  # prompts whose rows are read together
CELL = 36.0  # bytes of a token and layer in a data file, a lens, with its likeliest tokens; measured
BARE = 20.0  # the same without them
FILE, OTHER = 3000, 1500  # bytes of a file of cells beside these, and of any other; measured
TEXT = 400  # bytes of a text that a model wrote, which is in two files
SECONDS = 4e-5  # that writing a token and layer takes, without the lens; measured
START = 5.0  # seconds before the first file


def own_files() -> Iterator[tuple[str, bytes]]:
    """The page's own files: name, bytes."""
    folder = resources.files(__package__) / "web"
    for name in (*PAGE, *(f"{name}.js" for name in SCRIPTS)):
        yield name, (folder / name).read_bytes()


class ExplorerSite:
    """All files of the explorer of one lake. `top` likeliest tokens a cell are kept; `server`: for the local server."""

    def __init__(self, source: ExplorerSource, top: int = TOP, server: bool = False):
        self.source, self.server, self.top = source, server, top
        self.cells, self.written = Cells(source, top), WrittenTexts(source)
        self.answers, self.vectors = Answers(source), Vectors(source)

    def names(self) -> Iterator[str]:
        """The name of every data file, the index last: what is there before it is complete."""
        source = self.source
        for place, _ in enumerate(source.sets):
            yield f"prompts/{place}"
        for one in source.captures:
            ids = source.sets[one.set].ids
            yield from (f"cells/{one.number}/{at}" for at, name in enumerate(ids) if name in source.places(one.number))
        for number, view in enumerate(source.views):
            if view.whole:
                yield from (f"pair/{number}/{at}" for at in self._of_both(number))
        yield "texts"
        for place, texts in enumerate(self.written.sets):
            yield from (f"texts/{place}/{at}" for at in range(len(texts["ids"])))
            yield from (f"condition/{place}/{number}" for number in range(len(self.written.conditions)))
        yield "rows"
        yield from (f"rows/{number}" for number in range(len(self.answers.ready)))
        yield "directions"
        yield from (f"directions/{number}" for number in range(len(self.vectors.found)))
        yield "index"

    def _of_both(self, number: int) -> list[int]:
        """The prompts that both captures of a view hold."""
        source, view = self.source, self.source.views[number]
        ids = source.sets[view.set].ids
        return [at for at, name in enumerate(ids) if all(name in source.places(one) for one in view.captures.values())]

    def data(self, name: str) -> bytes:
        """The data file of a name; LakeError for one that is not there."""
        match = NAME.fullmatch(name)
        kind, numbers = (match[1], [int(part) for part in match[2].split("/") if part]) if match else ("", [])
        try:
            if kind == "index" and not numbers:
                return script(name, lists.index(self.source, self.server, self.source.limit))
            if kind == "prompts" and len(numbers) == 1:
                return script(name, lists.prompts(self.source, numbers[0]))
            if kind == "cells" and len(numbers) == 2:
                one = self.source.captures[numbers[0]]
                return script(name, self.cells.prompt(one.number, self.source.sets[one.set].ids[numbers[1]]))
            if kind == "pair" and len(numbers) == 2:
                view = self.source.views[numbers[0]]
                return script(name, self.cells.pair(view, self.source.sets[view.set].ids[numbers[1]]))
            if kind == "texts" and not numbers:
                return script(name, self.written.index())
            if kind in ("texts", "condition") and len(numbers) == 2:
                made = self.written.of_prompt if kind == "texts" else self.written.of_condition
                return script(name, made(*numbers))
            if kind in ("rows", "directions") and len(numbers) < 2:
                listed = self.answers if kind == "rows" else self.vectors
                return script(name, listed.one(numbers[0]) if numbers else listed.index())
        except (IndexError, KeyError):
            pass
        raise LakeError(f"the explorer has no data file {name!r}")

    def plan(self) -> Estimate:
        """What the static site will take."""
        names = list(self.names())
        cells = sum(name.startswith("cells/") for name in names)
        total = FILE * cells + OTHER * (len(names) - cells) + TEXT * len(self.written.texts) + 140_000.0
        seconds = START + len(self.answers.ready)
        for one in self.source.captures:
            stream, model = self.source.stream(one.stream), self.source.kit.arrays((one.model, one.stream))[0]
            kept = set(self.source.sets[one.set].ids)
            tokens = sum(len(row) for name, row in zip(stream.prompt_ids, stream.tokens, strict=True) if name in kept)
            vocab, width = model["unembed"].shape
            likeliest = self.top > 1 and has_kernels()
            rows = tokens * (self._layers(one.model) + 1)
            fitted = self.source.layout.lenses(one.model).glob("*.zarr")
            lenses = 1 + len({path.name.partition("-")[0] for path in fitted})  # the raw one, and one of each kind
            total += rows * lenses * (CELL if likeliest else BARE)
            seconds += rows * (SECONDS + (lenses * _lens_seconds(self.source, vocab, width) if likeliest else 0.0))
        files = len(names) + len(PAGE) + len(SCRIPTS)
        counts = {"prompts": sum(len(one.ids) for one in self.source.sets), "files": files}
        return Estimate("a static site", int(total), seconds, "--limit or --top 1 takes less", counts)

    def _layers(self, model: str) -> int:
        from ..store.artifacts.models import read_model

        return int(read_model(self.source.layout, model)["n_layers"])

    def write(self, folder: Path) -> Path:
        """Write all files into a folder and return the page's path; a site that is there is replaced file by file.

        LakeError for a folder that holds anything else, and for a disk that has no room.
        """
        page = folder / "index.html"
        if folder.exists() and not folder.is_dir():
            raise LakeError(f"{folder}: is a file; name a new folder, or an empty one")
        if folder.exists() and any(folder.iterdir()) and not _is_site(folder):
            raise LakeError(f"{folder}: is not empty and no explorer's; name a new folder, or an empty one")
        plan = self.plan()
        folder.mkdir(parents=True, exist_ok=True)
        if (free := free_bytes(folder)) < plan.bytes:
            raise LakeError(
                f"{folder}: needs about {human_bytes(plan.bytes)}, {human_bytes(free)} are free: use --limit, --top 1 or"
                " another disk"
            )
        for name, data in own_files():
            (folder / name).write_bytes(data)
        names = list(self.names())
        with bar("explorer", len(names), "files") as progress:
            for at, name in enumerate(names):
                self._announce(names, at)
                file = folder / "data" / f"{name}.js"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(self.data(name))
                progress.advance(1)
        return page

    def _announce(self, names: list[str], at: int) -> None:
        """Tell which prompts come next, once for AHEAD of them."""
        kind, *numbers = names[at].split("/")
        before = names[at - 1].split("/") if at else []
        run = [kind, *numbers[:1]]
        if kind not in ("cells", "pair") or (before[:2] == run and self._left > 0):
            self._left -= 1
            return
        ids = self._ids(kind, int(numbers[0]))
        batch = [name.split("/") for name in names[at : at + AHEAD]]
        self.cells.ahead([ids[int(place)] for *start, place in batch if start == run])
        self._left = AHEAD - 1

    _left = 0

    def _ids(self, kind: str, number: int) -> list[str]:
        one = self.source.captures[number] if kind == "cells" else self.source.views[number]
        return self.source.sets[one.set].ids


def _is_site(folder: Path) -> bool:
    """Whether a folder holds an explorer, or what an interrupted one left."""
    return {path.name for path in folder.iterdir()} <= {*PAGE, *(f"{name}.js" for name in SCRIPTS), "data"}


def _lens_seconds(source: ExplorerSource, vocab: int, width: int) -> float:
    """Seconds that the likeliest tokens of a token and layer take."""
    from ..queries.engine.estimate import ELEMENTWISE, speed_of

    return vocab * (width + ELEMENTWISE) / speed_of(source.kit.device)
