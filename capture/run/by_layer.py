"""Layer by layer: all batches pass one block before the next is read; what they compute waits in the capture's folder.

The passes run the batches of the plan, the prompts of the noise floor alone, and the small forward of the checks at load.
Then shard rows are filled from what they left, as if the model had just computed it.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor, nn

from ...store.artifacts.streams import Stream
from ...store.captures.allocate import Template
from ...store.core.errors import LakeError
from ...store.core.files import give_back_memory, human_bytes, read_json, sync_file, write_json
from ...store.core.progress import ERRORS, bar
from ...store.core.schema import PROGRESS, SITES
from ..checkpoint.loading import probed
from ..model.branches import Branch
from ..model.by_layer import seen_from
from ..model.hooks import Batch, gather, pad_id
from ..model.load import Model
from ..model.partial import entering
from ..model.structure import Seen, assemble, check_flow, look
from ..model.trace import PROBE_TOKENS, Trace, accepted, random_tokens
from .batching import stages
from .forward import row_entropies
from .reforward import noise_prompts

FOLDER = "blocks"  # in the progress folder
PROBE = "probe"  # the key of the small forward
REPAIR = "delete it and run this again"
Sizes = Mapping[str, tuple[int, ...]]


class _Reached(Exception):
    """The block has run: nothing behind it is needed."""


@dataclass(frozen=True)
class _Spill:
    """What the blocks computed: a file for each site and place, [tokens, d] of all batches with their padding.

    `shapes` are the rows and columns of each batch by its key, in the order of the files.
    """

    folder: Path
    shapes: dict[str, tuple[int, int]]
    width: int
    dtype: torch.dtype

    def file(self, name: str, index: int) -> Path:
        """The file of a site at a boundary or block."""
        return self.folder / f"{name}-{index:04d}.bin"

    def read(self, name: str, index: int, key: str) -> Tensor:
        """The values of one batch, [batch, width, d]."""
        places, (rows, columns) = list(self.shapes), self.shapes[key]
        token = self.width * self.dtype.itemsize
        before = sum(r * c for r, c in list(self.shapes.values())[: places.index(key)])
        data = np.fromfile(self.file(name, index), np.uint8, rows * columns * token, offset=before * token)
        if len(data) != rows * columns * token:
            raise LakeError(f"{self.file(name, index)}: ends too early; {self.folder}: {REPAIR}")
        return torch.from_numpy(data).view(self.dtype).reshape(rows, columns, self.width)

    def record(self, index: int) -> Path:
        """Its existence says that a block is done."""
        return self.folder / f"block-{index:04d}.json"

    def entropies(self, index: int) -> Path:
        """Per-prompt values of a block, by batch."""
        return self.folder / f"entropy-{index:04d}.npz"


@dataclass
class _Played:
    """A model's forwards from what its blocks left: in place of running a batch, its values are sent to where they go."""

    spill: _Spill
    layers: int
    key: str = ""

    def send(self, batch: Batch, sink: Any, kept: dict[str, dict[int, int]], logits: bool) -> Tensor | None:
        """As `forward.run`: the sites of `kept` to the sink; for logits, what leaves the last block."""
        self.key = _key(batch)
        for name, places in kept.items():
            for index, place in places.items():
                sink.padded(name, place, self.spill.read(name, index, self.key))
        return self.spill.read("resid", self.layers, self.key).to(batch.ids.device) if logits else None

    def entropies(self) -> np.ndarray:
        """Of the batch that was sent last, [batch, layer, head]."""
        rows = []
        for index in range(self.layers):
            with np.load(self.spill.entropies(index), allow_pickle=False) as found:
                rows.append(found[self.key])
        return np.stack(rows, axis=1)


def _key(batch: Batch) -> str:
    """A batch by its tokens."""
    digest = hashlib.sha256(repr((tuple(batch.ids.shape), batch.lengths)).encode())
    digest.update(batch.ids.cpu().numpy().tobytes())
    return digest.hexdigest()[:24]


def kept_files(sizes: Sizes, boundaries: Sequence[int], layers: int) -> dict[str, list[int]]:
    """Site -> the boundaries or blocks whose values must wait until shard rows are written."""
    found = {name: list(range(layers)) for name in sizes if name in SITES and SITES[name].branch}
    if "delta" in stages(dict(sizes)):
        found["mlp_out"] = list(range(layers))
    resid = set(boundaries if "resid" in sizes else ())
    resid |= {layers} if {"logits", "topk_id"} & set(sizes) else set()
    return found | {"resid": list(range(layers + 1)) if stages(dict(sizes)) else sorted(resid)}


def spilled_bytes(template: Template, plan: list[list[int]], width: int, itemsize: int) -> int:
    """Bytes on disk on the way, of all batches with their padding: what waits, and what enters and leaves a block."""
    lengths, layers = np.diff(template.stream.offset), len(template.layers)
    padded = sum(len(prompts) * int(lengths[prompts].max()) for prompts in plan)
    files = sum(map(len, kept_files(template.sizes, template.boundaries, layers).values())) + 2
    return padded * width * itemsize * files


class _Keep:
    """Writes what one block computes of one batch after the other to the files of their sites."""

    def __init__(self, spill: _Spill, files: Mapping[tuple[str, int], BinaryIO], name: str):
        self._spill, self._files, self._name = spill, files, name

    def padded(self, site: str, index: int, value: Tensor) -> None:
        """Keep values [batch, width, d], or the same in one row of tokens."""
        if value.dtype != self._spill.dtype or value.shape[-1] != self._spill.width:
            raise LakeError(
                f"{self._name}: --by-layer: {site} {index} is {value.dtype}, [.., {value.shape[-1]}], expected"
                f" {self._spill.dtype}, [.., {self._spill.width}]: leave it out"
            )
        data = value.detach().contiguous().view(-1).view(torch.uint8).cpu().numpy()
        self._files[site, index].write(data.data)


def through_blocks(model: Model, template: Template, plan: list[list[int]], path: Path, stream: Stream) -> Model:
    """Take a stream through a model's blocks, and return the model as one whose forwards are played from the files.

    Blocks whose record is there are not read again. LakeError for what the checks of `load_model` refuse, block by block.
    """
    batches: dict[str, tuple[Batch, np.ndarray]] = {}
    for prompts in [*plan, *([prompt] for prompt in noise_prompts(path, stream))]:
        batch = Batch([stream.tokens[i] for i in prompts], pad_id(model), model.device)
        batches.setdefault(_key(batch), (batch, np.asarray([stream.starts[i] - 1 for i in prompts])))
    shapes = {key: (len(batch.ids), batch.ids.shape[1]) for key, (batch, _) in batches.items()}
    folder = path / PROGRESS / FOLDER
    spill = _Spill(folder, {**shapes, PROBE: (2, PROBE_TOKENS)}, model.head.d_model, model.dtype)
    folder.mkdir(parents=True, exist_ok=True)
    kept = kept_files(template.sizes, template.boundaries, model.n_layers)
    todo = [index for index in range(model.n_layers) if not spill.record(index).exists()]
    _announce(model, template, plan, len(todo))
    tokens = sum(batch.n_tokens for batch, _ in batches.values())
    with bar(f"{model.name}, {len(todo)} blocks", tokens * len(todo)) as progress:
        for index in todo:
            with model.blocks.loaded(index) as block:
                _pass(model, block, index, batches, spill, kept, template.per_prompt, progress)
            give_back_memory()
            if index not in kept["resid"] and index:
                spill.file("resid", index).unlink(missing_ok=True)
    seen = [_seen(model, read_json(spill.record(index), repair=REPAIR)) for index in range(model.n_layers)]
    stack, state = model.blocks.stack, spill.read("resid", model.n_layers, PROBE)
    trace = probed(model.spec, model.hf, lambda: seen_from(model.hf, stack, state))
    parts, head = probed(model.spec, model.hf, lambda: assemble(trace, list(stack), 0, seen, model.hf))
    return replace(model, parts=parts, head=head, played=_Played(spill, model.n_layers))


def _announce(model: Model, template: Template, plan: list[list[int]], todo: int) -> None:
    size = spilled_bytes(template, plan, model.head.d_model, model.dtype.itemsize)
    blocks = f"{todo} of {model.n_layers} blocks, the largest {human_bytes(model.blocks.largest)}"
    ERRORS.print(
        f"capture {model.name} layer by layer: {blocks}, of {human_bytes(model.blocks.weights)} weights;"
        f" {template.stream.n_tokens:,} tokens; {human_bytes(size)} on disk until it is sealed; each block is checked when it is"
        " there, the forward as a whole only without weights",
        highlight=False,
    )
    for note in model.notes:
        ERRORS.print(f"{model.name}: {note}", highlight=False, markup=False, soft_wrap=True)


def _pass(
    model: Model,
    block: nn.Module,
    index: int,
    batches: dict[str, tuple[Batch, np.ndarray]],
    spill: _Spill,
    kept: dict[str, list[int]],
    per_prompt: Sequence[str],
    progress: Any,
) -> None:
    """Check one block with the small forward, then run every batch through it and record that it is done."""
    blocks: list[nn.Module] = list(model.blocks.stack)
    trace = probed(model.spec, model.hf, lambda: _trace(model, blocks, index, spill))
    seen = probed(model.spec, model.hf, lambda: look(trace, block, index, model.hf))
    none: list[Any] = [None] * model.n_layers
    mixed: list[tuple[Branch, ...]] = [()] * model.n_layers
    parts = replace(model.parts, blocks=blocks, added=list(none), mixed=mixed, first=index)
    parts.mixed[index], parts.added[index], error, placement = seen
    multiplied = parts.multipliers()
    alive = replace(model, parts=parts)
    sites = {name: {index: index} for name in kept if name != "resid" and index in kept[name]}
    sites["resid"] = {boundary: boundary for boundary in ([0, 1] if index == 0 else [index + 1])}
    entropies: dict[str, np.ndarray] = {}
    with ExitStack() as stack:
        files = {
            (name, place): stack.enter_context(open(spill.file(name, place), "wb"))
            for name, places in sites.items()
            for place in places
        }
        keep = _Keep(spill, files, model.name)
        for key, (batch, ends) in batches.items():
            state = spill.read("resid", index, key).to(model.device) if index else None
            with row_entropies(alive, ends) if per_prompt else _nothing() as rows:
                _run(alive, batch, state, keep, sites)
            if per_prompt:
                entropies[key] = rows[index].cpu().numpy()
            progress.advance(batch.n_tokens)
        for boundary in sites["resid"]:
            keep.padded("resid", boundary, trace.outputs[block] if boundary else trace.inputs[block])
    if per_prompt:
        np.savez(spill.entropies(index), **entropies)  # type: ignore[arg-type]
        sync_file(spill.entropies(index))
    for name, place in files:
        sync_file(spill.file(name, place))
    norm = None if multiplied is None or multiplied[1] is None else multiplied[0][0].tolist()
    scale = 1.0 if norm else parts.mlp(index).scale
    eps = multiplied[1] if norm and multiplied else None
    found = {"error": error, "placement": placement, "scale": scale, "norm": norm, "eps": eps}
    write_json(spill.record(index), found)


@contextmanager
def _nothing() -> Iterator[dict[int, Tensor]]:
    yield {}


def _trace(model: Model, blocks: list[nn.Module], index: int, spill: _Spill) -> Trace:
    """The small forward through one block, from where the block before left it."""
    with ExitStack() as stack:
        if index:
            parts = replace(model.parts, blocks=blocks, first=index)
            stack.enter_context(entering(parts, spill.read("resid", index, PROBE).to(model.device)))
        trace = Trace(model.hf, random_tokens(model.hf))
    check_flow(trace, blocks, [index], model.hf, causal=True)
    return trace


@torch.no_grad()
def _run(model: Model, batch: Batch, state: Tensor | None, keep: _Keep, sites: dict[str, dict[int, int]]) -> None:
    """One batch through the one block that is there, from the residual that enters it; the forward ends behind it."""
    with ExitStack() as stack:
        if state is not None:
            stack.enter_context(entering(model.parts, state))
        stack.enter_context(gather(model, keep, sites))
        handle = model.parts.blocks[model.parts.first].register_forward_hook(_stop)
        stack.callback(handle.remove)
        try:
            model.hf(**accepted(model.hf, {**batch.given, **batch.beside}))
        except _Reached:
            return


def _stop(_module: nn.Module, _args: Any, _output: Any) -> None:
    raise _Reached


def _seen(model: Model, record: dict[str, Any]) -> Seen:
    """A block as its record describes it, with a norm of the same weights in place of its own."""
    norm = None
    if record["norm"] is not None:
        norm = nn.RMSNorm(len(record["norm"]), record["eps"])
        norm.weight = nn.Parameter(torch.tensor(record["norm"], dtype=torch.float32), requires_grad=False)
    shell = model.blocks.shells[0]
    branch = Branch((shell,), (shell,), norm, record["scale"])
    return (Branch((shell,), (shell,)),), branch, record["error"], record["placement"]
