"""A lake from a stranger is data: whatever is in its files, readers give the right values or one clear line."""

import random
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import mutate
import numpy as np
import pytest
import tiny
from actlake.store.captures import Capture, list_captures, open_capture
from actlake.store.cite import citation
from actlake.store.directions import directions_writer, read_directions
from actlake.store.errors import LakeError
from actlake.store.foreign import foreign_captures
from actlake.store.layout import Layout
from actlake.store.models import read_head
from actlake.store.outputs import Condition, read_condition, read_texts
from actlake.store.probes import probes_path, probes_table, read_probes, write_probes
from actlake.store.schema import OUTPUTS
from actlake.store.streams import read_stream, stream_records
from actlake.store.tables import connect, find_tables, sql_error, stream_table, write_table
from actlake.store.verdicts import VerdictStore
from actlake.store.verify import verify

ROOM = 4 << 30  # bytes of address space that a reader may ask for beside what is there
MORE = 96 << 20  # bytes that reading a lake of some hundred KB may take


@dataclass
class Victim:
    """A small lake with one of everything, its files as they were, and what its readers give then."""

    root: Path
    files: dict[str, bytes]
    values: dict[str, Any]

    def restore(self) -> None:
        for name, data in self.files.items():
            file = self.root / name
            if file.read_bytes() != data:
                file.write_bytes(data)


@pytest.fixture(scope="module")
def victim(tmp_path_factory, llama) -> Victim:
    layout = tiny.capture(tmp_path_factory.mktemp("hostile") / "lake", llama, tiny.NATIVE)
    (path, _) = sorted(Path(row.path) for row in list_captures(layout).itertuples())
    rows = {"pair": "llama", "variant": "it", "stream": path.stem, "lens": "raw", "prompt_id": "p0", "category": "C"}
    numbers = dict.fromkeys(("prompt", "token", "position", "step", "layer", "top1", "rank_target"), np.arange(40))
    floats = dict.fromkeys(
        ("kl_layer_final", "kl_final_layer", "js_next", "entropy", "p_target", "cos_final"), np.arange(40.0)
    )
    write_table(layout, "lens", {"version": 1}, [rows | numbers | floats])
    captured = [{"pair": "other", "variant": "it", "stream": "native-other", "lens": "raw"}]
    write_table(layout, "lens", {"foreign": {"captures": captured}}, [rows | {"pair": "other"} | numbers | floats])
    record = {"pair": "llama", "variant": "it", "stream": path.stem, "model_sha256": "m", "capture_sha256": "c"}
    record |= {"recipe": {"name": "adam"}, "folds": 2, "steps": [1, 2], "trained_tokens": [3, 4]}
    record |= {"kl_raw": [[2.0, 1.0, 0.5]] * 2, "kl_tuned": [[1.0, 0.5, 0.25]] * 2}
    values = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
    write_probes(probes_path(layout, "llama", "it", "probes-x"), values, values[..., 0].copy(), record)
    with directions_writer(layout, "llama", "own", {"version": 1}) as writer:
        writer.put("d_mean", values[0, :, 0])
        writer.put("layer", np.arange(3))
    condition = Condition(layout, "llama", "it", {"template": "chat", "max_new_tokens": 4})
    text = dict.fromkeys(OUTPUTS.names, "x") | {"prompt_tokens": 1, "token_id": [1, 2], "tokens": 2, "ended": True}
    condition.seal("texts", condition.file("texts", [("p0", "s")]), [text], OUTPUTS, {})
    store = VerdictStore(layout.judge)
    store.add({"key": "k", "answer": "1", "reason": "r"})
    store.flush()
    found = Victim(layout.root, tiny.tree(layout.root), {})
    for name, reader in readers(found.root).items():
        found.values[name] = reader()
    return found


def readers(root: Path) -> dict[str, Callable[[], Any]]:
    """All that reads a lake, each by itself; the name begins with the part of the lake that it is about."""
    opened = Layout.open(root)
    found: dict[str, Callable[[], Any]] = {
        "captures ls": lambda: len(list_captures(opened)),
        "streams ls": lambda: [len(stream_records(opened)), len(stream_table(opened))],
        "probes ls": lambda: len(probes_table(opened)),
        "outputs sql": lambda: ask(opened, "SELECT count(*), max(text) FROM outputs"),
        "outputs judge": lambda: VerdictStore(opened.judge).refresh(),
        "tables sql": lambda: ask(opened, "SELECT pair, layer, entropy FROM lens ORDER BY ALL"),
        "tables foreign": lambda: [
            len(foreign_captures(opened, "lens")),
            len(find_tables(opened, "lens", {"version": 1})),
        ],
    }
    for path in sorted(root.glob("captures/*/*/*.zarr")):
        found[f"captures open {path}"] = lambda path=path: values(open_capture(path))
        found[f"captures token {path}"] = lambda path=path: values(open_capture(path, by="token")[["resid"]])
        found[f"captures columns {path}"] = lambda path=path: {
            k: v.tolist() for k, v in Capture(path).columns().items()
        }
        found[f"captures verify {path}"] = lambda path=path: verify(opened, path).ok
        found[f"captures cite {path}"] = lambda path=path: citation(opened, path)["capture"]
    for path in sorted(root.glob("streams/*.parquet")):
        found[f"streams read {path}"] = lambda path=path: read_stream(opened, path.stem).columns
    for path in sorted(root.glob("models/*/*/head.zarr")):
        found[f"models head {path}"] = lambda path=path: read_head(opened, *path.parts[-3:-1])[0]
    for path in sorted(root.glob("probes/*/*/*.zarr")):
        found[f"probes read {path}"] = lambda path=path: dict(zip("wb", read_probes(path)[:2], strict=True))
    for path in sorted(root.glob("directions/*/*.json")):
        found[f"directions read {path}"] = lambda path=path: {k: v[...] for k, v in read_directions(path)[0].items()}
    for path in sorted(root.glob("outputs/*/*/*/condition.json")):
        found[f"outputs read {path}"] = lambda path=path: [read_condition(path.parent), len(read_texts(path.parent))]
    return found


def ask(layout: Layout, text: str) -> Any:
    try:
        return connect(layout).sql(text).fetchall()
    except duckdb.Error as error:
        raise sql_error(error, layout) from error


def values(dataset: Any) -> dict[str, np.ndarray]:
    return {name: np.asarray(dataset[name].values) for name in dataset.variables}


def same(one: Any, two: Any) -> bool:
    if isinstance(one, dict) and isinstance(two, dict) and one.keys() == two.keys():
        return all(np.array_equal(one[k], two[k], equal_nan=np.asarray(one[k]).dtype.kind == "f") for k in one)
    return bool(one == two)


@contextmanager
def limited() -> Iterator[None]:
    """Whoever asks for gigabytes gets a MemoryError, so that a test can't take the machine down."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    if pages:
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ROOM, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def refusal(action: Callable[[], Any]) -> str | None:
    """The line that refuses, None when nothing did; any other exception goes on."""
    try:
        action()
    except LakeError as error:
        line = str(error)
        assert "\n" not in line and line.isprintable() and 20 < len(line) < 2000, line
        return line
    return None


# --- any file, spoilt in any way ---------------------------------------------------------------------------------------


def drill(victim: Victim, seeds: range) -> dict[str, int]:
    """Spoil a file a seed and read; counts what came of it."""
    names = sorted(victim.files)
    outcomes = {"refused": 0, "read": 0}
    for seed in seeds:
        rng = random.Random(seed)
        folder = rng.choice(sorted({name.split("/")[0] for name in names}))
        file = victim.root / rng.choice([name for name in names if name.split("/")[0] == folder])
        deed, consistent = mutate.spoil(file, rng), rng.random() < 0.5
        told = f"seed {seed}: {deed} of {file.relative_to(victim.root)}{', hashes made to fit' if consistent else ''}"
        try:
            if consistent:
                mutate.again(victim.root, file)
            _read_all(victim, file.relative_to(victim.root).parts[0], consistent, outcomes)
        except Exception as error:
            raise AssertionError(f"{told}: {type(error).__name__}: {str(error)[:300]}") from error
        finally:
            victim.restore()
    return outcomes


def _read_all(victim: Victim, folder: str, consistent: bool, outcomes: dict[str, int]) -> None:
    if refusal(lambda: Layout.open(victim.root)):
        outcomes["refused"] += 1
        return
    for name, reader in readers(victim.root).items():
        kind, verb = name.split()[:2]
        if kind != folder and (folder, kind) != ("streams", "captures"):
            continue
        found: list[Any] = []
        line = refusal(lambda reader=reader, found=found: found.append(reader()))
        outcomes["refused" if line else "read"] += 1
        if (
            line is None
            and not consistent
            and verb in ("open", "token", "head", "read")
            and kind not in ("outputs", "streams")
        ):
            assert same(found[0], victim.values[name]), f"{name}: other values, and no error"


def test_spoilt_files_are_refused_or_read_right(victim):
    with limited():
        outcomes = drill(victim, range(300))
    assert outcomes["refused"] > 100 and outcomes["read"] > 100


@pytest.mark.slow
def test_ten_thousand_spoilt_files(victim):
    with limited():
        assert drill(victim, range(1000, 11_000))["refused"] > 3000
