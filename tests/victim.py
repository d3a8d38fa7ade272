"""A small lake with one of everything, all that reads it, and what comes of reading: for tests and drills that damage lakes."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

import duckdb
import numpy as np
import tiny
from actlake.capture.model.load import stored_weights
from actlake.capture.streams.capture_pair import find_prompts
from actlake.capture.streams.requests import keep_prompts
from actlake.store.artifacts.directions import directions_writer, read_directions
from actlake.store.artifacts.models import read_head, read_vocab
from actlake.store.artifacts.probes import probes_table, read_probes, write_probes
from actlake.store.artifacts.statistics import kept_statistics
from actlake.store.artifacts.streams import read_stream, stream_records
from actlake.store.artifacts.texts import Condition, VerdictStore, read_condition, read_texts
from actlake.store.captures.reader import Capture, list_captures, open_capture
from actlake.store.captures.verify import citation, verify
from actlake.store.core.catalog import StreamSpec, load_catalog
from actlake.store.core.errors import LakeError
from actlake.store.core.schema import OUTPUT_KINDS, OUTPUTS
from actlake.store.format.paths import Layout
from actlake.store.tables.files import find_tables, write_table
from actlake.store.tables.names import foreign_captures
from actlake.store.tables.sql import connect, sql_error
from actlake.store.tables.streams import stream_table
from safetensors.numpy import load_file

NORMS = [{"kind": "norms", "model": "llama-it", "stream": "s", "site": "resid", "layer": layer} for layer in range(2)]


@dataclass
class Victim:
    """A small lake with one of everything, its files as they were, and what its readers give then."""

    root: Path
    files: dict[str, bytes]
    values: dict[str, Any]

    def restore(self) -> None:
        """Every file as it was."""
        for name, data in self.files.items():
            file = self.root / name
            if not file.is_file() or file.read_bytes() != data:
                file.write_bytes(data)


def make_victim(lake: Path, pair: Any, *streams: StreamSpec, **options: Any) -> Victim:
    """Capture a pair on some streams, and put one of all else that a lake can hold beside it."""
    layout = tiny.capture(lake, pair, *streams, with_weights=True, **options)
    (path, *_) = sorted(Path(row.path) for row in list_captures(layout).itertuples())
    rows = {"model": "llama-it", "stream": path.stem, "lens": "raw", "prompt_id": "p0", "category": "C"}
    numbers = dict.fromkeys(("prompt", "token", "position", "step", "layer", "top1", "rank_target"), np.arange(40))
    floats = dict.fromkeys(
        ("kl_layer_final", "kl_final_layer", "js_next", "entropy", "p_target", "cos_final"), np.arange(40.0)
    )
    write_table(layout, "lens", {"version": 1}, [rows | numbers | floats])
    captured = [{"model": "other-it", "stream": "native-other", "lens": "raw"}]
    write_table(layout, "lens", {"foreign": {"captures": captured}}, [rows | {"model": "other-it"} | numbers | floats])
    write_table(layout, "lens", {"version": 1, "lens": "tuned"}, [rows | {"lens": "tuned"} | numbers | floats])
    recipe = {"model": "llama-it", "stream": path.stem, "model_sha256": "m", "capture_sha256": "c"}
    recipe |= {"recipe": {"name": "adam"}, "folds": 2}
    facts = {"steps": [1, 2], "trained_tokens": [3, 4]}
    facts |= {"kl_raw": [[2.0, 1.0, 0.5]] * 2, "kl_tuned": [[1.0, 0.5, 0.25]] * 2}
    values = np.arange(2 * 3 * 8 * 8, dtype=np.float32).reshape(2, 3, 8, 8) // 16  # compressible
    for seed, kind in enumerate(("own", "forced_it")):  # two of each kind, so that their files can be exchanged
        write_probes(layout, recipe | {"seed": seed}, values + seed, values[..., 0].copy(), facts)
        with directions_writer(layout, pair.models, kind, {"version": 1}) as writer:
            writer.put("d_mean", values[0, :, 0] + seed)
            writer.put("layer", np.arange(3))
        kept_statistics(layout, NORMS[seed], lambda seed=seed: {"norm": values[0, :, 0, 0] + seed})
        write_texts(Condition(layout, "llama-it", {"template": "chat", "max_new_tokens": 4 + seed}))
        store = VerdictStore(layout.judge)
        store.add({"key": f"k{seed}", "answer": "1", "reason": "r"})
        store.flush()
        (lake.parent / "set.jsonl").write_text(f'{{"id": "p", "category": "C", "text": "say {seed}"}}\n')
        keep_prompts(layout, load_catalog(), lake.parent / "set.jsonl", f"mine-{seed}", {})
    found = Victim(layout.root, tiny.tree(layout.root), {})
    found.values = {name: reader() for name, reader in readers(layout).items()}
    return found


def not_there() -> dict[str, np.ndarray]:
    """In place of what computes statistics: a reader of them finds what is kept, or says that it is gone."""
    raise LakeError("the statistics are not there")


def write_texts(condition: Condition) -> None:
    """A text, a choice and its likelihood under a condition."""
    seen = {"prompt_sha": "s", "prompt_id": "p0"}
    text = dict.fromkeys(OUTPUTS.names, "x") | {"key": condition.key, "model": condition.model, "ended": True}
    text |= {"prompt_tokens": 1, "token_id": [1, 2], "tokens": 2}
    lines = {"texts": text, "nats-it": {"nats": 1.5, "tokens": 2}}
    lines["choices"] = {"said": "A", "generated": "A", "likeliest": "B"}
    for kind, line in lines.items():
        schema = OUTPUT_KINDS[kind.partition("-")[0]]
        condition.seal(kind, condition.file(kind, [("p0", "s")]), [line | seen], schema, {})


def readers(layout: Layout, names: Iterable[str] | None = None) -> dict[str, Callable[[], Any]]:
    """All that reads a lake, each by itself; the name begins with the part of the lake that it is about.

    `names` are the lake's files, for one that is not a folder. What ends in ` notes` reads what no number hangs on.
    """
    there = sorted(tiny.tree(layout.root) if names is None else names)
    found: dict[str, Callable[[], Any]] = {
        "captures ls": lambda: list_captures(layout).drop(columns="path").to_dict("list"),
        "streams ls": lambda: [len(stream_records(layout)), len(stream_table(layout))],
        "streams notes": lambda: [stream_records(layout), stream_table(layout).to_dict("list")],
        "lenses ls": lambda: probes_table(layout).drop(columns="path").to_dict("list"),
        "texts sql": lambda: ask(layout, "SELECT * FROM outputs ORDER BY ALL"),
        "verdicts read": lambda: verdicts(layout),
        "statistics read": lambda: [kept_statistics(layout, recipe, not_there) for recipe in NORMS],
        "prompts read": lambda: [find_prompts(load_catalog(), layout, f"mine-{seed}") for seed in range(2)],
        "tables sql": lambda: ask(layout, "SELECT * FROM lens ORDER BY ALL"),
        "tables where": lambda: ask(layout, "SELECT * FROM lens WHERE layer > 3 AND pair = 'llama' ORDER BY ALL"),
        "tables notes": lambda: [
            foreign_captures(layout, "lens"),
            len(find_tables(layout, "lens", {"version": 1})),
        ],
    }

    def each(*pattern: str) -> Iterator[tuple[str, Path]]:
        """Folders and files of the lake that a pattern, one part a level, fits."""
        levels = (PurePosixPath(*PurePosixPath(name).parts[: len(pattern)]) for name in there)
        for path in sorted({path for path in levels if all(map(fnmatchcase, path.parts, pattern))}):
            if len(path.parts) == len(pattern):
                yield str(path), layout.root / path

    for name, path in each("captures", "*", "*.zarr"):
        found[f"captures open {name}"] = lambda path=path: values(open_capture(path))
        found[f"captures token {name}"] = lambda path=path: values(open_capture(path, by="token")[["resid"]])
        found[f"captures columns {name}"] = lambda path=path: Capture(path).columns()
        found[f"captures verify {name}"] = lambda path=path: verify(layout, path).ok
        found[f"captures cite {name}"] = lambda path=path: citation(layout, path)["capture"]
        found[f"captures notes {name}"] = lambda path=path: [open_capture(path).attrs, citation(layout, path)]
    for name, path in each("streams", "*.parquet"):
        found[f"streams read {name}"] = lambda path=path: read_stream(layout, path.stem).columns
    for name, path in each("models", "*"):
        found[f"models head {name}"] = lambda path=path: read_head(layout, path.name)[0]
        found[f"models facts {name}"] = lambda path=path: read_head(layout, path.name)[1]
        found[f"models words {name}"] = lambda path=path: vocab_rows(layout, path.name)
        found[f"models weights {name}"] = lambda path=path: stored_tensors(layout, path.name)
    for name, path in each("lenses", "*", "*.zarr"):
        found[f"lenses read {name}"] = lambda path=path: dict(zip("wb", read_probes(path)[:2], strict=True))
        found[f"lenses notes {name}"] = lambda path=path: read_probes(path)[2]
    for name, path in each("directions", "*", "*.zarr"):
        found[f"directions read {name}"] = lambda path=path: {k: v[...] for k, v in read_directions(path)[0].items()}
        found[f"directions notes {name}"] = lambda path=path: read_directions(path)[1]
    for name, path in each("texts", "*", "*", "condition.json"):
        found[f"texts read {name}"] = lambda path=path: texts(layout, path)
    return found


def vocab_rows(layout: Layout, model: str) -> list[Any] | None:
    """What a model's token ids mean."""
    table = read_vocab(layout, model)
    return table and table.to_pylist()


def stored_tensors(layout: Layout, model: str) -> dict[str, np.ndarray] | None:
    """The weights of the lake's own copy of a model."""
    spec = stored_weights(layout, model)
    return spec and load_file(spec.path / "model.safetensors")


def texts(layout: Layout, marker: Path) -> list[Any]:
    """A condition's record and texts."""
    folder = layout.texts(marker.parts[-3]) / marker.parts[-2]
    found = Condition(layout, marker.parts[-3], read_condition(folder))
    return [found.recipe, read_texts(folder), found.known("nats-it"), found.known("choices")]


def verdicts(layout: Layout) -> list[Any]:
    """What judges answered of the key that the lake has."""
    store = VerdictStore(layout.judge)
    store.refresh()
    return [store.get("k0"), store.get("k1")]


def ask(layout: Layout, text: str) -> Any:
    """All rows of a SELECT."""
    try:
        return connect(layout).sql(text).fetchall()
    except duckdb.Error as error:
        raise sql_error(error, layout) from error


def values(dataset: Any) -> dict[str, np.ndarray]:
    """Every variable of a dataset."""
    return {name: np.asarray(dataset[name].values) for name in dataset.variables}


def same(one: Any, two: Any) -> bool:
    """Equal to the last value; NaN equals NaN."""
    if isinstance(one, dict) and isinstance(two, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, np.ndarray) or isinstance(two, np.ndarray):
        return np.array_equal(one, two, equal_nan=np.asarray(one).dtype.kind == "f")
    if isinstance(one, list | tuple) and isinstance(two, list | tuple):
        return len(one) == len(two) and all(map(same, one, two))
    return bool(one == two or (one != one and two != two))
