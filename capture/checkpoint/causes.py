"""Errors of transformers about a model's files in one line, with the key of config.json that is at fault."""

import json
import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import transformers
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from ...store.core.errors import LakeError, scrubbed
from ...store.core.progress import ERRORS

SEARCH = 5  # seconds
LONGEST = 400  # characters of a foreign error's text
CLASS = re.compile(r"<class '(?:\w+\.)*(\w+)'>")


def quiet() -> None:
    """Keep progress bars of transformers out of logs."""
    if not ERRORS.is_terminal:
        transformers.utils.logging.disable_progress_bar()


@contextmanager
def silent() -> Iterator[None]:
    """Silence what transformers logs and warns about files: what matters becomes a message or a note of ours."""
    quiet()
    verbosity = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        transformers.utils.logging.set_verbosity(verbosity)


def culprit(raw: dict[str, Any], text: str, build: Callable[[dict[str, Any]], Any]) -> str:
    """The key of config.json without which building succeeds, as the end of a sentence; '' if `text` names it, or there is none.

    At most SEARCH seconds are spent.
    """
    started = time.monotonic()
    for key, value in raw.items() if known_type(raw.get("model_type")) else ():
        if key == "model_type" or time.monotonic() - started > SEARCH:
            continue
        try:
            build({other: held for other, held in raw.items() if other != key})
        except Exception:  # noqa: S112 (still at fault without this key)
            continue
        return "" if key in text else f" (without the key {key}, now {json.dumps(value)[:80]}, it can be)"
    return ""


def known_type(model_type: Any) -> bool:
    return isinstance(model_type, str) and model_type in CONFIG_MAPPING


def walk(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every (dotted key, value) below an object, itself left out."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in items:
        path = f"{key}.{name}" if key else str(name)
        yield path, inner
        yield from walk(inner, path)


def cause(error: BaseException) -> str:
    """The text of a foreign error in one line: its first line, and the next ones while the line only leads to them.

    The error's type stands before it where the text alone says little; LakeErrors speak for themselves.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else ""
    if text.lower().startswith(("validation error for", "class validation error")) and len(lines) > 1:
        text = CLASS.sub(r"\1", lines[1].split(": ", 1)[-1].partition(". Errors: ")[0])
    for more in lines[1:]:
        if not text.endswith((":", ": ")):
            break
        text += f" {more}"
    if not text.strip(": "):
        deeper = error.__cause__ or error.__context__
        text = f"{type(error).__name__}" + (f": {cause(deeper)}" if deeper else "")
    elif (
        not isinstance(error, OSError | ValueError | RuntimeError | LakeError) and "Strict" not in type(error).__name__
    ):
        text = f"{type(error).__name__}: {text}"
    text = scrubbed(text)
    return text if len(text) <= LONGEST else text[:LONGEST].rsplit(" ", 1)[0] + " ..."


def cause_in(error: BaseException, raw: dict[str, Any]) -> str:
    """`cause`, with the key of config.json where the error names only a value or a property."""
    text = str(error)
    if isinstance(error, AttributeError) and "has no setter" in text:
        return f"{text.split(chr(39))[1]} can't be set in a config; take it out"
    if isinstance(error, KeyError) and error.args:
        if " " in str(error.args[0]):
            return str(error.args[0])
        key = next((key for key, value in walk(raw) if value == error.args[0]), None)
        if key:
            return f"{key} is {error.args[0]!r}{_expected(key)}"
        return f"it lacks {error.args[0]!r}" if str(error.args[0]) not in str(raw) else cause(error)
    if "recognize this architecture" in text:
        return (
            f"model_type is {raw.get('model_type')!r}, which transformers {transformers.__version__} does not have; a newer one"
            " may: pip install --upgrade transformers"
        )
    return cause(error)


def _expected(key: str) -> str:
    """What transformers knows for a key of a config, as the end of a sentence."""
    if "act" in key.rpartition(".")[2]:
        return f", expected one of {', '.join(sorted(ACT2FN))}"
    if "rope" in key:
        return f", expected one of {', '.join(sorted({'default', *ROPE_INIT_FUNCTIONS}))}"
    return f", which transformers {transformers.__version__} does not know"
