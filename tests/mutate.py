"""What a stranger, a broken disk or a bad copy may do to the files of a lake: seeded, and without any import but crc32c.

`spoil` changes the bytes of one file; `again` makes the records of the lake fit it, as somebody who means harm would.
"""

import hashlib
import json
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import google_crc32c

DEEP = 100_000  # levels of nesting, more than any parser climbs
HOSTILE: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 7, 2**31, 2**53 + 1, 2**60, -(2**63), 10**30, 0.5, -1e308, "", " ", "x", "0", "NaN",
    "../../x", "/etc/passwd", "a/../../b", "..", ".", "C:\\x", "a\x00b", "a\nb", "\x1b[31m", "é", "'; --", "<script>", "{{x}}",
    "s3://KEY:SECRET@bucket/", "x" * 300, "0" * 64, [], {}, [[]], [-1], [2**60], [1.5], ["x"], {"x": 1}, [None, {}], {"": 0},
    {"../x": {"sha256": "0" * 64, "bytes": 2**60}},
)  # fmt: skip
# What json.dumps would not write.
RAW = (
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "-1e999",
    "[" * DEEP,
    '{"a":' * DEEP,
    "9" * 5000,
    '"\\ud800"',
    "",
    "tru",
    "'x'",
)
MARK = "\u2063here\u2063"
SEAL = "record_sha256"  # of a record, over all the rest of it
PARQUET = b"actlake-crc32c:"  # before the checksum of a Parquet file


def flip(data: bytes, rng: random.Random) -> bytes:
    """Some bytes turned over."""
    found = bytearray(data or b"\0")
    for _ in range(rng.choice((1, 1, 2, 8))):
        found[rng.randrange(len(found))] ^= rng.randrange(1, 256)
    return bytes(found)


def cut(data: bytes, rng: random.Random) -> bytes:
    """Only a beginning left."""
    return data[: rng.choice((0, 1, len(data) // 2, max(len(data) - 1, 0), rng.randrange(len(data) + 1)))]


def grow(data: bytes, rng: random.Random) -> bytes:
    """More bytes somewhere."""
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.randbytes(rng.choice((1, 4, 300))) + data[at:]


def number(data: bytes, rng: random.Random) -> bytes:
    """A number of 1, 2, 4 or 8 bytes made extreme, as sizes and places in binary headers are."""
    width = rng.choice((1, 2, 4, 4, 4, 8))
    if len(data) < width:
        return data + b"\xff"
    at = rng.choice((rng.randrange(len(data) - width + 1), rng.randrange(min(len(data) - width + 1, 32))))
    value = rng.choice((0, 1, 2 ** (8 * width) - 1, 2 ** (8 * width - 1), 2 ** (8 * width - 1) - 1, rng.randrange(256)))
    return data[:at] + value.to_bytes(width, "little") + data[at + width :]


def value(data: bytes, rng: random.Random) -> bytes:
    """A value or key of a JSON text made hostile; of another text, some bytes turned over."""
    try:
        record = json.loads(data)
    except ValueError:
        return flip(data, rng)
    places = list(_places(record))
    if not places:
        return json.dumps(rng.choice(HOSTILE)).encode()
    holder, key = rng.choice(places)
    deed = rng.randrange(10)
    if deed == 0:
        del holder[key]
    elif deed == 1 and isinstance(holder, dict):
        holder[str(rng.choice(HOSTILE))] = holder.pop(key)
    elif deed == 2:
        holder[key] = MARK
        return json.dumps(record).replace(json.dumps(MARK), rng.choice(RAW)).encode()
    elif deed == 3 and isinstance(holder[key], int | float):
        holder[key] = holder[key] * rng.choice((-1, 2, 1000, 2**20, 2**40)) + rng.choice((0, 1, -1))
    else:
        holder[key] = rng.choice(HOSTILE)
    return json.dumps(record).encode()


def _places(record: Any) -> Any:
    keys = record if isinstance(record, dict) else range(len(record)) if isinstance(record, list) else ()
    for key in list(keys):
        yield record, key
        yield from _places(record[key])


Mutator = Callable[[bytes, random.Random], bytes]
BINARY: tuple[Mutator, ...] = (flip, cut, grow, number, number)
TEXT: tuple[Mutator, ...] = (value, value, value, value, flip, cut, grow)


def spoil(file: Path, rng: random.Random) -> str:
    """Change a file's bytes in place; returns the name of what was done."""
    mutator = rng.choice(TEXT if file.suffix in (".json", ".jsonl", ".yaml", ".sql") else BINARY)
    file.write_bytes(mutator(file.read_bytes(), rng))
    return mutator.__name__


# --- the stranger's own hashes -----------------------------------------------------------------------------------------


def again(root: Path, file: Path) -> list[Path]:
    """Make checksums and hashes fit a file that was changed, as far as that goes; returns the files rewritten on the way."""
    changed = []
    if "c" in file.relative_to(root).parts and len(data := file.read_bytes()) > 4:
        file.write_bytes(data[:-4] + crc(data[-4 - _index(file) : -4] if _index(file) else data[:-4]))
        changed.append(file)
    if file.suffix == ".parquet" and (at := (data := file.read_bytes()).rfind(PARQUET)) >= 0:
        zeroed = data[: at + len(PARQUET)] + b"0" * 8 + data[at + len(PARQUET) + 8 :]
        sum_ = b"%08x" % google_crc32c.value(zeroed)
        file.write_bytes(zeroed[: at + len(PARQUET)] + sum_ + zeroed[at + len(PARQUET) + 8 :])
        changed.append(file)
    for record in _records(root, file):
        try:
            found = json.loads(record.read_bytes())
            _rehash(found, record, file)
            if SEAL in found:
                said = {key: value for key, value in found.items() if key != SEAL}
                found[SEAL] = hashlib.sha256(canonical(said)).hexdigest()
        except (
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            RecursionError,
        ):  # the record itself is what was spoilt
            continue
        record.write_text(json.dumps(found))
        changed.append(record)
    return changed


# --- edits that fit ------------------------------------------------------------------------------------------------------


def leaves(record: Any, at: str = "") -> Iterator[tuple[Any, Any, str]]:
    """The values of a JSON record that are no object or list, and empty ones: holder, key and place of each."""
    for key in record if isinstance(record, dict) else range(len(record)):
        where = f"{at}.{key}".lstrip(".")
        if isinstance(record[key], dict | list) and record[key]:
            yield from leaves(record[key], where)
        else:
            yield record, key, where


def change_leaf(record: Any, number: int) -> str:
    """Change the value of this number to another of its type; returns its place."""
    holder, key, where = list(leaves(record))[number]
    found = holder[key]
    if isinstance(found, bool):
        holder[key] = not found
    elif isinstance(found, str) and len(found) == 64:
        holder[key] = found[:-1] + ("0" if found[-1] != "0" else "1")
    elif isinstance(found, str):
        holder[key] = f"{found}x"
    elif isinstance(found, int | float):
        holder[key] = found + 1
    else:
        holder[key] = [] if isinstance(found, dict) else "x"
    return where


def edit(root: Path, file: Path, rng: random.Random) -> bool:
    """Change one value that a file holds, and make all hashes and checksums fit, as somebody who knows the format would;
    False for a file that holds none."""
    if file.suffix == ".jsonl":
        lines = [json.loads(line) for line in file.read_bytes().splitlines()]
        key = rng.choice(("text", "category") if "text" in lines[0] else ("answer", "reason"))
        lines[0][key] += "2"
        file.write_bytes(b"".join(canonical(line) + b"\n" for line in lines))
        if "answer" in lines[0]:
            file.rename(file.with_name(f"{hashlib.sha256(canonical(lines)).hexdigest()[:16]}.jsonl"))
            return True
    elif file.suffix == ".json":
        record = json.loads(file.read_bytes())
        places = [
            place for place, (_, key, _) in enumerate(leaves(record)) if key != SEAL
        ]  # which is made to fit again
        change_leaf(record, rng.choice(places))
        file.write_text(json.dumps(record))
    elif file.suffix == ".parquet":
        _edit_table(file, rng)
    elif "c" in file.relative_to(root).parts:
        _edit_chunk(file, rng)
    else:
        file.write_bytes(flip(file.read_bytes(), rng))
    again(root, file)
    return True


def _edit_table(file: Path, rng: random.Random) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from actlake.store.format.parquet import MARK, parquet_writer

    table = pq.read_table(file)
    place, name = rng.choice(list(enumerate(table.schema.names)))
    values = table[name].to_pylist()
    record = {"values": values[:1] if isinstance(values[0], list) else [values[0]]}
    if isinstance(values[0], bytes):
        record = {"values": [values[0] + b"x"]}
    elif isinstance(values[0], list):
        record = {"values": [[*values[0], 7]]}
    else:
        change_leaf(record, 0)
    field = table.schema.field(name)
    changed = table.set_column(place, field, pa.array([*record["values"], *values[1:]], field.type))
    checked = MARK.encode() in file.read_bytes()
    meta = {key: value for key, value in (table.schema.metadata or {}).items() if key != b"checksum"}
    if checked:
        with parquet_writer(file, changed.schema.with_metadata(meta)) as writer:
            writer.write_table(changed.replace_schema_metadata(meta))
    else:
        pq.write_table(changed, file, compression="zstd")


def _edit_chunk(file: Path, rng: random.Random) -> None:
    import numpy as np
    import zarr

    folder = next(folder for folder in file.parents if (folder / "zarr.json").is_file())
    array = zarr.open_array(folder, mode="r+")
    size = array.shards or array.chunks
    at = tuple(int(part) * step for part, step in zip(file.relative_to(folder / "c").parts, size, strict=True))
    found = array[at]
    if array.dtype.kind in "OTSU":
        array[at] = f"{found}x"
    elif array.dtype.kind == "f":  # another value that narrower types have, too
        array[at] = -np.asarray(found) if found != 0 and np.isfinite(found) else np.float32(1)
    else:
        array[at] = not found if array.dtype.kind == "b" else found + 1


def _index(file: Path) -> int:
    """Bytes of a shard's index, 0 for a chunk that is a file of its own."""
    array = next((folder / "zarr.json" for folder in file.parents if (folder / "zarr.json").is_file()), None)
    record = json.loads(array.read_bytes()) if array else {}
    codec = record.get("codecs", [{}])[0]
    if codec.get("name") != "sharding_indexed":
        return 0
    outer, inner = record["chunk_grid"]["configuration"]["chunk_shape"], codec["configuration"]["chunk_shape"]
    return 16 * math.prod(-(-a // b) for a, b in zip(outer, inner, strict=True))


def crc(data: bytes) -> bytes:
    """CRC-32C as Zarr stores it."""
    return int(google_crc32c.value(data)).to_bytes(4, "little")


def _records(root: Path, file: Path) -> list[Path]:
    """The records that have a file's hash."""
    near = [folder / name for folder in file.parents for name in ("manifest.json", "record.json")]
    near += [folder.with_name("model.json") for folder in file.parents if folder.name == "head.zarr"]
    near += [folder.with_name("weights.json") for folder in file.parents if folder.name == "weights"]
    near += [file.with_name("model.json")] if file.name == "vocab.parquet" else []
    near += [file.with_suffix(".json")] if file.suffix == ".parquet" else []
    others = [record for record in near if record.is_relative_to(root) and record.is_file() and record != file]
    itself = file.suffix == ".json" and SEAL.encode() in file.read_bytes()
    return others + ([file] if itself or file.name == "manifest.json" else [])


def _rehash(found: Any, record: Path, file: Path) -> None:
    data = file.read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    if file == record:
        pass
    elif record.name in ("manifest.json", "record.json"):
        found["files"][file.relative_to(record.parent).as_posix()] = {"sha256": sha256, "bytes": len(data)}
    elif file.name == "vocab.parquet":
        found["vocab_sha256"] = sha256
    elif record.name == "weights.json":
        found["files"][file.relative_to(record.with_name("weights")).as_posix()] = {
            "sha256": sha256,
            "bytes": len(data),
        }
    elif record.name == "model.json":
        name = file.relative_to(record.with_name("head.zarr")).as_posix()
        found["head_files"][name] = {"sha256": sha256, "bytes": len(data)}
    else:
        found["parquet_sha256"] = sha256
    if record.name == "manifest.json":
        found["capture_sha256"] = hashlib.sha256(canonical(found["files"])).hexdigest()
    if "bytes" in found:
        found["bytes"] = sum(entry["bytes"] for entry in found["files"].values())


def canonical(record: Any) -> bytes:
    """Canonical JSON of docs/FORMAT.md 1."""
    return json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
