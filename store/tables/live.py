"""Which files of a table count: those that bear the name of their recipe, and whose recipe agrees with the lake and this code.

A table file is named by a hash of all that made it. When a kernel's numbers change, or a capture or model is replaced by
another of the same name, the file made before stays where it is: its rows would stand beside the new ones.
"""

from collections.abc import Iterable, Iterator, Set
from pathlib import Path
from typing import Any

from ..artifacts.models import has_model, read_model
from ..captures.manifest import read_manifest
from ..core.errors import CorruptError
from ..core.files import hash_json
from ..core.schema import MANIFEST
from ..format.parquet import about
from ..format.paths import Layout
from ..format.records import SEAL, check_record
from ..remote.hashes import while_same
from .declared import TABLES

FOREIGN = "foreign"  # marks what came from elsewhere: the key of a recipe, the beginning of a file's name


def table_key(name: str, recipe: dict[str, Any]) -> str:
    """KEY of a table file: hash of everything that determines its content; foreign- before it where that is a file."""
    return (f"{FOREIGN}-" if FOREIGN in recipe else "") + hash_json({"table": name, **recipe})[:32]


def live_files(layout: Layout, name: str, only: Set[str] | None = None) -> list[Path]:
    """A table's files whose rows count, sorted by name, or with `only` those that may have rows of these models.

    CorruptError for a file that bears another file's name.
    """
    there = _files(layout, name)
    if only is not None:
        there = [file for file in there if not (models := _models_in(recipe_of(file))) or models & only]
    return [file for file in there if not stale(layout, name, file)]


def _models_in(recipe: dict[str, Any] | None) -> set[str]:
    """The models that a recipe names; none where it names none, or came from elsewhere."""
    of = (recipe or {}).get("models") or {"": (recipe or {}).get("model")}
    return {model for model in of.values() if isinstance(model, str)} if isinstance(of, dict) else set()


def captures_of(files: Iterable[Path]) -> set[tuple[str, str]]:
    """The captures (model, stream) that table files say they were made from."""
    found = set()
    for recipe in filter(None, map(recipe_of, files)):
        models, streams = (recipe.get(f"{what}s") or {"": recipe.get(what)} for what in ("model", "stream"))
        if isinstance(models, dict) and isinstance(streams, dict):
            pairs = ((model, streams.get(variant)) for variant, model in models.items())
            found |= {(m, stream) for m, stream in pairs if isinstance(m, str) and isinstance(stream, str)}
    return found


def foreign_record(file: Path) -> list[dict[str, str]]:
    """The captures that a file from elsewhere stands for: models, and where the table has them stream, lens ..."""
    found = about(file)
    check_record(found, FOREIGN, file)
    return list((found or {})[FOREIGN]["captures"])


def foreign_files(layout: Layout, name: str) -> list[Path]:
    """The files of a table that were brought in from elsewhere (see tables.imported)."""
    pattern = f"{FOREIGN}-*.parquet"
    return sorted(layout.files.bring(layout.table(name), pattern).glob(pattern))


def stale_files(layout: Layout, name: str) -> dict[Path, str]:
    """A table's files whose rows do not count any more, and why."""
    return {file: why for file in _files(layout, name) if (why := stale(layout, name, file))}


def _files(layout: Layout, name: str) -> list[Path]:
    return sorted(layout.table(name).glob("*.parquet"))


def stale(layout: Layout, name: str, file: Path) -> str:
    """Why the rows of a table file do not count any more; empty when they do.

    Raises CorruptError for a file whose name is not the key of its recipe, such as a copy of another one: its rows would
    count twice, or stand for others.
    """
    if not file.is_file():  # a pipe, say: refused where the file is read
        return ""
    recipe = recipe_of(file)
    if recipe is None:  # a damaged footer is reported where the file is read
        return ""
    if (expected := table_key(name, {**recipe, "table": name})) != file.stem or recipe.get("table", name) != name:
        raise CorruptError(
            f"{file}: holds rows of table {recipe.get('table', name)} that belong into a file named {expected}.parquet; this"
            " one is a copy under another name, or its description was changed: delete it"
        )
    if FOREIGN in recipe:
        return ""
    now = TABLES[name].version
    if (then := recipe.get("version", now)) != now:
        return f"made by version {then} of the code for table {name}, this is version {now}"
    for what, found, expected in _inputs(layout, recipe):
        if found != expected:
            return f"made from another {what} than the lake has now (sha256 {found[:16]}, now {expected[:16]})"
    return ""


@while_same(1 << 14)
def recipe_of(file: Path) -> dict[str, Any] | None:
    """What a table file says it was made from, None where its footer can't be read; remembered until the file is another."""
    try:
        return about(file) or {}
    except CorruptError:
        return None


def _inputs(layout: Layout, recipe: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Captures and models of a recipe that the lake has under the same name: what it is, the recipe's hash, the lake's."""
    of = recipe.get("models") or {"": recipe.get("model")}
    streams = recipe.get("streams") or {"": recipe.get("stream")}
    captures = recipe.get("captures") or {"": recipe.get("capture")}
    heads = recipe.get("heads") or {"": recipe.get("head")}
    for variant, model in of.items() if isinstance(of, dict) else ():
        if not isinstance(model, str):
            continue
        stream, sha256 = streams.get(variant), captures.get(variant)
        if sha256 and stream and (found := _capture_sha256(layout.capture(model, stream))):
            yield f"capture {model}/{stream}", sha256, found
        if (sha256 := heads.get(variant)) and has_model(layout, model):
            yield f"head of {model}", sha256, str(read_model(layout, model)["head_sha256"])


def _capture_sha256(path: Path) -> str:
    """The hash of a sealed capture, empty when there is none."""
    return _sealed_as(path / MANIFEST)


@while_same(1 << 14)
def _sealed_as(file: Path) -> str:
    return str((read_manifest(file.parent) or {}).get(SEAL, ""))
