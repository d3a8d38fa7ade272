"""What the explorer's pages read: a lake, its captures by prompt set, pairs as they can be compared, words of token ids."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd

from ..queries.engine.context import Context
from ..store.artifacts.models import read_vocab
from ..store.artifacts.streams import Stream, read_stream, stream_records
from ..store.captures.reader import captured_streams
from ..store.core.errors import LakeError, check_limit
from ..store.core.schema import VARIANTS
from ..store.format.paths import Layout
from ..store.tables.sql import connect
from ..store.tables.streams import stream_table


@dataclass(frozen=True)
class Captured:
    """One sealed capture: model, stream, the prompt set that it is of, and what its stream was made by."""

    number: int
    model: str
    stream: str
    recipe: str
    set: int
    tokens: int


@dataclass(frozen=True)
class _PromptSetSeen:
    """A prompt set as the lake's streams hold it: its name, and the ids and categories of its prompts in their order."""

    name: str
    sha256: str
    ids: list[str] = field(default_factory=list)
    categories: list[str] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class View:
    """What can be looked at side by side: a pair (or one model) on a stream recipe. `captures` by role: pt, it."""

    name: str
    recipe: str
    set: int
    captures: dict[str, int]
    history: str  # shared: both read one answer; own: each its own; '' for one model

    @property
    def whole(self) -> bool:
        """Whether both models of a pair are there."""
        return set(self.captures) == set(VARIANTS)


class ExplorerSource:
    """A lake as the explorer reads it; nothing is computed into it, no model is loaded, and nothing is written.

    `prompts` keeps one prompt set by name, `limit` the first prompts of each.
    """

    def __init__(
        self,
        layout: Layout,
        device: str = "auto",
        catalog: Path | None = None,
        prompts: str | None = None,
        limit: int | None = None,
    ):
        check_limit(limit)
        self.layout, self.catalog, self.limit = layout, catalog, limit
        self.kit = Context(layout, device, catalog, generate=False, probes=False)
        self.only, self._lock = prompts, threading.RLock()
        self.words = cache(self._words)
        self.stream = cache(lambda name: read_stream(layout, name))
        self.places = cache(self._places)

    # --- captures, sets, views -------------------------------------------------------------------------------------------

    @cached_property
    def _found(self) -> tuple[list[Captured], list[_PromptSetSeen]]:
        records = {record["name"]: record for record in stream_records(self.layout)}
        sets: dict[tuple[str, str], _PromptSetSeen] = {}
        captures: list[Captured] = []
        for model, streams in sorted(captured_streams(self.layout).items()):
            for name in sorted(streams):
                record = records.get(name)
                if record is None or self.only not in (None, record["prompts"]):
                    continue
                key = (record["prompts"], str(record["recipe"].get("prompt_set_sha256", "")))
                seen = sets.setdefault(key, _PromptSetSeen(*key))
                known, stream = set(seen.ids), self.stream(name)
                for prompt, category in list(zip(stream.prompt_ids, stream.categories, strict=True))[: self.limit]:
                    if prompt not in known:
                        seen.ids.append(prompt)
                        seen.categories.append(category)
                place = list(sets).index(key)
                captures.append(Captured(len(captures), model, name, record["kind"], place, record["n_tokens"]))
        if self.only is not None and not captures:
            there = ", ".join(sorted({record["prompts"] for record in records.values()})) or "none"
            raise LakeError(f"no capture is of the prompt set {self.only!r}; prompt sets here: {there}")
        return captures, list(sets.values())

    @property
    def captures(self) -> list[Captured]:
        """The sealed captures, in a fixed order."""
        return self._found[0]

    @property
    def sets(self) -> list[_PromptSetSeen]:
        """The prompt sets of these captures."""
        return self._found[1]

    @cached_property
    def views(self) -> list[View]:
        """Pairs on each recipe, then models of no pair."""
        numbers = {(one.model, one.stream): one for one in self.captures}
        found: list[View] = []
        streams = self.kit.streams
        for (pair, recipe, *_), group in streams.groupby(["pair", "recipe", "prompt_set", "max_new_tokens"], sort=True):
            at = {
                row.variant: numbers[self.kit.models(str(pair))[row.variant], row.stream]
                for row in group.itertuples()
                if (self.kit.models(str(pair)).get(row.variant), row.stream) in numbers
            }
            if at:
                by_role = {role: at[role].number for role in VARIANTS if role in at}
                found.append(View(str(pair), str(recipe), next(iter(at.values())).set, by_role, self._history(at)))
        seen = {number for view in found for number in view.captures.values()}
        rest = [one for one in self.captures if one.number not in seen]
        found += [View(one.model, one.recipe, one.set, {"it": one.number}, "") for one in rest]
        order = {"native": 0, "teacher": 1}
        return sorted(
            found, key=lambda view: (not view.whole, view.set, order.get(view.recipe, 2), view.name, view.recipe)
        )

    def _history(self, at: dict[str, Captured]) -> str:
        if set(at) != set(VARIANTS):
            return ""
        streams = {role: self.stream(one.stream) for role, one in at.items()}
        pt, it = (_continued(streams[role]) for role in VARIANTS)
        return "shared" if len(pt) == len(it) and all(map(np.array_equal, pt, it)) else "own"

    def _places(self, number: int) -> dict[str, int]:
        """Prompt id -> index in a capture."""
        return {name: place for place, name in enumerate(self.stream(self.captures[number].stream).prompt_ids)}

    def without_path(self, text: str) -> str:
        """A message without the folder of the lake: pages are shown to others."""
        return text.replace(f"{self.layout.root}/", "")

    # --- words and rows --------------------------------------------------------------------------------------------------

    def _words(self, model: str) -> _Words:
        return _Words(self.layout, model)

    @cached_property
    def connection(self) -> duckdb.DuckDBPyConnection:
        """Sees all tables of the lake, and nothing else."""
        return connect(self.layout, None, self.kit.pairs)

    def rows(self, sql: str, values: Sequence[Any] = ()) -> pd.DataFrame:
        """What a statement of the explorer's own gives."""
        with self._lock:
            return self.connection.execute(sql, list(values)).df()

    def has_rows(self, table: str) -> bool:
        """Whether a table has any row here."""
        with self._lock:
            return self.connection.execute(f'SELECT 1 FROM "{table}" LIMIT 1').fetchone() is not None

    @cached_property
    def recipes(self) -> pd.DataFrame:
        """Every name of a captured stream: model, recipe, prompts, stream, name ..."""
        return stream_table(self.layout)


class _Words:
    """What the token ids of a model are called: text, control tokens by name, parts of a letter as bytes, else #ID."""

    def __init__(self, layout: Layout, model: str):
        table = read_vocab(layout, model)
        self._known = [] if table is None else list(zip(table["text"], table["bytes"], strict=True))

    def __call__(self, token: int) -> str:
        """The name of one id."""
        if not 0 <= token < len(self._known):
            return f"#{token}"
        text, raw = (value.as_py() for value in self._known[token])
        if "\ufffd" in text:
            return f"<{raw.hex(' ').upper()}>"
        return text or raw.decode(errors="replace") or f"#{token}"


def _continued(stream: Stream) -> list[np.ndarray]:
    """The continuation of each prompt."""
    return [np.asarray(row[start:]) for row, start in zip(stream.tokens, stream.starts, strict=True)]
