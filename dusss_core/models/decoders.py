"""One way down and one or several ways up: what the networks of step 2 share whose methods compare decoders."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

DecoderKind = Literal["transposed", "bilinear", "nearest"]
"""How a decoder doubles the resolution; in all else the decoders of a network are alike."""
Addition = DecoderKind | Literal["pixel_heads", "copy"]
"""What a method can have built beside a network's own parts (`dusss_core.build`)."""


class Raise(nn.Module):
    """Doubles the resolution: B x in x H x W to B x out x 2H x 2W.

    Args:
        kind: transposed: a learned 2 x 2 convolution. bilinear, nearest: a 1 x 1 convolution, then interpolation
            (bilinear with aligned corners).
    """

    def __init__(self, kind: DecoderKind, in_channels: int, out_channels: int):
        super().__init__()
        self.kind = kind
        self.conv = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.kind == "nearest":
            return F.interpolate(x, scale_factor=2, mode="nearest")
        return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)


def raise_resolution(kind: DecoderKind, in_channels: int, out_channels: int) -> nn.Module:
    """What doubles the resolution in a decoder of that kind."""
    if kind == "transposed":
        return nn.ConvTranspose2d(in_channels, out_channels, 2, 2)
    return Raise(kind, in_channels, out_channels)


class Decoder(nn.Module):
    """A further way up: the blocks, coarsest first, and the head."""

    def __init__(self, up: nn.ModuleList, head: nn.Module):
        super().__init__()
        self.up = up
        self.head = head


class DecoderNetwork(nn.Module, ABC):
    """A network with an encoder, a main decoder (`up`, `head`), which alone is deployed, and `others`.

    Everything in it that has a gradient is trained, travels and is averaged. Teachers and memories of a method are
    never parts of it.
    """

    up: nn.ModuleList
    head: nn.Module
    others: nn.ModuleList
    """Of `Decoder`; empty unless a method compares decoders."""
    feature_width: int
    """Channels of the map that the main head reads."""

    @abstractmethod
    def encode(self, image: Tensor) -> list[Tensor]:
        """The maps of all levels, finest first, of normalised pictures B x C x H x W."""

    def decode(self, levels: Sequence[Tensor], which: int = 0) -> Tensor:
        """B x classes x H x W logits by the main decoder (0) or by number `which` of the others, from 1."""
        decoder = self if which == 0 else self.others[which - 1]
        return decoder.head(_climb(decoder.up, levels))

    def forward(self, image: Tensor) -> Tensor:
        """Logits of the picture alone, by the main decoder.

        Args:
            image: B x C x H x W, normalised; H and W are multiples of 16.

        Returns:
            B x classes x H x W.
        """
        return self.decode(self.encode(image))

    def with_features(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Logits as `forward` gives them, and the map that the head reads: B x feature_width x H x W."""
        features = _climb(self.up, self.encode(image))
        return self.head(features), features

    def all_logits(self, image: Tensor) -> list[Tensor]:
        """Logits by every decoder, the main one first; the encoder runs once."""
        levels = self.encode(image)
        return [self.decode(levels, which) for which in range(1 + len(self.others))]


def _climb(up: nn.ModuleList, levels: Sequence[Tensor]) -> Tensor:
    """From the maps of all levels, finest first, to the one that a head reads."""
    levels = list(levels)
    x = levels.pop()
    for block in up:
        x = block(x, levels.pop())
    return x


class UpBlock(nn.Module):
    """Doubles the resolution, joins the skip connection, and convolves.

    Args:
        raise_resolution: from B x in x H x W to B x mid x 2H x 2W.
        convs: from mid + skip channels to those that go out.
    """

    def __init__(self, raise_resolution: nn.Module, convs: nn.Module):
        super().__init__()
        self.raise_resolution = raise_resolution
        self.convs = convs

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.convs(torch.cat([skip, self.raise_resolution(x)], dim=1))
