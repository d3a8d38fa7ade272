"""Streams that another engine wrote: token ids per prompt, captured teacher-forced and held against the model's own choice."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..capture.checkpoint.configs import load_config
from ..capture.model.load import context_of, load_model
from ..capture.run.capture import Result, capture, find_sealed
from ..capture.streams.source import check_prompts
from ..store.artifacts.models import has_model, read_model
from ..store.artifacts.streams import read_stream, write_stream
from ..store.captures.manifest import read_manifest
from ..store.captures.reader import Capture
from ..store.core.catalog import Catalog
from ..store.core.errors import LakeError
from ..store.core.files import explain_full_disk, hash_file
from ..store.format.paths import Layout, check_name
from .client import short
from .found import TokenRow, ids_of
from .importing import keep_model, model_for, new_stream

WRITTEN = "written"  # the kind of a stream that another engine wrote
LONGEST = 1 << 24  # characters of a line
IDS = ("id", "prompt_id", "request_id", "custom_id")


@dataclass(frozen=True)
class Written:
    """A stream of another engine, captured: the capture, its continuation tokens, and how many of them the model itself would not
    have chosen (`first`: prompts whose very first one is such), None where the capture keeps no logits."""

    result: Result
    stream: str
    tokens: int
    other: int | None
    first: int | None


def import_tokens(
    layout: Layout,
    catalog: Catalog,
    file: Path,
    model: str,
    engine: str = "",
    settings: Mapping[str, str] | None = None,
    name: str | None = None,
    profile: str = "full",
    device: str = "auto",
    dtype: str = "auto",
    batch: int = 16,
) -> Written:
    """Make a stream of what an engine wrote (.jsonl or .parquet: prompt_token_ids, token_ids), and capture the model on it.

    Engine and settings stand in the stream's recipe. Raises LakeError for rows that hold no ids, ids that the model lacks, and
    all that a capture is refused for.
    """
    given = model_for(layout, catalog, model, dtype)
    rows = list(read_tokens(file))
    if not rows:
        raise LakeError(f"{file}: has no rows")
    limit = context_of(load_config(given.spec))
    check_prompts([row.tokens.tolist() for row in rows], [f"{file}: {row.name}" for row in rows], 0, limit, given.vocab,
                  given.tokenizer, given.spec.name)  # fmt: skip
    facts = {"format": "tokens", "sha256": hash_file(file), "engine": engine, "settings": dict(settings or {})}
    made = new_stream(given, rows, WRITTEN, check_name(name or file.stem, "prompt set"), facts)
    wanted, spec = catalog.profile(profile), given.spec
    with explain_full_disk(f"importing {file} into {layout}"):
        stored = write_stream(layout, made)
        if path := find_sealed(layout, spec.name, stored, given.record, wanted, {}):
            manifest = read_manifest(path) or {"bytes": 0}
            result = Result(path, True, True, made.n_tokens, manifest["bytes"], 0.0)
        else:
            loaded = load_model(spec, device, dtype)
            if has_model(layout, spec.name):
                loaded = replace(loaded, record=read_model(layout, spec.name))
            result = capture(layout, loaded, stored, wanted, batch)
            keep_model(layout, given, device, dtype)
    return Written(result, stored, *own_choice(layout, result.path))


def read_tokens(file: Path) -> Iterator[TokenRow]:
    """The rows of a .jsonl or .parquet file: prompt_token_ids, token_ids or outputs[0].token_ids, and names of rows."""
    for number, row in enumerate(_rows(file)):
        where = f"{file}: row {number}"
        outputs = row.get("outputs")
        output = outputs[0] if isinstance(outputs, list) and outputs and isinstance(outputs[0], dict) else row
        prompt, written = row.get("prompt_token_ids"), output.get("token_ids")
        if prompt is None and ("prompt_token_ids" in row or written is None):
            has = "prompt_token_ids is null" if "prompt_token_ids" in row else ", ".join(row)[:80] or "an empty row"
            raise LakeError(f"{where}: {has}", expected="prompt_token_ids, and token_ids of what was written")
        read = [whole([] if one is None else one, where) for one in (prompt, written)]
        parts = [ids_of(one, where) for one in read if len(one)]
        if not parts:
            raise LakeError(f"{where}: no token ids")
        start = len(read[0]) or 1
        name = next((row[key] for key in IDS if row.get(key) is not None), f"{number:06d}")
        yield TokenRow(str(name), np.concatenate(parts), start)


def whole(values: Any, where: str) -> np.ndarray:
    """Token ids as int64; LakeError for anything but a list of whole numbers."""
    if not isinstance(values, list) or not all(type(one) is int for one in values):
        raise LakeError(f"{where}: {short(str(values)[:60])}", expected="a list of token ids, whole numbers")
    try:
        return np.asarray(values, dtype=np.int64)
    except OverflowError as error:
        raise LakeError(f"{where}: token ids too large") from error


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    if not file.is_file():
        raise LakeError(
            f"{file}: {'a folder' if file.is_dir() else 'no such file'}", expected="a .jsonl or .parquet file"
        )
    if file.suffix == ".parquet":
        try:
            for batch in pq.ParquetFile(file).iter_batches(1024):
                yield from batch.to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise LakeError(f"{file}: can't be read ({str(error).splitlines()[0][:160]})") from error
        return
    if file.suffix != ".jsonl":
        raise LakeError(f"{file}: {file.suffix or 'no suffix'}", expected=".jsonl or .parquet")
    with file.open("rb") as opened:
        number = 0
        while line := opened.readline(LONGEST):
            number += 1
            try:
                row = json.loads(line) if len(line) < LONGEST else None
            except (ValueError, RecursionError) as error:
                raise LakeError(f"{file}: line {number} is no JSON ({str(error)[:80]})") from error
            if not isinstance(row, dict):
                raise LakeError(f"{file}: line {number}", expected="a JSON object, below 16 MiB")
            yield row


def said(tokens: int, other: int | None, first: int | None) -> str:
    """How many tokens of another engine's are not the model's own choice, as a sentence; nothing where no logits are kept."""
    if other is None:
        return ""
    return (
        f"{other:,} of {tokens:,} written tokens ({other / max(tokens, 1):.1%}) are not the model's own greedy choice,"
        f" {first:,} of them the first of their prompt"
    )


def own_choice(layout: Layout, path: Path) -> tuple[int, int | None, int | None]:
    """Continuation tokens of a capture, and how many of them, and of the first ones, are not the largest logit before them."""
    stream = read_stream(layout, path.stem)
    stored, step = Capture(path, lake=layout.files), stream.columns["step"]
    places = np.flatnonzero(step >= 0)
    if "topk_id" not in stored and "logits" not in stored:
        return len(places), None, None
    ids, other = stream.columns["token_id"], np.zeros(stream.n_tokens, dtype=bool)
    rows = stored.manifest["shard_tokens"]
    for start in range(0, stream.n_tokens, rows):
        at = places[(places >= start) & (places < start + rows)]
        if len(at):
            if "topk_id" in stored:
                best = stored.array("topk_id")[start : start + rows][:, 0]
            else:
                best = stored.array("logits")[start : start + rows].argmax(1)
            other[at] = best[at - start] != ids[at + 1]
    return len(places), int(other.sum()), int(other[step == 0].sum())
