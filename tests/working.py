"""A process that does one thing to a lake when it is told to, and may kill itself on the way.

`python working.py LAKE TASK [OPERATION]` imports what the task needs, prints "ready", waits for a line and does it. Before
file operation OPERATION it kills itself; else it prints what came out as one line of JSON.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
from actlake.capture.streams.prompts import add_prompts
from actlake.store.artifacts.directions import directions_writer
from actlake.store.artifacts.models import write_model
from actlake.store.artifacts.probes import write_probes
from actlake.store.artifacts.streams import Stream, write_stream
from actlake.store.artifacts.texts import Condition, VerdictStore
from actlake.store.captures.manifest import seal
from actlake.store.core.schema import OUTPUTS, STREAM_SCHEMA
from actlake.store.format.paths import Layout
from actlake.store.tables.declared import TABLES
from actlake.store.tables.files import table_writer, write_table

WRITES = os.O_WRONLY | os.O_RDWR
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link")
NAMES = {"model": "p-it", "stream": "s"}
MODEL = {
    "sha256": "s",
    "id": "m",
    "revision": None,
    "files": {},
    "dtype": "float32",
    "class": "Made",
    "tokenizer_sha256": "t",
    "chat_template_sha256": "c",
    "template": "chat",
}


class Counter:
    """An audit hook that counts what changes files below a folder, and kills its own process before operation `last`: its
    number, or a part of the name of the file that it is on."""

    def __init__(self, folder: str, last: int | str | None):
        self.folder, self.last, self.count = folder, last, 0
        self.naming: list[int] = []  # the operations that give something finished its name

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        writing = event in CHANGES or (event == "open" and isinstance(args[2], int) and args[2] & WRITES)
        if writing and str(args[0]).startswith(self.folder):
            self.count += 1
            if event in ("os.rename", "os.link"):
                self.naming.append(self.count)
            if self.count == self.last or (isinstance(self.last, str) and self.last in str(args[0])):
                os.kill(os.getpid(), signal.SIGKILL)


def columns(schema: Any, rows: int, **values: Any) -> dict[str, Any]:
    """Made-up columns of a schema: texts and zeros but for those given."""
    texts = {f.name for f in schema if pa.types.is_dictionary(f.type) or pa.types.is_string(f.type)}
    found = {f.name: "x" if f.name in texts else np.zeros(rows, f.type.to_pandas_dtype()) for f in schema}
    return {**found, **values}


def table(layout: Layout) -> None:
    """A table of four row groups that become two, with as much in it that writing takes a moment."""
    groups = [
        columns(
            TABLES["lens"].schema,
            50_000,
            **NAMES,
            layer=np.full(50_000, layer, np.int32),
            token=np.arange(50_000) + start,
        )
        for start in (0, 50_000)
        for layer in (-1, 0)
    ]
    write_table(layout, "lens", {"made": 1}, groups)


def slow_table(layout: Layout) -> dict[str, Any]:
    """The same key from one that does not look whether it is there: all begin, and all finish."""
    group = columns(
        TABLES["lens"].schema, 2, **NAMES, layer=np.arange(2, dtype=np.int32), kl_final_layer=np.ones(2, np.float32)
    )
    with table_writer(layout, "lens", {"made": 2}) as add:
        add(group)
        print("begun", flush=True)
        sys.stdin.readline()
    (file,) = layout.table("lens").glob("*.parquet")
    return {"inode": file.stat().st_ino}


def head(layout: Layout) -> None:
    """A model's head."""
    arrays = {"norm_weight": np.ones(8, np.float32), "unembed": np.ones((9000, 8), np.float32)}
    arrays["real_token"] = np.ones(9000, bool)
    write_model(layout, "p-it", MODEL, arrays, {"norm": "rms", "norm_eps": 1e-6})


def probes(layout: Layout) -> None:
    """A set of tuned-lens probes."""
    recipe = {**NAMES, "model_sha256": "m", "capture_sha256": "c", "recipe": {"name": "adam"}, "folds": 2}
    facts = {"steps": [1, 1], "trained_tokens": [9, 9], "kl_raw": [[2.0] * 3] * 2, "kl_tuned": [[1.0] * 3] * 2}
    weight, bias = np.ones((2, 3, 4, 4), np.float32), np.ones((2, 3, 4), np.float32)
    write_probes(layout, recipe, weight, bias, facts)


def directions(layout: Layout) -> None:
    """A group of directions."""
    with directions_writer(layout, {"pt": "p-pt", "it": "p-it"}, "own", {"made": 1}) as writer:
        writer.put("difference", np.ones((5, 2, 4)))
        writer.put("norm", np.ones(2))


def outputs(layout: Layout, prompts: tuple[str, ...] = ("a", "b", "c")) -> None:
    """The texts of some prompts under one condition: batches, then the file."""
    condition = Condition(layout, "p-it", {"made": 1})
    for sha in prompts:
        condition.keep("texts", [{"prompt_sha": sha, "text": f"says {sha}"}])
    known = condition.known("texts")
    row = dict.fromkeys(OUTPUTS.names) | {"key": condition.key}
    rows = [{**row, **known[sha], "prompt_id": sha} for sha in prompts]
    condition.seal("texts", condition.file("texts", [(sha, sha) for sha in prompts]), rows, OUTPUTS, {})


def verdicts(layout: Layout, name: str = "own") -> None:
    """Verdicts of this process's own and of all alike, some to a file."""
    store = VerdictStore(layout.judge, part=3)
    for number in range(20):
        for key in (f"all-{number}", f"{name}-{number}"):
            store.add({"key": key, "answer": "A", "reason": ""})
    store.flush()


def prompts(layout: Layout) -> None:
    """A prompt set."""
    source = layout.root.with_name("mine.jsonl")
    if not source.exists():
        source.write_text("".join(f'{{"id": "{i}", "text": "t{i}"}}\n' for i in range(50)))
    add_prompts(source, layout, "mine")


def stream(layout: Layout, key: str = "k") -> None:
    """A stream, made by a recipe of this name."""
    tokens = [np.arange(5, dtype=np.int32)]
    recipe = {"key": key, "tokenizer_sha256": "t"}
    made = Stream("raw", "made", ["a"], ["C"], tokens, [2], list("abcde"), np.zeros(5, bool), recipe)
    assert set(STREAM_SCHEMA.names) >= set(made.columns)
    write_stream(layout, made)


def everything(layout: Layout) -> None:
    """One of each, the same by all processes."""
    for task in (head, probes, directions, prompts, stream, table):
        task(layout)


def together(layout: Layout) -> dict[str, Any]:
    """What processes add to: a stream by recipes of their own, texts of sets that share prompts, verdicts."""
    names = [f"{os.getpid()}-{number}" for number in range(20)]
    for number, name in enumerate(names):
        stream(layout, name)
        outputs(layout, tuple(f"{(number + i) // 2}" for i in range(4)))
    verdicts(layout, str(os.getpid()))
    return {"keys": names}


def sealing(layout: Layout) -> None:
    """Every capture, whose rows are all there."""
    for path in sorted((layout.root / "captures").glob("*/*.zarr")):
        seal(path)


def read(layout: Layout, tables: bool = False) -> dict[str, Any]:
    """Ask everything again and again until a file stop lies beside the lake, and once more; what is sealed is whole each time."""
    import actlake

    rounds, seen, last = 0, set(), False
    while not last:
        last = layout.root.with_name("stop").exists()
        lake = actlake.open(layout.root)
        there = lake.captures
        assert not there[["model", "stream"]].duplicated().any()
        sealed = {f"{row.model}/{row.stream}": row.tokens for row in there[there.sealed].itertuples()}
        for name, tokens in sealed.items():
            found = lake.dataset(*name.rsplit("/", 1))
            assert found.sizes["token"] == tokens > 0 and np.isfinite(found.resid[:, -1].values).all()
            seen.add(name)
        name = "model || '/' || stream"
        assert sealed.items() <= dict(lake.sql(f"SELECT {name}, tokens FROM captures WHERE sealed").fetchall()).items()
        assert set(sealed) <= {row[0] for row in lake.sql(f"SELECT {name} FROM streams").fetchall()}
        if tables:  # what is missing is computed, by whoever asks
            assert (
                sealed.items() <= dict(lake.sql(f"SELECT {name}, count(*) FROM tokens GROUP BY 1").fetchall()).items()
            )
        rounds += 1
        time.sleep(0 if last else 2)  # else ten of them leave nothing of two cores to those who write
    return {"rounds": rounds, "seen": sorted(seen)}


def read_tables(layout: Layout) -> dict[str, Any]:
    """`read`, and a table."""
    return read(layout, tables=True)


TASKS: dict[str, Callable[[Layout], Any]] = {
    task.__name__: task
    for task in (
        *(table, slow_table, head, probes, directions, outputs, verdicts, prompts, stream, sealing),
        *(everything, together, read, read_tables),
    )
}


if __name__ == "__main__":
    found = Layout.open(sys.argv[1], create=True)
    counter = Counter(str(found.root), int(sys.argv[3]) if sys.argv[3:] else None)
    print("ready", flush=True)
    sys.stdin.readline()
    sys.addaudithook(counter)
    told = TASKS[sys.argv[2]](found) or {}
    print(json.dumps({**told, "operations": counter.count}), flush=True)
