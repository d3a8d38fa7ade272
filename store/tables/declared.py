"""Tables, each declared once beside the function that computes it; SQL, docs and help follow from the declaration.

This module knows no table: those of the package declare themselves when its modules are imported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..core.columns import Column, schema_of
from ..core.registry import Registry

if TYPE_CHECKING:
    import pyarrow as pa

HOW = {
    "offline": "the store alone",
    "weights": "both checkpoints, tensor by tensor",
    "replay": "late blocks of a model, from a stored residual",
    "generate": "texts that models write",
}


def _no_columns(kind: str) -> dict[str, str]:
    return {}


@dataclass(frozen=True)
class Table:
    """What is known of a table before it is computed.

    `of` is what one file of it is about: a `capture`, a `pair` of them, or a `side`: one capture of a pair, with the other
    model taken into account, made of (context, pair, variant). `kinds` are those that free SQL gets without naming
    them, `kind_columns` the columns by which a kind's rows are known. `how` says what it takes (HOW), of every kind or kind by
    kind. `version` is that of the code that makes it: raise it when its numbers change, and rows made before do not count any
    more. `lenses` is its cost in passes of a lens over all tokens.
    """

    name: str
    about: str
    grain: str
    columns: tuple[Column, ...]
    make: Callable[
        ..., Any
    ]  # (context, capture or pair, kind) -> the job, or None where its rows are there from elsewhere
    of: str = "capture"
    version: int | str = 1
    kinds: tuple[str, ...] = ("",)
    kind_columns: Callable[[str], dict[str, str]] = _no_columns
    how: str | Mapping[str, str] = "offline"
    lenses: float = 0.0
    one_model: bool = False  # rows of a pair are about one of its models at a time, its `variant`
    alone: bool = False  # a pair of one model has it, too, and it takes no captures
    mine: bool = True  # declared by this package
    everywhere: bool = True  # other processes know it, too: it is of this package, or of an entry point

    @cached_property
    def schema(self) -> pa.Schema:
        """Of its Parquet files."""
        return schema_of(self.columns)

    @property
    def names(self) -> list[str]:
        """Names of its columns."""
        return [column.name for column in self.columns]

    @property
    def values(self) -> tuple[Column, ...]:
        """The columns that hold values; the others tell rows apart."""
        return tuple(column for column in self.columns if not column.key)

    def takes(self, kind: str) -> str:
        """What it takes to compute a kind, a key of HOW."""
        return self.how if isinstance(self.how, str) else self.how.get(kind, "offline")


TABLES: Registry[Table] = Registry("table")
