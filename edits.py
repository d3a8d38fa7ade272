"""Edits as `lake.generate` takes them: `Scale(layers="late", direction="d_mean", alpha=0)` is the text
`scale:layers=late,direction=d_mean,alpha=0`. There is one for each declared edit (capture.edit.edits), also a plug-in's.

layers: a window (early, mid, late), `all`, a block, a range or a list of blocks. direction: d_mean, d_conv, content, random,
rotated, d_mean_top, d_mean_bottom, d_mean_random, from the lake's captures. site: mlp, attn or block. What an edit may
take is checked where a model is known: `lake.generate` raises LakeError for an unknown direction or a block too many.
"""

from collections.abc import Callable, Iterable
from inspect import Parameter, Signature
from typing import Any

from .store.core.errors import needs

__all__ = ["Scale", "Inject", "Matched", "Zero", "Skip", "Graft", "RandomGraft"]  # noqa: F822 (__getattr__ makes them)
Layers = str | int | Iterable[int]


def __getattr__(name: str) -> Callable[..., str]:
    """The function that writes an edit of this name; LakeError without the extra that edits need."""
    found = {} if name.startswith("_") else _declared()
    if name not in found:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .capture.edit.words import settings_of

    (word, kind), takes = found[name], []
    known = settings_of(kind)
    for each in known.names:
        of: Any = {**known.types, "layers": Layers, "direction": str}.get(each, str)
        text = known.defaults.get(each)
        default = Parameter.empty if text is None else text == "true" if of is bool else of(text) if text else None
        of = of | None if text == "" else of
        takes.append(Parameter(each, Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=of))
    signature = Signature(takes, return_annotation=str)

    def write(*args: Any, **kwargs: Any) -> str:
        given = signature.bind(*args, **kwargs).arguments
        return f"{word}:{','.join(f'{each}={_word(value)}' for each, value in given.items() if value is not None)}"

    write.__name__, write.__doc__, write.__signature__ = name, kind.__doc__, signature  # type: ignore[attr-defined]
    return write


@needs()
def _declared() -> dict[str, tuple[str, Any]]:
    from .capture.edit.edits import EDITS

    return {kind.__name__: (word, kind) for word, kind in EDITS.items()}


def _word(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str) or not isinstance(value, Iterable):
        return str(value)
    return "+".join(map(str, value))
