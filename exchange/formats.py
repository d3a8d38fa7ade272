"""Readers of captures of other tools: a file a sequence, arrays with a batch axis, tables of lists, and memory maps."""

import json
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from ..store.core.errors import LakeError
from .arrays import READERS, Array, Arrays, read_arrays
from .columns import read_rows
from .found import (
    LOSSES,
    MASKS,
    TOKENS,
    Asked,
    Found,
    Place,
    TokenRow,
    files_below,
    ids_of,
    kept_slots,
    named,
    natural,
    numbered,
    one_dtype,
    place_of,
    stacked,
    start_of,
    state_arrays,
)
from .torch_files import as_numpy, flat, load_tensors

NO_TOKENS = "has no token ids: --stream names the stream of the lake that it was made on"


def _given(asked: Asked, index: int, where: object) -> np.ndarray:
    """The token ids of a sequence that a file lacks, from the stream that was named."""
    if asked.tokens is None:
        raise LakeError(f"{where}: {NO_TOKENS}")
    if index >= len(asked.tokens):
        raise LakeError(f"{where}: more sequences than the {len(asked.tokens)} of the stream")
    return asked.tokens[index]


def read_samples(path: Path, asked: Asked) -> Found:
    """A file a sequence: {token_ids, hidden_states} of vLLM and speculators, {input_ids, aux_hidden_state} of SpecForge."""
    files = [file for file in files_below(path, tuple(READERS)) if file.suffix not in (".npy", ".npz")]
    sequences, dtypes, counts = list[TokenRow](), list[str](), set[int]()
    for index, file in enumerate(files):
        found = read_arrays(file)
        ids = named(found, TOKENS)
        tokens = ids_of(found[ids].data.reshape(-1), found[ids].where) if ids else _given(asked, index, file)
        loss = named(found, LOSSES)
        name = file.relative_to(path).as_posix() if path.is_dir() else file.name
        name = name.removesuffix("".join(file.suffixes[-2:] if file.suffix == ".gz" else file.suffixes[-1:]))
        sequences.append(TokenRow(name, tokens, start_of(found[loss].data if loss else None, len(tokens))))
        states = _states(found, len(tokens), asked, file)
        dtypes += [array.dtype for array in state_arrays(found).values()]
        counts.add(len(states))
    dtype = one_dtype(dtypes, path)
    if len(counts) > 1:
        raise LakeError(
            f"{path}: files of unequal numbers of layers", expected="one", found=", ".join(map(str, sorted(counts)))
        )
    boundaries = numbered(counts.pop(), asked, str(path))

    def slab(index: int, place: Place) -> np.ndarray:
        states = _states(read_arrays(files[index]), len(sequences[index].tokens), asked, files[index])
        return states[boundaries.index(place[1])]

    return Found(sequences, [("resid", one) for one in boundaries], dtype, slab, files)


def _states(found: Arrays, tokens: int, asked: Asked, file: Path) -> list[np.ndarray]:
    arrays = state_arrays(found)
    if not arrays:
        raise LakeError(f"{file}: holds no hidden_states", found=", ".join(found)[:120] or "nothing")
    return [layer for array in arrays.values() for layer in stacked(array.data, tokens, asked, array.where)]


def read_batches(path: Path, asked: Asked) -> Found:
    """Arrays [batch, position, d] or [tokens, d] by layers' names beside token ids, a file or a folder a batch.

    TransformerLens caches, saves of nnsight, trees of npy files; an attention mask tells padding apart.
    """
    groups = _groups(path)
    sequences, where = list[TokenRow](), list[tuple[list[Path], dict[Place, tuple[str, int | None]], int, slice]]()
    places, dtypes = list[Place](), list[str]()
    for folder, files in groups:
        arrays = _arrays(files)
        held = _held(arrays, asked, folder)
        if places and [*held] != places:
            raise LakeError(
                f"{folder}: other layers than the first batch has", expected=_some(places), found=_some([*held])
            )
        places = [*held]
        dtypes += [arrays[name].dtype for name, _ in held.values()]
        for name, tokens, start, row, slots in _batch(arrays, held, folder, asked, len(sequences)):
            sequences.append(TokenRow(name, tokens, start))
            where.append((files, held, row, slots))
    dtype = one_dtype(dtypes, path)

    def slab(index: int, place: Place) -> np.ndarray:
        files, held, row, slots = where[index]
        name, layer = held[place]
        data = _one(files, name).data
        data = data if layer is None else np.moveaxis(data, -2, 0)[layer]
        return data[row, slots] if data.ndim == 3 else data[slots]

    return Found(sequences, places, dtype, slab, [file for _, files in groups for file in files])


def _groups(path: Path) -> list[tuple[Path, list[Path]]]:
    """The files of each batch: every file of several arrays on its own, npy files of a folder together."""
    single, together = list[tuple[Path, list[Path]]](), dict[Path, list[Path]]()
    files = files_below(path, tuple(READERS))
    ids = {file.parent for file in files if file.suffix == ".npy" and file.stem in TOKENS}
    for file in files:
        if file.suffix != ".npy":
            single.append((file, [file]))
            continue
        home = next((folder for folder in (file.parent, *file.parent.parents) if folder in ids), path)
        together.setdefault(home, []).append(file)
    return sorted([*single, *together.items()], key=lambda group: natural(group[0]))


def _arrays(files: list[Path]) -> Arrays:
    if files[0].suffix != ".npy":
        return read_arrays(files[0])
    root = _root(files)
    return {file.relative_to(root).with_suffix("").as_posix(): read_arrays(file)[file.stem] for file in files}


def _root(files: list[Path]) -> Path:
    return min((file.parent for file in files), key=lambda folder: len(folder.parts))


def _one(files: list[Path], name: str) -> Array:
    """One of the arrays that `_arrays` gave, without opening the files of the others."""
    if files[0].suffix != ".npy":
        return read_arrays(files[0])[name]
    file = _root(files).joinpath(*name.split("/")[:-1], name.split("/")[-1] + ".npy")
    return read_arrays(file)[file.stem]


def _held(arrays: Arrays, asked: Asked, where: Path) -> dict[Place, tuple[str, int | None]]:
    """Place -> the name of its array, and where in it the layer stands if it holds several; each layer once."""
    held: dict[Place, tuple[str, int | None]] = {}
    for name, array in arrays.items():
        place = place_of(name.replace("/", "."))
        if place and array.shape[-1:] == (asked.width,) and array.data.ndim in (2, 3):
            held.setdefault(place, (name, None))
    for name in ("resid", "hidden_states", "mlp_out", "attn_out"):
        key = named(arrays, (name,))
        if key and arrays[key].shape[-1:] == (asked.width,) and arrays[key].data.ndim in (3, 4):
            site, count = name.replace("hidden_states", "resid"), arrays[key].shape[-2]
            beside = named(arrays, ("boundary" if site == "resid" else "layer",))
            usual = range(asked.layers) if site != "resid" and count == asked.layers else None
            numbers = arrays[beside].data.tolist() if beside else usual or numbered(count, asked, arrays[key].where)
            held |= {(site, int(one)): (key, at) for at, one in enumerate(numbers)}
    if not held:
        raise LakeError(
            f"{where}: no array of width {asked.width} bears the name of a layer",
            expected="names such as blocks.3.hook_resid_post, model.layers.3.output.0, layer_3, or hidden_states",
            found=", ".join(arrays)[:160],
        )
    return dict(sorted(held.items()))


def _batch(
    arrays: Arrays, held: dict[Place, tuple[str, int | None]], where: Path, asked: Asked, done: int
) -> list[tuple[str, np.ndarray, int, int, slice]]:
    """Name, tokens, length of the prompt, row and slots of every sequence of a batch."""
    ids, mask, loss = (named(arrays, names) for names in (TOKENS, MASKS, LOSSES))
    shapes = {arrays[name].shape[: -1 if layer is None else -2] for name, layer in held.values()}
    if len(shapes) != 1:
        raise LakeError(
            f"{where}: layers of unequal lengths", found=", ".join(str(list(one)) for one in sorted(shapes))
        )
    shape = shapes.pop()
    if not ids:
        given, found, at = list[np.ndarray](), list[tuple[str, np.ndarray, int, int, slice]](), 0
        while at < prod(shape):
            tokens = _given(asked, done + len(given), where)
            row, low = divmod(at, shape[-1]) if len(shape) == 2 else (0, at)
            given.append(tokens)
            found.append((f"{done + len(found):06d}", tokens, len(tokens), row, slice(low, low + len(tokens))))
            at += shape[-1] if len(shape) == 2 else len(tokens)
            if low + len(tokens) > shape[-1]:
                raise LakeError(
                    f"{where}: sequence {len(given) - 1} of the stream has {len(tokens)} tokens", found=str(list(shape))
                )
        return found
    tokens = arrays[ids].data
    if len(shape) == 2 and tokens.ndim == 1 and shape[0] == 1:
        tokens = tokens[None]
    if tokens.shape != shape:
        raise LakeError(
            f"{arrays[ids].where}: {list(tokens.shape)} token ids, the states have {list(shape)}: lengths are not equal"
        )
    if len(shape) == 1:
        edges = _edges(arrays, len(tokens), where)
        rows = [(0, slice(a, b)) for a, b in zip(edges[:-1], edges[1:], strict=True)]
        tokens = tokens[None]
    else:
        masks = arrays[mask].data if mask else np.ones(shape, bool)
        if masks.shape != shape:
            raise LakeError(f"{where}: an attention mask {list(masks.shape)}", expected=str(list(shape)))
        rows = [(row, kept_slots(one, f"{where}: row {row}")) for row, one in enumerate(masks)]
    losses = arrays[loss].data.reshape(tokens.shape) if loss else None
    return [
        (
            f"{done + number:06d}",
            ids_of(tokens[row, slots], arrays[ids].where),
            start_of(None if losses is None else losses[row, slots], slots.stop - slots.start),
            row,
            slots,
        )
        for number, (row, slots) in enumerate(rows)
    ]


def _edges(arrays: Arrays, tokens: int, where: Path) -> list[int]:
    """Where sequences of a flat token axis begin, and its end: from offsets or lengths, or one sequence."""
    if key := named(arrays, ("offset", "offsets", "sequence_ranges")):
        edges = arrays[key].data.reshape(-1).tolist()
    elif key := named(arrays, ("lengths", "length")):
        edges = [0, *np.cumsum(arrays[key].data.reshape(-1)).tolist()]
    else:
        edges = [0, tokens]
    if edges[0] != 0 or edges[-1] != tokens or any(a >= b for a, b in zip(edges[:-1], edges[1:], strict=True)):
        raise LakeError(f"{where}: {key or 'offsets'} do not cut {tokens:,} tokens into sequences")
    return [int(edge) for edge in edges]


def _some(places: list[Place]) -> str:
    return ", ".join(f"{site} {index}" for site, index in places[:4]) + (" ..." if len(places) > 4 else "")


def read_memmaps(path: Path, asked: Asked) -> Found:
    """A crosscoder_learning ActivationCache: a folder of shard_i.memmap a submodule, tokens.pt, sequence_ranges.pt."""
    if not path.exists():
        raise LakeError(f"{path}: no such file or folder")
    configs = {file.parent: _json(file) for file in sorted(path.rglob("config.json"), key=natural)}
    configs = {folder: one for folder, one in configs.items() if "shard_count" in one}
    if not configs:
        raise LakeError(f"{path}: holds no config.json of an ActivationCache")
    held, dtypes, files = dict[Place, list[tuple[Path, int]]](), list[str](), list[Path]()
    for folder, config in configs.items():
        if config.get("shuffle_shards"):
            raise LakeError(
                f"{folder}: rows were shuffled as they were stored (shuffle_shards): which token is which is lost"
            )
        place = place_of(folder.name) or place_of(f"{folder.name}_{config.get('io', 'out')}")
        if place is None:
            raise LakeError(f"{folder}: its name says no layer", expected="a name such as layer_12_out")
        names = [folder / f"shard_{number}.memmap" for number in range(config["shard_count"])]
        shards = [_shard(file, asked.width) for file in names]
        held[place] = [(file, len(data)) for file, (_, data) in zip(names, shards, strict=True)]
        files += names
        dtypes += [dtype for dtype, _ in shards]
        rows = sum(count for _, count in held[place])
        if rows != config.get("total_size", rows):
            raise LakeError(f"{folder}: {rows:,} rows", expected=f"{config['total_size']:,}, as config.json says")
    lengths = {sum(count for _, count in shards) for shards in held.values()}
    if len(lengths) > 1:
        raise LakeError(f"{path}: submodules of unequal lengths", found=", ".join(map(str, sorted(lengths))))
    total = lengths.pop()
    tokens, edges = _cache_tokens(path, asked, total, files)
    sequences = [
        TokenRow(f"{number:06d}", tokens[a:b], int(b - a))
        for number, (a, b) in enumerate(zip(edges[:-1], edges[1:], strict=True))
    ]

    def slab(index: int, place: Place) -> np.ndarray:
        start, stop = edges[index], edges[index + 1]
        parts, at = list[np.ndarray](), 0
        for file, count in held[place]:
            if at < stop and start < at + count:
                parts.append(_shard(file, asked.width)[1][max(start - at, 0) : stop - at])
            at += count
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    keep = ("batch_size", "context_len", "io", "d_model")
    facts = {key: value for key, value in next(iter(configs.values())).items() if key in keep}
    return Found(sequences, sorted(held), one_dtype(dtypes, path), slab, files, facts)


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text()) if file.stat().st_size < 1 << 24 else None
    except (OSError, ValueError) as error:
        raise LakeError(f"{file}: can't be read ({error})") from error
    if not isinstance(found, dict):
        raise LakeError(f"{file}: expected a JSON object")
    return found


def _shard(file: Path, width: int) -> tuple[str, np.ndarray]:
    meta = _json(file.with_suffix(".meta"))
    dtype, shape = str(meta.get("dtype", "float32")).removeprefix("torch."), tuple(meta.get("shape", ()))
    held = {"bfloat16": "<u2", "float16": "<f2", "float32": "<f4", "float64": "<f8"}.get(dtype)
    if not held or len(shape) != 2 or not all(type(one) is int and one >= 0 for one in shape) or shape[1] != width:
        raise LakeError(f"{file}: {shape} of {dtype}", expected=f"rows of {width} floats, the model's width")
    size = file.stat().st_size if file.is_file() else 0
    if size != (expected := prod(shape) * np.dtype(held).itemsize):
        raise LakeError(f"{file}: {size:,} bytes, its .meta says {expected:,}: cut short, or not written to its end")
    return dtype, np.memmap(file, held, "r", shape=shape)


def _cache_tokens(path: Path, asked: Asked, total: int, files: list[Path]) -> tuple[np.ndarray, list[int]]:
    found = {}
    for name in ("tokens", "sequence_ranges"):
        file = next(
            (folder / f"{name}.pt" for folder in (path, path.parent) if (folder / f"{name}.pt").is_file()), None
        )
        if file:
            found[name] = next((as_numpy(one, str(file))[1] for _, one in flat(load_tensors(file), file)), np.empty(0))
            files.append(file)
    if asked.tokens is not None and "tokens" not in found:
        tokens = np.concatenate(asked.tokens).astype(np.int32)
        edges = np.cumsum([0, *map(len, asked.tokens)]).tolist()
    elif "tokens" not in found:
        raise LakeError(f"{path}: {NO_TOKENS}")
    else:
        tokens = ids_of(found["tokens"].reshape(-1), f"{path}/tokens.pt")
        if "sequence_ranges" not in found:
            raise LakeError(
                f"{path}: no sequence_ranges.pt: where sequences begin is lost",
                repair="collect with store_sequence_ranges",
            )
        edges = found["sequence_ranges"].reshape(-1).tolist()
    if len(tokens) != total:
        raise LakeError(f"{path}: {total:,} rows of activations for {len(tokens):,} tokens: lengths are not equal")
    if edges[0] != 0 or edges[-1] != total or any(a >= b for a, b in zip(edges[:-1], edges[1:], strict=True)):
        raise LakeError(f"{path}: sequence_ranges.pt does not cut {total:,} tokens into sequences")
    return tokens, [int(edge) for edge in edges]


FORMATS: dict[str, Callable[[Path, Asked], Found]] = {
    **dict.fromkeys(("vllm", "speculators", "specforge"), read_samples),
    **dict.fromkeys(("transformerlens", "nnsight", "npy"), read_batches),
    **dict.fromkeys(("saelens", "datasets"), read_rows),
    "crosscoder": read_memmaps,
}
