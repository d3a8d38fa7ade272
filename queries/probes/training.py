"""Training probes of the tuned lens from stored residuals.

Every stored chunk is read once, in random order, and no model is loaded. In memory at a time: BUFFER_BYTES of rows,
two blocks of one chunk's tokens, the trainer (4 or 5 times the probes) and the head.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...analyze.lens.tuned_lens import Objective, Trainer, train
from ...analyze.tuned.folds import fold_of
from ...analyze.tuned.recipes import RECIPES, Recipe, Sgd, family_scale
from ...analyze.tuned.shuffle_buffer import Shuffle
from ...store.artifacts.models import read_model
from ...store.artifacts.probes import load_training, read_facts, save_training, write_probes
from ...store.captures.reader import Capture, find_capture
from ...store.core.errors import LakeError
from ...store.core.progress import bar
from ...store.format.partial import Held, pull_of
from ...store.format.paths import Layout
from ..engine.context import Context, all_boundaries
from ..engine.estimate import work_of
from ..engine.job import Job, Stage
from ..engine.passes import run
from .spec import ProbeSpec

BUFFER_BYTES = 384 << 20  # of rows in memory: 7/8 are to train on, the rest to look at
CHECK_TOKENS = 2048  # held-out tokens that a look is drawn from, at most


class Training(Job):
    """Training a set of probes, all folds in one pass of its own over one capture."""

    stage = Stage.PROBES

    def __init__(self, kit: Context, spec: ProbeSpec):
        capture = kit.capture(spec.names)
        all_boundaries(capture, "lens(tuned)")
        if capture.partial and capture.partial.holds.get("resid") != Held():
            raise LakeError(
                f"{capture.path}: this copy lacks residuals that a tuned lens is trained on",
                repair=f"{pull_of(kit.layout.root)} brings the whole capture",
            )
        super().__init__(f"tuned lens {spec.names[0]}", spec.path(kit))
        self._kit, self._spec, self._rows = kit, spec, _Rows(capture, spec.seed, spec.folds)
        self.runs = (spec.names[0],)
        # At most: training may end early, and how many tokens are looked at hangs on the chunks that come first.
        recipe = spec.recipe
        self.forwards = sum(self._rows.trained(spec))
        looks = 2 + len(recipe.start_ridges) + self.forwards // (spec.folds * recipe.batch * recipe.check_every)
        self.checked = looks * sum(min(recipe.look, there) for there in self._rows.checks)

    def finish(self) -> None:
        """Train, going on from where an earlier run was stopped, and seal the result."""
        rows, recipe, seed = self._rows, self._spec.recipe, self._spec.seed
        feeds = [
            Shuffle(rows.blocks(fold), capacity, (seed, fold), rows.dtype)
            for fold, capacity in enumerate(rows.capacity)
        ]
        checks = rows.held_out(recipe.look)
        objective = Objective(self._kit.head(self._spec.names), self._kit.device)
        trainers = []
        for tokens in rows.trained(self._spec):
            steps = max(1, tokens // recipe.batch)
            trainers.append(Trainer(objective, rows.array.shape[1], recipe, steps))
        for trainer, kept in zip(trainers, load_training(self.path), strict=False):
            trainer.restore(*kept)
        with bar(f"train {self.name}", sum(trainer.steps * recipe.batch for trainer in trainers)) as progress:
            progress.advance(sum(trainer.seen for trainer in trainers))
            found = train(
                list(zip(trainers, feeds, checks, strict=True)),
                save=lambda: save_training(self.path, [(trainer.state(), trainer.curve) for trainer in trainers]),
                progress=progress.advance,
            )
        facts = {
            "steps": [trainer.done for trainer in trainers],
            "trained_tokens": [trainer.seen for trainer in trainers],
            "held_out_tokens": [len(check) for check in checks],
            "kl_raw": [trainer.curve[0]["held_out"] for trainer in trainers],
            "kl_tuned": [trainer.best_kl.tolist() for trainer in trainers],
            "curve": [trainer.curve for trainer in trainers],
            "device": torch.device(self._kit.device).type,
            "torch": torch.__version__,
        }
        weight, bias = (np.stack([getattr(p, name).cpu().numpy() for p in found]) for name in ("weight", "bias"))
        write_probes(self._kit.layout, self._spec.record(self._kit), weight, bias, facts)


class _Rows:
    """What of a capture each fold is trained on and what it is looked at with, from one pass over chunks in random order.

    The first position of a prompt counts for neither (METHODS 3.2). LakeError when there are too few prompts for both.
    """

    def __init__(self, capture: Capture, seed: int, folds: int):
        self.array, columns, names = capture.array("resid"), capture.columns(), capture.array("prompt_id")[:]
        fold, after_first = fold_of(names, folds)[columns["prompt"]], columns["position"] > 0
        self._held = [after_first & (fold == k) for k in range(folds)]
        self._train = [after_first & (fold != k) for k in range(folds)]
        self.tokens = [int(mask.sum()) for mask in self._train]
        if not all(mask.any() for mask in [*self._held, *self._train]):
            raise LakeError(
                f"{capture.path}: {len(names)} prompts are too few for a tuned lens: after the split of prompts nothing is left"
                " to train on, or to check with; capture more (20 or more will do)"
            )
        # Bfloat16 in disguise takes half the memory when the disguise is dropped.
        narrow = self.array.array.attrs.get("lossless_cast") == "bfloat16"
        self.dtype = torch.bfloat16 if narrow else torch.float32
        row = self.dtype.itemsize * int(np.prod(self.array.shape[1:]))
        most = BUFFER_BYTES // 8 * 7 // row // (2 * folds - 1)  # while one fold's buffer fills, rows of the others wait
        self.capacity = [max(1, min(there, most)) for there in self.tokens]
        self._room = [max(1, min(CHECK_TOKENS, BUFFER_BYTES // 8 // row // folds))] * folds
        self.checks = [min(room, int(mask.sum())) for room, mask in zip(self._room, self._held, strict=True)]  # at most
        self._kept: list[list[Tensor]] = [[] for _ in range(folds)]
        self._waiting: list[deque[Tensor]] = [deque() for _ in range(folds)]
        self._finite = not (capture.manifest and capture.manifest["variables"]["resid"]["nonfinite"])
        self._chunk = self.array.array.chunks[0]
        order = np.random.default_rng(seed).permutation(-(-capture.n_tokens // self._chunk))
        parts = [slice(chunk * self._chunk, (chunk + 1) * self._chunk) for chunk in order.tolist()]
        # Those first that every fold can be looked at with; the order is random among them and among the rest.
        self._parts = iter(sorted(parts, key=lambda part: not all(mask[part].any() for mask in self._held)))

    def trained(self, spec: ProbeSpec) -> list[int]:
        """Tokens that each fold is trained on at most: of rows that memory does not hold, each once."""
        found = []
        for there, room in zip(self.tokens, self.capacity, strict=True):
            wanted = spec.tokens or spec.recipe.tokens(there, self.array.shape[-1])
            found.append(wanted if room >= there else min(wanted, there))
        return found

    def blocks(self, fold: int) -> Iterator[Tensor]:
        """Rows [n, L+1, d] to train a fold on."""
        waiting = self._waiting[fold]
        try:
            while waiting or self._read():
                if waiting:
                    yield waiting.popleft()
        finally:
            self._waiting[fold] = deque(maxlen=0)  # a fold that has come to its end wants no more

    def held_out(self, look: int = CHECK_TOKENS) -> list[Tensor]:
        """By fold, `look` of the rows held out from it that were met until now, some at least; no more are kept after that."""
        while not all(map(len, self._kept)) and self._read():
            pass
        self._room = [0] * len(self._room)
        met = [torch.cat(kept) for kept in self._kept]
        return [rows[np.sort(np.random.default_rng(len(rows)).permutation(len(rows))[:look])] for rows in met]

    def _read(self) -> bool:
        """Read the next chunk and deal its rows out; False when there is none."""
        part = next(self._parts, None)
        if part is None:
            return False
        block = self.array[part]
        usable = True if self._finite else np.isfinite(block).all((1, 2))
        for fold, waiting in enumerate(self._waiting):
            waiting.append(self._pick(block, self._train[fold][part] & usable))
            if room := self._room[fold]:
                found = self._pick(block, self._held[fold][part] & usable)[:room]
                self._room[fold] -= len(found)
                self._kept[fold] += [found] if len(found) else []
        return True

    def _pick(self, block: np.ndarray, mask: np.ndarray) -> Tensor:
        return torch.from_numpy(block[mask]).to(self.dtype)


def train_probes(
    layout: Layout,
    model: str,
    stream: str,
    recipe: Recipe,
    *,
    tokens: int | None = None,
    seed: int = 0,
    folds: int = 2,
    device: str = "auto",
) -> tuple[Path, dict[str, Any]]:
    """Train probes of a model on the capture whose stream starts with `stream`; returns the set and its manifest.

    A set that is there already is kept. LakeError when there is no such capture or it has too few prompts.
    """
    names = (model, find_capture(layout, model, stream).stem)
    kit = Context(layout, device)
    job = Training(kit, ProbeSpec(names, recipe, tokens, seed, folds))
    if work := work_of(kit, [job]).parts(kit.device).get(Stage.PROBES):
        less = "fewer --tokens take less, and after Ctrl-C the same command goes on"
        replace(work, what=f"training {work.what}", leave_out=less).announce()
    run([job])
    return job.path, read_facts(layout.files, job.path)


def recipe_of(layout: Layout, name: str, model: str, batch: int | None = None, scale: float | None = None) -> Recipe:
    """The recipe of this name for a model, `sgd` with the published scale of its family unless another is given."""
    if name not in RECIPES:
        raise LakeError(f"recipe {name!r}: expected {' or '.join(RECIPES)}")
    given: dict[str, Any] = {} if batch is None else {"batch": batch}
    if name == Sgd.name:
        given["scale"] = scale or family_scale(read_model(layout, model)["class"])
    elif scale is not None:
        raise LakeError(f"recipe {name}: scale is for the recipe sgd")
    return RECIPES[name](**given)
