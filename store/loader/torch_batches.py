"""The same batches as torch tensors, for a DataLoader."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from ..core.errors import LakeError
from .batches import Batch, Batches


class TorchBatches(IterableDataset):
    """`Batches` as an IterableDataset: `DataLoader(found, batch_size=None, num_workers=2)` gives the same sequence for any number
    of workers. All else is as in `Batches`, which is `.batches`. With `pin` tensors are in pinned memory."""

    def __init__(self, batches: Batches, pin: bool = False):
        if pin and not torch.cuda.is_available():
            raise LakeError("pin=True: pinned memory needs a GPU that torch can use", repair="leave it out")
        self.batches, self.pin = batches, pin

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        for batch in self.batches.iterate(*((info.id, info.num_workers) if info else ())):
            yield Batch(*map(self._tensor, batch))

    def _tensor(self, values: Any) -> torch.Tensor:
        found = torch.from_numpy(values)
        found = found.view(torch.bfloat16) if found.dtype == torch.uint16 else found
        return found.pin_memory() if self.pin else found

    def __len__(self) -> int:
        return len(self.batches)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "batches":
            raise AttributeError(name)
        return getattr(self.batches, name)
