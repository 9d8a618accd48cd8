"""The U-Net of most published semi-supervised methods: narrow, with dropout on the way down."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from dusss_core.models.decoders import Decoder, DecoderKind, DecoderNetwork, UpBlock, raise_resolution
from dusss_core.models.unet import make_norm

MAIN: DecoderKind = "bilinear"
"""Kind of the decoder that is deployed."""
WIDTHS = (16, 32, 64, 128, 256)
DROPOUT = (0.05, 0.1, 0.2, 0.3, 0.5)


class SmallUNet(DecoderNetwork):
    """The 2-D U-Net of SSL4MIS (github.com/HiLab-git/SSL4MIS), as BCP, MC-Net, SS-Net, UCMT and CCT use it.

    Parameters: 1,813,329 from 1 to 1 channel, 1,813,617 from 3 to 1, 1,813,474 from 1 to 2; 2.28 G
    multiply-accumulates at 224 x 224.

    Args:
        in_channels: channels of the picture.
        out_channels: classes; one logit per class and pixel.
        norm: `batch` as published, or `group`.
        others: kinds of further decoders.
    """

    def __init__(self, in_channels: int, out_channels: int, norm: str = "batch", others: Sequence[DecoderKind] = ()):
        super().__init__()
        into = (in_channels, *WIDTHS[:-1])
        self.down = nn.ModuleList(
            _convs(a, b, norm, dropout) for a, b, dropout in zip(into, WIDTHS, DROPOUT, strict=True)
        )
        self.up, self.head = _way_up(MAIN, norm), _head(out_channels)
        self.feature_width = WIDTHS[0]
        self.others = nn.ModuleList(Decoder(_way_up(kind, norm), _head(out_channels)) for kind in others)

    def encode(self, image: Tensor) -> list[Tensor]:
        """Maps of 16, 32, 64, 128 and 256 channels, each half as high and wide as the one before."""
        levels = [self.down[0](image)]
        for block in self.down[1:]:
            levels.append(block(F.max_pool2d(levels[-1], 2)))
        return levels


def _way_up(kind: DecoderKind, norm: str) -> nn.ModuleList:
    steps = list(zip(WIDTHS[:0:-1], WIDTHS[-2::-1], strict=True))
    return nn.ModuleList([UpBlock(raise_resolution(kind, a, b), _convs(2 * b, b, norm, dropout=0.0)) for a, b in steps])


def _head(classes: int) -> nn.Module:
    return nn.Conv2d(WIDTHS[0], classes, 3, padding=1)


def _convs(in_channels: int, out_channels: int, norm: str, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1),
        make_norm(norm, out_channels),
        nn.LeakyReLU(),
        nn.Dropout(dropout),
        nn.Conv2d(out_channels, out_channels, 3, padding=1),
        make_norm(norm, out_channels),
        nn.LeakyReLU(),
    )
