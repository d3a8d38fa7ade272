"""Parts: what the blocks of a job gave, kept in files until they are joined in their order."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ...store.core.files import explain_full_disk, replacing
from ...store.remote.files import HERE, Files

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
    if files.remote:  # the folder that was made for it lies on another machine
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
