"""Tables, each declared once beside the function that computes it; SQL, docs and help follow from the declaration.

This module knows no table. Those of the package declare themselves when its modules are imported (`declared_in`); those of
other people are declared in a notebook, or by a module that an entry point of the group `actlake.tables` names. A lake never
brings code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import import_module
from importlib.metadata import entry_points
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any

from ..core.columns import Column, schema_of
from ..core.errors import LakeError
from ..core.progress import remark

if TYPE_CHECKING:
    import pyarrow as pa

GROUP = "actlake.tables"  # of entry points
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

    `of` is what one file of it is about: a `capture`, or a `pair` of them. `kinds` are those that free SQL gets without naming
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
    origin: str = ""  # module and function that declared it

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


class Tables(Mapping[str, Table]):
    """Every declared table by its name. The modules that declare them are imported when somebody looks."""

    def __init__(self) -> None:
        self._known: dict[str, Table] = {}
        self._modules: list[str] = []
        self._loaded = self._loading = False

    def declared_in(self, *modules: str) -> None:
        """Name modules, or packages of modules, of this package that declare tables."""
        self._modules += modules

    def declare(self, table: Table) -> None:
        """Add a table. A function that is declared again, as by a cell that runs twice, takes its own place.

        LakeError for a name that another table or view has.
        """
        there = self._known.get(table.name)
        if there and there.origin != table.origin:
            raise LakeError(
                f"table {table.name}: declared by {there.origin} and by {table.origin}; give one another name"
            )
        self._known[table.name] = replace(table, everywhere=table.mine or self._loading)

    def __getitem__(self, name: str) -> Table:
        return self._all()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def _all(self) -> dict[str, Table]:
        if not self._loaded:
            self._loaded = True
            for module in self._modules:
                _import(module)
            self._known = dict(sorted(self._known.items()))
            self._loading = True
            for point in entry_points(group=GROUP):
                try:
                    point.load()
                except Exception as error:  # a stranger's module may raise anything; the other tables are not to suffer
                    who = point.dist.name if point.dist else point.value
                    remark(f"tables of {who} ({point.value}) are left out: {type(error).__name__}: {error}")
            self._loading = False
        return self._known


def _import(name: str) -> None:
    module = import_module(name)
    for found in iter_modules(getattr(module, "__path__", ())):
        import_module(f"{name}.{found.name}")


TABLES = Tables()
