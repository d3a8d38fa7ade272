"""Batches of rows from captures: the same sequence for a seed, whoever reads it, and resumable at any batch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from hashlib import sha256
from typing import Any, NamedTuple

import numpy as np

from ..captures.reader import Capture
from ..core.errors import LakeError
from ..core.files import hash_json, human_bytes
from ..format.paths import Layout
from .normalize import norms_of, scale_of
from .order import Filled, blocks_of, bounds, epoch_of
from .reading import Buffers, Part, Sides, parts_of, room_for
from .rows import choose, split_of
from .wanted import Filter, Wanted, check_kind

STRIPE = 256  # rows that are widened at a time, while they are in the processor's cache
Scale = tuple[np.ndarray | None, np.float32]  # what is taken from rows, and what they are multiplied by


class Batch(NamedTuple):
    """Some rows and where they come from, NumPy arrays or torch tensors of equal length n.

    `x` is [n, d_model], with an axis for the models of a pair (PT, IT), for sites and for layers between them where several were
    asked for, in this order. `prompt` (index in its set) and `step` are [n]; `position` and `token` (place in the stream, as in
    tables) are [n], of a pair [n, 2].
    """

    x: Any
    prompt: Any
    position: Any
    step: Any
    token: Any


class Batches:
    """The batches of an epoch, again and again: `for batch in batches` is one epoch, the next loop the next, in another order.

    `len()` is the number of batches of an epoch, `rows` that of rows (of this rank), `shape` that of a row, `prompt_ids` the ids
    that `Batch.prompt` counts. A loop that is left begins its epoch anew, or where it was after
    `load_state_dict(state_dict())`. It can be pickled and used in forked processes, but for remote lakes.
    """

    def __init__(
        self,
        layout: Layout,
        captures: Sequence[tuple[str, str]],
        main: int,
        wanted: Wanted,
        chosen: Filter,
        tokens: np.ndarray | None = None,
    ):
        """Rows of one capture (model, stream), or of two side by side, of which `main` says what is read and in which order.

        `tokens` are those of `main` that may be rows (None: all). LakeError for what is not there or does not fit.
        """
        self._address, self._names, self.wanted = layout.address, list(captures), wanted
        self._opened: tuple[int, list[Part]] | None = None
        self._room: Sides | None = None
        self.epoch, self._start, self._next = 0, 0, 0
        there = [Capture(layout.capture(*names), lake=layout.files) for names in captures]
        parts = self._open(there)
        columns = [_columns(capture) for capture in there]
        rows = choose(there, columns, main, chosen, tokens)
        rows = self._usual(layout, there, parts, rows, chosen)
        self.prompt_ids = columns[main]["names"]
        prompt, fitted = columns[main]["prompt"][rows[:, main]], rows
        if chosen.split:
            halves = {
                split: split_of(rows, prompt, self.prompt_ids, chosen, split) for split in ("train", chosen.split)
            }
            fitted, rows = halves["train"], halves[chosen.split]
        self._at, self._main = rows.astype(np.uint32 if rows.max() < 2**32 else np.int64), main
        self._where = [{name: each[name] for name in ("prompt", "position", "step")} for each in columns]
        for part in parts:
            part.array.check_rows(np.unique(rows[:, part.capture] // part.array.chunk_rows).tolist(), part.place)
        self._scales = self._fitted(layout, there, parts, fitted)
        self._edges = blocks_of(
            self._at[:, main].astype(np.int64), parts[main * len(parts) // len(there)].array.chunk_rows
        )
        self._check_size(parts)
        self._axes = ([2] if len(there) == 2 else []) + [
            count
            for count, lone in zip(
                (len(wanted.sites), len(parts) // len(there) // len(wanted.sites)), wanted.lone, strict=True
            )
            if not lone
        ]
        self.shape = (*self._axes, parts[0].array.width)
        self._fingerprint = {
            "captures": [capture.sha256 for capture in there],
            "parts": [(part.capture, part.site, part.layer) for part in parts],
            "rows": sha256(self.tokens.astype("<i8").tobytes()).hexdigest(),
            **{
                name: getattr(wanted, name)
                for name in ("batch", "shuffle", "seed", "buffer", "drop_last", "rank", "world")
            },
        }

    # --- what there is -------------------------------------------------------------------------------------------------

    @property
    def rows(self) -> int:
        """Rows of an epoch, of this rank."""
        low, high = self._bounds
        return high - low

    @property
    def tokens(self) -> np.ndarray:
        """The tokens that rows are of (all ranks), int64 [rows], of a pair [rows, 2], in the order of the stream."""
        found = self._at.astype(np.int64)
        return found if found.shape[1] == 2 else found[:, 0]

    def __len__(self) -> int:
        rows, batch = self.rows, self.wanted.batch
        return rows // batch if self.wanted.drop_last else -(-rows // batch)

    def __repr__(self) -> str:
        names = " and ".join("/".join(names) for names in self._names)
        return f"Batches({names}: {self.rows:,} rows {list(self.shape)} {self.wanted.dtype}, {len(self):,} batches an epoch)"

    @cached_property
    def _bounds(self) -> tuple[int, int]:
        return bounds(len(self._at), self.wanted.rank, self.wanted.world)

    # --- the sequence --------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Batch]:
        yield from self.iterate()

    def iterate(self, worker: int = 0, workers: int = 1) -> Iterator[Batch]:
        """What `iter` gives; with `workers` only every so manieth batch, the first of worker 0.

        Each worker reads every chunk: threads (`threads=`) share the work better than processes do.
        """
        start, self._start = self._start, 0
        self._next = start
        for number, batch in self._epoch(self.epoch, start, worker, workers):
            self._next = number + 1
            yield batch
        self.epoch, self._next = self.epoch + 1, 0

    def set_epoch(self, epoch: int) -> None:
        """Let the next loop be this epoch, from its first batch, or from that of a loaded state where it is this epoch's."""
        check_kind(int, epoch=epoch)
        if epoch < 0:
            raise LakeError("epoch", expected="0 or more", found=epoch)
        self._start = self._start if epoch == self.epoch else 0
        self.epoch, self._next = epoch, self._start

    def state_dict(self, batch: int | None = None) -> dict[str, Any]:
        """Where the sequence is: epoch, number of the next batch, and a fingerprint of what it is a sequence of.

        `batch` is the number where this object can't know it, since workers of a DataLoader read.
        """
        return {
            "epoch": self.epoch,
            "batch": self._next if batch is None else batch,
            "of": hash_json(self._fingerprint),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next loop go on where `state_dict` was taken; LakeError for a state of other rows, batches or seed."""
        if not isinstance(state, dict) or state.get("of") != hash_json(self._fingerprint):
            raise LakeError(
                "this state is of another sequence of batches: captures, rows, batch, shuffle, seed, buffer, drop_last,"
                " rank and world have to be the same"
            )
        at: dict[str, Any] = {"epoch": None, "batch": None, **state}
        check_kind(int, batch=at["batch"])
        if not 0 <= at["batch"] <= len(self):
            raise LakeError("this state", expected=f"a batch from 0 to {len(self)}", found=at["batch"])
        self.set_epoch(at["epoch"])
        self._start = self._next = at["batch"]

    def _epoch(self, epoch: int, start: int, worker: int, workers: int) -> Iterator[tuple[int, Batch]]:
        wanted = self.wanted
        seed = wanted.seed if wanted.shuffle else None
        plan = epoch_of(self._edges, self._capacity, wanted.batch, seed, epoch, wanted.rank, wanted.world)
        number, filled = 0, next(plan, None)
        while filled is not None and number + self._count(filled) <= start:
            number, filled = number + self._count(filled), next(plan, None)
        if filled is None or start >= len(self):
            return
        parts = self._parts()
        # Memory that is new has to be cleared by the system first, so that an epoch leaves its own to the next one.
        room, self._room = self._room or room_for(parts, min(self._capacity, len(self._at))), None
        try:
            with ThreadPoolExecutor(wanted.workers("://" in self._address)) as pool:
                buffers, side = Buffers(parts, self._at, room, pool), 0
                try:
                    buffers.fill(side, filled, from_other=False)
                    while filled is not None:
                        buffers.ready()
                        after = next(plan, None)
                        if after is not None:
                            buffers.fill(1 - side, after, from_other=True)
                        for first in range(0, len(filled.drawn), wanted.batch):
                            places = filled.drawn[first : first + wanted.batch]
                            if number == len(self):
                                return
                            if number >= start and (number - start) % workers == worker:
                                yield number, self._made(buffers.held(side), filled, places)
                            number += 1
                        filled, side = after, 1 - side
                finally:
                    buffers.stop()
        finally:
            self._room = room

    def _count(self, filled: Filled) -> int:
        return -(-len(filled.drawn) // self.wanted.batch)

    def _made(self, held: Sequence[np.ndarray], filled: Filled, places: np.ndarray) -> Batch:
        """A batch of the rows at some places of a buffer, `held` by part."""
        dtype = np.float32 if self.wanted.dtype == "float32" else np.uint16
        x = np.empty((len(places), len(held), self.shape[-1]), dtype)
        for at, rows in enumerate(held):
            self._put(rows, places, x[:, at], self._scales[at] if self._scales else None)
        rows = self._at[filled.rows[places]].astype(np.int64)
        prompt, step = (self._where[self._main][name][rows[:, self._main]] for name in ("prompt", "step"))
        position = np.stack([each["position"][rows[:, at]] for at, each in enumerate(self._where)], axis=1)
        if len(self._where) == 1:
            position, rows = position[:, 0], rows[:, 0]
        return Batch(x.reshape(len(places), *self.shape), prompt, position, step, rows)

    @staticmethod
    def _put(held: np.ndarray, places: np.ndarray, out: np.ndarray, scale: Scale | None) -> None:
        """Rows of a buffer in the dtype of `out`, float32 or bits of bfloat16, normalised where `scale` is given.

        A stripe at a time goes through the processor's cache: three copies of a whole batch would take longer.
        """
        if held.dtype == out.dtype and scale is None:
            held.take(places, axis=0, out=out, mode="clip")
            return
        whole = np.empty((min(STRIPE, len(places)), held.shape[1]), np.float32)
        for first in range(0, len(places), STRIPE):
            rows = held.take(places[first : first + STRIPE], axis=0, mode="clip")
            target = out[first : first + STRIPE]
            wide = target if out.dtype == np.float32 else whole[: len(rows)]
            if rows.dtype == np.uint16:
                np.left_shift(rows, np.uint32(16), out=wide.view(np.uint32), dtype=np.uint32)
            else:
                wide[...] = rows
            if scale is not None:
                mean, factor = scale
                if mean is not None:
                    wide -= mean
                wide *= factor
            if wide is not target:
                target[...] = rounded(wide)

    # --- what it is made of --------------------------------------------------------------------------------------------

    def _parts(self) -> list[Part]:
        """The arrays, opened once a process."""
        if self._opened is None or self._opened[0] != os.getpid():
            if self._opened is not None and "://" in self._address:
                raise LakeError(
                    f"{self._address}: a remote lake can't be read in a forked process",
                    repair="multiprocessing_context='spawn' in the DataLoader, or num_workers=0: threads read anyway",
                )
            layout = Layout.open(self._address)
            self._open([Capture(layout.capture(*names), lake=layout.files) for names in self._names])
        assert self._opened is not None
        return self._opened[1]

    def _open(self, captures: Sequence[Capture]) -> list[Part]:
        self._opened = (os.getpid(), parts_of(captures, self.wanted.sites, self.wanted.layers))
        return self._opened[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None, "_room": None}

    @cached_property
    def _capacity(self) -> int:
        block = int(np.diff(self._edges).max())
        return max(self.wanted.buffer, 4 * self.wanted.batch, 4 * block)

    def _usual(
        self, layout: Layout, captures: Sequence[Capture], parts: Sequence[Part], rows: np.ndarray, chosen: Filter
    ) -> np.ndarray:
        """Rows without those whose norm is far above the median, in any part."""
        if chosen.max_norm is None:
            return rows
        keep = np.ones(len(rows), bool)
        for part in parts:
            norm = norms_of(layout, captures[part.capture], part, self._threads(layout))[rows[:, part.capture]]
            keep &= norm <= chosen.max_norm * np.nanmedian(norm)
        if not keep.any():
            raise LakeError(f"max_norm={chosen.max_norm:g}: no row of {len(rows):,} is left", repair="allow more")
        return rows[keep]

    def _fitted(
        self, layout: Layout, captures: Sequence[Capture], parts: Sequence[Part], rows: np.ndarray
    ) -> list[Scale]:
        """Of each part what is taken away and the factor; nothing when rows are left as they are."""
        found = list[Scale]()
        for part in parts if self.wanted.normalize else ():
            tokens = rows[:, part.capture]
            mean, factors = scale_of(layout, captures[part.capture], part, tokens, self._threads(layout))
            center = self.wanted.normalize == "center"
            found.append((mean if center else None, factors[int(center)]))
        return found

    def _threads(self, layout: Layout) -> int:
        return self.wanted.workers("://" in layout.address)

    def _check_size(self, parts: Sequence[Part]) -> None:
        wanted = self.wanted
        if wanted.batch > (fewest := len(self._at) // wanted.world):
            of = f" a rank, {wanted.world} ranks" if wanted.world > 1 else ""
            raise LakeError(
                "batch", expected=f"at most {fewest:,} ({len(self._at):,} rows{of})", found=f"{wanted.batch:,}"
            )
        row, held = 2 * sum(part.array.width * part.dtype.itemsize for part in parts), self._capacity
        if (need := row * min(held, len(self._at))) > (memory := _memory()):
            fits = f"at most {memory // 2 // row:,} rows, half of {human_bytes(memory)} of memory"
            raise LakeError("buffer", expected=fits, found=f"{held:,}, which take {human_bytes(need)}")

    @property
    def scales(self) -> list[Scale]:
        """What normalisation takes from rows and multiplies them by, (mean [d] or None, factor) a part; empty without."""
        return self._scales


def rounded(values: np.ndarray) -> np.ndarray:
    """float32 as bits of bfloat16 (uint16), to the nearest, of two equally near to the even one; NaN stays NaN."""
    bits = values.view(np.uint32)
    found = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), found)


def _memory() -> int:
    """Bytes of this machine's memory, where the system tells them."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 1 << 62


def _columns(capture: Capture) -> dict[str, np.ndarray]:
    found = {name: capture.array(name)[:] for name in ("prompt", "position", "step", "is_special")}
    found["segment"] = capture.array("segment")[:] if "segment" in capture else np.zeros(capture.n_tokens, np.int32)
    found["names"] = capture.array("prompt_id")[:].astype(object)
    return found
