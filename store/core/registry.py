"""Things that are declared by name where they are defined: tables and edits of this package, of plug-ins, of a notebook."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from pkgutil import iter_modules
from typing import Any, TypeVar

from .errors import LakeError
from .progress import remark

T = TypeVar("T")
PACKAGE = __name__.partition(".")[0]


class Registry(Mapping[str, T]):
    """Name -> what is declared under it. The modules that declare are imported when somebody looks.

    Those of this package are named by `declared_in`; those of other people by entry points of the group `actlake.KINDs`. One that
    can't be imported is left out, with a line that says why. A lake never brings code.
    """

    def __init__(self, kind: str) -> None:
        self.kind, self.group = kind, f"{PACKAGE}.{kind}s"
        self._known: dict[str, T] = {}
        self._origin: dict[str, str] = {}
        self._modules: list[str] = []
        self._loaded = self.loading = False  # loading: entry points are being imported

    def declared_in(self, *modules: str) -> None:
        """Name modules, or packages of modules, of this package that declare."""
        self._modules += modules

    def declare(self, name: str, thing: T, by: Any) -> None:
        """Add what a function or class declares. One that is declared again, as by a cell that runs twice, takes its own place.

        LakeError for a name that another one has.
        """
        origin = f"{by.__module__}.{by.__qualname__}"
        if name in self._known and self._origin[name] != origin:
            raise LakeError(
                f"{self.kind} {name}: declared by {self._origin[name]} and by {origin}; give one another name"
            )
        self._known[name], self._origin[name] = thing, origin

    def __getitem__(self, name: str) -> T:
        return self._all()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def _all(self) -> dict[str, T]:
        if not self._loaded:
            self._loaded = True
            for module in self._modules:
                _import(module)
            self._known = dict(sorted(self._known.items()))
            self.loading = True
            for point in entry_points(group=self.group):
                try:
                    point.load()
                except Exception as error:  # a stranger's module may raise anything; the others are not to suffer
                    who = point.dist.name if point.dist else point.value
                    remark(f"{self.kind}s of {who} ({point.value}) are left out: {type(error).__name__}: {error}")
            self.loading = False
        return self._known


def _import(name: str) -> None:
    module = import_module(name)
    for found in iter_modules(getattr(module, "__path__", ())):
        import_module(f"{name}.{found.name}")


def is_ours(thing: Any) -> bool:
    """Whether a function or class is of this package."""
    return str(thing.__module__).partition(".")[0] == PACKAGE
