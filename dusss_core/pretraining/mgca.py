"""MGCA: multi-granularity cross-modal alignment (Wang et al., NeurIPS 2022), with one sentence a picture.

    L = L_ITA + 0.7 L_token + 0.5 L_proto

L_ITA is the contrast of `alignment`. L_token: each word looks at its picture's patches, and is to find what it saw
among what the other words of its sentence saw; each patch likewise with the words. L_proto: picture and sentence are
soft members of the same clusters; either predicts the other's.

Where it departs from the paper: PROTOTYPES in place of 500 (a batch has 8 to 32 records, not 144); all patches and
words count alike (the paper weighs them by a class token's attention, which towers that take a mean do not have); words
are those of one sentence, not of a report. Words are the tokens of the text tower. Codes stay with the batch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dusss_core.config import TrainingConfig
from dusss_core.losses.precision import full_precision
from dusss_core.models.image_tower import ImageTower
from dusss_core.pretraining.alignment import Alignment
from dusss_core.pretraining.method import Seen, Shown

WEIGHT_TOKEN = 0.7
WEIGHT_PROTOTYPE = 0.5
PROTOTYPES = 32
TEMPERATURE_TOKEN = 0.1
TEMPERATURE_PROTOTYPE = 0.2
FROZEN = 0.02
"""Share of the phase in which the prototypes stand still: one epoch of fifty."""
SINKHORN_STEPS = 3
SINKHORN_EPSILON = 0.05


class MGCA(Alignment):
    """`vlm.pretraining` is its `Heads`."""

    @classmethod
    def modules(cls, config: TrainingConfig, image: ImageTower, width: int) -> nn.Module:
        vlm = config.vlm
        return Heads(image.channels[-1], vlm.dim, vlm.cells**2 * vlm.cell_dim if vlm.cells else vlm.dim)

    def look(self, shown: Shown) -> Looks:
        return self.vlm.pretraining(shown)

    def contrasts(self, seen: Seen) -> dict[str, Tensor]:
        looks: Looks = seen.own
        prototypes = F.normalize(self.vlm.pretraining.prototypes, dim=-1)
        if looks.share_done < FROZEN:
            prototypes = prototypes.detach()
        token = token_loss(looks.words, looks.seen_by_words, looks.real, TEMPERATURE_TOKEN)
        token = token + token_loss(looks.patches, looks.seen_by_patches, None, TEMPERATURE_TOKEN)
        members = [embedding.semantic.float() @ prototypes.T for embedding in (seen.image, seen.text)]
        return {
            "ita": self.instance(seen.image, seen),
            "token": WEIGHT_TOKEN * token / 2,
            "prototype": WEIGHT_PROTOTYPE * prototype_loss(*members),
            **self.text_guided(seen),
        }


class Looks(NamedTuple):
    """Of B records, all vectors of length 1."""

    words: Tensor
    """B x L x D."""
    seen_by_words: Tensor
    """B x L x D: what each word saw of the patches."""
    patches: Tensor
    """B x P x D."""
    seen_by_patches: Tensor
    """B x P x D: what each patch saw of the words."""
    real: Tensor
    """B x L bool: words that are there."""
    share_done: float


class Heads(nn.Module):
    """Words and patches in one space, how either looks at the other, and the prototypes.

    Args:
        channels: of the patches. dim: D. embedding: width of the embeddings of pictures and sentences.
    """

    def __init__(self, channels: int, dim: int, embedding: int):
        super().__init__()
        self.patch = nn.Linear(channels, dim)
        self.word = nn.Linear(dim, dim)
        self.word_to_patch = nn.MultiheadAttention(dim, 1, batch_first=True)
        self.patch_to_word = nn.MultiheadAttention(dim, 1, batch_first=True)
        self.prototypes = nn.Parameter(F.normalize(torch.randn(PROTOTYPES, embedding), dim=-1))

    def forward(self, shown: Shown) -> Looks:
        patches = _unit(self.patch(shown.image.levels[-1].flatten(2).transpose(1, 2)))
        words, real = _unit(self.word(shown.text.tokens)), shown.text.mask
        by_words, _ = self.word_to_patch(words, patches, patches, need_weights=False)
        by_patches, _ = self.patch_to_word(patches, words, words, key_padding_mask=~real, need_weights=False)
        return Looks(words, _unit(by_words), patches, _unit(by_patches), real, shown.share_done)


def _unit(x: Tensor) -> Tensor:
    return F.normalize(x.float(), dim=-1)


@full_precision
def token_loss(own: Tensor, seen: Tensor, real: Tensor | None, temperature: float) -> Tensor:
    """InfoNCE among the N parts of each record, both ways, averaged over parts, records and ways: a scalar; ln N where
    all are equally near.

    Args:
        own, seen: B x N x D, length 1: each part, and what it saw of the other side.
        real: B x N bool, parts that take part, at least one in each record; None: all.
    """
    scores = own @ seen.transpose(1, 2) / temperature
    if real is None:
        real = torch.ones(own.shape[:2], dtype=torch.bool, device=own.device)
    positive, absent = scores.diagonal(dim1=1, dim2=2), ~real
    to_seen = scores.masked_fill(absent[:, None, :], -torch.inf).logsumexp(dim=2) - positive
    to_own = scores.masked_fill(absent[:, :, None], -torch.inf).logsumexp(dim=1) - positive
    each = torch.where(real, (to_seen + to_own) / 2, 0)
    return (each.sum(dim=1) / real.sum(dim=1)).mean()


@full_precision
def prototype_loss(image: Tensor, text: Tensor) -> Tensor:
    """Cross-entropy of either side's softmax with the other side's codes, averaged: a scalar; ln K at equal scores.

    Args:
        image, text: B x K cosines with the prototypes.
    """
    log_image, log_text = ((scores / TEMPERATURE_PROTOTYPE).log_softmax(dim=1) for scores in (image, text))
    return -(sinkhorn(text) * log_image + sinkhorn(image) * log_text).sum(dim=1).mean() / 2


@torch.no_grad()
@full_precision
def sinkhorn(scores: Tensor) -> Tensor:
    """Codes of B records: rows that sum to 1, and clusters that are used about equally (Cuturi 2013).

    Args:
        scores: B x K.

    Returns:
        B x K, without a gradient.
    """
    # a factor on all changes nothing, and keeps the exponential finite
    codes = ((scores - scores.max()) / SINKHORN_EPSILON).exp()
    for _ in range(SINKHORN_STEPS):
        codes = codes / codes.sum(dim=0, keepdim=True).clamp(min=_TINY) / codes.shape[1]
        codes = codes / codes.sum(dim=1, keepdim=True).clamp(min=_TINY) / codes.shape[0]
    return codes / codes.sum(dim=1, keepdim=True)


_TINY = 1e-30
