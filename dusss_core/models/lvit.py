"""LViT: a U-Net and a vision transformer that is told the sentence (Li et al., IEEE TMI 2023, arXiv 2206.14718).

Written from the paper and from the facts of its code (github.com/HUANGLIZI/LViT): beside each of four levels of the
way down a transformer sees the level's map in (size / 16)^2 patches. The sentence, stretched from its tokens to the
patches, is added at the first level alone. Tokens go down the levels and up again, return to maps, and are added to the
U-Net's skips, each of which is weighted pixel by pixel. Parts that the published code builds and never uses are not
built here.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dusss_core.models.decoders import UpBlock
from dusss_core.models.transformer import Block, positions
from dusss_core.models.unet import conv_block, double_conv, make_norm
from dusss_core.models.words import TextNetwork, Words

LEVELS = (1, 2, 4, 8)
"""Width of each level with a transformer, over that of the first."""
PATCHES = (16, 8, 4, 2)
"""Pixels of a level's map along the side of a patch: always 16 of the picture."""
HEADS = 8
DROPOUT = 0.1


class LViT(TextNetwork):
    """29,908,033 parameters at width 64, size 224, 3 -> 1 channels and 10 tokens of 768 numbers; 29,762,062 at size
    112.

    Args:
        in_channels: channels of the picture.
        out_channels: classes; one logit per class and pixel.
        width: channels of the first level.
        norm: `batch` as published, or `group`.
        size: height and width of the picture, a multiple of 16.
        text_width: E, of the token features.
        tokens: of a sentence; longer ones are cut.
    """

    def __init__(
        self, in_channels: int, out_channels: int, width: int, norm: str, size: int, text_width: int, tokens: int = 10
    ):
        super().__init__()
        self.text_width, self.tokens, self.side = text_width, tokens, size // 16
        widths, patches = [width * level for level in LEVELS], self.side**2
        self.stem = conv_block(in_channels, width, norm)
        into = [*widths, widths[-1]]
        self.down = nn.ModuleList([double_conv(a, b, norm) for a, b in pairwise(into)])
        # down the chain the sentence gets as wide as each level is; only the last is used
        chain = [text_width, *widths[::-1]]
        self.text = nn.ModuleList(nn.Conv1d(a, b, 3, padding=1) for a, b in pairwise(chain))
        self.stretch = _conv_1d(tokens, patches, norm)
        self.look = nn.ModuleList(
            _Look(channels, patch, patches) for channels, patch in zip(widths, PATCHES, strict=True)
        )
        self.tokens_down = nn.ModuleList(_conv_1d(b, a, norm) for a, b in pairwise(widths))
        self.tokens_up = nn.ModuleList(_conv_1d(b, a, norm) for a, b in pairwise(widths))
        self.blocks_up = nn.ModuleList(_block(channels) for channels in widths)
        self.back = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, channels, 1), make_norm(norm, channels), nn.ReLU()) for channels in widths
        )
        self.weigh = nn.ModuleList(PixelWeight(channels) for channels in widths)
        out = [width, *widths[:-1]]
        self.up = nn.ModuleList(
            UpBlock(nn.Upsample(scale_factor=2, mode="nearest"), double_conv(2 * skip, after, norm))
            for skip, after in zip(widths[::-1], out[::-1], strict=True)
        )
        self.head = nn.Conv2d(width, out_channels, 1)
        self.others = nn.ModuleList()

    def logits(self, image: Tensor, text: Words) -> Tensor:
        levels = [self.stem(image)]
        for block in self.down:
            levels.append(block(F.max_pool2d(levels[-1], 2)))
        x = levels.pop()
        told = self.told(text)
        maps = [back(self._map(tokens)) for back, tokens in zip(self.back, self._tokens(levels, told), strict=True)]
        skips = [
            weigh(level + F.interpolate(seen, scale_factor=float(patch), mode="nearest"))
            for weigh, level, seen, patch in zip(self.weigh, levels, maps, PATCHES, strict=True)
        ]
        for block in self.up:
            x = block(x, skips.pop())
        return self.head(x)

    def told(self, text: Words) -> Tensor:
        """What the sentence adds to the patches of the first level: B x patches x width."""
        x = text.of_length(self.tokens).tokens.transpose(1, 2)
        for conv in self.text:
            x = conv(x)
        return self.stretch(x.transpose(1, 2))

    def _tokens(self, levels: list[Tensor], told: Tensor) -> list[Tensor]:
        """Tokens of each level, down and up again: B x patches x channels."""
        down = []
        for number, (look, level) in enumerate(zip(self.look, levels, strict=True)):
            x = look(level, told if number == 0 else None)
            if number:
                narrow = self.tokens_down[number - 1](x.transpose(1, 2)).transpose(1, 2)
                x = torch.cat([narrow, down[-1]], dim=2)
            down.append(x)
        up = [self.blocks_up[-1](down[-1])]
        for number in reversed(range(len(levels) - 1)):
            below = self.tokens_up[number](up[0].transpose(1, 2)).transpose(1, 2)
            up.insert(0, self.blocks_up[number](down[number]) + below)
        return up

    def _map(self, tokens: Tensor) -> Tensor:
        return tokens.transpose(1, 2).reshape(len(tokens), -1, self.side, self.side)


class PixelWeight(nn.Module):
    """PLAM: one factor per pixel multiplies a skip. It is a function of the mean of one 1 x 1 convolution's channels
    behind ReLU, of the largest of another's, and of the sum of both."""

    def __init__(self, channels: int):
        super().__init__()
        self.mean = nn.Conv2d(channels, channels, 1, bias=False)
        self.largest = nn.Conv2d(channels, channels, 1, bias=False)
        self.factor = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 1))

    def forward(self, x: Tensor) -> Tensor:
        """B x channels x H x W in and out."""
        mean, largest = F.relu(self.mean(x)).mean(1), self.largest(x).amax(1)
        return x * self.factor(torch.stack([mean, largest, mean + largest], dim=-1)).movedim(-1, 1)


class _Look(nn.Module):
    """Patches of a level's map, and one block."""

    def __init__(self, channels: int, patch: int, patches: int):
        super().__init__()
        self.patch = nn.Conv2d(channels, channels, patch, stride=patch)
        self.position = positions(patches, channels)
        self.dropout = nn.Dropout(DROPOUT)
        self.block = _block(channels)

    def forward(self, level: Tensor, told: Tensor | None) -> Tensor:
        """B x patches x channels."""
        x = self.dropout(self.patch(level).flatten(2).transpose(1, 2) + self.position)
        return self.block(x if told is None else x + told)


def _block(channels: int) -> Block:
    return Block(channels, HEADS, DROPOUT, activation_after=True)


def _conv_1d(in_channels: int, out_channels: int, norm: str) -> nn.Sequential:
    """Along the tokens, or along the channels of a token where the tokens are what is exchanged."""
    normalise = nn.BatchNorm1d(out_channels) if norm == "batch" else make_norm(norm, out_channels)
    return nn.Sequential(nn.Conv1d(in_channels, out_channels, 3, padding=1), normalise, nn.ReLU())
