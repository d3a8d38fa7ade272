"""A capture of another tool becomes a sealed capture of the lake: its tokens a stream, its values the arrays, bit for bit."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..capture.checkpoint.configs import load_config, load_tokenizer
from ..capture.checkpoint.tokens import is_special, real_token_mask, token_texts, vocabulary
from ..capture.model.load import head_arrays, identify, load_model
from ..capture.model.weights_copy import here_or_stored
from ..capture.run.batching import stored_ratio
from ..capture.run.capture import Result, check_finite
from ..store.artifacts.models import check_same_model, has_model, keep_vocab, read_model, write_model
from ..store.artifacts.streams import Stream, read_stream, write_stream
from ..store.captures.allocate import Template, create_capture
from ..store.captures.manifest import read_manifest, seal
from ..store.captures.writer import ShardWriter, missing_shards
from ..store.core.catalog import Catalog, ModelSpec
from ..store.core.errors import LakeError
from ..store.core.files import explain_full_disk, free_bytes, hash_file, hash_json, human_bytes, try_lock
from ..store.core.progress import Estimate, bar
from ..store.core.schema import PROGRESS, SITES
from ..store.core.version import __version__
from ..store.format.paths import Layout, check_name
from ..store.tables.names import model_named, stored_models
from ..store.tables.streams import stream_table
from .formats import FORMATS
from .found import Asked, Found

IMPORTED = "imported"  # the kind of a stream that came with a capture
SPEED = 100e6  # bytes of float32 that are encoded and written in a second


@dataclass(frozen=True)
class Given:
    """What is known of a model that captures are imported for: where its files are, record, tokenizer, blocks and width."""

    spec: ModelSpec
    record: dict[str, Any]
    tokenizer: Any
    layers: int
    width: int
    vocab: int


def model_for(layout: Layout, catalog: Catalog, name: str, dtype: str = "auto") -> Given:
    """A model of the catalog or the lake; LakeError where the lake holds another checkpoint of the name, or nobody has it."""
    model = model_named(name, catalog, stored_models(layout))
    spec = here_or_stored(layout, catalog.model(model))
    tokenizer = load_tokenizer(spec)
    identity = identify(spec, dtype, tokenizer)
    if check_same_model(layout, model, identity):
        record = read_model(layout, model)
        return Given(spec, record, tokenizer, record["n_layers"], record["d_model"], record["vocab"])
    config = load_config(spec).get_text_config()
    return Given(spec, identity, tokenizer, config.num_hidden_layers, config.hidden_size, config.vocab_size)


def add_capture(
    layout: Layout,
    catalog: Catalog,
    format: str,
    path: Path,
    model: str,
    stream: str | None = None,
    name: str | None = None,
    boundaries: Sequence[int] = (),
    device: str = "auto",
    dtype: str = "auto",
    allow_nonfinite: bool = False,
) -> Result:
    """Bring a capture of another tool into the lake and seal it; an interrupted one goes on where it stopped.

    Values are kept bit for bit. Head and vocabulary are the named model's. Raises LakeError for files that are damaged, hold
    anything but numbers, or do not belong together, for token ids that the model lacks, and for NaN or infinity unless allowed.
    """
    started = time.perf_counter()
    if format not in FORMATS:
        raise LakeError(f"format {format!r}", expected=f"one of {', '.join(sorted(FORMATS))} or tokens")
    given = model_for(layout, catalog, model, dtype)
    known = _stream(layout, given.spec.name, stream) if stream else None
    found = FORMATS[format](path, Asked(given.layers, given.width, boundaries, known.tokens if known else None))
    _check(found, given, path)
    facts = _facts(format, path, found)
    made = known or new_stream(given, found.sequences, IMPORTED, check_name(name or _name(path), "prompt set"), facts)
    if known:
        _check_tokens(found, known, path)
    keep_model(layout, given, device, dtype)
    template = _template(found, made, given, facts)
    _announce(layout, path, template)
    with explain_full_disk(f"importing {path} into {layout}"):
        stored = write_stream(layout, made)
        if stored != made.name:
            template = _template(found, read_stream(layout, stored), given, facts)
        file = layout.capture(given.spec.name, stored)
        create_capture(file, template, 1, layout.files)
        if before := read_manifest(file):
            return Result(file, True, True, made.n_tokens, before["bytes"], time.perf_counter() - started)
        with try_lock(file / PROGRESS / "rank-0.lock", wait=True):
            _write(layout, file, template, found, given.spec.name, allow_nonfinite)
            manifest = seal(file, {}, layout.files)
    return Result(file, True, False, made.n_tokens, manifest["bytes"], time.perf_counter() - started)


def keep_model(layout: Layout, given: Given, device: str, dtype: str) -> None:
    """Keep the model's record, head and vocabulary, which loads it where the lake has none of them."""
    model = given.spec.name
    if not has_model(layout, model):
        loaded = load_model(given.spec, device, dtype)
        if (loaded.n_layers, loaded.head.d_model) != (given.layers, given.width):
            raise LakeError(
                f"model {model}: {loaded.n_layers} blocks of width {loaded.head.d_model}, its config says others"
            )
        write_model(layout, model, loaded.record, *head_arrays(loaded))
    keep_vocab(layout, model, vocabulary(given.tokenizer, read_model(layout, model)["vocab"]))


def new_stream(given: Given, rows: Sequence[Any], kind: str, prompts: str, facts: dict[str, Any]) -> Stream:
    """A stream of token rows (`name`, `tokens`, `start`) that somebody else made; `facts` go into its recipe.

    LakeError for names that are there twice, and for ids that the model lacks or that name no token.
    """
    names = [row.name for row in rows]
    if twice := next((name for name in names if names.count(name) > 1), None) if len({*names}) < len(names) else None:
        raise LakeError(f"prompt {twice!r} is there twice")
    real = real_token_mask(given.tokenizer, given.vocab)
    for row in rows:
        check_known(row.tokens, real, f"prompt {row.name!r}", given.spec.name)
    flat = np.concatenate([row.tokens for row in rows])
    recipe = {
        "template": "raw",
        "max_new_tokens": max(len(row.tokens) - row.start for row in rows),
        "tokenizer_sha256": given.record["tokenizer_sha256"],
        "imported": facts,
    }
    return Stream(
        kind=kind,
        prompts=prompts,
        prompt_ids=names,
        categories=[kind] * len(rows),
        tokens=[row.tokens for row in rows],
        starts=[row.start for row in rows],
        texts=token_texts(given.tokenizer, flat),
        special=is_special(given.tokenizer, flat),
        recipe={**recipe, "key": hash_json(recipe)},
        continuation=kind,
    )


def check_known(ids: np.ndarray, real: np.ndarray, where: str, model: str) -> None:
    """LakeError for ids that the model lacks or that name no token; `real` [vocab] marks those that do."""
    if (top := int(ids.max())) >= len(real) or not real[ids].all():
        wrong = top if top >= len(real) else int(ids[~real[ids]][0])
        raise LakeError(f"{where}: token id {wrong} names no token of {model}", found="tokens of another tokenizer")


def _stream(layout: Layout, model: str, name: str) -> Stream:
    """A stream of the lake by the unique beginning of its name."""
    there = {file.stem for file in layout.streams.glob("*.json")}
    if name in there:
        return read_stream(layout, name)
    found = sorted(one for one in there if one.startswith(name))
    mine = set(stream_table(layout, [model])["stream"]) & {*found}
    if len(mine or found) != 1:
        raise LakeError(
            f"stream {name!r}", expected="the beginning of one stream's name", found=", ".join(found) or "none"
        )
    return read_stream(layout, next(iter(mine or found)))


def _check(found: Found, given: Given, path: Path) -> None:
    """LakeError for places that the model lacks, and for sequences that hold no tokens."""
    for site, index in found.places:
        most = given.layers + (site == "resid")
        if not 0 <= index < most:
            raise LakeError(f"{path}: {site} {index}", expected=f"0 to {most - 1}, as {given.spec.name} has them")
    for site in {site for site, _ in found.places} - {"resid"}:
        if (there := found.indices(site)) != [*range(given.layers)]:
            raise LakeError(
                f"{path}: {site} of {len(there)} of the model's {given.layers} blocks", expected="all of them, or none"
            )


def _check_tokens(found: Found, known: Stream, path: Path) -> None:
    if len(found.sequences) != len(known.tokens):
        raise LakeError(f"{path}: {len(found.sequences)} sequences, stream {known.name} has {len(known.tokens)}")
    for row, tokens, name in zip(found.sequences, known.tokens, known.prompt_ids, strict=True):
        if not np.array_equal(row.tokens, tokens):
            raise LakeError(f"{path}: sequence {row.name} has other tokens than prompt {name!r} of stream {known.name}")


def _facts(format: str, path: Path, found: Found) -> dict[str, Any]:
    """What is recorded of the files: how many, their bytes, and one hash of all."""
    sizes = {file: file.stat().st_size for file in found.files}
    root, hashes = path if path.is_dir() else path.parent, dict[str, str]()
    with bar("hash what is imported", sum(sizes.values()), "bytes") as progress:
        for file, size in sizes.items():
            name = file.relative_to(root).as_posix() if file.is_relative_to(root) else file.name
            hashes[name] = hash_file(file)
            progress.advance(size)
    more = {"settings": found.facts} if found.facts else {}
    return {"format": format, "files": len(sizes), "bytes": sum(sizes.values()), "sha256": hash_json(hashes), **more}


def _name(path: Path) -> str:
    """A prompt set's name from a file's or folder's."""
    stem = path.resolve().name.partition(".")[0]
    return "".join(c if c.isascii() and (c.isalnum() or c in "_-") else "-" for c in stem).strip("-_") or "capture"


def _template(found: Found, stream: Stream, given: Given, facts: dict[str, Any]) -> Template:
    boundaries, layers = found.indices("resid"), tuple(range(given.layers))
    counts = {site: len(found.indices(site)) for site in SITES if found.indices(site)}
    return Template(
        stream=stream,
        sizes={site: (count, given.width) for site, count in counts.items()},
        boundaries=tuple(boundaries),
        layers=layers,
        source_dtype=found.dtype,
        provenance={
            "model": given.spec.name,
            "model_id": given.record["id"],
            "model_revision": given.record["revision"],
            "model_sha256": given.record["sha256"],
            "tokenizer_sha256": given.record["tokenizer_sha256"],
            "dtype": given.record["dtype"],
            "batch": 1,
            "batch_window": 1,
            "actlake": __version__,
            "imported": facts,
        },
    )


def _announce(layout: Layout, path: Path, template: Template) -> None:
    """Say what it takes; LakeError when the disk can't hold it."""
    raw = template.stream.n_tokens * sum(template.bytes_per_token.values())
    stored = int(raw / stored_ratio(template.source_dtype))
    counts = {"tokens": template.stream.n_tokens, "shard rows": template.n_shards}
    Estimate(f"import {path}", stored, raw / SPEED, counts=counts).announce()
    if not layout.files.remote and stored > (free := free_bytes(layout.root)):
        raise LakeError(f"{layout.root}: the capture needs about {human_bytes(stored)}, {human_bytes(free)} are free")


def _write(layout: Layout, file: Path, template: Template, found: Found, model: str, allow_nonfinite: bool) -> None:
    """Write the shard rows that lack, one after the other: no more than these and a prompt are in memory."""
    stream, size = template.stream, template.shard_tokens
    todo = missing_shards(file, template.n_shards)

    def check(shard: int, blocks: Mapping[str, np.ndarray]) -> None:
        if not allow_nonfinite:
            check_finite(model, stream, shard * size, dict(blocks), template.boundaries)

    ends = [min((shard + 1) * size, stream.n_tokens) for shard in todo]
    with (
        bar(f"import {model}", sum(end - shard * size for shard, end in zip(todo, ends, strict=True))) as progress,
        ShardWriter(file, template, check=check, on_write=progress.store, lake=layout.files) as writer,
    ):
        for shard, end in zip(todo, ends, strict=True):
            parts = list(_parts(found, stream.offset, shard * size, end))
            blocks = {site: _joined([part[site] for part in parts], site, found.dtype) for site in template.sizes}
            writer.put(shard, blocks)
            progress.advance(end - shard * size)


def _parts(found: Found, offset: np.ndarray, start: int, end: int) -> Iterator[dict[str, np.ndarray]]:
    """The rows start .. end of the token axis, sequence by sequence."""
    for index in range(int(np.searchsorted(offset, start, "right")) - 1, len(offset) - 1):
        low, high = int(offset[index]), int(offset[index + 1])
        if low >= end:
            return
        yield found.rows(index, max(start - low, 0), min(end, high) - low)


def _joined(parts: list[np.ndarray], site: str, dtype: str) -> np.ndarray:
    """Rows of a shard as the writer takes them; LakeError for doubles that float32 can't hold."""
    block = np.concatenate(parts)
    if dtype != "float64":
        return block if dtype == "bfloat16" else block.astype(np.float32, copy=False)
    with np.errstate(over="ignore"):
        narrow = block.astype(np.float32)
    if not np.array_equal(narrow.astype(np.float64), block, equal_nan=True):
        raise LakeError(
            f"{site}: float64 values that float32 can't hold exactly, and a lake keeps float32",
            repair="save them as float32 first, if that is wanted",
        )
    return narrow
