"""How commands print: the console, tables for people, JSON for machines."""

import json
import math
import re
import sys
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import is_float_dtype
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from ..store.core.files import human_bytes
from ..store.core.progress import CONTROLS, Terminal

out = Terminal(width=None if sys.stdout.isatty() else 160)  # a pipe has no width to fit

FOLDED = 60  # letters of a cell in one line; longer texts are folded
LISTED = 6  # values of a list that are shown
LINE_ENDS = {ord(end): shown for end, shown in (("\n", "\\n"), ("\r", "\\r"), ("\t", "\\t"))}


def line(text: object, style: str | None = None) -> None:
    """Print a line as it is, however long; nothing in it is markup."""
    out.print(escape(str(text)), highlight=False, soft_wrap=True, style=style)


def grid(*columns: str) -> Table:
    """An empty table without lines."""
    return Table(*columns, box=None, padding=(0, 2, 0, 0), header_style="bold")


def records(frame: pd.DataFrame, exact: bool = False) -> list[dict[str, Any]]:
    """A table as JSON records, numbers with all their digits; what JSON has no number for (NaN, infinity) is null, or with
    `exact` one of the texts NaN, Infinity and -Infinity."""
    columns = [[_plain(value, exact) for value in frame.iloc[:, place]] for place in range(frame.shape[1])]
    return [dict(zip(map(str, frame.columns), row, strict=True)) for row in zip(*columns, strict=True)]


def _plain(value: Any, exact: bool) -> Any:
    """A cell as JSON can have it."""
    if isinstance(value, np.ndarray | list | tuple):
        return [_plain(one, exact) for one in (value.tolist() if isinstance(value, np.ndarray) else value)]
    if isinstance(value, dict):
        return {str(key): _plain(one, exact) for key, one in value.items()}
    if isinstance(value, np.generic) and not isinstance(value, np.datetime64 | np.timedelta64):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else json.dumps(value) if exact else None
    return None if value is pd.NaT or value is pd.NA else value


def print_json(value: Any) -> None:
    """Print one JSON value on one line; control characters and what turns a line around are escaped."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    print(re.sub(f"[{''.join(map(re.escape, map(chr, CONTROLS)))}]", lambda found: f"\\u{ord(found[0]):04x}", text))


def print_table(frame: pd.DataFrame, as_json: bool = False, exact: bool = False) -> None:
    """Print a table for people, or as JSON records. With `exact` NaN is a number and not what stands for none.

    Nothing is cut: a table that is wider than the terminal runs on, long texts are folded, lists are shortened.
    """
    if as_json:
        return print_json(records(frame, exact))
    table = grid()
    none = "NaN" if exact else "-"
    columns = [_column(str(name), frame.iloc[:, place], none) for place, name in enumerate(frame.columns)]
    for name, cells in zip(frame.columns, columns, strict=True):
        long = max(map(len, cells), default=0) > FOLDED
        table.add_column(escape(str(name)), no_wrap=not long, max_width=FOLDED if long else None, overflow="fold")
    for row in zip(*columns, strict=True):
        table.add_row(*map(escape, row))
    width = Measurement.get(out, out.options.update(max_width=100_000), table).maximum
    Terminal(width=max(width, out.width)).print(table, crop=False, no_wrap=True)


def _column(name: str, values: pd.Series, none: str) -> list[str]:
    """The cells of a column as text; numbers that are all whole have no decimal point."""
    finite = [value for value in values if isinstance(value, float) and math.isfinite(value)]
    whole = is_float_dtype(values) and not any(value % 1 for value in finite)
    return [_cell(name, value, whole, none) for value in values]


def _cell(name: str, value: Any, whole: bool, none: str) -> str:
    """A cell as text; `none` is what NaN is shown as."""
    if isinstance(value, list | tuple | np.ndarray):
        shown = ", ".join(_cell(name, each, False, none) for each in value[:LISTED])
        return f"[{shown}]" if len(value) <= LISTED else f"[{shown} ... {len(value)} in all]"
    if value is None or value is pd.NA:
        return "-"
    if isinstance(value, float) and pd.isna(value):
        return none
    if name == "bytes":
        return human_bytes(value)
    if isinstance(value, float) and math.isfinite(value) and (whole or abs(value) >= 1e4):
        return f"{value:.0f}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value).translate(LINE_ENDS) if isinstance(value, str) else str(value)
