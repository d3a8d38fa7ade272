"""What `actlake.testing` gives to others: lakes of made-up numbers that are lakes, and checks that fail when they should."""

from pathlib import Path

import numpy as np
import pytest
import tiny
from actlake import testing
from actlake.store.artifacts.streams import read_stream, write_stream
from actlake.store.format.paths import Layout
from hypothesis import HealthCheck, given, settings


def test_a_made_lake_is_one(tmp_path: Path) -> None:
    lake = testing.made_lake(tmp_path / "a")
    assert all(report.ok for report in lake.verify()) and len(lake.captures) == 2
    assert lake.decode([5], "made-it") == ["<5>"] or lake.decode([5], "made-it")
    assert lake.dataset("made-it", "raw").resid.shape == (10, 3, 8)
    testing.check_lens(lake.sql("SELECT * FROM lens").df())
    testing.made_lake(tmp_path / "b")
    first, second = (tiny.tree(tmp_path / name / "captures") for name in "ab")
    assert first == second and len(first) > 20


def test_checks_fail_where_they_should(tmp_path: Path) -> None:
    table = testing.made_lake(tmp_path / "a").sql("SELECT * FROM lens").df()
    with pytest.raises(AssertionError, match="kl_final_layer below 0"):
        testing.check_lens(table.assign(kl_final_layer=-1.0))
    with pytest.raises(AssertionError, match="kl_layer_final of the last layer is not 0"):
        testing.check_lens(table.assign(kl_layer_final=1.0))


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(testing.token_rows())
def test_any_rows_make_a_stream_that_comes_back(lake: Layout, rows: list[testing.Row]) -> None:
    stream = testing.made_stream(rows)
    found = read_stream(lake, write_stream(lake, stream))
    assert found.content_sha256 == stream.content_sha256 and list(found.starts) == list(stream.starts)


@given(testing.residuals())
def test_residuals_are_finite(values: np.ndarray) -> None:
    assert values.shape == (5, 3, 8) and values.dtype == np.float32 and np.isfinite(values).all()
