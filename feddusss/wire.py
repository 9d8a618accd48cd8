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

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch
    from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
    from torch import Tensor

    Record = TypeVar("Record", ArrayRecord, MetricRecord, ConfigRecord)

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


def views(record: ArrayRecord, most_bytes: int | None = None) -> dict[str, Tensor]:
    """As `unpack`, but the tensors are the record's own bytes, and must not be written to. Nothing is copied.

    Raises:
        Unreadable: it is too large, or not what `pack` makes.
    """
    import warnings

    import torch

    packed = _bytes_of(record, most_bytes)
    try:
        places, start = _places(packed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch warns that the bytes cannot be written to
            numbers = torch.frombuffer(packed, dtype=torch.uint8, offset=start) if start < len(packed) else None
        tensors = {}
        for name, (dtype, shape, begin, end) in places.items():
            if begin == end:
                tensors[name] = torch.empty(shape, dtype=dtype)
                continue
            part = numbers[begin:end]
            # a file of another writer may begin its numbers anywhere
            if begin % dtype.itemsize or part.data_ptr() % dtype.itemsize:
                part = part.clone()
            tensors[name] = part.view(dtype).reshape(shape)
        return tensors
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


def records(content: RecordDict, kind: type[Record]) -> dict[str, Record]:
    """The records of one kind in a message, by name. What Flower's own `content.array_records` gives refers to itself,
    and holds all tensors in memory until the garbage is collected."""
    return {name: record for name, record in content.items() if isinstance(record, kind)}


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
    return bytes(_bytes_of(record, most_bytes))


def _bytes_of(record: ArrayRecord, most_bytes: int | None = None) -> memoryview:
    """As `content`, where it lies."""
    from io import BytesIO

    import numpy as np

    if list(record) != [KEY]:
        raise Unreadable(f"{len(record)} arrays instead of one named '{KEY}'")
    array = record[KEY]
    if most_bytes is not None and len(array.data) > most_bytes:
        raise Unreadable(f"{len(array.data)} bytes, more than the {most_bytes} that the tensors can take")
    try:
        if array.stype != "numpy.ndarray":
            raise ValueError
        file = BytesIO(array.data)
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, _, dtype = read(file)
        values = memoryview(array.data)[file.tell() :]
    except Exception:
        raise Unreadable("the array cannot be decoded") from None
    if dtype != np.uint8 or len(shape) != 1:
        raise Unreadable("the array does not hold bytes")
    if len(values) != shape[0]:
        raise Unreadable("the array cannot be decoded")
    return values


def _places(packed: memoryview) -> tuple[dict[str, tuple[torch.dtype, tuple[int, ...], int, int]], int]:
    """Where the tensors of a safetensors file are: type, shape, first and last byte of each, counted from where the
    numbers begin; and that place. Whatever is not as the format says raises: the places leave no byte out, and none is
    in two."""
    import torch

    types = {
        "F64": torch.float64,
        "F32": torch.float32,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "I64": torch.int64,
        "I32": torch.int32,
        "I16": torch.int16,
        "I8": torch.int8,
        "U8": torch.uint8,
        "BOOL": torch.bool,
    }
    header = int.from_bytes(packed[:8], "little")
    start = 8 + header
    if len(packed) < start:
        raise ValueError
    entries = json.loads(bytes(packed[8:start]))
    entries.pop("__metadata__", None)
    places, expected = {}, 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
        dtype, shape, (begin, end) = types[entry["dtype"]], tuple(entry["shape"]), entry["data_offsets"]
        if not all(type(number) is int and number >= 0 for number in (*shape, begin, end)):
            raise ValueError
        if begin != expected or end - begin != math.prod(shape) * dtype.itemsize:
            raise ValueError
        places[name], expected = (dtype, shape, begin, end), end
    if start + expected != len(packed):
        raise ValueError
    return places, start
