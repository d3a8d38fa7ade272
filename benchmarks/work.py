"""The work that benchmarks are given: a random model, random streams, and their batches as a plain forward takes them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from actlake.capture.model.load import Model
from actlake.capture.run.batching import batch_plan
from actlake.store.artifacts.streams import Stream
from actlake.store.core.catalog import load_catalog
from torch import Tensor
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

CATALOG = Path(__file__).parent.parent / "catalog.yaml"


def random_llama(folder: Path) -> Path:
    """Save a random Llama of SmolLM2-135M's shape and vocabulary in bfloat16, with pocket's tokenizer."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).bfloat16().save_pretrained(folder)
    AutoTokenizer.from_pretrained(load_catalog(CATALOG).pair("pocket").model("pt").path).save_pretrained(folder)
    return folder


def stream_of(rows: Sequence[np.ndarray]) -> Stream:
    """A stream of these token ids, all of them prompt."""
    count, names, starts = sum(map(len, rows)), [f"p{index}" for index in range(len(rows))], [len(row) for row in rows]
    return Stream("bench", "random", names, [""] * len(rows), rows, starts, [""] * count, np.zeros(count, bool))


def random_stream(tokens: int, lengths: tuple[int, int], vocab: int) -> Stream:
    """About so many tokens with random ids, in prompts of `lengths` (from, to)."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(lengths[0], lengths[1] + 1, max(2, 2 * tokens // sum(lengths)))
    return stream_of([rng.integers(5, vocab, size, dtype=np.int32) for size in sizes])


def read_by(model: Model, stream: Stream) -> Stream:
    """The stream as one that this model's tokenizer made: captures refuse any other."""
    return replace(stream, recipe={"tokenizer_sha256": model.record["tokenizer_sha256"]})


@dataclass(frozen=True)
class Batch:
    """Right-padded prompts, what a forward takes of them (logits of the last position only), places of the real tokens."""

    inputs: dict[str, Any]
    valid: Tensor

    @classmethod
    def of(cls, rows: Sequence[np.ndarray], device: str = "cpu") -> "Batch":
        """Pad with id 0, masked."""
        width = max(map(len, rows))
        ids, mask = torch.zeros((2, len(rows), width), dtype=torch.long)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = torch.from_numpy(row.astype(np.int64))
            mask[index, : len(row)] = 1
        positions = torch.arange(width).expand_as(ids)
        tensors = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        inputs = {name: value.to(device) for name, value in tensors.items()} | {"use_cache": False, "logits_to_keep": 1}
        return cls(inputs, mask.flatten().nonzero().squeeze(1).to(device))

    def real(self, value: Tensor) -> Tensor:
        """The real tokens of [batch, width, d] as [tokens, d]."""
        return value.flatten(0, 1).index_select(0, self.valid)


def batches(stream: Stream, device: str = "cpu") -> Iterator[Batch]:
    """The batches of actlake's own plan, made anew."""
    for indices in batch_plan(np.diff(stream.offset).tolist()):
        yield Batch.of([stream.tokens[index] for index in indices], device)
