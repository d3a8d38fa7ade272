"""Which tokens end a greedy continuation: what a model's files declare, and what closes a turn of its chat template."""

from dataclasses import dataclass
from typing import Any

from ...store.core.catalog import ModelSpec
from ...store.core.errors import LakeError
from ...store.core.files import parse_json
from .templates import has_template, model_file, owner, render, turn
from .tokens import control_ids, form_of

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
    for rendering in render(tokenizer, [asked, [*asked, turn("user", NEXT, form)]], ready=False):
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
