"""Projection and Gaussian heads on a global feature."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from dusss_core.losses.similarity import Embedding, Gaussian


class EmbeddingHead(nn.Module):
    """s (L2-normalised), mu and log sigma of a global feature, B x D each; log sigma is not clamped yet.

    Args:
        in_width: width of the global feature.
        dim: D.
        watching: the Gaussian is read off the feature and teaches it nothing (`pretrain.uncertainty.weight_ambiguity`).
    """

    def __init__(self, in_width: int, dim: int, *, watching: bool = False):
        super().__init__()
        self.watching = watching
        self.semantic = nn.Sequential(nn.Linear(in_width, dim), nn.GELU(), nn.Linear(dim, dim))
        self.mu = nn.Linear(in_width, dim)
        self.log_sigma = nn.Linear(in_width, dim)

    def forward(self, feature: Tensor) -> Embedding:
        feature = feature.float()
        seen = feature.detach() if self.watching else feature
        gaussian = Gaussian(self.mu(seen), self.log_sigma(seen))
        return Embedding(F.normalize(self.semantic(feature).float(), dim=-1), gaussian)
