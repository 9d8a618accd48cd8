"""What is done to batch normalisation layers from outside."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


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
