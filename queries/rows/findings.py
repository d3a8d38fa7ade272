"""What a row found: the numbers and words that its figure and page are made of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from .registry import Query


@dataclass(frozen=True, repr=False)
class Findings:
    """A question answered for one pair, or pooled over several.

    `table` has one line per estimate: measure, dimensions, estimate, low, high (95 %, units of the measure), n, unit (what n
    counts: prompts, as a rule), method. `sql` is the statement behind it, as `actlake sql` accepts it. `published` holds
    the study's figures for this model, `says` the finding in a sentence; `computed` are the files made for it. `captures` are
    those it is about (pair, variant, stream), `read` the files of its tables and of what they are made from.
    """

    query: Query
    pair: str
    streams: dict[str, str]
    table: pd.DataFrame
    sql: str
    published: pd.DataFrame
    says: str
    computed: list[Path]
    rows: int
    seconds: float
    captures: list[tuple[str, str, str]]
    read: list[Path]
