"""What the JSON records of a lake may say: keys, types and bounds of each kind, checked before anything acts on them.

A lake may come from a stranger. A record that does not fit is refused in one line that names the file, the key, what was
expected, what was found and what repairs it. Keys that are not listed are ignored, as docs/FORMAT.md 9 wants it.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..core.errors import RESTORE, CorruptError
from ..core.files import hash_json, parse_json, read_json
from ..core.schema import PRECISIONS
from ..remote.hashes import mark_of, while_same
from .paths import check_version
from .rules import (
    COUNT,
    FILE,
    FLAG,
    HASH,
    MODELS,
    NAMED,
    NUMBER,
    NUMBER_OR_NULL,
    OBJECT,
    PLACES,
    SOME,
    TEXT,
    TEXT_OR_NULL,
    VARIABLE,
    WHOLE,
    WHOLE_OR_NULL,
    matching,
    misfit,
    one_of,
)

LARGEST = 16 << 20  # bytes of a record
SMALL = 32 << 10  # bytes of a record that is kept in memory
LARGEST_MANIFEST = 256 << 20  # names every shard of a capture
SEAL = "record_sha256"
# Of a list of paths, one a line: usual letters, and what makes a path wrong.
USUAL = frozenset("\n" + "".join(map(chr, range(32, 127)))) - set(":\\")
UNUSUAL = ("//", "/./", "/../", "\n/", "/\n", "\n./", "\n../", "/.\n", "/..\n", "\n.\n", "\n..\n", "\n\n")
HEX = re.compile("[0-9a-f]*")


def _all_inside(names: Iterable[str]) -> bool:
    """Whether every name is a plain path inside a folder; all at once, since a manifest may name a million files."""
    names = list(names)
    text = "\n".join(["", *names, ""])
    usual = text.count("\n") == len(names) + 1 and max(map(len, names), default=0) <= 200 and USUAL.issuperset(text)
    return usual and not any(part in text for part in UNUSUAL)


def _are_files(files: dict[str, Any]) -> bool:
    try:
        entries = [(entry["sha256"], entry["bytes"]) for entry in files.values()]
        fits = all(len(sha256) == 64 and type(size) is int and 0 <= size <= COUNT for sha256, size in entries)
        return fits and bool(HEX.fullmatch("".join(sha256 for sha256, _ in entries))) and _all_inside(files)
    except (KeyError, TypeError):
        return False


HASHES = {FILE: HASH}
FILES = {replace(FILE, quick=_are_files): {"sha256": HASH, "bytes": WHOLE}}
EXTREMES = {VARIABLE: {"min": NUMBER_OR_NULL, "max": NUMBER_OR_NULL, "nonfinite": WHOLE}}
MADE = {
    "model": NAMED,
    "model_sha256": TEXT,
    "dtype": TEXT,
    "batch": SOME,
    "attn_implementation?": TEXT,
    "model_id?": TEXT,
    "model_revision?": TEXT_OR_NULL,
}
TEMPLATE = {
    "stream": NAMED,
    "content_sha256": HASH,
    "n_prompts": WHOLE,
    "n_tokens": WHOLE,
    "sizes": {VARIABLE: [SOME]},
    "boundaries": [WHOLE],
    "layers": [WHOLE],
    "source_dtype": TEXT,
    "shard_tokens": SOME,
    "provenance": MADE,
    "per_prompt?": [VARIABLE],
    "precision?": {VARIABLE: one_of(*PRECISIONS)},
}
CAPTURED = {
    **dict.fromkeys(("model?", "model_pt?", "model_it?", "stream?", "stream_pt?"), NAMED),
    **dict.fromkeys(("variant?", "lens?", "kind?", "condition?", "sweep?"), TEXT),
}
LINE = {
    "prompt_sha": TEXT,
    **dict.fromkeys(("prompt_id?", "said?", "generated?", "likeliest?", "text?"), TEXT_OR_NULL),
    **dict.fromkeys(("tokens?", "prompt_tokens?"), WHOLE),
    "token_id?": [WHOLE],
    "nats?": NUMBER_OR_NULL,
    "ended?": FLAG,
}
SUMS = ("squares", "error_squares", "max_abs", "nonzero", "zeroed")
NOISE = {"prompts": WHOLE, "max_abs": {VARIABLE: NUMBER}}
KEY = matching(re.compile("[0-9a-f]{16}"), "16 hexadecimal digits")
SEALED = {"recipe": OBJECT, "key": KEY, "files": FILES, SEAL: HASH}
# A key that ends in ? may be missing.
RECORDS: dict[str, dict[str, Any]] = {
    "manifest": {
        **TEMPLATE,
        "n_shards": WHOLE,
        "variables": EXTREMES,
        "files": FILES,
        "bytes": WHOLE,
        "capture_sha256": HASH,
        SEAL: HASH,
        "noise_floor?": NOISE,
        "rounding?": {VARIABLE: dict.fromkeys(("relative", "max_abs", "zeroed"), [NUMBER])},
    },
    "partial": {
        "capture_sha256": HASH,
        "holds": {VARIABLE: {"rows": PLACES, "places": PLACES}},
        "files": FILES,
        SEAL: HASH,
    },
    "template": {**TEMPLATE, "world": SOME},
    "shard": {
        "shard": WHOLE,
        "files": FILES,
        "statistics": EXTREMES,
        "rounding?": {VARIABLE: dict.fromkeys(SUMS, [NUMBER])},
    },
    "noise": NOISE,
    "pulled": {"from": TEXT, SEAL: HASH},
    "stream": {
        "name": NAMED,
        "kind": NAMED,
        "prompts": NAMED,
        "content_sha256": HASH,
        "n_prompts": WHOLE,
        "n_tokens": WHOLE,
        "recipe": {
            "max_new_tokens?": WHOLE,
            **dict.fromkeys(("prompt_set_sha256?", "tokenizer_sha256?", "date?"), TEXT),
        },
        "keys": [TEXT],
        "written_by": [TEXT],
        "same_as": NAMED,
        SEAL: HASH,
        "parquet_sha256?": HASH,
    },
    "model": {
        "model": NAMED,
        "template": one_of("raw", "chat"),
        "id": TEXT,
        "revision": TEXT_OR_NULL,
        "files": HASHES,
        "quantized_from?": {"file": FILE},
        "quantized?": {"method": TEXT, "bits": WHOLE_OR_NULL, "dequantized": FLAG},
        "dtype": TEXT,
        "sha256": TEXT,
        "tokenizer_sha256": TEXT,
        "chat_template_sha256": TEXT,
        "class": TEXT,
        "config?": OBJECT,
        **dict.fromkeys(("n_layers?", "d_model?", "vocab?", "parameters?"), WHOLE),
        "special_ids?": [WHOLE],
        "vocab_sha256?": HASH,
        "head_files": FILES,
        "head_sha256": HASH,
        SEAL: HASH,
    },
    "weights": {"model_sha256": TEXT, "files": FILES, SEAL: HASH},
    "head": {
        "norm": TEXT,
        "norm_eps": NUMBER,
        "softcap?": NUMBER_OR_NULL,
        "logit_scale?": NUMBER,
        "parallel?": FLAG,
        "post_norm_eps?": NUMBER_OR_NULL,
    },
    "probes": {
        **SEALED,
        "recipe": {
            "model": NAMED,
            "stream": NAMED,
            "model_sha256": TEXT,
            "capture_sha256": TEXT,
            "recipe": {"name": NAMED},
            "folds": SOME,
        },
        **dict.fromkeys(("steps", "trained_tokens"), [WHOLE]),
        **dict.fromkeys(("kl_raw", "kl_tuned"), [[NUMBER]]),
    },
    "jacobian": {
        **SEALED,
        "recipe": {
            "model": NAMED,
            "stream?": NAMED,
            "model_sha256": TEXT,
            "kind": one_of("jacobian"),
            "recipe": {"name": NAMED},
            "folds": SOME,
        },
        **dict.fromkeys(("prompts", "trained_tokens"), [WHOLE]),
        "error": [[NUMBER_OR_NULL]],
        **dict.fromkeys(("kl_raw?", "kl_jacobian?"), [NUMBER]),
    },
    "directions": {**SEALED, "recipe": {"kind": NAMED, "models": MODELS}},
    "statistics": {
        **SEALED,
        "recipe": {"kind": one_of("norms", "scale"), "model": NAMED, "stream": NAMED, "site": NAMED},
    },
    "prompts": {**SEALED, "recipe": {"prompts": NAMED, "content_sha256": HASH}},
    "condition": {
        "model": NAMED,
        "recipe": {"template": TEXT, "max_new_tokens": WHOLE, "date?": TEXT},
    },
    # Batches of texts under way, and of continuations.
    "lines": {"rows": [LINE]},
    "tokens": {"rows": [[WHOLE]]},
    # In the metadata of a table file that came from elsewhere.
    "foreign": {"foreign": {"captures": [CAPTURED]}},
}
REPAIRS = {
    "manifest": RESTORE,
    "partial": "delete the copy of this capture and `actlake pull` it again",
    "template": "delete the capture's folder and run the same `actlake capture` command again",
    "shard": "delete the file and run the same `actlake capture` command again",
    "noise": "delete the file and run the same `actlake capture` command again",
    "pulled": "delete it: the next `actlake pull` writes it again",
    "stream": "restore the file, or delete the stream and run the same `actlake capture` again",
    "model": "restore the file, or delete the model's folder and run the same `actlake capture` again",
    "weights": "restore the file, or delete it and weights.json and run `actlake capture --with-weights` again",
    "head": "restore head.zarr, or delete the model's folder and run the same `actlake capture` again",
    "probes": "restore the file, or delete the probes' folder and run `actlake fit-lens` again",
    "jacobian": "restore the file, or delete the lens's folder and run `actlake fit-lens --kind jacobian` or import-lens again",
    "directions": "delete its folder and run the question again",
    "statistics": "delete its folder: what needs it computes it again",
    "prompts": "delete its folder and run `actlake prompts add` again, or restore it",
    "condition": "restore the file, or delete its folder and run `actlake generate` again",
    "lines": "delete the file and run the same command again",
    "tokens": "delete the file and run the same command again",
    "foreign": "delete the file and bring the table in with `actlake table add` again",
}
# Records that no version is in.
UNVERSIONED = ("shard", "noise")


def read_record(file: Path, kind: str) -> dict[str, Any]:
    """Read a JSON record of this kind (a key of RECORDS) and check it; a small one once, until its file is another.

    LakeError for a file that is not there, is no JSON or of a newer format; CorruptError for a record that does not fit.
    """
    mark = mark_of(file)
    return dict(_kept(file, kind) if mark and mark[0] <= SMALL else _read(file, kind))


def _read(file: Path, kind: str) -> dict[str, Any]:
    record = read_json(file, LARGEST_MANIFEST if kind == "manifest" else LARGEST, REPAIRS[kind])
    if kind not in UNVERSIONED:
        check_version(record, file, REPAIRS[kind])
    check_record(record, kind, file)
    return dict(record)


_kept = while_same(1 << 14)(_read)


def parse_record(data: bytes, kind: str, where: object) -> dict[str, Any]:
    """The record of this kind in some bytes, checked as `read_record` does; errors name `where` they are from."""
    record = _parsed(data, kind, where)
    check_version(record, where, REPAIRS[kind])
    check_record(record, kind, where)
    return dict(record)


def read_batch(file: Path, kind: str) -> list[Any]:
    """The rows of a batch under way, `lines` or `tokens`; FileNotFoundError when another process has put them away."""
    rows = _parsed(file.read_bytes(), kind, file)
    check_record({"rows": rows}, kind, file)
    return list(rows)


def _parsed(data: bytes, kind: str, where: object) -> Any:
    try:
        return parse_json(data)
    except ValueError as error:
        raise CorruptError(f"{where}: not valid JSON ({error})", repair=REPAIRS[kind]) from None


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record with its own hash, for one with much that nothing else vouches for."""
    return {**record, SEAL: hash_json({key: value for key, value in record.items() if key != SEAL})}


def check_record(record: object, kind: str, where: object) -> None:
    """Raise CorruptError for the first value of a record of this kind that does not fit; it names `where` that is.

    So is a record that has its own hash and another content.
    """
    wrong = misfit(record, {f"{SEAL}?": HASH} | RECORDS[kind], "")
    if not wrong and isinstance(record, dict) and SEAL in record and (found := sealed(record)[SEAL]) != record[SEAL]:
        wrong = f"its content is damaged (found {found}, expected {SEAL} {record[SEAL]})"
    if wrong:
        raise CorruptError(f"{where}: {wrong}", repair=REPAIRS[kind])
