"""intake opens our catalog: lakes, their captures, xarray and pandas out of them."""

import subprocess
import sys
import tomllib
from pathlib import Path

import intake
import pandas as pd
import pytest
import xarray as xr
from actlake.lake import Lake
from actlake.store.core.catalog import load_catalog
from actlake.store.core.errors import LakeError
from actlake.store.format.paths import Layout

ROOT = Path(__file__).parent.parent
DRIVERS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["intake.drivers"]


@pytest.fixture(autouse=True, scope="module")
def registered() -> None:
    """The drivers of this tree, whichever is installed."""
    for name, driver in DRIVERS.items():
        intake.register_driver(name, driver, clobber=True)


@pytest.fixture
def catalog(captured: Layout, tmp_path: Path) -> Path:
    """A catalog beside a lake, which it names by a relative path."""
    (tmp_path / "lakes").mkdir()
    (tmp_path / "lakes" / "first").symlink_to(captured.root)
    file = tmp_path / "catalog.yaml"
    file.write_text(
        "lakes: {default: lakes/first, other: lakes/none}\n"
        'sources:\n  default: {driver: actlake, args: {lake: default, catalog: "{{ CATALOG_DIR }}/catalog.yaml"}}\n'
    )
    return file


def test_open_catalog(catalog: Path, captured: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    found = intake.open_catalog(str(catalog))
    assert list(found) == ["default"]
    lake, ours = found["default"], Lake(captured.root)
    assert list(lake) == ["captures", *(f"{r.model}/{r.stream}" for r in ours.captures.itertuples())]
    assert len(lake) == 1 + len(ours.captures) > 3
    table = lake["captures"].read()
    pd.testing.assert_frame_equal(table.drop(columns="path"), ours.captures.drop(columns="path"))
    assert lake.captures.discover()["shape"] == table.shape
    plain = xr.open_zarr(find := captured.root / f"captures/{list(lake)[1]}.zarr", consolidated=True)
    for name in (list(lake)[1], "llama-it/native"):
        source = lake[name]
        data = source.read()
        assert isinstance(data, xr.Dataset) and data.resid.chunks and data.sizes == plain.sizes, find
        xr.testing.assert_equal(data.resid.drop_vars(data.resid.coords), plain.resid.drop_vars(plain.resid.coords))
        assert source.to_dask().equals(data) and source.discover()["metadata"]["shapes"]["resid"] == plain.resid.shape
    assert "prompts" in lake._entries["llama-it/native"].describe()["description"]
    assert "llama-it/nothing" not in lake and "nothing" not in lake
    with pytest.raises(KeyError):
        lake["llama-it/nothing"]


def test_lakes_of_a_catalog_without_sources(catalog: Path, captured: Layout) -> None:
    found = intake.open_catalog(str(catalog), driver="actlake_catalog")
    assert list(found) == ["default", "other"] == list(load_catalog(catalog).lakes)
    assert found.default.captures.read()["sealed"].all()
    with pytest.raises(LakeError, match="no lake at"):
        found["other"].read()
    assert list(intake.open_actlake(str(captured.root))) == list(found["default"])


def test_the_packaged_catalog_has_a_source_for_each_lake() -> None:
    found = intake.open_catalog(str(ROOT / "catalog.yaml"))
    assert list(found) == list(load_catalog(ROOT / "catalog.yaml").lakes)
    described = found._entries["default"].describe()
    assert described["plugin"] == ["actlake"] and described["container"] == "catalog"


def test_actlake_does_without_intake() -> None:
    code = "import sys; sys.modules['intake'] = None; import actlake.cli.main, actlake.lake; assert 'actlake.intake_driver' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
