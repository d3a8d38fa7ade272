"""A model as streams need it: how it reads prompts, and who writes what follows them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ...store.core.catalog import StreamSpec
from ...store.core.errors import LakeError
from ..checkpoint.segments import encode_prompts, prompt_segments, reply_segments
from ..checkpoint.stops import Stops, find_stops
from ..checkpoint.talks import THINKING, reply_turn
from ..checkpoint.tokens import template_for
from ..model.load import Model
from .prompts import PromptSet


class Writer(Protocol):
    """What writes a model's continuations elsewhere: an engine behind a server, at the address `url`."""

    @property
    def url(self) -> str:
        """The server's address."""

    def recipe(self, source: "Source") -> dict[str, Any]:
        """What determines the text, for a stream's recipe."""

    def write(
        self, source: "Source", names: Sequence[str], starts: Sequence[list[int]], most: int, parts: Path
    ) -> list[list[int]]:
        """The continuation of each prompt, at most `most` tokens; what is done lies in the folder `parts`."""


@dataclass(frozen=True)
class Source:
    """One model of a pair as streams need it: cheap facts at once, the weights only when something must be generated.

    `template` wraps its prompts in native streams; `declared` are the stop ids of its files; `elsewhere` writes its
    continuations in its place.
    """

    variant: str
    template: str
    identity: dict[str, Any]
    tokenizer: Any
    max_positions: int | None
    vocab: int
    load: Callable[[], Model]
    declared: tuple[int, ...]
    name: str
    elsewhere: Writer | None = None

    def stops(self, chat: bool) -> Stops:
        """What ends a continuation that this model writes."""
        return find_stops(self.tokenizer, self.declared, chat)

    def read(self, spec: StreamSpec, prompts: PromptSet, double_bos: bool = False) -> list[list[int]]:
        """Token ids of every prompt as this model reads it under `spec`; LakeError for one that it can't read."""
        names = prompts.labels
        found = encode_prompts(
            self.tokenizer,
            [prompt.said for prompt in prompts.prompts],
            template_for(spec.template, self.template),
            double_bos,
            spec.date,
            spec.control_tokens,
            names,
            spec.thinking,
        )
        more = 0 if spec.continuation == "none" else spec.max_new_tokens
        check_prompts(found, names, more, self.max_positions, self.vocab, self.tokenizer, self.name)
        return found

    def token_segments(
        self, spec: StreamSpec, prompts: PromptSet, starts: list[list[int]], written: list[list[int]], writer: "Source"
    ) -> dict[str, np.ndarray]:
        """`segment` and `turn` of a stream's tokens (Stream): prompts as this model reads them, then what `writer` wrote."""
        saids, chat = (
            [prompt.said for prompt in prompts.prompts],
            template_for(spec.template, writer.template) == "chat",
        )
        how = (template_for(spec.template, self.template), prompts.labels, spec.date, spec.thinking)
        segments, turns = prompt_segments(self.tokenizer, saids, starts, *how)
        read = starts if writer is self else writer.read(spec, prompts)
        opened = [bool(len(one)) and one[-1] == THINKING for one in segments]
        replies = reply_segments(writer.tokenizer, read, written, chat, opened)
        last = [reply_turn(said) for said in saids]
        parts = [
            (*pair, np.full(len(pair[1]), turn, np.int32)) for *pair, turn in zip(segments, replies, last, strict=True)
        ]
        return {
            "segment": np.concatenate([one for start, reply, _ in parts for one in (start, reply)]),
            "turn": np.concatenate(
                [one for start, (_, _, turn) in zip(turns, parts, strict=True) for one in (start, turn)]
            ),
        }


def check_prompts(
    starts: list[list[int]], names: Sequence[str], more: int, limit: int | None, vocab: int, tokenizer: Any, model: str
) -> None:
    """Raise LakeError for a prompt (its token ids in `starts`) that a model can't read, or not with `more` new tokens.

    `limit` is the model's context, `vocab` the number of its embeddings.
    """
    for name, ids in zip(names, starts, strict=True):
        if limit and len(ids) + more > limit:
            raise LakeError(
                f"{name}: {len(ids)} tokens + {more} new ones, the model's context holds {limit} ({model}): shorten the prompt or"
                " use a smaller --max-new-tokens"
            )
        if (top := max(ids, default=0)) >= vocab:
            raise LakeError(
                f"{name}: token id {top} ({tokenizer.decode([top])!r}), {model} has {vocab} embeddings: its tokenizer files"
                " belong to another model"
            )
