"""What a student is told of a picture: token features of its sentence, or nothing."""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Words(NamedTuple):
    """Token features of B sentences, as a text bank gives them."""

    tokens: Tensor
    """B x L x E float32; zeros for a picture without a sentence."""
    mask: Tensor
    """B x L bool: real tokens; True at position 0 alone for a picture without a sentence."""

    def mean(self) -> Tensor:
        """B x E: the mean of the real tokens."""
        real = self.mask.unsqueeze(-1).to(self.tokens.dtype)
        return (self.tokens * real).sum(1) / real.sum(1)

    def of_length(self, length: int) -> Words:
        """The first `length` tokens, with zeros behind shorter sentences."""
        missing = length - self.tokens.shape[1]
        tokens, mask = self.tokens[:, :length], self.mask[:, :length]
        if missing > 0:
            tokens = torch.nn.functional.pad(tokens, (0, 0, 0, missing))
            mask = torch.nn.functional.pad(mask, (0, missing))
        return Words(tokens * mask.unsqueeze(-1), mask)

    def withheld(self, where: Tensor) -> Words:
        """Nothing is said of the pictures at which `where`, B bool, is True."""
        first = torch.zeros_like(self.mask)
        first[:, 0] = True
        return Words(self.tokens * ~where[:, None, None], torch.where(where[:, None], first, self.mask))


def joined(parts: list[Words]) -> Words:
    """The sentences of several batches in one, padded to the longest."""
    length = max(part.tokens.shape[1] for part in parts)
    tokens, masks = zip(*(part.of_length(length) for part in parts), strict=True)
    return Words(torch.cat(tokens), torch.cat(masks))


def no_words(image: Tensor, width: int) -> Words:
    """Nothing is said of any of the pictures B x C x H x W; E is `width`."""
    tokens = torch.zeros(len(image), 1, width, device=image.device)
    return Words(tokens, torch.ones(len(image), 1, dtype=torch.bool, device=image.device))


class TextNetwork(nn.Module):
    """A student that can be given a sentence beside the picture."""

    text_width: int
    """E of the words that it takes."""

    def forward(self, image: Tensor, text: Words | None = None) -> Tensor:
        """Logits of pictures and their sentences.

        Args:
            image: B x C x size x size, normalised.
            text: of the same B pictures; None: nothing is said of them.

        Returns:
            B x classes x size x size.
        """
        return self.logits(image, no_words(image, self.text_width) if text is None else text)

    @abstractmethod
    def logits(self, image: Tensor, text: Words) -> Tensor:
        """As `forward`, where something is said or `no_words`."""
