"""Estimated cost of jobs before they run: missing tables, texts and probes, and seconds.

An estimate counts logits (tokens x boundaries x vocabulary), times what a logit costs in multiplications, by the speed of a
matrix product that is measured here, once. It is meant to tell seconds from minutes from hours.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import TYPE_CHECKING

from ...store.artifacts.models import read_model
from ...store.captures.reader import Capture
from ...store.core.progress import Estimate
from .job import Job, Stage
from .passes import missing_of

if TYPE_CHECKING:
    from .context import Context

ELEMENTWISE = 400  # what softmax, ranks and sums cost a logit, in multiplications of the matrix product
TRAINING = 1.6  # a trained token in tokens of a lens: forward, backward, optimiser
ELEMENT = 2000  # what cosines and norms cost a value of a residual, likewise
READING = 1.5e9  # bytes of decoded residuals a second
STARTING = 3.0  # seconds until a model is loaded, and a second more for each GB
PLAIN = 5e10  # multiplications a second where no device is measured: two cores without a matrix product
STEP = 0.004  # seconds that a block takes in a step of decoding, however small it is
NAMED = 6  # models or rows that a line names


@dataclass(frozen=True)
class Work:
    """What is missing for some rows: tables and the captures they are made from, texts and new tokens at most, models whose
    probes are to be trained; seconds of each, roughly."""

    tables: tuple[str, ...] = ()
    captures: int = 0
    table_seconds: float = 0.0
    texts: int = 0
    conditions: int = 0
    tokens: int = 0
    text_seconds: float = 0.0
    probes: tuple[str, ...] = ()
    probe_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.table_seconds + self.text_seconds + self.probe_seconds

    def parts(self, on: str = "") -> dict[Stage, Estimate]:
        """What there is to compute, to generate and to train; none when nothing is missing. `on`: the device that computes."""
        on, found = f" on {on}" if on else "", dict[Stage, Estimate]()
        if self.tables:
            of = f" for {self.captures} capture{'s' * (self.captures != 1)}" if self.captures else ""
            found[Stage.TABLES] = Estimate(f"{', '.join(self.tables)}{of}{on}", seconds=self.table_seconds)
        if self.conditions:
            what = f"{self.texts:,} texts under {self.conditions} conditions, at most {self.tokens:,} tokens{on}"
            found[Stage.TEXTS] = Estimate(what, seconds=self.text_seconds)
        if self.probes:
            what = f"probes for the tuned lens of {listed(self.probes)}{on}"
            found[Stage.PROBES] = Estimate(what, seconds=self.probe_seconds)
        return found

    def __str__(self) -> str:
        return "; ".join(map(str, self.parts().values()))


def listed(names: Iterable[str]) -> str:
    """Some names in a line, not more than a reader takes in."""
    every = list(names)
    return ", ".join(every[:NAMED]) + (f" and {len(every) - NAMED} more" if len(every) > NAMED else "")


def work_of(kit: Context, jobs: Sequence[Job]) -> Work:
    """What of some jobs, and of those they need first, is missing."""
    missing = list(missing_of(jobs).values())
    if not missing:
        return Work()
    by = {at: [job for job in missing if job.stage == at] for at in Stage}
    captures = {capture.path for job in by[Stage.TABLES] for capture in job.captures}
    counts = [found for job in by[Stage.TEXTS] if (found := _texts(kit, job))[0]]
    return Work(
        tuple(dict.fromkeys(job.name.partition("(")[0] for job in by[Stage.TABLES])),
        len(captures),
        _seconds(kit, by[Stage.TABLES]),
        sum(count for count, _ in counts),
        len(counts),
        sum(count * budget for count, budget in counts),
        _seconds(kit, by[Stage.TEXTS]),
        tuple(dict.fromkeys(job.name.rpartition(" ")[2] for job in by[Stage.PROBES])),
        _seconds(kit, by[Stage.PROBES]),
    )


def _seconds(kit: Context, jobs: Sequence[Job]) -> float:
    """About how long jobs take on the device of their kit, one after the other; captures are read once."""
    if not jobs:
        return 0.0
    read = {capture.path: capture for job in jobs for capture in job.captures if job.stage == Stage.TABLES}
    total = sum(map(_bytes, read.values())) / READING
    # Measuring a device takes torch, which tables that hold what the capture says do not need.
    kernels = any(job.lenses or job.runs or job.stage != Stage.TABLES for job in jobs)
    speed = speed_of(kit.device) if kernels else PLAIN
    loads = {key: size for job in jobs for key, size in _loads(kit, job)}
    total += sum(STARTING + 4 * size / 1e9 for size in loads.values())
    return total + sum(_operations(kit, job) / speed + _steps(kit, job) for job in jobs)


def _operations(kit: Context, job: Job) -> float:
    """Multiplications of one job."""
    if job.stage == Stage.TEXTS:
        texts, budget = _texts(kit, job)
        return 4.0 * texts * budget * _shape(kit, job.runs[0]).parameters if texts else 0.0
    total = 0.0
    for capture in job.captures:
        shape = _shape(kit, capture.path.parent.name)
        cost = shape.logit * job.lenses if job.lenses else ELEMENT * shape.width
        total += capture.n_tokens * (shape.layers + 1) * cost
    if job.stage == Stage.PROBES:
        shape = _shape(kit, job.runs[0])
        return (job.forwards * TRAINING + job.checked) * shape.logit * shape.layers
    return total + sum(2.0 * job.forwards * _shape(kit, model).parameters for model in job.runs)


def _steps(kit: Context, job: Job) -> float:
    """Seconds that decoding takes however fast the device is."""
    texts, budget = _texts(kit, job)
    return -(-texts // 64) * budget * STEP * _shape(kit, job.runs[0]).layers if texts else 0.0


def _texts(kit: Context, job: Job) -> tuple[int, int]:
    """Texts that a job would write, and new tokens each at most."""
    return kit.once(_generates, job)


def _generates(kit: Context, job: Job) -> tuple[int, int]:
    return job.generates() or (0, 0)


def _loads(kit: Context, job: Job) -> Iterable[tuple[str, int]]:
    """The models that a job loads, and their parameters."""
    if job.stage != Stage.PROBES:
        for model in job.runs:
            yield model, _shape(kit, model).parameters


def _bytes(capture: Capture) -> int:
    return 4 * capture.n_tokens * prod(capture.size("resid")) if "resid" in capture else 0


@dataclass(frozen=True)
class _Shape:
    """Of a model: blocks, width, parameters, and multiplications that a logit of a lens costs times the vocabulary."""

    layers: int
    width: int
    parameters: int
    logit: float


def _shape(kit: Context, model: str) -> _Shape:
    return kit.once(_read_shape, model)


def _read_shape(kit: Context, model: str) -> _Shape:
    record = read_model(kit.layout, model)
    width, vocab = int(record.get("d_model", 0)), int(record.get("vocab", 0))
    layers, parameters = int(record.get("n_layers", 0)), int(record.get("parameters", 0))
    return _Shape(layers, width, parameters, float(vocab) * (2 * width + ELEMENTWISE))


@cache
def speed_of(device: str) -> float:
    """Multiplications and additions a second of a matrix product, measured for some hundredths of a second."""
    import torch

    def once() -> None:
        left @ right
        if device.startswith("cuda"):
            torch.cuda.synchronize()

    left, right = torch.randn(256, 512, device=device), torch.randn(512, 4096, device=device)
    return 2 * 256 * 512 * 4096 * _rate(once)


def _rate(once: Callable[[], None]) -> float:
    once()
    started, count = time.perf_counter(), 0
    while (spent := time.perf_counter() - started) < 0.04 or not count:
        once()
        count += 1
    return count / spent
