"""Jacobian lenses of a lake: fitted from a model's weights on a stream, or imported from a file in the published format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...analyze.tuned.folds import fold_of
from ...store.artifacts.models import check_head, read_model
from ...store.artifacts.probes import (
    JACOBIAN,
    load_training,
    probes_path,
    read_facts,
    save_training,
    write_probes,
)
from ...store.artifacts.streams import read_stream
from ...store.core.errors import LakeError
from ...store.core.files import human_bytes
from ...store.core.progress import Estimate, bar
from ..engine.context import Context, Names, all_boundaries
from ..engine.estimate import STARTING, speed_of
from .choice import reading

if TYPE_CHECKING:
    from ...analyze.lens.tuned_lens import Probes
    from ...store.artifacts.streams import Stream

VERSION = 1  # raise when fitting the same recipe gives another lens
FEW, MANY, WIDE = 100, 200, 576  # prompts that are fitted on unless said, and from which width on there are more
LOOK = 512  # tokens that a lens is looked at with, at least where there are as many


def fit_jacobian(
    kit: Context,
    names: Names,
    *,
    count: int | None = None,
    skip: int = 16,
    length: int = 128,
    centred: bool = False,
    batch: int | None = None,
    seed: int = 0,
    folds: int = 2,
) -> tuple[Path, dict[str, Any]]:
    """Fit the Jacobian lens of a model on a stream that it was captured on; returns the set and what is on record of it.

    `count` prompts are drawn by `seed`, each cut after `length` tokens; the first `skip` of them are neither source nor target.
    A fold's lens is the mean over the prompts of the others, of one fold over all. `batch` is how many tokens are computed
    together. A fit that was stopped goes on. LakeError without weights, and when too few prompts are long enough.
    """
    record, stream = read_model(kit.layout, names[0]), read_stream(kit.layout, names[1])
    places, fold = _chosen(
        stream, names, count or (MANY if record["d_model"] >= WIDE else FEW), skip, length, seed, folds
    )
    recipe = {
        "model": names[0],
        "kind": JACOBIAN,
        "stream": names[1],
        "stream_sha256": stream.content_sha256,
        "model_sha256": kit.head_hash(names),
        "checkpoint_sha256": record["sha256"],
        "recipe": {
            "name": JACOBIAN, "prompts": len(places), "skip": skip, "length": length, "centred": centred, "dtype": "float32",
        },
        "seed": seed,
        "folds": folds,
        "version": VERSION,
    }  # fmt: skip
    path = probes_path(kit.layout, recipe)
    if not path.exists():
        _fit(kit, names, path, recipe, [stream.tokens[p][:length] for p in places], fold, batch)
    return path, read_facts(kit.layout.files, path)


def _chosen(
    stream: Stream, names: Names, count: int, skip: int, length: int, seed: int, folds: int
) -> tuple[list[int], np.ndarray]:
    """The prompts to fit on, the shortest first, and the fold of each."""
    if not 0 <= skip <= length - 2:
        raise LakeError(
            "tokens that are left out", expected=f"0 to {length - 2}, of {length} that are read", found=skip
        )
    lengths = np.array([min(len(row), length) for row in stream.tokens])
    long = np.flatnonzero(lengths > skip + 1)
    usable = np.random.default_rng(seed).permutation(long)[:count]
    usable = usable[np.argsort(lengths[usable], kind="stable")]
    ids = [stream.prompt_ids[p] for p in usable]
    fold = fold_of(ids, folds) if folds > 1 else np.zeros(len(ids), np.int64)
    held = np.bincount(fold, minlength=folds)
    if (len(ids) - held if folds > 1 else held).min() < 2:
        raise LakeError(
            f"{names[0]} on {names[1]}: {len(long)} of {len(lengths)} prompts are longer than {skip + 1} tokens,"
            f" {len(ids)} of them asked for: too few for a Jacobian lens in {folds} folds",
            repair="capture more or longer ones, or take a smaller --skip, a larger --count, or --folds 1",
        )
    return usable.tolist(), fold


def _fit(
    kit: Context,
    names: Names,
    path: Path,
    recipe: dict[str, Any],
    rows: Sequence[np.ndarray],
    fold: np.ndarray,
    batch: int | None,
) -> None:
    from ...capture.edit.replay import find_weights

    spec, record = find_weights(kit.layout, names[0], kit.catalog), read_model(kit.layout, names[0])
    layers, width, folds = record["n_layers"], record["d_model"], recipe["folds"]
    estimated(kit, names[0], record, rows, folds).announce()

    import torch

    from ...analyze.lens.tuned_lens import Probes
    from ...capture.model.load import load_model
    from ...capture.run.jacobian import JacobianSums, fit, in_flight

    model = load_model(spec, kit.device, "float32")
    check_head(kit.layout, names[0], model.head.norm_weight.numpy(), model.head.unembed)
    sums = JacobianSums(folds, layers, width, model.dtype, kit.device)
    for state, _ in load_training(path):
        sums.restore(state)
    with bar(f"fit Jacobian lens {names[0]}", len(rows) * width, "rows") as progress:
        progress.advance(done_rows(sums.place, width))
        fit(
            model,
            rows,
            fold,
            recipe["recipe"]["skip"],
            sums,
            batch or in_flight(kit.device, layers, width),
            save=lambda: save_training(path, [(sums.state(), [])]),
            progress=progress.advance,
        )
    weight, bias, error = sums.lenses(recipe["recipe"]["centred"])
    of = [fold != k if folds > 1 else fold == k for k in range(folds)]
    found = [Probes(torch.from_numpy(w), torch.from_numpy(b)) for w, b in zip(weight, bias, strict=True)]
    facts: dict[str, Any] = {
        "prompts": [int(mine.sum()) for mine in of],
        "trained_tokens": [sum(len(row) for row, used in zip(rows, mine, strict=True) if used) for mine in of],
        "error": [[None if np.isnan(e) else round(float(e), 6) for e in line] for line in error],
        "device": torch.device(kit.device).type,
        "torch": torch.__version__,
    }
    if folds == 2:  # each is the mean over one half of the prompts
        apart, mean = weight[0] - weight[1], (weight[0] + weight[1]) / 2
        facts["halves"] = [float(np.linalg.norm(a) / np.linalg.norm(m)) for a, m in zip(apart, mean, strict=True)]
    write_probes(kit.layout, recipe, weight, bias, facts | looked_at(kit, names, found))


def done_rows(place: tuple[int, int, int], width: int) -> int:
    """Rows of prompts' J that a fit has, which stands at `place`."""
    start, stop, row = place
    return start * width + (stop - start) * row


def estimated(kit: Context, model: str, record: dict[str, Any], rows: Sequence[np.ndarray], folds: int) -> Estimate:
    """What a fit will take: prompts, tokens, bytes on disk, memory and time. `rows` are the prompts' tokens, the longest last."""
    from ...capture.run.jacobian import GRAPH, in_flight

    layers, width, tokens = record["n_layers"], record["d_model"], sum(map(len, rows))
    blocks = max(0, record["parameters"] - record["vocab"] * width)
    # A forward, and for each unit of the width a backward by activations alone: two operations a weight and token.
    seconds = 2.0 * blocks * tokens * (width + 1) / speed_of(kit.device) + STARTING + 4 * record["parameters"] / 1e9
    size = 4 * folds * layers * width**2
    graph = 4 * GRAPH * layers * width * max(min(tokens, in_flight(kit.device, layers, width)), len(rows[-1]))
    memory = human_bytes(4 * record["parameters"] + 2 * size + graph)
    return Estimate(
        f"fitting the Jacobian lens of {model} on {kit.device} in {memory} of memory",
        size,
        seconds,
        "a smaller --count takes less, and after Ctrl-C the same command goes on",
        {"prompts": len(rows), "tokens": tokens},
    )


def looked_at(kit: Context, names: Names, folds: list[Probes]) -> dict[str, list[float]]:
    """Mean KL(final || layer) in nats and share of the final top token, by boundary but the last: raw, and through a lens.

    On some prompts of a capture, each read by the fold that was not fitted on it, first positions left out. Empty where the
    capture keeps too few residuals.
    """
    import torch

    from ...analyze.lens.logit_lens import lens

    capture = kit.capture(names)
    try:
        all_boundaries(capture, "lens(jacobian)")
    except LakeError:
        return {}
    array, ids = capture.array("resid"), capture.array("prompt_id")[:]
    ends = np.searchsorted(capture.columns()["prompt"], np.arange(len(ids) + 1))
    blocks, of, seen = list[np.ndarray](), list[str](), 0
    for prompt in np.random.default_rng(0).permutation(len(ids)).tolist():
        if seen < LOOK and ends[prompt + 1] - ends[prompt] > 1:
            blocks.append(array[int(ends[prompt]) + 1 : int(ends[prompt + 1])])
            of += [ids[prompt]] * len(blocks[-1])
            seen += len(blocks[-1])
    if not blocks:
        return {}
    resid, prompt_ids = np.concatenate(blocks), np.array(of)
    finite = np.isfinite(resid).all((1, 2))
    resid, prompt_ids = resid[finite], prompt_ids[finite]
    mapped = np.empty_like(resid, order="C")
    for probes, places in reading(folds, prompt_ids):
        mapped[places] = probes.to(kit.device)(torch.from_numpy(resid[places]).to(kit.device)).cpu().numpy()
    facts = dict[str, list[float]]()
    for name, values in (("raw", resid), (JACOBIAN, mapped)):
        found = lens(kit.head(names), values, np.full(len(values), -1), device=kit.device, js_next=False)
        same = found["top1"] == found["top1"][:, -1:]
        facts[f"kl_{name}"] = found["kl_final_layer"][:, :-1].mean(0, dtype=float).tolist()
        facts[f"top1_{name}"] = same[:, :-1].mean(0).tolist()
    return facts
