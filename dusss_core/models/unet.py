"""The student: a U-Net of five levels."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class UNet(nn.Module):
    """U-Net with learned upsampling.

    At width 64 and 3 -> 1 channels it has 14,751,873 parameters and takes 25.19 G multiply-accumulates at
    224 x 224, both figures of the paper's Table 1.

    Args:
        in_channels: channels of the picture.
        out_channels: classes; one logit per class and pixel.
        width: channels of the first level; the others are 2, 4, 8 and 8 times as wide.
        norm: `batch`, or `group` (no buffers, so that every record's gradient stands alone).
    """

    def __init__(self, in_channels: int, out_channels: int, width: int = 64, norm: str = "batch"):
        super().__init__()
        w = width
        self.stem = conv_block(in_channels, w, norm)
        self.down = nn.ModuleList(
            [double_conv(a, b, norm) for a, b in [(w, 2 * w), (2 * w, 4 * w), (4 * w, 8 * w), (8 * w, 8 * w)]]
        )
        self.up = nn.ModuleList(
            [UpBlock(skip, out, norm) for skip, out in [(8 * w, 4 * w), (4 * w, 2 * w), (2 * w, w), (w, w)]]
        )
        self.head = nn.Conv2d(w, out_channels, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Logits of the picture alone.

        Args:
            image: B x C x H x W, normalised; H and W are multiples of 16.

        Returns:
            B x classes x H x W.
        """
        levels = [self.stem(image)]
        for block in self.down:
            levels.append(block(F.max_pool2d(levels[-1], 2)))
        x = levels.pop()
        for block in self.up:
            x = block(x, levels.pop())
        return self.head(x)


class UpBlock(nn.Module):
    """Doubles the resolution, joins the skip connection of as many channels, and convolves twice."""

    def __init__(self, channels: int, out_channels: int, norm: str):
        super().__init__()
        self.raise_resolution = nn.ConvTranspose2d(channels, channels, 2, 2)
        self.convs = double_conv(2 * channels, out_channels, norm)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.convs(torch.cat([skip, self.raise_resolution(x)], dim=1))


def double_conv(in_channels: int, out_channels: int, norm: str) -> nn.Sequential:
    """Two `conv_block`s."""
    return nn.Sequential(conv_block(in_channels, out_channels, norm), conv_block(out_channels, out_channels, norm))


def conv_block(in_channels: int, out_channels: int, norm: str) -> nn.Sequential:
    """3 x 3 convolution, normalisation, ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1),
        make_norm(norm, out_channels),
        nn.ReLU(inplace=True),
    )


def make_norm(norm: str, channels: int) -> nn.Module:
    """BatchNorm2d, or GroupNorm with at most 8 groups of at least 4 channels."""
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    groups = next(g for g in (8, 4, 2, 1) if channels % g == 0 and channels // g >= min(4, channels))
    return nn.GroupNorm(groups, channels)
