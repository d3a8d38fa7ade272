"""The installation: versions, devices, disk, catalog and lake, as `actlake doctor` prints them."""

import os
import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ..store.captures.reader import list_captures
from ..store.core.catalog import load_catalog
from ..store.core.errors import EXTRAS, LakeError
from ..store.core.files import free_bytes, human_bytes
from ..store.core.version import __version__
from ..store.format.paths import Layout

PACKAGES = ("torch", "transformers", "zarr", "xarray", "dask", "duckdb", "numpy")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return f"not installed: pip install 'actlake[{EXTRAS[package]}]'"


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
    lines += [(name, _version(name)) for name in PACKAGES]
    from ..analyze.core.device import devices, pick

    with suppress(ModuleNotFoundError):  # a reader's environment has no torch
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
