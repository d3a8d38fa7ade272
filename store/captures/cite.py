"""Immutable references: a capture's name together with the hash of its content, and what stands behind it."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..artifacts.models import read_model
from ..artifacts.streams import stream_record
from ..artifacts.weights import read_weights
from ..core.errors import LakeError
from ..format.paths import Layout
from ..format.records import SEAL
from .reader import check_sealed, find_capture, split_capture

SCHEME = "actlake:"
REFERENCE = re.compile(rf"(?:{SCHEME})?([^@]+)(?:@sha256:([0-9a-f]{{64}}))?")
VERSIONS = ("actlake", "torch", "transformers")


def find_cited(layout: Layout, text: str, model_named: Callable[[str], str] = str) -> Path:
    """The sealed capture of a reference, or of a name without a hash, which may be shortened like any capture's.

    `model_named` says which model PAIR/ROLE is.

    LakeError for text that is neither, a capture that is not there or not sealed, or one with another hash.
    """
    match = REFERENCE.fullmatch(text)
    if not match:
        raise LakeError(f"{text!r}: expected MODEL/STREAM or actlake:MODEL/STREAM@sha256:HASH (64 digits)")
    model, stream = split_capture(match[1])
    path = find_capture(layout, model_named(model), stream)
    found = str(check_sealed(path)[SEAL])
    if match[2] and match[2] != found:
        raise LakeError(f"{path}: this is not the capture referred to: its sha256 is {found}, expected {match[2]}")
    return path


def citation(layout: Layout, path: Path) -> dict[str, Any]:
    """What to cite of a sealed capture: `reference`, and the model, stream, prompt set and versions behind it.

    The reference holds for good: a sealed capture never changes, and another one has another hash. LakeError for a capture
    that is not sealed, CorruptError when its list of files is damaged.
    """
    manifest = check_sealed(path)
    made, name = manifest["provenance"], f"{path.parent.name}/{path.stem}"
    stream = stream_record(layout.streams / f"{path.stem}.json")
    model = read_model(layout, path.parent.name)
    kept = read_weights(layout, path.parent.name)
    return {
        "reference": f"{SCHEME}{name}@sha256:{manifest[SEAL]}",
        "capture": name,
        "capture_sha256": manifest["capture_sha256"],
        "model": {"id": made.get("model_id"), "revision": made.get("model_revision"), "sha256": made["model_sha256"]},
        "stream": {"name": path.stem, "sha256": manifest["content_sha256"]},
        "records": {
            "model": model[SEAL],
            "stream": stream[SEAL],
            **({"weights": kept[SEAL]} if kept else {}),
        },
        "prompts": {"name": stream["prompts"], "sha256": stream["recipe"].get("prompt_set_sha256")},
        "tokens": manifest["n_tokens"],
        "dtype": made.get("dtype"),
        "versions": {key: made[key] for key in VERSIONS if key in made},
        "format_version": manifest["format_version"],
    }


def citation_lines(found: dict[str, Any]) -> list[tuple[str, str]]:
    """A citation as (name, value) lines for people; the first is the reference."""
    model = found["model"]
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return [
        ("reference", found["reference"]),
        ("model", f"{model['id'] or '-'}, revision {model['revision'] or '-'}, sha256 {model['sha256']}"),
        *((key, f"{found[key]['name']}, sha256 {found[key]['sha256'] or '-'}") for key in ("stream", "prompts")),
        ("size", f"{found['tokens']:,} tokens, {found['dtype'] or '-'}"),
        ("records", ", ".join(f"{name} {sha256}" for name, sha256 in found["records"].items())),
        ("versions", f"{versions + ', ' if versions else ''}format {found['format_version']}"),
    ]
