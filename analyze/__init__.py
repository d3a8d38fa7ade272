"""Pure functions on arrays; a module is imported when it is first named: `actlake.analyze.lazy.lens(...)`."""

from importlib import import_module
from pathlib import Path
from types import ModuleType

_MODULES = tuple(sorted(path.stem for path in Path(__file__).parent.glob("[!_]*.py")))


def __getattr__(name: str) -> ModuleType:
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(_MODULES)}")


def __dir__() -> list[str]:
    return [*globals(), *_MODULES]
