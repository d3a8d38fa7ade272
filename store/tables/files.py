"""Table files: Parquet, named by what determines their content, written atomically; and which of them count."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Set
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..artifacts.models import has_model, read_model
from ..captures.manifest import read_manifest
from ..core.errors import CorruptError, LakeError
from ..core.files import canonical_json, free_bytes, full_disk, hash_json, human_bytes, replacing
from ..core.schema import MANIFEST
from ..format.parquet import about, parquet_writer
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


ROW_GROUP_TOKENS = 1 << 17  # one row group = one layer of about this many tokens: a layer filter skips the rest


def table_file(layout: Layout, name: str, key: str) -> Path:
    """Path of the table file of this key."""
    return layout.files.bring(layout.table(name) / f"{key}.parquet")


@contextmanager
def table_writer(layout: Layout, name: str, recipe: dict[str, Any]) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Write one table file atomically: what the block hands over becomes a row group each, the file appears at its end.

    Of processes that write the same one at once the first wins; the others keep its file.

    A row group is a mapping column -> array in the schema of the table; scalars are repeated. Those of one layer are merged
    up to ROW_GROUP_TOKENS rows, so that a writer need not hold that many. The recipe goes into the Parquet key-value
    metadata. A full disk is a LakeError; whatever raises inside the block leaves nothing behind.
    """
    schema = TABLES[name].schema.with_metadata({b"actlake": canonical_json({"table": name, **recipe})})
    path = table_file(layout, name, table_key(name, recipe))
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with replacing(path, first=True) as temporary:
            with _writer(temporary, schema) as writer:
                yield lambda group: writer.write_table(_to_arrow(group, schema), row_group_size=1 << 30)
            if parts := _of_one_layer(temporary, schema):
                with (
                    replacing(temporary) as merged,
                    _writer(merged, schema) as writer,
                    pq.ParquetFile(temporary) as source,
                ):
                    for groups in parts:
                        table = source.read_row_groups(groups).unify_dictionaries()
                        writer.write_table(table.cast(schema), row_group_size=1 << 30)
        layout.files.publish(path)
    except OSError as error:
        if full_disk(error):
            raise LakeError(
                f"disk full while writing table {name} ({human_bytes(free_bytes(path.parent))} free); nothing was kept"
            ) from error
        raise


def _writer(file: Path, schema: pa.Schema) -> AbstractContextManager[pq.ParquetWriter]:
    # A dictionary of floats that hardly repeat costs a third more bytes and slows every scan.
    repeated = [field.name for field in schema if pa.types.is_dictionary(field.type) or field.name == "layer"]
    return parquet_writer(file, schema, use_dictionary=repeated)


def _of_one_layer(file: Path, schema: pa.Schema) -> list[list[int]]:
    """Row groups to make one of, ROW_GROUP_TOKENS rows at most, in their order; none where that would change nothing."""
    if "layer" not in schema.names:
        return []
    found, place = pq.read_metadata(file), schema.names.index("layer")
    done, open_parts, rows = list[list[int]](), dict[int, list[int]](), Counter[int]()
    for number in range(found.num_row_groups):
        group = found.row_group(number)
        statistics = group.column(place).statistics
        if (
            statistics is None
            or not statistics.has_min_max
            or statistics.null_count
            or statistics.min != statistics.max
        ):
            return []
        if statistics.min in rows and rows[statistics.min] + group.num_rows > ROW_GROUP_TOKENS:
            done, open_parts, rows = [*done, *open_parts.values()], {}, Counter()
        open_parts.setdefault(statistics.min, []).append(number)
        rows[statistics.min] += group.num_rows
    parts = [*done, *open_parts.values()]
    return parts if len(parts) < found.num_row_groups else []


def write_table(layout: Layout, name: str, recipe: dict[str, Any], groups: Iterable[dict[str, Any]]) -> Path:
    """Write one table file from the row groups of `groups`; an existing one is kept (same key, same content)."""
    path = table_file(layout, name, table_key(name, recipe))
    if not path.exists():
        with table_writer(layout, name, recipe) as add:
            for group in groups:
                add(group)
    return path


def find_tables(layout: Layout, name: str, recipe: dict[str, Any]) -> list[Path]:
    """A table's files whose recipe has these values."""
    found = []
    for file in sorted(layout.files.bring(layout.table(name)).glob("*.parquet")):
        has = about(file) or {}
        if all(has.get(key) == value for key, value in recipe.items()):
            found.append(file)
    return found


def drop_tables(layout: Layout, name: str, recipe: dict[str, Any], keep: Path) -> None:
    """Delete a table's files whose recipe has these values, but for `keep`: what they hold was made anew there."""
    for file in find_tables(layout, name, recipe):
        if file != keep:
            layout.files.remove(file)


def _to_arrow(group: dict[str, Any], schema: pa.Schema) -> pa.Table:
    rows = max(len(value) for value in group.values() if not isinstance(value, str | int | None))
    arrays = []
    for column in schema:
        value = group[column.name]
        if isinstance(value, str | int | None):
            value = pa.repeat(pa.scalar(value), rows) if value is not None else pa.nulls(rows)
        # NaN marks "not defined here" in kernels; SQL's word for that is NULL.
        array = pa.array(value, from_pandas=True) if not isinstance(value, pa.Array) else value
        arrays.append(
            array.cast(column.type)
            if not pa.types.is_dictionary(column.type)
            else array.cast(pa.string()).dictionary_encode()
        )
    return pa.Table.from_arrays(arrays, schema=schema)
