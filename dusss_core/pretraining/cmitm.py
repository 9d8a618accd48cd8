"""CMITM: contrastive masked image-text modelling (Chen et al., MICCAI 2023), in one stage.

    L = InfoNCE(masked picture, sentence) + L_pixel + L_word

Three quarters of the picture's squares of 16 x 16 pixels are covered by a learned colour; the tower is convolutions, so
covered squares stay in the picture (SimMIM, Xie et al., CVPR 2022). What is left is contrasted with the whole sentence
(`alignment`), and rebuilds the covered squares: L_pixel is the mean absolute error on them, of pixels normalised within
each square. L_word: half of the sentence's token features are covered, and two transformer layers that see the others
and the masked picture find them again, 1 - cos.

Where it departs from the paper: one stage, where the paper has masked modelling first and contrast after it (and has
released the second alone); a 1 x 1 convolution rebuilds pixels in place of a transformer; words are token features of
the frozen encoder, which know of each other already, so L_word is the easier task. The grounding decoder sees the whole
picture. Batch statistics do not follow the masked pictures, since no mask is ever made from one.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dusss_core.config import TrainingConfig
from dusss_core.losses.precision import full_precision
from dusss_core.losses.similarity import Embedding
from dusss_core.models.batch_norm import untracked
from dusss_core.models.image_tower import ImageTower
from dusss_core.pretraining.alignment import Alignment
from dusss_core.pretraining.method import Seen, Shown
from dusss_core.transfer import sent

SQUARE = 16
"""Pixels along a side."""
KEPT = 0.25
"""Share of the squares that stay: 12 of 49 in a picture of 112 x 112, 49 of 196 in one of 224 x 224."""
COVERED_WORDS = 0.5
WEIGHT_PIXEL = 1.0
WEIGHT_WORD = 1.0
WORD_LAYERS = 2
HEADS = 4


class CMITM(Alignment):
    """`vlm.pretraining` is its `Decoders`."""

    @classmethod
    def modules(cls, config: TrainingConfig, image: ImageTower, width: int) -> nn.Module:
        return Decoders(config.image.channels, image.channels[-1], image.strides[-1], width, config.vlm.dim)

    def look(self, shown: Shown) -> Looks:
        decoders: Decoders = self.vlm.pretraining
        covered = covered_squares(len(shown.picture), *shown.picture.shape[-2:], shown.draw)
        (covered,) = sent(shown.picture.device, covered)
        with untracked(self.vlm.image):
            image = self.vlm.encode_image(decoders.cover(shown.picture, covered))
        pixels = decoders.rebuilt(image.levels[-1], shown.picture.shape[-2:])
        words = covered_words(shown.text.mask, shown.draw)
        return Looks(
            image.embedding,
            pixel_loss(pixels, shown.picture, covered),
            word_loss(decoders.found(shown.tokens, words, shown.text.mask, image.levels[-1]), shown.tokens, words),
        )

    def contrasts(self, seen: Seen) -> dict[str, Tensor]:
        looks: Looks = seen.own
        return {
            "ita": self.instance(looks.image, seen),
            "pixel": WEIGHT_PIXEL * looks.pixel,
            "word": WEIGHT_WORD * looks.word,
            **self.text_guided(seen),
        }


class Looks(NamedTuple):
    """Of B records."""

    image: Embedding
    """Of the masked pictures."""
    pixel: Tensor
    """L_pixel, a scalar."""
    word: Tensor
    """L_word, a scalar."""


class Decoders(nn.Module):
    """The colour that covers squares, the vector that covers words, and what finds again what is under them.

    Args:
        in_channels: of the picture. channels, stride: of the patches. width: E of token features. dim: D.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, width: int, dim: int):
        super().__init__()
        self.stride = stride
        self.colour = nn.Parameter(torch.zeros(in_channels))
        self.pixel = nn.Conv2d(channels, in_channels * stride**2, 1)
        self.enter = nn.Linear(width, dim)
        self.blank = nn.Parameter(torch.randn(dim) * dim**-0.5)
        self.picture = nn.Linear(channels, dim)
        layer = nn.TransformerEncoderLayer(
            dim, HEADS, 2 * dim, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, WORD_LAYERS, enable_nested_tensor=False)
        self.leave = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, width))

    def cover(self, picture: Tensor, covered: Tensor) -> Tensor:
        """B x C x H x W pictures with the `covered` squares in the learned colour."""
        over = of_pixels(covered, picture.shape[-2:])
        return torch.where(over, self.colour.view(1, -1, 1, 1).to(picture.dtype), picture)

    def rebuilt(self, patches: Tensor, size: torch.Size) -> Tensor:
        """B x C x H x W from B x channels x h x w patch features."""
        return F.pixel_shuffle(self.pixel(patches), self.stride)[..., : size[0], : size[1]]

    def found(self, tokens: Tensor, words: Tensor, real: Tensor, patches: Tensor) -> Tensor:
        """B x L x E token features, found again where `words` (B x L bool) are covered."""
        x = torch.where(words[:, :, None], self.blank, self.enter(tokens).float())
        x = x + self.picture(patches.mean(dim=(2, 3)))[:, None] + order_code(x)
        return self.leave(self.layers(x, src_key_padding_mask=~real))


def covered_squares(batch: int, height: int, width: int, draw: torch.Generator) -> Tensor:
    """B x rows x columns bool, on the CPU: squares that are covered, all but KEPT of them, rounded down, in each."""
    rows, columns = height // SQUARE, width // SQUARE
    rank = torch.rand(batch, rows * columns, generator=draw).argsort(dim=1).argsort(dim=1)
    return (rank >= int(KEPT * rows * columns)).view(batch, rows, columns)


def covered_words(real: Tensor, draw: torch.Generator) -> Tensor:
    """B x L bool: tokens that are covered, COVERED_WORDS of the `real` ones, rounded down but at least one."""
    (order,) = sent(real.device, torch.rand(real.shape, generator=draw))
    rank = order.masked_fill(~real, 2.0).argsort(dim=1).argsort(dim=1)
    return rank < (real.sum(dim=1, keepdim=True) * COVERED_WORDS).int().clamp(min=1)


def of_pixels(squares: Tensor, size: torch.Size) -> Tensor:
    """B x 1 x H x W bool, from B x rows x columns; what lies beyond the last whole square is not in any."""
    over = squares.repeat_interleave(SQUARE, dim=1).repeat_interleave(SQUARE, dim=2)
    return F.pad(over, (0, size[1] - over.shape[2], 0, size[0] - over.shape[1]))[:, None]


@full_precision
def pixel_loss(rebuilt: Tensor, picture: Tensor, covered: Tensor) -> Tensor:
    """Mean absolute error on the pixels of the covered squares, to pixels of mean 0 and variance 1 within each square
    and channel: a scalar, 0 where nothing is covered.

    Args:
        rebuilt, picture: B x C x H x W. covered: B x rows x columns bool.
    """
    rows, columns = covered.shape[1:]
    wanted, found = (
        # the loss is one of squares: B x C x rows x columns x SQUARE^2
        x[..., : rows * SQUARE, : columns * SQUARE]
        .unflatten(3, (columns, SQUARE))
        .unflatten(2, (rows, SQUARE))
        .transpose(3, 4)
        .flatten(4)
        for x in (picture, rebuilt)
    )
    variance, mean = torch.var_mean(wanted, dim=-1, keepdim=True, correction=0)
    each = (found - (wanted - mean) / (variance + _EPSILON).sqrt()).abs().mean(dim=(1, 4))
    return torch.where(covered, each, 0).sum() / covered.sum().clamp(min=1)


@full_precision
def word_loss(found: Tensor, tokens: Tensor, words: Tensor) -> Tensor:
    """1 - cos of the covered token features and what was found, averaged over them: a scalar.

    Args:
        found, tokens: B x L x E. words: B x L bool.
    """
    each = 1 - F.cosine_similarity(found, tokens.detach(), dim=-1)
    return torch.where(words, each, 0).sum() / words.sum().clamp(min=1)


def order_code(x: Tensor) -> Tensor:
    """Sines and cosines of a token's place (Vaswani et al. 2017), L x D for x of B x L x D."""
    length, dim = x.shape[1:]
    place = torch.arange(length, device=x.device, dtype=torch.float32)[:, None]
    pace = torch.exp(torch.arange(0, dim, 2, device=x.device) * (-9.21034 / dim))  # 10,000^(-i / D)
    return torch.stack([(place * pace).sin(), (place * pace).cos()], dim=-1).flatten(1)[:, :dim]


_EPSILON = 1e-6
