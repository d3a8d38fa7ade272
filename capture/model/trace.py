"""Inputs and outputs of every module of a model in one small forward."""

import inspect
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

PROBE_TOKENS = 8
SHARED = PROBE_TOKENS - 2  # the two sequences of the small forward differ after these tokens


def first_tensor(value: Any) -> Any:
    """A module's hidden states, whether it returns them alone or first in a tuple."""
    return value[0] if isinstance(value, tuple | list) and value else value


def hidden_input(args: tuple, kwargs: dict[str, Any]) -> tuple[str | None, Any]:
    """A module's hidden states among what it was called with, and their keyword: None for the first positional argument."""
    if args:
        return None, first_tensor(args[0])
    for name in (*(name for name in ("hidden_states", "input", "x") if name in kwargs), *kwargs):
        value = kwargs[name] if name not in ("hidden_states", "input", "x") else first_tensor(kwargs[name])
        if isinstance(value, Tensor) and value.is_floating_point():
            return name, value
    return None, None


def flat(value: Tensor) -> Tensor:
    """Hidden states as [tokens, d]: some modules work on all tokens of a batch in one row."""
    return value.reshape(-1, value.shape[-1])


def accepted(hf: Any, given: dict[str, Any]) -> dict[str, Any]:
    """What a class's forward takes of these arguments: some know no positions, or compute the logits of every token."""
    names = inspect.signature(hf.forward).parameters
    anything = any(p.kind is p.VAR_KEYWORD for p in names.values())
    return given if anything else {name: value for name, value in given.items() if name in names}


def device_of_input(hf: Any) -> torch.device:
    """Where a model's input goes: the device of the embedding, of the first weight where there is none."""
    try:
        embedding = hf.get_input_embeddings()
    except (NotImplementedError, AttributeError):
        embedding = None
    first = next(hf.parameters())
    return (next(embedding.parameters(), first) if isinstance(embedding, nn.Module) else first).device


def random_tokens(hf: Any) -> dict[str, Tensor]:
    """The input of a small forward, always the same: two sequences of token ids that differ in the last ones only."""
    generator = torch.Generator().manual_seed(0)
    limit = hf.config.get_text_config().vocab_size
    ids = torch.randint(0, limit, (1, PROBE_TOKENS), generator=generator)
    other = torch.randint(0, limit, (1, PROBE_TOKENS), generator=generator)
    other[:, SHARED:] = (ids[:, SHARED:] + 1 + other[:, SHARED:] % max(1, limit - 1)) % limit
    other[:, :SHARED] = ids[:, :SHARED]
    return {"input_ids": torch.cat([ids, other]).to(device_of_input(hf))}


def random_states(width: int) -> Tensor:
    """Hidden states for a small forward in place of tokens: two sequences that differ at the last positions only, [2, n, d]."""
    state = torch.randn(1, PROBE_TOKENS, width, generator=torch.Generator().manual_seed(0)).repeat(2, 1, 1)
    state[1, SHARED:] = state[1, SHARED:].flip(-1)
    return state


class Trace:
    """Inputs and outputs of every module that ran in one small forward of `given`, copied to the CPU.

    `order` is the modules in the order in which they returned, `runs` how often each did, `returns` of how many values. Raises
    what the model's own forward raises.
    """

    def __init__(self, hf: Any, given: dict[str, Tensor]):
        self.inputs: dict[nn.Module, Tensor] = {}
        self.outputs: dict[nn.Module, Tensor] = {}
        self.runs: Counter[nn.Module] = Counter()
        self.returns: dict[nn.Module, int] = {}
        self.order: list[nn.Module] = []
        handles = []
        for module in hf.modules():
            handles.append(module.register_forward_pre_hook(self._before, with_kwargs=True))
            handles.append(module.register_forward_hook(self._after))
        try:
            with torch.no_grad():
                self.logits = _copied(hf(**accepted(hf, {**given, "use_cache": False})).logits.float())
        finally:
            for handle in handles:
                handle.remove()

    def _before(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        given = hidden_input(args, kwargs)[1]
        if isinstance(given, Tensor):
            self.inputs[module] = _copied(given)

    def _after(self, module: nn.Module, _args: tuple, output: Any) -> None:
        result = first_tensor(output)
        if isinstance(result, Tensor) and module in self.inputs:
            self.outputs[module] = _copied(result)
            self.runs[module] += 1
            self.returns[module] = len(output) if isinstance(output, tuple) else 1
            self.order.append(module)


def _copied(value: Tensor) -> Tensor:
    """A copy on the CPU, never the tensor itself: blocks add in place to what they were given or a module returned."""
    return value.detach().to("cpu", copy=True)
