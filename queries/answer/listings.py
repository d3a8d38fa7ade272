"""Tables about a lake for people: rows, models, prompts, tables, directions."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from ...store.artifacts.directions import read_directions
from ...store.artifacts.models import read_model
from ...store.artifacts.streams import read_stream, stored_prompts, stream_records
from ...store.captures.reader import find_capture
from ...store.core.catalog import load_catalog
from ...store.core.columns import SEGMENTS
from ...store.core.errors import LakeError
from ...store.core.yaml_file import hint
from ...store.format.paths import Layout
from ...store.remote.cache import RemoteFiles
from ...store.tables.declared import TABLES
from ...store.tables.files import stale_files
from ...store.tables.sql import connect
from ...store.tables.streams import same_prompts
from ..engine.context import Context
from ..engine.passes import run
from ..rows.header import Query
from ..rows.index import reads
from ..rows.registry import find, queries
from ..tables.mean_differences import Contrast, records

if TYPE_CHECKING:
    import xarray as xr

DIRECTIONS = {"d_mean": "native", "d_record": "native", "d_conv": "teacher", "d_grad": "teacher"}  # and their streams


class Rows(pd.DataFrame):
    """The rows of the experiment index; `lake.rows.L2(pair="pocket")` answers one."""

    _metadata = ["ask", "catalog"]
    ask: Callable[..., Any] | None
    catalog: Path | None

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_") and name in set(self.get("row", ())) and self.ask is not None:
            return asking(find(name, self.catalog), self.ask)
        return super().__getattr__(name)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self.get("row", ())]


def asking(query: Query, ask: Callable[..., Any]) -> Callable[..., Any]:
    """A method that answers one row: `ask` without its first parameter, documented by the row's header."""
    signature = inspect.signature(ask)

    def method(*values: Any, **named: Any) -> Any:
        return ask(query.id, *values, **named)

    method.__name__ = method.__qualname__ = query.id
    method.__doc__ = query.explained
    method.__signature__ = signature.replace(parameters=list(signature.parameters.values())[1:])  # type: ignore[attr-defined]
    return method


def rows(ask: Callable[..., Any] | None = None, catalog: Path | None = None) -> Rows:
    """Row, title, what it takes beside the store (offline, weights, replay, generate), streams and tables."""
    found = Rows(
        {
            "row": query.id,
            "title": query.title,
            "how": reads(query),
            "streams": ", ".join(query.recipes),
            "tables": ", ".join(dict.fromkeys(want.table for want in query.needs)),
        }
        for query in queries(catalog).values()
    )
    found.ask, found.catalog = ask, catalog
    return found


def model_table(layout: Layout) -> pd.DataFrame:
    """Every model of the lake: name, class, blocks, width, vocabulary, parameters, dtype, where it came from."""
    found = []
    for file in sorted(layout.files.bring(layout.root / "models", "model.json").glob("*/model.json")):
        record = read_model(layout, file.parent.name)
        named = {"blocks": "n_layers", "width": "d_model", "vocabulary": "vocab", "parameters": "parameters"}
        sizes = {name: record.get(key) for name, key in named.items()}
        found.append(
            {
                "model": file.parent.name,
                "class": record["class"],
                **sizes,
                "dtype": record["dtype"],
                "id": record["id"],
            }
        )
    columns = ["model", "class", "blocks", "width", "vocabulary", "parameters", "dtype", "id"]
    return pd.DataFrame(found, columns=columns)


def table_table(layout: Layout) -> pd.DataFrame:
    """Every table: rows that are here (unknown of files that only a remote lake has), files, bytes, and its columns."""
    found = []
    for name, table in TABLES.items():
        files = list(layout.table(name).glob("*.parquet"))
        sizes = [file.stat().st_size for file in files]
        count: int | None = sum(pq.read_metadata(file).num_rows for file in files)
        if isinstance(files_of := layout.files, RemoteFiles):
            there = files_of.below(f"tables/{name}")
            sizes = [files_of.listed[each].size or 0 for each in there]
            count = count if len(files) == len(there) else None
        named = {"table": name, "rows": count, "files": len(sizes), "bytes": sum(sizes)}
        found.append({**named, "columns": ", ".join(table.names)})
    return pd.DataFrame(found).astype({"rows": "Int64"})


def stale_table(layout: Layout) -> pd.DataFrame:
    """Table files that do not count any more: table, file, bytes, why."""
    found = [
        {"table": name, "file": file.name, "bytes": file.stat().st_size, "why": why}
        for name in TABLES
        for file, why in stale_files(layout, name).items()
    ]
    return pd.DataFrame(found, columns=["table", "file", "bytes", "why"])


def text_table(layout: Layout, model: str | None) -> pd.DataFrame:
    """Every text that models wrote freely, or one model did; columns as in the table `outputs`."""
    connection = connect(layout, "SELECT * FROM outputs")
    if model is None:
        return connection.sql("SELECT * FROM outputs").df()
    return connection.execute("SELECT * FROM outputs WHERE model = ?", [model]).df()


def column_table(name: str) -> pd.DataFrame:
    """The columns of a table and what DuckDB calls their types; LakeError for an unknown table."""
    if name not in TABLES:
        raise LakeError(f"unknown table {name!r}; there are {', '.join(TABLES)}{hint(name, TABLES)}")
    return pd.DataFrame(
        {
            "column": column.name,
            "type": column.sql_type,
            "unit": column.unit,
            "meaning": column.meaning,
            "null": column.null,
        }
        for column in TABLES[name].columns
    )


def prompt_table(layout: Layout, catalog: Path | None) -> pd.DataFrame:
    """Every prompt that a stream of the lake holds: set, id, category, text.

    The text is that of the prompt set where the catalog or the lake has the very set, else that of the tokens of a raw
    stream; None where there is neither.
    """
    sets: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for record in stream_records(layout):
        key = (record["prompts"], str(record["recipe"].get("prompt_set_sha256", "")))
        sets.setdefault(key, []).append(record)
    parts = [pd.DataFrame(_prompts(layout, catalog, *key, made)) for key, made in sorted(sets.items())]
    columns = ["set", "id", "category", "text"]
    return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)


def _prompts(
    layout: Layout, catalog: Path | None, name: str, sha256: str, made: list[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    from ...capture.streams.prompts import read_prompts

    known = load_catalog(catalog).prompts
    for file in (known.get(name), stored_prompts(layout, name)):
        if file and Path(file).is_file():
            chosen = read_prompts(file, name, made[0]["n_prompts"])
            if chosen.sha256 == sha256:
                for prompt in chosen.prompts:
                    yield {"set": name, "id": prompt.id, "category": prompt.category, "text": prompt.text}
                return
    raw = next((record for record in made if record["recipe"].get("template") == "raw"), None)
    stream = read_stream(layout, (raw or made[0])["name"])
    for place, (prompt_id, category) in enumerate(zip(stream.prompt_ids, stream.categories, strict=True)):
        first = int(stream.offset[place])
        own = range(first, first + stream.starts[place])
        text = "".join(stream.texts[at] for at in own if not stream.special[at]) if raw else None
        yield {"set": name, "id": prompt_id, "category": category, "text": text}


def directions_of(kit: Context, pair: str, name: str, prompts: str | None = None) -> xr.DataArray:
    """A pair's direction of each layer, float32 [layer, d_model]: unit vectors of IT - PT, in the space of MLP outputs.

    d_mean: mean difference over the tokens of the own answers; d_record: each prompt counted alike; d_conv: along which IT
    converges later, d_grad: the KL gradient, both from IT's answers read by both. Made first where the lake has none.
    LakeError for another name, and where captures lack what it takes.
    """
    import xarray as xr

    if name not in DIRECTIONS:
        raise LakeError(f"direction {name!r}: expected one of {', '.join(DIRECTIONS)}")
    recipe = DIRECTIONS[name]
    scope = kit.scope(pair, same_prompts(kit.streams_of(pair), pair, recipe, prompts), recipe)
    job = records(kit, scope, "own") if recipe == "native" else Contrast(kit, scope, "raw")
    run([job])
    arrays, made = read_directions(job.path, kit.layout.files)
    values, layer = np.asarray(arrays[name][:]), np.asarray(arrays["layer"][:])
    return xr.DataArray(
        values,
        dims=("layer", "d_model"),
        coords={"layer": layer},
        name=name,
        attrs={"pair": pair} | {f"stream_{variant}": name for variant, name in made["streams"].items()},
    )


def token_table(layout: Layout, model: str, stream: str, prompt: str | None) -> pd.DataFrame:
    """What a model read on a stream, a row per token, of one prompt id or of all; LakeError for an unknown prompt."""
    found = read_stream(layout, find_capture(layout, model, stream).stem)
    columns: dict[str, Any] = dict(found.columns)
    place = columns["prompt"]
    named = {
        name: np.asarray(values, object)[place]
        for name, values in (("prompt_id", found.prompt_ids), ("category", found.categories))
    }
    columns |= {"token_text": found.texts, "segment": np.asarray(SEGMENTS, object)[columns["segment"]]}
    order = ("position", "step", "token_id", "token_text", "is_special", "is_continuation", "segment", "turn")
    every = pd.DataFrame({"prompt": place, **named, **{name: columns[name] for name in order}})
    if prompt is None:
        return every
    if prompt not in found.prompt_ids:
        raise LakeError(f"stream {found.name} has no prompt {prompt!r}{hint(prompt, found.prompt_ids)}")
    return every[every["prompt_id"] == prompt].reset_index(drop=True)
