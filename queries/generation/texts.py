"""Texts under a condition, what was chosen, and how likely each model finds them: one job a file, shared by all rows.

A condition is named by all that determines its texts (models, edits, directions, template, budget), a prompt by its tokens:
results of an earlier sweep, subset or command are reused.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from string import ascii_uppercase
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import transformers

from ...analyze.text.scores import forced_choice, lettered
from ...capture.checkpoint.segments import encode_prompts
from ...capture.checkpoint.tokens import notes, reading, template_for, up_to_unknown
from ...capture.edit.words import EditSpec, condition_text
from ...capture.model.load import Model
from ...capture.run.batching import explain_memory
from ...capture.streams.free import decoded
from ...capture.streams.greedy import nats
from ...capture.streams.prompts import Prompt
from ...capture.streams.source import check_prompts
from ...store.artifacts.texts import Condition, Row, prompt_key
from ...store.core.progress import Bar, bar, remark
from ...store.core.schema import CHOICES, LIKELY, OUTPUTS, OUTPUTS_VERSION, VARIANTS
from ...store.core.version import __version__
from ...store.format.parquet import read_parquet
from ..engine.context import OTHER, Context
from ..engine.job import Job, Stage
from .models import LoadedModels, SteeringVectors, edits_of, hosts

BATCH = 64  # prompts a batch: decoding reads every weight once a step, however many there are
FORCED_TOKENS = 3  # METHODS 1.5 (MMLU forced choice)


@dataclass(frozen=True)
class TextRequest:
    """Who writes what: the model, its edits, the template, the budget, the prompts, and how many a batch.

    `date`, `control_tokens` and `thinking` say how prompts are read (core.catalog.StreamSpec).
    """

    pair: str
    variant: str
    edits: tuple[EditSpec, ...]
    template: str
    max_new_tokens: int
    prompts: tuple[Prompt, ...]
    set_name: str
    batch: int = BATCH
    date: str | None = None
    control_tokens: bool = False
    thinking: bool | None = None


class _ConditionJob(Job, ABC):
    """A job whose result is one file of a condition: what is not known of its prompts yet is computed, batch by batch."""

    kind, unit = "", "tokens"
    stage = Stage.TEXTS
    schema: pa.Schema

    def __init__(
        self,
        kit: Context,
        asked: TextRequest,
        steer: SteeringVectors,
        recipe: dict[str, Any],
        before: tuple[Job, ...] = (),
    ):
        self.kit, self.asked, self.steer = kit, asked, steer
        self.hosts: LoadedModels = hosts(kit, asked.pair)
        self.condition = Condition(kit.layout, self.hosts.name(asked.variant), recipe)
        self.recipe, self.runs = recipe, (self.hosts.name(asked.variant),)
        super().__init__(f"{self.kind} {self.hosts.name(asked.variant)}", self.condition.file(self.kind, self.named))
        self.before = (*before, *steer.before(asked.edits))

    @cached_property
    def ids(self) -> list[list[int]]:
        """Token ids of each prompt as the model reads it."""
        return self.encoded(self.asked.variant, self.asked.template, self.asked.prompts)

    @cached_property
    def named(self) -> list[tuple[str, str]]:
        """(id, hash of its tokens) of each prompt."""
        return [(prompt.id, prompt_key(ids)) for prompt, ids in zip(self.asked.prompts, self.ids, strict=True)]

    def check_prompts(self) -> None:
        """Raise LakeError for a prompt that the model can't read and answer."""
        config, name = self.hosts.config(self.asked.variant), self.hosts.name(self.asked.variant)
        names = [f"prompt {prompt.id!r} of set {self.asked.set_name}" for prompt in self.asked.prompts]
        limit = getattr(config, "max_position_embeddings", None)
        tokenizer = self.hosts.tokenizer(self.asked.variant)
        check_prompts(self.ids, names, self.asked.max_new_tokens, limit, config.vocab_size, tokenizer, name)

    def encoded(
        self, variant: str, template: str, prompts: Sequence[Prompt], texts: Sequence[str | bytes] | None = None
    ) -> list[list[int]]:
        """Token ids of prompts (or of texts that stand for them) under a template; encoded once for all conditions."""
        template = template_for(template, self.hosts.record(variant)["template"])
        texts = tuple(texts or [prompt.said for prompt in prompts])
        names = tuple(f"prompt {prompt.id!r} of set {self.asked.set_name}" for prompt in prompts)
        how = (template, False, self.asked.date, self.asked.control_tokens, names, self.asked.thinking)
        return self.kit.once(_encoded, self.hosts, variant, texts, how)

    def missing(self) -> list[int]:
        """Places of the prompts that nothing is known of yet; equal prompts once."""
        known = self.condition.known(self.kind)
        first = {sha: place for place, (_, sha) in reversed(list(enumerate(self.named)))}
        return sorted(place for sha, place in first.items() if sha not in known)

    def finish(self) -> None:
        """Compute what is missing and write the file."""
        missing = self.missing()
        if missing:
            what = f"{self.name} {condition_text(self.asked.edits)[:60]}"
            with bar(what, self.work(missing), self.unit) as progress, explain_memory(self.name, self.asked.batch):
                self.compute(missing, progress)
        known = self.condition.known(self.kind)
        rows = [known[sha] | {"prompt_id": name} for name, sha in self.named]
        self.condition.seal(self.kind, self.path, [self.labelled(row) for row in rows], self.schema, self.provenance())

    def provenance(self) -> dict[str, Any]:
        """What wrote the file: models, versions, device, prompts a batch."""
        variants, keys = [v for v in VARIANTS if v == self.asked.variant or self.grafts], ("id", "revision", "sha256")
        return {
            "models": {v: {key: self.hosts.record(v)[key] for key in keys} for v in variants},
            "device": self.kit.device,
            "batch": self.asked.batch,
            "actlake": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }

    @property
    def grafts(self) -> bool:
        """Whether the other model takes part."""
        return any(edit.grafts for edit in self.asked.edits)

    def work(self, missing: Sequence[int]) -> int:
        """How much the progress bar counts."""
        return len(missing)

    @abstractmethod
    def compute(self, missing: Sequence[int], progress: Bar) -> None:
        """Make the lines of these prompts and keep them batch by batch."""

    def labelled(self, row: Row) -> Row:
        """A line as the file has it."""
        return row

    def rows(self) -> list[Row]:
        """The lines of the finished file, in the order of the prompts."""
        return read_parquet(self.path, self.schema).to_pylist()

    def model(self) -> Model:
        """The host."""
        return self.hosts.model(self.asked.variant)

    def attached(self) -> list[Any]:
        """The edits, for the host."""
        return edits_of(self.hosts, self.asked.variant, self.asked.edits, self.steer.vectors)


def _encoded(
    kit: Context,
    models: LoadedModels,
    variant: str,
    texts: tuple[str | bytes, ...],
    how: tuple[str, bool, str | None, bool, tuple[str, ...], bool | None],
) -> list[list[int]]:
    return encode_prompts(models.tokenizer(variant), texts, *how)


def recipe_of(kit: Context, asked: TextRequest, steer: SteeringVectors) -> dict[str, Any]:
    """All that determines the texts of a condition, but for the prompts."""
    host = hosts(kit, asked.pair)
    record = host.record(asked.variant)
    template = template_for(asked.template, record["template"])
    found: dict[str, Any] = {
        "model": record["sha256"],
        "dtype": record["dtype"],
        "edits": [edit.text for edit in asked.edits],
        "template": template,
        "max_new_tokens": asked.max_new_tokens,
        "real_tokens": True,
        "version": OUTPUTS_VERSION,
    }
    if template == "chat":
        found["chat_template"] = record["chat_template_sha256"]
    found |= reading(host.tokenizer(asked.variant), template, False, asked.date, asked.control_tokens, asked.thinking)
    found |= host.stops(asked.variant, template == "chat").recipe(template == "chat")
    if any(edit.grafts for edit in asked.edits):
        found["donor"] = host.record(OTHER[asked.variant])["sha256"]
    if directions := steer.key(asked.edits):
        found["directions"] = directions
    return found


class Texts(_ConditionJob):
    """What a model writes after each prompt, greedily, under the edits."""

    kind, schema = "texts", OUTPUTS

    def __init__(self, kit: Context, asked: TextRequest, steer: SteeringVectors):
        super().__init__(kit, asked, steer, recipe_of(kit, asked, steer))
        self._categories = {prompt.id: prompt.category for prompt in asked.prompts}
        self.check_prompts()

    def generates(self) -> tuple[int, int]:
        """Texts that are missing, and new tokens each at most."""
        return len(self.missing()), self.asked.max_new_tokens

    def work(self, missing: Sequence[int]) -> int:
        """Tokens at most."""
        return len(missing) * self.asked.max_new_tokens

    def compute(self, missing: Sequence[int], progress: Bar) -> None:
        """Generate."""
        model, edits, budget = self.model(), self.attached(), self.asked.max_new_tokens
        ids = [self.ids[place] for place in missing]
        stops, real = self.recipe["stops"], self.hosts.real(self.asked.variant)
        found = self.hosts.stops(self.asked.variant, self.recipe["template"] == "chat")
        for line in [*notes(model.name, model.tokenizer, self.recipe), found.note(model.name)]:
            if line:
                remark(line)

        def still(indices: Sequence[int]) -> Sequence[int]:
            known = self.condition.parts(self.kind)  # another process may have written some
            return [index for index in indices if prompt_key(ids[index]) not in known]

        for indices, written in decoded(model, ids, budget, stops, self.asked.batch, edits, real, still):
            rows = [
                {
                    "prompt_sha": prompt_key(ids[index]),
                    "prompt_tokens": len(ids[index]),
                    "text": model.tokenizer.decode(tokens, skip_special_tokens=True),
                    "token_id": tokens,
                    "tokens": len(tokens),
                    "ended": bool(tokens) and tokens[-1] in stops,
                }
                for index, tokens in zip(indices, written, strict=True)
            ]
            self.condition.keep(self.kind, rows)
            made_now = sum(map(len, written))
            progress.shrink(len(indices) * budget - made_now)
            progress.advance(made_now)

    def labelled(self, row: Row) -> Row:
        """With the names of the condition and of the prompt's set."""
        return row | {
            "model": self.hosts.name(self.asked.variant),
            "key": self.condition.key,
            "condition": condition_text(self.asked.edits),
            "template": self.recipe["template"],
            "prompts": self.asked.set_name,
            "category": self._categories[row["prompt_id"]],
        }


class Choices(_ConditionJob):
    """Forced choice for prompts with `choices`: the letter written within three tokens, as the study has it, and the choice
    whose text is likeliest after the prompt. METHODS 18 (mmlu_forced_choice: raw text, no template)."""

    kind, schema, unit = "choices", CHOICES, "prompts"

    def __init__(self, kit: Context, asked: TextRequest, steer: SteeringVectors, template: str = "raw"):
        offered = tuple(prompt for prompt in asked.prompts if "choices" in prompt.fields and not prompt.talk)
        asked = replace(asked, prompts=offered, template=template, max_new_tokens=FORCED_TOKENS)
        super().__init__(kit, asked, steer, recipe_of(kit, asked, steer))
        self.check_prompts()

    @cached_property
    def ids(self) -> list[list[int]]:
        """The prompts with their choices lettered."""
        texts = [lettered(fields_of(prompt)) for prompt in self.asked.prompts]
        return self.encoded(self.asked.variant, self.asked.template, self.asked.prompts, texts)

    def compute(self, missing: Sequence[int], progress: Bar) -> None:
        """Generate three tokens, and score every choice."""
        model, edits = self.model(), self.attached()
        chosen = [self.asked.prompts[place] for place in missing]
        ids = [self.ids[place] for place in missing]
        stops, said = self.recipe["stops"], dict[int, str]()
        real = self.hosts.real(self.asked.variant)
        for indices, written in decoded(model, ids, FORCED_TOKENS, stops, self.asked.batch, edits, real):
            said |= {
                index: model.tokenizer.decode(tokens, skip_special_tokens=True)
                for index, tokens in zip(indices, written, strict=True)
            }
            progress.advance(len(indices))
        plain = self.encoded(self.asked.variant, self.asked.template, chosen)
        flat = [(index, choice) for index, prompt in enumerate(chosen) for choice in prompt.fields["choices"]]
        tails = [model.tokenizer(f" {choice}", add_special_tokens=False)["input_ids"] for _, choice in flat]
        unlikely = nats(model, [plain[index] for index, _ in flat], tails, self.asked.batch, edits)
        best: dict[int, tuple[float, str]] = {}
        for (index, choice), cost in zip(flat, unlikely.tolist(), strict=True):
            best[index] = min(best.get(index, (np.inf, "")), (cost, choice))
        rows = [
            {
                "prompt_sha": prompt_key(ids[index]),
                "said": said[index],
                "generated": forced_choice(said[index], ascii_uppercase[: len(prompt.fields["choices"])]) or "",
                "likeliest": best[index][1],
            }
            for index, prompt in enumerate(chosen)
        ]
        self.condition.keep(self.kind, rows)


def fields_of(prompt: Prompt) -> dict[str, Any]:
    """A prompt as scores read it: id, category, text and its scoring fields."""
    return {**prompt.fields, "id": prompt.id, "category": prompt.category, "text": prompt.text}


class Nats(_ConditionJob):
    """How unlikely a model, as it is, finds the texts of a condition after their prompts: nats, and tokens they are over."""

    schema, unit = LIKELY, "prompts"

    def __init__(self, kit: Context, texts: Texts, reader: str):
        self.kind, self.reader, self.texts = f"nats-{reader}", reader, texts
        super().__init__(kit, texts.asked, texts.steer, texts.recipe, (texts,))

    def compute(self, missing: Sequence[int], progress: Bar) -> None:
        """Read them."""
        written = {row["prompt_sha"]: row for row in self.texts.rows()}
        prompts = [self.asked.prompts[place] for place in missing]
        shas = [self.named[place][1] for place in missing]
        starts = self.encoded(self.reader, "native", prompts)
        model = self.hosts.model(self.reader)
        # Without the stop token, which only one of the models may know.
        tokens = [written[sha]["token_id"][: -1 if written[sha]["ended"] else None] for sha in shas]
        replies = [up_to_unknown(each, model.head.vocab) for each in tokens]
        found = nats(model, starts, replies, self.asked.batch, (), progress.advance)
        self.condition.keep(
            self.kind,
            [
                {"prompt_sha": sha, "nats": value, "tokens": len(reply)}
                for sha, value, reply in zip(shas, found.tolist(), replies, strict=True)
            ],
        )
