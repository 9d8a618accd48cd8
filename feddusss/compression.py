"""Changes of a model in fewer bytes: int8, or the largest alone, with error feedback.

With `federation.wire: int8` or `topk` what travels in either direction is a *change*: of what the sites hold on the way
down, of what a round made on the way up. A change is encoded tensor by tensor; what the encoding loses is known to
whoever encodes and is added to the next change (error feedback: Seide et al. 2014; Karimireddy et al. 2019,
arXiv:1901.09847), so that the sum of all that was sent is the sum of all changes but for the last loss.

int8: each block of `BLOCK` numbers has one scale, the largest magnitude / 127, and each number is the nearest multiple
of it: off by half a scale at most. topk: of each tensor the `share` of the numbers with the largest magnitudes, as
places and values. Statistics, counters and tensors of fewer than `SMALL` numbers travel as they are.

Decoding takes the names and shapes that it expects and not those that it is given: what is of another form is refused
before a number is made of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from feddusss.wire import Unreadable, is_rounded

if TYPE_CHECKING:
    from torch import Tensor

CODECS = ("int8", "topk")
BLOCK = 256
"""Numbers that share a scale, which takes 1.6 % more bytes."""
SHARE = 0.05
"""topk: share of the numbers that travels, if nothing else is said."""
SMALL = 64
"""A tensor with fewer numbers travels whole: names and types of its parts would take what is saved."""
_SCALE, _PLACE, _VALUE = "/scale", "/place", "/value"


@dataclass(frozen=True)
class Codec:
    """How changes are encoded.

    Args:
        name: int8 or topk.
        share: topk: share of each tensor's numbers that travels, in (0, 1].
    """

    name: str
    share: float = SHARE

    def layout(self, like: Mapping[str, Tensor]) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Type and shape of each tensor that carries the change of a model whose tensors are as those of `like`."""
        parts: dict[str, tuple[str, tuple[int, ...]]] = {}
        for name, tensor in like.items():
            count = tensor.numel()
            if not is_encoded(name, tensor):
                parts[name] = str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)
            elif self.name == "int8":
                parts[name] = "int8", (count,)
                parts[name + _SCALE] = "float32", (-(-count // BLOCK),)
            else:
                kept = self._kept(count)
                parts[name + _PLACE] = "int32", (kept,)
                parts[name + _VALUE] = "float32", (kept,)
        return parts

    def encode(self, name: str, change: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """One tensor's change.

        Args:
            change: float32, of any shape; `is_encoded`.

        Returns:
            What travels, by name; and the change that the other end will read, in the shape of `change`.
        """
        flat = change.reshape(-1)
        if self.name == "int8":
            numbers, scales = _quantised(flat)
            return {name: numbers, name + _SCALE: scales}, _widened(numbers, scales).view(change.shape)
        places, values = _largest(flat, self._kept(len(flat)))
        return {name + _PLACE: places, name + _VALUE: values}, _spread(places, values, len(flat)).view(change.shape)

    def decode(self, name: str, parts: Mapping[str, Tensor], like: Tensor) -> Tensor:
        """The inverse of `encode`, of parts whose types and shapes are those of `layout`.

        Raises:
            Unreadable: a place that is not in the tensor, or is named twice.
        """
        if self.name == "int8":
            return _widened(parts[name], parts[name + _SCALE]).view(like.shape)
        places, count = parts[name + _PLACE], like.numel()
        ascending = bool((places[1:] > places[:-1]).all())
        if not (ascending and int(places[0]) >= 0 and int(places[-1]) < count):
            raise Unreadable(f"the places in '{name}' are not ascending, or not between 0 and {count - 1}")
        return _spread(places, parts[name + _VALUE], count).view(like.shape)

    def _kept(self, count: int) -> int:
        return max(1, math.ceil(self.share * count))


def codec(wire: str, share: float) -> Codec | None:
    """The codec of a study's `federation.wire`; None for those that send whole tensors."""
    return Codec(wire, share) if wire in CODECS else None


def is_encoded(name: str, tensor: Tensor) -> bool:
    """Whether the change of a tensor is encoded; the rest travels as it is, learned ones as their change."""
    return is_rounded(name, tensor) and tensor.numel() >= SMALL


def compress(
    codec: Codec, tensors: Mapping[str, Tensor], base: Mapping[str, Tensor], lost: Mapping[str, Tensor] | None = None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The change from `base` to `tensors`, and what of it does not arrive.

    Args:
        lost: what earlier changes lost, by name; names that are missing lost nothing.

    Returns:
        What travels, by name; and what the change and `lost` together have lost now, of the encoded tensors alone.
    """
    parts: dict[str, Tensor] = {}
    losses: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if not is_rounded(name, tensor):
            parts[name] = tensor
            continue
        change = tensor - base[name]
        if not is_encoded(name, tensor):
            parts[name] = change
            continue
        if lost and name in lost:
            change += lost[name]
        sent, arrives = codec.encode(name, change)
        parts |= sent
        losses[name] = change.sub_(arrives)
    return parts, losses


def expand(codec: Codec, parts: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`base` and the change in `parts`; statistics and counters are those of `parts`.

    Both ends get the same bits: each number is one product and one sum, rounded to float32 once each.

    Raises:
        Unreadable: `parts` is not what `compress` makes of a model with the names, types and shapes of `base`.
    """
    layout = codec.layout(base)
    if missing := sorted(layout.keys() - parts.keys()):
        raise Unreadable(f"'{missing[0]}' is missing ({len(missing)} in all)")
    if len(parts) > len(layout):
        raise Unreadable(f"{len(parts) - len(layout)} tensors that were not asked for")
    for name, wanted in layout.items():
        found = str(parts[name].dtype).removeprefix("torch."), tuple(parts[name].shape)
        if found != wanted:
            raise Unreadable(f"'{name}' is {_described(*found)} instead of {_described(*wanted)}")
    return {name: _expanded(codec, name, parts, tensor) for name, tensor in base.items()}


def most_bytes(codec: Codec, like: Mapping[str, Tensor], header_per_tensor: int) -> int:
    """Bytes that a change can take, with `header_per_tensor` for each name, type and shape."""
    widths = {"int8": 1, "int32": 4, "float32": 4}
    return sum(
        math.prod(shape) * widths.get(dtype, 8) + header_per_tensor for dtype, shape in codec.layout(like).values()
    )


def _expanded(codec: Codec, name: str, parts: Mapping[str, Tensor], base: Tensor) -> Tensor:
    if not is_rounded(name, base):
        return parts[name]
    if not is_encoded(name, base):
        return base + parts[name]
    return codec.decode(name, parts, base).add_(base)


def _quantised(flat: Tensor) -> tuple[Tensor, Tensor]:
    """int8 numbers (N) and float32 scales (ceil(N / BLOCK))."""
    import torch

    blocks = _blocks(flat)
    scales = blocks.abs().amax(dim=1).div_(127)
    # where all numbers are 0, or too small for a scale, nothing is sent
    divisors = torch.where(scales > 0, scales, 1.0)
    numbers = (blocks / divisors[:, None]).round_().clamp_(-127, 127).to(torch.int8)
    return numbers.reshape(-1)[: len(flat)].clone(), scales


def _widened(numbers: Tensor, scales: Tensor) -> Tensor:
    """float32 numbers (N) of int8 numbers and their scales."""
    widened = _blocks(numbers.float())
    return widened.mul_(scales[:, None]).reshape(-1)[: len(numbers)]


def _blocks(flat: Tensor) -> Tensor:
    """N numbers as ceil(N / BLOCK) x BLOCK, the last row filled up with zeros. May share memory with `flat`."""
    import torch

    missing = -len(flat) % BLOCK
    return (torch.nn.functional.pad(flat, (0, missing)) if missing else flat).view(-1, BLOCK)


def _largest(flat: Tensor, kept: int) -> tuple[Tensor, Tensor]:
    """Places (int32, ascending) and values of the `kept` largest magnitudes."""
    import torch

    places = torch.topk(flat.abs(), kept, sorted=False).indices.sort().values
    return places.to(torch.int32), flat[places]


def _spread(places: Tensor, values: Tensor, count: int) -> Tensor:
    """`count` numbers, 0 where no value is given."""
    import torch

    return torch.zeros(count).index_copy_(0, places.long(), values)


def _described(dtype: str, shape: tuple[int, ...]) -> str:
    return f"{dtype[:20]} {'x'.join(map(str, shape)) or 'scalar'}"
