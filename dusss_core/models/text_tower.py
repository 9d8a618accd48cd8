"""From a sentence's token features to its embedding and its Gaussian."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from dusss_core.losses.similarity import Embedding
from dusss_core.models.cells import SentenceCells
from dusss_core.models.heads import EmbeddingHead


class TextFeatures(NamedTuple):
    """What the vision-language model knows of B sentences."""

    embedding: Embedding
    """Semantic embedding and Gaussian, B x D each."""
    sentence: Tensor
    """B x D: the pooled sentence, before any head."""
    tokens: Tensor
    """B x L x D, for cross-attention."""
    mask: Tensor
    """B x L, bool: real tokens."""
    cells: Tensor | None
    """B x d x cells x cells: what the sentence says of each place; None where the embedding has no places."""


class TextTower(nn.Module):
    """A trained projection of token features, and their mean or what a learned query makes of them.

    A frozen encoder's own pooled vectors are nearly parallel for sentences of one kind, so they are not used. A learned
    query looks at what all sentences share, and learns their sides late or never.

    Args:
        in_width: E, width of the token features.
        dim: D.
        cells: cells along a side of an embedding that keeps places; 0: none.
        cell_dim: d, numbers of a cell.
        query: a learned query pools the tokens; else their mean.
        gradient: factor on the gradient that goes from the cells to what is below them.
        watching: as of EmbeddingHead.
    """

    def __init__(
        self,
        in_width: int,
        dim: int,
        cells: int = 0,
        cell_dim: int = 16,
        *,
        query: bool = False,
        gradient: float = 1.0,
        watching: bool = False,
    ):
        super().__init__()
        self.project = nn.Sequential(nn.LayerNorm(in_width), nn.Linear(in_width, dim), nn.GELU(), nn.Linear(dim, dim))
        self.pool = None
        if query:
            self.query = nn.Parameter(torch.zeros(1, 1, dim))
            self.pool = nn.MultiheadAttention(dim, num_heads=4, batch_first=True)
        self.norm = nn.LayerNorm(dim)
        self.cells = SentenceCells(dim, dim, cells, cell_dim, gradient, watching=watching) if cells else None
        if not cells:
            self.head = EmbeddingHead(dim, dim, watching=watching)
        # drawn last, as it always was: the initial weights of older studies stay
        if query:
            nn.init.normal_(self.query, std=dim**-0.5)

    def forward(self, tokens: Tensor, mask: Tensor) -> TextFeatures:
        """Embed B sentences.

        Args:
            tokens: B x L x E token features.
            mask: B x L bool; every row has at least one True.
        """
        x = self.project(tokens)
        sentence = self.norm(self._pooled(x, mask))
        if self.cells is not None:
            placed = self.cells(sentence)
            return TextFeatures(placed.embedding, sentence, x, mask, placed.cells)
        return TextFeatures(self.head(sentence), sentence, x, mask, None)

    def _pooled(self, x: Tensor, mask: Tensor) -> Tensor:
        if self.pool is None:
            real = mask.unsqueeze(-1).to(x.dtype)
            return (x * real).sum(1) / real.sum(1)
        query = self.query.expand(len(x), -1, -1)
        return self.pool(query, x, x, key_padding_mask=~mask, need_weights=False)[0].squeeze(1)
