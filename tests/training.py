"""A training loop in a process of its own, that saves the loader's state as it goes and goes on from there: for tests that kill it.

Arguments: the lake's folder, the run's folder, workers of the DataLoader (0: NumPy), rank, world and the batch to stand still at.
Each batch is a line of a log (epoch, number, its tokens, a hash of its values); each third one saves the state after its line.
"""

import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from actlake.lake import Lake
from actlake.store.core.files import write_atomic

ASK: dict[str, Any] = {"layer": 1, "batch": 50, "buffer": 200}
EPOCHS, SAVED_EVERY = 2, 3


def train(lake: Path, run: Path, workers: int, rank: int, world: int, stands: int) -> None:
    """Two epochs, from the state that is saved there, if one is; stands still at a batch of the second one (0: at none)."""
    ask = {**ASK, "rank": rank, "world": world, "output": "torch" if workers else "numpy"}
    batches = Lake(lake).batches("made/it", "raw", **ask)
    first = number = 0
    if (saved := run / f"state-{rank}.json").exists():
        state = json.loads(saved.read_text())
        batches.load_state_dict(state)
        first, number = state["epoch"], state["batch"]
    with (run / f"log-{rank}.jsonl").open("a") as log:
        for epoch in range(first, EPOCHS):
            batches.set_epoch(epoch)  # keeps the place of the state in the first one
            for batch in loop(batches, workers):
                values = hashlib.sha256(np.ascontiguousarray(batch.x).tobytes()).hexdigest()
                number += 1
                log.write(json.dumps([epoch, number, np.asarray(batch.token).tolist(), values]) + "\n")
                log.flush()
                if number % SAVED_EVERY == 0:
                    write_atomic(saved, json.dumps(batches.state_dict(batch=number)).encode())
                time.sleep(600 if (epoch, number) == (1, stands) else 0)
            number = 0


def loop(batches: Any, workers: int) -> Any:
    """The batches themselves, or a DataLoader's."""
    if not workers:
        return batches
    from torch.utils.data import DataLoader

    return DataLoader(batches, batch_size=None, num_workers=workers)


if __name__ == "__main__":
    lake, run, workers, rank, world, stands = sys.argv[1:]
    train(Path(lake), Path(run), int(workers), int(rank), int(world), int(stands))
