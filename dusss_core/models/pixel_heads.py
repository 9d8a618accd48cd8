"""What SS-Net adds to a network: embeddings of pixels, and which of them are worth comparing."""

from __future__ import annotations

from torch import Tensor, nn

from dusss_core.models.unet import make_norm

WIDTH = 32
"""Channels of a pixel's embedding, and inside each head."""


class PixelHeads(nn.Module):
    """A projection, a prediction from it, and two selectors for each class; all are 1 x 1 convolutions.

    Parameters: 3,840 + 2,306 a class on 16 channels, so that the small U-Net has 1,819,475 from 1 to 1 channel with one
    class, and 1,821,926 from 1 to 2 with two, as published.

    Args:
        in_channels: of the map that the network's head reads.
        classes: those that get selectors.
        norm: `batch` as published, or `group`.
    """

    def __init__(self, in_channels: int, classes: int, norm: str = "batch"):
        super().__init__()
        self.projection = _head(in_channels, WIDTH, norm, nn.ReLU())
        self.prediction = _head(WIDTH, WIDTH, norm, nn.ReLU())
        self.selectors = nn.ModuleList(_head(WIDTH, 1, norm, nn.LeakyReLU(0.2)) for _ in range(classes))
        """Of predictions, one for each class."""
        self.stored_selectors = nn.ModuleList(_head(WIDTH, 1, norm, nn.LeakyReLU(0.2)) for _ in range(classes))
        """Of projections that are compared with."""

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Projections and predictions, B x 32 x H x W each, of B x in_channels x H x W; H x W are any pixels."""
        projected = self.projection(features)
        return projected, self.prediction(projected)


def _head(in_channels: int, out_channels: int, norm: str, activation: nn.Module) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, WIDTH, 1), make_norm(norm, WIDTH), activation, nn.Conv2d(WIDTH, out_channels, 1)
    )
