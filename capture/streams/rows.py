"""What a row of a prompt file may hold, checked before anything runs: a conversation (messages, tools), and scoring fields."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from ...store.core.errors import LakeError
from ..checkpoint.talks import REASONING, ROLES

FIELDS = ("messages", "tools")
EXPECTATIONS = ("refuse", "comply")

# Criterion type -> kind of its `value`. These are the checkable ones of METHODS 2.
CRITERIA: Mapping[str, str] = {
    "all_lowercase": "true",
    "all_uppercase": "true",
    "bullet_list": "count",
    "contains_all_keywords": "texts",
    "contains_phrase": "text",
    "ends_with": "text",
    "has_placeholders": "count",
    "highlighted_sections": "count",
    "json": "true",
    "markdown_sections": "count",
    "no_commas": "true",
    "sentence_count_max": "count",
    "sentence_count_min": "count",
    "word_count_max": "count",
    "word_count_min": "count",
    "wrapped_in_quotes": "true",
}


def check_talk(record: Mapping[str, Any], where: str) -> str:
    """Check the conversation of a prompt's row; returns the last text of a user's, for people and judges.

    LakeError for messages without a known role or without text, for calls and tools of another form than a function's, and
    for an end that nobody can answer.
    """
    messages, tools = record["messages"], record.get("tools")
    if "text" in record:
        raise LakeError(f"{where}: has text and messages; a prompt is one of the two, rename or leave out the other")
    if not isinstance(messages, list) or not messages:
        raise LakeError(f"{where}: messages is {short(messages)}, expected a list of {{role, content}}")
    for number, message in enumerate(messages):
        _check_message(message, f"{where}: message {number}")
    last = messages[-1]
    if last.get("tool_calls"):
        raise LakeError(f"{where}: ends in a tool call, which the tool has to answer; add its result (role tool)")
    if ROLES[last["role"]] == ROLES["system"]:
        raise LakeError(f"{where}: ends in a message of role {last['role']}; add one to be answered (role user)")
    if tools is not None:
        if not isinstance(tools, list) or not tools:
            raise LakeError(f"{where}: tools is {short(tools)}, expected a list of functions")
        for number, tool in enumerate(tools):
            _check_function(tool, f"{where}: tool {number}")
    said = [_text(message) for message in messages if message["role"] == "user"] or [_text(last)]
    return said[-1]


def _check_message(message: Any, where: str) -> None:
    if not isinstance(message, dict) or message.get("role") not in ROLES:
        found = message.get("role") if isinstance(message, dict) else message
        raise LakeError(f"{where}: role is {short(found)}, expected one of {', '.join(ROLES)}")
    content, calls, role = message.get("content"), message.get("tool_calls"), message["role"]
    if calls is not None:
        if role != "assistant" or not isinstance(calls, list) or not calls:
            raise LakeError(f"{where}: tool_calls is a list of calls in a message of role assistant")
        for number, call in enumerate(calls):
            _check_function(call, f"{where}, call {number}")
            if not isinstance(call["function"].get("arguments", {}), dict | str):
                raise LakeError(f"{where}, call {number}: arguments is no object and no text")
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    wrong = [part for part in parts if not isinstance(part, dict) or part.get("type") != "text"]
    if wrong:
        raise LakeError(f"{where}: content holds {short(wrong[0])} that is no text; only text is read")
    texts = [part.get("text") for part in parts]
    if not (calls and content in (None, "")) and not (texts and all(map(is_text, texts))):
        raise LakeError(f"{where}: content is {short(content)}, expected non-blank text")
    for key in REASONING:
        if message.get(key) is not None and (role != "assistant" or not isinstance(message[key], str)):
            raise LakeError(f"{where}: {key} is text of a message of role assistant")


def _check_function(found: Any, where: str) -> None:
    function = (
        found.get("function") if isinstance(found, dict) and found.get("type", "function") == "function" else None
    )
    if not isinstance(function, dict) or not is_text(function.get("name")):
        raise LakeError(f'{where}: expected an object such as {{"type": "function", "function": {{"name": ...}}}}')


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else "\n".join(part["text"] for part in content)


def is_text(value: Any) -> bool:
    """Whether a value is text that is not blank."""
    return isinstance(value, str) and bool(value.strip())


def short(value: Any) -> str:
    """A value in a message."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def check_scoring(record: Mapping[str, Any], where: str) -> None:
    """Refuse a known scoring field of the wrong shape now rather than when hours of generation are scored."""
    if not is_text(record.get("answer", "absent")):
        raise LakeError(f"{where}: answer is {short(record['answer'])}, expected text (numbers in quotes)")
    if "choices" in record:
        _check_choices(record, where)
    if record.get("expect", "refuse") not in EXPECTATIONS:
        raise LakeError(f"{where}: expect is {short(record['expect'])}, expected refuse or comply")
    if "criteria" in record:
        criteria = record["criteria"]
        if not isinstance(criteria, list) or not criteria:
            raise LakeError(f"{where}: criteria is {short(criteria)}, expected a list of {{type, value}}")
        for criterion in criteria:
            _check_criterion(criterion, where)


def _check_choices(record: Mapping[str, Any], where: str) -> None:
    choices = record["choices"]
    if not _are_texts(choices) or len(choices) < 2:
        raise LakeError(f"{where}: choices is {short(choices)}, expected a list of two or more texts")
    if len(set(choices)) < len(choices):
        raise LakeError(f"{where}: a choice occurs twice in {short(choices)}")
    if "answer" in record and record["answer"] not in choices:
        answer = short(record["answer"])
        raise LakeError(f"{where}: the answer {answer} is not among the choices {short(choices)}")


def _check_criterion(criterion: Any, where: str) -> None:
    if not isinstance(criterion, dict) or criterion.keys() != {"type", "value"}:
        raise LakeError(f"{where}: criterion {short(criterion)}, expected an object with `type` and `value`")
    kind = CRITERIA.get(criterion["type"]) if isinstance(criterion["type"], str) else None
    if kind is None:
        known = ", ".join(CRITERIA)
        raise LakeError(f"{where}: unknown criterion type {short(criterion['type'])}; known are {known}")
    fits, expected = _KINDS[kind]
    value = criterion["value"]
    if not fits(value):
        raise LakeError(f"{where}: {criterion['type']} has value {short(value)}, expected {expected}")


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(is_text, value))


_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "true": (lambda value: value is True, "true"),
    "count": (lambda value: type(value) is int and value > 0, "a whole number above 0"),
    "text": (is_text, "text"),
    "texts": (_are_texts, "a list of texts"),
}
