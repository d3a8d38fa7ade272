"""Prompts, conversations among them, as token ids; and who each token belongs to."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...store.core.errors import LakeError
from .stops import find_stops
from .talks import (
    ASSISTANT,
    TEMPLATE,
    THINKING,
    UNKNOWN,
    USER,
    Placed,
    Said,
    place,
    talk_of,
    thinking_marks,
    with_marks,
)
from .templates import frame_of, knows_thinking, owner
from .tokens import check_texts, encode_all, once, token_texts, told_apart


def prompt_segments(
    tokenizer: Any,
    saids: Sequence[Said],
    ids: Sequence[Sequence[int]],
    template: str,
    names: Sequence[str],
    date: str | None = None,
    thinking: bool | None = None,
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Segment and turn of every token of prompts: int32 [tokens] each, `ids` as `encode_all` gave them.

    A token that holds letters of a message and of the template is the message's. The token that closes an assistant's turn
    is the assistant's, as one that a model writes. Unknown where the tokenizer does not say which letters a token stands for.
    """
    if not tokenizer.is_fast:
        return [np.full(len(row), UNKNOWN, np.int32) for row in ids], [np.full(len(row), -1, np.int32) for row in ids]
    if template == "raw":
        placed = [(str(said), np.full(len(said), USER, np.int32), np.zeros(len(said), np.int32)) for said in saids]
        closes = None
    else:
        form = frame_of(tokenizer, date, thinking).form
        placed = place(tokenizer, [talk_of(said, form) for said in saids], names, date, thinking)
        closes = find_stops(tokenizer, (), True).turn
    cut = tokenizer([text for text, *_ in placed], add_special_tokens=False, return_offsets_mapping=True)
    found = [
        _of_tokens(one, offsets, row, closes)
        for one, offsets, row in zip(placed, cut["offset_mapping"], ids, strict=True)
    ]
    return [segment for segment, _ in found], [turns for _, turns in found]


def _of_tokens(
    placed: Placed, offsets: Sequence[tuple[int, int]], ids: Sequence[int], closes: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """From letters to tokens; those in front that no letter stands behind are the template's."""
    _, letters, their_turns = placed
    segment, turns = np.full(len(ids), TEMPLATE, np.int32), np.full(len(ids), -1, np.int32)
    offsets = list(offsets)[max(len(offsets) - len(ids), 0) :]  # a second BOS may have been left out
    first = len(ids) - len(offsets)
    for at, (begin, end) in enumerate(offsets, first):
        part = letters[begin : max(end, begin + 1)]
        own = np.flatnonzero(part != TEMPLATE)
        letter = begin + (int(own[0]) if len(own) else 0)
        if letter < len(letters):
            segment[at], turns[at] = letters[letter], their_turns[letter]
    for close in np.flatnonzero(np.asarray(ids) == closes) if closes is not None else ():
        before = np.flatnonzero(segment[:close] != TEMPLATE)[-1:]
        if len(before) and segment[before[0]] in (ASSISTANT, THINKING) and segment[close] == TEMPLATE:
            segment[before[0] + 1 : close + 1] = ASSISTANT
    return segment, turns


def encode_prompts(
    tokenizer: Any,
    saids: Sequence[Said],
    template: str,
    double_bos: bool = False,
    date: str | None = None,
    control: bool = False,
    names: Sequence[str] | None = None,
    thinking: bool | None = None,
) -> list[list[int]]:
    """Token ids of prompts, conversations among them; as `encode_all`, which reads those that are texts.

    LakeError as there, for conversations under `raw`, for `thinking` of a template that has no switch for thinking, and for
    what `place` refuses.
    """
    names = names or [f"prompt {said[:40]!r}" for said in saids]
    if template == "chat" and thinking is not None and not knows_thinking(tokenizer):
        raise LakeError(
            f"{owner(tokenizer)}: its chat template has no switch for thinking (it reads no enable_thinking): leave --thinking"
            " out"
        )
    texts = [said for said in saids if isinstance(said, str)]
    if len(texts) == len(saids):
        return encode_all(tokenizer, texts, template, double_bos, date, control, names, thinking)
    if template == "raw":
        first = next(name for name, said in zip(names, saids, strict=True) if isinstance(said, bytes))
        raise LakeError(
            f"{first}: a conversation, and {owner(tokenizer)} reads raw text, which has no turns: name a model or a stream with a"
            " chat template"
        )
    marks = thinking_marks(tokenizer) or ()
    for name, said in zip(names, saids, strict=True):
        for turn_, _, text, _ in with_marks(talk_of(said), None, False).pieces:
            for mark in marks if isinstance(said, bytes) else ():
                text = text.replace(mark, "")
            if text.strip():
                check_texts(tokenizer, [f"{name}, message {turn_}"], [text], template, control)
    form = frame_of(tokenizer, date, thinking).form
    placed = place(tokenizer, [talk_of(said, form) for said in saids], names, date, thinking)
    found = [ids for ids, _ in once(tokenizer, [text for text, *_ in placed], double_bos, True)]
    return told_apart(names, saids, found)


def reply_segments(
    tokenizer: Any,
    starts: Sequence[Sequence[int]],
    replies: Sequence[Sequence[int]],
    chat: bool,
    opened: Sequence[bool],
) -> list[np.ndarray]:
    """Segment of every token of what a model wrote after prompts: the assistant's, or thinking; int32 [tokens] each.

    `opened`: which prompts end in a text of the assistant's that is still thinking.
    """
    marks = thinking_marks(tokenizer) if chat else None
    found = []
    for start, reply, within in zip(starts, replies, opened, strict=True):
        segment = np.full(len(reply), ASSISTANT, np.int32)
        if marks and len(reply):
            begun = within or "".join(token_texts(tokenizer, np.asarray(start[-16:]))).rstrip().endswith(marks[0])
            texts = [marks[0] * begun, *token_texts(tokenizer, np.asarray(reply))]
            edges = np.cumsum([len(text) for text in texts])
            for match in re.finditer(
                f"{re.escape(marks[0])}.*?(?:{re.escape(marks[1])}|\\Z)", "".join(texts), re.DOTALL
            ):
                segment[(edges[1:] > match.start()) & (edges[:-1] < match.end())] = THINKING
        found.append(segment)
    return found
