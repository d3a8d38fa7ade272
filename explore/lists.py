"""What the explorer lists: facts about the lake, and the prompts of a set with numbers of every table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from ..queries.answer.listings import model_table, prompt_table, table_table
from ..queries.rows.index import reads
from ..queries.rows.registry import queries
from ..store.captures.reader import list_captures
from ..store.captures.verify import citation, citation_lines
from ..store.core.columns import Column
from ..store.core.errors import LakeError
from ..store.core.version import __version__
from ..store.tables.declared import TABLES
from ..store.tables.statements import HISTORIED, described
from .packing import packed
from .source import ExplorerSource

STUDY = "https://github.com/yifan1207/PT-IT-Model-Differences"
NUMBERS = 200  # of a prompt, at most: those of other tables are left to SQL
LABELS = (
    "model",
    "variant",
    "stream",
    "stream_pt",
    "lens",
    "history",
    "metric",
    "condition",
)  # that tell numbers apart
FIRST = ("lens", "pair_lens", "delta", "scores")  # tables whose numbers come first
SHORT = {"kl_final_layer", "entropy", "p_target", "js", "block_cos", "value", "kl_pt_it"}


def index(source: ExplorerSource, server: bool, limit: int | None = None) -> bytes:
    """What every page needs: models, captures, views, prompt sets, tables, rows, versions."""
    layout = source.layout
    listed = list_captures(layout)
    sizes = {(row.model, row.stream): row for row in listed.itertuples()}
    captures = []
    for one in source.captures:
        row = sizes[one.model, one.stream]
        named = {"model": one.model, "stream": one.stream, "recipe": one.recipe, "set": one.set, "tokens": one.tokens}
        lines = citation_lines(citation(layout, layout.capture(one.model, one.stream)))
        captures.append({**named, "prompts": row.prompts, "bytes": row.bytes, "cite": lines})
    tables = table_table(layout)[["table", "rows", "files", "bytes"]].to_dict("records")
    about = described()
    columns = {
        name: [[column.name, column.sql_type, column.unit, column.meaning] for column in table.columns]
        for name, table in TABLES.items()
    }
    value = {
        "lake": str(layout) if server else layout.address.rstrip("/").rpartition("/")[2],
        "version": __version__,
        "study": STUDY,
        "server": server,
        "limit": limit,
        "models": model_table(layout).to_dict("records"),
        "captures": captures,
        "unfinished": int((~listed["sealed"].astype(bool)).sum()),
        "views": [
            {
                "name": view.name,
                "recipe": view.recipe,
                "set": view.set,
                "captures": view.captures,
                "history": view.history,
                "pair": view.name in source.kit.pairs,
            }
            for view in source.views
        ],
        "sets": [{"name": one.name, "prompts": len(one.ids)} for one in source.sets],
        "chains": {name: list(models) for name, models in source.kit.catalog.chains.items() if _has(source, models)},
        "tables": [{**table, "about": about[table["table"]][0]} for table in tables],
        "columns": columns,
        "rows": [
            {"row": query.id, "title": query.title, "how": reads(query), "streams": list(query.recipes)}
            for query in queries(source.catalog).values()
        ],
    }
    return packed(value)


def _has(source: ExplorerSource, models: Any) -> bool:
    there = {one.model for one in source.captures}
    return sum(model in there for model in models) > 1


# --- prompts of a set --------------------------------------------------------------------------------------------------


def prompts(source: ExplorerSource, place: int) -> bytes:
    """The prompts of a set: id, category, text, and numbers [prompts] with their label, unit and meaning."""
    seen = source.sets[place]
    texts = _texts(source, place)
    specs, columns = list[dict[str, str]](), list[np.ndarray]()
    for spec, values in numbers(source, place):
        specs.append(spec)
        columns.append(values)
        if len(specs) == NUMBERS:
            break
    value = {
        "name": seen.name,
        "ids": seen.ids,
        "categories": seen.categories,
        "texts": [texts.get(name, "") for name in seen.ids],
        "numbers": specs,
    }
    return packed(value, {"numbers": np.stack(columns) if columns else np.zeros((0, len(seen.ids)), np.float32)})


def _texts(source: ExplorerSource, place: int) -> dict[str, str]:
    """Prompt id -> text: of the prompt set, else of the tokens of some stream."""
    seen = source.sets[place]
    try:
        known = prompt_table(source.layout, source.catalog)
        known = known[(known["set"] == seen.name) & known["text"].notna()]
        found = dict(zip(known["id"], known["text"], strict=True))
    except LakeError:  # the catalog's file of this set is damaged: the tokens say the same
        found = {}
    if found.keys() >= set(seen.ids):
        return found
    for one in source.captures:
        if one.set == place:
            stream = source.stream(one.stream)
            for name, first, start in zip(stream.prompt_ids, stream.offset, stream.starts, strict=False):
                own = range(int(first), int(first) + start)
                found.setdefault(name, "".join(stream.texts[at] for at in own if not stream.special[at]).strip())
    return found


def numbers(source: ExplorerSource, place: int) -> Iterator[tuple[dict[str, str], np.ndarray]]:
    """Numbers of each prompt of a set: lengths, then the mean of every numeric column of every table."""
    seen = source.sets[place]
    at = {name: number for number, name in enumerate(seen.ids)}
    mine = [one for one in source.captures if one.set == place]
    for one in mine:
        stream = source.stream(one.stream)
        for name, unit, meaning, counts in (
            ("prompt tokens", "tokens", "tokens of the prompt as the model reads it", stream.starts),
            ("answer tokens", "tokens", "tokens that follow the prompt", np.diff(stream.offset) - stream.starts),
        ):
            values = np.full(len(at), np.nan, np.float32)
            for prompt, count in zip(stream.prompt_ids, counts, strict=True):
                if prompt in at:
                    values[at[prompt]] = count
            spec = {
                "label": f"{name} · {one.model} · {one.recipe}",
                "unit": unit,
                "meaning": meaning,
                "table": "tokens",
            }
            yield {**spec, "column": name}, values
    streams = {one.stream: one.recipe for one in mine}
    for name in sorted(TABLES, key=lambda name: (FIRST.index(name) if name in FIRST else len(FIRST), name)):
        table = TABLES[name]
        if "prompt_id" in table.names and source.has_rows(name):
            yield from _of_table(source, name, at, streams)


def _of_table(
    source: ExplorerSource, name: str, at: dict[str, int], streams: dict[str, str]
) -> Iterator[tuple[dict[str, str], np.ndarray]]:
    """The mean of each numeric column of one table by prompt, for each combination of labels."""
    table = TABLES[name]
    values = [column for column in table.values if _numeric(column)]
    labels = [label for label in LABELS if label in table.names or (label == "history" and name in HISTORIED)]
    where = ["prompt_id IS NOT NULL"] + ["stream IN (SELECT unnest(?))"] * ("stream" in table.names)
    where += ["step >= 0"] * ("step" in table.names) + ["layer >= 0"] * ("layer" in table.names)
    # Rows of one model are there once for each pair that it is in.
    pair, once = ([], "EXCLUDE (pair, variant)") if "model" in table.names else (["pair"], "")
    means = ", ".join(f'avg("{column.name}"::DOUBLE) AS "{column.name}"' for column in values)
    if not values:
        return
    by = ", ".join(["prompt_id", *pair, *labels])
    found = source.rows(
        f'SELECT {by}, {means} FROM (SELECT DISTINCT * {once} FROM "{name}" WHERE {" AND ".join(where)}) GROUP BY ALL',
        [list(streams)] if "stream" in table.names else [],
    )
    over = " and ".join(
        part for part, there in (("answer tokens", "step"), ("layers", "layer")) if there in table.names
    )
    keys = [*pair, *labels]
    groups = found.groupby(keys, dropna=False, sort=True) if keys else [((), found)]
    for key, rows in groups:
        said = [_label_text(label, value, streams) for label, value in zip(keys, key, strict=True)]
        for column in sorted(values, key=lambda column: column.name not in SHORT):
            filled = np.full(len(at), np.nan, np.float32)
            known = rows[rows["prompt_id"].isin(at)]
            filled[[at[prompt] for prompt in known["prompt_id"]]] = known[column.name].to_numpy(
                np.float32, na_value=np.nan
            )
            if np.isfinite(filled).any():
                yield (
                    {
                        "label": " · ".join([f"{name}.{column.name}", *filter(None, said)]),
                        "unit": "" if column.unit == "1" else column.unit,
                        "meaning": column.meaning + (f"; mean over {over}" if over else ""),
                        "table": name,
                        "column": column.name,
                    },
                    filled,
                )


def _numeric(column: Column) -> bool:
    """Whether a mean of a column says something: ids and texts have none."""
    return column.type in ("float32", "float64", "bool") or (column.type.startswith("int") and bool(column.unit))


def _label_text(label: str, value: Any, streams: dict[str, str]) -> str:
    if pd.isna(value) or value == "both":
        return ""
    return streams.get(str(value), str(value)) if label.startswith("stream") else str(value)
