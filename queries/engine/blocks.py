"""What a sweep reads: captures side by side in blocks of whole prompts, every stored chunk decoded once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from ...store.captures.reader import Capture
from ...store.format.zarr_groups import CheckedArray

T = TypeVar("T")


@dataclass(frozen=True)
class Block:
    """What one capture holds for a run of whole prompts.

    `tokens` and `prompts` say where on the capture's axes; `columns` are its token columns there (prompt, prompt_id,
    category, position, step, token_id, target, each [n]), `values` the variables [n, ...] that some job reads.
    """

    capture: Capture
    tokens: slice
    prompts: range
    columns: dict[str, np.ndarray]
    values: dict[str, np.ndarray]
    _known: dict[Any, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> np.ndarray:
        return self.values[name]

    def __len__(self) -> int:
        return self.tokens.stop - self.tokens.start

    def once(self, key: Any, make: Callable[[], T]) -> T:
        """What `make` returns, computed once per key and shared between jobs."""
        if key not in self._known:
            self._known[key] = make()
        return self._known[key]


class BlockReader:
    """The variables of one capture, read forward in whole chunks so that each is decoded once."""

    def __init__(self, capture: Capture, names: Sequence[str]):
        self.capture, self.offset = capture, capture.offset()
        columns = capture.columns()
        columns["target"] = following(columns)
        self._columns, self._arrays = columns, {name: capture.array(name) for name in names}
        self.bytes_per_token = sum(4 * int(np.prod(array.shape[1:], dtype=np.int64)) for array in self._arrays.values())
        self.seek(0)

    def seek(self, prompt: int) -> None:
        """Go on with this prompt."""
        self._readers = {name: _Reader(array, int(self.offset[prompt])) for name, array in self._arrays.items()}

    def take(self, prompts: range) -> Block:
        """The rows of the next prompts."""
        tokens = slice(int(self.offset[prompts.start]), int(self.offset[prompts.stop]))
        columns = {name: values[tokens] for name, values in self._columns.items()}
        values = {name: reader.take(tokens.stop) for name, reader in self._readers.items()}
        return Block(self.capture, tokens, prompts, columns, values)


class _Reader:
    """One array from a token on; the chunks that a block ends in are kept for the next, which gets a view of them."""

    def __init__(self, array: CheckedArray, start: int):
        self.array = array
        self._chunk = array.array.chunks[0]
        self._held, self._start = array[0:0], start // self._chunk * self._chunk  # whole chunks, from this token on
        self._at = start  # token that the next block begins with

    def take(self, stop: int) -> np.ndarray:
        """Values [n, ...] from where the last call stopped up to token `stop`."""
        block, read = self._held[self._at - self._start : stop - self._start], self._start + len(self._held)
        if stop > read:
            self._held = block = block.copy("K")  # lets go of the chunks before others come in
            end = min(-(-stop // self._chunk) * self._chunk, self.array.shape[0])
            self._held, self._start = self.array[read:end], read
            block = _join(block, self._held[max(0, self._at - read) : stop - read])
        self._at = stop
        return block


def _join(head: np.ndarray, tail: np.ndarray) -> np.ndarray:
    """Both one after the other on the token axis, layer by layer in memory as they come from the store."""
    if not len(head):
        return tail
    if head.ndim < 3:
        return np.concatenate([head, tail])
    return np.concatenate([head.swapaxes(0, 1), tail.swapaxes(0, 1)], axis=1).swapaxes(0, 1)


def following(columns: dict[str, np.ndarray]) -> np.ndarray:
    """The token that follows each position in its prompt, -1 at the end of a prompt; int64 [tokens]."""
    target = np.full(len(columns["token_id"]), -1, dtype=np.int64)
    same = columns["prompt"][1:] == columns["prompt"][:-1]
    target[:-1][same] = columns["token_id"][1:][same]
    return target
