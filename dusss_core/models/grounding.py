"""The grounding decoder: where in the picture is what the sentence says, Eq. 10."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dusss_core.models.cells import resample
from dusss_core.models.decoder_step import DecoderStep
from dusss_core.models.image_tower import ImageFeatures
from dusss_core.models.text_tower import TextFeatures
from dusss_core.transfer import sent


class Grounding(NamedTuple):
    """Where in B pictures is what their sentences say."""

    logits: Tensor
    """B x outputs x H x W: scale (t . v) + bias of each class; of several the background is first, 0 everywhere."""
    pixels: Tensor
    """B x G x H x W: v, pixel features of the decoder's finest level."""
    text: Tensor
    """B x G: t, the sentences in the space of v."""


class GroundingDecoder(nn.Module):
    """fg of Eq. 10: patch features to pixel features, whose dot product with the text gives the mask.

    Args:
        channels: channels of the encoder's feature maps, fine to coarse.
        strides: their pixels per cell.
        in_channels: channels of the picture.
        width: channels inside the decoder.
        dim: D, width of the text.
        outputs: channels of the logits. 1: one class. More: the first is the background.
        skips: finer feature maps, and the picture itself, join on the way up.
        cross_attention: patch features attend to the sentence's tokens first.
        bias: what the learned bias of the logits starts from.
        cell_dim: numbers of a cell, where the embeddings of picture and sentence keep places: at each cell both and
            their product come in too. 0: they do not.
    """

    def __init__(
        self,
        channels: list[int],
        strides: list[int],
        in_channels: int,
        width: int,
        dim: int,
        outputs: int,
        skips: bool,
        cross_attention: bool,
        bias: float,
        cell_dim: int = 0,
    ):
        super().__init__()
        self.skips = skips
        self.enter = nn.Conv2d(channels[-1], width, 1)
        self.position = nn.Conv2d(POSITION_CHANNELS, width, 1)
        self.attend = TokenAttention(width, dim) if cross_attention else None
        self.alignment = nn.Conv2d(3 * cell_dim, width, 1) if cell_dim else None
        # one step per halving of the stride, down to single pixels; GroupNorm, since this decoder is federated, and
        # batch statistics of different hospitals disagree
        finer = dict(zip(strides[:-1], channels[:-1], strict=True))
        self.steps = nn.ModuleList()
        self.step_strides = [strides[-1] >> i for i in range(1, int(math.log2(strides[-1])) + 1)]
        current = width
        for stride in self.step_strides:
            lateral = (in_channels if stride == 1 else finer.get(stride, 0)) if skips else 0
            # the two finest levels are the most expensive ones: half as wide
            out = width if stride > 2 else max(width // 2, 8)
            self.steps.append(DecoderStep(current, lateral, out))
            current = out
        self.pixel = nn.Conv2d(current, current, 1)
        # t is brought to the width of v, not v to D: the same dot product for a fraction of the work per pixel
        self.text = nn.Linear(dim, current)
        self.strides = strides
        # the background is what is none of the classes, not what the sentence says of one more: its logit is 0, as it
        # is where one class has a sigmoid. With a code of its own it is told from the sentence too, and a sentence
        # unlike those with masks ("no finding") may call a whole picture foreground
        classes = max(1, outputs - 1)
        self.background = outputs > 1
        self.class_codes = nn.Parameter(torch.ones(classes, current))
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.bias = nn.Parameter(torch.full((classes,), bias))
        if classes > 1:
            nn.init.normal_(self.class_codes, mean=1.0, std=0.5)

    def forward(self, image: Tensor, features: ImageFeatures, text: TextFeatures) -> Grounding:
        """Ground each picture's own sentence.

        Args:
            image: B x C x H x W, normalised.
            features: of the picture.
            text: features of the B sentences.
        """
        levels = features.levels
        x = self.enter(levels[-1])
        x = x + self.position(position_code(x.shape[2:], x.device).to(x.dtype))
        if self.alignment is not None:
            placed = torch.cat([features.cells, text.cells, features.cells * text.cells], dim=1)
            x = x + self.alignment(resample(placed, x.shape[-1]).to(x.dtype))
        if self.attend is not None:
            x = self.attend(x, text)
        finer = dict(zip(self.strides[:-1], levels[:-1], strict=True))
        for stride, step in zip(self.step_strides, self.steps, strict=True):
            lateral = (image if stride == 1 else finer.get(stride)) if self.skips else None
            x = step(x, lateral)
        v = self.pixel(x)
        t = self.text(text.sentence)
        codes = t.unsqueeze(1) * self.class_codes / math.sqrt(v.shape[1])
        logits = torch.bmm(codes.to(v.dtype), v.flatten(2)).unflatten(2, v.shape[2:])
        logits = self.scale * logits + self.bias.view(1, -1, 1, 1)
        if self.background:
            logits = torch.cat([torch.zeros_like(logits[:, :1]), logits], dim=1)
        return Grounding(logits, v, t)


class TokenAttention(nn.Module):
    """Each patch looks at the sentence's tokens: cross-attention and a feed-forward layer, both residual."""

    def __init__(self, width: int, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 4, kdim=dim, vdim=dim, batch_first=True)
        self.feed = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor, text: TextFeatures) -> Tensor:
        height, width = x.shape[2:]
        patches = x.flatten(2).transpose(1, 2)
        seen, _ = self.attention(
            self.norm(patches), text.tokens, text.tokens, key_padding_mask=~text.mask, need_weights=False
        )
        patches = patches + seen
        patches = patches + self.feed(patches)
        return patches.transpose(1, 2).unflatten(2, (height, width))


POSITION_CHANNELS = 16


def position_code(shape: tuple[int, int], device: torch.device) -> Tensor:
    """Sines and cosines of row and column, 1 x 16 x H x W; periods of 4, 2, 1 and 1/2 pictures."""
    frequencies = math.pi * torch.tensor([0.5, 1.0, 2.0, 4.0])
    codes = []
    for axis, length in enumerate(shape):
        place = ((torch.arange(length) + 0.5) / length)[:, None] * frequencies
        code = torch.cat([place.sin(), place.cos()], dim=1).T  # 8 x length
        codes.append(
            code[:, :, None].expand(-1, -1, shape[1]) if axis == 0 else code[:, None, :].expand(-1, shape[0], -1)
        )
    return sent(device, torch.cat(codes).unsqueeze(0))[0]
