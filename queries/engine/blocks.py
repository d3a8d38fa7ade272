"""What a sweep reads: captures in blocks of whole prompts, every chunk decoded once; and what tasks made of them."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from ...store.captures.reader import Capture
from ...store.core.files import explain_full_disk, replacing
from ...store.format.zarr_groups import CheckedArray
from ...store.remote.files import HERE, Files

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


Columns = dict[str, Any]  # arrays [n] or [n, ...], and constants: str or int


def parts_folder(result: Path, plan: str) -> Path:
    """The folder beside a result that its parts lie in; `plan` tells how the blocks were cut."""
    return result.with_name(f".{result.name}.{plan}.parts.tmp")


def part_file(result: Path, plan: str, prompts: range) -> Path:
    """The part of a result that comes from these prompts."""
    return parts_folder(result, plan) / f"{prompts.start}-{prompts.stop}.arrow"


def drop_parts(result: Path, files: Files = HERE) -> None:
    """Delete all parts of a result, however the blocks were cut."""
    for folder in result.parent.glob(f".{result.name}.*.parts.tmp"):
        files.remove(folder)


@contextmanager
def part_writer(file: Path, files: Files = HERE) -> Iterator[Callable[[Columns], None]]:
    """Write one part atomically: what the block hands over are the columns of one block each, the file appears at its end.

    An Arrow file with a record batch per block; types, shapes and masks of arrays come back from `read_part` as they were.
    FileNotFoundError when its folder is gone, which means that nobody waits for the part any more.
    """
    opened = list[tuple[pa.RecordBatchFileWriter, pa.Schema]]()
    if files.remote:  # the folder that was made for it is on another machine
        file.parent.mkdir(parents=True, exist_ok=True)
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with explain_full_disk(f"writing {file}"), replacing(file) as temporary, open(temporary, "wb") as sink:

        def add(block: Columns) -> None:
            columns = {name: value for name, value in block.items() if isinstance(value, np.ndarray)}
            fields, arrays = zip(*map(_to_arrow, columns.items()), strict=True)
            if not opened:
                constants = {name: value for name, value in block.items() if name not in columns}
                schema = pa.schema(fields, {"constants": json.dumps(constants)})
                opened.append((pa.ipc.new_file(sink, schema, options=options), schema))
            writer, schema = opened[0]
            writer.write_batch(pa.RecordBatch.from_arrays(list(arrays), schema=schema))

        yield add
        for writer, _ in opened:
            writer.close()
    files.publish(file)


def read_part(file: Path) -> Iterator[Columns]:
    """The columns of each block of a part; FileNotFoundError when there is no such part."""
    if not file.stat().st_size:  # its blocks gave nothing
        return
    with pa.memory_map(str(file)) as source:
        reader = pa.ipc.open_file(source)
        constants = json.loads(reader.schema.metadata[b"constants"])
        for place in range(reader.num_record_batches):
            batch = reader.get_batch(place)
            found = zip(reader.schema, batch.columns, strict=True)
            yield {**constants, **{field.name: _to_numpy(field, column) for field, column in found}}


def _to_arrow(item: tuple[str, np.ndarray]) -> tuple[pa.Field, pa.Array]:
    """A column of the record batch: one entry per row, of as many values as a row has."""
    name, value = item
    masked, shape = isinstance(value, np.ma.MaskedArray), value.shape[1:]
    flat = pa.array(np.ma.getdata(value).ravel(), mask=np.ma.getmaskarray(value).ravel() if masked else None)
    array = pa.FixedSizeListArray.from_arrays(flat, int(np.prod(shape))) if shape else flat
    about = {"shape": json.dumps(shape), "masked": json.dumps(masked)}
    return pa.field(name, array.type, metadata=about), array


def _to_numpy(field: pa.Field, column: pa.Array) -> np.ndarray:
    shape, masked = (json.loads(field.metadata[name]) for name in (b"shape", b"masked"))
    flat = column.flatten() if shape else column
    if not masked:
        return flat.to_numpy(zero_copy_only=False).reshape(len(column), *shape)
    mask = flat.is_null().to_numpy(zero_copy_only=False)
    data = flat.fill_null(0).to_numpy(zero_copy_only=False)
    return np.ma.MaskedArray(data.reshape(len(column), *shape), mask.reshape(len(column), *shape))
