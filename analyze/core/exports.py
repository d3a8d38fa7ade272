"""Names of a package that are imported when they are first used: what needs torch is loaded only where it is called."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def on_demand(package: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """A `__getattr__` for a package: name -> the module below it that has the name (empty: it is a module itself)."""

    def find(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}; it has {', '.join(names)}")
        if not names[name]:
            return import_module(f".{name}", package)
        return getattr(import_module(f".{names[name]}", package), name)

    return find
