"""Projection and Gaussian heads on a global feature."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from dusss_core.losses.similarity import Embedding, Gaussian


class EmbeddingHead(nn.Module):
    """s (L2-normalised), mu and log sigma of a global feature, B x D each.

    Args:
        in_width: width of the global feature.
        dim: D.
        log_sigma_range: log sigma is clamped to it.
    """

    def __init__(self, in_width: int, dim: int, log_sigma_range: tuple[float, float]):
        super().__init__()
        self.semantic = nn.Sequential(nn.Linear(in_width, dim), nn.GELU(), nn.Linear(dim, dim))
        self.mu = nn.Linear(in_width, dim)
        self.log_sigma = nn.Linear(in_width, dim)
        self.log_sigma_range = log_sigma_range

    def forward(self, feature: Tensor) -> Embedding:
        feature = feature.float()
        gaussian = Gaussian(self.mu(feature), self.log_sigma(feature).clamp(*self.log_sigma_range))
        return Embedding(F.normalize(self.semantic(feature).float(), dim=-1), gaussian)
