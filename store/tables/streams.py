"""What a lake has captured, as questions see it: models and streams, pair by pair."""

import re
from collections.abc import Iterable, Sequence
from itertools import product
from typing import Any

import pandas as pd

from ..artifacts.models import has_model, read_model
from ..artifacts.streams import reads, stream_records
from ..captures.reader import captured_streams
from ..core.errors import LakeError
from ..core.schema import VARIANTS
from ..format.paths import Layout
from .declared import TABLES
from .files import FOREIGN
from .names import Pairs, foreign_captures

PUBLISHED = "published"  # the stream of rows from elsewhere whose texts are not known: it answers rows of every recipe
COLUMNS = ["model", "recipe", "prompts", "stream", "name", "prompt_set", "max_new_tokens", "n_prompts", "written_by"]
KEY = ["prompt_set", "max_new_tokens"]  # what the streams that answer one question have in common
PAIRED = ["pair", "variant", *COLUMNS[:-1]]


def stream_table(layout: Layout, models: Iterable[str] | None = None) -> pd.DataFrame:
    """One row per model (of all, or of some) and stream name it can be asked by, captured or known from foreign tables alone.

    Columns: model, recipe, prompts, stream, name, prompt_set (SHA-256, or "foreign"), max_new_tokens, n_prompts, written_by.
    `stream` is the name tables carry; `name` may be an alias of equal content (IT's teacher stream is its native one).
    """
    sealed = captured_streams(layout, models)
    records = stream_records(layout, {stream for there in sealed.values() for stream in there})
    known = {model: str(read_model(layout, model)["sha256"]) for model in sealed if has_model(layout, model)}
    by_content: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        by_content.setdefault(record["same_as"], []).append(record)
    rows = [
        {
            "model": model,
            "recipe": record["kind"],
            "prompts": record["prompts"],
            "stream": stream,
            "name": record["name"],
            "prompt_set": record["recipe"].get("prompt_set_sha256", ""),
            "max_new_tokens": record["recipe"].get("max_new_tokens", 0),
            "n_prompts": record["n_prompts"],
            "written_by": record["written_by"],
        }
        for model, streams in sorted(sealed.items())
        for stream in sorted(streams)
        for record in by_content.get(stream, ())
        if model not in known or reads(record, known[model])
    ]
    rows.sort(key=lambda row: (row["model"], row["name"]))
    wanted = None if models is None else set(models)
    rows += [_foreign_stream(*names) for names in _foreign_models(layout) if wanted is None or names[0] in wanted]
    return pd.DataFrame(rows, columns=COLUMNS)


def pair_streams(layout: Layout, pairs: Pairs) -> pd.DataFrame:
    """The streams of these pairs' models: the columns of `stream_table` but the last, after pair and variant.

    Of a stream whose texts a pair's model wrote, only what that pair's own model wrote belongs to it.
    """
    streams = stream_table(layout, {model for models in pairs.values() for model in models.values()})
    known = dict(iter(streams.groupby("model")))
    parts = []
    for pair, models in sorted(pairs.items()):
        ours = {v: read_model(layout, model)["sha256"] for v, model in models.items() if has_model(layout, model)}
        for variant, model in models.items():
            if model in known:
                mine = known[model]
                mine = mine[[_is_ours(writers, ours) for writers in mine["written_by"]]]
                parts.append(mine.assign(pair=pair, variant=variant)[PAIRED])
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=PAIRED)


def _is_ours(writers: Sequence[str], ours: dict[str, str]) -> bool:
    """Whether a stream has a pair's own words: each model's, those of its own pt or it, or of one that the lake lacks."""
    parts = [writer.partition(":") for writer in writers]
    return not parts or any(ours.get(role, sha256) == sha256 for role, _, sha256 in parts)


def _foreign_models(layout: Layout) -> list[tuple[str, str]]:
    """(model, stream) of everything that foreign tables hold."""
    found = set()
    for capture in (capture for name in TABLES for capture in foreign_captures(layout, name)):
        if "stream_pt" in capture:
            found |= {(capture["model_pt"], capture["stream_pt"]), (capture["model_it"], capture["stream"])}
        elif "stream" in capture:
            found.add((capture["model"], capture["stream"]))
    return sorted(found)


def _foreign_stream(model: str, stream: str) -> dict[str, Any]:
    """A row of `stream_table`: the recipe is what a stream's name begins with, as for captured ones."""
    recipe, _, prompts = stream.partition("-")
    named = {"model": model, "recipe": recipe, "prompts": prompts, "stream": stream, "name": stream}
    return {**named, "prompt_set": FOREIGN, "max_new_tokens": 0, "n_prompts": 0, "written_by": []}


def history(layout: Layout, streams: pd.DataFrame) -> str:
    """SQL of a column of `pair_lens`: `shared` where both models read an answer by one and the same, `own` where each read its
    own; NULL where streams from elsewhere do not say. `streams` is `pair_streams`."""
    writers = {record["name"]: _writer_of(record) for record in stream_records(layout, set(streams["stream"]))}
    cases = []
    for _, group in streams.groupby("pair"):
        known = {(row.variant, row.stream): row.recipe for row in group.itertuples()}
        others = sorted(name for variant, name in known if variant == "it")
        for (variant, stream), recipe in sorted(known.items()):
            for other in others if variant == "pt" else ():
                if stream in writers and other in writers:
                    found = "shared" if writers[stream] == writers[other] else "own"
                elif PUBLISHED in (recipe, other):
                    continue
                else:
                    found = "shared" if recipe == "teacher" or other.startswith("reverse") else "own"
                cases.append(f"WHEN stream_pt = {sql_text(stream)} AND stream = {sql_text(other)} THEN '{found}'")
    return f"CASE {' '.join(dict.fromkeys(cases))} END" if cases else "NULL::VARCHAR"


def _writer_of(record: dict[str, Any]) -> tuple[Any, ...]:
    """Who wrote the continuations of a stream: a model in a template, or stored texts; nothing where there are none."""
    found = record["recipe"].get("continuation") or {}
    return tuple(found.get(key) for key in ("model_sha256", "template", "outputs"))


def sql_text(value: str) -> str:
    """A text as SQL writes it."""
    return "'" + value.replace("'", "''") + "'"


def same_prompts(
    streams: pd.DataFrame, pair: str, recipe: str, prompts: str | None, variants: Sequence[str] = VARIANTS
) -> dict[str, str]:
    """variant -> stream for the captures of `pair` that answer a question on `recipe`.

    All `variants` must have been captured on the same prompt set with the same continuation budget. LakeError when none
    or several such groups are in the lake; `prompts` picks one: a prompt-set name (or its file) or the beginning of the name of
    one of its streams; several with commas where one alone fits several streams of a model. Rows from elsewhere on the stream
    `published` stand in where nothing else of the recipe is there.
    """
    ours = streams[streams["pair"] == pair]
    if prompts:
        prompts = ",".join(re.sub(r".*/|\.(?:jsonl|csv)$", "", name, flags=re.I) for name in prompts.split(",") if name)
        ours = _named(ours, tuple(prompts.split(",")))
    rows = ours[ours["recipe"].isin([recipe, PUBLISHED])]
    if (rows["recipe"] == recipe).any():
        rows = rows[rows["recipe"] == recipe]
    groups = [group for _, group in rows.groupby(KEY) if set(group["variant"]) == set(variants)]
    if len(groups) != 1 or groups[0]["variant"].duplicated().any():
        have = ", ".join(f"{row.variant}:{row.stream_name}" for row in _renamed(rows)) or "none"
        if not groups and len(rows) and (rows["prompt_set"] == FOREIGN).all():
            raise LakeError(
                f"pair {pair}: this question needs rows of pt and it; there, from elsewhere: {have}",
                repair="bring in the other variant's: `actlake table add TABLE FILE`",
            )
        if not groups:
            known = streams.loc[streams["pair"] == pair, "prompts"].unique()
            named = prompts if prompts in known else known[0] if len(known) == 1 else ""
            who = " and ".join(variants)
            raise LakeError(
                f"pair {pair}: needs sealed captures of {who} on stream {recipe!r}; there: {have}",
                repair=f"run `actlake capture {pair} --stream {recipe}{f' --prompts {named}' if named else ''}`",
            )
        raise LakeError(
            f"pair {pair}: several captures fit stream {recipe!r} ({have})",
            repair=f"pick one with --prompts: {_choices(groups)}",
        )
    return dict(zip(groups[0]["variant"], groups[0]["stream"], strict=True))


def _named(streams: pd.DataFrame, names: tuple[str, ...]) -> pd.DataFrame:
    """The streams of a recipe that belong to those named: read from the same prompts, with the same continuation budget.

    Where several of a model's belong to them, those that are named themselves; rows from elsewhere only when named.
    """
    named = streams["prompts"].isin(names) | streams["name"].str.startswith(names)
    keys = set(zip(streams.loc[named, "prompt_set"], streams.loc[named, "max_new_tokens"], strict=True))
    belongs = [key in keys for key in zip(streams["prompt_set"], streams["max_new_tokens"], strict=True)]
    found = streams[named | (pd.Series(belongs, streams.index) & (streams["prompt_set"] != FOREIGN))]
    chosen = found["name"].str.startswith(names)
    return found[chosen | ~chosen.groupby([found[key] for key in (*KEY, "variant", "recipe")]).transform("any")]


def _renamed(rows: pd.DataFrame) -> Any:
    return rows.rename(columns={"name": "stream_name"}).itertuples()


def _choices(groups: list[pd.DataFrame]) -> str:
    """What `prompts` may be for each of these groups: its prompt set where no other has that, else streams by name."""
    sets = [group["prompts"].iloc[0] for group in groups]
    found: list[str] = []
    for name, group in zip(sets, groups, strict=True):
        several = [list(part["name"]) for _, part in group.groupby("variant") if len(part) > 1]
        alone = [name if sets.count(name) == 1 else group["name"].iloc[0]]
        found += map(",".join, product(*several)) if several else alone
    return " or ".join(found)
