"""A transformer block, as vision transformers have it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """x + attention(LayerNorm x), then the same with two layers that are four times as wide between.

    Args:
        dim: channels of a token.
        heads: of the attention; fewer where `dim` is not a multiple.
        dropout: behind both layers.
        activation_after: GELU behind the second layer too, as LViT has it.
    """

    def __init__(self, dim: int, heads: int, dropout: float = 0.0, *, activation_after: bool = False):
        super().__init__()
        self.heads = math.gcd(dim, heads)
        self.norm_1, self.norm_2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        after = [nn.GELU()] if activation_after else []
        self.mlp = nn.Sequential(
            nn.Linear(dim, 4 * dim),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(4 * dim, dim),
            *after,
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor, seen: Tensor | None = None) -> Tensor:
        """B x N x dim in and out.

        Args:
            seen: B x N bool, tokens that are looked at, at least one each; None: all.
        """
        batch, n, dim = x.shape
        q, k, v = self.qkv(self.norm_1(x)).reshape(batch, n, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        looked_at = None if seen is None else seen[:, None, None, :]
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=looked_at)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, n, dim))
        return x + self.mlp(self.norm_2(x))


def positions(count: int, dim: int) -> nn.Parameter:
    """A position table, count x dim, from nothing."""
    return nn.Parameter(torch.zeros(count, dim))
