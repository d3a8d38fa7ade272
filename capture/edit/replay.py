"""Replay: the blocks after a stored boundary run again, with or without edits, on all positions of a capture."""

from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import torch

from ...store.artifacts.models import check_head, read_model
from ...store.artifacts.weights import weights_folder
from ...store.captures.manifest import largest
from ...store.captures.precision import rounded
from ...store.core.catalog import Catalog, ModelSpec
from ...store.core.errors import LakeError
from ...store.core.schema import SITES, TOP_K
from ...store.format.paths import Layout
from ..checkpoint.causes import cause
from ..checkpoint.loading import attention_of
from ..model.hooks import Batch
from ..model.load import Model, stored_weights
from ..model.partial import Donor, entering, load_donor, load_suffix, starting
from ..model.weights_copy import check_here
from ..run.forward import forward
from ..run.reforward import allowed_apart
from .edits import Edit, edited
from .start import ReplayStart, Spans, loaded_as

T = TypeVar("T")
LOGITS = ("topk", "full", "none")
AMPLIFIED = 16  # by how much later blocks may enlarge the share by which a stored residual was rounded


@dataclass(frozen=True)
class _ReplayBatch:
    """The replayed tokens of one batch: indices of its prompts, flat tokens int64 [n] of the capture, arrays [n, ...].

    Arrays are as in a capture: `resid` [n, boundaries, d] from the replay's boundary (or the given ones), `mlp_out` and
    `attn_out` [n, L - boundary, d] of the blocks from the boundary on; float32.
    """

    prompts: list[int]
    tokens: np.ndarray
    arrays: dict[str, np.ndarray]


def load_late(layout: Layout, model: str, boundary: int, catalog: Catalog | None = None, **options: Any) -> Model:
    """Blocks from `boundary` on and the head of a model, from the lake's own weights or where the catalog has them.

    Options are those of `load_suffix`; the dtype is the lake's unless given. One model serves all later boundaries too. A
    hub model must be in the hub's cache. LakeError when there are no weights, or when they are not those that the lake's
    captures were made from.
    """
    spec = find_weights(layout, model, catalog)
    record = read_model(layout, model)
    found = load_suffix(spec, boundary, **{"dtype": record["dtype"], **options})
    check_head(layout, model, found.head.norm_weight.numpy(), found.head.unembed)
    return replace(found, record=record)


def load_mlps(
    layout: Layout, model: str, window: tuple[int, int], catalog: Catalog | None = None, **options: Any
) -> Donor:
    """The MLPs of blocks window[0]..window[1]-1 of a model, found as in `load_late`; nothing else is loaded."""
    spec = find_weights(layout, model, catalog)
    dtype = read_model(layout, model)["dtype"]
    return load_donor(spec, range(*window), **{"dtype": dtype, **options})


def find_weights(layout: Layout, model: str, catalog: Catalog | None) -> ModelSpec:
    """Where the weights of a model are on this machine; LakeError that names the places searched."""
    spec = stored_weights(layout, model)
    if spec is None:
        if catalog is None or model not in catalog.models:
            looked = f"{weights_folder(layout, model)} and {catalog.where if catalog else 'no catalog was given'}"
            raise LakeError(
                f"model {model}: no weights found; looked in {looked}: name the model in a catalog.yaml in the folder you work"
                " in, or put its weights into the lake with `actlake capture --with-weights`"
            )
        spec = catalog.model(model)
    check_here(spec)
    return spec


def replay(
    model: Model,
    start: ReplayStart,
    edits: Sequence[Edit] = (),
    keep: Collection[str] = ("resid", "mlp_out"),
    logits: str = "topk",
    boundaries: Sequence[int] | None = None,
    tokens: np.ndarray | None = None,
    prompts: Collection[int] | None = None,
) -> Iterator[_ReplayBatch]:
    """Run a model's blocks from `start` on, batch by batch in the capture's plan, with edits.

    keep: sites to return (resid, mlp_out, attn_out); logits: 'topk' (topk_id, topk_logit, logsumexp), 'full' or 'none';
    boundaries: those to return, None for all from the start's; prompts, and tokens (bool, one per token of the capture):
    what to return values of. All positions of a prompt run; batches without a wanted token do not. The next batch is
    read while one is computed. Without edits the stored values come out again, bit for bit on the capture's machine unless
    they were rounded (padding holds zeros here: experts of a mixture see other numbers of tokens, which can move a rounding).
    LakeError for a model that does not fit the start or whose first batch, without edits, differs from what is stored; for an
    edit that does not fit the model, or no token.
    """
    _check_fit(model, start)
    plain = not edits and start.as_stored
    if _to_compare(model, start) and not plain:
        _check_same_numbers(model, start)
    sizes, boundaries = _sizes(model, start, keep, logits, boundaries)
    wanted = _wanted(start, tokens, prompts)
    plan = [batch for batch in start.plan if any(wanted[slice(*span)].any() for span in start.spans(batch))]

    def prepare(indices: list[int]) -> tuple[list[int], Spans, np.ndarray]:
        spans = start.spans(indices)
        return indices, spans, start.padded(spans)

    for indices, spans, states in _ahead(plan, prepare):
        arrays = _run(model, start, spans, states, wanted, edits, sizes, boundaries)
        if plain and _to_compare(model, start):
            _compare(model, start, spans, arrays, wanted, boundaries)
        found = [at + np.flatnonzero(wanted[at:stop]) for at, stop in spans]
        there = [prompt for prompt, flat in zip(indices, found, strict=True) if len(flat)]
        yield _ReplayBatch(there, np.concatenate(found), arrays)


def _run(
    model: Model,
    start: ReplayStart,
    spans: Spans,
    states: np.ndarray,
    wanted: np.ndarray,
    edits: Sequence[Edit],
    sizes: dict[str, tuple[int, ...]],
    boundaries: Sequence[int],
) -> dict[str, np.ndarray]:
    """The variables of one batch of a replay, for its wanted tokens."""
    rows, chosen = ([array[slice(*span)] for span in spans] for array in (start.token_id, wanted))
    state = torch.from_numpy(states).to(model.device, model.dtype)
    batch = Batch(rows, 0, model.device, chosen, state)
    with starting(model, start.boundary) as late, entering(late.parts, state), edited(late, edits):
        return forward(late, batch, sizes, boundaries)


_same_numbers: WeakKeyDictionary[Any, set[Path]] = (
    WeakKeyDictionary()
)  # loaded modules -> captures they were compared with


def _to_compare(model: Model, start: ReplayStart) -> bool:
    """True when the model's numbers have not been compared with those of its own capture yet."""
    ours = model.name == start.provenance["model"]
    return start.capture is not None and ours and start.path not in _same_numbers.setdefault(model.hf, set())


def _check_same_numbers(model: Model, start: ReplayStart) -> None:
    """Run the smallest batch of a model's own capture without edits, and compare; LakeError as in `_compare`."""
    assert start.capture is not None
    held, start = start.capture.manifest["boundaries"], start.stored()  # without this replay's changes
    indices = min(start.plan, key=lambda batch: sum(int(start.lengths[prompt]) for prompt in batch))
    spans = start.spans(indices)
    wanted, last = _wanted(start, None, indices), [boundary for boundary in held if boundary > start.boundary][-1:]
    sizes, boundaries = _sizes(model, start, ["resid", "mlp_out"], "topk", last)
    try:
        arrays = _run(model, start, spans, start.padded(spans), wanted, (), sizes, boundaries)
    except LakeError:
        raise
    except Exception as error:
        raise LakeError(
            f"{model.name}: {type(model.hf).__name__} can't be begun at block {start.boundary}: {cause(error)}; its later blocks"
            " need more than the residual (keys of earlier blocks, say), so its captures can't be replayed"
        ) from error
    _compare(model, start, spans, arrays, wanted, boundaries)


def _compare(
    model: Model,
    start: ReplayStart,
    spans: Spans,
    arrays: Mapping[str, np.ndarray],
    wanted: np.ndarray,
    boundaries: Sequence[int],
) -> None:
    """Raise LakeError unless a batch run without edits gives what the model's own capture holds; once per loaded module.

    Other weights, a kernel that computes otherwise, or blocks that read more than the residual show here. Of sites the last
    layer is compared. Allowed is what a re-forward may differ by (run.reforward), and AMPLIFIED times the share by which the
    residual that it began with was rounded.
    """
    capture = start.capture
    assert capture is not None
    manifest = capture.manifest
    last = [boundary for boundary in boundaries if boundary in manifest["boundaries"]][-1:]
    error, allowed = start.rounding, allowed_apart(manifest)
    for name in ("resid", "mlp_out", "logsumexp"):
        if name not in arrays or name not in manifest["sizes"] or (name == "resid" and not last):
            continue
        values, found = capture.array(name), arrays[name]
        if name == "resid":
            place, found = manifest["boundaries"].index(last[0]), found[:, list(boundaries).index(last[0])]
        elif name == "mlp_out":
            place, found = len(manifest["layers"]) - 1, found[:, -1]
        rows = [values[slice(*span)] if name == "logsumexp" else values[slice(*span), place] for span in spans]
        stored = np.concatenate([row[wanted[slice(*span)]] for row, span in zip(rows, spans, strict=True)])
        if name in capture.precision:
            found = rounded(np.ascontiguousarray(found), capture.precision[name])
        apart = float(np.nanmax(np.abs(found - stored), initial=0.0))
        most = allowed[name] + AMPLIFIED * error * largest(manifest, name)
        if apart > most:
            coarse = (
                f"; the residual there was rounded by {100 * error:.2g} %, which may be too coarse to replay"
                * bool(error)
            )
            raise LakeError(
                f"{start.path}: {model.name} as it is loaded now gives other values from boundary {start.boundary} on than are"
                f" stored: {name} differs by up to {apart:.2g}, allowed is {most:.2g}: are its weights, dtype, attention"
                f" kernel and transformers those of the capture, and do its blocks read the residual alone?{coarse}"
            )
    _same_numbers[model.hf].add(start.path)


def replay_whole(model: Model, start: ReplayStart, edits: Sequence[Edit] = (), **options: Any) -> _ReplayBatch:
    """`replay` in one piece, its tokens in the capture's order; for what fits into memory."""
    pieces = list(replay(model, start, edits, **options))
    tokens = np.concatenate([piece.tokens for piece in pieces])
    order = np.argsort(tokens)
    arrays = {name: np.concatenate([piece.arrays[name] for piece in pieces])[order] for name in pieces[0].arrays}
    return _ReplayBatch(sorted(chain.from_iterable(piece.prompts for piece in pieces)), tokens[order], arrays)


def _sizes(
    model: Model, start: ReplayStart, keep: Collection[str], logits: str, boundaries: Sequence[int] | None
) -> tuple[dict[str, tuple[int, ...]], list[int]]:
    """Shapes of what a replay returns, as run.batching has them for a capture, and the boundaries."""
    layers, head = model.n_layers, model.head
    known = range(start.boundary, layers + 1)
    kept = list(known if boundaries is None else boundaries)
    sites = [name for name, site in SITES.items() if not site.inside]
    if unknown := [site for site in keep if site not in sites]:
        raise LakeError(f"replay: no site {unknown[0]!r}; expected {', '.join(sites)}")
    if logits not in LOGITS:
        raise LakeError(f"replay: logits {logits!r}; expected {', '.join(LOGITS)}")
    if wrong := [boundary for boundary in kept if boundary not in known]:
        raise LakeError(
            f"replay from boundary {start.boundary}: no boundary {wrong[0]}; expected {known[0]} to {layers}"
        )
    lengths = {"boundary": len(kept), "layer": layers - start.boundary, "d_model": head.d_model}
    sizes: dict[str, tuple[int, ...]] = {site: SITES[site].shape(lengths) for site in keep}
    k = min(TOP_K, head.vocab)
    if logits == "topk":
        sizes |= {"topk_id": (k,), "topk_logit": (k,), "logsumexp": ()}
    elif logits == "full":
        sizes["logits"] = (head.vocab,)
    return sizes, kept


def _wanted(start: ReplayStart, tokens: np.ndarray | None, prompts: Collection[int] | None) -> np.ndarray:
    """True at the flat tokens to return values of; LakeError when there are none."""
    prompt = np.repeat(np.arange(len(start.lengths)), np.diff(start.offset))
    wanted = np.arange(len(prompt)) < (start.offset[:-1] + start.lengths)[prompt]
    if prompts is not None:
        wanted &= np.isin(prompt, list(prompts))
    if tokens is not None:
        if len(tokens) != len(wanted):
            raise LakeError(f"replay: tokens marks {len(tokens)} tokens, {start.path} has {len(wanted)}")
        wanted &= np.asarray(tokens, bool)
    if not wanted.any():
        raise LakeError(f"replay of {start.path}: no token is wanted; its prompts are 0 to {len(start.lengths) - 1}")
    return wanted


def _check_fit(model: Model, start: ReplayStart) -> None:
    """Raise LakeError unless the model computes as the one did whose residual it gets."""
    dtype, attention = str(model.dtype).removeprefix("torch."), attention_of(model.hf)
    then = loaded_as(start.provenance, start.path)
    for what, ours, theirs in (
        ("width", model.head.d_model, start.states[0:1].shape[-1]),
        ("dtype", dtype, then["dtype"]),
        ("attention", attention, then["attention"]),
    ):
        if ours != theirs:
            raise LakeError(
                f"{start.path}: its residual has {what} {theirs}, {model.name} has {what} {ours}: a replay needs states of one"
                " architecture, and the model loaded as for the capture"
            )


def _ahead(plan: Sequence[list[int]], prepare: Callable[[list[int]], T]) -> Iterator[T]:
    """What `prepare` makes of each batch, the next one in a thread while one is used; there is at least one.

    It should leave torch alone: a second thread's OpenMP workers would spin beside those of the model.
    """
    with ThreadPoolExecutor(1) as pool:
        waiting: deque[Future[T]] = deque()
        for indices in plan:
            waiting.append(pool.submit(prepare, indices))
            if len(waiting) > 1:
                yield waiting.popleft().result()
        yield waiting.popleft().result()
