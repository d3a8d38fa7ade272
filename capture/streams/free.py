"""Free continuations of many prompts: those that have ended leave their batch, so that no work is done for them."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from ..edit.edits import Edit, edited
from ..model.load import Model
from ..model.trace import accepted, random_tokens
from ..run.batching import batch_plan
from .greedy import alike, cache_works, decode, few, padded, pads_left

DROP = 0.8  # share of a batch that is left when those that have ended are taken out
_drops_rows: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()  # by loaded module


def decoded(
    model: Model,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    stops: Sequence[int],
    batch: int,
    edits: Sequence[Edit] = (),
    real: np.ndarray | None = None,
    skip: Callable[[Sequence[int]], Sequence[int]] = lambda indices: indices,
) -> Iterator[tuple[list[int], list[list[int]]]]:
    """Batches of greedy continuations, (indices of prompts, their tokens), prompts of similar length together.

    `edits` act on every position, at prefill and in each step; only tokens that `real` (bool [vocab]) marks can be chosen
    (METHODS 1.4). What has ended takes no more part, where a class allows that (`drops_rows`). `skip` is called before each
    batch and returns which of its prompts remain.
    """
    for planned in batch_plan([len(row) for row in prompts], batch):
        if indices := list(skip(planned)):
            drops_rows(model)  # found out before there are edits
            with edited(model, edits):
                yield indices, written(model, [prompts[i] for i in indices], max_new_tokens, stops, real)


def written(
    model: Model, prompts: Sequence[Sequence[int]], most: int, stops: Sequence[int], real: np.ndarray | None
) -> list[list[int]]:
    """What `decode` gives, from a loop of our own, if it can, that computes nothing more for prompts whose text has ended."""
    if not drops_rows(model):
        return decode(model, prompts, most, stops, real)
    unreal = None if real is None else torch.from_numpy(~np.asarray(real, bool)).to(model.head_device)

    def choose(logits: Tensor, _step: int, _rows: Sequence[int]) -> list[int]:
        logits = logits.float()
        return (logits if unreal is None else logits.masked_fill(unreal, -torch.inf)).argmax(-1).tolist()

    return _loop(model, *padded(model, prompts)[:2], most, stops, choose)


@torch.no_grad()
def _loop(
    model: Model,
    ids: Tensor,
    mask: Tensor,
    most: int,
    stops: Sequence[int],
    choose: Callable[[Tensor, int, Sequence[int]], list[int]],
) -> list[list[int]]:
    """Continuations of left-padded rows: `choose` takes logits [n, vocab], the step and the rows that are left, and gives tokens.

    Rows that have ended leave the cache as soon as they are a fifth.
    """
    name = "cache" if "cache" in inspect.signature(model.hf.forward).parameters else "past_key_values"
    cache = DynamicCache(config=model.hf.config.get_text_config())
    found, left, at = [list[int]() for _ in ids], list(range(len(ids))), (mask.cumsum(-1) - 1).clamp(min=0)
    for step in range(most):
        given = {"input_ids": ids, "attention_mask": mask, "position_ids": at, name: cache, "use_cache": True}
        out = model.hf(**accepted(model.hf, {**given, "logits_to_keep": 1}))
        tokens = choose(out.logits[:, -1], step, left)
        for row, token in zip(left, tokens, strict=True):
            if not found[row] or found[row][-1] not in stops:
                found[row].append(token)
        going = [place for place, row in enumerate(left) if found[row][-1] not in stops]
        if not going:
            break
        ids, at = torch.tensor(tokens, device=ids.device)[:, None], at[:, -1:] + 1
        if len(going) <= DROP * len(left):
            kept = torch.tensor(going, device=ids.device)
            cache.batch_select_indices(kept)
            ids, mask, at, left = ids[kept], mask[kept], at[kept], [left[place] for place in going]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
    return found


def drops_rows(model: Model) -> bool:
    """True when our own loop computes what generate does, also once a shorter row has left the batch; found out once."""
    if model.hf not in _drops_rows:
        try:
            _drops_rows[model.hf] = (
                cache_works(model) and pads_left(model) and alike(model, few(model, 0, True), _one_left(model))
            )
        except Exception:  # a class whose cache has no rows, or that wants other arguments
            _drops_rows[model.hf] = False
    return _drops_rows[model.hf]


def _one_left(model: Model) -> Tensor:
    """The logits that `few` gives, from `_loop` beside a row half as long that ends at the first step."""
    ids, logits = random_tokens(model.hf)["input_ids"][:1], list[Tensor]()
    mask = torch.ones(2, ids.shape[1], dtype=torch.long, device=ids.device)
    mask[0, : ids.shape[1] // 2] = 0
    forced = ids[0].tolist()
    stop = next(token for token in range(len(forced) + 1) if token not in forced)

    def choose(found: Tensor, step: int, rows: Sequence[int]) -> list[int]:
        logits.append(found[-1:].float())
        return [stop if row == 0 else forced[step] for row in rows]

    _loop(model, ids.repeat(2, 1), mask, 3, [stop], choose)
    return torch.cat(logits)
