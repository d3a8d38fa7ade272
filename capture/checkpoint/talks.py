"""Conversations as a chat template writes them: who each letter belongs to, by marks around the texts and the template's own."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...store.core.columns import SEGMENTS
from ...store.core.errors import LakeError
from .templates import difference, has_template, owner, render, source_of, turn

UNKNOWN, SYSTEM, USER, ASSISTANT, THINKING, TOOL, TEMPLATE = range(len(SEGMENTS))
ROLES = {
    "system": SYSTEM,
    "developer": SYSTEM,
    "user": USER,
    "assistant": ASSISTANT,
    "tool": TOOL,
    "ipython": TOOL,
    "function": TOOL,
}
REASONING = ("reasoning_content", "thinking", "reasoning")  # fields of a message; Hugging Face copies one to the others
# What templates write around thinking.
MARKS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel|>analysis<|message|>", "<|end|>"),
)
# Letters that nobody writes: two for each text, and two for what a template marks as generated.
FIRST, GENERATED = 0xF0000, ("\U0010fffc", "\U0010fffd")
OURS = re.compile("[\U000f0000-\U0010ffff]")

Talk = dict[str, Any]  # messages, and tools where there are some
Placed = tuple[str, np.ndarray, np.ndarray]  # what the template writes of one, segment and turn of each letter
Said = str | bytes  # what a prompt says: a user's text, or a talk as JSON


def talk_of(said: Said, form: str = "string") -> Talk:
    """The conversation that a prompt is, each message's content in the form that a template takes."""
    talk: Talk = json.loads(said) if isinstance(said, bytes) else {"messages": [turn("user", said)]}
    messages = []
    for message in talk["messages"]:
        reasons = next((message[key] for key in REASONING if message.get(key) is not None), None)
        if reasons is not None:
            message = {"thinking": reasons, **message, "reasoning_content": reasons}
        if form == "parts" and isinstance(message.get("content"), str):
            message = {**message, **turn(message["role"], message["content"], form)}
        messages.append(message)
    return {**talk, "messages": messages}


def prefilled(talk: Talk) -> bool:
    """Whether the assistant goes on with a text of its own."""
    return bool(talk["messages"][-1]["role"] == "assistant")


def reply_turn(said: Said) -> int:
    """The message that a reply to a prompt is a part of."""
    talk = talk_of(said)
    return len(talk["messages"]) - prefilled(talk)


def thinking_marks(tokenizer: Any) -> tuple[str, str] | None:
    """What the chat template writes around thinking; None where it knows none."""
    if not has_template(tokenizer):
        return None
    source = source_of(tokenizer)
    return next((pair for pair in MARKS if all(mark in source for mark in pair)), None)


@dataclass
class _Marked:
    """A talk whose texts stand between marks; `pieces`: turn, segment and text of each, and whether it must be written."""

    talk: Talk
    pieces: list[tuple[int, int, str, bool]] = field(default_factory=list)

    def around(self, text: str, turn: int, segment: int, tight: bool, needed: bool = True) -> str:
        """A text between marks, `tight`: without the white space around it."""
        core = text.strip() if tight else text
        if not core.strip():
            return text
        known = (turn, segment, core, needed)
        if known not in self.pieces:  # the copies of one field have one pair of marks
            self.pieces.append(known)
        at = FIRST + 2 * self.pieces.index(known)
        return text.replace(core, f"{chr(at)}{core}{chr(at + 1)}", 1)


def with_marks(talk: Talk, marks: tuple[str, str] | None, tight: bool) -> _Marked:
    found = _Marked({})

    def inside(value: Any, turn: int) -> Any:
        """Every text in the arguments of a tool call."""
        if isinstance(value, str):
            return found.around(value, turn, ASSISTANT, tight)
        if isinstance(value, dict):
            return {key: inside(one, turn) for key, one in value.items()}
        return [inside(one, turn) for one in value] if isinstance(value, list) else value

    def content(text: str, turn: int, segment: int) -> str:
        before, close, after = text.rpartition(marks[1]) if marks and segment == ASSISTANT else ("", "", text)
        if not close or marks is None:
            return found.around(text, turn, segment, tight)
        lead, begin, thought = before.rpartition(marks[0])
        thought = found.around(thought, turn, THINKING, True, False)
        return lead + begin + thought + close + found.around(after, turn, segment, True)

    messages = []
    for turn_, message in enumerate(talk["messages"]):
        segment, made = ROLES[message["role"]], dict(message)
        if isinstance(message.get("content"), str):
            made["content"] = content(message["content"], turn_, segment)
        elif isinstance(message.get("content"), list):
            parts = message["content"]
            made["content"] = [{**part, "text": content(part["text"], turn_, segment)} for part in parts]
        for key in REASONING:
            if isinstance(message.get(key), str):
                made[key] = found.around(message[key], turn_, THINKING, tight, False)
        if calls := message.get("tool_calls"):
            made["tool_calls"] = [
                {**call, "function": {**call["function"], **inside(_called(call["function"]), turn_)}} for call in calls
            ]
        messages.append(made)
    found.talk = {**talk, "messages": messages, "marks": GENERATED}
    return found


def _called(function: Mapping[str, Any]) -> dict[str, Any]:
    return {key: function[key] for key in ("name", "arguments") if key in function}


def place(
    tokenizer: Any, talks: Sequence[Talk], names: Sequence[str], date: str | None, thinking: bool | None
) -> list[Placed]:
    """Conversations as the chat template writes them, ready for the assistant to answer, or up to the end of a text that it has
    begun; with segment and turn of each letter.

    LakeError for a template that fails, that leaves out a message, a tool call or the tools, and for a text whose place in the
    rendering is ambiguous.
    """
    marks, asked, tried = thinking_marks(tokenizer), list[Talk](), list[list[_Marked]]()
    calls = [[at for at, one in enumerate(talk["messages"]) if one.get("tool_calls")] for talk in talks]
    for talk, at in zip(talks, calls, strict=True):
        ready = {"add_generation_prompt": not prefilled(talk)}
        marked = [with_marks(talk, marks, tight) for tight in (False, True)]
        tried.append(marked)
        asked += [{**one, **ready} for one in (talk, *(each.talk for each in marked))]
        asked += [{**talk, "messages": talk["messages"][:turn], "add_generation_prompt": True} for turn in at]
        asked += [{**talk, "tools": None, **ready}] if talk.get("tools") else []
    done = iter(render(tokenizer, asked, True, date, thinking))
    found = []
    for talk, marked, at, name in zip(talks, tried, calls, names, strict=True):
        plain, *both = [next(done) for _ in range(3)]
        heads = {turn: next(done).text for turn in at}
        if plain.error:
            raise LakeError(f"{name}: the chat template of {owner(tokenizer)} fails: {plain.error}")
        if talk.get("tools") and next(done).text == plain.text:
            raise LakeError(
                f"{name}: has tools, and the chat template of {owner(tokenizer)} writes none; leave them out"
            )
        fits = [one for one, other in zip(marked, both, strict=True) if OURS.sub("", other.text) == plain.text]
        text = next((other.text for one, other in zip(marked, both, strict=True) if one in fits[:1]), "")
        if OURS.search(plain.text) or not fits:
            found.append(_guessed(tokenizer, talk, plain.text, name))
        else:
            found.append(_read(tokenizer, fits[0], text, plain.text, heads, marks, name))
    return found


def _guessed(tokenizer: Any, talk: Talk, plain: str, name: str) -> Placed:
    """A single text that stands once in its rendering, of a template that looks into texts; LakeError for all others."""
    messages = talk["messages"]
    text = messages[0]["content"] if isinstance(messages[0].get("content"), str) else messages[0]["content"][0]["text"]
    text = text.strip()
    if len(messages) > 1 or talk.get("tools") or plain.count(text) != 1:
        raise LakeError(
            f"{name}: the chat template of {owner(tokenizer)} looks into the text, so that its place in what the template writes"
            " is ambiguous; shorten or change the text, or use a raw stream"
        )
    segment, turns = np.full(len(plain), TEMPLATE, np.int32), np.full(len(plain), -1, np.int32)
    at = plain.index(text)
    segment[at : at + len(text)] = ROLES[messages[0]["role"]]
    turns[at:] = 0
    return plain, segment, turns


def _read(
    tokenizer: Any,
    marked: _Marked,
    text: str,
    plain: str,
    heads: Mapping[int, str],
    marks: tuple[str, str] | None,
    name: str,
) -> Placed:
    """Segment and turn of each letter of `plain`, from the marks in `text`."""
    segment, turns = np.full(len(plain), TEMPLATE, np.int32), np.full(len(plain), -1, np.int32)
    written, opened, generated = set[int](), dict[int, int](), list[tuple[int, int]]()
    start = last = 0
    for at, letter in _ours(text):
        number = ord(letter) - FIRST
        if letter == GENERATED[0]:
            start = at
        elif letter == GENERATED[1]:
            generated.append((start, at))
        elif number % 2 == 0:
            opened[number] = at
        elif number - 1 in opened:
            turn_, kind, core, _ = marked.pieces[number // 2]
            begin = opened.pop(number - 1)
            if plain[begin:at] in (core, json.dumps(core, ensure_ascii=False)[1:-1]):
                segment[begin:at], turns[begin:at], last = kind, turn_, at
                written.add(number // 2)
    for number, (turn_, _, core, needed) in enumerate(marked.pieces):
        if needed and number not in written:
            role = marked.talk["messages"][turn_]["role"]
            raise LakeError(
                f"{name}: the chat template of {owner(tokenizer)} does not write its text: message {turn_} ({role}):"
                f" {difference(core, plain)}"
            )
    for turn_, head in heads.items():  # all that an assistant writes to call a tool
        mine = np.flatnonzero(turns == turn_)
        begin = len(head) if plain.startswith(head) else int(mine[0])
        free = segment[begin : mine[-1] + 1] == TEMPLATE
        segment[begin : mine[-1] + 1][free], turns[begin : mine[-1] + 1] = ASSISTANT, turn_
    for begin, end in generated:
        _claim(segment, turns, begin, end, ASSISTANT)
    if marks:
        for match in re.finditer(f"{re.escape(marks[0])}.*?(?:{re.escape(marks[1])}|\\Z)", plain, re.DOTALL):
            _claim(segment, turns, *match.span(), THINKING, over=True)
    if prefilled(marked.talk):
        plain, segment, turns = plain[:last], segment[:last], turns[:last]
    seen = np.maximum.accumulate(np.where(turns >= 0, np.arange(len(turns)), -1))
    return plain, segment, np.where(seen >= 0, turns[seen], -1)


def _ours(text: str) -> Iterator[tuple[int, str]]:
    """The marks in a rendering, each with its place in the text without marks."""
    return ((match.start() - before, match[0]) for before, match in enumerate(OURS.finditer(text)))


def _claim(segment: np.ndarray, turns: np.ndarray, begin: int, end: int, kind: int, over: bool = False) -> None:
    """Make a stretch the assistant's (`kind`), where it holds something of one assistant's message and nothing of others; `over`:
    also what differed before."""
    part, held = segment[begin:end], np.unique(turns[begin:end][segment[begin:end] != TEMPLATE])
    if len(held) == 1 and not np.isin(part, (SYSTEM, USER, TOOL)).any():
        part[(part == TEMPLATE) | over] = kind
        turns[begin:end] = held[0]
