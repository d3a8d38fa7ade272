"""A late-window replay against its share of a full forward, and the memory of a model whose early blocks are not loaded.

A random Llama of SmolLM2-135M's shape, in float32 on a stream of random tokens. The full forward is Hugging Face's own, in
the capture's batches, logits of the last position only; the replay starts at the onset, round(0.6 L), reads its states
from the store and returns the final residual. Both run in turn, medians of quotients.
"""

import multiprocessing
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import machine
import torch
from actlake.capture.edit.edits import Edit, Graft
from actlake.capture.edit.replay import replay
from actlake.capture.edit.start import ReplayStart, open_start
from actlake.capture.model.load import load_model
from actlake.capture.model.partial import load_donor, load_suffix
from actlake.capture.run.capture import capture
from actlake.store.artifacts.streams import write_stream
from actlake.store.core.catalog import ModelSpec, ProfileSpec
from actlake.store.core.progress import ERRORS
from actlake.store.core.specs import default_windows
from actlake.store.format.paths import Layout
from measure import Row, in_turn, main, median_ratio
from work import Batch, random_llama, random_stream, read_by

TOKENS, LENGTHS, ROUNDS, DTYPE = 2000, (64, 256), 5, "float32"
START, STOP = default_windows(30)["late"]
PROFILE = ProfileSpec("bench", ("resid",), "none", "auto", None, (START, "last"))


def spec_of(folder: Path) -> ModelSpec:
    """The catalog's entry of the random model."""
    return ModelSpec("bench-pt", folder, None, None, None)


def captured(folder: Path, spec: ModelSpec) -> tuple[Any, ReplayStart]:
    """The whole model and where its replay starts."""
    ERRORS.quiet = True
    layout, model = Layout.open(folder, create=True), load_model(spec, dtype=DTYPE)
    stream = read_by(model, random_stream(TOKENS, LENGTHS, 4000))
    name = write_stream(layout, stream)
    capture(layout, model, name, PROFILE)
    return model, open_start(layout, spec.name, name, START)


def times(folder: Path, spec: ModelSpec) -> list[Row]:
    """Late replays, plain and with a graft, against their share of the full forward and the read."""
    model, start = captured(folder, spec)
    late, donor = load_suffix(spec, START, dtype=DTYPE), load_donor(spec, range(START, STOP), dtype=DTYPE)
    rows = [[start.token_id[slice(*span)] for span in start.spans(batch)] for batch in start.plan]
    batches = [Batch.of(batch) for batch in rows]

    def again(*edits: Edit) -> None:
        for _ in replay(late, start, edits, keep=("resid",), logits="none", boundaries=(STOP,)):
            pass

    @torch.no_grad()
    def full() -> None:
        for batch in batches:
            model.hf(**batch.inputs)

    def read() -> None:
        for batch in start.plan:
            for span in start.spans(batch):
                start.states[slice(*span)]

    tasks: dict[str, Callable[[], object]] = {
        "full": full,
        "read": read,
        "replay": again,
        "graft": lambda: again(Graft(donor)),
    }
    in_turn(tasks, 1)
    seconds = in_turn(tasks, ROUNDS)
    share = (STOP - START) / STOP
    limit = [share * whole + reading for whole, reading in zip(seconds["full"], seconds["read"], strict=True)]
    note = f"blocks {START} to {STOP - 1} of {STOP}; the limit is {share:.2f} of a full forward plus the read"
    return [
        Row(f"late {name} vs its share", median_ratio(seconds[name], limit), 1.0, "of the limit", "<= 1.15", note)
        for name in ("replay", "graft")
    ]


def loading(folder: Path, late: bool) -> float:
    """Bytes of resident memory that a process takes to load the model, or its late window and the donor's MLPs of it."""
    spec = spec_of(folder)
    load_donor(spec, (0,))  # what a first load brings along
    machine.reset_peak_memory()
    before = machine.peak_memory()
    kept = [load_suffix(spec, START), load_donor(spec, range(START, STOP))] if late else [load_model(spec)]
    return float(machine.peak_memory() - before) if kept else 0.0


def run() -> list[Row]:
    """All rows of this benchmark."""
    with (
        tempfile.TemporaryDirectory(prefix="actlake-bench-") as folder,
        multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool,
    ):
        model = random_llama(Path(folder) / "model")
        part, whole = (pool.apply(loading, (model, late)) / 1e6 for late in (True, False))
        memory = Row("late window with donor MLPs vs the whole model, loaded", part, whole, "MB", "<= 1")
        return [*times(Path(folder) / "lake", spec_of(model)), memory]


if __name__ == "__main__":
    main("replay", run, __doc__)
