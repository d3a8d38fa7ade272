"""Probes of the tuned lens: which set a question uses, and training one from stored residuals.

Training reads every stored chunk once, in random order, and loads no model. In memory at a time: BUFFER_BYTES of rows,
two blocks of one chunk's tokens, the trainer (4 or 5 times the probes) and the head.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..analyze.recipes import RECIPES, Adam, Recipe, Sgd, family_scale
from ..analyze.shuffle import Shuffle
from ..analyze.split import HELD_OUT, held_out
from ..analyze.tuned import Probes, Trainer, train
from ..store.captures import Capture, find_capture
from ..store.errors import LakeError
from ..store.files import hash_json, read_json
from ..store.layout import Layout, split_model
from ..store.manifest import MANIFEST
from ..store.models import read_model
from ..store.probes import list_probes, load_training, probes_path, read_probes, save_training, write_probes
from ..store.progress import bar
from ..store.tables import stream_table
from .build import Kit, Names, all_boundaries
from .sweep import Job, run

VERSION = 1  # raise when training the same recipe gives other probes
BUFFER_BYTES = 384 << 20  # of rows in memory: 7/8 are shuffled, the rest is the held-out set of the checks
CHECK_TOKENS = 4096  # held-out tokens of a check, as many as the seed took
DEFAULT = Adam()


@dataclass(frozen=True)
class Wish:
    """One set of probes: of which capture, by what recipe. `tokens` in all, or as many as the recipe's steps take."""

    names: Names
    recipe: Recipe
    tokens: int | None = None
    seed: int = 0

    def record(self, kit: Kit) -> dict[str, Any]:
        """Everything that determines the probes."""
        return {
            "pair": self.names[0],
            "variant": self.names[1],
            "stream": self.names[2],
            "capture_sha256": kit.capture(self.names).sha256,
            "model_sha256": kit.head_hash(self.names),
            "recipe": self.recipe.record(),
            "tokens": self.tokens,
            "seed": self.seed,
            "held_out": HELD_OUT,
            "version": VERSION,
        }

    def path(self, kit: Kit) -> Path:
        """Where the set lies: STREAM-RECIPE-KEY.zarr, KEY a hash of its record."""
        pair, variant, stream = self.names
        key = hash_json(self.record(kit))[:8]
        return probes_path(kit.layout, pair, variant, f"{stream}-{self.recipe.name}-{key}")


class Training(Job):
    """Training a set of probes, a pass of its own over one capture."""

    def __init__(self, kit: Kit, wish: Wish):
        capture = kit.capture(wish.names)
        all_boundaries(capture, "lens(tuned)")
        super().__init__(f"tuned lens {wish.names[0]}/{wish.names[1]}", wish.path(kit))
        self._kit, self._wish, self._rows = kit, wish, _Rows(capture, wish.seed)

    def finish(self) -> None:
        """Train, going on from where an earlier run was stopped, and seal the result."""
        rows, recipe = self._rows, self._wish.recipe
        feed = Shuffle(rows.blocks(), rows.capacity, self._wish.seed, rows.dtype)
        check = rows.held()
        tokens = self._wish.tokens or recipe.steps * recipe.batch
        tokens = tokens if feed.whole else min(tokens, rows.tokens)
        head, boundaries = self._kit.head(self._wish.names), rows.array.shape[1]
        trainer = Trainer(head, boundaries, recipe, steps=max(1, tokens // recipe.batch), device=self._kit.device)
        if kept := load_training(self.path):
            trainer.restore(*kept)
        with bar(f"train {self.name}", trainer.steps * recipe.batch) as progress:
            progress.advance(trainer.seen)
            probes = train(
                trainer,
                feed,
                check,
                save=lambda: save_training(self.path, trainer.state(), trainer.curve),
                progress=progress.advance,
            )
        record = self._wish.record(self._kit) | {
            "steps": trainer.done,
            "trained_tokens": trainer.seen,
            "held_out_tokens": len(check),
            "kl_raw": trainer.curve[0]["held_out"],
            "kl_tuned": trainer.best_kl.tolist(),
            "curve": trainer.curve,
            "device": torch.device(self._kit.device).type,
            "torch": torch.__version__,
        }
        write_probes(self.path, probes.weight.cpu().numpy(), probes.bias.cpu().numpy(), record)


class _Rows:
    """What of a capture is trained on and what is held out: blocks of whole chunks, in random order.

    The first position of a prompt counts as neither (METHODS 3.2). LakeError when there are too few prompts for both.
    """

    def __init__(self, capture: Capture, seed: int):
        self.array, columns = capture.array("resid"), capture.columns()
        names = capture.array("prompt_id")[:]
        told, after_first = held_out(names)[columns["prompt"]], columns["position"] > 0
        self._train, self._held_out = after_first & ~told, after_first & told
        self.tokens = int(self._train.sum())
        if not (self.tokens and self._held_out.any()):
            raise LakeError(
                f"{capture.path}: of its {len(names)} prompts {int(held_out(names).sum())} are held out, which leaves nothing to"
                " train on or nothing to check with: capture more prompts (20 or more will do)"
            )
        row = 4 * int(np.prod(self.array.shape[1:]))
        self.capacity = max(1, min(self.tokens, BUFFER_BYTES // 8 * 7 // row))
        self._room = max(1, min(CHECK_TOKENS, BUFFER_BYTES // 8 // row))
        self._kept: list[np.ndarray] = []
        # Bfloat16 in disguise takes half the memory when the disguise is dropped.
        narrow = self.array.array.attrs.get("lossless_cast") == "bfloat16"
        self.dtype = torch.bfloat16 if narrow else torch.float32
        self._finite = not (capture.manifest and capture.manifest["variables"]["resid"]["nonfinite"])
        self._order = np.random.default_rng(seed).permutation(-(-capture.n_tokens // self._chunk))

    @property
    def _chunk(self) -> int:
        return self.array.array.chunks[0]

    def blocks(self) -> Iterator[np.ndarray]:
        """Rows to train on [n, L+1, d]; held-out rows on the way are kept until there are enough."""
        parts = [slice(chunk * self._chunk, (chunk + 1) * self._chunk) for chunk in self._order.tolist()]
        for part in sorted(parts, key=lambda part: not self._held_out[part].any()):  # stable: the order stays random
            rows = self.array[part]
            usable = True if self._finite else np.isfinite(rows).all((1, 2))
            if self._room:
                found = rows[self._held_out[part] & usable][: self._room]
                self._kept.append(found)
                self._room -= len(found)
            yield rows[self._train[part] & usable]

    def held(self) -> np.ndarray:
        """The held-out rows met until now; no more are kept after that."""
        self._room = 0
        return np.concatenate(self._kept)


def train_probes(
    layout: Layout,
    model: str,
    stream: str,
    recipe: Recipe,
    tokens: int | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> tuple[Path, dict[str, Any]]:
    """Train probes of 'PAIR/VARIANT' on the capture whose stream starts with `stream`; returns the set and its manifest.

    A set that is there already is kept. LakeError when there is no such capture or it has too few prompts.
    """
    pair, variant = split_model(model)
    names = (pair, variant, find_capture(layout, model, stream).stem)
    job = Training(Kit(layout, device), Wish(names, recipe, tokens, seed))
    run([job])
    return job.path, read_json(job.path / MANIFEST)


def recipe_of(layout: Layout, name: str, model: str, batch: int | None = None, scale: float | None = None) -> Recipe:
    """The recipe of this name for a model, `sgd` with the published scale of its family unless another is given."""
    if name not in RECIPES:
        raise LakeError(f"recipe {name!r}: expected {' or '.join(RECIPES)}")
    given: dict[str, Any] = {} if batch is None else {"batch": batch}
    if name == Sgd.name:
        given["scale"] = scale or family_scale(read_model(layout, *split_model(model))["class"])
    elif scale is not None:
        raise LakeError(f"recipe {name}: scale is for the recipe sgd")
    return RECIPES[name](**given)


# --- which set -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chosen:
    """The set that a question about one capture uses: its path, and what has to be trained before, if anything."""

    path: Path
    before: tuple[Job, ...]

    @property
    def name(self) -> str:
        """Stands for the set's content in the keys of tables."""
        return self.path.stem

    @cached_property
    def probes(self) -> Probes:
        """The probes, once they are trained; CorruptError when they are damaged."""
        return load_probes(self.path)


def load_probes(path: Path) -> Probes:
    """The probes under `path`, hashed first; CorruptError when they are damaged."""
    weight, bias, _ = read_probes(path)
    return Probes(torch.from_numpy(weight), torch.from_numpy(bias))


def choose(kit: Kit, names: Names) -> Chosen:
    """The probes for a capture's model: of those that were asked for expressly the one trained on most tokens, else the
    default recipe's, trained on the model's native stream of the same prompts if it was captured.

    Sets of another checkpoint don't count. LakeError when nothing is there and nothing can be trained.
    """
    return kit.once(("probes", names), lambda: _choose(kit, names))


def _choose(kit: Kit, names: Names) -> Chosen:
    model = kit.head_hash(names)
    wish = Wish(_native(kit, names), DEFAULT)
    usual = wish.path(kit)
    folder = kit.layout.probes(*names[:2])
    sets = [(path, record) for path, record in list_probes(kit.layout) if path.parent == folder]
    mine = [(record["trained_tokens"], path) for path, record in sets if record["model_sha256"] == model]
    asked = [entry for entry in mine if entry[1] != usual]
    if asked:
        return Chosen(max(asked)[1], ())
    return Chosen(usual, () if usual.exists() else (Training(kit, wish),))


def _native(kit: Kit, names: Names) -> Names:
    """The capture on the stream `native` of the same model and prompts; the one at hand when there is none."""
    streams = stream_table(kit.layout)
    mine = streams[(streams["pair"] == names[0]) & (streams["variant"] == names[1])]
    same = mine[mine["prompt_set"].isin(mine.loc[mine["stream"] == names[2], "prompt_set"])]
    native = sorted(set(same.loc[same["recipe"] == "native", "stream"]))
    return names if not native or names[2] in native else (*names[:2], native[0])
