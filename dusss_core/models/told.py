"""A student with a sentence fixed, for what calls it with pictures alone."""

from __future__ import annotations

from torch import Tensor, nn

from dusss_core.models.words import Words


class Told(nn.Module):
    """`model` with what is said of its pictures.

    Args:
        text: one sentence for every picture or window, or one for each of them.
    """

    def __init__(self, model: nn.Module, text: Words):
        super().__init__()
        self.model = model
        self._text = text

    def forward(self, image: Tensor) -> Tensor:
        """Logits, B x classes x H x W, of normalised pictures B x C x H x W."""
        tokens, mask = self._text
        if len(tokens) == 1:
            tokens, mask = tokens.expand(len(image), -1, -1), mask.expand(len(image), -1)
        return self.model(image, Words(tokens, mask))
