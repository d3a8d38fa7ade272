"""Declaring a table beside the function that computes it: the same decorator for this package, plug-ins and notebooks."""

from __future__ import annotations

import hashlib
import inspect
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ...store.core.columns import LAYER, MODEL, PLACE, TOKEN, Column
from ...store.core.errors import LakeError
from ...store.core.registry import is_ours
from ...store.tables.declared import TABLES, Table
from .blocks import Block
from .context import Context, Names, label, name_columns
from .job import Job, LayerTable

T = TypeVar("T", bound=Callable[..., Any])


def table(
    name: str,
    columns: Sequence[Column],
    about: str = "",
    grain: str = "token x layer",
    reads: Sequence[str] = (),
    version: int | str | None = None,
    **facts: Any,
) -> Callable[[T], T]:
    """Declare the table that the decorated function computes.

    With `reads`, arrays of a capture such as `resid` [n, boundary, d_model], the function turns a block of tokens into values:
    it takes (rows, context), `rows["resid"]` is the array and `rows.columns` has the token's columns, and returns a dict of
    `columns` -> array [n, layers] (grain `token x layer`: of L values a token the first is that of block 0, of L + 1 the input of
    block 0, layer -1), or [n] (grain `token`). What tells the rows apart (model, stream, prompt, token, layer ...) is
    added. Without `reads` it takes (context, capture or pair[, kind or variant]) and returns the job that writes the table.

    `version`: raise it when the numbers change; left out, it is a hash of the function's text. `about` is left to its docstring.
    Further facts are those of `Table`. LakeError for a name that another table has, and from the function for values of a
    wrong shape or name; what else it raises is named with its place.
    """

    def declare(function: T) -> T:
        mine = is_ours(function)
        own = tuple(columns)
        every = (*MODEL, *TOKEN, *PLACE, *((LAYER,) if "layer" in grain else ()), *own) if reads else own
        make = _per_token(name, function, tuple(reads), "layer" in grain) if reads else _with_kind(name, function)
        found = Table(
            name,
            about or " ".join((inspect.getdoc(function) or name).split("\n\n")[0].split()),
            grain,
            every,
            make if mine else partial(_called, name, function, make),
            version=_hash_of(function) if version is None else version,
            mine=mine,
            everywhere=mine or TABLES.loading,
            **facts,
        )
        TABLES.declare(name, found, function)
        return function

    return declare


def _with_kind(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A maker that is called with a kind, of a function that may know none."""
    given = inspect.signature(function).parameters.values()
    if sum(each.default is each.empty for each in given) > 2:
        return function

    def make(kit: Context, about: Any, kind: str) -> Any:
        if kind:
            raise LakeError(f"{name}({kind}): table {name} has no kinds")
        return function(kit, about)

    return make


def _per_token(
    name: str, function: Callable[[Block, Context], dict[str, np.ndarray]], reads: tuple[str, ...], layered: bool
) -> Callable[[Context, Names, str], Job]:
    """A maker of the job that hands a function the blocks of a capture."""

    def make(kit: Context, names: Names) -> Job:
        capture = kit.capture(names)
        if lacking := [array for array in reads if array not in capture]:
            raise LakeError(f"{capture.path}: table {name} needs {lacking[0]}, which this capture did not keep")
        layers = capture.layers
        job = LayerTable(
            kit.layout,
            name,
            kit.recipe(name, names, head=True),
            (capture,),
            reads,
            lambda rows: _checked(name, _called(name, function, function, rows, kit), len(rows), layers, layered),
            lambda rows: {**name_columns(names), **label(rows)},
        )
        job.stays = not TABLES[name].everywhere
        return job

    return _with_kind(name, make)


def _checked(name: str, found: Any, tokens: int, layers: int, layered: bool) -> dict[str, np.ndarray]:
    """What a function gave, [n, L + 1] where it is layered; LakeError for other names or shapes."""
    wanted = [column.name for column in TABLES[name].values]
    if not isinstance(found, dict) or sorted(found) != sorted(wanted):
        given = ", ".join(map(str, found)) if isinstance(found, dict) else type(found).__name__
        raise LakeError(f"table {name}: its function gave {given}; expected columns {', '.join(wanted)}")
    done = {}
    for column, value in found.items():
        array = np.asarray(value)
        expected = [(tokens, layers), (tokens, layers + 1)] if layered else [(tokens,)]
        if array.shape not in expected:
            shapes = " or ".join(map(str, expected))
            raise LakeError(f"table {name}: column {column} is of shape {array.shape}; expected {shapes}")
        if layered and array.shape[1] == layers:
            array = np.concatenate([np.full((tokens, 1), np.nan), array], axis=1)
        done[column] = array if layered else array[:, None]
    return done


def _called(name: str, declared: Callable[..., Any], function: Callable[..., Any], *given: Any) -> Any:
    """What a function returns; what it raises but a LakeError is one that names the last line of the declared function's file."""
    try:
        return function(*given)
    except LakeError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        file = inspect.getsourcefile(declared)
        at = next((frame for frame in reversed(frames) if frame.filename == file), frames[-1])
        words = str(error).splitlines()[0] if str(error) else ""
        raise LakeError(
            f"table {name}: {type(error).__name__}: {words} ({Path(at.filename).name}:{at.lineno})"
        ) from error


def _hash_of(function: Callable[..., Any]) -> str:
    """A hash of a function's text; LakeError where Python does not know it."""
    try:
        return hashlib.sha256(inspect.getsource(function).encode()).hexdigest()[:16]
    except OSError:
        raise LakeError(
            f"{function.__qualname__}: its text is not known; say version=1, and raise it with each change"
        ) from None
