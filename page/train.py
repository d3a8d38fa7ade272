"""Training from a lake: the method of `actlake.Lake` that gives shuffled batches of activations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..store.captures.manifest import say_warnings
from ..store.captures.reader import find_capture
from ..store.core.errors import LakeError, needs
from ..store.core.schema import VARIANTS
from ..store.tables.names import pair_named, stored_models
from .look import Look, listed

if TYPE_CHECKING:
    from ..store.loader.batches import Batches
    from ..store.loader.torch_batches import TorchBatches


class Train(Look):
    """A lake that models are trained from."""

    @needs()
    def batches(
        self,
        model: str,
        stream: str,
        site: str | Sequence[str] = "resid",
        layer: int | Sequence[int] | None = None,
        batch: int = 4096,
        shuffle: bool = True,
        seed: int = 0,
        pair: str | None = None,
        *,
        where: str = "",
        segment: str | Sequence[str] = (),
        special: bool = False,
        first: bool = False,
        max_norm: float | None = None,
        split: str | None = None,
        validation: float = 0.1,
        split_seed: int = 0,
        normalize: str | None = None,
        dtype: str = "float32",
        output: str = "numpy",
        pin: bool = False,
        buffer: int = 1 << 17,
        drop_last: bool = False,
        rank: int = 0,
        world: int = 1,
        threads: int | None = None,
    ) -> Batches | TorchBatches:
        """Shuffled batches of activations, straight from the stored chunks, to train on; nothing is read before the first.

        `model` and `stream` as in `dataset`. `site` is resid, mlp_out or attn_out, `layer` the block whose output it is, as in
        tables: of resid -1 is the input of block 0, l is boundary l + 1. Of several (None: all layers) a row has an axis each.
        `pair` sets PT's and IT's rows side by side: of one stream token by token, else those of one prompt and step.

        Rows: `where` is SQL about columns of the table `tokens` (`"category = 'FACT' AND step >= 0"`), `segment` who a token
        belongs to; special tokens and position 0 are left out without `special` and `first`, rows whose norm is more than
        `max_norm` times the median too. `split` is train or validation: prompts are held out by the hash of their id, a share of
        `validation`. `normalize`: scale (mean squared norm d_model) or center (the mean taken away first), by statistics of the
        training rows that are kept in the lake.

        Blocks in random order are mixed in a `buffer` of rows (at least four batches; memory: twice that), of which three
        quarters are drawn before more come. The sequence depends on rows, `batch`, `buffer` and `seed` alone. `rank` of `world`
        has its part of each epoch. `dtype` float32 or bfloat16 (NumPy: its bits, uint16); `output` numpy or torch, an
        IterableDataset for `DataLoader(.., batch_size=None)`, `pin` for pinned memory. Each batch has x and where its rows are
        from: prompt, position, step, token. `state_dict` and `load_state_dict` go on in the middle of an epoch. LakeError for
        what is not there, does not fit together, or leaves fewer rows than a batch.
        """
        from ..store.loader.batches import Batches
        from ..store.loader.wanted import Filter, Wanted, check_kind

        check_kind(str, model=model, stream=stream, where=where, **({} if pair is None else {"pair": pair}))
        check_kind(bool, pin=pin)
        if output not in ("numpy", "torch"):
            raise LakeError(f"output {output!r}: expected numpy or torch")
        if pin and output != "torch":
            raise LakeError("pin=True: tensors alone can be pinned; give output='torch'")
        given: Any = layer
        several = isinstance(given, Iterable) and not isinstance(given, str)
        layers = None if given is None else tuple(given) if several else (given,)
        lone = isinstance(site, str), given is not None and not several
        for name, value in (("site", site), ("segment", segment)):
            if not isinstance(value, Iterable):
                check_kind(str, **{name: value})
        wanted = Wanted(
            tuple(listed(site)), layers, lone, batch, shuffle, seed, buffer, dtype, normalize, drop_last, rank, world, threads
        )  # fmt: skip
        chosen = Filter(tuple(listed(segment)), special, first, max_norm, split, validation, split_seed)
        captures, main = self._captures_of(self._model(model), stream, pair)
        tokens = self._tokens_where(captures[main], where) if where else None
        say_warnings(self.layout, captures)
        found = Batches(self.layout, captures, main, wanted, chosen, tokens)
        if output == "numpy":
            return found
        from ..store.loader.torch_batches import TorchBatches

        return TorchBatches(found, pin)

    def _captures_of(self, model: str, stream: str, pair: str | None) -> tuple[list[tuple[str, str]], int]:
        """The captures (model, stream) of a model, or of a pair's, PT first, and which of them the model's is."""
        mine = model, find_capture(self.layout, model, stream).stem
        if pair is None:
            return [mine], 0
        models = pair_named(pair, self.catalog, stored_models(self.layout))
        if model not in models.values() or len(models) < len(VARIANTS):
            names = " and ".join(models.values())
            raise LakeError(f"pair {pair} is {names}; its rows need both, and one of them named first, not {model}")
        same = (
            mine[1] == stream
            and not self.layout.capture(models["pt" if models["it"] == model else "it"], stream).is_dir()
        )
        begins = stream.rpartition("-")[0] if same else stream  # the whole name of one model's own answers
        found = [
            mine if models[role] == model else (models[role], find_capture(self.layout, models[role], begins).stem)
            for role in VARIANTS
        ]
        return found, [models[role] for role in VARIANTS].index(model)

    def _tokens_where(self, capture: tuple[str, str], where: str) -> np.ndarray:
        """The tokens of a capture for which a condition of SQL holds."""
        model, stream = capture
        mine = f"SELECT * FROM tokens WHERE model = '{model}' AND stream = '{stream}'"
        found = self.sql_frame(f"SELECT DISTINCT token FROM ({mine}) AS tokens WHERE ({where}\n)")  # type: ignore[attr-defined]
        return found["token"].to_numpy(np.int64)
