"""Lake: the store and the questions under one name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import pandas as pd

from .store.artifacts.models import read_head
from .store.artifacts.probes import find_probes
from .store.captures.reader import find_capture, list_captures, open_capture
from .store.core.errors import LakeError
from .store.core.files import human_bytes
from .store.format.paths import Layout, split_model
from .store.tables.sql import check_select, connect, interruptible, sql_error, stream_table, tables_in

if TYPE_CHECKING:
    import xarray as xr
    from distributed import Client

    from .analyze.lens.head import Head
    from .analyze.lens.tuned_lens import Probes
    from .queries.answer.answer import Answer


class Lake:
    """Models, streams, captures and tables in a folder or at a URL, and the questions that can be asked of them."""

    def __init__(self, url: str | Path, create: bool = False, catalog: Path | None = None, device: str = "auto"):
        """Open the lake at `url`; `catalog` is the file that says where checkpoints lie, for questions about weights, and
        `device` what computes (auto: cuda, else mps, else cpu)."""
        self.layout, self._catalog, self.device = Layout.open(url, create=create), catalog, device
        self._engine: dict[str, Any] = {}  # what computes tables, if not this process

    def __repr__(self) -> str:
        captures = self.captures
        pairs = ", ".join(dict.fromkeys(captures["pair"])) or "no pair"
        return f"Lake({str(self.layout)!r}: {pairs}; {len(captures)} captures, {captures['tokens'].sum():,} tokens)"

    def _repr_html_(self) -> str:
        from .store.core.html import section, table

        captures, streams = self.captures.drop(columns="path"), self.streams
        captures["bytes"] = captures["bytes"].map(human_bytes)
        sets = streams.groupby("prompts", sort=False)["n_prompts"].max().reset_index(name="prompts captured")
        return section(
            f"Lake {self.layout}",
            section("Models and captures", table(captures)),
            section("Prompt sets", table(sets)),
            "<div>lake.rows: what can be asked; lake.tables, lake.prompts, lake.models, lake.streams: what there is</div>",
        )

    def on(self, client: Client | str | Path) -> Lake:
        """This lake, with tables computed by the workers of a dask.distributed scheduler: `lake.on("tcp://HOST:8786").run(...)`.

        `client` is a Client, a scheduler's address, or its scheduler file. All workers must see the lake at the same path; the
        tables are those that this process would make. LakeError when the scheduler can't be reached, and from `run` and `sql`
        when its workers have another actlake or don't find the lake.
        """
        from .queries.cluster.scheduler import connect

        known = connect(str(client)) if isinstance(client, str | Path) else client  # before all that takes longer
        from .queries.cluster.cluster import Cluster

        other = copy(self)
        other._engine = {"engine": Cluster(known).run}
        return other

    @property
    def captures(self) -> pd.DataFrame:
        """Every capture: pair, variant, stream, prompts, tokens, bytes (on disk), sealed, path."""
        return list_captures(self.layout)

    @property
    def models(self) -> pd.DataFrame:
        """Every model: name, class, blocks, width, vocabulary, parameters, dtype, id."""
        from .queries.answer.listings import model_table

        return model_table(self.layout)

    @property
    def streams(self) -> pd.DataFrame:
        """Every stream that a model was captured on: pair, variant, recipe, prompts, stream, name, n_prompts ..."""
        return stream_table(self.layout)

    @property
    def prompts(self) -> pd.DataFrame:
        """Every captured prompt: set, id, category, text."""
        from .queries.answer.listings import prompt_table

        return prompt_table(self.layout, self._catalog)

    @property
    def tables(self) -> pd.DataFrame:
        """Every table that SQL can ask: rows, files and bytes that are there, and its columns."""
        from .queries.answer.listings import table_table

        return table_table(self.layout)

    @property
    def rows(self) -> pd.DataFrame:
        """Every row of the experiment index: row, title, how, streams, tables; `lake.rows.L2(pair="pocket")` answers one."""
        from .queries.answer.listings import rows

        return rows(self.run, self._catalog)

    def capture(
        self,
        model: str,
        stream: str,
        allow_unsealed: bool = False,
        by: str = "layer",
        prompt: str | Sequence[str] | None = None,
    ) -> xr.Dataset:
        """One capture as a lazy xarray.Dataset (dims token, boundary, layer, d_model, k, prompt).

        `model` is 'PAIR/pt' or 'PAIR/it', `stream` a unique beginning of the stream's name. A dask block is one layer of
        many tokens, or all layers of some with `by="token"`, as the functions of analyze.lazy want it. `prompt` keeps the
        tokens of one prompt, or of some, by id. Raises LakeError when there is no such capture or prompt or it is not
        sealed, CorruptError when damaged bytes are read.
        """
        from .store.captures.reader import prompts_of

        found = open_capture(find_capture(self.layout, model, stream), allow_unsealed, by, self.layout.files)
        return found if prompt is None else prompts_of(found, [prompt] if isinstance(prompt, str) else prompt)

    def directions(self, pair: str | None = None, name: str = "d_mean", prompts: str | None = None) -> xr.DataArray:
        """A direction from PT to IT in each layer, unit vectors [layer, d_model]: d_mean, d_record, d_conv or d_grad.

        Computed from stored arrays where it is not there yet. LakeError when the captures lack what it takes.
        """
        from .queries.answer.listings import directions_of
        from .queries.engine.context import Context

        return directions_of(Context(self.layout, self.device, self._catalog), pair or self.only_pair(), name, prompts)

    def head(self, model: str) -> Head:
        """The head of 'PAIR/VARIANT', float32: what turns its residuals into logits. LakeError when the lake lacks it."""
        from .analyze.lens.head import Head

        return Head.from_arrays(*read_head(self.layout, *split_model(model)))

    def decode(self, ids: Iterable[int], model: str) -> str:
        """The text of token ids of 'PAIR/VARIANT', from the vocabulary in the lake: neither checkpoint nor tokenizer is needed.

        Control tokens are written out. LakeError for an id that the model lacks, and in a lake that keeps no vocabulary of it.
        """
        from .store.artifacts.vocab import decode

        return decode(self.layout, *split_model(model), ids)

    def tokens(self, model: str, stream: str, prompt: str | None = None) -> pd.DataFrame:
        """What 'PAIR/VARIANT' read on a stream (named as in `capture`), a row per token, of one prompt id or of all.

        Columns: prompt, prompt_id, category, position, step, token_id, token_text, is_special, is_continuation. LakeError for a
        prompt that the stream lacks.
        """
        from .queries.answer.listings import token_table

        return token_table(self.layout, model, stream, prompt)

    def probes(self, model: str, name: str = "") -> list[Probes]:
        """Tuned-lens probes of 'PAIR/VARIANT' by fold, for lens.logit_lens and analyze.lazy.

        `name` is a unique beginning of the set's name, needed if there are several. A fold's probes were not trained on the
        prompts for which `tuned.folds.fold_of(prompt_ids, folds)` is its number.
        LakeError when there is no such set, CorruptError when it is damaged.
        """
        from .queries.probes.choice import load_probes

        return load_probes(find_probes(self.layout, model, name))

    def sql(self, text: str, compute: bool = True, device: str | None = None) -> duckdb.DuckDBPyRelation:
        """Answer one SELECT over the lake's tables; missing tables are computed first, for every sealed capture.

        What that takes is said before it starts; with `compute=False` only what is there is read, and what is missing said.
        Returns a DuckDB relation (`.df()` for pandas). The connection reads the lake's tables only. Raises LakeError for SQL
        that is wrong, writes, or reaches for anything else.
        """
        connection = self._connection(text, compute, device)
        try:
            return connection.sql(text)
        except duckdb.Error as error:
            raise sql_error(error, self.layout) from error

    def sql_frame(self, text: str, limit: int = 0, compute: bool = True, device: str | None = None) -> pd.DataFrame:
        """What `sql` answers as a pandas DataFrame of `limit` rows at most (0: all); Ctrl-C stops the query."""
        connection = self._connection(text, compute, device)

        def read() -> pd.DataFrame:
            found = connection.sql(text)
            return (found.limit(limit) if limit else found).df()

        try:
            return interruptible(connection, read)
        except duckdb.Error as error:
            raise sql_error(error, self.layout) from error

    def _connection(self, text: str, compute: bool, device: str | None) -> duckdb.DuckDBPyConnection:
        """What answers a SELECT, its tables computed."""
        check_select(text)
        names = tables_in(text)
        if names - {"captures", "streams"}:
            from .queries.makers import ensure_all

            ensure_all(self.layout, names, device or self.device, self._catalog, compute=compute, **self._engine)
        try:
            return connect(self.layout, text)
        except duckdb.Error as error:
            raise sql_error(error, self.layout) from error

    def run(
        self,
        row: str,
        pair: str | Sequence[str] | None = None,
        prompts: str | None = None,
        device: str | None = None,
        generate: bool = True,
        probes: bool = True,
    ) -> Answer:
        """Answer a row of the experiment index from the store, computing missing tables first.

        `pair` may be left out in a lake of one pair; several pairs are pooled (the mean of their means). `prompts` picks among
        several captured prompt sets. `generate` and `probes` say whether models may write, and probes may be trained, for
        what is not there: without, the row does without it or is refused. Returns an Answer: `.table` (estimates with 95 %
        intervals), `.figure()`, `.sql`, `.published`. Raises LakeError for an unknown row or captures that are not there.
        """
        from .queries.answer.asking import answer
        from .queries.rows.registry import find

        query = find(row, self._catalog)
        return answer(
            self.layout,
            query,
            pair or self.only_pair(),
            prompts,
            device or self.device,
            catalog=self._catalog,
            generate=generate,
            probes=probes,
            **self._engine,
        )

    def only_pair(self) -> str:
        """The lake's pair, when it has only one; else LakeError."""
        pairs = sorted({*self.captures["pair"], *stream_table(self.layout)["pair"]})
        if len(pairs) != 1:
            raise LakeError(f"name a pair: the lake has {', '.join(pairs) or 'none yet'}")
        return pairs[0]
