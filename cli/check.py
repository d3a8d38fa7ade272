"""Verifying captures and looking at the installation: what `actlake verify` and `actlake doctor` print."""

import os
import platform
from importlib.metadata import version
from pathlib import Path

from ..analyze.core.device import devices, pick
from ..store.artifacts.models import read_model
from ..store.artifacts.vocab import REPAIR as VOCAB_REPAIR
from ..store.artifacts.vocab import damage, vocab_file
from ..store.artifacts.weights import read_weights
from ..store.captures.manifest import read_manifest
from ..store.captures.reader import find_capture, list_captures, split_capture
from ..store.captures.verify import Report, verify, verify_weights
from ..store.core.catalog import Catalog, load_catalog
from ..store.core.errors import LakeError
from ..store.core.files import free_bytes, human_bytes
from ..store.core.progress import bar
from ..store.core.version import __version__
from ..store.format.paths import Layout

PACKAGES = ("torch", "transformers", "zarr", "xarray", "dask", "duckdb", "numpy")


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

    Without the name of one capture, the model files that the lake holds are verified, too.
    """
    if capture:
        paths = [find_capture(layout, *split_capture(capture))]
    else:
        table = list_captures(layout)
        table = table[table["sealed"] & ((table["pair"] == pair) | (pair is None))]
        paths = [Path(path) for path in table["path"]]
    if not paths:
        raise LakeError(f"{layout}: no sealed capture to verify; `actlake ls` shows what is there")
    reports = []
    for path in paths:
        total = (read_manifest(path) or {"bytes": 0})["bytes"]
        with bar(f"verify {path.parts[-3]}/{path.parts[-2]}", total, "bytes") as progress:
            reports.append(verify(layout, path, progress.advance))
        if reforward and reports[-1].ok:
            _reforward(layout, catalog, path, reforward, (device, device_map), reports[-1])
    for at, report in {path.parts[-3:-1]: report for path, report in zip(paths, reports, strict=True)}.items():
        known, file = read_model(layout, *at), vocab_file(layout, *at)
        if "vocab_sha256" in known and (problem := damage(layout.files.bring(file), known)):
            report.problems.append(f"{file}: {problem}; {VOCAB_REPAIR}")
    for model in [] if capture else sorted({(path.parts[-3], path.parts[-2]) for path in paths}):
        if record := read_weights(layout, *model):
            total = sum(entry["bytes"] for entry in record["files"].values())
            with bar(f"verify weights of {'/'.join(model)}", total, "bytes") as progress:
                reports.append(verify_weights(layout, *model, record, progress.advance))
    return reports


def _reforward(
    layout: Layout, catalog: Catalog, path: Path, count: int, where: tuple[str, str | None], report: Report
) -> None:
    from ..capture.model.load import load_model, stored_weights
    from ..capture.run.reforward import reforward

    pair, variant = path.parts[-3], path.parts[-2]
    dtype = (read_manifest(path) or {})["provenance"]["dtype"]
    spec = stored_weights(layout, pair, variant) or catalog.pair(pair).model(variant)
    found = reforward(layout, load_model(spec, where[0], dtype, device_map=where[1]), path, count)
    worst = ", ".join(f"{name} {value:.1e} (allowed {found.allowed[name]:.1e})" for name, value in found.worst.items())
    report.reforward = f"; {found.prompts} prompts run again: " + (
        "bit for bit equal" if found.exact else f"largest difference {worst}"
    )
    if not found.ok:
        report.problems.append(f"{path}: running {found.prompts} prompts again gives other activations: {worst}")


def _device_words(name: str) -> str:
    import torch

    if name == "cpu":
        return f"cpu ({os.cpu_count()} cores, {torch.get_num_threads()} torch threads)"
    return f"{name} ({torch.cuda.get_device_name(name)})" if name.startswith("cuda") else name


def doctor_lines(lake: str, catalog: Path | None) -> list[tuple[str, str]]:
    """(name, finding) lines on versions, devices, disk, catalog and lake; problems are findings, not errors."""
    lines = [
        ("actlake", __version__),
        ("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
    ]
    lines += [(name, version(name)) for name in PACKAGES]
    lines.append(("devices", f"{', '.join(map(_device_words, devices()))}; --device auto is {pick()}"))
    lines.append(("disk", f"{human_bytes(free_bytes(Path.cwd()))} free here"))
    try:
        known = load_catalog(catalog)
        lines.append(("catalog", f"{known.path}: {len(known.pairs)} pairs ({', '.join(known.pairs)})"))
        layout = Layout.open(known.lakes.get(lake, lake))
        captures = list_captures(layout)
        size = human_bytes(int(captures["bytes"].sum()))
        lines.append(("lake", f"{layout}: {len(captures)} captures ({int(captures['sealed'].sum())} sealed), {size}"))
    except LakeError as error:
        lines.append(("problem", str(error)))
    return lines
