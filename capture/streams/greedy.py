"""Greedy continuations through Hugging Face's generate, with or without edits, kept batch by batch: a kill loses one at most."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
import transformers
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from ...store.core.errors import LakeError
from ...store.core.files import write_atomic
from ...store.format.records import read_batch
from ..checkpoint.causes import cause
from ..edit.edits import Edit, edited
from ..model.heads import TOLERANCE
from ..model.hooks import Batch, pad_id
from ..model.load import Model
from ..model.trace import PROBE_TOKENS, accepted, random_tokens
from ..run.batching import batch_plan
from ..run.ranks import ALONE, Rank


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
            rows = read_batch(part, "tokens")
        except FileNotFoundError:  # or another rank has made the stream and taken the parts away: the same once more
            rows = decode(model, [prompts[i] for i in indices], max_new_tokens, stops)
            with suppress(FileNotFoundError):
                write_atomic(part, json.dumps(rows).encode())
        found |= dict(zip(indices, rows, strict=True))
        if progress:
            progress(len(indices))
    return [found[index] for index in range(len(prompts))]


class _Next(LogitsProcessor):
    """Leaves one token at each step, so that a near tie doesn't end a comparison."""

    def __init__(self, tokens: Tensor):
        self._tokens = iter(tokens.tolist())

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        chosen = torch.full_like(scores, -torch.inf)
        chosen[:, next(self._tokens)] = 0.0
        return chosen


class _Real(LogitsProcessor):
    """Leaves only tokens that the mask marks."""

    def __init__(self, real: np.ndarray, device: torch.device):
        self._unreal = torch.from_numpy(~np.asarray(real, bool)).to(device)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores.masked_fill(self._unreal, -torch.inf)


@torch.no_grad()
def decode(
    model: Model,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    stops: Sequence[int],
    real: np.ndarray | None = None,
) -> list[list[int]]:
    """One batch of greedy continuations, each up to and including its first stop token.

    Padded on the left, as decoding needs, with the mask from which generate derives positions; where padding changes what a
    class computes (learned positions, some recurrences), prompts of one length at a time. Nothing but `stops` and the
    budget ends or bends it: settings of the model's own generation config do not count.
    """
    lengths = [len(prompt) for prompt in prompts]
    if len(set(lengths)) > 1 and not pads_left(model):
        found: dict[int, list[int]] = {}
        for length in sorted(set(lengths)):
            same = [index for index, own in enumerate(lengths) if own == length]
            found |= zip(same, decode(model, [prompts[i] for i in same], max_new_tokens, stops, real), strict=True)
        return [found[index] for index in range(len(prompts))]
    ids, mask, pad = padded(model, prompts)
    try:
        config = GenerationConfig(
            do_sample=False,
            num_beams=1,
            use_cache=cache_works(model),
            max_new_tokens=max_new_tokens,
            eos_token_id=list(stops) or None,
            pad_token_id=pad,
        )
        with _without_settings(model.hf):
            out = model.hf.generate(
                input_ids=ids,
                attention_mask=mask,
                generation_config=config,
                logits_processor=LogitsProcessorList([] if real is None else [_Real(real, model.head_device)]),
            )
    except (LakeError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise LakeError(
            f"{model.name}: {type(model.hf).__name__} can't generate in transformers {transformers.__version__}: {cause(error)};"
            " its captures without continuations (--continuation none) are not concerned"
        ) from error
    return [_until_stop(row, stops) for row in out[:, ids.shape[1] :].tolist()]


_cache_works: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()  # by loaded module
_pads_left: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()  # by loaded module


def cache_works(model: Model) -> bool:
    """True when a class computes the same with its cache as without (some of transformers' don't); found out once."""
    if model.hf not in _cache_works:
        plain = few(model, 0, False)
        try:
            cached = few(model, 0, True)
        except Exception:  # some classes' caches fail where the forward itself works
            _cache_works[model.hf] = False
        else:
            _cache_works[model.hf] = alike(model, plain, cached)
    return _cache_works[model.hf]


def pads_left(model: Model) -> bool:
    """True when padding on the left leaves what a model computes as it is; found out once."""
    if model.hf not in _pads_left:
        cached = cache_works(model)
        _pads_left[model.hf] = alike(model, few(model, 0, cached), few(model, PROBE_TOKENS, cached))
    return _pads_left[model.hf]


@torch.no_grad()
def few(model: Model, padding: int, cached: bool) -> Tensor:
    """Logits [3, vocab] after a few random tokens and two given ones more, with some padding on the left; float32."""
    ids = random_tokens(model.hf)["input_ids"][:1]
    pads = torch.full((1, padding), pad_id(model), dtype=ids.dtype, device=ids.device)
    config = GenerationConfig(
        do_sample=False,
        use_cache=cached,
        max_new_tokens=3,
        pad_token_id=pad_id(model),
        output_logits=True,
        return_dict_in_generate=True,
    )
    mask = torch.cat([torch.zeros_like(pads), torch.ones_like(ids)], 1)
    forced = LogitsProcessorList([_Next(ids[0])])
    with _without_settings(model.hf):
        out = model.hf.generate(
            input_ids=torch.cat([pads, ids], 1),
            attention_mask=mask,
            generation_config=config,
            logits_processor=forced,
        )
    return torch.cat(out.logits).float()


def alike(model: Model, a: Tensor, b: Tensor) -> bool:
    wide = (
        1 if model.dtype in (torch.float32, torch.float64) else 3
    )  # in a narrow dtype roundings add up over the blocks
    return (a - b).abs().max().item() <= wide * TOLERANCE[model.dtype] * (a.abs().max().item() or 1.0)


@contextmanager
def _without_settings(hf: Any) -> Iterator[None]:
    """A module whose own generation config is an empty one: generate fills the gaps of a given config from the module's."""
    before, hf.generation_config = hf.generation_config, GenerationConfig()
    try:
        yield
    finally:
        hf.generation_config = before


def padded(model: Model, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, int]:
    """Token ids and mask [batch, width] on the model's device, and the padding token."""
    width, pad = max(map(len, prompts)), pad_id(model)
    ids = torch.full((len(prompts), width), pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.as_tensor(np.asarray(prompt), dtype=torch.long)
        mask[row, width - len(prompt) :] = 1
    return ids.to(model.device), mask.to(model.device), pad


@torch.no_grad()
def nats(
    model: Model,
    prompts: Sequence[Sequence[int]],
    replies: Sequence[Sequence[int]],
    batch: int,
    edits: Sequence[Edit] = (),
    progress: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Negative log-likelihood of each reply after its prompt, summed over its tokens, nats; float64 [n], 0 for an empty one.

    One teacher-forced forward per batch, right padded, log-softmax in float32.
    """
    found, lengths = np.zeros(len(prompts)), [len(a) + len(b) for a, b in zip(prompts, replies, strict=True)]
    for indices in batch_plan(lengths, batch):
        rows = [np.asarray([*prompts[i], *replies[i]], np.int64) for i in indices]
        given = Batch(rows, pad_id(model), model.device)
        with edited(model, edits):
            out = model.hf(
                **accepted(
                    model.hf,
                    {
                        "input_ids": given.ids,
                        "attention_mask": given.mask,
                        "position_ids": given.positions,
                        "use_cache": False,
                    },
                )
            )
        for row, index in enumerate(indices):
            start, stop = len(prompts[index]), lengths[index]
            if start < stop:
                logp = out.logits[row, start - 1 : stop - 1].float().log_softmax(-1)
                chosen = torch.as_tensor(np.asarray(replies[index], np.int64), device=logp.device)
                found[index] = -float(logp.gather(-1, chosen[:, None]).double().sum())
        if progress:
            progress(len(indices))
    return found


def _until_stop(row: list[int], stops: Sequence[int]) -> list[int]:
    first = next((index for index, token in enumerate(row) if token in stops), None)
    return row if first is None else row[: first + 1]
