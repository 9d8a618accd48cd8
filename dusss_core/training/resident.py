"""Where the arrays of a training split live, and how a batch of them comes to the device.

On the CPU: where they are. On a CUDA device: all of an array, as it is stored (uint8, float16), if it fits beside what
trains there; a step then sends positions alone. What does not fit stays on the host, and a batch of it is gathered in
pinned memory and copied without being waited for: the host runs ahead of the device, so that is done while the device
is busy with the step before.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dusss_core.transfer import sent

SHARE_OF_FREE = 0.4
"""Of the device's free memory, when an array is first read: what it may take at most. A split has three arrays at most,
and the rest is for weights, moments and activations."""
_CHUNK = 64 << 20
"""Bytes that are pinned at a time while an array is copied."""


class Resident:
    """Rows of an array, as tensors on a device.

    Args:
        array: N x ..., of any type that torch knows; possibly memory-mapped.
    """

    def __init__(self, array: np.ndarray, device: torch.device):
        self._array = array
        self._device = device
        self._whole: Tensor | None = None
        if device.type != "cpu" and array.nbytes <= SHARE_OF_FREE * free_memory(device):
            self._whole = _copied(array, device)

    @property
    def on_device(self) -> bool:
        """Whether all rows are on the device already."""
        return self._whole is not None or self._device.type == "cpu"

    def take(self, positions: np.ndarray) -> Tensor:
        """The rows at `positions` (B int64): B x ..., in the array's type."""
        if self._whole is not None:
            return self._whole.index_select(0, sent(self._device, torch.from_numpy(positions))[0])
        rows = torch.from_numpy(np.ascontiguousarray(self._array[positions]))
        return sent(self._device, rows)[0]


def free_memory(device: torch.device) -> float:
    """Bytes that are free on `device`; 0 where nobody can say."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


def _copied(array: np.ndarray, device: torch.device) -> Tensor:
    like = torch.from_numpy(np.array(array[:1]))
    whole = torch.empty(array.shape, dtype=like.dtype, device=device)
    step = max(1, _CHUNK // max(1, like.nbytes))
    for start in range(0, len(array), step):
        rows = torch.from_numpy(np.array(array[start : start + step]))
        whole[start : start + step].copy_(sent(device, rows)[0])
    return whole
