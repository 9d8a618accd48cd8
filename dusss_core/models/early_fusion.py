"""Early fusion: a sentence becomes a picture of its own, which joins the picture as further channels.

After "A Text-Image Fusion Method with Data Augmentation Capabilities for Referring Medical Image Segmentation" (Chai et
al. 2025, arXiv 2510.12482, github.com/11yxk/MedSeg_EarlyFusion). Written from its equations:

    e = W2 GELU(LayerNorm(W1 s)),  s the mean of the token features, e one number for each 8 x 8 pixels
    m = sigmoid(T3 ReLU(T2 ReLU(T1 e))),  T transposed 4 x 4 convolutions of stride 2, to 16, 8 and 3 channels
    logits = U-Net([x, (m - 1/2) / (1/4)])
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dusss_core.models.unet import UNet
from dusss_core.models.words import TextNetwork, Words

CHANNELS = 3
"""Of the picture that a sentence becomes."""
_CELL = 8
"""Pixels along each side that one number of e stands for."""


class EarlyFusion(TextNetwork):
    """A U-Net that sees three channels more.

    Args:
        in_channels: channels of the picture.
        out_channels: classes; one logit per class and pixel.
        width: of the U-Net's first level.
        norm: of the U-Net, `batch` or `group`.
        size: height and width of the picture.
        text_width: E, of the token features.
    """

    def __init__(self, in_channels: int, out_channels: int, width: int, norm: str, size: int, text_width: int):
        super().__init__()
        self.side, self.text_width = size // _CELL, text_width
        cells = self.side**2
        self.project = nn.Sequential(
            nn.Linear(text_width, cells), nn.LayerNorm(cells), nn.GELU(), nn.Linear(cells, cells)
        )
        self.draw = nn.Sequential(
            nn.ConvTranspose2d(1, 16, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(16, 8, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(8, CHANNELS, 4, stride=2, padding=1),
        )
        self.unet = UNet(in_channels + CHANNELS, out_channels, width, norm)

    @property
    def up(self) -> nn.Module:
        return self.unet.up

    @property
    def head(self) -> nn.Module:
        return self.unet.head

    @property
    def others(self) -> nn.Module:
        return self.unet.others

    def drawn(self, text: Words) -> Tensor:
        """m: what the sentences become, B x 3 x size x size float32 in [0, 1]."""
        cells = self.project(text.mean())
        return self.draw(cells.reshape(-1, 1, self.side, self.side)).float().sigmoid()

    def fused(self, image: Tensor, drawn: Tensor) -> Tensor:
        """Logits of normalised pictures and what their sentences have become, moved as the pictures are."""
        return self.unet(torch.cat([image, (drawn - 0.5) / 0.25], dim=1))

    def logits(self, image: Tensor, text: Words) -> Tensor:
        return self.fused(image, self.drawn(text))
