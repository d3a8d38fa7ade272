"""A lake from a stranger is data: whatever is in its files, readers give the right values or one clear line."""

import ast
import hashlib
import json
import os
import random
import resource
import shutil
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any

import duckdb
import made
import mutate
import numpy as np
import pandas as pd
import pytest
import tiny
import zarr
from actlake.capture.streams.prompts import read_prompts
from actlake.cli import main
from actlake.judge.rubrics import read_rubrics
from actlake.lake import Lake
from actlake.queries.answer.lock import read_lock
from actlake.queries.figures.page import page
from actlake.queries.rows.header import parse
from actlake.store.artifacts.models import read_head
from actlake.store.artifacts.probes import read_probes
from actlake.store.artifacts.streams import read_stream
from actlake.store.captures.allocate import create_capture
from actlake.store.captures.reader import Capture, list_captures, open_capture
from actlake.store.captures.verify import verify
from actlake.store.captures.writer import prompt_file, write_prompts
from actlake.store.core.catalog import load_catalog
from actlake.store.core.errors import LakeError
from actlake.store.core.files import read_json
from actlake.store.core.schema import FORMAT_VERSION
from actlake.store.exchange.transfer import write_index
from actlake.store.format.npz import read_npz
from actlake.store.format.paths import Layout
from actlake.store.format.records import sealed
from actlake.store.format.shards import Grid
from actlake.store.remote.opening import open_store
from actlake.store.tables.sql import connect
from servers import served
from test_store_capture import made_template
from test_sync import carry
from typer.testing import CliRunner
from victim import Victim, ask, make_victim, readers, same, values

ROOM = 4 << 30  # bytes of address space that a reader may ask for beside what is there
EVIL = b"mischief"
MORE = 96 << 20  # bytes that reading a lake of some hundred KB may take


@pytest.fixture(scope="module")
def victim(tmp_path_factory, llama) -> Victim:
    return make_victim(tmp_path_factory.mktemp("hostile") / "lake", llama, tiny.NATIVE)


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
    for name, reader in readers(Layout.open(victim.root)).items():
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
        outcomes = drill(victim, range(120))
    assert outcomes["refused"] > 50 and outcomes["read"] > 50


@pytest.mark.slow
def test_three_thousand_spoilt_files(victim):
    with limited():
        assert drill(victim, range(1000, 4000))["refused"] > 1000


# --- what a stranger may try -------------------------------------------------------------------------------------------


@pytest.fixture
def stranger(victim, tmp_path) -> Layout:
    """A copy of the small lake, to be spoilt by hand."""
    shutil.copytree(victim.root, tmp_path / "lake")
    return Layout.open(tmp_path / "lake")


def capture_of(layout: Layout) -> Path:
    return min(layout.root.glob("captures/*/*.zarr"))


def change(file: Path, edit: Callable[[Any], Any], root: Path) -> None:
    """Edit a JSON file in place and make the hashes of the lake fit."""
    record = json.loads(file.read_bytes())
    edit(record)
    file.write_text(json.dumps(record))
    mutate.again(root, file)


def peak(action: Callable[[], Any]) -> tuple[str | None, int]:
    """The line that refuses, and the most bytes that Python and NumPy held on the way."""
    tracemalloc.start()
    try:
        return refusal(action), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def of(record: Any, name: str) -> Any:
    return record["consolidated_metadata"]["metadata"][name]


def resid(record: Any) -> Any:
    return of(record, "resid")


def inner(record: Any) -> list[Any]:
    return resid(record)["codecs"][0]["configuration"]["codecs"]


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda r: inner(r).__setitem__(1, {"name": "numcodecs.pickle"}), "expected 'blosc', found 'numcodecs.pickle'"),
        (lambda r: inner(r).append({"name": "gzip"}), "resid.codecs[0].configuration.codecs: expected a list of 3"),
        (lambda r: inner(r)[1]["configuration"].update(cname="lz4"), "expected 'zstd', found 'lz4'"),
        (lambda r: inner(r)[1]["configuration"].update(blocksize=2**40), "expected a whole number from 0 to 1073741824"),
        (lambda r: resid(r).update(codecs=[{"name": "vlen-bytes"}]), "expected 'sharding_indexed', found 'vlen-bytes'"),
        (lambda r: resid(r).update(codecs="pickle"), "resid.codecs: expected a list"),
        (lambda r: resid(r).update(data_type="object"), "resid.data_type: expected 'float32'"),
        (lambda r: resid(r).update(data_type={"name": "numpy.datetime64"}), "resid.data_type: expected 'float32'"),
        (lambda r: resid(r).update(storage_transformers=[{"name": "x"}]), "resid.storage_transformers: expected []"),
        (lambda r: resid(r)["shape"].__setitem__(0, 2**60), "resid.shape[0]: expected a whole number from 0 to"),
        (lambda r: resid(r)["shape"].__setitem__(0, 2**46), "expected at most 2^53 bytes"),
        (lambda r: resid(r)["shape"].__setitem__(0, 2**30), "stored: expected"),
        (lambda r: resid(r)["shape"].__setitem__(0, 1), "resid: token 1, expected"),
        (lambda r: resid(r)["shape"].__setitem__(0, True), "resid.shape[0]: expected a whole number"),
        (lambda r: resid(r).update(shape=[]), "0 axes"),
        (lambda r: resid(r)["chunk_grid"]["configuration"].update(chunk_shape=[2**50, 4, 32]), "resid: found"),
        (lambda r: resid(r)["chunk_grid"]["configuration"].update(chunk_shape=[0, 4, 32]), "chunk_shape[0]: expected a whole"),
        (lambda r: resid(r)["chunk_grid"].update(name="rectangular"), "expected 'regular', found 'rectangular'"),
        (lambda r: resid(r)["codecs"][0]["configuration"].update(chunk_shape=[2**29, 1, 32]), "chunks of at most 2147483647"),
        (lambda r: resid(r)["codecs"][0]["configuration"].update(chunk_shape=[3, 1, 32]), "expected whole chunks"),
        (lambda r: resid(r).update(dimension_names=["layer", "boundary", "d_model"]), "resid: axes layer"),
        (lambda r: resid(r).update(fill_value={"a": 1}), "resid.fill_value: expected"),
        (lambda r: resid(r).update(fill_value=1e300), "resid.fill_value: expected a number of 32 bits"),
        (lambda r: of(r, "position").update(fill_value=-(2**40)), "position.fill_value: expected a whole number of 32"),
        (lambda r: of(r, "is_special").update(fill_value=0), "is_special.fill_value: expected true or false"),
        (lambda r: r["consolidated_metadata"]["metadata"].update({"../../x": resid(r)}), "the name of an array"),
        (lambda r: r["consolidated_metadata"]["metadata"].pop("token_id"), "token_id: found nothing"),
        (lambda r: r.update(node_type="array"), "node_type: expected 'group'"),
        (lambda r: r.update(zarr_format=2), "zarr_format: expected 3"),
    ],
)  # fmt: skip
def test_metadata_of_any_other_kind_are_refused(stranger, edit, said):
    path = capture_of(stranger)
    change(path / "zarr.json", edit, stranger.root)
    with limited():
        line, held = peak(lambda: values(open_capture(path)))
    assert line and said in line and str(path / "zarr.json") in line and "`actlake capture` again" in line, line
    assert held < MORE
    assert not verify(stranger, path).ok


def test_a_capture_that_claims_more_than_its_files_can_hold(stranger):
    path = capture_of(stranger)
    tokens = 2**31

    def enlarge(record: Any) -> None:
        for name, array in record["consolidated_metadata"]["metadata"].items():
            if array["dimension_names"][0] == "token":
                array["shape"][0] = tokens
                if name in ("token_id", "prompt", "position", "step", "is_special", "segment", "turn"):
                    array["chunk_grid"]["configuration"]["chunk_shape"] = [2**28]

    change(path / "zarr.json", enlarge, stranger.root)
    change(
        path / "manifest.json",
        lambda r: r.update(n_tokens=tokens, n_shards=tokens // r["shard_tokens"]),
        stranger.root,
    )
    with limited():
        line, held = peak(lambda: values(open_capture(path)))
    assert line and "stored: expected" in line and held < MORE


@pytest.mark.parametrize("name", ["token_id", "unembed", "weight", "resid"])
@pytest.mark.parametrize(
    ("at", "value"),
    [(4, 2**31 - 64), (4, 1), (8, 0), (8, 1), (8, 2**31), (12, 2**31), (12, 5), (16, 2**31 - 1), (16, 0)],
)
def test_a_frame_that_says_another_size(stranger, name, at, value):
    """The checksum is right: only what the frame says can tell."""
    file = min(file for file in stranger.root.glob(f"**/{name}/c/**/0") if file.is_file())
    data = bytearray(file.read_bytes())
    length = int.from_bytes(data[12:16], "little")  # of a shard the first chunk
    data[at : at + 4] = value.to_bytes(4, "little")
    data[length : length + 4] = mutate.crc(bytes(data[:length]))
    file.write_bytes(bytes(data))
    mutate.again(stranger.root, file)
    reader = {
        "token_id": lambda: open_capture(capture_of(stranger)),
        "resid": lambda: values(open_capture(capture_of(stranger))),
        "unembed": lambda: read_head(stranger, "llama-it"),
        "weight": lambda: read_probes(next(folder for folder in file.parents if folder.suffix == ".zarr")),
    }[name]
    with limited():
        line, held = peak(reader)
    assert line and str(file) in line and held < MORE


def test_texts_that_say_there_are_four_billion_of_them(stranger):
    file = capture_of(stranger) / "prompt_id" / "c" / "0"
    data = file.read_bytes()
    for head in (b"\xff" * 4, b"\0" * 4, data[:4] + b"\xff\xff\xff\xff"):
        body = head + data[len(head) : -4]
        file.write_bytes(body + mutate.crc(body))
        line, held = peak(lambda: open_capture(capture_of(stranger)))
        assert line and str(file) in line and held < MORE


@pytest.mark.parametrize(
    "name", ["../../../../../../secret", "/etc/hostname", "a/../../secret", "C:\\x", "a\0b", "", "x/" * 30, "y" * 300]
)
def test_names_in_records_never_leave_their_folder(stranger, name):
    path = capture_of(stranger)
    change(path / "manifest.json", lambda r: r["files"].update({name: {"sha256": "0" * 64, "bytes": 1}}), stranger.root)
    for reader in (lambda: verify(stranger, path), lambda: open_capture(path), lambda: list_captures(stranger)):
        line = refusal(reader)
        assert (
            line and f"{path / 'manifest.json'}: a key of files: expected the path of a file inside the folder" in line
        )


def spoil_names(stranger: Layout, record: str, name: str) -> Path:
    """Make a record of a lake name a file that nobody should write; returns the record."""
    path, model = capture_of(stranger), stranger.model("llama-it")
    named = {name: {"sha256": hashlib.sha256(EVIL).hexdigest(), "bytes": len(EVIL)}}
    if record == "manifest.json":
        change(path / record, lambda r: r["files"].update(named), stranger.root)
        return path / record
    if record == "partial.json":
        manifest = json.loads((path / "manifest.json").read_bytes())
        about = {
            "format_version": FORMAT_VERSION,
            "capture_sha256": manifest["capture_sha256"],
            "holds": {},
            "files": named,
        }
        (path / record).write_text(json.dumps(about))
        return path / record
    if record == "model.json":
        change(model / record, lambda r: r["head_files"].update(named), stranger.root)
        return model / record
    if record == "weights.json":
        (model / record).write_text(json.dumps({"format_version": FORMAT_VERSION, "model_sha256": "x", "files": named}))
        return model / record
    stream = min(stranger.streams.glob("*.json"))
    change(stream, lambda r: r.update(name=name, same_as=name), stranger.root)
    return stream


@pytest.mark.parametrize("name", ["../../../../../evil", "a/../../../../../../evil", "/evil"])
@pytest.mark.parametrize("record", ["manifest.json", "partial.json", "model.json", "weights.json", "a stream"])
def test_names_in_records_never_leave_the_lake_that_they_are_copied_to(stranger, tmp_path, record, name):
    """Whoever pulls a lake gets no file beside it, whatever its records name and its server sends for that."""
    file, target = spoil_names(stranger, record, name), tmp_path / "a" / "b" / "c" / "d" / "e" / "mine"
    for folder in (stranger.root.parent, *stranger.root.parents[1:4]):
        (folder / "evil").write_bytes(EVIL)  # for sources in a folder
    write_index(open_store(stranger.root))
    with served(stranger.root.parent) as web:
        for source in (str(stranger.root), f"{web.url}/lake"):
            line = refusal(lambda source=source: carry(source, target, weights=True))
            assert line and file.name in line, line
    assert {path.name for path in tmp_path.rglob("evil")} <= {"evil"} and not list((tmp_path / "a").rglob("evil"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"capture_sha256": "0" * 64}, "capture_sha256: found 000"),
        ({"files": {"resid/c/9999/0/0": {"sha256": "0" * 64, "bytes": 1}}}, "files: 'resid/c/9999/0/0'"),
        ({"holds": {"resid": {"rows": [0, 9999], "places": None}}}, "holds: resid"),
        ({"holds": {"resid": {"rows": None, "places": [77]}}}, "holds: resid"),
        ({"holds": {"nothing": {"rows": None, "places": None}}}, "holds: nothing"),
        ({"holds": {"resid": {"rows": "all", "places": None}}}, "holds.resid.rows: expected a list"),
        ({"holds": {"resid": {"rows": [-1], "places": None}}}, "holds.resid.rows: expected a list"),
        ({"holds": {"resid": {"rows": None}}}, "holds.resid.places: missing"),
        ({"holds": None}, "holds: expected an object"),
        ({"files": {"x": {"sha256": "0", "bytes": 1}}}, "files.x.sha256: expected a SHA-256"),
    ],
)
def test_a_part_that_is_not_of_its_capture(stranger, tmp_path, changes, said):
    path = capture_of(stranger)
    sha256 = json.loads((path / "manifest.json").read_bytes())["capture_sha256"]
    record = {"format_version": FORMAT_VERSION, "capture_sha256": sha256, "holds": {}, "files": {}}
    (path / "partial.json").write_text(json.dumps(sealed(record | changes)))
    for reader in (
        lambda: verify(stranger, path),
        lambda: open_capture(path),
        lambda: list_captures(stranger),
        lambda: carry(str(stranger.root), tmp_path / "mine"),
    ):
        line = refusal(reader)
        assert line and said in line and "`actlake pull` it again" in line, line


@pytest.mark.parametrize(
    ("start", "count"),
    [(2**63, 8), (0, 2**62), (0, 2**40), (2**64 - 2, 1), (2**63 - 1, 2**63 - 1), (0, 2**34), (9, 2**64 - 9)],
)
def test_an_index_of_a_shard_that_points_beyond_it(stranger, tmp_path, start, count):
    file = min(file for file in capture_of(stranger).glob("resid/c/*/0/0"))
    array = zarr.open_array(capture_of(stranger) / "resid", mode="r")
    size = 16 * int(np.prod(Grid.of(array).counts))
    data = file.read_bytes()
    index = np.frombuffer(data[-4 - size : -4], "<u8").copy()
    index[:2] = start, count
    file.write_bytes(data[: -4 - size] + index.tobytes() + mutate.crc(index.tobytes()))
    mutate.again(stranger.root, file)
    for reader in (
        lambda: open_capture(capture_of(stranger)).resid[:, 0].compute(),
        lambda: carry(str(stranger.root), tmp_path / "mine", boundaries=(0,)),
    ):
        line, held = peak(reader)
        assert line and str(file) in line and "its index has a chunk at" in line and held < MORE, line


@pytest.mark.parametrize("seed", range(24))
def test_pulling_a_spoilt_lake_copies_good_files_or_is_refused(victim, tmp_path, seed):
    """Nothing but the lake's own files comes out of it, and what came is the source's, byte for byte."""
    rng = random.Random(seed)
    source, target = tmp_path / "theirs", tmp_path / "in" / "mine"
    shutil.copytree(victim.root, source)
    carry(str(source), tmp_path / "part", boundaries=(0, 2))
    source = tmp_path / rng.choice(["theirs", "part"])
    file = source / rng.choice(
        [name for name in sorted(tiny.tree(source)) if name.endswith((".json", ".parquet", "zarr.json"))]
    )
    mutate.spoil(file, rng)
    if rng.random() < 0.5:
        mutate.again(source, file)
    wish = rng.choice([{}, {}, {"boundaries": (0,)}, {"limit": 2}, {"names": ("llama",)}, {"variants": ("it",)}])
    refusal(lambda: carry(str(source), target, **wish))
    assert not any(path.suffix == ".tmp" for path in tmp_path.rglob("*"))
    theirs = tiny.tree(source)
    for name, data in tiny.tree(target).items() if target.exists() else ():
        made = name.endswith("partial.json") or wish and "/c/" in name
        assert made or data == theirs[name], name
    assert not target.parent.exists() or [path.name for path in target.parent.iterdir()] == ["mine"]


def test_what_may_be_null_must_still_be_there(stranger):
    file = next(stranger.root.glob("captures/*/*.zarr/manifest.json"))
    change(file, lambda record: record["variables"]["resid"].pop("min"), stranger.root)
    line = refusal(lambda: verify(stranger, file.parent))
    assert line and f"{file}: variables.resid.min: missing; restore" in line


def test_streams_that_point_at_each_other_or_elsewhere(stranger):
    one, two = sorted(stranger.streams.glob("*.json"))
    for first, second, said in (
        (two.stem, one.stem, "an alias of an alias"),
        ("../x", "../x", "same_as: expected a name"),
    ):
        for file, target in ((one, first), (two, second)):
            change(file, lambda record, target=target: record.update(same_as=target), stranger.root)
        line = refusal(lambda: read_stream(stranger, one.stem))
        assert line and said in line


@pytest.mark.parametrize(
    "place",
    ["captures", "tables/lens", "streams/x.json", "tables/lens/x.parquet", "lake.json", "captures/llama-it/x.zarr"],
)
def test_links_that_leave_the_lake_are_not_followed(stranger, tmp_path, place):
    file = stranger.root / place
    outside = tmp_path / "outside"
    if file.exists():
        shutil.move(file, outside)
    else:
        outside.mkdir()
    file.symlink_to(outside)
    line = refusal(lambda: Layout.open(stranger.root))
    assert line and f"{file}: a link that leaves the lake" in line and "cp -rL" in line
    file.unlink()
    (inside := stranger.root / "inside").mkdir()
    if place.startswith("tables"):
        file.symlink_to(inside)
        Layout.open(stranger.root)


def test_a_pipe_in_place_of_a_file_does_not_hang(stranger):
    path = capture_of(stranger)
    shard = min((path / "resid").glob("c/*/0/0"))
    for file, reader in (
        (shard, lambda: values(open_capture(path))),
        (path / "token_id/c/0", lambda: open_capture(path)),
        (path / "manifest.json", lambda: open_capture(path)),
        (min(stranger.root.glob("tables/lens/*.parquet")), lambda: connect(stranger)),
        (stream := min(stranger.streams.glob("*.parquet")), lambda: read_stream(stranger, stream.stem)),
    ):
        data = file.read_bytes()
        file.unlink()
        os.mkfifo(file)
        assert str(file) in str(refusal(reader))
        file.unlink()
        file.write_bytes(data)


def test_json_is_bounded_before_it_is_read(tmp_path):
    file = tmp_path / "x.json"
    file.touch()
    os.truncate(file, 300 << 20)  # takes no room on the disk
    line, held = peak(lambda: read_json(file))
    assert line and "314572800 bytes, expected 268435456 at most" in line and held < MORE
    for raw in (
        *mutate.RAW[:-1],
        '{"a": 1e400}',
        "[" * 70 + "]" * 70,
        '{"a":' * 900 + "1" + "}" * 900,
        "\ufeff{}",
        '["\ud800"]',
    ):
        file.write_bytes(raw.encode("utf-8", "surrogatepass"))
        assert "not valid JSON" in str(refusal(lambda: read_json(file)))


class Bomb:
    """What a pickle runs."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


def test_no_pickle_is_ever_loaded(lake, tmp_path):
    template = made_template(names=("resid",))
    path = lake.capture("made-pt", template.stream.name)
    create_capture(path, template)
    file, ran = prompt_file(path, 0), tmp_path / "ran"
    np.savez(file, **{"attn_entropy/prompt": np.array([0]), "attn_entropy/values": np.array([Bomb(ran)], dtype=object)})
    np.load(file, allow_pickle=True)["attn_entropy/values"]
    assert ran.exists()
    ran.unlink()
    line = refusal(lambda: read_npz(file))
    assert line and str(file) in line and not ran.exists()
    header = (
        b"\x93NUMPY\x01\x00v\x00"
        + f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({2**40},)}}".ljust(117).encode()
        + b"\n"
    )
    with zipfile.ZipFile(file, "w") as made_up:
        made_up.writestr("x.npy", header + b"1234")
    line, held = peak(lambda: read_npz(file))
    assert line and "its header says" in line and held < MORE
    write_prompts(path, 0, {"attn_entropy": {0: np.zeros((2, 3), np.float32)}})
    assert read_npz(file)["attn_entropy/values"].shape == (1, 2, 3)


FORBIDDEN = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}


def test_the_package_has_nothing_that_runs_data():
    """No pickle, no eval, no unsafe YAML, no remote code, in any module."""
    root = Path(tiny.__file__).parent.parent
    rooms = ("store", "analyze", "capture", "queries", "exchange")
    files = [*root.glob("*.py"), *(file for room in rooms for file in (root / room).rglob("*.py"))]
    assert len(files) > 100
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            assert not FORBIDDEN & {name.split(".")[0] for name in names}, file
            if isinstance(node, ast.Call):
                called, given = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
                assert called not in (
                    "eval",
                    "exec",
                    "compile",
                    "__import__",
                    "os.system",
                    "yaml.load",
                ), file
                tensors = (
                    file == root / "exchange" / "torch_files.py" and given.get("weights_only") == "True"
                )  # files of others
                assert called != "torch.load" or tensors, file
                assert "shell" not in given and given.get("trust_remote_code", "False") == "False", file
                assert called != "np.load" or given.get("allow_pickle") == "False", file


@pytest.mark.parametrize("depth", [10, 70, 500, 900, 1100, 5000])
def test_prompts_nested_in_one_another(tmp_path, depth):
    file = tmp_path / "deep.jsonl"
    file.write_text(json.dumps({"id": "p0", "text": "x", "more": 1}).replace("1}", "[" * depth + "]" * depth + "}"))
    assert (refusal(lambda: read_prompts(file)) is None) == (depth < 64)


# --- files that are no part of a lake ----------------------------------------------------------------------------------

ROOT = Path(tiny.__file__).parent.parent
OUTSIDE = {
    "catalog.yaml": load_catalog,
    "rubrics.yaml": read_rubrics,
    "prompts.jsonl": read_prompts,
    "prompts.csv": read_prompts,
    "query.sql": lambda file: parse(file.read_text(errors="replace"), file.name),
    "x.lock": read_lock,
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_spoilt_files_beside_a_lake_are_read_or_refused(tmp_path, name):
    good = {
        "catalog.yaml": (ROOT / "catalog.yaml").read_bytes(),
        "rubrics.yaml": (ROOT / "prompts" / "rubrics.yaml").read_bytes(),
        "prompts.csv": b'id,text,choices\np0,hello,"[""a"", ""b""]"\np1,"a, b",\n',
        "query.sql": (ROOT / "queries" / "rows" / "L2.sql").read_bytes(),
        "x.lock": json.dumps(
            {"format": "actlake lock", "format_version": FORMAT_VERSION, "versions": {"actlake": "1"}, "rows": [LOCKED]}
        ).encode(),
    }.get(name, b'{"id": "p0", "text": "hello", "choices": ["a", "b"]}\n{"id": "p1", "text": "x", "answer": "1"}\n')
    file, refused = tmp_path / name, 0
    file.write_bytes(good)
    assert refusal(lambda: OUTSIDE[name](file)) is None
    for seed in range(150):
        rng = random.Random(seed)
        file.write_bytes(good)
        deed = mutate.spoil(file, rng)
        try:
            refused += refusal(lambda: OUTSIDE[name](file)) is not None
        except Exception as error:
            raise AssertionError(f"seed {seed}: {deed}: {type(error).__name__}: {error}") from error
    assert refused > 10


LOCKED = {
    "row": "L2", "pairs": ["pocket"], "prompts": None, "query_sha256": "0" * 64, "captures": {}, "files": {}, "table": "a\n1\n",
    "table_sha256": hashlib.sha256(b"a\n1\n").hexdigest(),
}  # fmt: skip


@pytest.mark.parametrize("reader", [load_catalog, read_rubrics])
def test_aliases_that_grow_without_end_take_no_time(tmp_path, reader):
    """Ten lines that stand for 10^30 values, and anchors that hold themselves."""
    file = tmp_path / "x.yaml"
    lines = ["a0: &a0 [x, y]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 30)]
    for head in ("profiles", "rubrics"):
        file.write_text("\n".join(lines) + f"\n{head}:\n  x: {{sites: *a29, answers: *a29, template: *a29}}\n")
        assert refusal(lambda: reader(file))
        file.write_text("profiles:\n  x: {sites: *a29}\n" + "\n".join(lines))
        assert refusal(lambda: reader(file))
        bomb = "[" + ", ".join(["*b"] * 9) + "]"
        file.write_text(
            f"{head}:\n  x:\n    sites: [&b [x, y, z], {bomb}, {bomb}]\n    answers: [&c [*c], *c]\n    template: x\n"
        )
        assert refusal(lambda: reader(file))


# --- SQL, pages and addresses ------------------------------------------------------------------------------------------


def test_a_file_among_the_tables_that_is_none_is_named(stranger):
    file = stranger.root / "tables/lens/it's [a] *.parquet"
    for write, said in (
        (lambda: file.write_bytes(b"no"), "not a Parquet file"),
        (lambda: file.mkdir(), "not a regular file"),
        (lambda: pd.DataFrame({"pair": ["x"]}).to_parquet(file), "a copy under another name"),
        (lambda: shutil.copy(next(file.parent.glob("[0-9a-f]*.parquet")), file), "a copy under another name"),
    ):
        write()
        line = refusal(lambda: ask(stranger, "SELECT count(*) FROM lens"))
        assert line and f"{file}: " in line and said in line
        file.rmdir() if file.is_dir() else file.unlink()


def test_names_with_quotes_and_wildcards_are_only_names(stranger, tmp_path):
    root = shutil.copytree(stranger.root, tmp_path / "it's; DROP [x] *?" / "lake")
    (tmp_path / "it's; DROP [x] *?" / "other").mkdir()
    assert ask(Layout.open(root), "SELECT count(*) FROM lens") == [(120,)]
    connection = connect(Layout.open(root))
    for text in (f"SELECT * FROM read_text('{str(root).replace(chr(39), chr(39) * 2)}/lake.json')", "FROM glob('/*')"):
        with pytest.raises(duckdb.PermissionException):
            connection.sql(text).fetchall()


def test_a_page_of_a_strangers_names_has_no_script_in_it():
    evil = "\"><script>alert(1)</script><img src=x onerror=alert(1)>'{{ 7*7*1009 }}{% raw %}"
    answer = made.l2(evil)
    answer.streams = {"pt": evil, "it": evil}
    answer.table["measure"] = evil
    answer.sentence = answer.sql = evil
    captures = pd.DataFrame(
        [dict.fromkeys(("model", "stream"), evil) | dict.fromkeys(("prompts", "tokens", "bytes"), 1)]
    )
    html = page(
        [answer],
        title=evil,
        sentences=[evil],
        steps=[],
        captures=captures,
        next_commands=[evil],
        refused=[(evil, evil)],
    )

    own = resources.files("actlake.queries.figures").joinpath("page.js").read_text(encoding="utf-8")
    assert (
        html.count("<script") == 1 and f"<script>{own}</script>" in html
    )  # its own, which the policy allows by its hash
    html = html.replace(f"<script>{own}</script>", "")

    class Tags(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            assert tag not in ("script", "iframe", "object", "link", "base", "form"), tag
            for name, value in attrs:
                assert not name.startswith("on") and not (value or "").strip().lower().startswith("javascript:")
                assert name not in ("src", "href") or (value or "").startswith(("data:image/png", "#", "https://")), (
                    value
                )

    Tags().feed(html)
    assert "<script" not in html and str(7 * 7 * 1009) not in html


def test_keys_in_an_address_are_in_no_message(tmp_path):
    secret = "s3://AKIAKEY:wJalr/SECRET@bucket/lake?X-Amz-Signature=SIGNED"
    (tmp_path / "catalog.yaml").write_text(f"prompts:\n  x: {{path: '{secret}'}}\nlakes:\n  y: '{secret}'\n")
    for action in (
        lambda: Layout.open(secret),
        lambda: Lake(secret, create=True),
        lambda: load_catalog(tmp_path / "catalog.yaml"),
    ):
        line = refusal(action)
        assert (
            line and "SECRET" not in line and "SIGNED" not in line and "AKIAKEY" not in line and "bucket/lake" in line
        )


def test_what_a_terminal_would_act_on_is_not_sent_to_it(stranger):
    path = capture_of(stranger)
    change(
        path / "zarr.json", lambda r: r["attributes"].update(note="\x1b]0;owned\x07[red]x\x9b2J\u202e"), stranger.root
    )
    run = CliRunner().invoke
    show = run(main.app, ["show", f"llama-it/{path.stem}", "--lake", str(stranger.root)])
    sql = run(main.app, ["sql", "SELECT '\x1b[2J' || chr(27) AS x FROM captures", "--lake", str(stranger.root)])
    for done, text in ((show, "]0;owned"), (sql, "[2J")):
        assert done.exit_code == 0 and text in done.output
        assert not {
            letter for letter in done.output if letter < " " or "\x7f" <= letter < "\xa0" or letter == "\u202e"
        } - {"\n"}


def test_coordinates_that_point_nowhere(stranger):
    """Hashes and checksums are right: only the values can tell."""
    path = capture_of(stranger)
    prompts, tokens = len(Capture(path).array("prompt_id")[:]), Capture(path).n_tokens
    group = zarr.open_group(path, mode="r+", use_consolidated=False)
    for name, at, value, reader in (
        ("prompt", 3, prompts, lambda: Capture(path).columns()),
        ("prompt", 3, -1, lambda: Capture(path).columns()),
        ("offset", 1, tokens + 5, lambda: Capture(path).offset()),
        ("offset", 0, -4, lambda: Capture(path).offset()),
        ("offset", -1, tokens - 1, lambda: Capture(path).offset()),
    ):
        before = group[name][at]
        group[name][at] = value
        mutate.again(stranger.root, path / name / "c" / "0")
        line = refusal(reader)
        assert line and f"{path / name}: found" in line
        group[name][at] = before
    mutate.again(stranger.root, path / "offset" / "c" / "0")
    mutate.again(stranger.root, path / "prompt" / "c" / "0")
    assert verify(stranger, path).ok
