"""The vision-language model of step 1: an image tower, a text tower, a grounding decoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dusss_core.models.grounding import Grounding, GroundingDecoder
from dusss_core.models.image_tower import ImageFeatures, ImageTower
from dusss_core.models.text_tower import TextFeatures, TextTower


class VisionLanguageModel(nn.Module):
    """Composed from its parts; a text encoder is one of them only when it is trained.

    Args:
        image: the picture's side.
        text: the sentence's side, on token features.
        grounding: the decoder that joins both.
        temperature: start of the learned tau.
        text_encoder: a BERT that is trained along (LoRA or full); None when it is frozen.
        pretraining: what the pretraining method trains beside them; None: nothing.
    """

    def __init__(
        self,
        image: ImageTower,
        text: TextTower,
        grounding: GroundingDecoder,
        temperature: float,
        text_encoder: nn.Module | None = None,
        pretraining: nn.Module | None = None,
    ):
        super().__init__()
        self.image = image
        self.text = text
        self.grounding = grounding
        self.text_encoder = text_encoder
        self.pretraining = pretraining
        # 1 / tau on a log scale; one for the contrastive losses, one for the text-guided loss
        start = torch.tensor(1 / temperature).log()
        self.log_scale = nn.Parameter(start.clone())
        self.log_scale_ltg = nn.Parameter(start.clone())

    def encode_image(self, image: Tensor) -> ImageFeatures:
        """Embed normalised pictures, B x C x H x W."""
        return self.image(image)

    def encode_text(self, tokens: Tensor, mask: Tensor) -> TextFeatures:
        """Embed sentences from their token features, B x L x E and B x L bool."""
        return self.text(tokens, mask)

    def ground(self, image: Tensor, features: ImageFeatures, text: TextFeatures) -> Grounding:
        """Mask logits and pixel features of each picture's own sentence."""
        return self.grounding(image, features, text)

    def forward(self, image: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """Text-guided mask logits, B x classes x H x W."""
        return self.ground(image, self.encode_image(image), self.encode_text(tokens, mask)).logits
