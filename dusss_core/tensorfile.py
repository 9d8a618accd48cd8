"""The safetensors format, with one copy of each tensor at most: tensors as bytes, and bytes as tensors.

    8 bytes    length of the head, little-endian
    head       JSON: name -> {dtype, shape, data_offsets}; texts under __metadata__; spaces up to a multiple of 8
    data       the numbers: wide types first, by name within a type, so that each lies where its type may lie

The bytes are those that the package safetensors makes. It copies each tensor two or three times on the way, into fresh
memory, which costs more than to write and to hash them. A head is checked as strictly as there: types and shapes that
are known, and no byte of the data twice or left over.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

_TYPES = {
    "uint64": ("U64", 8),
    "int64": ("I64", 8),
    "float64": ("F64", 8),
    "complex64": ("C64", 8),
    "float32": ("F32", 4),
    "uint32": ("U32", 4),
    "int32": ("I32", 4),
    "bfloat16": ("BF16", 2),
    "float16": ("F16", 2),
    "uint16": ("U16", 2),
    "int16": ("I16", 2),
    "int8": ("I8", 1),
    "uint8": ("U8", 1),
    "bool": ("BOOL", 1),
}
"""torch's types: the format's name and bytes of each, in the order in which they lie in a file."""
_ORDER = {name: number for number, name in enumerate(_TYPES)}
_NAMES = {code: (name, size) for name, (code, size) in _TYPES.items()}
_LONGEST_HEAD = 100_000_000
_METADATA = "__metadata__"


class Part(NamedTuple):
    """One tensor in a file."""

    dtype: str
    """As the format names it: F32."""
    shape: tuple[int, ...]
    data: memoryview
    """Its bytes: a part of the file's, not copied."""

    def tensor(self) -> Tensor:
        """On the memory that the file lies in: no copy is made, unless the numbers lie where torch reads them slowly or
        not at all. Of a file that cannot be written to, the tensor must not be written to, and torch warns of that."""
        import torch

        name, width = _NAMES[self.dtype]
        if not len(self.data):
            return torch.empty(self.shape, dtype=getattr(torch, name))
        numbers = torch.frombuffer(self.data, dtype=torch.uint8)
        if numbers.data_ptr() % width:  # a file of another writer
            numbers = numbers.clone()
        return numbers.view(getattr(torch, name)).reshape(self.shape)


def size(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> int:
    """Bytes of the file with these tensors."""
    return len(_head(tensors, metadata)) + sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def chunks(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Iterator[bytes | memoryview]:
    """The file with these tensors, piece by piece. A tensor that lies on the CPU in one piece is lent, not copied.

    Raises:
        ValueError: the format has no name for a tensor's type.
    """
    yield _head(tensors, metadata)
    for name in _in_order(tensors):
        yield raw(tensors[name])


def raw(tensor: Tensor) -> memoryview:
    """The bytes of a tensor: its own memory, if it lies on the CPU in one piece, else a copy."""
    import torch

    return memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


def parts(file: bytes | memoryview) -> dict[str, Part]:
    """The tensors of a file that lies in memory, in the order in which they lie there.

    Raises:
        ValueError: it is not a whole file of this format.
    """
    view = memoryview(file)
    length = int.from_bytes(view[:8], "little")
    if len(view) < 8 or length > min(_LONGEST_HEAD, len(view) - 8):
        raise ValueError("the head is longer than the file")
    try:
        head = json.loads(str(view[8 : 8 + length], "utf-8"), object_pairs_hook=_without_doubles)
        head.pop(_METADATA, None)
        found = {name: _part(entry, view[8 + length :]) for name, entry in head.items()}
        placed = sorted(found.items(), key=lambda item: head[item[0]]["data_offsets"])
    except (AttributeError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"the head is not one: {error}") from None
    end = 0
    for name, part in placed:
        start, stop = head[name]["data_offsets"]
        if start != end or stop - start != len(part.data):
            raise ValueError(f"'{name}' does not lie where the one before it ends")
        end = stop
    if end != len(view) - 8 - length:
        raise ValueError("bytes are left over, or missing")
    return dict(placed)


def _head(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None) -> bytes:
    head: dict[str, Any] = {_METADATA: dict(sorted(metadata.items()))} if metadata else {}
    end = 0
    for name in _in_order(tensors):
        tensor, start = tensors[name], end
        end += tensor.numel() * tensor.element_size()
        head[name] = {
            "dtype": _TYPES[_type(tensor)][0],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(head, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _in_order(tensors: Mapping[str, Tensor]) -> list[str]:
    return sorted(tensors, key=lambda name: (_ORDER[_type(tensors[name])], name))


def _type(tensor: Tensor) -> str:
    name = str(tensor.dtype).removeprefix("torch.")
    if name not in _TYPES:
        raise ValueError(f"numbers of type {name} have no place in a file")
    return name


def _part(entry: Mapping[str, Any], data: memoryview) -> Part:
    (start, stop), shape, dtype = entry["data_offsets"], entry["shape"], entry["dtype"]
    if any(type(number) is not int or number < 0 for number in (start, stop, *shape)) or dtype not in _NAMES:
        raise ValueError("sizes are whole numbers, and types have names")
    if stop - start != math.prod(shape) * _NAMES[dtype][1] or stop > len(data):
        raise ValueError("a shape and its bytes do not go together")
    return Part(dtype, tuple(shape), data[start:stop])


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands there twice")
    return found
