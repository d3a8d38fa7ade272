"""What a replay starts from: tokens and the residual at a boundary, as stored or put in its place."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ...store.captures.reader import Capture, find_capture
from ...store.core.errors import LakeError
from ...store.format.paths import Layout
from ...store.format.zarr_groups import CheckedArray
from ..run.batching import batch_plan

Spans = list[tuple[int, int]]  # flat tokens start..stop of each sequence of a batch


class States(Protocol):
    """Hidden states of a stream's flat tokens: `states[start:stop]` is float [stop - start, d], for tokens of one prompt."""

    def __getitem__(self, tokens: slice, /) -> np.ndarray: ...


@dataclass(frozen=True)
class _Boundary:
    """One stored boundary of a capture, read by slices of flat tokens: float32 [n, d]."""

    array: CheckedArray
    place: int

    def __getitem__(self, tokens: slice, /) -> np.ndarray:
        return self.array[tokens, self.place]


@dataclass(frozen=True)
class ReplayStart:
    """What a replay starts from: the tokens of a capture and the residual that enters block `boundary` at each of them.

    `states` may be put in place of the stored ones (dataclasses.replace), and `lengths` [prompts] shortened, so that only
    the first tokens of each prompt run.
    """

    path: Path
    provenance: dict[str, Any]
    boundary: int
    states: States
    token_id: np.ndarray
    offset: np.ndarray
    lengths: np.ndarray
    capture: Capture | None = None

    @cached_property
    def plan(self) -> list[list[int]]:
        """Prompt indices of each batch: the capture's own plan while no prompt is shortened."""
        return batch_plan(self.lengths.tolist(), self.provenance["batch"])

    @property
    def as_stored(self) -> bool:
        """True while tokens and states are those of the capture."""
        return (
            self.capture is not None
            and isinstance(self.states, _Boundary)
            and np.array_equal(self.offset, self.capture.offset())
        )

    @property
    def rounding(self) -> float:
        """The relative error by which the capture's residual at the boundary was rounded; 0 where it was not."""
        manifest = self.capture.manifest if self.capture else {}
        error = manifest.get("rounding", {}).get("resid")
        return float(error["relative"][manifest["boundaries"].index(self.boundary)]) if error else 0.0

    def stored(self) -> "ReplayStart":
        """The same with all tokens and the states of its capture."""
        assert self.capture is not None
        states = _Boundary(self.capture.array("resid"), self.capture.manifest["boundaries"].index(self.boundary))
        offset = self.capture.offset()
        token_id = self.capture.array("token_id")[:]
        return replace(self, states=states, token_id=token_id, offset=offset, lengths=np.diff(offset))

    def spans(self, prompts: Sequence[int]) -> Spans:
        """Flat tokens start..stop of some prompts, as far as they run."""
        return [(int(self.offset[p]), int(self.offset[p] + self.lengths[p])) for p in prompts]

    def padded(self, spans: Spans) -> np.ndarray:
        """The states of some spans, float32 [spans, longest, d], zeros in the padding."""
        rows = [self.states[start:stop] for start, stop in spans]
        out = np.zeros((len(rows), max(map(len, rows)), rows[0].shape[-1]), np.float32)
        for row, values in zip(out, rows, strict=True):
            row[: len(values)] = values
        return out


def open_start(layout: Layout, model: str, stream: str, boundary: int) -> ReplayStart:
    """The stored residual of a model at a boundary of the capture whose stream begins with `stream`.

    LakeError when there is no such capture, it lacks the boundary (with the command that keeps it), or it does not hold
    all positions.
    """
    path = find_capture(layout, model, stream)
    capture = Capture(path, lake=layout.files)
    manifest, token_id, offset = capture.manifest, capture.array("token_id")[:], capture.offset()
    boundaries = manifest["boundaries"] if "resid" in manifest["sizes"] else []
    if boundary not in boundaries:
        kind, _, rest = manifest["stream"].partition("-")
        command = f"actlake capture {model} --stream {kind} --prompts {rest.rpartition('-')[0]}"
        have = ", ".join(map(str, boundaries)) or "none"
        raise LakeError(
            f"{path}: boundary {boundary} is not stored in this capture (it has {have}); a sealed capture never changes:"
            f" `{command} --profile full --lake OTHER` keeps all"
        )
    lengths = np.diff(offset)
    everywhere = np.arange(len(token_id)) - np.repeat(offset[:-1], lengths) if offset[-1] == len(token_id) else None
    if everywhere is None or not np.array_equal(capture.array("position")[:], everywhere):
        raise LakeError(
            f"{path}: holds only some positions; a replay needs the residual of all, for attention reads the earlier ones:"
            " capture all positions in another lake"
        )
    states = _Boundary(capture.array("resid"), boundaries.index(boundary))
    return ReplayStart(path, manifest["provenance"], boundary, states, token_id, offset, lengths, capture)


def loaded_as(provenance: Mapping[str, Any], where: object) -> dict[str, str]:
    """dtype and attention that a capture's model was loaded with; LakeError when its provenance does not say."""
    if "attn_implementation" not in provenance:
        raise LakeError(
            f"{where}: its provenance has no attn_implementation, which a replay needs: capture again in another lake"
        )
    return {"dtype": provenance["dtype"], "attention": provenance["attn_implementation"]}


@dataclass(frozen=True)
class _Borrowed:
    """States of another capture at the flat tokens of a start: prompts may have other places there."""

    ours: ReplayStart
    theirs: ReplayStart

    def __getitem__(self, tokens: slice, /) -> np.ndarray:
        prompt = np.searchsorted(self.ours.offset, tokens.start, side="right") - 1
        shift = int(self.theirs.offset[prompt] - self.ours.offset[prompt])
        return self.theirs.states[tokens.start + shift : tokens.stop + shift]


def borrowed(ours: ReplayStart, theirs: ReplayStart) -> _Borrowed:
    """The states of `theirs` at the tokens that run in `ours`, to begin with or to patch with.

    LakeError unless both have the same tokens there, prompt by prompt.
    """
    _check_same_tokens(ours, theirs)
    return _Borrowed(ours, theirs)


def _check_same_tokens(ours: ReplayStart, theirs: ReplayStart) -> None:
    if len(ours.lengths) != len(theirs.lengths):
        raise LakeError(
            f"{theirs.path}: has {len(theirs.lengths)} prompts, {ours.path} has {len(ours.lengths)}; states are exchanged on one"
            " stream only"
        )
    for prompt, ((a, b), start) in enumerate(zip(ours.spans(range(len(ours.lengths))), theirs.offset, strict=False)):
        one, other = ours.token_id[a:b], theirs.token_id[start : theirs.offset[prompt + 1]][: b - a]
        if not np.array_equal(one, other):
            same = min(len(one), len(other))
            at = next(iter(np.flatnonzero(one[:same] != other[:same])), same)
            raise LakeError(
                f"{theirs.path}: prompt {prompt} has other tokens than in {ours.path} from position {at} on; states are"
                " exchanged on shared tokens only: shorten prompts, or capture both on one stream (template raw, continuation it)"
            )
