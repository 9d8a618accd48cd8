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
        hidden: hidden units of the head; 0: it is linear.

    Raises:
        UserError: timm does not know the name, or the model has no feature maps.
    """

    def __init__(
        self, name: str, in_channels: int, out_channels: int, size: int, width: int, norm: str, hidden: int = 0
    ):
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
        self.head = PyramidHead(channels, current, out_channels, hidden)
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
    of a frozen network: a few hundred parameters, which is what little noise in a private step asks for. With `hidden`
    units there is a second way beside it, of two layers, which can tell what no sum of scores tells: some thousand
    parameters. It looks at cells of 4 x 4 pixels, and starts at zero too.
    """

    def __init__(self, channels: Sequence[int], width: int, classes: int, hidden: int = 0):
        super().__init__()
        self.pixel = nn.Conv2d(width, classes, 1)
        self.levels = nn.ModuleList(nn.Conv2d(c, classes, 1, bias=False) for c in channels)
        # most pixels are background: start near the logit of a tenth
        nn.init.constant_(self.pixel.bias, -2.0)
        for level in self.levels:
            nn.init.zeros_(level.weight)
        self.hidden = HiddenUnits((width, *channels), hidden, classes) if hidden else None

    def forward(self, pixels: Tensor, levels: Sequence[Tensor]) -> Tensor:
        """B x classes x H x W, from B x width x H x W and the encoder's levels."""
        scores = self.pixel(pixels)
        # the levels differ widely in scale; over one picture, so that records do not meet
        levels = [F.group_norm(features, 1) for features in levels]
        for level, features in zip(self.levels, levels, strict=True):
            scores = scores + _resized(level(features), scores.shape[2:])
        if self.hidden is not None:
            scores = scores + self.hidden((pixels, *levels), scores.shape[2:])
        return scores


class HiddenUnits(nn.Module):
    """Two layers of 1 x 1 convolutions on all feature maps together, at a quarter of the height and width."""

    def __init__(self, channels: Sequence[int], hidden: int, classes: int):
        super().__init__()
        self.first = nn.ModuleList(nn.Conv2d(c, hidden, 1, bias=i == 0) for i, c in enumerate(channels))
        self.last = nn.Conv2d(hidden, classes, 1, bias=False)
        nn.init.zeros_(self.last.weight)

    def forward(self, maps: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        """B x classes x `size`, from maps of B x C x H x W whose sizes differ."""
        cells = size[0] // 4, size[1] // 4
        units = sum(
            _resized(layer(_pooled(features, cells)), cells) for layer, features in zip(self.first, maps, strict=True)
        )
        return _resized(self.last(F.silu(units)), size)


def _pooled(features: Tensor, cells: tuple[int, int]) -> Tensor:
    """Means over the pixels of a cell; a map that is coarser stays as it is."""
    times = features.shape[2] // cells[0], features.shape[3] // cells[1]
    return F.avg_pool2d(features, times) if min(times) > 1 else features


def _resized(scores: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(scores, size=tuple(size), mode="bilinear", align_corners=False)
