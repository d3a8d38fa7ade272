"""The table `patching`: parts of what IT's residual has over PT's, added to the PT's at one layer and one answer token."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from ...analyze.residual.directions import PARTS, generated, parts, random_units
from ...store.artifacts.directions import read_directions
from ...store.captures.reader import Capture
from ...store.core.columns import BOTH, LAYER, LENS, NONNEGATIVE, PLACE, PROMPT, Column, by_lens, label_column
from ...store.core.errors import LakeError
from ...store.core.progress import Advance, bar
from ...store.core.schema import VARIANTS
from ...store.tables.declared import TABLES
from ...store.tables.files import drop_tables
from ..engine.context import Context, Scope
from ..engine.declare import table
from ..engine.job import TableJob
from ..probes.choice import choose, lens_of
from ..tables.mean_differences import Contrast, records, sibling

if TYPE_CHECKING:
    from ...capture.edit.start import ReplayStart, States
    from ...capture.model.load import Model

SIZES = {"prompts": 120, "tokens": 5, "layers": 10}  # the last prompts, their first answer tokens, layers by R2
SEED = 42  # of the random directions
LABELS = ("prompt", "prompt_id", "category", "position", "step")
PREFIXES = 16  # prompts whose stored states are in memory at a time


@table(
    "patching",
    [
        *BOTH,
        LENS,
        *PROMPT,
        *PLACE,
        label_column("patch_layer", "layer whose residual is changed", "int32"),
        label_column("patch", "part of IT - PT that is added: conv, full, random, mean or rest"),
        LAYER,
        Column("kl_final_layer", "float32", "KL(final || layer) of the PT with the part added", "nats", NONNEGATIVE),
        Column("kl_host", "float32", "KL(final || layer) of the PT as it is", "nats", NONNEGATIVE),
    ],
    "Parts of the difference IT - PT added to the PT's residual at one layer and answer token.",
    "lens x token x patch_layer x patch x layer",
    of="pair",
    version=1,
    kind_columns=by_lens,
    how="replay",
    lenses=3.0,
)
class _Patching(TableJob):
    """KL(final || layer) of the PT at a token of IT's answer, with each part of the difference added to its residual there.

    Both models have read IT's answer. The layers are those whose in-sample R2 of `Contrast` is largest, as the study takes
    them: never the last, and only those with both directions. A row of the replay is one prompt up to the token, of which
    the last state is changed; blocks from the one after the patch on run again. In memory: the residuals of the patched
    tokens at all boundaries, 4 * tokens * (L + 1) * d bytes, and a few prompts' states. Source: METHODS 7 (P3).

    LakeError as `Contrast` and `records` raise it, for a lens that nobody knows, a capture of some positions
    only, and where the PT's weights can't be found; a table that is there already needs no weights.
    """

    def __init__(self, kit: Context, scope: Scope, kind: str):
        lens = lens_of("patching", kind)
        if set(scope.streams) != set(VARIANTS):
            raise LakeError(f"pair {scope.pair}: patching puts IT's states into the PT; capture both")
        self._kit, self._scope, self._lens = kit, scope, lens
        contrast = Contrast(kit, scope, self._lens)
        own = records(kit, sibling(kit, scope, "native"), "own")
        self._groups = [contrast.path, own.path]
        self._captures = dict(zip(VARIANTS, contrast.captures, strict=True))
        self._same = {"models": scope.models, "streams": scope.streams, "lens": self._lens}
        names = self._names = scope.names("pt")
        recipe = {
            **self._same,
            "captures": {variant: capture.sha256 for variant, capture in self._captures.items()},
            "heads": {"pt": kit.head_hash(names)},
            "directions": [path.stem for path in self._groups],
            **SIZES,
            "seed": SEED,
            "version": TABLES["patching"].version,
        }
        recipe |= {"probes": choose(kit, names, lens).name} if lens != "raw" else {}
        super().__init__(kit.layout, "patching", recipe)
        self.before, self.runs = (contrast, own), (names[0],)
        self.forwards = (
            10 * SIZES["prompts"] * SIZES["tokens"] * SIZES["layers"]
        )  # a row reads the prompt up to its token
        if not self.path.exists():
            from ...capture.checkpoint.configs import load_config
            from ...capture.edit.replay import find_weights

            load_config(find_weights(kit.layout, names[0], kit.catalog))
            for variant in VARIANTS:
                self._start(variant, 0)

    def finish(self) -> None:
        """Patch layer after layer, those that the directions of the jobs before single out."""
        contrast, own = (read_directions(path, self._kit.layout.files)[0] for path in self._groups)
        conv, mean = contrast["d_conv"][:].astype(np.float64), own["d_mean"][:-1].astype(np.float64)
        random = random_units(range(len(conv)), conv.shape[1], SEED)
        layers = best_layers(contrast["r2_in_sample"][:], conv, mean)
        drop_tables(self._kit.layout, self.name, self._same, keep=self.path)
        if not layers:
            return
        tokens = {variant: first_tokens(capture) for variant, capture in self._captures.items()}
        columns = {name: values[tokens["pt"]] for name, values in self._captures["pt"].columns().items()}
        stored = at_tokens(self._captures["pt"].array("resid"), tokens["pt"])
        host, prefixes = self._kl(stored, columns["prompt_id"]), prefixes_of(self._start("pt", 0), columns)
        model = self._model(layers[0] + 1)
        with bar(f"patching {self._scope.pair}", len(layers) * int(prefixes.lengths.sum())) as progress:
            for layer in layers:
                theirs = at_tokens(self._start("it", layer + 1).states, tokens["it"])
                ours = stored[:, layer + 1]
                added = parts(theirs.astype(np.float64) - ours, conv[layer], mean[layer], random[layer])
                last = np.stack([ours + added[name] for name in PARTS], axis=1).reshape(-1, ours.shape[-1])
                start = self._patched(prefixes, layer + 1, np.repeat(columns["prompt"], len(PARTS)), last)
                kl = np.empty((len(last), model.n_layers), np.float32)
                for rows, resid in _replayed(model, start, progress.advance):
                    at = rows // len(PARTS)
                    whole = np.concatenate([stored[at, : layer + 1], resid], axis=1)
                    kl[rows] = self._kl(whole, columns["prompt_id"][at])
                self._write(columns, layer, kl, host)

    def _start(self, variant: str, boundary: int) -> ReplayStart:
        from ...capture.edit.start import open_start

        return open_start(self._kit.layout, *self._scope.names(variant), boundary)

    def _model(self, boundary: int) -> Model:
        """The PT's blocks from a boundary on, loaded as for the capture."""
        from ...capture.edit.replay import load_late
        from ...capture.edit.start import loaded_as

        kit, capture = self._kit, self._captures["pt"]
        options = loaded_as(capture.manifest["provenance"], capture.path)
        return load_late(kit.layout, self._names[0], boundary, kit.catalog, device=kit.device, **options)

    def _patched(self, prefixes: ReplayStart, boundary: int, prompt: np.ndarray, last: np.ndarray) -> ReplayStart:
        """The prefixes with what enters block `boundary`, the last state of each replaced by that of `last` [rows, d]."""
        states = _Prefixes(self._start("pt", boundary), prompt, prefixes.offset, last.astype(np.float32))
        return replace(prefixes, boundary=boundary, states=states)

    def _kl(self, resid: np.ndarray, prompt_ids: np.ndarray) -> np.ndarray:
        """KL(final || layer) of residuals [n, L+1, d] through the PT's lens, nats: float32 [n, L]."""
        from ...analyze.lens.logit_lens import lens

        kit, names = self._kit, self._names
        if self._lens != "raw":
            resid = choose(kit, names, self._lens).translate(resid, prompt_ids, kit.device)
        none = np.full(len(resid), -1)
        return lens(kit.head(names), resid[:, 1:], none, device=kit.device, js_next=False)["kl_final_layer"]

    def _write(self, columns: dict[str, np.ndarray], layer: int, kl: np.ndarray, host: np.ndarray) -> None:
        """Rows of one patched layer: kl [tokens * parts, L], host [tokens, L], a row group per layer read."""
        known: dict[str, Any] = {name: np.repeat(columns[name], len(PARTS)) for name in LABELS}
        known |= {**self._scope.columns, "variant": "both", "lens": self._lens, "patch_layer": layer}
        known |= {"stream": self._scope.streams["it"], "stream_pt": self._scope.streams["pt"]}
        known["patch"] = np.tile(PARTS, len(host))
        for read in range(kl.shape[1]):
            found = {"kl_final_layer": kl[:, read], "kl_host": np.repeat(host[:, read], len(PARTS))}
            self.add({**known, "layer": read, **found})


@dataclass(frozen=True)
class _Prefixes:
    """States of rows laid end to end: each the first states of a stored prompt, the last of them another.

    `start` is the capture, `prompt` [rows] says whose states a row has, `offset` [rows + 1] where the rows lie, `last`
    [rows, d] how they end.
    """

    start: ReplayStart
    prompt: np.ndarray
    offset: np.ndarray
    last: np.ndarray

    def __getitem__(self, tokens: slice, /) -> np.ndarray:
        row = int(np.searchsorted(self.offset, tokens.start, side="right")) - 1
        first = int(self.offset[row])
        states = self._read(int(self.prompt[row]))[tokens.start - first : tokens.stop - first].copy()
        if tokens.stop == self.offset[row + 1]:
            states[-1] = self.last[row]
        return states

    @cached_property
    def _read(self) -> Callable[[int], np.ndarray]:
        """Reads the stored states of a prompt as far as any row has them; the latest prompts stay in memory."""
        longest = np.zeros(len(self.start.lengths), np.int64)
        np.maximum.at(longest, self.prompt, np.diff(self.offset))

        def read(prompt: int) -> np.ndarray:
            first = int(self.start.offset[prompt])
            return self.start.states[first : first + int(longest[prompt])]

        return lru_cache(PREFIXES)(read)


def best_layers(r2: np.ndarray, *directions: np.ndarray) -> list[int]:
    """Layers with the largest R2 [layers], at most SIZES["layers"], of those that have all directions [layers, d]; ascending."""
    defined = np.isfinite(r2) & np.all([np.isfinite(vectors).all(axis=1) for vectors in directions], axis=0)
    order = np.argsort(np.where(defined, -r2, np.inf), kind="stable")
    return sorted(order[: min(SIZES["layers"], int(defined.sum()))].tolist())


def first_tokens(capture: Capture) -> np.ndarray:
    """Flat tokens of a capture that are patched: the first of the answers of the last prompts that have one, int64."""
    columns = capture.columns()
    at = generated(columns["prompt"], columns["step"])
    answered = np.unique(columns["prompt"][at >= 0])[-SIZES["prompts"] :]
    return np.flatnonzero((at >= 0) & (at < SIZES["tokens"]) & np.isin(columns["prompt"], answered))


def at_tokens(array: States, tokens: np.ndarray) -> np.ndarray:
    """Values of some ascending tokens of an array that is read by slices, [n, ...]."""
    runs = np.split(tokens, np.flatnonzero(np.diff(tokens) != 1) + 1)
    return np.concatenate([array[int(run[0]) : int(run[-1]) + 1] for run in runs])


def prefixes_of(start: ReplayStart, columns: dict[str, np.ndarray]) -> ReplayStart:
    """What is replayed, but for the states: for every part of every token (prompt, position) a row that ends with it."""
    prompt, lengths = (np.repeat(values, len(PARTS)) for values in (columns["prompt"], columns["position"] + 1))
    first = start.offset[prompt]
    rows = [start.token_id[at : at + length] for at, length in zip(first, lengths, strict=True)]
    offset = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    return replace(start, token_id=np.concatenate(rows), offset=offset, lengths=lengths.astype(np.int64))


def _replayed(model: Model, start: ReplayStart, advance: Advance) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows of some prefixes [n], and the residuals at their ends [n, boundaries, d] from the start's boundary on."""
    from ...capture.edit.replay import replay

    ends = np.zeros(len(start.token_id), bool)
    ends[start.offset[1:] - 1] = True
    for piece in replay(model, start, keep=("resid",), logits="none", tokens=ends):
        rows = np.searchsorted(start.offset, piece.tokens, side="right") - 1
        yield rows, piece.arrays["resid"]
        advance(int(start.lengths[rows].sum()))
