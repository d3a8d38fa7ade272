"""Writing a capture: allocate everything first, then commit one shard row after the other.

Shard row s is the shards of every variable that hold tokens s*S to (s+1)*S. It is written whole, flushed to disk,
and only then recorded in `.progress/`; killing the process at any moment loses at most the rows not recorded.
"""

import hashlib
import io
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from ..core.errors import CorruptError, LakeError
from ..core.files import full_disk, json_bytes
from ..core.schema import (
    PROGRESS,
    VARIABLES,
)
from ..format.npz import REPAIR as NPZ_REPAIR
from ..format.npz import read_npz
from ..format.shards import Encoded, Grid
from ..format.zarr_groups import quiet_zarr
from ..remote.files import HERE, Files
from .allocate import Template, create_coordinate
from .precision import round_row

WRITERS = 3  # files of a row that are written side by side
DEPTH = 2  # shard rows that are encoded or written at the same time
PromptValues = dict[str, dict[int, np.ndarray]]  # variable -> prompt -> values


def shard_record(path: Path, shard: int) -> Path:
    """File whose existence says that a shard row is complete and on disk."""
    return path / PROGRESS / f"shard-{shard:06d}.json"


def prompt_file(path: Path, shard: int) -> Path:
    """Per-prompt values that came with a shard row: `.progress/prompts-NNNNNN.npz`, replaced by arrays at sealing."""
    return path / PROGRESS / f"prompts-{shard:06d}.npz"


def write_prompts(path: Path, shard: int, values: PromptValues, lake: Files = HERE) -> None:
    """Keep the per-prompt values (variable -> prompt -> array) of the prompts whose last prompt token a row holds."""
    arrays: dict[str, Any] = {
        f"{name}/{part}": np.asarray(value)
        for name, found in values.items()
        for part, value in (("prompt", sorted(found)), ("values", [found[prompt] for prompt in sorted(found)]))
    }
    data = io.BytesIO()
    np.savez(data, **arrays)
    lake.write(prompt_file(path, shard), data.getvalue())


def gather_prompts(path: Path, names: Sequence[str], n_prompts: int) -> None:
    """Make one array [prompt, ...] of each per-prompt variable from what came with the shard rows; NaN where none did."""
    files = [read_npz(file) for file in sorted((path / PROGRESS).glob("prompts-*.npz"))]
    for name in names:
        rows = [_rows_of(f, name, n_prompts, path) for f in files]
        rows = [row for row in rows if len(row[0])]
        if not rows or len({values.shape[1:] for _, values in rows}) != 1:
            raise CorruptError(f"{path / PROGRESS}: found no values of {name}, or of several shapes; {NPZ_REPAIR}")
        whole = np.full((n_prompts, *rows[0][1].shape[1:]), np.nan, dtype=np.float32)
        for prompts, values in rows:
            whole[prompts] = values
        shutil.rmtree(path / name, ignore_errors=True)  # a kill may have left a part
        with quiet_zarr():
            group = zarr.open_group(path, mode="r+", use_consolidated=False)
            create_coordinate(group, name, whole, {"units": VARIABLES[name].unit})


def _rows_of(file: Mapping[str, np.ndarray], name: str, n_prompts: int, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Prompts and values [prompts, ...] of a variable in one file of prompts."""
    empty = np.empty(0)
    prompts, values = (file.get(f"{name}/{part}", empty) for part in ("prompt", "values"))
    fits = prompts.ndim == 1 and len(prompts) == len(values) and values.dtype.kind == "f"
    if len(prompts) and not (fits and prompts.dtype.kind == "i" and 0 <= prompts.min() <= prompts.max() < n_prompts):
        raise CorruptError(f"{path / PROGRESS}: {name}: expected a value for prompts below {n_prompts}; {NPZ_REPAIR}")
    return prompts, values


def missing_shards(path: Path, n_shards: int) -> list[int]:
    """Shard rows not recorded yet, ascending."""
    return [shard for shard in range(n_shards) if not shard_record(path, shard).exists()]


def shard_file(path: Path, name: str, shard: int) -> Path:
    """File of one shard: `c/SHARD/0/0...` under the array's folder, since a shard holds all of the other dimensions."""
    return path.joinpath(name, "c", str(shard), *["0"] * (len(VARIABLES[name].dims) - 1))


def grid_of(group: zarr.Group, name: str) -> Grid:
    """How a variable that this module allocated is cut into shards and chunks."""
    array = group[name]
    assert isinstance(array, zarr.Array)
    grid = Grid.of(array)
    assert grid is not None
    return grid


def encode_row(grids: dict[str, Grid], blocks: dict[str, np.ndarray]) -> dict[str, Encoded]:
    """Encode one shard row on all cores: variable -> its shard in memory."""
    return {name: grids[name].encode(block) for name, block in blocks.items()}


def write_row(path: Path, shard: int, row: dict[str, Encoded], lake: Files = HERE) -> dict[str, Any]:
    """Write an encoded shard row to disk, flush it, and return the SHA-256 and bytes of its files."""

    def write(name: str) -> tuple[str, dict[str, Any]]:
        file = shard_file(path, name, shard)
        digest, sizes = hashlib.sha256(), list[int]()

        def hear(piece: bytes | memoryview) -> None:
            digest.update(piece)
            sizes.append(len(piece))

        lake.write_shard(file, row[name].pieces, hear)
        return file.relative_to(path).as_posix(), {"sha256": digest.hexdigest(), "bytes": sum(sizes)}

    with ThreadPoolExecutor(WRITERS) as pool:  # one file waits for the disk while another is hashed
        return dict(pool.map(write, row))


def _statistics(shard: Encoded) -> dict[str, float | int | None]:
    """What the manifest says of a variable: smallest and largest finite value, None without any, and how many are not."""
    empty = shard.low > shard.high
    return {
        "min": None if empty else shard.low,
        "max": None if empty else shard.high,
        "nonfinite": shard.nonfinite,
    }


class ShardWriter:
    """Encodes shard rows on all cores and writes them, two at a time, while the model computes the next ones.

    `put` blocks when `depth` rows are under way, so memory stays bounded. With `wait` it also returns only when its row
    is encoded: a model that computes on the same cores would only get in the way. `check(shard, blocks)` is asked about
    rows with NaN or infinity and refuses by raising; `on_write(bytes)` hears of every row on disk; `recycle(shard)` says
    that a row's arrays are free again. Any error (full disk, ...) is raised again by the next `put` or by leaving the
    `with` block; rows recorded before it stay.
    """

    def __init__(
        self,
        path: Path,
        template: Template,
        depth: int = DEPTH,
        check: Callable[[int, dict[str, np.ndarray]], None] | None = None,
        on_write: Callable[[int], None] | None = None,
        recycle: Callable[[int], None] | None = None,
        wait: bool = False,
        lake: Files = HERE,
    ):
        self._path, self._template, self._wait, self._lake = path, template, wait, lake
        self._check, self._on_write, self._recycle = check, on_write, recycle
        group = zarr.open_group(path, mode="r", use_consolidated=False)
        self._grids = {name: grid_of(group, name) for name in template.sizes}
        self._room = threading.Semaphore(depth)
        self._rows = ThreadPoolExecutor(depth, thread_name_prefix="actlake-writer")
        self._under_way: list[Future] = []

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._rows.shutdown(wait=True)
        if kind is None:
            self._raise()

    def put(self, shard: int, blocks: dict[str, np.ndarray], prompts: PromptValues | None = None) -> None:
        """Hand over one shard row (float32, int32, or uint16 for bfloat16 bits; the writer's until `recycle`).

        `prompts` are per-prompt values of the prompts whose last prompt token is in it.
        """
        self._raise()
        self._room.acquire()
        encoded = threading.Event()
        self._under_way.append(self._rows.submit(self._write, shard, blocks, prompts, encoded))
        if self._wait:
            encoded.wait()

    def _write(
        self, shard: int, blocks: dict[str, np.ndarray], prompts: PromptValues | None, encoded: threading.Event
    ) -> None:
        try:
            blocks, errors = round_row(blocks, self._template.precision)
            row = encode_row(self._grids, blocks)
            if self._check and any(row[name].nonfinite for name in row if not VARIABLES[name].gaps):
                self._check(shard, blocks)
            if self._recycle:
                self._recycle(shard)
            del blocks
            encoded.set()
            files = write_row(self._path, shard, row, self._lake)
            if prompts:
                write_prompts(self._path, shard, prompts, self._lake)
            statistics = {name: _statistics(variable) for name, variable in row.items()}
            done = {
                "shard": shard,
                "files": files,
                "statistics": statistics,
                **({"rounding": errors} if errors else {}),
            }
            self._lake.write(shard_record(self._path, shard), json_bytes(done))
            if self._on_write:
                self._on_write(sum(entry["bytes"] for entry in files.values()))
        finally:
            encoded.set()
            self._room.release()

    def _raise(self) -> None:
        failed = next((error for row in self._under_way if row.done() and (error := row.exception())), None)
        self._under_way = [row for row in self._under_way if not row.done() or row.exception()]
        if failed is None:
            return
        if isinstance(failed, OSError) and full_disk(failed):
            self._rows.shutdown(wait=True)  # count when the other row has come to its end
            done = self._template.n_shards - len(missing_shards(self._path, self._template.n_shards))
            raise LakeError(
                f"disk full while writing {self._path}: {done} of {self._template.n_shards} shards are safe; free some"
                " space and run the same command again to go on from there"
            ) from failed
        raise failed
