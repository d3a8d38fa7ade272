"""A model larger than memory, layer by layer: peak memory, time, and weights read a second against a plain read of the files.

    python benchmarks/by_layer.py [--size 13B] [--tokens 256] [--folder DIR]

The model is a random Llama in bfloat16, written block by block (13B: 26 GB, which --folder must hold) and deleted again. The
capture runs in a process of its own, on one prompt. Before each measurement the files are dropped from the page cache.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import actlake  # noqa: F401, before torch: sets what torch reads when it is imported
import machine
import numpy as np
import torch
from actlake.capture.model.by_layer import load_frame
from actlake.capture.model.load import identify
from actlake.capture.run.capture import capture
from actlake.store.artifacts.streams import write_stream
from actlake.store.captures.verify import verify
from actlake.store.core.catalog import ModelSpec, ProfileSpec, load_catalog
from actlake.store.format.paths import Layout
from measure import Row, main
from memory import apart
from safetensors.torch import save_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from work import CATALOG, read_by, stream_of

PROFILE = ProfileSpec("bench", ("resid", "mlp_out"), "auto", "auto", None)
# Width, width of the MLP, blocks, heads.
SIZES = {"1B": (2048, 5504, 20, 16), "3B": (3200, 8640, 26, 32), "13B": (5120, 13824, 40, 40)}
PIECE = 16 << 20


def random_blocks(folder: Path, size: str) -> Path:
    """Write a random Llama of Llama 2's vocabulary, one file a block; all blocks have the same numbers."""
    width, inner, layers, heads = SIZES[size]
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        dtype="bfloat16",
    )
    folder.mkdir(parents=True)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    AutoTokenizer.from_pretrained(load_catalog(CATALOG).pair("pocket").model("pt").path).save_pretrained(folder)
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in LlamaForCausalLM(config).state_dict().items()}
    generator, names = torch.Generator().manual_seed(0), dict[str, str]()

    def write(file: str, rows: dict[str, torch.Size]) -> dict[str, torch.Tensor]:
        made = {
            name: torch.ones(shape, dtype=torch.bfloat16)
            if len(shape) == 1
            else torch.empty(shape, dtype=torch.bfloat16).normal_(std=0.02, generator=generator)
            for name, shape in rows.items()
        }
        save_file(made, folder / file, {"format": "pt"})
        names.update(dict.fromkeys(rows, file))
        return made

    write("rest.safetensors", {name: shape for name, shape in shapes.items() if ".layers." not in name})
    block = write(f"block-{0:02d}.safetensors", {n: s for n, s in shapes.items() if ".layers.0." in n})
    for index in range(1, layers):
        own = {name.replace(".layers.0.", f".layers.{index}."): value for name, value in block.items()}
        save_file(own, folder / f"block-{index:02d}.safetensors", {"format": "pt"})
        names.update(dict.fromkeys(own, f"block-{index:02d}.safetensors"))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return folder


def forget(folder: Path) -> int:
    """Drop a model's weights from the page cache; their bytes."""
    total = 0
    for file in sorted(folder.glob("*.safetensors")):
        with open(file, "rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        total += file.stat().st_size
    return total


def plain_read(folder: Path) -> float:
    """Seconds of reading a model's weights from one end to the other."""
    forget(folder)
    buffer, started = bytearray(PIECE), time.perf_counter()
    for file in sorted(folder.glob("*.safetensors")):
        with open(file, "rb", buffering=0) as opened:
            while opened.readinto(buffer):
                pass
    return time.perf_counter() - started


def captured(model: Path, lake: Path, tokens: int) -> dict[str, Any]:
    """Capture some tokens layer by layer: seconds of hashing, of loading what stands around the blocks, and of the capture."""
    spec, layout = ModelSpec("bench-pt", model, None, None, None), Layout.open(lake, create=True)
    started = time.perf_counter()
    identity = identify(spec)
    hashed = time.perf_counter()
    forget(model)
    start = machine.peak_memory()
    loading = time.perf_counter()
    frame = load_frame(spec, "cpu", "auto", identity)
    loaded = time.perf_counter()
    ids = np.random.default_rng(0).integers(5, 4000, tokens, dtype=np.int32)
    name = write_stream(layout, read_by(frame, stream_of([ids])))
    result = capture(layout, frame, name, PROFILE)
    done = time.perf_counter()
    assert result.sealed and verify(layout, result.path).ok
    return {
        "hash": hashed - started,
        "load": loaded - loading,
        "capture": done - loaded,
        "peak": machine.peak_memory(),
        "start": start,
        "around": sum(p.numel() * p.element_size() for p in frame.hf.parameters()),
        "largest": frame.blocks.largest,
        "head": 4 * frame.head.unembed.numel(),
        "tokens": result.tokens,
    }


def run(size: str, tokens: int, folder: Path | None) -> list[Row]:
    """All rows of this benchmark."""
    with tempfile.TemporaryDirectory(prefix="actlake-bench-", dir=folder) as name:
        model = random_blocks(Path(name) / "model", size)
        weights = forget(model)
        found = apart(captured, model, Path(name) / "lake", tokens)
        plain = plain_read(model)
    seconds = found["load"] + found["capture"]
    least = found["start"] + found["around"] + found["head"] + found["largest"]
    sizes = f"{weights / 1e9:.1f} GB of weights, {found['tokens']} tokens; machine of {machine.memory_gb():.0f} GB"
    return [
        Row(
            f"{size}: peak memory against all weights",
            found["peak"] / 1e9,
            weights / 1e9,
            "GB",
            "<= 0.5" if size == "13B" else "",
            sizes,
        ),
        Row(f"{size}: peak memory against one block and what stands around it", found["peak"] / 1e9, least / 1e9, "GB"),
        Row(
            f"{size}: weights read while capturing against a plain read",
            weights / seconds / 1e9,
            weights / plain / 1e9,
            "GB/s",
            "",
            f"loading {found['load']:.1f} s, capture {found['capture']:.1f} s, plain read {plain:.1f} s; hashing the files, as"
            f" every capture does first, {found['hash']:.1f} s",
        ),
    ]


def options(parser: argparse.ArgumentParser) -> None:
    """Which model, and where."""
    parser.add_argument("--size", choices=SIZES, default="13B", help="parameters of the model")
    parser.add_argument("--tokens", type=int, default=256, help="tokens that are captured")
    parser.add_argument("--folder", type=Path, help="where the model is written [default: the temporary folder]")


if __name__ == "__main__":
    main("by_layer", run, __doc__, options)
