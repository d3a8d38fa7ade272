"""The replayed rows of a pair against the study's way: a full forward of an unmodified model for every branch of every row.

The pair is pocket on its own prompts. Ours answers the rows from its captures, with cold tables; the probes of the tuned
lens are there. The study's way, written here with plain hooks, runs what METHODS 19.3 counts, and where it leaves a choice
the least of it: TEACHER and RAW below are the whole list (exp21 without late MLPs exchanged, exp23 without donor forwards
beside the native ones, no pilot, no reverse teacher). Replayed rows of which it counts no forward are counted apart. The study's
way generates no text and reads each branch by the raw lens alone, where ours does all that the rows ask for. Both read the
same tokens in the capture's batches. Work is slots x blocks that ran (batch x width, padding included), seen by hooks on
every block's attention, the small forwards that check a loaded model included.
"""

import argparse
import gc
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import torch
from actlake.analyze.lens.head import Head
from actlake.analyze.lens.logit_lens import lens, pair_lens
from actlake.analyze.residual.operators import random_like
from actlake.capture.checkpoint.configs import source
from actlake.capture.model.branches import split
from actlake.capture.model.structure import stacks
from actlake.capture.run.batching import batch_plan
from actlake.queries.answer.asking import Asking
from actlake.queries.engine.context import Context
from actlake.queries.engine.passes import run as sweep
from actlake.queries.probes.choice import choose
from actlake.queries.replayed.replays import SEED as NUMBER
from actlake.queries.rows.index import reads
from actlake.queries.rows.registry import find, queries
from actlake.store.artifacts.models import read_head
from actlake.store.artifacts.streams import Stream, read_stream
from actlake.store.core.catalog import load_catalog
from actlake.store.core.schema import VARIANTS
from actlake.store.core.specs import default_windows
from actlake.store.format.paths import Layout
from actlake.store.tables.streams import stream_table
from measure import Row, main
from rows import actlake
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils.logging import disable_progress_bar
from work import CATALOG, Batch

GRAFTS = ("B_early", "B_mid", "B_late")
SWAPS = ("D_early", "D_mid", "D_late")
# Row -> branches that it runs again, one full forward of each prompt (METHODS 8, 9, 13, 17 and 14, 15, 17). A and C are
# the models on their own, B the PT with IT's MLPs in a window, D the reverse; PT_IT is IT's late blocks on PT's state.
TEACHER = {
    "exp11": ("C", "A", *GRAFTS),
    "exp14": ("C", "A", *GRAFTS, *SWAPS),
    "exp16_BD": ("C", "A", *GRAFTS, *SWAPS),
    "exp19B": ("A", *GRAFTS, *(f"{name}_random" for name in GRAFTS)),
}
RAW = {
    "exp20": ("A", *GRAFTS, "B_midlate", "C", *SWAPS, "D_midlate"),
    "exp21": ("A", "C"),
    "exp23": ("A", "C", "PT_IT", "IT_PT"),
}
LATE_ONLY = "exp23"  # the row whose replays all begin at the late window
READOUTS = (
    "the study's: a raw lens per branch, JS for exp16; ours: tables of raw and tuned lens, KL, JS, cosines, gradients"
)
SAMPLE = 5  # calls of a model between two looks at the weights in memory


class Meter:
    """What runs of Hugging Face models while this is open, and which weights are in memory then.

    `work`: slots x blocks whose attention ran (a shell that lets states pass has none). `seconds`: in models' forwards.
    `weights`: most bytes of parameters alive when a model is called. `lost`: seconds that this looking took.
    """

    def __init__(self) -> None:
        self.work, self.weights, self.seconds, self.lost = 0, 0, 0.0, 0.0
        self._attention: set[nn.Module] = set()
        self._inside = self._calls = 0
        self._started = 0.0

    def __enter__(self) -> "Meter":
        self._hooks = [register_module_forward_pre_hook(self._begin), register_module_forward_hook(self._end)]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._attention.clear()

    def _begin(self, module: nn.Module, _args: Any) -> None:
        if not isinstance(module, PreTrainedModel):
            return
        if not self._inside:
            before = time.perf_counter()
            self._attention = set(attention_of(module))
            if self._calls % SAMPLE == 0:
                self.weights = max(self.weights, weights_alive())
            self._calls += 1
            self._started = time.perf_counter()
            self.lost += self._started - before
        self._inside += 1

    def _end(self, module: nn.Module, _args: Any, out: Any) -> None:
        if module in self._attention:
            self.work += out[0].shape[0] * out[0].shape[1]
        elif isinstance(module, PreTrainedModel):
            self._inside -= 1
            if not self._inside:
                self.seconds += time.perf_counter() - self._started


def attention_of(hf: PreTrainedModel) -> list[nn.Module]:
    """The attention modules of the blocks that have weights."""
    blocks = stacks(hf, hf.config.get_text_config().num_hidden_layers)[0]
    return [split(block, at, hf)[0][0] for at, block in enumerate(blocks) if next(block.parameters(), None) is not None]


def weights_alive() -> int:
    """Bytes of all parameters in this process."""
    kind = nn.Parameter
    found = {thing.data_ptr(): thing.nbytes for thing in gc.get_objects() if type(thing) is kind and not thing.is_meta}
    return sum(found.values())


# --- ours ------------------------------------------------------------------------------------------------------------


def ours(layout: Layout) -> tuple[Meter, float, int]:
    """Answer the rows of the study's list: what ran, seconds of their tables, weights for LATE_ONLY alone (bytes)."""
    with Meter() as meter:
        first = answer(layout, LATE_ONLY)
        late = meter.weights
        rest = answer(layout, *(row for row in {**TEACHER, **RAW} if row != LATE_ONLY))
    return meter, first + rest - meter.lost, late


def ours_beyond(layout: Layout) -> dict[str, int]:
    """Replayed rows that are not on the study's list: row -> slots x blocks."""
    found = {}
    for row in [
        name for name, query in queries().items() if reads(query) == "replay" and name not in {**TEACHER, **RAW}
    ]:
        with Meter() as meter:
            answer(layout, row)
        found[row] = meter.work
    return found


def answer(layout: Layout, *rows: str) -> float:
    """Answer rows on pocket, which must be possible: the seconds that their tables took."""
    asking = Asking(layout, [find(row) for row in rows], "pocket", catalog=CATALOG)
    list(asking)
    if asking.refused:
        raise SystemExit(f"{asking.refused[0].query.id}: {asking.refused[0].reason}")
    return asking.seconds


def train(layout: Layout) -> None:
    """The probes of both tuned lenses, as the rows would train them."""
    kit = Context(layout, catalog=CATALOG)
    sweep([job for names in captures(layout, "teacher").values() for job in choose(kit, names).before])


def captures(layout: Layout, recipe: str) -> dict[str, tuple[str, str]]:
    """Variant -> model and stream of the captures of one recipe."""
    table = stream_table(layout)
    rows = table[table["recipe"] == recipe]
    return {row.model.rpartition("-")[2]: (row.model, row.stream) for row in rows.itertuples()}


# --- the study's way --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reader:
    """One unmodified model, its head, and the stream that it reads."""

    hf: Any
    head: Head
    stream: Stream

    @cached_property
    def mlps(self) -> list[nn.Module]:
        """The MLP of each block."""
        return [split(block, at, self.hf)[1][0] for at, block in enumerate(self.blocks)]

    @property
    def blocks(self) -> nn.ModuleList:
        """The blocks."""
        return stacks(self.hf, self.hf.config.num_hidden_layers)[0]

    @torch.no_grad()
    def run(self, rows: Sequence[np.ndarray], chosen: Sequence[np.ndarray]) -> Tensor:
        """One full forward: the residuals at all boundaries of each row's chosen positions, [n, L+1, d]."""
        batch, kept = Batch.of(rows), list[Tensor]()
        at = batch.valid[torch.from_numpy(np.concatenate(chosen))]

        def keep(value: Tensor) -> None:
            kept.append(value.flatten(0, 1).index_select(0, at).float())

        with ExitStack() as hooks:
            first = self.blocks[0].register_forward_pre_hook(lambda _m, args: keep(args[0]))
            hooks.callback(first.remove)
            for block in self.blocks:
                hooks.callback(block.register_forward_hook(lambda _m, _a, out: keep(tensor_of(out))).remove)
            self.hf(**batch.inputs)
        return torch.stack(kept, dim=1)


def tensor_of(out: Any) -> Tensor:
    """The hidden states in a block's output."""
    return out[0] if isinstance(out, tuple) else out


def readers(layout: Layout, recipe: str) -> dict[str, Reader]:
    """Both models of pocket, whole, each with its stream of a recipe."""
    pair, found = load_catalog(CATALOG).pair("pocket"), {}
    disable_progress_bar()
    for variant, names in captures(layout, recipe).items():
        hf = AutoModelForCausalLM.from_pretrained(source(pair.model(variant)), dtype="auto").eval()
        head = Head.from_arrays(*read_head(layout, names[0]))
        found[variant] = Reader(hf, head, read_stream(layout, names[1]))
    return found


@contextmanager
def branch(name: str, pair: dict[str, Reader], states: dict[str, Tensor]) -> Iterator[Reader]:
    """The model that runs a branch, hooked for it; states of A and C at the late window's start go into `states`."""
    on_pt = name[0] in "AB" or name == "IT_PT"
    host, donor = (pair[variant] for variant in (VARIANTS if on_pt else VARIANTS[::-1]))
    windows = default_windows(len(host.blocks))
    windows["midlate"] = (windows["mid"][0], windows["late"][1])
    onset = host.blocks[windows["late"][0]]
    with ExitStack() as hooks:
        if name in ("A", "C"):
            hooks.callback(onset.register_forward_pre_hook(lambda _m, args: states.update({name: args[0]})).remove)
        elif name in ("PT_IT", "IT_PT"):
            state = states["A" if name == "PT_IT" else "C"]
            hooks.callback(onset.register_forward_pre_hook(lambda _m, args: (state, *args[1:])).remove)
        else:
            _, window, *random = name.split("_")
            for layer in range(*windows[window]):
                change = randomised(layer, donor.mlps[layer]) if random else grafted(donor.mlps[layer])
                hooks.callback(host.mlps[layer].register_forward_hook(change).remove)
        yield host


def grafted(donor: nn.Module) -> Callable[..., Tensor]:
    """A hook that gives the donor's output in place of the host's."""
    return lambda _host, args, _out: donor(*args)


def randomised(layer: int, donor: nn.Module) -> Callable[..., Tensor]:
    """A hook that moves the host's output at random, as far along its input and across it as the donor would."""

    def put(_host: nn.Module, args: tuple[Tensor], out: Tensor) -> Tensor:
        wide, generator = out.float(), torch.Generator().manual_seed(NUMBER + 7919 * layer)
        random = torch.randn(out.shape[-1], generator=generator)
        return (wide + random_like(donor(*args).float() - wide, args[0].float(), random)).to(out.dtype)

    return put


def seed_teacher(pair: dict[str, Reader]) -> None:
    """The rows on IT's answer: all forwards, the raw lens of every branch, and JS of exp16's 13 pairs."""
    steps = {v: np.split(reader.stream.columns["step"], reader.stream.offset[1:-1]) for v, reader in pair.items()}
    plan = batch_plan(np.diff(pair["it"].stream.offset).tolist())
    for row, names in TEACHER.items():
        for prompts in plan:
            found = dict[str, tuple[Reader, Tensor]]()
            for name in names:
                with branch(name, pair, {}) as host:
                    mine = steps["pt" if host is pair["pt"] else "it"]
                    tokens = [host.stream.tokens[p] for p in prompts]
                    chosen = [mine[p] >= 0 for p in prompts]
                    found[name] = host, host.run(tokens, flat_places(chosen))
                target = [ids[1:][places[:-1]] for ids, places in zip(tokens, chosen, strict=True)]
                if row != "exp16_BD":
                    lens(host.head, found[name][1], np.concatenate(target).astype(np.int64), js_next=False)
            for one, other in js_pairs(names) if row == "exp16_BD" else ():
                (a, left), (b, right) = found[one], found[other]
                pair_lens(a.head, b.head, left, right)


def js_pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    """The pairs of branches that exp16 compares: A and C, and each other branch with both."""
    return [("A", "C"), *((name, base) for name in names if len(name) > 1 for base in ("A", "C"))]


def flat_places(chosen: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Masks of each row as places among the batch's real tokens."""
    starts = np.cumsum([0, *(len(mask) for mask in chosen)])
    return [start + np.flatnonzero(mask) for start, mask in zip(starts, chosen, strict=False)]


def seed_raw(pair: dict[str, Reader]) -> None:
    """The rows on the shared prefixes: all forwards, the last position's residuals."""
    prefixes = [
        one[: np.flatnonzero(differ)[0]]
        for one, other in zip(pair["it"].stream.tokens, pair["pt"].stream.tokens, strict=True)
        for n in [min(len(one), len(other))]
        for differ in [one[:n] != other[:n]]
        if differ.any()
    ]
    for names in RAW.values():
        for prompts in batch_plan([len(prefix) for prefix in prefixes]):
            rows, states = [prefixes[p] for p in prompts], dict[str, Tensor]()
            last = flat_places([np.arange(len(row)) == len(row) - 1 for row in rows])
            for name in names:
                with branch(name, pair, states) as host:
                    host.run(rows, last)


def study(layout: Layout) -> tuple[Meter, float]:
    """Run the study's way: what ran, and the seconds it took, loading not included."""
    seconds = 0.0
    with Meter() as meter:
        for recipe, work in (("teacher", seed_teacher), ("raw", seed_raw)):
            pair = readers(layout, recipe)
            started = time.perf_counter()
            work(pair)
            seconds += time.perf_counter() - started
            del pair
            gc.collect()
    return meter, seconds - meter.lost


# --- rows ------------------------------------------------------------------------------------------------------------


def captured(layout: Layout) -> int:
    """Slots x blocks of the captures that ours starts from: each model on IT's answer and on its own raw one."""
    total = 0
    for recipe in ("teacher", "raw"):
        for names in captures(layout, recipe).values():
            lengths = np.diff(read_stream(layout, names[1]).offset)
            layers = len(Context(layout).capture(names).array("layer")[:])
            total += layers * sum(len(batch) * int(lengths[batch].max()) for batch in batch_plan(lengths.tolist()))
    return total


def run(limit: int = 0) -> list[Row]:
    """All rows of this benchmark."""
    with tempfile.TemporaryDirectory(prefix="actlake-bench-") as folder:
        lake, few = Path(folder) / "lake", ["--limit", str(limit)] if limit else []
        streams = [word for recipe in ("native", "teacher", "raw") for word in ("--stream", recipe)]
        actlake("capture", "pocket", *streams, *few, "--lake", str(lake), "--catalog", str(CATALOG))
        layout = Layout.open(lake)
        train(layout)
        theirs, seconds = study(layout)
        mine, took, late = ours(layout)
        before, beyond = captured(layout), ours_beyond(layout)
    unit, pair = "M slots x blocks", "weights in memory at most vs the whole pair"
    work, forward = "block-forwards, the study's over ours", "seconds in models, the study's over ours"
    rows = ", ".join([*TEACHER, *RAW])
    note = "19.3 counts no forward of theirs, so they are in no ratio"
    return [
        Row(work, theirs.work / 1e6, mine.work / 1e6, unit, ">= 3", f"{rows}; captures are in neither"),
        Row(f"{work} and its captures", theirs.work / 1e6, (mine.work + before) / 1e6, unit),
        Row(forward, theirs.seconds, mine.seconds, "s"),
        Row("seconds with readouts, the study's over ours", seconds, took, "s", "", READOUTS),
        Row(f"{pair}, {LATE_ONLY} (late windows only)", late / 1e6, theirs.weights / 1e6, "MB", "<= 1"),
        Row(f"{pair}, all rows", mine.weights / 1e6, theirs.weights / 1e6, "MB"),
        *(Row(f"block-forwards of {row}, ours", count / 1e6, nan, unit, "", note) for row, count in beyond.items()),
    ]


def options(parser: argparse.ArgumentParser) -> None:
    """A run on few prompts, to try the script."""
    parser.add_argument("--limit", type=int, default=0, metavar="N", help="only the first N prompts of pocket")


if __name__ == "__main__":
    main("factorials", run, __doc__, options)
