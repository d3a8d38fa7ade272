"""Who computes which table, and computing the missing ones; every builder streams token blocks through one kernel."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..analyze.delta import delta
from ..analyze.head import Head
from ..analyze.lens import lens, pair_lens
from ..store.captures import Capture
from ..store.errors import LakeError
from ..store.layout import Layout
from ..store.models import read_head, read_model
from ..store.progress import bar
from ..store.schema import TABLES, VARIANTS, scalars
from ..store.streams import read_stream
from ..store.tables import ROW_GROUP_TOKENS, stream_table, table_file, table_key, write_table

BLOCK_BYTES = 128 << 20  # residuals in memory at a time
VERSION = {"tokens": 1, "lens": 1, "delta": 2, "pair_lens": 1}  # raise when a kernel's numbers change

Groups = Iterator[dict[str, Any]]


@dataclass(frozen=True)
class Scope:
    """The captures a question is about: for one pair, variant -> stream name."""

    pair: str
    streams: dict[str, str]

    @property
    def models(self) -> list[tuple[str, str, str]]:
        """(pair, variant, stream) of each capture."""
        return [(self.pair, variant, stream) for variant, stream in sorted(self.streams.items())]


@dataclass(frozen=True)
class Job:
    """One table file to compute: what determines it, how many tokens that takes, and the function that makes its rows."""

    table: str
    recipe: dict[str, Any]
    tokens: int
    groups: Callable[[Callable[[int], None]], Groups]


# --- one capture -----------------------------------------------------------------------------------------------------


def _open(layout: Layout, model: tuple[str, str, str]) -> Capture:
    return Capture(layout.capture(*model))


def _head(layout: Layout, model: tuple[str, str, str]) -> tuple[Head, dict[str, np.ndarray], dict[str, Any]]:
    arrays, attrs = read_head(layout, *model[:2])
    return Head.from_arrays(arrays, attrs), arrays, attrs


def _names(model: tuple[str, str, str]) -> dict[str, Any]:
    return dict(zip(("pair", "variant", "stream"), model, strict=True))


def _token_columns(capture: Capture) -> dict[str, np.ndarray]:
    columns = capture.columns()
    kept = {name: columns[name] for name in ("prompt", "prompt_id", "category", "position", "step")}
    return {**kept, "token": np.arange(capture.n_tokens)}


def _targets(capture: Capture) -> np.ndarray:
    """The token that follows each position in its prompt, -1 at the end of a prompt; int64 [tokens]."""
    columns = capture.columns()
    target = np.full(capture.n_tokens, -1, dtype=np.int64)
    same = columns["prompt"][1:] == columns["prompt"][:-1]
    target[:-1][same] = columns["token_id"][1:][same]
    return target


def _blocks(tokens: int, bytes_per_token: int) -> Iterator[slice]:
    size = max(1, BLOCK_BYTES // bytes_per_token)
    return (slice(a, min(a + size, tokens)) for a in range(0, tokens, size))


def _by_layer(
    columns: dict[str, Any], tokens: int, bytes_per_token: int, compute: Callable[[slice], dict[str, np.ndarray]]
) -> Groups:
    """Row groups of one layer times ROW_GROUP_TOKENS tokens; `compute` returns [block tokens, boundaries] arrays."""
    for start in range(0, tokens, ROW_GROUP_TOKENS):
        stop = min(start + ROW_GROUP_TOKENS, tokens)
        parts = [
            compute(slice(start + block.start, start + block.stop)) for block in _blocks(stop - start, bytes_per_token)
        ]
        values = {name: np.ma.concatenate([part[name] for part in parts]) for name in parts[0]}
        here = {name: value[start:stop] if isinstance(value, np.ndarray) else value for name, value in columns.items()}
        for boundary in range(next(iter(values.values())).shape[1]):
            yield {**here, "layer": boundary - 1, **{name: value[:, boundary] for name, value in values.items()}}


def _tokens_job(layout: Layout, model: tuple[str, str, str], _kind: str, _device: str) -> Job:
    capture = _open(layout, model)
    stream = read_stream(layout, model[2])

    def groups(done: Callable[[int], None]) -> Groups:
        yield {**_names(model), **_token_columns(capture), **stream.columns, "token_text": stream.texts}
        done(capture.n_tokens)

    return Job("tokens", {**_names(model), "capture": capture.sha256}, capture.n_tokens, groups)


def _kept(capture: Capture, table: str) -> dict[str, Any]:
    """Column -> array of a table that was computed during the capture; empty when it was not."""
    names = scalars(table)
    return {name: capture.array(v) for name, v in names.items()} if set(names.values()) <= set(capture.group) else {}


def _all_boundaries(capture: Capture, table: str) -> Any:
    """The residuals, once they are there at every boundary; LakeError when the capture kept only some."""
    if "resid" not in capture.group or capture.array("resid").shape[1] <= len(capture.array("layer")[:]):
        raise LakeError(
            f"{capture.path}: table {table} needs the residual at every boundary, this capture kept fewer (a lean profile, or"
            " other sites): capture with the profile full into another lake"
        )
    return capture.array("resid")


def _lens_job(layout: Layout, model: tuple[str, str, str], kind: str, device: str) -> Job:
    if kind not in ("", "raw"):
        raise LakeError(f"lens({kind}): this version computes the raw lens only")
    capture = _open(layout, model)
    kept = _kept(capture, "lens")
    resid: Any = None if kept else _all_boundaries(capture, "lens")

    def groups(done: Callable[[int], None]) -> Groups:
        head, target = _head(layout, model)[0], _targets(capture)

        def compute(block: slice) -> dict[str, np.ndarray]:
            if kept:
                found = {name: array[block] for name, array in kept.items()}
            else:
                found = lens(head, resid[block], target[block], device=device)
            done(block.stop - block.start)
            return {**found, "rank_target": np.ma.masked_equal(found["rank_target"], 0)}

        columns = {**_names(model), "lens": "raw", **_token_columns(capture)}
        yield from _by_layer(columns, capture.n_tokens, _bytes_per_token(resid, kept), compute)

    recipe = {**_names(model), "lens": "raw", "capture": capture.sha256, "head": _head_hash(layout, model)}
    return Job("lens", recipe, capture.n_tokens, groups)


def _delta_job(layout: Layout, model: tuple[str, str, str], _kind: str, device: str) -> Job:
    capture = _open(layout, model)
    kept = _kept(capture, "delta")
    resid: Any = None if kept else _all_boundaries(capture, "delta")
    mlp = capture.array("mlp_out") if "mlp_out" in capture.group else None

    def groups(done: Callable[[int], None]) -> Groups:
        _, arrays, attrs = _head(layout, model)
        post = (arrays["post_norm_weight"], attrs["post_norm_eps"]) if "post_norm_weight" in arrays else None

        def compute(block: slice) -> dict[str, np.ndarray]:
            if kept:
                found = {name: array[block] for name, array in kept.items()}
            else:
                out = mlp[block] if mlp is not None else None
                found = delta(resid[block], out, post_norm=post, parallel=bool(attrs["parallel"]), device=device)
            done(block.stop - block.start)
            return found

        columns = {**_names(model), **_token_columns(capture)}
        yield from _by_layer(columns, capture.n_tokens, 2 * _bytes_per_token(resid, kept), compute)

    recipe = {**_names(model), "capture": capture.sha256, "head": _head_hash(layout, model)}
    return Job("delta", recipe, capture.n_tokens, groups)


def _bytes_per_token(resid: Any, kept: dict[str, Any]) -> int:
    """Bytes in memory for a token of a block: its residuals, or the columns that are read instead."""
    return sum(4 * int(np.prod(array.shape[1:])) for array in (kept.values() if kept else [resid]))


def _head_hash(layout: Layout, model: tuple[str, str, str]) -> str:
    return str(read_model(layout, *model[:2])["sha256"])


# --- a pair ----------------------------------------------------------------------------------------------------------


def _aligned(pt: Capture, it: Capture) -> tuple[np.ndarray, np.ndarray]:
    """Token indices of both captures at the same (prompt, step), step >= 0."""
    frames = []
    for capture in (pt, it):
        columns = capture.columns()
        frame = pd.DataFrame(
            {name: columns[name] for name in ("prompt_id", "step")} | {"token": np.arange(capture.n_tokens)}
        )
        frames.append(frame[frame["step"] >= 0])
    both = frames[0].merge(frames[1], on=["prompt_id", "step"], suffixes=("_pt", "_it")).sort_values("token_pt")
    return both["token_pt"].to_numpy(), both["token_it"].to_numpy()


def _rows(array: Any, index: np.ndarray) -> np.ndarray:
    """Rows of a capture array at ascending indices, read as one range."""
    low, high = int(index.min()), int(index.max()) + 1
    return array[low:high][index - low]


def _pair_lens_job(layout: Layout, scope: Scope, device: str) -> Job:
    models = {variant: (scope.pair, variant, scope.streams[variant]) for variant in VARIANTS}
    captures = {variant: _open(layout, model) for variant, model in models.items()}
    at_pt, at_it = _aligned(captures["pt"], captures["it"])
    resid = {variant: _all_boundaries(capture, "pair_lens") for variant, capture in captures.items()}

    def groups(done: Callable[[int], None]) -> Groups:
        heads = {variant: _head(layout, model) for variant, model in models.items()}
        mask = heads["pt"][1]["real_token"] & heads["it"][1]["real_token"]
        columns = {name: value[at_pt] for name, value in _token_columns(captures["pt"]).items()}

        def compute(block: slice) -> dict[str, np.ndarray]:
            found = pair_lens(
                heads["pt"][0],
                heads["it"][0],
                _rows(resid["pt"], at_pt[block]),
                _rows(resid["it"], at_it[block]),
                mask=mask,
                device=device,
            )
            done(block.stop - block.start)
            return found

        named = {"pair": scope.pair, "variant": "both", "stream": scope.streams["it"], "stream_pt": scope.streams["pt"]}
        bytes_per_token = 8 * int(np.prod(resid["pt"].shape[1:]))
        yield from _by_layer({**named, **columns}, len(at_pt), bytes_per_token, compute)

    recipe = {
        "captures": {variant: capture.sha256 for variant, capture in captures.items()},
        "heads": {variant: _head_hash(layout, model) for variant, model in models.items()},
        "streams": scope.streams,
        "pair": scope.pair,
    }
    return Job("pair_lens", recipe, len(at_pt), groups)


# --- what is missing -------------------------------------------------------------------------------------------------

PER_CAPTURE: dict[str, Callable[[Layout, tuple[str, str, str], str, str], Job]] = {
    "tokens": _tokens_job,
    "lens": _lens_job,
    "delta": _delta_job,
}
BEHIND_VIEW = {"commitment": "lens"}


def ensure(layout: Layout, name: str, kind: str, scope: Scope, device: str = "cpu") -> list[Path]:
    """Compute the table files that `name` lacks for the captures in scope, with a progress bar; return the new ones.

    Raises LakeError for a table that nobody computes.
    """
    name = BEHIND_VIEW.get(name, name)
    if name == "pair_lens":
        jobs = [_pair_lens_job(layout, scope, device)]
    elif name in PER_CAPTURE:
        jobs = [PER_CAPTURE[name](layout, model, kind, device) for model in scope.models]
    else:
        raise LakeError(f"unknown table {name!r}; this version computes {', '.join([*PER_CAPTURE, 'pair_lens'])}")
    made = []
    for job in jobs:
        recipe = {**job.recipe, "version": VERSION[job.table]}
        if not table_file(layout, job.table, table_key(job.table, recipe)).exists():
            where = scope.pair if name == "pair_lens" else "/".join([scope.pair, job.recipe["variant"]])
            with bar(f"{job.table} {where}", job.tokens) as progress:
                made.append(write_table(layout, job.table, recipe, job.groups(progress.advance)))
    return made


def ensure_all(layout: Layout, names: set[str], device: str = "cpu") -> None:
    """Compute what free SQL asks for: the named tables, for every sealed capture of the lake."""
    wanted = {BEHIND_VIEW.get(name, name) for name in names} & TABLES.keys()
    if not wanted:
        return
    streams = stream_table(layout)
    for name in sorted(wanted):
        scopes = _pairs_of(streams) if name == "pair_lens" else _singles(streams)
        for scope in scopes:
            ensure(layout, name, "", scope, device)


def _singles(streams: pd.DataFrame) -> list[Scope]:
    rows = streams[["pair", "variant", "stream"]].drop_duplicates()
    return [Scope(row.pair, {row.variant: row.stream}) for row in rows.itertuples()]


def _pairs_of(streams: pd.DataFrame) -> list[Scope]:
    scopes = []
    for (pair, *_), group in streams.groupby(["pair", "recipe", "prompt_set", "max_new_tokens"]):
        if set(group["variant"]) == set(VARIANTS) and len(group) == len(VARIANTS):
            scopes.append(Scope(str(pair), dict(zip(group["variant"], group["stream"], strict=True))))
    return scopes
