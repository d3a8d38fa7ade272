"""Norms and scales of captured rows: small Zarr groups, sealed, that training normalises by."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import CorruptError
from ..core.schema import RECORD
from ..format.paths import Layout, check_name
from ..format.records import REPAIRS
from ..format.zarr_groups import checked, open_group
from ..format.zarr_metadata import check_dims
from .artifact import key_of, read, writing
from .models import write_group

NORMS, SCALE = "norms", "scale"
STATISTIC_DIMS = {"norm": ("token",), "mean": ("d_model",), "scale": ("kind",)}
AREA = "statistics"


def kept_statistics(
    layout: Layout, recipe: Mapping[str, Any], compute: Callable[[], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """The arrays of a recipe (`kind`, `model` and all else that determines them), computed and sealed where they are not there.

    CorruptError when what is there is damaged.
    """
    folder = layout.root / AREA / check_name(recipe["model"], "model") / f"{recipe['kind']}-{key_of(recipe)}.zarr"
    layout.files.bring(folder)
    if not (folder / RECORD).is_file():
        arrays = compute()
        with writing(layout, folder, recipe, {}) as made:
            write_group(made, arrays, STATISTIC_DIMS, dict(recipe), lambda shape: shape)
    return _read(layout, folder)


def _read(layout: Layout, folder: Path) -> dict[str, np.ndarray]:
    found = read(layout.files, folder, AREA)
    if folder.stem != (name := f"{found.record['recipe']['kind']}-{found.record['key']}"):
        raise CorruptError(f"{folder}: damaged, its record is that of {name}", repair=REPAIRS[AREA])
    found.check()
    group, arrays = open_group(folder, found.record["files"]["zarr.json"]["sha256"])
    check_dims(folder, arrays, STATISTIC_DIMS)
    return {name: checked(folder, group, name)[...] for name in arrays}
