"""The student: a U-Net of five levels."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from dusss_core.models.decoders import Decoder, DecoderKind, DecoderNetwork, UpBlock, raise_resolution

MAIN: DecoderKind = "transposed"
"""Kind of the decoder that is deployed."""


class UNet(DecoderNetwork):
    """U-Net with learned upsampling.

    At width 64 and 3 -> 1 channels it has 14,751,873 parameters and takes 25.19 G multiply-accumulates at
    224 x 224, both figures of the paper's Table 1.

    Args:
        in_channels: channels of the picture.
        out_channels: classes; one logit per class and pixel.
        width: channels of the first level; the others are 2, 4, 8 and 8 times as wide.
        norm: `batch`, or `group` (no buffers, so that every record's gradient stands alone).
        others: kinds of further decoders.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        width: int = 64,
        norm: str = "batch",
        others: Sequence[DecoderKind] = (),
    ):
        super().__init__()
        w = width
        self.stem = conv_block(in_channels, w, norm)
        self.down = nn.ModuleList(
            [double_conv(a, b, norm) for a, b in [(w, 2 * w), (2 * w, 4 * w), (4 * w, 8 * w), (8 * w, 8 * w)]]
        )
        self.up, self.head = _way_up(MAIN, w, norm), nn.Conv2d(w, out_channels, 1)
        self.feature_width = w
        self.others = nn.ModuleList(Decoder(_way_up(kind, w, norm), nn.Conv2d(w, out_channels, 1)) for kind in others)

    def encode(self, image: Tensor) -> list[Tensor]:
        """Maps of w, 2w, 4w, 8w and 8w channels, each half as high and wide as the one before."""
        levels = [self.stem(image)]
        for block in self.down:
            levels.append(block(F.max_pool2d(levels[-1], 2)))
        return levels


def _way_up(kind: DecoderKind, w: int, norm: str) -> nn.ModuleList:
    steps = [(8 * w, 4 * w), (4 * w, 2 * w), (2 * w, w), (w, w)]
    return nn.ModuleList(
        [UpBlock(raise_resolution(kind, skip, skip), double_conv(2 * skip, out, norm)) for skip, out in steps]
    )


def double_conv(in_channels: int, out_channels: int, norm: str) -> nn.Sequential:
    """Two `conv_block`s."""
    return nn.Sequential(conv_block(in_channels, out_channels, norm), conv_block(out_channels, out_channels, norm))


def conv_block(in_channels: int, out_channels: int, norm: str) -> nn.Sequential:
    """3 x 3 convolution, normalisation, ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1),
        make_norm(norm, out_channels),
        nn.ReLU(inplace=True),
    )


def make_norm(norm: str, channels: int) -> nn.Module:
    """BatchNorm2d, or GroupNorm with at most 8 groups of at least 4 channels."""
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    groups = next(g for g in (8, 4, 2, 1) if channels % g == 0 and channels // g >= min(4, channels))
    return nn.GroupNorm(groups, channels)
