"""Tensors as they travel in a Flower message: one safetensors file in one array.

Flower stores and moves each array of a message as objects of their own, with a request for each: the tensors of one
student alone are hundreds of requests. In one array they are two. A safetensors file holds names, types, shapes and
numbers, no code, and is checked when it is read.

With `federation.wire: bfloat16` the learned float32 tensors travel as bfloat16, in half the bytes. Down goes the
rounded model. Up goes the rounded *difference* from the model that came down, and the coordinator adds it to its own
float32 model: small steps would vanish if the sum were rounded. One rounding changes a number by at most 2^-9 (0.2 %)
of itself. Statistics such as running variances stay float32: a rounded difference could make a small variance negative.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flwr.app import ArrayRecord, MetricRecord
    from torch import Tensor

WIRES = ("float32", "bfloat16")
KEY = "safetensors"
"""Name of the one array of a record."""
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class Unreadable(Exception):
    """A record is not what `pack` makes. The text says why, and holds nothing that the record says."""


def pack(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """The record that carries `tensors`."""
    import numpy as np
    from flwr.app import Array, ArrayRecord
    from safetensors.torch import save

    # clone: safetensors refuses tensors that share memory
    packed = save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()})
    return ArrayRecord({KEY: Array(np.frombuffer(packed, dtype=np.uint8))})


def unpack(record: ArrayRecord, most_bytes: int | None = None) -> dict[str, Tensor]:
    """The tensors of a record, with the types that they travelled in.

    Args:
        most_bytes: a record that is larger is not read.

    Raises:
        Unreadable: it is too large, or not what `pack` makes.
    """
    from safetensors.torch import load

    packed = content(record, most_bytes)
    try:
        return load(packed)
    except Exception:
        raise Unreadable("the tensors cannot be decoded") from None


def contents(record: ArrayRecord) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Type, shape and bytes of each tensor of a record, as they travel.

    Raises:
        Unreadable: it is not what `pack` makes.
    """
    from safetensors import deserialize

    try:
        entries = deserialize(content(record))
    except Unreadable:
        raise
    except Exception:
        raise Unreadable("the tensors cannot be decoded") from None
    return {name: (str(entry["dtype"]), tuple(entry["shape"]), bytes(entry["data"])) for name, entry in entries}


def figures(values: Mapping[str, float]) -> MetricRecord:
    """The record that carries single figures: whole numbers as they are, the rest as floats."""
    from flwr.app import MetricRecord

    return MetricRecord({name: value if isinstance(value, int) else float(value) for name, value in values.items()})


def rounded(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Learned float32 tensors as bfloat16, the rest as it is."""
    import torch

    return {name: tensor.to(torch.bfloat16) if is_rounded(name, tensor) else tensor for name, tensor in tensors.items()}


def widened(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """bfloat16 tensors as float32, which changes no number; the rest as it is."""
    import torch

    return {name: tensor.float() if tensor.dtype == torch.bfloat16 else tensor for name, tensor in tensors.items()}


def difference(tensors: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Learned float32 tensors less those of `base`, the rest as it is."""
    return {name: tensor - base[name] if is_rounded(name, tensor) else tensor for name, tensor in tensors.items()}


def added(differences: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `difference`."""
    return {name: base[name] + tensor if is_rounded(name, tensor) else tensor for name, tensor in differences.items()}


def is_rounded(name: str, tensor: Tensor) -> bool:
    """Whether a tensor travels rounded under `wire: bfloat16`."""
    import torch

    return tensor.dtype == torch.float32 and not is_statistic(name, tensor)


def is_statistic(name: str, tensor: Tensor) -> bool:
    """Whether a tensor is a statistic or a counter and no learned weight."""
    return name.rpartition(".")[2] in _STATISTICS or not tensor.is_floating_point()


def size(record: ArrayRecord) -> int:
    """Bytes of a record's arrays, as they travel."""
    return sum(len(array.data) for array in record.values())


def content(record: ArrayRecord, most_bytes: int | None = None) -> bytes:
    """The bytes of the safetensors file in a record.

    Raises:
        Unreadable: it is too large, or not what `pack` makes.
    """
    import numpy as np

    if list(record) != [KEY]:
        raise Unreadable(f"{len(record)} arrays instead of one named '{KEY}'")
    array = record[KEY]
    if most_bytes is not None and len(array.data) > most_bytes:
        raise Unreadable(f"{len(array.data)} bytes, more than the {most_bytes} that the tensors can take")
    try:
        values = array.numpy()
    except Exception:
        raise Unreadable("the array cannot be decoded") from None
    if values.dtype != np.uint8 or values.ndim != 1:
        raise Unreadable("the array does not hold bytes")
    return values.tobytes()
