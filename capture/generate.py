"""Greedy continuations through Hugging Face's generate, kept batch by batch so that a kill loses one batch at most."""

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from ..store.files import write_atomic
from .hooks import pad_id
from .model import Model
from .plan import batch_plan
from .ranks import ALONE, Rank


def greedy(
    model: Model,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    stops: Sequence[int],
    parts: Path,
    batch: int,
    progress: Callable[[int], None] | None = None,
    rank: Rank = ALONE,
) -> list[list[int]]:
    """Greedy continuation of each prompt: up to and including the first stop token, at most `max_new_tokens`.

    Finished batches lie in the folder `parts` and are not computed again, whichever rank computed them; each rank begins
    at a place of its own. `progress` is called with prompts done.
    """
    found: dict[int, list[int]] = {}
    plan = list(enumerate(batch_plan([len(row) for row in prompts], batch)))
    first = rank.rows(len(plan)).start
    for number, indices in plan[first:] + plan[:first]:
        part = parts / f"batch-{number:06d}.json"
        try:
            rows = json.loads(part.read_bytes())
        except FileNotFoundError:  # or another rank has made the stream and taken the parts away: the same once more
            rows = _batch(model, [prompts[i] for i in indices], max_new_tokens, stops)
            with suppress(FileNotFoundError):
                write_atomic(part, json.dumps(rows).encode())
        found |= dict(zip(indices, rows, strict=True))
        if progress:
            progress(len(indices))
    return [found[index] for index in range(len(prompts))]


@torch.no_grad()
def _batch(model: Model, prompts: list[Sequence[int]], max_new_tokens: int, stops: Sequence[int]) -> list[list[int]]:
    """One batch: padded on the left, as decoding needs, with the mask from which generate derives positions."""
    width, pad = max(map(len, prompts)), pad_id(model.tokenizer)
    ids = torch.full((len(prompts), width), pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.as_tensor(np.asarray(prompt), dtype=torch.long)
        mask[row, width - len(prompt) :] = 1
    out = model.hf.generate(
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        do_sample=False,
        num_beams=1,
        temperature=None,
        top_p=None,
        top_k=None,
        repetition_penalty=1.0,
        max_new_tokens=max_new_tokens,
        eos_token_id=list(stops) or None,
        pad_token_id=pad,
        use_cache=True,
    )
    return [_until_stop(row, stops) for row in out[:, width:].tolist()]


def _until_stop(row: list[int], stops: Sequence[int]) -> list[int]:
    first = next((index for index, token in enumerate(row) if token in stops), None)
    return row if first is None else row[: first + 1]
