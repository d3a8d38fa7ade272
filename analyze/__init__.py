"""Pure functions on arrays, imported when first named: `actlake.analyze.lens.lens(...)`, `actlake.analyze.delta(...)`."""

from pkgutil import iter_modules

from .core.exports import on_demand

_NAMES = {"delta": "residual.delta", "geometry": "residual.geometry"} | {
    each.name: "" for each in iter_modules(__path__)
}
__getattr__ = on_demand(__name__, _NAMES)


def __dir__() -> list[str]:
    return [*globals(), *_NAMES]
