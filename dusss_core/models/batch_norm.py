"""What is done to batch normalisation layers from outside."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from dusss_core.errors import UserError

_OF_TORCH = "Expected more than 1 value per channel when training"


class LoneValue(UserError):
    """A batch has one number per channel, which has no variance to be normalised with."""

    code = "FD501"


@contextmanager
def lone_value_told() -> Iterator[None]:
    """Inside, batch normalisation that is given one number per channel says so.

    Raises:
        LoneValue: in place of torch's ValueError.
    """
    try:
        yield
    except ValueError as error:
        if not str(error).startswith(_OF_TORCH):
            raise
        raise LoneValue(
            "batch normalisation was given one picture, whose deepest feature map is a single pixel",
            "take a larger segment.batch or image.size, or student.norm: group",
        ) from None


@contextmanager
def untracked(network: nn.Module) -> Iterator[None]:
    """Inside, batch normalisation in training answers by its batch, and its running statistics stay as they are."""
    layers = [layer for layer in network.modules() if isinstance(layer, _BatchNorm) and layer.track_running_stats]
    for layer in layers:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True


def fix_statistics(network: nn.Module) -> None:
    """Batch normalisation of a network in training answers by its running statistics, which stay as they are, until
    the network's mode is set again; scales and shifts are trained on."""
    for layer in network.modules():
        if isinstance(layer, _BatchNorm) and layer.track_running_stats:
            layer.eval()
