"""Several processes on one capture: which owns which shard rows, without communication."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from ...store.core.errors import LakeError
from ...store.core.files import try_lock
from ...store.core.progress import ERRORS
from ...store.core.schema import PROGRESS

# Variables in which launchers give a process its rank: torchrun, then Slurm's srun. (rank, world, local rank)
LAUNCHERS = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
)


@dataclass(frozen=True)
class Rank:
    """One of `world` processes that share a capture; `local` is its number on its machine,
    `source` how rank and world size were determined."""

    rank: int = 0
    world: int = 1
    local: int = 0
    source: str = ""

    def __post_init__(self) -> None:
        if self.world < 1 or not 0 <= self.rank < self.world:
            raise LakeError(
                f"rank {self.rank} of {self.world}: ranks count from 0 to world - 1; give --rank R --world N with R < N"
            )

    @classmethod
    def find(cls, rank: int | None, world: int | None, environment: Mapping[str, str] = os.environ) -> "Rank":
        """From the command line if it has both, else from torchrun's or Slurm's variables, else alone."""
        if (rank is None) != (world is None):
            raise LakeError(
                "--rank and --world belong together: --rank 0 --world 2 in one process, --rank 1 --world 2 in another"
            )
        if rank is not None and world is not None:
            return cls(rank, world, rank, "--rank and --world")
        for names in LAUNCHERS:
            here, count, local = (
                int(environment.get(name, "")) if environment.get(name, "").isdecimal() else -1 for name in names
            )
            if here >= 0 and count > 1:
                return cls(here, count, max(local, 0), names[0])
        return cls()

    def rows(self, count: int) -> range:
        """The shard rows of this rank: a contiguous part, so that neighbours repeat as few batches as possible."""
        return range(self.rank * count // self.world, (self.rank + 1) * count // self.world)

    def device(self, name: str) -> str:
        """`cuda`, or `auto` where there is one, becomes the GPU of this rank's number on its machine; anything else stays."""
        if name not in ("auto", "cuda") or self.world == 1 or not torch.cuda.is_available():
            return name
        return f"cuda:{self.local % torch.cuda.device_count()}"

    def __str__(self) -> str:
        return f"rank {self.rank} of {self.world}"

    @contextmanager
    def alone(self, path: Path) -> Iterator[None]:
        """Keep a second process from the same rows of the capture at `path`; the lock ends with the process.

        Of ranks one is refused. The same command without ranks, started twice, waits until the first has ended,
        in whatever way.
        """
        lock = path / PROGRESS / f"rank-{self.rank}.lock"
        with try_lock(lock) as mine:
            if mine:
                yield
                return
        if self.world > 1:
            raise LakeError(
                f"{path}: another process is writing the rows of {self} now; give each process its own --rank"
            )
        ERRORS.print(f"{path}: another process is capturing this now, waiting for it", highlight=False, soft_wrap=True)
        with try_lock(lock, wait=True):
            yield


ALONE = Rank()
