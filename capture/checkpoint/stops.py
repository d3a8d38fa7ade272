"""Which tokens end a greedy continuation, and what a model's vocabulary and template must have."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...store.core.catalog import ModelSpec
from ...store.core.errors import LakeError
from ...store.core.files import parse_json
from .configs import source
from .gguf import gguf_path, read_header, read_texts
from .templates import ELSEWHERE, has_template, model_file, owner, probed, turn
from .tokens import check_vocabularies, control_ids, form_of

REPLY, NEXT = "Actlake Reply 7", "Actlake Next 8"


@dataclass(frozen=True)
class Stops:
    """Ids that end a continuation, ascending; `turn` is the one that closes an assistant's turn in the chat template.

    Where none was found `turn` is None and `after` is the text that follows a reply there. Raw text has no turns.
    """

    ids: tuple[int, ...]
    turn: int | None = None
    after: str | None = None

    def recipe(self, chat: bool) -> dict[str, Any]:
        """Their entry in a recipe."""
        return {"decoding": "greedy", "stops": list(self.ids), **({"turn_end": self.turn} if chat else {})}

    def note(self, name: str) -> str | None:
        """One line where a chat template closes turns with no token of its own."""
        if self.after is None:
            return None
        closes = f"with the text {self.after[:24]!r}" if self.after.strip() else "with nothing"
        return (
            f"{name}: its chat template closes a reply {closes}, no control token: replies end at {list(self.ids) or 'no token'}"
            " or --max-new-tokens"
        )


def declared(spec: ModelSpec, where: str, config: Any) -> tuple[int, ...]:
    """The stop ids of generation_config.json, else of the config; nothing else of either counts.

    LakeError for a file that is not JSON, and for values that are not ids.
    """
    file = None if spec.gguf_file else model_file(spec, where, "generation_config.json")
    if file is None:
        held = getattr(config, "eos_token_id", None)
        if held is None:
            held = getattr(config.get_text_config(), "eos_token_id", None)
        return _ids(held, f"model {spec.name}: its config")
    try:
        held = parse_json(file.read_bytes())
    except (OSError, ValueError) as error:
        raise LakeError(f"model {spec.name}: {file}: can't be read as JSON ({error})") from None
    if not isinstance(held, dict):
        raise LakeError(f"model {spec.name}: {file}: expected a JSON object")
    return _ids(held.get("eos_token_id"), f"model {spec.name}: {file}")


def _ids(held: Any, where: str) -> tuple[int, ...]:
    ids = held if isinstance(held, list) else [] if held is None else [held]
    wrong = next((one for one in ids if type(one) is not int or one >= 2**31), None)
    if wrong is not None:
        raise LakeError(f"{where}: eos_token_id holds {wrong!r:.60}, expected a token id or a list of them")
    return tuple(sorted({one for one in ids if one >= 0}))


def find_stops(tokenizer: Any, ids: tuple[int, ...], chat: bool) -> Stops:
    """The stops of a continuation: those declared, the tokenizer's EOS, and after a chat prompt what closes a turn.

    What closes a turn is the control token that follows an assistant's last text in the chat template, else the one that
    follows it before another user's turn. LakeError for a template that takes too long.
    """
    known = {*ids, *({tokenizer.eos_token_id} - {None})}
    if not chat or not has_template(tokenizer):
        return Stops(tuple(sorted(known)))
    form, control, after = form_of(tokenizer), control_ids(tokenizer), ""
    asked = [turn("user", "x", form), turn("assistant", REPLY, form)]
    for rendering in probed(tokenizer, [asked, [*asked, turn("user", NEXT, form)]], ready=False):
        _, reply, rest = rendering.text.rpartition(REPLY)
        rest = rest.partition(NEXT)[0]
        closing = tokenizer(rest.lstrip(), add_special_tokens=False)["input_ids"][:1] if reply and rest.strip() else []
        if closing and closing[0] in control:
            return Stops(tuple(sorted(known | {closing[0]})), closing[0])
        after = rest if reply and not after.strip() else after
    return Stops(tuple(sorted(known)), None, after)


def stop_ids(tokenizer: Any, generation_config: Any, chat: bool) -> list[int]:
    """The ids of `find_stops`, where the declared ones are those of a generation config (or None)."""
    held = generation_config.eos_token_id if generation_config is not None else None
    return list(find_stops(tokenizer, _ids(held, f"{owner(tokenizer)}: its generation config"), chat).ids)


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
