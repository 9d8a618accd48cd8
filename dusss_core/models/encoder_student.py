"""A student whose way down is an image encoder of timm, for public pretrained weights."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from dusss_core.models.decoder_step import DecoderStep
from dusss_core.models.image_tower import build_encoder


class EncoderStudent(nn.Module):
    """An encoder, a decoder with skip connections from it, and a head that sees both.

    Args:
        name: timm model that supports `features_only`.
        in_channels: channels of the picture.
        out_channels: classes; one logit per class and pixel.
        size: height and width of the picture (some models fix it when they are built).
        width: channels of the decoder at full resolution; twice, four and eight times as wide below.
        norm: of the decoder, `batch` or `group`; the encoder keeps its own layers.

    Raises:
        UserError: timm does not know the name, or the model has no feature maps.
    """

    def __init__(self, name: str, in_channels: int, out_channels: int, size: int, width: int, norm: str):
        super().__init__()
        self.encoder, self.strides, channels = build_encoder(
            name, in_channels, size, coarsest=32, setting="student.encoder"
        )
        laterals = dict(zip(self.strides, channels, strict=True)) | {1: in_channels}
        self.up = nn.ModuleList()
        self.up_strides = [self.strides[-1] >> i for i in range(1, self.strides[-1].bit_length())]
        current = channels[-1]
        for stride in self.up_strides:
            out = width * min(max(stride // 2, 1), 8)
            self.up.append(DecoderStep(current, laterals.get(stride, 0), out, norm))
            current = out
        self.head = PyramidHead(channels, current, out_channels)
        self.feature_width = current
        """Channels of the decoder's last map."""

    def forward(self, image: Tensor) -> Tensor:
        """Logits of the picture alone.

        Args:
            image: B x C x H x W, normalised; H and W are multiples of 16.

        Returns:
            B x classes x H x W.
        """
        return self.with_features(image)[0]

    def with_features(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Logits as `forward` gives them, and the decoder's last map: B x feature_width x H x W."""
        levels = self.encoder(image)
        laterals = dict(zip(self.strides, levels, strict=True)) | {1: image}
        x = levels[-1]
        for stride, step in zip(self.up_strides, self.up, strict=True):
            x = step(x, laterals.get(stride))
        return self.head(x, levels), x


class PyramidHead(nn.Module):
    """Scores of the decoder's pixels, and of every level of the encoder as in fully convolutional networks (Long et
    al. 2015), summed.

    The scores of the levels start at zero. Trained alone, the head is a linear classifier of pixels on the features
    of a frozen network: a few hundred parameters, which is what little noise in a private step asks for.
    """

    def __init__(self, channels: Sequence[int], width: int, classes: int):
        super().__init__()
        self.pixel = nn.Conv2d(width, classes, 1)
        self.levels = nn.ModuleList(nn.Conv2d(c, classes, 1, bias=False) for c in channels)
        # most pixels are background: start near the logit of a tenth
        nn.init.constant_(self.pixel.bias, -2.0)
        for level in self.levels:
            nn.init.zeros_(level.weight)

    def forward(self, pixels: Tensor, levels: Sequence[Tensor]) -> Tensor:
        """B x classes x H x W, from B x width x H x W and the encoder's levels."""
        scores = self.pixel(pixels)
        for level, features in zip(self.levels, levels, strict=True):
            # the levels differ widely in scale; over one picture, so that records do not meet
            score = level(F.group_norm(features, 1))
            scores = scores + F.interpolate(score, size=scores.shape[2:], mode="bilinear", align_corners=False)
        return scores
