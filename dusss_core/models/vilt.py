"""ViLT as a segmenter: words and patches in one transformer (Kim et al., ICML 2021, arXiv 2102.03334).

How published tables made a segmenter of it is not known. Here words are the token features of the frozen text encoder,
patches are put back into a map, and a decoder with skips from the picture alone raises it. From scratch: no public
weights, no pretraining on pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dusss_core.models.decoder_step import DecoderStep
from dusss_core.models.transformer import Block, positions
from dusss_core.models.words import TextNetwork, Words

DIM = 12
"""Channels of a token, over `width`."""
HEAD = 64
"""Channels of a head."""


class ViLT(TextNetwork):
    """At width 64, 12 layers, patches of 32 pixels and 3 channels, patches, blocks and last LayerNorm have the
    87,416,064 parameters of ViLT-B/32.

    Args:
        in_channels: channels of the picture.
        out_channels: classes; one logit per class and pixel.
        width: channels at full resolution; tokens are 12 times as wide.
        norm: of the decoder, `batch` or `group`.
        size: height and width of the picture, a multiple of `patch`.
        text_width: E, of the token features.
        words: tokens of the longest sentence.
        layers: number of blocks.
        patch: pixels along the side of a patch.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        width: int,
        norm: str,
        size: int,
        text_width: int,
        words: int,
        layers: int = 12,
        patch: int = 32,
    ):
        super().__init__()
        dim = DIM * width
        self.text_width, self.side = text_width, size // patch
        self.patches = nn.Conv2d(in_channels, dim, patch, stride=patch)
        self.words = nn.Linear(text_width, dim)
        self.patch_position, self.word_position = positions(self.side**2, dim), positions(words, dim)
        self.kind = positions(2, dim)
        self.blocks = nn.ModuleList(Block(dim, max(1, dim // HEAD)) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)
        steps = patch.bit_length() - 1
        widths = [dim, *(width * min(1 << (steps - i - 1), 8) for i in range(1, steps)), width]
        laterals = [0] * (steps - 2) + [in_channels, in_channels]
        self.up = nn.ModuleList(
            DecoderStep(a, lateral, b, norm) for a, b, lateral in zip(widths[:-1], widths[1:], laterals, strict=True)
        )
        self.head = nn.Conv2d(width, out_channels, 1)
        self.others = nn.ModuleList()
        for table in (self.patch_position, self.word_position, self.kind):
            nn.init.normal_(table, std=0.02)

    def logits(self, image: Tensor, text: Words) -> Tensor:
        tokens, mask = text.of_length(min(text.tokens.shape[1], len(self.word_position)))
        words = self.words(tokens) + self.word_position[: tokens.shape[1]] + self.kind[0]
        patches = self.patches(image).flatten(2).transpose(1, 2) + self.patch_position + self.kind[1]
        seen = torch.cat([mask, mask.new_ones(patches.shape[:2])], dim=1)
        x = torch.cat([words, patches], dim=1)
        for block in self.blocks:
            x = block(x, seen)
        x = self.norm(x)[:, words.shape[1] :].transpose(1, 2).reshape(len(image), -1, self.side, self.side)
        laterals = [None] * (len(self.up) - 2) + [F.avg_pool2d(image, 2), image]
        for step, lateral in zip(self.up, laterals, strict=True):
            x = step(x, lateral)
        return self.head(x)
