"""Checking what a lake holds beside captures: models, streams, lenses, directions, texts and tables, each against its record."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from ..artifacts.artifact import problems, read
from ..artifacts.models import read_model
from ..artifacts.streams import read_stream, stream_records
from ..artifacts.texts import AGAIN, read_condition
from ..artifacts.vocab import REPAIR as VOCAB_REPAIR
from ..artifacts.vocab import damage, vocab_file
from ..captures.verify import Report
from ..core.errors import LakeError
from ..core.files import hash_file
from ..core.schema import OUTPUT_KINDS, RECORD
from ..format.parquet import check_rows
from ..format.paths import Layout
from ..tables.declared import TABLES
from ..tables.live import stale


def verify_rest(layout: Layout) -> Iterator[Report]:
    """A report for each kind that the lake has something of; every byte is read, nothing is taken from before."""
    for kind, check, found in _kinds(layout):
        report = Report(capture=kind)
        for path in found:
            try:
                report.problems += check(layout, path)
            except LakeError as error:
                report.problems.append(str(error))
            files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
            report.files += len(files)
            report.bytes += sum(file.stat().st_size for file in files)
        if report.files:
            yield report


def _kinds(layout: Layout) -> Iterator[tuple[str, Callable[[Layout, Path], list[str]], list[Path]]]:
    root = layout.root
    yield "models", _model, sorted(file.parent for file in root.glob("models/*/model.json"))
    yield "streams", _stream, [layout.streams / f"{record['name']}.json" for record in stream_records(layout)]
    for area, kind in (("lenses", "probes"), ("directions", "directions")):
        folders = layout.files.bring(root / area).glob(f"**/[!.]*.zarr/{RECORD}")
        yield area, partial(_sealed, kind=kind), sorted(file.parent for file in folders)
    texts = layout.files.bring(root / "texts").glob("*/*/condition.json")
    yield "texts", _texts, sorted(file.parent for file in texts)
    for name in TABLES:
        files = layout.files.bring(layout.table(name)).glob("*.parquet")
        yield f"tables/{name}", partial(_table, name=name), sorted(files)


def _model(layout: Layout, folder: Path) -> list[str]:
    record = read_model(layout, folder.name)
    head = layout.files.bring(folder / "head.zarr")
    found = list(problems(head, record["head_files"], "head"))
    if "vocab_sha256" in record and (
        problem := damage(layout.files.bring(file := vocab_file(layout, folder.name)), record, hash_file)
    ):
        found.append(f"{file}: {problem}; {VOCAB_REPAIR}")
    return found


def _stream(layout: Layout, file: Path) -> list[str]:
    read_stream(layout, file.stem)
    return []


def _sealed(layout: Layout, folder: Path, kind: str) -> list[str]:
    return list(problems(folder, read(layout.files, folder, kind).record["files"], kind))


def _texts(layout: Layout, folder: Path) -> list[str]:
    read_condition(folder)
    for file in sorted(folder.glob("*.parquet")):
        check_rows(file, OUTPUT_KINDS[file.name.partition("-")[0]], AGAIN)
    return []


def _table(layout: Layout, file: Path, name: str) -> list[str]:
    if not stale(layout, name, file):  # what is stale is never read
        check_rows(file, TABLES[name].schema)
    return []
