"""Pure functions on arrays; a package or module is imported when it is first named: `actlake.analyze.lazy.lens(...)`."""

from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType

_MODULES = tuple(sorted(module.name for module in iter_modules(__path__)))


def __getattr__(name: str) -> ModuleType:
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(_MODULES)}")


def __dir__() -> list[str]:
    return [*globals(), *_MODULES]
