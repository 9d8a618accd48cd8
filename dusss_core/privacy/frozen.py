"""What the frozen part of a network makes of each record, computed once.

Where a head alone is trained, the rest of the network gives the same answer to the same view in every step, and takes
nearly all of the time. A record's features are a function of this record, of its own draw and of weights that came with
the message, so a step on them costs what a step on pictures costs, and its sensitivity is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from dusss_core.files import digest_of_tensors


@dataclass(frozen=True)
class Features:
    """Of one unit's views, as the head is given them."""

    inputs: tuple[Tensor | tuple[Tensor, ...], ...]
    """Positional arguments of the head, float16, first axis: views."""
    mask: Tensor
    """Views x H x W class indices, moved as the views."""


class FrozenFeatures:
    """Features of the records that were asked for.

    Args:
        model: its `head` is what is trained.
        look: of a record's positions, one for each view: the network's input, views x C x H x W, and the masks.
    """

    def __init__(self, model: nn.Module, look: Callable[[np.ndarray], tuple[Tensor, Tensor]]):
        self._model = model
        self._look = look
        self._of: dict[int, Features] = {}
        self._made_with = ""

    def follow(self) -> None:
        """New weights may have come: forget everything if those of the frozen part are others."""
        frozen = {name: value for name, value in self._model.state_dict().items() if not name.startswith("head.")}
        digest = digest_of_tensors(frozen)
        if digest != self._made_with:
            self._of.clear()
            self._made_with = digest

    def of(self, unit: np.ndarray) -> Features:
        """Features of a record's views; the views are drawn when it is first asked for, and stay."""
        record = int(unit[0])
        if record not in self._of:
            picture, mask = self._look(unit)
            self._of[record] = Features(_as_half(self._before_the_head(picture)), mask)
        return self._of[record]

    def logits(self, features: Features) -> Tensor:
        """What the head says of them: views x classes x H x W, float32."""
        return self._model.head(*_as_float(features.inputs)).float()

    def kept(self) -> Iterator[Tensor]:
        """All tensors that are held."""
        for features in self._of.values():
            yield from _flat(features.inputs)
            yield features.mask

    @torch.no_grad()
    def _before_the_head(self, picture: Tensor) -> tuple:
        seen = []
        hook = self._model.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
        try:
            self._model(picture)
        finally:
            hook.remove()
        return seen[-1]


def _as_half(inputs):
    return tuple(value.half() if isinstance(value, Tensor) else _as_half(value) for value in inputs)


def _as_float(inputs):
    return tuple(value.float() if isinstance(value, Tensor) else _as_float(value) for value in inputs)


def _flat(inputs) -> Iterator[Tensor]:
    for value in inputs:
        if isinstance(value, Tensor):
            yield value
        else:
            yield from _flat(value)
