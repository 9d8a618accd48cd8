"""One step of a decoder: twice the resolution."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dusss_core.models.unet import make_norm


class DecoderStep(nn.Module):
    """Doubles the resolution, joins a lateral map if there is one, convolves.

    Args:
        width: channels that come in. lateral: those of the lateral map, 0: there is none. out: those that go out.
        norm: `group` or `batch`.
    """

    def __init__(self, width: int, lateral: int, out: int, norm: str = "group"):
        super().__init__()
        self.lateral = nn.Conv2d(lateral, out, 3, padding=1) if lateral else None
        self.conv = nn.Conv2d(width + (out if lateral else 0), out, 3, padding=1)
        self.norm = make_norm(norm, out)

    def forward(self, x: Tensor, lateral: Tensor | None) -> Tensor:
        """B x out x 2H x 2W, from B x width x H x W and B x lateral x 2H x 2W; the lateral map may lack a row or a
        column, where an encoder halves an odd number."""
        height, width = x.shape[2:]
        size = (2 * height, 2 * width) if lateral is None else lateral.shape[2:]
        x = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
        if self.lateral is not None:
            x = torch.cat([x, self.lateral(lateral)], dim=1)
        return F.relu(self.norm(self.conv(x)))
