"""Directions as the explorer shows them: words they point to, where they are strongest, how they agree from layer to layer."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..store.artifacts.directions import read_directions
from ..store.core.errors import LakeError
from .cells import Used
from .packing import packed
from .source import Captured, ExplorerSource

NAMES = {
    "d_mean": "mean difference IT − PT of MLP outputs over answer tokens",
    "d_record": "the same, each prompt counted alike",
    "d_conv": "along which IT converges later than PT",
    "d_grad": "gradient of KL to the final layer",
}
WORDS = 15  # up and down, a layer
PLACES = 12  # tokens with the largest projection, a layer and end
ROOM = 1 << 29  # bytes of activations that are read for projections


class Vectors:
    """The directions that the lake holds; none is computed."""

    def __init__(self, source: ExplorerSource):
        self._source = source

    @cached_property
    def found(self) -> list[dict[str, Any]]:
        """Every direction: pair, name, file, streams."""
        found, layout = [], self._source.layout
        for pair, models in self._source.kit.pairs.items():
            if len(models) < 2:
                continue
            for path in sorted(layout.directions(models).glob("*.zarr")):
                arrays, recipe = read_directions(path, layout.files)
                named = {"pair": pair, "kind": recipe["kind"], "streams": recipe.get("streams", {}), "path": path}
                found += [{**named, "name": name} for name in NAMES if name in arrays]
        return found

    def index(self) -> bytes:
        """What directions there are."""
        return packed(
            {
                "directions": [
                    {
                        **{key: one[key] for key in ("pair", "kind", "name", "streams")},
                        "key": one["path"].stem,
                        "about": NAMES[one["name"]],
                    }
                    for one in self.found
                ]
            }
        )

    def one(self, number: int) -> bytes:
        """A direction: by layer its words up and down, the tokens it is strongest at; cosines between layers; stability."""
        one = self.found[number]
        vectors, layers = _vectors(one["path"], one["name"], self._source)
        models = self._source.kit.models(one["pair"])
        word, used = self._source.words(models["it"]), Used()
        arrays: dict[str, Any] = {"cosines": vectors @ vectors.T}
        others = []
        for at, other in enumerate(self.found):
            if at != number and other["pair"] == one["pair"] and other["streams"] == one["streams"]:
                theirs, places = _vectors(other["path"], other["name"], self._source)
                if theirs.shape == vectors.shape and np.array_equal(places, layers):
                    others.append({"name": other["name"], "kind": other["kind"]})
                    arrays[f"with.{len(others) - 1}"] = (theirs * vectors).sum(1)
        ids, effects = self._words_of(vectors, (models["it"], ""))
        arrays |= {"words": used.places(ids), "effects": effects}
        strongest, note = self._strongest(vectors, layers, one, used)
        arrays |= strongest.pop("arrays")
        value = {
            **{key: one[key] for key in ("pair", "kind", "name", "streams")},
            "key": one["path"].stem,
            "about": NAMES[one["name"]],
            "layers": layers.tolist(),
            "others": others,
            "notes": [note] if note else [],
            **strongest,
            "stability": self._stability(one),
        }
        return packed({**value, "texts": [word(token) for token in used.tokens]}, arrays)

    def _words_of(self, vectors: np.ndarray, names: tuple[str, str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids [layers, 2 WORDS], most raised first, most lowered last, and what a unit of the direction adds to their logits,
        relative to the mean over the vocabulary, through the head's norm weights (the norm's scale left out)."""
        arrays = self._source.kit.arrays(names)[0]
        real = np.flatnonzero(arrays["real_token"])
        unembed, norm = arrays["unembed"], np.asarray(arrays["norm_weight"], np.float32)
        effects = (vectors * norm) @ np.asarray(unembed, np.float32)[real].T
        effects -= effects.mean(1, keepdims=True)
        count = min(WORDS, len(real) // 2)
        order = np.argsort(-effects, axis=1, kind="stable")
        chosen = np.concatenate([order[:, :count], order[:, -count:]], axis=1)
        return real[chosen], np.take_along_axis(effects, chosen, 1).astype(np.float32)

    def _strongest(
        self, vectors: np.ndarray, layers: np.ndarray, one: dict[str, Any], used: Used
    ) -> tuple[dict[str, Any], str]:
        """The tokens at whose MLP output the projection is largest and smallest, of the IT's capture."""
        name = one["streams"].get("it", "")
        models = self._source.kit.models(one["pair"])
        captured = [each for each in self._source.captures if each.model == models["it"] and each.stream == name]
        nothing: dict[str, Any] = {"arrays": {}, "capture": None, "prompts": []}
        if not captured:
            return nothing, "the capture that this direction was computed from is not among those shown"
        capture = self._source.kit.capture((captured[0].model, captured[0].stream))
        if "mlp_out" not in capture:
            return nothing, "its capture kept no MLP outputs: no projections"
        array, stream = capture.array("mlp_out"), self._source.stream(name)
        tokens = min(array.shape[0], max(1, ROOM // (4 * array.shape[2])))
        note = "" if tokens == array.shape[0] else f"projections of the first {tokens:,} of {array.shape[0]:,} tokens"
        answer = np.flatnonzero(stream.columns["step"][:tokens] >= 0)
        if not len(answer):
            answer = np.arange(tokens)
        places, values = [], []
        try:
            for vector, layer in zip(vectors, layers.tolist(), strict=True):
                along = (np.asarray(array[:tokens, layer], np.float32) @ vector)[answer]
                order = np.argsort(-along, kind="stable")
                order = np.concatenate([order[:PLACES], order[-min(PLACES, len(order) // 2) :]])
                places.append(answer[order])
                values.append(along[order])
        except LakeError as error:  # a copy of a part of the lake
            return nothing, f"no projections: {error}"
        at = np.stack(places)
        ids, prompt = stream.columns["token_id"], stream.columns["prompt"]
        following = np.minimum(at + 1, len(ids) - 1)
        arrays = {
            "prompt": prompt[at].astype(np.int64),
            "position": stream.columns["position"][at].astype(np.int64),
            "reads": used.places(ids[at]),
            "next": used.places(ids[following]),
            "along": np.stack(values).astype(np.float32),
        }
        return {
            "arrays": arrays,
            "capture": captured[0].number,
            "view": self._view(one["pair"], captured[0]),
            "prompts": list(stream.prompt_ids),
        }, note

    def _view(self, pair: str, captured: Captured) -> int | None:
        """The view that a capture is looked at in."""
        views = self._source.views
        return next(
            (n for n, view in enumerate(views) if view.name == pair and captured.number in view.captures.values()), None
        )

    def _stability(self, one: dict[str, Any]) -> list[list[Any]]:
        """Layer, mean and lowest cosine of resamples with all records, as the table `directions` has them (of d_mean)."""
        if one["name"] not in ("d_mean", "d_record"):
            return []
        found = self._source.rows(
            "SELECT layer, avg(value) AS mean, quantile_cont(value, 0.05) AS low FROM directions WHERE pair = ? AND kind ="
            " 'stability' AND name = 'resample' AND stream = ? GROUP BY layer ORDER BY layer",
            [one["pair"], one["streams"].get("it", "")],
        )
        return found.to_numpy().tolist()


def _vectors(path: Path, name: str, source: ExplorerSource) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors [layers, d_model] of the layers that have one, and these layers."""
    arrays, _ = read_directions(path, source.layout.files)
    values = np.asarray(arrays[name][:], np.float32)
    layers = np.asarray(arrays["layer"][:]) if "layer" in arrays else np.arange(len(values))
    there = np.isfinite(values).all(1) & (np.abs(values).sum(1) > 0)
    return values[there], layers[there]
