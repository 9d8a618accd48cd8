"""The text-guided loss: what lies under a sentence's mask should look like the sentence (DuSSS, Eq. 11)."""

from __future__ import annotations

import torch
from torch import Tensor

from dusss_core.losses.contrastive import Pairs, info_nce, temperature_scale
from dusss_core.losses.precision import full_precision
from dusss_core.losses.similarity import cosine


@full_precision
def masked_pool(features: Tensor, weights: Tensor, eps: float = 1e-6) -> Tensor:
    """Weighted mean of the features over all pixels: B x D, float32; zeros where all weights are 0.

    Args:
        features: B x D x H x W. weights: B x 1 x H x W in [0, 1], such as a text-guided mask.

    As a function of the logits of a sigmoid mask the gradient stays bounded however small the mask gets.
    """
    flat = weights.flatten(1)
    total = torch.bmm(features.flatten(2), flat[:, :, None]).squeeze(-1)
    return total / flat.sum(dim=1, keepdim=True).clamp(min=eps)


@full_precision
def text_guided_loss(pooled: Tensor, texts: Tensor, positives: Tensor, log_scale: Tensor, pairs: Pairs) -> Tensor:
    """L_tg, Eq. 11: InfoNCE over plain cosines from masked pictures to sentences and back, averaged.

    Args:
        pooled: B x D, from `masked_pool`, of records with text.
        texts: K x D. For pairs masked and identity K = B, text i being that of picture i; for multi_positive
            any texts, also more than the batch has: those that are nobody's positive serve as negatives.
        positives: B x K, bool.
        log_scale: learned log(1 / tau).
    """
    scale = temperature_scale(log_scale)
    similarity = cosine(pooled, texts)
    to_text = info_nce(similarity, positives, scale, pairs)
    to_image = info_nce(similarity.T, positives.T, scale, pairs)
    return (to_text + to_image) / 2
