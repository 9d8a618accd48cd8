"""Between the host and a device, without waiting: small tensors there, figures back.

A copy from ordinary memory, and whatever reads a number, makes the host wait until a CUDA device has done all that was
asked of it; until more is asked the device then has nothing to do. What is here waits for nothing but what it reads. On
the CPU nothing is copied.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

_ALIGNMENT = 16
"""Bytes: where the tensors of a parcel may begin."""


def sent(device: torch.device | str, *tensors: Tensor) -> tuple[Tensor, ...]:
    """CPU tensors on `device`: one copy for all of them, which is not waited for; on the CPU themselves.

    Args:
        tensors: any shapes and types; small ones, since they are packed first.
    """
    device = torch.device(device)
    if device.type == "cpu":
        return tensors
    # pinned, or the copy would be waited for; torch keeps the memory until it has been made
    parcel = _packed(tensors, pinned=device.type == "cuda")
    return _unpacked(parcel.to(device, non_blocking=True), tensors)


class Figures:
    """Single numbers on their way from a device to the host, in one copy that begins at once.

    Args:
        values: by name; 0-dimensional float32 tensors of one device, or numbers.
    """

    def __init__(self, values: Mapping[str, Tensor | float]):
        self._values = dict(values)
        self._tensors = [value.detach() for value in self._values.values() if isinstance(value, Tensor)]
        self._row = torch.stack(self._tensors) if self._tensors else torch.empty(0)
        self._arrived = None
        if self._row.device.type == "cuda":
            here = torch.empty(self._row.shape, dtype=self._row.dtype, pin_memory=True)
            self._row = here.copy_(self._row, non_blocking=True)
            self._arrived = torch.cuda.Event(blocking=True)
            self._arrived.record()

    def read(self) -> dict[str, float]:
        """The numbers, once they are here."""
        if self._arrived is not None:
            self._arrived.synchronize()
        row = iter(self._row.tolist())
        return {name: next(row) if isinstance(value, Tensor) else value for name, value in self._values.items()}


def _packed(tensors: Sequence[Tensor], *, pinned: bool) -> Tensor:
    """The bytes of all tensors, each from a multiple of _ALIGNMENT on."""
    parcel = torch.empty(sum(map(_room, tensors)), dtype=torch.uint8, pin_memory=pinned)
    for part, tensor in zip(_unpacked(parcel, tensors), tensors, strict=True):
        part.copy_(tensor)
    return parcel


def _unpacked(parcel: Tensor, like: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Views of a parcel, in the types and shapes of `like`."""
    rooms = parcel.split([_room(tensor) for tensor in like])
    return tuple(
        room[: tensor.nbytes].view(tensor.dtype).view(tensor.shape) for room, tensor in zip(rooms, like, strict=True)
    )


def _room(tensor: Tensor) -> int:
    return -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
