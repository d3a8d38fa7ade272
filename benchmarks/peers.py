"""actlake against the tools that people save activations with today: seconds, bytes on disk and memory of the same job.

The job: a random Llama of SmolLM2-135M's shape in bfloat16 on the CPU, two threads; one stream of random tokens in the
batches of actlake's own plan; the residual at every boundary and every MLP output, on disk at the end. Everybody drops
padding, keeps the logits of the last position only, and waits in a process of its own for its turn, so that peak memory
is its own too. Everybody but actlake leaves its bytes to the page cache; actlake's time has its fsync, hashes, noise
floor and seal in it. What each stores:

  actlake            widened exactly to float32, sharded Zarr with checksums, any layer or token readable by itself
  hidden states      `output_hidden_states=True`, numpy.save of float32 per batch (numpy has no bfloat16); residuals only,
                     the last of them after the final norm: that is all Hugging Face returns
  hooks              plain forward hooks that keep references, torch.save of bfloat16 per batch
  nnsight            one trace per batch that saves the same tensors; torch.save, numpy.save or plain zarr
  TransformerLens    TransformerBridge around the same model, run_with_cache with a filter for the same names; it runs
                     eager attention, so it has a bare forward of its own; torch.save or plain zarr
  plain zarr         float32, chunks of 256 tokens of one layer, zarr's default compressor, no shards

Measured with torch 2.13.0, transformers 5.23.0, nnsight 0.8.1, transformer-lens 4.3.0 and zarr 3.1.6. Install the two
peers with `pip install -e '.[peers]'`; what is missing is named and left out.
"""

import gc
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import machine
import numpy as np
import torch
import zarr
from actlake.capture.model.load import load_model
from actlake.capture.run.capture import capture
from actlake.store.artifacts.streams import Stream, write_stream
from actlake.store.core.catalog import ModelSpec, ProfileSpec
from actlake.store.core.progress import ERRORS
from actlake.store.format.paths import Layout
from measure import Row, in_turn, main, median_ratio, medians
from torch import Tensor
from transformers import AutoTokenizer, LlamaForCausalLM
from transformers.utils import logging
from work import Batch, batches, random_llama, random_stream, read_by, stream_of

PEERS = {"nnsight": "nnsight==0.8.1", "transformer_lens": "transformer-lens==4.3.0"}
CATALOG = Path(__file__).parent.parent / "catalog.yaml"
THREADS = 2
TOKENS = 9600
REPEATS = 3
PACKAGES = ("transformers", "nnsight", "transformer-lens")  # beyond those that the machine's line tells
RIVALS, FASTER = ("nnsight", "TransformerLens"), ">= 1.5"

Sites = dict[str, list[Tensor]]  # resid and mlp_out: one [batch, width, d] per boundary or layer
Read = Callable[[Any, Batch], Sites]  # through a wrapped model
Save = Callable[[Path, int, Iterator[tuple[Batch, Sites]]], None]  # into a folder, so many tokens


# ---- reading: one batch through the model, what each tool gives


def read_nothing(model: Any, batch: Batch) -> Sites:
    """The forward by itself."""
    model(**batch.inputs)
    return {}


def read_hidden_states(model: Any, batch: Batch) -> Sites:
    """Hugging Face's own way."""
    return {"resid": list(model(**batch.inputs, output_hidden_states=True).hidden_states)}


def read_hooks(model: Any, batch: Batch) -> Sites:
    """Hooks that keep references."""
    found: Sites = {"resid": [], "mlp_out": []}
    layers = model.model.layers

    def keep(name: str) -> Callable[..., None]:
        return lambda _module, _args, value: found[name].append(value[0] if isinstance(value, tuple) else value)

    handles = [layers[0].register_forward_pre_hook(lambda _module, args: found["resid"].append(args[0]))]
    handles += [layer.register_forward_hook(keep("resid")) for layer in layers]
    handles += [layer.mlp.register_forward_hook(keep("mlp_out")) for layer in layers]
    try:
        model(**batch.inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found


def with_nnsight(hf: Any, tokenizer: Any) -> Any:
    """nnsight's wrapper around the loaded model."""
    from nnsight import TransformersModel

    return TransformersModel(hf, tokenizer=tokenizer, task="text-generation")


def read_nnsight(model: Any, batch: Batch) -> Sites:
    """One trace; what is to outlive it is saved."""
    from nnsight import save

    with model.trace(**batch.inputs):
        layers = model.model.layers
        resid, mlp_out = [layers[0].input], []
        for layer in layers:
            mlp_out.append(layer.mlp.output)
            resid.append(layer.output)
        resid, mlp_out = save(resid), save(mlp_out)
    return {"resid": resid, "mlp_out": mlp_out}


def with_bridge(hf: Any, tokenizer: Any) -> Any:
    """TransformerLens's wrapper around the loaded model; its hooks need eager attention."""
    from transformer_lens.model_bridge import TransformerBridge

    boot: Any = TransformerBridge.boot_transformers
    return boot(hf.config._name_or_path, hf_model=hf, tokenizer=tokenizer, dtype=hf.dtype)


def bridge_inputs(batch: Batch) -> dict[str, Any]:
    """A batch as the bridge's forward wants it: ids by place, no output made of the logits."""
    return {**{key: value for key, value in batch.inputs.items() if key != "input_ids"}, "return_type": None}


def read_bridge_nothing(bridge: Any, batch: Batch) -> Sites:
    """The bridge's forward by itself."""
    bridge(batch.inputs["input_ids"], **bridge_inputs(batch))
    return {}


def read_bridge(bridge: Any, batch: Batch) -> Sites:
    """run_with_cache on the wanted names only."""
    layers = range(bridge.cfg.n_layers)
    resid = ["blocks.0.hook_resid_pre", *(f"blocks.{layer}.hook_resid_post" for layer in layers)]
    mlp_out = [f"blocks.{layer}.hook_mlp_out" for layer in layers]
    ids = batch.inputs["input_ids"]
    _, cache = bridge.run_with_cache(ids, names_filter=resid + mlp_out, **bridge_inputs(batch))
    return {"resid": [cache[name] for name in resid], "mlp_out": [cache[name] for name in mlp_out]}


# ---- writing: what one puts on disk with them


def save_nothing(folder: Path, tokens: int, found: Iterator[tuple[Batch, Sites]]) -> None:
    """Drop everything."""
    for _ in found:
        pass


def save_torch(folder: Path, tokens: int, found: Iterator[tuple[Batch, Sites]]) -> None:
    """A file per batch, bfloat16 as it is."""
    for index, (batch, sites) in enumerate(found):
        real = {name: [batch.real(value) for value in values] for name, values in sites.items()}
        torch.save(real, folder / f"{index:04}.pt")


def save_numpy(folder: Path, tokens: int, found: Iterator[tuple[Batch, Sites]]) -> None:
    """A float32 file [tokens, layers, d] per batch and site."""
    for index, (batch, sites) in enumerate(found):
        for name, values in sites.items():
            np.save(folder / f"{name}-{index:04}.npy", stacked(batch, values))


def save_zarr(folder: Path, tokens: int, found: Iterator[tuple[Batch, Sites]]) -> None:
    """A float32 array [tokens, layers, d] per site, filled from batch to batch."""
    group, start = zarr.create_group(folder / "sites.zarr"), 0
    for batch, sites in found:
        stop = start + len(batch.valid)
        for name, values in sites.items():
            if name not in group:
                shape = (tokens, len(values), values[0].shape[-1])
                group.create_array(name, shape=shape, chunks=(256, 1, shape[-1]), dtype="float32")
            array: Any = group[name]
            array[start:stop] = stacked(batch, values)
        start = stop


def stacked(batch: Batch, values: Sequence[Tensor]) -> np.ndarray:
    """Real tokens of all layers as float32 [tokens, layers, d]."""
    return torch.stack([batch.real(value) for value in values], 1).float().numpy()


# ---- one tool in its own process


@dataclass(frozen=True)
class Setting:
    """What every tool is given: the model's folder, the stream, and a folder of its own."""

    model: Path
    stream: Stream
    folder: Path


@dataclass(frozen=True)
class Job:
    """Something to time: `run` does the whole job, `out` is the folder where its bytes are."""

    run: Callable[[], object]
    out: Path


def actlake_jobs(setting: Setting) -> dict[str, Job]:
    """A whole capture into a lake that knows the model already (its head is stored once per model, not per capture)."""
    ERRORS.quiet = True
    model = load_model(ModelSpec("peers-pt", setting.model, None, None, None, "raw"))
    profile = ProfileSpec("peers", ("resid", "mlp_out"), "none", "auto", None)
    layout = Layout.open(setting.folder / "lake", create=True)
    capture(layout, model, write_stream(layout, read_by(model, stream_of(setting.stream.tokens[-1:]))), profile)
    name = write_stream(layout, read_by(model, setting.stream))
    return {"actlake": Job(lambda: capture(layout, model, name, profile), layout.capture("peers-pt", name))}


def peer_jobs(wrap: Callable[[Any, Any], Any], parts: dict[str, tuple[Read, Save]], setting: Setting) -> dict[str, Job]:
    """Jobs of one tool: `wrap` takes the loaded model and its tokenizer, the parts read a batch through it and save."""
    hf = LlamaForCausalLM.from_pretrained(setting.model, dtype=torch.bfloat16, attn_implementation="sdpa").eval()
    few = Batch.of(setting.stream.tokens[:4])
    want = read_hooks(hf, few)
    wrapped = wrap(hf, AutoTokenizer.from_pretrained(setting.model))
    out = setting.folder / "out"

    def job(read: Read, save: Save) -> Job:
        check(few, read(wrapped, few), want)

        def run() -> None:
            out.mkdir()
            save(out, setting.stream.n_tokens, ((batch, read(wrapped, batch)) for batch in batches(setting.stream)))

        return Job(run, out)

    return {name: job(read, save) for name, (read, save) in parts.items()}


def check(batch: Batch, got: Sites, want: Sites) -> None:
    """Everybody must read the same numbers, up to what another attention kernel rounds in bfloat16."""
    for name, values in got.items():
        assert len(values) == len(want[name]), name
        # Hugging Face's last hidden state has passed the final norm.
        for index, (a, b) in enumerate(zip(values[:-1], want[name][:-1], strict=True)):
            a, b = batch.real(a).float(), batch.real(b).float()
            assert (a - b).norm() < 0.05 * b.norm(), f"{name} {index} is not what the hooks read"


TOOLS: dict[str, tuple[str, Callable[[Setting], dict[str, Job]]]] = {  # name -> package it needs, its jobs
    "transformers": (
        "",
        partial(
            peer_jobs,
            lambda hf, tokenizer: hf,
            {
                "bare forward": (read_nothing, save_nothing),
                "hidden states, numpy": (read_hidden_states, save_numpy),
                "hooks, torch.save": (read_hooks, save_torch),
            },
        ),
    ),
    "actlake": ("", actlake_jobs),
    "nnsight": (
        "nnsight",
        partial(
            peer_jobs,
            with_nnsight,
            {
                "nnsight, torch.save": (read_nnsight, save_torch),
                "nnsight, numpy": (read_nnsight, save_numpy),
                "nnsight, zarr": (read_nnsight, save_zarr),
            },
        ),
    ),
    "TransformerLens": (
        "transformer_lens",
        partial(
            peer_jobs,
            with_bridge,
            {
                "TransformerLens, bare forward": (read_bridge_nothing, save_nothing),
                "TransformerLens, torch.save": (read_bridge, save_torch),
                "TransformerLens, zarr": (read_bridge, save_zarr),
            },
        ),
    ),
}


def serve(pipe: Connection, tool: str, setting: Setting) -> None:
    """The life of a tool's process: get ready, say which jobs there are, then run and clear them when asked."""
    warnings.simplefilter("ignore")
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    torch.set_num_threads(THREADS)
    setting.folder.mkdir(parents=True)
    with torch.no_grad():
        jobs = TOOLS[tool][1](setting)
        pipe.send(list(jobs))
        while request := pipe.recv():
            what, name = request
            if what == "run":
                jobs[name].run()
                pipe.send(None)
            else:
                pipe.send(clear(jobs[name].out))


def clear(out: Path) -> tuple[float, int, float]:
    """Peak memory since the last call, bytes of the files under `out`, seconds to flush them; then they are deleted."""
    peak = machine.peak_memory()
    started = time.perf_counter()
    os.sync()
    seconds = time.perf_counter() - started
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    shutil.rmtree(out)
    gc.collect()
    machine.reset_peak_memory()  # the next job's starts here
    return peak, size, seconds


@dataclass
class Seat:
    """One job seen from outside its process: requests to it, and what was learned about its output."""

    pipe: Connection
    name: str
    bytes: int = 0
    flush: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)

    def run(self) -> None:
        """The whole job, once."""
        self.pipe.send(("run", self.name))
        self.pipe.recv()

    def clear(self) -> None:
        """Measure and delete what it wrote."""
        self.pipe.send(("clear", self.name))
        peak, self.bytes, seconds = self.pipe.recv()
        self.memory.append(peak)
        self.flush.append(seconds)


# ---- the whole


def present() -> list[str]:
    """The tools that are installed here; says in one line what the others lack."""
    missing = [package for package, _ in TOOLS.values() if package and not find_spec(package)]
    if missing:
        print(f"left out, not installed: pip install {' '.join(PEERS[package] for package in missing)}")
    return [name for name, (package, _) in TOOLS.items() if package not in missing]


@contextmanager
def seats(setting: Setting) -> Iterator[dict[str, Seat]]:
    """All jobs, their tools loaded and waiting, each tool in a process of its own."""
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as actlake's command does: threads that wait don't spin for long
    os.environ["HF_HUB_OFFLINE"] = "1"
    context = multiprocessing.get_context("spawn")
    started: dict[str, tuple[Connection, Any]] = {}
    for tool in present():
        here, there = context.Pipe()
        own = Setting(setting.model, setting.stream, setting.folder / tool)
        process = context.Process(target=serve, args=(there, tool, own), daemon=True)
        process.start()
        there.close()  # so that a process that dies ends the wait for its answer
        started[tool] = here, process
    found: dict[str, Seat] = {}
    for tool, (pipe, _) in list(started.items()):
        try:
            found |= {name: Seat(pipe, name) for name in pipe.recv()}
        except EOFError:
            print(f"left out, broke while it got ready (see above): {tool}")
            del started[tool]
    yield found
    for pipe, process in started.values():
        pipe.send(None)
        process.join()


def run() -> list[Row]:
    """All rows of this benchmark."""
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory(prefix="actlake-bench-") as temporary:
        folder = Path(temporary)
        stream = random_stream(TOKENS, (40, 160), len(AutoTokenizer.from_pretrained(random_llama(folder / "model"))))
        with seats(Setting(folder / "model", stream, folder)) as jobs:
            runs: dict[str, Callable[[], object]] = {}
            for name, seat in jobs.items():
                runs |= {name: seat.run, f"clear {name}": seat.clear}
            seconds = in_turn(runs, REPEATS)
    return rows(jobs, {name: seconds[name] for name in jobs}, stream.n_tokens)


def rows(jobs: dict[str, Seat], seconds: dict[str, list[float]], tokens: int) -> list[Row]:
    """Every job's speed and peak memory against the bare forward's; actlake's speed and size against the other tools'."""
    rate = {name: tokens / value for name, value in medians(seconds).items()}
    size = {name: seat.bytes / tokens / 1e3 for name, seat in jobs.items() if seat.bytes}
    memory = {name: max(seat.memory) / 1e6 for name, seat in jobs.items()}
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES if find_spec(name.replace("-", "_")))
    speed, against = [], []
    for name in jobs:
        share = median_ratio(seconds["bare forward"], seconds[name])
        note = f"{tokens / rate[name]:.2f} s"
        if name == "bare forward":
            note += f", {tokens} tokens, {THREADS} threads; {versions}"
        if name in size:
            note += f", {size[name]:.1f} kB a token, then {statistics.median(jobs[name].flush):.2f} s to flush"
        speed.append(Row(f"{name}, vs bare forward", rate[name], rate[name] / share, "tokens/s", "", note))
        if name in size and name != "actlake":
            ahead = median_ratio(seconds[name], seconds["actlake"])
            target = FASTER if name.startswith(tuple(RIVALS)) else ""
            # The forward is in everybody's time, so a tool that costs almost nothing on top can't be beaten by much.
            note = f"at most {1 / share:.2f} can be reached: the forward is in both times" if target else ""
            against.append(
                Row(f"actlake vs {name}", rate["actlake"], rate["actlake"] / ahead, "tokens/s", target, note)
            )
    others = [name for name in size if name != "actlake"]
    disk = [Row(f"disk, actlake vs {name}", size["actlake"], size[name], "kB/token", "<= 1") for name in others]
    peak = [Row(f"peak memory, {name}", memory[name], memory["bare forward"], "MB") for name in jobs]
    return speed + against + disk + peak


if __name__ == "__main__":
    main("peers", run, __doc__)
