"""What a lake holds: the listings and readers of `actlake.Lake`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import pandas as pd

from ..store.artifacts.models import read_head
from ..store.artifacts.probes import find_probes, probes_table
from ..store.captures.reader import find_capture, list_captures, open_capture, prompts_of
from ..store.core.catalog import Catalog, load_catalog
from ..store.core.errors import LakeError, needs
from ..store.core.files import human_bytes
from ..store.format.paths import Layout
from ..store.tables.names import NAMES_PAIRS, model_named, pair_table, stored_models, stored_pairs
from ..store.tables.streams import stream_table

if TYPE_CHECKING:
    import xarray as xr
    from distributed import Client

    from ..analyze.lens.head import Head
    from ..analyze.lens.tuned_lens import Probes
    from ..explore.inline import PromptView
    from ..queries.engine.context import Context
    from ..queries.engine.passes import Engine


class Look:
    """A lake, its listings, and its arrays. `actlake.open` makes one."""

    def __init__(
        self, url: str | Path | Layout, create: bool = False, catalog: Path | None = None, device: str = "auto"
    ):
        """Open the lake at `url`; `catalog` is the file that says where checkpoints lie, `device` what computes (auto: cuda,
        else mps, else cpu)."""
        self.layout = url if isinstance(url, Layout) else Layout.open(url, create=create)
        self.device, self._catalog = device, catalog
        self._workers: Engine | None = None  # what computes tables, if not this process

    def __repr__(self) -> str:
        captures = self.captures
        models = ", ".join(dict.fromkeys(captures["model"])) or "no model"
        return f"Lake({str(self.layout)!r}: {models}; {len(captures)} captures, {captures['tokens'].sum():,} tokens)"

    def _repr_html_(self) -> str:
        from ..analyze.core.html import section, table

        captures, streams = self.captures.drop(columns="path"), self.streams
        captures["bytes"] = captures["bytes"].map(human_bytes)
        sets = streams.groupby("prompts", sort=False)["n_prompts"].max().reset_index(name="prompts captured")
        return section(
            f"Lake {self.layout}",
            section("Models and captures", table(captures)),
            section("Prompt sets", table(sets)),
            "<div>lake.rows: what can be asked; lake.tables, lake.prompts, lake.models, lake.streams: what there is</div>",
        )

    @cached_property
    def catalog(self) -> Catalog:
        """The catalog in use: models, pairs, prompt sets, streams, profiles by name."""
        return load_catalog(self._catalog)

    @needs()
    def on(self, workers: Client | str | Path) -> Any:
        """This lake, with tables computed by the workers of a dask.distributed scheduler: `lake.on("tcp://HOST:8786").run(...)`.

        `workers` is a Client, a scheduler's address, or its scheduler file. All workers must see the lake at the same path; the
        tables are those that this process would make. LakeError when the scheduler can't be reached, and from `run` and `sql`
        when its workers have another actlake or don't find the lake.
        """
        from ..queries.cluster.scheduler import connect

        client = connect(str(workers)) if isinstance(workers, str | Path) else workers  # before all that takes longer
        from ..queries.cluster.cluster import Cluster

        other = copy(self)
        other._workers = Cluster(client).run
        return other

    # --- listings ----------------------------------------------------------------------------------------------------

    @property
    def captures(self) -> pd.DataFrame:
        """Every capture: model, stream, prompts, tokens, bytes (on disk), sealed, path."""
        return list_captures(self.layout)

    @property
    def models(self) -> pd.DataFrame:
        """Every model: name, class, blocks, width, vocabulary, parameters, dtype, id."""
        from ..queries.answer.listings import model_table

        return model_table(self.layout)

    @property
    def pairs(self) -> pd.DataFrame:
        """The models of every pair that can be asked about: pair, variant, model."""
        return pair_table(stored_pairs(self.catalog, stored_models(self.layout)))

    @property
    def streams(self) -> pd.DataFrame:
        """Every stream that a model was captured on: model, recipe, prompts, stream, name, n_prompts ..."""
        return stream_table(self.layout).drop(columns="written_by")

    @property
    def prompts(self) -> pd.DataFrame:
        """Every captured prompt: set, id, category, text."""
        from ..queries.answer.listings import prompt_table

        return prompt_table(self.layout, self._catalog)

    @property
    def tables(self) -> pd.DataFrame:
        """Every table that SQL can ask: rows, files and bytes that are there, and its columns."""
        from ..queries.answer.listings import table_table

        return table_table(self.layout)

    def stale(self) -> pd.DataFrame:
        """Table files that are never read, as `gc` removes them: file, bytes, and why (another version's, a capture replaced)."""
        from ..queries.answer.listings import stale_table

        return stale_table(self.layout)

    # --- arrays and texts --------------------------------------------------------------------------------------------

    def dataset(
        self,
        model: str,
        stream: str,
        allow_unsealed: bool = False,
        by: str = "layer",
        prompt: str | Sequence[str] | None = None,
    ) -> xr.Dataset:
        """One capture as a lazy xarray.Dataset (dims token, boundary, layer, d_model, k, prompt).

        `model` is MODEL or PAIR/ROLE (pocket-it, pocket/it), `stream` a unique beginning of the stream's name. A dask block is
        one layer of many tokens, or all layers of some with `by="token"`, as analyze.lazy wants it. `prompt` keeps the
        tokens of one prompt, or of some, by id. Raises LakeError when there is no such capture or prompt or it is not
        sealed, CorruptError when damaged bytes are read.
        """
        found = open_capture(
            find_capture(self.layout, self._model(model), stream), allow_unsealed, by, self.layout.files
        )
        return found if prompt is None else prompts_of(found, listed(prompt))

    def tokens(self, model: str, stream: str, prompt: str | None = None) -> pd.DataFrame:
        """What a model read on a stream (named as in `dataset`), a row per token, of one prompt id or of all.

        Columns: prompt, prompt_id, category, position, step, token_id, token_text, is_special, is_continuation, segment, turn.
        LakeError for a prompt that the stream lacks.
        """
        from ..queries.answer.listings import token_table

        return token_table(self.layout, self._model(model), stream, prompt)

    def decode(self, ids: Iterable[int], model: str) -> str:
        """The text of token ids of a model, from the vocabulary in the lake: neither checkpoint nor tokenizer is needed.

        Control tokens are written out. LakeError for an id that the model lacks, and in a lake that keeps no vocabulary of it.
        """
        from ..store.artifacts.models import decode

        return decode(self.layout, self._model(model), ids)

    @needs()
    def head(self, model: str) -> Head:
        """The head of a model, float32: what turns its residuals into logits. LakeError when the lake lacks it."""
        from ..analyze.lens.head import Head

        return Head.from_arrays(*read_head(self.layout, self._model(model)))

    @overload
    def lenses(self) -> pd.DataFrame: ...
    @overload
    def lenses(self, model: str, name: str = "") -> list[Probes]: ...
    @needs()
    def lenses(self, model: str | None = None, name: str = "") -> pd.DataFrame | list[Probes]:
        """The tuned or Jacobian lenses of a model by fold, for analyze.lens and analyze.lazy; without one the table of all.

        `name` is a unique beginning of the set's name, needed if there are several. A fold's lens was not fitted on the
        prompts for which `tuned.folds.fold_of(prompt_ids, folds)` is its number. The table has the held-out KL in nats, raw
        and through the lens, and the error of Jacobian ones. LakeError when there is no such set, CorruptError when it is
        damaged.
        """
        if model is None:
            return probes_table(self.layout)
        from ..queries.probes.choice import load_probes

        return load_probes(find_probes(self.layout, self._model(model), name))

    @needs()
    def directions(self, pair: str | None = None, name: str = "d_mean", prompts: str | None = None) -> xr.DataArray:
        """A direction from PT to IT in each layer, unit vectors [layer, d_model]: d_mean, d_record, d_conv or d_grad.

        Computed from stored arrays where it is not there yet. LakeError when the captures lack what it takes.
        """
        from ..queries.answer.listings import directions_of

        return directions_of(self._context(), pair or self.only_pair(), name, prompts)

    def texts(self, model: str | None = None) -> pd.DataFrame:
        """What models wrote freely (of a model, or of all): condition, prompt set, prompt id, text, tokens ...

        In a notebook the texts of a prompt stand beside each other; `.figure()` draws their lengths by condition.
        """
        from ..explore.inline import TextFrame
        from ..queries.answer.listings import text_table

        return TextFrame(text_table(self.layout, self._model(model) if model else None))

    def prompt(self, prompt_id: str) -> PromptView:
        """One prompt: `lake.prompt("pocket-fact-001").lens(pair="pocket")` shows what each layer would say, `.figure()` draws it.

        Nothing is computed into the lake and no model is loaded. LakeError for a prompt that no capture has.
        """
        from ..explore.inline import PromptView
        from ..explore.source import ExplorerSource

        return PromptView(ExplorerSource(self.layout, self.device, self._catalog), prompt_id)

    def describe(self, capture: str) -> dict[str, Any]:
        """The record of a capture, MODEL/STREAM: what made it, its files by hash, counts, noise floor."""
        from ..store.captures.manifest import read_manifest
        from ..store.captures.reader import split_capture

        model, stream = split_capture(capture)
        return read_manifest(find_capture(self.layout, self._model(model), stream)) or {}

    def only_pair(self) -> str:
        """The lake's pair, when it has only one; else LakeError."""
        models = stored_models(self.layout)
        pairs = list(stored_pairs(self.catalog, models))
        if not pairs and models:
            raise LakeError(f"name a pair: the lake's models ({', '.join(sorted(models))}) are in none; {NAMES_PAIRS}")
        if len(pairs) != 1:
            raise LakeError(f"name a pair: the lake has {', '.join(pairs) or 'none yet'}")
        return pairs[0]

    # --- shared with what is built on it -----------------------------------------------------------------------------

    def _model(self, name: str) -> str:
        """The model that MODEL or PAIR/ROLE names."""
        return model_named(name, self.catalog, stored_models(self.layout))

    def _context(self, device: str | None = None) -> Context:
        from ..queries.engine.context import Context

        return Context(self.layout, device or self.device, self._catalog)

    def _engine(self) -> Engine:
        if self._workers is not None:
            return self._workers
        from ..queries.engine.passes import run

        return run


def listed(value: str | Sequence[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)
