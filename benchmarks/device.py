"""What gpu.py measures; apart from it, because these imports may have to be installed first."""

import gc
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import machine
import numpy as np
import torch
import xarray
from actlake.analyze.lens.head import Head
from actlake.analyze.lens.logit_lens import lens
from actlake.capture.model.load import Model
from actlake.capture.model.structure import discover
from actlake.capture.model.trace import first_tensor
from actlake.capture.run.capture import capture
from actlake.store.artifacts.streams import write_stream
from actlake.store.core.catalog import ModelSpec, ProfileSpec, load_catalog
from actlake.store.core.progress import ERRORS
from actlake.store.format.paths import Layout
from codec import as_captured, encode, single_threaded_blosc, threaded
from measure import Row, in_turn, median_ratio, medians
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma3TextConfig, LlamaConfig
from work import Batch, batches, random_stream, read_by, stream_of

CATALOG = Path(__file__).parent.parent / "catalog.yaml"
PROFILE = ProfileSpec("bench", ("resid", "mlp_out"), "none", "auto", None)
REPEATS = 3
WRITERS = 4  # threads of the raw write
BLOCK = 32 << 20  # bytes it writes at a time
LONGEST = 12.0  # seconds that a raw write may take: fewer tokens on a slower disk
STORED = 0.67  # of the bytes of bfloat16, about what the codec leaves
HEADLINE = "<= 1.10"


def configs(small: bool) -> dict[str, Any]:
    """The shapes by name."""
    gemma, llama = Gemma3TextConfig, LlamaConfig
    if small:
        common: dict[str, Any] = {
            "vocab_size": 4096,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
        }
        return {
            "tiny Gemma 3": gemma(num_hidden_layers=6, sliding_window=64, query_pre_attn_scalar=32, **common),
            "tiny Llama": llama(num_hidden_layers=4, **common),
        }
    return {
        "Gemma-3-4B": gemma(
            vocab_size=262208,
            hidden_size=2560,
            intermediate_size=10240,
            num_hidden_layers=34,
            num_attention_heads=8,
            num_key_value_heads=4,
            head_dim=256,
            sliding_window=1024,  # in five blocks of six, as the config has it by itself
        ),
        "Llama-3.1-8B": llama(
            vocab_size=128256,
            hidden_size=4096,
            intermediate_size=14336,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=8,
            max_position_embeddings=131072,
        ),
    }


def make_model(name: str, config: Any, device: str) -> Model:
    """Random bfloat16 weights on the device, and around them what loading a checkpoint gives."""
    torch.manual_seed(0)
    with torch.device(device):
        hf = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa").eval()
    parts, head = discover(hf)
    record = {
        "id": f"random {name}",
        "revision": None,
        "files": {},
        "dtype": "bfloat16",
        "tokenizer_sha256": "",
        "chat_template_sha256": "",
        "sha256": name,
        "class": type(hf).__name__,
        "config": {},
        "n_layers": len(parts.blocks),
        "d_model": head.d_model,
        "vocab": head.vocab,
        "parameters": sum(p.numel() for p in hf.parameters()),
        "special_ids": [],
    }
    tokenizer = AutoTokenizer.from_pretrained(load_catalog(CATALOG).pair("pocket").model("pt").path)
    return Model(ModelSpec("bench-pt", Path(), None, None, None), hf, tokenizer, parts, head, record)


class Loop:
    """One model on one stream, and what is timed on them."""

    def __init__(self, model: Model, folder: Path, tokens: int, lengths: tuple[int, int]):
        self.model, self.device, self.raw = model, model.device.type, folder / "raw"
        self.stream = read_by(model, random_stream(tokens, lengths, model.head.vocab))
        self.layout = Layout.open(folder / "lake", create=True)
        self.name = write_stream(self.layout, self.stream)
        self.path = self.layout.capture("bench-pt", self.name)
        self.bytes = 0
        shape = (2 * model.n_layers + 1, max(len(batch.valid) for batch in self.batches()), model.head.d_model)
        pin = self.device == "cuda"
        self.rooms = [torch.empty(shape, dtype=torch.bfloat16, pin_memory=pin) for _ in range(2)]
        # The first capture of a model also stores its head, once.
        capture(
            self.layout, model, write_stream(self.layout, read_by(model, stream_of(self.stream.tokens[-2:]))), PROFILE
        )

    def batches(self) -> Iterator[Batch]:
        """The batches of the plan, on the device."""
        return batches(self.stream, self.device)

    @torch.no_grad()
    def bare(self) -> None:
        """Plain forwards."""
        for batch in self.batches():
            self.model.hf(**batch.inputs)
        self.wait()

    @torch.no_grad()
    def staged(self) -> None:
        """Forwards whose values leave for two rooms of host memory in turn, on a stream of their own."""
        side = torch.cuda.Stream() if self.device == "cuda" else None
        left: list[Any] = [None, None]
        for number, batch in enumerate(self.batches()):
            room, gone = self.rooms[number % 2][:, : len(batch.valid)], left[number % 2]
            if gone is not None:
                gone.synchronize()
            with hooks(self.model, partial(leave, batch, room, side)):
                self.model.hf(**batch.inputs)
            left[number % 2] = side.record_event() if side else None
        self.wait()

    def wait(self) -> None:
        """Wait until the device has finished."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def capture(self) -> None:
        """actlake's whole capture."""
        self.bytes = capture(self.layout, self.model, self.name, PROFILE).bytes

    def write(self) -> None:
        """As many bytes as the capture has, raw."""
        write_raw(self.raw, self.bytes)

    def clear(self) -> None:
        """Delete what was written, so that nobody pays for what another left to be flushed."""
        for folder in (self.path, self.raw):
            shutil.rmtree(folder, ignore_errors=True)
        os.sync()

    def chunks(self) -> tuple[list[np.ndarray], float]:
        """The first chunk of every layer of the capture, decoded; and how many times that the whole capture is."""
        stored, found, tokens = xarray.open_zarr(self.path), [], 1
        for name in PROFILE.sites:
            tokens = stored[name].encoding["chunks"][0]
            values = stored[name][:tokens].values
            found += [np.ascontiguousarray(values[:, layer]) for layer in range(values.shape[1])]
        return found, self.stream.n_tokens / min(tokens, self.stream.n_tokens)


@contextmanager
def hooks(model: Model, keep: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Give every boundary and MLP output to `keep`, with a place of its own, while the model runs inside the block."""
    blocks, mlps = model.parts.blocks, model.parts.mlps

    def at(place: int) -> Callable[..., None]:
        return lambda _module, _args, value: keep(place, first_tensor(value))

    def on_input(_module: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        keep(0, args[0] if args else kwargs["hidden_states"])

    handles = [blocks[0].register_forward_pre_hook(on_input, with_kwargs=True)]
    handles += [block.register_forward_hook(at(1 + index)) for index, block in enumerate(blocks)]
    handles += [mlp.register_forward_hook(at(1 + len(blocks) + index)) for index, mlp in enumerate(mlps)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def leave(batch: Batch, room: Tensor, side: Any, place: int, value: Tensor) -> None:
    """Copy the real tokens to their place in the room, from a GPU while it goes on."""
    real = batch.real(value)
    if side is None:
        room[place].copy_(real)
        return
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        room[place].copy_(real, non_blocking=True)
    real.record_stream(side)


def write_raw(folder: Path, size: int) -> None:
    """Write and flush `size` random bytes, a file per thread."""
    folder.mkdir(exist_ok=True)
    data = np.random.default_rng(0).bytes(min(BLOCK, size))

    def write(index: int) -> None:
        with open(folder / str(index), "wb", buffering=0) as file:
            for _ in range(max(1, round(size / WRITERS / len(data)))):
                file.write(data)
            os.fsync(file.fileno())

    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(write, range(WRITERS)))


def tokens_for(folder: Path, config: Any, small: bool) -> int:
    """How many tokens to capture: what the disk takes in LONGEST, at most 24,000, and a third of what is free."""
    per_token = STORED * 2 * (2 * config.num_hidden_layers + 1) * config.hidden_size
    probe = (16 << 20) if small else (1 << 30)
    started = time.perf_counter()
    write_raw(folder / "probe", probe)
    rate = probe / (time.perf_counter() - started)
    shutil.rmtree(folder / "probe")
    most = 1200 if small else 24000
    return int(max(1000, min(most, rate * LONGEST / per_token, shutil.disk_usage(folder).free / 3 / per_token)))


def capture_rows(name: str, model: Model, folder: Path, small: bool) -> list[Row]:
    """Speeds and memory of the capture of one model beside its limits."""
    held = torch.cuda.memory_allocated() if model.device.type == "cuda" else 0
    tokens = tokens_for(folder, model.hf.config, small)
    loop = Loop(model, folder, tokens, (16, 64) if small else (64, 256))
    loop.bare()
    loop.staged()
    if held:
        torch.cuda.reset_peak_memory_stats()
    machine.reset_peak_memory()
    before = machine.peak_memory()
    started = time.perf_counter()
    loop.capture()
    first, host = time.perf_counter() - started, machine.peak_memory()
    peak = torch.cuda.max_memory_allocated() if held else 0
    chunks, times = loop.chunks()
    loop.clear()
    tasks: dict[str, Callable[[], object]] = {
        "bare": loop.bare,
        "staged": loop.staged,
        "raw": loop.write,
        "clear raw": loop.clear,
        "encode": threaded(encode, [as_captured(chunk) for chunk in chunks], machine.cores()),
        "capture": loop.capture,
        "clear": loop.clear,
    }
    seconds = in_turn(tasks, REPEATS)
    seconds["encode"] = [value * times for value in seconds["encode"]]
    seconds["limit"] = [max(pair) for pair in zip(seconds["bare"], seconds["raw"], strict=True)]
    middle, tokens, stored = medians(seconds), loop.stream.n_tokens, loop.bytes
    rate = {task: tokens / value for task, value in middle.items()}

    def against(what: str, task: str, limit: str, target: str = "", note: str = "") -> Row:
        ratio = median_ratio(seconds[task], seconds[limit])
        return Row(f"{name}: {what}", middle[task], middle[task] / ratio, "s", target, note)

    about = f"{tokens} tokens, {stored / 1e9:.2f} GB stored; {device_line()}"
    whole = f"{rate['capture']:,.0f} tokens/s; the first one, which also pins memory, took {first:.2f} s"
    found = [
        Row(f"{name}: bare forward", rate["bare"], float("nan"), "tokens/s", "", about),
        Row(f"{name}: staged in host memory, vs bare", rate["staged"], rate["bare"], "tokens/s"),
        Row(f"{name}: raw write of the capture's bytes", stored / middle["raw"] / 1e6, float("nan"), "MB/s"),
        against("capture vs larger of bare and raw write", "capture", "limit", HEADLINE, whole),
        against("capture vs bare", "capture", "bare"),
        against("capture vs raw write", "capture", "raw"),
        against("capture vs encoding alone, all cores", "capture", "encode"),
        Row(f"{name}: peak host memory of a capture vs before", host / 1e9, before / 1e9, "GB"),
    ]
    if held:
        found.append(Row(f"{name}: peak device memory of a capture vs weights", peak / 1e9, held / 1e9, "GB"))
    return found


def lens_rows(model: str, head: Head, boundaries: int, device: str, small: bool) -> list[Row]:
    """The lens on the device against the fastest product of the same arithmetic."""
    tokens, side = (32, 512) if small else (512, 8192)
    rng = np.random.default_rng(0)
    resid = np.cumsum(rng.standard_normal((tokens, boundaries, head.d_model), np.float32), axis=1)
    target, none = rng.integers(0, head.vocab, tokens), np.full(tokens, -1)
    few = slice(0, 8)
    exact = lens(head, resid[few], none[few], js_next=False)["kl_final_layer"]

    def read(how: str, part: slice = slice(None)) -> np.ndarray:
        with arithmetic(how):
            narrow = head.to(device, torch.bfloat16) if how == "bfloat16" else head
            found = lens(narrow, resid[part], none[part], device=device, js_next=False)
        return found["kl_final_layer"]

    error = {how: float(np.abs(read(how, few) - exact).max()) for how in ("float32", "TF32", "bfloat16")}
    flops = 2.0 * head.d_model * head.vocab * tokens * boundaries
    work = {"all": flops}
    tasks: dict[str, Callable[[], object]] = {"all": partial(lens, head, resid, target, device=device)}
    for how in error:
        work[how], tasks[how] = flops, partial(read, how)
        for shape in ((side, side, side), (min(4096, side), head.d_model, min(8192, side))):
            times = max(1, int((2e8 if small else 2e13) / (2.0 * np.prod(shape))))
            work[f"{how} product {shape}"] = 2.0 * float(np.prod(shape)) * times
            tasks[f"{how} product {shape}"] = product(shape, how, device, times)
    for task in tasks.values():
        task()
    seconds = in_turn(tasks, REPEATS)
    rates = {name: [work[name] / value / 1e12 for value in values] for name, values in seconds.items()}

    def row(what: str, name: str, how: str, note: str) -> Row:
        products = [values for other, values in rates.items() if other.startswith(f"{how} product")]
        peak = [max(values) for values in zip(*products, strict=True)]
        measured = float(np.median(rates[name]))
        limit = measured / median_ratio(rates[name], peak)
        return Row(f"{model}: lens, {what}, against GEMM peak", measured, limit, "TF/s", "", note)

    about = f"{tokens} tokens, {boundaries} boundaries, d = {head.d_model}, V = {head.vocab}"
    return [
        *(row(f"KL columns, {how}", how, how, f"KL within {off:.1e} nats of the CPU's") for how, off in error.items()),
        row("all columns with ranks and JS, float32", "all", "float32", about),
    ]


@contextmanager
def arithmetic(how: str) -> Iterator[None]:
    """Let float32 products take TF32 inside the block if `how` says so."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if how == "TF32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def product(shape: tuple[int, int, int], how: str, device: str, times: int) -> Callable[[], None]:
    """A task that multiplies [m, k] by [k, n] so many times."""
    m, k, n = shape
    dtype = torch.bfloat16 if how == "bfloat16" else torch.float32
    a, b = torch.randn(m, k, dtype=dtype, device=device), torch.randn(n, k, dtype=dtype, device=device)
    c = torch.empty(m, n, dtype=dtype, device=device)

    def task() -> None:
        with arithmetic(how):
            for _ in range(times):
                torch.mm(a, b.T, out=c)
        if device == "cuda":
            torch.cuda.synchronize()

    return task


def device_line() -> str:
    """The device and what drives it."""
    place = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return ", ".join([place, *(f"{name} {version(name)}" for name in ("torch", "transformers", "zarr", "numcodecs"))])


def rows(dry_run: bool) -> list[Row]:
    """Everything, one model after the other."""
    device = "cpu" if dry_run else "cuda"
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no CUDA device here; --dry-run takes tiny models and the CPU")
    ERRORS.quiet = True
    found = []
    for name, config in configs(dry_run).items():
        with tempfile.TemporaryDirectory(prefix="actlake-bench-") as folder, single_threaded_blosc():
            model = make_model(name, config, device)
            found += capture_rows(name, model, Path(folder), dry_run)
        head, boundaries = model.head, model.n_layers + 1
        del model  # the next one needs its place
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()
        found += lens_rows(name, head, boundaries, device, dry_run)
    return found
