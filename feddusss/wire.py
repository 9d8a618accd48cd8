"""Tensors as they travel in a Flower message: one safetensors file in one array.

Flower stores and moves each array of a message as objects of their own, with a request for each: the tensors of one
student alone are hundreds of requests. In one array they are two. A safetensors file holds names, types, shapes and
numbers, no code, and is checked when it is read.

With `federation.wire: bfloat16` the learned float32 tensors travel as bfloat16, in half the bytes. Down goes the
rounded model. Up goes the rounded *difference* from the model that came down, and the coordinator adds it to its own
float32 model: small steps would vanish if the sum were rounded. One rounding changes a number by at most 2^-9 (0.2 %)
of itself. Statistics such as running variances stay float32: a rounded difference could make a small variance negative.
`int8` and `topk` send changes in fewer bytes still: `feddusss.compression`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from typing import TYPE_CHECKING

from dusss_core import tensorfile

if TYPE_CHECKING:
    from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
    from torch import Tensor


WIRES = ("float32", "bfloat16", "int8", "topk")
KEY = "safetensors"
"""Name of the one array of a record."""
_NUMPY = "numpy.ndarray"
"""Flower's name for numpy's own format."""
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class Unreadable(Exception):
    """A record is not what `pack` makes. The text says why, and holds nothing that the record says."""


def pack(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """The record that carries `tensors`."""
    from flwr.app import Array, ArrayRecord

    size = tensorfile.size(tensors)
    # what Flower makes of an array of bytes, without its two copies
    packed = b"".join([_array_head(size), *tensorfile.chunks(tensors)])
    return ArrayRecord({KEY: Array("uint8", (size,), _NUMPY, packed)})


def unpack(record: ArrayRecord, most_bytes: int | None = None) -> dict[str, Tensor]:
    """The tensors of a record, with the types that they travelled in, on memory of their own.

    Args:
        most_bytes: a record that is larger is not read.

    Raises:
        Unreadable: it is too large, or not what `pack` makes.
    """
    import numpy as np

    # one copy for all: fresh memory in one large piece costs less than in many
    packed = np.frombuffer(content(record, most_bytes), dtype=np.uint8).copy()
    with _decoding():
        return {name: part.tensor() for name, part in tensorfile.parts(packed).items()}


def views(record: ArrayRecord, most_bytes: int | None = None) -> dict[str, Tensor]:
    """As `unpack`, but the tensors lie in the record's own bytes, and must not be written to. Nothing is copied.

    Raises:
        Unreadable: as `unpack`.
    """
    import warnings

    packed = content(record, most_bytes)
    with _decoding(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch warns that the bytes cannot be written to
        return {name: part.tensor() for name, part in tensorfile.parts(packed).items()}


def contents(record: ArrayRecord) -> dict[str, tensorfile.Part]:
    """Type, shape and bytes of each tensor of a record, as they travel; the bytes are the record's own.

    Raises:
        Unreadable: it is not what `pack` makes.
    """
    packed = content(record)
    with _decoding():
        return tensorfile.parts(packed)


@contextmanager
def _decoding() -> Iterator[None]:
    try:
        yield
    except Exception:
        raise Unreadable("the tensors cannot be decoded") from None


def array_records(content: RecordDict) -> dict[str, ArrayRecord]:
    """The records of tensors in a message, by name.

    What Flower's own `content.array_records` gives refers to itself, and holds all tensors of the message in memory
    until Python next looks for such garbage; so do its two siblings.
    """
    from flwr.app import ArrayRecord

    return {name: record for name, record in content.items() if isinstance(record, ArrayRecord)}


def metric_records(content: RecordDict) -> dict[str, MetricRecord]:
    """The records of figures in a message, by name."""
    from flwr.app import MetricRecord

    return {name: record for name, record in content.items() if isinstance(record, MetricRecord)}


def config_records(content: RecordDict) -> dict[str, ConfigRecord]:
    """The records of settings in a message, by name."""
    from flwr.app import ConfigRecord

    return {name: record for name, record in content.items() if isinstance(record, ConfigRecord)}


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


def is_finite(tensor: Tensor) -> bool:
    """Whether no number of a tensor is NaN or infinite."""
    import torch

    # what is not finite leaves no sum finite; a sum of finite numbers may overflow, and only then is each looked at
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())


def size(record: ArrayRecord) -> int:
    """Bytes of a record's arrays, as they travel."""
    return sum(len(array.data) for array in record.values())


def content(record: ArrayRecord, most_bytes: int | None = None) -> memoryview:
    """The bytes of the safetensors file in a record, which are not copied.

    Raises:
        Unreadable: it is too large, or not what `pack` makes.
    """
    if list(record) != [KEY]:
        raise Unreadable(f"{len(record)} arrays instead of one named '{KEY}'")
    array = record[KEY]
    if most_bytes is not None and len(array.data) > most_bytes:
        raise Unreadable(f"{len(array.data)} bytes, more than the {most_bytes} that the tensors can take")
    if array.stype != _NUMPY:
        raise Unreadable("the array cannot be decoded")
    try:
        shape, dtype, head = _read_array_head(array.data)
    except Exception:
        raise Unreadable("the array cannot be decoded") from None
    if dtype != "uint8" or len(shape) != 1:
        raise Unreadable("the array does not hold bytes")
    if shape[0] != len(array.data) - head:
        raise Unreadable("the array cannot be decoded")
    return memoryview(array.data)[head:]


def _array_head(size: int) -> bytes:
    """What stands before the numbers of an array of `size` bytes, in numpy's own format."""
    from numpy.lib import format

    head = BytesIO()
    format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": (size,)})
    return head.getvalue()


def _read_array_head(data: bytes) -> tuple[tuple[int, ...], str, int]:
    """Shape and type of an array in numpy's own format, and where its numbers begin."""
    from numpy.lib import format

    file = BytesIO(data)
    if format.read_magic(file) != (1, 0):
        raise ValueError("not as numpy writes an array of bytes")
    shape, _, dtype = format.read_array_header_1_0(file)
    return shape, str(dtype), file.tell()
