"""Lakes in intake: `intake.open_catalog("catalog.yaml")` comes here by the entry points `actlake` and `actlake_catalog`."""

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd
import xarray as xr
from intake.catalog import Catalog
from intake.catalog.local import LocalCatalogEntry
from intake.source.base import DataSource, Schema

from .lake import Lake
from .store.captures.reader import find_capture, split_capture
from .store.core.catalog import load_catalog
from .store.core.errors import LakeError
from .store.core.files import human_bytes
from .store.tables.names import model_named, stored_models

CAPTURES = "captures"  # the entry of a lake that lists the others


class LakesCatalog(Catalog):
    """The lakes of a catalog.yaml (`path`), by name."""

    name = "actlake_catalog"

    def __init__(self, path: str, **options: Any):
        lakes = load_catalog(path).lakes
        super().__init__(**options)
        self._entries = {
            name: LocalCatalogEntry(name, f"the lake {place}", LakeCatalog, args={"lake": place}, catalog=self)
            for name, place in lakes.items()
        }


class LakeCatalog(Catalog):
    """One lake: an entry for every sealed capture, named MODEL/STREAM, and `captures`, the table of them.

    `lake` is a folder or URL, or the lake's name in the catalog (`catalog`, else the usual one). A capture is also found by
    a unique beginning of its stream. LakeError when there is no such lake.
    """

    name = "actlake"

    def __init__(self, lake: str = "default", catalog: str | None = None, **options: Any):
        known = {} if "/" in lake else load_catalog(catalog).lakes
        self._lake = Lake(known.get(lake, lake))
        super().__init__(**options)

    def _make_entries_container(self) -> Mapping[str, LocalCatalogEntry]:
        return _Entries(self._lake, self)


class _Entries(Mapping[str, LocalCatalogEntry]):
    """What a lake holds at the moment it is asked."""

    def __init__(self, lake: Lake, catalog: LakeCatalog):
        self._lake, self._catalog = lake, catalog

    def _sealed(self) -> dict[str, str]:
        """Name -> description of every sealed capture."""
        table = self._lake.captures
        return {
            f"{row.model}/{row.stream}": f"{row.prompts} prompts, {row.tokens:,} tokens, {human_bytes(row.bytes)}"
            for row in table[table.sealed].itertuples()
        }

    def __iter__(self) -> Iterator[str]:
        return iter([CAPTURES, *self._sealed()])

    def __len__(self) -> int:
        return 1 + len(self._sealed())

    def __getitem__(self, name: str) -> LocalCatalogEntry:
        args = {"lake": str(self._lake.layout.root)}
        if name == CAPTURES:
            about = "every capture of the lake"
            return LocalCatalogEntry(name, about, _CapturesSource, args=args, catalog=self._catalog)
        model, stream = split_capture(name)
        try:
            path = find_capture(
                self._lake.layout, model_named(model, self._lake.catalog, stored_models(self._lake.layout)), stream
            )
        except LakeError:
            raise KeyError(name) from None
        about = self._sealed().get(f"{path.parent.name}/{path.stem}", "not sealed")
        args |= {"model": path.parent.name, "stream": path.stem}
        return LocalCatalogEntry(name, about, _CaptureSource, args=args, catalog=self._catalog)


class _CaptureSource(DataSource):
    """One capture; `read` and `to_dask` give the same lazy xarray.Dataset, since a capture may be larger than memory."""

    name, container, partition_access = "actlake_capture", "xarray", False

    def __init__(self, lake: str, model: str, stream: str, metadata: dict[str, Any] | None = None):
        super().__init__(metadata=metadata)
        self._open = lambda: Lake(lake).dataset(model, stream)

    def _get_schema(self) -> Schema:
        found = self._open()
        shapes = {str(name): found[name].shape for name in found}
        return Schema(dtype=None, shape=None, npartitions=1, extra_metadata={**found.attrs, "shapes": shapes})

    def read(self) -> xr.Dataset:
        """The capture, lazy."""
        return self._open()

    to_dask = read

    def _close(self) -> None:
        """Nothing is held open."""


class _CapturesSource(DataSource):
    """The table of a lake's captures."""

    name, container, partition_access = "actlake_captures", "dataframe", False

    def __init__(self, lake: str, metadata: dict[str, Any] | None = None):
        super().__init__(metadata=metadata)
        self._url = lake

    def _get_schema(self) -> Schema:
        found = self.read()
        types = {name: str(kind) for name, kind in found.dtypes.items()}
        return Schema(dtype=types, shape=found.shape, npartitions=1, extra_metadata={})

    def read(self) -> pd.DataFrame:
        """model, stream, prompts, tokens, bytes, sealed, path of every capture."""
        return Lake(self._url).captures

    def _close(self) -> None:
        """Nothing is held open."""
