"""The sample lake that comes with actlake: unpacked into a folder of the user's cache, heads added from the packaged models."""

import hashlib
import io
import json
import os
import shutil
import zipfile
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from ..exchange.arrays import read_arrays
from ..store.artifacts.models import FILE, write_model
from ..store.core.catalog import load_catalog
from ..store.core.errors import CorruptError
from ..store.core.files import temporary_of
from ..store.format.paths import Layout
from ..store.format.records import SEAL
from ..store.format.shards import widen
from ..store.remote.hashes import user_cache

SAMPLE = "sample"
# Arrays of a head -> tensors of the packaged models.
TENSORS = {"norm_weight": "model.norm.weight", "unembed": "model.embed_tokens.weight"}


def sample_folder() -> Path:
    """The folder of the sample lake, unpacked at the first call, named by the hash of what is packaged."""
    data = (files("actlake.models.sample") / "lake.zip").read_bytes()
    folder = user_cache() / f"sample-{hashlib.sha256(data).hexdigest()[:12]}"
    if folder.is_dir():
        return folder
    made = temporary_of(folder)
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as stored:
            stored.extractall(made)
        for marker in sorted(made.glob("models/*/model.json")):
            _add_head(Layout.open(made), marker)
        os.rename(made, folder)
    except OSError:
        if not folder.is_dir():  # another process was not faster
            raise
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return folder


def place_of(name: str, catalog: Path | None = None) -> str:
    """Folder or URL of a lake by its name in the catalog; `sample` is the packaged one, unless a folder or entry is called so."""
    lakes = load_catalog(catalog).lakes
    return (
        str(sample_folder())
        if name == SAMPLE and name not in lakes and not Path(name).exists()
        else str(lakes.get(name, name))
    )


def _add_head(layout: Layout, marker: Path) -> None:
    """Write a model's head.zarr, whose bytes are this machine's zstd's, and its record anew."""
    record: dict[str, Any] = json.loads(marker.read_text())
    attributes = json.loads((marker.parent / "head.json").read_text())
    variant = record["model"].rpartition("-")[2]
    held = read_arrays(Path(str(files("actlake.models.pocket") / variant / "model.safetensors")))
    arrays: dict[str, np.ndarray] = {name: np.asarray(widen(held[tensor].data)) for name, tensor in TENSORS.items()}
    arrays["real_token"] = pq.read_table(marker.parent / FILE, columns=["real"])["real"].to_numpy()
    marker.unlink()
    (marker.parent / "head.json").unlink()
    expected = record["head_sha256"]
    bare = {key: value for key, value in record.items() if key not in ("head_files", "head_sha256", SEAL)}
    attributes.pop("format_version")
    write_model(layout, record["model"], bare, arrays, attributes)
    if (found := json.loads(marker.read_text())["head_sha256"]) != expected:
        raise CorruptError(
            f"models/pocket/{variant}: head {found[:12]}", expected=f"{expected[:12]}, as the sample lake has it"
        )
