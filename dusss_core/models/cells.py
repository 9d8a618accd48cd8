"""An embedding that keeps places: picture and sentence as maps of a few cells.

A mean over the picture cannot tell left from right, and that is what sentences about findings are about. So the
semantic embedding of a picture is its patch features themselves, on cells x cells cells, and that of a sentence is what
it says of each cell. Their cosine is the mean over the cells of t . v, the product of Eq. 10: what contrast trains is
what a text-guided mask is read from.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dusss_core.losses.similarity import Embedding, Gaussian
from dusss_core.transfer import sent


class Placed(NamedTuple):
    """B pictures or sentences, cell by cell."""

    embedding: Embedding
    """Its semantic part is the map below, flattened and of length 1."""
    cells: Tensor
    """B x d x cells x cells, float32, mean square 1."""


class _Map(nn.Module):
    """From a raw map to what is compared.

    Args:
        size: numbers in a map. dim: D of the Gaussian.
        watching: as of EmbeddingHead.
    """

    def __init__(self, size: int, dim: int, watching: bool):
        super().__init__()
        self.watching = watching
        self.mu = nn.Linear(size, dim)
        self.log_sigma = nn.Linear(size, dim)

    def forward(self, raw: Tensor) -> Placed:
        flat = raw.float().flatten(1)
        semantic = F.normalize(flat, dim=-1)
        cells = semantic * flat.shape[1] ** 0.5
        seen = cells.detach() if self.watching else cells
        return Placed(Embedding(semantic, Gaussian(self.mu(seen), self.log_sigma(seen))), cells.view_as(raw))


class PictureCells(nn.Module):
    """Each cell by its own patch features: what a finding looks like is learnt once for all places.

    Args:
        in_width: channels of the patch features. dim: D of the Gaussian.
        cells: cells along a side. cell_dim: d, numbers of a cell.
        gradient: factor on the gradient that goes on to the patch features.
        watching: as of EmbeddingHead.
    """

    def __init__(
        self, in_width: int, dim: int, cells: int, cell_dim: int, gradient: float = 1.0, *, watching: bool = False
    ):
        super().__init__()
        self.cells, self.gradient = cells, gradient
        self.norm = nn.LayerNorm(in_width)
        self.project = nn.Linear(in_width, cell_dim)
        self.map = _Map(cells * cells * cell_dim, dim, watching)

    def forward(self, patches: Tensor) -> Placed:
        """Embed patch features, B x C x H x W."""
        pooled = resample(scale_gradient(patches.float(), self.gradient), self.cells)
        return self.map(self.project(self.norm(pooled.permute(0, 2, 3, 1))).permute(0, 3, 1, 2))


class SentenceCells(nn.Module):
    """What a sentence says of each cell. Arguments as PictureCells; `in_width` is that of the pooled sentence."""

    def __init__(
        self, in_width: int, dim: int, cells: int, cell_dim: int, gradient: float = 1.0, *, watching: bool = False
    ):
        super().__init__()
        self.shape, self.gradient = (cell_dim, cells, cells), gradient
        size = cell_dim * cells * cells
        self.place = nn.Sequential(nn.Linear(in_width, 2 * in_width), nn.GELU(), nn.Linear(2 * in_width, size))
        self.map = _Map(size, dim, watching)

    def forward(self, sentence: Tensor) -> Placed:
        """Embed pooled sentences, B x D."""
        sentence = scale_gradient(sentence.float(), self.gradient)
        return self.map(self.place(sentence).unflatten(1, self.shape))


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """x, whose gradient is `factor` times what comes back."""
    return x if factor == 1 else x.detach() + factor * (x - x.detach()) if factor else x.detach()


def resample(x: Tensor, side: int) -> Tensor:
    """Mean of what each of side x side equal cells covers of a B x C x H x W map; up as well as down."""
    for axis in (2, 3):
        (shares,) = sent(x.device, _shares(side, x.shape[axis]))
        x = torch.tensordot(x, shares.to(x.dtype), dims=([axis], [1])).movedim(-1, axis)
    return x


def _shares(out: int, length: int) -> Tensor:
    """out x length: which share of each new cell lies in each old one."""
    edges = torch.arange(out + 1, dtype=torch.float64) * (length / out)
    old = torch.arange(length, dtype=torch.float64)
    overlap = torch.minimum(edges[1:, None], old + 1) - torch.maximum(edges[:-1, None], old)
    return overlap.clamp(min=0) * (out / length)
