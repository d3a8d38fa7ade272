"""What objects show of themselves in a notebook: a heading, facts, tables; every text in it escaped."""

from collections.abc import Mapping
from html import escape

import pandas as pd

SHOWN = 40  # rows of a table


def facts(title: str, values: Mapping[str, object]) -> str:
    """A heading, and a line for each value."""
    rows = "".join(
        f"<tr><th style='text-align:left'>{escape(name)}</th><td style='text-align:left'>{escape(str(value))}</td></tr>"
        for name, value in values.items()
    )
    return f"<div><b>{escape(title)}</b><table>{rows}</table></div>"


def table(frame: pd.DataFrame, rows: int = SHOWN) -> str:
    """The first rows of a table, and how many more there are."""
    more = f"<div>and {len(frame) - rows:,} more</div>" if len(frame) > rows else ""
    shown = frame.head(rows).to_html(index=False, na_rep="", border=0, float_format=lambda value: f"{value:.4g}")
    return shown + more


def section(title: str, *parts: str) -> str:
    """Parts of HTML below a heading."""
    return f"<div><b>{escape(title)}</b>{''.join(parts)}</div>"
