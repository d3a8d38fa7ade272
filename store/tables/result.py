"""What a query gave, as a table that loses nothing: whole numbers of any size, decimals, and NULL beside NaN."""

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import duckdb
import numpy as np
import pandas as pd

WHOLE = {"tinyint", "smallint", "integer", "bigint", "utinyint", "usmallint", "uinteger", "ubigint"}
WHOLE |= {"hugeint", "uhugeint"}


def exact_frame(found: duckdb.DuckDBPyRelation) -> pd.DataFrame:
    """All rows of a relation as a DataFrame whose values are those of SQL.

    Numbers are int64 and float64, Int64 and Float64 where some are NULL (pd.NA, not NaN); whole numbers beyond int64 and
    decimals that a float64 does not hold are Python's own, all else objects, NULL as None. DuckDB's `.df()` rounds the
    former to float64, which also stands for NULL there.
    """
    names, kinds, rows = found.columns, [kind.id for kind in found.types], found.fetchall()
    columns = zip(*rows, strict=True) if rows else ((),) * len(names)
    frame = pd.DataFrame({place: _column(*of) for place, of in enumerate(zip(kinds, columns, strict=True))})
    return frame.set_axis(names, axis="columns")


def _column(kind: str, values: Sequence[Any]) -> Any:
    if kind == "decimal":
        known = [value for value in values if value is not None]
        kind = "double" if all(Decimal(repr(float(value))) == value for value in known) else kind
    lost = np.array([value is None for value in values], dtype=bool)
    if kind in ("float", "double"):
        numbers = np.array([0 if value is None else value for value in values], dtype=np.float64)
        return pd.arrays.FloatingArray(numbers, lost) if lost.any() else numbers
    if kind in WHOLE and all(value is None or -(2**63) <= value < 2**63 for value in values):
        whole = np.array([0 if value is None else value for value in values], dtype=np.int64)
        return pd.arrays.IntegerArray(whole, lost) if lost.any() else whole
    return pd.Series(values, dtype=object)
