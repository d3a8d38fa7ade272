"""Verifying what a lake holds: captures and their vocabularies and weights by hash, and some prompts run again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...store.artifacts.models import REPAIR as VOCAB_REPAIR
from ...store.artifacts.models import damage, read_model, vocab_file
from ...store.artifacts.streams import read_stream
from ...store.artifacts.weights import read_weights
from ...store.captures.manifest import read_manifest
from ...store.captures.reader import Capture, find_capture, list_captures, split_capture
from ...store.captures.verify import Report, verify, verify_weights
from ...store.core.catalog import Catalog
from ...store.core.errors import LakeError
from ...store.core.files import hash_file
from ...store.core.progress import Estimate, bar
from ...store.exchange.whole_lake import verify_rest
from ...store.format.paths import Layout
from ...store.tables.names import model_named, pair_named, stored_models

if TYPE_CHECKING:
    from ..model.load import Model

CHECKED = 60e6  # bytes of a capture that are hashed, decoded and looked at in a second
STARTING, LOADED = 5.0, 250e6  # seconds until a model runs, and parameters that are loaded in a second


def check_captures(
    layout: Layout,
    catalog: Catalog,
    capture: str | None,
    pair: str | None,
    reforward: int,
    device: str = "auto",
    device_map: str | None = None,
) -> list[Report]:
    """Verify one capture, those of a pair, or every sealed one; with `reforward`, run that many prompts of each again.

    Without the name of one capture, the model files that the lake holds are verified, too; without that of a pair all else that
    it holds: models, streams, lenses, directions, texts, tables.
    """
    if capture:
        model, stream = split_capture(capture)
        paths = [find_capture(layout, model_named(model, catalog, stored_models(layout)), stream)]
    else:
        table = list_captures(layout)
        table = table[table["sealed"]]
        if pair:
            table = table[table["model"].isin(pair_named(pair, catalog, stored_models(layout)).values())]
        paths = [Path(path) for path in table["path"]]
    if not paths:
        raise LakeError(f"{layout}: no sealed capture to verify; `actlake ls` shows what is there")
    _announce(layout, paths, reforward)
    reports = []
    for path in paths:
        total = (read_manifest(path) or {"bytes": 0})["bytes"]
        with bar(f"verify {path.parent.name}", total, "bytes") as progress:
            reports.append(verify(layout, path, progress.advance))
        if reforward and reports[-1].ok:
            _reforward(layout, catalog, path, reforward, (device, device_map), reports[-1])
    if capture or pair:
        for model, report in {path.parent.name: report for path, report in zip(paths, reports, strict=True)}.items():
            known, file = read_model(layout, model), vocab_file(layout, model)
            if "vocab_sha256" in known and (problem := damage(layout.files.bring(file), known, hash_file)):
                report.problems.append(f"{file}: {problem}; {VOCAB_REPAIR}")
    else:
        reports += verify_rest(layout)
    for model in [] if capture else sorted({path.parent.name for path in paths}):
        if record := read_weights(layout, model):
            total = sum(entry["bytes"] for entry in record["files"].values())
            with bar(f"verify weights of {model}", total, "bytes") as progress:
                reports.append(verify_weights(layout, model, record, progress.advance))
    return reports


def _announce(layout: Layout, paths: Sequence[Path], reforward: int) -> None:
    """Say what takes longer than some seconds: hashing, and models that run again (their forwards come on top)."""
    total = sum((read_manifest(path) or {"bytes": 0})["bytes"] for path in paths)
    models = [path.parent.name for path in paths] if reforward else []
    parameters = sum(read_model(layout, model).get("parameters", 0) for model in models)
    seconds = total / CHECKED + len(models) * STARTING + parameters / LOADED
    again = f" and running {reforward} prompts of each again (--reforward)" if reforward else ""
    what = f"verifying {len(paths)} capture{'s' * (len(paths) != 1)}{again}"
    Estimate(what, total, seconds, "MODEL/STREAM or --pair verifies less").announce()


def _reforward(
    layout: Layout, catalog: Catalog, path: Path, count: int, where: tuple[str, str | None], report: Report
) -> None:
    from ..model.load import load_model, stored_weights
    from .reforward import reforward

    model = path.parent.name
    dtype = (read_manifest(path) or {})["provenance"]["dtype"]
    spec = stored_weights(layout, model) or catalog.model(model)
    loaded = load_model(spec, where[0], dtype, device_map=where[1])
    if "imported" in (read_manifest(path) or {})["provenance"]:
        return _compare(layout, loaded, path, count, report)
    found = reforward(layout, loaded, path, count)
    rounded = ", both rounded" if "precision" in (read_manifest(path) or {}) else ""
    worst = ", ".join(f"{name} {value:.1e} (allowed {found.allowed[name]:.1e})" for name, value in found.worst.items())
    report.reforward = f"; {found.prompts} prompts run again: " + (
        f"bit for bit equal{rounded}" if found.exact else f"largest difference {worst}"
    )
    if not found.ok:
        report.problems.append(f"{path}: running {found.prompts} prompts again gives other activations: {worst}")


def _compare(layout: Layout, model: Model, path: Path, count: int, report: Report) -> None:
    """A capture of another tool against the model: right, or what is wrong with it by name."""
    from .faults import compare
    from .reforward import check_checkpoint

    stored = Capture(path, lake=layout.files)
    check_checkpoint(stored, model)
    found = compare(model, stored, read_stream(layout, stored.manifest["stream"]), count)
    share = f"a token's vector differs by {found.median:.1e} of its norm in the median, {found.worst:.1e} at most"
    report.reforward = f"; {found.prompts} prompts run again: {'imported right, ' if not found.faults else ''}{share}"
    report.problems += [f"{path}: {fault}" for fault in found.faults]
