"""A glance at models before one is loaded: what headers and small files tell of their vocabularies and chat templates."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...store.core.catalog import ModelSpec
from ...store.core.errors import LakeError
from .configs import source
from .gguf import gguf_path, read_header, read_texts
from .templates import ELSEWHERE
from .tokens import check_vocabularies

TOKENS, TEMPLATE = "tokenizer.ggml.tokens", "tokenizer.chat_template"
TEMPLATES = ("chat_template.jinja", "additional_chat_templates", *ELSEWHERE)


def check_glance(specs: Sequence[ModelSpec], chat: Sequence[ModelSpec] = (), pair: str = "") -> None:
    """Raise LakeError, within a second, for a pair of models with other vocabularies and for one of `chat` without a template.

    What can't be decided so quickly (a model on the hub, unreadable files) passes: loading checks it.
    """
    for spec in chat:
        source(spec)
        if lacks_template(spec):
            raise LakeError(
                f"model {spec.name}: template 'chat': this model's tokenizer has no chat template; use a raw stream for it"
            )
    if len(specs) == 2 and len({bool(spec.gguf_file) for spec in specs}) == 1:
        left, right = (vocabulary(spec) for spec in specs)
        if left and right:
            check_vocabularies(left, right, pair)


def vocabulary(spec: ModelSpec) -> dict[str, int]:
    """Token -> id as the model's files write them; empty where that takes loading the tokenizer."""
    if spec.gguf_file:
        file = gguf_path(spec)
        return {token: number for number, token in enumerate(read_texts(file, TOKENS))} if file else {}
    found = _json(spec.path / "tokenizer.json") if spec.path else {}
    model = found.get("model")
    held = model.get("vocab") if isinstance(model, dict) else None
    try:
        plain = dict(held) if isinstance(held, dict) else {row[0]: at for at, row in enumerate(held or ())}
        return plain | {added["content"]: added["id"] for added in found.get("added_tokens") or ()}
    except (TypeError, KeyError, IndexError):
        return {}


def lacks_template(spec: ModelSpec) -> bool:
    """Whether none of a model's files can hold a chat template."""
    if spec.gguf_file:
        file = gguf_path(spec)
        return file is not None and TEMPLATE not in read_header(file).values
    if spec.path is None or any((spec.path / name).exists() for name in TEMPLATES):
        return False
    return not _json(spec.path / "tokenizer_config.json").get("chat_template")


def _json(file: Path) -> dict[str, Any]:
    """A JSON object from a file; empty where there is none (loading the tokenizer says why)."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
