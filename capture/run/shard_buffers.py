"""Host memory of the shard rows being filled: batches write directly into them, full rows pass to the writer."""

from collections import deque

import numpy as np
import torch

from ...store.captures.allocate import Template
from ...store.captures.writer import PromptValues
from ..model.hooks import TokenSpan, block_of, buffer


class ShardBuffers:
    """Buffers of shard rows; a full row is handed out, and comes back to be filled again.

    A row's buffers are pinned when the model is on a GPU, and used again: first touch of new memory costs more than
    filling it.
    """

    def __init__(self, template: Template, todo: list[int], dtype: torch.dtype, pin: bool = False):
        self._template, self._size = template, template.shard_tokens
        self._dtype, self._pin = dtype, pin
        self._offset = template.stream.offset
        self._todo = set(todo)
        self._open: dict[int, dict[str, torch.Tensor]] = {}
        self._left: dict[int, int] = {}
        self._spare: deque[dict[str, torch.Tensor]] = deque()
        self._out: dict[int, dict[str, torch.Tensor]] = {}
        self._notes: dict[int, PromptValues] = {}

    def _shards(self, prompt: int) -> range:
        """Shard rows that hold tokens of a prompt."""
        return range(int(self._offset[prompt]) // self._size, (int(self._offset[prompt + 1]) - 1) // self._size + 1)

    def wants(self, prompt: int) -> bool:
        """True when a row that holds tokens of this prompt is still to be filled."""
        return any(shard in self._todo for shard in self._shards(prompt))

    def parts(self, prompts: list[int]) -> list[TokenSpan]:
        """Where the tokens of a batch of these prompts go; those of rows that are done already go nowhere."""
        found = []
        for row, prompt in enumerate(prompts):
            first, last = int(self._offset[prompt]), int(self._offset[prompt + 1])
            for shard in self._shards(prompt):
                if shard in self._todo:
                    low, high = max(first, shard * self._size), min(last, (shard + 1) * self._size)
                    found.append(TokenSpan(row, low - first, high - first, self._row(shard), low - shard * self._size))
        return found

    def note(self, name: str, prompts: list[int], values: np.ndarray) -> None:
        """Keep one value a prompt [batch, ...] with the row that holds the prompt's last prompt token."""
        for prompt, value in zip(prompts, values, strict=True):
            shard = (int(self._offset[prompt]) + self._template.stream.starts[prompt] - 1) // self._size
            if shard in self._todo:
                self._notes.setdefault(shard, {}).setdefault(name, {})[prompt] = value

    def filled(self, prompts: list[int]) -> list[tuple[int, dict[str, np.ndarray], PromptValues | None]]:
        """Count a batch as copied; return what this completed as the writer takes it: rows and their prompts' values."""
        full = []
        for prompt in prompts:
            first, last = int(self._offset[prompt]), int(self._offset[prompt + 1])
            for shard in self._shards(prompt):
                if shard in self._left:
                    self._left[shard] -= min(last, (shard + 1) * self._size) - max(first, shard * self._size)
                    if not self._left[shard]:
                        full.append((shard, self._hand_out(shard), self._notes.pop(shard, None)))
        return full

    def recycle(self, shard: int) -> None:
        """Take back the buffers of a row that is encoded (called from the writer's threads)."""
        self._spare.append(self._out.pop(shard))

    def _hand_out(self, shard: int) -> dict[str, np.ndarray]:
        del self._left[shard]
        self._todo.discard(shard)
        self._out[shard] = self._open.pop(shard)
        tokens = self._tokens(shard)
        return {name: block_of(tensor)[:tokens] for name, tensor in self._out[shard].items()}

    def _tokens(self, shard: int) -> int:
        return min(self._size, int(self._offset[-1]) - shard * self._size)

    def _row(self, shard: int) -> dict[str, torch.Tensor]:
        if shard not in self._open:
            size = min(self._size, int(self._offset[-1]))
            self._open[shard] = (
                self._spare.popleft()
                if self._spare
                else {
                    name: buffer(name, shape, size, self._dtype, self._pin)
                    for name, shape in self._template.sizes.items()
                }
            )
            self._left[shard] = self._tokens(shard)
        return self._open[shard]
