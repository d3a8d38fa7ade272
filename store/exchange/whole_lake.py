"""Checking what a lake holds beside sealed captures, each thing against its record; files that no record names are listed."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from ..artifacts.artifact import problems, read
from ..artifacts.models import FILE as VOCAB
from ..artifacts.models import REPAIR as VOCAB_REPAIR
from ..artifacts.models import damage, hash_head, read_head, read_model, vocab_file
from ..artifacts.probes import record_kind
from ..artifacts.streams import read_set, read_stream
from ..artifacts.texts import read_condition, read_lines, read_verdicts
from ..artifacts.weights import RECORD as WEIGHTS
from ..artifacts.weights import read_weights
from ..captures.verify import Report
from ..core.errors import RESTORE, LakeError
from ..core.files import hash_file, read_json
from ..core.schema import MANIFEST, MARKER, PROGRESS, PULLED, TEMPLATE
from ..format.parquet import check_rows
from ..format.paths import Layout, check_marker
from ..format.records import REPAIRS, read_record
from ..remote.objects import read_index
from ..remote.store import INDEX
from ..tables.declared import TABLES
from ..tables.files import stale

UNKNOWN = "no record of the lake names it; delete it, or run what was making it again"


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
        if report.files or report.problems:
            yield report


def _kinds(layout: Layout) -> Iterator[tuple[str, Callable[[Layout, Path], list[str]], list[Path]]]:
    """What a lake holds beside sealed captures: the name of each kind, what checks one of it, and all there are.

    Everything in the folder of a kind is one of it, so that nothing is there which no record vouches for.
    """
    root = layout.root
    yield "lake", _about, [root / name for name in (MARKER, PULLED, INDEX) if (root / name).is_file()]
    yield "captures", _unsealed, [path for path in _in(root, "captures/*") if not (path / MANIFEST).is_file()]
    yield "models", _model, _in(root, "models")
    yield "streams", _stream, _in(root, "streams")
    for area, kind, at in (
        ("prompts", "prompts", "prompts"),
        ("lenses", "", "lenses/*"),
        ("directions", "directions", "directions/*"),
        ("statistics", "statistics", "statistics/*"),
    ):
        layout.files.bring(root / area)
        yield area, partial(_sealed, kind=kind), _in(root, at)
    for area, check, at in (("texts", _texts, "texts/*"), ("verdicts", _verdicts, "verdicts")):
        layout.files.bring(root / area)
        yield area, check, _in(root, at)
    for name in TABLES:
        layout.files.bring(layout.table(name))
        yield f"tables/{name}", partial(_table, name=name), _in(root, f"tables/{name}")


def _in(root: Path, pattern: str) -> list[Path]:
    """What is in the folders of this pattern; what is under way has hidden names."""
    return sorted(path for path in root.glob(f"{pattern}/*") if not path.name.startswith(".") and path.suffix != ".tmp")


def _about(layout: Layout, file: Path) -> list[str]:
    if file.name == PULLED:
        read_record(file, "pulled")
    elif file.name == INDEX:
        read_index(read_json(file), str(file))
    else:
        check_marker(file)
    return []


def _unsealed(layout: Layout, path: Path) -> list[str]:
    """A capture under way has its plan; one without plan and manifest has lost them."""
    if (path / PROGRESS / TEMPLATE).is_file() or not path.is_dir():
        return [] if path.is_dir() else [f"{path}: no capture; {UNKNOWN}"]
    return [f"{path / MANIFEST}: missing; {RESTORE}"]


def _model(layout: Layout, folder: Path) -> list[str]:
    record = read_model(layout, folder.name)
    if record["model"] != folder.name:
        return [f"{folder / 'model.json'}: model: found {record['model']}, expected {folder.name}; {REPAIRS['model']}"]
    head = layout.files.bring(folder / "head.zarr")
    found = list(problems(head, record["head_files"], "head"))
    if not found and (content := hash_head(*read_head(layout, folder.name))) != record["head_sha256"]:
        found.append(f"{head}: other values than head_sha256 says (found {content}); {REPAIRS['head']}")
    weights = ["weights", WEIGHTS] if read_weights(layout, folder.name) else []
    vocab = [VOCAB] if "vocab_sha256" in record else []
    known = {"model.json", "head.zarr", *weights, *vocab}
    found += [f"{path}: {UNKNOWN}" for path in _in(folder.parent, folder.name) if path.name not in known]
    if "vocab_sha256" in record and (
        problem := damage(layout.files.bring(file := vocab_file(layout, folder.name)), record, hash_file)
    ):
        found.append(f"{file}: {problem}; {VOCAB_REPAIR}")
    return found


def _stream(layout: Layout, file: Path) -> list[str]:
    read_stream(layout, file.stem)
    return [] if file.suffix in (".json", ".parquet") else [f"{file}: {UNKNOWN}"]


def _sealed(layout: Layout, folder: Path, kind: str) -> list[str]:
    if not folder.is_dir():
        return [f"{folder}: {UNKNOWN}"]
    kind = kind or record_kind(folder)
    reader = read_set if kind == "prompts" else partial(read, kind=kind)
    return list(problems(folder, reader(layout.files, folder).record["files"], kind))


def _texts(layout: Layout, folder: Path) -> list[str]:
    read_condition(folder)
    found = list[str]()
    for file in _in(folder.parent, folder.name):
        try:
            if file.name != "condition.json":
                read_lines(file)
        except LakeError as error:
            found.append(str(error))
    return found


def _verdicts(layout: Layout, file: Path) -> list[str]:
    read_verdicts(file)
    return []


def _table(layout: Layout, file: Path, name: str) -> list[str]:
    if file.suffix != ".parquet":
        return [f"{file}: {UNKNOWN}"]
    if not stale(layout, name, file):  # what is stale is never read
        check_rows(file, TABLES[name].schema)
    return []
