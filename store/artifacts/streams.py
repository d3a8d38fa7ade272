"""Streams and prompt sets: frozen token sequences, named by what they are and by the hash of their content."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..core.columns import SEGMENTS
from ..core.errors import CorruptError, LakeError
from ..core.files import hash_file, write_atomic, write_json
from ..core.schema import FORMAT_VERSION, LATER, RECORD, STREAM_SCHEMA, UNKNOWN, VARIANTS
from ..format.parquet import read_parquet
from ..format.paths import Layout, check_name
from ..format.records import REPAIRS, SEAL, read_record, sealed
from ..format.rules import is_name
from ..remote.files import Files
from .artifact import Artifact, read, writing


@dataclass(frozen=True)
class Stream:
    """Token sequences of a prompt set, one after the other on a flat token axis.

    `tokens[p]` is the whole sequence of prompt p (int32), `starts[p]` the number of its prompt tokens; what follows is
    the continuation. `texts`, `special`, `segment` (numbers of SEGMENTS) and `turn` belong to the flat token axis; the last two
    are None where nobody has said. `recipe` says how the stream was made, `continuation` whose words follow the prompts, as
    the catalog says it.
    """

    kind: str
    prompts: str
    prompt_ids: Sequence[str]
    categories: Sequence[str]
    tokens: Sequence[np.ndarray]
    starts: Sequence[int]
    texts: Sequence[str]
    special: np.ndarray
    recipe: dict[str, Any] = field(default_factory=dict)
    continuation: str = "own"
    segment: np.ndarray | None = None
    turn: np.ndarray | None = None

    @cached_property
    def offset(self) -> np.ndarray:
        """Prompt p owns tokens offset[p]:offset[p+1]; int64 [prompts + 1]."""
        return np.concatenate([[0], np.cumsum([len(row) for row in self.tokens])]).astype(np.int64)

    @property
    def n_tokens(self) -> int:
        """Length of the flat token axis."""
        return int(self.offset[-1])

    @cached_property
    def columns(self) -> dict[str, np.ndarray]:
        """prompt, position, step, token_id, segment, turn (int32) and is_special, is_continuation (bool), each [tokens]."""
        lengths = np.diff(self.offset)
        prompt = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
        position = (np.arange(self.n_tokens) - self.offset[prompt]).astype(np.int32)
        start = np.asarray(self.starts, dtype=np.int32)[prompt]
        # Position start-1 predicts continuation token 0; the last position of a sequence predicts nothing recorded.
        step = position - start + 1
        step[(step < 0) | (position == lengths[prompt] - 1)] = -1
        return {
            "prompt": prompt,
            "position": position,
            "step": step.astype(np.int32),
            "token_id": np.concatenate([np.asarray(row, dtype=np.int32) for row in self.tokens]),
            "is_special": np.asarray(self.special, dtype=bool),
            "is_continuation": position >= start,
            **{
                name: np.full(self.n_tokens, UNKNOWN[name], np.int32) if known is None else np.asarray(known, np.int32)
                for name, known in (("segment", self.segment), ("turn", self.turn))
            },
        }

    @cached_property
    def content_sha256(self) -> str:
        """Hash of what a model sees and how prompts align: ids, offsets, tokens, steps and the tokenizer."""
        digest = hashlib.sha256(str(self.recipe.get("tokenizer_sha256", "")).encode())
        for text in self.prompt_ids:
            digest.update(len(text.encode()).to_bytes(8, "little") + text.encode())
        digest.update(self.offset.astype("<i8").tobytes())
        for name in ("token_id", "step"):
            digest.update(self.columns[name].astype("<i4").tobytes())
        return digest.hexdigest()

    @property
    def name(self) -> str:
        """recipe-prompts-hash8, for instance native-pocket-1a2b3c4d."""
        return f"{self.kind}-{self.prompts}-{self.content_sha256[:8]}"


def _parquet(stream: Stream) -> bytes:
    columns = stream.columns
    prompt = columns["prompt"]
    arrays = {
        **columns,
        "segment": np.asarray(SEGMENTS, dtype=object)[columns["segment"]],
        "prompt_id": np.asarray(stream.prompt_ids, dtype=object)[prompt],
        "category": np.asarray(stream.categories, dtype=object)[prompt],
        "token": np.arange(stream.n_tokens),
        "token_text": stream.texts,
    }
    table = pa.table({name: pa.array(arrays[name]) for name in STREAM_SCHEMA.names}).cast(STREAM_SCHEMA)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def write_stream(layout: Layout, stream: Stream) -> str:
    """Store a stream and return the name its content goes by.

    When another stream of the lake has the same content, only a record that points to it is written (`same_as`), so
    that one capture serves both. A stream that is there already stays as it is and learns one more recipe (`keys`).
    """
    with layout.locked():
        return _write_stream(layout, stream)


def _write_stream(layout: Layout, stream: Stream) -> str:
    like = stream_records(layout, [stream.name])
    twins = [record for record in like if record["content_sha256"] == stream.content_sha256]
    before: dict[str, Any] = next((record for record in twins if record["name"] == stream.name), {})
    holder = next((record["name"] for record in twins if record["same_as"] == record["name"]), stream.name)
    record = {
        "format_version": FORMAT_VERSION,
        "name": stream.name,
        "kind": stream.kind,
        "prompts": stream.prompts,
        "content_sha256": stream.content_sha256,
        "n_prompts": len(stream.prompt_ids),
        "n_tokens": stream.n_tokens,
        "recipe": stream.recipe,
        "same_as": holder,
        **{key: value for key, value in before.items() if key != SEAL},
        "keys": sorted({*before.get("keys", []), stream.recipe.get("key", "")}),
        "written_by": sorted({*before.get("written_by", []), _writer(stream)}),
    }
    path = layout.streams / f"{stream.name}.parquet"
    if holder == stream.name and not (before and path.exists()):
        write_atomic(path, _parquet(stream))
        record["parquet_sha256"] = hash_file(path)
        layout.files.publish(path)
    if (record := sealed(record)) != before:
        write_json(layout.streams / f"{stream.name}.json", record)
        layout.files.publish(layout.streams / f"{stream.name}.json")
    return str(holder)


def _writer(stream: Stream) -> str:
    """Whose words follow the prompts, and the hash of that model: 'own:SHA256', or of a pair's role 'it:SHA256'."""
    if stream.continuation not in ("own", *VARIANTS):
        return "others"
    return f"{stream.continuation}:{stream.recipe.get('continuation', {}).get('model_sha256', '')}"


def reads(record: dict[str, Any], sha256: str) -> bool:
    """Whether a model goes by this name of a stream: another model's own answers may be what it was taught, of equal content."""
    return any(writer in ("own:", f"own:{sha256}") or not writer.startswith("own:") for writer in record["written_by"])


def stream_records(layout: Layout, like: Iterable[str] | None = None) -> list[dict[str, Any]]:
    """The STREAM.json of every stream in the lake, or of those with the content of some by name, sorted by name."""
    # Streams of one content have names that end alike.
    ends = None if like is None else {_end(name) for name in like}
    there = sorted(layout.streams.glob("*.json"))
    return [stream_record(path) for path in there if ends is None or _end(path.stem) in ends]


def _end(name: str) -> str:
    return name.rpartition("-")[2]


def stream_record(path: Path) -> dict[str, Any]:
    record = read_record(path, "stream")
    if record["name"] != path.stem:
        raise CorruptError(f"{path}: name: expected {path.stem!r}, found {record['name']!r}", repair=REPAIRS["stream"])
    if (made := f"{record['kind']}-{record['prompts']}-{record['content_sha256'][:8]}") != path.stem:
        raise CorruptError(f"{path}: kind, prompts and content_sha256 make the name {made}", repair=REPAIRS["stream"])
    return record


def find_stream(layout: Layout, recipe_key: str, kind: str) -> dict[str, Any] | None:
    """The record of the stream made by exactly this recipe, rather one of this kind than of another, or None."""
    found = [record for record in stream_records(layout) if recipe_key in record["keys"]]
    return next((record for record in found if record["kind"] == kind), found[0] if found else None)


def read_stream(layout: Layout, name: str) -> Stream:
    """Read a stream back from its Parquet file, checking the recorded hash.

    Raises LakeError when it is not there and CorruptError when its bytes have changed.
    """
    file = layout.streams / f"{check_name(name, 'stream')}.json"
    record = stream_record(file)
    if record["same_as"] != name:
        file = layout.streams / f"{record['same_as']}.json"
        name, record = record["same_as"], stream_record(file)
        if record["same_as"] != name:
            raise CorruptError(
                f"{file}: same_as: an alias of an alias, {record['same_as']!r}", repair=REPAIRS["stream"]
            )
    path = layout.files.bring(layout.streams / f"{name}.parquet")
    if not path.is_file():
        raise LakeError(f"{path}: stream {name} is recorded but its token file is missing", repair=REPAIRS["stream"])
    if (found := hash_file(path)) != record.get("parquet_sha256"):
        raise CorruptError(
            f"{path}: bytes differ from the recorded hash (found {found}, expected {record.get('parquet_sha256')});"
            f" {REPAIRS['stream']}"
        )
    table = read_parquet(path, STREAM_SCHEMA, REPAIRS["stream"], may_lack=LATER)
    stream = _from_table(table, record, path)
    counted = {
        "n_tokens": stream.n_tokens,
        "n_prompts": len(stream.prompt_ids),
        "content_sha256": stream.content_sha256,
    }
    for key, here in counted.items():
        if here != record[key]:
            raise CorruptError(f"{path}: {key}: found {here}, {file.name} says {record[key]}", repair=REPAIRS["stream"])
    return stream


def _from_table(table: pa.Table, record: dict[str, Any], path: Path) -> Stream:
    if not len(table) or any(column.null_count for column in table.columns):
        raise CorruptError(f"{path}: no rows, or gaps in its columns", repair=REPAIRS["stream"])
    known = {*table.column_names} >= LATER
    segment = pc.index_in(table["segment"].cast(pa.string()), pa.array(SEGMENTS)) if known else None
    if segment is not None and segment.null_count:
        raise CorruptError(f"{path}: segment: expected one of {', '.join(SEGMENTS)}", repair=REPAIRS["stream"])
    ids = table["token_id"].to_numpy()
    prompt = table["prompt"].to_numpy()
    edges = np.concatenate([[0], np.flatnonzero(np.diff(prompt)) + 1, [len(prompt)]])
    first = edges[:-1]
    continuation = table["is_continuation"].to_numpy()
    return Stream(
        kind=record["kind"],
        prompts=record["prompts"],
        prompt_ids=table["prompt_id"].combine_chunks().take(pa.array(first)).to_pylist(),
        categories=table["category"].combine_chunks().take(pa.array(first)).to_pylist(),
        tokens=[ids[a:b] for a, b in zip(first, edges[1:], strict=True)],
        starts=[int(b - a - continuation[a:b].sum()) for a, b in zip(first, edges[1:], strict=True)],
        texts=table["token_text"].to_pylist(),
        special=table["is_special"].to_numpy(),
        recipe=record["recipe"],
        segment=None if segment is None else segment.to_numpy(),
        turn=table["turn"].to_numpy() if known else None,
    )


FILE = "prompts.jsonl"


def write_prompts(layout: Layout, name: str, data: bytes) -> Path:
    """Keep a set, given as its canonical file; returns where that is. A set that has the name already stays."""
    folder = layout.prompts / name
    recipe: dict[str, Any] = {"prompts": name, "content_sha256": sha256(data).hexdigest()}
    with writing(layout, folder, recipe, {}) as made:
        write_atomic(made / FILE, data)
    return folder / FILE


def stored_prompts(layout: Layout, name: str) -> Path | None:
    """The file of a set that the lake keeps, or None; CorruptError when it is not what was kept."""
    if not is_name(name) or not ((folder := layout.prompts / name) / RECORD).is_file():
        return None
    read_set(layout.files, folder).check()
    return folder / FILE


def read_set(lake: Files, folder: Path) -> Artifact:
    """A set with its record checked; CorruptError where that is another set's."""
    found = read(lake, folder, "prompts")
    if (name := found.record["recipe"]["prompts"]) != folder.name:
        raise CorruptError(f"{folder / RECORD}: the record of {name}; {REPAIRS['prompts']}")
    kept, said = found.record["files"].get(FILE, {}).get("sha256"), found.record["recipe"]["content_sha256"]
    if kept != said:
        raise CorruptError(f"{folder / FILE}: recorded as {kept}, the recipe says {said}; {REPAIRS['prompts']}")
    return found
