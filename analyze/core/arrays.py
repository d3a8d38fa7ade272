"""Arrays that kernels are given, as tensors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray | Tensor
LOG2_E = math.log2(math.e)


class _Open:
    """Looks like the array it holds, on the same memory, but without the read-only flag."""

    def __init__(self, array: np.ndarray):
        self._held = array
        place, _ = array.__array_interface__["data"]
        self.__array_interface__ = array.__array_interface__ | {"data": (place, False)}


def as_tensor(array: Any) -> Tensor:
    """An array as a tensor on the same memory, for reading only; a tensor comes back as it is.

    torch can't mark memory as read-only and warns of it: a kernel that writes to its input would write through.
    """
    if isinstance(array, np.ndarray) and not array.flags.writeable:
        array = np.asarray(_Open(array))
    return torch.as_tensor(array)
