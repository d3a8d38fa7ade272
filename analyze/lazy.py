"""The kernels on lazy captures: xarray in, lazy xarray out; nothing is read before values are needed.

Open the capture with `by="token"`, so that one dask task holds all boundaries of some tokens and the graph stays small.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import uuid4

import dask.array as da
import numpy as np
import xarray as xr

from .lens.head import Head
from .lens.logit_lens import FLOATS, INTEGERS
from .lens.logit_lens import lens as lens_kernel
from .lens.tuned_lens import Probes
from .residual.delta import COLUMNS as DELTA_COLUMNS
from .residual.delta import delta as delta_kernel

LENS_COLUMNS = (*FLOATS, *INTEGERS)


def lens(
    capture: xr.Dataset,
    head: Head,
    *,
    probes: Probes | None = None,
    mask: np.ndarray | None = None,
    device: str = "cpu",
) -> xr.Dataset:
    """The lens of a capture: lazy float32 variables [token, layer], named as the columns of the table `lens`.

    The raw lens, or with `probes` the tuned one. `capture` needs resid at every boundary, token_id and prompt; layer -1 is
    boundary 0. Units, NaN and other arguments as in lens.logit_lens.lens; ids and ranks are exact up to 2**24. ValueError
    without all residuals.
    """

    def kernel(resid: np.ndarray, target: np.ndarray) -> np.ndarray:
        found = lens_kernel(head, resid, target, probes=probes, mask=mask, device=device)
        return np.stack([found[name].astype(np.float32) for name in LENS_COLUMNS], axis=-1)

    return _apply(kernel, capture, [_targets(capture)], LENS_COLUMNS)


def delta(
    capture: xr.Dataset,
    *,
    post_norm: tuple[np.ndarray, float | None] | None = None,
    parallel: bool = False,
    device: str = "cpu",
) -> xr.Dataset:
    """How blocks and MLPs move the residual: lazy float32 variables [token, layer], named as the columns of `delta`.

    `capture` needs resid at every boundary; without mlp_out the MLP columns are NaN. Other arguments as in
    residual.delta.delta. ValueError without all residuals.
    """

    def kernel(resid: np.ndarray, mlp: np.ndarray | None = None) -> np.ndarray:
        found = delta_kernel(resid, mlp, post_norm=post_norm, parallel=parallel, device=device)
        return np.stack([found[name] for name in DELTA_COLUMNS], axis=-1)

    return _apply(kernel, capture, [capture["mlp_out"]] if "mlp_out" in capture else [], DELTA_COLUMNS)


def _apply(
    kernel: Callable[..., np.ndarray], capture: xr.Dataset, more: list[xr.DataArray], columns: tuple[str, ...]
) -> xr.Dataset:
    """Run a kernel on the residuals of blocks of tokens; its result [n, L+1, columns] becomes a variable per column."""
    layers, resid = capture.sizes.get("layer", -1), capture.get("resid")
    if resid is None or resid.sizes["boundary"] != layers + 1:
        raise ValueError(f"lazy: resid is not there at each of the {layers + 1} boundaries; a full capture has it")
    # Blockwise operations that concatenate nothing: dask fuses them with reading and with what is done to a column.
    # Explicit names: hashing a kernel would hash the head's gigabytes.
    arrays = [array.chunk({name: -1 for name in array.dims if name != "token"}).data for array in (resid, *more)]
    axes = [("token", *(f"{place}-{axis}" for axis in range(1, array.ndim))) for place, array in enumerate(arrays)]
    run, found = f"{kernel.__qualname__}-{uuid4().hex}", ("token", "layer", "column")
    block = da.blockwise(
        _on_whole(kernel),
        found,
        *(part for pair in zip(arrays, axes, strict=True) for part in pair),
        name=run,
        new_axes={"layer": layers + 1, "column": len(columns)},
        meta=np.empty((0, 0, 0), np.float32),
    )
    variables = {
        name: (
            ("token", "layer"),
            da.blockwise(
                _column,
                found[:2],
                *(block, found, place, None),
                name=f"{name}-{run}",
                meta=np.empty((0, 0), np.float32),
            ),
        )
        for place, name in enumerate(columns)
    }
    tokens = {name: value for name, value in capture.coords.items() if value.dims == ("token",)}
    return xr.Dataset(variables, {"layer": np.arange(-1, layers)}).assign_coords(tokens)


def _on_whole(kernel: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """The kernel for blocks as dask passes them: along contracted axes, lists with a single block."""
    return lambda *blocks: kernel(*map(_only, blocks))


def _only(block: Any) -> np.ndarray:
    while isinstance(block, list):
        (block,) = block
    return block


def _column(block: Any, place: int) -> np.ndarray:
    return _only(block)[..., place]


def _targets(capture: xr.Dataset) -> xr.DataArray:
    """The token that follows each position in its prompt, -1 at a prompt's end; the coordinates are in memory."""
    ids, prompt = capture["token_id"].values.astype(np.int64), capture["prompt"].values
    target = np.full(len(ids), -1, dtype=np.int64)
    same = prompt[1:] == prompt[:-1]
    target[:-1][same] = ids[1:][same]
    rows = capture["resid"].chunks[0] if capture["resid"].chunks else -1
    return xr.DataArray(da.from_array(target, chunks=(rows,), inline_array=True), dims="token")
